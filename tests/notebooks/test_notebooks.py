"""Notebooks are clean as committed, and give their answers again under other conditions."""
import copy
import ctypes
import decimal
import os
import pathlib
import re
import shutil
import site

import nbformat
import pytest
from conftest import CELL_SECONDS, ROOT
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbval.plugin import find_metadata_tags

from d2l_ext.storage import fashion_mnist

each_notebook = pytest.mark.parametrize('path', sorted((ROOT / 'chapters').glob('*.ipynb')),
                                        ids=lambda path: path.stem)


def code_cells(path):
    """Return the code cells of a notebook."""
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == 'code']


def marks(cell):
    """Return what nbval is told of a cell; {'check': False} if its output may differ."""
    return dict(find_metadata_tags(cell.metadata))


def texts(cell):
    """Return {kind: text} of all that nbval compares in the outputs of a cell: no pictures."""
    found = {}
    for output in cell.outputs:
        for kind, text in output.get('data', {output.get('name'): output.get('text')}).items():
            if not kind.startswith(('image/', 'application/vnd.jupyter.widget-view')):
                found[kind] = found.get(kind, '') + text
    return found


# As committed

@each_notebook
def test_metadata_holds_nothing_of_a_single_run(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    # JupyterLab would write this name, and so ask to save a page that was only opened.
    assert notebook.metadata.kernelspec == {
        'display_name': 'Python 3 (ipykernel)', 'language': 'python', 'name': 'python3'}
    assert notebook.metadata.keys() <= {'kernelspec', 'language_info'}  # no widget states
    keys = {key for cell in notebook.cells for key in cell.metadata}
    assert keys <= {'tags', 'mystnb', 'jupyter'}  # what a figure shows, in words, but no times
    for cell in notebook.cells:  # hidden on the site and in JupyterLab
        hidden = 'hide-input' in cell.metadata.get('tags', ())
        assert cell.metadata.get('jupyter', {}) == ({'source_hidden': True} if hidden else {})
    assert not [output for cell in code_cells(path) for output in cell.outputs  # no dead widgets
                if 'application/vnd.jupyter.widget-view+json' in output.get('data', {})]


@each_notebook
def test_cells_were_executed_from_top_to_bottom(path):
    counts = [cell.execution_count for cell in code_cells(path)]
    assert counts == list(range(1, len(counts) + 1))


@each_notebook
def test_outputs_hold_no_error_and_nothing_from_stderr(path):
    outputs = [output for cell in code_cells(path) for output in cell.outputs]
    assert outputs
    assert not [output for output in outputs
                if output.output_type == 'error' or output.get('name') == 'stderr']


@each_notebook
def test_no_cell_names_a_place_on_somebodys_machine(path):
    cells = nbformat.read(path, as_version=4).cells
    everything = '\n'.join(
        text for cell in cells for text in [
            cell.source, *(texts(cell).values() if cell.cell_type == 'code' else ())])
    assert not re.findall(r'(?:/(?:home|mnt|opt|private|root|site-packages|tmp|Users|var|work)/|'
                          r'\b[A-Z]:\\)\S+', everything)


@each_notebook
def test_markers_are_tags_and_not_in_what_a_student_copies(path):
    assert not [cell.source for cell in code_cells(path)
                if re.search(r'# *(NBVAL|isort|noqa|ruff)', cell.source)]


@each_notebook
def test_no_cell_is_skipped_and_an_ignored_output_is_followed_by_assertions(path):
    cells = code_cells(path)
    assert all(marks(cell) in ({}, {'check': False}) for cell in cells)
    for i, cell in enumerate(cells):
        if marks(cell):
            assert i + 1 < len(cells) and re.search(r'^\s*assert ', cells[i + 1].source, re.M), (
                f'cell {i + 1} has an output that is not compared, and no assertions follow')


# Under other conditions

FLOAT = re.compile(r'-?\d+(?:,\d{3})*\.\d+(?:e[-+]?\d+)?')


def agree(text, expected):
    """Return whether two texts have the same words and, within float tolerance, numbers.

    Numbers with a decimal point may differ by one in the last place or by 1e-4 of their value;
    whole numbers are words.
    """
    def close(a, b):
        a, b = (decimal.Decimal(number.replace(',', '')) for number in (a, b))
        last_place = decimal.Decimal(1).scaleb(b.as_tuple().exponent)
        return abs(a - b) <= last_place + abs(b) * decimal.Decimal('1e-4')

    numbers, expected_numbers = FLOAT.findall(text), FLOAT.findall(expected)
    return (FLOAT.sub(' # ', text).split() == FLOAT.sub(' # ', expected).split()
            and all(close(a, b) for a, b in zip(numbers, expected_numbers)))


@pytest.mark.parametrize('text, expected, result', [
    ('loss 2.3026', 'loss 2.3026', True),
    ('loss 2.3026', 'loss 2.3027', True),
    ('loss 2.3026', 'loss 2.3126', False),
    ('loss  9.9996\n', 'loss 10.0000\n', True),
    ('loss 2.3026', 'accuracy 2.3026', False),
    ('loss 2.3026', 'loss', False),
    ('loss 2.3026', 'loss nan', False),
    ('loss -1.0', 'loss 1.0', False),
    ('1.25e-05', '1.26e-05', True),
    ('1.25e-05', '1.25e-06', False),
    ('1,519.9 MB', '1,520.0 MB', True),
    ('1,519.9 MB', '2,519.9 MB', False),
    ('1,992,166', '1,992,167', False),
])
def test_agree(text, expected, result):
    assert agree(text, expected) is result


def differences(cells, expected, same=lambda text, expected: text == expected):
    """Yield what differs in the outputs that should repeat."""
    for i, (cell, expected_cell) in enumerate(zip(cells, expected)):
        if not marks(cell):
            found, wanted = texts(cell), texts(expected_cell)
            if found.keys() != wanted.keys() or not all(
                    same(found[kind], wanted[kind]) for kind in found):
                yield f'cell {i + 1}', found, wanted


def test_differences():
    def cell(text, *tags, stream='stdout'):
        output = nbformat.v4.new_output('stream', name=stream, text=text)
        return nbformat.v4.new_code_cell(outputs=[output], metadata={'tags': [*tags]})

    committed = [cell('1'), cell('1', 'nbval-ignore-output'), cell('1')]
    again = [cell('2'), cell('2', 'nbval-ignore-output'), cell('1', stream='stderr')]
    assert not list(differences(committed, committed))
    assert [difference[0] for difference in differences(again, committed)] == ['cell 1', 'cell 3']


def obey_permissions():
    """Take away root's privilege to write where permissions forbid it, for programs run next."""
    PR_CAPBSET_DROP, CAP_DAC_OVERRIDE = 24, 1
    if ctypes.CDLL(None).prctl(PR_CAPBSET_DROP, CAP_DAC_OVERRIDE, 0, 0, 0):
        raise OSError('a privilege cannot be dropped here; run the tests as another user than root')


def run(path, folder, times=1, ending='', **environment):
    """Run a notebook `times` times in one kernel in `folder`; return the code cells of each time.

    The kernel has an empty home, obeys file permissions even as root, and runs `ending` at last.
    """
    home = folder.parent / 'home'
    home.mkdir()
    folder.mkdir()
    notebook = nbformat.read(path, as_version=4)
    runs = [[copy.deepcopy(cell) for cell in notebook.cells] for _ in range(times)]
    notebook.cells = [*sum(runs, []), nbformat.v4.new_code_cell(ending)]
    NotebookClient(
        notebook, timeout=CELL_SECONDS, kernel_name='python3',
        resources={'metadata': {'path': str(folder)}}).execute(
        env={**os.environ, 'HOME': str(home), 'PYTHONUSERBASE': site.getuserbase(), **environment},
        preexec_fn=obey_permissions if os.geteuid() == 0 else None)
    assert not list(folder.iterdir()), 'a notebook leaves nothing in the working directory'
    return [[cell for cell in cells if cell.cell_type == 'code'] for cells in runs]


@pytest.mark.parametrize('source, error, message', [
    ("open('../locked/file', 'w')", CellExecutionError, 'PermissionError'),
    ("open('file', 'w').close()", AssertionError, 'leaves nothing in the working directory'),
])
def test_run_notices_what_a_notebook_writes(source, error, message, tmp_path):
    (tmp_path / 'locked').mkdir(0o555)
    cells = [nbformat.v4.new_code_cell(source)]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / 'notebook.ipynb')
    with pytest.raises(error, match=message):
        run(tmp_path / 'notebook.ipynb', tmp_path / 'elsewhere')


