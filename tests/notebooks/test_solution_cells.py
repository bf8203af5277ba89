"""Every solution cell runs alone, as a reader pastes it into an empty notebook."""
import os

import nbformat
import pytest
from conftest import ROOT
from nbclient import NotebookClient


def solution_cells():
    """Yield a notebook, the index of a cell in it that is tagged "solution", and its source."""
    for path in sorted((ROOT / 'chapters').glob('*.ipynb')):
        for i, cell in enumerate(nbformat.read(path, as_version=4).cells):
            if 'solution' in cell.metadata.get('tags', ()):
                yield pytest.param(path, i, cell.source, id=f'{path.stem}-{i}')


@pytest.mark.parametrize('path, i, source', list(solution_cells()))
def test_solution_cell_runs_alone(path, i, source, tmp_path, monkeypatch):
    monkeypatch.delenv('D2L_EXT_RERUN', raising=False)
    places = [str(ROOT), os.environ.get('PYTHONPATH')]
    monkeypatch.setenv('PYTHONPATH', os.pathsep.join(filter(None, places)))
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)])
    NotebookClient(notebook, timeout=600, kernel_name='python3',
                   resources={'metadata': {'path': str(tmp_path)}}).execute()
    outputs = notebook.cells[0].outputs
    assert outputs, 'a solution shows its result'
    assert [output for output in outputs if output.get('name') == 'stderr'] == []
