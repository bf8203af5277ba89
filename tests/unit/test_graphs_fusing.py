"""Small batches by fused operators: the same, of whatever net, and the net stays as it is."""
import numpy as np
import pytest
from mxnet.gluon.model_zoo.vision.resnet import BasicBlockV1

import d2l_ext
from d2l_ext.devices import has_bfloat16, mx
from d2l_ext.evaluation import predict
from d2l_ext.graphs import Choice, choose, fusing
from d2l_ext.studies.nets import nin_cifar10

nd, nn = mx.nd, mx.gluon.nn
CPU = mx.cpu()

pytestmark = pytest.mark.skipif(not mx.runtime.Features().is_enabled('MKLDNN'),
                                reason='needs oneDNN')
PRECISIONS = ['float32', *(['bfloat16'] if has_bfloat16() else [])]


def chain(*layers):
    net = nn.HybridSequential()
    net.add(*layers)
    return net


def lenet():
    return chain(nn.Conv2D(6, 5, padding=2, activation='relu'), nn.AvgPool2D(2, 2),
                 nn.Conv2D(16, 5), nn.Activation('relu'), nn.MaxPool2D(2, 2),
                 nn.Dense(120, activation='relu'), nn.Dropout(0.5), nn.Dense(10))


def normalized():
    return chain(nn.Conv2D(8, 3), nn.BatchNorm(), nn.Activation('relu'), nn.Conv2D(16, 3, 2),
                 nn.BatchNorm(), nn.Activation('relu'), nn.GlobalAvgPool2D(), nn.Dense(10))


def nested():
    return chain(chain(nn.Conv2D(24, 3, activation='relu', use_bias=False), nn.Conv2D(10, 1)),
                 nn.MaxPool2D(), nn.GlobalMaxPool2D(), nn.Flatten())


def residual():
    return chain(BasicBlockV1(8, 1, True, in_channels=3), nn.GlobalAvgPool2D(), nn.Dense(10))


NETS = {'nin': (d2l_ext.nin, (1, 160, 160)), 'cifar10': (nin_cifar10, (3, 32, 32)),
        'lenet': (lenet, (1, 28, 28)), 'normalized': (normalized, (3, 32, 32)),
        'nested': (nested, (3, 20, 20)), 'dense': (lambda: chain(nn.Dense(7)), (1, 9, 9)),
        'residual': (residual, (3, 16, 16))}


def made(name, num_batches=4, batch_size=3):
    make, shape = NETS[name]
    mx.random.seed(1)
    net = make()
    net.initialize(mx.init.MSRAPrelu(slope=0), ctx=CPU)
    X = nd.random.uniform(shape=(num_batches, batch_size, *shape))
    net(X[0])
    nd.waitall()  # MXNet still arranges weights when an output is there
    return net, [(each, nd.zeros(batch_size)) for each in X]


def params_of(net):
    return {name: param.data().asnumpy() for name, param in net.collect_params().items()}


@pytest.mark.parametrize('precision', PRECISIONS)
@pytest.mark.parametrize('name', NETS)
def test_the_outputs_are_the_same_and_the_net_untouched(name, precision):
    net, batches = made(name)
    before, active = params_of(net), net._active if hasattr(net, '_active') else None
    choice = choose(net, CPU, precision, [batches])
    forward = fusing.faster_for_few(net, choice)
    for X, _ in batches:
        expected, found = choice.forward(X).asnumpy(), forward(X).asnumpy()
        assert found.dtype == np.float32
        assert abs(found - expected).max() <= fusing._TOLERANCE[precision] * abs(expected).max()
    after = params_of(net)
    assert all((after[key] == before[key]).all() for key in before)
    assert (net._active if hasattr(net, '_active') else None) == active
    net.cast('float64')  # a weight that was left in another layout could not be
    assert net(batches[0][0].astype('float64')).dtype == np.float64


@pytest.mark.parametrize('name', ['nin', 'lenet', 'normalized'])
def test_small_batches_are_fused_and_predicted_alike(name, monkeypatch):
    calls = []

    def counted(net, precision, fused=fusing.fused):
        block = fused(net, precision)
        return lambda X: (calls.append(len(X)), block(X))[1]

    monkeypatch.setattr(fusing, 'fused', counted)
    net, batches = made(name, num_batches=5)
    predicted, _ = predict(net, batches, CPU, 'float32')
    assert calls == [3] * 4  # all but the first
    logits = nd.concat(*(net(X) for X, _ in batches), dim=0)
    assert (predicted == logits.argmax(axis=1).asnumpy()).all()


def test_large_batches_a_single_one_and_training_are_not_fused(monkeypatch):
    def never(net, precision):
        raise AssertionError

    monkeypatch.setattr(fusing, 'fused', never)
    net, batches = made('dense', 3, fusing.MOST_IMAGES + 1)
    predict(net, batches, CPU)
    net, batches = made('dense', 1)
    predict(net, batches, CPU)
    forward = fusing.faster_for_few(net, Choice(net, 'float32'))
    for _ in range(3):
        with mx.autograd.record():
            forward(batches[0][0])


@pytest.mark.parametrize('fused', [
    lambda net, precision: lambda X: net(X) + 1, lambda net, precision: None,
    lambda net, precision: lambda X: 1 / 0])
def test_what_differs_or_fails_is_not_used(monkeypatch, fused):
    monkeypatch.setattr(fusing, 'fused', fused)
    net, batches = made('lenet')
    forward = fusing.faster_for_few(net, Choice(net, 'float32'))
    for X, _ in batches:
        assert (forward(X) == net(X)).min().asscalar() == 1


def test_unknown_layers_are_left_alone():
    net, _ = made('residual')
    assert fusing.fused(net, 'float32') is None
    assert fusing.fused(made('lenet')[0], 'float32') is not None
