"""Nets, arrays and batches under ``npx.set_np()``: what trains is what trains without it."""
import inspect

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


@mx.init.register
class Fixed(mx.init.Initializer):
    """The same numbers in both modes: MXNet's generators for them differ."""

    def _init_weight(self, _, array):
        array[:] = np.random.RandomState(array.size).normal(scale=0.3, size=array.shape)


CASES = {'never set': (False, False), 'set before': (True, True), 'set after': (False, True),
         'set and reset': (True, False)}  # the modes in which a net is made, and used


@pytest.fixture
def switch():
    def to(on):
        npx.set_np() if on else npx.reset_np()
    yield to
    npx.reset_np()


def fixed_net(devices=ONE, settled=True, kind=nn.HybridSequential):
    net = kind()
    net.add(nn.Conv2D(6, 3, activation='relu'), nn.BatchNorm(), nn.Conv2D(16, 3, padding=1),
            nn.GlobalAvgPool2D(), nn.Flatten())
    net.initialize(Fixed(), ctx=devices)
    for device in devices if settled else ():
        net(images(ctx=device)).wait_to_read()
    return net


def images(number=2, channels=1, size=8, ctx=None):
    X = np.random.RandomState(0).rand(number, channels, size, size)
    return (mx.np if npx.is_np_array() else mx.nd).array(X, dtype='float32', ctx=ctx)


def half_as_numpy():
    """The first batches as NumPy's arrays."""
    return [as_numpy(list(batches)) for batches in digits(80)]


def trained(net, devices, tmp_path, kvstore='device', optimizer=mx.optimizer.SGD):
    """Train, resume in a net made in the other mode, and return losses and parameters."""
    def run(net, num_epochs):
        trainer = gluon.Trainer(net.collect_params(), optimizer(learning_rate=0.05),
                                kvstore=kvstore() if callable(kvstore) else kvstore)
        np.random.seed(0)
        return d2l_ext.train_ch5(net, *half_as_numpy(), 40, trainer, devices, num_epochs, seed=3,
                                 precision='float32', checkpoint=tmp_path / 'run', resume=True)

    run(net, 1)
    on = npx.is_np_array()
    npx.reset_np() if on else npx.set_np()
    other = fixed_net(devices)
    npx.set_np() if on else npx.reset_np()
    return [row['loss'] for row in run(other, 2)], *values(other)


def compiled_trained(net, devices, tmp_path):
    """Train by a plain loop, and see that what comes out is of the kind of what goes in."""
    forward, params = d2l_ext.compiled(net, image_shape=(1, 8, 8)), net.collect_params()
    with autograd.record():
        outputs = forward(images())
        assert type(outputs) is type(images())
        (outputs**2).sum().backward()
    return outputs.asnumpy(), *(param.grad().asnumpy() for _, param in sorted(params.items())
                                if param.grad_req != 'null')


def range_tested(net, devices, tmp_path):
    np.random.seed(0)
    trainer = gluon.Trainer(net.collect_params(), 'sgd')
    return d2l_ext.range_test(net, half_as_numpy()[0], trainer, *devices, num_steps=10,
                              precision='float32').losses


def filed(net, devices, tmp_path):
    settle(net, devices)
    d2l_ext.save_params(net, tmp_path / 'net.npz')
    other = fixed_net(settled=False)
    d2l_ext.load_params(other, tmp_path / 'net.npz')
    return values(other)


def settle(net, devices):
    d2l_ext.predict(net, digits()[1], devices, 'float32')


def exported(net, devices, tmp_path):
    onnxruntime = pytest.importorskip('onnxruntime', reason='needs .requirements/onnx.txt')
    pytest.importorskip('onnx', reason='needs .requirements/onnx.txt')
    d2l_ext.export_onnx(net, tmp_path / 'net.onnx', (1, 8, 8))
    session = onnxruntime.InferenceSession(str(tmp_path / 'net.onnx'))
    return session.run(None, {'data': images().asnumpy()})


def summarized(net, devices, tmp_path):
    found = [d2l_ext.summary(each, (1, 8, 8)) for each in (net, d2l_ext.Mirrored(net))]
    return [[each.total_params, each.total_mult_adds, each.total_flops] for each in found]


def predicted(wrap):
    def use(net, devices, tmp_path):
        taken, true = d2l_ext.predict(wrap(net), digits()[1], devices, 'float32')
        accuracy = d2l_ext.evaluate_accuracy(wrap(net), digits()[1], devices, 'float32')
        assert accuracy == (taken == true).mean()
        return [taken, d2l_ext.predict(wrap(net), half_as_numpy()[1], devices, 'float32')[0]]
    return use


def identity(net, devices, tmp_path):
    settle(net, devices)
    d2l_ext.start_as_identity(net)
    return values(net)


def scaled(net, devices, tmp_path):
    settle(net, devices)
    d2l_ext.scale_layers(net, images())
    return values(net)


