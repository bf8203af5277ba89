"""Resources against an independent counter: PyTorch's own layers, counted while they run."""
import pytest

import d2l_ext
from d2l_ext import nets
from d2l_ext.devices import mx
from d2l_ext.studies.resources import summary

vision = mx.gluon.model_zoo.vision


def torch_counts(make, shape):
    """Return parameters and multiply-adds of a PyTorch net, counted with hooks while it runs."""
    import torch
    mult_adds = []

    def hook(layer, inputs, output):
        mult_adds.append(output.numel() * layer.weight[0].numel())

    with torch.device('meta'):  # shapes only, no numbers
        net = make()
        for layer in net.modules():
            if isinstance(layer, (torch.nn.Conv2d, torch.nn.Linear)):
                layer.register_forward_hook(hook)
        net(torch.zeros(shape))
    return sum(param.numel() for param in net.parameters()), sum(mult_adds)


def torch_mlpconv(channels, *window, batch_norm=False):
    from torch import nn as tnn
    first, *others = channels
    layers = []
    for args in [(first, *window), *((width, 1) for width in others)]:
        norm = [tnn.LazyBatchNorm2d()] if batch_norm else []
        layers += [tnn.LazyConv2d(*args, bias=not batch_norm), *norm, tnn.ReLU()]
    return layers


def torch_nin(num_one_by_one):
    from torch import nn as tnn

    def block(channels, *window):
        return torch_mlpconv([channels] * (1 + num_one_by_one), *window)

    return tnn.Sequential(
        *block(96, 11, 4, 0), tnn.MaxPool2d(3, 2), *block(256, 5, 1, 2), tnn.MaxPool2d(3, 2),
        *block(384, 3, 1, 1), tnn.MaxPool2d(3, 2), tnn.Dropout(), *block(10, 3, 1, 1),
        tnn.AdaptiveAvgPool2d(1), tnn.Flatten())


def torch_nin_cifar10(second_pooling, ceil_mode, batch_norm):
    from torch import nn as tnn
    window = {'kernel_size': 3, 'stride': 2, 'padding': 0 if ceil_mode else 1,
              'ceil_mode': ceil_mode}
    pooling = tnn.AvgPool2d if second_pooling == 'average' else tnn.MaxPool2d

    def block(*args):
        return torch_mlpconv(*args, batch_norm=batch_norm)

    return tnn.Sequential(
        *block((192, 160, 96), 5, 1, 2), tnn.MaxPool2d(**window), tnn.Dropout(),
        *block((192, 192, 192), 5, 1, 2), pooling(**window), tnn.Dropout(),
        *block((192, 192, 10), 3, 1, 1), tnn.AdaptiveAvgPool2d(1), tnn.Flatten())


def torch_nin_imagenet(ceil_mode):
    from torch import nn as tnn

    def pool():
        return tnn.MaxPool2d(3, 2, ceil_mode=ceil_mode)

    return tnn.Sequential(
        *torch_mlpconv((96, 96, 96), 11, 4), pool(), *torch_mlpconv((256, 256, 256), 5, 1, 2),
        pool(), *torch_mlpconv((384, 384, 384), 3, 1, 1), pool(), tnn.Dropout(),
        *torch_mlpconv((1024, 1024, 1000), 3, 1, 1), tnn.AdaptiveAvgPool2d(1), tnn.Flatten())


def torch_nin_vgg(num_layers, width, num_one_by_one, batch_norm):
    from torch import nn as tnn
    # Of each block in a stage, how many times as wide as the first it is.
    stages = {11: '1 2 44 88 88', 16: '11 22 444 888 888', 19: '11 22 4444 8888 8888'}
    layers = []
    for stage in stages[num_layers].split():
        for times in map(int, stage):
            layers += torch_mlpconv([width * times] * (1 + num_one_by_one), 3, 1, 1,
                                    batch_norm=batch_norm)
        layers.append(tnn.MaxPool2d(2))
    return tnn.Sequential(*layers, tnn.LazyConv2d(10, 1), tnn.AdaptiveAvgPool2d(1), tnn.Flatten())


def torch_nin_of(blocks, num_filters):
    from torch import nn as tnn
    layers = [tnn.LazyConv2d(num_filters, 2, bias=False), tnn.ReLU()] if num_filters else []
    for *window, pool_size in blocks:
        layers += [*torch_mlpconv(*window, batch_norm=True), tnn.MaxPool2d(pool_size)]
    return tnn.Sequential(*layers, tnn.LazyConv2d(10, 1), tnn.AdaptiveAvgPool2d(1), tnn.Flatten())


