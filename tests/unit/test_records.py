"""Recorded runs: what runs, what is read, and which file is written."""
import json

import numpy as np
import pytest

import d2l_ext
from d2l_ext.devices import mx
from d2l_ext.storage import fashion_mnist
from d2l_ext.studies import records

nn = mx.gluon.nn
NAME = '07_03_nin_tiny'
CONFIG = {'dataset': 'Fashion-MNIST', 'lr': 0.1, 'shape': (2, 3)}
RECORD_KEYS = {'name', 'config', 'dataset', 'seeds', 'variants', 'runs', 'environment', 'date',
               'command'}
RUN_KEYS = {'variant', 'seed', 'history', 'seconds', 'environment', 'date'}


@pytest.fixture(autouse=True)
def results(isolated, monkeypatch):
    """The folder of the committed records, empty, with three notebooks beside it."""
    chapters = isolated / 'chapters'
    (chapters / 'results').mkdir(parents=True)
    for name in ('07_03_nin', '07_03_nin_wide', '07_03_exercise_1_hyperparameters'):
        (chapters / f'{name}.ipynb').write_text('{}')
    monkeypatch.setattr(records, '_CHAPTERS', chapters)
    return chapters / 'results'


@pytest.fixture
def cache(isolated):
    return isolated / 'cache' / 'records'


class Experiment:
    """Counts its runs; raises KeyboardInterrupt in run number `cut_off`."""

    def __init__(self, cut_off=None, **extras):
        self.runs, self.cut_off, self.extras = [], cut_off, extras

    def __call__(self, config, seed, variant):
        if len(self.runs) == self.cut_off:
            raise KeyboardInterrupt
        self.runs.append((variant, seed))
        history = [{'epoch': epoch, 'loss': 1 / epoch, 'train_acc': 0.5,
                    'test_acc': seed / 10 + epoch / 100, 'seconds': 2.5} for epoch in (1, 2)]
        return {'history': history, **self.extras} if self.extras else history


def never(config, seed, variant):
    pytest.fail('this was recorded already')


def names(folder):
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def commit(monkeypatch, experiment=None, config=CONFIG, rerun='1', **arguments):
    """Run an experiment as for a committed record."""
    with monkeypatch.context() as patch:
        patch.setenv('D2L_EXT_RERUN', rerun)
        return d2l_ext.recorded(NAME, experiment or Experiment(), config, **arguments)


# --- what a record holds ---

def test_a_record(results, cache, monkeypatch, capsys):
    experiment = Experiment()
    record = commit(monkeypatch, experiment, seeds=(3, 4), variants=('a', 'b'))
    assert experiment.runs == [('a', 3), ('a', 4), ('b', 3), ('b', 4)]
    assert capsys.readouterr().out.splitlines() == [
        f'{NAME}: running {variant} with seed {seed}' for variant, seed in experiment.runs]
    assert record.keys() == RECORD_KEYS
    assert (record['name'], record['seeds'], record['variants']) == (NAME, [3, 4], ['a', 'b'])
    assert record['config'] == {**CONFIG, 'shape': [2, 3]}
    assert record['dataset'] == records.dataset_facts('Fashion-MNIST')
    assert [(run['variant'], run['seed']) for run in record['runs']] == experiment.runs
    for run in record['runs']:
        assert run.keys() == RUN_KEYS
        assert run['seconds'] == 5 and [row['epoch'] for row in run['history']] == [1, 2]
        assert run['environment'] == record['environment'] == records.environment()
        assert run['date'] == record['date'] and len(run['date'].split('-')) == 3
    assert names(results) == [f'{NAME}.json'] and names(cache) == []
    assert json.loads((results / f'{NAME}.json').read_text()) == record
    assert d2l_ext.load_record(results / f'{NAME}.json') == record


