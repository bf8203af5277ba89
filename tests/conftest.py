"""Fixtures that several test files share, and the count of faults."""
import contextlib
import functools
import gzip
import hashlib
import http.server
import os
import pathlib
import signal
import struct
import sys
import threading
import urllib.parse

import matplotlib
import numpy as np
import pytest

try:
    import tomllib
except ImportError:  # on Python 3.10
    import tomli as tomllib

from d2l_ext.hardware import threads  # before any test imports mxnet, as readers should
from d2l_ext.hardware.processor import has_bfloat16

ROOT = pathlib.Path(__file__).resolve().parent.parent
CELL_SECONDS = 60 if has_bfloat16() else 300  # no cell of a page takes longer
PYPROJECT = tomllib.loads((ROOT / 'pyproject.toml').read_text(encoding='utf-8'))

# Numbers that are compared to the last digit need the same threads, however busy the machine is.
threads._chosen_here = False
matplotlib.use('Agg')
# A shell lets what it starts in the background ignore Ctrl-C, and the processes that tests stop
# with it would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
pytest.register_assert_rewrite('damage')  # no test module, but it asserts


# --- options and counts of the whole run ---

def pytest_addoption(parser):
    parser.addoption('--heavy', action='store_true',
                     default=os.environ.get('D2L_EXT_HEAVY', '') not in ('', '0'),
                     help='run the long repetitions, too (or set D2L_EXT_HEAVY=1)')


def pytest_runtest_setup(item):
    if item.get_closest_marker('heavy') and not item.config.getoption('--heavy'):
        pytest.skip('a long repetition: pass --heavy or set D2L_EXT_HEAVY=1')
    if item.get_closest_marker('index') and 'index' not in item.config.getoption('-m'):
        pytest.skip('asks the package index: pass -m index')


class Faults:
    """Counts the faults that tests produced and what became of the reader's data."""

    def __init__(self):
        self.counts = {'injected': 0, 'survived': 0}

    def injected(self, n=1):
        """Count faults when they are produced."""
        self.counts['injected'] += n

    def survived(self, n=1):
        """Count faults after which everything was found as it should be."""
        self.counts['survived'] += n


_FAULTS = Faults()


@pytest.fixture(scope='session')
def faults():
    return _FAULTS


def pytest_terminal_summary(terminalreporter):
    injected, survived = _FAULTS.counts.values()
    if injected:  # a test that fails after it has injected a fault never says that it survived
        terminalreporter.write_line(
            f'faults: {injected} injected, {survived} survived, {injected - survived} lost')


# --- surroundings of a test ---

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


@contextlib.contextmanager
def full_disk(room):
    """No file grows beyond `room` bytes; then the system says that there is no more space."""
    resource = pytest.importorskip('resource')
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))  # Python ignores SIGXFSZ
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


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


def content(folder):
    """Return what the files in a folder hold, by name."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def copy(source, target):
    target.mkdir(parents=True)
    for name, archive in content(source).items():
        (target / name).write_bytes(archive)
    return target


def mxnet_cache(root):
    """Return where MXNet keeps Fashion-MNIST when a test is `isolated` in `root`."""
    return root / 'mxnet' / 'datasets' / 'fashion-mnist'


class Mirrors:
    """A web server on this machine; each folder below `folder` is a mirror.

    `paths` are those that were asked for. ``faults[name]``, called with the request's handler,
    answers for the mirror `name` as it likes.
    """

    def __init__(self, folder):
        self.folder, self.paths, self.faults = folder, [], {}
        mirrors = self

        class Handler(http.server.SimpleHTTPRequestHandler):
            def do_GET(self):
                fault = mirrors.faults.get(self.path.split('/')[1])
                if fault is None:
                    return super().do_GET()
                mirrors.paths.append(self.path)
                with contextlib.suppress(OSError):  # the other side may have gone away
                    return fault(self)

            def log_request(self, *args):
                mirrors.paths.append(self.path)

            def log_message(self, *args):  # else it prints
                pass

        self.server = http.server.ThreadingHTTPServer(
            ('127.0.0.1', 0), functools.partial(Handler, directory=str(folder)))
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def url(self, name):
        return f'http://127.0.0.1:{self.server.server_address[1]}/{urllib.parse.quote(name)}/'


@pytest.fixture
def offline(isolated, monkeypatch):
    """No mirror answers; nothing but what a test puts there is found."""
    from d2l_ext.storage import fashion_mnist

    monkeypatch.setattr(fashion_mnist, 'MIRRORS', (('http://127.0.0.1:9/', 'md5'),))
    for name in ('NO_PROXY', 'no_proxy'):
        monkeypatch.setenv(name, '127.0.0.1')


@pytest.fixture
def published(isolated, monkeypatch):
    """A folder of small archives that count as the published ones."""
    from d2l_ext.storage import fashion_mnist

    folder = isolated / 'published'
    monkeypatch.setattr(fashion_mnist, 'MD5', write_archives(folder))
    return folder


@pytest.fixture
def mirrors(isolated):
    mirrors = Mirrors(isolated)
    yield mirrors
    mirrors.server.shutdown()
    mirrors.server.server_close()
