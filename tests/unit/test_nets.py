"""The networks: shapes and parameters as section 7.3 prints them, and clear errors."""
import numpy as np
import pytest

from d2l_ext import nin, nin_block
from d2l_ext.checks.nets import check_input
from d2l_ext.devices import mx
from d2l_ext.nets import mlpconv
from d2l_ext.studies.nets import (
    Mirrored,
    Shifted,
    at_corners,
    nin_cifar10,
    nin_imagenet,
    nin_of,
    nin_vgg,
)

nn = mx.gluon.nn

SECTION_SHAPES = [(1, 96, 54, 54), (1, 96, 26, 26), (1, 256, 26, 26), (1, 256, 12, 12),
                  (1, 384, 12, 12), (1, 384, 5, 5), (1, 384, 5, 5), (1, 10, 5, 5), (1, 10, 1, 1),
                  (1, 10)]


def num_params(net):
    return sum(param.data().size for param in net.collect_params().values())


def test_nin_layer_by_layer():
    net = nin()
    net.initialize()
    X, shapes = mx.nd.zeros((1, 1, 224, 224)), []
    for layer in net:
        X = layer(X)
        shapes.append(X.shape)
    assert shapes == SECTION_SHAPES
    assert num_params(net) == 1_992_166


def map_sizes(net, shape):
    """Return channels and height after each block and pooling of a net, for an image of `shape`."""
    net.initialize()
    X, sizes = mx.nd.zeros((1, *shape)), []
    for layer in net:
        X = layer(X)
        if not isinstance(layer, nn.Dropout):
            sizes.append(X.shape[1:3])
    return sizes


# Output channels, input channels and window of each convolution of nin_cifar10.
CIFAR10_LAYERS = [(192, 3, 5), (160, 192, 1), (96, 160, 1), (192, 96, 5), (192, 192, 1),
                  (192, 192, 1), (192, 192, 3), (192, 192, 1), (10, 192, 1)]


@pytest.mark.parametrize('second_pooling', ['average', 'maximum'])
@pytest.mark.parametrize('ceil_mode', [True, False])
def test_nin_cifar10_as_published(second_pooling, ceil_mode):
    net = nin_cifar10(second_pooling=second_pooling, ceil_mode=ceil_mode)
    assert map_sizes(net, (3, 32, 32)) == [
        (96, 32), (96, 16), (192, 16), (192, 8), (10, 8), (10, 1), (10,)]
    assert [layer._channels for block in net if isinstance(block, nn.HybridSequential)
            for layer in block] == [192, 160, 96, 192, 192, 192, 192, 192, 10]
    assert [type(layer) for layer in net if hasattr(layer, '_kwargs')] == [
        nn.MaxPool2D, nn.AvgPool2D if second_pooling == 'average' else nn.MaxPool2D,
        nn.GlobalAvgPool2D]
    assert num_params(net) == 966_986


def test_nin_cifar10_normalized():
    net = nin_cifar10(batch_norm=True)
    assert map_sizes(net, (3, 32, 32)) == map_sizes(nin_cifar10(), (3, 32, 32))
    kinds = [type(layer) for block in net if isinstance(block, nn.HybridSequential)
             for layer in block]
    assert kinds == 9 * [nn.Conv2D, nn.BatchNorm, nn.Activation]
    shapes = [param.shape for param in net.collect_params().values()]
    assert shapes == [shape for out, into, window in CIFAR10_LAYERS
                      for shape in [(out, into, window, window)] + 4 * [(out,)]]
    # Scale and shift are parameters; the running means and variances are not.
    assert num_params(net) == 968_404 + 2_836


@pytest.mark.parametrize('ceil_mode, sizes', [(True, (54, 27, 13, 6)), (False, (54, 26, 12, 5))])
def test_nin_imagenet_as_published(ceil_mode, sizes):
    net = nin_imagenet(ceil_mode=ceil_mode)
    a, b, c, d = sizes
    assert map_sizes(net, (3, 224, 224)) == [
        (96, a), (96, b), (256, b), (256, c), (384, c), (384, d), (1000, d), (1000, 1), (1000,)]
    assert num_params(net) == 7_595_176


@pytest.mark.parametrize('num_layers', [11, 16, 19])
def test_nin_vgg_without_one_by_one_convolutions_is_the_vgg_of_gluons_model_zoo(num_layers):
    def layers(features):
        """Return channels and window of each convolution, and the poolings between them."""
        for layer in features:
            if isinstance(layer, nn.HybridSequential):
                yield from layers(layer)
            elif isinstance(layer, (nn.Conv2D, nn.MaxPool2D)):
                window = [layer._kwargs[key] for key in ('kernel', 'stride', 'pad')]
                yield type(layer), getattr(layer, '_channels', None), *window

    *body, classes = layers(nin_vgg(num_layers, num_one_by_one=0))
    assert body == list(layers(mx.gluon.model_zoo.vision.get_vgg(num_layers).features))
    assert classes == (nn.Conv2D, 10, (1, 1), (1, 1), (0, 0))


