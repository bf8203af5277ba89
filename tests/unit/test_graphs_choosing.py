"""How nets are computed: those of others by their graph only if it agrees, in what works."""
import random

import numpy as np
import pytest
from mxnet.gluon.model_zoo import vision
from test_training import values

import d2l_ext
from d2l_ext import train_ch5
from d2l_ext.batches import seed_epoch
from d2l_ext.checks.nets import check_input
from d2l_ext.devices import has_bfloat16, mx
from d2l_ext.graphs import choose, choosing, compiled
from d2l_ext.nets import nin

nd, nn, gluon, autograd = mx.nd, mx.gluon.nn, mx.gluon, mx.autograd

CPU = mx.cpu()
needs_bfloat16 = pytest.mark.skipif(not has_bfloat16(), reason='no bfloat16 instructions here')


class AcrossImages(gluon.HybridBlock):
    def hybrid_forward(self, F, X):
        return F.broadcast_sub(X, X[0].mean().reshape((1, 1, 1, 1)))  # of a symbol, another [0]


class Gate(gluon.HybridBlock):
    def hybrid_forward(self, F, X):
        return X * X.mean(axis=(2, 3), keepdims=True)  # symbols must have the same shape


class OwnDropout(gluon.HybridBlock):
    def hybrid_forward(self, F, X):
        return F.Dropout(X, p=0.5, mode='always') if autograd.is_training() else X


class OnlyInPrediction(gluon.HybridBlock):
    def hybrid_forward(self, F, X):
        return X if autograd.is_training() or F is mx.sym else X * 0.5


class OtherGradient(gluon.HybridBlock):
    def hybrid_forward(self, F, X):
        return X if F is mx.sym else F.BlockGrad(X) + 0.5 * X - F.BlockGrad(0.5 * X)


class Counting(gluon.HybridBlock):
    calls = 0

    def hybrid_forward(self, F, X):
        self.calls += 1
        return X * (1 + 0.1 * self.calls)


class PythonsNumbers(gluon.HybridBlock):
    def hybrid_forward(self, F, X):
        return X * random.random()


class NumPysNumbers(gluon.HybridBlock):
    def hybrid_forward(self, F, X):
        return X * float(np.random.rand())


class Outside(gluon.HybridBlock):
    """Changes from call to call by what no block knows."""

    def __init__(self, calls):
        super().__init__()
        self._calls = lambda: calls.append(0) or len(calls)

    def hybrid_forward(self, F, X):
        return X * (1 + 0.1 * self._calls())


class OwnMean(gluon.HybridBlock):
    """Keeps a running mean as the book's batch normalization does."""

    def __init__(self):
        super().__init__()
        self.mean = nd.zeros((1, 6, 1, 1))

    def hybrid_forward(self, F, X):
        if not autograd.is_training():
            return F.broadcast_sub(X, self.mean)
        mean = X.mean(axis=(0, 2, 3), keepdims=True)
        if F is nd:
            self.mean = 0.9 * self.mean + 0.1 * mean
        return F.broadcast_sub(X, mean)


class Residual(gluon.HybridBlock):
    """An ordinary block of a reader, with all that the check has to leave alone."""

    def __init__(self):
        super().__init__()
        self.body = nn.HybridSequential()
        self.body.add(nn.Conv2D(6, 3, padding=1), nn.BatchNorm(), nn.Dropout(0.5))
        self.weight = self.params.get('weight', shape=(1, 6, 1, 1), init=mx.init.One())

    def hybrid_forward(self, F, X, weight):
        return F.relu(F.broadcast_mul(self.body(X), weight) + X)


DIFFER = [AcrossImages, Gate, OwnDropout, OnlyInPrediction, OtherGradient, Counting,
          PythonsNumbers, NumPysNumbers, lambda: Outside([]), OwnMean,
          lambda: nn.HybridLambda(lambda F, X: X * (2 - autograd.is_training()))]
AGREE = [Residual, lambda: nn.HybridLambda(lambda F, X: F.relu(X)), lambda: nn.Dropout(0.5),
         nn.InstanceNorm]


def make_net(layer, kind=nn.HybridSequential):
    net = kind()
    net.add(nn.Conv2D(6, 3), layer, nn.GlobalAvgPool2D(), nn.Flatten(), nn.Dense(10))
    mx.random.seed(1)
    net.initialize(mx.init.Xavier())
    return net


def make_batches(number=3):
    rng = np.random.RandomState(0)
    return [(nd.array(rng.uniform(size=(8, 1, 9, 9))), nd.array(rng.randint(0, 10, 8)))
            for _ in range(number)]


def make_trainer(net):
    return gluon.Trainer(net.collect_params(), 'sgd', {'learning_rate': 0.1, 'momentum': 0.9})


