"""The plan of a page: length, last line, the cell to copy and what stands in for d2l_ext."""
import ast
import json
import os
import pathlib
import re

import nbformat
import numpy as np
import pytest
from conftest import CELL_SECONDS, ROOT
from mxnet import cpu, gluon, init, nd, random, sym
from mxnet.gluon import nn
from nbclient import NotebookClient

import d2l_ext
from d2l_ext.batches import Batches
from d2l_ext.storage import fashion_mnist

CHAPTERS = ROOT / 'chapters'
CELLS = {path.stem: nbformat.read(path, as_version=4).cells
         for path in sorted(CHAPTERS.glob('*.ipynb'))}
EXERCISES = [page for page in CELLS if page.startswith('07_03_exercise_')]
LINKED = re.compile(r'\]\((?!https?:)([^)#]+)')
STAND_IN = '<details>\n<summary>Without <code>d2l_ext</code>'
IMPORT = re.compile(r'^import d2l_ext as d2l\b.*$', re.M)
MAY_USE = {'try_gpu', 'load_data', 'load_data_fashion_mnist', 'train_ch5'}
TAGS = {'copy-this', 'hide-input', 'nbval-ignore-output', 'pytorch', 'remove-cell'}

each_page = pytest.mark.parametrize('page', CELLS)


def tagged(page, tag):
    return [cell for cell in CELLS[page] if tag in cell.metadata.get('tags', ())]


def texts(page):
    return [cell.source for cell in CELLS[page] if cell.cell_type == 'markdown']


def stand_ins(page):
    return [text for text in texts(page) if text.startswith(STAND_IN)]


COPIED = [pytest.param(page, cell.source, id=f'{page}-{i}')
          for page in CELLS for i, cell in enumerate(tagged(page, 'copy-this'))]
each_copied = pytest.mark.parametrize('page, source', COPIED)


# The page

@pytest.mark.parametrize('page', [page for page in CELLS if not page.startswith('further_')])
def test_a_page_is_short(page):
    """Code and what stands in for d2l_ext, folded and the same everywhere, are not counted."""
    words = sum(len(text.split()) for text in texts(page) if not text.startswith(STAND_IN))
    assert words <= (1200 if page == '07_03_nin' else 1500)


@each_page
def test_tags_are_known_and_few_outputs_are_ignored(page):
    code = [cell for cell in CELLS[page] if cell.cell_type == 'code']
    tags = {tag for cell in CELLS[page] for tag in cell.metadata.get('tags', ())}
    assert {tag for tag in tags if not tag.startswith('item-')} <= TAGS  # those: of test_items
    assert 3 * len(tagged(page, 'nbval-ignore-output')) <= len(code)


@each_page
def test_links_lead_to_files(page):
    links = {link for text in texts(page) for link in LINKED.findall(text)}
    assert not [link for link in links if not (CHAPTERS / link).exists()]


def test_a_record_names_the_page_that_makes_it():
    for path in (CHAPTERS / 'results').glob('*.json'):
        command = json.loads(path.read_text())['command']
        source = re.search(r'chapters/(\w+)\.ipynb$', command)
        if source:
            code = [cell.source for cell in CELLS[source[1]] if cell.cell_type == 'code']
            assert f"'{path.stem}'" in '\n'.join(code)
        else:
            assert command == 'python -m tests.benchmarks.zoo'


@each_page
def test_the_last_line_leads_to_the_neighbours_and_the_discussion(page):
    order = re.findall(r'^- \[[^]]+\]\((\w+)\.ipynb\)',
                       (CHAPTERS / 'index.md').read_text(encoding='utf-8'), re.M)
    i = order.index(page)
    neighbours = [*(f'Previous: [title]({name}.ipynb)' for name in order[max(i - 1, 0):i]),
                  *(f'Next: [title]({name}.ipynb)' for name in order[i + 1:i + 2])]
    last_line = CELLS[page][-1].source.splitlines()[-1]
    assert re.sub(r': \[[^]]+\]', ': [title]', last_line) == ' · '.join(
        [*neighbours, '[Discussion](https://discuss.d2l.ai/t/79)'])


