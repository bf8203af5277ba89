"""Threads, on made-up machines and in fresh Python processes."""
import os
import subprocess
import sys
import types

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


# --- beside other programs ------------------------------------------------------------------------

class Machine:
    """A made-up machine whose programs compute while the clock goes on.

    `work` gives, at a time, what each program uses: (processor, column of /proc/stat, share).
    """

    def __init__(self, folder, number, work, own=0.):
        self.stat, self.load = folder / 'stat', folder / 'loadavg'
        self.number, self.work, self.own = number, work, own
        self.now, self.slept, self.rows = 1000., 0., {i: [0.] * 10 for i in range(number)}
        self.go_on(0)

    def go_on(self, seconds):
        for _ in range(round(seconds * 1000)):
            for i, column, share in self.work(self.now - 1000):
                self.rows[i][column - 1] += share / 10  # hundredths of a second
            self.now += 0.001
        self.stat.write_text(f'cpu  {"1 " * 10}\n' + ''.join(
            f'cpu{i} {" ".join(str(int(value)) for value in row)}\n'
            for i, row in self.rows.items()) + 'intr 5 0 1\nctxt 7\n\n')
        running = 1 + len(self.work(self.now - 1000))
        self.load.write_text(f'0.00 0.01 0.05 {running}/91 12345\n')

    def sleep(self, seconds):
        self.slept += seconds
        self.go_on(seconds)


@pytest.fixture
def beside(tmp_path, monkeypatch):
    """Return a function that imports MXNet beside other programs, on a made-up machine."""
    def number_of_threads(work, siblings=('0', '1'), affinity=None, allowed=None, own=0.,
                          niceness=0, imports=0.25):
        for i, text in enumerate(siblings):
            folder = tmp_path / f'cpu{i}' / 'topology'
            folder.mkdir(parents=True, exist_ok=True)
            (folder / 'thread_siblings_list').write_text(text + '\n')
        affinity = affinity or set(range(len(siblings)))
        machine = Machine(tmp_path, len(siblings), work)
        monkeypatch.setattr(threads, '_CPUS', tmp_path)
        monkeypatch.setattr(threads, '_STAT', machine.stat)
        monkeypatch.setattr(threads, '_LOAD', machine.load)
        monkeypatch.setattr(threads.joblib, 'cpu_count', lambda: allowed or len(affinity))
        monkeypatch.setattr(threads, 'time', types.SimpleNamespace(
            monotonic=lambda: machine.now, sleep=machine.sleep,
            process_time=lambda: own * (machine.now - 1000)))
        monkeypatch.setattr(os, 'sched_getaffinity', lambda pid: affinity, raising=False)
        monkeypatch.setattr(os, 'nice', lambda by: niceness, raising=False)
        monkeypatch.setattr(os, 'sysconf', lambda name: 100, raising=False)
        monkeypatch.setattr(threads, '_left', 0)
        monkeypatch.setattr(threads, '_chosen_here', True)
        monkeypatch.setattr(threads, '_mxnet_came_first', False)
        monkeypatch.setattr(threads, '_start', threads._others_work())
        monkeypatch.setenv('OMP_NUM_THREADS', str(threads.physical_cores()))
        machine.go_on(imports)
        threads.leave_cores_to_others()
        return threads.num_threads(), round(machine.slept, 3)
    return number_of_threads


def always(*programs):
    return lambda seconds: programs


