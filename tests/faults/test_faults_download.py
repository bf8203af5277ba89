"""Faults while downloading: each archive in the cache is a published one, whatever breaks."""
import contextlib
import gzip
import json
import os
import pathlib
import re
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time

import numpy as np
import pytest
from conftest import ROOT, content, full_disk, mxnet_cache, write_archives

import d2l_ext
from d2l_ext.storage import downloads, fashion_mnist

FIRST = next(iter(fashion_mnist.MD5))  # that is fetched first
PORT_9 = 'http://127.0.0.1:9/'  # nobody listens there

pytestmark = pytest.mark.usefixtures('offline')


@pytest.fixture
def published(isolated, monkeypatch):
    """Archives of several of the pieces in which a download arrives."""
    folder = isolated / 'published'
    monkeypatch.setattr(fashion_mnist, 'MD5', write_archives(folder, num_train=300))
    return folder


@pytest.fixture
def cache(isolated):
    return mxnet_cache(isolated)


@pytest.fixture
def use(mirrors, monkeypatch):
    """Return a function that sets which mirrors are asked, by name or whole address."""
    def use(*names):
        monkeypatch.setattr(fashion_mnist, 'MIRRORS', tuple(
            (name if name.startswith('http') else mirrors.url(name), 'md5') for name in names))
    return use


def load():
    return d2l_ext.load_data_fashion_mnist(8)


def check(cache, published):
    """Check that nothing but whole published archives is in the cache."""
    good = content(published)
    for name, archive in content(cache).items() if cache.exists() else ():
        assert archive == good[name], name


def answer(body=b'', status='200 OK', **header):
    """Return the bytes of an answer."""
    header = {'Connection': 'close', 'Content_Length': len(body), **header}
    lines = [f'{name.replace("_", "-")}: {value}' for name, value in header.items()
             if value is not None]
    return '\r\n'.join([f'HTTP/1.1 {status}', *lines, '', '']).encode() + body


def wait_until_the_other_side_gives_up(handler):
    handler.rfile.read()


def reset(handler):
    """Break the connection as a crashed router does, without saying that this was the end."""
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))
    os.close(handler.connection.detach())


# --- mirrors that fail ---

HALF = 80_000
FAULTS = {  # what a mirror sends for a good archive, and what the reader is told of it
    'no answer': (lambda good: b'', 'Connection'),
    'no HTTP': (lambda good: bytes(range(256)) + b'\r\n\r\n', 'Connection'),
    'endless header': (lambda good: b'HTTP/1.1 200 OK\r\nX: ' + 100_000 * b'x', 'Connection'),
    'empty': (lambda good: answer(), 'wrong checksum'),
    'truncated': (lambda good: answer(good)[:HALF], 'ChunkedEncodingError|wrong checksum'),
    'truncated, of unknown length': (
        lambda good: answer(good, Content_Length=None)[:HALF], 'wrong checksum'),
    'truncated in chunks': (
        lambda good: answer(b'%x\r\n' % len(good) + good[:HALF], Content_Length=None,
                            Transfer_Encoding='chunked'), 'ChunkedEncodingError'),
    'chunks of no length': (
        lambda good: answer(b'many\r\n' + good, Content_Length=None, Transfer_Encoding='chunked'),
        'ChunkedEncodingError'),
    'shorter than announced': (
        lambda good: answer(good, Content_Length=2 * len(good)),
        'ChunkedEncodingError|wrong checksum'),
    'longer than announced': (
        lambda good: answer(good, Content_Length=HALF), 'wrong checksum'),
    'no length': (lambda good: answer(good, Content_Length='many'), "'many'|InvalidHeader"),
    'with a byte more': (lambda good: answer(good + b'\0'), 'wrong checksum'),
    'one bit flipped': (
        lambda good: answer(good[:HALF] + bytes([good[HALF] ^ 1]) + good[HALF + 1:]),
        'wrong checksum'),
    'other archive': (lambda good: answer(gzip.compress(b'other')), 'wrong checksum'),
    'unpacked on the way': (lambda good: answer(good, Content_Encoding='gzip'), 'wrong checksum'),
    'no gzip on the way': (
        lambda good: answer(b'\0' + good, Content_Encoding='gzip'), 'ContentDecodingError'),
    'login page': (lambda good: answer(b'<html>Welcome to our hotel</html>'), 'wrong checksum'),
    'not found': (lambda good: answer(status='404 Not Found'), 'HTTPError'),
    'forbidden, with the archive': (
        lambda good: answer(good, status='403 Forbidden'), 'HTTPError'),
    'server error': (lambda good: answer(status='500 Internal Server Error'), 'HTTPError'),
    'busy': (lambda good: answer(status='503 Busy', Retry_After=9999), 'HTTPError'),
    'redirected in circles': (
        lambda good: answer(status='302 Found', Location=FIRST), 'TooManyRedirects'),
    'redirected to nobody': (
        lambda good: answer(status='301 Moved', Location=PORT_9), 'ConnectionError'),
    'redirected to a file': (
        lambda good: answer(status='307 Moved', Location='file:///etc/hostname'), 'Invalid'),
    'redirected nowhere': (lambda good: answer(status='302 Found'), 'wrong checksum'),
}


