"""Graphs rearranged for CPUs: what they compute, what they change, and when they are used."""
import ast
import types

import numpy as np
import pytest
from test_graphs_gpu import NETS, assert_close, with_unknown_layers

from d2l_ext import load_data_digits, range_test, train_ch5
from d2l_ext.batches import Batches, common_shape
from d2l_ext.devices import has_bfloat16, mx
from d2l_ext.evaluation import predict
from d2l_ext.graphs import choosing, compiled, compiling, trace
from d2l_ext.graphs.cpu import for_cpu
from d2l_ext.graphs.rewriting import nodes_of
from d2l_ext.nets import mlpconv, nin
from d2l_ext.studies.nets import nin_cifar10

nd, nn = mx.nd, mx.gluon.nn

CPU = mx.cpu()


def one_layer(layer, *others):
    net = nn.HybridSequential()
    net.add(layer, *others)
    return net


def normalized(convolution):
    return one_layer(convolution, nn.BatchNorm(), nn.Activation('relu'))


# Nets whose first convolution feeds a batch normalization, most of them: maker, shape of the
# images, and the channels that the convolution reads in bfloat16.
NORMALIZED = {
    'normalized nin_cifar10': (lambda: nin_cifar10(batch_norm=True), (2, 3, 32, 32), 16),
    'one channel': (lambda: mlpconv((7, 5), 3, 1, 1, True), (4, 1, 9, 8), 16),
    'two channels and a bias': (
        lambda: one_layer(nn.Conv2D(32, (1, 3)), nn.BatchNorm(use_global_stats=True)),
        (4, 2, 6, 6), 16),
    'a stride that does not fit': (
        lambda: normalized(nn.Conv2D(8, 3, 2, use_bias=False)), (4, 3, 9, 9), 16),
    'a stride that fits': (
        lambda: normalized(nn.Conv2D(8, 3, 2, use_bias=False)), (4, 3, 8, 8), 4 * 3),
    'as many channels as fit': (
        lambda: normalized(nn.Conv2D(8, 3, use_bias=False)), (4, 16, 6, 6), 16),
    'more channels than fit': (
        lambda: normalized(nn.Conv2D(8, 3, use_bias=False)), (4, 20, 6, 6), 20),
    'groups': (lambda: normalized(nn.Conv2D(8, 3, groups=2, use_bias=False)), (4, 2, 6, 6), 2),
    'not normalized': (lambda: mlpconv((7, 5), 3, 1, 1), (4, 1, 9, 8), 1),
    'normalized in one dimension': (
        lambda: normalized(nn.Conv1D(8, 3, use_bias=False)), (4, 2, 9), 2),
}

# Beside nets: layers whose first convolution can or cannot be cut into blocks, or be padded.
CASES = {
    **NETS,
    # MXNet 1.9.1 normalizes in one dimension with another executor only ("Check failed: !is_view").
    **{name: case[:2] for name, case in NORMALIZED.items() if 'dimension' not in name},
    'stride 2 in colour': (lambda: one_layer(nn.Conv2D(20, 3, 2)), (2, 3, 12, 10)),
    'a window smaller than the stride': (lambda: one_layer(nn.Conv2D(3, (2, 5), 4)), (2, 2, 8, 16)),
    'no bias': (lambda: one_layer(nn.Conv2D(7, 4, 4, use_bias=False)), (2, 1, 8, 8)),
    'size no multiple': (lambda: one_layer(nn.Conv2D(5, 3, 2)), (2, 1, 11, 12)),
    'padded': (lambda: one_layer(nn.Conv2D(5, 3, 2, 1)), (2, 1, 12, 12)),
    'dilated': (lambda: one_layer(nn.Conv2D(5, 3, 2, dilation=2)), (2, 1, 12, 12)),
    'one dimension': (lambda: one_layer(nn.Conv1D(5, 3, 2)), (2, 3, 12)),
    'three dimensions': (lambda: one_layer(nn.Conv3D(5, 3, 2)), (2, 1, 8, 8, 8)),
    'transposed': (lambda: one_layer(nn.Conv2DTranspose(5, 3, 2)), (2, 3, 6, 6)),
}


