"""What blocks keep beside their parameters: resumed, saved and restored as these are."""
import collections
import copy

import numpy as np
import pytest
from test_histories import ONE, TWO, assert_same, digits, small_net, train

import d2l_ext
from d2l_ext.devices import mx
from d2l_ext.graphs.state import arrays_of
from d2l_ext.scale.several_devices import average_statistics
from d2l_ext.scale.team import Team
from d2l_ext.training import Run

nd, gluon, nn, init, autograd = mx.nd, mx.gluon, mx.gluon.nn, mx.init, mx.autograd
Pair = collections.namedtuple('Pair', 'mean calls')


def moved(mean, X):
    return 0.8 * mean + 0.2 * X.mean(axis=0, keepdims=True)


class Layer(nn.Block):
    """Keeps a running mean as the batch normalization from scratch of a book does."""

    mean = 0.

    def __init__(self):
        super().__init__()
        self.make()

    def make(self):
        self.mean = nd.zeros((1, 64))

    def step(self, X):
        self.mean = moved(self.mean, X)

    def read(self):
        return self.mean

    def forward(self, X):
        if autograd.is_training():
            self.step(X)
        return X + 2 * nd.array(self.read())


class OwnNormalization(Layer):
    def make(self):
        self.gamma = self.params.get('gamma', shape=(1, 64), init=init.One())
        self.moving_mean, self.moving_var = nd.zeros((1, 64)), nd.zeros((1, 64))

    def forward(self, X):
        if self.moving_mean.context != X.context:
            self.moving_mean = self.moving_mean.copyto(X.context)
            self.moving_var = self.moving_var.copyto(X.context)
        mean, var = self.moving_mean, self.moving_var
        if autograd.is_training():
            mean = X.mean(axis=0, keepdims=True)
            var = ((X - mean)**2).mean(axis=0, keepdims=True)
            self.moving_mean = 0.9 * self.moving_mean + 0.1 * mean
            self.moving_var = 0.9 * self.moving_var + 0.1 * var
        return self.gamma.data(X.context) * (X - mean) / (var + 1e-5).sqrt()


class InPlace(Layer):
    def step(self, X):
        self.mean[:] = moved(self.mean, X)


class OfNumPy(Layer):
    def make(self):
        self.mean = np.zeros((1, 64))  # float64

    def step(self, X):
        self.mean = moved(self.mean, X.asnumpy())


class OfNumPyInPlace(OfNumPy):
    def step(self, X):
        self.mean[...] = moved(self.mean, X.asnumpy())


class InAList(Layer):
    def make(self):
        self.both = [{'mean': nd.zeros((1, 64))}, nd.ones((2,), dtype='int32')]
        self.tuple = ('a', np.array('text'), np.zeros(()))

    def step(self, X):
        self.both[0]['mean'] = moved(self.read(), X)
        self.both[1] += 1
        self.tuple = (*self.tuple[:2], self.tuple[2] + 1)

    def read(self):
        return self.both[0]['mean'] * self.both[1].mean().astype('float32') + self.tuple[2].item()


class InATuple(Layer):
    def make(self):
        self.pair = Pair(nd.zeros((1, 64)), 0)

    def step(self, X):
        self.pair = Pair(moved(self.pair.mean, X), self.pair.calls + 1)

    def read(self):
        return self.pair.mean * (1 + 0.1 * self.pair.calls)


class Shared(Layer):
    def make(self):
        self.mean = self.other = nd.zeros((1, 64))

    def step(self, X):
        self.mean[:] = moved(self.mean, X)

    def read(self):
        return self.other


class MadeLater(Layer):
    def make(self):
        self.mean = None

    def step(self, X):
        self.mean = moved(nd.zeros(1) if self.mean is None else self.mean, X)


class Counting(Layer):
    def make(self):
        self.started = False

    def step(self, X):
        if self.started:
            self.mean = 0.5 * self.mean + X.mean().asscalar()  # first a number of the class
        self.started = True

    def read(self):
        return [self.mean]


class NumPysNumber(Layer):
    def make(self):
        pass

    def step(self, X):
        self.mean = moved(self.mean, X).asnumpy().mean()

    def read(self):
        return [float(self.mean)]


class ParametersInAList(Layer):
    def make(self):
        self.weights = [self.params.get(f'weight{i}', shape=(1, 64)) for i in range(2)]

    def forward(self, X):
        return X + self.weights[0].data() * self.weights[1].data()


