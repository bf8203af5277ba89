"""NaN, infinity and dead nets: noticed within an epoch and named, and never without a reason."""
import contextlib
import math
import re

import numpy as np
import pytest

import d2l_ext
from d2l_ext.checks import watch
from d2l_ext.devices import mx
from d2l_ext.graphs import trace
from d2l_ext.storage import onnx
from d2l_ext.studies import records

nd, gluon, nn, init = mx.nd, mx.gluon, mx.gluon.nn, mx.init
CPU = mx.cpu()
BAD = [math.nan, math.inf, -math.inf]


def tiny_nin(num_classes=10, initializer=None):
    """A NiN of one block, pooling, and the section's last block, for images of 8x8."""
    net = nn.HybridSequential()
    net.add(d2l_ext.nin_block(8, 3, 1, 1, num_one_by_one=1), nn.MaxPool2D(2, 2),
            d2l_ext.nin_block(num_classes, 3, 1, 1, num_one_by_one=1), nn.GlobalAvgPool2D(),
            nn.Flatten())
    net.initialize(initializer or init.MSRAPrelu(slope=0))
    net(nd.zeros((1, 1, 8, 8)))
    return net


def make_batches(num_batches, num_classes=10, seed=0, batch_size=8):
    """Noisy images with one bright row or column for each of up to 16 classes."""
    random = np.random.RandomState(seed)
    batches = []
    for _ in range(num_batches):
        y = random.randint(0, num_classes, batch_size)
        X = random.uniform(0, 0.3, (batch_size, 1, 8, 8)).astype(np.float32)
        for image, label in zip(X[:, 0], y):
            (image if label < 8 else image.T)[label % 8] += 0.7
        batches.append((nd.array(X), nd.array(y)))
    return batches


def train(net, train_iter, num_epochs=1, lr=0.05, test_iter=None, seed=0, **arguments):
    trainer = gluon.Trainer(net.collect_params(), arguments.pop('optimizer', 'sgd'),
                            {'learning_rate': lr})
    arguments.setdefault('precision', 'float32')
    return d2l_ext.train_ch5(net, train_iter, test_iter or make_batches(1), 8, trainer, CPU,
                             num_epochs, seed=seed, **arguments)


class Then(list):
    """Batches that call ``action(epoch, i)`` before batch `i` of each epoch, both from 0."""

    epoch = -1

    def __init__(self, batches, action):
        super().__init__(batches)
        self.action = action

    def __iter__(self):
        self.epoch += 1
        for i, batch in enumerate(super().__iter__()):
            self.action(self.epoch, i)
            yield batch


@pytest.fixture
def noticed(faults):
    """A context in which an error must name `what`; epochs that end before it are counted."""
    @contextlib.contextmanager
    def check(what, rows=None, epochs=0):
        faults.injected()
        with pytest.raises(FloatingPointError) as error:
            yield
        assert re.search(what, str(error.value)), error.value
        assert rows is None or len(rows) == epochs  # in the epoch of the fault, not later
        faults.survived()

    return check


# --- NaN and infinity ---

@pytest.mark.parametrize('value', BAD)
@pytest.mark.parametrize('where', ['first', 'last', 'test'])
def test_images(value, where, noticed):
    batches, test_iter, rows = make_batches(4), make_batches(2), []
    X, _ = {'first': batches[0], 'last': batches[-1], 'test': test_iter[1]}[where]
    X[5, 0, 7, 7] = value
    with noticed('some images hold NaN or infinity', rows):
        train(tiny_nin(), batches, 3, test_iter=test_iter, report=rows.append)


@pytest.mark.parametrize('value', BAD)
def test_labels(value, faults):
    faults.injected()
    batches = make_batches(3)
    batches[1][1][2] = value
    with pytest.raises(ValueError, match='1 labels are outside 0 to 9'):
        train(tiny_nin(), batches)
    faults.survived()


@pytest.mark.parametrize('value', BAD)
@pytest.mark.parametrize('function', [d2l_ext.predict, d2l_ext.evaluate_accuracy])
def test_prediction(value, function, noticed):
    net, batches = tiny_nin(), make_batches(2)
    name = net[0][1].weight.name
    net[0][1].weight.data()[3, 1] = value
    with noticed(f'{name} holds NaN or infinity before predicting'):
        function(net, batches, CPU, 'float32')
    batches[1][0][0, 0, 0, 0] = value
    with noticed('some images hold NaN or infinity'):
        function(tiny_nin(), batches, CPU, 'float32')


PARAMETERS = [(layer, kind) for layer in ((0, 0), (0, 1), (2, 0), (2, 1))
              for kind in ('weight', 'bias')]


def parameter(net, place):
    (i, j), kind = place
    return getattr(net[i][j], kind)