@pytest.fixture(params=CASES)
def graph_and_shape(request):
    make_net, shape = CASES[request.param]
    net = make_net()
    for layer in net:
        if isinstance(layer, nn.Dropout):
            layer._rate = 0  # else the two graphs draw other numbers
    return trace(net), shape


def image_shape(shape):
    """Return the shape of an image in a batch of `shape`, made up if these are no images."""
    return (shape[1], *shape[2:], *shape[2:])[:3]


def run(graph, shape, shapes):
    """Return the output in training, all gradients and running statistics, by name."""
    executor, rng = graph.simple_bind(CPU, data=shape, **shapes), np.random.RandomState(0)
    for array in executor.aux_arrays:
        array[:] = 1
    for name, array in sorted(executor.arg_dict.items()):
        fan_in = 2 if name == 'data' else np.prod(array.shape[1:])
        array[:] = rng.normal(size=array.shape) * np.sqrt(2 / fan_in)
    output, = executor.forward(is_train=True)
    executor.backward(nd.array(rng.normal(size=output.shape)))
    return {name: array.asnumpy() for name, array in
            [('output', output), *executor.grad_dict.items(), *executor.aux_dict.items()]}


def test_names_output_and_gradients_stay(graph_and_shape):
    graph, shape = graph_and_shape
    result = for_cpu(graph, image_shape(shape), 'bfloat16')  # more changes than in float32
    assert result.list_arguments() == graph.list_arguments()
    assert result.list_auxiliary_states() == graph.list_auxiliary_states()
    assert result.list_outputs() == graph.list_outputs()
    shapes = dict(zip(graph.list_arguments(), graph.infer_shape(data=shape)[0]))
    del shapes['data']
    mx.random.seed(0)
    expected = run(graph, shape, shapes)
    mx.random.seed(0)
    assert_close(run(result, shape, shapes), expected, 1e-4)


def convolutions(graph):
    """Return the nodes of those that are the net's own, not what cuts images into blocks."""
    return [node for node in nodes_of(graph)
            if node['op'] == 'Convolution' and '_cut' not in node['name']]