class Hybrid(nn.HybridBlock):
    def __init__(self):
        super().__init__()
        self.mean = nd.zeros((1, 64))

    def hybrid_forward(self, F, X):
        if F is nd and autograd.is_training():
            self.mean = moved(self.mean, X)
        return F.broadcast_sub(X, self.mean)


LAYERS = [OwnNormalization, InPlace, OfNumPy, OfNumPyInPlace, InAList, Shared, MadeLater,
          NumPysNumber, ParametersInAList, Hybrid]


def make_net(layer):
    net = nn.Sequential()
    net.add(nn.Flatten(), layer(), nn.Dense(32, activation='relu'), nn.Dense(10))
    mx.random.seed(1)
    net.initialize(init.Xavier())
    return net


def predicted(net):
    return net(nd.array(np.random.RandomState(0).rand(5, 64))).asnumpy()


@pytest.mark.parametrize('layer', [*LAYERS, Counting, InATuple])
def test_a_resumed_run_ends_as_one_that_was_never_interrupted(layer, tmp_path):
    settings = {'checkpoint': tmp_path / 'run.npz', 'resume': True}
    expected, resumed = make_net(layer), make_net(layer)
    history = train(expected, *digits(), ONE, 2, 'float32')
    assert train(make_net(layer), *digits(), ONE, 1, 'float32', **settings) == history[:1]
    assert train(resumed, *digits(), ONE, 2, 'float32', **settings) == history
    assert_same(resumed, expected)
    np.testing.assert_array_equal(predicted(resumed), predicted(expected))


@pytest.mark.parametrize('layer', LAYERS)
def test_saved_and_loaded(layer, tmp_path):
    net, other = make_net(layer), make_net(layer)
    train(net, *digits(), ONE, 1, 'float32')
    d2l_ext.save_params(net, tmp_path / 'net.npz')
    d2l_ext.load_params(other, tmp_path / 'net.npz')
    np.testing.assert_array_equal(predicted(other), predicted(net))
    train(net, *digits(80), ONE, 1, 'float32')
    train(other, *digits(80), ONE, 1, 'float32')
    np.testing.assert_array_equal(predicted(other), predicted(net))


@pytest.mark.parametrize('layer', [*LAYERS, Counting, InATuple])
def test_a_range_test_puts_it_back(layer):
    net = make_net(layer)
    train(net, *digits(80), ONE, 1, 'float32')
    before = predicted(net)
    d2l_ext.range_test(net, digits()[0], gluon.Trainer(net.collect_params(), 'sgd'), *ONE,
                       num_steps=10)
    np.testing.assert_array_equal(predicted(net), before)


def test_names_and_types_in_the_file(tmp_path):
    net = make_net(InAList)
    net(nd.zeros((1, 64)))
    d2l_ext.save_params(net, tmp_path / 'net.npz', dtype='float16')
    with np.load(tmp_path / 'net.npz') as file:
        assert {name: file[name].dtype.name for name in file.files} == {
            **{f'{i}.{name}': 'float16' for i in (2, 3) for name in ('weight', 'bias')},
            '1.both.0.mean': 'float32', '1.both.1': 'int32', '1.tuple.2': 'float64'}


@pytest.mark.parametrize('saved, loaded', [
    (InPlace, lambda: nn.HybridLambda('identity')), (lambda: nn.HybridLambda('identity'), InPlace),
    (InPlace, InATuple)])
def test_arrays_without_a_place(saved, loaded, tmp_path):
    net, other = make_net(saved), make_net(loaded)
    history = train(net, *digits(80), ONE, 1, 'float32', checkpoint=tmp_path / 'run.npz')
    assert len(history) == 1
    d2l_ext.save_params(net, tmp_path / 'net.npz')
    train(other, *digits(80), ONE, 0, 'float32')
    before = predicted(other)
    with pytest.raises(ValueError, match='1.(mean|pair)'):
        d2l_ext.load_params(other, tmp_path / 'net.npz')
    with pytest.raises(ValueError, match='attributes of blocks, such as 1.(mean|pair)'):
        train(other, *digits(80), ONE, 2, 'float32', checkpoint=tmp_path / 'run.npz', resume=True)
    np.testing.assert_array_equal(predicted(other), before)


