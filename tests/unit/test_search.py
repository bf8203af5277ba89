"""The search: what it proposes, prunes and keeps, and that processes share it."""
import collections
import json
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import optuna
import pytest

import d2l_ext
from d2l_ext import data
from d2l_ext.batches import Batches
from d2l_ext.devices import mx
from d2l_ext.studies import search
from d2l_ext.studies.initialization import INITS
from d2l_ext.studies.search import make_trainer, trial_table, tune

nn = mx.gluon.nn
CPU = mx.cpu()
TINY = ('--dataset', 'digits', '--images', '60', '--val', '20', '--resize', '67', '--epochs', '1')


def digits(number=240):
    return d2l_ext.load_data_digits(32, ctx=CPU)[0].take(number)


def small_net():
    net = nn.HybridSequential()
    net.add(nn.Dense(32, activation='relu'), nn.Dense(10))
    return net


def dead_net():
    net = nn.HybridSequential()
    net.add(nn.Dense(10, activation='relu', bias_initializer=mx.init.Constant(-1e3)))
    return net


def run(storage, num_trials=5, num_epochs=2, train_iter=None, **arguments):
    return tune('test', digits() if train_iter is None else train_iter, 60, num_epochs,
                storage=storage, num_trials=num_trials,
                **{'make_net': small_net, 'precision': 'float32', **arguments})


def lrs(*values):
    """Return a function that suggests these learning rates, one a trial."""
    return lambda trial: {'lr': values[trial.number], 'init': 'he'}


def without_seconds(study):
    return [{key: value for key, value in row.items() if key != 'seconds'}
            for row in trial_table(study)]


# --- settings to trainer ---

def rates(settings, num_updates):
    """Return the learning rate of every update, as the optimizer uses it."""
    net = nn.Dense(1, in_units=1, use_bias=False)
    trainer = make_trainer(net, settings, num_updates, CPU)
    seen = []
    for _ in range(num_updates):
        with mx.autograd.record():
            loss = net(mx.nd.ones((1, 1))).sum()
        loss.backward()
        before = net.weight.data().asscalar()
        trainer.step(1)  # the gradient is 1
        seen.append(before - net.weight.data().asscalar())
    return seen


def test_constant_rate():
    assert rates({'lr': 0.25}, 4) == pytest.approx([0.25] * 4, abs=1e-6)


def test_warmup_then_constant():
    assert rates({'lr': 0.4, 'warmup': 0.4}, 10) == pytest.approx(
        [0.1, 0.2, 0.3] + [0.4] * 7, abs=1e-6)


def test_warmup_then_cosine():
    falling = [0.2 * (1 + np.cos(np.pi * i / 6)) for i in range(7)]
    assert rates({'lr': 0.4, 'warmup': 0.4, 'schedule': 'cosine'}, 10) == pytest.approx(
        [0.1, 0.2, 0.3, *falling], abs=1e-6)


def test_settings_reach_optimizer_and_net():
    net = nn.Dense(500, in_units=1000)
    deviations = {}
    for init in INITS:
        trainer = make_trainer(net, {'lr': 0.1, 'momentum': 0.7, 'wd': 0.03, 'init': init,
                                     'batch_size': 8}, 5, CPU)
        assert (trainer.optimizer.momentum, trainer.optimizer.wd) == (0.7, 0.03)
        deviations[init] = float(np.std(net.weight.data().asnumpy()))
    # He: variance 4 / (in + out). MXNet's default is the mean of both. Xavier: 2 / (in + out).
    assert deviations['he'] == pytest.approx((4 / 1500)**0.5, rel=0.05)
    assert deviations['xavier'] == pytest.approx((2 / 1500)**0.5, rel=0.05)


