"""Weights to begin with: better than random ones alone."""
from ..arguments import check_number, refusal
from ..devices import mx
from ..graphs import check_net
from ..graphs.numpy_mode import as_called, computed_in_nd

nd, nn = mx.nd, mx.gluon.nn

# By name: the book's, and MXNet's for ReLUs, after He et al., *Delving Deep into Rectifiers*, 2015,
# with the mean of inputs and outputs where theirs divides by the inputs alone.
INITS = {'xavier': mx.init.Xavier(), 'he': mx.init.MSRAPrelu(slope=0)}


def _layers(net, kinds):
    """Return the layers of `net` that train and are of `kinds`, or raise if one has no values."""
    for param in check_net(net).collect_params().values():
        if not param._data:
            raise ValueError(f'{param.name} has no values yet: call net.initialize() and then net '
                             'once on an image')
    found = []
    net.apply(found.append)
    return [layer for layer in found
            if isinstance(layer, kinds) and layer.weight.grad_req != 'null']


@computed_in_nd
def start_as_identity(net):
    """Let the first output channels of each convolution begin as copies of its input channels.

    The image then reaches every depth of a net whose layers do not get narrower, and layers
    behind a ReLU hand on what they get. The other channels keep their random start, all biases
    theirs. Jordan, *94% on CIFAR-10 in 3.29 Seconds on a Single GPU*, 2024; compare Zagoruyko and
    Komodakis, *DiracNets*, 2017.

    Left alone are convolutions with fewer outputs than inputs, with groups, or whose weights do
    not train (`grad_req` of ``'null'``).

    Parameters
    ----------
    net : mxnet.gluon.Block
        Initialized, and called once if shapes were deferred. Its weights are changed in place.

    Raises
    ------
    ValueError
        If a weight has no values yet.
    """
    layers = _layers(net, nn.Conv2D)
    nd.waitall()  # MXNet rearranges weights of convolutions in the background, after net(X)
    for layer in layers:
        weight = layer.weight.data(layer.weight.list_ctx()[0]).asnumpy()
        num_outputs, num_inputs, height, width = weight.shape
        if layer._kwargs['num_group'] == 1 and num_outputs >= num_inputs:
            copies = range(num_inputs)
            weight[:num_inputs] = 0
            weight[copies, copies, height // 2, width // 2] = 1
            layer.weight.set_data(nd.array(weight))


@computed_in_nd
def scale_layers(net, X, rms=0.5**0.5):
    """Scale the parameters of each layer so that what it hands on is of one size for all layers.

    One convolution or dense layer after the other, weights and biases alike, in the order in which
    `net` holds them; behind ReLUs, or without an activation, the size is then exact. Mishkin and
    Matas, *All You Need Is a Good Init*, 2015, who scale weights to outputs of variance one.

    Layers whose weights do not train (`grad_req` of ``'null'``) are left alone.

    Parameters
    ----------
    net : mxnet.gluon.Block
        Initialized, and called once if shapes were deferred; not hybridized. Its parameters are
        changed in place.
    X : mxnet.nd.NDArray
        A batch of what `net` takes, such as images of shape (batch, channels, height, width).
    rms : float
        Root mean square of a layer's outputs, behind its activation if it has one. The default is
        what a ReLU leaves of numbers that are normal with mean 0 and variance 1.

    Raises
    ------
    ValueError
        If a parameter has no values yet, or a layer cannot be scaled: it answers `X` with zeros
        or no finite numbers, or is not called at all, as in a hybridized net.
    """
    layers = _layers(net, (nn.Conv2D, nn.Dense))
    rms = check_number('rms', rms, 0)
    if not isinstance(X, nd.NDArray):
        raise refusal('X', X, 'an NDArray, a batch of what net takes')
    for layer in layers:
        sizes = []
        hook = layer.register_forward_hook(
            lambda _, __, output, sizes=sizes: sizes.append(
                output.as_nd_ndarray().square().mean().sqrt().asnumpy().item()))
        try:
            as_called(net)(X.as_nd_ndarray())
        finally:
            hook.detach()
        if not sizes:
            raise ValueError(f'{layer.name} was not called: scale_layers needs a net that calls '
                             'all its layers, before net.hybridize()')
        if not 0 < sizes[0] < float('inf'):
            raise ValueError(f'{layer.name} answers X with a root mean square of {sizes[0]}, which '
                             'cannot be scaled: initialize net anew, or check X')
        for param in (layer.weight, layer.bias):
            if param is not None:
                param.set_data(param.data(X.context) * (rms / sizes[0]))
