"""Receptive fields, against the gradient with respect to the image."""
import numpy as np
import pytest

import d2l_ext
from d2l_ext import nets, receptive_field
from d2l_ext.devices import mx

nd, nn = mx.nd, mx.gluon.nn


def sequence(*layers):
    net = nn.HybridSequential()
    net.add(*layers)
    return net


def reached(net, shape):
    """Return how many rows and columns have a gradient at a position in the middle of the map."""
    net.initialize(mx.init.One())
    X = nd.ones((1, *shape))
    X.attach_grad()
    with mx.autograd.record(train_mode=False):
        Y = net(X)
        middle = Y[:, :, Y.shape[2] // 2, Y.shape[3] // 2].sum()
    middle.backward(train_mode=False)
    _, _, rows, columns = np.nonzero(X.grad.asnumpy())
    return tuple(int(np.ptp(places)) + 1 for places in (rows, columns))


# Averages stand for maxima: a maximum passes the gradient of one pixel only.
@pytest.mark.parametrize('layers, expected', [
    ([nn.Conv2D(2, 3)], (3, 3)),
    ([nn.Conv2D(2, (1, 5), (1, 2)), nn.Conv2D(2, (3, 1), (2, 1)), nn.AvgPool2D((2, 3), 2)],
     (5, 9)),
    ([nn.Conv2D(2, 3, dilation=(2, 3)), nn.Conv2D(2, 2, 2), nn.Conv2D(2, 3)], (10, 12)),
    ([sequence(nn.Conv2D(2, 5, 2, activation='relu'), nn.BatchNorm()), nn.AvgPool2D(3, 2),
      nn.Dropout(0.5), sequence(nn.Conv2D(2, 3), nn.Conv2D(2, 1))], (17, 17)),
])
def test_as_far_as_the_gradient_reaches(layers, expected):
    net = sequence(*layers)
    assert receptive_field(net) == reached(net, (1, 60, 60)) == expected


def test_the_networks_of_the_section_and_the_paper():
    # 11, pooling 19, 5x5 at step 8: 51, pooling 67, 3x3 at step 16: 99, pooling 131, 3x3 at step
    # 32: 195.
    assert receptive_field(nets.nin()) == (195, 195)
    assert receptive_field(nets.nin(num_one_by_one=0)) == (195, 195)  # 1x1 adds nothing
    assert receptive_field(d2l_ext.nin_cifar10()) == (27, 27)


def test_what_follows_the_last_map_does_not_count():
    convolution = nn.Conv2D(2, 3)
    assert receptive_field(sequence(convolution, nn.GlobalAvgPool2D(), nn.Conv2D(2, 5, padding=2),
                                    nn.Flatten())) == (3, 3)
    assert receptive_field(sequence(convolution, nn.Dense(4, activation='relu'), nn.Dropout(0.5),
                                    nn.Dense(2))) == (3, 3)
    assert receptive_field(sequence(nn.Flatten(), nn.Dense(2))) == (1, 1)


def test_plain_sequential_and_a_single_layer():
    net = nn.Sequential()
    net.add(nn.Conv2D(2, 3), nn.Conv2D(2, 3))
    assert receptive_field(net) == (5, 5)
    assert receptive_field(nn.MaxPool2D(3, 2)) == (3, 3)
