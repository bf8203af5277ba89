"""Bad data: damaged and malicious files end in a ValueError or OSError, or in what they hold.

Each test draws files with Hypothesis, the same ones in each run. Draw some thirty times as
many, other ones each time, with::

    HYPOTHESIS_PROFILE=long python -m pytest tests/test_fuzz.py

What is claimed: a file with a checksum (the published data sets, each part of a .npz file, each
gzipped IDX file) never gives other data than it was written with. Where there is none (unofficial
CIFAR files, records, the headers that an attacker wrote a fitting checksum for) the result is what
the file says, or an error.
"""
import contextlib
import gzip
import hashlib
import io
import json
import os
import pathlib
import pickle
import re
import struct
import tracemalloc
import zipfile

import numpy as np
import pytest
from conftest import content, idx, write_archives
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import d2l_ext
from d2l_ext import checkpoints, cifar10, data, records
from d2l_ext.devices import mx

CPU = mx.cpu()
REFUSED = (ValueError, OSError)
MEMORY = 8 << 20  # bytes that reading one of these tiny files may take, with room for buffers

_shared = settings(deadline=None, database=None, print_blob=True, suppress_health_check=[
    HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
settings.register_profile('quick', _shared, max_examples=300, derandomize=True)
settings.register_profile('long', _shared, max_examples=10_000)
drawn = settings.get_profile(os.environ.get('HYPOTHESIS_PROFILE', 'quick'))


@contextlib.contextmanager
def little_memory():
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < MEMORY
    finally:
        tracemalloc.stop()


ACCIDENTS = 'flip', 'overwrite', 'insert', 'delete', 'repeat', 'move', 'cut'


@st.composite
def damaged(draw, original):
    """Draw a damaged copy of some bytes: one to three accidents, each in any place."""
    copy = bytearray(original)
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(copy)))
        stop = start + draw(st.integers(1, 40))
        kind = draw(st.sampled_from(ACCIDENTS))
        if kind == 'flip' and start < len(copy):
            copy[start] ^= 1 << draw(st.integers(0, 7))
        elif kind == 'overwrite':
            copy[start:stop] = draw(st.sampled_from([b'\0', b'\xff', b'A'])) * len(copy[start:stop])
        elif kind == 'insert':
            copy[start:start] = draw(st.binary(min_size=1, max_size=40))
        elif kind == 'delete':
            del copy[start:stop]
        elif kind == 'repeat':
            copy[start:start] = copy[start:stop]
        elif kind == 'move':
            piece = copy[start:stop]
            del copy[start:stop]
            place = draw(st.integers(0, len(copy)))
            copy[place:place] = piece
        elif kind == 'cut':
            del copy[start:]
    return bytes(copy)


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda items: st.lists(items, max_size=3) | st.dictionaries(st.text(max_size=5), items,
                                                                max_size=3), max_leaves=6)


def places(value):
    """Yield where the parts of a JSON value are: (container, key)."""
    for key in value if isinstance(value, dict) else range(len(value)):
        yield value, key
        if isinstance(value[key], (dict, list)):
            yield from places(value[key])


@st.composite
def replaced(draw, text):
    """Draw a JSON value with one part lost or replaced by anything."""
    value = json.loads(text)
    container, key = draw(st.sampled_from(list(places(value))))
    if draw(st.booleans()) and isinstance(container, dict):
        del container[key]
    else:
        container[key] = draw(anything)
    return value


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
                read = data._read_idx(path, 3)
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
                    read = data._read_idx(path, expected)
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
        data._read_idx(tmp_path / 'images.gz', 3)
    faults.survived()


@pytest.mark.parametrize('verify', [True, False])
def test_damaged_fashion_mnist(tmp_path, monkeypatch, faults, verify):
    """Damaged before it was compressed, so that the checksum of gzip fits."""
    sums = write_archives(tmp_path, num_train=3, num_test=2)
    monkeypatch.setattr(data, 'FASHION_MNIST_MD5', sums)
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


# --- .npz files ---

ARRAYS = {'0.weight': np.arange(6, dtype=np.float32).reshape(2, 3) / 7,
          '0.bias': np.array([1, -2], np.float16), 'about': np.array('{"history": []}')}


