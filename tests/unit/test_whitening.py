"""Whitening filters, against the definition of white."""
import numpy as np
import pytest

from d2l_ext import whitening_filters
from d2l_ext.devices import mx


def correlated(shape, seed=0):
    """Return images whose pixels and channels depend on each other."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(shape[0], 1, 1, 1)) + 0.3 * rng.normal(size=shape).cumsum(axis=1)


@pytest.mark.parametrize('shape, window', [((300, 3, 6, 6), 2), ((300, 1, 8, 7), 3),
                                           ((300, 2, 4, 4), 1), ((2000, 1, 2, 2), 2),
                                           ((300, 1, 4, 4), 1)])
def test_the_answers_are_white(shape, window):
    images = correlated(shape)
    filters = whitening_filters(images, window, eps=1e-12)
    num_filters = shape[1] * window**2
    assert filters.shape == (2 * num_filters, shape[1], window, window)
    answers = mx.nd.Convolution(mx.nd.array(images), filters, kernel=(window, window),
                                num_filter=2 * num_filters, no_bias=True).asnumpy()
    np.testing.assert_allclose(answers[:, num_filters:], -answers[:, :num_filters], atol=1e-5)
    answers = answers[:, :num_filters].swapaxes(0, 1).reshape(num_filters, -1)
    np.testing.assert_allclose(np.atleast_2d(np.cov(answers)), np.eye(num_filters), atol=1e-3)


def test_the_order_and_eps():
    images = correlated((300, 3, 6, 6))
    patches = [images[:, :, i:i + 5, j:j + 5] for i in (0, 1) for j in (0, 1)]
    covariance = np.cov(np.stack(patches, -1).transpose(1, 4, 0, 2, 3).reshape(12, -1))
    variances = np.linalg.eigvalsh(covariance)
    for eps in (1e-12, 0.5):
        filters = whitening_filters(images, eps=eps).asnumpy()[:12].reshape(12, -1)
        spread = np.einsum('ij,jk,ik->i', filters, covariance, filters)
        np.testing.assert_allclose(spread, variances / (variances + eps), rtol=1e-3)
        # The longest filter is that of the direction in which patches differ least.
        lengths = np.linalg.norm(filters, axis=1)
        np.testing.assert_allclose(lengths, (variances + eps)**-0.5, rtol=1e-3)


def test_constant_images_give_finite_filters():
    assert np.isfinite(whitening_filters(np.ones((5, 1, 4, 4))).asnumpy()).all()


def test_only_the_largest_directions():
    images = correlated((300, 1, 6, 6))
    filters = whitening_filters(images, 3).asnumpy()
    few = whitening_filters(images, 3, num_filters=8).asnumpy()
    np.testing.assert_array_equal(few, np.concatenate([filters[5:9], filters[14:18]]))
    with pytest.raises(ValueError, match='num_filters must be an even number'):
        whitening_filters(images, 3, num_filters=7)
