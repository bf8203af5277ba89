"""The range test: what it sees and what it suggests."""
import copy
import dataclasses
import math
import random

import numpy as np
import pytest

import d2l_ext
from d2l_ext.batches import Batches
from d2l_ext.devices import mx
from d2l_ext.studies import lr_finder, plotting
from d2l_ext.studies.lr_finder import RangeTest, range_test

nd, gluon, nn, init = mx.nd, mx.gluon, mx.gluon.nn, mx.init
CPU = mx.cpu()
DEAD_LOSS = pytest.approx(math.log(10), abs=1e-5)  # ln of the classes, computed in float32
OPTIMIZERS = {
    'sgd': ('sgd', {'learning_rate': 0.1, 'wd': 1e-3}),
    'momentum': ('sgd', {'learning_rate': 0.1, 'momentum': 0.9}),
    'adam': ('adam', {'learning_rate': 0.01}),
    'nadam': ('nadam', {'learning_rate': 0.01}),  # keeps numbers of its own outside its states
}


def make_batches(number=40, batch_size=16):
    """Shuffled images, one bright row in each for its class; the last batch is smaller."""
    labels = np.arange(number) % 10
    images = np.random.RandomState(0).randint(0, 60, (number, 10, 10)).astype(np.uint8)
    images[np.arange(number), labels] += 190
    return Batches(images, labels, batch_size, shuffle=True, ctx=CPU)


def make_net(hybrid=True):
    """A net with running statistics and dropout, its shapes not known yet."""
    net = nn.HybridSequential() if hybrid else nn.Sequential()
    net.add(nn.Conv2D(6, 3, activation='relu'), nn.BatchNorm(), nn.Dropout(0.3), nn.Dense(10))
    mx.random.seed(1)
    net.initialize(init.Xavier())
    return net


def make_trainer(net, name='momentum', schedule=False):
    optimizer, settings = OPTIMIZERS[name]
    if schedule:
        scheduler = mx.lr_scheduler.FactorScheduler(2, 0.9, base_lr=settings['learning_rate'])
        scheduler.lock = (i for i in ())  # something that cannot be copied
        settings = {**settings, 'lr_scheduler': scheduler}
    return gluon.Trainer(net.collect_params(), optimizer, settings)


def train(net, trainer, num_epochs=2, seed=3):
    history = d2l_ext.train_ch5(net, make_batches(), make_batches(), 16, trainer, CPU, num_epochs,
                                precision='float32', seed=seed)
    return [{key: value for key, value in row.items() if key != 'seconds'} for row in history]


def sweep(net, trainer, batches=None, lr_min=1e-4, lr_max=1., num_steps=20, **arguments):
    return range_test(net, make_batches() if batches is None else batches, trainer, CPU, lr_min,
                      lr_max, num_steps, **{'precision': 'float32', **arguments})


def arrays(state):
    """Return an optimizer state with its arrays in NumPy's form."""
    if isinstance(state, (tuple, list)):
        return [arrays(item) for item in state]
    return None if state is None else state.asnumpy().tolist()


def everything(net, trainer):
    """Return all that a range test could leave a trace in, apart from MXNet's generator."""
    optimizer = trainer._optimizer
    params = net._collect_params_with_prefix()
    about = {key: value for key, value in vars(optimizer).items()
             if key not in ('param_dict', 'lr_scheduler')}
    return copy.deepcopy({
        'values': {name: param._data and param.data().asnumpy().tolist()
                   for name, param in params.items()},
        'gradients': {name: param._grad and param.grad().asnumpy().tolist()
                      for name, param in params.items()},
        'shapes': {name: param.shape for name, param in params.items()},
        'deferred': {name: bool(param._deferred_init) for name, param in params.items()},
        'states': {index: arrays(state) for index, state in trainer._updaters[0].states.items()},
        'optimizer': about, 'rate': trainer.learning_rate,
        'scheduler': optimizer.lr_scheduler and {
            key: value for key, value in vars(optimizer.lr_scheduler).items() if key != 'lock'},
        'python': random.getstate(), 'numpy': [str(item) for item in np.random.get_state()],
    })


# --- what it sees ---

