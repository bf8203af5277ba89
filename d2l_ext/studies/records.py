"""Recorded runs: an experiment's results, kept with everything needed to make them again."""
import collections.abc
import datetime
import hashlib
import json
import os
import pathlib
import platform

import numpy as np
import pooch

from ..arguments import (
    check_choice,
    check_int,
    check_keys,
    check_pair,
    check_path,
    check_type,
    refusal,
)
from ..devices import mx, resolve_precision, try_gpu
from ..hardware.processor import processor
from ..hardware.threads import num_threads
from ..storage import fashion_mnist
from ..storage.checkpoints import load_params, save_params
from ..storage.files import atomic_write
from .cifar10 import CIFAR10_SHA1

_CHAPTERS = pathlib.Path(__file__).resolve().parents[2] / 'chapters'
_KEYS = {'name', 'config', 'dataset', 'seeds', 'variants', 'runs', 'environment', 'date', 'command'}
SPEED_KINDS = {'bfloat16': 'bfloat16 at full rate', 'bfloat16_half': 'bfloat16 at half rate',
               'avx2': 'AVX2 only'}
_RUN_KEYS = {'variant', 'seed', 'history', 'environment', 'date'}


def results_folder():
    """Return the folder of the committed records, ``chapters/results``.

    Returns
    -------
    pathlib.Path
    """
    return _CHAPTERS / 'results'


def speed_records(name='benchmarks'):
    """Return what ``python -m tests.benchmarks`` measured, by kind of processor.

    There are three kinds: with bfloat16 instructions at full rate, at half rate, and with AVX2
    only. Each has a folder of records in ``chapters/results/speed``.

    Parameters
    ----------
    name : str
        Of the record, such as ``'benchmarks_inference'``.

    Returns
    -------
    dict
        ``{kind: record}`` of those kinds that have the record, the fastest first; the kinds are
        keys of ``SPEED_KINDS``, which says them in words.

    Raises
    ------
    ValueError
        If no kind has a record of that name.
    """
    folder = results_folder() / 'speed'
    check_choice('name', name, sorted({path.stem for path in folder.glob('*/*.json')}))
    paths = {kind: folder / kind / f'{name}.json' for kind in SPEED_KINDS}
    return {kind: json.loads(path.read_text(encoding='utf-8'))
            for kind, path in paths.items() if path.exists()}


def cache_folder():
    """Return the folder of the records and checkpoints that a reader makes.

    Below the user's cache folder, or below the one that D2L_EXT_CACHE names.
    """
    own = os.environ.get('D2L_EXT_CACHE') or pooch.os_cache('d2l_ext')
    return check_path('D2L_EXT_CACHE', own) / 'records'


def _digest(value):
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]


def _check_name(name):
    if not isinstance(name, str) or not name or pathlib.Path(name).name != name:
        raise refusal('name', name, 'a string that can be the name of a file')


def _as_json(name, value):
    """Return `value` as a JSON file gives it back: lists for tuples."""
    try:
        return json.loads(json.dumps(value))
    except (TypeError, ValueError):
        raise refusal(name, value, 'what JSON can hold: dictionaries, lists, strings, numbers, '
                      'True, False and None') from None


def _check_run(seed, variant):
    check_type('variant', variant, str, 'a string')
    return check_int('seed', seed, 0, 2**32 - 1), variant


def checkpoint_path(name, config, seed, variant=''):
    """Return where a run of record `name` keeps its checkpoint, for ``train_ch5(checkpoint=)``.

    The path is the same whenever `name`, `config`, `seed` and `variant` are; a run with another
    configuration never meets it.

    Parameters
    ----------
    name : str
        Of the record.
    config : dict
        Everything that decides the results, as JSON can hold it.
    seed : int
        Of the run, from 0 to 2**32 - 1.
    variant : str
        Of the run.

    Returns
    -------
    pathlib.Path
        In the user's cache folder, or in the one that D2L_EXT_CACHE names.

    Raises
    ------
    ValueError
        If `name` cannot be that of a file, JSON cannot hold `config`, `seed` is out of range,
        or `variant` is no string.
    """
    _check_name(name)
    setting = [_as_json('config', config), *_check_run(seed, variant)]
    return cache_folder() / f'{name}-{_digest(setting)}.checkpoint.npz'


def environment(precision='auto'):
    """Return what a record says of the machine, and what `precision` means on it."""
    ctx = try_gpu()
    return {'python': platform.python_version(), 'mxnet': mx.__version__,
            'numpy': np.__version__, 'platform': f'{platform.system()} {platform.machine()}',
            'processor': processor(), 'threads': num_threads(), 'device': str(ctx),
            'precision': resolve_precision(precision, ctx)}


