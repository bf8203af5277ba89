"""Parameters and training states in files: exact when whole, a ValueError when not."""
import io
import pathlib

import numpy as np
import pytest

import d2l_ext
from d2l_ext.devices import mx
from d2l_ext.storage import checkpoints

nd, gluon, nn, autograd = mx.nd, mx.gluon, mx.gluon.nn, mx.autograd
CPU = mx.cpu()
X = nd.array(np.random.RandomState(0).rand(6, 1, 5, 5))
Y = nd.array([0, 1, 2, 0, 1, 2])


def make_net(initialize=True, seed=0, channels=4, outputs=3, hybrid=False):
    """A convolution with batch normalization in a block of its own, and a dense layer."""
    sequential = nn.HybridSequential if hybrid else nn.Sequential
    block, net = nn.HybridSequential(), sequential()
    block.add(nn.Conv2D(channels, 3), nn.BatchNorm())
    net.add(block, nn.Dense(outputs))
    if initialize:
        mx.random.seed(seed)
        net.initialize(mx.init.Xavier())
        net(X)
    return net


def values(net):
    return {name: param.data().asnumpy()
            for name, param in net._collect_params_with_prefix().items()}


def same(one, other):
    return one.keys() == other.keys() and all(np.array_equal(one[key], other[key]) for key in one)


def train(net, trainer, steps):
    loss = gluon.loss.SoftmaxCrossEntropyLoss()
    for _ in range(steps):
        with autograd.record():
            l = loss(net(X), Y)
        l.backward()
        trainer.step(len(X))


NAMES = ['0.0.bias', '0.0.weight', '0.1.beta', '0.1.gamma', '0.1.running_mean', '0.1.running_var',
         '1.bias', '1.weight']


# --- parameters ---

@pytest.mark.parametrize('as_type', [str, pathlib.Path])
@pytest.mark.parametrize('dtype, tolerance', [('float32', 0), ('float16', 1e-3)])
def test_round_trip(tmp_path, as_type, dtype, tolerance):
    path = as_type(tmp_path / 'net.npz')
    net, other = make_net(seed=0), make_net(seed=1)
    train(net, gluon.Trainer(net.collect_params(), 'sgd'), 2)  # moves the running mean too
    assert not same(values(net), values(other))
    d2l_ext.save_params(net, path, dtype=dtype)
    with np.load(path) as file:
        assert sorted(file.files) == NAMES
        assert {file[name].dtype.name for name in NAMES} == {dtype}
    d2l_ext.load_params(other, path)
    for name, value in values(other).items():
        assert value.dtype == np.float32
        np.testing.assert_allclose(value, values(net)[name], rtol=tolerance, atol=tolerance / 100)
    assert same(values(net), values(other)) == (dtype == 'float32')
    np.testing.assert_allclose(other(X).asnumpy(), net(X).asnumpy(), atol=10 * tolerance)


@pytest.mark.parametrize('initialize', [True, False])
@pytest.mark.parametrize('hybrid', [True, False])
def test_nets_that_have_seen_no_image(tmp_path, initialize, hybrid):
    net = make_net()
    d2l_ext.save_params(net, tmp_path / 'net.npz')
    other = make_net(initialize=False, hybrid=hybrid)
    if initialize:
        other.initialize()  # the shapes are not known yet
    if hybrid:
        other.hybridize()
    d2l_ext.load_params(other, tmp_path / 'net.npz')
    assert same(values(other), values(net))  # at once, not only after the first batch
    assert np.array_equal(other(X).asnumpy(), net(X).asnumpy())
    train(other, gluon.Trainer(other.collect_params(), 'sgd'), 1)
    assert not same(values(other), values(net))


def test_names_do_not_depend_on_the_nets_made_before(tmp_path):
    net = make_net()
    d2l_ext.save_params(net, tmp_path / 'net.npz')
    for _ in range(3):
        nn.Conv2D(1, 1), nn.Dense(1), nn.HybridSequential()
    for other in (make_net(seed=1), make_net(seed=1, hybrid=True)):
        assert set(other.collect_params()).isdisjoint(net.collect_params())
        d2l_ext.load_params(other, tmp_path / 'net.npz')
        assert same(values(other), values(net))


