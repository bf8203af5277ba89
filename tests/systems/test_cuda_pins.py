"""What is installed for a GPU: the pins are what the finder of the libraries expects."""
import os
import re
import subprocess
import sys

import pytest
from conftest import ROOT

from d2l_ext.hardware import cuda


def extras():
    tomllib = pytest.importorskip('tomllib', reason='reading pyproject.toml needs Python 3.11')
    if not (ROOT / 'pyproject.toml').exists():
        pytest.skip('no pyproject.toml here: not in the repository')
    project = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']
    return project['dependencies'], project['optional-dependencies']


def test_the_gpu_extra_is_what_the_loader_expects():
    assert sorted(extras()[1]['gpu']) == sorted(cuda.REQUIREMENTS)


def test_environment_gives_python_and_the_next_line_to_type():
    yaml = pytest.importorskip('yaml')
    text = (ROOT / 'environment.yml').read_text()
    assert yaml.safe_load(text)['dependencies'] == ['python=3.13', 'pip']
    lock = re.search('^#     python -m pip install --no-deps -r (.*)$', text, re.MULTILINE)[1]
    assert set(cuda.REQUIREMENTS) <= set((ROOT / lock).read_text().splitlines())


def test_cpu_users_download_no_gpu_package():
    dependencies, optional = extras()
    wanted = [*dependencies, *optional.get('cpu', ())]
    if (ROOT / 'requirements.txt').exists():
        wanted += (ROOT / 'requirements.txt').read_text().splitlines()
    assert not [line for line in wanted if re.match(r'(nvidia|mxnet-cu)|.*\[gpu', line)]


def index_versions(name):
    """Return the versions that the index has for this Python; an empty list if it has none.

    Not ``pip install --dry-run``: where the index serves no separate metadata, that downloads
    gigabytes.
    """
    result = subprocess.run(
        [sys.executable, '-m', 'pip', '--disable-pip-version-check', 'index', 'versions',
         '--retries', '1', '--timeout', '20', name],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    found = re.search('^Available versions: (.*)$', result.stdout, re.MULTILINE)
    return found.group(1).split(', ') if found else []


def test_the_index_has_every_pin():
    if not sys.platform.startswith('linux') or os.uname().machine != 'x86_64':
        pytest.skip('the GPU packages are made for x86-64 Linux')
    if not index_versions('mxnet'):
        pytest.skip('the package index cannot be reached')
    missing = [pin for pin in cuda.REQUIREMENTS
               if pin.split('==')[1] not in index_versions(pin.split('==')[0])]
    assert missing == []
