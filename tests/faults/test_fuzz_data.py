"""Bad data sets: damaged and lying archives end in an error, or in what they hold.

What is claimed: the published data sets and each gzipped IDX file, which have checksums, never give
other data than they were written with. Where there is none, in unofficial CIFAR files, the result
is what the file says, or an error. ``damage.py`` says how to draw more of them.
"""
import gzip
import hashlib
import struct

import numpy as np
import pytest
from conftest import content, idx, write_archives
from damage import REFUSED, damaged, drawn, little_memory
from hypothesis import given, settings
from hypothesis import strategies as st

import d2l_ext
from d2l_ext.devices import mx
from d2l_ext.storage import fashion_mnist
from d2l_ext.studies import cifar10

CPU = mx.cpu()


# --- IDX files ---

PIXELS = np.random.RandomState(0).randint(0, 256, (5, 4, 3)).astype(np.uint8)


def test_damaged_idx_files(tmp_path, faults):
    path = tmp_path / 'images.gz'

    @drawn
    @given(damaged(idx(PIXELS)))
    def check(file):
        path.write_bytes(file)
        faults.injected()
        try:
            with little_memory():
                read = fashion_mnist._read_idx(path, 3)
        except REFUSED:
            pass
        else:
            assert np.array_equal(read, PIXELS)
        faults.survived()

    check()


SIZES = st.sampled_from([0, 1, 2, 3, 4, 5, 28, 2**16, 2**31 - 1, 2**31, 2**32 - 1])


def test_lying_idx_headers(tmp_path, faults):
    path = tmp_path / 'images.gz'

    @drawn
    @given(st.sampled_from([b'\0\0', b'\0\1', b'\37\213']), st.sampled_from([8, 8, 8, 9, 13]),
           st.integers(0, 4), st.lists(SIZES, max_size=4), st.integers(0, 130))
    def check(magic, kind, dimensions, sizes, length):
        payload = bytes(range(length))
        raw = (magic + bytes((kind, dimensions)) + struct.pack(f'>{len(sizes)}I', *sizes) + payload)
        path.write_bytes(gzip.compress(raw))
        faults.injected()
        for expected in (1, 3):
            true = (magic == b'\0\0' and kind == 8 and dimensions == expected == len(sizes)
                    and np.prod(sizes, dtype=object) == length)
            try:
                with little_memory():
                    read = fashion_mnist._read_idx(path, expected)
            except REFUSED:
                assert not true
            else:  # sizes that are short of the header's take the first bytes for sizes
                assert read.ndim == expected and raw.endswith(read.tobytes())
                assert not true or read.tobytes() == payload and list(read.shape) == sizes
        faults.survived()

    check()


def test_an_idx_file_that_inflates_to_more_than_it_announces(tmp_path, faults):
    bomb = gzip.compress(bytes((0, 0, 8, 3)) + struct.pack('>3I', 2, 28, 28) + bytes(64 << 20))
    (tmp_path / 'images.gz').write_bytes(bomb)
    faults.injected()
    with little_memory(), pytest.raises(ValueError, match='announces 1568 bytes but holds more'):
        fashion_mnist._read_idx(tmp_path / 'images.gz', 3)
    faults.survived()


@pytest.mark.parametrize('verify', [True, False])
def test_damaged_fashion_mnist(tmp_path, monkeypatch, faults, verify):
    """Damaged before it was compressed, so that the checksum of gzip fits."""
    sums = write_archives(tmp_path, num_train=3, num_test=2)
    monkeypatch.setattr(fashion_mnist, 'MD5', sums)
    good = content(tmp_path)

    @st.composite
    def cases(draw):
        name = draw(st.sampled_from(sorted(good)))
        return name, draw(damaged(gzip.decompress(good[name])))

    @drawn
    @given(cases())
    def check(case):
        name, raw = case
        file = gzip.compress(raw, mtime=0)
        (tmp_path / name).write_bytes(file)
        faults.injected()
        try:
            with little_memory():
                loaded = d2l_ext.load_data_fashion_mnist(1, root=tmp_path, verify=verify, ctx=CPU)
        except REFUSED:
            pass
        else:
            assert not verify or file == good[name]
            for data_iter, split in zip(loaded, ('train', 't10k')):
                for kind, array, start in (('images', data_iter.images, 16),
                                           ('labels', data_iter.labels, 8)):
                    path = next(tmp_path.glob(f'{split}-{kind}-*'))
                    assert array.tobytes() == gzip.decompress(path.read_bytes())[start:]
                assert data_iter.images.shape == (len(data_iter.labels), 28, 28)
                assert data_iter.labels.max() < 10
        (tmp_path / name).write_bytes(good[name])
        faults.survived()

    check()


# --- CIFAR-10 files ---

RECORD = 3073


@pytest.fixture
def cifar10_folder(tmp_path, monkeypatch):
    """Six small files that count as the official ones."""
    random = np.random.RandomState(0)
    for i, name in enumerate(cifar10.CIFAR10_SHA1):
        file = random.randint(0, 256, (2, RECORD)).astype(np.uint8)
        file[:, 0] = i, 9 - i
        (tmp_path / name).write_bytes(file.tobytes())
    monkeypatch.setattr(cifar10, 'CIFAR10_SHA1', {
        name: hashlib.sha1(file).hexdigest() for name, file in content(tmp_path).items()})
    return tmp_path


def check_cifar10(folder, good, verify):
    """Check that the files in `folder` are refused or read as what they say."""
    files = content(folder)
    sound = all(file and len(file) % RECORD == 0 and max(file[::RECORD]) < 10
                for file in files.values())
    try:
        with little_memory():
            loaded = d2l_ext.load_data_cifar10(1, folder, verify, ctx=CPU)
    except REFUSED:
        assert not sound or verify and files != good
    else:
        assert sound and (files == good or not verify)
        for data_iter, names in zip(loaded, (cifar10.CIFAR10_TRAIN, cifar10.CIFAR10_TEST)):
            assert b''.join(bytes([label]) + image.tobytes() for label, image in
                            zip(data_iter.labels, data_iter.images)) == b''.join(
                                files[name] for name in names)
            assert data_iter.images.shape[1:] == (3, 32, 32)


@pytest.mark.parametrize('verify', [True, False])
def test_damaged_cifar10(cifar10_folder, faults, verify):
    good = content(cifar10_folder)

    @st.composite
    def cases(draw):
        name = draw(st.sampled_from(sorted(good)))
        if draw(st.booleans()):
            return name, draw(damaged(good[name]))
        number = draw(st.integers(0, 4))  # of whole records
        labels = draw(st.lists(st.integers(0, 11), min_size=number, max_size=number))
        return name, b''.join(bytes([label]) + good[name][1:RECORD] for label in labels)

    @drawn
    @given(cases())
    def check(case):
        name, file = case
        (cifar10_folder / name).write_bytes(file)
        faults.injected()
        check_cifar10(cifar10_folder, good, verify)
        (cifar10_folder / name).write_bytes(good[name])
        faults.survived()

    check()


@pytest.mark.parametrize('verify', [True, False])
def test_swapped_cifar10(cifar10_folder, faults, verify):
    good = content(cifar10_folder)

    @settings(drawn, max_examples=50)
    @given(st.permutations(sorted(good)))
    def check(names):
        for name, other in zip(good, names):
            (cifar10_folder / name).write_bytes(good[other])
        faults.injected()
        check_cifar10(cifar10_folder, good, verify)
        faults.survived()

    check()
