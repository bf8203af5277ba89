"""Parameters and whole training states in plain .npz files; no pickle is written or read."""
import io
import json
import pathlib
import zipfile
import zlib

import numpy as np

from .devices import mx, try_gpu
from .files import atomic_write

nd = mx.nd


def _named_params(net):
    """Return the parameters of `net` by the place of their layer, such as ``0.1.weight``.

    These names, unlike Gluon's own, do not depend on how many nets were made before.
    """
    return net._collect_params_with_prefix()


def _load_arrays(path):
    """Return the arrays of a .npz file as a dictionary."""
    path = pathlib.Path(path)
    try:
        with zipfile.ZipFile(path) as file:
            damaged = file.testzip()  # NumPy would look at the check sums too late
        if damaged is not None:
            raise ValueError(f'{damaged} has another check sum')
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except FileNotFoundError:
        raise
    except (OSError, EOFError, ValueError, AttributeError, TypeError, KeyError,
            NotImplementedError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f'{path} cannot be read as a .npz file of arrays: {error}') from None


def _save_arrays(path, arrays):
    """Write a dictionary of arrays to a .npz file."""
    # In memory first: on a full disk NumPy leaves a ZipFile behind that complains when it goes.
    content = io.BytesIO()
    np.savez(content, **arrays)
    with atomic_write(path) as file:
        file.write(content.getbuffer())


def save_params(net, path, dtype='float32'):
    """Write the parameters of `net` to a .npz file, keyed by layer (``0.1.weight``).

    Parameters
    ----------
    net : mxnet.gluon.Block
        Initialized.
    path : str or path
        File to write; replaced only once the new content is complete.
    dtype : str
        'float16' halves the file; the values are rounded.
    """
    _save_arrays(path, {name: param.data().asnumpy().astype(dtype)
                        for name, param in _named_params(net).items()})


def load_params(net, path, ctx=None):
    """Set the parameters of `net` from a file that :func:`save_params` wrote.

    Parameters
    ----------
    net : mxnet.gluon.Block
        With the same layers; need not be initialized.
    path : str or path
        File to read.
    ctx : mxnet.Context, optional
        Where to put the parameters of a net not yet initialized; by default ``try_gpu()``.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file is damaged or belongs to another network.
    """
    params, arrays = _named_params(net), _load_arrays(path)
    _check_params(params, arrays, path)
    _set_params(params, arrays, ctx or try_gpu())


def _check_params(params, arrays, path):
    missing, extra = params.keys() - arrays.keys(), arrays.keys() - params.keys()
    if missing or extra:
        raise ValueError(f'{path} belongs to another network: {len(missing)} of the parameters of '
                         f'this one are missing there and {len(extra)} have no place here '
                         f'(such as {sorted(missing or extra)[0]})')
    for name, param in params.items():
        # Zeros in a known shape are dimensions that Gluon infers from the first batch.
        if param.shape is not None and (
                len(param.shape) != arrays[name].ndim
                or any(known and known != found
                       for known, found in zip(param.shape, arrays[name].shape))):
            raise ValueError(f'{path} belongs to another network: {name} has the shape '
                             f'{arrays[name].shape} there and {param.shape} here')
        if arrays[name].dtype.kind != 'f':
            raise ValueError(f'{path}: {name} is not an array of floating-point numbers')


def _set_params(params, arrays, ctx):
    for name, param in params.items():
        param.shape = arrays[name].shape
        if param._data is None and not param._deferred_init:
            param.initialize(ctx=ctx, init=mx.init.Zero())
        param.set_data(nd.array(arrays[name], dtype=param.dtype))
        if param._deferred_init:  # nothing is left to wait for, now that the shape is known
            param._finish_deferred_init()


def _flatten_state(state, prefix):
    """Yield (key, array) for an optimizer state: None, an array, or nested tuples of them."""
    if isinstance(state, (tuple, list)):
        for i, item in enumerate(state):
            yield from _flatten_state(item, f'{prefix}/{i}')
    elif state is not None:
        yield prefix, state


