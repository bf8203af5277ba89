"""NumPy semantics, ``npx.set_np()``: computed with classic arrays and given back as they came.

MXNet 1.9.1 has its fast paths, bfloat16 among them, for classic arrays only. Gluon's layers take
either kind. So inside of this package the mode is off and parameters are classic arrays, in the
same memory as the reader's; the reader's own code (iterators, blocks, `report`) runs in the mode
that it was written in.
"""
import contextlib
import functools
import threading

from ..devices import mx
from .rewriting import rewrite

gluon, util = mx.gluon, mx.util

_reader = threading.local()  # its .modes: (np_shape, np_array) outside, unless both are off
_CACHES = ('_cached_graph', '_cached_op', '_cached_op_args')  # of hybridized blocks
_END = object()
_NAMES = {f'_npi_{name}': name for name in (
    'exp', 'log', 'sqrt', 'square', 'abs', 'negative', 'tanh', 'sin', 'cos', 'mean')}
_NAMES.update((f'_npi_{name}', f'broadcast_{other}') for name, other in (
    ('add', 'add'), ('subtract', 'sub'), ('multiply', 'mul'), ('true_divide', 'div'),
    ('power', 'power')))
_NAMES.update((f'_npi_{name}_scalar', f'_{other}_scalar') for name, other in (
    ('add', 'plus'), ('subtract', 'minus'), ('rsubtract', 'rminus'), ('multiply', 'mul'),
    ('true_divide', 'div'), ('rtrue_divide', 'rdiv'), ('power', 'power')))
_NAMES.update({'_npx_relu': 'relu', '_npx_sigmoid': 'sigmoid', '_np_sum': 'sum', '_np_max': 'max',
               '_npi_concatenate': 'Concat'})


@contextlib.contextmanager
def _modes(net, shape, array):
    """Switch to these modes, and the parameters of `net`, if any, to their arrays."""
    with contextlib.ExitStack() as stack:
        managers = util.np_shape(shape), util.np_array(array)
        for manager in managers if shape else managers[::-1]:  # arrays never without shapes
            stack.enter_context(manager)
        for param in net.collect_params().values() if net is not None else ():
            for arrays in (param._data, param._grad):
                if arrays and param._stype == param._grad_stype == 'default':
                    arrays[:] = [a.as_np_ndarray() if array else a.as_nd_ndarray() for a in arrays]
            param._var = None  # a symbol of the other kind
        yield


def computed_in_nd(function):
    """Let `function`, one of whose arguments is a net, compute with classic arrays in any mode."""
    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        net = next((a for a in (*args, *kwargs.values()) if isinstance(a, gluon.Block)), None)
        modes, outer = (util.is_np_shape(), util.is_np_array()), getattr(_reader, 'modes', None)
        if net is None or not any(modes):
            return function(*args, **kwargs)
        if callable(kwargs.get('report')):
            report = kwargs['report']
            kwargs['report'] = lambda row: as_called(net, report)(row)
        blocks = []
        net.apply(blocks.append)
        caches = [(block, key, getattr(block, key)) for block in blocks for key in _CACHES
                  if hasattr(block, key)]
        _reader.modes = modes
        try:
            with _modes(net, False, False):
                return function(*args, **kwargs)
        finally:
            _reader.modes = outer
            with _modes(net, *modes):
                pass
            for block, key, value in caches:
                setattr(block, key, value)
    return wrapper


def as_called(net, function=None):
    """Return `net`, or a `function` that may call it, so that it runs in the reader's mode.

    It takes and returns classic arrays.
    """
    modes, function = getattr(_reader, 'modes', None), function or net
    if modes is None:
        return function

    def call(X):
        try:
            with _modes(net, *modes):
                return _classic(function(
                    X.as_np_ndarray() if modes[1] and hasattr(X, 'as_np_ndarray') else X))
        finally:
            with _modes(net, False, False):
                pass
    return call


def _classic(output):
    if isinstance(output, mx.sym.Symbol):
        return rewrite(output, _renamed)
    return output.as_nd_ndarray() if isinstance(output, mx.nd.NDArray) else output


def _renamed(new, node):
    """Put operators that can be cast to bfloat16 in the place of those for NumPy's arrays."""
    attrs = dict(node['attrs'])
    if node['op'] == '_npi_concatenate' and 'axis' in attrs:
        attrs['dim'] = attrs.pop('axis')
    return new.copy({**node, 'op': _NAMES.get(node['op'], node['op']), 'attrs': attrs})


def as_iterated(batches):
    """Yield `batches`, which are made in the reader's mode."""
    modes = getattr(_reader, 'modes', None)
    if modes is None:
        yield from batches
        return
    with _modes(None, *modes):
        iterator = iter(batches)
    while True:
        with _modes(None, *modes):
            batch = next(iterator, _END)
        if batch is _END:
            return
        yield batch
