"""Channels-last graphs: what they compute, what they leave alone, and when they are used.

MXNet convolves in NHWC on a GPU only. Here each convolution runs between transposes instead; the
test marked `gpu` runs the graph as it is.
"""
import numpy as np
import pytest

import d2l_ext
from d2l_ext.devices import mx
from d2l_ext.graphs import compiled, trace
from d2l_ext.graphs.gpu import channels_last
from d2l_ext.graphs.rewriting import nodes_of, rewrite
from d2l_ext.hardware import cuda
from d2l_ext.nets import nin
from d2l_ext.studies.inception import Residual, googlenet
from d2l_ext.studies.nets import nin_cifar10, nin_imagenet

nd, nn = mx.nd, mx.gluon.nn


def with_unknown_layers():
    """A net in which layers that channels_last does not know stand between those it knows."""
    net, paths = nn.HybridSequential(), mx.gluon.contrib.nn.HybridConcurrent(axis=1)
    paths.add(nn.Conv2D(3, 1), nn.AvgPool2D(3, 1, 1), nn.InstanceNorm())
    net.add(nn.InstanceNorm(), nn.Conv2D(8, (3, 2), (1, 2), activation='relu'),
            nn.HybridLambda(lambda F, X: F.softmax(X, axis=1)), Residual(nn.Conv2D(8, 1), 8),
            nn.Conv2D(8, 3, groups=2), nn.MaxPool2D(2), paths, nn.Conv2D(6, 1),
            nn.HybridLambda(lambda F, X: F.concat(X, X, dim=2)), nn.Dropout(0.5, axes=(2, 3)),
            nn.Conv2D(6, 1), nn.Dropout(0.5), nn.Dense(5))
    return net


NETS = {'nin': (nin, (2, 1, 96, 96)), 'nin_cifar10': (nin_cifar10, (2, 3, 32, 32)),
        'nin_imagenet': (nin_imagenet, (2, 3, 96, 96)),
        'googlenet': (googlenet, (2, 1, 96, 96)),
        'unknown layers': (with_unknown_layers, (2, 1, 16, 32))}


@pytest.fixture(params=NETS)
def graph_and_shape(request):
    make_net, shape = NETS[request.param]
    return trace(make_net()), shape


def layouts(graph):
    return {node['attrs']['layout'] for node in nodes_of(graph) if node['op'] == 'Convolution'}


def for_cpu(graph):
    """Return `graph` without dropout, its NHWC convolutions in NCHW between transposes."""
    def change(new, node):
        op, name, inputs = node['op'], node['name'], node['inputs']
        if op == 'Dropout':
            return new.copy(node, p=0)
        if op != 'Convolution' or node['attrs']['layout'] != 'NHWC':
            return None
        turned = [new.add('transpose', f'{name}_in{i}', [source], axes=(0, 3, 1, 2))
                  for i, source in enumerate(inputs[:2])]
        result = new.copy({**node, 'inputs': turned + inputs[2:]}, layout='NCHW')
        return new.add('transpose', f'{name}_out', [result], axes=(0, 2, 3, 1))

    return rewrite(graph, change)


def run(graph, shape, ctx):
    """Return the output in training and all gradients, by name."""
    executor, rng = graph.simple_bind(ctx, data=shape), np.random.RandomState(0)
    for array in executor.arg_arrays:
        fan_in = np.prod(array.shape[1:]) if array.shape != shape else 2
        array[:] = rng.normal(size=array.shape) * np.sqrt(2 / fan_in)
    output, = executor.forward(is_train=True)
    executor.backward(nd.array(rng.normal(size=output.shape), ctx=ctx))
    return {name: array.asnumpy() for name, array in
            [('output', output), *executor.grad_dict.items()]}


def assert_close(result, expected, tolerance):
    assert result.keys() == expected.keys()
    for name, value in expected.items():
        assert np.linalg.norm(result[name] - value) < tolerance * np.linalg.norm(value), name


