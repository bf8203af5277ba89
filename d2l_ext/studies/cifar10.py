"""CIFAR-10: the official binary files, found, checked and read."""
import pathlib
import shutil
import tarfile

import numpy as np

from ..arguments import check_flag, check_int, check_path
from ..batches import make_batches
from ..storage.downloads import cannot_keep, check_published, download, find_files, is_published
from ..storage.files import atomic_write

CIFAR10_CLASSES = ('airplane', 'automobile', 'bird', 'cat', 'deer', 'dog', 'frog', 'horse',
                   'ship', 'truck')
CIFAR10_TRAIN = tuple(f'data_batch_{i}.bin' for i in range(1, 6))
CIFAR10_TEST = ('test_batch.bin',)
# SHA1 sums of the official files, as mxnet.gluon.data.vision.CIFAR10 has them.
CIFAR10_SHA1 = {
    'data_batch_1.bin': 'aadd24acce27caa71bf4b10992e9e7b2d74c2540',
    'data_batch_2.bin': 'c0ba65cce70568cd57b4e03e9ac8d2a5367c1795',
    'data_batch_3.bin': '1dd00a74ab1d17a6e7d73e185b69dbf31242f295',
    'data_batch_4.bin': 'aab85764eb3584312d3c7f65fd2fd016e36a258e',
    'data_batch_5.bin': '26e2849e66a845b7f1e4614ae70f4889ae604628',
    'test_batch.bin': '67eb016db431130d61cd03c7ad570b013799c88c',
}
CIFAR10_ARCHIVE = 'cifar-10-binary.tar.gz'
# The archive's own home, with the sum published there, and MXNet's copy, packed anew.
CIFAR10_MIRRORS = (
    ('https://www.cs.toronto.edu/~kriz/', 'md5:c32a1d4ab5d03f1284b67883e8d87530'),
    ('https://apache-mxnet.s3-accelerate.dualstack.amazonaws.com/gluon/dataset/cifar10/',
     'sha1:fab780a1e191a7eda0f345501ccd62d20f7ed891'),
)
_RECORD = 1 + 3 * 32 * 32  # bytes: a label, then the red, green and blue plane


def _hashes():
    return {CIFAR10_ARCHIVE: [known for _, known in CIFAR10_MIRRORS],
            **{name: [f'sha1:{known}'] for name, known in CIFAR10_SHA1.items()}}


def _read_cifar10(folder, names, verify):
    """Return the images (number, 3, 32, 32) and labels (number,) in the named files."""
    parts = []
    for name in names:
        path = folder / name
        if not path.is_file():
            raise FileNotFoundError(f'{path} is missing. Put the six .bin files of CIFAR-10 '
                                    'there, or leave root out to have them downloaded')
        if verify:
            check_published(path, _hashes())
        content = np.fromfile(path, np.uint8)
        if not len(content) or len(content) % _RECORD:
            raise ValueError(f'{path} must hold whole records of {_RECORD:,} bytes, at least one, '
                             f'but it has {len(content):,} bytes')
        parts.append(content.reshape(-1, _RECORD))
        largest = parts[-1][:, 0].max()
        if largest >= len(CIFAR10_CLASSES):
            raise ValueError(f'{path}: labels must be from 0 to 9, but one is {largest}')
    records = np.concatenate(parts)
    return records[:, 1:].reshape(-1, 3, 32, 32), records[:, 0]


def _fetch(names, folder):
    """Download the archive unless it is in `folder` and unpack the named files beside it."""
    archive = folder / CIFAR10_ARCHIVE
    if not (archive.is_file() and is_published(archive, _hashes())):
        download(CIFAR10_ARCHIVE, folder, CIFAR10_MIRRORS, 'CIFAR-10',
                 'put it or its six .bin files into {folder}, or set D2L_EXT_DATA to the folder '
                 'whose cifar10/ holds them, or pass as root a folder that does.')
    try:
        # Only what is wanted, by its plain name, whatever paths and links the archive has.
        with tarfile.open(archive, 'r:gz') as tar:
            for member in tar:
                name = pathlib.PurePosixPath(member.name).name
                if name in names and member.isfile():
                    with tar.extractfile(member) as source, atomic_write(folder / name) as target:
                        shutil.copyfileobj(source, target)
    except OSError as error:
        raise cannot_keep('what the archive holds', folder, error) from None


def find_cifar10():
    """Return a folder that holds the six files; download them if no known folder does."""
    return find_files('cifar10', tuple(CIFAR10_SHA1), _hashes(), _fetch)


def load_data_cifar10(batch_size, root=None, verify=True, *, resize=None, flip=False, shift=0,
                      normalize=False, ctx=None):
    """Return the training and the test batches of CIFAR-10, 50,000 and 10,000 colour images.

    Krizhevsky, *Learning Multiple Layers of Features from Tiny Images*, 2009. Gluon's own class
    for this set is not used: it unpacks its download over files that it does not recognize.

    Parameters
    ----------
    batch_size : int
        Images in a batch.
    root : str or path, optional
        Folder that directly holds ``data_batch_1.bin`` to ``data_batch_5.bin`` and
        ``test_batch.bin``; the only place searched, and left as it is. Without it: ``cifar10/``
        in the folder that D2L_EXT_DATA names, then MXNet's own cache, then a download of 170 MB
        (into the first of these two that is set), unpacked to 184 MB. A folder without these
        files counts as absent, whatever else it holds.
    verify : bool
        Whether the files must be the official ones. False accepts copies of the same layout with
        any number of images.
    resize : int, optional
        Height and width of the images, in pixels; 32 if left out.
    flip, shift, normalize, ctx : optional
        As of :func:`~d2l_ext.load_data_fashion_mnist`; `shift` in pixels of 32x32, and each channel
        normalized by itself.

    Returns
    -------
    train_iter, test_iter : Batches
        As those of :func:`~d2l_ext.load_data_fashion_mnist`, with the channels red, green, blue.

    Raises
    ------
    ValueError
        If a file is not the official one or is damaged, or an argument is out of range.
    FileNotFoundError
        If `root` lacks a file.
    OSError
        If the archive cannot be downloaded or kept.

    Examples
    --------
    >>> train_iter, test_iter = load_data_cifar10(128, flip=True, shift=4)  # doctest: +SKIP
    >>> train_iter, val_iter = train_iter.hold_out(5000)  # doctest: +SKIP
    """
    check_int('batch_size', batch_size, 1)
    check_flag('verify', verify)
    folder = find_cifar10() if root is None else check_path('root', root)
    train, test = (_read_cifar10(folder, names, verify)
                   for names in (CIFAR10_TRAIN, CIFAR10_TEST))
    return make_batches(train, test, batch_size, flip=flip, shift=shift, normalize=normalize,
                        resize=resize, ctx=ctx, name='CIFAR-10', classes=CIFAR10_CLASSES)
