"""Threads, on made-up machines and in fresh Python processes."""
import os
import subprocess
import sys

import pytest
from conftest import ROOT

from d2l_ext.hardware import threads


def python(code, omp_num_threads=None):
    """Run `code` in a fresh Python that shows all warnings; return what it prints, line by line."""
    env = {name: value for name, value in os.environ.items()
           if name not in ('OMP_NUM_THREADS', 'PYTHONWARNINGS')}
    if omp_num_threads is not None:
        env['OMP_NUM_THREADS'] = omp_num_threads
    done = subprocess.run([sys.executable, '-W', 'default', '-c', code], env=env, cwd=ROOT,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=120)
    assert done.returncode == 0, done.stdout
    return done.stdout.splitlines()


HYPER = ['0,4', '1,5', '2,6', '3,7'] * 2  # eight processors, four cores


@pytest.mark.parametrize('siblings, affinity, allowed, cores', [
    (['0', '1', '2', '3'], {0, 1, 2, 3}, 4, 4),
    (['0-1', '0-1', '2-3', '2-3'], {0, 1, 2, 3}, 4, 2),
    (HYPER, set(range(8)), 8, 4),
    (HYPER, {0, 4}, 2, 1),  # two hyper-threads of one core
    (HYPER, {0, 1, 5}, 3, 2),
    (HYPER, set(range(8)), 3, 3),  # a container that may use three processors' time
    (['0', '1', '2', '3'], {0, 1, 2, 3}, 1, 1),
])
def test_physical_cores(tmp_path, monkeypatch, siblings, affinity, allowed, cores):
    for i, text in enumerate(siblings):
        (tmp_path / f'cpu{i}' / 'topology').mkdir(parents=True)
        (tmp_path / f'cpu{i}' / 'topology' / 'thread_siblings_list').write_text(text + '\n')
    monkeypatch.setattr(threads, '_CPUS', tmp_path)
    monkeypatch.setattr(os, 'sched_getaffinity', lambda pid: affinity, raising=False)
    monkeypatch.setattr(threads.joblib, 'cpu_count', lambda: allowed)
    assert threads.physical_cores() == cores


@pytest.mark.parametrize('allowed, physical, cores', [(8, 4, 4), (2, 4, 2), (8, None, 8)])
@pytest.mark.parametrize('linux', [True, False])
def test_physical_cores_without_topology(tmp_path, monkeypatch, linux, allowed, physical, cores):
    monkeypatch.setattr(threads, '_CPUS', tmp_path)
    monkeypatch.setattr(threads.joblib, 'cpu_count', lambda: allowed)
    monkeypatch.setattr(threads.psutil, 'cpu_count', lambda logical: physical)
    if linux:
        monkeypatch.setattr(os, 'sched_getaffinity', lambda pid: {0, 1}, raising=False)
    else:
        monkeypatch.delattr(os, 'sched_getaffinity', raising=False)
    assert threads.physical_cores() == cores


@pytest.mark.skipif(not hasattr(os, 'sched_setaffinity'), reason='needs Linux')
def test_physical_cores_under_a_real_affinity():
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        assert threads.physical_cores() == 1
    finally:
        os.sched_setaffinity(0, before)


def test_a_fresh_import_sets_the_threads_and_prints_nothing():
    # Every line is compared, so that a warning on either stream would show.
    assert python(
        'import os, sys, d2l_ext\n'
        'import d2l_ext.hardware.threads as d\n'
        'print(os.environ["OMP_NUM_THREADS"] == str(d.physical_cores()) == str(d.num_threads()))\n'
        'print(d.threads_note())\n'
        'print("matplotlib" in sys.modules, "d2l" in sys.modules)'
    ) == ['True', 'None', 'False False']


@pytest.mark.parametrize('first', ['', 'import mxnet\n'])
def test_the_users_threads_win(first):
    assert python(first + 'import os, d2l_ext.hardware.threads as d\n'
                  'print(os.environ["OMP_NUM_THREADS"], d.num_threads(), d.threads_note())',
                  omp_num_threads='7')[-1] == '7 7 None'


def test_mxnet_imported_first():
    assert python(
        'import warnings\n'
        'with warnings.catch_warnings():\n'
        '    warnings.simplefilter("ignore")\n'
        '    import mxnet as mx\n'
        'import os, d2l_ext, d2l_ext.hardware.threads as d\n'
        'print("OMP_NUM_THREADS" in os.environ, d2l_ext.devices.mx is mx)\n'
        'os.cpu_count = lambda: 4\n'
        'for cores in (2, 4):\n'
        '    d.physical_cores = lambda: cores\n'
        '    print(d.num_threads(), d.threads_note())\n'
        'block = d2l_ext.nin_block(3, 1, 1, 0)\n'
        'block.initialize()\n'
        'print(block(mx.nd.ones((2, 1, 4, 4))).shape)'
    ) == ['False True',
          '2 None',
          '2 note: mxnet was imported before d2l_ext and settled on 2 of 4 cores. For full speed '
          'restart Python and import d2l_ext first, or set OMP_NUM_THREADS=4.',
          '(2, 3, 4, 4)']


@pytest.mark.parametrize('value, number', [('3', 3), ('4,2', 4), ('many', 4), ('', 4)])
def test_num_threads(monkeypatch, value, number):
    monkeypatch.setattr(threads, '_mxnet_came_first', False)
    monkeypatch.setattr(os, 'cpu_count', lambda: 8)
    monkeypatch.setenv('OMP_NUM_THREADS', value)
    assert threads.num_threads() == number
    monkeypatch.delenv('OMP_NUM_THREADS')
    assert threads.num_threads() == 4
