"""Everything that is installed is pinned, and nothing else is needed."""
import ast
import re
import subprocess
import sys
from importlib import metadata

import nbformat
import pytest
from conftest import ROOT
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FILES = {name: (ROOT / name).read_text(encoding='utf-8')
         for name in ('requirements.txt', '.ci/requirements-hashes.txt')}
PYPROJECT = tomllib.loads((ROOT / 'pyproject.toml').read_text(encoding='utf-8'))
PROJECT = PYPROJECT['project']
EXTRAS = PROJECT['optional-dependencies']
# The extras that requirements.txt pins; the others must pin themselves.
PINNED_EXTRAS = re.search(r'-e \.\[([\w,]+)\]', FILES['requirements.txt'])[1].split(',')
PYTHONS = ('3.8.20', '3.9.25', '3.10.0', '3.10.20', '3.11.0', '3.11.15')
PLATFORMS = {'linux': 'posix', 'darwin': 'posix', 'win32': 'nt'}  # sys.platform and os.name


def applies(requirement, python=None, platform='linux'):
    """Return whether a requirement's marker holds: here, or for a Python on a platform."""
    environment = {}
    if python is not None:
        environment = {'python_full_version': python, 'python_version': python.rpartition('.')[0],
                       'sys_platform': platform, 'os_name': PLATFORMS[platform]}
    return requirement.marker is None or requirement.marker.evaluate(environment)


def content(name):
    """Return the lines of a requirements file without comments, each requirement on one line."""
    lines = FILES[name].replace('\\\n', ' ').splitlines()
    return [' '.join(line.split()) for line in lines if line and not line.startswith('#')]


def pins(python=None, platform='linux', name='requirements.txt'):
    """Return {name: version} of the pins in a file that hold here, or for a Python elsewhere."""
    found = {}
    for line in content(name):
        requirement = None if line == '-e .' else Requirement(line.partition(' --hash')[0])
        if requirement is not None and applies(requirement, python, platform):
            distribution = canonicalize_name(requirement.name)
            assert distribution not in found, f'{distribution} has two pins for Python {python}'
            found[distribution] = str(requirement.specifier)[2:]
    return found


def exact(requirement):
    """Return whether a requirement allows one version only, from a package index."""
    operators = [specifier.operator for specifier in requirement.specifier]
    return requirement.url is None and operators == ['=='] and '*' not in str(requirement.specifier)


# The files

def test_every_line_is_an_exact_pin():
    first, *lines = content('requirements.txt')
    assert first == '-e .'
    assert lines and all(exact(Requirement(line)) for line in lines)


def test_the_other_extras_and_the_build_are_pinned_too():
    lines = [line for extra, lines in EXTRAS.items() if extra not in PINNED_EXTRAS
             for line in lines]
    assert lines  # such as the GPU's
    for line in lines + PYPROJECT['build-system']['requires']:
        assert exact(Requirement(line)), f'{line} is no exact pin'


@pytest.mark.parametrize('python', PYTHONS)
def test_the_pins_are_what_pyproject_asks_for(python):
    assert SpecifierSet(PROJECT['requires-python']).contains(python)
    pinned = pins(python)
    for line in sum((EXTRAS[extra] for extra in PINNED_EXTRAS), PROJECT['dependencies']):
        requirement = Requirement(line)
        if applies(requirement, python):
            version = pinned.get(canonicalize_name(requirement.name))
            assert version, f'{line} has no pin; refresh requirements.txt'
            assert requirement.specifier.contains(version), f'{line} is pinned to {version}'


def test_environment_yml_is_for_a_python_that_the_pins_are_for():
    python, = re.findall(r'^  - python=(.+)$', (ROOT / 'environment.yml').read_text(), re.M)
    assert any(version.startswith(f'{python}.') for version in PYTHONS)


@pytest.mark.parametrize('name', FILES)
def test_no_file_names_an_index_or_another_source(name):
    assert not re.search(r'://|@|\bindex|find-links|trusted-host|^-(?!e \.$)', FILES[name], re.M)


@pytest.mark.parametrize('name', FILES)
def test_the_header_has_a_command_that_refreshes_the_file(name):
    command = ''.join(re.findall(r'^#     (.*\n)', FILES[name], re.M))
    command = command[command.index('{ grep'):]
    assert 'uv pip compile' in command and command.endswith(f'> .new && mv .new {name}\n')
    subprocess.run(['bash', '-n', '-c', command], check=True)


