"""Several workers on this machine, under MXNet's own parameter server and launcher."""
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time
import types

import numpy as np
import psutil
import pytest

import d2l_ext
from d2l_ext.data import load_data_digits
from d2l_ext.devices import mx
from d2l_ext.scale import launch as distributed
from d2l_ext.scale import workers
from d2l_ext.scale.team import Team
from d2l_ext.scale.workers import Workers
from d2l_ext.storage.checkpoints import read_history
from d2l_ext.training import Run

nd, gluon, nn = mx.nd, mx.gluon, mx.gluon.nn
CPU, LOOPBACK = mx.cpu(), '127.0.0.1'


@pytest.fixture(autouse=True)
def no_job(monkeypatch):
    for name in [*os.environ]:
        if name.startswith(('DMLC_', 'PS_')):
            monkeypatch.delenv(name)
    monkeypatch.setenv('PYTHONUNBUFFERED', '1')


def train(folder, num_epochs, kvstore='device', as_np=False, **arguments):
    """Train on 201 digits in batches of 40, so that the last batch is one image; keep results."""
    folder = pathlib.Path(folder)
    (mx.npx.set_np if as_np else mx.npx.reset_np)()
    train_iter, test_iter = load_data_digits(40, ctx=CPU)
    net = nn.HybridSequential()
    net.add(nn.Conv2D(8, 3, activation='relu'), nn.Conv2D(10, 3), nn.GlobalAvgPool2D(),
            nn.Flatten())
    net.initialize(mx.init.Xavier(), ctx=CPU)
    trainer = gluon.Trainer(net.collect_params(), 'sgd', {'learning_rate': 0.05, 'momentum': 0.9},
                            kvstore=kvstore)
    history = d2l_ext.train_ch5(net, train_iter.take(201), test_iter, 40, trainer, CPU, num_epochs,
                                precision='float32', checkpoint=folder / 'run.npz', **arguments)
    rank = trainer._kvstore.rank if kvstore != 'device' else 0
    d2l_ext.save_params(net, folder / f'net-{rank}.npz')
    (folder / f'history-{rank}.json').write_text(json.dumps(history))
    mx.npx.reset_np()


def command(folder, num_epochs, **arguments):
    """Return the words of a command that calls `train` as a worker, in a script of its own."""
    script = folder / 'worker.py'
    script.write_text(f"""
import sys
sys.path.insert(0, {os.path.dirname(__file__)!r})
import test_distributed
test_distributed.train({str(folder)!r}, {num_epochs}, 'dist_sync', **{arguments!r})
""")
    return [sys.executable, str(script)]


def launch(words, *options, timeout=100):
    return subprocess.run(
        [sys.executable, '-m', 'd2l_ext.distributed', '-n', '2', '-s', '1', '--address', LOOPBACK,
         *options, *words], capture_output=True, text=True, timeout=timeout)


def results(folder, rank):
    with np.load(folder / f'net-{rank}.npz') as file:
        params = {name: file[name] for name in file.files}
    rows = json.loads((folder / f'history-{rank}.json').read_text())
    return params, [{key: row[key] for key in row if key != 'seconds'} for row in rows]


def check_against_one_process(folder, alone, num_epochs, **arguments):
    """Both workers have the same parameters and history, those of one process."""
    alone.mkdir()
    train(alone, num_epochs, seed=3, **arguments)
    params, rows = results(folder, 0)
    others, same = results(folder, 1)
    expected, expected_rows = results(alone, 0)
    assert rows == same and len(rows) == num_epochs
    for name, value in params.items():
        np.testing.assert_array_equal(value, others[name])
        np.testing.assert_allclose(value, expected[name], rtol=1e-4, atol=1e-5)
    for row, other in zip(rows, expected_rows):
        assert row['loss'] == pytest.approx(other['loss'], rel=1e-4)
        assert row['train_acc'] == pytest.approx(other['train_acc'], abs=2 / 201)
        assert row['test_acc'] == pytest.approx(other['test_acc'], abs=2 / 360)


