"""Training on a list of devices: [cpu(0), cpu(1)] must do what one device does."""
import numpy as np
import pytest

import d2l_ext
from d2l_ext.data import load_data_digits
from d2l_ext.devices import check_devices, mx
from d2l_ext.scale.several_devices import split

nd, gluon, nn, init = mx.nd, mx.gluon, mx.gluon.nn, mx.init
ONE, TWO = mx.cpu(0), [mx.cpu(0), mx.cpu(1)]


def digits(number=201, batch_size=40):
    """Batches of 40 images and a last one of `number` % 40; the loader keeps to one device."""
    train_iter, test_iter = load_data_digits(batch_size, ctx=ONE)
    return train_iter.take(number), test_iter


def small_net(ctx, *extra):
    net = nn.HybridSequential()
    net.add(nn.Conv2D(8, 3, activation='relu'), *extra, nn.Conv2D(10, 3), nn.GlobalAvgPool2D(),
            nn.Flatten())
    mx.random.seed(1)
    net.initialize(init.Xavier(), ctx=ctx)
    return net


def train(ctx, num_epochs=2, net=None, number=201, optimizer='sgd', optimizer_params=None,
          kvstore='device', precision='float32', **arguments):
    net = net or small_net(ctx)
    trainer = gluon.Trainer(net.collect_params(), optimizer,
                            optimizer_params or {'learning_rate': 0.05, 'momentum': 0.9},
                            kvstore=kvstore)
    train_iter, test_iter = digits(number)
    history = d2l_ext.train_ch5(net, train_iter, test_iter, 40, trainer, ctx, num_epochs, seed=0,
                                precision=precision, **arguments)
    return net, history


def values(net, i=0):
    """Return the parameters on device number `i`."""
    return {name: param.list_data()[i].asnumpy()
            for name, param in net._collect_params_with_prefix().items()}


def assert_close(net, other, **tolerance):
    for name, value in values(net).items():
        np.testing.assert_allclose(value, values(other)[name], err_msg=name, **tolerance)


def assert_same(one, other):
    for name, value in one.items():
        np.testing.assert_array_equal(value, other[name], err_msg=name)


def without_seconds(history):
    return [{key: value for key, value in row.items() if key != 'seconds'} for row in history]


# 201 images: a last batch of 1, less than there are devices; 213: one of 13, which is uneven.
@pytest.mark.parametrize('number', [201, 213])
def test_two_devices_do_what_one_does(number, capsys):
    net, history = train(TWO, number=number)
    assert 'training on [cpu(0), cpu(1)]' in capsys.readouterr().out
    expected, rows = train(ONE, number=number)
    assert_close(net, expected, rtol=1e-4, atol=1e-5)
    assert_same(values(net, 0), values(net, 1))
    for row, other in zip(history, rows):
        assert row['loss'] == pytest.approx(other['loss'], rel=1e-4)
        assert row['train_acc'] == pytest.approx(other['train_acc'], abs=2 / number)
        assert row['test_acc'] == pytest.approx(other['test_acc'], abs=2 / 360)
    assert history[1]['loss'] < history[0]['loss']
    predicted, true = d2l_ext.predict(net, digits()[1], TWO, 'float32')
    np.testing.assert_array_equal(true, digits()[1].labels)  # in the order of the images
    np.testing.assert_array_equal(predicted, d2l_ext.predict(net, digits()[1], ONE, 'float32')[0])
    assert d2l_ext.evaluate_accuracy(net, digits()[1], TWO, 'float32') == history[-1]['test_acc']


def test_a_list_of_one_device_changes_nothing():
    net, history = train([ONE])
    other, same = train(ONE)
    assert without_seconds(history) == without_seconds(same)
    assert_same(values(net), values(other))


@pytest.mark.parametrize('optimizer, optimizer_params', [
    ('sgd', {'learning_rate': 0.2, 'momentum': 0.9, 'wd': 1e-3}),
    ('adam', {'learning_rate': 0.01})])
def test_resumed_run_equals_an_uninterrupted_one(tmp_path, optimizer, optimizer_params):
    def run(num_epochs, **arguments):
        return train(TWO, num_epochs, small_net(TWO, nn.BatchNorm(), nn.Dropout(0.3)),
                     optimizer=optimizer, optimizer_params=optimizer_params, **arguments)

    whole, history = run(3)
    path = tmp_path / 'run.npz'
    run(1, checkpoint=path)
    resumed, same = run(3, checkpoint=path, resume=True)
    assert without_seconds(same) == without_seconds(history)
    for i in range(2):
        assert_same(values(resumed, i), values(whole, i))
    assert_same(values(whole, 0), values(whole, 1))  # running statistics, too


