"""Parameters and whole training states in plain .npz files; no pickle is written or read."""
import io
import json
import math
import re
import zipfile

import numpy as np

from ..arguments import check_choice, check_path, check_type
from ..checks.nets import check_initialized
from ..checks.trainers import check_trainer
from ..devices import check_ctx, check_devices, mx, try_gpu
from ..graphs import check_net
from ..graphs.numpy_mode import computed_in_nd
from ..graphs.state import arrays_of, named_blocks, numbers_of, set_attributes
from .files import atomic_write

nd = mx.nd

# What changes in MXNet's loss scaler: the scale of this step and the next one, and the number of
# steps since an overflow.
_LOSS_SCALER = ('_loss_scale', '_next_loss_scale', '_unskipped')


def _named_params(net):
    """Return the parameters of `net` by the place of their layer, such as ``0.1.weight``.

    These names, unlike Gluon's own, do not depend on how many nets were made before. Parameters
    that a block has under no name, such as in a list, are ``0.params.weight``.
    """
    named = check_net(net)._collect_params_with_prefix()
    known = set(map(id, named.values()))
    for path, block in named_blocks(net):
        named.update((f'{path}params.{name.removeprefix(block.params.prefix)}', param)
                     for name, param in block.params.items() if id(param) not in known)
    return named


def _values(net):
    """Return the parameters of `net` as {name: array of NumPy}."""
    for name, param in _named_params(net).items():
        if param._data is None:
            raise ValueError(f'net must be initialized and have seen a batch, but {name} has no '
                             'values, not even a shape' if param._deferred_init else
                             f'net must be initialized, with net.initialize(), but {name} is not')
    nd.waitall()  # MXNet rearranges weights of convolutions in the background, after net(X)
    return {name: param.list_data()[0].asnumpy() for name, param in _named_params(net).items()}


def _arrays_beside(net):
    """Return the arrays that blocks of `net` keep in attributes, with those of its parameters."""
    return {name: value for name, value in arrays_of(net).items() if value is not None}


def _load_arrays(path):
    """Return the arrays of a .npz file as a dictionary."""
    path = check_path('path', path)
    try:
        # NumPy's own np.load would believe each header before the check sum is known.
        content = path.read_bytes()
        # From memory: in a file, zipfile asks for as much as a directory's header announces.
        with zipfile.ZipFile(io.BytesIO(content)) as file:
            parts = file.infolist()
            if any(part.compress_type != zipfile.ZIP_STORED for part in parts):
                raise ValueError('it is compressed')
            if sum(part.file_size for part in parts) > len(content):
                raise ValueError('it announces more than it holds')
            return {re.sub(r'\.npy$', '', part.filename): _read_array(file.read(part))
                    for part in parts}
    except FileNotFoundError:
        raise
    except Exception as error:  # zipfile and NumPy know a dozen kinds for what is damaged
        raise ValueError(f'{path} cannot be read as a .npz file of arrays: {error}') from None


def _read_array(content):
    """Return the array in the bytes of a .npy file, of the version that NumPy writes by default."""
    file = io.BytesIO(content)
    if np.lib.format.read_magic(file) != (1, 0):
        raise ValueError('an array has an unknown version')
    shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    # A lying header must not make NumPy ask for memory.
    if math.prod(shape) * dtype.itemsize != len(content) - file.tell():
        raise ValueError('an array has another size than it announces')
    file.seek(0)
    return np.lib.format.read_array(file, allow_pickle=False)


def _save_arrays(path, arrays):
    """Write a dictionary of arrays to a .npz file."""
    # In memory first: on a full disk NumPy leaves a ZipFile behind that complains when it goes.
    content = io.BytesIO()
    np.savez(content, **arrays)
    with atomic_write(path) as file:
        file.write(content.getbuffer())


