"""The discussion's network in PyTorch, where PyTorch is installed."""

import nbformat
import pytest
from conftest import ROOT

NOTEBOOK = ROOT / 'chapters' / '07_03_discussion.ipynb'


def test_the_same_weights_give_the_same_logits_in_pytorch(capsys):
    pytest.importorskip('torch')
    cells = [cell for cell in nbformat.read(NOTEBOOK, as_version=4).cells
             if cell.cell_type == 'code']
    (comparison,) = (cell for cell in cells if 'pytorch' in cell.metadata.get('tags', ()))
    names = {}
    for cell in (*cells[:3], comparison):  # the imports, what is never seen, the cell itself
        exec(cell.source, names)
    assert 0 <= names['relative'] < 1e-5
    assert names['rows'] == [219, 220, 221, 222, 223]
    assert 'largest difference of a logit' in capsys.readouterr().out
