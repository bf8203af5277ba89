"""MXNet on today's NumPy and Python, whoever imports it, and in which kind of process."""
import ast
import json
import pathlib
import re
import subprocess
import sys
import types
import venv
from importlib import metadata

import mxnet as mx
import nbclient
import nbformat
import numpy as np
import pytest
from conftest import PYPROJECT, ROOT

from d2l_ext.hardware import names

FILES = PYPROJECT['tool']['hatch']['build']['targets']['wheel']['force-include']
COMPUTE = 'print(mxnet.nd.ones(3).sum().asscalar(), mxnet.np.sometrue is not None)\n'
ORDERS = ['import mxnet', 'from d2l import mxnet as d2l; import mxnet', 'import d2l_ext, mxnet',
          'import mxnet, d2l_ext; mxnet = d2l_ext.devices.mx']


def environment(folder, hook):
    """Make an environment with the packages of this one, `hook` or not; return its Python."""
    venv.create(folder, symlinks=True)
    site, = folder.glob('lib/python*/site-packages')
    # A path that stands in a .pth file is not searched for .pth files.
    paths = [ROOT, *(path for path in sys.path if path.endswith('-packages'))]
    (site / 'packages.pth').write_text(''.join(f'{path}\n' for path in paths))
    for source, target in FILES.items() if hook else ():
        (site / target).write_text((ROOT / source).read_text())
    return folder / 'bin' / 'python'


@pytest.fixture(scope='module')
def python(tmp_path_factory):
    """A Python as the installation leaves it."""
    return environment(tmp_path_factory.mktemp('hooked'), True)