@pytest.mark.parametrize('make_net, shape', NETS.values(), ids=NETS)
def test_filters_come_in_sixteens(make_net, shape):
    before, after = trace(make_net()), for_cpu(trace(make_net()), shape[1:], 'float32')
    found = [[node['attrs'] for node in convolutions(graph)] for graph in (before, after)]
    numbers = [[int(attrs['num_filter']) for attrs in each if attrs['num_group'] == '1']
               for each in found]
    assert numbers[1] == [-(-number // 16) * 16 for number in numbers[0]]
    groups = [[attrs['num_filter'] for attrs in each if attrs['num_group'] != '1']
              for each in found]
    assert groups[0] == groups[1] and (len(groups[0]) == (make_net is with_unknown_layers))


@pytest.mark.parametrize('case, kernel', [
    ('nin', (3, 3)), ('nin_imagenet', (3, 3)), ('stride 2 in colour', (2, 2)),
    ('a window smaller than the stride', (1, 2)), ('no bias', (1, 1)), ('nin_cifar10', None),
    ('size no multiple', None), ('padded', None), ('dilated', None), ('three dimensions', None)])
def test_which_convolutions_read_blocks(case, kernel):
    make_net, shape = CASES[case]
    before, after = (convolutions(graph)[0]['attrs'] for graph in (
        trace(make_net()), for_cpu(trace(make_net()), image_shape(shape), 'bfloat16')))
    if kernel is None:
        assert (after['kernel'], after['stride']) == (before['kernel'], before['stride'])
    else:
        assert (after['kernel'], after['stride']) == (str(kernel), '(1, 1)')


def test_only_what_reads_the_images_is_cut_into_blocks():
    net = nn.HybridSequential()
    net.add(nn.Conv2D(16, 1), nn.Conv2D(16, 2, 2))
    strides = [ast.literal_eval(node['attrs']['stride']) for node in
               convolutions(for_cpu(trace(net), (1, 8, 8), 'float32'))]
    assert strides == [(1, 1), (2, 2)]


def channels_read(graph, shape):
    """Return how many channels the first convolution reads."""
    first = convolutions(graph)[0]['name']
    images = graph.get_internals()[f'{first}_output'].get_children()[0]
    return images.infer_shape(data=shape)[1][0][1]


@pytest.mark.parametrize('make_net, shape, channels', NORMALIZED.values(), ids=NORMALIZED)
def test_normalized_convolutions_read_sixteen_channels_in_bfloat16(make_net, shape, channels):
    graph = trace(make_net())
    assert channels_read(for_cpu(graph, image_shape(shape), 'bfloat16'), shape) == channels
    expected = for_cpu(graph, image_shape(shape), 'float32')
    assert channels_read(expected, shape) == (12 if channels == 12 else shape[1])
    assert for_cpu(graph, image_shape(shape), 'float16').tojson() == expected.tojson()


def test_only_what_reads_the_images_is_padded_with_channels():
    net = one_layer(nn.Conv2D(4, 1), *mlpconv((4, 4), 3, 1, 1, True))
    graph = trace(net)
    exact, fast = (for_cpu(graph, (3, 8, 8), precision) for precision in ('float32', 'bfloat16'))
    assert fast.tojson() == exact.tojson()


@pytest.mark.skipif(not has_bfloat16(), reason='no bfloat16 instructions here')
@pytest.mark.parametrize('channels, window, read', [
    (1, (5, 1, 2), 16), (3, (5, 1, 2), 16), (1, (6, 4, 0), 16), (3, (6, 4, 0), 48)])
def test_bfloat16_with_other_channels_is_close(channels, window, read):
    net, X = mlpconv((32, 16), *window, True), nd.random.uniform(shape=(8, channels, 12, 12))
    X.attach_grad()
    net.initialize(mx.init.Xavier())
    results, fast = [], compiled(net, 'bfloat16', X.shape[1:])
    for forward in (net, fast):
        with mx.autograd.record():
            output = forward(X)
        output.backward(nd.arange(output.size).reshape(output.shape) % 7 - 3)
        results.append({'output': output.asnumpy(), 'X': X.grad.asnumpy().copy(), **{
            name: param.grad().asnumpy().copy() for name, param in net.collect_params().items()
            if param.grad_req != 'null'}})
    exact, result = results
    assert_close(result, exact, 0.2)  # cut or misplaced channels: above 1
    assert any((result[name] != exact[name]).any() for name in exact)  # really another precision
    assert channels_read(fast(mx.sym.var('data', dtype='float32')), X.shape) == read


def order(graph):
    return [node['op'] for node in nodes_of(graph) if node['op'] in ('Activation', 'Pooling')]


def test_maxima_are_pooled_before_the_relu():
    relu, pool = 'Activation', 'Pooling'
    assert order(for_cpu(trace(nin()), (1, 97, 97), 'float32')) == [
        *3 * [relu, relu, pool, relu], relu, relu, relu, pool]


@pytest.mark.parametrize('layers', [
    lambda: [nn.Activation('relu'), nn.AvgPool2D(2), nn.Flatten()],
    lambda: [nn.Activation('sigmoid'), nn.MaxPool2D(2), nn.Flatten()],
    lambda: [nn.Activation('relu'), nn.MaxPool2D(2)],  # would rename the output
    lambda: [nn.Activation('relu'), nn.HybridLambda(lambda F, X: F.concat(
        F.flatten(X), F.flatten(F.Pooling(X, kernel=(2, 2), pool_type='max')), dim=1))],
], ids=['mean', 'sigmoid', 'the output', 'the ReLU has another reader'])
def test_other_poolings_stay_where_they_are(layers):
    net = nn.HybridSequential()
    net.add(nn.Conv2D(16, 1), *layers())
    graph = trace(net)
    assert order(for_cpu(graph, (1, 8, 8), 'float32')) == order(graph) == ['Activation', 'Pooling']


@pytest.mark.parametrize('shape', [None, (1, 67, 67), (1, 68, 68)])
def test_deferred_parameters_are_drawn_as_ever(shape):
    X, drawn = nd.ones((2, *(shape or (1, 67, 67)))), []
    for make in (lambda net: net, lambda net: compiled(net, image_shape=shape)):
        mx.random.seed(3)
        net = nin()
        net.initialize()
        make(net)(X)
        nd.waitall()  # MXNet still arranges weights when an output is there
        drawn.append([param.data().asnumpy() for param in net.collect_params().values()])
    assert all((a == b).all() for a, b in zip(*drawn)) and len(drawn[0]) == 24


def test_without_a_shape_nothing_is_rearranged():
    net = nin()
    net.initialize()
    data = mx.sym.var('data', dtype='float32')
    plain = [node['attrs']['num_filter'] for node in convolutions(compiled(net)(data))]
    assert plain == 3 * ['96'] + 3 * ['256'] + 3 * ['384'] + 3 * ['10']
    fast = compiled(net, image_shape=(1, 96, 96))
    wide = [node['attrs']['num_filter'] for node in convolutions(fast(data))]
    assert wide == plain[:9] + 3 * ['16']


def test_the_shape_that_all_images_have():
    train_iter, test_iter = load_data_digits(4, resize=12)
    assert common_shape([train_iter, test_iter]) == (1, 12, 12)
    assert common_shape([train_iter, load_data_digits(4)[1]]) is None
    assert common_shape([train_iter, [next(iter(train_iter))]]) is None  # a list does not tell
    assert common_shape([load_data_digits(4)[0]]) == (1, 8, 8)
    colour = Batches(np.zeros((2, 3, 5, 4), np.uint8), np.zeros(2, int), 2, ctx=CPU)
    assert common_shape([colour]) == (3, 5, 4)
    assert common_shape([load_data_digits(4, resize=5)[0], colour]) is None


@pytest.mark.parametrize('other', [28, [3, 12, 12], (12, 12), '128'])
def test_what_is_called_image_shape_elsewhere_tells_nothing(other):
    assert common_shape([types.SimpleNamespace(image_shape=other)]) is None


@pytest.mark.parametrize('known', [True, False])
def test_training_predicting_and_testing_rates_tell_the_shape(monkeypatch, known):
    shapes = []

    def spy(net, precision='float32', image_shape=None):
        shapes.append(image_shape)
        return compiled(net, precision, image_shape)

    monkeypatch.setattr(choosing, 'compiled', spy)
    train_iter, test_iter = (batches.take(20) for batches in load_data_digits(10, resize=12))
    if not known:
        train_iter, test_iter = list(train_iter), list(test_iter)
    net = nn.HybridSequential()
    net.add(nn.Conv2D(10, 4, 4), nn.GlobalAvgPool2D(), nn.Flatten())
    net.initialize()
    trainer = mx.gluon.Trainer(net.collect_params(), 'sgd')
    train_ch5(net, train_iter, test_iter, 10, trainer, CPU, 1)
    predict(net, test_iter, CPU)
    range_test(net, train_iter, trainer, CPU, num_steps=10)
    assert shapes == 3 * [(1, 12, 12) if known else None]


def test_never_on_a_gpu(monkeypatch):
    monkeypatch.setattr(compiling, 'for_cpu', lambda *_: pytest.fail('rearranged'))
    net = nin()
    net.initialize()
    for param in net.collect_params().values():
        monkeypatch.setattr(param, 'list_ctx', lambda: [mx.gpu()])
    compiled(net, image_shape=(1, 96, 96))


@pytest.mark.skipif(not has_bfloat16(), reason='this processor has no bfloat16')
@pytest.mark.parametrize('size, used', [(1, slice(1, 2)), (2, slice(0, 3))])
def test_margins_of_windows_that_see_nothing_but_padding_get_no_gradient(size, used):
    net = one_layer(nn.Conv2D(16, 3, padding=1))
    net.initialize()
    X = nd.random.normal(shape=(4, 16, size, size))
    gradients = []
    for precision in ('float32', 'bfloat16'):
        forward = compiled(net, precision, X.shape[1:])
        for _ in range(2):  # memory is used again
            with mx.autograd.record():
                output = forward(X)
            output.backward()
        gradients.append(net[0].weight.grad().asnumpy())
    np.testing.assert_allclose(*gradients, atol=0.02 * abs(gradients[0]).max())
    gradients[1][:, :, used, used] = 0
    assert not gradients[1].any()
