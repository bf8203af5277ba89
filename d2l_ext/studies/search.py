"""Which settings? A search that any number of processes can share: python -m d2l_ext.search.

Optuna (Akiba et al., *Optuna: A Next-generation Hyperparameter Optimization Framework*, 2019)
proposes the settings with its tree-structured Parzen estimator (Bergstra et al., *Algorithms for
Hyper-Parameter Optimization*, 2011). From the second epoch on, once five trials are complete, it
gives up a trial whose validation accuracy is below the median of these at the same epoch, which is
fast and a little unfair to schedules that shine at the end only. All trials are judged on training
images that were held out; the test set takes no part.
"""
import argparse
import contextlib
import copy
import io
import json
import os
import sys
import warnings

import numpy as np
import optuna
import sqlalchemy.exc
from optuna.trial import TrialState

from ..arguments import check_int, check_number, check_path, check_type, refusal
from ..batches import Batches
from ..checks.nets import check_input
from ..devices import mx, resolve_precision, try_gpu
from ..nets import nin
from ..training import train_ch5
from .commands import add_options, exit_status, load
from .records import cache_folder
from .schedules import KEYS, SCHEDULES, make_trainer

_FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)

optuna.logging.set_verbosity(optuna.logging.WARNING)  # a line a trial is ours


def suggest(trial):
    """Return the settings of an ``optuna.Trial``: the section's recipe and the usual cures."""
    return {
        'lr': trial.suggest_float('lr', 1e-3, 0.3, log=True),
        'momentum': trial.suggest_categorical('momentum', (0.0, 0.5, 0.9, 0.95)),
        'wd': trial.suggest_float('wd', 1e-6, 1e-2, log=True),
        'batch_size': trial.suggest_categorical('batch_size', (32, 64, 128, 256)),
        'init': trial.suggest_categorical('init', ('xavier', 'he')),
        'schedule': trial.suggest_categorical('schedule', SCHEDULES),
        'warmup': trial.suggest_categorical('warmup', (0.0, 0.1)),
    }


def _open(storage):
    """Return Optuna's storage at an address: a database URL or the path of a journal."""
    try:
        if '://' in str(storage):
            return optuna.storages.RDBStorage(str(storage))
        # For several processes on one file Optuna recommends its journal: every change is a line
        # appended under a lock, which holds on network file systems too, where those of SQLite
        # often do not. The lock is a file (NFSv3 and later), not Optuna's default, a link to the
        # journal: that leads nowhere on a machine that has mounted the folder under another path.
        path = check_path('storage', storage)
        path.parent.mkdir(parents=True, exist_ok=True)
        journal = optuna.storages.journal
        return optuna.storages.JournalStorage(journal.JournalFileBackend(
            str(path), lock_obj=journal.JournalFileOpenLock(str(path))))
    except sqlalchemy.exc.SQLAlchemyError as error:
        raise ValueError(f'no database at the storage address: {error}. Use a URL such as '
                         'sqlite:///folder/file.db, or the path of a journal file') from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f'{storage} is not a journal of Optuna ({error}). Name a new file, or '
                         'write sqlite:/// before the path of a SQLite database') from None


def _check_setting(study, setting):
    """Note what is the same for all trials of the study; raise if it has trials of another."""
    kept = study.user_attrs.get('setting', setting)
    differs = [f'{key} {kept.get(key)} there and {value} here'
               for key, value in setting.items() if kept.get(key) != value]
    if differs:
        raise ValueError(f'study {study.study_name} was made with another setting: '
                         f'{"; ".join(differs)}. Take another study_name or another storage')
    study.set_user_attr('setting', setting)


def _run_trial(trial, settings, train_iter, val_iter, num_epochs, make_net, seed, precision):
    """Train once, reporting to the pruner; return the validation accuracy of the last epoch."""
    train_iter, ctx = copy.copy(train_iter), train_iter.ctx
    train_iter.batch_size = check_int(
        'batch_size', settings.get('batch_size', train_iter.batch_size), 1)
    probe = next(iter(val_iter.take(min(32, len(val_iter.images)))))[0]

    def pruned(reason):
        trial.set_user_attr('reason', reason)
        return optuna.TrialPruned(reason)

    def report(row):
        trial.report(row['test_acc'], row['epoch'])  # here the held-out images are its test set
        if not net(probe).asnumpy().any():
            raise pruned(f'dead start: every logit is 0 after epoch {row["epoch"]}')
        if trial.should_prune():
            raise pruned(f'below the median after epoch {row["epoch"]}')

    mx.random.seed(seed)  # for parameters whose shapes are known before the first batch
    net = make_net()
    trainer = make_trainer(net, settings, num_epochs * len(train_iter), ctx)
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # it names the device in every trial
            history = train_ch5(net, train_iter, val_iter, train_iter.batch_size, trainer, ctx,
                                num_epochs, precision=precision, seed=seed, report=report)
    except FloatingPointError as error:
        # Pruned without any accuracy ranks last, so that the sampler learns from it; a trial
        # that failed it would pass over.
        raise pruned(str(error)) from None
    return history[-1]['test_acc']