def test_schedule_goes_on_after_resume(tmp_path):
    settings = {'lr': 0.1, 'momentum': 0.9, 'schedule': 'cosine', 'warmup': 0.2}
    train = digits(64)

    def weights(*stops):
        checkpoint = tmp_path / f'{len(stops)}.npz'
        for num_epochs in stops:
            net = small_net()
            trainer = make_trainer(net, settings, 4 * len(train), CPU)
            d2l_ext.train_ch5(net, train, train, 32, trainer, CPU, num_epochs, seed=1,
                              precision='float32', checkpoint=checkpoint, resume=True)
        return net[0].weight.data().asnumpy()

    assert np.array_equal(weights(4), weights(2, 4))


def test_a_setting_of_another_name():
    with pytest.raises(ValueError, match='not momentun'):
        make_trainer(small_net(), {'lr': 0.1, 'momentun': 0.9}, 5, CPU)


# --- one process ---

def test_resumed_study_equals_uninterrupted_one(tmp_path, capsys):
    whole = run(tmp_path / 'whole.journal', num_trials=12)
    rows = trial_table(whole)
    assert [row['number'] for row in rows] == list(range(12))
    assert len({row['lr'] for row in rows}) == 12
    assert {row['state'] for row in rows} <= {'complete', 'pruned'}
    assert whole.best_value == max(row['val_acc'] for row in rows if row['state'] == 'complete')
    assert whole.best_value > 0.3  # it has learned; by chance it would be 0.1
    lines = capsys.readouterr()
    assert [line.split(':')[0] for line in lines.out.splitlines()] == [
        f'trial {i}' for i in range(12)]
    assert lines.err == ''

    run(tmp_path / 'parts.journal', num_trials=4)
    parts = run(tmp_path / 'parts.journal', num_trials=12)
    assert without_seconds(parts) == without_seconds(whole)
    run(tmp_path / 'parts.journal', num_trials=12)
    assert len(parts.trials) == 12  # there was nothing left to do


def test_table_is_plain_data(tmp_path):
    study = run(tmp_path / 'journal', num_trials=2)
    rows = trial_table(study)
    assert json.loads(json.dumps(rows)) == rows
    for row, trial in zip(rows, study.trials):
        assert row['state'] == 'complete' and row['reason'] is None and row['seconds'] > 0
        assert row['val_acc'] == row['val_accs'][-1] == trial.value and len(row['val_accs']) == 2
        settings = {key: row[key] for key in search.KEYS}
        assert settings == trial.user_attrs['settings'] == trial.params


def test_judged_on_held_out_images(tmp_path, monkeypatch):
    seen = []

    def spy(net, train_iter, val_iter, *args, **kwargs):
        seen.append([collections.Counter(image.tobytes() for image in batches.images)
                     for batches in (train_iter, val_iter)])
        return d2l_ext.train_ch5(net, train_iter, val_iter, *args, **kwargs)

    monkeypatch.setattr(search, 'train_ch5', spy)
    run(tmp_path / 'journal', num_trials=2)
    whole = collections.Counter(image.tobytes() for image in digits().images)
    for train, val in seen:
        assert sum(val.values()) == 60 and train + val == whole
    assert len(seen) == 2 and seen[0] == seen[1]


def test_bad_trial_is_pruned(tmp_path, capsys):
    study = run(tmp_path / 'journal', 6, 3, suggest=lrs(*[0.1] * 5, 1e-9))
    *good, bad = trial_table(study)
    assert [row['state'] for row in good] == ['complete'] * 5
    assert bad['state'] == 'pruned' and len(bad['val_accs']) == 2  # of three
    assert bad['reason'] == 'below the median after epoch 2'
    assert bad['val_acc'] < min(row['val_acc'] for row in good)
    assert 'trial 5: below the median after epoch 2 (lr 1e-09, init he)' in capsys.readouterr().out


