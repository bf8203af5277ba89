"""The training loop: the book's arithmetic, checkpoints, and what it says of broken runs."""
import math
import re
import types

import numpy as np
import pytest

import d2l_ext
from d2l_ext import progress, training
from d2l_ext.batches import Batches, num_images
from d2l_ext.checks import watch as watching
from d2l_ext.devices import has_bfloat16, mx
from d2l_ext.graphs import choosing, compiled
from d2l_ext.scale.workers import Workers

nd, gluon, nn, autograd, init = mx.nd, mx.gluon, mx.gluon.nn, mx.autograd, mx.init
CPU = mx.cpu()


def small_net(hybrid=True):
    """A plain net of nested sequences, as the section writes its own."""
    sequential = nn.HybridSequential if hybrid else nn.Sequential
    block, net = sequential(), sequential()
    block.add(nn.Conv2D(8, 3, padding=1, activation='relu'), nn.BatchNorm(),
              nn.Conv2D(8, 1, activation='relu'))
    net.add(block, nn.MaxPool2D(2, 2), nn.Dropout(0.3), nn.Conv2D(10, 3), nn.GlobalAvgPool2D(),
            nn.Flatten())
    return net


def make_batches(number=70, batch_size=32, shuffle=True):
    """Images whose brightness in one of ten bands tells the class; the last batch is smaller."""
    random = np.random.RandomState(0)
    labels = np.arange(number) % 10
    images = random.randint(0, 60, (number, 10, 10)).astype(np.uint8)
    images[np.arange(number), labels] += 190
    return Batches(images, labels, batch_size, shuffle=shuffle, ctx=CPU)


def train(net=None, batches=None, num_epochs=2, optimizer='sgd', optimizer_params=None, seed=0,
          initializer=None, **arguments):
    net = net or small_net()
    batches = batches if batches is not None else make_batches()
    mx.random.seed(1)
    if not any(param._data for param in net.collect_params().values()):
        net.initialize(initializer or init.Xavier(), force_reinit=True)
    trainer = gluon.Trainer(net.collect_params(), optimizer,
                            optimizer_params or {'learning_rate': 0.1})
    arguments.setdefault('precision', 'float32')
    history = d2l_ext.train_ch5(net, batches, batches, 32, trainer, CPU, num_epochs, seed=seed,
                                **arguments)
    return net, history


def values(net):
    return {name: param.data().asnumpy()
            for name, param in net._collect_params_with_prefix().items()}


def assert_same(net, other):
    for name, value in values(net).items():
        np.testing.assert_array_equal(value, values(other)[name], err_msg=name)


def without_seconds(history):
    return [{key: value for key, value in row.items() if key != 'seconds'} for row in history]


def test_prints_and_returns_what_the_section_prints(capsys):
    _, history = train()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == 'training on cpu(0)'
    for line, row in zip(lines[1:], history):
        assert re.fullmatch(r'epoch \d, loss \d\.\d{4}, train acc \d\.\d{3}, test acc \d\.\d{3}, '
                            r'time \d+\.\d sec', line)
        assert line.startswith(f"epoch {row['epoch']}, loss {row['loss']:.4f}, train acc "
                               f"{row['train_acc']:.3f}, test acc {row['test_acc']:.3f}, time ")
    assert [row['epoch'] for row in history] == [1, 2]
    assert all(row['seconds'] > 0 for row in history)


def test_learns():
    _, history = train(num_epochs=25, optimizer='adam', optimizer_params={'learning_rate': 0.01})
    assert history[-1]['test_acc'] > 0.9 and history[-1]['loss'] < history[0]['loss'] / 2


