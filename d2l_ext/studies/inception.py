"""Inception: GoogLeNet, and what later versions changed in its block.

Sources: GoogLeNet, Szegedy et al., *Going Deeper with Convolutions* (2014); v2, Ioffe and Szegedy,
*Batch Normalization* (2015); v3, Szegedy et al., *Rethinking the Inception Architecture for
Computer Vision* (2015); residual connections, Szegedy et al., *Inception-v4, Inception-ResNet and
the Impact of Residual Connections on Learning* (2016).
"""
from ..arguments import check_flag, check_int, check_pair, check_type
from ..devices import mx
from ..graphs.numpy_mode import classic

nn = mx.gluon.nn


def _conv(channels, kernel_size, padding=0, batch_norm=True, strides=1):
    """Return a convolution with a ReLU, with `batch_norm` normalized in between."""
    if not batch_norm:
        return nn.Conv2D(channels, kernel_size, strides, padding, activation='relu')
    # The normalization subtracts the mean, and its own beta takes the place of the bias.
    return _sequence(nn.Conv2D(channels, kernel_size, strides, padding, use_bias=False),
                     nn.BatchNorm(epsilon=0.001), nn.Activation('relu'))


def _sequence(*layers):
    net = nn.HybridSequential()
    net.add(*layers)
    return net


class _Concurrent(mx.gluon.contrib.nn.HybridConcurrent):
    def hybrid_forward(self, F, x):
        return classic(F.concat, *[path(x) for path in self._children.values()], dim=self.axis)


def _concat(*paths):
    """Return a block that gives its input to every path and joins what they make of it."""
    net = _Concurrent(axis=1)
    net.add(*paths)
    return net


class Inception(nn.HybridBlock):
    """The block of GoogLeNet: four paths that see the same input, their outputs side by side.

    A 1x1 convolution; a 3x3 and a 5x5 convolution, each after a 1x1 that lowers the number of
    channels; a 3x3 maximum pooling and a 1x1 convolution. A ReLU follows every convolution.
    Szegedy et al., *Going Deeper with Convolutions*, 2014, figure 2b.

    Maps (batch, any channels, height, width) to
    (batch, c1 + c2[1] + c3[1] + c4, height, width).

    Parameters
    ----------
    c1 : int
        Channels of the first path.
    c2, c3 : pair of int
        Of the 1x1 convolution and of the 3x3 (5x5) convolution after it; a single number stands
        for both.
    c4 : int
        Of the path with the pooling.
    batch_norm : bool
        Normalize between each convolution and its ReLU, as v2 does.

    Raises
    ------
    ValueError
        If a number is out of range.

    Examples
    --------
    >>> block = Inception(64, (96, 128), (16, 32), 32)
    >>> block.initialize()
    >>> block(mx.nd.zeros((1, 192, 28, 28))).shape
    (1, 256, 28, 28)
    """

    def __init__(self, c1, c2, c3, c4, batch_norm=False):
        super().__init__()
        c1, c4 = check_int('c1', c1, 1), check_int('c4', c4, 1)
        c2, c3 = check_pair('c2', c2, 1), check_pair('c3', c3, 1)
        batch_norm = check_flag('batch_norm', batch_norm)
        self.path1 = _conv(c1, 1, 0, batch_norm)
        self.path2 = _sequence(_conv(c2[0], 1, 0, batch_norm), _conv(c2[1], 3, 1, batch_norm))
        self.path3 = _sequence(_conv(c3[0], 1, 0, batch_norm), _conv(c3[1], 5, 2, batch_norm))
        self.path4 = _sequence(nn.MaxPool2D(pool_size=3, strides=1, padding=1),
                               _conv(c4, 1, 0, batch_norm))

    def hybrid_forward(self, F, x):
        return classic(F.concat, self.path1(x), self.path2(x), self.path3(x), self.path4(x), dim=1)


class Residual(nn.HybridBlock):
    """A block that adds to its input, as in Inception-ResNet: ``relu(x + conv1x1(block(x)))``.

    The 1x1 convolution, without a ReLU of its own, gives the block's output as many channels as
    its input has (Szegedy et al., *Inception-v4, Inception-ResNet and the Impact of Residual
    Connections on Learning*, 2016; the paper's own blocks have two or three paths, none with a
    pooling, and the widest networks scale the sum). Maps (batch, num_channels, height, width) to
    the same shape.

    Parameters
    ----------
    block : mxnet.gluon.HybridBlock
        Keeps height and width.
    num_channels : int
        Channels of the input.

    Raises
    ------
    ValueError
        If `block` is none or `num_channels` is out of range.
    """

    def __init__(self, block, num_channels):
        super().__init__()
        self.block = check_type('block', block, nn.HybridBlock, 'a HybridBlock')
        self.join = nn.Conv2D(check_int('num_channels', num_channels, 1), kernel_size=1)

    def hybrid_forward(self, F, x):
        return classic(F.relu, x + self.join(self.block(x)))