def test_diverged_trial_is_kept_with_its_reason(tmp_path):
    bad, good = trial_table(run(tmp_path / 'journal', 2, suggest=lrs(1e30, 0.1)))
    assert bad['state'] == 'pruned' and bad['val_acc'] is None and bad['val_accs'] == []
    assert 'the loss became' in bad['reason'] or 'NaN' in bad['reason']
    assert good['state'] == 'complete'


def test_dead_start_is_pruned(tmp_path, capsys):
    row, = trial_table(run(tmp_path / 'journal', 1, make_net=dead_net))
    assert row['state'] == 'pruned' and len(row['val_accs']) == 1
    assert row['reason'] == 'dead start: every logit is 0 after epoch 1'
    assert capsys.readouterr().out.count('\n') == 1  # and not train_ch5's own explanation


def test_pruned_before_it_had_settings(tmp_path, capsys):
    def suggest(trial):
        trial.suggest_float('lr', 0.1, 0.1)
        raise optuna.TrialPruned

    row, = trial_table(run(tmp_path / 'journal', 1, suggest=suggest))
    assert row['state'] == 'pruned' and row['lr'] == 0.1
    assert capsys.readouterr().out == 'trial 0: pruned (lr 0.1)\n'


def test_failed_trial_does_not_count(tmp_path):
    def interrupt(trial):
        if trial.number == 1:
            raise KeyboardInterrupt
        return {'lr': 0.1}

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / 'journal', 3, suggest=interrupt)
    study = run(tmp_path / 'journal', 3, suggest=interrupt)
    assert [row['state'] for row in trial_table(study)] == [
        'complete', 'fail', 'complete', 'complete']


def test_trial_of_a_killed_process_stays_visible(tmp_path):
    study = run(tmp_path / 'journal', 1)
    study.ask()  # and nobody will ever tell how it ended
    rows = trial_table(run(tmp_path / 'journal', 2))
    assert [row['state'] for row in rows] == ['complete', 'running', 'complete']
    assert rows[1]['seconds'] is None and rows[1]['val_acc'] is None


def test_timeout(tmp_path):
    study = run(tmp_path / 'journal', 5, timeout=1e-6)
    assert len(study.trials) <= 1
    assert study.user_attrs['setting']['num_epochs'] == 2


def test_default_storage_and_sqlite(isolated, monkeypatch):
    run(None, 1)
    assert (isolated / 'cache' / 'records' / 'test.journal').stat().st_size
    assert len(run(None, 2).trials) == 2
    monkeypatch.chdir(isolated)
    run('sqlite:///study.db', 1)
    assert (isolated / 'study.db').read_bytes()[:6] == b'SQLite'
    assert len(run('sqlite:///study.db', 2).trials) == 2


def test_study_of_another_setting_is_refused(tmp_path):
    run(tmp_path / 'journal', 1)
    before = (tmp_path / 'journal').read_bytes()
    for change, difference in (
            ({'num_epochs': 3}, 'num_epochs 2 there and 3 here'),
            ({'seed': 1}, 'seed 0 there and 1 here'),
            ({'make_net': dead_net}, 'net small_net there and dead_net here'),
            ({'train_iter': digits(200)}, 'images 240 there and 200 here')):
        with pytest.raises(ValueError, match=difference):
            run(tmp_path / 'journal', 2, **change)
    assert len(optuna.load_study(study_name='test', storage=search._open(
        tmp_path / 'journal')).trials) == 1
    assert (tmp_path / 'journal').read_bytes().startswith(before)


@pytest.mark.parametrize('arguments, message', [
    ({'make_net': d2l_ext.nin}, 'cannot take'),
    ({'suggest': lambda trial: {'lr': 0.1, 'batch_size': 0}}, 'batch_size must be'),
    ({'suggest': lambda trial: {'rate': 0.1}}, 'settings must be')])
