"""float16: MXNet's conversion and loss scaler. On the CPU its plumbing, on a GPU training itself.

The tests marked `gpu` run where MXNet can compute on a GPU and are skipped elsewhere.
"""
import numpy as np
import pytest
from test_training import assert_same, values, without_seconds

import d2l_ext
from d2l_ext import graphs, range_test, training
from d2l_ext.data import load_data_digits
from d2l_ext.devices import mx, resolve_precision
from d2l_ext.graphs import choosing, compiling, scale_losses, set_loss_scaling
from d2l_ext.hardware import cuda

nd, gluon, nn = mx.nd, mx.gluon, mx.gluon.nn
CPU = mx.cpu()


def small_net(ctx=CPU):
    net = nn.HybridSequential()
    net.add(nn.Conv2D(8, 3, activation='relu'), nn.BatchNorm(), nn.Dropout(0.2), nn.Conv2D(10, 3),
            nn.GlobalAvgPool2D(), nn.Flatten())
    mx.random.seed(1)
    net.initialize(mx.init.Xavier(), ctx=ctx)
    return net


def train(num_epochs, precision='float16', ctx=CPU, net=None, trainer=None, **arguments):
    devices = ctx if isinstance(ctx, list) else [ctx]
    train_iter, test_iter = load_data_digits(40, ctx=devices[0])
    net = net or small_net(ctx)
    trainer = trainer or gluon.Trainer(net.collect_params(), 'sgd', {'learning_rate': 0.1,
                                                                     'momentum': 0.9})
    history = d2l_ext.train_ch5(net, train_iter.take(200), test_iter, 40, trainer, ctx, num_epochs,
                                precision=precision, seed=0, **arguments)
    return net, trainer, history


# --- on the CPU ---

def test_the_graph_computes_in_float16_and_returns_float32():
    net = small_net()
    symbol = graphs.compiled(net, 'float16')(mx.sym.var('data', dtype='float32'))
    arguments, (output,), _ = symbol.infer_type(data='float32')
    assert output == np.float32 and set(arguments) == {np.float32}  # parameters and gradients too
    internals = symbol.get_internals()
    types = dict(zip(internals.list_outputs(), internals.infer_type(data='float32')[1]))
    convolutions = [kind for name, kind in types.items() if 'conv' in name and '_fwd' in name]
    assert convolutions and set(convolutions) == {np.float16}
    assert net(nd.ones((2, 1, 8, 8))).dtype == np.float32  # the net itself stays as it is


def test_a_cpu_is_refused_with_advice():
    with pytest.raises(ValueError, match="does not work on a CPU.*precision='auto'"):
        train(1)
    with pytest.raises(ValueError, match='does not work on a CPU'):
        d2l_ext.predict(small_net(), [], CPU, 'float16')
    assert resolve_precision('float16', mx.gpu()) == 'float16'
    assert resolve_precision('auto', mx.gpu()) == 'float32'


@pytest.fixture
def on_cpu(monkeypatch):
    """The loss scaler of float16 around layers in float32, which alone the CPU has."""
    from mxnet.contrib import amp
    monkeypatch.setattr(choosing, 'resolve_precision',
                        lambda precision, ctx: 'float32' if precision == 'auto' else precision)
    monkeypatch.setattr(amp, 'convert_symbol', lambda symbol, *_, **__: symbol)
    monkeypatch.setattr(compiling, 'has_tensor_cores', lambda: False)


def test_scaling_by_a_power_of_two_changes_no_number(on_cpu):
    net, trainer, history = train(2)
    assert trainer._amp_loss_scaler.loss_scale == 2**16
    plain, _, expected = train(2, 'float32')
    assert without_seconds(history) == without_seconds(expected)
    assert_same(net, plain)


def test_a_step_that_overflows_is_skipped_and_the_scale_halves(on_cpu):
    net = small_net()
    trainer = gluon.Trainer(net.collect_params(), 'sgd', {'learning_rate': 0.1})
    set_loss_scaling(trainer, True)
    scaler = trainer._amp_loss_scaler
    X, y = next(iter(load_data_digits(40, ctx=CPU)[0]))
    net(X)
    before = values(net)
    scaler._loss_scale = scaler._next_loss_scale = 2.**140  # the gradients of float32 are infinite
    train(1, net=net, trainer=trainer)
    for name in before:  # all five steps overflowed
        if 'running' not in name:
            np.testing.assert_array_equal(values(net)[name], before[name])
    assert trainer._optimizer.num_update == 0
    assert scaler._next_loss_scale == 2.**135
    scaler._loss_scale = scaler._next_loss_scale = 2.**20
    train(1, net=net, trainer=trainer)
    assert trainer._optimizer.num_update == 5 and scaler.loss_scale == 2.**20
    assert not np.array_equal(values(net)['0.weight'], before['0.weight'])