@pytest.mark.parametrize('fault', FAULTS)
def test_a_mirror_that_fails(published, mirrors, use, cache, faults, fault):
    damage, reason = FAULTS[fault]
    good = (published / FIRST).read_bytes()
    assert len(good) > 2 * HALF
    mirrors.faults['faulty'] = lambda handler: handler.wfile.write(damage(good))
    use('faulty')
    faults.injected()
    with pytest.raises(OSError, match=rf'{FIRST} could not be downloaded:\n.*/faulty/: .*({reason})'
                       ) as caught:
        load()
    assert 'Connect to the network' in str(caught.value)
    assert content(cache) == {}
    use('faulty', 'published')
    load()
    assert content(cache) == content(published)
    faults.survived()


def test_a_mirror_that_stops_answering(published, mirrors, use, cache, faults, monkeypatch):
    monkeypatch.setattr(downloads, 'DOWNLOAD_TIMEOUT', 1)
    whole = answer((published / FIRST).read_bytes())
    stages = {'at-once': 0, 'in-the-header': 20, 'half-way': HALF}
    for name, size in stages.items():
        def stall(handler, size=size):
            if FIRST not in handler.path:
                return handler.wfile.write(answer(
                    (published / handler.path.split('/')[-1]).read_bytes()))
            handler.wfile.write(whole[:size])
            return wait_until_the_other_side_gives_up(handler)

        mirrors.faults[name] = stall
    use(*stages)
    faults.injected(len(stages))
    with pytest.raises(OSError, match=r'/at-once/: ReadTimeout\n.*/in-the-header/: ReadTimeout\n'
                       r'.*/half-way/: ConnectionError\n'):
        load()
    assert content(cache) == {}
    use('half-way', 'published')
    load()
    assert content(cache) == content(published)
    faults.survived(len(stages))


def test_a_slow_mirror_is_waited_for_while_it_sends(published, mirrors, use, cache, faults,
                                                    monkeypatch):
    monkeypatch.setattr(downloads, 'DOWNLOAD_TIMEOUT', 1.5)

    def trickle(handler):
        whole = answer((published / handler.path.split('/')[-1]).read_bytes())
        pieces = 18 if FIRST in handler.path else 1
        for piece in np.array_split(np.frombuffer(whole, np.uint8), pieces):
            handler.wfile.write(piece.tobytes())
            time.sleep(0.1 if pieces > 1 else 0)  # 1.8 seconds in all

    mirrors.faults['slow'] = trickle
    use('slow', PORT_9)
    faults.injected()
    load()
    assert content(cache) == content(published)
    faults.survived()


def test_every_mirror_fails(isolated, published, mirrors, use, cache, faults):
    write_archives(isolated / 'wrong', seed=5)
    use('missing', 'wrong', PORT_9)
    faults.injected(3)
    with pytest.raises(OSError) as caught:
        load()
    message = str(caught.value)
    assert f'{FIRST} could not be downloaded' in message
    for url, reason in ((mirrors.url('missing'), 'HTTPError'),
                        (mirrors.url('wrong'), 'wrong checksum'), (PORT_9, 'ConnectionError')):
        assert f'{url}: {reason}' in message
    for advice in (str(cache), 'D2L_EXT_DATA', 'load_data_digits()', 'Connect to the network'):
        assert advice in message
    assert content(cache) == {}
    faults.survived(3)


def test_redirects_are_followed(published, mirrors, use, cache):
    statuses = (301, 302, 303, 307, 308)
    for i, status in enumerate(statuses):
        def redirect(handler, status=status, next_=i + 1):
            name = handler.path.split('/')[-1]
            target = f'/{next_}/' if next_ < len(statuses) else mirrors.url('published')
            handler.wfile.write(answer(status=f'{status} Moved', Location=target + name))

        mirrors.faults[str(i)] = redirect
    use('0')
    load()
    assert content(cache) == content(published)
    assert len(mirrors.paths) == 4 * (len(statuses) + 1)


def test_a_connection_cut_at_a_random_byte(published, mirrors, use, cache, faults):
    random, good = np.random.RandomState(0), content(published)
    for repetition in range(50):
        victim = random.choice(sorted(good))
        size = random.randint(len(answer(good[victim])))

        def cut(handler, victim=victim, size=size, abruptly=repetition % 2):
            name = handler.path.split('/')[-1]
            handler.wfile.write(answer(good[name])[:size if name == victim else None])
            if name == victim and abruptly:
                reset(handler)

        mirrors.faults['cut'] = cut
        use('cut')
        faults.injected()
        with pytest.raises(OSError, match=f'{victim} could not be downloaded'):
            load()
        check(cache, published)
        assert not (cache / victim).exists()
        kept = content(cache)
        use('published')
        del mirrors.paths[:]
        load()
        assert content(cache) == good
        assert {path.split('/')[-1] for path in mirrors.paths} == good.keys() - kept.keys()
        faults.survived()
        for path in cache.iterdir():
            path.unlink()