def test_bad_arguments(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        run(tmp_path / 'journal', **arguments)


def test_bad_storage(tmp_path):
    (tmp_path / 'text').write_text('no journal\n\n')
    (tmp_path / 'binary').write_bytes(b'\xff\xfe\n\n')
    for name in ('text', 'binary'):
        with pytest.raises(ValueError, match='not a journal'):
            run(tmp_path / name)
    with pytest.raises(OSError):
        run(tmp_path)
    for url in (f'sqlite:///{tmp_path}/missing/study.db', 'nonsense://there'):
        with pytest.raises(ValueError, match='no database'):
            run(url)
    with pytest.raises(ValueError, match='storage must be'):
        run(5)


# --- several processes ---

def work(folder, me, other):
    """Take part in a study from a process of its own; note each trial that begins here."""
    def suggest(trial):
        with open(folder / me, 'a') as file:
            file.write(f'{trial.number}\n')
        deadline = time.time() + 60
        while not (folder / other).exists() and time.time() < deadline:
            time.sleep(0.01)  # nobody does all the work before the other has begun
        return search.suggest(trial)

    run(folder / 'shared.journal', 8, suggest=suggest)


def start(*arguments):
    return subprocess.Popen([sys.executable, *map(str, arguments)], stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, text=True)


def test_two_processes_share_a_study(tmp_path):
    workers = [start(__file__, tmp_path, me, other) for me, other in ('ab', 'ba')]
    for worker in workers:
        _, err = worker.communicate(timeout=120)
        assert worker.returncode == 0, err
    begun = [[int(line) for line in (tmp_path / name).read_text().split()] for name in 'ab']
    assert begun[0] and begun[1]  # both took part
    rows = trial_table(run(tmp_path / 'shared.journal', 8))
    assert len(rows) in (8, 9)  # the last two may have run side by side
    # Every trial was run once, by one of the two.
    assert sorted(begun[0] + begun[1]) == [row['number'] for row in rows] == list(range(len(rows)))
    assert {row['state'] for row in rows} <= {'complete', 'pruned'}
    assert len({row['lr'] for row in rows}) == len(rows)  # nobody proposed what the other did
    # The first trials do not depend on who runs them.
    alone = trial_table(run(tmp_path / 'alone.journal', 2))
    assert [row['val_accs'] for row in alone] == [row['val_accs'] for row in rows[:2]]


# --- the command line ---

class Untouchable(Batches):
    """A test set that nobody may look at."""

    def __iter__(self):
        raise AssertionError('the test set was used')

    def take(self, number):
        return self


def test_command_line(tmp_path, monkeypatch, capsys):
    train_iter, test_iter = d2l_ext.load_data_digits(32, ctx=CPU)
    test_iter.__class__ = Untouchable
    monkeypatch.setattr(data, 'load_data_digits', lambda *args, **kwargs: (train_iter, test_iter))
    train_iter.resize = 67
    command = ['--storage', str(tmp_path / 'journal'), '--trials', '1', *TINY]
    assert search.main(command) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "scikit-learn's digits: 40 images to train on, 20 held out, resized to 67x67" in lines
    assert lines[1].startswith('trial 0: ')
    assert search.main([*command, '--epochs', '2']) == 1
    assert 'num_epochs 1 there and 2 here' in capsys.readouterr().err
    assert search.main([*command, '--images', '1']) == 1
    assert '--images must be' in capsys.readouterr().err


def test_ctrl_c_keeps_the_study(tmp_path, capsys):
    command = ['--storage', tmp_path / 'journal', '--trials', '500', *TINY]
    process = start('-m', 'd2l_ext.search', *command)
    for line in process.stdout:
        if line.startswith('trial 1:'):
            break
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and 'the same command goes on' in out, err
    assert 'Traceback' not in err
    command[3] = '3'
    assert search.main([str(item) for item in command]) == 0
    out = capsys.readouterr().out
    assert 'trial 0' not in out and 'trial 1:' not in out and 'trials; the best' in out


if __name__ == '__main__':
    work(pathlib.Path(sys.argv[1]), *sys.argv[2:])
