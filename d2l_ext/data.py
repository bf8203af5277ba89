"""Fashion-MNIST, the embedded digits, and batches of these and of other images."""
import collections.abc
import copy
import gzip
import os
import pathlib
import struct
import zlib

import numpy as np
import pooch
from numpy.lib.stride_tricks import sliding_window_view

from .arguments import (
    check_flag,
    check_int,
    check_number,
    check_path,
    check_type,
    refusal,
)
from .devices import check_ctx, mx, try_gpu
from .files import atomic_write
from .progress import progress_bar

nd = mx.nd

FASHION_MNIST_CLASSES = ('t-shirt', 'trouser', 'pullover', 'dress', 'coat',
                         'sandal', 'shirt', 'sneaker', 'bag', 'ankle boot')
DIGITS_CLASSES = tuple('0123456789')

# MD5 sums that https://github.com/zalandoresearch/fashion-mnist publishes.
FASHION_MNIST_MD5 = {
    'train-images-idx3-ubyte.gz': '8d4fb7e6c68d591d4c3dfef9ec88bf0d',
    'train-labels-idx1-ubyte.gz': '25c81989df183df01b3e8a0aad5dffbe',
    't10k-images-idx3-ubyte.gz': 'bef4ecab320f06d8554ea6380940ec79',
    't10k-labels-idx1-ubyte.gz': 'bb300cfdad3c16e7a12a480ee83cd310',
}
# SHA1 sums of MXNet's own copy, compressed anew, as mxnet.gluon.data.vision.FashionMNIST has them.
FASHION_MNIST_SHA1 = {
    'train-images-idx3-ubyte.gz': '0cf37b0d40ed5169c6b3aba31069a9770ac9043d',
    'train-labels-idx1-ubyte.gz': '236021d52f1e40852b06a4c3008d8de8aef1e40b',
    't10k-images-idx3-ubyte.gz': '626ed6a7c06dd17c0eec72fa3be1740f146a2863',
    't10k-labels-idx1-ubyte.gz': '17f9ab60e7257a1620f4ad76bbbaf857c3920701',
}
# Each with the kind of sum that its archives have.
FASHION_MNIST_MIRRORS = (
    ('http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/', 'md5'),
    ('https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/', 'md5'),
    ('https://apache-mxnet.s3-accelerate.dualstack.amazonaws.com/gluon/dataset/fashion-mnist/',
     'sha1'),
)
# Seconds without a byte before the next mirror is tried. A slow one is waited for while it sends.
DOWNLOAD_TIMEOUT = 15


_IMAGES = ('an array of uint8 of shape (number, height, width) or (number, channels, height, '
           'width)')


def _are_images(images):
    return isinstance(images, np.ndarray) and images.ndim in (3, 4) and images.dtype == np.uint8


