"""Finding, downloading, checking and reading the CIFAR-10 files."""
import hashlib
import io
import os
import pathlib
import tarfile

import numpy as np
import pytest
from conftest import content, copy

import d2l_ext
from d2l_ext.devices import mx
from d2l_ext.images.normalization import channel_statistics
from d2l_ext.storage import downloads
from d2l_ext.studies import cifar10

CPU = mx.cpu()
NAMES = tuple(cifar10.CIFAR10_SHA1)
REAL = pathlib.Path(os.environ.get('D2L_EXT_DATA', '')) / 'cifar10'


def records(number, seed=0):
    """Return whole records with random pixels and the labels 0, 1, 2, ..."""
    pixels = np.random.RandomState(seed).randint(0, 256, (number, 3072)).astype(np.uint8)
    return np.hstack([np.arange(number, dtype=np.uint8)[:, None] % 10, pixels]).tobytes()


def write_files(folder, number=4, seed=0):
    folder.mkdir(parents=True, exist_ok=True)
    for i, name in enumerate(NAMES):
        (folder / name).write_bytes(records(number, 10 * seed + i))
    return folder


def write_archive(path, files, prefix=''):
    """Write a .tar.gz file of {name: bytes} and return its MD5 sum as pooch writes it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, 'w:gz') as tar:
        for name, file in files.items():
            member = tarfile.TarInfo(prefix + name)
            member.size = len(file)
            tar.addfile(member, io.BytesIO(file))
    return 'md5:' + hashlib.md5(path.read_bytes()).hexdigest()


@pytest.fixture(autouse=True)
def offline(isolated, monkeypatch):
    """No mirror answers; nothing but what a test puts there is found."""
    monkeypatch.setattr(cifar10, 'CIFAR10_MIRRORS', (('http://127.0.0.1:9/', 'md5:0'),))
    for name in ('NO_PROXY', 'no_proxy'):
        monkeypatch.setenv(name, '127.0.0.1')


@pytest.fixture
def official(isolated, monkeypatch):
    """A folder of small files that count as the official ones."""
    folder = write_files(isolated / 'official')
    monkeypatch.setattr(cifar10, 'CIFAR10_SHA1', {
        name: hashlib.sha1(file).hexdigest() for name, file in content(folder).items()})
    return folder


@pytest.fixture
def mirror(official, mirrors, monkeypatch):
    """A mirror with an archive of the official files, and of more, as the real one has."""
    known = write_archive(official.parent / 'mirror' / cifar10.CIFAR10_ARCHIVE, {
        **content(official), 'readme.html': b'read me', '../../escaped.bin': b'no'},
        'cifar-10-batches-bin/')
    monkeypatch.setattr(cifar10, 'CIFAR10_MIRRORS', ((mirrors.url('mirror'), known),))
    return mirrors


def mxnet_cache(root):
    return root / 'mxnet' / 'datasets' / 'cifar10'


def load(**arguments):
    return d2l_ext.load_data_cifar10(4, ctx=CPU, **arguments)


# --- reading ---

@pytest.mark.parametrize('as_type', [str, pathlib.Path])
def test_root(official, as_type):
    before = content(official)
    train, test = load(root=as_type(official))
    assert train.images.shape == (20, 3, 32, 32) and test.images.shape == (4, 3, 32, 32)
    assert train.labels.tolist() == 5 * [0, 1, 2, 3] and test.labels.tolist() == [0, 1, 2, 3]
    assert (train.shuffle, test.shuffle) == (True, False)
    assert train.name == test.name == 'CIFAR-10' and len(train.classes) == 10
    X, y = next(iter(test))
    assert X.shape == (4, 3, 32, 32) and y.asnumpy().tolist() == [0, 1, 2, 3]
    # Byte 1 + 1024 c + 32 i + j of record n is pixel (i, j) of plane c.
    raw = before['test_batch.bin']
    for n, c, i, j in ((0, 0, 0, 0), (1, 2, 31, 0), (3, 1, 5, 30), (3, 2, 31, 31)):
        assert round(X[n, c, i, j].asscalar() * 255) == raw[3073 * n + 1 + 1024 * c + 32 * i + j]
    assert content(official) == before


def test_gluons_class_reads_the_same(official):
    """Its sums replaced by those of the small files, so that it neither downloads nor unpacks."""
    class Small(mx.gluon.data.vision.CIFAR10):
        def _get_data(self):
            self._train_data, self._test_data = (
                [(name, cifar10.CIFAR10_SHA1[name]) for name in names]
                for names in (cifar10.CIFAR10_TRAIN, cifar10.CIFAR10_TEST))
            super()._get_data()

    for data_iter, train in zip(load(root=official), (True, False)):
        gluon = Small(str(official), train)
        assert np.array_equal(gluon._data.asnumpy().transpose(0, 3, 1, 2), data_iter.images)
        assert np.array_equal(gluon._label, data_iter.labels)


def test_the_sums_are_those_of_gluons_class():
    source = pathlib.Path(mx.gluon.data.vision.datasets.__file__).read_text()
    for name, known in cifar10.CIFAR10_SHA1.items():
        assert f"('{name}', '{known}')" in source


def test_settings(official):
    train, test = load(root=official, flip=True, shift=4, normalize=True, resize=40)
    assert (train.flip, train.shift, test.flip, test.shift) == (True, 4, False, 0)
    assert train.normalize is test.normalize and train.normalize[0].shape == (3,)
    np.testing.assert_allclose(train.normalize[1] * 255, train.images.std(axis=(0, 2, 3)))
    assert next(iter(train))[0].shape == (4, 3, 40, 40)
    train, val = d2l_ext.load_data_cifar10(8, official, ctx=CPU)[0].hold_out(4)
    assert np.bincount(val.labels).tolist() == [1] * 4 and len(train.images) == 16


def test_unofficial_copies(isolated, official):
    own = write_files(isolated / 'own', seed=1)
    (own / NAMES[1]).write_bytes(records(7))  # any number of records
    before = content(own)
    with pytest.raises(ValueError, match=f'{NAMES[0]} is not the published file.*verify=False'):
        load(root=own)
    assert len(load(root=own, verify=False)[0].images) == 23
    assert content(own) == before


DAMAGE = {
    'empty': lambda good: b'',
    'cut off': lambda good: good[:-1],
    'one byte more': lambda good: good + b'\0',
    'a byte missing inside': lambda good: good[:5000] + good[5001:],
    'a label of 10': lambda good: good[:3073] + b'\n' + good[3074:],
    'a web page': lambda good: b'<html>404 Not Found</html>',
}


@pytest.mark.parametrize('verify', [True, False])
@pytest.mark.parametrize('damage', DAMAGE.values(), ids=DAMAGE)
@pytest.mark.parametrize('name', [NAMES[3], NAMES[5]])
def test_damaged_files(official, name, damage, verify):
    path = official / name
    path.write_bytes(damage(path.read_bytes()))
    before = content(official)
    with pytest.raises(ValueError, match=name):
        load(root=official, verify=verify)
    assert content(official) == before


def test_one_bit_flipped_or_two_files_swapped(official):
    path = official / NAMES[2]
    good = path.read_bytes()
    path.write_bytes(good[:100] + bytes([good[100] ^ 1]) + good[101:])
    with pytest.raises(ValueError, match=f'{NAMES[2]} is not the published file'):
        load(root=official)
    path.write_bytes((official / NAMES[5]).read_bytes())
    (official / NAMES[5]).write_bytes(good)
    with pytest.raises(ValueError, match=f'{NAMES[2]} is not the published file'):
        load(root=official)


@pytest.mark.parametrize('name', NAMES)
def test_root_is_the_only_place_searched(isolated, official, mirror, monkeypatch, name):
    copy(official, isolated / 'data' / 'cifar10')
    copy(official, mxnet_cache(isolated))
    monkeypatch.setenv('D2L_EXT_DATA', str(isolated / 'data'))
    root = copy(official, isolated / 'root')
    (root / name).unlink()
    with pytest.raises(FileNotFoundError, match=str(root / name)):
        load(root=root)
    assert len(content(root)) == 5 and mirror.paths == []


def test_a_batch_of_more_images_than_there_are(official):
    with pytest.raises(ValueError, match='batch_size must be a whole number from 1 to 20'):
        d2l_ext.load_data_cifar10(21, official)


@pytest.mark.skipif(not (REAL / NAMES[0]).is_file(),
                    reason='D2L_EXT_DATA names no folder with the .bin files in cifar10/')
def test_the_real_files():
    train, test = d2l_ext.load_data_cifar10(128, REAL, verify=False, ctx=CPU)
    assert np.bincount(train.labels, minlength=10).min() > 4800
    mean, deviation = channel_statistics(train.images)
    # Well known, of the official files.
    np.testing.assert_allclose(mean, [0.4914, 0.4822, 0.4465], atol=1e-3)
    np.testing.assert_allclose(deviation, [0.2470, 0.2435, 0.2616], atol=1e-3)


# --- finding and downloading ---

def test_search_order(isolated, official, monkeypatch):
    copy(official, mxnet_cache(isolated))
    assert load()[1].labels[0] == 0
    own = isolated / 'data' / 'cifar10'
    monkeypatch.setenv('D2L_EXT_DATA', str(isolated / 'data'))
    assert load()[1].labels[0] == 0  # nothing there
    own.mkdir(parents=True)
    (own / 'unpack.py').write_text('not that layout')
    assert load()[1].labels[0] == 0  # a folder without the files counts as absent
    write_files(own, seed=3)
    with pytest.raises(ValueError, match='data.cifar10.* is not the published file'):
        load()  # the reader's own files are not passed over in silence
    test = load(verify=False)[1]
    assert test.images.tobytes() == b''.join(
        (own / NAMES[5]).read_bytes()[i + 1:i + 3073] for i in range(0, 4 * 3073, 3073))


@pytest.mark.parametrize('place', ['MXNet cache', 'D2L_EXT_DATA'])
def test_download(isolated, official, mirror, monkeypatch, place):
    folder = mxnet_cache(isolated)
    if place == 'D2L_EXT_DATA':
        monkeypatch.setenv('D2L_EXT_DATA', str(isolated / 'data'))
        folder = isolated / 'data' / 'cifar10'
        folder.mkdir(parents=True)
        (folder / 'notes.txt').write_text('mine')
    first = load()
    kept = content(folder)
    archive = kept.pop(cifar10.CIFAR10_ARCHIVE)
    assert archive == (isolated / 'mirror' / cifar10.CIFAR10_ARCHIVE).read_bytes()
    assert kept.pop('notes.txt', b'mine') == b'mine'
    assert kept == content(official)  # nothing else is unpacked, and no temporary file is left
    assert not list(isolated.rglob('escaped*'))
    assert len(mirror.paths) == 1
    assert np.array_equal(load()[0].images, first[0].images) and len(mirror.paths) == 1
    (folder / NAMES[3]).unlink()  # what is missing is unpacked again
    load()
    assert content(folder).keys() >= set(NAMES) and len(mirror.paths) == 1


def test_the_second_mirror_has_its_own_archive(isolated, official, mirrors, monkeypatch):
    known = write_archive(isolated / 'second' / cifar10.CIFAR10_ARCHIVE, content(official))
    write_archive(isolated / 'first' / cifar10.CIFAR10_ARCHIVE, {'other': b'other'})
    monkeypatch.setattr(cifar10, 'CIFAR10_MIRRORS', (
        (mirrors.url('first'), 'md5:0'), (mirrors.url('second'), known)))
    load()
    assert len(mirrors.paths) == 2
    assert {name: content(mxnet_cache(isolated))[name] for name in NAMES} == content(official)


def test_a_damaged_cache_is_mended(isolated, official, mirror):
    folder = write_files(mxnet_cache(isolated), seed=2)
    (folder / cifar10.CIFAR10_ARCHIVE).write_bytes(b'cut off')
    (folder / NAMES[0]).write_bytes((official / NAMES[0]).read_bytes())
    load()
    assert {name: content(folder)[name] for name in NAMES} == content(official)


@pytest.mark.parametrize('name', [NAMES[2], cifar10.CIFAR10_ARCHIVE])
def test_a_damaged_file_that_the_reader_put_there_stays(isolated, official, mirror, monkeypatch,
                                                        name):
    folder = copy(official, isolated / 'data' / 'cifar10')
    (folder / NAMES[1]).unlink()
    (folder / name).write_bytes(b'mine')
    before = content(folder)
    monkeypatch.setenv('D2L_EXT_DATA', str(isolated / 'data'))
    with pytest.raises(ValueError, match=f'{name} is not the published file'):
        load()
    assert content(folder) == before and mirror.paths == []


def test_each_file_is_checked_once_and_an_archive_beside_them_not_at_all(isolated, official,
                                                                         monkeypatch):
    folder = copy(official, isolated / 'data' / 'cifar10')
    (folder / cifar10.CIFAR10_ARCHIVE).write_bytes(b'mine')
    monkeypatch.setenv('D2L_EXT_DATA', str(isolated / 'data'))
    checked, check = [], cifar10.check_published
    for module in (cifar10, downloads):
        monkeypatch.setattr(module, 'check_published', lambda path, hashes: checked.append(
            path.name) or check(path, hashes))
    load()
    assert checked == list(NAMES)


def test_an_archive_that_the_reader_put_there_is_unpacked(isolated, official, mirror, monkeypatch):
    folder = isolated / 'data' / 'cifar10'
    folder.mkdir(parents=True)
    (folder / cifar10.CIFAR10_ARCHIVE).write_bytes(
        (isolated / 'mirror' / cifar10.CIFAR10_ARCHIVE).read_bytes())
    monkeypatch.setenv('D2L_EXT_DATA', str(isolated / 'data'))
    assert len(load()[0].images) == 20 and mirror.paths == []


def test_no_mirror_answers(isolated):
    with pytest.raises(OSError) as caught:
        load()
    for advice in ('CIFAR-10 is not on this machine', str(mxnet_cache(isolated)), 'D2L_EXT_DATA',
                   'Connect to the network', 'http://127.0.0.1:9/: ConnectionError'):
        assert advice in str(caught.value)
    assert content(mxnet_cache(isolated)) == {}


def test_a_disk_that_fills_up_while_unpacking(isolated, official, mirror, faults):
    from conftest import full_disk

    folder = mxnet_cache(isolated)
    archive = isolated / 'mirror' / cifar10.CIFAR10_ARCHIVE
    copy(archive.parent, folder)
    faults.injected()
    with full_disk(room=5000), pytest.raises(OSError, match='Make room there'):
        load()
    assert content(folder) == content(archive.parent)  # no half of a file
    load()
    assert {name: content(folder)[name] for name in NAMES} == content(official)
    faults.survived()