# --- other processes ---

DOWNLOAD = '''
import json, sys
from d2l_ext import data
from d2l_ext.storage import fashion_mnist
fashion_mnist.MD5 = json.loads(sys.argv[1])
fashion_mnist.MIRRORS = ((sys.argv[2], 'md5'),)
print(fashion_mnist.find())
'''


def start_download(url):
    sums = json.dumps(fashion_mnist.MD5)
    return subprocess.Popen([sys.executable, '-c', DOWNLOAD, sums, url], cwd=ROOT, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def test_two_processes_at_once_leave_one_good_copy(published, mirrors, cache, faults):
    both = threading.Barrier(2)

    def serve(handler):
        name = handler.path.split('/')[-1]
        whole = answer((published / name).read_bytes())
        if name == FIRST:  # neither gets its second half before both have their first
            handler.wfile.write(whole[:HALF])
            both.wait(60)
            whole = whole[HALF:]
        handler.wfile.write(whole)

    mirrors.faults['both'] = serve
    faults.injected()
    processes = [start_download(mirrors.url('both')) for _ in range(2)]
    for process in processes:
        out, err = process.communicate(timeout=60)
        assert (process.returncode, out.strip(), err) == (0, str(cache), '')
    assert content(cache) == content(published)
    faults.survived()


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGKILL])
def test_a_download_that_is_stopped(published, mirrors, use, cache, faults, number):
    half_sent = threading.Event()

    def serve(handler):
        handler.wfile.write(answer((published / FIRST).read_bytes())[:HALF])
        half_sent.set()
        wait_until_the_other_side_gives_up(handler)

    mirrors.faults['half'] = serve
    process = start_download(mirrors.url('half'))
    assert half_sent.wait(60)
    while not any(path.stat().st_size for path in (cache.iterdir() if cache.exists() else ())):
        assert process.poll() is None
        time.sleep(0.01)
    faults.injected()
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == -number
    left_behind = list(cache.iterdir())
    if number == signal.SIGKILL:  # nobody could clean up
        assert [path.suffix for path in left_behind] == ['.tmp']
        an_hour_ago = time.time() - 3601
        os.utime(left_behind[0], (an_hour_ago, an_hour_ago))
    else:
        assert left_behind == [] and 'KeyboardInterrupt' in err
    use('published')
    load()
    assert content(cache) == content(published)
    faults.survived()


# --- folders that cannot be written ---

def test_a_file_where_the_folder_should_be(isolated, published, mirrors, use, monkeypatch, capsys,
                                           faults):
    (isolated / 'data').mkdir()
    (isolated / 'data' / 'fashion-mnist').write_bytes(b'mine')
    monkeypatch.setenv('D2L_EXT_DATA', str(isolated / 'data'))
    use('published')
    faults.injected()
    with pytest.raises(OSError, match='fashion-mnist.*D2L_EXT_DATA'):
        load()
    assert (isolated / 'data' / 'fashion-mnist').read_bytes() == b'mine'
    assert mirrors.paths == []
    assert d2l_ext.load_data(8)[0].name == "scikit-learn's digits"
    faults.survived()


@contextlib.contextmanager
def read_only_folder():
    """A folder in which this process may not write, not even if it is root's."""
    with tempfile.TemporaryDirectory() as outer:
        folder = pathlib.Path(outer) / 'read-only'
        folder.mkdir()
        for path, mode in ((outer, 0o755), (folder, 0o555)):
            os.chmod(path, mode)
        user = os.geteuid()
        if user == 0:
            os.seteuid(65534)
        try:
            yield folder
        finally:
            os.seteuid(user)
            folder.chmod(0o755)


@pytest.mark.skipif(os.name != 'posix', reason='needs the permissions of POSIX')
def test_a_folder_without_write_permission(published, mirrors, use, monkeypatch, faults):
    use('published', 'published')
    faults.injected()
    with read_only_folder() as folder:
        monkeypatch.setenv('MXNET_HOME', str(folder))
        with pytest.raises(OSError, match='Permission denied.*D2L_EXT_DATA'):
            load()
        assert list(folder.iterdir()) == []
    faults.survived()


def test_a_full_disk(published, mirrors, use, cache, faults):
    use('published', 'published')
    faults.injected()
    with full_disk(room=HALF), pytest.raises(
            OSError, match=f'{re.escape(str(cache))}: .*too large.*Make room there'):
        load()
    assert len(mirrors.paths) == 1  # another mirror would not help
    assert content(cache) == {}
    load()
    assert content(cache) == content(published)
    faults.survived()