def test_the_scale_stays_in_the_checkpoint(on_cpu, tmp_path, monkeypatch):
    from mxnet.contrib.amp.loss_scaler import LossScaler
    start = LossScaler.__init__

    def impatient(self):
        start(self)
        self._scale_seq_len = 7  # doubles every 7 steps, so that its count matters: an epoch is 5

    monkeypatch.setattr(LossScaler, '__init__', impatient)
    whole, trainer, history = train(4)
    path = tmp_path / 'run.npz'
    train(1, checkpoint=path)
    resumed, other, same = train(4, checkpoint=path, resume=True)
    assert vars(other._amp_loss_scaler) == vars(trainer._amp_loss_scaler)
    assert other._amp_loss_scaler._next_loss_scale == 2**18
    assert without_seconds(same) == without_seconds(history)
    assert_same(resumed, whole)


def test_a_trainer_goes_back_to_float32(on_cpu):
    net, trainer, _ = train(1)
    other, plain, _ = train(1, 'float32')
    assert hasattr(trainer, '_amp_loss_scaler')
    train(1, 'float32', net=net, trainer=trainer)
    train(1, 'float32', net=other, trainer=plain)
    assert not hasattr(trainer, '_amp_loss_scaler') and trainer._scale == plain._scale == 1
    assert_same(net, other)


def test_two_devices_share_one_scale(on_cpu):
    ctx = [mx.cpu(0), mx.cpu(1)]
    net, trainer, _ = train(1, ctx=ctx, net=small_net(ctx))
    assert trainer._amp_loss_scaler.loss_scale == 2**16
    for param in net.collect_params().values():
        one, two = (array.asnumpy() for array in param.list_data())
        np.testing.assert_array_equal(one, two)


def test_a_range_test_scales_by_itself_and_leaves_the_trainer_alone(on_cpu, monkeypatch):
    net, trainer, _ = train(1)
    before = dict(vars(trainer._amp_loss_scaler)), trainer._scale
    other, plain, _ = train(1, 'float32')
    batches, _ = load_data_digits(40, ctx=CPU)
    expected = range_test(other, batches, plain, CPU, num_steps=10, precision='float32')
    assert len(set(expected.losses)) == 10
    scaled = []
    monkeypatch.setattr(training, 'scale_losses', lambda losses, trainer: scaled.append(
        hasattr(trainer, '_amp_loss_scaler')) or scale_losses(losses, trainer))
    for precision in ('float16', 'float32'):
        assert range_test(net, batches, trainer, CPU, num_steps=10, precision=precision) == expected
        assert (vars(trainer._amp_loss_scaler), trainer._scale) == before
    assert scaled == [True] * 10 + [False] * 10


def test_float16_needs_a_graph(on_cpu):
    net = small_net()
    net[0].register_forward_hook(lambda *_: None)
    with pytest.raises(ValueError, match="precision='float16' needs a net of hybrid blocks"):
        train(1, net=net)


# --- on a GPU ---

@pytest.fixture
def gpu():
    """The first GPU; without one, the test is skipped and says why."""
    ctx = d2l_ext.try_gpu()
    if ctx.device_type != 'gpu':
        problems, _ = cuda.check()
        pytest.skip(problems[0].what if problems else 'the installed MXNet computes on the CPU')
    return ctx


@pytest.mark.gpu
@pytest.mark.parametrize('precision', ['auto', 'float32', 'float16'])
def test_trains_on_a_gpu(gpu, precision):
    net, trainer, history = train(20, precision, gpu)
    assert history[-1]['test_acc'] > 0.5 and history[-1]['loss'] < history[0]['loss'] / 1.5
    assert hasattr(trainer, '_amp_loss_scaler') == (precision == 'float16')
    assert all(value.dtype == np.float32 for value in values(net).values())


@pytest.mark.gpu
def test_float16_on_a_gpu_is_close_and_another_precision(gpu):
    net = small_net(gpu)
    X = next(iter(load_data_digits(40, ctx=gpu)[0]))[0]
    exact, fast = net(X), graphs.compiled(net, 'float16')(X)
    error = abs(exact - fast).max().asscalar() / abs(exact).max().asscalar()
    assert fast.dtype == np.float32 and 1e-6 < error < 0.02


@pytest.mark.gpu
@pytest.mark.parametrize('precision', ['float32', 'float16'])
def test_resumes_on_a_gpu(gpu, precision, tmp_path):
    train(1, precision, gpu, checkpoint=tmp_path / 'run.npz')
    _, _, history = train(2, precision, gpu, checkpoint=tmp_path / 'run.npz', resume=True)
    assert [row['epoch'] for row in history] == [1, 2]
