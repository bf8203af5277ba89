"""Networks around the section's: those of the paper, NiN laid out as VGG, NiN of any blocks."""
import copy

from ..arguments import check_choice, check_flag, check_int, check_type, refusal
from ..devices import mx
from ..graphs.numpy_mode import classic
from ..nets import mlpconv, nin_block

nn = mx.gluon.nn

# How many 3x3 convolutions each of the five stages of a VGG network has, by the number of layers
# in its name (Simonyan and Zisserman, 2014, table 1, columns A, D and E).
VGG_STAGES = {11: (1, 1, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}


def nin_cifar10(num_classes=10, second_pooling='average', ceil_mode=True, batch_norm=False):
    """Return the CIFAR-10 network of the NiN paper, as its authors published it for Caffe.

    Lin, Chen and Yan, *Network In Network*, 2013, and the model "NIN-CIFAR10" in Caffe's model zoo;
    its weights start from a normal distribution with deviation 0.05. Ten classes: 966,986
    parameters.

    Parameters
    ----------
    num_classes : int
        Channels of the last block.
    second_pooling : {'average', 'maximum'}
        The authors' network for Caffe takes averages, theirs for cuda-convnet maxima.
    ceil_mode : bool
        Whether the poolings round up, as both do; else they pad by one pixel, as in ports. On
        images of 32x32 pixels both give maps of 16x16 and 8x8.
    batch_norm : bool
        As for :func:`~d2l_ext.mlpconv`; the authors do not. Images of three channels and ten
        classes: 968,404 parameters, and 2,836 running statistics.

    Returns
    -------
    mxnet.gluon.nn.HybridSequential
        Maps (batch, any channels, height, width) to (batch, num_classes).

    Raises
    ------
    ValueError
        If an argument is out of range.
    """
    num_classes = check_int('num_classes', num_classes, 1)
    pooling = {'average': nn.AvgPool2D, 'maximum': nn.MaxPool2D}[
        check_choice('second_pooling', second_pooling, ('average', 'maximum'))]
    ceil_mode = check_flag('ceil_mode', ceil_mode)
    window = {'pool_size': 3, 'strides': 2, 'padding': 0 if ceil_mode else 1,
              'ceil_mode': ceil_mode}
    net = nn.HybridSequential()
    net.add(mlpconv((192, 160, 96), 5, 1, 2, batch_norm), nn.MaxPool2D(**window), nn.Dropout(0.5),
            mlpconv((192, 192, 192), 5, 1, 2, batch_norm), pooling(**window), nn.Dropout(0.5),
            mlpconv((192, 192, num_classes), 3, 1, 1, batch_norm),
            nn.GlobalAvgPool2D(), nn.Flatten())
    return net


def nin_imagenet(num_classes=1000, ceil_mode=True):
    """Return the ImageNet network that the authors of NiN published for Caffe ("NIN-Imagenet").

    Without the softmax at its end. A thousand classes: 7,595,176 parameters.

    Parameters
    ----------
    num_classes : int
        Channels of the last 1x1 convolution.
    ceil_mode : bool
        Whether the poolings round up, as Caffe does. On images of 224x224 pixels the maps are
        then 54, 27, 13 and 6 pixels wide, else 54, 26, 12 and 5.

    Returns
    -------
    mxnet.gluon.nn.HybridSequential
        Maps (batch, any channels, height, width) to (batch, num_classes).

    Raises
    ------
    ValueError
        If an argument is out of range.
    """
    num_classes = check_int('num_classes', num_classes, 1)
    window = {'pool_size': 3, 'strides': 2, 'ceil_mode': check_flag('ceil_mode', ceil_mode)}
    net = nn.HybridSequential()
    net.add(nin_block(96, 11, 4, 0), nn.MaxPool2D(**window),
            nin_block(256, 5, 1, 2), nn.MaxPool2D(**window),
            nin_block(384, 3, 1, 1), nn.MaxPool2D(**window), nn.Dropout(0.5),
            mlpconv((1024, 1024, num_classes), 3, 1, 1), nn.GlobalAvgPool2D(), nn.Flatten())
    return net


def nin_vgg(num_layers, num_classes=10, width=64, num_one_by_one=1, batch_norm=False):
    """Return a NiN of many small blocks, laid out in five stages as a VGG network is.

    Simonyan and Zisserman, *Very Deep Convolutional Networks for Large-Scale Image Recognition*,
    2014: the same numbers of 3x3 convolutions, the same widths and the same poolings, which halve
    the maps. Here each 3x3 convolution begins a NiN block, and instead of three dense layers there
    are a 1x1 convolution to the classes, without a ReLU, and global average pooling.

    Parameters
    ----------
    num_layers : {11, 16, 19}
        Of the VGG network that it is like, whose three dense layers count.
    num_classes : int
    width : int
        Channels of the first stage. The others have 2, 4, 8 and 8 times as many.
    num_one_by_one : int
        1x1 convolutions in each block.
    batch_norm : bool
        Normalize between each convolution and its ReLU, see :func:`~d2l_ext.mlpconv`.

    Returns
    -------
    mxnet.gluon.nn.HybridSequential
        Maps (batch, any channels, height, width) to (batch, num_classes); height and width of at
        least 32 pixels.

    Raises
    ------
    ValueError
        If an argument is out of range.
    """
    if check_int('num_layers', num_layers, 1) not in VGG_STAGES:
        raise refusal('num_layers', num_layers, f'one of {", ".join(map(str, VGG_STAGES))}')
    num_classes = check_int('num_classes', num_classes, 1)
    width = check_int('width', width, 1)
    num_one_by_one = check_int('num_one_by_one', num_one_by_one, 0)
    net = nn.HybridSequential()
    for num_blocks, times in zip(VGG_STAGES[num_layers], (1, 2, 4, 8, 8)):
        for _ in range(num_blocks):
            net.add(mlpconv([width * times] * (1 + num_one_by_one), 3, 1, 1, batch_norm))
        net.add(nn.MaxPool2D(pool_size=2, strides=2))
    net.add(nn.Conv2D(num_classes, kernel_size=1), nn.GlobalAvgPool2D(), nn.Flatten())
    return net


def nin_of(blocks, num_classes=10, num_filters=0):
    """Return a NiN of any blocks, normalized.

    Behind the blocks are a 1x1 convolution to the classes, without a ReLU, which could silence
    them, and global average pooling.

    Parameters
    ----------
    blocks : list
        For each block a list or tuple: the arguments `channels`, `kernel_size`, `strides` and
        `padding` of :func:`~d2l_ext.mlpconv`, and the size of the maximum pooling behind it, 1
        for none.
    num_classes : int
    num_filters : int
        Of a 2x2 convolution before the blocks, with a ReLU and without a bias, such as those of
        :func:`~d2l_ext.whitening_filters`; 0 for none.

    Returns
    -------
    mxnet.gluon.nn.HybridSequential
        Maps (batch, any channels, height, width) to (batch, num_classes). Height and width may be
        any that leave a pixel after the last pooling.

    Raises
    ------
    ValueError
        If an argument is out of range.
    """
    if not isinstance(blocks, (list, tuple)) or not blocks or not all(
            isinstance(block, (list, tuple)) and len(block) == 5 for block in blocks):
        raise refusal('blocks', blocks, 'a list with, for each block, channels, kernel_size, '
                      'strides, padding and pool_size')
    num_classes = check_int('num_classes', num_classes, 1)
    net = nn.HybridSequential()
    if check_int('num_filters', num_filters, 0):
        net.add(nn.Conv2D(num_filters, kernel_size=2, activation='relu', use_bias=False))
    for *window, pool_size in blocks:
        net.add(mlpconv(*window, batch_norm=True))
        if check_int('pool_size', pool_size, 1) > 1:
            net.add(nn.MaxPool2D(pool_size))
    net.add(nn.Conv2D(num_classes, kernel_size=1), nn.GlobalAvgPool2D(), nn.Flatten())
    return net


def at_corners(net):
    """Return `net` with pooling over the corners of windows only, which costs less to compute.

    Where a NiN block is followed by a maximum pooling of 3x3 positions with a stride of 2, four of
    the nine positions are compared, the corners, and the block computes no others: its first
    convolution has twice the stride. All maps behind a pooling keep their shape. The section's
    network then needs a quarter of the multiply-adds. Where maps are smooth, as those of enlarged
    images are, both give similar answers, so what the one learns serves the other.

    Parameters
    ----------
    net : mxnet.gluon.nn.HybridSequential
        Such as :func:`~d2l_ext.nin`.

    Returns
    -------
    mxnet.gluon.nn.HybridSequential
        With the parameters of `net`, not copies of them: training one trains both.

    Raises
    ------
    ValueError
        If `net` has no such pooling right behind a convolution and 1x1 convolutions.
    """
    layers = list(check_type('net', net, nn.HybridSequential, 'a HybridSequential such as nin()'))
    if not any(map(_pooled_by_three, layers, layers[1:])):
        raise refusal('net', net, 'a net with a maximum pooling of 3x3 and stride 2 right behind '
                      'a NiN block: a convolution, then 1x1 convolutions')
    cheap = nn.HybridSequential()
    for before, layer, behind in zip([None, *layers], layers, [*layers[1:], None]):
        if _pooled_by_three(layer, behind):
            first, *others = layer
            sparse, block = copy.copy(first), nn.HybridSequential()
            sparse._clear_cached_op()  # which may be compiled for the stride of `first`
            sparse._kwargs = {**first._kwargs,
                              'stride': tuple(2 * stride for stride in first._kwargs['stride'])}
            block.add(sparse, *others)
            cheap.add(block)
        elif _pooled_by_three(before, layer):
            cheap.add(nn.MaxPool2D(pool_size=2, strides=1))
        else:
            cheap.add(layer)
    return cheap


def _pooled_by_three(block, pooling):
    """Return whether these are a NiN block and a maximum pooling of 3x3 with stride 2."""
    return (isinstance(block, nn.HybridSequential) and len(block) > 0
            and isinstance(block[0], nn.Conv2D)
            and all(layer._kwargs['kernel'] == (1, 1) for layer in block[1:]
                    if isinstance(layer, nn.Conv2D))
            and isinstance(pooling, nn.MaxPool2D)
            and (pooling._kwargs['kernel'], pooling._kwargs['stride'], pooling._kwargs['pad'],
                 pooling._kwargs['pooling_convention']) == ((3, 3), (2, 2), (0, 0), 'valid'))


class Mirrored(nn.HybridBlock):
    """Adds the logits of an image and of its mirror image: a prediction costs twice as much.

    Parameters
    ----------
    net : mxnet.gluon.HybridBlock
        Maps (batch, channels, height, width) to logits; trained with mirror images.

    Raises
    ------
    ValueError
        If `net` is no HybridBlock.
    """

    def __init__(self, net):
        super().__init__()
        self.net = check_type('net', net, mx.gluon.HybridBlock, 'a HybridBlock')

    def hybrid_forward(self, F, X):
        return self.net(X) + self.net(classic(F.flip, X, axis=3))


class Shifted(nn.HybridBlock):
    """Adds to the logits of an image half of those of it moved by a pixel, once each way.

    Up and to the left, then down and to the right; what comes in is the image reflected at its
    edge. A prediction costs three times as much. ``Mirrored(Shifted(net))`` is the multi-crop
    evaluation of Jordan, *94% on CIFAR-10 in 3.29 Seconds on a Single GPU*, 2024.

    Parameters
    ----------
    net : mxnet.gluon.HybridBlock
        Maps (batch, channels, height, width), at least 2 pixels each way, to logits; trained with
        shifted images.

    Raises
    ------
    ValueError
        If `net` is no HybridBlock.
    """

    def __init__(self, net):
        super().__init__()
        self.net = check_type('net', net, mx.gluon.HybridBlock, 'a HybridBlock')

    def hybrid_forward(self, F, X):
        padded = classic(F.pad, X, mode='reflect', pad_width=(0, 0, 0, 0, 1, 1, 1, 1))
        up = classic(F.slice, padded, begin=(None, None, 2, 2), end=(None,) * 4)
        down = classic(F.slice, padded, begin=(None,) * 4, end=(None, None, -2, -2))
        return self.net(X) + (self.net(up) + self.net(down)) / 2
