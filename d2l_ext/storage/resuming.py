"""Training that goes on where an earlier run stopped: what a run begins with, and what it keeps."""
import itertools
import os

import numpy as np

from ..checks.finite import check_finite
from ..checks.nets import check_initialized
from .checkpoints import load_checkpoint, save_checkpoint


def begin(run, checkpoint, seed, settings, say):
    """Return history and seed: those in `checkpoint`, if there is one, or of a new run."""
    history = []
    with run.team.open_checkpoint(checkpoint) as path:
        if path is not None:
            asked = settings if seed is None else {**settings, 'seed': seed}
            history, seed = load_checkpoint(path, run.net, run.trainer, run.devices, asked)
            say(f'going on after epoch {len(history)}, from {checkpoint}')
        elif seed is None:
            seed = int(np.random.randint(2**31))
    for device in run.devices:
        check_initialized(run.net, device)  # a checkpoint may have done it
    check_finite(run.net, run.devices[0], 'before training',
                 'Initialize the net anew, or load others')
    return history, int(run.team.from_leader(seed))


def keep(run, checkpoint, history, settings):
    """Write the checkpoint; a file that is there before the first epoch gets another name."""
    if len(history) == 1 and checkpoint.exists():  # of a run that nobody asked to resume
        names = (f'{checkpoint}.previous{i if i > 1 else ""}' for i in itertools.count(1))
        previous = next(name for name in names if not os.path.exists(name))
        os.replace(checkpoint, previous)
        print(f'the checkpoint of an earlier run is now {previous}')
    save_checkpoint(checkpoint, run.net, run.trainer, run.devices, history, settings,
                    run.numbers)
