"""How a net is computed: compiled or layer by layer, and in which precision."""
import contextlib
import random
import typing

import numpy as np

from ..batches import common_shape
from ..devices import mx, resolve_precision
from .compiling import compiled
from .cpu import crop_windows, window_in_use
from .numpy_mode import as_called, as_iterated
from .rewriting import maps_of, nodes_of, sizes
from .state import attributes_kept, untouched, user_attributes
from .tracing import is_trusted, trace

nd, autograd = mx.nd, mx.autograd

_NUM_IMAGES = 4  # in the batch with which it is tried
# Chains of these are never tried: they are the section's, and are trained in every test.
_KNOWN = ('null', 'Convolution', 'Pooling', 'Activation', 'FullyConnected', 'Flatten', 'Dropout',
          'BatchNorm')


class Choice(typing.NamedTuple):
    """How a net is computed."""

    forward: typing.Callable  # computes what the net does; the net itself if it is not compiled
    precision: str  # 'float32', 'bfloat16' or 'float16', in which its layers compute
    reason: str = ''  # why it is not the fastest that there is, one sentence; empty if it is


def choose(net, ctx, precision='auto', batches=()):
    """Return the fastest way to compute what `net` computes when it is called.

    The graph of a net stands for it if the net is made of Gluon's layers and this package's, or
    has been hybridized, for then Gluon itself computes by the graph. Any other is called and
    compared with its graph on a few images, in training and in prediction mode: outputs,
    gradients and running statistics must be the same, and a second call must not differ from the
    first. Where it is not known from the layers whether MXNet can compute the graph in the
    precision, one step is tried. None of this changes the net, its parameters or the state of
    Python's and NumPy's generators; MXNet's is seeded with a number that it drew.

    `net` is initialized on `ctx`; shapes may be deferred. `precision` is that of ``train_ch5``, and
    a ValueError says so if one that was asked for by name does not work. `batches` are iterables of
    ``(X, y)`` that will be computed: where a trial is needed and they do not tell the shape of
    their images, the first one is asked for a batch.
    """
    asked = resolve_precision(precision, ctx)
    shape = common_shape(batches)
    graph = trace(net)
    if graph is None:
        return _layer_by_layer(net, precision, 'it has no graph, as only hybrid blocks without '
                               'hooks do')
    trusted = is_trusted(net)
    known = trusted and is_known(graph)
    padded = asked == 'bfloat16' and any(
        any(sizes(node, 'pad')) for node in nodes_of(graph) if node['op'] == 'Convolution')
    if known and not padded:
        return Choice(compiled(net, asked, shape), asked)
    with attributes_kept(net):
        X = _images(batches, shape, ctx)
    if X is None and not trusted:
        return _layer_by_layer(net, precision, 'its batches can be read only once, so that its '
                               'graph could not be tried')
    reason = ''
    if padded and X is not None:
        reason = _idle_windows(crop_windows(graph, shape) if shape else graph, X.shape)
    if reason and precision == 'bfloat16':
        raise _does_not_work(precision, reason)
    candidates = ('float32',) if reason else tuple(dict.fromkeys((asked, 'float32')))
    if known or X is None:
        return _compiled(net, candidates[0], shape, reason)
    with untouched(net):
        for param in net.collect_params().values():
            if param._data is None and not param._deferred_init:  # a checkpoint will do it
                param.initialize(ctx=ctx)
        try:
            with autograd.pause():
                as_called(net)(X)  # settles shapes that are deferred
        except Exception:  # said in the run itself, better
            return Choice(as_called(net), 'float32')
        difference = '' if trusted else _difference(net, X)
        if difference:
            return _layer_by_layer(net, precision, difference)
        for candidate in candidates:
            try:
                with untouched(net):  # or what failed late would be found in the next trial
                    _step(net, compiled(net, candidate, shape), X)
                break
            except Exception as error:  # MXNet's or NumPy's, of whatever a layer may do
                reason = f'MXNet cannot compute its graph in {candidate} ({_said(error)})'
                if candidate == precision != 'float32':
                    raise _does_not_work(precision, reason) from error
        else:
            return Choice(as_called(net), 'float32',
                          f'the net is computed layer by layer: {reason}')
    return _compiled(net, candidate, shape, reason)


def _compiled(net, precision, shape, reason):
    return Choice(compiled(net, precision, shape), precision,
                  reason and f'the net is computed in {precision}: {reason}')


def _said(error):
    return str(error).split('Check failed: ')[-1].strip().splitlines()[-1]


