"""Resources against known facts and hand-computed counts."""
import concurrent.futures

import numpy as np
import pytest

import d2l_ext
from d2l_ext import graphs, nets
from d2l_ext.devices import mx
from d2l_ext.studies.resources import summary

nd, nn = mx.nd, mx.gluon.nn
vision = mx.gluon.model_zoo.vision


def sequence(*layers):
    net = nn.HybridSequential()
    net.add(*layers)
    return net


class Net(nn.HybridSequential):
    """Computes what `function(F, x, *children)` says."""

    def __init__(self, function, *children):
        super().__init__()
        self.add(*children)
        self.function = function

    def hybrid_forward(self, F, x):
        return self.function(F, x, *self._children.values())


def counts(net, shape, **kwargs):
    result = summary(net, shape, **kwargs)
    assert result.unknown == ()
    return result.total_weights, result.total_biases, result.total_mult_adds


# --- facts ---------------------------------------------------------------------------------------

def test_nin_facts():
    result = summary(nets.nin(), (1, 224, 224))
    assert result.total_params == 1_992_166
    assert result.total_mult_adds == 762_297_352
    assert result.total_buffers == 0 and result.unknown == ()
    assert [row.output_shape for row in result.rows if row.layer in ('1', '3', '5', '8', '9')] == [
        (1, 96, 26, 26), (1, 256, 12, 12), (1, 384, 5, 5), (1, 10, 1, 1), (1, 10)]


def test_nin_backward_twice_forward_less_the_gradient_of_the_images():
    result = summary(nets.nin(), (1, 224, 224))
    assert result.backward_mult_adds == 2 * 762_297_352 - 54 * 54 * 96 * 11 * 11


def test_nin_memory():
    result = summary(nets.nin(), (1, 224, 224), batch_size=2)
    parameters, largest = 4 * 1_992_166, 96 * 54 * 54
    assert result.inference_memory() == {'parameters': parameters,
                                         'activations': 4 * 2 * 2 * largest}
    # The images, the outputs of all ReLUs (three a block), of the poolings with the places of their
    # maxima, and of dropout with its mask; the last pooling's gradient asks for its output, too.
    kept = (224 * 224 + 3 * (largest + 256 * 26**2 + 384 * 12**2 + 10 * 5**2)
            + 2 * (96 * 26**2 + 256 * 12**2 + 384 * 5**2) + 2 * 384 * 5**2 + 10)
    assert result.training_memory(optimizer_states=1) == {
        'parameters': parameters, 'gradients': parameters, 'optimizer states': parameters,
        'activations': 4 * 2 * kept, 'activation gradients': 4 * 2 * 2 * largest,
        'workspace': 4 * 2 * 2 * largest}
    assert [result.training_memory(n)['optimizer states'] for n in (0, 2)] == [0, 2 * parameters]


@pytest.mark.parametrize('name, shape, params, mult_adds', [
    ('resnet18_v1', (3, 224, 224), 11_689_512, 1_814_073_344),  # He et al. 2015: 1.8e9
    ('densenet121', (3, 224, 224), 7_978_856, 2_834_161_664),
    ('inceptionv3', (3, 299, 299), 23_834_568, 5_713_216_096),
])
def test_published_counts(name, shape, params, mult_adds):
    result = summary(vision.get_model(name), shape)
    assert (result.total_params, result.total_mult_adds) == (params, mult_adds)
    assert result.unknown == ()


def test_batch_and_dtype_scale_what_they_should():
    one = summary(nets.nin(), (1, 96, 96))
    many = summary(nets.nin(), (1, 96, 96), batch_size=7, dtype='bfloat16')
    assert many.total_params == one.total_params
    for name in ('total_mult_adds', 'total_flops', 'backward_mult_adds'):
        assert getattr(many, name) == 7 * getattr(one, name)
    assert 2 * many.activation_bytes == 7 * one.activation_bytes
    for part in ('activations', 'activation gradients', 'workspace'):
        assert 2 * many.training_memory()[part] == 7 * one.training_memory()[part] > 0
    # In bfloat16, training still holds parameters in float32; inference does not have to.
    assert many.training_memory()['parameters'] == one.training_memory()['parameters']
    assert 2 * many.inference_memory()['parameters'] == one.inference_memory()['parameters']
    small = summary(nets.nin(), (1, 96, 96), dtype='int8').inference_memory()
    assert {part: 4 * number for part, number in small.items()} == one.inference_memory()


# --- single layers, by hand ----------------------------------------------------------------------

