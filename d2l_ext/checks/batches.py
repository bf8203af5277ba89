"""Checks of batches, images, labels and logits."""
import collections.abc

import numpy as np

from ..arguments import check_type, refusal
from ..devices import mx
from ..graphs.numpy_mode import as_iterated
from .nets import check_input

nd = mx.nd


def check_batches(name, batches):
    """Raise a ValueError unless `batches` can be iterated over."""
    check_type(name, batches, collections.abc.Iterable, 'batches, pairs (X, y), such as a list')


def no_batch(name):
    """Return the ValueError for batches that hold none."""
    return ValueError(f'{name} yields no batch; it must yield at least one. If it is a generator '
                      'that has been used up, pass what can be iterated again, such as a list')


def checked_batches(net, ctx, name, batches):
    """Yield pairs of arrays, NumPy's or MXNet's, that fit `net` as MXNet arrays on `ctx`."""
    shape = None
    for batch in as_iterated(batches):
        if not isinstance(batch, (tuple, list)) or len(batch) != 2 or not all(map(np.ndim, batch)):
            raise refusal(f'each batch of {name}', batch, 'a pair (X, y) of arrays')
        if not all(map(len, batch)):  # MXNet's arrays cannot be empty
            raise ValueError(f'{name} yields a batch of 0 images; leave it out')
        X, y = (a.as_nd_ndarray().as_in_context(ctx) if isinstance(a, nd.NDArray)
                else nd.array(a, ctx=ctx) for a in batch)
        if y.ndim != 1 or X.shape[0] != y.shape[0]:
            raise ValueError(f'X of shape {X.shape} needs labels y of shape ({X.shape[0]},), '
                             f'not {y.shape}')
        given = np.dtype(batch[0].dtype if isinstance(batch[0], np.ndarray) else X.dtype)
        if given.kind != 'f' or X.dtype != np.float32:  # of NumPy's, float64 is converted
            raise ValueError(f'images must be float32, not {given.name}: convert '
                             "them, such as with X.astype('float32') / 255")
        if X.shape[1:] != shape:
            check_input(net, X.shape)
            shape = X.shape[1:]
        yield X, y


def check_sums(outside, broken, num_classes):
    """Raise if there were labels out of range or batches with pixels that are no numbers."""
    if outside:
        raise ValueError(f'{int(outside)} labels are outside 0 to {num_classes - 1}, the whole '
                         f'numbers that the {num_classes} outputs of the net stand for')
    if broken:
        raise FloatingPointError('some images hold NaN or infinity; look for a division by zero '
                                 'where they are prepared')


def batch_sums(X, y, logits):
    """Return right answers, labels that stand for no class, and 1 if a pixel is NaN or infinite.

    A ReLU may hide such a pixel from the loss. All stay on the device, so that nobody waits.
    """
    y = y.astype('float32')
    outside = ((y >= 0) * (y < logits.shape[1]) * (y == y.floor())) == 0  # so is NaN
    # X.sum() would tell, too, but takes as long as a layer.
    return nd.concat((logits.argmax(axis=1) == y).sum(), outside.sum(), 1 - nd.all_finite(X),
                     dim=0).astype('float64')


def check_logits(logits):
    """Raise a ValueError unless `logits` have the shape (batch, classes)."""
    if not isinstance(logits, nd.NDArray) or logits.ndim != 2:
        found = getattr(logits, 'shape', f'a {type(logits).__name__}')
        raise ValueError(f'net must return logits of shape (batch, classes), not {found}')
