"""What the sources ask and tell, item by item: which page answers it, or why none does.

The sources: section 7.3 as of 2019, its readers' forum, a lecture on NiN and Inception, a reading
note on the paper, and slides with a port's code and training log. ``where`` in ``items.csv`` is the
tag of a cell or a heading; a row without it names the page alone.
"""
import csv
import pathlib
import re

import nbformat
import pytest
from conftest import ROOT

ITEMS = list(csv.DictReader(
    pathlib.Path(__file__).with_name('items.csv').read_text(encoding='utf-8').splitlines()))
PAGES = {path.stem: nbformat.read(path, as_version=4).cells
         for path in (ROOT / 'chapters').glob('*.ipynb')}


def places(cells):
    """Return the tags that name items, and the headings, of a page."""
    tags = [tag for cell in cells for tag in cell.metadata.get('tags', ()) if tag[:5] == 'item-']
    headings = [heading for cell in cells if cell.cell_type == 'markdown'
                for heading in re.findall(r'^#+ (.+)', cell.source, re.M)]
    return tags + headings


@pytest.mark.parametrize('row', ITEMS, ids=lambda row: row['item'])
def test_every_item_is_answered_where_it_says_or_says_why_not(row):
    assert row['source'] in ('section', 'forum', 'lecture', 'note', 'slides') and row['item']
    assert bool(row['page']) != bool(row['why_not'])
    if row['page'] == 'README':
        assert not row['where']
    elif row['page']:
        assert row['page'] in PAGES
        assert not row['where'] or places(PAGES[row['page']]).count(row['where']) == 1
    else:
        assert not row['where']


def test_no_item_stands_twice_and_no_tag_without_a_row():
    assert len({row['item'] for row in ITEMS}) == len(ITEMS) > 90
    listed = {(row['page'], row['where']) for row in ITEMS}
    assert not [(page, place) for page, cells in PAGES.items() for place in places(cells)
                if place[:5] == 'item-' and (page, place) not in listed]
