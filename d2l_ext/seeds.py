"""Random numbers that repeat."""
import random

import numpy as np

from .devices import mx


def seed_epoch(seed, epoch, rank=0):
    """Seed Python's, NumPy's and MXNet's generators, so that an epoch repeats by itself.

    Workers of one job share the order of the images, NumPy's, but not the dropout, MXNet's.
    """
    mx.nd.waitall()
    state = int(np.random.SeedSequence((seed, epoch)).generate_state(1)[0])
    random.seed(state)
    np.random.seed(state)
    if rank:
        state = int(np.random.SeedSequence((seed, epoch, rank)).generate_state(1)[0])
    mx.random.seed(state % 2**31)
