"""Receptive fields: how far into the image the windows of a network reach."""
from ..arguments import refusal
from ..devices import mx
from .tracing import check_net

nn = mx.gluon.nn
_SEQUENCES = (nn.Sequential, nn.HybridSequential)


def _layers(block):
    """Yield the layers of a chain in their order."""
    if type(block) in _SEQUENCES:  # a subclass may have branches
        for child in block:
            yield from _layers(child)
    else:
        yield block


def receptive_field(net):
    """Return how many rows and columns of the image a position of the last map depends on.

    The last map is that before the first global pooling or dense layer. Layers without a window,
    such as activations, count as 1x1. Near the borders part of the field lies in the padding.

    Each layer widens the field by ``(kernel - 1) * dilation`` times the product of all strides
    before it (Araujo, Norris and Sim, *Computing Receptive Fields of Convolutional Neural
    Networks*, 2019, equation 2).

    Parameters
    ----------
    net : mxnet.gluon.Block
        A chain of layers for images, as nested ``Sequential`` blocks.

    Returns
    -------
    rows, columns : int
        In pixels.

    Raises
    ------
    ValueError
        If it is no such chain.

    Examples
    --------
    >>> net = nn.Sequential()
    >>> net.add(nn.Conv2D(96, kernel_size=11, strides=4), nn.MaxPool2D(3, strides=2))
    >>> receptive_field(net)
    (19, 19)
    """
    field, step = [1, 1], [1, 1]
    for layer in _layers(check_net(net)):
        window = getattr(layer, '_kwargs', {})
        if window.get('global_pool') or isinstance(layer, nn.Dense):
            break
        if 'kernel' not in window and not layer._children and not isinstance(layer, _SEQUENCES):
            continue
        if len(window.get('kernel', ())) != 2 or getattr(layer, '_op_name', '') == 'Deconvolution':
            raise refusal('net', layer, 'a chain of layers for images, without branches and '
                          'transposed convolutions')
        dilation = window.get('dilate', (1, 1))
        for axis, size in enumerate(window['kernel']):
            field[axis] += (size - 1) * dilation[axis] * step[axis]
            step[axis] *= window['stride'][axis]
    return tuple(field)
