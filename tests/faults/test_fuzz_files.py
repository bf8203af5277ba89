"""Bad files of the kinds that the package writes: parameters, checkpoints and records.

What is claimed: a .npz file, each part of which has a checksum, never gives other numbers than it
was written with. Where there is none (records, headers that an attacker wrote a fitting checksum
for) the result is what the file says, or an error. ``damage.py`` says how to draw more of them.
"""
import contextlib
import io
import json
import pathlib
import pickle
import re
import struct
import zipfile

import numpy as np
import pytest
from damage import REFUSED, damaged, drawn, little_memory, replaced
from hypothesis import given
from hypothesis import strategies as st

import d2l_ext
from d2l_ext.devices import mx
from d2l_ext.storage import checkpoints, fashion_mnist
from d2l_ext.studies import cifar10, records

CPU = mx.cpu()


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
        lambda: d2l_ext.load_record(path), lambda: fashion_mnist._read_idx(path, 1),
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
    for path in pathlib.Path(d2l_ext.__file__).parent.rglob('*.py'):
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
