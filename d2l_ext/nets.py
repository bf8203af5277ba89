"""The network of section 7.3."""
from .arguments import check_flag, check_int, check_pair, check_shape
from .devices import mx

nn = mx.gluon.nn


def nin_block(num_channels, kernel_size, strides, padding, num_one_by_one=2):
    """Return a NiN block: a convolution followed by 1x1 convolutions, a ReLU after each.

    Lin, Chen and Yan, *Network In Network*, 2013, as section 7.3 has it.

    Parameters
    ----------
    num_channels : int
        Output channels of every convolution in the block.
    kernel_size, strides, padding : int or pair of int
        Of the first convolution, in pixels (height and width).
    num_one_by_one : int
        How many 1x1 convolutions follow. The section uses two; exercise 2 varies them.

    Returns
    -------
    mxnet.gluon.nn.HybridSequential
        Maps (batch, any channels, height, width) to (batch, num_channels, height', width') with
        ``height' = (height + 2 * padding - kernel_size) // strides + 1``; width likewise.

    Raises
    ------
    ValueError
        If a number is out of range.

    Examples
    --------
    >>> block = nin_block(96, kernel_size=11, strides=4, padding=0)
    >>> block.initialize()
    >>> block(mx.nd.zeros((1, 1, 224, 224))).shape
    (1, 96, 54, 54)
    """
    num_channels = check_int('num_channels', num_channels, 1)
    num_one_by_one = check_int('num_one_by_one', num_one_by_one, 0)
    return mlpconv([num_channels] * (1 + num_one_by_one), kernel_size, strides, padding)


def mlpconv(channels, kernel_size, strides, padding, batch_norm=False):
    """Return what the paper calls an mlpconv layer: a NiN block with a width for each layer.

    Parameters
    ----------
    channels : sequence of int
        Output channels of the first convolution and of each 1x1 convolution after it.
    kernel_size, strides, padding : int or pair of int
        Of the first convolution, in pixels (height and width).
    batch_norm : bool
        Normalize between each convolution and its ReLU (Ioffe and Szegedy, *Batch Normalization*,
        2015). The convolutions then have no bias: the normalization would subtract it again, and
        adds one of its own.

    Returns
    -------
    mxnet.gluon.nn.HybridSequential
        As that of :func:`nin_block`.

    Raises
    ------
    ValueError
        If an argument is out of range.
    """
    first, *others = check_shape('channels', channels, 'the widths of the layers, such as (96, 96)')
    kernel_size = check_pair('kernel_size', kernel_size, 1)
    strides = check_pair('strides', strides, 1)
    padding = check_pair('padding', padding, 0)
    batch_norm = check_flag('batch_norm', batch_norm)
    block = nn.HybridSequential()
    for layer in [(first, kernel_size, strides, padding), *((width, 1) for width in others)]:
        if batch_norm:
            block.add(nn.Conv2D(*layer, use_bias=False), nn.BatchNorm(), nn.Activation('relu'))
        else:
            block.add(nn.Conv2D(*layer, activation='relu'))
    return block


def nin(num_classes=10, num_one_by_one=2):
    """Return the Network in Network of section 7.3, ten children in sequence.

    Lin, Chen and Yan, *Network In Network*, 2013, with the widths and windows that section 7.3 of
    *Dive into Deep Learning* takes from AlexNet. Ten classes: 1,992,166 parameters.

    Parameters
    ----------
    num_classes : int
        Channels of the last block, which global average pooling turns into the logits.
    num_one_by_one : int
        1x1 convolutions in each block.

    Returns
    -------
    mxnet.gluon.nn.HybridSequential
        Maps (batch, any channels, height, width) to (batch, num_classes); height and width of at
        least 67 pixels.

    Raises
    ------
    ValueError
        If a number is out of range.
    """
    num_classes = check_int('num_classes', num_classes, 1)
    net = nn.HybridSequential()
    net.add(nin_block(96, 11, 4, 0, num_one_by_one),
            nn.MaxPool2D(pool_size=3, strides=2),
            nin_block(256, 5, 1, 2, num_one_by_one),
            nn.MaxPool2D(pool_size=3, strides=2),
            nin_block(384, 3, 1, 1, num_one_by_one),
            nn.MaxPool2D(pool_size=3, strides=2),
            nn.Dropout(0.5),
            nin_block(num_classes, 3, 1, 1, num_one_by_one),
            nn.GlobalAvgPool2D(),
            nn.Flatten())
    return net
