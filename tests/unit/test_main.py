"""The command line: python -m d2l_ext."""
import os
import re

import pytest

from d2l_ext import __main__ as command_line
from d2l_ext.devices import mx
from d2l_ext.storage import fashion_mnist
from d2l_ext.storage.checkpoints import read_history
from d2l_ext.studies import search

SMALL = ['--dataset', 'digits', '--images', '60', '--resize', '67', '--epochs', '2']


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv('D2L_EXT_CACHE', str(tmp_path / 'cache'))


def test_prints_the_setting_and_the_table(capsys):
    assert command_line.main(SMALL) == 0
    out = capsys.readouterr().out
    for expected in ('device     cpu(0)', 'threads', 'precision', '60 training and 12 test images',
                     'resized to 67x67', 'reduced setting', '--full', 'time       about'):
        assert expected in out
    rows = [line.split() for line in out.splitlines() if re.match(r'\s+\d  ', line)]
    assert [row[0] for row in rows] == ['1', '2']
    assert [len(row) for row in rows] == [5, 5] and ' book ' not in out
    assert out.endswith('(type: jupyter lab chapters).\n')
    assert f'classifies {float(rows[-1][3]):.0%} of 12 test images right' in out


def test_the_books_columns_stand_beside_the_books_setting_only(capsys):
    row = {'epoch': 2, 'loss': 1.5, 'train_acc': .4, 'test_acc': .5, 'seconds': 9}
    command_line.print_rows([{**row, 'epoch': 1}, row, {**row, 'epoch': 6}], beside_book=True)
    lines = capsys.readouterr().out.splitlines()
    assert len(set(map(len, lines))) == 1
    assert lines[0].split().count('book') == 3
    assert lines[2].split() == ['2', '1.5000', '1.6522', '0.400', '0.381', '0.500', '0.578', '9.0']
    assert lines[3].split() == ['6', '1.5000', '0.400', '0.500', '9.0']
    small = [*SMALL, '--full', '--batch-size', '20', '--epochs', '1']
    assert command_line.main(small) == 0  # the digits' numbers compare with none of the book
    assert ' book ' not in capsys.readouterr().out


@pytest.mark.parametrize('dataset, seed, epochs, least', [
    ('digits', 0, 2, .8),
    *(pytest.param('digits', seed, 5, .9, marks=pytest.mark.heavy) for seed in range(10)),
    *(pytest.param('fashion-mnist', seed, 5, .75, marks=pytest.mark.heavy) for seed in range(5))])
def test_a_first_run_learns(dataset, seed, epochs, least, tmp_path):
    if dataset == 'fashion-mnist' and 'D2L_EXT_DATA' not in os.environ:
        pytest.skip('needs D2L_EXT_DATA, the folder of fashion-mnist/')
    path = str(tmp_path / 'run.npz')
    assert command_line.main(['--dataset', dataset, '--seed', str(seed), '--epochs', str(epochs),
                              '--checkpoint', path]) == 0
    assert read_history(path)[-1]['test_acc'] >= least


def test_books_own_five_epochs():
    assert command_line.BOOK == (
        (2.2627, .154, .362), (1.6522, .381, .578), (1.8721, .296, .360), (1.3249, .481, .529),
        (1.1868, .532, .544))


def test_full_is_the_books_setting():
    args = command_line.parse_args(['--full'])
    assert (args.images, args.resize, args.batch_size, args.optimizer, args.lr, args.init,
            args.epochs, args.precision) == (None, 224, 128, 'sgd', 0.1, 'xavier', 5, 'auto')


def test_options_win_over_the_setting():
    args = command_line.parse_args(['--full', '--lr', '0.02', '--init', 'he'])
    assert (args.lr, args.init, args.resize) == (0.02, 'he', 224)


def test_a_seed_repeats_a_run_and_resume_goes_on(capsys, monkeypatch):
    def losses():
        return re.findall(r'^ +\d +(\d\.\d{4})', capsys.readouterr().out, re.M)

    command_line.main([*SMALL, '--epochs', '3'])
    whole = losses()
    command_line.main([*SMALL, '--epochs', '1'])
    assert losses() == whole[:1]
    command_line.main([*SMALL, '--epochs', '3', '--resume'])
    assert losses() == whole  # the kept rows are printed again
    command_line.main([*SMALL, '--seed', '1'])
    assert losses() != whole[:2]
    monkeypatch.setattr(command_line, 'estimate_seconds', None)  # nothing is left to estimate
    assert command_line.main([*SMALL, '--seed', '1', '--resume']) == 0


@pytest.mark.parametrize('arguments, message', [
    (['--resize', '66'], 'cannot take the shape'), (['--batch-size', '0'], 'batch_size'),
    (['--epochs', '-1'], 'num_epochs'), (['--seed', '-1'], 'seed'),
])
def test_wrong_values_end_with_one_line(arguments, message, capsys):
    assert command_line.main([*SMALL, *arguments]) == 1
    err = capsys.readouterr().err
    assert err.startswith('error: ') and message in err and 'Traceback' not in err


def test_a_missing_gpu_ends_with_one_line(monkeypatch, capsys):
    monkeypatch.setenv('D2L_EXT_DEVICE', 'gpu')
    monkeypatch.setattr(mx.runtime.Features, 'is_enabled', lambda self, name: name != 'CUDA')
    for main in (command_line.main, search.main):
        assert main(SMALL) == 1
        assert capsys.readouterr().err.startswith('error: D2L_EXT_DEVICE=gpu, but ')


@pytest.mark.parametrize('arguments', [['--lr', '0'], ['--lr', 'nan'], ['--images', '0'],
                                       ['--init', 'zero'], ['--diag'],
                                       ['--dataset', 'mnist'], ['--epochs', 'x']])
def test_wrong_options_show_the_usage(arguments, capsys):
    with pytest.raises(SystemExit) as exit_:
        command_line.main(arguments)
    assert exit_.value.code == 2
    assert re.search(f'error: .*{arguments[0]}', capsys.readouterr().err)


def test_falls_back_to_the_digits_and_says_so(capsys, monkeypatch):
    def nowhere():
        raise OSError('Fashion-MNIST is not on this machine:\nfailures')
    monkeypatch.setattr(fashion_mnist, 'find', nowhere)
    assert command_line.main([*SMALL[2:], '--epochs', '1']) == 0
    out = capsys.readouterr().out
    assert "Fashion-MNIST is not on this machine. Going on with the small embedded set" in out
    assert "data       scikit-learn's digits" in out


def test_help_is_for_beginners(capsys):
    with pytest.raises(SystemExit):
        command_line.main(['--help'])
    out = ' '.join(capsys.readouterr().out.split())
    assert 'Examples' in out and 'learning rate' in out and 'default' in out
