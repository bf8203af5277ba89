"""Docstrings of public names: examples that run, and the sections that a reader looks for."""
import ast
import doctest
import importlib
import inspect
import pkgutil
import re
import textwrap

import pytest

import d2l_ext

MODULES = [module.name for module in pkgutil.walk_packages(d2l_ext.__path__, 'd2l_ext.')
           if not module.name.endswith('__main__')]


def returns_value(function):
    """Return whether `function` itself, not one inside it, has a ``return`` with a value."""
    nodes = ast.parse(textwrap.dedent(inspect.getsource(function))).body[0].body
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.Return) and node.value is not None:
            return True
        if not isinstance(node, (ast.FunctionDef, ast.Lambda)):
            nodes.extend(ast.iter_child_nodes(node))
    return False


@pytest.mark.parametrize('name', MODULES)
def test_examples(name, monkeypatch):
    module = importlib.import_module(name)
    # doctest takes what a decorator returns for another module's.
    monkeypatch.setattr(module, '__test__', {
        key: value.__wrapped__ for key, value in vars(module).items()
        if inspect.isfunction(value) and hasattr(value, '__wrapped__')}, raising=False)
    assert doctest.testmod(module, extraglobs={'mx': d2l_ext.devices.mx}).failed == 0


@pytest.mark.parametrize('name', [name for name in d2l_ext.__all__
                                  if callable(getattr(d2l_ext, name))])
def test_sections(name):
    item = getattr(d2l_ext, name)
    _, *parts = re.split(r'\n\n(\w+)\n-+\n', inspect.getdoc(item))
    sections = dict(zip(parts[::2], parts[1::2]))
    text = sections.get('Parameters', sections.get('Attributes', ''))
    lines = re.findall(r'^[*\w][*\w, ]*', text, re.MULTILINE)
    documented = re.findall(r'\w+', ' '.join(lines))
    assert documented == list(inspect.signature(item).parameters)
    if inspect.isfunction(item):
        assert ('Returns' in sections) == returns_value(item)