def test_dataset_facts():
    facts = records.dataset_facts('Fashion-MNIST')
    assert facts == {'name': 'Fashion-MNIST', 'train_images': 60000, 'test_images': 10000,
                     'md5': fashion_mnist.MD5}
    for name in ("scikit-learn's digits", 'digits', None):
        with pytest.raises(ValueError, match="records are made on 'Fashion-MNIST' or 'CIFAR-10'"):
            records.dataset_facts(name)
    # Of unofficial copies: how many images there are, and no sums, which do not apply.
    assert records.dataset_facts('CIFAR-10', [49833, 9966]) == {
        'name': 'CIFAR-10', 'train_images': 49833, 'test_images': 9966,
        'published_images': [50000, 10000]}
    facts = records.dataset_facts('CIFAR-10')
    assert (facts['train_images'], facts['test_images']) == (50000, 10000)
    assert facts['sha1'].keys() == {'test_batch.bin', *(f'data_batch_{i}.bin' for i in range(1, 6))}
    assert records.dataset_facts('CIFAR-10', [50000, 10000]) == facts


def test_environment():
    environment = records.environment()
    assert environment.keys() == {'python', 'mxnet', 'numpy', 'platform', 'processor', 'threads',
                                  'device', 'precision'}
    assert environment['mxnet'] == mx.__version__ and environment['numpy'] == np.__version__
    assert environment['threads'] >= 1
    assert environment['precision'] in ('float32', 'bfloat16')


@pytest.mark.parametrize('name, notebook', [
    ('07_03_nin_tiny', '07_03_nin'),
    ('07_03_nin_wide_seeds', '07_03_nin_wide'),
    ('07_03_exercise_1_hyperparameters', '07_03_exercise_1_hyperparameters'),
    ('other', 'NOTEBOOK'),
])
def test_the_command_names_the_notebook(name, notebook):
    assert d2l_ext.recorded(name, Experiment(), CONFIG)['command'] == (
        f'D2L_EXT_RERUN={name} jupyter execute chapters/{notebook}.ipynb')


def test_extras_are_kept():
    record = d2l_ext.recorded(NAME, Experiment(confusion=[[3, 1], [0, 4]]), CONFIG)
    assert record['runs'][0]['confusion'] == [[3, 1], [0, 4]]
    assert record['runs'][0].keys() == RUN_KEYS | {'confusion'}
    assert d2l_ext.recorded(NAME, never, CONFIG) == record


def test_weights(results, cache, monkeypatch):
    def make_net(seed):
        net = nn.Dense(2, in_units=3)
        mx.random.seed(seed)
        net.initialize(mx.init.Xavier())
        return net

    def experiment(config, seed, variant):
        history = Experiment()(config, seed, variant)
        return {'history': history, 'net': make_net(5)} if seed else history

    record = commit(monkeypatch, experiment, seeds=(0, 1))
    assert 'weights' not in record['runs'][0] and 'net' not in record['runs'][1]
    assert names(results) == [f'{NAME}-seed1.npz', f'{NAME}.json']
    net = make_net(6)
    assert d2l_ext.load_weights(net, record)['seed'] == 1
    expected = make_net(5).weight.data().asnumpy()
    assert np.array_equal(net.weight.data().asnumpy(),
                          expected.astype('float16').astype('float32'))

    own = d2l_ext.recorded(NAME, experiment, {**CONFIG, 'lr': 1}, seeds=(1,), variants=('wide',))
    assert own['runs'][0]['weights'].endswith('-seed1-wide.npz')
    assert (cache / own['runs'][0]['weights']).exists()
    assert names(results) == [f'{NAME}-seed1.npz', f'{NAME}.json']
    net = make_net(6)
    assert d2l_ext.load_weights(net, own)['variant'] == 'wide'
    assert not np.array_equal(net.weight.data().asnumpy(), make_net(6).weight.data().asnumpy())

    with pytest.raises(ValueError, match='belongs to another network'):
        d2l_ext.load_weights(nn.Dense(4, in_units=3), record)
    (results / f'{NAME}-seed1.npz').unlink()
    with pytest.raises(FileNotFoundError, match=f'{NAME}-seed1.npz'):
        d2l_ext.load_weights(make_net(6), record)


def test_no_weights():
    record = d2l_ext.recorded(NAME, Experiment(), CONFIG)
    with pytest.raises(ValueError, match=f'no weights were kept with the record {NAME}'):
        d2l_ext.load_weights(nn.Dense(1), record)


