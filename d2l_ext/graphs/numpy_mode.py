"""NumPy semantics, ``npx.set_np()``: computed with classic arrays and given back as they came.

MXNet 1.9.1 has its fast paths, bfloat16 among them, for classic arrays only. So inside of this
package the mode is off and parameters are classic arrays, in the same memory as the reader's. The
reader's iterators and `report` run in the reader's mode; nets in that in which they were made, as a
convolution of Gluon's works in no other.
"""
import contextlib
import functools
import threading

from ..devices import mx
from .rewriting import rewrite

gluon, util = mx.gluon, mx.util
_Conv = gluon.nn.conv_layers._Conv

# Its .inside: (np_shape, np_array) of the reader and of the net, where this package computes.
_thread = threading.local()
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


def _inside():
    return getattr(_thread, 'inside', None)


@contextlib.contextmanager
def _modes(modes, inside, net=None, kinds=(False, False)):
    """Switch to these modes, and the parameters of `net` to NumPy's arrays or back, as `kinds` say.

    The first is for the time being, the second for afterwards.
    """
    before, _thread.inside = _inside(), inside
    managers = util.np_shape(modes[0]), util.np_array(modes[1])
    try:
        with contextlib.ExitStack() as stack:
            for manager in managers if modes[0] else managers[::-1]:  # arrays never without shapes
                stack.enter_context(manager)
            _switch(net, kinds[0])
            yield
    finally:
        _thread.inside = before
        _switch(net, kinds[1])


def _switch(net, as_np):
    for param in net.collect_params().values() if net is not None else ():
        for arrays in (param._data, param._grad):
            if arrays and param._stype == param._grad_stype == 'default':
                arrays[:] = [a.as_np_ndarray() if as_np else a.as_nd_ndarray() for a in arrays]
        param._var = None  # a symbol of the other kind


def _made_in(net, modes):
    """Return the modes in which `net` was made: these unless it shows that it was not."""
    blocks = []
    net.apply(blocks.append)
    kinds = {block._op_name.islower() for block in blocks if isinstance(block, _Conv)}
    if len(kinds) > 1:
        raise ValueError('net has convolutions made before npx.set_np() and others made after it, '
                         'and MXNet can call no such net: make all of them after npx.set_np()')
    kinds = kinds or {isinstance(array, mx.np.ndarray) for param in net.collect_params().values()
                      for array in param._data or ()}
    return modes if kinds != {not modes[1]} else (not modes[1],) * 2


def computed_in_nd(function):
    """Let `function`, one of whose arguments is a net, compute with classic arrays in any mode."""
    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        net = next((a for a in (*args, *kwargs.values()) if isinstance(a, gluon.Block)), None)
        if net is None or _inside():
            return function(*args, **kwargs)
        modes = util.is_np_shape(), util.is_np_array()
        made_in = _made_in(net, modes)
        if not any(modes + made_in):
            return function(*args, **kwargs)
        if callable(kwargs.get('report')):
            report = kwargs['report']
            kwargs['report'] = lambda row: _as_called(net, report, modes, made_in)(row)
        blocks = []
        net.apply(blocks.append)
        caches = [(block, key, getattr(block, key)) for block in blocks for key in _CACHES
                  if hasattr(block, key)]
        try:
            with _modes((False, False), (modes, made_in), net, (False, made_in[1])):
                result = function(*args, **kwargs)
        finally:
            for block, key, value in caches:
                setattr(block, key, value)
        compiled = isinstance(result, gluon.Block) and result is not net
        return _AnyArrays(result) if compiled else result
    return wrapper


class _AnyArrays(gluon.Block):
    """Calls a block of classic arrays with those of any kind, and returns the same kind."""

    def __init__(self, block):
        super().__init__()
        self.block = block

    def forward(self, X):
        return _as_np(_call(self.block, X), isinstance(X, mx.np.ndarray))


@computed_in_nd
def _call(block, X):
    return block(X.as_nd_ndarray())


def _as_np(X, wanted):
    return X.as_np_ndarray() if wanted else X


def classic(op, *inputs, **settings):
    """Return what an operator of ``mx.nd`` or ``mx.sym`` makes of arrays of the current mode."""
    return _as_np(op(*[X.as_nd_ndarray() for X in inputs], **settings), util.is_np_array())


def as_called(net):
    """Return `net`, so that it runs in the mode it was made in; it takes classic arrays."""
    return _as_called(net, net, _inside()[1], _inside()[1]) if _inside() else net


def _as_called(net, function, modes, made_in):
    def call(X):
        with _modes(modes, None, net, (made_in[1], False)):
            output = function(_as_np(X, modes[1] and hasattr(X, 'as_np_ndarray')))
        return _classic(output)
    return call


def _classic(output):
    if isinstance(output, (list, tuple)):
        return type(output)(map(_classic, output))
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
    if not _inside():
        yield from batches
        return
    modes, _ = _inside()
    with _modes(modes, None):
        iterator = iter(batches)
    while True:
        with _modes(modes, None):
            batch = next(iterator, _END)
        if batch is _END:
            return
        yield batch