@computed_in_nd
def save_params(net, path, dtype='float32'):
    """Write the parameters of `net` to a .npz file, keyed by layer (``0.1.weight``).

    So are arrays that layers keep in attributes, such as a running mean (``0.1.mean``).

    Parameters
    ----------
    net : mxnet.gluon.Block
        Initialized, and called once if shapes were deferred.
    path : str or path
        File to write; replaced only once the new content is complete.
    dtype : {'float32', 'float16'}
        'float16' halves the file; the values of parameters are rounded.

    Raises
    ------
    ValueError
        If a parameter has no values yet, or `dtype` or `path` is none of these.
    OSError
        If the file cannot be written.
    """
    check_choice('dtype', dtype, ('float32', 'float16'))
    params = {name: value.astype(dtype) for name, value in _values(net).items()}
    _save_arrays(path, {**params, **_arrays_beside(net)})


@computed_in_nd
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
    ctx = try_gpu() if ctx is None else check_ctx(ctx)
    here = arrays_of(net).keys() - params.keys()
    beside = {name: arrays.pop(name) for name in here & arrays.keys()}
    _check_params(params, arrays, path)
    _check_beside(net, beside, path)
    _set_params(params, arrays, ctx)
    set_attributes(net, beside, ctx)


def _check_beside(net, arrays, path):
    """Raise a ValueError unless `arrays` are those that blocks of `net` keep in attributes."""
    here = arrays_of(net)
    wrong = sorted(_arrays_beside(net).keys() - arrays.keys() | arrays.keys() - here.keys())
    if wrong:
        raise ValueError(f'{path} and net do not keep the same arrays in attributes of blocks, '
                         f'such as {wrong[0]}. Save again; or call net on a batch before loading, '
                         'if it makes them then')
    if any(array.dtype.kind not in 'fiub' for array in arrays.values()):
        raise ValueError(f'{path}: an array that is kept in an attribute holds no numbers')


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


def save_checkpoint(path, net, trainer, ctx, history, settings, start=None):
    """Write everything that training needs to go on after a whole epoch.

    Parameters
    ----------
    path : str or path
        File to write; replaced only once the new content is complete.
    net : mxnet.gluon.Block
        Its parameters are kept in float32, as they train.
    trainer : mxnet.gluon.Trainer
        Its optimizer states and update counts are kept, and its loss scale if it has one.
    ctx : mxnet.Context or list of mxnet.Context
        Devices of the parameters, on all of which these and the states are the same.
    history : list of dict
        One dictionary an epoch.
    settings : dict
        What a resumed run must have the same, the seed among it.
    start : dict, optional
        The :func:`numbers_of <d2l_ext.graphs.state.numbers_of>` the net when training began. What
        has changed since, such as a count of calls, is kept.
    """
    devices = check_devices(ctx)
    for device in devices:
        check_initialized(net, device)
    check_trainer(trainer, net)
    check_type('history', history, list, 'a list of dictionaries, one an epoch')
    check_type('settings', settings, dict, 'a dictionary')
    optimizer = trainer._optimizer
    arrays = {f'param:{name}': value for name, value in _values(net).items()}
    arrays.update((f'attribute:{name}', value) for name, value in _arrays_beside(net).items())
    optimizer._set_current_context(devices[0].device_id)  # MXNet counts updates for each device
    updates = {}
    for name, param in _named_params(net).items():
        index = trainer._param2idx.get(param.name)
        if index is not None:
            updates[name] = optimizer._index_update_count.get(index, 0)
            state = trainer._updaters[0].states.get(index)
            arrays.update((key, array.asnumpy())
                          for key, array in _flatten_state(state, f'state:{name}'))
    about = {'history': history, 'updates': updates, 'settings': {
        **settings, 'optimizer': type(optimizer).__name__}}
    if start is not None:
        about['numbers'] = {name: number for name, number in numbers_of(net).items()
                            if start.get(name) != number}
    if hasattr(optimizer, 'm_schedule'):  # Nadam keeps this number outside of its states
        about['m_schedule'] = optimizer.m_schedule
    if hasattr(trainer, '_amp_loss_scaler'):
        about['loss_scaler'] = {name: getattr(trainer._amp_loss_scaler, name)
                                for name in _LOSS_SCALER}
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
        if _is_about(about):
            return arrays, about
    except (KeyError, ValueError, TypeError, RecursionError):
        pass
    raise ValueError(f'{path} is not a checkpoint of train_ch5')


