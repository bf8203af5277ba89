"""Settings of parameters and trainers: train_ch5 honours them as plain Gluon does, or refuses."""
import numpy as np
import pytest
from test_histories import BFLOAT16, ONE, TWO, assert_same, digits, plain_loop, small_net, train

import d2l_ext
from d2l_ext.devices import mx

nd, gluon, nn = mx.nd, mx.gluon, mx.gluon.nn
MOMENTUM = {'learning_rate': 0.05, 'momentum': 0.9, 'wd': 0.01}


def trainer_of(net, optimizer='sgd', optimizer_params=MOMENTUM, **settings):
    return gluon.Trainer(net.collect_params(), optimizer, dict(optimizer_params), **settings)


def change(net, pattern='', **settings):
    for name, value in settings.items():
        net.collect_params(f'.*{pattern}').setattr(name, value)
    return net


@pytest.mark.parametrize('precision', ['float32', BFLOAT16])
@pytest.mark.parametrize('pattern, settings', [
    ('weight', {'lr_mult': 0.1}), ('bias', {'wd_mult': 0.}), ('conv.*weight', {'lr_mult': 0.}),
    ('bias', {'grad_req': 'null'}), ('beta|gamma', {'grad_req': 'null'})])
def test_settings_of_parameters(pattern, settings, precision):
    net, expected = (change(small_net(ONE), pattern, **settings) for _ in range(2))
    history = plain_loop(expected, *digits(), ONE, 2, precision, trainer_of(expected))
    assert train(net, *digits(), ONE, 2, precision, trainer_of(net)) == history
    assert_same(net, expected)


@pytest.mark.parametrize('optimizer, optimizer_params', [
    ('sgd', {**MOMENTUM, 'clip_gradient': 0.01}), ('sgd', {**MOMENTUM, 'multi_precision': True}),
    ('sgd', {**MOMENTUM, 'rescale_grad': 0.5}), ('adam', {'learning_rate': 0.01, 'wd': 0.1})])
def test_settings_of_optimizers(optimizer, optimizer_params):
    net, expected = small_net(ONE), small_net(ONE)
    history = plain_loop(expected, *digits(), ONE, 2, 'float32',
                         trainer_of(expected, optimizer, optimizer_params))
    assert train(net, *digits(), ONE, 2, 'float32',
                 trainer_of(net, optimizer, optimizer_params)) == history
    assert_same(net, expected)


STORES = {'device': lambda: 'device', 'local': lambda: 'local', 'none': lambda: None,
          'a device store': lambda: mx.kv.create('device'),
          'a local store': lambda: mx.kv.create('local')}


@pytest.mark.parametrize('update_on_kvstore', [None, False])
@pytest.mark.parametrize('devices', [ONE, TWO], ids=['one', 'two'])
@pytest.mark.parametrize('kvstore', STORES)
def test_kvstores_resume(kvstore, devices, update_on_kvstore, tmp_path):
    if kvstore == 'none' and devices == TWO:
        pytest.skip('which sums no gradients; refused in test_distributed.py')
    store, path = STORES[kvstore](), tmp_path / 'run.npz'
    expected, resumed = small_net(devices), small_net(devices)
    history = plain_loop(expected, *digits(93), devices, 2, 'float32',
                         trainer_of(expected, update_on_kvstore=False))
    for net, num_epochs in ((small_net(devices), 1), (resumed, 2)):  # with the same store
        rows = train(net, *digits(93), devices, num_epochs, 'float32',
                     trainer_of(net, kvstore=store, update_on_kvstore=update_on_kvstore),
                     checkpoint=path, resume=True)
        assert rows == history[:num_epochs]
    assert_same(resumed, expected)


def assert_refused(message, net, **settings):
    for devices in (ONE, TWO):
        net_ = net(devices)
        trainer = trainer_of(net_, **settings)
        with pytest.raises(ValueError, match=message):
            train(net_, *digits(40), devices, 1, 'float32', trainer)
    with pytest.raises(ValueError, match=message):
        net_ = net(ONE)
        d2l_ext.range_test(net_, digits(40)[0], trainer_of(net_, **settings), *ONE)


@pytest.mark.parametrize('kvstore', ['device', 'a device store'])
def test_updates_in_a_store_are_refused(kvstore):
    assert_refused('update_on_kvstore=False', small_net, kvstore=STORES[kvstore](),
                   update_on_kvstore=True)


def test_a_trainer_that_has_updated_in_its_store():
    net = small_net(ONE)
    trainer = trainer_of(net, kvstore=mx.kv.create('device'))
    X, y = next(iter(digits(40)[0]))
    with mx.autograd.record():
        l = gluon.loss.SoftmaxCrossEntropyLoss()(net(X), y)
    l.backward()
    trainer.step(40)
    with pytest.raises(ValueError, match='make a new one with update_on_kvstore=False'):
        train(net, *digits(40), ONE, 1, 'float32', trainer)


@pytest.mark.parametrize('settings, message', [
    ({'grad_req': 'add'}, "_weight has grad_req='add'.*set it to 'write'"),
    ({'grad_req': 'null'}, 'nothing to train')])
