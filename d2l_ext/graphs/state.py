"""What a net computes with, looked at and put back."""
import contextlib
import copy
import random

import numpy as np

from ..devices import mx

nd, gluon, autograd = mx.nd, mx.gluon, mx.autograd

_BASE = frozenset(vars(gluon.HybridBlock(prefix='')))  # what every block has
_ARRAYS, _NUMBERS = (nd.NDArray, np.ndarray, np.generic), (bool, int, float)


def _blocks(net):
    blocks = []
    net.apply(blocks.append)
    return blocks


def named_blocks(net, path=''):
    """Yield the places of a net and the blocks in it, such as ``0.1.``, and the blocks."""
    yield path, net
    for name, child in net._children.items():
        yield from named_blocks(child, f'{path}{name}.')


def _leaves(value, name=''):
    """Yield name and value of what lists, tuples, dictionaries and sets hold, or of the value."""
    if isinstance(value, (dict, list, tuple, set)):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _leaves(item, f'{name}.{key}')
    else:
        yield name, value


def _members(block):
    """Return what others than Gluon's base class keep in a block, numbers of its class included."""
    of_class = {key: value for kind in reversed(type(block).__mro__)
                for key, value in vars(kind).items()
                if key[:2] != '__' and type(value) in (*_NUMBERS, type(None))}
    return {key: value for key, value in {**of_class, **vars(block)}.items() if key not in _BASE}


def attach_grads(net):
    """Let gradients reach the parameters of a net that copy.deepcopy made, which unties them."""
    for param in net.collect_params().values():
        for data, grad in zip(param._data or (), param._grad or ()):
            if data.grad is None:
                autograd.mark_variables([data], [grad], param.grad_req)


def _containers(value):
    """Yield the lists, dictionaries and sets in a value, and in those."""
    if isinstance(value, (dict, list, tuple, set)):
        if not isinstance(value, tuple):
            yield value
        for item in value.values() if isinstance(value, dict) else value:
            yield from _containers(item)


def _own_attributes(net):
    """Return the items of :func:`_members` of all blocks, by name."""
    return {name: item for path, block in named_blocks(net)
            for key, value in _members(block).items() for name, item in _leaves(value, path + key)}


def user_attributes(net):
    """Return what others than Gluon's base class keep in the blocks of a net, to be compared."""
    return {name: _numpy(item).tobytes() if isinstance(item, _ARRAYS)
            else item if isinstance(item, (int, float, str)) else id(item)
            for name, item in _own_attributes(net).items()}


def _numpy(array):
    return array.asnumpy() if isinstance(array, nd.NDArray) else np.asarray(array)


def arrays_of(net):
    """Return the arrays of numbers in attributes of blocks, by name, as NumPy's.

    Such as the running mean of a batch normalization from scratch. Where there is none yet but may
    come one, as None or a plain number says, it is None.
    """
    return {name: _numpy(item) if isinstance(item, _ARRAYS) else None
            for name, item in _own_attributes(net).items()
            if item is None or type(item) in _NUMBERS
            or isinstance(item, _ARRAYS) and _numpy(item).dtype.kind in 'fiub'}


def numbers_of(net):
    """Return the plain numbers in attributes of blocks by name, such as a count of calls."""
    return {name: item for name, item in _own_attributes(net).items() if type(item) in _NUMBERS}


def set_attributes(net, values, ctx):
    """Put arrays and numbers, by name, where :func:`arrays_of` and :func:`numbers_of` find them.

    An array that a block has not made yet goes to `ctx`. What two attributes share stays shared.
    """
    made = {}  # what stands for an old array; both, so that no other gets its id
    for path, block in named_blocks(net):
        for key, old in _members(block).items():
            new = _with(old, path + key, values, ctx, made)
            if new is not old:
                vars(block)[key] = new


def _with(old, name, values, ctx, made):
    """Return an attribute with the arrays and numbers in it that `values` has."""
    if isinstance(old, (dict, list, tuple)):
        keys = old if isinstance(old, dict) else range(len(old))
        new = {key: _with(old[key], f'{name}.{key}', values, ctx, made) for key in keys}
        if isinstance(old, dict):
            old.update(new)
        elif isinstance(old, list):
            old[:] = new.values()
        elif any(new[i] is not old[i] for i in keys):
            return getattr(type(old), '_make', type(old))(new.values())
        return old
    if name not in values:
        return old
    value = values[name]
    if isinstance(old, (nd.NDArray, np.ndarray)):
        return made.setdefault(id(old), (old, _like(old, value)))[1]
    if np.ndim(value):
        return nd.array(value, ctx, value.dtype)
    return value[()] if isinstance(value, np.ndarray) else value


def _like(old, value):
    """Return the array of NumPy `value` as one of the kind, type and device of `old`."""
    if isinstance(old, np.ndarray):
        return value.astype(old.dtype)
    new = nd.array(value, old.context, old.dtype).tostype(old.stype)
    return new.as_np_ndarray() if isinstance(old, mx.np.ndarray) else new


def _attributes(net):
    """Return the attributes of all blocks and parameters, each as (its dictionary, a copy)."""
    return [(vars(owner), dict(vars(owner)))
            for owner in [*_blocks(net), *net.collect_params().values()]]


def put_back(attributes, old):
    """Make a dictionary equal to `old`, never without what another thread may be reading."""
    attributes.update(old)
    for key in attributes.keys() - old.keys():
        del attributes[key]


@contextlib.contextmanager
def attributes_kept(net):
    """Put back attributes, lists in them, and Python's and NumPy's generators, whatever happens."""
    python, numpy = random.getstate(), np.random.get_state()
    # Those of a parameter say whether its initialization is still deferred.
    kept = _attributes(net)
    containers = [(found, copy.copy(found)) for _, old in kept for value in old.values()
                  for found in _containers(value)]
    try:
        yield
    finally:
        for attributes, old in kept:
            put_back(attributes, old)
        for now, old in containers:
            now.clear()
            now.extend(old) if isinstance(now, list) else now.update(old)
        random.setstate(python)
        np.random.set_state(numpy)


@contextlib.contextmanager
def untouched(net, reseed=True):
    """Put back what a net computes with to what it is now, whatever happens.

    That is all of :func:`attributes_kept`, all arrays, such as parameters and gradients, and, with
    `reseed`, MXNet's generator.
    """
    # The state of MXNet's generator cannot be read; a number that it draws stands for it.
    drawn = int(nd.random.randint(0, 2**31 - 1).asscalar()) if reseed else None
    arrays = [(item, item.copy()) for _, old in _attributes(net) for value in old.values()
              for _, item in _leaves(value) if isinstance(item, nd.NDArray)
              or isinstance(item, np.ndarray) and item.flags.writeable]
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
                if isinstance(array, nd.NDArray):
                    content.copyto(array)
                else:
                    array[...] = content
            nd.waitall()
            if reseed:
                mx.random.seed(drawn)
