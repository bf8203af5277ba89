"""Networks in other runtimes: the same outputs; the net, and an older file, stay as they were."""
import importlib.util
import inspect
import logging
import sys
import tempfile
import warnings

import numpy as np
import pytest
from conftest import full_disk

import d2l_ext
from d2l_ext import export_onnx, graphs, nets
from d2l_ext.checks.nets import check_input
from d2l_ext.devices import mx

nd, nn = mx.nd, mx.gluon.nn

needs_onnx = pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ('onnx', 'onnxruntime'))),
    reason='onnx and onnxruntime are in .requirements/onnx.txt')


# All functions whose first argument is the number of classes.
NETWORKS = [name for name in d2l_ext.__all__ if inspect.isfunction(getattr(d2l_ext, name)) and
            [*inspect.signature(getattr(d2l_ext, name)).parameters][:1] == ['num_classes']]


def sequence(*layers, kind=nn.HybridSequential):
    net = kind()
    net.add(*layers)
    return net


def lambda_net(function):
    return sequence(nn.Dense(4), nn.HybridLambda(function))


def initialized(net, shape=None):
    """Return `net`, its parameters drawn from seed 0; deferred ones stay so if there's no shape."""
    mx.random.seed(0)
    net.initialize(mx.init.MSRAPrelu('in', slope=0))
    if shape:
        net(nd.zeros((1, *shape)))
    return net


def small_net(kind=nn.HybridSequential):
    """Return a net with each kind of parameter; its running statistics have moved."""
    net = initialized(sequence(
        sequence(nn.Conv2D(8, 3), nn.BatchNorm(), nn.Activation('relu')), nn.MaxPool2D(2),
        nn.Dropout(0.5), nn.Dense(64, activation='relu'), nn.Dense(3), kind=kind))
    with mx.autograd.train_mode():
        net(nd.array(images((8, 1, 10, 10))))
    return net


def images(shape):
    return np.random.RandomState(1).uniform(size=shape).astype('float32')


def run(path, X):
    """Return what ONNX Runtime computes."""
    import onnxruntime
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=['CPUExecutionProvider'])
    return session.run(['output'], {'data': X})[0]


def names(folder):
    return sorted(path.name for path in folder.iterdir())


# --- other runtimes compute the same --------------------------------------------------------------

def test_networks_are_found():
    assert 'nin' in NETWORKS


def fitting_size(net):
    for size in (28, 96, 224):
        try:
            check_input(net, (1, 1, size, size))
            return size
        except ValueError:
            pass
    return pytest.fail('no usual size of images fits')


@needs_onnx
@pytest.mark.parametrize('name', NETWORKS)
def test_every_network_in_onnx_runtime(tmp_path, name):
    import onnx
    net = getattr(d2l_ext, name)()
    size, path = fitting_size(net), tmp_path / 'net.onnx'
    X, _ = next(iter(d2l_ext.load_data_digits(8, resize=size)[1]))
    export_onnx(initialized(net), path, (1, size, size))
    onnx.checker.check_model(str(path), full_check=True)
    expected = net(X).asnumpy()
    assert np.abs(expected).max() > 0.1 and expected.std(axis=0).max() > 0.01
    for batch_size in (8, 1):
        np.testing.assert_allclose(run(path, X[:batch_size].asnumpy()), expected[:batch_size],
                                   rtol=0, atol=1e-4)


def norms():
    return sequence(nn.Dense(5), nn.LayerNorm(), nn.Swish(), nn.PReLU(), nn.Dense(3))


@needs_onnx
@pytest.mark.parametrize('make, shape', [
    (small_net, (1, 10, 10)),
    (lambda: small_net(nn.Sequential), (1, 10, 10)),
    (lambda: graphs.compiled(small_net()), (1, 10, 10)),
    (lambda: initialized(nn.Dense(3)), [7]),
    (lambda: initialized(norms()), (4,)),  # of operators that have changed since
    (lambda: initialized(nn.HybridLambda(lambda F, x: F.split(x, 2)[1] * 2)), (np.int64(6),)),
    (lambda: sequence(nn.AvgPool2D(3, 2, ceil_mode=True), nn.AvgPool2D(2, 2, 1), nn.HybridLambda(
        lambda F, x: F.Pooling(x, kernel=(2, 2), pool_type='avg'))), (1, 12, 12)),
], ids=['hybrid', 'plain', 'compiled', 'layer', 'norms', 'no parameters', 'mean pooling'])
def test_kinds_of_nets(tmp_path, make, shape):
    net, X = make(), images((3, *shape))
    export_onnx(net, str(tmp_path / 'net.onnx'), shape)
    expected = net(nd.array(X)).asnumpy()
    assert expected.std(axis=0).max() > 0.01
    np.testing.assert_allclose(run(tmp_path / 'net.onnx', X), expected, rtol=0, atol=1e-5)


class OnlyAsAGraph(mx.gluon.HybridBlock):
    """Computes something else when it is called."""

    def hybrid_forward(self, F, X):
        return X if F is mx.sym else X * 0.5


