"""Checks of nets: initialized, of float32, and made for images of this shape."""
import numpy as np

from ..arguments import check_shape
from ..devices import check_ctx, mx
from ..graphs import check_net, trace
from ..graphs.numpy_mode import as_called
from ..graphs.state import untouched
from ..graphs.tracing import is_trusted


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
    check_float32(net)


def check_float32(net):
    """Raise a ValueError if `net` was cast to another type."""
    for name, param in net.collect_params().items():
        if np.dtype(param.dtype) in (np.float16, np.float64):
            raise ValueError(f'net must have float32 parameters, but {name} is '
                             f"{np.dtype(param.dtype).name}: call net.cast('float32'); precision= "
                             'is for computing in another type')


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
    """Raise a ValueError that names the first layer which cannot take what reaches it.

    `shape` is that of a batch: (batch, channels, height, width), or (batch, features) for a dense
    net. `net` may wait for its initialization and stays as it is. Nothing is computed, and nothing
    checked if it has no graph.
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
