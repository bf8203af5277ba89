"""What the networks cost that only notebooks define: against counts taken while they run."""
import ast

import nbformat
import pytest
from conftest import ROOT

from d2l_ext.devices import mx
from d2l_ext.studies.resources import summary

nn = mx.gluon.nn


def made(notebook, definition, expression):
    """Return the value of an expression, after a notebook's imports and what one cell defines."""
    path = ROOT / 'chapters' / f'{notebook}.ipynb'
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == 'code']
    imports = [cell.source for cell in cells if cell.source.startswith(('import ', 'from '))
               and not {'copy-this', 'solution'} & set(cell.metadata.get('tags', ()))][:2]
    (cell,) = (cell for cell in cells if definition in cell.source)
    tree = ast.parse(cell.source)
    tree.body = [node for node in tree.body  # not what the cell goes on to compute and print
                 if isinstance(node, (ast.Import, ast.ImportFrom, ast.FunctionDef))
                 or getattr(getattr(node, 'targets', [None])[0], 'id', '') == expression]
    names = {}
    for code in (*imports, compile(tree, notebook, 'exec')):
        exec(code, names)
    return eval(expression, names)


def counted_while_running(net, shape):
    """Return parameters and multiply-adds of an image, counted by hooks on its layers."""
    mult_adds = []

    def hook(layer, inputs, output):
        mult_adds.append(output.size * layer.weight.data()[0].size)

    def register(layer):
        if isinstance(layer, (nn.Conv2D, nn.Dense)):
            layer.register_forward_hook(hook)

    net.initialize(force_reinit=True)
    net.apply(register)
    net(mx.nd.zeros((1, *shape)))
    return sum(param.data().size for param in net.collect_params().values()), sum(mult_adds)


@pytest.mark.parametrize('notebook, definition, expression, shape', [
    *(('07_03_later_editions', 'def nin_like(', f'nin_like({changes})', (1, size, size))
      for changes in ('', 'inner=3', "head='dense'", "head='as AlexNet'") for size in (224, 100)),
    ('07_03_discussion', 'def plain_net(', 'plain_net()', (1, 28, 28)),
    *(('07_03_discussion', 'def nin_with(', f'nin_with({size})', (1, 224, 224))
      for size in (1, 3, 5)),
    ('inception', 'lenet = sequence(', 'lenet', (1, 28, 28)),
    ('inception', 'alexnet = sequence(', 'alexnet', (1, 224, 224)),
])
def test_the_summary_agrees(notebook, definition, expression, shape):
    net = made(notebook, definition, expression)
    result = summary(net, shape)
    assert (result.total_params, result.total_mult_adds) == counted_while_running(net, shape)
