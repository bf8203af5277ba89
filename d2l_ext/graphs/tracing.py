"""Nets traced, and checked."""
from ..arguments import check_shape, check_type, refusal
from ..devices import check_ctx, mx
from .state import attributes_kept, untouched

gluon, nn = mx.gluon, mx.gluon.nn

_TRUSTED = ('mxnet.gluon.nn.', 'mxnet.gluon.contrib.nn.', 'mxnet.gluon.model_zoo.',
            'mxnet.gluon.block', 'd2l_ext.')


def _is_hybrid(block):
    """Return whether `block` is made of hybrid blocks and plain sequences, without hooks."""
    if block._forward_hooks or block._forward_pre_hooks:
        return False
    children = all(_is_hybrid(child) for child in block._children.values())
    return children and (isinstance(block, gluon.HybridBlock) or type(block) is nn.Sequential)


def check_net(net):
    """Return `net`, or raise a ValueError unless it is a Gluon block."""
    return check_type('net', net, gluon.Block, 'a Gluon block such as nin()')


def check_initialized(net, ctx):
    """Raise a ValueError unless `net` has its parameters on `ctx`; shapes may be deferred."""
    check_ctx(ctx)
    for name, param in check_net(net).collect_params().items():
        try:
            places = param.list_ctx()
        except RuntimeError:  # what Gluon raises
            places = ['no device']
        if ctx not in places:
            raise ValueError(f'net must have its parameters on {ctx}, as after '
                             f'net.initialize(ctx=ctx), but {name} is on {places[0]}')


def check_trainer(trainer, net, devices=None):
    """Raise a ValueError unless `trainer` updates parameters of `net` only, and on `devices`."""
    params = set(check_net(net).collect_params().values())
    if not isinstance(trainer, gluon.Trainer) or not set(trainer._params) <= params:
        raise refusal('trainer', trainer, "a gluon.Trainer of the net's own parameters, made after "
                      'the net')
    if devices is not None and trainer._contexts and set(trainer._contexts) != set(devices):
        raise ValueError(f'ctx must name the devices that trainer updates, {trainer._contexts}, '
                         f'not {devices}: pass the same ctx here as to net.initialize')


def trace(net):
    """Return the graph that `net` computes, with the one input `data`, or None if it has none.

    Only hybrid blocks, and plain sequences of them, have one. A hook must run with real numbers.
    """
    check_net(net)
    if not _is_hybrid(net):
        return None
    try:
        with attributes_kept(net):  # a block may count its calls
            return net(mx.sym.var('data', dtype='float32'))
    except Exception:  # a block that asks for shapes or numbers can raise anything
        return None


def is_trusted(net):
    """Return whether the graph of `net` surely computes what calling it does.

    So it does if Gluon itself computes by the graph, after ``hybridize()``; and for Gluon's own
    layers and this package's. Anybody else's may ask whether it trains, or count its calls.
    """
    if getattr(net, '_active', False):
        return True
    code = net._func if isinstance(net, nn.HybridLambda) else type(net)
    return (code.__module__.startswith(_TRUSTED)
            and not {'forward', 'hybrid_forward'}.intersection(vars(net))
            and all(map(is_trusted, net._children.values())))


def _computes(net, shape):
    """Return whether calling `net` works, unlike its graph, on images of `shape`."""
    if is_trusted(net):
        return False
    try:
        with untouched(net):
            net(mx.nd.zeros(shape)).wait_to_read()
    except Exception:
        return False
    return True


def check_input(net, shape):
    """Make sure that `net` accepts images of `shape`, without computing anything.

    Parameters
    ----------
    net : mxnet.gluon.Block
        Initialized or not; it stays as it is. Nothing is checked if it has no graph.
    shape : tuple of int
        Of a batch: (batch, channels, height, width), or (batch, features) for a dense net.

    Raises
    ------
    ValueError
        Naming the first layer that cannot take what reaches it.
    """
    graph = trace(net)
    shape = reached = check_shape('shape', shape, 'that of a batch, such as (1, 1, 224, 224)')
    if graph is None:
        return
    settled = {name: param.shape for name, param in net.collect_params().items()
               if param.shape and all(param.shape)}  # zeros are still to be inferred
    for node in graph.get_internals():
        if node.get_children() is None:  # an input or a parameter
            continue
        try:
            _, (output,), _ = node.infer_shape_partial(data=shape, **{
                name: settled[name] for name in node.list_arguments() if name in settled})
        except mx.MXNetError as error:
            if _computes(net, shape):
                return
            reason = str(error).split('Check failed: ')[-1].strip().splitlines()[0]
            raise ValueError(
                f'layer {node.name} cannot take the shape {reached} that reaches it when the '
                f'images have the shape {shape}. Use images of (batch, channels, height, '
                f'width) that are large enough, or pass resize=. MXNet says: {reason}') from None
        reached = output