class Batches:
    """Batches of images held in memory, to iterate over as often as you like.

    Yields ``(X, y)``: `X` float32 in [0, 1] of shape (batch, channels, height, width), `y` int32
    of shape (batch,), both on `ctx`. The last batch may be smaller. All is done a whole batch at a
    time: picking, flipping and shifting on bytes in NumPy, scaling, resizing and normalizing on
    `ctx`; there are no worker processes. Order, flips and shifts are drawn anew in each pass from
    NumPy's global generator, so ``numpy.random.seed`` repeats them.

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
        `X` is then (X - mean) / deviation. :func:`channel_statistics` computes them.

    Raises
    ------
    ValueError
        If the arrays do not fit together or a number is out of range.
    """

    def __init__(self, images, labels, batch_size, resize=None, shuffle=False, ctx=None,
                 max_value=255, name='', classes=(), flip=False, shift=0, normalize=None):
        if not _are_images(images):
            raise refusal('images', images, _IMAGES)
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
        channels = images.shape[1] if images.ndim == 4 else 1
        if normalize is not None and np.shape(normalize) != (2, channels):
            raise refusal('normalize', normalize,
                          f'mean and standard deviation, each of shape ({channels},)')
        self.normalize = normalize
        # An image can be reflected only so far.
        self.shift = check_int('shift', shift, 0, min(images.shape[-2:]) - 1)

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
            X = _flip_and_shift(X.reshape(len(X), -1, *X.shape[-2:]), self.flip, self.shift)
            X = nd.array(X, ctx=self.ctx, dtype='uint8').astype('float32') / self.max_value
            if self.resize is not None and X.shape[2:] != (self.resize, self.resize):
                # Half-pixel centres, as OpenCV and so the book's own transform has them.
                X = nd.contrib.BilinearResize2D(X, height=self.resize, width=self.resize,
                                                align_corners=False)
            if self.normalize is not None:
                X = (X - mean) / deviation
            yield X, nd.array(self.labels[chosen], ctx=self.ctx, dtype='int32')

    def _part(self, which, **changes):
        """Return batches of the images that `which` picks, otherwise like these."""
        part = copy.copy(self)
        part.images, part.labels = self.images[which], self.labels[which]
        part.batch_size = min(self.batch_size, len(part.images))
        vars(part).update(changes)
        return part

    def take(self, number):
        """Return batches of the first `number` images only, otherwise like these."""
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
        from sklearn.model_selection import train_test_split  # a second's import, needed here only

        number_of_classes = len(np.unique(self.labels))
        number = check_int('number', number, number_of_classes,
                           len(self.images) - number_of_classes)
        kept, held_out = train_test_split(
            np.arange(len(self.images)), test_size=number, stratify=self.labels,
            random_state=check_int('seed', seed, 0, 2**32 - 1))
        return (self._part(np.sort(kept)),
                self._part(np.sort(held_out), shuffle=False, flip=False, shift=0))


def _flip_and_shift(images, flip, shift):
    """Return uint8 images (number, channels, height, width), moved as ``Batches`` describes.

    May alter `images`.

    In NumPy: on bytes, this takes less time than the copy to the device that comes next, where
    MXNet's own operators for an offset an image take several times as long.
    """
    if flip:
        mirrored = np.random.rand(len(images)) < 0.5
        images[mirrored] = images[mirrored, :, :, ::-1]
    if shift:
        padded = np.pad(images, ((0, 0), (0, 0), (shift, shift), (shift, shift)), 'reflect')
        windows = sliding_window_view(padded, images.shape[2:], axis=(2, 3))  # no copy
        rows, columns = np.random.randint(2 * shift + 1, size=(2, len(images)))
        images = windows[np.arange(len(images)), :, rows, columns]
    return images


def channel_statistics(images, max_value=255):
    """Return mean and standard deviation of each channel, for ``Batches(normalize=)``.

    Parameters
    ----------
    images : numpy.ndarray
        uint8, shape (number, height, width) or (number, channels, height, width).
    max_value : int
        The value that counts as 1.

    Returns
    -------
    mean, deviation : numpy.ndarray
        Shape (channels,), float64.

    Raises
    ------
    ValueError
        If all pixels of a channel are alike.
    """
    if not _are_images(images) or not images.size:
        raise refusal('images', images, _IMAGES)
    max_value = check_number('max_value', max_value, 0)
    images = images.reshape(len(images), -1, *images.shape[-2:])
    count = images[:, 0].size
    # Exact sums, and no copy of the images in another type.
    mean = np.einsum('nchw->c', images, dtype=np.int64) / count
    deviation = np.sqrt(np.einsum('nchw,nchw->c', images, images, dtype=np.int64) / count - mean**2)
    if not deviation.all():
        raise ValueError('a channel whose pixels are all alike cannot be normalized')
    return mean / max_value, deviation / max_value


def make_batches(train, test, batch_size, *, flip, shift, normalize, **settings):
    """Return training batches, shuffled, flipped and shifted, and test batches that are not.

    Parameters
    ----------
    train, test : tuple of numpy.ndarray
        Images and labels.
    batch_size : int
    flip, shift : bool, int
        Of the training batches.
    normalize : bool
        Whether both are normalized, by the statistics of the training images.
    **settings
        Of both, as ``Batches`` has them.
    """
    if check_flag('normalize', normalize):
        settings['normalize'] = channel_statistics(train[0], settings.get('max_value', 255))
    return (Batches(*train, batch_size, shuffle=True, flip=flip, shift=shift, **settings),
            Batches(*test, min(batch_size, len(test[0])), **settings))