@pytest.mark.parametrize('layer, shape, weights, biases, mult_adds', [
    (lambda: nn.Conv2D(8, 3), (4, 10, 10), 8 * 4 * 9, 8, 8 * 8 * 8 * 4 * 9),
    (lambda: nn.Conv2D(8, 3, use_bias=False), (4, 10, 10), 8 * 4 * 9, 0, 8 * 8 * 8 * 4 * 9),
    (lambda: nn.Conv2D(8, 3, groups=4, in_channels=4), (4, 10, 10), 8 * 9, 8, 8 * 8 * 8 * 9),
    (lambda: nn.Conv2D(8, 3, groups=2), (4, 10, 10), 8 * 2 * 9, 8, 8 * 8 * 8 * 2 * 9),
    (lambda: nn.Conv2D(8, 3, dilation=2), (4, 10, 10), 8 * 4 * 9, 8, 6 * 6 * 8 * 4 * 9),
    (lambda: nn.Conv2D(8, (1, 5), strides=(2, 1), padding=(0, 2)), (4, 9, 10),
     8 * 4 * 5, 8, 5 * 10 * 8 * 4 * 5),
    (lambda: nn.Conv1D(6, 3), (2, 10), 6 * 2 * 3, 6, 8 * 6 * 2 * 3),
    (lambda: nn.Conv3D(2, 3), (1, 5, 5, 5), 2 * 27, 2, 27 * 2 * 27),
    # Each input pixel meets the whole window once.
    (lambda: nn.Conv2DTranspose(6, 4, strides=2, padding=1, in_channels=3), (3, 5, 5),
     3 * 6 * 16, 6, 3 * 25 * 6 * 16),
    (lambda: nn.Dense(5), (2, 3, 4), 5 * 24, 5, 5 * 24),
    (lambda: nn.Dense(5, flatten=False), (2, 3, 4), 5 * 4, 5, 2 * 3 * 5 * 4),
    (lambda: nn.Dense(5, use_bias=False), (7,), 35, 0, 35),
    (lambda: nn.BatchNorm(), (6, 4, 4), 6, 6, 0),
    (lambda: nn.LayerNorm(), (6, 4), 4, 4, 0),
    (lambda: nn.PReLU(), (6, 4), 1, 0, 0),
    (lambda: nn.MaxPool2D(2), (6, 4, 4), 0, 0, 0),
])
def test_one_layer(layer, shape, weights, biases, mult_adds):
    assert counts(layer(), shape) == (weights, biases, mult_adds)


@pytest.mark.parametrize('layer, shape, flops', [
    (lambda: nn.Conv2D(8, 3), (4, 10, 10), 2 * 8 * 8 * 8 * 4 * 9 + 8 * 8 * 8),
    (lambda: nn.Dense(5, use_bias=False), (7,), 2 * 35),
    (lambda: nn.MaxPool2D(3, 2), (2, 7, 7), 2 * 9 * 9),
    (lambda: nn.GlobalAvgPool2D(), (2, 7, 7), 2 * 49),
    (lambda: nn.Activation('tanh'), (2, 7), 14),
    (lambda: nn.LeakyReLU(0.1), (2, 7), 14),
    (lambda: nn.BatchNorm(), (2, 7), 2 * 14),
    (lambda: nn.LayerNorm(), (2, 7), 7 * 14),
    (lambda: nn.Dropout(0.5), (2, 7), 0),
    (lambda: nn.Flatten(), (2, 7), 0),
    (lambda: Net(lambda F, x: F.softmax(x)), (7,), 5 * 7),
    (lambda: Net(lambda F, x: F.mean(x, axis=1)), (7,), 7),
    (lambda: Net(lambda F, x: F.LRN(x, nsize=5)), (4, 3, 3), 36 * 13),
    (lambda: Net(lambda F, x: F.broadcast_mul(x, F.ones((1, 7)))), (7,), 7),
])
def test_flops(layer, shape, flops):
    result = summary(layer(), shape)
    assert result.total_flops == flops and result.unknown == ()


def test_batch_norm_has_running_statistics_that_are_no_parameters():
    result = summary(sequence(nn.Conv2D(6, 1, use_bias=False), nn.BatchNorm()), (3, 4, 4))
    assert (result.total_weights, result.total_biases) == (18 + 6, 6)
    assert result.total_buffers == 2 * 6
    assert result.training_memory()['parameters'] == 4 * (30 + 12)
    assert result.training_memory()['gradients'] == 4 * 30
    without = summary(nn.BatchNorm(scale=False, center=False), (6, 4, 4))
    assert (without.total_params, without.total_buffers) == (0, 24)