def _is_about(about):
    """Return whether this has the form of what :func:`save_checkpoint` writes beside arrays."""
    if not isinstance(about, dict) or not about.keys() >= {'history', 'updates', 'settings'}:
        return False
    scaler = about.get('loss_scaler', dict.fromkeys(_LOSS_SCALER, 1))
    return (isinstance(about['history'], list)
            and all(isinstance(row, dict) for row in about['history'])
            and isinstance(about['updates'], dict)
            and all(type(number) is int and number >= 0 for number in about['updates'].values())
            and isinstance(about['settings'], dict)
            and type(about['settings'].get('seed')) is int
            and 0 <= about['settings']['seed'] < 2**32
            and isinstance(about.get('m_schedule', 1.0), float)
            and isinstance(about.get('numbers', {}), dict)
            and all(type(number) in (bool, int, float)
                    for number in about.get('numbers', {}).values())
            and isinstance(scaler, dict) and scaler.keys() == set(_LOSS_SCALER)
            and all(type(number) in (int, float) for number in scaler.values()))


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
    check_trainer(trainer, net)
    devices = check_devices(ctx)
    check_type('settings', settings, dict, 'a dictionary')
    optimizer, updates = trainer._optimizer, about['updates']
    for name, value in {**settings, 'optimizer': type(optimizer).__name__}.items():
        kept = about['settings'].get(name)
        if kept != value:
            raise ValueError(f'{path} was made with {name}={kept!r}, not {value!r}; go on with '
                             'that, or pass another checkpoint')
    by_kind = {'param': {}, 'state': {}, 'attribute': {}}
    for key, array in arrays.items():
        kind, _, name = key.partition(':')
        by_kind.get(kind, {})[name] = array
    params, states = _named_params(net), {}
    _check_params(params, by_kind['param'], path)
    _check_beside(net, by_kind['attribute'], path)
    # Nothing is changed before everything is known to fit.
    for name, param in params.items():
        index = trainer._param2idx.get(param.name)
        if index is None or not updates.get(name):
            continue
        state = optimizer.create_state_multi_precision(
            index, nd.array(by_kind['param'][name], devices[0]))
        for key, target in _flatten_state(state, name):
            array = by_kind['state'].pop(key, np.array(None))
            if array.shape != target.shape or array.dtype.kind != 'f':
                raise ValueError(f'{path} lacks the state that the optimizer of this trainer keeps '
                                 f'for {name}, such as momentum')
            target[:] = nd.array(array, devices[0], dtype=target.dtype)
        states[index] = name, state
    if by_kind['state']:
        raise ValueError(f'{path} has a state, such as momentum, that the optimizer of this '
                         'trainer does not keep')
    if 'loss_scaler' in about and not hasattr(trainer, '_amp_loss_scaler'):
        raise ValueError(f'{path} was made with loss scaling, which this trainer does not use')
    _set_params(params, by_kind['param'], devices)
    set_attributes(net, {**by_kind['attribute'], **about.get('numbers', {})}, devices[0])
    if 'm_schedule' in about:
        optimizer.m_schedule = about['m_schedule']
    for name, value in about.get('loss_scaler', {}).items():
        setattr(trainer._amp_loss_scaler, name, value)
    for device, updater in zip(devices, trainer._updaters):
        optimizer._set_current_context(device.device_id)
        for index, (name, state) in states.items():
            optimizer._index_update_count[index] = updates[name]
            optimizer.num_update = max(optimizer.num_update, updates[name])
            updater.states[index] = updater.sync_state_context(state, device)
            updater.states_synced[index] = True
    return about['history'], about['settings']['seed']
