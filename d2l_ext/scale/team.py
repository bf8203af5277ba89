"""Who trains: this process alone, or several."""
import contextlib

import numpy as np

from ..devices import mx


class Team:
    """This process alone; :class:`~d2l_ext.scale.workers.Workers` are several."""

    rank, number = 0, 1

    def part(self, batches):
        """Return of each batch what this process trains on."""
        return batches

    def counts(self, X):
        """Return the number of images in the batch that `X` is part of, and of those in `X`."""
        return len(X), len(X)

    def sum(self, values):
        """Return the sum of the numbers that each process passes."""
        return np.asarray(values, 'float64')

    def open_checkpoint(self, path):
        """Give the path of the file `path`, or None if there is none."""
        return contextlib.nullcontext(path if path is not None and path.exists() else None)

    from_leader = sum  # the numbers that rank 0 passes
    check_alike = make_sendable = finish = lambda *_, **__: None


def team_of(trainer):
    """Return who trains with `trainer`, each updating its own copy of the parameters.

    So rank 0 has all optimizer states, as a checkpoint needs them.
    """
    asked = trainer._kvstore_params
    kvstore = getattr(asked['kvstore'], 'type', asked['kvstore'])
    asked['update_on_kvstore'] = False
    if isinstance(asked['kvstore'], mx.kv.KVStore):
        asked['kvstore'] = kvstore  # its name: a store serves one trainer only
    if not isinstance(kvstore, str) or 'dist' not in kvstore:
        return Team()
    from .workers import connect
    team = connect(kvstore)
    asked['kvstore'] = team.kv
    return team