def test_same_numbers_as_a_plain_gluon_loop():
    """Loss, accuracy, and parameters of the fast path are those of the loop in the book."""
    batches = list(make_batches(shuffle=False))

    def fresh():
        net = nn.Sequential()  # no dropout: the two loops would draw differently
        net.add(nn.Conv2D(8, 3, activation='relu'), nn.GlobalAvgPool2D(), nn.Dense(10))
        mx.random.seed(3)
        net.initialize(init.Xavier())
        net(batches[0][0])
        return net, gluon.Trainer(net.collect_params(), 'sgd', {'learning_rate': 0.1})

    net, trainer = fresh()
    loss_function, losses, right = gluon.loss.SoftmaxCrossEntropyLoss(), 0., 0.
    for X, y in batches:
        with autograd.record():
            logits = net(X)
            l = loss_function(logits, y)
        l.backward()
        trainer.step(len(X))  # the last batch has its own size
        losses += l.sum().asscalar()
        right += (logits.argmax(axis=1) == y.astype('float32')).sum().asscalar()
    fast, trainer = fresh()
    (row,) = d2l_ext.train_ch5(fast, batches, batches, 32, trainer, CPU, 1, precision='float32')
    assert row['loss'] == pytest.approx(losses / 70, rel=1e-5)
    assert row['train_acc'] == pytest.approx(right / 70)
    for name, value in values(net).items():
        np.testing.assert_allclose(values(fast)[name], value, atol=1e-6)
    expected = sum((net(X).argmax(axis=1) == y.astype('float32')).sum().asscalar()
                   for X, y in batches) / 70
    assert row['test_acc'] == pytest.approx(expected)
    assert d2l_ext.evaluate_accuracy(net, batches, CPU, 'float32') == pytest.approx(expected)


def test_plain_sequential_trains_like_a_hybrid_one_and_stays_as_it_is():
    plain, history = train(small_net(hybrid=False))
    hybrid, other = train(small_net(hybrid=True))
    assert without_seconds(history) == without_seconds(other)
    assert_same(plain, hybrid)
    assert type(plain) is nn.Sequential and not any(
        getattr(block, '_active', False) for block in (*plain, *plain[0]))


class Custom(gluon.Block):
    """A block that no graph can stand for."""

    def __init__(self):
        super().__init__()
        self.dense = nn.Dense(10)

    def forward(self, X):
        return self.dense(X.reshape((X.shape[0], -1)))


def test_blocks_that_cannot_be_traced_and_hooks_run_layer_by_layer():
    custom = Custom()
    assert compiled(custom) is custom
    _, history = train(custom)
    assert history[1]['loss'] < history[0]['loss']
    hooked, seen = small_net(), []
    hooked[0].register_forward_hook(lambda block, inputs, out: seen.append(out.shape))
    train(hooked, num_epochs=1)
    assert (32, 8, 10, 10) in seen


@pytest.mark.parametrize('make', [
    lambda: list(make_batches()),
    lambda: [(X.asnumpy(), y.asnumpy()) for X, y in make_batches()],
    lambda: gluon.data.DataLoader(gluon.data.ArrayDataset(
        mx.nd.random.uniform(shape=(70, 1, 10, 10)), np.arange(70, dtype='float32') % 10), 32,
        shuffle=True),
], ids=['list', 'numpy', 'DataLoader'])
def test_iterators_of_all_kinds(make):
    batches = make()
    _, history = train(batches=batches)
    _, again = train(batches=batches)
    assert without_seconds(history) == without_seconds(again)
    assert history[0]['loss'] > 0


def test_the_seed_decides_everything():
    one, history = train(seed=5)
    two, same = train(seed=5)
    _, other = train(seed=6)
    assert without_seconds(history) == without_seconds(same) != without_seconds(other)
    assert_same(one, two)


def test_without_a_seed_numpys_generator_decides():
    np.random.seed(8)
    _, history = train(seed=None)
    np.random.seed(8)
    _, same = train(seed=None)
    _, other = train(seed=None)
    assert without_seconds(history) == without_seconds(same) != without_seconds(other)


# Precision ------------------------------------------------------------------------------------

needs_bfloat16 = pytest.mark.skipif(not has_bfloat16(), reason='no bfloat16 instructions here')