def known_hash(name, kind='md5'):
    """Return the published sum of an archive as pooch writes it, such as ``md5:8d4fb...``."""
    return f"{kind}:{(FASHION_MNIST_MD5 if kind == 'md5' else FASHION_MNIST_SHA1)[name]}"


def _fashion_mnist_hashes():
    return {name: [known_hash(name, kind) for kind in ('md5', 'sha1')]
            for name in FASHION_MNIST_MD5}


def has_hash(path, hashes):
    """Return whether the sum of a file is one of `hashes`, each as pooch writes it."""
    return any(f'{kind}:{pooch.file_hash(path, kind)}' in hashes
               for kind in sorted({known.split(':')[0] for known in hashes}))


def is_published(path, hashes=None):
    """Return whether a file is the one of its name, as published or as MXNet has it.

    `hashes` is a dictionary of the known sums by file name; by default that of Fashion-MNIST.
    """
    return has_hash(path, (_fashion_mnist_hashes() if hashes is None else hashes)[path.name])


def check_published(path, hashes=None):
    """Raise a ValueError that names the fix unless a file :func:`is_published`."""
    if not is_published(path, hashes):
        raise ValueError(
            f'{path} is not the published file (its checksum differs): damaged, incomplete or '
            'swapped with another. Remove it or fetch it again; for a copy that differs on '
            'purpose pass verify=False')


def _read_idx(path, num_dimensions):
    """Return the uint8 array in a gzipped IDX file (format: yann.lecun.com/exdb/mnist)."""
    content = bytearray()
    try:
        with gzip.open(path, 'rb') as file:
            header_size = 4 + 4 * num_dimensions
            header = file.read(header_size)
            if len(header) < header_size or header[:4] != bytes((0, 0, 8, num_dimensions)):
                raise ValueError(f'{path} is not an IDX file of {num_dimensions} dimension(s)')
            shape = struct.unpack(f'>{num_dimensions}I', header[4:])
            size = int(np.prod(shape, dtype=object))
            # In pieces: a lying header must not make us ask for memory that the file cannot fill.
            while len(content) <= size:
                piece = file.read(1 << 20)
                if not piece:
                    break
                content += piece
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f'{path} is damaged or incomplete: {error}') from None
    if len(content) != size:
        raise ValueError(f'{path} announces {size} bytes but holds '
                         f'{"more" if len(content) > size else len(content)}')
    return np.frombuffer(content, np.uint8).reshape(shape)


def _read_fashion_mnist(folder, split, verify):
    """Return images (number, 28, 28) and labels (number,) of 'train' or 't10k'."""
    arrays = []
    for kind, num_dimensions in (('images', 3), ('labels', 1)):
        path = folder / f'{split}-{kind}-idx{num_dimensions}-ubyte.gz'
        if not path.is_file():
            raise FileNotFoundError(f'{path} is missing. Put the four Fashion-MNIST archives '
                                    'there, or leave root out to have them downloaded')
        if verify:
            check_published(path)
        arrays.append(_read_idx(path, num_dimensions))
    images, labels = arrays
    if not len(images) or images.shape != (len(labels), 28, 28):
        raise ValueError(f'{folder}: the {split} archives must hold 28x28 images and as many '
                         f'labels, not arrays of shape {images.shape} and {labels.shape}')
    return arrays


def data_folders(folder_name):
    """Return the folders searched for a data set; a download goes into the first.

    `folder_name` in the folder that D2L_EXT_DATA names, if it is set, then in MXNet's own cache.
    """
    own = os.environ.get('D2L_EXT_DATA')
    return [*([pathlib.Path(own) / folder_name] if own else []),
            pathlib.Path(mx.base.data_dir()) / 'datasets' / folder_name]