def plain_gluon(net, batches):
    """Train as a reader would without this package, from the same random state."""
    trainer, loss = make_trainer(net), gluon.loss.SoftmaxCrossEntropyLoss()
    seed_epoch(0, 1)
    for X, y in batches:
        with autograd.record():
            l = loss(net(X), y)
        l.backward()
        trainer.step(len(X))


@pytest.mark.parametrize('kind', [nn.HybridSequential, nn.Sequential])
@pytest.mark.parametrize('make', [*DIFFER, *AGREE])
def test_what_a_net_computes_when_called_is_what_trains(make, kind):
    batches, nets = make_batches(), [make_net(make(), kind) for _ in range(2)]
    for net in nets:
        mx.random.seed(2)
        net(batches[0][0])  # later, graphs would draw parameters and dropout in another order
    if not isinstance(nets[0][1], Outside):  # the trial counts, too
        plain_gluon(nets[0], batches)
        train_ch5(nets[1], batches, batches[:1], 8, make_trainer(nets[1]), CPU, 1, seed=0,
                  precision='float32')
        expected, found = values(nets[0]), values(nets[1])
        for name, value in expected.items():
            np.testing.assert_allclose(found[name], value, rtol=1e-3, atol=1e-5, err_msg=name)
    choice = choose(nets[1], CPU, 'float32', [batches])
    assert (choice.forward is nets[1]) == (make in DIFFER) == ('layer by layer' in choice.reason)


@pytest.mark.parametrize('make', [
    make for make in DIFFER if make not in (Gate, OwnMean)])
def test_a_hybridized_net_is_computed_as_gluon_would(make):
    net = make_net(make())
    net.hybridize()
    assert choose(net, CPU, 'float32', [make_batches()]).forward is not net


def test_the_reason_is_said_once(capsys):
    net, batches = make_net(Counting()), make_batches()
    train_ch5(net, batches, batches, 8, make_trainer(net), CPU, 2)
    assert capsys.readouterr().out.count('layer by layer, which is slower: a call changes') == 1


def test_a_precision_asked_for_by_name_needs_a_graph_that_agrees(monkeypatch):
    monkeypatch.setattr(choosing, 'resolve_precision', lambda precision, ctx: precision)
    with pytest.raises(ValueError, match='bfloat16.* its graph computes something else in train'):
        choose(make_net(OwnDropout()), CPU, 'bfloat16', [make_batches()])


@pytest.mark.parametrize('settled', [True, False])
@pytest.mark.parametrize('make', [Residual, Counting, OwnMean])
def test_a_trial_changes_nothing(make, settled):
    net, batches = make_net(make()), make_batches()
    if settled:
        with autograd.record():
            net(batches[0][0]).sum().backward()
    params = net.collect_params()

    def state():
        return ([array.asnumpy().tolist() for param in params.values() for array in
                 [*(param._data or ()), *(param._grad or ())]],
                [(param.shape, param._deferred_init) for param in params.values()],
                getattr(net[1], 'calls', 0),
                getattr(net[1], 'mean', nd.zeros(1)).asnumpy().tolist(),
                random.getstate(), np.random.get_state()[1].tolist())

    before = state()
    choose(net, CPU, 'auto', [batches])
    assert state() == before


def test_the_sections_net_is_not_even_tried(monkeypatch):
    monkeypatch.setattr(choosing, '_step', lambda *_: pytest.fail('tried'))
    net = nin()
    net.initialize()
    mx.random.seed(0)
    expected = nd.random.uniform(shape=3).asnumpy()
    mx.random.seed(0)
    assert not choose(net, CPU, 'auto', [make_batches()]).reason
    assert (nd.random.uniform(shape=3).asnumpy() == expected).all()  # nothing was drawn


def test_batches_that_can_be_read_once_are_not_read():
    net, batches = make_net(Residual()), iter(make_batches())
    assert 'read only once' in choose(net, CPU, 'float32', [batches]).reason
    assert len(list(batches)) == 3
    net = make_net(nn.InstanceNorm())
    assert choose(net, CPU, 'float32', [iter(make_batches())]).forward is not net


def test_batches_that_count_their_passes_start_at_the_first():
    class Passes:
        number = 0

        def __iter__(self):
            self.number += 1
            return iter(make_batches())

    batches = Passes()
    assert choose(make_net(Residual()), CPU, 'float32', [batches]).reason == ''
    assert batches.number == 0


def test_a_net_that_a_checkpoint_will_initialize():
    net = nn.HybridSequential()
    net.add(nn.Conv2D(6, 3), Residual(), nn.Dense(10))
    assert choose(net, CPU, 'float32', [make_batches()]).forward is not net
    with pytest.raises(RuntimeError):
        net(make_batches()[0][0])  # still not initialized