@needs_bfloat16
@pytest.mark.parametrize('last', [nn.Flatten, lambda: nn.Dense(10)], ids=['flatten', 'dense'])
def test_bfloat16_is_close_and_stays_inside_the_run(last):
    net = small_net(hybrid=False)
    net.add(last())
    net.initialize(init.Xavier())
    X = next(iter(make_batches()))[0]
    exact = net(X)
    fast = compiled(net, 'bfloat16')(X)
    assert fast.dtype == np.float32
    error = abs(exact - fast).max().asscalar() / abs(exact).max().asscalar()
    assert 1e-6 < error < 0.02  # really another precision, and only slightly so
    train(net, precision='bfloat16')
    params = net.collect_params().values()
    assert all(param.data().dtype == np.float32 for param in params)
    assert all(param.grad().dtype == np.float32 for param in params if param.grad_req != 'null')
    np.testing.assert_array_equal(net(X).asnumpy(), compiled(net)(X).asnumpy())


@needs_bfloat16
def test_bfloat16_trains_to_the_same_loss():
    losses = [train(num_epochs=6, precision=precision)[1][-1]['loss']
              for precision in ('float32', 'bfloat16')]
    assert losses[0] != losses[1] and losses[1] == pytest.approx(losses[0], rel=0.1)


# Checkpoints ----------------------------------------------------------------------------------

@pytest.mark.parametrize('optimizer, optimizer_params', [
    ('sgd', {'learning_rate': 0.1}), ('sgd', {'learning_rate': 0.1, 'momentum': 0.9, 'wd': 1e-3}),
    ('adam', {'learning_rate': 0.01}), ('nadam', {'learning_rate': 0.01}),
    ('sgd', {'lr_scheduler': mx.lr_scheduler.CosineScheduler(20, base_lr=0.1)}),
])
def test_resumed_run_equals_an_uninterrupted_one(tmp_path, optimizer, optimizer_params, capsys):
    settings = {'optimizer': optimizer, 'optimizer_params': optimizer_params}
    whole, history = train(num_epochs=4, **settings)
    path = tmp_path / 'run.npz'
    train(num_epochs=1, checkpoint=path, resume=True, **settings)
    gluon.nn.Dense(3)  # shifts Gluon's name counters, as other cells of a notebook do
    train(num_epochs=3, checkpoint=path, resume=True, seed=None, **settings)
    capsys.readouterr()
    resumed, same = train(num_epochs=4, checkpoint=path, resume=True, **settings)
    assert f'going on after epoch 3, from {path}' in capsys.readouterr().out
    assert without_seconds(same) == without_seconds(history)
    assert_same(resumed, whole)


def test_a_finished_run_is_not_trained_again(tmp_path):
    net, history = train(checkpoint=tmp_path / 'run.npz')
    again, same = train(checkpoint=tmp_path / 'run.npz', resume=True)
    assert same == history
    assert_same(net, again)


def test_checkpoint_of_another_network_or_setting(tmp_path, monkeypatch):
    path = tmp_path / 'run.npz'
    train(checkpoint=path)
    content = path.read_bytes()
    other = nn.HybridSequential()
    other.add(nn.Dense(10))
    with pytest.raises(ValueError, match='another network'):
        train(other, checkpoint=path, resume=True)
    with pytest.raises(ValueError, match='seed=0, not 3'):
        train(checkpoint=path, resume=True, seed=3)
    with pytest.raises(ValueError, match="precision='float32', not 'bfloat16'"):
        monkeypatch.setattr(choosing, 'resolve_precision', lambda *_: 'bfloat16')
        train(checkpoint=path, resume=True)
    assert path.read_bytes() == content


def test_an_earlier_checkpoint_is_kept_when_nobody_asks_to_resume(tmp_path, capsys):
    path, previous = tmp_path / 'nin.npz', tmp_path / 'nin.npz.previous'
    train(num_epochs=2, checkpoint=path)
    content = path.read_bytes()
    assert not previous.exists()
    train(num_epochs=1, checkpoint=path, seed=1)
    assert previous.read_bytes() == content != path.read_bytes()
    assert f'the checkpoint of an earlier run is now {previous}\n' in capsys.readouterr().out
    second = path.read_bytes()
    for i in (2, 3):
        train(num_epochs=1, checkpoint=path, seed=i)
        assert f'earlier run is now {previous}{i}\n' in capsys.readouterr().out
    assert previous.read_bytes() == content
    assert (tmp_path / 'nin.npz.previous2').read_bytes() == second


