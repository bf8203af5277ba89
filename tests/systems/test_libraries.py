"""A machine that lacks shared libraries, an ARM machine, and a Python that is too old or too new.

With the system's own loader, in fresh Python processes.
"""
import subprocess
import sys

import pytest
from conftest import ROOT

from d2l_ext.hardware import libraries

APT = '    sudo apt-get install libgomp1 libquadmath0'
DNF = '    sudo dnf install libgomp libquadmath'
COMPUTE = """
import mxnet as mx
print(mx.nd.dot(mx.nd.ones((64, 64)), mx.nd.ones((64, 64)))[0, 0].asscalar())
print(*sorted({line.split()[-1] for line in open('/proc/self/maps') if line.endswith(
    ('/libgomp.so.1\\n', '/libquadmath.so.0\\n'))}), sep='\\n')
"""

linux = pytest.mark.skipif(not sys.platform.startswith('linux'), reason='needs Linux')


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A folder in which the loader finds files that are no libraries, before it finds others."""
    for soname in libraries.PACKAGES:
        (tmp_path / soname).write_text('no library')
    monkeypatch.setenv('LD_LIBRARY_PATH', str(tmp_path))
    monkeypatch.setenv('D2L_EXT_CACHE', str(tmp_path / 'cache'))
    return tmp_path


def python(*arguments, first=''):
    """Run Python in the clone after the code `first`; return the status, output and errors."""
    code = f'import runpy, sys\n{first}\n'
    if arguments[0] == '-m':
        code += (f'sys.argv = {list(arguments)!r}\n'
                 f'runpy.run_module({arguments[1]!r}, run_name="__main__", alter_sys=True)')
    else:
        code += arguments[1]
    done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True,
                          timeout=300)
    return done.returncode, done.stdout, done.stderr


def copies(machine):
    """Return the copies in the cache, and nothing else that is there, by name."""
    files = [path for path in (machine / 'cache' / 'libraries').rglob('*') if path.is_file()]
    return {path.name: path for path in files}


@linux
@pytest.mark.parametrize('first', ['', 'import d2l_ext'])
def test_mxnet_computes_with_the_copies_of_the_wheels(machine, first):
    status, out, err = python('-c', COMPUTE, first=first)
    assert (status, err) == (0, '')
    assert sorted(copies(machine)) == sorted(libraries.PACKAGES)
    assert out.splitlines() == ['64.0', *sorted(map(str, copies(machine).values()))]


@linux
def test_the_threads_are_set_before_openmp_is_loaded(machine, monkeypatch):
    monkeypatch.delenv('OMP_NUM_THREADS', raising=False)
    code = ('import ctypes, os, mxnet\n'
            'openmp = ctypes.CDLL("libgomp.so.1", mode=os.RTLD_NOLOAD)\n'
            'print(openmp.omp_get_max_threads())')
    first = 'import joblib\njoblib.cpu_count = lambda: 1\nimport d2l_ext'
    assert python('-c', code, first=first) == (0, '1\n', '')


@linux
def test_copies_that_are_damaged_or_of_another_wheel_are_made_anew(machine):
    assert python('-c', COMPUTE)[0] == 0
    before = {name: path.read_bytes() for name, path in copies(machine).items()}
    for path, content in zip(copies(machine).values(), (b'', b'older')):
        path.write_bytes(content)
    assert python('-c', COMPUTE)[0] == 0
    assert {name: path.read_bytes() for name, path in copies(machine).items()} == before


def test_a_copy_has_the_name_that_is_needed_and_the_old_length(tmp_path, monkeypatch):
    monkeypatch.setenv('D2L_EXT_CACHE', str(tmp_path / 'cache'))
    wheel = tmp_path / 'libgomp-12345678.so.1.0.0'
    wheel.write_bytes(b'ELF\0libgomp-12345678.so.1.0.0\0rest')
    copy = libraries._under_its_own_name(wheel, 'libgomp.so.1')
    assert copy.name == 'libgomp.so.1'
    assert copy.read_bytes() == b'ELF\0libgomp.so.1' + bytes(14) + b'rest'
    assert list(copy.parent.iterdir()) == [copy]
    monkeypatch.delenv('D2L_EXT_CACHE')
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'user'))
    assert tmp_path / 'user' / 'd2l_ext' in libraries._under_its_own_name(wheel, copy.name).parents


def test_nothing_is_copied_where_the_system_has_the_library(tmp_path, monkeypatch):
    monkeypatch.setattr(libraries.ctypes, 'CDLL', lambda name: name)
    monkeypatch.setattr(libraries, '_copies', None)
    assert libraries._load('libgomp.so.1') == 'libgomp.so.1'


@linux
@pytest.mark.parametrize('arguments', [['-m', 'd2l_ext'], ['-m', 'd2l_ext', '--diagnose'],
                                       ['-c', 'import mxnet'], ['-c', 'from d2l_ext import nin']])
def test_without_copies_the_packages_are_named(machine, arguments):
    (machine / 'cache').write_text('no folder')
    status, out, err = python(*arguments)
    assert status == 1
    text = err if arguments[-1] != '--diagnose' else out
    assert 'MXNet needs libgomp.so.1, which cannot be loaded here.\n' in text
    assert APT in text and DNF in text
    if arguments[0] == '-m':
        assert 'Traceback' not in out + err
    else:
        assert err.endswith(f'{DNF}\n')


@pytest.mark.parametrize('arguments', [['-m', 'd2l_ext'], ['-m', 'd2l_ext', '--diagnose'],
                                       ['-c', 'import mxnet'], ['-c', 'from d2l_ext import nin']])
def test_on_arm_docker_is_named(tmp_path, arguments):
    (tmp_path / 'mxnet.py').write_text("raise OSError('libarmpl_lp64_mp.so: cannot open')")
    status, out, err = python(*arguments, first=(
        f'sys.path.insert(0, {str(tmp_path)!r})\n'
        'import platform\nplatform.machine = lambda: "aarch64"'))
    assert status == 1
    text = err if arguments[-1] != '--diagnose' else out
    assert "MXNet has no wheel that works on ARM: its own needs Arm's Performance Libraries" in text
    assert '    docker run --platform linux/amd64 ' in text
    assert arguments[0] == '-c' or 'Traceback' not in out + err


def test_other_errors_are_left_alone():
    assert libraries.problem(OSError('libcudart.so.11.0: cannot open')) is None


@pytest.mark.parametrize('version', [(3, 6, 9), (3, 9, 25), (3, 15, 0)])
@pytest.mark.parametrize('arguments', [['-m', 'd2l_ext'], ['-m', 'd2l_ext', '--diagnose']])
def test_another_python_is_refused_in_one_sentence(version, arguments):
    status, out, err = python(*arguments, first=f'sys.version_info = {version}')
    assert (status, out) == (1, '')
    assert err.startswith('d2l_ext needs Python 3.10 to 3.14, and this is %d.%d: ' % version[:2])
    assert err.endswith('    python3.13 -m venv .venv\n') and 'Traceback' not in err


def test_an_old_python_can_read_as_far_as_the_refusal():
    import ast
    ast.parse((ROOT / 'd2l_ext/__init__.py').read_text(encoding='utf-8'), feature_version=(3, 6))
