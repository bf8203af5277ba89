"""The optimizer Muon, against its formulas in NumPy."""
import numpy as np
import pytest

from d2l_ext import Muon
from d2l_ext.devices import mx
from d2l_ext.studies.muon import orthogonalized

nd, gluon, nn = mx.nd, mx.gluon, mx.gluon.nn


@pytest.mark.parametrize('shape', [(5, 30), (30, 5), (12, 12), (1, 7)])
def test_singular_values_come_close_to_one(shape):
    matrix = np.random.default_rng(0).normal(size=shape).astype('float32')
    left, values, right = np.linalg.svd(matrix, full_matrices=False)
    values = values / np.linalg.norm(values)
    for _ in range(5):
        values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
    found = orthogonalized(nd.array(matrix)).asnumpy()
    np.testing.assert_allclose(found, left * values @ right, atol=1e-4)
    assert abs(np.linalg.svd(found, compute_uv=False) - 1).max() < 0.5


def test_zeros_stay_zeros():
    assert (orthogonalized(nd.zeros((3, 4))).asnumpy() == 0).all()


def step(param, trainer, gradient, batch_size):
    with mx.autograd.record():
        loss = (param.data() * nd.array(gradient)).sum()
    loss.backward()
    trainer.step(batch_size)


def test_steps_as_the_formulas_say():
    shape, lr, momentum, wd = (4, 3, 2, 2), 0.1, 0.8, 0.5
    rng = np.random.default_rng(1)
    weight, gradients = rng.normal(size=shape), rng.normal(size=(3, *shape))
    param = gluon.Parameter('weight', shape=shape)
    param.initialize()
    param.set_data(nd.array(weight))
    trainer = gluon.Trainer([param], Muon(lr, momentum, wd=wd))
    mean = np.zeros(shape)
    for gradient in gradients:
        step(param, trainer, 8 * gradient, batch_size=8)
        mean = momentum * mean + (1 - momentum) * gradient
        ahead = momentum * mean + (1 - momentum) * gradient
        ahead = orthogonalized(nd.array(ahead.reshape(4, 12))).asnumpy().reshape(shape)
        weight = (1 - lr * wd) * weight - lr * (4 / 12)**0.5 * ahead
        np.testing.assert_allclose(param.data().asnumpy(), weight, rtol=1e-3, atol=1e-4)


def test_a_bias_moves_by_the_learning_rate():
    param = gluon.Parameter('bias', shape=(6,))
    param.initialize(mx.init.Zero())
    trainer = gluon.Trainer([param], 'muon', {'learning_rate': 0.25})
    step(param, trainer, np.array([3, 0, 0, 4, 0, 0]), batch_size=1)
    np.testing.assert_allclose(param.data().asnumpy(), [-0.15, 0, 0, -0.2, 0, 0], rtol=1e-5)


def test_it_learns_and_its_state_is_kept(tmp_path):
    mx.random.seed(0)
    X = nd.random.normal(shape=(64, 5))
    y = nd.dot(X, nd.random.normal(shape=(5, 3)))

    def losses(net, trainer, num_steps):
        for _ in range(num_steps):
            with mx.autograd.record():
                loss = (net(X) - y).square().mean()
            loss.backward()
            trainer.step(1)
            yield float(loss.asscalar())

    net = nn.Dense(3)
    net.initialize()
    trainer = gluon.Trainer(net.collect_params(), Muon(0.05))
    first = list(losses(net, trainer, 40))
    assert first[-1] < first[0] / 10
    net.save_parameters(str(tmp_path / 'net'))
    trainer.save_states(str(tmp_path / 'trainer'))
    after = list(losses(net, trainer, 5))
    again = nn.Dense(3)
    again.load_parameters(str(tmp_path / 'net'))
    trainer = gluon.Trainer(again.collect_params(), Muon(0.05))
    trainer.load_states(str(tmp_path / 'trainer'))
    np.testing.assert_allclose(list(losses(again, trainer, 5)), after, rtol=1e-5)
