"""Imports within the package point one way: from a module to those before it in ORDER."""
import ast
import pathlib

import pytest

import d2l_ext

PACKAGE = pathlib.Path(d2l_ext.__file__).parent
ORDER = [
    'arguments',
    'hardware',
    'images',
    'progress devices nets batches',
    'graphs',
    'checks',
    'scale storage',
    'data evaluation training',
    'studies',
    'diagnose __main__ search distributed',
]
RANKS = {name: rank for rank, names in enumerate(ORDER) for name in names.split()}
MODULES = sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob('*.py')
                 if path != PACKAGE / '__init__.py')  # which looks up all others


def imported(path):
    """Yield the modules and shelves of the package that a module imports, anywhere in it."""
    parents = path.with_suffix('').parts[:-1]
    for node in ast.walk(ast.parse((PACKAGE / path).read_text(encoding='utf-8'))):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = parents[:len(parents) + 1 - node.level]
            names = [node.module] if node.module else [alias.name for alias in node.names]
            for name in names:
                yield (*base, *name.split('.'))[0]


@pytest.mark.parametrize('path', MODULES, ids=str)
def test_a_module_imports_what_stands_before_it(path):
    own = path.with_suffix('').parts[0]
    for name in imported(path):
        assert name == own or RANKS[name] <= RANKS[own], f'{path} must not import {name}'
        if RANKS[name] == RANKS[own] and own == path.stem:  # of one line, from left to right
            line = ORDER[RANKS[own]].split()
            assert line.index(name) <= line.index(own), f'{path} must not import {name}'