@pytest.mark.parametrize('as_np', [False, True])
def test_two_workers_do_what_one_process_does(as_np, tmp_path):
    # Seed 3 decides on the order; the workers' own initial parameters would differ.
    done = launch(command(tmp_path, 2, seed=3, as_np=as_np))
    assert done.returncode == 0, done.stderr
    assert 'RuntimeWarning' not in done.stderr  # as of a module that is imported twice
    assert done.stdout.count('training on cpu(0) by 2 workers') == 1  # rank 0 alone speaks
    assert len(re.findall(r'^epoch \d, loss', done.stdout, re.M)) == 2
    check_against_one_process(tmp_path, tmp_path / 'alone', 2, as_np=as_np)


def start_without_launcher(words, timeout):
    """Start scheduler, server and two workers as a cluster would; return them by role."""
    with socket.socket() as free:
        free.bind((LOOPBACK, 0))
        port = free.getsockname()[1]
    shared = {**os.environ, 'DMLC_PS_ROOT_URI': LOOPBACK, 'DMLC_PS_ROOT_PORT': str(port),
              'DMLC_NODE_HOST': LOOPBACK, 'DMLC_NUM_WORKER': '2', 'DMLC_NUM_SERVER': '1',
              'PS_HEARTBEAT_TIMEOUT': str(timeout)}
    return {name: subprocess.Popen(words, env={**shared, 'DMLC_ROLE': name.rstrip('12')},
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            for name in ('scheduler', 'server', 'worker1', 'worker2')}


def wait_for(condition, processes):
    while not condition():
        assert all(process.poll() is None for process in processes), [
            process.communicate() for process in processes if process.poll() is not None]
        time.sleep(0.05)


def test_a_killed_worker_ends_the_job_and_resume_goes_on(tmp_path):
    checkpoint = tmp_path / 'run.npz'
    job = start_without_launcher(command(tmp_path, 100000, seed=3), timeout=4)
    try:
        wait_for(checkpoint.exists, job.values())
        job.pop('worker2').kill()
        start = time.monotonic()
        for name, process in job.items():
            _, err = process.communicate(timeout=60)
            assert process.returncode == 1
            assert f'error: {name.rstrip("12")}: ' in err and 'silent for 4 seconds' in err
            assert '--resume' in err
        assert time.monotonic() - start < 60
    finally:
        for process in job.values():
            process.kill()
    num_epochs = len(d2l_ext.storage.checkpoints.read_history(checkpoint)) + 1
    done = launch(command(tmp_path, num_epochs, resume=True))
    assert done.returncode == 0, done.stderr
    assert f'going on after epoch {num_epochs - 1}, from {checkpoint}' in done.stdout
    check_against_one_process(tmp_path, tmp_path / 'alone', num_epochs)


def test_the_launcher_ends_all_when_one_process_fails(tmp_path):
    before = {process.pid for process in psutil.process_iter()}
    launcher = subprocess.Popen(
        [sys.executable, '-m', 'd2l_ext.distributed', '-n', '2', '-s', '1', '--address', LOOPBACK,
         *command(tmp_path, 100000)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    children = []
    try:
        wait_for((tmp_path / 'run.npz').exists, [launcher])
        children = [child for child in psutil.Process(launcher.pid).children(recursive=True)
                    if 'python' in child.name()]
        worker = next(child for child in children if child.environ()['DMLC_ROLE'] == 'worker')
        worker.send_signal(signal.SIGKILL)
        _, err = launcher.communicate(timeout=60)
        assert launcher.returncode == 1 and err.count('a process of the job has failed') == 1
        assert 'PYTHONUNBUFFERED' not in err  # dmlc_tracker would show the whole environment
        # Two workers, a server, a scheduler, and from Python 3.14 on what tracks their resources.
        assert len(children) >= 4 and not psutil.wait_procs(children, timeout=10)[1]
    finally:
        for process in (launcher, *children):
            if process.pid not in before and psutil.pid_exists(process.pid):
                process.kill()


def test_the_command_line(tmp_path):
    words = [sys.executable, '-m', 'd2l_ext', '--kvstore', 'dist_sync', '--dataset', 'digits',
             '--images', '60', '--resize', '67', '--epochs', '2', '--precision', 'float32',
             '--checkpoint', str(tmp_path / 'run.npz')]
    done = launch(words)
    assert done.returncode == 0, done.stderr
    assert 'workers    2' in done.stdout and done.stdout.count('epoch      loss') == 1
    rows = re.findall(r'^ +(\d)  ', done.stdout, re.M)
    assert rows == ['1', '2'] and len(read_history(tmp_path / 'run.npz')) == 2
    wrong = launch([*words, '--batch-size', '0'])
    assert wrong.returncode == 1 and 'batch_size' in wrong.stderr


def test_those_who_never_meet_say_so():
    with socket.socket() as free:
        free.bind((LOOPBACK, 0))
        port = free.getsockname()[1]
    # Importing d2l_ext in the role of the scheduler would wait for the usual time.
    code = ('import os; role = os.environ.pop("DMLC_ROLE"); '
            'from d2l_ext.scale import server, watchdog, workers; watchdog.START_WITHIN = 2; '
            'os.environ["DMLC_ROLE"] = role; server.serve_if_asked(); '
            'workers.connect("dist_sync")')
    for role in ('worker', 'scheduler'):
        done = subprocess.run(
            [sys.executable, '-c', code], capture_output=True, text=True, timeout=60,
            env={**os.environ, 'DMLC_ROLE': role, 'DMLC_PS_ROOT_URI': LOOPBACK,
                 'DMLC_PS_ROOT_PORT': str(port), 'DMLC_NUM_WORKER': '2', 'DMLC_NUM_SERVER': '1',
                 'DMLC_NODE_HOST': LOOPBACK})
        assert done.returncode == 1
        assert f'error: {role}: after 2 seconds not all of the 2 workers' in done.stderr
        assert f'at {LOOPBACK}:{port}' in done.stderr and '--address' in done.stderr


# Stands for a machine to log in to; what dmlc_tracker passes it is real.
SSH = '#!/bin/sh\nexec env -i PATH="$PATH" sh -c "$6"\n'
JOINING = """
import os
import sys
from d2l_ext.scale.workers import connect
workers = connect('dist_sync')
assert workers.from_leader(2**32 - 1 + workers.rank) == 2**32 - 1
total, = workers.sum([workers.rank + 1.5])
# In one piece: two processes write to the same place.
sys.stdout.write(f'sum {total} {os.environ["D2L_EXT_TEST"]}\\n')
workers.finish()
"""


def test_ssh_passes_on_what_is_needed(tmp_path, monkeypatch):
    (tmp_path / 'ssh').write_text(SSH)
    (tmp_path / 'ssh').chmod(0o755)
    monkeypatch.setenv('PATH', str(tmp_path), prepend=os.pathsep)
    monkeypatch.setenv('D2L_EXT_TEST', 'with $pace; "quoted"')
    monkeypatch.setenv('DMLC_INTERFACE', 'lo')
    (tmp_path / 'hosts').write_text(f'{LOOPBACK}\n{LOOPBACK}\n')
    (tmp_path / 'joining.py').write_text(JOINING)
    done = launch([sys.executable, str(tmp_path / 'joining.py')], '--launcher', 'ssh',
                  '--hostfile', str(tmp_path / 'hosts'))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count('sum 4.0 with $pace; "quoted"\n') == 2


def test_workers_with_other_data_end_the_job(tmp_path):
    script = tmp_path / 'other.py'
    script.write_text("""
from d2l_ext.scale.workers import connect
workers = connect('dist_sync')
workers.check_alike([], batches=3 + workers.rank)
workers.sum([0])  # would wait for ever
""")
    done = launch([sys.executable, str(script)])
    assert done.returncode == 1
    assert 'batches is 4 on worker 1 but 3 on rank 0' in done.stderr


# --- without any other process ---

def test_several_devices_need_a_kvstore():
    net, ctx = nn.Dense(2, in_units=3), [mx.cpu(0), mx.cpu(1)]
    net.initialize(ctx=ctx)
    trainer = gluon.Trainer(net.collect_params(), 'sgd', kvstore=None)
    with pytest.raises(ValueError, match='sums up no gradients'):
        Run(net, trainer, ctx, 'float32')


def test_a_distributed_trainer_needs_a_launcher(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r'python -m d2l_ext.distributed -n 2'):
        train(tmp_path, 1, 'dist_sync')
    with pytest.raises(ValueError, match='kvstore must be one of dist_sync, dist_device_sync'):
        train(tmp_path, 1, 'dist_async')
    monkeypatch.setenv('DMLC_ROLE', 'worker')
    with pytest.raises(ValueError, match='DMLC_PS_ROOT_URI, DMLC_PS_ROOT_PORT'):
        train(tmp_path, 1, 'dist_sync')


@pytest.mark.parametrize('name, value, message', [
    ('PS_HEARTBEAT_TIMEOUT', '0', 'whole number of seconds'),
    ('PS_HEARTBEAT_TIMEOUT', 'x', 'whole number of seconds'),
    ('DMLC_NODE_HOST', 'node-1', 'DMLC_NODE_HOST must be an IP address'),
    ('DMLC_PS_ROOT_URI', 'node-1', 'addresses, not names')])
def test_wrong_settings(monkeypatch, name, value, message):
    for variable in ('DMLC_PS_ROOT_URI', 'DMLC_PS_ROOT_PORT', 'DMLC_NUM_WORKER', 'DMLC_NUM_SERVER'):
        monkeypatch.setenv(variable, '1')
    monkeypatch.setenv('DMLC_PS_ROOT_URI', '127.0.0.1')
    monkeypatch.setenv('DMLC_ROLE', 'worker')
    monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=message):
        workers.connect('dist_sync')


@pytest.mark.parametrize('make', [
    lambda: load_data_digits(40, resize=10, ctx=CPU)[0].take(201),
    lambda: list(load_data_digits(40, ctx=CPU)[1].take(81)),
    lambda: [(X.asnumpy(), y.asnumpy()) for X, y in load_data_digits(40, ctx=CPU)[1].take(81)],
], ids=['Batches', 'list', 'numpy'])
@pytest.mark.parametrize('number', [2, 3])
def test_parts_make_up_each_batch(make, number):
    batches = make()

    def drawn(iterable):
        np.random.seed(5)
        return [[np.array(a.asnumpy() if isinstance(a, nd.NDArray) else a) for a in pair]
                for pair in iterable]

    whole = drawn(batches)
    counts = [[] for _ in range(number)]
    parts = []
    for rank in range(number):
        team = Workers(types.SimpleNamespace(rank=rank, num_workers=number))
        parts.append(drawn((counts[rank].append(team.counts(pair[0])), pair)[1]
                           for pair in team.part(batches)))
    assert all(len(part) == len(whole) for part in parts)  # or some would wait for ever
    for k, (X, y) in enumerate(whole):
        mine = [counts[rank][k][1] for rank in range(number)]
        assert sum(mine) == len(X) and max(mine) - min(mine) <= 1
        assert {counts[rank][k][0] for rank in range(number)} == {len(X)}
        for i, expected in enumerate((X, y)):
            got = np.concatenate([parts[rank][k][i][:mine[rank]] for rank in range(number)])
            np.testing.assert_array_equal(got, expected)
    assert counts[number - 1][-1] == (1, 0)  # the last batch has one image


def test_alone_nothing_is_split():
    pairs = [(1, 2), 'x']
    assert Team().part(pairs) is pairs and Team().counts([7, 8, 9]) == (3, 3)


@pytest.mark.parametrize('arguments, message', [
    ([], 'required: -n'), (['-n', '2'], 'the command is missing'),
    (['-n', '0', 'x'], 'at least 1 worker'), (['-n', '2', '--launcher', 'ssh', 'x'], '--hostfile'),
    (['-n', '2', '--address', 'here', 'x'], '--address must be an IP address'),
    (['-n', '2', 'sh', '-c', 'a b'], 'put the command into a script')])
def test_wrong_options_of_the_launcher(arguments, message, capsys):
    with pytest.raises(SystemExit) as exit_:
        distributed.main(arguments)
    assert exit_.value.code == 2 and message in capsys.readouterr().err