def find_files(folder_name, names, hashes, fetch):
    """Return a folder that holds published files; fetch them if no known folder does.

    Parameters
    ----------
    folder_name : str
        Of :func:`data_folders`.
    names : sequence of str
        Files that must be there.
    hashes : dict
        Known sums, as pooch writes them, of these files and of others that `fetch` makes.
    fetch : callable
        ``fetch(names, folder)`` brings the named files.

    Raises
    ------
    ValueError
        If some of the files are in D2L_EXT_DATA's folder, and one is not the published one. It is
        left as it is. If all are there, whoever reads them checks them.
    """
    folders = data_folders(folder_name)
    folder, cache = folders[0], folders[-1]
    if len(folders) > 1:
        if all((folder / name).is_file() for name in names):
            return folder
        for name in hashes:  # what the reader put there is never replaced
            if (folder / name).is_file():
                check_published(folder / name, hashes)

    def present(path):
        return path.is_file() and is_published(path, hashes)

    if all(present(cache / name) for name in names):
        return cache
    fetch([name for name in names if not present(folder / name)], folder)
    return folder


def find_fashion_mnist():
    """Return a folder that holds the four archives; download them if no known folder does."""
    def fetch(names, folder):
        for name in names:
            download(name, folder, [(mirror, known_hash(name, kind))
                                    for mirror, kind in FASHION_MNIST_MIRRORS],
                     'Fashion-MNIST', 'put the four archives into {folder}, or set D2L_EXT_DATA '
                     'to the folder whose fashion-mnist/ holds them. load_data_digits() needs no '
                     'download.')

    return find_files('fashion-mnist', FASHION_MNIST_MD5, _fashion_mnist_hashes(), fetch)


def download(name, folder, mirrors, title, advice):
    """Fetch one file into `folder` from the first mirror that has it, whole or not at all.

    Parameters
    ----------
    name : str
        Of the file.
    folder : pathlib.Path
    mirrors : sequence of tuple
        Address, to which `name` is added, and known sum.
    title : str
        Of the data set.
    advice : str
        What else the reader can do; ``{folder}`` in it stands for `folder`.

    Raises
    ------
    OSError
        If no mirror has the file or it cannot be kept.
    """
    import requests  # a tenth of a second, needed here only

    failures = []
    for mirror, known in mirrors:
        try:
            # pooch sets the total of the bar; with None it fails. Its retrieve() would hide the
            # archive from other users, and what it had begun when killed would stay for good.
            with progress_bar(1, 'B', name) as bar, atomic_write(folder / name) as file:
                downloader = pooch.HTTPDownloader(progressbar=bar, timeout=DOWNLOAD_TIMEOUT,
                                                  chunk_size=1 << 16)
                downloader(mirror + name, file, None)
                file.flush()
                if not has_hash(file.name, [known]):
                    raise ValueError('wrong checksum')
            return
        except requests.RequestException as error:
            failures.append(f'  {mirror}: {type(error).__name__}')
        except ValueError as error:
            failures.append(f'  {mirror}: {error}')
        except OSError as error:
            raise cannot_keep(name, folder, error) from None
    raise OSError(f'{title} is not on this machine and {name} could not be downloaded:\n'
                  + '\n'.join(failures) + '\nConnect to the network and try again, or '
                  + advice.format(folder=folder))


def cannot_keep(name, folder, error):
    """Return the OSError that tells what to do when a file cannot be written."""
    return OSError(f'{name} cannot be kept in {folder}: {error}. Make room there, or set '
                   'D2L_EXT_DATA to a folder that can be written')