def test_final_values():
    record = d2l_ext.recorded(NAME, Experiment(), CONFIG, seeds=(1, 3), variants=('a', 'b'))
    values = d2l_ext.final_values(record)
    assert list(values) == ['a', 'b']
    np.testing.assert_allclose(values['b'], [0.12, 0.32])
    np.testing.assert_allclose(d2l_ext.final_values(record, 'loss')['a'], [0.5, 0.5])


def test_validation_history():
    history = [{'epoch': 1, 'loss': 2., 'test_acc': 0.5, 'seconds': 3.}]
    assert d2l_ext.validation_history(history) == [
        {'epoch': 1, 'loss': 2., 'val_acc': 0.5, 'seconds': 3.}]
    assert history[0]['test_acc'] == 0.5 and 'val_acc' not in history[0]


# --- reading or running ---

def test_a_committed_record_is_read(results, cache, monkeypatch):
    record = commit(monkeypatch, seeds=(0, 1), variants=('a', 'b'))
    content = (results / f'{NAME}.json').read_bytes()
    for config in (CONFIG, {**CONFIG, 'shape': [2, 3]}, dict(reversed(CONFIG.items()))):
        assert d2l_ext.recorded(NAME, never, config, (0, 1), ('a', 'b')) == record
    # Some of its runs, in the order that is asked for.
    part = d2l_ext.recorded(NAME, never, CONFIG, seeds=(1, 0), variants=('b',))
    assert [(run['variant'], run['seed']) for run in part['runs']] == [('b', 1), ('b', 0)]
    assert (part['seeds'], part['variants']) == ([1, 0], ['b'])
    assert (results / f'{NAME}.json').read_bytes() == content and names(cache) == []


@pytest.mark.parametrize('change', [{'lr': 0.2}, {'more': None}, {'shape': [3, 2]}])
def test_another_configuration_runs_and_goes_to_the_readers_cache(results, cache, monkeypatch,
                                                                  change):
    commit(monkeypatch)
    content = (results / f'{NAME}.json').read_bytes()
    experiment = Experiment()
    record = d2l_ext.recorded(NAME, experiment, {**CONFIG, **change})
    assert experiment.runs == [('', 0)]
    assert (results / f'{NAME}.json').read_bytes() == content
    assert len(names(cache)) == 1 and names(cache)[0].startswith(NAME)
    assert d2l_ext.load_record(cache / names(cache)[0]) == record
    assert d2l_ext.recorded(NAME, never, {**CONFIG, **change}) == record  # found the next time
    other = Experiment()
    d2l_ext.recorded(NAME, other, {**CONFIG, 'lr': 7})
    assert other.runs == [('', 0)] and len(names(cache)) == 2  # one file a configuration
    assert names(results) == [f'{NAME}.json']


@pytest.mark.parametrize('rerun, runs', [('1', True), (NAME, True), ('0', False), ('', False),
                                         ('07_03_nin', False), ('other', False)])
def test_rerun(results, cache, monkeypatch, rerun, runs):
    old = commit(monkeypatch)
    (results / f'{NAME}.json').write_text(json.dumps({**old, 'date': '2019-01-01'}))
    experiment = Experiment()
    record = commit(monkeypatch, experiment, rerun=rerun)
    assert experiment.runs == ([('', 0)] if runs else [])
    assert (record['date'] == '2019-01-01') == (not runs)
    assert d2l_ext.load_record(results / f'{NAME}.json') == record and names(cache) == []


def test_rerun_with_another_configuration_replaces_the_committed_record(results, monkeypatch):
    commit(monkeypatch, seeds=(0, 1))
    changed = {**CONFIG, 'lr': 0.2}
    record = commit(monkeypatch, config=changed)
    assert record['config']['lr'] == 0.2 and len(record['runs']) == 1
    assert d2l_ext.load_record(results / f'{NAME}.json') == record
    assert d2l_ext.recorded(NAME, never, changed) == record


