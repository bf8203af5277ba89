"""The READMEs keep their promises: links, commands, and numbers as in the records."""
import pathlib
import re

import pytest
from benchmarks import tables

import d2l_ext
from d2l_ext import load_record, results_folder
from d2l_ext.__main__ import BOOK
from d2l_ext.studies.records import speed_records

PACKAGE = pathlib.Path(d2l_ext.__file__).parent
ROOT = PACKAGE.parent
READMES = [ROOT / 'README.md', ROOT / 'tests' / 'README.md', *sorted(PACKAGE.rglob('README.md'))]


def text_of(path):
    return path.read_text(encoding='utf-8')


def links(path):
    """Return the places that the links of a README lead to, without addresses on the web."""
    return sorted(set(re.findall(r'\]\((?!https?:)([^)#]+)\)', text_of(path))))


README, TESTS = map(text_of, READMES[:2])


@pytest.mark.parametrize('path', READMES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_to_files(path):
    assert links(path)
    assert not [link for link in links(path) if not (path.parent / link).exists()]


def test_the_readme_is_short():
    assert len(README.splitlines()) <= 150


@pytest.mark.parametrize('name, command', [
    ('run', 'python -m pip install --no-deps -r requirements.txt && python -m d2l_ext'),
    ('test', 'python -m pip install --no-deps -r requirements.txt && python -m pytest'),
])
def test_the_two_commands_stand_where_ci_finds_them(name, command):
    assert f'<!-- {name} -->\n```bash\n{command}\n```\n' in README


def test_every_notebook_is_in_the_table_of_pages():
    notebooks = sorted(path.name for path in (ROOT / 'chapters').glob('*.ipynb'))
    pages = README.split('\n## Pages\n')[1].split('\n## ')[0]
    assert notebooks
    assert sorted(re.findall(r'^\| .*?\]\(chapters/(.+?)\)', pages, re.M)) == notebooks


def test_every_module_is_on_the_map_of_the_package():
    modules = {path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob('*.py')}
    shelves = {f'{path.parent.name}/__init__.py' for path in PACKAGE.glob('*/__init__.py')}
    listed = [link for link in links(PACKAGE / 'README.md') if link.endswith('.py')]
    assert listed == sorted(modules - shelves)


def test_the_example_of_the_package_trains_and_predicts(isolated, monkeypatch):
    monkeypatch.chdir(isolated)
    code = re.search(r'```python\n(.+?)```', text_of(PACKAGE / 'README.md'), re.S)[1]
    few = 'train_iter, test_iter = train_iter.take(64), test_iter.take(20)\n'
    for old, new in (('= 128, 5,', '= 16, 1,'), ('net = d2l.nin()', f'{few}net = d2l.nin()')):
        assert old in code
        code = code.replace(old, new)
    names = {}
    exec(code, names)
    assert [row['epoch'] for row in names['history']] == [1]
    assert (names['predicted'] == names['true']).mean() == names['history'][0]['test_acc']
    assert (isolated / 'nin.npz').is_file()


def span(values):
    """Return the mean of the values and, if there are several, the lowest and the highest."""
    mean = f'{sum(values) / len(values):.3f}'
    return mean if len(values) == 1 else f'{mean} ({min(values):.3f} to {max(values):.3f})'


COUNTS = {1: 'one', 2: 'two', 3: 'three', 5: 'five'}


def result(name):
    """Return a record and what a row says of it: epochs, seeds and the test accuracy."""
    record = load_record(results_folder() / f'{name}.json')
    runs, config = record['runs'], record['config']
    num_epochs = {**config.get('settings', {}), **config}.get('num_epochs')
    seeds = f"{COUNTS[len(runs)]} {'seed' if len(runs) == 1 else 'seeds'}"
    return (record, f'{COUNTS.get(num_epochs)} epochs', seeds,
            span([run['history'][-1]['test_acc'] for run in runs]))


def result_rows():
    _, epochs, seeds, accuracy = result('07_03_nin_book')
    yield f"| the book's recipe, {epochs}, {seeds} | {accuracy} | {BOOK[-1][2]} in the book"
    for name in ('07_03_exercise_1_hyperparameters_full', 'further_tuning_corners'):
        _, epochs, seeds, accuracy = result(name)
        yield f', {epochs}, {seeds} | {accuracy} |'
    record, _, seeds, accuracy = result('further_best_network_best')
    assert all(3000 < run['seconds'] < 4200 for run in record['runs'])
    yield f', an hour, {seeds} | {accuracy} |'
    record, _, seeds, accuracy = result('further_cifar10_modern')
    assert all(6600 < run['seconds'] < 7800 for run in record['runs'])
    data = record['dataset']
    missing = data['published_images'][1] - data['test_images']
    yield (f", two hours, {seeds}, on {data['test_images']:,} test images ({missing} were missing)"
           f' | {accuracy} |')
    ratios = [record['rows']['d2l_ext.train_ch5']['ratio'] for record in speed_records().values()]
    yield f'{min(ratios):.1f} to {max(ratios):.1f} times `d2l.train_ch6`'


def test_the_tables_of_the_benchmarks_are_those_of_the_records():
    """``python -m tests.benchmarks.tables`` writes them."""
    assert all(f'<!-- {name} -->' in TESTS for name in tables.TABLES)
    assert tables.with_tables(TESTS) == TESTS


@pytest.mark.parametrize('expected', [*result_rows()])
def test_the_results_are_those_of_the_records(expected):
    assert expected in README