@pytest.fixture(autouse=True)
def surroundings(python, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ('OMP_NUM_THREADS', 'PYTHONDONTWRITEBYTECODE', 'PYTHONPATH', 'PYTHONWARNINGS'):
        monkeypatch.delenv(name, raising=False)
    # As where the installer has compiled nothing: what the compiler warns of shows the first time.
    monkeypatch.setenv('PYTHONPYCACHEPREFIX', str(python.with_name('compiled')))


def run(python, *args):
    """Return what a fresh Python prints; it must end well."""
    done = subprocess.run([python, *args], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          text=True, timeout=120)
    assert done.returncode == 0, done.stdout
    return done.stdout


# --- whoever imports it ---------------------------------------------------------------------------

def test_without_the_hook_mxnet_fails(tmp_path):
    done = subprocess.run([environment(tmp_path / 'bare', False), '-c', 'import mxnet'],
                          capture_output=True, text=True)
    # Bare systems lack the library, too.
    assert done.returncode and re.search('mxnet/numpy/|libgomp.so.1', done.stderr)


@pytest.mark.parametrize('order', ORDERS)
def test_scripts(python, order):
    assert run(python, '-c', f'{order}\n{COMPUTE}') == '3.0 True\n'


def test_kernels(python, tmp_path, monkeypatch):
    (tmp_path / 'kernels' / 'hooked').mkdir(parents=True)
    (tmp_path / 'kernels' / 'hooked' / 'kernel.json').write_text(json.dumps({
        'argv': [str(python), '-m', 'ipykernel_launcher', '-f', '{connection_file}'],
        'display_name': 'hooked', 'language': 'python'}))
    monkeypatch.setenv('JUPYTER_PATH', str(tmp_path))
    for order in ('import d2l.mxnet, mxnet, d2l_ext', 'import d2l_ext, d2l.mxnet, mxnet'):
        notebook = nbformat.v4.new_notebook(cells=[
            nbformat.v4.new_code_cell(source) for source in (order, COMPUTE)])
        nbclient.NotebookClient(notebook, kernel_name='hooked', timeout=120).execute()
        first, second = (cell.outputs for cell in notebook.cells)
        assert first == [] and [output.text for output in second] == ['3.0 True\n']


def test_pytest(python, tmp_path):
    (tmp_path / 'test_it.py').write_text(
        'import mxnet\n\n\ndef test_it():\n    assert mxnet.nd.ones(3).sum() == 3\n')
    assert '1 passed' in run(python, '-m', 'pytest', '-q', '-p', 'no:cacheprovider')


WORKERS = '''
import multiprocessing

def work(i):
    import mxnet
    return float(mxnet.nd.full(2, i).sum().asscalar())

if __name__ == '__main__':
    for method in ('spawn', 'forkserver', 'fork'):
        with multiprocessing.get_context(method).Pool(1) as pool:
            print(method, pool.map(work, [1, 2]))
    from mxnet import gluon
    data = gluon.data.ArrayDataset([1.0, 2.0, 3.0])
    print([float(X.sum().asscalar()) for X in gluon.data.DataLoader(data, 2, num_workers=2)])
'''


def test_worker_processes(python, tmp_path):
    (tmp_path / 'script.py').write_text(WORKERS)
    assert run(python, 'script.py').splitlines() == [
        'spawn [2.0, 4.0]', 'forkserver [2.0, 4.0]', 'fork [2.0, 4.0]', '[3.0, 3.0]']


def test_the_launcher(python, tmp_path):
    (tmp_path / 'script.py').write_text(
        "import mxnet\nstore = mxnet.kv.create('dist_sync')\nprint(store.num_workers)\n")
    assert run(python, '-m', 'd2l_ext.distributed', '--address', '127.0.0.1', '-n', '1',
               str(python), 'script.py').splitlines()[-1] == '1'


# --- and nothing else -----------------------------------------------------------------------------

def test_it_costs_nothing_until_then(python, tmp_path):
    code = 'import sys; print(*sys.modules)'
    added = {*run(python, '-c', code).split()} - {
        *run(environment(tmp_path / 'bare', False), '-c', code).split()}
    assert added == {'_d2l_ext_hook'}


def test_what_an_import_leaves_behind(python):
    assert run(python, '-c', '''
import importlib.util, os, sys
assert importlib.util.find_spec('mxnet').origin.endswith('__init__.py')  # looking is not importing
assert 'numpy' not in sys.modules
import mxnet
assert not [name for name in sys.modules if name.startswith('distutils')]
assert 'd2l_ext' not in sys.modules and 'OMP_NUM_THREADS' not in os.environ
''') == ''


def test_an_import_that_failed_can_be_repeated(python):
    assert run(python, '-c', f'''
import ctypes
load, ctypes.CDLL = ctypes.CDLL, None
try:
    import mxnet
except TypeError:  # as where a library is missing
    ctypes.CDLL = load
import mxnet
{COMPUTE}''') == '3.0 True\n'


@pytest.mark.parametrize('finder', ['', 'import d2l_ext'])
def test_there_is_one_finder(python, finder):
    assert run(python, '-c', f'import sys\n{finder}\nprint(sum(type(finder).__name__ == '
                             "'MXNetFinder' for finder in sys.meta_path))") == '1\n'


def test_an_environment_whose_clone_has_moved(python):
    """It is as if the hook were not there."""
    assert run(python, '-c', f'''
import sys
sys.path.remove({str(ROOT)!r})
import importlib.util
assert importlib.util.find_spec('d2l_ext') is None
print('exec_module' in vars(importlib.util.find_spec('mxnet').loader))''') == 'False\n'


def test_the_installation_has_the_hook():
    try:
        files = {file.name: file.locate() for file in metadata.files('d2l_ext') or ()}
        url = metadata.distribution('d2l_ext').read_text('direct_url.json')
    except metadata.PackageNotFoundError:
        files, url = {}, None
    if url is None or json.loads(url)['url'] != ROOT.as_uri():
        pytest.skip('this clone is not installed here')
    for source, target in FILES.items():
        assert files[target].read_text() == (ROOT / source).read_text(), 'install this clone again'


# --- the names ------------------------------------------------------------------------------------

def asked_for(path):
    """Yield the dotted names that a source looks up in NumPy."""
    modules, tree = {}, ast.parse(path.read_text(encoding='utf-8'))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules.update((alias.asname or 'numpy', alias.name if alias.asname else 'numpy')
                           for alias in node.names if alias.name.partition('.')[0] == 'numpy')
        elif isinstance(node, ast.ImportFrom) and not node.level \
                and node.module.partition('.')[0] == 'numpy':
            modules.update((alias.asname or alias.name, f'{node.module}.{alias.name}')
                           for alias in node.names)
    yield from (name for name in modules.values() if name != 'numpy')
    for node in ast.walk(tree):
        chain = []
        while isinstance(node, ast.Attribute):
            chain.insert(0, node.attr)
            node = node.value
        if chain and isinstance(node, ast.Name) and node.id in modules:
            yield '.'.join([modules[node.id], *chain])
        if isinstance(node, ast.Assign) and getattr(node.targets[0], 'id', None) \
                == '_NUMPY_ARRAY_FUNCTION_LIST':  # looked up with getattr
            yield from (f'numpy.{item.value}' for item in node.value.elts)


ASKED_FOR = {name for path in pathlib.Path(mx.__file__).parent.rglob('*.py')
             if 'tools' not in path.parts for name in asked_for(path)}


@pytest.mark.filterwarnings('ignore:numpy.core')
def test_no_name_is_missing():
    missing = []
    for name in ASKED_FOR:
        value = np
        for part in name.split('.')[1:]:
            if not isinstance(value, (types.ModuleType, types.SimpleNamespace)):
                break
            if not hasattr(value, part):
                missing.append(name)
                break
            value = getattr(value, part)
    assert len(ASKED_FOR) > 300 and not missing


def test_every_name_is_needed():
    assert {f'numpy.{name}' for name in names.replacements(np)} <= {
        '.'.join(name.split('.')[:2]) for name in ASKED_FOR}


def test_a_name_that_numpy_has_is_left_alone(monkeypatch):
    fake = types.ModuleType('numpy')
    vars(fake).update({name: value for name, value in vars(np).items() if name in np.__all__},
                      bool='its own', round_=None)
    monkeypatch.setitem(sys.modules, 'numpy', fake)
    with names.restored():
        assert (fake.bool, fake.round_, fake.int) == ('its own', None, int)


def test_what_the_names_do():
    assert mx.np.in1d([[1, 2], [3, 4]], [2], True).tolist() == [False, True, False, False]
    assert mx.np.in1d([1, 2], [2], invert=True).tolist() == [True, False]
    assert mx.np.msort(np.array([[2, 1], [1, 2]])).tolist() == [[1, 1], [2, 2]]
    assert mx.np.trapz([1, 2, 3]) == 4 and mx.np.trapz([1, 2], dx=2.0) == 3
    assert mx.np.alltrue([1, 2]) and not mx.np.alltrue([0, 1])
    assert mx.np.PINF == -mx.np.NINF == np.inf and np.isnan([mx.np.NAN, mx.np.NaN]).all()
    assert np.signbit([mx.np.PZERO, mx.np.NZERO]).tolist() == [False, True]
    with pytest.raises(RuntimeError, match='numpy.financial'):
        mx.np.rate(1, 2, 3, 4)


@mx.util.use_np
def test_numpys_functions_take_mxnets_arrays():
    X = mx.np.array([[0, 1.26], [0, 0]])
    for found, expected in [(np.any(X, axis=1), [False, True][::-1]), (np.sometrue(X), True),
                            (np.round(X, 1), [[0, 1.3], [0, 0]]), (np.round_(X), [[0, 1], [0, 0]]),
                            (np.prod(X + 1), 2.26), (np.product(X, axis=0), [0, 0])]:
        assert isinstance(found, mx.np.ndarray)
        np.testing.assert_allclose(found.asnumpy(), expected, rtol=1e-6)
    assert mx.np.pad(X, ((1, 1), (0, 0)), mode='constant').shape == (4, 2)
