"""Histories and parameters of train_ch5 are, bit for bit, those of a plain Gluon loop.

Two workers are compared with one process in test_distributed.py.
"""
import random

import numpy as np
import pytest

import d2l_ext
from d2l_ext.batches import common_shape
from d2l_ext.data import load_data_digits
from d2l_ext.devices import has_bfloat16, mx
from d2l_ext.graphs import compiled
from d2l_ext.nets import nin

nd, gluon, nn, init, autograd = mx.nd, mx.gluon, mx.gluon.nn, mx.init, mx.autograd
ONE, TWO = [mx.cpu(0)], [mx.cpu(0), mx.cpu(1)]
BFLOAT16 = pytest.param('bfloat16', marks=pytest.mark.skipif(
    not has_bfloat16(), reason='no bfloat16 instructions here'))
SEED = 3


def small_net(devices):
    """Return an initialized net with dropout and running statistics."""
    net = nn.HybridSequential()
    net.add(nn.Conv2D(8, 3, activation='relu', in_channels=1), nn.BatchNorm(in_channels=8),
            nn.Dropout(0.3), nn.Conv2D(10, 3, in_channels=8), nn.GlobalAvgPool2D(), nn.Flatten())
    return initialize(net, devices)


def initialize(net, devices, initializer=None):
    mx.random.seed(1)
    net.initialize(initializer or init.Xavier(), ctx=devices)
    return net


def make_trainer(net):
    return gluon.Trainer(net.collect_params(), 'sgd', {'learning_rate': 0.05, 'momentum': 0.9},
                         update_on_kvstore=False)


def digits(number=213, batch_size=40, resize=None, number_of_tests=81):
    """Return batches on the CPU; the last one is uneven for two devices."""
    train_iter, test_iter = load_data_digits(batch_size, resize, ctx=mx.cpu())
    return train_iter.take(number), test_iter.take(number_of_tests)


def plain_loop(net, train_iter, test_iter, devices, num_epochs, precision, trainer=None):
    """Return the history of a loop that waits for each number and checks nothing."""
    trainer, history = trainer or make_trainer(net), []
    # Gluon would do so after the first backward pass, and lose that batch's running statistics.
    trainer._init_kvstore()
    trainer._init_params()
    forward = compiled(net, precision, common_shape([train_iter, test_iter]))
    loss_function = gluon.loss.SoftmaxCrossEntropyLoss()
    for epoch in range(1, num_epochs + 1):
        nd.waitall()
        state = int(np.random.SeedSequence((SEED, epoch)).generate_state(1)[0])
        random.seed(state)
        np.random.seed(state)
        mx.random.seed(state % 2**31)
        loss, right, number = 0., 0, 0
        for X, y in train_iter:
            Xs, ys = (gluon.utils.split_and_load(a, devices, even_split=False) for a in (X, y))
            with autograd.record():
                logits = [forward(X) for X in Xs]
                losses = [loss_function(*pair) for pair in zip(logits, ys)]
            for l in losses:
                l.backward()
            trainer.step(len(X))
            for l, o, y in zip(losses, logits, ys):
                loss += float(l.sum().asscalar())
                right += int((o.argmax(axis=1).asnumpy() == y.asnumpy()).sum())
            number += len(X)
        for param in net.collect_params('.*running').values():
            param.set_data(nd.array(np.mean([a.asnumpy().astype('float64')
                                             for a in param.list_data()], axis=0)))
        answers = np.concatenate([forward(X).argmax(axis=1).asnumpy() == y.asnumpy()
                                  for X, y in test_iter])
        history.append({'epoch': epoch, 'loss': loss / number, 'train_acc': right / number,
                        'test_acc': answers.mean()})
    return history


def train(net, train_iter, test_iter, devices, num_epochs, precision, trainer=None, **arguments):
    history = d2l_ext.train_ch5(net, train_iter, test_iter, train_iter.batch_size,
                                trainer or make_trainer(net), devices, num_epochs,
                                precision=precision, seed=SEED, **arguments)
    return [{key: row[key] for key in row if key != 'seconds'} for row in history]


def assert_same(net, other):
    for one, two in zip(net.collect_params().values(), other.collect_params().values()):
        for a, b in zip(one.list_data(), two.list_data()):
            np.testing.assert_array_equal(a.asnumpy(), b.asnumpy(), err_msg=one.name)


@pytest.mark.parametrize('precision', ['float32', BFLOAT16])
@pytest.mark.parametrize('devices', [ONE, TWO], ids=['one', 'two'])
def test_uninterrupted_and_resumed(devices, precision, tmp_path):
    expected = small_net(devices)
    history = plain_loop(expected, *digits(), devices, 3, precision)
    assert len({row['loss'] for row in history}) == 3
    net, resumed, path = small_net(devices), small_net(devices), tmp_path / 'run.npz'
    assert train(net, *digits(), devices, 3, precision) == history
    assert_same(net, expected)
    assert train(small_net(devices), *digits(), devices, 1, precision,
                 checkpoint=path) == history[:1]
    assert train(resumed, *digits(), devices, 3, precision, checkpoint=path,
                 resume=True) == history
    assert_same(resumed, expected)


@pytest.mark.parametrize('precision', ['float32', BFLOAT16])
def test_the_sections_net(precision):
    def fresh():
        net = initialize(nin(), ONE, init.MSRAPrelu(slope=0))
        net(nd.zeros((1, 1, 67, 67)))
        return net

    batches = digits(40, 16, 67, 20)
    expected, net = fresh(), fresh()
    history = plain_loop(expected, *batches, ONE, 1, precision)
    assert train(net, *batches, ONE, 1, precision) == history
    assert_same(net, expected)