@pytest.mark.parametrize('rerun, whole', [('', False), ('1', False), ('1', True)])
def test_what_was_cut_off_goes_on(results, cache, monkeypatch, rerun, whole):
    if whole:  # an older record, which stays until the new one is whole, too
        commit(monkeypatch, seeds=(0, 1, 2))
    before = {path.name: path.read_bytes() for path in results.iterdir()}
    first, second = Experiment(cut_off=1), Experiment()
    with pytest.raises(KeyboardInterrupt):
        commit(monkeypatch, first, rerun=rerun, seeds=(0, 1, 2))
    assert first.runs == [('', 0)]
    assert {path.name: path.read_bytes() for path in results.iterdir()} == before
    record = commit(monkeypatch, second, rerun=rerun, seeds=(0, 1, 2))
    assert second.runs == [('', 1), ('', 2)]
    assert [run['seed'] for run in record['runs']] == [0, 1, 2]
    assert len(names(results)) == bool(rerun) and len(names(cache)) == (not rerun)
    assert d2l_ext.recorded(NAME, never, CONFIG, seeds=(0, 1, 2)) == record


def test_cut_off_runs_of_another_configuration_do_not_count(monkeypatch):
    with pytest.raises(KeyboardInterrupt):
        commit(monkeypatch, Experiment(cut_off=1), seeds=(0, 1))
    experiment = Experiment()
    commit(monkeypatch, experiment, config={**CONFIG, 'lr': 0.2}, seeds=(0, 1))
    assert experiment.runs == [('', 0), ('', 1)]


@pytest.mark.parametrize('rerun', ['', '1'])
def test_fewer_seeds_after_being_cut_off(monkeypatch, rerun):
    """All that is wanted has run already, but stands in no record yet."""
    with pytest.raises(KeyboardInterrupt):
        commit(monkeypatch, Experiment(cut_off=2), rerun=rerun, seeds=(0, 1, 2))
    record = commit(monkeypatch, never, rerun=rerun, seeds=(0, 1))
    assert record.keys() == RECORD_KEYS and [run['seed'] for run in record['runs']] == [0, 1]
    assert d2l_ext.recorded(NAME, never, CONFIG, seeds=(0, 1)) == record


def test_a_record_that_could_not_be_written_loses_no_run(results, monkeypatch):
    def refuse(path, content, write=records._write_json):
        if path.parent == results:
            raise OSError(28, 'No space left on device')
        write(path, content)

    with monkeypatch.context() as patch, pytest.raises(OSError, match='No space left'):
        patch.setattr(records, '_write_json', refuse)
        commit(monkeypatch, seeds=(0, 1))
    record = commit(monkeypatch, never, seeds=(0, 1))
    assert d2l_ext.load_record(results / f'{NAME}.json') == record
    assert [run['seed'] for run in record['runs']] == [0, 1]


@pytest.mark.parametrize('rerun', ['', '1'])
def test_a_record_that_lacks_a_seed_gains_it(results, monkeypatch, rerun):
    commit(monkeypatch, rerun=rerun, seeds=(0, 1), variants=('a',))
    experiment = Experiment()
    record = commit(monkeypatch, experiment, rerun=rerun, seeds=(0, 1, 2), variants=('a', 'b'))
    assert experiment.runs == [('a', 2), ('b', 0), ('b', 1), ('b', 2)]
    assert [(run['variant'], run['seed']) for run in record['runs']] == [
        (variant, seed) for variant in 'ab' for seed in (0, 1, 2)]
    assert d2l_ext.recorded(NAME, never, CONFIG, (0, 1, 2), ('a', 'b')) == record
    assert len(names(results)) == bool(rerun)


def test_a_reader_who_wants_one_more_seed_runs_only_that(results, cache, monkeypatch):
    commit(monkeypatch, seeds=(0, 1))
    content = (results / f'{NAME}.json').read_bytes()
    experiment = Experiment()
    record = d2l_ext.recorded(NAME, experiment, CONFIG, seeds=(0, 1, 2))
    assert experiment.runs == [('', 2)] and [run['seed'] for run in record['runs']] == [0, 1, 2]
    assert (results / f'{NAME}.json').read_bytes() == content and len(names(cache)) == 1
    assert d2l_ext.recorded(NAME, never, CONFIG, seeds=(0, 1, 2)) == record