def test_an_error_of_the_net_is_its_own():
    net = make_net(nn.Conv2D(6, 30))  # larger than the images
    with pytest.raises(ValueError, match='cannot take the shape'):
        train_ch5(net, make_batches(), make_batches(), 8, make_trainer(net), CPU, 1)
    check_input(make_net(Gate()), (8, 1, 9, 9))  # its graph fails, but it does not
    with pytest.raises(ValueError, match='cannot take the shape'):
        check_input(make_net(Gate()), (8, 1, 2, 2))


# --- precision ---

def branches(layer):
    paths = gluon.contrib.nn.HybridConcurrent(axis=1)
    paths.add(nn.Conv2D(6, 1), layer)
    return paths


FLOAT32_ONLY = [lambda: nn.Activation('softsign'), lambda: branches(nn.Dropout(0.5)),
                lambda: branches(nn.HybridLambda(lambda F, X: F.sigmoid(X))),
                lambda: branches(nn.HybridLambda(lambda F, X: F.flip(X, axis=3))),
                lambda: branches(nn.HybridLambda(lambda F, X: F.pad(
                    F.slice(X, (None, None, 1, 1), (None, None, None, None)), mode='constant',
                    pad_width=(0, 0, 0, 0, 1, 0, 1, 0))))]


@needs_bfloat16
@pytest.mark.parametrize('make', FLOAT32_ONLY)
def test_auto_is_the_fastest_that_works(make):
    net, batches = make_net(make()), make_batches()
    forward, precision, reason = choose(net, CPU, 'auto', [batches])
    assert (precision, forward is net) == ('float32', False) and 'in bfloat16' in reason
    train_ch5(net, batches, batches, 8, make_trainer(net), CPU, 1)
    assert 0 <= d2l_ext.evaluate_accuracy(net, batches, CPU) <= 1
    d2l_ext.range_test(net, batches, make_trainer(net), CPU, num_steps=10)
    with pytest.raises(ValueError, match="'bfloat16' does not work with this net.*'auto'"):
        train_ch5(net, batches, batches, 8, make_trainer(net), CPU, 1, precision='bfloat16')


@pytest.mark.parametrize('kernel, stride, pad, dilation, size, works', [
    (3, 1, 1, 1, 2, True), (3, 1, 1, 1, 1, False), (3, 2, 1, 1, 2, False), (3, 2, 1, 1, 3, True),
    (5, 1, 2, 1, 2, False), (5, 1, 2, 1, 3, True), (3, 1, 2, 2, 2, False), (3, 1, 2, 2, 3, True),
    (3, 1, 0, 1, 3, True)])
def test_windows_that_see_nothing_but_padding_need_float32(monkeypatch, kernel, stride, pad,
                                                           dilation, size, works):
    monkeypatch.setattr(choosing, 'resolve_precision', lambda precision, ctx: 'bfloat16')
    net = nn.HybridSequential()
    net.add(nn.Conv2D(8, 1), nn.Conv2D(8, (kernel, 1), (stride, 1), (pad, 0), (dilation, 1)))
    net.initialize()
    batches = [(nd.ones((2, 1, size, 4)), nd.ones(2))]
    assert choose(net, CPU, 'auto', [batches]).precision == ('bfloat16' if works else 'float32')
    if not works:
        with pytest.raises(ValueError, match="'bfloat16' does not work.*nothing but padding"):
            choose(net, CPU, 'bfloat16', [batches])


@needs_bfloat16
def test_auto_is_bfloat16_for_a_readers_own_block():
    forward, precision, reason = choose(make_net(Residual()), CPU, 'auto', [make_batches()])
    assert (precision, reason) == ('bfloat16', '')


def test_layer_by_layer_where_no_compiled_graph_works(monkeypatch):
    def fail(net, forward, *_):
        raise mx.MXNetError('Check failed:\nno such kernel')

    monkeypatch.setattr(choosing, '_step', fail)
    net, batches = make_net(nn.InstanceNorm()), make_batches()
    for precision in ('auto', 'float32'):
        choice = choose(net, CPU, precision, [batches])
        assert choice.forward is net and choice.precision == 'float32'
        assert 'MXNet cannot compute its graph in float32 (no such kernel)' in choice.reason
    train_ch5(net, batches, batches, 8, make_trainer(net), CPU, 1)


@pytest.mark.parametrize('value, possible', [('0', False), ('1', None)])
def test_without_onednn_there_is_no_bfloat16(monkeypatch, value, possible):
    expected = has_bfloat16() if possible is None else possible
    monkeypatch.setenv('MXNET_MKLDNN_ENABLED', value)
    assert has_bfloat16() == expected


def gradients(net, forward, X):
    with autograd.record():
        output = forward(X)
    output.backward(nd.arange(output.size).reshape(output.shape) % 7 - 3)
    return {name: param.grad().asnumpy().copy() for name, param in net.collect_params().items()}


