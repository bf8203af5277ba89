"""The range test leaves no trace: net, trainer and generators are as they were."""
import random

import numpy as np
import pytest
from test_lr_finder import (
    CPU,
    OPTIMIZERS,
    everything,
    make_batches,
    make_net,
    make_trainer,
    sweep,
    train,
)

import d2l_ext
from d2l_ext.devices import mx

nd = mx.nd


@pytest.mark.parametrize('schedule, hybrid', [(False, True), (True, False)])
@pytest.mark.parametrize('name', list(OPTIMIZERS))
def test_restores_everything(name, schedule, hybrid):
    net = make_net(hybrid)
    trainer = make_trainer(net, name, schedule)
    train(net, trainer, 1)
    before = everything(net, trainer)
    test = sweep(net, trainer)
    assert len(set(test.losses)) > 10  # it did train
    assert everything(net, trainer) == before
    for index, param in enumerate(trainer._params):
        assert param._trainer is trainer and trainer._optimizer.param_dict[index] is param


class Failing:
    """Batches that end with an error."""

    def __init__(self, error, after=7):
        self.error, self.after = error, after

    def __iter__(self):
        for i, batch in enumerate(list(make_batches()) * 9):
            if i == self.after:
                random.random(), np.random.rand()
                raise self.error
            yield batch


@pytest.mark.parametrize('error, after', [(OSError('unplugged'), 0), (KeyboardInterrupt(), 7)])
@pytest.mark.parametrize('trained', [True, False])
def test_restores_everything_after_an_error(trained, error, after):
    net = make_net()
    trainer = make_trainer(net, 'adam', schedule=True)
    if trained:
        train(net, trainer, 1)
    before = everything(net, trainer)
    with pytest.raises(type(error)):
        sweep(net, trainer, Failing(error, after))
    assert everything(net, trainer) == before


@pytest.mark.parametrize('name, seed', [('momentum', 3), ('adam', None)])
@pytest.mark.parametrize('state', ['deferred', 'initialized', 'trained'])
def test_training_goes_on_as_if_there_had_been_no_test(state, name, seed):
    results = []
    for tested in (False, True):
        net = make_net()
        trainer = make_trainer(net, name, schedule=True)
        if state == 'initialized':
            net(nd.zeros((1, 1, 10, 10)))
        elif state == 'trained':
            train(net, trainer, 1)
        np.random.seed(5)
        if tested:
            before = everything(net, trainer)
            sweep(net, trainer)
            assert everything(net, trainer) == before
        results.append((train(net, trainer, seed=seed), everything(net, trainer)['values']))
    assert results[0] == results[1]


def test_a_deferred_net_stays_deferred_and_starts_as_in_training():
    """With the same seed, the first batch and the parameters are those of train_ch5."""
    net = make_net()
    trainer = make_trainer(net, 'sgd')
    first = sweep(net, trainer, seed=3).losses[0]
    assert net[0].weight._deferred_init and net[0].weight.shape == (6, 0, 3, 3)
    one_batch = make_batches(batch_size=40)
    (row,) = d2l_ext.train_ch5(net, one_batch, one_batch, 40, trainer, CPU, 1, seed=3,
                               precision='float32')
    net = make_net()
    test = sweep(net, make_trainer(net, 'sgd'), one_batch, seed=3)
    assert test.losses[0] == pytest.approx(row['loss'], rel=1e-6)
    assert first != test.losses[0]


def test_reseeds_mxnet_by_what_it_would_have_drawn():
    draws = []
    for seed in (0, 0, 1):
        net = make_net()
        trainer = make_trainer(net)
        mx.random.seed(seed)
        sweep(net, trainer)
        draws.append(nd.random.uniform().asscalar())
    assert draws[0] == draws[1] != draws[2]


def test_hybridized_nets_stay_usable():
    net = make_net()
    net.hybridize()
    sweep(net, make_trainer(net))
    assert net(nd.zeros((2, 1, 10, 10))).shape == (2, 10)