@needs_onnx
def test_a_net_that_its_graph_does_not_stand_for(tmp_path):
    with pytest.raises(ValueError, match='computes other outputs'):
        export_onnx(initialized(sequence(nn.Dense(3), OnlyAsAGraph())), tmp_path / 'net.onnx', (4,))
    assert not list(tmp_path.iterdir())


@needs_onnx
def test_what_the_file_says(tmp_path):
    import onnx
    net, path = small_net(), tmp_path / 'a' / 'net.onnx'
    export_onnx(net, path, (1, 10, 10))
    d2l_ext.save_params(net, tmp_path / 'net.npz')
    graph = onnx.load(str(path)).graph
    with np.load(tmp_path / 'net.npz') as arrays:
        found = {item.name: onnx.numpy_helper.to_array(item) for item in graph.initializer}
        assert sorted(found) == sorted(arrays) and '0.1.running_mean' in found
        for name, array in found.items():
            np.testing.assert_array_equal(array, arrays[name])

    def shapes(items):
        return {item.name: [dim.dim_param or dim.dim_value
                            for dim in item.type.tensor_type.shape.dim] for item in items}
    assert shapes(graph.input) == {'data': ['batch', 1, 10, 10]}
    assert shapes(graph.output) == {'output': ['batch', 3]}


@needs_onnx
def test_nothing_is_printed(tmp_path, capfd, caplog):
    net = initialized(norms())
    handlers = list(logging.getLogger().handlers)
    with warnings.catch_warnings(record=True) as caught, caplog.at_level(logging.DEBUG):
        warnings.simplefilter('always')
        export_onnx(net, tmp_path / 'net.onnx', (4,))
        run(tmp_path / 'net.onnx', images((1, 4)))  # it would complain of what is not needed
    assert capfd.readouterr() == ('', '') and not caplog.records
    assert [str(warning.message) for warning in caught] == []
    assert logging.getLogger().handlers == handlers


def test_parameters_into_pytorch(tmp_path):
    torch = pytest.importorskip('torch')
    net, X = initialized(nets.nin(), (1, 96, 96)), images((2, 1, 96, 96))
    d2l_ext.save_params(net, tmp_path / 'nin.npz')

    def block(in_channels, channels, *window):
        layers = [torch.nn.Conv2d(in_channels, channels, *window), torch.nn.ReLU()]
        for _ in range(2):
            layers += [torch.nn.Conv2d(channels, channels, 1), torch.nn.ReLU()]
        return layers

    other = torch.nn.Sequential(
        *block(1, 96, 11, 4, 0), torch.nn.MaxPool2d(3, 2), *block(96, 256, 5, 1, 2),
        torch.nn.MaxPool2d(3, 2), *block(256, 384, 3, 1, 1), torch.nn.MaxPool2d(3, 2),
        torch.nn.Dropout(0.5), *block(384, 10, 3, 1, 1), torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten())
    arrays = np.load(tmp_path / 'nin.npz').values()
    other.load_state_dict(dict(zip(other.state_dict(), map(torch.tensor, arrays))))
    with torch.no_grad():
        found = other.eval()(torch.tensor(X)).numpy()
    np.testing.assert_allclose(found, net(nd.array(X)).asnumpy(), rtol=0, atol=1e-4)
    assert np.abs(found).max() > 0.1


# --- the net stays as it was ----------------------------------------------------------------------

def everything(net):
    """Return all attributes of the blocks and parameters in `net`, to compare.

    All but the symbol that stands for a parameter, which Gluon makes when it is first asked for.
    """
    blocks = [net]
    for block in blocks:
        blocks.extend(block._children.values())
    return [{name: repr(value) for name, value in vars(item).items() if name != '_var'}
            for item in [*blocks, *net.collect_params().values()]]


@needs_onnx
@pytest.mark.parametrize('hybrid', [True, False])
def test_the_net_stays_as_it_was(tmp_path, hybrid):
    net, X = small_net(), nd.array(images((3, 1, 10, 10)))
    net.hybridize(hybrid)
    expected, before = net(X).asnumpy(), everything(net)
    nd.waitall()  # MXNet still arranges weights when an output is there
    values = {name: param.data().asnumpy() for name, param in net.collect_params().items()}
    mx.random.seed(1)
    drawn = nd.random.uniform(shape=3).asnumpy()
    mx.random.seed(1)
    state = np.random.get_state()[1].copy()
    with mx.autograd.record():
        export_onnx(net, tmp_path / 'net.onnx', (1, 10, 10))
    assert everything(net) == before
    for name, param in net.collect_params().items():
        np.testing.assert_array_equal(param.data().asnumpy(), values[name])
    np.testing.assert_array_equal(nd.random.uniform(shape=3).asnumpy(), drawn)
    np.testing.assert_array_equal(np.random.get_state()[1], state)
    np.testing.assert_array_equal(net(X).asnumpy(), expected)