@pytest.mark.parametrize('value', BAD)
@pytest.mark.parametrize('place', PARAMETERS)
def test_initial_weights(place, value, noticed):
    """ReLU turns NaN into 0, so that the loss alone would not tell."""
    net, rows = tiny_nin(), []
    parameter(net, place).data()[1] = value
    with noticed(f'{parameter(net, place).name} holds NaN or infinity before training', rows):
        train(net, make_batches(3), 2, report=rows.append)


@pytest.mark.parametrize('value', BAD)
@pytest.mark.parametrize('place', PARAMETERS)
@pytest.mark.parametrize('what', ['weights', 'gradients'])
def test_in_the_middle_of_an_epoch(what, place, value, noticed, monkeypatch):
    """In the second epoch, before its second batch, or in the gradient of its last one."""
    net, rows = tiny_nin(), []
    param = parameter(net, place)
    batches = Then(make_batches(4), lambda epoch, i: None)
    if what == 'weights':
        def spoil(epoch, i):
            if (epoch, i) == (1, 1):
                param.data()[0] = value
        batches.action = spoil
    else:
        step, calls = gluon.Trainer.step, []

        def spoil_and_step(trainer, *args, **kwargs):
            calls.append(None)
            if len(calls) == 8:
                param.grad()[0] = value
            step(trainer, *args, **kwargs)
        monkeypatch.setattr(gluon.Trainer, 'step', spoil_and_step)
    with noticed(r'(the loss became -?(nan|inf)|_(weight|bias) holds NaN or infinity) (in|after) '
                 'epoch 2', rows, epochs=1):
        train(net, batches, 4, report=rows.append)


def test_running_statistics(noticed):
    """Training does not read them, and in inference a ReLU may hide them."""
    net = nn.HybridSequential()
    net.add(nn.BatchNorm(in_channels=1), tiny_nin())
    net[0].initialize()
    rows = []

    def spoil(epoch, i):
        if (epoch, i) == (1, 2):
            net[0].running_var.data()[0] = math.nan

    with noticed(f'{net[0].running_var.name} holds NaN or infinity after epoch 2', rows, 1):
        train(net, Then(make_batches(3), spoil), 3, report=rows.append)


def test_nan_in_the_last_block_is_not_called_a_dead_start(noticed, capsys, monkeypatch):
    """The ReLU turns it into logits and gradients that are all 0."""
    monkeypatch.setattr(watch, '_LOOK_EVERY', 6)
    net = tiny_nin()

    def spoil(epoch, i):
        if i == 0:
            net[2][1].bias.data()[:] = math.nan

    with noticed(f'{net[2][1].bias.name} holds NaN or infinity in epoch 1'):
        train(net, Then(make_batches(8), spoil))
    assert 'dead start' not in capsys.readouterr().out


# --- dead starts ---

def shut(net):
    """Drive every output of the last ReLU below 0, as too large a step does."""
    net[2][1].weight.data()[:] = -abs(net[2][1].weight.data())
    net[2][1].bias.data()[:] = -1


