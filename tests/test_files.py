"""atomic_write leaves either the old content or the new."""
import os
import pathlib
import subprocess
import sys

import pytest

from d2l_ext.files import atomic_write

ROOT = pathlib.Path(__file__).resolve().parent.parent


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


FULL_DISK = """
import resource, signal, sys
import numpy as np
from d2l_ext import nin_block, save_params
from d2l_ext.files import atomic_write

net = nin_block(64, 3, 1, 1)
net.initialize()
net(__import__('mxnet').nd.ones((1, 64, 8, 8)))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))

def by_hand(path):
    with atomic_write(path) as file:
        for _ in range(20):
            file.write(bytes(1000))

for write in by_hand, lambda path: save_params(net, path):
    try:
        write(sys.argv[1])
    except OSError as error:
        print('OSError', error.errno)
"""


def test_a_full_disk_keeps_the_old_content(tmp_path):
    errno = pytest.importorskip('errno').EFBIG
    pytest.importorskip('resource')
    path = tmp_path / 'file.npz'
    path.write_bytes(b'old')
    done = subprocess.run([sys.executable, '-c', FULL_DISK, str(path)], cwd=ROOT, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=120)
    assert done.stdout == f'OSError {errno}\n' * 2
    assert path.read_bytes() == b'old' and names(tmp_path) == ['file.npz']