def test_a_rerun_does_not_take_what_the_reader_began(results, cache, monkeypatch):
    """Its weights would stay in the reader's cache, and the record would point to no file."""
    net = nn.Dense(1, in_units=1)
    net.initialize()
    with pytest.raises(KeyboardInterrupt):
        d2l_ext.recorded(NAME, Experiment(cut_off=1, net=net), CONFIG, seeds=(0, 1))
    record = commit(monkeypatch, Experiment(net=net), seeds=(0, 1))
    for run in record['runs']:
        assert (results / run['weights']).exists()


# --- errors ---

@pytest.mark.parametrize('rerun', ['', '1'])
@pytest.mark.parametrize('dataset', ['digits', "scikit-learn's digits", None])
def test_records_are_of_real_images(results, cache, monkeypatch, dataset, rerun):
    with pytest.raises(ValueError, match='records are made on'):
        commit(monkeypatch, never, config={'dataset': dataset}, rerun=rerun)
    assert names(results) == names(cache) == []


@pytest.mark.parametrize('arguments', [{'seeds': ()}, {'variants': ()}])
def test_at_least_one_run(arguments):
    with pytest.raises(ValueError, match='at least one'):
        d2l_ext.recorded(NAME, never, CONFIG, **arguments)


@pytest.mark.parametrize('damage', [
    lambda text: '', lambda text: text[:len(text) // 2], lambda text: '[]', lambda text: '3',
    lambda text: '{}', lambda text: text.replace('"runs"', '"rums"'), lambda text: '[' * 100000,
    lambda text: text.replace('"seed":', '"sead":'),
])
@pytest.mark.parametrize('rerun', ['', '1'])
def test_a_damaged_record(results, monkeypatch, damage, rerun):
    commit(monkeypatch)
    path = results / f'{NAME}.json'
    path.write_text(damage(path.read_text()))
    before = path.read_bytes()
    with pytest.raises(ValueError, match=f'{NAME}.json is not a record'):
        commit(monkeypatch, never, rerun=rerun)
    with pytest.raises(ValueError, match=f'{NAME}.json is not a record'):
        d2l_ext.load_record(path)
    assert path.read_bytes() == before


def test_a_record_that_is_no_text(tmp_path):
    (tmp_path / 'r.json').write_bytes(b'\xff\xfe\x00')
    with pytest.raises(ValueError, match='r.json is not a record'):
        d2l_ext.load_record(tmp_path / 'r.json')
    with pytest.raises(FileNotFoundError):
        d2l_ext.load_record(tmp_path / 'gone.json')


# --- paths ---

def test_checkpoint_path(cache):
    path = d2l_ext.checkpoint_path(NAME, CONFIG, 0)
    assert path == d2l_ext.checkpoint_path(NAME, {**CONFIG, 'shape': [2, 3]}, 0, '')
    assert path.parent == cache and path.name.startswith(NAME) and path.suffix == '.npz'
    others = [d2l_ext.checkpoint_path(NAME, CONFIG, 1),
              d2l_ext.checkpoint_path(NAME, CONFIG, 0, 'a'),
              d2l_ext.checkpoint_path(NAME, {**CONFIG, 'lr': 1}, 0),
              d2l_ext.checkpoint_path('other', CONFIG, 0)]
    assert len({path, *others}) == 5


def test_cache_folder_without_a_setting(monkeypatch):
    for value in (None, ''):
        if value is None:
            monkeypatch.delenv('D2L_EXT_CACHE')
        else:
            monkeypatch.setenv('D2L_EXT_CACHE', value)
        folder = records.cache_folder()
        assert folder.name == 'records' and folder.is_absolute() and 'd2l_ext' in folder.parts


def test_the_checkpoint_of_a_finished_run_does_not_stand_for_the_next(monkeypatch):
    def experiment(config, seed, variant):
        path = d2l_ext.checkpoint_path(NAME, config, seed, variant)
        assert not path.exists()
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b'the end of this run')
        return Experiment()(config, seed, variant)

    commit(monkeypatch, experiment)
    commit(monkeypatch, experiment)