def logistic(scale):
    """Every point twice, once in each class: by symmetry the best weights are 0, the loss ln 2.

    There the Hessian of the mean loss is half the second moment of the points, times 1 and 0 in
    the space of the two outputs; plain gradient descent is stable up to 2 over its largest value.
    """
    X = scale * np.random.RandomState(0).randn(50, 5).astype(np.float32)
    limit = 4 / np.linalg.eigvalsh(X.T @ X / len(X)).max()
    net = nn.Dense(2, use_bias=False, in_units=5)
    mx.random.seed(0)
    net.initialize(init.Normal(1 / scale))
    batches = [(np.concatenate([X, X]), np.repeat([0, 1], 50))]
    return net, gluon.Trainer(net.collect_params(), 'sgd'), batches, limit


@pytest.mark.parametrize('scale', [0.1, 1, 10])
def test_stability_limit(scale):
    net, trainer, batches, limit = logistic(scale)
    test = sweep(net, trainer, batches, limit / 100, limit * 1000, 100)
    assert test.stopped == 'divergence' and len(test.lrs) < 100
    assert 1 < test.lrs[-1] / limit < 20
    assert 1 / 50 < test.suggestion / limit < 1 / 2
    losses, rates = np.array(test.losses), np.array(test.lrs) / limit
    assert losses.min() == pytest.approx(math.log(2), rel=0.01)
    assert (np.diff(losses)[rates[1:] < 1] < 1e-6).all()  # stable: falls at every single step
    assert (losses[rates > 5] > 1.2 * losses.min()).all()


def test_losses_are_those_of_plain_gradient_descent():
    net, trainer, batches, limit = logistic(1)
    test = sweep(net, trainer, batches, limit / 100, limit / 2, 12, smoothing=0.3)
    np.testing.assert_allclose(test.lrs, np.geomspace(limit / 100, limit / 2, 12))
    (X, y), W = batches[0], net.weight.data().asnumpy().astype(float)
    mean = 0
    for i, (lr, loss, smooth) in enumerate(zip(test.lrs, test.losses, test.smoothed), 1):
        exps = np.exp(X @ W.T)
        p = exps / exps.sum(axis=1, keepdims=True)
        expected = -np.log(p[np.arange(100), y]).mean()
        assert loss == pytest.approx(expected, rel=1e-4)
        mean = 0.7 * mean + 0.3 * expected
        assert smooth == pytest.approx(mean / (1 - 0.7**i), rel=1e-4)
        W -= lr * (p - np.eye(2)[y]).T @ X / 100
    assert test.stopped == 'end' and test.dead_from is None


def test_multipliers_of_parameters_count():
    net, trainer, batches, limit = logistic(1)
    net.weight.lr_mult = 0
    assert len(set(sweep(net, trainer, batches, limit / 100, limit).losses)) == 1


def test_stops_early_on_divergence():
    net, trainer, batches, limit = logistic(1)
    test = sweep(net, trainer, batches, limit / 10, limit * 1e4, 60, divergence=2)
    assert test.stopped == 'divergence' and len(test.lrs) < 40
    assert test.smoothed[-1] > 2 * min(test.smoothed)
    assert all(now <= 2 * min(test.smoothed[:i + 1]) for i, now in enumerate(test.smoothed[:-1]))
    assert len(test.lrs) == len(test.losses) == len(test.smoothed)


def test_stops_when_the_loss_is_no_number():
    net = nn.HybridSequential()
    net.add(nn.Dense(8), nn.Dense(8), nn.Dense(10))
    net.initialize()
    trainer = gluon.Trainer(net.collect_params(), 'sgd')
    test = sweep(net, trainer, lr_max=1e30, divergence=1e300)
    assert test.stopped == 'not finite' and 0 < len(test.lrs) < 20
    assert np.isfinite(test.losses).all() and np.isfinite(test.smoothed).all()


def test_precision_of_this_machine():
    net = make_net()
    trainer, exact = make_trainer(net), None
    for precision in ('float32', 'auto'):
        test = sweep(net, trainer, precision=precision)
        exact = exact or test.losses
        np.testing.assert_allclose(test.losses[:5], exact[:5], rtol=0.05)


def test_seeds_decide():
    results = []
    for seed in (0, 0, 1):
        net = make_net()
        results.append(sweep(net, make_trainer(net), seed=seed))
        np.random.rand(), random.random(), nd.random.uniform()
    assert results[0] == results[1] and results[0].losses != results[2].losses