def test_gradients_that_are_refused(settings, message):
    pattern = 'weight' if settings['grad_req'] == 'add' else ''
    assert_refused(message, lambda devices: change(small_net(devices), pattern, **settings))


def test_compressed_gradients_are_refused():
    assert_refused('compression_params', small_net, compression_params={'type': '2bit'})


class Dense(gluon.HybridBlock):
    """A dense layer from scratch, with some settings of its weight."""

    def __init__(self, **settings):
        super().__init__()
        self.weight = self.params.get('weight', shape=(10, 64), **settings)

    def hybrid_forward(self, F, X, weight):
        return F.FullyConnected(X, weight, no_bias=True, num_hidden=10)


def initialized(net, devices=ONE):
    net.initialize(ctx=devices)
    return net


def test_sparse_gradients_are_refused():
    assert_refused('_weight or its gradient is sparse', lambda devices: initialized(
        Dense(grad_stype='row_sparse'), devices))


@pytest.mark.parametrize('dtype', ['float16', 'float64'])
def test_nets_of_another_type_are_refused(dtype):
    def cast(devices):
        net = small_net(devices)
        net.cast(dtype)
        return net

    assert_refused(rf"is {dtype}: call net.cast\('float32'\)", cast)
    with pytest.raises(ValueError, match='must have float32 parameters'):
        d2l_ext.predict(cast(ONE), digits()[1], ONE)


# --- nets and batches that training cannot use as they are ---

class Several(gluon.HybridBlock):
    """Two dense layers; `forward_` says what becomes of them."""

    def __init__(self, forward_, in_units=64):
        super().__init__()
        self.forward_ = forward_
        self.first, self.second = nn.Dense(10), nn.Dense(10, in_units=in_units)

    def hybrid_forward(self, F, X):
        return self.forward_(self, X)


class Eager(Several):
    def forward(self, X):
        return self.forward_(self, X)


@pytest.mark.parametrize('kind', [Several, Eager])
@pytest.mark.parametrize('both', [
    lambda net, X: (net.first(X), net.second(X)), lambda net, X: [net.first(X), net.second(X)]])
def test_two_outputs_are_refused(kind, both):
    net = initialized(kind(both))
    with pytest.raises(ValueError, match=r'logits of shape \(batch, classes\), not a (tuple|list)'):
        train(net, *digits(40), ONE, 1, 'auto')
    with pytest.raises(ValueError, match=r'logits of shape \(batch, classes\), not a (tuple|list)'):
        d2l_ext.predict(net, digits(40)[1], ONE)


@pytest.mark.parametrize('devices', [ONE, TWO], ids=['one', 'two'])
@pytest.mark.parametrize('kind', [Several, Eager])
def test_a_layer_that_is_never_used(kind, devices, tmp_path):
    net = initialized(kind(lambda net, X: net.first(X)), devices)
    before = net.second.weight.data(devices[0]).asnumpy()
    trainer = trainer_of(net, optimizer_params={'learning_rate': 0.05})
    rows = train(net, *digits(), devices, 2, 'auto', trainer, checkpoint=tmp_path / 'run.npz')
    assert rows[1]['loss'] < rows[0]['loss']
    np.testing.assert_array_equal(net.second.weight.data(devices[0]).asnumpy(), before)
    again = initialized(kind(lambda net, X: net.first(X)), devices)
    assert train(again, *digits(), devices, 2, 'auto', trainer_of(
        again, optimizer_params={'learning_rate': 0.05}), checkpoint=tmp_path / 'run.npz',
        resume=True) == rows


def test_a_layer_that_only_some_batches_use():
    """Where it is not used its gradient is 0, on either device."""
    def use(net, X):
        use.calls += 1
        return net.first(X) + (net.second(X) if use.calls % 3 == 0 else 0)

    use.calls = 0
    net = initialized(Eager(use), TWO)
    train(net, *digits(), TWO, 2, 'float32')
    for param in net.collect_params().values():
        one, two = (array.asnumpy() for array in param.list_data())
        np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize('devices', [ONE, TWO], ids=['one', 'two'])
def test_a_layer_that_is_never_used_and_whose_size_nobody_knows(devices):
    net = initialized(Several(lambda net, X: net.first(X), in_units=0), devices)
    with pytest.raises(ValueError, match='_weight has no values after a batch: net never uses'):
        train(net, *digits(40), devices, 1, 'auto')


def test_a_batch_of_no_image():
    net, empty = small_net(ONE), [(np.zeros((0, 1, 8, 8), 'float32'), np.zeros(0))]
    batches = digits(40)[0]
    for train_iter, test_iter in ((empty, batches), (batches, empty)):
        with pytest.raises(ValueError, match='(train|test)_iter yields a batch of 0 images'):
            d2l_ext.train_ch5(net, train_iter, test_iter, 40, trainer_of(net), *ONE, 1)
    with pytest.raises(ValueError, match='data_iter yields a batch of 0 images'):
        d2l_ext.predict(net, empty, *ONE)
    with pytest.raises(ValueError, match='train_iter yields a batch of 0 images'):
        d2l_ext.range_test(net, empty, trainer_of(net), *ONE)