@pytest.mark.parametrize('initialize', [True, False])
@pytest.mark.parametrize('other, message', [
    ({'channels': 5}, r'0.0.weight has the shape \(5, 1, 3, 3\) there and \(4, '),
    ({'outputs': 2}, r'1.weight has the shape \(2, 36\) there and \(3, '),
])
def test_parameters_of_other_shapes(tmp_path, other, message, initialize):
    d2l_ext.save_params(make_net(**other), tmp_path / 'net.npz')
    net = make_net(initialize)
    before = values(net) if initialize else None
    with pytest.raises(ValueError, match='net.npz belongs to another network: ' + message):
        d2l_ext.load_params(net, tmp_path / 'net.npz')
    if initialize:
        assert same(values(net), before)
    else:
        assert all(param._data is None for param in net.collect_params().values())
        assert net[1].weight.shape == (3, 0)


@pytest.mark.parametrize('swap', [False, True])
def test_parameters_of_other_layers(tmp_path, swap):
    deep = nn.Sequential()
    deep.add(make_net(), nn.Dense(2))
    deep[1].initialize()
    deep(X)
    saved, net = (make_net(), deep) if swap else (deep, make_net())
    d2l_ext.save_params(saved, tmp_path / 'net.npz')
    before = values(net)
    with pytest.raises(ValueError, match='belongs to another network: .* are missing there'):
        d2l_ext.load_params(net, tmp_path / 'net.npz')
    assert same(values(net), before)


def test_a_file_that_is_not_there(tmp_path):
    for load in (lambda path: d2l_ext.load_params(make_net(), path),
                 lambda path: checkpoints.load_checkpoint(path, make_net(), None, CPU, {})):
        with pytest.raises(FileNotFoundError, match='gone.npz'):
            load(tmp_path / 'gone.npz')


@pytest.mark.parametrize('cut', [0, 1, 30, 0.25, 0.5, 0.9, -60, -1])
def test_a_truncated_file(tmp_path, cut):
    path = tmp_path / 'net.npz'
    d2l_ext.save_params(make_net(), path)
    content = path.read_bytes()
    path.write_bytes(content[:int(cut * len(content)) if isinstance(cut, float) else cut])
    net = make_net(seed=1)
    before, kept = values(net), path.read_bytes()
    with pytest.raises(ValueError, match='net.npz cannot be read as a .npz file of arrays'):
        d2l_ext.load_params(net, path)
    assert same(values(net), before) and path.read_bytes() == kept


