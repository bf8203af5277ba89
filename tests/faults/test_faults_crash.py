"""Training that is killed, stopped or out of disk space goes on as if nothing had happened."""
import contextlib
import io
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import ROOT, full_disk

import d2l_ext
from d2l_ext import __main__ as command_line
from d2l_ext.devices import mx
from d2l_ext.storage import files
from d2l_ext.storage.checkpoints import read_history

nn, CPU = mx.gluon.nn, mx.cpu()


def names(folder):
    return sorted(path.name for path in folder.iterdir())


# --- a run of ten batches an epoch, and what may happen to it ---

class Batches:
    """The batches of an iterator; `happen` is called with the number of each, over all epochs."""

    def __init__(self, batches, happen):
        self.batches, self.happen, self.number = batches, happen, 0

    def __len__(self):
        return len(self.batches)

    def __iter__(self):
        for batch in self.batches:
            self.number += 1
            self.happen(self.number)
            yield batch


def run(path, num_epochs, happen=lambda number: None):
    """Train on the digits, going on from `path`; return parameters and history but its times."""
    train_iter, test_iter = d2l_ext.load_data_digits(20, ctx=CPU)
    net = nn.HybridSequential()
    net.add(nn.Conv2D(8, 3, padding=1, activation='relu'), nn.BatchNorm(), nn.MaxPool2D(2, 2),
            nn.Dropout(0.3), nn.Conv2D(10, 3), nn.GlobalAvgPool2D(), nn.Flatten())
    mx.random.seed(0)
    net.initialize(mx.init.Xavier(), ctx=CPU)
    trainer = mx.gluon.Trainer(net.collect_params(), 'sgd', {'learning_rate': 0.02,
                                                             'momentum': 0.9})
    history = d2l_ext.train_ch5(
        net, Batches(train_iter.take(200), happen), test_iter.take(40), 20, trainer, CPU,
        num_epochs, precision='float32', checkpoint=path, resume=True, seed=0)
    return ({name: param.data().asnumpy()
             for name, param in net._collect_params_with_prefix().items()},
            [{**row, 'seconds': None} for row in history])


def assert_same(run_, other):
    (params, history), (other_params, other_history) = run_, other
    assert history == other_history and params.keys() == other_params.keys()
    for name, param in params.items():
        assert param.tobytes() == other_params[name].tobytes(), name


# --- killed ---

MOMENTS = ('replaced', 'written', 'batch', 'outside', 'fsync', 'replace')


def kill(*args):
    os.kill(os.getpid(), signal.SIGKILL)


def run_until_killed(path, moment, number):
    """Train until this process is killed, by itself or, at the moment 'outside', by another."""
    def happen(batch):
        if moment == 'batch' and batch == number:
            kill()
        time.sleep(0.01 if moment == 'outside' else 0)

    class HalfWritten(io.FileIO):
        def write(self, content):
            super().write(content[:int(number % 1 * len(content))])
            kill()

    def replaced(*args, replace=os.replace):
        replace(*args)
        kill()

    if moment == 'written':
        files.open = HalfWritten
    elif moment == 'fsync':
        os.fsync = kill
    elif moment == 'replace':
        os.replace = kill
    elif moment == 'replaced':
        os.replace = replaced
    run(path, 10**6, happen)


CHILD = f'''
import sys
sys.path[:0] = [{str(ROOT / 'tests')!r}, {str(ROOT / 'tests' / 'faults')!r}]
from test_faults_crash import run_until_killed
run_until_killed(sys.argv[1], sys.argv[2], float(sys.argv[3]))
'''


@pytest.mark.skipif(os.name != 'posix', reason='needs SIGKILL')
@pytest.mark.parametrize('number', [4, pytest.param(50, marks=pytest.mark.heavy)])
def test_killed_at_random_moments(tmp_path, faults, number):
    random, path, epochs = np.random.RandomState(number), tmp_path / 'run' / 'kept.npz', 0
    for i in range(number):
        moment = MOMENTS[i % len(MOMENTS)]
        which = random.randint(1, 25) if moment == 'batch' else random.rand()
        process = subprocess.Popen(
            [sys.executable, '-c', CHILD, str(path), moment, str(which)], cwd=ROOT,
            stdout=subprocess.DEVNULL)
        if moment == 'outside':
            time.sleep(4 * which)  # the first half of it passes before training begins
            process.kill()
        faults.injected()
        assert process.wait(100) == -signal.SIGKILL
        if path.exists() or epochs:
            kept = len(read_history(path))
            assert kept >= epochs
            epochs = kept
    assert epochs
    assert_same(run(path, epochs + 1), run(tmp_path / 'whole.npz', epochs + 1))
    faults.survived(number)


# --- stopped ---

