"""What a net computes with, looked at and put back."""
import contextlib
import copy
import random

import numpy as np

from ..devices import mx

nd, gluon = mx.nd, mx.gluon


def _blocks(net):
    blocks = []
    net.apply(blocks.append)
    return blocks


def _items(value):
    """Return what a list, tuple, dictionary or set holds, or else the value itself."""
    if isinstance(value, dict):
        return list(value.values())
    return list(value) if isinstance(value, (list, tuple, set)) else [value]


def user_attributes(net):
    """Return what others than Gluon's base class keep in the blocks of a net, to be compared."""
    known = vars(gluon.HybridBlock())
    items = [item for block in _blocks(net) for name, value in sorted(vars(block).items())
             if name not in known for item in _items(value)]
    return [item.asnumpy().tobytes() if isinstance(item, nd.NDArray)
            else item.tobytes() if isinstance(item, np.ndarray)
            else item if isinstance(item, (int, float, str)) else id(item) for item in items]


def _attributes(net):
    """Return the attributes of all blocks and parameters, each as (its dictionary, a copy)."""
    return [(vars(owner), dict(vars(owner)))
            for owner in [*_blocks(net), *net.collect_params().values()]]


@contextlib.contextmanager
def attributes_kept(net):
    """Put back attributes, lists in them, and Python's and NumPy's generators, whatever happens."""
    python, numpy = random.getstate(), np.random.get_state()
    # Those of a parameter say whether its initialization is still deferred.
    kept = _attributes(net)
    kept += [(value, copy.copy(value)) for _, old in kept for value in old.values()
             if isinstance(value, (list, dict, set))]
    try:
        yield
    finally:
        for now, old in kept:
            now.clear()
            now.extend(old) if isinstance(now, list) else now.update(old)
        random.setstate(python)
        np.random.set_state(numpy)


@contextlib.contextmanager
def untouched(net):
    """Put back what a net computes with to what it is now, whatever happens.

    That is all of :func:`attributes_kept`, all arrays, such as parameters and gradients, and
    MXNet's generator.
    """
    # The state of MXNet's generator cannot be read; a number that it draws stands for it.
    drawn = int(nd.random.randint(0, 2**31 - 1).asscalar())
    arrays = [(item, item.copy()) for _, old in _attributes(net) for value in old.values()
              for item in _items(value) if isinstance(item, (nd.NDArray, np.ndarray))]
    with attributes_kept(net):
        try:
            yield
        finally:
            # An operator that failed in the background is reported by what waits for its results;
            # until then they cannot be written.
            for wait in [nd.waitall, *(array.wait_to_read for array, _ in arrays
                                       if isinstance(array, nd.NDArray)), nd.waitall]:
                with contextlib.suppress(mx.MXNetError):
                    wait()
            for array, content in arrays:
                array[:] = content
            nd.waitall()
            mx.random.seed(drawn)