def test_frozen_parameters_need_no_gradient():
    net = sequence(nn.Dense(4, in_units=3), nn.Dense(2, in_units=4), nn.Dense(2, in_units=2))
    net[0].collect_params().setattr('grad_req', 'null')
    result = summary(net, (3,))
    assert result.total_params == 32
    assert result.training_memory()['gradients'] == 4 * (10 + 6)
    # Neither the first layer nor the input of the second needs a gradient.
    assert result.backward_mult_adds == 8 + 2 * 4


def test_blocked_gradient():
    net = Net(lambda F, x, a, b: b(F.BlockGrad(a(x))), nn.Dense(4), nn.Dense(2))
    assert summary(net, (3,)).backward_mult_adds == 8


def test_shared_layer_counts_its_parameters_once_and_its_work_each_time():
    layer, activation = nn.Dense(3), nn.Activation('relu')
    result = summary(sequence(layer, activation, activation, layer, activation), (3,))
    assert (result.total_weights, result.total_biases, result.total_mult_adds) == (9, 3, 18)
    assert [row[:2] for row in result.rows] == [
        ('0', 'Dense'), ('1', 'Activation'), ('1', 'Activation'), ('0', 'Dense'),
        ('1', 'Activation')]


def test_normalized_nin_cifar10():
    # Channels, window and pixels of each convolution; no bias, but a scale and a shift a channel.
    layers = [(192, 5 * 5 * 3, 32), (160, 192, 32), (96, 160, 32),
              (192, 5 * 5 * 96, 16), (192, 192, 16), (192, 192, 16),
              (192, 3 * 3 * 192, 8), (192, 192, 8), (10, 192, 8)]
    weights, channels = sum(out * window for out, window, _ in layers), 1_418
    net = d2l_ext.nin_cifar10(batch_norm=True)
    assert counts(net, (3, 32, 32)) == (
        weights + channels, channels, sum(out * window * size**2 for out, window, size in layers))
    result, plain = (summary(each, (3, 32, 32)) for each in (net, d2l_ext.nin_cifar10()))
    assert (result.total_params, result.total_buffers) == (968_404, 2 * channels)
    assert (plain.total_params, plain.total_mult_adds) == (966_986, result.total_mult_adds)


# --- nets with branches ---------------------------------------------------------------------------

def test_concatenation():
    net = Net(lambda F, x, a, b: F.concat(a(x), b(x), dim=1),
              nn.Conv2D(4, 1), nn.Conv2D(6, 3, padding=1))
    result = summary(net, (3, 5, 5))
    assert result.rows[-1] == ('(net)', 'Concat', (1, 10, 5, 5), 0, 0, 0, 0, 4 * 250)
    assert result.total_mult_adds == 25 * (4 * 3 + 6 * 27)
    # Input, first branch and second branch; then both branches and the result.
    assert result.inference_memory()['activations'] == 4 * max(75 + 250, 250 + 250)
    assert result.training_memory()['activations'] == 4 * 75


def test_residual_addition():
    net = Net(lambda F, x, a, b: F.relu(b(a(x)) + x),
              nn.Conv2D(3, 3, padding=1, activation='relu'), nn.Conv2D(3, 3, padding=1))
    result = summary(net, (3, 5, 5))
    assert [row.kind for row in result.rows] == [
        'Conv2D', 'Activation', 'Conv2D', 'elemwise_add', 'relu']
    assert result.total_mult_adds == 2 * 25 * 3 * 27
    assert result.total_flops == 2 * (2 * 25 * 3 * 27 + 75) + 3 * 75
    # The input waits for the addition; addition and ReLU overwrite what they read.
    assert result.inference_memory()['activations'] == 4 * 3 * 75
    # The input, the output of the first ReLU, and that of the last.
    assert result.training_memory()['activations'] == 4 * 3 * 75
    assert result.backward_mult_adds == 3 * 25 * 3 * 27


def test_residual_gradient_waits():
    body = Net(lambda F, x, a: a(x) + x, nn.Dense(8, in_units=8))
    net = sequence(nn.Dense(8, in_units=8), body)
    # The gradient of the sum serves both terms; the branch adds its own to it.
    assert summary(net, (8,)).training_memory()['activation gradients'] == 4 * 2 * 8


def test_several_outputs():
    net = Net(lambda F, x: [F.concat(*F.split(x, 2, axis=1)), F.split(x, 3, axis=1)])
    result = summary(net, (6,), batch_size=2)
    assert [row.output_shape for row in result.rows] == [
        [(2, 3)] * 2, (2, 6), [(2, 2)] * 3]
    assert result.rows[2].activation_bytes == 4 * 2 * 6