@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_stopped_within_a_step(tmp_path, faults, capsys, number):
    path, batches = tmp_path / 'kept.npz', []

    def happen(batch):
        batches.append(batch)
        if batch == 25:
            os.kill(os.getpid(), number)

    before = signal.signal(number, command_line.stop if number == signal.SIGTERM
                           else signal.default_int_handler)
    faults.injected()
    try:
        with pytest.raises(KeyboardInterrupt):
            run(path, 5, happen)
    finally:
        signal.signal(number, before)
    assert batches[-1] in (25, 26)
    assert (f'\nThe last whole epoch is in {path}.\nTrain again with resume=True'
            in capsys.readouterr().out)
    assert len(read_history(path)) == 2 and names(tmp_path) == ['kept.npz']
    assert_same(run(path, 3), run(tmp_path / 'whole.npz', 3))
    faults.survived()


def test_stopped_before_there_is_anything_to_go_on_from(tmp_path, capsys):
    def happen(batch):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / 'kept.npz', 5, happen)
    assert 'resume' not in capsys.readouterr().out and names(tmp_path) == []


@pytest.mark.skipif(os.name != 'posix', reason='needs the signals of POSIX')
@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_stopped_on_the_command_line(tmp_path, faults, number):
    path = tmp_path / 'kept.npz'
    process = subprocess.Popen(
        [sys.executable, '-m', 'd2l_ext', '--dataset', 'digits', '--images', '60', '--resize',
         '67', '--epochs', '1000', '--checkpoint', str(path)], cwd=ROOT,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    lines = []
    for line in process.stdout:
        lines.append(line)
        if re.match(r' +2 ', line):
            break
    faults.injected()
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert out.endswith(f'\nThe last whole epoch is in {path}.\nTrain again with resume=True '
                        '(--resume on the command line) to go on from there.\n\nstopped\n')
    assert 'Traceback' not in err and names(tmp_path) == ['kept.npz']
    rows = re.findall(r'^ +\d+ +\d+\.\d{4} ', ''.join(lines) + out, re.M)
    assert 2 <= len(rows) <= len(read_history(path)) <= len(rows) + 1
    faults.survived()


# --- out of disk space ---

def test_a_full_disk_ends_training_with_the_last_checkpoint_whole(tmp_path, faults, capsys):
    path = tmp_path / 'run' / 'kept.npz'
    run(path, 2)
    content = path.read_bytes()
    faults.injected()
    with full_disk(room=len(content) // 2), pytest.raises(
            OSError, match=f"too large: '{re.escape(str(path))}'"):
        run(path, 4)
    assert path.read_bytes() == content and names(path.parent) == ['kept.npz']
    assert f'The last whole epoch is in {path}.\nTrain again' in capsys.readouterr().out
    assert_same(run(path, 4), run(tmp_path / 'whole.npz', 4))
    faults.survived()


def test_a_full_disk_on_the_command_line(tmp_path, faults, capsys):
    path = tmp_path / 'kept.npz'
    faults.injected()
    with full_disk(room=5000):
        status = command_line.main(['--dataset', 'digits', '--images', '20', '--resize', '67',
                                    '--epochs', '1', '--checkpoint', str(path)])
    assert status == 1 and names(tmp_path) == []
    assert re.fullmatch(rf"error: .*too large: '{path}'\n", capsys.readouterr().err)
    faults.survived()


def test_a_full_disk_keeps_the_old_parameters(tmp_path, faults):
    net = d2l_ext.nin_block(64, 3, 1, 1)
    net.initialize(ctx=CPU)
    net(mx.nd.ones((1, 64, 8, 8), ctx=CPU))
    path = tmp_path / 'net.npz'
    d2l_ext.save_params(net, path, dtype='float16')
    content = path.read_bytes()
    faults.injected()
    with full_disk(room=5000), pytest.raises(OSError, match='too large'):
        d2l_ext.save_params(net, path)
    assert path.read_bytes() == content and names(tmp_path) == ['net.npz']
    faults.survived()


def test_a_full_disk_loses_no_recorded_run(isolated, faults):
    config, ran = {'dataset': 'Fashion-MNIST'}, []
    row = {'epoch': 1, 'loss': 1.0, 'train_acc': 0.5, 'test_acc': 0.5, 'seconds': 2.0}

    def experiment(config, seed, variant):
        if seed and not ran[1:]:
            disk.enter_context(full_disk(room=100))
        ran.append(seed)
        return [row]

    faults.injected()
    with contextlib.ExitStack() as disk, pytest.raises(OSError, match='too large: .*partial.json'):
        d2l_ext.recorded('tiny', experiment, config, seeds=(0, 1))
    assert ran == [0, 1]
    folder = isolated / 'cache' / 'records'
    assert len(names(folder)) == 1 and names(folder)[0].endswith('.partial.json')
    record = d2l_ext.recorded('tiny', experiment, config, seeds=(0, 1))
    assert ran == [0, 1, 1] and [run['seed'] for run in record['runs']] == [0, 1]
    assert d2l_ext.load_record(folder / names(folder)[0]) == record and len(names(folder)) == 1
    faults.survived()