def test_read_only_arrays_and_settings_stay():
    net = make_net(OfNumPy)
    net[1].fixed, net[1].rate = np.arange(3.), 0.1
    net[1].fixed.flags.writeable = False
    d2l_ext.range_test(net, digits()[0], gluon.Trainer(net.collect_params(), 'sgd'), *ONE,
                       num_steps=10)
    np.testing.assert_array_equal(net[1].fixed, np.arange(3.))


def test_numbers_that_training_does_not_change_are_those_of_the_new_net(tmp_path):
    settings = {'checkpoint': tmp_path / 'run.npz', 'resume': True}
    nets = [make_net(Counting) for _ in range(2)]
    for net, rate, num_epochs in zip(nets, (0.1, 0.2), (1, 2)):
        net[1].rate = rate
        train(net, *digits(80), ONE, num_epochs, 'float32', **settings)
    assert nets[1][1].rate == 0.2


# --- copies ---

def called(net):
    net(next(iter(digits()[0]))[0])
    return net


@pytest.mark.parametrize('kind', [nn.Sequential, nn.HybridSequential])
def test_copies_before_and_after_training(kind):
    net = kind()
    net.add(nn.Conv2D(6, 3, activation='relu'), nn.BatchNorm(), nn.Flatten(), nn.Dense(10))
    mx.random.seed(1)
    net.initialize(init.Xavier())
    first = copy.deepcopy(net)  # sizes are still deferred
    batches = digits()
    rows = train(net, *batches, ONE, 1, 'auto')
    second, third = copy.deepcopy(net), copy.deepcopy(net)
    assert d2l_ext.evaluate_accuracy(second, batches[1], ONE) == rows[0]['test_acc']
    more = train(net, *batches, ONE, 1, 'auto')
    assert d2l_ext.evaluate_accuracy(second, batches[1], ONE) == rows[0]['test_acc']
    assert train(third, *batches, ONE, 1, 'auto') == more
    assert_same(third, net)
    assert train(first, *batches, ONE, 1, 'auto') == rows


def test_a_copy_learns_in_a_range_test():
    net = make_net(Hybrid)
    called(net)
    tests = [d2l_ext.range_test(net, digits()[0], gluon.Trainer(net.collect_params(), 'sgd'), *ONE,
                                num_steps=10) for net in (net, copy.deepcopy(net))]
    assert tests[0].losses == tests[1].losses


@pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')
def test_a_net_on_two_devices_is_copied_by_a_file(tmp_path):
    nets = [small_net(TWO) for _ in range(2)]
    train(nets[0], *digits(), TWO, 1, 'float32')
    with pytest.raises(ValueError, match='ctypes objects containing pointers cannot be pickled'):
        copy.deepcopy(nets[0])  # as README says
    d2l_ext.save_params(nets[0], tmp_path / 'net.npz')
    d2l_ext.load_params(nets[1], tmp_path / 'net.npz')
    assert_same(*nets)


@pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')
def test_a_net_that_is_hybridized_can_be_copied_once_it_is_not():
    net = nn.HybridSequential()
    net.add(nn.Dense(10))
    net.initialize()
    net.hybridize()
    called(net)
    with pytest.raises(ValueError, match='ctypes objects containing pointers cannot be pickled'):
        copy.deepcopy(net)  # as README says
    net.hybridize(False)
    other = copy.deepcopy(net)
    other.hybridize()
    X = next(iter(digits()[0]))[0]
    np.testing.assert_array_equal(other(X).asnumpy(), net(X).asnumpy())


class TwoWorkers(Team):
    number = 2

    def sum(self, values):
        return 2 * np.asarray(values, 'float64') + 2  # those of the other are larger by 2


@pytest.mark.parametrize('layer', [InPlace, OfNumPy, InATuple])
def test_workers_get_the_mean_of_their_arrays_after_each_epoch(layer):
    net = make_net(layer)
    called(net)
    before = arrays_of(net)
    run = Run(net, gluon.Trainer(net.collect_params(), 'sgd'), *ONE, 'float32')
    run.team = TwoWorkers()
    average_statistics(run)
    changed = {name: array for name, array in arrays_of(net).items() if array is not None}
    assert len(changed) == 1
    for name, array in changed.items():
        np.testing.assert_allclose(array, before[name] + 1)