def test_plain_sequential_of_hybrid_blocks():
    net = nn.Sequential()
    net.add(nn.Conv2D(4, 3, activation='relu'), nn.Dense(2))
    result = summary(net, (1, 5, 5))
    assert [row.layer for row in result.rows] == ['0', '0.act', '1']
    assert result.total_params == 40 + 2 * 36 + 2


def test_compiled_net():
    net = sequence(nn.Dense(3), nn.BatchNorm(), nn.Activation('relu'))
    net.add(net[2], net[0])
    net.initialize()
    result, expected = summary(graphs.compiled(net), (3,)), summary(net, (3,))
    for name in ('total_weights', 'total_biases', 'total_mult_adds', 'total_flops',
                 'total_buffers', 'backward_mult_adds'):
        assert getattr(result, name) == getattr(expected, name)
    assert result.training_memory(1) == expected.training_memory(1)
    assert result.inference_memory() == expected.inference_memory()


def test_numpy_arrays():
    with mx.util.np_shape(True), mx.util.np_array(True):
        net = sequence(nn.Conv2D(4, 3, activation='relu'), nn.MaxPool2D(), nn.Dropout(0.5),
                       nn.Dense(2))
        result = summary(net, (1, 8, 8))
    assert result.unknown == ()
    assert (result.total_params, result.total_mult_adds) == (40 + 74, 36 * 36 + 72)


def test_single_layer_is_a_net():
    assert summary(nn.Dense(2), (3,)).rows == [('(net)', 'Dense', (1, 2), 6, 2, 6, 14, 8)]


def test_net_without_layers():
    result = summary(nn.HybridSequential(), (3,))
    assert result.rows == [] and result.total_params == sum(result.training_memory().values()) == 0
    assert result.inference_memory() == {'parameters': 0, 'activations': 12}
    assert len(result.to_dataframe()) == 0


# --- nothing is skipped in silence ----------------------------------------------------------------

def test_unknown_operator_is_named():
    net = sequence(nn.Dense(4), Net(lambda F, x: F.topk(x, k=2)), nn.Dense(3))
    result = summary(net, (5,))
    assert result.unknown == ('1 topk',)
    row = result.rows[1]
    assert row.kind == 'topk (unknown)' and row.mult_adds is row.flops is None
    assert row.output_shape == (1, 2) and row.activation_bytes == 8
    assert result.total_mult_adds == 20 + 6
    for text in (str(result), result._repr_html_()):
        assert 'NOT COUNTED' in text and '1 topk' in text and 'topk (unknown)' in text
    assert result.to_dataframe().mult_adds.isna().tolist() == [False, True, False]


def test_unknown_shape_is_named():
    net = sequence(Net(lambda F, x: F.contrib.boolean_mask(x, F.sum(x, axis=1))), nn.Dense(3))
    result = summary(net, (5,))
    assert result.unknown[0] == '0 _contrib_boolean_mask' and '1 Dense' in result.unknown
    assert len(result.unknown) == 3 and any('unknown shape' in name for name in result.unknown)
    assert result.rows[-1].output_shape is None


def test_custom_operator_is_named():
    @mx.operator.register('d2l_ext_test')
    class Property(mx.operator.CustomOpProp):
        pass

    result = summary(sequence(Net(lambda F, x: F.Custom(x, op_type='d2l_ext_test'))), (5,))
    assert result.unknown == ('0 d2l_ext_test',)


@pytest.mark.filterwarnings('ignore:.*unregistered container')
def test_parameters_that_forward_does_not_reach_are_named():
    class Odd(nn.HybridBlock):
        def __init__(self):
            super().__init__()
            self.used, self.unused = nn.Dense(2), nn.Dense(4, in_units=3)
            self.deferred = nn.Dense(4)
            self.hidden = [nn.Dense(5)]
            self.scale = self.params.get('scale', shape=(1, 2))
            self.shift = self.params.get_constant('shift', nd.ones((1, 2)))

        def hybrid_forward(self, F, x, scale, shift):
            with mx.AttrScope(__mine__='1'):
                x = F.broadcast_mul(self.used(x), scale)
            return self.hidden[0](F.broadcast_add(x, shift))

    result = summary(Odd(), (3,))
    assert result.total_weights == 6 + 2 + 12 and result.total_biases == 2 + 4 + 4
    assert result.total_buffers == 2
    assert ('unused', 'not used', None, 12, 0, 0, 0, 0) in result.rows
    assert len(result.unknown) == 3
    assert sum('does not own' in name for name in result.unknown) == 2
    assert sum('unknown shape' in name for name in result.unknown) == 1


