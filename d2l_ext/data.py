"""Fashion-MNIST and the embedded digits, found and read."""
import collections.abc
import gzip
import struct
import zlib

import numpy as np

from .arguments import check_flag, check_int, check_path, check_type
from .batches import make_batches
from .storage.downloads import check_published, download, find_files

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


def known_hash(name, kind='md5'):
    """Return the published sum of an archive as pooch writes it, such as ``md5:8d4fb...``."""
    return f"{kind}:{(FASHION_MNIST_MD5 if kind == 'md5' else FASHION_MNIST_SHA1)[name]}"


def fashion_mnist_hashes():
    """Return the known sums of each archive, as published and of MXNet's copy."""
    return {name: [known_hash(name, kind) for kind in ('md5', 'sha1')]
            for name in FASHION_MNIST_MD5}


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
            check_published(path, fashion_mnist_hashes())
        arrays.append(_read_idx(path, num_dimensions))
    images, labels = arrays
    if not len(images) or images.shape != (len(labels), 28, 28):
        raise ValueError(f'{folder}: the {split} archives must hold 28x28 images and as many '
                         f'labels, not arrays of shape {images.shape} and {labels.shape}')
    return arrays


def find_fashion_mnist():
    """Return a folder that holds the four archives; download them if no known folder does."""
    def fetch(names, folder):
        for name in names:
            download(name, folder, [(mirror, known_hash(name, kind))
                                    for mirror, kind in FASHION_MNIST_MIRRORS],
                     'Fashion-MNIST', 'put the four archives into {folder}, or set D2L_EXT_DATA '
                     'to the folder whose fashion-mnist/ holds them. load_data_digits() needs no '
                     'download.')

    return find_files('fashion-mnist', FASHION_MNIST_MD5, fashion_mnist_hashes(), fetch)


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
