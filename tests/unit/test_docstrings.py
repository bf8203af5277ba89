"""Docstrings of public names: examples that run, and the sections that a reader looks for."""
import doctest
import importlib
import inspect
import pkgutil
import re

import pytest

import d2l_ext

MODULES = [module.name for module in pkgutil.walk_packages(d2l_ext.__path__, 'd2l_ext.')
           if not module.name.endswith('__main__')]


@pytest.mark.parametrize('name', MODULES)
def test_examples(name):
    module = importlib.import_module(name)
    assert doctest.testmod(module, extraglobs={'mx': d2l_ext.devices.mx}).failed == 0


@pytest.mark.parametrize('name', [name for name in d2l_ext.__all__
                                  if callable(getattr(d2l_ext, name))])
def test_sections(name):
    item = getattr(d2l_ext, name)
    text = inspect.getdoc(item)
    parameters = [parameter for parameter in inspect.signature(item).parameters.values()
                  if parameter.kind is not parameter.VAR_KEYWORD]
    if parameters and not re.search(r'Parameters\b.* (are|as) ', text):
        documented = re.search(r'^(Parameters|Attributes)\n-+\n(.*?)(\n\n\w+\n-+|\Z)', text,
                               re.DOTALL | re.MULTILINE)
        assert documented, f'{name}: no Parameters'
        for parameter in parameters:
            assert re.search(rf'\b{parameter.name}\b', documented[2]), f'{name}: {parameter.name}'
    if inspect.isfunction(item):
        assert 'Returns\n---' in text or re.match('(Set|Write|Draw|Print|Start)', text) \
            or re.search(r'Parameters\b.* (are|as) ', text), f'{name}: no Returns'
