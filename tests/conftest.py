"""Fixtures that several test files share."""
import gzip
import hashlib
import struct
import sys

import matplotlib
import numpy as np
import pytest

import d2l_ext  # noqa: F401  before any test imports mxnet, as readers should

matplotlib.use('Agg')


@pytest.fixture(autouse=True)
def close_figures():
    yield
    if 'matplotlib.pyplot' in sys.modules:
        sys.modules['matplotlib.pyplot'].close('all')


@pytest.fixture
def isolated(tmp_path, monkeypatch):
    """Empty caches, and none of the reader's own settings; returns the folder of the test."""
    for name in ('D2L_EXT_DATA', 'D2L_EXT_RERUN'):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv('D2L_EXT_CACHE', str(tmp_path / 'cache'))
    monkeypatch.setenv('MXNET_HOME', str(tmp_path / 'mxnet'))
    return tmp_path


def idx(array, shape=None, kind=8):
    """Return a gzipped IDX file of `array`; its header tells of `shape` and type `kind`."""
    shape = array.shape if shape is None else shape
    header = bytes((0, 0, kind, len(shape))) + struct.pack(f'>{len(shape)}I', *shape)
    return gzip.compress(header + array.tobytes(), mtime=0)


def write_archives(folder, num_train=20, num_test=8, seed=0):
    """Write four small archives with the names of Fashion-MNIST's; return their MD5 sums."""
    random = np.random.RandomState(seed)
    folder.mkdir(parents=True, exist_ok=True)
    sums = {}
    for split, number in (('train', num_train), ('t10k', num_test)):
        for name, array in (
                (f'{split}-images-idx3-ubyte.gz', random.randint(0, 256, (number, 28, 28))),
                (f'{split}-labels-idx1-ubyte.gz', (np.arange(number) + seed) % 10)):
            content = idx(array.astype(np.uint8))
            (folder / name).write_bytes(content)
            sums[name] = hashlib.md5(content).hexdigest()
    return sums
