"""What networks begin with: copies of their inputs, outputs of one size."""
import numpy as np
import pytest

from d2l_ext import nin, scale_layers, start_as_identity
from d2l_ext.devices import mx
from d2l_ext.nets import mlpconv

nn = mx.gluon.nn


def test_an_identity_start_hands_images_on():
    net = nn.Sequential()
    net.add(nn.Conv2D(4, 5, padding=2, activation='relu'), mlpconv([4, 6], 3, 1, 1))
    net.initialize()
    X = mx.nd.random.uniform(shape=(2, 3, 8, 8))
    before = net(X)
    start_as_identity(net)
    after = net(X)
    assert abs(after[:, :3] - X).max().asscalar() < 1e-6  # no ReLU alters what is positive
    assert abs(before[:, :3] - X).max().asscalar() > 0.1


def test_an_identity_start_leaves_the_rest_alone():
    net = nn.HybridSequential()
    net.add(nn.Conv2D(5, 3, padding=1), nn.Conv2D(3, 1), nn.Conv2D(6, 3, groups=3), nn.Conv2D(8, 1))
    net.initialize(mx.init.Normal(1))
    with pytest.raises(ValueError, match='call net.initialize'):
        start_as_identity(net)
    net(mx.nd.zeros((1, 2, 8, 8)))
    net[3].weight.grad_req = 'null'
    before = [layer.weight.data().copy() for layer in net]
    start_as_identity(net)
    assert (net[0].weight.data()[2:] == before[0][2:]).min().asscalar() == 1
    assert (net[0].weight.data()[:2] != before[0][:2]).mean().asscalar() > 0.9
    for layer, weight in zip(net[1:], before[1:]):
        assert (layer.weight.data() == weight).min().asscalar() == 1


def sizes_of_outputs(net, X):
    """Return the root mean square of what each convolution and dense layer answers."""
    sizes, hooks = [], []

    def look(layer):
        if isinstance(layer, (nn.Conv2D, nn.Dense)):
            hooks.append(layer.register_forward_hook(
                lambda _, __, output: sizes.append(np.sqrt((output.asnumpy()**2).mean()))))

    net.apply(look)
    net(X)
    for hook in hooks:
        hook.detach()
    return np.array(sizes)


def test_outputs_are_of_one_size():
    net = nin()
    net.add(nn.Dense(3))
    net.initialize(mx.init.Normal(0.3))
    X = mx.nd.random.normal(shape=(8, 1, 96, 96))
    net(X)
    for param in net.collect_params('.*bias').values():
        param.set_data(mx.nd.random.normal(shape=param.shape))
    before = sizes_of_outputs(net, X)
    assert before.max() > 10 * before.min()
    scale_layers(net, X)
    np.testing.assert_allclose(sizes_of_outputs(net, X), 0.5**0.5, rtol=1e-4)
    scale_layers(net, X, rms=2)
    np.testing.assert_allclose(sizes_of_outputs(net, X), 2, rtol=1e-4)


def test_directions_and_fixed_layers_stay():
    net = nn.HybridSequential()
    net.add(nn.Dense(5, activation='relu'), nn.Dense(4, use_bias=False), nn.Dense(3))
    net.initialize(mx.init.Normal(1))
    X = mx.nd.random.normal(shape=(6, 7))
    net(X)
    net[2].weight.grad_req = 'null'
    before = [layer.weight.data().asnumpy() for layer in net]
    scale_layers(net, X)
    ratios = [layer.weight.data().asnumpy() / weight for layer, weight in zip(net, before)]
    for ratio in ratios[:2]:
        np.testing.assert_allclose(ratio, ratio.flat[0], rtol=1e-5)
        assert abs(ratio.flat[0] - 1) > 0.01
    assert (ratios[2] == 1).all()


def test_what_cannot_be_scaled():
    net = nn.HybridSequential()
    net.add(nn.Dense(5), nn.Dense(4))
    net.initialize()
    with pytest.raises(ValueError, match='call net.initialize'):
        scale_layers(net, mx.nd.ones((2, 3)))
    net(mx.nd.ones((2, 3)))
    with pytest.raises(ValueError, match='root mean square of 0.0, which cannot be scaled'):
        scale_layers(net, mx.nd.zeros((2, 3)))
    with pytest.raises(ValueError, match='root mean square of nan, which cannot be scaled'):
        scale_layers(net, mx.nd.array([[np.nan, 1, 1]]))
    net.hybridize()
    net(mx.nd.ones((2, 3)))
    with pytest.raises(ValueError, match='before net.hybridize'):
        scale_layers(net, mx.nd.ones((2, 3)))
