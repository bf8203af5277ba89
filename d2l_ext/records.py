"""Recorded runs: an experiment's results, kept with everything needed to make them again."""
import datetime
import hashlib
import json
import os
import pathlib
import platform
import subprocess
import sys
import time

import numpy as np
import pooch

from .checkpoints import load_params
from .data import dataset_facts
from .devices import mx, num_threads, resolve_precision, try_gpu
from .files import atomic_write

_CHAPTERS = pathlib.Path(__file__).resolve().parent.parent / 'chapters'


def _results_folder():
    """Return the folder of the committed records."""
    return _CHAPTERS / 'results'


def _cache_folder():
    """Return the folder of the records and checkpoints that a reader makes."""
    return pathlib.Path(os.environ.get('D2L_EXT_CACHE') or pooch.os_cache('d2l_ext')) / 'records'


def _digest(config):
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:12]


def checkpoint_path(name, config, seed, variant=''):
    """Return where a run of record `name` keeps its checkpoint, for ``train_ch5(checkpoint=)``.

    The path is the same whenever `name`, `config`, `seed` and `variant` are; a run with another
    configuration never meets it.
    """
    return _cache_folder() / f'{name}-{_digest([config, seed, variant])}.checkpoint.npz'


def _processor():
    try:
        for line in pathlib.Path('/proc/cpuinfo').read_text().splitlines():
            if line.startswith('model name'):
                return line.split(':', 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def environment():
    """Return what a record says of versions, processor, threads, device and default precision."""
    ctx = try_gpu()
    return {'python': platform.python_version(), 'mxnet': mx.__version__,
            'numpy': np.__version__, 'platform': f'{platform.system()} {platform.machine()}',
            'processor': _processor(), 'threads': num_threads(), 'device': str(ctx),
            'precision': resolve_precision('auto', ctx)}


def load_record(path):
    """Return the record in a JSON file.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is not a record.
    """
    path = pathlib.Path(path)
    try:
        record = json.loads(path.read_text(encoding='utf-8'))
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f'{path} is not a record: {error}') from None
    keys = {'name', 'config', 'dataset', 'seeds', 'variants', 'runs', 'environment', 'date',
            'command'}
    if not isinstance(record, dict) or not keys <= record.keys():
        raise ValueError(f'{path} is not a record: it lacks some of {sorted(keys)}')
    return record


def _write(path, record):
    with atomic_write(path) as file:
        file.write((json.dumps(record, indent=1) + '\n').encode())


def _finished_runs(path, config):
    """Return the runs in the record at `path` if it was made with `config`, else none."""
    try:
        record = load_record(path)
    except FileNotFoundError:
        return []
    return record['runs'] if record['config'] == config else []


def recorded(name, function, config, seeds=(0,), variants=('',)):
    """Return a record of an experiment, from its file if there is one, else by running it.

    A committed record made with an equal `config` that has all `seeds` and `variants` is returned
    at once. With D2L_EXT_RERUN=1 in the environment the experiment runs again and its record
    replaces the committed one; a run that was cut off goes on where it stopped, and a record that
    lacks only some seeds or variants gains those. Otherwise (the configuration was changed) the
    experiment runs and its record goes to the reader's cache folder, which D2L_EXT_CACHE sets.

    Parameters
    ----------
    name : str
        Of the record; its file is ``chapters/results/<name>.json``.
    function : callable
        ``function(config, seed, variant)`` returns a history, or a dictionary with a history
        under `history` and more results that JSON can hold.
    config : dict
        Everything that decides the result, as JSON can hold it; `dataset` is its data set.
    seeds : sequence of int
    variants : sequence of str

    Returns
    -------
    dict
        With the keys name, config, dataset, seeds, variants, runs, environment, date, command.

    Raises
    ------
    ValueError
        If a file by that name is not a record, or `config` names no data set of real images.
    """
    config = json.loads(json.dumps(config))
    wanted = [(variant, seed) for variant in variants for seed in seeds]
    committed = _results_folder() / f'{name}.json'
    own = _cache_folder() / f'{name}-{_digest([config, list(seeds), list(variants)])}.json'
    rerun = os.environ.get('D2L_EXT_RERUN') == '1'
    known = {(run['variant'], run['seed']): run for run in _finished_runs(committed, config)}
    if not rerun and not known.keys() >= set(wanted):
        known = {(run['variant'], run['seed']): run for run in _finished_runs(own, config)}
    if known.keys() >= set(wanted) and not rerun:
        path = committed if _finished_runs(committed, config) else own
        record = load_record(path)
        record['runs'] = [known[key] for key in wanted]
        return record
    ...