@needs_onnx
def test_deferred_parameters_are_those_that_the_first_batch_gives(tmp_path):
    def make():
        return initialized(sequence(nn.Conv2D(4, 3), nn.BatchNorm(), nn.Dense(3)))

    X = images((2, 1, 6, 6))
    expected, net = make()(nd.array(X)).asnumpy(), make()
    export_onnx(net, tmp_path / 'net.onnx', (1, 6, 6))
    np.testing.assert_array_equal(net(nd.array(X)).asnumpy(), expected)
    np.testing.assert_allclose(run(tmp_path / 'net.onnx', X), expected, rtol=0, atol=1e-5)


# --- errors ---------------------------------------------------------------------------------------

class Plain(mx.gluon.Block):
    def forward(self, x):
        return x + 1


def hooked():
    net = initialized(nn.Dense(3))
    net.register_forward_hook(lambda *args: None)
    return net


def half():
    net = nn.Dense(3)
    net.cast('float16')
    return initialized(net)


@pytest.mark.parametrize('make, shape, message', [
    (lambda: 3, (4,), 'net must be a Gluon block'),
    (lambda: nn.Dense(3), (4,), r'weight is not initialized: call net.initialize\(\)'),
    (lambda: initialized(nn.Dense(3)), 4, 'input_shape must be'),
    (lambda: initialized(nets.nin()), (1, 28, 28), 'cannot take the shape'),
    (lambda: initialized(nets.nin()), (1, 1, 96, 96), 'cannot take the shape'),
    (lambda: initialized(nets.nin(), (1, 96, 96)), (3, 96, 96), 'cannot take the shape'),
    (Plain, (4,), 'net has no graph'),
    (hooked, (4,), 'net has no graph.*without hooks'),
    (lambda: initialized(lambda_net(lambda F, x: (x, x))), (4,), 'return one array'),
    (lambda: initialized(lambda_net(lambda F, x: F.split(x, 2))), (4,), 'return one array'),
    (half, (4,), r"weight is float16.*net.cast\('float32'\)"),
])
def test_what_cannot_be_exported(tmp_path, make, shape, message):
    with pytest.raises(ValueError, match=message):
        export_onnx(make(), tmp_path / 'net.onnx', shape)
    assert names(tmp_path) == []


def test_a_path_that_is_none():
    with pytest.raises(ValueError, match='path must be'):
        export_onnx(initialized(nn.Dense(3)), 3, (4,))


@pytest.mark.parametrize('missing', ['onnx', 'onnxruntime'])
def test_a_missing_package_names_the_lock(tmp_path, monkeypatch, missing):
    monkeypatch.setitem(sys.modules, missing, None)
    net = initialized(nn.Dense(3))
    before = everything(net)
    with pytest.raises(ImportError, match=r'-r \.requirements/onnx\.txt') as error:
        export_onnx(net, tmp_path / 'net.onnx', (4,))
    assert 'onnx' in str(error.value.__cause__)
    assert everything(net) == before and names(tmp_path) == []


def fixed_gamma():
    net = initialized(nn.BatchNorm(scale=False), (2, 5, 5))
    net.gamma.set_data(nd.full((2,), 3))  # MXNet computes with 1 in its place
    return net


@needs_onnx
@pytest.mark.parametrize('make, shape, message', [
    (lambda: initialized(sequence(nn.Conv2D(4, 3), nn.GroupNorm(2)), (2, 5, 5)), (2, 5, 5),
     'cannot translate this net: .*GroupNorm'),
    (fixed_gamma, (2, 5, 5), 'ONNX Runtime computes other outputs'),
    (lambda: initialized(sequence(
        nn.HybridLambda(lambda F, x: F.contrib.boolean_mask(x, F.sum(x, axis=1))), nn.Dense(3))),
     (4,), 'weight cannot be inferred: call net on a batch first'),
])
def test_what_the_exporter_cannot_do(tmp_path, capfd, make, shape, message):
    path, net = tmp_path / 'net.onnx', make()
    path.write_bytes(b'old')
    capfd.readouterr()
    with pytest.raises(ValueError, match=message):
        export_onnx(net, path, shape)
    assert path.read_bytes() == b'old' and names(tmp_path) == ['net.onnx']
    assert capfd.readouterr() == ('', '')


@needs_onnx
def test_a_full_disk_keeps_the_old_file(tmp_path, monkeypatch):
    (tmp_path / 'tmp').mkdir()
    monkeypatch.setenv('TMPDIR', str(tmp_path / 'tmp'))
    monkeypatch.setattr(tempfile, 'tempdir', None)
    path, net = tmp_path / 'out' / 'net.onnx', small_net()
    export_onnx(net, path, (1, 10, 10))
    old = path.read_bytes()
    assert len(old) > 20_000
    for param in net.collect_params().values():
        param.set_data(param.data() * 2)
    with full_disk(room=20_000), pytest.raises(OSError):
        export_onnx(net, path, (1, 10, 10))
    assert path.read_bytes() == old and names(path.parent) == ['net.onnx']
    export_onnx(net, path, (1, 10, 10))
    assert path.read_bytes() != old and names(path.parent) == ['net.onnx']
    assert names(tmp_path / 'tmp') == []