def npz(members, method=zipfile.ZIP_STORED):
    """Return a zip archive of {name: bytes}, with fitting checksums."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, 'w', method) as archive:
        for name, member in members.items():
            archive.writestr(name, member)
    return file.getvalue()


def npy(array, **arguments):
    file = io.BytesIO()
    np.save(file, array, **arguments)
    return file.getvalue()


MEMBERS = {f'{name}.npy': npy(array) for name, array in ARRAYS.items()}


def read_npz(path, file):
    path.write_bytes(file)
    with little_memory():
        return checkpoints._load_arrays(path)


def same(one, other):
    return one.keys() == other.keys() and all(
        one[name].dtype == other[name].dtype and np.array_equal(one[name], other[name])
        for name in one)


def test_damaged_npz_files(tmp_path, faults):
    path = tmp_path / 'net.npz'
    checkpoints._save_arrays(path, ARRAYS)
    whole = path.read_bytes()
    assert same(read_npz(path, whole), ARRAYS)

    @drawn
    @given(damaged(whole))
    def check(file):
        faults.injected()
        try:
            read = read_npz(path, file)
        except REFUSED as error:
            assert 'net.npz cannot be read as a .npz file of arrays' in str(error)
        else:
            # The archive's directory has no checksum, so that a part may get lost: see the test
            # of lost parts.
            assert same(read, {name: ARRAYS[name] for name in read})
        faults.survived()

    check()


def test_damaged_arrays_with_fitting_checksums(tmp_path, faults):
    path = tmp_path / 'net.npz'

    @st.composite
    def cases(draw):
        name = draw(st.sampled_from(sorted(MEMBERS)))
        return name, draw(damaged(MEMBERS[name]))

    @drawn
    @given(cases())
    def check(case):
        name, member = case
        faults.injected()
        try:
            read = read_npz(path, npz({**MEMBERS, name: member}))
        except REFUSED:
            pass
        else:
            array = read.pop(name[:-4])
            assert not array.dtype.hasobject and member.endswith(array.tobytes('A'))
            assert same(read, {key: ARRAYS[key] for key in read})
        faults.survived()

    check()


def test_lying_array_headers(tmp_path, faults):
    path = tmp_path / 'net.npz'
    kinds = ['<f4', '>f8', '|b1', '<i8', '<c16', '<M8[s]', '|S0', '|S3', '<U1', '<U500000000',
             '|V0', '|V2000000000', '|O', 'f', '', '<q9', [('a', '<f4'), ('b', '|O')],
             [('a', '<f4', (10**9,))], None, 7]
    sizes = st.sampled_from([0, 1, 2, 3, 10**6, 2**31, 2**62, 10**30, -1, True, 2.5, 'x'])

    @drawn
    @given(st.sampled_from(kinds), st.lists(sizes, max_size=3), st.booleans(),
           st.sampled_from([(1, 0), (1, 0), (1, 0), (2, 0), (3, 0), (0, 0), (9, 9)]),
           st.integers(0, 40))
    def check(kind, shape, fortran, version, length):
        header = repr({'descr': kind, 'fortran_order': fortran, 'shape': tuple(shape)}) + '\n'
        size = struct.pack('<H' if version == (1, 0) else '<I', len(header))
        member = b'\x93NUMPY' + bytes(version) + size + header.encode() + bytes(length)
        faults.injected()
        try:
            read = read_npz(path, npz({'weight.npy': member}))['weight']
        except REFUSED:
            pass
        else:
            assert read.shape == tuple(shape) and read.dtype == np.dtype(kind)
            assert read.nbytes == length and not read.dtype.hasobject
        faults.survived()

    check()


def overlapping():
    """Return an archive whose directory has the same large part a thousand times."""
    plain = npz({'a': bytes(10000)})
    start = plain.index(b'PK\1\2')
    entry, end = plain[start:plain.index(b'PK\5\6')], plain[plain.index(b'PK\5\6'):]
    entries = b''.join(entry[:46] + bytes([65 + i % 26]) for i in range(1000))
    return plain[:start] + entries + end[:8] + struct.pack('<HHII', 1000, 1000, len(entries),
                                                            start) + end[20:]


def with_flag(file, flag):
    """Return a zip archive with a flag set for its first part, in both of its headers."""
    file = bytearray(file)
    file[6] |= flag
    file[file.index(b'PK\1\2') + 8] |= flag
    return bytes(file)


NESTED = "{'descr': '<f4', 'fortran_order': False, 'shape': " + 4000 * '(' + 4000 * ')' + '}'
HOSTILE = {
    'a zip bomb': lambda: npz({'a.npy': npy(np.zeros(16 << 20))}, zipfile.ZIP_DEFLATED),
    'overlapping parts': overlapping,
    'bzip2': lambda: npz(MEMBERS, zipfile.ZIP_BZIP2),
    'lzma': lambda: npz(MEMBERS, zipfile.ZIP_LZMA),
    'encrypted': lambda: with_flag(npz(MEMBERS), 1),
    'patched': lambda: with_flag(npz(MEMBERS), 0x20),
    'text for an array': lambda: npz({**MEMBERS, '0.bias.npy': b'1, -2'}),
    'text beside the arrays': lambda: npz({**MEMBERS, 'readme.txt': b'hello'}),
    'a folder': lambda: npz({**MEMBERS, 'folder/': b''}),
    'an archive in an archive': lambda: npz({'net.npz': npz(MEMBERS)}),
    'a header nested deeply': lambda: npz({'a.npy': b'\x93NUMPY\1\0' + struct.pack(
        '<H', len(NESTED)) + NESTED.encode()}),
    'a header of 4 GB': lambda: npz({'a.npy': b'\x93NUMPY\2\0\xff\xff\xff\xff{'}),
}


@pytest.mark.parametrize('file', HOSTILE.values(), ids=HOSTILE)
def test_hostile_npz_files(tmp_path, faults, file):
    hostile = file()
    faults.injected()
    with pytest.raises(ValueError, match='net.npz cannot be read as a .npz file of arrays'):
        read_npz(tmp_path / 'net.npz', hostile)
    assert [path.name for path in tmp_path.iterdir()] == ['net.npz']
    faults.survived()


class Evil:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return pathlib.Path.touch, (self.path,)


def evil_files(path):
    """Yield files that would call ``path.touch()`` if any part of them were unpickled."""
    evil = np.array([Evil(path), 1], object)
    structured = np.array([(1, Evil(path))], [('a', int), ('b', object)])
    for dangerous in (npy(evil), npy(structured), npy(np.array(Evil(path))),
                      pickle.dumps(Evil(path))):
        for name in (*MEMBERS, 'more.npy', 'more'):
            yield npz({**MEMBERS, name: dangerous})
        yield dangerous
        yield dangerous + npz(MEMBERS)


def test_no_pickle_is_ever_loaded(tmp_path, faults):
    mark, path = tmp_path / 'ran', tmp_path / 'file'
    net = mx.gluon.nn.Dense(2, in_units=3)
    net.initialize()
    trainer = mx.gluon.Trainer(net.collect_params(), 'sgd')
    readers = (
        lambda: d2l_ext.load_params(net, path), lambda: checkpoints.read_history(path),
        lambda: checkpoints.load_checkpoint(path, net, trainer, CPU, {}),
        lambda: d2l_ext.load_record(path), lambda: data._read_idx(path, 1),
        lambda: cifar10._read_cifar10(tmp_path, ['file'], verify=False))
    for file in evil_files(mark):
        path.write_bytes(file)
        faults.injected()
        for read in readers:
            with pytest.raises(REFUSED):
                read()
        assert not mark.exists()
        faults.survived()
    with np.load(io.BytesIO(next(evil_files(mark))), allow_pickle=True) as file:
        file['0.weight']
    assert mark.exists()  # so the files were a real danger


def test_the_package_knows_no_pickle():
    for path in pathlib.Path(d2l_ext.__file__).parent.glob('*.py'):
        assert not re.search(r'^\s*(import|from) (pickle|dill|shelve|marshal)\b|joblib\.load|'
                             r'allow_pickle=True|\b(eval|exec)\(', path.read_text(), re.M), path


# --- checkpoints ---

def net_and_trainer(seed):
    net = mx.gluon.nn.Dense(2, in_units=3)
    mx.random.seed(seed)
    net.initialize(mx.init.Normal(1))
    return net, mx.gluon.Trainer(net.collect_params(), 'sgd', {'momentum': 0.9})


def after_a_step():
    net, trainer = net_and_trainer(0)
    with mx.autograd.record():
        loss = net(mx.nd.ones((1, 3))).sum()
    loss.backward()
    trainer.step(1)
    return net, trainer


def test_damaged_texts_in_checkpoints(tmp_path, faults):
    path = tmp_path / 'run.npz'
    net, trainer = after_a_step()
    rows = [{'epoch': 1, 'loss': 0.5}]
    checkpoints.save_checkpoint(path, net, trainer, CPU, rows, {'seed': 3, 'batch_size': 8})
    arrays = checkpoints._load_arrays(path)
    text = arrays.pop('about').item()
    more = json.dumps({**json.loads(text), 'm_schedule': 0.5, 'loss_scaler': dict.fromkeys(
        checkpoints._LOSS_SCALER, 1)})
    members = {f'{name}.npy': npy(array) for name, array in arrays.items()}
    other, other_trainer = net_and_trainer(1)

    def values():
        return {name: param.data().asnumpy() for name, param in
                other._collect_params_with_prefix().items()}

    before = values()

    @drawn
    @given((replaced(text) | replaced(more)).map(json.dumps) | damaged(text.encode()).map(
        lambda file: file.decode(errors='replace').rstrip('\0')))
    def check(damaged_text):
        path.write_bytes(npz({**members, 'about.npy': npy(np.array(damaged_text))}))
        faults.injected()
        try:
            with little_memory():
                history, seed = checkpoints.load_checkpoint(path, other, other_trainer, CPU,
                                                            {'batch_size': 8})
        except REFUSED as error:
            assert 'run.npz' in str(error)
            assert same(values(), before)
        else:
            about = json.loads(damaged_text)
            # Through a text, since NaN is not equal to itself.
            assert json.dumps([history, seed]) == json.dumps([about['history'],
                                                              about['settings']['seed']])
            assert all(isinstance(row, dict) for row in history) and 0 <= seed < 2**32
            for name, param in other._collect_params_with_prefix().items():
                param.set_data(mx.nd.array(before[name]))
        faults.survived()

    check()


def test_lost_parts(tmp_path, faults):
    path = tmp_path / 'run.npz'
    net, trainer = after_a_step()
    checkpoints.save_checkpoint(path, net, trainer, CPU, [], {'seed': 3})
    members = {f'{name}.npy': npy(array) for name, array in checkpoints._load_arrays(path).items()}
    assert len(members) == 5  # weight and bias, a momentum for each, and what else there is to say
    other, other_trainer = net_and_trainer(1)
    for lost in (*([name] for name in members), members):
        path.write_bytes(npz({name: members[name] for name in members if name not in lost}))
        faults.injected()
        with pytest.raises(ValueError, match='run.npz'):
            checkpoints.load_checkpoint(path, other, other_trainer, CPU, {})
        with pytest.raises(ValueError, match='run.npz'):
            d2l_ext.load_params(other, path)
        faults.survived()


@pytest.mark.parametrize('text', ['[' * 100000, '{"a":' * 100000, '9' * 100000, '', 'null', 'NaN'])
def test_texts_that_are_no_checkpoint(tmp_path, faults, text):
    checkpoints._save_arrays(tmp_path / 'run.npz', {'about': np.array(text)})
    faults.injected()
    with pytest.raises(ValueError, match='run.npz is not a checkpoint of train_ch5'):
        checkpoints.read_history(tmp_path / 'run.npz')
    faults.survived()


# --- records ---

RUN = {'variant': 'a', 'seed': 0, 'seconds': 2.5, 'environment': {'threads': 2},
       'date': '2026-01-01', 'weights': 'x.npz',
       'history': [{'epoch': 1, 'loss': 0.5, 'test_acc': 0.25}]}
RECORD_TEXT = json.dumps({
    'name': 'x', 'config': {'dataset': 'Fashion-MNIST', 'lr': 0.1}, 'seeds': [0, 1],
    'dataset': records.dataset_facts('Fashion-MNIST'), 'variants': ['a'],
    'runs': [RUN, {**RUN, 'seed': 1}], 'environment': {}, 'date': '2026-01-01', 'command': ''})


def test_damaged_records(tmp_path, faults):
    path, net = tmp_path / 'record.json', mx.gluon.nn.Dense(1)

    @drawn
    @given(damaged(RECORD_TEXT.encode())
           | replaced(RECORD_TEXT).map(lambda value: json.dumps(value).encode()))
    def check(file):
        path.write_bytes(file)
        faults.injected()
        try:
            with little_memory():
                record = d2l_ext.load_record(path)
        except REFUSED as error:
            assert 'record.json is not a record' in str(error)
        else:
            # There is no checksum: a record is a text, and git knows what it was.
            assert json.dumps(record) == json.dumps(json.loads(file.decode()))
            # What reads records can rely on these.
            assert all(isinstance(run['variant'], str) and isinstance(run['seed'], int)
                       and all(isinstance(row, dict) for row in run['history'])
                       for run in record['runs'])
            assert len(records._runs(path, record['config'])) <= len(record['runs'])
            for run in record['runs']:
                with contextlib.suppress(*REFUSED):
                    d2l_ext.load_weights(net, {**record, 'runs': [run]})
        faults.survived()

    check()


@pytest.mark.parametrize('text', ['[' * 100000, '{"a":' * 100000, '9' * 100000, '', '\0' * 1000,
                                  '\ud800', '\ufeff' + RECORD_TEXT, RECORD_TEXT + '}'])
def test_texts_that_are_no_record(tmp_path, faults, text):
    (tmp_path / 'record.json').write_bytes(text.encode(errors='surrogatepass'))
    faults.injected()
    with pytest.raises(ValueError, match='record.json is not a record'):
        d2l_ext.load_record(tmp_path / 'record.json')
    faults.survived()
