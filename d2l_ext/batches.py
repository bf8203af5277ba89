"""Batches of images held in memory, and the seeds of an epoch."""
import collections.abc
import copy
import random

import numpy as np

from .arguments import check_flag, check_int, check_number, check_type, refusal
from .devices import check_ctx, mx, try_gpu
from .images.augmentation import flip_and_shift
from .images.normalization import channel_statistics, check_images
from .images.resizing import resized
from .images.splitting import split_labels

nd, gluon = mx.nd, mx.gluon


def seed_epoch(seed, epoch, rank=0):
    """Seed Python's, NumPy's and MXNet's generators, so that an epoch repeats by itself.

    Workers of one job share the order of the images, NumPy's, but not the dropout, MXNet's.
    """
    nd.waitall()
    state = int(np.random.SeedSequence((seed, epoch)).generate_state(1)[0])
    random.seed(state)
    np.random.seed(state)
    if rank:
        state = int(np.random.SeedSequence((seed, epoch, rank)).generate_state(1)[0])
    mx.random.seed(state % 2**31)


class Batches:
    """Batches of images held in memory, to iterate over as often as you like.

    Yields ``(X, y)``: `X` float32 of shape (batch, channels, height, width), from 0 to 1 unless
    normalized, `y` int32 of shape (batch,), both on `ctx`. The last batch may be smaller. All is
    done a whole batch at a time: picking, flipping and shifting on bytes in NumPy, scaling,
    resizing and normalizing on `ctx`; there are no worker processes. Order, flips and shifts are
    drawn anew in each pass from NumPy's global generator, so ``numpy.random.seed`` repeats them.

    Parameters
    ----------
    images : numpy.ndarray
        uint8, shape (number, height, width) or (number, channels, height, width).
    labels : numpy.ndarray
        Whole numbers from 0, shape (number,).
    batch_size : int
        Images in a batch, at most `number`.
    resize : int, optional
        Height and width of the images handed out, in pixels; by default they keep their size.
    shuffle : bool
        Whether each pass has a new order.
    ctx : mxnet.Context, optional
        Device that `X` and `y` are made on; by default ``try_gpu()``.
    max_value : int
        The value in `images` that becomes 1.
    name : str
        What the set is called.
    classes : sequence of str
        Names of the classes, by label.
    flip : bool
        Whether each image, with probability 1/2, is mirrored left to right.
    shift : int
        Each image moves by up to so many of its own pixels (before `resize`) up or down and left
        or right, all offsets being equally likely. What comes in is the image reflected at its
        edge.
    normalize : tuple of numpy.ndarray, optional
        Mean and standard deviation, each of shape (channels,), in units of the scaled images:
        `X` is then (X - mean) / deviation. See :mod:`d2l_ext.images.normalization`.

    Raises
    ------
    ValueError
        If the arrays do not fit together or a number is out of range.
    """

    def __init__(self, images, labels, batch_size, resize=None, shuffle=False, ctx=None,
                 max_value=255, name='', classes=(), flip=False, shift=0, normalize=None):
        check_images(images)
        if (not isinstance(labels, np.ndarray) or labels.dtype.kind not in 'iu'
                or labels.shape != images.shape[:1]):
            raise refusal('labels', labels, f'whole numbers of shape ({len(images)},)')
        check_type('classes', classes, collections.abc.Sequence, 'a sequence of names')
        if classes and len(labels) and not 0 <= labels.min() <= labels.max() < len(classes):
            raise ValueError(f'labels must be from 0 to {len(classes) - 1}, but they run from '
                             f'{labels.min()} to {labels.max()}')
        self.images, self.labels = images, labels
        self.batch_size = check_int('batch_size', batch_size, 1, len(images))
        self.resize = None if resize is None else check_int('resize', resize, 1)
        self.shuffle = check_flag('shuffle', shuffle)
        self.max_value = check_number('max_value', max_value, 0)
        self.ctx = try_gpu() if ctx is None else check_ctx(ctx)
        self.name, self.classes = name, tuple(classes)
        self.flip = check_flag('flip', flip)
        channels = self.image_shape[0]
        if normalize is not None and np.shape(normalize) != (2, channels):
            raise refusal('normalize', normalize,
                          f'mean and standard deviation, each of shape ({channels},)')
        self.normalize = normalize
        # An image can be reflected only so far.
        self.shift = check_int('shift', shift, 0, min(images.shape[-2:]) - 1)

    @property
    def image_shape(self):
        """Channels, height and width of the images handed out, the latter two in pixels."""
        channels = self.images.shape[1] if self.images.ndim == 4 else 1
        size = self.images.shape[-2:] if self.resize is None else (self.resize, self.resize)
        return (channels, *size)

    def __len__(self):
        """Return the number of batches in a pass."""
        return -(-len(self.images) // self.batch_size)

    def __iter__(self):
        number = len(self.images)
        order = np.random.permutation(number) if self.shuffle else np.arange(number)
        if self.normalize is not None:
            mean, deviation = (nd.array(values, ctx=self.ctx).reshape((1, -1, 1, 1))
                               for values in self.normalize)
        for start in range(0, number, self.batch_size):
            chosen = order[start:start + self.batch_size]
            X = self.images[chosen]
            X = flip_and_shift(X.reshape(len(X), -1, *X.shape[-2:]), self.flip, self.shift)
            X = nd.array(X, ctx=self.ctx, dtype='uint8').astype('float32') / self.max_value
            if self.resize is not None:
                X = resized(X, self.resize)
            if self.normalize is not None:
                X = (X - mean) / deviation
            y = nd.array(self.labels[chosen], ctx=self.ctx, dtype='int32')
            yield (X.as_np_ndarray(), y.as_np_ndarray()) if mx.util.is_np_array() else (X, y)

    def _part(self, which, **changes):
        """Return batches of the images that `which` picks, otherwise like these."""
        part = copy.copy(self)
        part.images, part.labels = self.images[which], self.labels[which]
        part.batch_size = min(self.batch_size, len(part.images))
        vars(part).update(changes)
        return part

    def take(self, number):
        """Return batches of the first `number` images only, otherwise like these.

        Raises a ValueError if `number` is not from 1 to the number of images.
        """
        return self._part(slice(check_int('number', number, 1, len(self.images))))

    def hold_out(self, number, seed=0):
        """Split the images once and for all: most to train on, `number` to choose settings by.

        The test set then stays out of every choice. Each class is held out in proportion to its
        images. Which images these are depends on `seed` and `number` alone; both parts keep the
        order of the set, and the settings of these batches.

        Parameters
        ----------
        number : int
            Images held out, at least one for each class in the set.
        seed : int
            Another one makes another split.

        Returns
        -------
        train_iter, val_iter : Batches
            `val_iter` is neither shuffled, flipped nor shifted.

        Raises
        ------
        ValueError
            If a number is out of range or a class has a single image.
        """
        kept, held_out = split_labels(self.labels, number, seed)
        return (self._part(kept),
                self._part(held_out, shuffle=False, flip=False, shift=0))


def common_shape(iterables):
    """Return the shape of every image in several iterables, or None if nothing tells.

    Batches tell by their `image_shape`, a tuple (channels, height, width); any other value of that
    name is ignored.
    """
    shapes = [getattr(iterable, 'image_shape', None) for iterable in iterables]
    known = all(isinstance(shape, tuple) and len(shape) == 3 for shape in shapes)
    return shapes[0] if known and len(set(shapes)) == 1 else None


def num_images(batches, batch_size):
    """Return the number of images in a pass, or the most that can be, or None if nothing tells."""
    if isinstance(batches, Batches):
        return len(batches.images)
    sampler = getattr(batches, '_batch_sampler', None)  # of Gluon's DataLoader
    if isinstance(sampler, gluon.data.BatchSampler) and sampler._last_batch == 'keep':
        return len(sampler._sampler)
    return len(batches) * batch_size if hasattr(batches, '__len__') else None


def make_batches(train, test, batch_size, *, flip, shift, normalize, **settings):
    """Return training batches, shuffled, flipped and shifted, and test batches that are not.

    `train` and `test` are pairs of images and labels. Both are normalized, if at all, by the
    statistics of the training images; `settings` are those of both, as ``Batches`` has them.
    """
    if check_flag('normalize', normalize):
        settings['normalize'] = channel_statistics(train[0], settings.get('max_value', 255))
    return (Batches(*train, batch_size, shuffle=True, flip=flip, shift=shift, **settings),
            Batches(*test, min(batch_size, len(test[0])), **settings))