def test_resume_needs_a_checkpoint():
    with pytest.raises(ValueError, match='checkpoint='):
        train(resume=True)


# Broken runs ----------------------------------------------------------------------------------

def dead_net():
    """A net whose last ReLU gives zeros only, however it is trained."""
    net = nn.HybridSequential()
    net.add(nn.Conv2D(10, 3, activation='relu', bias_initializer=init.Constant(-100)),
            nn.GlobalAvgPool2D(), nn.Flatten())
    return net


def test_a_dead_start_is_explained_once(capsys):
    _, history = train(dead_net(), num_epochs=3)
    out = capsys.readouterr().out
    assert out.count('dead start') == 1 and 'MSRAPrelu' in out and '2.302585' in out
    assert out.index('dead start') < out.index('epoch 1,')
    assert all(len(line) <= 100 for line in out.splitlines())
    assert history[-1]['loss'] == pytest.approx(math.log(10), abs=1e-5)


def test_a_dead_start_is_told_before_a_long_epoch_ends(capsys, monkeypatch):
    monkeypatch.setattr(watching, '_LOOK_EVERY', 2)
    batches = list(make_batches(320))
    net = dead_net()
    told_after = []

    class Counting(list):
        def __iter__(self):
            for i, batch in enumerate(list.__iter__(self)):
                if 'dead start' in capsys.readouterr().out:
                    told_after.append(i)
                yield batch

    train(net, batches=Counting(batches), num_epochs=1)
    assert told_after[0] == 6  # five in a row, seen at the next look


def test_a_start_that_dies_on_the_way_is_told_in_the_same_epoch(capsys):
    """The bias is large enough to pass the first batches, and is then driven down."""
    batches = list(make_batches(320))
    net = dead_net()
    net.initialize(init.Xavier())
    net(batches[0][0])

    class Dying(list):
        def __iter__(self):
            for i, batch in enumerate(list.__iter__(self)):
                net[0].bias.set_data(nd.full((10,), 100. if i < 4 else -1e6))
                yield batch

    train(net, batches=Dying(batches), num_epochs=1)
    assert capsys.readouterr().out.count('dead start') == 1


def test_zeros_before_the_first_step_are_no_dead_start(capsys):
    net = nn.HybridSequential()
    net.add(nn.Dense(10, weight_initializer='zeros'))
    train(net, batches=[next(iter(make_batches()))], num_epochs=2)
    assert 'dead' not in capsys.readouterr().out


def test_a_healthy_run_is_not_called_dead(capsys):
    train(num_epochs=3)
    assert 'dead' not in capsys.readouterr().out


def test_a_loss_that_is_no_number_stops_and_leaves_the_checkpoint(tmp_path):
    path = tmp_path / 'run.npz'
    settings = {'num_epochs': 9, 'checkpoint': path, 'optimizer_params': {'learning_rate': 1e18}}
    train(**{**settings, 'num_epochs': 1, 'optimizer_params': {'learning_rate': 0.1}})
    content = path.read_bytes()
    with pytest.raises(FloatingPointError, match='epoch 2.*smaller learning rate'):
        train(resume=True, **settings)
    assert path.read_bytes() == content


@pytest.mark.parametrize('change, message', [
    (lambda X, y: (X, y + 5), 'labels are outside 0 to 9'),
    (lambda X, y: (X, y - 1), 'labels are outside 0 to 9'),
    (lambda X, y: (X[:, 0], y), 'cannot take the shape'),
    (lambda X, y: (X[:, :, :2, :2], y), 'cannot take the shape'),
    (lambda X, y: (X, y[:-1]), 'needs labels y of shape'),
    (lambda X, y: (X.astype('float64'), y), 'must be float32'),
    (lambda X, y: (nd.concat(X, X, dim=0), nd.concat(y, y, dim=0)), 'batch_size is 32'),
])
def test_wrong_batches(change, message):
    with pytest.raises(ValueError, match=message):
        train(batches=[change(X, y) for X, y in make_batches()])