def dataset_facts(name, num_images=None):
    """Return what a record says of a data set of real images: name, sizes, checksums.

    `num_images`, training and test images at hand, is for copies that are not the published ones.
    Of these the checksums are left out, and the published sizes are told.
    """
    published = {'Fashion-MNIST': ((60000, 10000), {'md5': fashion_mnist.MD5}),
                 'CIFAR-10': ((50000, 10000), {'sha1': CIFAR10_SHA1})}
    if not isinstance(name, str) or name not in published:
        raise ValueError(f"records are made on {' or '.join(map(repr, published))} only, "
                         f'not on {name!r}')
    sizes, facts = published[name]
    if num_images is not None and check_pair('num_images', num_images, 1) != sizes:
        sizes, facts = num_images, {'published_images': list(sizes)}
    return {'name': name, 'train_images': sizes[0], 'test_images': sizes[1], **facts}


def load_record(path):
    """Return the record in a JSON file.

    Parameters
    ----------
    path : str or path
        File to read.

    Returns
    -------
    dict
        As :func:`recorded` returns it.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is not a record.
    """
    path = check_path('path', path)
    try:
        record = json.loads(path.read_text(encoding='utf-8'))
    except (ValueError, RecursionError) as error:  # bad UTF-8 and bad JSON are ValueErrors
        raise ValueError(f'{path} is not a record: {error}') from None
    if not isinstance(record, dict) or not record.keys() >= _KEYS:
        raise ValueError(f'{path} is not a record: it needs the keys {", ".join(sorted(_KEYS))}')
    if not isinstance(record['runs'], list) or not all(map(_is_run, record['runs'])):
        raise ValueError(f'{path} is not a record: each of its runs needs the keys '
                         f'{", ".join(sorted(_RUN_KEYS))}, as recorded() writes them')
    return record


def _is_run(run):
    return (isinstance(run, dict) and run.keys() >= _RUN_KEYS and isinstance(run['variant'], str)
            and isinstance(run['seed'], int) and isinstance(run['history'], list)
            and all(isinstance(row, dict) for row in run['history'])
            and isinstance(run.get('weights', ''), str))


def _write_json(path, content):
    with atomic_write(path) as file:
        file.write((json.dumps(content, indent=1) + '\n').encode())


def _runs(path, config):
    """Return the runs in the record at `path` by (variant, seed), if it is of `config`."""
    try:
        record = load_record(path)
    except FileNotFoundError:
        return {}
    if record['config'] != config:
        return {}
    return {(run['variant'], run['seed']): run for run in record['runs']}


def _run(function, config, seed, variant, path):
    """Run an experiment once and return its part of the record at `path`; weights go beside it."""
    result = function(config, seed, variant)
    if not isinstance(result, dict):
        result = {'history': result}
    rows = check_keys('the result of function', result, ('history',))['history']
    if not isinstance(rows, list) or not rows:
        raise refusal('the history that function returns', rows, 'a list of rows, at least one')
    for row in rows:
        check_keys('each row of the history that function returns', row, ('seconds',))
    net = result.pop('net', None)
    if net is not None:
        result['weights'] = f'{path.stem}-seed{seed}{variant and "-" + variant}.npz'
        save_params(net, path.parent / result['weights'], dtype='float16')
    return {'variant': variant, 'seed': seed, **result,
            'seconds': sum(row['seconds'] for row in rows),
            'environment': environment(config.get('precision', 'auto')),
            'date': datetime.datetime.now(datetime.timezone.utc).date().isoformat()}


def _command(name):
    """Return the command that makes record `name` again; the name begins with its notebook's."""
    notebooks = [path.stem for path in _CHAPTERS.glob('*.ipynb') if name.startswith(path.stem)]
    notebook = max(notebooks, key=len, default='NOTEBOOK')
    return f'D2L_EXT_RERUN={name} jupyter execute chapters/{notebook}.ipynb'