def made_anew(net, devices, tmp_path):
    trainer = d2l_ext.make_trainer(net, {'lr': 0.1}, 10, *devices)
    return [len(trainer._params)]


USES = {
    'predict evaluate_accuracy': predicted(lambda net: net),
    'Mirrored Shifted': predicted(lambda net: d2l_ext.Mirrored(d2l_ext.Shifted(net))),
    'compiled': compiled_trained, 'summary': summarized, 'range_test': range_tested,
    'save_params load_params': filed, 'export_onnx': exported, 'train_ch5': trained,
    'train_ch5, no kvstore': lambda *case: trained(*case, kvstore=None),
    'train_ch5, kvstore': lambda *case: trained(*case, kvstore=lambda: mx.kv.create('local')),
    'train_ch5, Muon': lambda *case: trained(*case, optimizer=d2l_ext.Muon),
    'start_as_identity': identity, 'scale_layers': scaled, 'make_trainer': made_anew,
    'receptive_field': lambda net, *_: d2l_ext.receptive_field(net),
}
SEVERAL = ('predict evaluate_accuracy', 'Mirrored Shifted', 'train_ch5', 'train_ch5, kvstore',
           'save_params load_params')
_expected = {}  # of nets that have never seen NumPy semantics


@pytest.mark.parametrize('use, devices', [(use, ONE) for use in USES] + [
    (use, TWO) for use in SEVERAL], ids=lambda value: value if isinstance(value, str) else len(
        value))
@pytest.mark.parametrize('settled', [True, False], ids=['settled', 'deferred'])
@pytest.mark.parametrize('case', CASES)
def test_nets_of_either_mode_in_either_mode(case, settled, use, devices, switch, tmp_path):
    made, used = CASES[case]
    switch(made)
    net = fixed_net(devices, settled)
    kind = {type(param.data()) for param in net.collect_params().values() if settled}
    switch(used)
    found = USES[use](net, devices, tmp_path)
    assert npx.is_np_array() == npx.is_np_shape() == used
    if settled and use != 'make_trainer':  # which initializes anew
        assert {type(param.data()) for param in net.collect_params().values()} == kind
    expected = _expected.setdefault((settled, use, len(devices)), found)
    for one, two in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-3, atol=1e-5)


def test_all_that_take_a_net_are_tried():
    takers = {name for name in d2l_ext.__all__ if callable(getattr(d2l_ext, name)) and 'net' in
              inspect.signature(getattr(d2l_ext, name)).parameters}
    tried = {name for use in USES for name in use.replace(',', '').split()}
    assert takers <= tried | {'at_corners', 'load_weights'}  # tried below, and only a name


NETS = [
    lambda: d2l_ext.Mirrored(d2l_ext.Shifted(fixed_net())), lambda: d2l_ext.Inception(4, 4, 4, 4),
    lambda: d2l_ext.Residual(d2l_ext.mlpconv((4, 4), 3, 1, 1), 1),
    lambda: d2l_ext.inception_v3_stage3(8), lambda: d2l_ext.inception_v3_stage4(16),
    lambda: d2l_ext.inception_v3_stage5(), lambda: d2l_ext.nin_of([((4, 4), 3, 1, 1, 2)]),
    lambda: d2l_ext.nin_cifar10(batch_norm=True)]


@pytest.mark.parametrize('make', NETS)
def test_the_packages_nets_are_called_with_either_kind_of_arrays(make, switch):
    found = []
    for on in (False, True):
        switch(on)
        net = make()
        net.initialize(Fixed(), force_reinit=True)
        X = images(channels=1, size=16)
        found.append(net(X))
        assert type(found[-1]) is type(X)
    np.testing.assert_allclose(*(Y.asnumpy() for Y in found), rtol=1e-4, atol=1e-5)


def test_arrays_of_either_kind(switch):
    found = []
    for on in (False, True):
        switch(on)
        module = mx.np if on else mx.nd
        filters = d2l_ext.whitening_filters(images(20))
        assert type(filters) is type(images())
        matrix = module.array([[3, 1], [0, 2]], dtype='int32')
        net = nn.HybridSequential()
        net.add(d2l_ext.mlpconv((8, 8), 3, 1, 1), nn.MaxPool2D(3, 2))
        net.initialize(Fixed())
        found.append((filters.asnumpy().tolist(), d2l_ext.confusion_report(matrix, ['a', 'b']),
                      d2l_ext.get_fashion_mnist_labels(module.array([1, 2], dtype='int32')),
                      d2l_ext.at_corners(net)(images()).asnumpy().round(4).tolist()))
    assert found[0] == found[1]


def test_a_net_of_both_modes_is_refused(switch):
    net = nn.HybridSequential()
    net.add(nn.Conv2D(4, 3))
    switch(True)
    net.add(nn.Conv2D(4, 3))
    net.initialize()
    with pytest.raises(ValueError, match=r'make all of them after npx.set_np\(\)'):
        d2l_ext.predict(net, digits()[1], ONE)