def torch_alexnet():
    from torch import nn as tnn
    return tnn.Sequential(
        tnn.LazyConv2d(64, 11, 4, 2), tnn.ReLU(), tnn.MaxPool2d(3, 2),
        tnn.LazyConv2d(192, 5, 1, 2), tnn.ReLU(), tnn.MaxPool2d(3, 2),
        tnn.LazyConv2d(384, 3, 1, 1), tnn.ReLU(), tnn.LazyConv2d(256, 3, 1, 1), tnn.ReLU(),
        tnn.LazyConv2d(256, 3, 1, 1), tnn.ReLU(), tnn.MaxPool2d(3, 2), tnn.Flatten(),
        tnn.LazyLinear(4096), tnn.ReLU(), tnn.Dropout(), tnn.LazyLinear(4096), tnn.ReLU(),
        tnn.Dropout(), tnn.LazyLinear(1000))


def torch_vgg11():
    from torch import nn as tnn
    layers = []
    for num_convs, channels in ((1, 64), (1, 128), (2, 256), (2, 512), (2, 512)):
        for _ in range(num_convs):
            layers += [tnn.LazyConv2d(channels, 3, padding=1), tnn.ReLU()]
        layers.append(tnn.MaxPool2d(2))
    return tnn.Sequential(
        *layers, tnn.Flatten(), tnn.LazyLinear(4096), tnn.ReLU(), tnn.Dropout(),
        tnn.LazyLinear(4096), tnn.ReLU(), tnn.Dropout(), tnn.LazyLinear(1000))


# The second pooling, whether poolings round up, and whether convolutions are normalized.
CIFAR10 = [('average', True, False), ('average', False, False), ('maximum', True, False),
           ('maximum', False, False), ('average', True, True)]

# Layers, width, 1x1 convolutions in a block, and whether convolutions are normalized.
VGG = [(11, 64, 1, False), (16, 16, 2, True), (19, 16, 0, False)]

# Those of the notebooks that train on images of 28x28 and 32x32.
BLOCKS = [([32, 32], 3, 1, 1, 2), ([96, 96], 3, 1, 1, 1), ([96, 96], 3, 1, 1, 2),
          ([192, 192], 3, 1, 1, 1), ([192, 192], 3, 1, 1, 1)]


@pytest.mark.filterwarnings('ignore:Lazy modules')
@pytest.mark.parametrize('ours, theirs, channels', [
    *((lambda n=n: nets.nin(num_one_by_one=n), lambda n=n: torch_nin(n), 1) for n in range(4)),
    *((lambda args=args: d2l_ext.nin_cifar10(10, *args),
       lambda args=args: torch_nin_cifar10(*args), 3) for args in CIFAR10),
    *((lambda up=up: d2l_ext.nin_imagenet(ceil_mode=up), lambda up=up: torch_nin_imagenet(up), 3)
      for up in (True, False)),
    *((lambda args=args: d2l_ext.nin_vgg(args[0], 10, *args[1:]),
       lambda args=args: torch_nin_vgg(*args), 1) for args in VGG),
    *((lambda n=n: d2l_ext.nin_of(BLOCKS, num_filters=n), lambda n=n: torch_nin_of(BLOCKS, n), 3)
      for n in (0, 24)),
    (vision.alexnet, torch_alexnet, 3),
    (vision.vgg11, torch_vgg11, 3),
], ids=['nin-0', 'nin-1', 'nin', 'nin-3', 'cifar10-average-up', 'cifar10-average',
        'cifar10-maximum-up', 'cifar10-maximum', 'cifar10-normalized', 'imagenet-up', 'imagenet',
        'nin-vgg11', 'nin-vgg16', 'nin-vgg19', 'nin-of-blocks', 'nin-of-blocks-whitened', 'alexnet',
        'vgg11'])
def test_agrees_with_pytorch(ours, theirs, channels):
    pytest.importorskip('torch')
    for size, batch_size in ((224, 1), (160, 3)):
        result = summary(ours(), (channels, size, size), batch_size)
        expected = torch_counts(theirs, (batch_size, channels, size, size))
        assert (result.total_params, result.total_mult_adds) == expected