def _print_trial(_, trial):
    outcome = trial.user_attrs.get('reason', trial.state.name.lower())
    if trial.state is TrialState.COMPLETE:
        outcome = f'val acc {trial.value:.3f}'
    settings = ', '.join(f'{key} {value:.2g}' if isinstance(value, float) else f'{key} {value}'
                         for key, value in trial.user_attrs.get('settings', trial.params).items())
    print(f'trial {trial.number}: {outcome} ({settings})', flush=True)


def tune(study_name, train_iter, num_val, num_epochs, *, storage=None, num_trials=40, timeout=None,
         make_net=nin, suggest=suggest, seed=0, precision='auto'):
    """Search for the settings with the highest accuracy on held-out training images.

    Call it with the same arguments again and it goes on; call it so in several processes, on one
    machine or more, and they share the work. Every trial is in the storage from its first moment,
    so that Ctrl-C loses none but the one under way. Prints a line a trial.

    Settings are proposed by Optuna's tree-structured Parzen estimator (Bergstra et al., *Algorithms
    for Hyper-Parameter Optimization*, 2011), and trials below the median are pruned.

    What a trial proposes depends on `seed`, its number and the trials before it. So no two
    processes propose the same, one process alone can be repeated, and with several the first ten
    trials, which are drawn at random, can be. Trial `n` trains from seed ``seed + n``: the best
    settings shall not owe their rank to one lucky initialization that all share.

    Parameters
    ----------
    study_name : str
        Of the study in its storage.
    train_iter : Batches
        Training images, on the device to train on. Their batch size holds if settings have none.
    num_val : int
        How many of them are held out to judge the trials.
    num_epochs : int
        Of each trial.
    storage : str or path, optional
        A database URL such as ``sqlite:///file.db`` or ``mysql://...``, or the path of a journal
        file, which is the right choice for one file that several processes share. By default
        ``<study_name>.journal`` in the reader's cache folder.
    num_trials : int
        Of the whole study, whoever runs them: completed and pruned ones. Each process ends the
        trial it is in, so that several may make a few more.
    timeout : float, optional
        Seconds from the call, after which no new trial starts here.
    make_net : callable
        Called without arguments, returns a net that maps images to logits.
    suggest : callable
        Called with an ``optuna.Trial``, returns its settings, of which `batch_size` goes to the
        batches and the rest to :func:`make_trainer`.
    seed : int
        At most ``2**31``.
    precision : {'auto', 'float32', 'bfloat16', 'float16'}
        In which the layers compute.

    Returns
    -------
    optuna.Study
        ``study.best_trial.user_attrs['settings']`` are the best settings. Diverged and dead trials
        count as pruned, with the reason in :func:`trial_table`; one that Ctrl-C or an error ended
        has failed and does not count.

    Raises
    ------
    ValueError
        If an argument is out of range, the images do not fit the net, the storage cannot be used,
        or the study was made with other data, epochs, net, seed or precision.
    OSError
        If the storage cannot be written.
    """
    check_type('study_name', study_name, str, 'a string')
    check_type('train_iter', train_iter, Batches, 'batches such as load_data() returns')
    if storage is None:
        storage = cache_folder() / f'{study_name}.journal'
    check_type('storage', storage, (str, os.PathLike), 'a database URL or the path of a journal')
    for name, function in (('make_net', make_net), ('suggest', suggest)):
        if not callable(function) or isinstance(function, mx.gluon.Block):
            raise refusal(name, function, 'a function')
    num_epochs = check_int('num_epochs', num_epochs, 1)
    num_trials = check_int('num_trials', num_trials, 1)
    seed = check_int('seed', seed, 0, 2**31)
    timeout = None if timeout is None else check_number('timeout', timeout, 0)
    resolve_precision(precision, train_iter.ctx)
    check_input(make_net(), next(iter(train_iter.take(1)))[0].shape)
    train, val = train_iter.hold_out(num_val)
    study = optuna.create_study(
        storage=_open(storage), study_name=study_name, load_if_exists=True, direction='maximize',
        # Not after the first epoch: good settings may still be at the loss ln 10 by then.
        pruner=optuna.pruners.MedianPruner(n_warmup_steps=2))
    _check_setting(study, {
        'data': train_iter.name, 'images': len(train_iter.images), 'resize': train_iter.resize,
        'flip': train_iter.flip, 'shift': train_iter.shift,
        'normalized': train_iter.normalize is not None, 'num_val': len(val.images),
        'num_epochs': num_epochs, 'net': getattr(make_net, '__name__', ''), 'seed': seed,
        'precision': precision})

    def objective(trial):
        state = np.random.SeedSequence((seed, trial.number)).generate_state(1)
        with warnings.catch_warnings():
            warnings.simplefilter('ignore', optuna.exceptions.ExperimentalWarning)
            # The liar keeps away from the settings that other processes are trying right now.
            study.sampler = optuna.samplers.TPESampler(seed=int(state[0]), constant_liar=True)
        settings = suggest(trial)
        trial.set_user_attr('settings', settings)
        return _run_trial(trial, settings, train, val, num_epochs, make_net, seed + trial.number,
                          precision)

    if len(study.get_trials(deepcopy=False, states=_FINISHED)) < num_trials:
        study.optimize(objective, timeout=timeout, gc_after_trial=True, callbacks=[
            _print_trial, optuna.study.MaxTrialsCallback(num_trials, _FINISHED)])
    return study