def recorded(name, function, config, seeds=(0,), variants=('',)):
    """Return a record of an experiment: from its file if there is one, else by running it.

    If ``chapters/results/<name>.json`` was made with an equal `config` and has all `seeds` and
    `variants`, it is returned at once. With D2L_EXT_RERUN=1, or with D2L_EXT_RERUN=<name>, in the
    environment the experiment runs and its record is written there; what was cut off goes on
    after the last whole run, and a record that only lacks some seeds or variants gains those.
    Otherwise (a reader changed the configuration) the experiment runs and its record goes to
    :func:`cache_folder`, where it is found the next time.

    Parameters
    ----------
    name : str
        Of the record; begins with the name of its notebook.
    function : callable
        ``function(config, seed, variant)`` trains once and returns a history, or a dictionary
        with a history under `history`, more results that JSON can hold, and under `net` a
        network whose parameters shall stay beside the record (4 MB, for one run at most).
    config : dict
        Everything that decides the results, as JSON can hold it. ``config['dataset']`` is the
        data set, one of real images; ``config['num_images']``, a pair, tells how many training
        and test images there are if not the published ones; ``config['precision']`` is 'auto' if
        it is not there.
    seeds : sequence of int
    variants : sequence of str

    Returns
    -------
    dict
        With the keys name, config, dataset, seeds, variants, runs, environment, date, command.
        Each of `runs` has variant, seed, history, seconds, environment, date and the extras.

    Raises
    ------
    ValueError
        If the file is not a record or `config` names no data set of real images.
    """
    _check_name(name)
    check_type('function', function, collections.abc.Callable, 'function(config, seed, variant)')
    config = _as_json('config', check_type('config', config, dict, 'a dictionary'))
    for argument, values in (('seeds', seeds), ('variants', variants)):
        if isinstance(values, str) or not isinstance(values, collections.abc.Sequence) \
                or not values:
            raise refusal(argument, values, 'a sequence with at least one item')
    wanted = [_check_run(seed, variant)[::-1] for variant in variants for seed in seeds]
    committed = results_folder() / f'{name}.json'
    own = cache_folder() / f'{name}-{_digest(config)}.json'
    rerun = os.environ.get('D2L_EXT_RERUN', '') in ('1', name)
    if not rerun:
        for path in (committed, own):
            runs = _runs(path, config)
            if all(key in runs for key in wanted):
                return {**load_record(path), 'seeds': list(seeds), 'variants': list(variants),
                        'runs': [runs[key] for key in wanted]}
    path = committed if rerun else own
    dataset = dataset_facts(config.get('dataset'), config.get('num_images'))
    partial = cache_folder() / f'{own.stem}{"" if rerun else ".own"}.partial.json'
    runs = _runs(committed, config)
    if not rerun:
        runs.update(_runs(own, config))
    elif all(key in runs for key in wanted):
        runs = {}  # a whole record is made anew, not patched
    runs.update(_runs(partial, config))

    def record():
        kept = [runs[key] for key in wanted if key in runs]
        return {'name': name, 'config': config, 'dataset': dataset, 'seeds': list(seeds),
                'variants': list(variants), 'runs': kept, 'environment': kept[-1]['environment'],
                'date': max(run['date'] for run in kept), 'command': _command(name)}

    for variant, seed in wanted:
        if (variant, seed) not in runs:
            print(f'{name}: running {variant or "the experiment"} with seed {seed}', flush=True)
            runs[variant, seed] = _run(function, config, seed, variant, path)
            _write_json(partial, record())
            checkpoint_path(name, config, seed, variant).unlink(missing_ok=True)
    _write_json(path, record())
    partial.unlink(missing_ok=True)
    return record()


def load_weights(net, record):
    """Set the parameters of `net` to those kept beside `record` and return the run they are from.

    Parameters
    ----------
    net : mxnet.gluon.Block
        With the same layers; need not be initialized.
    record : dict
        As :func:`recorded` or :func:`load_record` returns it.

    Returns
    -------
    dict
        The first of the record's runs that kept its parameters.

    Raises
    ------
    ValueError
        If none were kept, the file is damaged, or they belong to another network.
    FileNotFoundError
        If the file is gone.
    """
    for run in check_keys('record', record, ('name', 'runs'))['runs']:
        if 'weights' in run:
            paths = [folder / run['weights'] for folder in (results_folder(), cache_folder())]
            load_params(net, next((path for path in paths if path.exists()), paths[0]))
            return run
    raise ValueError(f"no weights were kept with the record {record['name']}")


def validation_history(history):
    """Return a history in which what ``train_ch5`` tested on is called what it was: held out.

    The key `test_acc` of every row becomes `val_acc`. For trainings whose second batches are
    held-out training images, which choose settings; the test set has no part in them.

    Parameters
    ----------
    history : list of dict
        As ``train_ch5`` returns it; it stays as it is.

    Returns
    -------
    list of dict

    Raises
    ------
    ValueError
        If it is no list of dictionaries that have `test_acc`.
    """
    if not isinstance(history, list):
        raise refusal('history', history, 'the list that train_ch5 returns')
    return [{**{key: row[key] for key in row if key != 'test_acc'}, 'val_acc': row['test_acc']}
            for row in (check_keys('each row of history', row, ('test_acc',)) for row in history)]


def final_values(record, key='test_acc'):
    """Return `key` in the last epoch of every run, by variant.

    Parameters
    ----------
    record : dict
        As :func:`recorded` or :func:`load_record` returns it.
    key : str
        Of a row of a history, such as ``'loss'``.

    Returns
    -------
    dict
        ``{variant: values}`` with a numpy.ndarray of shape (seeds,) each.

    Raises
    ------
    ValueError
        If `record` has no runs under `runs`, or a last epoch no `key`.
    """
    values = {}
    for run in check_keys('record', record, ('runs',))['runs']:
        last = run['history'][-1]
        if key not in last:
            raise refusal('key', key, f'one of {", ".join(last)}')
        values.setdefault(run['variant'], []).append(last[key])
    return {variant: np.array(list_) for variant, list_ in values.items()}