def googlenet(num_classes=10, batch_norm=False):
    """Return GoogLeNet as *Dive into Deep Learning* has it: five stages and a dense layer.

    The widths are the paper's. Its local response normalization, its dropout and its two
    auxiliary classifiers are left out. One input channel and ten classes: 5,977,530 parameters.

    Parameters
    ----------
    num_classes : int
        Outputs of the dense layer.
    batch_norm : bool
        Normalize between each convolution and its ReLU.

    Returns
    -------
    mxnet.gluon.nn.HybridSequential
        Maps (batch, any channels, height, width) to (batch, num_classes); the five stages are its
        first five children.

    Raises
    ------
    ValueError
        If `num_classes` is out of range.
    """
    batch_norm = check_flag('batch_norm', batch_norm)

    def conv(*args, **kwargs):
        return _conv(*args, batch_norm=batch_norm, **kwargs)

    def inception(*channels):
        return Inception(*channels, batch_norm=batch_norm)

    def max_pool():
        return nn.MaxPool2D(pool_size=3, strides=2, padding=1)

    return _sequence(
        _sequence(conv(64, 7, 3, strides=2), max_pool()),
        _sequence(conv(64, 1), conv(192, 3, 1), max_pool()),
        _sequence(inception(64, (96, 128), (16, 32), 32),
                  inception(128, (128, 192), (32, 96), 64), max_pool()),
        _sequence(inception(192, (96, 208), (16, 48), 64),
                  inception(160, (112, 224), (24, 64), 64),
                  inception(128, (128, 256), (24, 64), 64),
                  inception(112, (144, 288), (32, 64), 64),
                  inception(256, (160, 320), (32, 128), 128), max_pool()),
        _sequence(inception(256, (160, 320), (32, 128), 128),
                  inception(384, (192, 384), (48, 128), 128), nn.GlobalAvgPool2D()),
        nn.Dense(check_int('num_classes', num_classes, 1)))


def inception_v3_stage3(num_pool_channels):
    """Return the Inception-v3 block for 35x35 maps, which has two 3x3 in place of a 5x5.

    That is its third path. The second keeps a 5x5, as the network that Google released does;
    figure 5 of the paper (Szegedy et al., *Rethinking the Inception Architecture for Computer
    Vision*, 2015) has a 3x3 there. Pooling takes the mean.

    Parameters
    ----------
    num_pool_channels : int
        Channels of the path with the pooling: 32, 64 and 64 in the three blocks of v3.

    Returns
    -------
    mxnet.gluon.contrib.nn.HybridConcurrent
        Maps (batch, any channels, height, width) to
        (batch, 224 + num_pool_channels, height, width).

    Raises
    ------
    ValueError
        If `num_pool_channels` is out of range.
    """
    return _concat(
        _conv(64, 1),
        _sequence(_conv(48, 1), _conv(64, 5, 2)),
        _sequence(_conv(64, 1), _conv(96, 3, 1), _conv(96, 3, 1)),
        _sequence(_mean_pool(), _conv(check_int('num_pool_channels', num_pool_channels, 1), 1)))


def inception_v3_stage4(num_channels):
    """Return the Inception-v3 block for 17x17 maps: each 7x7 is a 1x7 and a 7x1 convolution.

    Figure 6 of the paper that :func:`inception_v3_stage3` names.

    Parameters
    ----------
    num_channels : int
        Inside the paths with one and with two such pairs: 128, 160, 160 and 192 in the four blocks
        of v3.

    Returns
    -------
    mxnet.gluon.contrib.nn.HybridConcurrent
        Maps (batch, any channels, height, width) to (batch, 768, height, width).

    Raises
    ------
    ValueError
        If `num_channels` is out of range.
    """
    c = check_int('num_channels', num_channels, 1)
    row, column = ((1, 7), (0, 3)), ((7, 1), (3, 0))
    return _concat(
        _conv(192, 1),
        _sequence(_conv(c, 1), _conv(c, *row), _conv(192, *column)),
        _sequence(_conv(c, 1), _conv(c, *column), _conv(c, *row), _conv(c, *column),
                  _conv(192, *row)),
        _sequence(_mean_pool(), _conv(192, 1)))


def inception_v3_stage5():
    """Return the Inception-v3 block for 8x8 maps: a 3x3 is split into a 1x3 beside a 3x1.

    The two stand side by side, not one after the other, so that the block grows wider: figure 7 of
    the paper that :func:`inception_v3_stage3` names.

    Returns
    -------
    mxnet.gluon.contrib.nn.HybridConcurrent
        Maps (batch, any channels, height, width) to (batch, 2048, height, width).
    """
    def split():
        return _concat(_conv(384, (1, 3), (0, 1)), _conv(384, (3, 1), (1, 0)))

    return _concat(
        _conv(320, 1),
        _sequence(_conv(384, 1), split()),
        _sequence(_conv(448, 1), _conv(384, 3, 1), split()),
        _sequence(_mean_pool(), _conv(192, 1)))


def _mean_pool():
    return nn.AvgPool2D(pool_size=3, strides=1, padding=1)
