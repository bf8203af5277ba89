"""Fashion-MNIST and the embedded digits as batches."""
import collections.abc

import numpy as np

from .arguments import check_flag, check_int, check_path, check_type, refusal, wrapped
from .batches import make_batches
from .storage import fashion_mnist

FASHION_MNIST_CLASSES = ('t-shirt', 'trouser', 'pullover', 'dress', 'coat',
                         'sandal', 'shirt', 'sneaker', 'bag', 'ankle boot')
DIGITS_CLASSES = tuple('0123456789')


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
        MXNet's own cache, then a download, into D2L_EXT_DATA's folder if that is set, else into
        the cache.
    verify : bool
        Whether the archives must be the published ones. False accepts, in `root` or in
        D2L_EXT_DATA's folder, copies of the same layout with any number of images.
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
        If an archive in `root` or in D2L_EXT_DATA's folder is damaged (one in MXNet's cache is
        downloaded again), or a number is out of range.
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
    train, test = fashion_mnist.read(None if root is None else check_path('root', root), verify)
    return make_batches(train, test, batch_size, flip=flip, shift=shift, normalize=normalize,
                        resize=resize, ctx=ctx, name='Fashion-MNIST',
                        classes=FASHION_MNIST_CLASSES)


def load_data_digits(batch_size, resize=None, *, flip=False, shift=0, normalize=False, ctx=None):
    """Return the training and the test batches of scikit-learn's digits; nothing is downloaded.

    1,797 handwritten digits of 8x8 pixels, from the UCI Optical Recognition set, split once and
    for all into 1,437 for training and 360 for testing, each class in proportion.

    Parameters
    ----------
    batch_size : int
        Images in a batch.
    resize : int, optional
        Height and width of the images, in pixels; 8 if left out.
    flip, shift, normalize, ctx : optional
        As of :func:`load_data_fashion_mnist`; `shift` in pixels of 8x8.

    Returns
    -------
    train_iter, test_iter : Batches
        As those of :func:`load_data_fashion_mnist`.

    Raises
    ------
    ValueError
        If an argument is out of range.
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

    Parameters
    ----------
    batch_size : int
        Images in a batch.
    resize : int, optional
        Height and width of the images, in pixels; 28, or 8 with the digits, if left out.
    flip, shift, normalize, ctx : optional
        As of :func:`load_data_fashion_mnist`; `shift` in pixels of the set's own images.

    Returns
    -------
    train_iter, test_iter : Batches
        As those of :func:`load_data_fashion_mnist`.

    Raises
    ------
    ValueError
        If an archive in D2L_EXT_DATA's folder is damaged or an argument is out of range: neither
        falls back to the digits.
    """
    settings = {'flip': flip, 'shift': shift, 'normalize': normalize, 'ctx': ctx}
    try:
        return load_data_fashion_mnist(batch_size, resize, **settings)
    except OSError as error:
        print(wrapped(f'{str(error).splitlines()[0].rstrip(":")}. Going on with the small embedded '
                      "set, scikit-learn's digits: expect other pictures and other numbers."))
        return load_data_digits(batch_size, resize, **settings)


def get_fashion_mnist_labels(labels):
    """Return the class names of Fashion-MNIST labels.

    Parameters
    ----------
    labels : iterable of int
        From 0 to 9, such as an array of shape (batch,), NumPy's or MXNet's.

    Returns
    -------
    list of str

    Raises
    ------
    ValueError
        If a label is not a whole number from 0 to 9.
    """
    labels = labels.asnumpy() if hasattr(labels, 'asnumpy') else labels
    allowed = 'whole numbers from 0 to 9'
    check_type('labels', labels, collections.abc.Iterable, allowed)
    if getattr(labels, 'ndim', 1) != 1:
        raise refusal('labels', labels, f'{allowed} of shape (batch,)')
    labels = list(labels)
    for label in labels:
        if label not in range(10):
            raise refusal('labels', label, allowed)
    return [FASHION_MNIST_CLASSES[int(label)] for label in labels]
