"""The README keeps its promises: links, commands, and numbers as in the records."""
import json
import pathlib
import re

import pytest

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
    section, around = (re.findall(r'\]\(d2l_ext/(\w+)\.py\)', text)
                       for text in README.split('## Measured')[0].split('\nAround it:\n'))
    modules = {path.stem for path in (ROOT / 'd2l_ext').glob('*.py')} - {'__init__'}
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
    record = json.loads((results_folder() / 'benchmarks.json').read_text())
    yield record['environment']['processor']
    for name, row in record['rows'].items():
        yield (f"| `{name}` | {row['images_per_second']:.1f} | {row['ratio']:.1f} "
               f"({row['ratio_min']:.1f} to {row['ratio_max']:.1f}) | {row['peak_gib']:.1f} GiB |")


def results_rows():
    record = load_record(results_folder() / '07_03_nin_book.json')
    histories = [run['history'] for run in record['runs']]
    for i, (loss, train_acc, test_acc) in enumerate(BOOK):
        cells = [f'{book:.{digits}f} | {span([history[i][key] for history in histories], digits)}'
                 for key, book, digits in (('loss', loss, 4), ('train_acc', train_acc, 3),
                                           ('test_acc', test_acc, 3))]
        yield f"| {i + 1} | {' | '.join(cells)} |"


@pytest.mark.parametrize('expected', [*speed_rows(), *results_rows()])
def test_the_numbers_are_those_of_the_records(expected):
    assert expected in README
