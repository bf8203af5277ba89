"""Reading, finding and downloading the archives, and the digits."""
import collections
import gzip
import hashlib
import io
import os
import pathlib
import urllib.parse

import numpy as np
import pytest
import tqdm
from conftest import content, copy, idx, mxnet_cache, write_archives

import d2l_ext
from d2l_ext import data
from d2l_ext.devices import mx
from d2l_ext.images.normalization import channel_statistics
from d2l_ext.storage import downloads, fashion_mnist
from d2l_ext.studies import records

CPU = mx.cpu()
TRAIN_IMAGES, TRAIN_LABELS, TEST_IMAGES, TEST_LABELS = fashion_mnist.MD5
REAL = pathlib.Path(os.environ.get('D2L_EXT_DATA', '')) / 'fashion-mnist'

pytestmark = pytest.mark.usefixtures('offline')


# --- reading ---

@pytest.mark.parametrize('as_type', [str, pathlib.Path])
def test_root(published, as_type):
    train, test = d2l_ext.load_data_fashion_mnist(8, root=as_type(published), ctx=CPU)
    assert train.images.shape == (20, 28, 28) and test.images.shape == (8, 28, 28)
    raw = gzip.decompress((published / TEST_IMAGES).read_bytes())
    assert test.images.tobytes() == raw[16:]
    assert list(test.labels) == list(range(8)) and list(train.labels) == 2 * list(range(10))
    assert (train.shuffle, test.shuffle) == (True, False)
    assert train.name == test.name == 'Fashion-MNIST'
    assert train.classes == data.FASHION_MNIST_CLASSES


def test_archives_that_are_not_the_published_ones(isolated):
    write_archives(isolated / 'own')
    with pytest.raises(ValueError, match=f'{TRAIN_IMAGES} is not the published file'):
        d2l_ext.load_data_fashion_mnist(8, root=isolated / 'own')
    train, _ = d2l_ext.load_data_fashion_mnist(8, root=isolated / 'own', verify=False, ctx=CPU)
    assert len(train.images) == 20