# The cell to copy

@pytest.mark.parametrize('page', EXERCISES)
def test_an_exercise_has_one_cell_to_copy(page):
    assert len(EXERCISES) == 4
    assert len(tagged(page, 'copy-this')) == 1


@each_copied
def test_a_cell_to_copy_is_short_and_ordinary_gluon(page, source):
    assert len(source.splitlines()) <= 25
    nodes = list(ast.walk(ast.parse(source)))
    assert not [node.module for node in nodes if isinstance(node, ast.ImportFrom)
                and node.module.split('.')[0] == 'd2l_ext']
    assert len(IMPORT.findall(source)) == sum(
        alias.name == 'd2l_ext' for node in nodes if isinstance(node, ast.Import)
        for alias in node.names)
    assert {node.attr for node in nodes if isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name) and node.value.id == 'd2l'} <= MAY_USE


def run_alone(source, folder, monkeypatch):
    """Run a cell in an empty folder, as a reader pastes it into a new notebook."""
    places = [str(ROOT), os.environ.get('PYTHONPATH')]
    monkeypatch.setenv('PYTHONPATH', os.pathsep.join(filter(None, places)))
    folder.mkdir()
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)])
    NotebookClient(notebook, timeout=CELL_SECONDS, kernel_name='python3',
                   resources={'metadata': {'path': str(folder)}}).execute()
    outputs = notebook.cells[0].outputs
    assert outputs, 'it shows its result'
    assert [output for output in outputs if output.get('name') == 'stderr'] == []
    assert not list(folder.iterdir())


DATA = pathlib.Path(os.environ.get('D2L_EXT_DATA') or '/nowhere') / 'fashion-mnist'
needs_data = pytest.mark.skipif(not all((DATA / name).is_file() for name in fashion_mnist.MD5),
                                reason='D2L_EXT_DATA holds no Fashion-MNIST')


@needs_data
@each_copied
def test_a_cell_to_copy_runs_alone(page, source, isolated, monkeypatch):
    monkeypatch.setenv('D2L_EXT_DATA', str(DATA.parent))
    run_alone(source, isolated / 'empty', monkeypatch)


@each_copied
def test_a_cell_to_copy_runs_alone_without_data_and_network(page, source, isolated, monkeypatch):
    for name in ('http_proxy', 'https_proxy', 'HTTP_PROXY', 'HTTPS_PROXY'):
        monkeypatch.setenv(name, 'http://127.0.0.1:9')
    run_alone(source, isolated / 'empty', monkeypatch)


def test_exercise_1_keeps_the_books_network_with_the_settings_that_the_search_found(isolated):
    page = '07_03_exercise_1_hyperparameters'
    imports, _, rest = tagged(page, 'copy-this')[0].source.split('\n\n')
    build = re.search(r'^net = .*(?=^trainer = )', rest, re.S | re.M)[0]
    text, = (text for text in texts(page) if '```python\ndef conv' in text)
    conv, settings = re.search(r'```python\n(.+)```', text, re.S)[1].split('\n\n')
    data, trainer = re.split(r'^(?=trainer = )', settings, flags=re.M)
    names = {}
    build = build.replace('nn.Conv2D(10, kernel_size=1)', '*conv(10, 1)')
    exec('\n'.join([imports, conv, data, build, trainer]), names)

    def layers(net):
        nodes = json.loads(net(sym.var('X')).tojson())['nodes']
        return [(node['op'], node.get('attrs')) for node in nodes if node['op'] != 'null']

    assert layers(names['net']) == layers(d2l_ext.nin())
    record = d2l_ext.load_record(d2l_ext.results_folder() / 'further_tuning_section.json')
    config = record['config']
    found, optimizer = config['settings'], names['trainer'].optimizer
    assert names['batch_size'] == found['batch_size']
    assert names['num_epochs'] == config['num_epochs']
    assert names['lr'] == pytest.approx(found['lr'], rel=0.01)
    assert optimizer.momentum == found['momentum']
    assert optimizer.wd == pytest.approx(found['wd'], rel=0.05)
    schedule = optimizer.lr_scheduler
    assert schedule.base_lr == names['lr']
    assert schedule.warmup_steps == pytest.approx(found['warmup'] * schedule.max_update, abs=1)