def trial_table(study):
    """Return the trials of a study as plain data, for a record or ``pandas.DataFrame``.

    Parameters
    ----------
    study : optuna.Study
        That :func:`tune` returned.

    Returns
    -------
    list of dict
        One a trial, by number: `number`; `state` ('complete', 'pruned', 'fail', 'running');
        `val_acc`, after its last epoch, a fraction, None if there was no epoch; the settings;
        `seconds`, None while it runs; `reason`, why it was pruned, or None; `val_accs`, after each
        epoch.

    Raises
    ------
    ValueError
        If `study` is none of Optuna's.
    """
    check_type('study', study, optuna.Study, 'a study that tune returned')
    return [{
        'number': trial.number, 'state': trial.state.name.lower(),
        'val_acc': trial.intermediate_values.get(trial.last_step),
        **trial.user_attrs.get('settings', trial.params),
        'seconds': None if trial.duration is None else round(trial.duration.total_seconds(), 2),
        'reason': trial.user_attrs.get('reason'),
        'val_accs': [value for _, value in sorted(trial.intermediate_values.items())],
    } for trial in study.get_trials(deepcopy=False)]


def parse_args(argv):
    parser = argparse.ArgumentParser(
        prog='python -m d2l_ext.search',
        description="Search for good settings of section 7.3's network at reduced scale. The same "
                    'command again goes on; started several times, on one machine or on several '
                    'that share a folder or a database, it shares the work.')
    parser.add_argument('--study', default='nin', metavar='NAME',
                        help='name of the study in its storage (default: nin)')
    parser.add_argument('--storage', metavar='ADDRESS',
                        help='path of a journal file, or a database URL such as '
                             "sqlite:///nin.db (default: a journal in the user's cache folder)")
    parser.add_argument('--trials', type=int, default=40,
                        help='end when the study has this many, of all processes (default: 40)')
    parser.add_argument('--timeout', type=float, default=2400, metavar='SECONDS',
                        help='start no new trial after this time (default: 2400)')
    parser.add_argument('--epochs', type=int, default=4, help='of each trial (default: 4)')
    parser.add_argument('--images', type=int, default=15000,
                        help='take this many of the training images (default: 15000)')
    parser.add_argument('--val', type=int, metavar='IMAGES',
                        help='hold out this many of them to judge the trials (default: a third)')
    parser.add_argument('--resize', type=int, default=96,
                        help='height and width of the images in pixels (default: 96)')
    parser.add_argument('--seed', type=int, default=0,
                        help='the same seed, by one process, repeats a study (default: 0)')
    add_options(parser)
    parser.set_defaults(batch_size=128)  # to load with; each trial has its own
    return parser.parse_args(argv)


def run(args):
    args.images = check_int('--images', args.images, 2)
    train_iter, _ = load(args, try_gpu())
    number = len(train_iter.images)
    num_val = number // 3 if args.val is None else args.val
    print(f'{train_iter.name}: {number - num_val:,} images to train on, {num_val:,} held out, '
          f'resized to {args.resize}x{args.resize}', flush=True)
    study = tune(args.study, train_iter, num_val, args.epochs, storage=args.storage,
                 num_trials=args.trials, timeout=args.timeout, seed=args.seed,
                 precision=args.precision)
    rows = trial_table(study)
    best = max((row for row in rows if row['state'] == 'complete'), default=None,
               key=lambda row: row['val_acc'])
    print(f'{len(rows)} trials; the best: {best and best["number"]}')
    if best is not None:
        print(f'  val acc {best["val_acc"]:.3f} with', {key: best[key] for key in KEYS})
    return 0


def main(argv=None):
    try:
        return exit_status(lambda: run(parse_args(argv)))
    except KeyboardInterrupt:
        print('\nstopped; the same command goes on')
        return 130


if __name__ == '__main__':
    sys.exit(main())