PIXELS = np.zeros((20, 28, 28), np.uint8)
DAMAGE = {
    'empty': lambda good: b'',
    'cut off in the header': lambda good: good[:12],
    'cut off': lambda good: good[:len(good) // 2],
    'without its last byte': lambda good: good[:-1],
    'one bit flipped': lambda good: good[:500] + bytes([good[500] ^ 1]) + good[501:],
    'no archive': lambda good: b'<html>404 Not Found</html>',
    'not gzipped': gzip.decompress,
    'labels': lambda good: idx(np.zeros(20, np.uint8)),
    'another type': lambda good: idx(PIXELS, kind=13),
    'announcing too much': lambda good: idx(PIXELS, (21, 28, 28)),
    'announcing too little': lambda good: idx(PIXELS, (19, 28, 28)),
    'announcing more than memory': lambda good: idx(PIXELS, (2**32 - 1, 2**32 - 1, 2**32 - 1)),
    'of another size': lambda good: idx(PIXELS[:, :14], (20, 14, 28)),
    'with too few images': lambda good: idx(PIXELS[:19]),
    'without images': lambda good: idx(PIXELS[:0]),
}


@pytest.mark.parametrize('verify', [True, False])
@pytest.mark.parametrize('damage', DAMAGE.values(), ids=DAMAGE)
def test_damaged_images(published, damage, verify):
    path = published / TRAIN_IMAGES
    path.write_bytes(damage(path.read_bytes()))
    before = content(published)
    with pytest.raises(ValueError, match=TRAIN_IMAGES if verify else str(published)):
        d2l_ext.load_data_fashion_mnist(8, root=published, verify=verify)
    assert content(published) == before


@pytest.mark.parametrize('verify', [True, False])
@pytest.mark.parametrize('labels', [[0] * 19, [0] * 19 + [10], [[0] * 20]])
def test_damaged_labels(published, labels, verify):
    (published / TRAIN_LABELS).write_bytes(idx(np.array(labels, np.uint8)))
    before = content(published)
    with pytest.raises(ValueError, match=TRAIN_LABELS if verify else 'label|1 dimension'):
        d2l_ext.load_data_fashion_mnist(8, root=published, verify=verify)
    assert content(published) == before


@pytest.mark.parametrize('pair', [(TRAIN_IMAGES, TEST_IMAGES), (TRAIN_LABELS, TEST_LABELS),
                                  (TEST_IMAGES, TEST_LABELS)])
def test_swapped_archives(published, pair):
    one, other = (published / name for name in pair)
    first = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(first)
    before = content(published)
    with pytest.raises(ValueError, match=f'{pair[0]} is not the published file'):
        d2l_ext.load_data_fashion_mnist(8, root=published)
    assert content(published) == before


@pytest.mark.parametrize('name', fashion_mnist.MD5)
def test_root_is_the_only_place_searched(isolated, published, monkeypatch, name):
    copy(published, isolated / 'data' / 'fashion-mnist')
    copy(published, mxnet_cache(isolated))
    monkeypatch.setenv('D2L_EXT_DATA', str(isolated / 'data'))
    root = copy(published, isolated / 'root')
    (root / name).unlink()
    with pytest.raises(FileNotFoundError, match=str(root / name)):
        d2l_ext.load_data_fashion_mnist(8, root=root)
    assert len(content(root)) == 3


@pytest.mark.skipif(not (REAL / TRAIN_IMAGES).is_file(),
                    reason='D2L_EXT_DATA names no folder with fashion-mnist/ in it')
def test_the_real_archives():
    train, test = d2l_ext.load_data_fashion_mnist(128, resize=32, root=REAL, ctx=CPU)
    assert np.bincount(train.labels).tolist() == [6000] * 10
    assert np.bincount(test.labels).tolist() == [1000] * 10
    assert records.dataset_facts('Fashion-MNIST')['train_images'] == len(train.images)
    assert records.dataset_facts('Fashion-MNIST')['test_images'] == len(test.images)
    names = d2l_ext.get_fashion_mnist_labels(test.labels[:3])
    assert names == ['ankle boot', 'pullover', 'trouser']
    # Known mean and standard deviation of the training pixels.
    assert train.images.mean() / 255 == pytest.approx(0.2860, abs=1e-4)
    assert train.images.std() / 255 == pytest.approx(0.3530, abs=1e-4)
    X, y = next(iter(train))
    assert X.shape == (128, 1, 32, 32) and y.shape == (128,)


# --- finding ---

def test_search_order(isolated, published, monkeypatch):
    def first_label():
        return d2l_ext.load_data_fashion_mnist(8, ctx=CPU)[1].labels[0]

    copy(published, mxnet_cache(isolated))
    assert first_label() == 0
    monkeypatch.setenv('D2L_EXT_DATA', str(isolated / 'data'))
    assert first_label() == 0  # nothing there
    sums = write_archives(isolated / 'data' / 'fashion-mnist', seed=3)
    with pytest.raises(ValueError, match='data.fashion-mnist.* is not the published file'):
        first_label()  # the reader's own folder is not passed over in silence
    monkeypatch.setattr(fashion_mnist, 'MD5', sums)
    assert first_label() == 3


def test_verify_false_accepts_whole_unofficial_copies_in_d2l_ext_data(isolated, published, mirrors,
                                                                      monkeypatch):
    monkeypatch.setenv('D2L_EXT_DATA', str(isolated / 'data'))
    own = isolated / 'data' / 'fashion-mnist'
    write_archives(own, seed=3)
    assert d2l_ext.load_data_fashion_mnist(8, verify=False, ctx=CPU)[1].labels[0] == 3
    (own / TEST_IMAGES).unlink()
    before = content(own)
    monkeypatch.setattr(fashion_mnist, 'MIRRORS', ((mirrors.url('published'), 'md5'),))
    with pytest.raises(ValueError, match='is not the published file'):  # nor is it mixed
        d2l_ext.load_data_fashion_mnist(8, verify=False, ctx=CPU)
    assert content(own) == before and mirrors.paths == []


def test_damaged_archives_of_the_readers_are_no_reason_to_fall_back(isolated, published,
                                                                    monkeypatch):
    folder = copy(published, isolated / 'data' / 'fashion-mnist')
    (folder / TEST_IMAGES).write_bytes(b'no')
    before = content(folder)
    monkeypatch.setenv('D2L_EXT_DATA', str(isolated / 'data'))
    with pytest.raises(ValueError, match=TEST_IMAGES):
        d2l_ext.load_data(8)
    assert content(folder) == before


# --- downloading ---

@pytest.mark.parametrize('place', ['MXNet cache', 'D2L_EXT_DATA'])
@pytest.mark.parametrize('first', ['missing', 'wrong', 'cut off'])
def test_download_from_the_second_mirror(isolated, published, mirrors, monkeypatch, capfd, first,
                                         place):
    write_archives(isolated / 'wrong', seed=5)
    for name, archive in content(copy(published, isolated / 'cut off')).items():
        (isolated / 'cut off' / name).write_bytes(archive[:-20])
    monkeypatch.setattr(fashion_mnist, 'MIRRORS',
                        ((mirrors.url(first), 'md5'), (mirrors.url('published'), 'md5')))
    folder = mxnet_cache(isolated)
    if place == 'D2L_EXT_DATA':
        monkeypatch.setenv('D2L_EXT_DATA', str(isolated / 'data'))
        folder = isolated / 'data' / 'fashion-mnist'
    train, _ = d2l_ext.load_data_fashion_mnist(8, ctx=CPU)
    assert len(train.images) == 20
    assert content(folder) == content(published)  # and no temporary file
    assert [path.split('/')[1] for path in mirrors.paths if TEST_LABELS in path] == [
        urllib.parse.quote(first), 'published']
    assert capfd.readouterr() == ('', '')  # the progress bar is for terminals and notebooks
    del mirrors.paths[:]
    d2l_ext.load_data_fashion_mnist(8, ctx=CPU)
    assert mirrors.paths == []


@pytest.mark.parametrize('missing', [set(), {TRAIN_LABELS}])
def test_download_of_what_the_cache_lacks(isolated, published, mirrors, monkeypatch, missing):
    folder = copy(published, mxnet_cache(isolated))
    (folder / TEST_IMAGES).write_bytes(b'cut off')
    for name in missing:
        (folder / name).unlink()
    monkeypatch.setattr(fashion_mnist, 'MIRRORS', ((mirrors.url('published'), 'md5'),))
    d2l_ext.load_data_fashion_mnist(8, ctx=CPU)
    assert content(folder) == content(published)
    assert {path.split('/')[-1] for path in mirrors.paths} == {TEST_IMAGES, *missing}


def test_mxnets_own_copy_counts_too(isolated, published, mirrors, monkeypatch):
    """The same images compressed anew: MXNet's cache and mirror have other check sums."""
    write_archives(isolated / 'own copy', seed=1)
    monkeypatch.setattr(fashion_mnist, 'SHA1', {
        name: hashlib.sha1(archive).hexdigest()
        for name, archive in content(isolated / 'own copy').items()})
    monkeypatch.setattr(fashion_mnist, 'MIRRORS', (
        (mirrors.url('own copy'), 'md5'), (mirrors.url('own copy'), 'sha1')))
    for _ in range(2):  # the second time from the cache
        d2l_ext.load_data_fashion_mnist(8, ctx=CPU)
        assert content(mxnet_cache(isolated)) == content(isolated / 'own copy')
    assert len(mirrors.paths) == 8


def test_a_damaged_archive_that_the_reader_put_there_stays(isolated, published, mirrors,
                                                           monkeypatch):
    folder = copy(published, isolated / 'data' / 'fashion-mnist')
    (folder / TRAIN_IMAGES).write_bytes(b'mine')
    (folder / TEST_LABELS).unlink()
    monkeypatch.setenv('D2L_EXT_DATA', str(isolated / 'data'))
    monkeypatch.setattr(fashion_mnist, 'MIRRORS', ((mirrors.url('published'), 'md5'),))
    with pytest.raises(ValueError, match=f'{TRAIN_IMAGES} is not the published file'):
        d2l_ext.load_data_fashion_mnist(8, ctx=CPU)
    assert (folder / TRAIN_IMAGES).read_bytes() == b'mine' and mirrors.paths == []


def test_progress_bar_of_a_download(published, mirrors, monkeypatch):
    bars = []

    def bar(total, unit, description):
        bars.append(tqdm.tqdm(total=total, unit=unit, desc=description, file=io.StringIO(),
                              disable=False))
        return bars[-1]

    monkeypatch.setattr(downloads, 'progress_bar', bar)
    monkeypatch.setattr(fashion_mnist, 'MIRRORS', ((mirrors.url('published'), 'md5'),))
    d2l_ext.load_data_fashion_mnist(8, ctx=CPU)
    assert [bar.desc.rstrip(': ') for bar in bars] == list(fashion_mnist.MD5)
    sizes = [len(content(published)[name]) for name in fashion_mnist.MD5]
    assert [(bar.total, bar.n) for bar in bars] == list(zip(sizes, sizes))


def test_load_data_falls_back_and_says_so(published, capsys):
    train, test = d2l_ext.load_data(32, resize=12, ctx=CPU)
    assert train.name == "scikit-learn's digits" and train.classes == tuple('0123456789')
    assert next(iter(test))[0].shape == (32, 1, 12, 12)
    assert capsys.readouterr().out == (
        f'Fashion-MNIST is not on this machine and {TRAIN_IMAGES} could not be downloaded. '
        "Going\non with the small embedded set, scikit-learn's digits: expect other pictures and "
        'other numbers.\n')


def test_load_data_says_nothing_when_it_has_fashion_mnist(isolated, published, capsys):
    copy(published, mxnet_cache(isolated))
    assert d2l_ext.load_data(8, ctx=CPU)[0].name == 'Fashion-MNIST'
    assert capsys.readouterr().out == ''


# --- what loading hands on to the batches ---

def test_numpy_integers_are_whole_numbers(published):
    train, test = d2l_ext.load_data_fashion_mnist(np.int64(10), np.int32(30), published, ctx=CPU)
    assert next(iter(train))[0].shape == (10, 1, 30, 30)
    assert next(iter(test))[0].shape == (8, 1, 30, 30)  # a small test set makes one batch


def test_the_test_set_is_normalized_as_the_training_set(published):
    loaded = d2l_ext.load_data_fashion_mnist(20, root=published, normalize=True, ctx=CPU)
    mean, deviation = (values.item() for values in channel_statistics(loaded[0].images))
    for data_iter in loaded:
        X, y = next(iter(data_iter))
        expected = (data_iter.images[:, None] / 255 - mean) / deviation
        np.testing.assert_allclose(np.sort(X.asnumpy().ravel()), np.sort(expected.ravel()),
                                   atol=1e-5)


def test_only_the_training_set_is_flipped_and_shifted(published):
    for load in (lambda **settings: d2l_ext.load_data_fashion_mnist(8, root=published, **settings),
                 lambda **settings: d2l_ext.load_data_digits(8, **settings)):
        train, test = load(flip=True, shift=2)
        assert (train.flip, train.shift, test.flip, test.shift) == (True, 2, False, 0)
        train, test = load()
        assert (train.flip, train.shift, train.normalize) == (False, 0, None)


def test_load_data_passes_flips_shifts_and_normalization_on(isolated, published):
    settings = {'flip': True, 'shift': 1, 'normalize': True, 'ctx': CPU}
    digits = d2l_ext.load_data(8, **settings)
    write_archives(mxnet_cache(isolated))  # those that count as published
    for train, test in (digits, d2l_ext.load_data(8, **settings)):
        assert (train.flip, train.shift) == (True, 1)
        assert train.normalize is test.normalize is not None


# --- digits and names ---

def test_digits():
    from sklearn.datasets import load_digits
    train, test = d2l_ext.load_data_digits(64, ctx=CPU)
    assert train.images.shape == (1437, 8, 8) and test.images.shape == (360, 8, 8)
    assert (len(train), len(test)) == (23, 6)
    assert (train.shuffle, test.shuffle) == (True, False)
    X = next(iter(train))[0]
    assert X.shape == (64, 1, 8, 8) and X.min().asscalar() == 0 and X.max().asscalar() == 1
    share = np.bincount(test.labels) - np.bincount(load_digits().target) * 360 / 1797
    assert np.abs(share).max() < 1  # each class in proportion
    # Together the two are the whole set, no image in both.
    both = [*zip(train.images, train.labels), *zip(test.images, test.labels)]
    digits = zip(load_digits().images.astype(np.uint8), load_digits().target)
    assert collections.Counter((image.tobytes(), int(label)) for image, label in both) == (
        collections.Counter((image.tobytes(), int(label)) for image, label in digits))


def test_digits_are_always_split_alike():
    splits = []
    for seed in (0, 1):
        np.random.seed(seed)
        splits.append(d2l_ext.load_data_digits(64, ctx=CPU))
    for one, other in zip(*splits):
        assert np.array_equal(one.images, other.images) and np.array_equal(one.labels, other.labels)


def test_a_batch_of_more_digits_than_there_are():
    with pytest.raises(ValueError, match='batch_size must be a whole number from 1 to 1437'):
        d2l_ext.load_data_digits(1438)


@pytest.mark.parametrize('kind', [list, np.array, mx.nd.array, lambda a: np.array(a, np.uint8)])
def test_class_names(kind):
    assert d2l_ext.get_fashion_mnist_labels(kind([9, 0, 6])) == ['ankle boot', 't-shirt', 'shirt']
    assert len(set(d2l_ext.get_fashion_mnist_labels(range(10)))) == 10