# The conditions are combined, since every run takes half a minute. What `run` calls `ending` makes
# sure that they held.
ENDING = '''
import pathlib
import d2l_ext
from d2l_ext.hardware.threads import num_threads

assert d2l_ext.load_data(10)[1].name == {name!r}
assert num_threads() == {threads}
'''
READ_ONLY = '''
assert d2l_ext.results_folder() == pathlib.Path({repository!r}, 'chapters', 'results')
try:
    (d2l_ext.results_folder() / 'probe').touch()
except PermissionError:
    pass
else:
    raise AssertionError('the repository can be written')
'''


@pytest.mark.heavy
@each_notebook
def test_offline_read_only_elsewhere_on_one_thread_and_once_more(path, isolated, faults):
    """The embedded data, an unreachable proxy, another hash seed; twice in one kernel.

    What a notebook reads of the repository is in a copy without any permission to write.
    """
    repository, nowhere = isolated / 'repository', 'http://127.0.0.1:9'
    for name in ('chapters', 'd2l_ext'):
        shutil.copytree(ROOT / name, repository / name,
                        ignore=shutil.ignore_patterns('__pycache__', '.ipynb_checkpoints'))
    for item in [repository, *repository.rglob('*')]:
        item.chmod(item.stat().st_mode & ~0o222)
    faults.injected(2)  # no network, nothing in the repository can be written
    first, second = run(
        repository / 'chapters' / path.name, isolated / 'elsewhere', times=2,
        ending=ENDING.format(name="scikit-learn's digits", threads=1)
        + READ_ONLY.format(repository=str(repository)),
        PYTHONPATH=str(repository), PYTHONHASHSEED='1', OMP_NUM_THREADS='1',
        **dict.fromkeys(('http_proxy', 'https_proxy', 'HTTP_PROXY', 'HTTPS_PROXY'), nowhere))
    assert not list(differences(first, code_cells(path), agree))
    assert not list(differences(second, first))
    faults.survived(2)


DATA = os.environ.get('D2L_EXT_DATA', '')


@pytest.mark.heavy
@pytest.mark.skipif(not DATA or not all((pathlib.Path(DATA) / 'fashion-mnist' / name).is_file()
                                        for name in fashion_mnist.MD5),
                    reason='D2L_EXT_DATA holds no Fashion-MNIST')
@each_notebook
def test_real_data_on_two_threads(path, isolated):
    cells, = run(path, isolated / 'elsewhere', PYTHONHASHSEED='2', OMP_NUM_THREADS='2',
                 D2L_EXT_DATA=DATA, ending=ENDING.format(name='Fashion-MNIST', threads=2))
    assert not list(differences(cells, code_cells(path)))