def test_a_flipped_bit_never_changes_the_net(tmp_path):
    """Some bits, such as those of a date, mean nothing; all others must be noticed."""
    path = tmp_path / 'net.npz'
    net, other = make_net(), make_net(seed=1)
    d2l_ext.save_params(net, path)
    content = path.read_bytes()
    before, noticed = values(other), 0
    places = np.random.RandomState(0).permutation(8 * len(content))[:300]
    for place in places:
        damaged = bytearray(content)
        damaged[place // 8] ^= 1 << place % 8
        path.write_bytes(damaged)
        try:
            d2l_ext.load_params(other, path)
        except ValueError:
            noticed += 1
            assert same(values(other), before)
        else:
            assert same(values(other), values(net))
            other = make_net(seed=1)
    assert noticed > 200


def test_a_flipped_bit_in_front_of_an_array_is_noticed(tmp_path):
    """Arrays of more than 4 KB: NumPy believes their header before it knows the check sum."""
    path, net = tmp_path / 'net.npz', nn.Dense(40, in_units=30)
    net.initialize()
    d2l_ext.save_params(net, path)
    content, before = path.read_bytes(), values(net)
    start = content.index(b'\x93NUMPY')
    for place in range(8 * start, 8 * content.index(b'}', start)):
        damaged = bytearray(content)
        damaged[place // 8] ^= 1 << place % 8
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match='net.npz cannot be read'):
            d2l_ext.load_params(net, path)
    assert same(values(net), before)


def npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


@pytest.mark.parametrize('write', [
    lambda path: path.write_bytes(b'\x80\x04N.'),  # a pickle
    lambda path: path.write_text('{"not": "arrays"}'),
    lambda path: path.write_bytes(npy(np.zeros(3))),
    lambda path: nd.save(str(path), {'weight': nd.zeros(3)}),  # what net.save_parameters writes
])
def test_files_of_other_kinds(tmp_path, write):
    path = tmp_path / 'net.npz'
    write(path)
    with pytest.raises(ValueError, match='net.npz cannot be read as a .npz file of arrays'):
        d2l_ext.load_params(make_net(), path)


def test_text_is_no_parameter(tmp_path):
    net = make_net()
    before = values(net)
    np.savez(tmp_path / 'net.npz', **{**before, '1.bias': np.array(['a', 'b', 'c'])})
    with pytest.raises(ValueError, match='1.bias'):
        d2l_ext.load_params(net, tmp_path / 'net.npz')
    assert same(values(net), before)


class Evil:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return pathlib.Path.touch, (self.path,)


def test_pickled_objects_are_refused(tmp_path):
    net = make_net()
    before = values(net)
    evil = np.empty(3, object)
    evil[:] = Evil(tmp_path / 'ran')
    path = tmp_path / 'net.npz'
    np.savez(path, **{**before, '1.bias': evil})
    with pytest.raises(ValueError, match='net.npz cannot be read as a .npz file of arrays'):
        d2l_ext.load_params(net, path)
    assert same(values(net), before) and not (tmp_path / 'ran').exists()
    with np.load(path, allow_pickle=True) as file:
        file['1.bias']
    assert (tmp_path / 'ran').exists()  # so the file was a real danger


# --- whole training states ---

OPTIMIZERS = {
    'sgd': ('sgd', {'learning_rate': 0.1}),
    'momentum': ('sgd', {'learning_rate': 0.1, 'momentum': 0.9, 'wd': 1e-3}),
    'adam': ('adam', {'learning_rate': 0.01}),
}
HISTORY = [{'epoch': 1, 'loss': 1 / 3, 'train_acc': 0.1, 'test_acc': 0.2, 'seconds': 1.5}]


def make_trainer(net, kind):
    name, arguments = OPTIMIZERS[kind]
    return gluon.Trainer(net.collect_params(), name, dict(arguments))


def states(net, trainer):
    """Return the optimizer's arrays by the place of their layer, and its numbers of updates."""
    arrays, updates = {}, {}
    for name, param in net._collect_params_with_prefix().items():
        i = trainer._param2idx[param.name]
        state = trainer._updaters[0].states.get(i)
        for j, array in enumerate(state if isinstance(state, tuple) else [state]):
            if array is not None:
                arrays[f'{name}/{j}'] = array.asnumpy()
        updates[name] = trainer._optimizer._index_update_count.get(i, 0)
    return arrays, updates, trainer._optimizer.num_update


@pytest.mark.parametrize('kind, arrays', [('sgd', 0), ('momentum', 6), ('adam', 12)])
@pytest.mark.parametrize('fresh', [True, False])  # whether the net that goes on has seen no image
def test_going_on_from_a_checkpoint(tmp_path, kind, arrays, fresh):
    path = tmp_path / 'run.npz'
    net = make_net()
    trainer = make_trainer(net, kind)
    train(net, trainer, 3)
    checkpoints.save_checkpoint(path, net, trainer, CPU, HISTORY, {'seed': 2**32 - 1})
    kept_values, kept_states = values(net), states(net, trainer)
    assert len(kept_states[0]) == arrays and kept_states[2] == 3
    assert all(np.any(array) for array in kept_states[0].values())
    assert set(kept_states[1].values()) == {0, 3}  # the running mean and variance are no weights

    other = make_net(initialize=not fresh, seed=1)
    if fresh:
        other.initialize()
    else:
        train(other, make_trainer(other, kind), 1)
    other_trainer = make_trainer(other, kind)
    assert checkpoints.load_checkpoint(path, other, other_trainer, CPU, {}) == (HISTORY, 2**32 - 1)
    assert same(values(other), kept_values)
    assert same(states(other, other_trainer)[0], kept_states[0])
    assert states(other, other_trainer)[1:] == kept_states[1:]

    train(net, trainer, 2)
    train(other, other_trainer, 2)
    assert same(values(other), values(net)) and not same(values(net), kept_values)
    assert same(states(other, other_trainer)[0], states(net, trainer)[0])


def test_a_checkpoint_before_the_first_step(tmp_path):
    net = make_net()
    trainer = make_trainer(net, 'adam')
    checkpoints.save_checkpoint(tmp_path / 'run.npz', net, trainer, CPU, [], {'seed': 0})
    other = make_net(seed=1)
    trainer = make_trainer(other, 'adam')
    assert checkpoints.load_checkpoint(tmp_path / 'run.npz', other, trainer, CPU, {}) == ([], 0)
    assert same(values(other), values(net)) and states(other, trainer)[2] == 0


@pytest.mark.parametrize('kept, here', [('sgd', 'adam'), ('adam', 'momentum'), ('sgd', 'momentum'),
                                        ('momentum', 'sgd')])
def test_a_checkpoint_of_another_optimizer(tmp_path, kept, here):
    net = make_net()
    trainer = make_trainer(net, kept)
    train(net, trainer, 2)
    checkpoints.save_checkpoint(tmp_path / 'run.npz', net, trainer, CPU, HISTORY, {'seed': 0})
    other = make_net(seed=1)
    trainer = make_trainer(other, here)
    before = values(other)
    with pytest.raises(ValueError, match='run.npz .*optimizer'):
        checkpoints.load_checkpoint(tmp_path / 'run.npz', other, trainer, CPU, {})
    assert same(values(other), before) and states(other, trainer)[2] == 0


@pytest.mark.parametrize('other', [{'channels': 5}, {'outputs': 2}])
def test_a_checkpoint_of_another_network(tmp_path, other):
    net = make_net(**other)
    trainer = make_trainer(net, 'momentum')
    train(net, trainer, 1)
    checkpoints.save_checkpoint(tmp_path / 'run.npz', net, trainer, CPU, HISTORY, {'seed': 0})
    net = make_net()
    trainer = make_trainer(net, 'momentum')
    before = values(net)
    with pytest.raises(ValueError, match='run.npz belongs to another network'):
        checkpoints.load_checkpoint(tmp_path / 'run.npz', net, trainer, CPU, {})
    assert same(values(net), before) and states(net, trainer)[0] == {}


def test_files_that_are_no_checkpoint(tmp_path):
    path, net = tmp_path / 'run.npz', make_net()
    trainer = make_trainer(net, 'sgd')
    before = values(net)
    d2l_ext.save_params(make_net(seed=1), path)
    for about in (None, '[]', '{"seed": 1}', '{', 7):
        if about is not None:
            np.savez(path, about=np.array(about))
        with pytest.raises(ValueError, match='run.npz is not a checkpoint of train_ch5'):
            checkpoints.load_checkpoint(path, net, trainer, CPU, {})
    assert same(values(net), before)


@pytest.mark.parametrize('cut', [0, 0.3, 0.8, -1])
def test_a_truncated_checkpoint(tmp_path, cut):
    path, net = tmp_path / 'run.npz', make_net()
    trainer = make_trainer(net, 'adam')
    train(net, trainer, 1)
    checkpoints.save_checkpoint(path, net, trainer, CPU, HISTORY, {'seed': 0})
    content = path.read_bytes()
    path.write_bytes(content[:int(cut * len(content)) if isinstance(cut, float) else cut])
    before = values(net)
    with pytest.raises(ValueError, match='run.npz cannot be read as a .npz file of arrays'):
        checkpoints.load_checkpoint(path, net, trainer, CPU, {})
    assert same(values(net), before)


def test_nothing_is_pickled(tmp_path):
    net = make_net()
    trainer = make_trainer(net, 'adam')
    train(net, trainer, 1)
    checkpoints.save_checkpoint(tmp_path / 'run.npz', net, trainer, CPU, HISTORY, {'seed': 0})
    with np.load(tmp_path / 'run.npz', allow_pickle=False) as file:
        assert all(file[name].dtype.kind in 'fU' for name in file.files)
        assert len([name for name in file.files if name.startswith('param:')]) == len(NAMES)