@pytest.mark.parametrize('programs, arguments, number', [
    ([], {}, 2),
    ([(0, 1, 1)], {}, 1),
    ([(0, 3, 0.5), (1, 7, 0.5)], {}, 1),  # in the system, for interrupts
    ([(0, 1, 1), (1, 1, 1)], {}, 1),
    ([(0, 1, 0.3)], {}, 2),
    ([(0, 4, 1), (1, 5, 1), (1, 8, 1), (0, 9, 1)], {}, 2),  # idle, waiting, stolen, guests
    ([(0, 1, 1)], {'own': 1}, 2),  # this process itself
    ([(0, 1, 1), (1, 1, 0.9)], {'own': 0.95}, 1),
    ([(0, 2, 1)], {}, 2),  # a program that gives way
    ([(0, 2, 1), (1, 1, 1)], {'niceness': 10, 'own': 1}, 1),  # this one, before another
    ([(0, 1, 1)], {'affinity': {1}}, 1),
    ([(0, 1, 1)], {'affinity': {1, 2}, 'siblings': ['0', '1', '2']}, 2),  # on others' processors
    ([(2, 1, 1)], {'affinity': {1, 2}, 'siblings': ['0', '1', '2']}, 1),
    ([(0, 1, 1)], {'siblings': HYPER}, 3),
    ([(i, 1, 1) for i in range(4)], {'siblings': HYPER}, 2),
    ([(i, 1, 1) for i in range(8)], {'siblings': HYPER}, 1),
    ([(i, 1, 1) for i in range(3)], {'siblings': [str(i) for i in range(64)]}, 61),
    ([(i, 1, 1) for i in range(3)], {'siblings': [str(i) for i in range(64)], 'allowed': 4}, 4),
    ([(i, 1, 1) for i in range(63)], {'siblings': [str(i) for i in range(64)], 'allowed': 4}, 1),
])
def test_threads_beside_other_programs(beside, programs, arguments, number):
    assert beside(always(*programs), **arguments)[0] == number
    assert (threads.threads_note() is None) == (number == threads.physical_cores())


def test_an_idle_machine_loses_no_time(beside):
    assert beside(always()) == (2, 0.008)
    # A program for a moment only: the time since is too short for the system's clock.
    assert beside(lambda seconds: [(0, 1, 1)] if seconds < 0.03 else [], imports=0.02) == (2, 0.08)


def test_a_busy_moment_does_not_count(beside):
    assert beside(lambda seconds: [(0, 1, 1)] if seconds < 0.3 else []) == (2, 0.3)
    assert beside(lambda seconds: [(0, 1, 1)] if seconds > 0.1 else []) == (1, 0.3)


def test_what_the_note_says(beside):
    beside(always((1, 1, 1)))
    assert threads.threads_note() == (
        'note: other programs keep 1 of 2 cores busy, so MXNet computes with 1 of 2 threads. For '
        'full speed restart Python when they are done, or set OMP_NUM_THREADS=2.')
    threads.leave_cores_to_others()  # MXNet is loaded once, even if its import is repeated
    assert threads.num_threads() == 1


@pytest.mark.parametrize('text', [
    None, '', 'cpu\n', 'cpu0 1 2\n', 'cpu0 a b c d e f g h\n', 'cpu5 1 2 3 4 5 6 7 8 9 10\n',
    'cpu0 0 0 0 0 0 0 0 0 0 0\n'])
def test_a_container_that_hides_the_work(beside, monkeypatch, tmp_path, text):
    class Hidden:
        def read_text(self):
            if text is None:
                raise FileNotFoundError
            return text

    before = threads._others_work
    monkeypatch.setattr(threads, '_others_work', lambda: (
        monkeypatch.setattr(threads, '_STAT', Hidden()), before())[1])
    assert beside(always((0, 1, 1)))[0] == 2 and threads.threads_note() is None


@pytest.mark.parametrize('name', ['sched_getaffinity', 'nice', 'sysconf'])
def test_a_system_that_is_not_linux(monkeypatch, name):
    monkeypatch.delattr(os, name)
    assert threads._others_work()[1] is None


BURN = 'import subprocess, sys, time\nburners = [subprocess.Popen([sys.executable, "-S", "-c", ' \
       '"while True: pass"]) for _ in range({number})]\ntime.sleep(0.5)\n'


@pytest.mark.skipif(not threads._STAT.exists() or threads.physical_cores() < 2,
                    reason='needs Linux and two cores')
@pytest.mark.parametrize('first, omp_num_threads, number', [
    ('import d2l_ext, mxnet', None, 1), ('from d2l_ext import nin', None, 1),
    ('import d2l_ext, os; os.environ["OMP_NUM_THREADS"] = "3"; import mxnet', None, 3),
    ('import d2l_ext, mxnet', '2', 2)])
def test_beside_real_programs(first, omp_num_threads, number):
    """As many as there are processors, so that none is left."""
    said = python(BURN.format(number=len(os.sched_getaffinity(0))) + f"""
import ctypes, os
try:
    {first}
    from d2l_ext.hardware import threads
    openmp = ctypes.CDLL("libgomp.so.1", mode=os.RTLD_NOLOAD)
    print(threads.num_threads(), openmp.omp_get_max_threads(), bool(threads.threads_note()))
finally:
    for burner in burners:
        burner.kill()
        burner.wait()
""", omp_num_threads)
    assert said == [f'{number} {number} {number == 1}']
