"""The README keeps its promises: links, commands, and numbers as in the records."""
import json
import pathlib
import re

import pytest
from benchmarks.turns import spread

from d2l_ext import load_record, results_folder
from d2l_ext.__main__ import BOOK

ROOT = pathlib.Path(__file__).resolve().parent.parent
README = (ROOT / 'README.md').read_text(encoding='utf-8')


@pytest.mark.parametrize('link', sorted(set(re.findall(r'\]\(([^)#]+)\)', README))))
def test_links_lead_to_files(link):
    assert link.startswith('http') or (ROOT / link).exists()


@pytest.mark.parametrize('name, command', [
    ('run', 'python -m pip install -r requirements.txt && python -m d2l_ext'),
    ('test', 'python -m pip install -r requirements.txt && python -m pytest'),
])
def test_the_two_commands_stand_where_ci_finds_them(name, command):
    assert f'<!-- {name} -->\n```bash\n{command}\n```\n' in README


def test_every_notebook_is_in_the_table_of_contents():
    notebooks = sorted(path.name for path in (ROOT / 'chapters').glob('*.ipynb'))
    assert notebooks and all(f'](chapters/{name})' in README for name in notebooks)


def test_every_module_is_in_one_of_the_two_tables_of_files():
    section, around = (re.findall(r'\]\(d2l_ext/(\w+)(?:\.py)?\)', text)
                       for text in README.split('## Measured')[0].split('\nAround it:\n'))
    modules = {path.stem for path in (ROOT / 'd2l_ext').glob('*.py')} - {'__init__'} | {
        path.parent.name for path in (ROOT / 'd2l_ext').glob('*/__init__.py')}
    assert sorted(section + around) == sorted(modules)
    lines = sum(len((ROOT / 'd2l_ext' / f'{name}.py').read_text(encoding='utf-8').splitlines())
                for name in section)
    assert f'about {round(lines, -2):,} lines' in README


def span(values, digits):
    """Return the mean of the values and, if there are several, the lowest and the highest."""
    mean = f'{sum(values) / len(values):.{digits}f}'
    return mean if len(values) == 1 else \
        f'{mean} ({min(values):.{digits}f} to {max(values):.{digits}f})'


def speed_rows():
    training, plain, inference, limits, startup = (
        json.loads((results_folder() / f'{name}.json').read_text()) for name in (
            'benchmarks', 'avx2/benchmarks', 'benchmarks_inference', 'benchmarks_limits',
            'benchmarks_startup'))
    for record in (training, plain):
        yield record['environment']['processor']
        for name, row in record['rows'].items():
            yield (f"| `{name}` | {row['images_per_second']:.1f} | {spread(row, digits='.1f')} | "
                   f"{row['peak_gib']:.1f} GiB |")
    assert plain['environment']['precision'] == 'float32'
    yield f"`{plain['command']}`"
    yield f"ran {plain['pairs']} times"
    for row in (training['comparisons']['d2l_ext.train_ch5 against PyTorch'],
                training['comparisons']['with batch normalization against without']):
        yield spread(row)
    yield f"Training runs at {spread(limits['training'], digits='.0%')} of the rate"
    for name, row in inference['rows'].items():
        yield (f"| `{name}` | {row['images_per_second']:.0f} | {row['latency_ms']:.1f} | "
               + (f"{row['accuracy']:.4f}" if 'accuracy' in row else '') + ' |')
    yield f"adds {startup['imports']['import d2l_ext, mxnet']['added']:.2f} s to `import mxnet`"
    yield f"{startup['first_step']['seconds']:.1f} s after it is called"


def results_rows():
    record = load_record(results_folder() / '07_03_nin_book.json')
    histories = [run['history'] for run in record['runs']]
    for i, (loss, train_acc, test_acc) in enumerate(BOOK):
        cells = [f'{book:.{digits}f} | {span([history[i][key] for history in histories], digits)}'
                 for key, book, digits in (('loss', loss, 4), ('train_acc', train_acc, 3),
                                           ('test_acc', test_acc, 3))]
        yield f"| {i + 1} | {' | '.join(cells)} |"
    tuned = load_record(results_folder() / '07_03_exercise_1_hyperparameters_section.json')
    yield 'test accuracy of ' + span([run['history'][-1]['test_acc'] for run in tuned['runs']], 3)
    corners = load_record(results_folder() / '07_03_exercise_1_hyperparameters_corners.json')
    accuracies = [run['history'][-1]['test_acc'] for run in corners['runs']]
    yield f'test accuracy of {span(accuracies, 4)} after two'
    minutes = sum(run['seconds'] for run in corners['runs']) / len(corners['runs']) / 60
    yield f'{minutes:.0f} minutes each on two cores without bfloat16: a better'
    best = load_record(results_folder() / '07_03_exercise_1_best_network_best.json')
    yield span([run['history'][-1]['test_acc'] for run in best['runs']], 4) + ' on the test images'
    yield (span([run['views']['mirrored']['test_acc'] for run in best['runs']], 4)
           + ' when the answers for mirror images\nare added')
    run, = load_record(results_folder() / 'nin_paper_cifar10_modern.json')['runs']
    yield f"get {run['history'][-1]['test_acc']:.4f} of the test images right"
    yield f"and {run['mirrored_test_acc']:.4f} when the answers for mirror images are added"
    run, = load_record(results_folder() / 'nin_paper_cifar10_original.json')['runs']
    yield (f"stand at {run['history'][-1]['test_acc']:.4f} after seven, in "
           f"{run['seconds'] / 60:.0f} minutes")


@pytest.mark.parametrize('expected', [*speed_rows(), *results_rows()])
def test_the_numbers_are_those_of_the_records(expected):
    assert expected in README