@pytest.mark.parametrize('platform', PLATFORMS)
@pytest.mark.parametrize('python', PYTHONS)
def test_the_pins_with_hashes_are_the_same(python, platform):
    assert pins(python, platform, '.ci/requirements-hashes.txt') == pins(python, platform), (
        'refresh .ci/requirements-hashes.txt')


def test_each_pin_there_has_hashes():
    for line in content('.ci/requirements-hashes.txt'):
        assert exact(Requirement(line.partition(' --hash')[0]))
        assert re.fullmatch(r'[^#@]+( --hash=sha256:[0-9a-f]{64})+', line), line


# What is installed

@pytest.fixture
def installed():
    """Return {name: version} of this environment, if it is one that requirements.txt made."""
    if sys.prefix == sys.base_prefix:
        pytest.skip('this is no virtual environment')
    found = {canonicalize_name(distribution.metadata['Name']): distribution
             for distribution in metadata.distributions()}
    for name in ('pip', 'setuptools', 'wheel', canonicalize_name(PROJECT['name'])):
        found.pop(name, None)
    # Installers note what was asked for by name, not as a dependency of something else.
    added = sorted(name for name in found.keys() - pins().keys()
                   if name == 'mxnet-cu112' or found[name].read_text('REQUESTED') is not None)
    if added:
        pytest.skip(f'somebody added to this environment: {", ".join(added)}')
    return {name: distribution.version for name, distribution in found.items()}


def test_the_pins_are_installed_and_nothing_else(installed):
    pinned = pins()
    pinned.pop('setuptools', None)
    assert installed == pinned, 'make a fresh environment and install requirements.txt'


# What is imported

DISTRIBUTIONS = {'dmlc_tracker': 'mxnet', 'sklearn': 'scikit-learn'}  # where the names differ


def sources():
    """Yield the code of the package, the tests and the notebooks."""
    for folder in ('d2l_ext', 'tests'):
        for path in (ROOT / folder).rglob('*.py'):
            yield path.name, path.read_text(encoding='utf-8')
    for path in (ROOT / 'chapters').glob('*.ipynb'):
        for cell in nbformat.read(path, as_version=4).cells:
            if cell.cell_type == 'code':
                yield path.name, cell.source


def imports(source):
    """Return the top-level names of all modules that a source imports and cannot do without."""
    names, tree = set(), ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Try) and any(
                isinstance(handler.type, ast.Name) and handler.type.id == 'ImportError'
                for handler in node.handlers):
            node.body = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names.update(alias.name.partition('.')[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.add(node.module.partition('.')[0])
    return names - set(re.findall(r"importorskip\('(\w+)'", source))


@pytest.mark.skipif(sys.version_info < (3, 10), reason='needs sys.stdlib_module_names')
def test_all_that_is_imported_is_asked_for_by_name():
    lines = sum(EXTRAS.values(), PROJECT['dependencies'])
    known = {canonicalize_name(Requirement(line).name) for line in lines}
    own = {'d2l_ext', 'tests', *(path.stem for path in (ROOT / 'tests').iterdir())}
    missing = {(where, name) for where, source in sources()
               for name in imports(source) - own - sys.stdlib_module_names
               if canonicalize_name(DISTRIBUTIONS.get(name, name)) not in known}
    assert not missing, 'name it in pyproject.toml and refresh requirements.txt'


# Jupyter answers this computer alone

def documented():
    """Yield the texts that tell readers what to type."""
    for path in [ROOT / 'README.md', ROOT / 'environment.yml', ROOT / 'pyproject.toml',
                 ROOT / 'tests' / 'README.md', *(ROOT / '.ci').iterdir(),
                 *(ROOT / 'd2l_ext').rglob('*.md'), *(ROOT / 'd2l_ext').rglob('*.py')]:
        yield path.name, path.read_text(encoding='utf-8')
    for path in (ROOT / 'chapters').glob('*.ipynb'):
        for cell in nbformat.read(path, as_version=4).cells:
            yield path.name, cell.source


def test_no_documented_command_opens_jupyter_to_the_network():
    texts = list(documented())
    assert any('jupyter lab' in text for _, text in texts)
    # Without options and settings Jupyter listens on localhost and asks for a token.
    opening = (r'--ip\b|\b0\.0\.0\.0\b|ServerApp\.|NotebookApp\.|LabApp\.|allow[-_]root'
               r'|allow[-_](?:origin|remote)|jupyter[\w-]*config')
    assert not [(where, match) for where, text in texts for match in re.findall(opening, text)]