def one_case(seed):
    """Let a random net die at a random batch; return whether that was told, and told rightly."""
    random = np.random.RandomState(seed)
    num_classes, num_batches = random.randint(2, 17), random.randint(2, 9)
    num_epochs = random.randint(1, 4)
    # Five batches tell, or all of a shorter run.
    last = max(0, num_epochs * num_batches - 5)
    death = random.randint(0, last + 1)
    mx.random.seed(seed)
    net = tiny_nin(num_classes, [init.Xavier(), init.MSRAPrelu(slope=0), init.Normal(.1)][seed % 3])

    def kill(epoch, i):
        if epoch * num_batches + i == death:
            shut(net)

    batches = make_batches(num_batches, num_classes, seed)
    history = train(net, Then(batches, kill), num_epochs, lr=random.uniform(0.001, 0.1),
                    test_iter=batches, seed=seed)
    assert history[-1]['loss'] == pytest.approx(math.log(num_classes), abs=1e-5) or (
        death // num_batches == num_epochs - 1)
    return num_classes


@pytest.mark.parametrize('number', [20, pytest.param(100, marks=pytest.mark.heavy)])
def test_dead_starts_are_detected(number, capsys, faults):
    told = 0
    for seed in range(number):
        faults.injected()
        num_classes = one_case(seed)
        out, loss = capsys.readouterr().out, math.log(num_classes)
        if out.count('dead start') == 1 and f'ln {num_classes} = {loss:.6f}' in out:
            told += 1
            faults.survived()
    assert told >= 0.99 * number


def test_one_batch_an_epoch(capsys):
    net = tiny_nin()
    shut(net)
    train(net, make_batches(1), 1)
    assert 'dead start' not in capsys.readouterr().out  # one batch does not tell
    train(net, make_batches(1), 2)
    assert capsys.readouterr().out.count('dead start') == 1


def test_a_collapse_that_happens_by_itself_is_told_and_no_other(capsys):
    """Some of these runs die of their learning rate, and some learn."""
    outcomes = []
    for seed in range(9):
        mx.random.seed(seed)
        net, batches = tiny_nin(3, init.Xavier()), make_batches(6, 3, seed)
        with contextlib.suppress(FloatingPointError):  # a third outcome, told by itself
            train(net, batches, 3, lr=[0.05, 1, 4][seed % 3], test_iter=batches)
            told = 'dead start' in capsys.readouterr().out
            assert told == all(not net(X).abs().max().asscalar() for X, _ in batches)
            outcomes.append(told)
    assert set(outcomes) == {True, False}


# --- healthy runs ---

@pytest.mark.parametrize('seed', range(8))
def test_a_small_nin_that_learns(seed, capsys):
    mx.random.seed(seed)
    batches = make_batches(6, seed=seed)
    history = train(tiny_nin(), batches, 3, lr=0.1, test_iter=batches)
    assert history[-1]['loss'] < history[0]['loss']
    assert 'dead' not in capsys.readouterr().out


def test_the_net_of_the_section(capsys):
    mx.random.seed(0)
    net = d2l_ext.nin()
    net.initialize(init.MSRAPrelu(slope=0))
    train_iter, test_iter = d2l_ext.load_data_digits(8, resize=67, ctx=CPU)
    train(net, train_iter.take(56), 1, test_iter=test_iter.take(8))
    assert 'dead' not in capsys.readouterr().out


def test_the_recorded_runs_of_the_section_did_not_stall():
    record = records.load_record(records.results_folder() / '07_03_nin_book.json')
    for run in record['runs']:
        assert all(abs(row['loss'] - math.log(10)) > 0.01 for row in run['history']), run['seed']


def relu_net(**settings):
    net = nn.Dense(3, activation='relu', in_units=64, **settings)
    net.initialize()
    return net


def test_one_image_with_a_logit_other_than_zero(capsys):
    """All others are shut off; as long as one is not, the net can still change."""
    net = relu_net(weight_initializer='zeros', bias_initializer=init.Constant(-0.5))
    net.weight.data()[1, 0] = 1
    X = nd.zeros((8, 64))
    X[5, 0] = 1
    batches = [(X, nd.zeros(8))] * 7
    train(net, batches, 2, lr=1e-6, test_iter=batches)
    assert (net(X).asnumpy() != 0).sum() == 1
    assert 'dead' not in capsys.readouterr().out


@pytest.mark.parametrize('num_batches', [2, 3, 7])
def test_a_black_batch_and_biases_of_zero(num_batches, capsys):
    net, batches = tiny_nin(), make_batches(num_batches)
    batches[0] = nd.zeros_like(batches[0][0]), batches[0][1]
    assert not net(batches[0][0]).abs().max().asscalar()
    train(net, batches, 2)
    assert 'dead' not in capsys.readouterr().out


def test_logits_that_stay_zero_while_the_learning_rate_is_zero(capsys):
    """As in a warm-up. The gradients are not 0, and later the net learns."""
    net = nn.Dense(10, weight_initializer='zeros')
    net.initialize()
    trainer = gluon.Trainer(net.collect_params(), 'sgd', {'learning_rate': 0.})
    batches = Then(make_batches(12), lambda epoch, i: trainer.set_learning_rate(0.1 * epoch))
    first, second = d2l_ext.train_ch5(net, batches, make_batches(1), 8, trainer, CPU, 2, seed=0,
                                      precision='float32')
    assert first['loss'] == pytest.approx(math.log(10), abs=1e-5) and second['loss'] < 2.2
    assert 'dead' not in capsys.readouterr().out


def exported_values(net, path):
    """What export_onnx reads of the parameters, with or without onnx."""
    for value in onnx._renamed(net, trace(net), net.collect_params())[1].values():
        value.asnumpy()


@pytest.mark.parametrize('read', [
    d2l_ext.save_params, exported_values, lambda net, path: d2l_ext.start_as_identity(net)])
def test_weights_are_read_when_nothing_rearranges_them(read, tmp_path, monkeypatch):
    """MXNet 1.9.1 does in the background, after a call: weights read meanwhile are scrambled.

    A thread's share of them, in one of 40 to 500 reads on a busy machine; so what is tested is that
    all operators have ended by then.
    """
    net, events = nn.Conv2D(8, 3, in_channels=8), []
    net.initialize()
    wait, asnumpy = nd.waitall, nd.NDArray.asnumpy
    monkeypatch.setattr(nd, 'waitall', lambda: (wait(), events.append('waits')))
    monkeypatch.setattr(nd.NDArray, 'asnumpy', lambda array: (events.append('reads'),
                                                              asnumpy(array))[1])
    net(nd.ones((1, 8, 8, 8)))
    read(net, tmp_path / 'net')
    assert events[:2] == ['waits', 'reads'] and events.count('waits') == 1