def test_a_checkpoint_can_go_on_with_another_number_of_devices(tmp_path):
    whole, _ = train(ONE, 2)
    train(TWO, 1, checkpoint=tmp_path / 'run.npz')
    resumed, _ = train(ONE, 2, checkpoint=tmp_path / 'run.npz', resume=True)
    assert_close(resumed, whole, rtol=1e-4, atol=1e-5)
    d2l_ext.save_params(train(TWO, 1)[0], tmp_path / 'net.npz')
    net = small_net(ONE)
    d2l_ext.load_params(net, tmp_path / 'net.npz')


def test_a_dead_start_on_two_devices(capsys):
    net = nn.HybridSequential()
    net.add(nn.Conv2D(10, 3, activation='relu', bias_initializer=init.Constant(-100)),
            nn.GlobalAvgPool2D(), nn.Flatten())
    net.initialize(ctx=TWO)
    train(TWO, net=net)
    assert capsys.readouterr().out.count('dead start') == 1


@pytest.mark.parametrize('i', [0, 39])  # the first device's part, and the second's
def test_a_broken_image_on_either_device_is_found(i):
    X, y = nd.random.uniform(shape=(40, 1, 8, 8)), nd.zeros(40)
    X[i, 0, 0, 0] = np.nan
    net = small_net(TWO)
    trainer = gluon.Trainer(net.collect_params(), 'sgd')
    with pytest.raises(FloatingPointError, match='images hold NaN'):
        d2l_ext.train_ch5(net, [(X, y)], [(X, y)], 40, trainer, TWO, 1, precision='float32')


def test_a_loss_that_breaks_on_two_devices():
    with pytest.raises(FloatingPointError):
        train(TWO, 8, optimizer_params={'learning_rate': 1e38})


@pytest.mark.parametrize('ctx', [[], [ONE, ONE], [ONE, 'cpu'], 'cpu(0)', None])
def test_wrong_lists(ctx):
    with pytest.raises(ValueError, match='ctx must be a device'):
        check_devices(ctx)


def test_devices_of_two_kinds(monkeypatch):
    monkeypatch.setattr(mx.context, 'num_gpus', lambda: 1)
    with pytest.raises(ValueError, match='of one kind'):
        check_devices([ONE, mx.gpu(0)])


@pytest.mark.parametrize('parameters, ctx', [(ONE, TWO), (TWO, ONE), (TWO, [*TWO, mx.cpu(2)])])
def test_parameters_on_other_devices(parameters, ctx):
    net = small_net(parameters)
    trainer = gluon.Trainer(net.collect_params(), 'sgd')
    with pytest.raises(ValueError, match='pass the same ctx'):
        d2l_ext.train_ch5(net, *digits(), 40, trainer, ctx, 1, precision='float32')


def test_a_range_test_takes_one_device():
    net = small_net(TWO)
    trainer = gluon.Trainer(net.collect_params(), 'sgd')
    with pytest.raises(ValueError, match='the devices that trainer updates'):
        d2l_ext.range_test(net, digits()[0], trainer, ONE)


def test_a_trainer_that_updates_in_its_kvstore():
    net = small_net(TWO)
    trainer = gluon.Trainer(net.collect_params(), 'sgd', update_on_kvstore=True)
    with pytest.raises(ValueError, match='update_on_kvstore=False'):
        d2l_ext.train_ch5(net, *digits(), 40, trainer, TWO, 1, precision='float32')


def test_each_device_gets_an_equal_share():
    X, y = nd.arange(7).reshape((7, 1)), nd.arange(7)
    shares = split(TWO, X, y)
    assert [X.context for X, _ in shares] == TWO
    assert [X.asnumpy().ravel().tolist() for X, _ in shares] == [[0, 1, 2, 3], [4, 5, 6]]
    assert [y.asnumpy().tolist() for _, y in shares] == [[0, 1, 2, 3], [4, 5, 6]]
    assert [len(X) for X, _ in split(TWO, X[:1], y[:1])] == [1]
