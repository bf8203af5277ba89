"""Fashion-MNIST, the embedded digits, and batches of either."""
import gzip
import os
import pathlib
import struct
import zlib

import numpy as np
import pooch

from .arguments import check_int
from .devices import mx, try_gpu
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
DOWNLOAD_TIMEOUT = 15  # seconds without an answer before the next mirror is tried


class Batches:
    """Batches of images held in memory, to iterate over as often as you like.

    Yields ``(X, y)``: `X` float32 in [0, 1] of shape (batch, 1, height, width), `y` int32 of shape
    (batch,), both on `ctx`. The last batch may be smaller. Scaling and resizing happen a whole
    batch at a time on `ctx`; there are no worker processes. Each new pass over a shuffled set
    draws its order from NumPy's global generator, so ``numpy.random.seed`` repeats it.

    Parameters
    ----------
    images : numpy.ndarray
        uint8, shape (number, height, width).
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

    Raises
    ------
    ValueError
        If the arrays do not fit together or a number is out of range.
    """

    def __init__(self, images, labels, batch_size, resize=None, shuffle=False, ctx=None,
                 max_value=255, name='', classes=()):
        if images.ndim != 3 or images.dtype != np.uint8:
            raise ValueError('images must be uint8 of shape (number, height, width), '
                             f'not {images.dtype} of shape {images.shape}')
        if labels.shape != images.shape[:1]:
            raise ValueError(f'{len(images)} images need as many labels, not {labels.shape}')
        if classes and len(labels) and not 0 <= labels.min() <= labels.max() < len(classes):
            raise ValueError(f'labels must be from 0 to {len(classes) - 1}, but they run from '
                             f'{labels.min()} to {labels.max()}')
        self.images, self.labels = images, labels
        self.batch_size = check_int('batch_size', batch_size, 1, len(images))
        self.resize = None if resize is None else check_int('resize', resize, 1)
        self.shuffle, self.max_value = shuffle, max_value
        self.ctx = try_gpu() if ctx is None else ctx
        self.name, self.classes = name, tuple(classes)

    def __len__(self):
        """Return the number of batches in a pass."""
        return -(-len(self.images) // self.batch_size)

    def __iter__(self):
        number = len(self.images)
        order = np.random.permutation(number) if self.shuffle else np.arange(number)
        for start in range(0, number, self.batch_size):
            chosen = order[start:start + self.batch_size]
            X = nd.array(self.images[chosen, None], ctx=self.ctx, dtype='uint8')
            X = X.astype('float32') / self.max_value
            if self.resize is not None and X.shape[2:] != (self.resize, self.resize):
                # Half-pixel centres, as OpenCV and so the book's own transform has them.
                X = nd.contrib.BilinearResize2D(X, height=self.resize, width=self.resize,
                                                align_corners=False)
            yield X, nd.array(self.labels[chosen], ctx=self.ctx, dtype='int32')

    def take(self, number):
        """Return batches of the first `number` images only, otherwise like these."""
        number = check_int('number', number, 1, len(self.images))
        return Batches(self.images[:number], self.labels[:number],
                       min(self.batch_size, number), self.resize, self.shuffle, self.ctx,
                       self.max_value, self.name, self.classes)


def known_hash(name, kind='md5'):
    """Return the published sum of an archive as pooch writes it, such as ``md5:8d4fb...``."""
    return f"{kind}:{(FASHION_MNIST_MD5 if kind == 'md5' else FASHION_MNIST_SHA1)[name]}"


def is_published(path):
    """Return whether a file is the archive of its name, as published or as MXNet has it."""
    return any(f'{kind}:{pooch.file_hash(path, kind)}' == known_hash(path.name, kind)
               for kind in ('md5', 'sha1'))


def _check_published(path):
    if not is_published(path):
        raise ValueError(
            f'{path} is not the published archive (its checksum differs): damaged, incomplete or '
            'swapped with another. Remove it or fetch it again; for a copy that differs on '
            'purpose pass its folder as root with verify=False')


def _read_idx(path, num_dimensions):
    """Return the uint8 array in a gzipped IDX file (format: yann.lecun.com/exdb/mnist)."""
    try:
        with gzip.open(path, 'rb') as file:
            header_size = 4 + 4 * num_dimensions
            header = file.read(header_size)
            if len(header) < header_size or header[:4] != bytes((0, 0, 8, num_dimensions)):
                raise ValueError(f'{path} is not an IDX file of {num_dimensions} dimension(s)')
            shape = struct.unpack(f'>{num_dimensions}I', header[4:])
            size = int(np.prod(shape, dtype=object))
            # A lying header must not make us ask for more memory than the file can fill.
            if size > 1032 * os.path.getsize(path):  # 1032: the most that deflate can expand
                raise ValueError(f'{path} announces {size} bytes, more than it can hold')
            content = file.read(size + 1)
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
            _check_published(path)
        arrays.append(_read_idx(path, num_dimensions))
    images, labels = arrays
    if not len(images) or images.shape != (len(labels), 28, 28):
        raise ValueError(f'{folder}: the {split} archives must hold 28x28 images and as many '
                         f'labels, not arrays of shape {images.shape} and {labels.shape}')
    return arrays


def find_fashion_mnist():
    """Return a folder that holds the four archives; download them if no known folder does."""
    mxnet_cache = pathlib.Path(mx.base.data_dir()) / 'datasets' / 'fashion-mnist'
    folder = mxnet_cache
    if os.environ.get('D2L_EXT_DATA'):
        folder = pathlib.Path(os.environ['D2L_EXT_DATA']) / 'fashion-mnist'
        present = [name for name in FASHION_MNIST_MD5 if (folder / name).is_file()]
        for name in present:  # what the reader put there is never replaced
            _check_published(folder / name)
        if len(present) == len(FASHION_MNIST_MD5):
            return folder
    if all((mxnet_cache / name).is_file() and is_published(mxnet_cache / name)
           for name in FASHION_MNIST_MD5):
        return mxnet_cache
    for name in FASHION_MNIST_MD5:
        if not ((folder / name).is_file() and is_published(folder / name)):
            _download(name, folder)
    return folder


def _download(name, folder):
    """Fetch one archive into `folder` from the first mirror that has it, whole or not at all."""
    import requests  # a tenth of a second, needed here only

    pooch.get_logger().setLevel('WARNING')
    failures = []
    for mirror, kind in FASHION_MNIST_MIRRORS:
        with progress_bar(1, 'B', name) as bar:  # pooch sets the total; with None it fails
            downloader = pooch.HTTPDownloader(progressbar=bar, timeout=DOWNLOAD_TIMEOUT,
                                              chunk_size=1 << 16)
            try:
                pooch.retrieve(mirror + name, known_hash(name, kind), name, folder,
                               downloader=downloader)
                return
            except (requests.RequestException, ValueError) as error:
                failures.append(f'  {mirror}: {type(error).__name__}')
            except OSError as error:
                raise OSError(f'{name} cannot be kept in {folder}: {error}. Make room there, or '
                              'set D2L_EXT_DATA to a folder that can be written') from None
    raise OSError(f'Fashion-MNIST is not on this machine and {name} could not be downloaded:\n'
                  + '\n'.join(failures)
                  + '\nConnect to the network and try again, or put the four archives into '
                  f'{folder}, or set D2L_EXT_DATA to the folder whose fashion-mnist/ holds them. '
                  'load_data_digits() needs no download.')


def load_data_fashion_mnist(batch_size, resize=None, root=None, *, verify=True, ctx=None):
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
    ctx : mxnet.Context, optional
        Device of the batches; by default ``try_gpu()``.

    Returns
    -------
    train_iter, test_iter : Batches
        `train_iter` is shuffled anew for every pass.

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
    folder = pathlib.Path(root) if root is not None else find_fashion_mnist()
    train, test = (_read_fashion_mnist(folder, split, verify) for split in ('train', 't10k'))
    return tuple(
        Batches(images, labels, size, resize, shuffle, ctx, name='Fashion-MNIST',
                classes=FASHION_MNIST_CLASSES)
        for (images, labels), size, shuffle in (
            (train, batch_size, True), (test, min(batch_size, len(test[0])), False)))


def load_data_digits(batch_size, resize=None, *, ctx=None):
    """Return the training and the test batches of scikit-learn's digits; nothing is downloaded.

    1,797 handwritten digits of 8x8 pixels, from the UCI Optical Recognition set, split once and
    for all into 1,437 for training and 360 for testing, each class in proportion.

    Parameters and results are those of :func:`load_data_fashion_mnist`.
    """
    from sklearn.datasets import load_digits  # a second's import, needed here only
    from sklearn.model_selection import train_test_split

    check_int('batch_size', batch_size, 1)
    digits = load_digits()
    train_X, test_X, train_y, test_y = train_test_split(
        digits.images.astype(np.uint8), digits.target, test_size=360, random_state=0,
        stratify=digits.target)
    return tuple(
        Batches(images, labels, size, resize, shuffle, ctx, max_value=16,
                name="scikit-learn's digits", classes=DIGITS_CLASSES)
        for images, labels, size, shuffle in (
            (train_X, train_y, batch_size, True),
            (test_X, test_y, min(batch_size, len(test_X)), False)))


def load_data(batch_size, resize=None, *, ctx=None):
    """Return Fashion-MNIST where it can be had, else the embedded digits, and say which.

    What the chapters and ``python -m d2l_ext`` use, so that they run without a network.
    Parameters and results are those of :func:`load_data_fashion_mnist`.
    """
    try:
        return load_data_fashion_mnist(batch_size, resize, ctx=ctx)
    except OSError as error:
        print(f'{str(error).splitlines()[0].rstrip(":")}. Going on with the small embedded set, '
              "scikit-learn's digits: expect other pictures and other numbers.")
        return load_data_digits(batch_size, resize, ctx=ctx)


def get_fashion_mnist_labels(labels):
    """Return the class names of Fashion-MNIST labels (any iterable of whole numbers 0 to 9)."""
    labels = labels.asnumpy() if hasattr(labels, 'asnumpy') else labels
    return [FASHION_MNIST_CLASSES[check_int('labels', int(label), 0, 9)] for label in labels]


def dataset_facts(name):
    """Return what a record says of a data set of real images: name, sizes, checksums."""
    if name != 'Fashion-MNIST':
        raise ValueError(f"records are made on 'Fashion-MNIST' only, not on {name!r}")
    return {'name': name, 'train_images': 60000, 'test_images': 10000, 'md5': FASHION_MNIST_MD5}