def save_checkpoint(path, net, trainer, ctx, history, settings):
    """Write everything that training needs to go on after a whole epoch.

    Parameters
    ----------
    path : str or path
        File to write; replaced only once the new content is complete.
    net : mxnet.gluon.Block
        Its parameters are kept in float32, as they train.
    trainer : mxnet.gluon.Trainer
        Its optimizer states and update counts are kept.
    ctx : mxnet.Context
        Device of the parameters.
    history : list of dict
        One dictionary an epoch.
    settings : dict
        What a resumed run must have the same, the seed among it.
    """
    params = _named_params(net)
    optimizer = trainer._optimizer
    arrays = {f'param:{name}': param.data().asnumpy() for name, param in params.items()}
    optimizer._set_current_context(ctx.device_id)  # MXNet counts updates for each device
    updates = {}
    for name, param in params.items():
        index = trainer._param2idx.get(param.name)
        if index is not None:
            updates[name] = optimizer._index_update_count.get(index, 0)
            state = trainer._updaters[0].states.get(index)
            arrays.update((key, array.asnumpy())
                          for key, array in _flatten_state(state, f'state:{name}'))
    about = {'history': history, 'updates': updates, 'settings': {
        **settings, 'optimizer': type(optimizer).__name__}}
    if hasattr(optimizer, 'm_schedule'):  # Nadam keeps this number outside of its states
        about['m_schedule'] = optimizer.m_schedule
    _save_arrays(path, {'about': np.array(json.dumps(about)), **arrays})


def read_history(path):
    """Return the history in a checkpoint.

    Raises
    ------
    ValueError
        If the file is damaged or no checkpoint.
    """
    return _read_checkpoint(path)[1]['history']


def _read_checkpoint(path):
    arrays = _load_arrays(path)
    try:
        about = json.loads(arrays.pop('about').item())
        if about.keys() >= {'history', 'updates', 'settings'}:
            return arrays, about
    except (KeyError, ValueError, TypeError, AttributeError):
        pass
    raise ValueError(f'{path} is not a checkpoint of train_ch5')


def load_checkpoint(path, net, trainer, ctx, settings):
    """Put `net` and `trainer` back to where :func:`save_checkpoint` left them.

    Parameters are those of :func:`save_checkpoint`; all `settings` must be as they were then.

    Returns
    -------
    history : list of dict
    seed : int

    Raises
    ------
    ValueError
        If the file is damaged, or belongs to another network, optimizer or setting. Nothing is
        changed then.
    """
    arrays, about = _read_checkpoint(path)
    optimizer, updates = trainer._optimizer, about['updates']
    for name, value in {**settings, 'optimizer': type(optimizer).__name__}.items():
        kept = about['settings'].get(name)
        if kept != value:
            raise ValueError(f'{path} was made with {name}={kept!r}, not {value!r}; go on with '
                             'that, or pass another checkpoint')
    by_kind = {'param': {}, 'state': {}}
    for key, array in arrays.items():
        kind, _, name = key.partition(':')
        by_kind.get(kind, {})[name] = array
    params, states = _named_params(net), {}
    _check_params(params, by_kind['param'], path)
    # Nothing is changed before everything is known to fit.
    for name, param in params.items():
        index = trainer._param2idx.get(param.name)
        if index is None or not updates.get(name):
            continue
        state = optimizer.create_state_multi_precision(index, nd.array(by_kind['param'][name], ctx))
        for key, target in _flatten_state(state, name):
            array = by_kind['state'].pop(key, np.array(None))
            if array.shape != target.shape:
                raise ValueError(f'{path} lacks the state that the optimizer of this trainer keeps '
                                 f'for {name}, such as momentum')
            target[:] = nd.array(array, ctx, dtype=target.dtype)
        states[index] = name, state
    if by_kind['state']:
        raise ValueError(f'{path} has a state, such as momentum, that the optimizer of this '
                         'trainer does not keep')
    _set_params(params, by_kind['param'], ctx)
    optimizer._set_current_context(ctx.device_id)
    if 'm_schedule' in about:
        optimizer.m_schedule = about['m_schedule']
    for index, (name, state) in states.items():
        optimizer._index_update_count[index] = updates[name]
        optimizer.num_update = max(optimizer.num_update, updates[name])
        trainer._updaters[0].states[index] = state
        trainer._updaters[0].states_synced[index] = True
    return about['history'], about['settings']['seed']
