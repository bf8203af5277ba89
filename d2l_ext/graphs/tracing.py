"""Nets traced, and checked."""
import numpy as np

from ..arguments import check_shape, check_type, refusal
from ..devices import check_ctx, mx
from .numpy_mode import as_called
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
    """Raise a ValueError unless `net` has float32 parameters on `ctx`; shapes may be deferred."""
    check_ctx(ctx)
    for name, param in check_net(net).collect_params().items():
        try:
            places = param.list_ctx()
        except RuntimeError:  # what Gluon raises
            places = ['no device']
        if ctx not in places:
            raise ValueError(f'net must have its parameters on {ctx}, as after '
                             f'net.initialize(ctx=ctx), but {name} is on {places[0]}')
    _check_float32(net)


def _check_float32(net):
    for name, param in net.collect_params().items():
        if np.dtype(param.dtype) in (np.float16, np.float64):
            raise ValueError(f'net must have float32 parameters, but {name} is '
                             f"{np.dtype(param.dtype).name}: call net.cast('float32'); precision= "
                             'is for computing in another type')


def check_trainer(trainer, net, devices=None):
    """Raise a ValueError unless `trainer` can update parameters of `net` only, and on `devices`.

    Each device must update its own copy, from the gradients of one step.
    """
    params = set(check_net(net).collect_params().values())
    if not isinstance(trainer, gluon.Trainer) or not set(trainer._params) <= params:
        raise refusal('trainer', trainer, "a gluon.Trainer of the net's own parameters, made after "
                      'the net')
    _check_float32(net)
    if devices is not None and trainer._contexts and set(trainer._contexts) != set(devices):
        raise ValueError(f'ctx must name the devices that trainer updates, {trainer._contexts}, '
                         f'not {devices}: pass the same ctx here as to net.initialize')
    asked = trainer._kvstore_params
    if asked['kvstore'] is None and len(trainer._contexts or ()) > 1:
        raise ValueError("kvstore=None sums up no gradients; make the trainer with kvstore='device'"
                         ' for several devices')
    if asked['update_on_kvstore'] or trainer._update_on_kvstore:
        raise ValueError('the trainer updates parameters in its kvstore, where no checkpoint '
                         'reaches the states; make a new one with update_on_kvstore=False')
    if trainer._compression_params:
        raise ValueError('the trainer has compression_params, which hold back parts of gradients '
                         'where no checkpoint reaches them; make a new one without')
    if all(param.grad_req == 'null' for param in trainer._params):
        raise ValueError("the trainer has nothing to train: every parameter has grad_req='null'")
    for param in trainer._params:
        if param.grad_req == 'add':
            raise ValueError(f"{param.name} has grad_req='add', by which the gradients of all "
                             "steps pile up; set it to 'write', as with "
                             "net.collect_params().setattr('grad_req', 'write')")
        if (param._stype, param._grad_stype) != ('default', 'default'):
            raise ValueError(f"{param.name} or its gradient is sparse; make its layer with stype "
                             "and grad_stype 'default', without sparse_grad=True")


def trace(net):
    """Return the graph that `net` computes, with the one input `data`, or None if it has none.

    Only hybrid blocks, and plain sequences of them, have one. A hook must run with real numbers.
    """
    check_net(net)
    if not _is_hybrid(net):
        return None
    try:
        with attributes_kept(net):  # a block may count its calls
            graph = as_called(net)(mx.sym.var('data', dtype='float32'))
        return graph if isinstance(graph, mx.sym.Symbol) else None  # two outputs have none
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
        with untouched(net, reseed=False):  # an epoch has been seeded; predicting draws nothing
            as_called(net)(mx.nd.zeros(shape)).wait_to_read()
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
