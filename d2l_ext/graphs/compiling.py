"""Nets compiled: their graphs rewritten for the device and given fixed memory."""
from ..arguments import check_choice, check_shape, refusal
from ..devices import PRECISIONS, mx
from ..hardware.cuda import has_tensor_cores
from .casting import cast
from .cpu import for_cpu
from .gpu import channels_last
from .numpy_mode import computed_in_nd
from .rewriting import rewrite
from .tracing import trace

gluon = mx.gluon


_SAME_CHANNELS = ('Activation', 'LeakyReLU', 'BatchNorm', 'Dropout', 'Pooling', 'relu')


def _channels(new, entry):
    """Return how many channels an entry has; 1 if nobody knows."""
    node = new.nodes[entry[0]]
    if node['op'] in _SAME_CHANNELS:
        return _channels(new, node['inputs'][0])
    if node['op'] == 'Concat' and node['attrs'].get('dim', '1') == '1':
        return sum(_channels(new, entry) for entry in node['inputs'])
    return int(node['attrs'].get('num_filter', 1))


def _mended(new, node):
    """Replace three operators that MXNet 1.9.1 computes wrongly or not at all."""
    name, inputs, attrs = node['name'], node['inputs'], node['attrs']
    if node['op'] == 'LeakyReLU' and attrs.get('act_type') == 'prelu':
        # In a graph, its backward pass overwrites what the gradient of alpha is computed from.
        X = new.add('Reshape', f'{name}_flat', inputs[:1], shape=(0, 0, -1))
        alpha = new.add('Reshape', f'{name}_alpha', inputs[1:], shape=(1, -1, 1))
        below = new.add('relu', f'{name}_below', [new.add('negative', f'{name}_minus', [X])])
        below = new.add('broadcast_mul', f'{name}_scaled', [below, alpha])
        above = new.add('relu', f'{name}_above', [X])
        both = new.add('elemwise_sub', f'{name}_both', [above, below])
        return new.add('reshape_like', name, [both, inputs[0]])
    if node['op'] == 'Convolution' and attrs.get('num_group', '1') != '1':
        # Inference leaves its weights in a layout that cannot be cast; this product has MXNet's.
        plain = new.add('_mul_scalar', f'{name}_plain', inputs[1:2], scalar=1)
        return new.copy({**node, 'inputs': [inputs[0], plain, *inputs[2:]]})
    if node['op'] == 'Concat' and any(_channels(new, entry) % 16 for entry in inputs):
        # The process would end where a gradient in oneDNN's blocks of 16 channels is split into
        # other parts; what cuts off nothing has it in plain layout.
        joined = new.copy({**node, 'name': f'{name}_joined'})
        return new.add('slice_axis', name, [joined], axis=1, begin=0, end=None)
    return None


def _is_on_gpu(net):
    return any(ctx.device_type == 'gpu' for param in net.collect_params().values()
               for ctx in param.list_ctx())


def _check_image(shape):
    allowed = '(channels, height, width) of an image, such as (1, 224, 224)'
    if shape is not None and len(check_shape('image_shape', shape, allowed)) != 3:
        raise refusal('image_shape', shape, allowed)


@computed_in_nd
def compiled(net, precision='float32', image_shape=None):
    """Return a faster function that computes what `net` computes, on the same parameters.

    The layers become one graph with fixed memory; in bfloat16 or float16, convolutions and dense
    layers compute in that while parameters, gradients and the result stay float32. On GPUs with
    tensor cores float16 also goes channels-last, see :mod:`d2l_ext.graphs.gpu`. `net` itself is not
    changed: called directly it still runs layer by layer in float32.

    Parameters
    ----------
    net : mxnet.gluon.Block
        Initialized; shapes may still be deferred. A block that has no graph, such as one with
        hooks or with a `forward` of its own, is returned as it is and computes in float32.
    precision : {'float32', 'bfloat16', 'float16'}
        In which the layers compute.
    image_shape : tuple of int, optional
        Channels, height and width of all images, if they are known beforehand. On a CPU
        convolutions are then rearranged, see :mod:`d2l_ext.graphs.cpu`, and other images no longer
        fit.

    Returns
    -------
    mxnet.gluon.Block
        Maps a batch of float32 as `net` does.

    Raises
    ------
    ValueError
        If `net` is no block, or `precision` or `image_shape` none of these.
    """
    check_choice('precision', precision, PRECISIONS[1:])
    _check_image(image_shape)
    graph = trace(net)
    if graph is None:
        return net
    data, params = mx.sym.var('data', dtype='float32'), net.collect_params()
    plain = gluon.SymbolBlock(graph, data, params=params)
    graph = rewrite(graph, _mended)
    if image_shape is not None and not _is_on_gpu(net):
        graph = for_cpu(graph, image_shape, precision)
    if precision == 'float16' and has_tensor_cores():
        graph = channels_last(graph)
    if precision != 'float32':
        graph = cast(graph, precision)
    block = gluon.SymbolBlock(graph, data, params=params)
    # Deferred shapes cannot be inferred backwards through what rearranges the weights.
    block.infer_shape = plain.infer_shape
    block.hybridize(static_alloc=True, static_shape=True)
    return block