@pytest.mark.parametrize('num_layers, blocks', [
    (11, (1, 1, 2, 2, 2)), (16, (2, 2, 3, 3, 3)), (19, (2, 2, 4, 4, 4))])
def test_nin_vgg_halves_the_maps_after_each_stage(num_layers, blocks):
    net = nin_vgg(num_layers, num_classes=7, width=2, num_one_by_one=2, batch_norm=True)
    widths = (2, 4, 8, 16, 16)
    expected = [(width, size) for num_blocks, width, size in zip(blocks, widths, (64, 32, 16, 8, 4))
                for size in [size] * num_blocks + [size // 2]]
    assert map_sizes(net, (1, 64, 64)) == [*expected, (7, 2), (7, 1), (7,)]
    kinds = [[type(layer) for layer in block] for block in net
             if isinstance(block, nn.HybridSequential)]
    assert kinds == sum(blocks) * [3 * [nn.Conv2D, nn.BatchNorm, nn.Activation]]


def test_mlpconv_is_a_nin_block_when_all_widths_are_equal():
    assert repr(mlpconv((8, 8, 8), 3, 1, 1)) == repr(nin_block(8, 3, 1, 1))


@pytest.mark.parametrize('num_one_by_one, convolutions', [(0, 1), (1, 2), (2, 3), (3, 4)])
def test_nin_block_has_the_layers_asked_for(num_one_by_one, convolutions):
    block = nin_block(8, 3, 1, 1, num_one_by_one)
    assert [layer._kwargs['kernel'] for layer in block] == [(3, 3)] + [(1, 1)] * num_one_by_one
    block.initialize()
    assert block(mx.nd.zeros((2, 5, 7, 7))).shape == (2, 8, 7, 7)
    assert num_params(block) == 8 * 5 * 9 + 8 + (convolutions - 1) * (8 * 8 + 8)


def test_every_convolution_ends_in_a_relu():
    block = nin_block(4, 3, 1, 1)
    block.initialize(mx.init.Normal(1))
    X = mx.nd.random.normal(shape=(2, 3, 6, 6))
    for layer in block:
        X = layer(X)
        assert X.min().asscalar() == 0 and X.max().asscalar() > 0


def test_every_convolution_is_normalized_before_its_relu():
    block = mlpconv((4, 5), 3, 1, 1, batch_norm=True)
    block.initialize(mx.init.Normal(1))
    X, layers = mx.nd.random.normal(3, shape=(8, 3, 6, 6)), list(block)
    assert len(layers) == 6
    for convolution, batch_norm, relu in (layers[:3], layers[3:]):
        assert convolution.bias is None and convolution.act is None
        with mx.autograd.record():  # by the batch's own statistics
            normalized = batch_norm(convolution(X))
        assert abs(normalized.mean((0, 2, 3))).max().asscalar() < 1e-5
        assert abs((normalized**2).mean((0, 2, 3)) - 1).max().asscalar() < 1e-3
        X = relu(normalized)
        assert abs(X - mx.nd.maximum(normalized, 0)).max().asscalar() == 0


def test_a_one_by_one_convolution_is_a_dense_layer_at_every_pixel():
    convolution = nin_block(6, 1, 1, 0, num_one_by_one=0)
    dense = nn.Dense(6, activation='relu', flatten=False)
    for layer in (convolution, dense):
        layer.initialize(mx.init.Normal(1))
    X = mx.nd.random.normal(shape=(2, 4, 3, 3))
    out = convolution(X)
    dense(X.transpose((0, 2, 3, 1)))
    dense.weight.set_data(convolution[0].weight.data().reshape((6, 4)))
    dense.bias.set_data(convolution[0].bias.data())
    same = dense(X.transpose((0, 2, 3, 1))).transpose((0, 3, 1, 2))
    assert abs(out - same).max().asscalar() < 1e-5


def test_smallest_input():
    check_input(nin(), (1, 1, 67, 67))


@pytest.mark.parametrize('shape, layer', [
    ((1, 1, 66, 66), 'pool2'), ((1, 1, 28, 28), 'pool1'), ((1, 1, 8, 8), 'conv0'),
    ((1, 224, 224), 'conv0'),
])
def test_too_small_an_input_names_the_layer(shape, layer):
    with mx.name.Prefix(''), pytest.raises(ValueError) as error:
        net = nin()
        check_input(net, shape)
    number = {'conv0': net[0][0], 'pool1': net[3], 'pool2': net[5]}[layer].name
    assert f'layer {number}_fwd cannot take' in str(error.value)
    assert 'resize' in str(error.value)


def test_a_net_that_has_seen_other_channels_names_the_layer():
    net = nin()
    net.initialize()
    net(mx.nd.zeros((1, 1, 67, 67)))
    with pytest.raises(ValueError, match=f'layer {net[0][0].name}_fwd cannot take'):
        check_input(net, (1, 3, 67, 67))


def test_check_input_leaves_the_net_deferred():
    net = nin()
    net.initialize()
    check_input(net, (2, 1, 96, 96))
    assert net[0][0].weight.shape == (96, 0, 11, 11)


@pytest.mark.parametrize('make, places', [(nin, [6]), (nin_cifar10, [2, 5]), (nin_imagenet, [6])])
def test_where_half_of_the_activations_are_dropped(make, places):
    assert [(i, layer._rate) for i, layer in enumerate(make()) if isinstance(layer, nn.Dropout)] \
        == [(i, 0.5) for i in places]


def test_nin_of():
    blocks = [((8, 4), 3, 1, 1, 2), ([6], 3, 2, 1, 1)]
    assert map_sizes(nin_of(blocks, 3), (1, 16, 16)) == [
        (4, 16), (4, 8), (6, 4), (3, 4), (3, 1), (3,)]
    net = nin_of(blocks, num_filters=24)
    assert map_sizes(net, (3, 16, 16)) == [
        (24, 15), (4, 15), (4, 7), (6, 4), (10, 4), (10, 1), (10,)]
    assert [type(layer) for layer in net[1]] == 2 * [nn.Conv2D, nn.BatchNorm, nn.Activation]
    first, last = net[0], net[-3]
    assert first.bias is None and first.act is not None  # what whitening filters need
    assert last.bias is not None and last.act is None  # no ReLU that could silence a class


def test_mirrored():
    net = nn.Dense(3)
    net.initialize(mx.init.Normal(1))
    mirrored, X = Mirrored(net), mx.nd.random.normal(shape=(2, 1, 4, 5))
    expected = net(X) + net(X[:, :, :, ::-1])
    assert abs(mirrored(X) - expected).max().asscalar() < 1e-5
    assert abs(mirrored(X) - mirrored(X[:, :, :, ::-1])).max().asscalar() < 1e-5
    assert abs(mirrored(X) - 2 * net(X)).max().asscalar() > 0.1
    mirrored.hybridize()
    assert abs(mirrored(X) - expected).max().asscalar() < 1e-5
    assert mirrored.collect_params().keys() == net.collect_params().keys()


def test_shifted():
    net = nn.Dense(3)
    net.initialize(mx.init.Normal(1))
    shifted, X = Shifted(net), mx.nd.random.normal(shape=(2, 1, 4, 5))
    padded = np.pad(X.asnumpy(), ((0, 0), (0, 0), (1, 1), (1, 1)), 'reflect')
    up, down = (mx.nd.array(padded[:, :, i:i + 4, i:i + 5]) for i in (2, 0))
    expected = net(X) + net(up) / 2 + net(down) / 2
    for _ in range(2):
        assert abs(shifted(X) - expected).max().asscalar() < 1e-5
        assert abs(shifted(X) - 2 * net(X)).max().asscalar() > 0.1
        shifted.hybridize()
    assert shifted.collect_params().keys() == net.collect_params().keys()


def test_corners_are_those_of_the_pooling_windows():
    net = nin()
    net.initialize(mx.init.MSRAPrelu())
    X = mx.nd.random.normal(shape=(1, 1, 224, 224))
    expected = X
    for layer, behind in zip(net, [*net[1:], None]):
        if isinstance(behind, nn.MaxPool2D):
            maps = layer(expected).asnumpy()
        elif isinstance(layer, nn.MaxPool2D):
            size = layer(mx.nd.array(maps)).shape[2]
            expected = mx.nd.array(np.max([maps[:, :, i:i + 2 * size:2, j:j + 2 * size:2]
                                           for i in (0, 2) for j in (0, 2)], axis=0))
        else:
            expected = layer(expected)
    full = net(X)
    cheap = at_corners(net)
    for _ in range(2):
        np.testing.assert_allclose(cheap(X).asnumpy(), expected.asnumpy(), rtol=1e-4, atol=1e-4)
        cheap.hybridize()
    assert abs(full - expected).max().asscalar() > 1e-3
    assert abs(net(X) - full).max().asscalar() == 0  # as it was


def test_corners_have_the_parameters_of_the_net():
    net = nin()
    net.initialize()
    cheap = at_corners(net)  # before any shape is known
    assert cheap(mx.nd.zeros((1, 1, 224, 224))).shape == (1, 10)
    assert cheap.collect_params().items() == net.collect_params().items()
    X, shapes = mx.nd.zeros((1, 1, 224, 224)), []
    for layer in cheap:
        X = layer(X)
        shapes.append(X.shape)
    assert shapes[1::2] == SECTION_SHAPES[1::2] and shapes[4] == (1, 384, 6, 6)


def test_corners_need_nin_blocks_and_pooling_by_three():
    net, two_windows = nn.HybridSequential(), nn.HybridSequential()
    two_windows.add(nn.Conv2D(4, 3), nn.Conv2D(4, 3))  # the second needs what lies between corners
    net.add(two_windows, nn.MaxPool2D(pool_size=3, strides=2))
    for wrong in (net, nin_of([((4, 4), 3, 1, 1, 2)])):
        with pytest.raises(ValueError, match='net must be a net with a maximum pooling of 3x3'):
            at_corners(wrong)