def test_a_restored_net_gives_the_same_again():
    net = make_net()
    trainer = make_trainer(net, 'adam')
    train(net, trainer, 1)
    assert sweep(net, trainer) == sweep(net, trainer)


def test_goes_on_from_the_states_of_the_trainer():
    """Momentum of earlier steps moves the weights even when the rate is next to nothing."""
    net = make_net()
    trainer = make_trainer(net)
    train(net, trainer, 1)
    rates = {'lr_min': 1e-12, 'lr_max': 1e-11}
    fresh = make_trainer(net)
    assert sweep(net, trainer, **rates).losses[1:] != sweep(net, fresh, **rates).losses[1:]


@pytest.mark.parametrize('number, sizes', [(1, [10]), (2, [10, 5]), (3, [10, 10, 5])])
def test_short_iterators_are_cycled(number, sizes):
    class Counting:
        passes = 0

        def __iter__(self):
            Counting.passes += 1
            for size in sizes:
                yield nd.ones((size, 1, 10, 10)), nd.arange(size)

    Counting.passes = 0
    net = make_net()
    test = sweep(net, make_trainer(net), Counting())
    assert len(test.lrs) == 20 and Counting.passes == -(-20 // number)


def test_a_generator_that_is_used_up():
    net = make_net()
    trainer = make_trainer(net)
    before = everything(net, trainer)
    with pytest.raises(ValueError, match='train_iter yields no batch; it must'):
        sweep(net, trainer, ((X, y) for X, y in make_batches()))
    assert everything(net, trainer) == before


def test_nothing_to_learn_gives_no_suggestion():
    """Labels that have nothing to do with the images, and rates too small to learn them."""
    generator = np.random.RandomState(0)
    batches = [(nd.array(generator.rand(20, 1, 10, 10)), nd.array(generator.randint(0, 10, 20)))
               for _ in range(60)]
    net = make_net()
    test = sweep(net, make_trainer(net, 'sgd'), batches, 1e-8, 1e-5, 60)
    assert test.suggestion is None and test.how.startswith('the loss did not fall clearly')
    assert test.stopped == 'end' and 'suggestion: None' in repr(test)


@pytest.mark.parametrize('number, low, expected, how', [
    (100, 60, True, 'the smaller one of where the loss falls fastest ('),
    (100, 200, True, 'still fell at the end, so try a larger lr_max'),
    (100, 0, False, 'the loss did not fall clearly'),
    (6, 3, False, 'the test ended after 6 useful steps, too few'),
    (0, 0, False, 'the test ended after 0 useful steps, too few'),
])
def test_how_a_suggestion_is_chosen(number, low, expected, how):
    i = np.arange(number)
    lrs = 10**(-4 + i / 25)
    losses = 2 - np.tanh((np.minimum(i, low) - 40) / 10) + 0.05 * np.maximum(i - low, 0)
    suggestion, said = lr_finder._suggest(lrs.tolist(), losses.tolist())
    assert how in said and (suggestion is not None) == expected
    if low == 60:  # falls fastest at step 40, is lowest about step 60
        assert suggestion == pytest.approx(lrs[60] / 10, rel=0.5) and suggestion < lrs[40]


# --- a dead net ---

def relu_net(bias=0.):
    net = nn.HybridSequential()
    net.add(nn.Flatten(), nn.Dense(10, activation='relu', bias_initializer=init.Constant(bias)))
    mx.random.seed(0)
    net.initialize(init.Normal(0.1))
    return net, gluon.Trainer(net.collect_params(), 'sgd')


def test_dead_from_the_start():
    test = sweep(*relu_net(bias=-100.))
    assert test.stopped == 'dead' and len(test.lrs) == 5 < 20
    assert test.dead_from == test.lrs[0] == 1e-4
    assert test.suggestion is None and test.how.startswith('every logit is 0 from the first step')
    assert all(loss == DEAD_LOSS for loss in test.losses)


def test_dies_on_the_way():
    test = sweep(*relu_net(), lr_max=1e4, num_steps=60, divergence=1e9)
    assert test.stopped == 'dead' and test.dead_from == test.lrs[-5] > 1e-3
    assert all(loss == DEAD_LOSS for loss in test.losses[-5:]) and test.losses[-6] != DEAD_LOSS
    assert f'dead from {test.dead_from:.2g} on: every logit is 0' in repr(test)
    assert test.suggestion is None or test.suggestion < test.dead_from


def test_logits_that_start_at_zero_are_not_dead():
    net = nn.Dense(10)
    net.initialize(init.Zero())
    test = sweep(net, gluon.Trainer(net.collect_params(), 'sgd'))
    assert test.losses[0] == DEAD_LOSS and test.dead_from is None


# --- wrong arguments ---

@pytest.mark.parametrize('arguments, message', [
    ({'lr_min': 0}, 'lr_min must be a finite number above 0, not 0'),
    ({'lr_max': 1e-4}, 'lr_max must be a finite number above 0.0001, not 0.0001'),
    ({'precision': 'float64'}, 'precision must be one of auto, float32, bfloat16'),
    ({'seed': -1}, 'seed must be a whole number from 0 to 4294967295, not -1'),
    ({'trainer': None}, "trainer must be a gluon.Trainer of the net's own parameters"),
    ({'batches': []}, 'train_iter yields no batch'),
    ({'batches': [(nd.zeros((2, 1, 10, 10)), nd.zeros(3))]}, 'needs labels y of shape'),
    ({'batches': [(nd.zeros((2, 1, 10, 10)), nd.array([0, 10]))]}, '1 labels are outside 0 to 9'),
    ({'batches': [(nd.zeros((2, 1, 2, 2)), nd.zeros(2))]}, 'cannot take the shape'),
])
def test_wrong_arguments(arguments, message):
    net = make_net()
    trainer = make_trainer(net)
    before = everything(net, trainer)
    with pytest.raises(ValueError) as error:
        sweep(net, **{'trainer': trainer, **arguments})
    assert message in str(error.value)
    assert everything(net, trainer) == before


def test_a_trainer_of_another_net():
    with pytest.raises(ValueError, match="of the net's own parameters"):
        sweep(make_net(), make_trainer(make_net()))


def test_pixels_that_are_no_numbers():
    net = make_net()
    batches = [(nd.full((2, 1, 10, 10), np.nan), nd.zeros(2))]
    with pytest.raises(FloatingPointError, match='some images hold NaN'):
        sweep(net, make_trainer(net), batches)


# --- the figure and the result ---

LRS = np.geomspace(1e-4, 1, 9).tolist()
LOSSES = [2.3, 2.2, 2.1, 1.8, 1.2, 1.0, 3., 50., 900.]


def test_plot():
    test = RangeTest(LRS, LOSSES, LOSSES, 0.004, 'by hand', 'divergence', None)
    axes = test.plot()
    assert axes.get_xscale() == 'log' and axes.get_yscale() == 'linear'
    batches, means, mark = axes.lines
    assert list(batches.get_xdata()) == LRS and list(batches.get_ydata()) == LOSSES
    assert list(means.get_xdata()) == LRS[2:-2]
    assert means.get_ydata() == pytest.approx(np.array([1.92, 1.66, 1.82, 11.4, 191.04]))
    assert list(mark.get_xdata()) == [0.004, 0.004]
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == ['batches', 'mean of 5', 'suggestion 0.004']
    colors = {line.get_color() for line in axes.lines}
    assert len(colors) == 3 and colors <= set(plotting.COLORS)
    assert axes.get_ylim()[1] < 10  # the curve is not squashed by what came after
    assert (axes.get_xlabel(), axes.get_ylabel()) == ('learning rate', 'cross-entropy loss')
    axes.figure.canvas.draw()


def test_plot_of_a_dead_net_without_a_suggestion():
    test = sweep(*relu_net(bias=-100.))
    _, given = plotting.plt.subplots()
    axes = test.plot(given)
    assert axes is given and len(axes.lines) == 2
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == ['batches', 'mean of 5', 'dead: every logit is 0']
    axes.figure.canvas.draw()


def test_plot_of_nothing():
    RangeTest([], [], [], None, 'by hand', 'not finite', None).plot().figure.canvas.draw()


def test_result_as_plain_data():
    net = make_net()
    test = sweep(net, make_trainer(net))
    data = dataclasses.asdict(test)
    assert list(data) == ['lrs', 'losses', 'smoothed', 'suggestion', 'how', 'stopped', 'dead_from']
    assert all(type(number) is float for number in data['lrs'] + data['losses'] + data['smoothed'])
    assert RangeTest(**data) == test
    assert 'no step, ended by not finite' in repr(RangeTest([], [], [], None, '', 'not finite',
                                                            None))
