"""Nets, arrays and batches under ``npx.set_np()``: what trains is what trains without it."""
import numpy as np
import pytest
from test_histories import BFLOAT16, ONE, TWO, digits, make_trainer

import d2l_ext
from d2l_ext.devices import has_bfloat16, mx
from d2l_ext.graphs import choose
from d2l_ext.graphs.numpy_mode import computed_in_nd

gluon, nn, init, npx, autograd = mx.gluon, mx.gluon.nn, mx.init, mx.npx, mx.autograd


@pytest.fixture
def set_np():
    npx.set_np()
    yield
    npx.reset_np()


class Inception(nn.Block):
    """Branches as the current book writes them."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Conv2D(4, 1, activation='relu'), nn.Conv2D(4, 3, padding=1)

    def forward(self, X):
        assert isinstance(X, mx.np.ndarray) and npx.is_np_array()
        return mx.np.concatenate((self.one(X), npx.relu(self.two(X))), axis=1)


class Residual(nn.HybridBlock):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2D(6, 3, padding=1)
        self.scale = self.params.get('scale', shape=(1,), init=init.One())

    def hybrid_forward(self, F, X, scale):
        return F.npx.relu(self.conv(X) * scale + X - F.np.mean(X, axis=(2, 3), keepdims=True))


class OwnMean(nn.Block):
    def __init__(self):
        super().__init__()
        self.mean = mx.np.zeros((1, 6, 1, 1))

    def forward(self, X):
        if autograd.is_training():
            self.mean = 0.9 * self.mean + 0.1 * X.mean(axis=(0, 2, 3), keepdims=True)
        return X - self.mean


def plain():
    return nn.Dropout(0.)


def make_net(layer=plain, devices=ONE, settled=False, kind=nn.Sequential):
    net = kind()
    net.add(nn.Conv2D(6, 3, activation='relu'), nn.BatchNorm(), layer(),
            nn.Conv2D(10, 3), nn.GlobalAvgPool2D(), nn.Flatten())
    mx.random.seed(1)
    net.initialize(init.Xavier(), ctx=devices)
    if settled:
        for device in devices:
            net((mx.np if npx.is_np_array() else mx.nd).zeros((1, 1, 8, 8), ctx=device))
    return net


def values(net):
    return [data.asnumpy() for param in net.collect_params().values()
            for data in param.list_data()]


def train(net, batches=None, devices=ONE, num_epochs=2, precision='float32', **arguments):
    train_iter, test_iter = batches or digits()
    return d2l_ext.train_ch5(net, train_iter, test_iter, 40, make_trainer(net), devices,
                             num_epochs, precision=precision, seed=3, **arguments)


def without_seconds(history):
    return [{key: row[key] for key in row if key != 'seconds'} for row in history]


def same_without_numpy(devices, precision):
    npx.reset_np()
    net = make_net(devices=devices, settled=True)
    start = values(net)
    history = train(net, devices=devices, precision=precision)
    npx.set_np()
    return start, history, values(net)


@pytest.mark.parametrize('precision', ['float32', BFLOAT16])
@pytest.mark.parametrize('devices', [ONE, TWO], ids=['one', 'two'])
def test_layers_of_gluon_train_as_without_it(devices, precision, set_np):
    start, expected, end = same_without_numpy(devices, precision)
    net = make_net(devices=devices, settled=True)
    for param, value in zip(net.collect_params().values(), start[::len(devices)]):
        param.set_data(mx.np.array(value))
    history = train(net, devices=devices, precision=precision)
    assert without_seconds(history) == without_seconds(expected)
    for one, two in zip(values(net), end):
        np.testing.assert_array_equal(one, two)
    assert npx.is_np_array() and npx.is_np_shape()
    X = mx.np.ones((2, 1, 8, 8))
    assert isinstance(net(X), mx.np.ndarray)  # still a net of the reader's kind
    assert all(isinstance(param.data(), mx.np.ndarray) and isinstance(param.grad(), mx.np.ndarray)
               for param in net.collect_params().values() if param.grad_req != 'null')
    predicted, true = d2l_ext.predict(net, digits()[1], devices, precision)
    assert type(predicted) is np.ndarray
    assert (predicted == true).mean() == history[-1]['test_acc']
    assert d2l_ext.evaluate_accuracy(net, digits()[1], devices, precision) == history[-1][
        'test_acc']


@pytest.mark.parametrize('layer', [Inception, Residual, OwnMean])
def test_blocks_of_the_readers_run_as_they_were_written(layer, set_np, tmp_path):
    """As a plain loop would, deferred sizes included; and a resumed run ends there, too."""
    batches = digits(120)
    net, plain_net, resumed = (make_net(layer, settled=True) for _ in range(3))
    for one, two, three in zip(*(n.collect_params().values() for n in (net, plain_net, resumed))):
        for other in (two, three):
            other.set_data(one.data())
    train_iter = [(X.as_np_ndarray(), y.as_np_ndarray()) for X, y in batches[0]]
    trainer, loss = make_trainer(plain_net), gluon.loss.SoftmaxCrossEntropyLoss()
    for X, y in train_iter:
        with autograd.record():
            l = loss(plain_net(X), y)
        l.backward()
        trainer.step(len(X))
    settings = {'checkpoint': tmp_path / 'run.npz', 'resume': True}
    train(net, (train_iter, batches[1]), num_epochs=1, **settings)
    for one, two in zip(values(net), values(plain_net)):
        np.testing.assert_allclose(one, two, rtol=1e-3, atol=1e-6)
    history = train(resumed, (train_iter, batches[1]), num_epochs=2, **settings)
    train(net, (train_iter, batches[1]), num_epochs=2, **settings)
    assert len(history) == 2
    for one, two in zip(values(net), values(resumed)):
        np.testing.assert_array_equal(one, two)
    d2l_ext.save_params(net, tmp_path / 'net.npz')
    other = make_net(layer)
    d2l_ext.load_params(other, tmp_path / 'net.npz')
    X = mx.np.array(np.random.RandomState(0).rand(3, 1, 8, 8), dtype='float32')
    np.testing.assert_array_equal(other(X).asnumpy(), net(X).asnumpy())


def as_numpy(batches):
    return [(X.asnumpy(), y.asnumpy()) for X, y in batches]


def as_mx_np(batches):
    return [(mx.np.array(X.asnumpy()), mx.np.array(y.asnumpy())) for X, y in batches]


class Made:
    """Made anew in each pass, by functions that need the mode."""

    def __init__(self, batches):
        self.batches = as_numpy(batches)

    def __iter__(self):
        for X, y in self.batches:
            assert npx.is_np_array() and npx.is_np_shape()
            yield mx.np.concatenate([mx.np.array(X)]), mx.np.array(y)


def loader(batches):
    X, y = (np.concatenate(arrays) for arrays in zip(*as_numpy(batches)))
    return gluon.data.DataLoader(gluon.data.ArrayDataset(mx.np.array(X), mx.np.array(y)), 40)


@pytest.mark.parametrize('kind', [list, as_numpy, as_mx_np, Made, loader])
def test_batches_of_any_arrays(kind, set_np):
    expected, net, batches = make_net(), make_net(), [list(iterable) for iterable in digits()]
    rows = without_seconds(train(expected, batches))
    assert without_seconds(train(net, [kind(iterable) for iterable in batches])) == rows
    for one, two in zip(values(net), values(expected)):
        np.testing.assert_array_equal(one, two)


def test_batches_are_of_the_readers_kind(set_np):
    for X, y in digits(80)[0]:
        assert isinstance(X, mx.np.ndarray) and isinstance(y, mx.np.ndarray)
        assert isinstance(X + y.reshape(-1, 1, 1, 1).astype('float32'), mx.np.ndarray)
    npx.reset_np()
    assert not any(isinstance(a, mx.np.ndarray) for batch in digits(80)[0] for a in batch)


@pytest.mark.parametrize('settled', [True, False])
@pytest.mark.parametrize('kind', [nn.Sequential, nn.HybridSequential])
def test_range_test_summary_and_files(kind, settled, set_np, tmp_path):
    net = make_net(settled=settled, kind=kind)
    if kind is nn.HybridSequential:
        net.hybridize()
    d2l_ext.range_test(net, digits()[0], gluon.Trainer(net.collect_params(), 'sgd'), *ONE,
                       num_steps=10)
    assert d2l_ext.summary(net, (1, 8, 8)).total_params == 60 + 12 + 550
    history = train(net)
    d2l_ext.save_params(net, tmp_path / 'net.npz')
    other = make_net(kind=kind)
    d2l_ext.load_params(other, tmp_path / 'net.npz')
    assert other[0].weight.shape == (6, 1, 3, 3)
    assert d2l_ext.evaluate_accuracy(other, digits()[1], ONE, 'float32') == history[-1]['test_acc']
    X = mx.np.ones((2, 1, 8, 8))
    np.testing.assert_array_equal(other(X).asnumpy(), other(X).asnumpy())
    # A file made in one mode is good in the other.
    npx.reset_np()
    other = make_net()
    d2l_ext.load_params(other, tmp_path / 'net.npz')
    assert d2l_ext.evaluate_accuracy(other, digits()[1], ONE, 'float32') == history[-1]['test_acc']


def test_a_report_may_use_the_net(set_np):
    net, seen = make_net(), []

    def report(row):
        output = net(mx.np.ones((1, 1, 8, 8)))
        seen.append((type(output), row['test_acc'],
                     d2l_ext.evaluate_accuracy(net, digits()[1], ONE, 'float32')))

    train(net, report=report)
    assert len(seen) == 2 and all(kind is mx.np.ndarray and a == b for kind, a, b in seen)


@pytest.mark.parametrize('error', [KeyboardInterrupt, ValueError])
def test_an_error_leaves_the_mode_and_the_net(error, set_np):
    def report(row):
        raise error

    net = make_net()
    with pytest.raises(error):
        train(net, report=report)
    assert npx.is_np_array() and npx.is_np_shape()
    assert isinstance(net(mx.np.ones((1, 1, 8, 8))), mx.np.ndarray)
    with pytest.raises(ValueError, match='report must be'):
        train(net, report=1)


@pytest.mark.skipif(not has_bfloat16(), reason='no bfloat16 instructions here')
def test_gluons_layers_are_as_fast_as_without_it(set_np):
    choice = computed_in_nd(choose)(make_net(), ONE[0], 'auto', [digits()[0]])
    assert (choice.precision, choice.reason) == ('bfloat16', '')
    net = make_net(Residual, kind=nn.HybridSequential)
    choice = computed_in_nd(choose)(net, ONE[0], 'auto', [digits()[0]])
    assert (choice.precision, choice.reason) == ('bfloat16', '')
    reason = computed_in_nd(choose)(make_net(Inception), ONE[0], 'auto', [digits()[0]]).reason
    assert 'layer by layer' in reason


class Arithmetic(nn.HybridBlock):
    def hybrid_forward(self, F, X):
        Y = F.npx.sigmoid(X) * X + X / 2 - (1 - X) + 1 / (X * X + 3) + X**2 - (-X)
        Y = F.np.concatenate([Y, F.np.tanh(X)], axis=1) / (1 + F.np.exp(F.np.abs(F.np.sin(X))
                                                           ).mean(axis=1, keepdims=True))
        Y = Y.reshape(-1, 2, 6, 6, 6) + F.np.sum(Y, axis=(2, 3)).reshape(-1, 2, 6, 1, 1) / 36
        return F.np.maximum(Y, 0.1).max(axis=1) + F.np.where(Y > 0, Y, F.np.cos(Y)).mean(axis=1)


@pytest.mark.parametrize('precision', ['float32', 'auto'])
@pytest.mark.parametrize('hybridize', [True, False])
def test_a_graph_stands_for_numpys_operators(hybridize, precision, set_np):
    nets = [make_net(Arithmetic, settled=True, kind=nn.HybridSequential) for _ in range(2)]
    for one, two in zip(*(net.collect_params().values() for net in nets)):
        two.set_data(one.data())
    if hybridize:
        nets[1].hybridize()
    rows = train(nets[0], num_epochs=1, precision='float32')
    computed = computed_in_nd(choose)(nets[1], ONE[0], precision, [digits()[0]])
    assert 'layer by layer' not in computed.reason
    found = train(nets[1], num_epochs=1, precision=precision)
    assert found[0]['loss'] == pytest.approx(rows[0]['loss'], rel=0.05)
    predicted, _ = d2l_ext.predict(nets[1], digits()[1], ONE, 'float32')
    expected = [net for X, _ in digits()[1] for net in nets[1](X).argmax(axis=1).asnumpy()]
    assert np.mean(predicted == np.array(expected)) > 0.98