def _does_not_work(precision, reason):
    return ValueError(f"precision='{precision}' does not work with this net: {reason}. "
                      "Use precision='auto'")


def _layer_by_layer(net, precision, reason):
    if precision in ('bfloat16', 'float16'):
        raise ValueError(f"precision='{precision}' needs a net of hybrid blocks without hooks that "
                         f"its graph can stand for; not this one: {reason}. Use precision='auto'")
    return Choice(as_called(net), 'float32', 'the net is computed layer by layer, which '
                  f'is slower: {reason}')


def is_known(graph):
    """Return whether MXNet computes such graphs in every precision."""
    nodes = nodes_of(graph)
    for node in nodes:
        op, attrs, maps = node['op'], node['attrs'], node
        while op == 'BatchNorm' and maps['op'] in ('BatchNorm', 'Activation', 'Dropout', 'Pooling'):
            maps = nodes[maps['inputs'][0][0]]
        if (op not in _KNOWN or attrs.get('num_group', '1') != '1'
                or attrs.get('act_type', 'relu') != 'relu'
                or len(sizes(node, 'kernel')) not in (0, 2)
                or op == 'BatchNorm' and maps['op'] != 'Convolution'):
            return False
    return True


def _idle_windows(graph, shape):
    """Return why not bfloat16, if there are convolutions with windows that are not in use whole."""
    nodes, maps = nodes_of(graph), maps_of(graph, shape)
    for node in nodes:
        if node['op'] != 'Convolution' or not maps.get(nodes[node['inputs'][0][0]]['name']):
            continue
        used = window_in_use(node, maps[nodes[node['inputs'][0][0]]['name']])
        if used != [(0, size - 1) for size in sizes(node, 'kernel')]:
            return (f"in bfloat16 MXNet would compute wrong gradients of {node['name']}: at "
                    'its margins, its windows see nothing but padding in such small maps')
    return ''


def _images(batches, shape, ctx):
    """Return a few images on `ctx`, or None where nothing tells what they look like."""
    if shape is not None:
        return nd.array(np.random.uniform(size=(_NUM_IMAGES, *shape)), ctx=ctx)
    for iterable in batches:
        state = getattr(iterable, '__dict__', {})  # it may count its passes
        old = dict(state)
        try:
            iterator = iter(iterable)
            for batch in as_iterated(iterator) if iterator is not iterable else ():
                with contextlib.suppress(Exception):  # what is no batch is refused in the run
                    return nd.array(batch[0][:_NUM_IMAGES], ctx=ctx)
                break
            return None
        finally:
            state.clear()
            state.update(old)
    return None


def _step(net, forward, X, train_mode=True, seed=0):
    """Return outputs, gradients and parameters after a forward and a backward pass."""
    random.seed(seed)
    np.random.seed(seed)
    mx.random.seed(0)  # two calls draw the same dropout
    params = [param for _, param in sorted(net.collect_params().items())
              if param._data is not None]  # a layer that is never used stays deferred
    X = X.copy()
    X.attach_grad()
    for param in params:
        param.zero_grad()
    with autograd.record(train_mode):
        output = forward(X)
    head = np.random.RandomState(0).normal(size=output.shape)
    output.backward(nd.array(head, ctx=X.context), train_mode=train_mode)
    return [array.asnumpy() for array in (
        output, X.grad, *(param.grad(X.context) for param in params if param.grad_req != 'null'),
        *(param.data(X.context) for param in params))]


def _difference(net, X):
    """Return what tells a net from its graph, or an empty string."""
    graph, called = compiled(net), as_called(net)
    for train_mode in (True, False):
        with untouched(net):
            before = user_attributes(net)
            first = _step(net, called, X, train_mode)
            if user_attributes(net) != before:
                return 'a call changes attributes of its blocks'
        with untouched(net):
            if not _close(first, _step(net, called, X, train_mode, seed=1)):
                return 'two calls do not compute the same'
        with untouched(net):
            try:
                again = _step(net, graph, X, train_mode)
            except Exception as error:
                return f'its graph fails ({_said(error)})'
            if not _close(first, again):
                return 'its graph computes something else ' + (
                    'in training' if train_mode else 'in prediction')
    return ''


def _close(arrays, others):
    """Return whether two results agree but for the order in which sums are added up."""
    sizes = [np.abs(array[np.isfinite(array)]).max(initial=0) for array in arrays]
    return all(one.shape == two.shape and np.allclose(
        one, two, rtol=0, atol=1e-3 * size + 1e-6 * max(sizes), equal_nan=True)
        for one, two, size in zip(arrays, others, sizes))