def test_block_that_cannot_be_traced_is_named():
    net = nn.Sequential()
    net.add(nn.Dense(3), nn.Lambda('relu'))
    with pytest.raises(ValueError, match=r'layer 1 \(Lambda\) cannot be traced'):
        summary(net, (3,))


@pytest.mark.parametrize('make, shape, message', [
    (nets.nin, (1, 40, 40), 'layer 5 cannot take .* exceeds input'),
    (nets.nin, (40,), 'layer 0.0 cannot take .* should be 4D'),
    (lambda: sequence(nn.Dense(4), nn.Dense(2, in_units=3)), (40,),
     r'layer 1 cannot take .* input has the shape \(1, 40\)'),
])
def test_layer_that_does_not_fit_is_named(make, shape, message):
    with pytest.raises(ValueError, match=message):
        summary(make(), shape)


def test_shape_that_contradicts_the_parameters():
    net = nets.nin()
    net.initialize()
    net.infer_shape(nd.zeros((1, 1, 224, 224)))
    with pytest.raises(ValueError, match='layer 0.0 cannot take'):
        summary(net, (3, 224, 224))


# --- the net stays as it was ----------------------------------------------------------------------

def everything(net):
    """Return all that `summary` could change, to compare."""
    blocks = [net]
    for block in blocks:
        blocks.extend(block._children.values())
    params = net.collect_params()
    return [{name: repr(value) for name, value in vars(item).items()}
            for item in [*blocks, *params.values()]]


def test_uninitialized_and_deferred_nets_stay_so():
    net = nets.nin()
    before = everything(net)
    summary(net, (1, 224, 224))
    assert everything(net) == before
    net.initialize()
    before = everything(net)
    summary(net, (3, 128, 128))
    assert everything(net) == before
    weight = net.collect_params()[net[0][0].weight.name]
    assert weight.shape == (96, 0, 11, 11) and weight._deferred_init
    with pytest.raises(mx.gluon.parameter.DeferredInitializationError):
        weight.data()


def test_initialized_and_hybridized_net_stays_so():
    calls = []
    net = sequence(nn.Conv2D(4, 3, activation='relu'), nn.BatchNorm(), nn.Dropout(0.5), nn.Dense(2))
    net.initialize()
    net.hybridize(static_alloc=True)
    net.register_forward_hook(lambda *args: calls.append(args))
    X = nd.random.uniform(shape=(2, 1, 5, 5))
    expected = net(X).asnumpy()
    nd.waitall()  # MXNet still arranges weights when an output is there
    kept = {name: param.data().asnumpy() for name, param in net.collect_params().items()}
    before, cached, calls[:] = everything(net), net._cached_op, []
    np.random.seed(0)
    mx.random.seed(0)
    summary(net, (1, 5, 5))
    assert calls == [] and net._cached_op is cached and net._active
    assert everything(net) == before
    for name, param in net.collect_params().items():
        np.testing.assert_array_equal(param.data().asnumpy(), kept[name])
    drawn = nd.random.uniform(shape=(3,)).asnumpy()
    mx.random.seed(0)
    np.testing.assert_array_equal(drawn, nd.random.uniform(shape=(3,)).asnumpy())
    np.testing.assert_array_equal(net(X).asnumpy(), expected)
    assert len(calls) == 1


def test_net_stays_as_it_was_after_an_error():
    def fail(F, x):
        raise KeyError('broken')

    net = sequence(nn.Dense(3), sequence(Net(fail)))
    before = everything(net)
    names = nn.Dense(1).prefix, nn.Dense(1).prefix  # how Gluon counts names
    with pytest.raises(ValueError, match=r"layer 1.0 \(Net\) cannot be traced; .* KeyError: 'br"):
        summary(net, (3,))
    assert everything(net) == before
    number = [int(name[len('dense'):-1]) for name in (*names, nn.Dense(1).prefix)]
    assert number == [number[0], number[0] + 1, number[0] + 2]


def test_what_a_block_remembers_of_the_call_is_undone():
    def remember(F, x):
        net.seen = x
        return x

    net = Net(remember)
    net.seen = None
    summary(net, (3,))
    assert net.seen is None


def test_threads_may_share_a_net():
    net = nets.nin()
    prefixes = [layer.prefix for layer in net]
    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        results = list(pool.map(lambda _: summary(net, (1, 96, 96)), range(24)))
    assert {result.total_params for result in results} == {1992166}
    assert [layer.prefix for layer in net] == prefixes