def test_names_and_shapes_stay(graph_and_shape):
    graph, shape = graph_and_shape
    result = channels_last(graph)
    assert 'NHWC' in layouts(result)
    assert result.list_arguments() == graph.list_arguments()
    assert result.infer_shape(data=shape) == graph.infer_shape(data=shape)


def test_output_and_gradients_stay(graph_and_shape):
    graph, shape = graph_and_shape
    assert_close(run(for_cpu(channels_last(graph)), shape, mx.cpu()),
                 run(for_cpu(graph), shape, mx.cpu()), 1e-4)


@pytest.mark.parametrize('make_net', [nin, nin_cifar10, nin_imagenet, googlenet])
def test_images_are_transposed_at_the_ends_only(make_net):
    nodes = nodes_of(channels_last(trace(make_net())))
    sources = [nodes[node['inputs'][0][0]] for node in nodes if node['op'] == 'transpose']
    first, last = (node for node in sources if not node['name'].endswith('_weight'))
    assert first['name'] == 'data'
    assert last['op'] == 'Pooling' and last['attrs']['global_pool'] == 'True'
    assert all(node['attrs']['layout'] == 'NHWC' for node in nodes
               if node['op'] in ('Convolution', 'Pooling'))


def test_what_is_not_known_stays():
    nodes = {node['name']: node for node in nodes_of(channels_last(trace(with_unknown_layers())))}
    grouped, = (node for node in nodes.values() if node.get('attrs', {}).get('num_group') == '2')
    assert grouped['attrs']['layout'] == 'NCHW'
    normalized = trace(googlenet(batch_norm=True))
    assert channels_last(normalized) is normalized


def test_casts_stay():
    from mxnet.contrib import amp
    graph = amp.convert_symbol(trace(nin()), 'float16', data_names=['data'])
    casts = [sum(node['op'] == 'amp_cast' for node in nodes_of(symbol))
             for symbol in (graph, channels_last(graph))]
    assert casts[0] == casts[1] > 0


@pytest.mark.parametrize('precision, capabilities, expected', [
    ('float16', [(7, 0)], 'NHWC'), ('float16', [(8, 6), (7, 5)], 'NHWC'),
    ('float16', [(6, 1)], 'NCHW'), ('float16', [(8, 0), (6, 1)], 'NCHW'), ('float16', [], 'NCHW'),
    ('float16', None, 'NCHW'), ('float32', [(8, 0)], 'NCHW'), ('bfloat16', [(8, 0)], 'NCHW')])
def test_only_float16_on_tensor_cores_is_channels_last(monkeypatch, precision, capabilities,
                                                       expected):
    monkeypatch.setattr(cuda, '_read_driver', lambda: None if capabilities is None else cuda.Driver(
        (12, 2), tuple(cuda.Gpu('a GPU', pair) for pair in capabilities)))
    net = nn.HybridSequential()
    net.add(nn.Conv2D(4, 3), nn.GlobalAvgPool2D(), nn.Flatten())
    net.initialize()
    symbol = compiled(net, precision)(mx.sym.var('data', dtype='float32'))
    assert layouts(symbol) == {expected}
    assert set(symbol.infer_type(data='float32')[0]) == {np.float32}  # parameters, gradients too
    convolution = symbol.get_internals()[f'{net[0].name}_fwd_output']
    assert (convolution.infer_type(data='float32')[1] == [np.float16]) == (precision == 'float16')


@pytest.mark.gpu
def test_float16_on_a_gpu_is_close(graph_and_shape):
    from mxnet.contrib import amp
    ctx = d2l_ext.try_gpu()
    if ctx.device_type != 'gpu' or not cuda.has_tensor_cores():
        pytest.skip('MXNet finds no GPU with tensor cores here')
    graph, shape = graph_and_shape
    graph = for_cpu(graph)  # without dropout, which draws in another order
    half = amp.convert_symbol(channels_last(graph), 'float16', data_names=['data'])
    half = mx.sym.amp_cast(half, dtype='float32')
    assert_close(run(half, shape, ctx), run(graph, shape, ctx), 0.2)  # a wrong layout: above 1