@pytest.mark.parametrize('hybrid', [False, True])
@pytest.mark.parametrize('channels', [1, 6])
def test_gradients_of_prelu_are_right_in_graphs(channels, hybrid):
    net, X = nn.HybridSequential(), make_batches(1)[0][0] - 0.5
    net.add(nn.Conv2D(6, 3), nn.PReLU(in_channels=channels), nn.Conv2D(6, 3), nn.Flatten(),
            nn.Dense(5), nn.PReLU(), nn.Dense(3))
    net.initialize(mx.init.Xavier())
    expected = gradients(net, net, X)
    if hybrid:  # MXNet 1.9.1 then computes other gradients
        net.hybridize()
        assert any(not np.allclose(value, expected[name], rtol=1e-3)
                   for name, value in gradients(net, net, X).items())
    forward = choose(net, CPU, 'float32', [[(X, nd.arange(8))]]).forward
    assert forward is not net
    for name, value in gradients(net, forward, X).items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-3, atol=1e-5, err_msg=name)


@pytest.mark.parametrize('one, two, filters', [(8, 8, 16), (4, 12, 16), (24, 8, 32), (6, 6, 6)])
def test_branches_that_are_no_whole_blocks_of_channels(one, two, filters):
    """Without a mend, MXNet ends the process in the backward pass, in plain Gluon, too."""
    net, plain, X = nn.HybridSequential(), nn.Sequential(), make_batches(1)[0][0]
    paths = gluon.contrib.nn.HybridConcurrent(axis=1)
    paths.add(nn.Conv2D(one, 1), nn.Conv2D(two, 1, activation='relu'))
    net.add(nn.Conv2D(16, 1), paths, nn.Conv2D(filters, 1, activation='tanh'), nn.Dense(3))
    net.initialize(mx.init.Xavier())
    plain.add(net[0], paths, nn.HybridLambda(lambda F, X: 1 * X), *net[2:])
    expected = gradients(plain, plain, X)
    forward = choose(net, CPU, 'float32', [[(X, nd.arange(8))]]).forward
    assert forward is not net
    for name, value in gradients(net, forward, X).items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-3, atol=1e-5, err_msg=name)
    choose(net, CPU, 'auto', [[(X, nd.arange(8))]])


@needs_bfloat16
def test_groups_in_bfloat16_after_the_net_was_called():
    net, X = vision.get_model('mobilenet0.25', classes=10), nd.ones((2, 3, 32, 32))
    net.initialize(mx.init.Xavier())
    forward = compiled(net, 'bfloat16')
    for _ in range(2):
        net(X).wait_to_read()  # leaves weights in a layout of oneDNN's
        with autograd.record():
            output = forward(X)
        output.backward()
        nd.waitall()


# Images of a pixel are enough for all resnets, but in the deepest gradients overflow, by Gluon's
# own eager float32 as well.
SMALLEST = {
    **{f'resnet{depth}_v{version}': 1 for depth in (18, 34, 50) for version in (1, 2)},
    **{f'resnet{depth}_v{version}': 32 for depth in (101, 152) for version in (1, 2)},
    **{f'vgg{depth}{norm}': 32 for depth in (11, 13, 16, 19) for norm in ('', '_bn')},
    'alexnet': 63, 'inceptionv3': 299, 'squeezenet1.0': 213, 'squeezenet1.1': 209,
    **{f'densenet{depth}': 221 for depth in (121, 161, 169, 201)},
    **{f'mobilenet{version}{width}': 1 for version in ('', 'v2_')
       for width in ('1.0', '0.75', '0.5', '0.25')}}
FEW = ('resnet18_v2', 'alexnet', 'mobilenetv2_0.25')


@pytest.mark.parametrize('name', [
    name if name in FEW else pytest.param(name, marks=pytest.mark.heavy) for name in SMALLEST])
def test_the_networks_of_gluons_zoo_train_a_step(name):
    size = SMALLEST[name]
    net = vision.get_model(name, classes=10)
    net.initialize(mx.init.Xavier())
    batches = [(nd.random.uniform(shape=(2, 3, size, size)), nd.arange(2))]
    net(batches[0][0])  # as the book does, to print shapes
    before = values(net)
    history = train_ch5(net, batches, batches, 2, gluon.Trainer(
        net.collect_params(), 'sgd', {'learning_rate': 1e-3}), CPU, 1)
    assert np.isfinite(history[0]['loss'])
    assert any((values(net)[name] != value).any() for name, value in before.items())


@needs_bfloat16
@pytest.mark.heavy
def test_a_densenet_with_dropout_trains_in_what_works():
    net = vision.densenet121(dropout=0.2, classes=10)
    net.initialize(mx.init.Xavier())
    batches = [(nd.random.uniform(shape=(1, 3, 221, 221)), nd.arange(1))]
    assert choose(net, CPU, 'auto', [batches]).precision == 'float32'