def load_data_fashion_mnist(batch_size, resize=None, root=None, *, verify=True, flip=False,
                            shift=0, normalize=False, ctx=None):
    """Return the training and the test batches of Fashion-MNIST, 60,000 and 10,000 images.

    Xiao, Rasul and Vollgraf, *Fashion-MNIST*, 2017.

    Parameters
    ----------
    batch_size : int
        Images in a batch.
    resize : int, optional
        Height and width of the images, in pixels; 28 if left out.
    root : str or path, optional
        Folder that directly holds the four ``.gz`` archives; the only place searched, and left
        as it is. Without it: ``fashion-mnist/`` in the folder that D2L_EXT_DATA names, then
        MXNet's own cache, then a download (into the first of these two that is set).
    verify : bool
        Whether the archives must be the published ones. False accepts copies of the same layout
        with any number of images.
    flip : bool
        Whether training images are mirrored left to right, each with probability 1/2.
    shift : int
        By how many pixels of 28x28 training images move at most, up or down, left or right.
    normalize : bool
        Whether the mean of the training images is subtracted and the result divided by their
        standard deviation. Without, values are from 0 to 1.
    ctx : mxnet.Context, optional
        Device of the batches; by default ``try_gpu()``.

    Returns
    -------
    train_iter, test_iter : Batches
        `train_iter` is shuffled, flipped and shifted anew for every pass.

    Raises
    ------
    ValueError
        If an archive is damaged or a number is out of range.
    OSError
        If the archives are nowhere to be had.

    Examples
    --------
    >>> train_iter, test_iter = load_data_fashion_mnist(128, resize=224)  # doctest: +SKIP
    >>> for X, y in train_iter:  # doctest: +SKIP
    ...     print(X.shape, y.shape)
    ...     break
    (128, 1, 224, 224) (128,)
    """
    check_int('batch_size', batch_size, 1)
    check_flag('verify', verify)
    folder = find_fashion_mnist() if root is None else check_path('root', root)
    train, test = (_read_fashion_mnist(folder, split, verify) for split in ('train', 't10k'))
    return make_batches(train, test, batch_size, flip=flip, shift=shift, normalize=normalize,
                        resize=resize, ctx=ctx, name='Fashion-MNIST',
                        classes=FASHION_MNIST_CLASSES)


def load_data_digits(batch_size, resize=None, *, flip=False, shift=0, normalize=False, ctx=None):
    """Return the training and the test batches of scikit-learn's digits; nothing is downloaded.

    1,797 handwritten digits of 8x8 pixels, from the UCI Optical Recognition set, split once and
    for all into 1,437 for training and 360 for testing, each class in proportion.

    Parameters and results are as for :func:`load_data_fashion_mnist`, but there is no file to
    find, and the images are 8x8 pixels.
    """
    from sklearn.datasets import load_digits  # a second's import, needed here only
    from sklearn.model_selection import train_test_split

    check_int('batch_size', batch_size, 1)
    digits = load_digits()
    train_X, test_X, train_y, test_y = train_test_split(
        digits.images.astype(np.uint8), digits.target, test_size=360, random_state=0,
        stratify=digits.target)
    return make_batches((train_X, train_y), (test_X, test_y), batch_size, flip=flip, shift=shift,
                        normalize=normalize, resize=resize, ctx=ctx, max_value=16,
                        name="scikit-learn's digits", classes=DIGITS_CLASSES)


def load_data(batch_size, resize=None, *, flip=False, shift=0, normalize=False, ctx=None):
    """Return Fashion-MNIST where it can be had, else the embedded digits, and say which.

    What the chapters and ``python -m d2l_ext`` use, so that they run without a network.
    Parameters and results are those of the loader that is used, :func:`load_data_fashion_mnist`
    (without root and verify) or :func:`load_data_digits`. An archive that is damaged is a
    ValueError, not a reason to fall back.
    """
    settings = {'flip': flip, 'shift': shift, 'normalize': normalize, 'ctx': ctx}
    try:
        return load_data_fashion_mnist(batch_size, resize, **settings)
    except OSError as error:
        print(f'{str(error).splitlines()[0].rstrip(":")}. Going on with the small embedded set, '
              "scikit-learn's digits: expect other pictures and other numbers.")
        return load_data_digits(batch_size, resize, **settings)


def get_fashion_mnist_labels(labels):
    """Return the class names of Fashion-MNIST labels (any iterable of whole numbers 0 to 9)."""
    labels = labels.asnumpy() if hasattr(labels, 'asnumpy') else labels
    check_type('labels', labels, collections.abc.Iterable, 'whole numbers from 0 to 9')
    return [FASHION_MNIST_CLASSES[check_int('labels', int(label) if label in range(10) else label,
                                            0, 9)] for label in labels]
