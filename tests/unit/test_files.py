"""atomic_write leaves either the old content or the new."""
import os
import pathlib
import subprocess
import sys
import time

import pytest
from conftest import ROOT, full_disk

from d2l_ext.storage.files import atomic_write


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize('as_type', [str, pathlib.Path])
def test_a_new_file_in_a_new_folder(tmp_path, as_type):
    path = tmp_path / 'a' / 'b' / 'file.bin'
    with atomic_write(as_type(path)) as file:
        file.write(b'one')
        file.write(b'two')
        assert not path.exists()
    assert path.read_bytes() == b'onetwo' and names(path.parent) == ['file.bin']


def test_the_new_content_replaces_the_old_at_the_end(tmp_path):
    path = tmp_path / 'file.bin'
    path.write_bytes(b'old and longer')
    with atomic_write(path) as file:
        file.write(b'new')
        file.flush()
        assert path.read_bytes() == b'old and longer'
    assert path.read_bytes() == b'new' and names(tmp_path) == ['file.bin']


@pytest.mark.parametrize('error', [ValueError, OSError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize('old', [b'old', None])
def test_an_error_keeps_the_old_content(tmp_path, error, old):
    path = tmp_path / 'file.bin'
    if old is not None:
        path.write_bytes(old)
    with pytest.raises(error), atomic_write(path) as file:
        file.write(b'half of')
        raise error('stop')
    assert names(tmp_path) == ([] if old is None else ['file.bin'])
    assert old is None or path.read_bytes() == old


def test_a_file_where_the_folder_should_be(tmp_path):
    (tmp_path / 'folder').write_bytes(b'mine')
    with pytest.raises(OSError), atomic_write(tmp_path / 'folder' / 'file.bin'):
        pytest.fail('there is nowhere to write')
    assert (tmp_path / 'folder').read_bytes() == b'mine'


def test_a_folder_where_the_file_should_be(tmp_path):
    (tmp_path / 'file.bin').mkdir()
    with pytest.raises(OSError), atomic_write(tmp_path / 'file.bin') as file:
        file.write(b'new')
    assert names(tmp_path) == ['file.bin']


@pytest.mark.skipif(os.name != 'posix', reason='needs umask')
def test_others_may_read_what_the_umask_allows(tmp_path):
    (tmp_path / 'usual').touch()
    with atomic_write(tmp_path / 'file.bin'):
        pass
    assert (tmp_path / 'file.bin').stat().st_mode == (tmp_path / 'usual').stat().st_mode


def test_what_a_killed_process_left_behind_goes_an_hour_later(tmp_path):
    path = tmp_path / 'file[1].bin'
    old, young = (tmp_path / f'.file[1].bin.{token}.tmp' for token in ('0123abcd', '89ef0123'))
    others = [tmp_path / name for name in ('.file1.bin.0123abcd.tmp', '.file[1].bin.my-notes.tmp',
                                           'file[1].bin.tmp')]
    an_hour_ago = time.time() - 3601
    for left in (old, young, *others):
        left.write_bytes(b'half')
        if left != young:
            os.utime(left, (an_hour_ago, an_hour_ago))
    with atomic_write(path):
        pass
    assert names(tmp_path) == sorted(left.name for left in (path, young, *others))


def test_two_at_once_leave_one_whole_file(tmp_path):
    path = tmp_path / 'file.bin'
    with atomic_write(path) as one:
        one.write(b'one')
        with atomic_write(path) as other:
            other.write(b'the other')
        assert path.read_bytes() == b'the other'
    assert path.read_bytes() == b'one' and names(tmp_path) == ['file.bin']


def test_a_full_disk_keeps_the_old_content(tmp_path, faults):
    path = tmp_path / 'file.bin'
    path.write_bytes(b'old')
    faults.injected()
    with full_disk(room=5000), pytest.raises(OSError, match=f"too large: '{path}'"), \
            atomic_write(path) as file:
        for _ in range(20):
            file.write(bytes(1000))
    assert path.read_bytes() == b'old' and names(tmp_path) == ['file.bin']
    faults.survived()


KILLED = """
import itertools, os, random, signal, sys, time
from d2l_ext.storage.files import atomic_write

path, number = sys.argv[1], int(sys.argv[2])
random.seed(0)
for _ in range(number):
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        for i in itertools.count():
            with atomic_write(path) as file:
                for _ in range(20):
                    file.write(bytes([i % 256]) * 5000)
            if not i:
                os.write(writer, b'.')
    os.read(reader, 1)
    os.close(reader)
    os.close(writer)
    time.sleep(random.random() / 20)
    os.kill(child, signal.SIGKILL)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    with open(path, 'rb') as file:
        content = file.read()
    assert len(content) == 100000 and len(set(content)) == 1
print(number)
"""


@pytest.mark.skipif(not hasattr(os, 'fork'), reason='needs fork')
@pytest.mark.parametrize('number', [50, pytest.param(500, marks=pytest.mark.heavy)])
def test_killed_at_random_moments(tmp_path, faults, number):
    path = tmp_path / 'file.bin'
    faults.injected(number)
    done = subprocess.run([sys.executable, '-c', KILLED, str(path), str(number)], cwd=ROOT,
                          text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=500)
    assert done.stdout == f'{number}\n'
    an_hour_ago = time.time() - 3601
    for left in tmp_path.glob('.*.tmp'):
        os.utime(left, (an_hour_ago, an_hour_ago))
    with atomic_write(path):
        pass
    assert names(tmp_path) == ['file.bin']
    faults.survived(number)


def test_the_home_folder_may_be_written_as_in_a_shell(tmp_path, monkeypatch):
    from d2l_ext import load_params, nin_block, save_params
    from d2l_ext.devices import mx
    from d2l_ext.storage.downloads import data_folders
    from d2l_ext.studies.records import cache_folder

    monkeypatch.setenv('HOME', str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for name in ('D2L_EXT_DATA', 'D2L_EXT_CACHE', 'MXNET_HOME'):
        monkeypatch.setenv(name, f'~/{name}')
    assert data_folders('a') == [tmp_path / 'D2L_EXT_DATA' / 'a',
                                 tmp_path / 'MXNET_HOME' / 'datasets' / 'a']
    assert cache_folder() == tmp_path / 'D2L_EXT_CACHE' / 'records'
    block = nin_block(3, 1, 1, 0)
    block.initialize()
    block(mx.nd.ones((1, 1, 4, 4)))  # settles the shapes
    save_params(block, '~/nin.npz')
    load_params(block, '~/nin.npz')
    assert names(tmp_path) == ['nin.npz']