# What stands in for d2l_ext

def test_a_page_with_a_cell_that_needs_d2l_ext_has_the_stand_in_and_all_are_the_same():
    needing = {page for page in CELLS for cell in tagged(page, 'copy-this')
               if IMPORT.search(cell.source)}
    found = {page: stand_ins(page) for page in CELLS if stand_ins(page)}
    assert needing and needing <= found.keys()
    assert all(len(on_page) == 1 for on_page in found.values())
    assert len({text for on_page in found.values() for text in on_page}) == 1
    assert not [page for page in CELLS if '<!-- stand-in -->' in texts(page)]


def stand_in_code():
    """Return the code of the stand-in, from the first page that has it."""
    text = next(text for page in CELLS for text in stand_ins(page))
    return re.search(r'```python\n(.+)```', text, re.S)[1]


@pytest.mark.parametrize('resize', [28, 40])
def test_the_stand_in_gives_the_same_history(resize, monkeypatch):
    """Order of the images, a last batch that is smaller, dropout, weights drawn late."""
    images, labels = {}, {}
    for train, number in ((True, 150), (False, 60)):
        labels[train] = np.arange(number, dtype=np.int32) % 10
        images[train] = np.random.RandomState(train).randint(0, 256, (number, 28, 28), np.uint8)
        images[train][:, ::2] //= (1 + labels[train][:, None, None]).astype(np.uint8)

    def dataset(train):
        return gluon.data.ArrayDataset(nd.array(images[train][..., None], dtype='uint8'),
                                       labels[train])

    monkeypatch.setattr(gluon.data.vision, 'FashionMNIST', dataset)
    names = {}
    exec(stand_in_code(), names)
    ours = [Batches(images[train], labels[train], 32, resize, shuffle=train, ctx=cpu())
            for train in (True, False)]
    theirs = names['d2l'].load_data(32, resize)

    def history(train_ch5, train_iter, test_iter, **settings):
        random.seed(0)
        net = nn.HybridSequential()
        net.add(nn.Conv2D(16, 3, activation='relu'), nn.MaxPool2D(2), nn.Dropout(0.5),
                nn.Conv2D(10, 3), nn.GlobalAvgPool2D(), nn.Flatten())
        net.initialize(init.MSRAPrelu(slope=0))
        trainer = gluon.Trainer(net.collect_params(), 'sgd', {'learning_rate': 0.1})
        rows = train_ch5(net, train_iter, test_iter, 32, trainer, cpu(), 3, seed=1, **settings)
        return np.array([[row[key] for key in ('epoch', 'loss', 'train_acc', 'test_acc')]
                         for row in rows])

    for take in (lambda batches: batches, lambda batches: batches.take(50)):
        np.testing.assert_allclose(
            history(names['d2l'].train_ch5, *map(take, theirs)),
            history(d2l_ext.train_ch5, *map(take, ours), precision='float32'), rtol=1e-4)


# Gluon insists on archives that are packed otherwise than the published ones.
NO_DOWNLOAD = f"""
import os
from mxnet.gluon.data.vision import datasets
datasets.download = lambda url, **_: os.path.join({str(DATA)!r}, os.path.basename(url))
"""


@needs_data
@pytest.mark.heavy
@each_copied
def test_a_cell_to_copy_runs_with_the_stand_in(page, source, isolated, monkeypatch):
    if IMPORT.search(source):
        code = NO_DOWNLOAD + IMPORT.sub(lambda _: stand_in_code(), source)
        run_alone(code, isolated / 'empty', monkeypatch)
