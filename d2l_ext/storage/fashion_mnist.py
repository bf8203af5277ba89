"""The four archives of Fashion-MNIST: found or downloaded, checked, read."""
import gzip
import struct
import zlib

import numpy as np

from .downloads import check_published, download, find_files

# MD5 sums that https://github.com/zalandoresearch/fashion-mnist publishes.
MD5 = {
    'train-images-idx3-ubyte.gz': '8d4fb7e6c68d591d4c3dfef9ec88bf0d',
    'train-labels-idx1-ubyte.gz': '25c81989df183df01b3e8a0aad5dffbe',
    't10k-images-idx3-ubyte.gz': 'bef4ecab320f06d8554ea6380940ec79',
    't10k-labels-idx1-ubyte.gz': 'bb300cfdad3c16e7a12a480ee83cd310',
}
# SHA1 sums of MXNet's own copy, compressed anew, as mxnet.gluon.data.vision.FashionMNIST has them.
SHA1 = {
    'train-images-idx3-ubyte.gz': '0cf37b0d40ed5169c6b3aba31069a9770ac9043d',
    'train-labels-idx1-ubyte.gz': '236021d52f1e40852b06a4c3008d8de8aef1e40b',
    't10k-images-idx3-ubyte.gz': '626ed6a7c06dd17c0eec72fa3be1740f146a2863',
    't10k-labels-idx1-ubyte.gz': '17f9ab60e7257a1620f4ad76bbbaf857c3920701',
}
# Each with the kind of sum that its archives have.
MIRRORS = (
    ('http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/', 'md5'),
    ('https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/', 'md5'),
    ('https://apache-mxnet.s3-accelerate.dualstack.amazonaws.com/gluon/dataset/fashion-mnist/',
     'sha1'),
)


def hashes():
    """Return the known sums of each archive, as pooch writes them, such as ``md5:8d4fb...``."""
    return {name: [f'md5:{MD5[name]}', f'sha1:{SHA1[name]}'] for name in MD5}


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


def _read_split(folder, split, verify):
    """Return images (number, 28, 28) and labels (number,) of 'train' or 't10k'."""
    arrays = []
    for kind, num_dimensions in (('images', 3), ('labels', 1)):
        path = folder / f'{split}-{kind}-idx{num_dimensions}-ubyte.gz'
        if not path.is_file():
            raise FileNotFoundError(f'{path} is missing. Put the four Fashion-MNIST archives '
                                    'there, or leave root out to have them downloaded')
        if verify:
            check_published(path, hashes())
        arrays.append(_read_idx(path, num_dimensions))
    images, labels = arrays
    if not len(images) or images.shape != (len(labels), 28, 28):
        raise ValueError(f'{folder}: the {split} archives must hold 28x28 images and as many '
                         f'labels, not arrays of shape {images.shape} and {labels.shape}')
    return arrays


def find():
    """Return a folder that holds the four archives; download them if no known folder does."""
    def fetch(names, folder):
        for name in names:
            sums = dict(zip(('md5', 'sha1'), hashes()[name]))
            download(name, folder, [(mirror, sums[kind]) for mirror, kind in MIRRORS],
                     'Fashion-MNIST', 'put the four archives into {folder}, or set D2L_EXT_DATA '
                     'to the folder whose fashion-mnist/ holds them. load_data_digits() needs no '
                     'download.')

    return find_files('fashion-mnist', MD5, hashes(), fetch)


def read(root, verify):
    """Return images and labels of the training set and of the test set, arrays of uint8.

    `root` is the folder of the archives, or None: then they are found or downloaded.
    """
    folder = find() if root is None else root
    return [_read_split(folder, split, verify) for split in ('train', 't10k')]