@pytest.mark.parametrize('batches, message', [
    ([], 'test_iter yields no batch'), (iter(()), 'train_iter yields no batch')],
    ids=['list', 'iterator'])
def test_no_batches(batches, message):
    with pytest.raises(ValueError, match=message):
        train(batches=batches)


def test_a_worker_goes_on_without_an_image_of_its_own():
    net = nn.Dense(10, in_units=100)
    net.initialize()
    before = net.weight.data().asnumpy()
    trainer = gluon.Trainer(net.collect_params(), 'sgd', {'learning_rate': 0.1})
    run = training.Run(net, trainer, CPU, 'float32')
    run.team = Workers(types.SimpleNamespace(rank=1, num_workers=2))
    run.team.sum = np.asarray
    watch = watching.Watch(net, CPU, print)
    watch.begin(1)
    images = make_batches(3, batch_size=1)  # the first worker has them all
    with progress.progress_bar(3, ' images', 'epoch 1') as bar:
        assert run.epoch(images, 1, watch, bar) == [0, 0]
    np.testing.assert_array_equal(net.weight.data().asnumpy(), before)


@pytest.mark.parametrize('change, error, message', [
    (lambda X, y: (X.astype('uint8'), y), ValueError, 'must be float32'),
    (lambda X, y: (X.asnumpy().astype('uint8'), y), ValueError, 'must be float32, not uint8'),
    (lambda X, y: (X[:, 0], y), ValueError, 'cannot take the shape'),
    (lambda X, y: (X, y + 90), ValueError, 'outside 0 to 9'),
    (lambda X, y: (X * math.nan, y), FloatingPointError, 'images hold NaN'),
])
def test_predict_checks_its_batches_too(change, error, message):
    net = small_net()
    net.initialize()
    with pytest.raises(error, match=message):
        d2l_ext.predict(net, [change(X, y) for X, y in make_batches()], CPU, 'float32')
    with pytest.raises(ValueError, match='data_iter yields no batch'):
        d2l_ext.evaluate_accuracy(net, [], CPU)
    batches = make_batches()
    assert (d2l_ext.evaluate_accuracy(batches, net, CPU)  # the order of 2019
            == d2l_ext.evaluate_accuracy(net, batches, CPU))


def test_bfloat16_needs_a_graph(monkeypatch):
    monkeypatch.setattr(choosing, 'resolve_precision', lambda precision, ctx: 'bfloat16')
    with pytest.raises(ValueError, match='hybrid blocks'):
        train(Custom(), precision='bfloat16')
    train(Custom(), precision='auto')


def test_a_hybrid_block_that_asks_for_shapes_runs_layer_by_layer():
    class Asking(gluon.HybridBlock):
        def __init__(self):
            super().__init__()
            self.dense = nn.Dense(10)

        def hybrid_forward(self, F, X):
            return self.dense(X.reshape((X.shape[0], -1)))

    _, history = train(Asking())
    assert history[1]['loss'] < history[0]['loss']


def test_net_without_logits():
    net = nn.HybridSequential()
    net.add(nn.Conv2D(10, 3))
    with pytest.raises(ValueError, match='logits of shape'):
        train(net)


def test_the_bar_is_silent_where_there_is_no_terminal(capfd, monkeypatch):
    monkeypatch.setattr(progress, 'DELAY', 0)  # or the run would end before any bar appears
    train(num_epochs=1)
    assert capfd.readouterr().err == ''


def loader(last_batch):
    data = gluon.data.ArrayDataset(np.zeros((70, 1, 10, 10), 'float32'), np.arange(70) % 10)
    return gluon.data.DataLoader(data, 32, last_batch=last_batch)


@pytest.mark.parametrize('batches, number', [
    (make_batches(70), 70), (loader('keep'), 70), (loader('discard'), 64),
    (list(make_batches(70)), 96), (iter(()), None)],
    ids=['Batches', 'keep', 'discard', 'list', 'iterator'])
def test_the_bar_knows_how_many_images_there_are(batches, number):
    assert num_images(batches, 32) == number
