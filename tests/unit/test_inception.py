"""The Inception blocks and GoogLeNet: shapes, costs, the model zoo, an independent count."""
import pytest
from test_resources_pytorch import torch_counts

from d2l_ext.devices import mx
from d2l_ext.graphs import compiled
from d2l_ext.studies.inception import (
    Inception,
    Residual,
    googlenet,
    inception_v3_stage3,
    inception_v3_stage4,
    inception_v3_stage5,
)
from d2l_ext.studies.resources import summary

nd, nn = mx.nd, mx.gluon.nn
FIRST = 64, (96, 128), (16, 32), 32
STAGES = {96: [(64, 24, 24), (192, 12, 12), (480, 6, 6), (832, 3, 3), (1024, 1, 1)],
          224: [(64, 56, 56), (192, 28, 28), (480, 14, 14), (832, 7, 7), (1024, 1, 1)]}


def initialized(net, shape):
    net.initialize(mx.init.Xavier())
    net(nd.zeros(shape))
    return net


# --- the block ------------------------------------------------------------------------------------

def test_block_is_four_paths_side_by_side():
    block, X = Inception(5, (3, 7), (2, 4), 6), nd.random.normal(shape=(2, 8, 9, 11))
    initialized(block, X.shape)
    params = [param.data() for param in block.collect_params().values()]

    def conv(X, kernel, i):
        weight, bias = params[2 * i:2 * i + 2]
        return nd.relu(nd.Convolution(X, weight, bias, kernel=(kernel, kernel),
                                      pad=(kernel // 2, kernel // 2), num_filter=len(bias)))

    pooled = nd.Pooling(X, kernel=(3, 3), pad=(1, 1), pool_type='max')
    expected = nd.concat(conv(X, 1, 0), conv(conv(X, 1, 1), 3, 2), conv(conv(X, 1, 3), 5, 4),
                         conv(pooled, 1, 5), dim=1)
    assert block(X).shape == (2, 5 + 7 + 4 + 6, 9, 11)
    assert abs(block(X) - expected).max().asscalar() < 1e-5


def test_costs_of_the_first_block():
    for block, weights, biases, mult_adds in (
            (Inception(*FIRST), 163_328, 368, 128_049_152),
            (nn.Conv2D(256, 3, padding=1), 442_368, 256, 346_816_512),
            (nn.Conv2D(256, 5, padding=2), 1_228_800, 256, 963_379_200)):
        result = summary(block, (192, 28, 28))
        assert (result.total_weights, result.total_biases) == (weights, biases)
        assert result.total_mult_adds == mult_adds and result.unknown == ()


def test_batch_norm_stands_between_each_convolution_and_its_relu():
    block = initialized(Inception(*FIRST, batch_norm=True), (1, 192, 8, 8))
    kinds = [row.kind for row in summary(block, (192, 28, 28)).rows]
    assert ' '.join(kinds).count('Conv2D BatchNorm Activation') == kinds.count('Conv2D') == 6
    names = [name.rsplit('_', 1)[1] for name in block.collect_params()]
    assert names.count('bias') == 0 and names.count('beta') == 6
    assert summary(block, (192, 28, 28)).total_weights == 163_328 + 368  # and the gammas


def test_residual_adds_to_its_input():
    inner, X = Inception(4, (3, 5), (2, 3), 2), nd.random.normal(shape=(2, 6, 5, 5))
    block = initialized(Residual(inner, 6), X.shape)
    weight, bias = block.join.weight.data(), block.join.bias.data()
    added = nd.Convolution(inner(X), weight, bias, kernel=(1, 1), num_filter=6)
    assert abs(block(X) - nd.relu(X + added)).max().asscalar() < 1e-5
    assert (block(X) - nd.relu(X)).abs().max().asscalar() > 1e-3
    weight[:] = 0
    assert (block(X) == nd.relu(X)).min().asscalar() == 1


# --- GoogLeNet ------------------------------------------------------------------------------------

@pytest.mark.parametrize('size', [96, 224])
def test_googlenet_stage_by_stage(size):
    net, X, shapes = googlenet(), nd.zeros((2, 1, size, size)), []
    net.initialize()
    for stage in net:
        X = stage(X)
        shapes.append(X.shape)
    assert shapes == [*((2, *shape) for shape in STAGES[size]), (2, 10)]


def test_googlenet_has_nine_blocks_and_the_known_number_of_parameters():
    blocks = [part for stage in list(googlenet())[:5] for part in stage
              if isinstance(part, Inception)]
    assert len(blocks) == 9
    assert summary(googlenet(), (1, 96, 96)).total_params == 5_977_530
    assert summary(googlenet(), (1, 224, 224)).total_params == 5_977_530
    # Three channels and 1000 classes, as the BVLC model of Caffe without its auxiliary classifiers.
    result = summary(googlenet(1000), (3, 224, 224))
    assert (result.total_params, result.total_mult_adds) == (6_998_552, 1_582_671_872)


@pytest.mark.parametrize('batch_norm', [False, True])
def test_googlenet_compiled_computes_the_same(batch_norm):
    net, X = googlenet(batch_norm=batch_norm), nd.random.uniform(shape=(2, 1, 64, 64))
    initialized(net, X.shape)
    expected = net(X)
    assert expected.abs().max().asscalar() > 0
    assert (compiled(net)(X) - expected).abs().max() < 1e-4 * expected.abs().max()


# --- v3, against the model zoo --------------------------------------------------------------------

V3 = [(7, lambda: inception_v3_stage3(32), (192, 35, 35)),
      (8, lambda: inception_v3_stage3(64), (256, 35, 35)),
      (9, lambda: inception_v3_stage3(64), (288, 35, 35)),
      (11, lambda: inception_v3_stage4(128), (768, 17, 17)),
      (12, lambda: inception_v3_stage4(160), (768, 17, 17)),
      (13, lambda: inception_v3_stage4(160), (768, 17, 17)),
      (14, lambda: inception_v3_stage4(192), (768, 17, 17)),
      (16, inception_v3_stage5, (1280, 8, 8)),
      (17, inception_v3_stage5, (2048, 8, 8))]


@pytest.fixture(scope='module')
def zoo():
    return mx.gluon.model_zoo.vision.inception_v3().features


@pytest.mark.parametrize('i, make, shape', V3)
def test_v3_blocks_are_the_zoos(zoo, i, make, shape):
    ours, theirs = make(), zoo[i]
    X = nd.random.normal(shape=(1, shape[0], 5, 7))
    for net in (ours, theirs):
        initialized(net, X.shape)
    our_params, their_params = (list(net.collect_params().values()) for net in (ours, theirs))
    assert [param.shape for param in our_params] == [param.shape for param in their_params]
    for our_param, their_param in zip(our_params, their_params):
        if 'running' in their_param.name:
            their_param.set_data(nd.random.uniform(0.5, 1.5, shape=their_param.shape))
        our_param.set_data(their_param.data())
    expected = theirs(X)
    assert ours(X).shape == expected.shape
    assert (ours(X) - expected).abs().max() <= 1e-5 * expected.abs().max()
    a, b = summary(ours, shape), summary(theirs, shape)
    assert a.unknown == ()
    for name in ('total_weights', 'total_biases', 'total_buffers', 'total_mult_adds',
                 'total_flops', 'backward_mult_adds', 'activation_bytes'):
        assert getattr(a, name) == getattr(b, name)


# --- an independent counter -----------------------------------------------------------------------

def torch_paths(*paths):
    from torch import cat
    from torch import nn as tnn

    class Paths(tnn.Module):
        def __init__(self):
            super().__init__()
            self.paths = tnn.ModuleList(paths)

        def forward(self, x):
            return cat([path(x) for path in self.paths], dim=1)

    return Paths()


def torch_conv(batch_norm, channels, *window):
    from torch import nn as tnn
    norm = [tnn.LazyBatchNorm2d()] if batch_norm else []
    return tnn.Sequential(tnn.LazyConv2d(channels, *window, bias=not batch_norm), *norm,
                          tnn.ReLU())


def torch_inception(batch_norm, c1, c2, c3, c4):
    from torch import nn as tnn

    def conv(*args):
        return torch_conv(batch_norm, *args)

    return torch_paths(conv(c1, 1), tnn.Sequential(conv(c2[0], 1), conv(c2[1], 3, 1, 1)),
                       tnn.Sequential(conv(c3[0], 1), conv(c3[1], 5, 1, 2)),
                       tnn.Sequential(tnn.MaxPool2d(3, 1, 1), conv(c4, 1)))


def torch_googlenet(num_classes, batch_norm):
    from torch import nn as tnn

    def pool():
        return tnn.MaxPool2d(3, 2, 1)

    blocks = {name: torch_inception(batch_norm, *channels) for name, channels in {
        '3a': FIRST, '3b': (128, (128, 192), (32, 96), 64), '4a': (192, (96, 208), (16, 48), 64),
        '4b': (160, (112, 224), (24, 64), 64), '4c': (128, (128, 256), (24, 64), 64),
        '4d': (112, (144, 288), (32, 64), 64), '4e': (256, (160, 320), (32, 128), 128),
        '5a': (256, (160, 320), (32, 128), 128), '5b': (384, (192, 384), (48, 128), 128)}.items()}
    return tnn.Sequential(
        torch_conv(batch_norm, 64, 7, 2, 3), pool(), torch_conv(batch_norm, 64, 1),
        torch_conv(batch_norm, 192, 3, 1, 1), pool(), blocks['3a'], blocks['3b'], pool(),
        *(blocks[f'4{letter}'] for letter in 'abcde'), pool(), blocks['5a'], blocks['5b'],
        tnn.AdaptiveAvgPool2d(1), tnn.Flatten(), tnn.LazyLinear(num_classes))


def torch_residual():
    from torch import nn as tnn
    return tnn.Sequential(torch_inception(False, *FIRST), tnn.LazyConv2d(192, 1))


def torch_v3(stage, c=None):
    from torch import nn as tnn

    def path(*convs):
        layers = [torch_conv(True, *conv) if isinstance(conv, tuple) else conv for conv in convs]
        return tnn.Sequential(*layers)

    def split():
        return torch_paths(path((384, (1, 3), 1, (0, 1))), path((384, (3, 1), 1, (1, 0))))

    row, column = ((1, 7), 1, (0, 3)), ((7, 1), 1, (3, 0))
    mean = tnn.AvgPool2d(3, 1, 1)
    return {
        3: lambda: torch_paths(
            path((64, 1)), path((48, 1), (64, 5, 1, 2)),
            path((64, 1), (96, 3, 1, 1), (96, 3, 1, 1)), path(mean, (c, 1))),
        4: lambda: torch_paths(
            path((192, 1)), path((c, 1), (c, *row), (192, *column)),
            path((c, 1), (c, *column), (c, *row), (c, *column), (192, *row)),
            path(mean, (192, 1))),
        5: lambda: torch_paths(
            path((320, 1)), path((384, 1), split()), path((448, 1), (384, 3, 1, 1), split()),
            path(mean, (192, 1)))}[stage]()


@pytest.mark.filterwarnings('ignore:Lazy modules')
@pytest.mark.parametrize('ours, theirs, shape', [
    (lambda: Inception(*FIRST), lambda: torch_inception(False, *FIRST), (192, 28, 28)),
    (lambda: Inception(*FIRST, batch_norm=True), lambda: torch_inception(True, *FIRST),
     (192, 28, 28)),
    (lambda: Residual(Inception(*FIRST), 192), torch_residual, (192, 28, 28)),
    (googlenet, lambda: torch_googlenet(10, False), (1, 96, 96)),
    (lambda: googlenet(1000, batch_norm=True), lambda: torch_googlenet(1000, True), (3, 224, 224)),
    (lambda: inception_v3_stage3(64), lambda: torch_v3(3, 64), (256, 35, 35)),
    (lambda: inception_v3_stage4(160), lambda: torch_v3(4, 160), (768, 17, 17)),
    (inception_v3_stage5, lambda: torch_v3(5), (1280, 8, 8)),
], ids=['block', 'v2', 'residual', 'googlenet', 'googlenet-v2', 'v3-3', 'v3-4', 'v3-5'])
def test_agrees_with_pytorch(ours, theirs, shape):
    pytest.importorskip('torch')
    for batch_size in (1, 3):
        result = summary(ours(), shape, batch_size)
        assert (result.total_params, result.total_mult_adds) == torch_counts(
            theirs, (batch_size, *shape))
