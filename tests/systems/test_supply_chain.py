"""Everything that is installed is pinned, for each Python, and nothing else is needed."""
import ast
import datetime
import re
import shutil
import subprocess
import sys
from importlib import metadata

import nbformat
import pytest
from conftest import PYPROJECT, ROOT, tomllib
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from d2l_ext.hardware import cuda

PROJECT = PYPROJECT['project']
EXTRAS = PROJECT['optional-dependencies']
SCRIPT = (ROOT / '.ci' / 'lock').read_text(encoding='utf-8')
INSTEAD = re.search(r"^instead='(.*)'", SCRIPT, re.M)[1].split()  # of what mxnet and d2l ask for
# {path: extras} of all locks.
LOCKS = {name: re.findall(r'--extra (\w+)', options)
         for name, options in re.findall(r'^lock (\S+)(.*)', SCRIPT, re.M)}
HASHES = '.requirements/hashes.txt'
SITE = '.requirements/site.txt'  # what comes on top of requirements.txt
PYTHONS = ('3.10.20', '3.11.0', '3.11.15', '3.12.12', '3.13.9', '3.14.0')
LINUX = {'sys_platform': 'linux', 'os_name': 'posix', 'platform_system': 'Linux',
         'platform_machine': 'x86_64', 'implementation_name': 'cpython'}
HERE = {**default_environment(), 'extra': ''}


def on(python):
    """Return what markers are evaluated with, for a Python on Linux."""
    return {**HERE, **LINUX, 'python_full_version': python,
            'python_version': python.rpartition('.')[0]}


def content(name):
    """Return the lines of a requirements file without comments, each requirement on one line."""
    lines = (ROOT / name).read_text(encoding='utf-8').replace('\\\n', ' ').splitlines()
    return [' '.join(line.split()) for line in lines if not line.startswith('#')]


def applies(requirement, environment):
    """Return whether a requirement's marker holds."""
    return requirement.marker is None or requirement.marker.evaluate(environment)


def pins(name, environment=HERE):
    """Return {name: version} of a lock's pins that hold here, or in another environment."""
    found = pins('requirements.txt', environment) if name == SITE else {}
    for line in content(name):
        requirement = Requirement('d2l_ext' if line == '-e .' else line.partition(' --hash')[0])
        if line != '-e .' and applies(requirement, environment):
            distribution = canonicalize_name(requirement.name)
            assert distribution not in found, f'{distribution} has two pins'
            found[distribution] = str(requirement.specifier)[2:]
    return found


def exact(line):
    """Return whether a requirement allows one version only, from a package index."""
    requirement = Requirement(line)
    operators = [specifier.operator for specifier in requirement.specifier]
    return requirement.url is None and operators == ['=='] and '*' not in str(requirement.specifier)


# The files

def test_one_command_refreshes_all_locks():
    assert {*LOCKS} == {'requirements.txt', *(
        f'.requirements/{path.name}' for path in (ROOT / '.requirements').iterdir())}
    subprocess.run(['bash', '-n', ROOT / '.ci' / 'lock'], check=True)


@pytest.mark.parametrize('name', LOCKS)
def test_every_line_is_an_exact_pin_and_no_file_names_an_index(name):
    lines = content(name)
    if name == HASHES:
        assert all(re.fullmatch(r'[^#@]+( --hash=sha256:[0-9a-f]{64})+', line) for line in lines)
        lines = [line.partition(' --hash')[0] for line in lines]
    elif name != SITE:
        assert lines.pop(0) == '-e .'
    assert lines and all(map(exact, lines))
    text = (ROOT / name).read_text(encoding='utf-8')
    options = {HASHES: '--no-deps --require-hashes',
               SITE: '--no-deps -r requirements.txt'}.get(name, '--no-deps')
    assert f'#     python -m pip install {options} -r {name}\n' in text
    assert not re.search(r'://|@|\bindex|find-links|trusted-host|^-(?!e \.$)', text, re.M)


def test_the_gpu_and_the_build_are_pinned_in_pyproject():
    wheel = f'{cuda.GPU_WHEEL}=={cuda.VERSION}'
    assert sorted(EXTRAS['gpu']) == sorted([wheel, *cuda.PINS.values()])
    assert all(map(exact, EXTRAS['gpu'] + PYPROJECT['build-system']['requires']))


def test_cpu_users_download_no_gpu_package():
    assert not [name for name in LOCKS if name != '.requirements/gpu.txt'
                for pin in pins(name) if re.match('nvidia|mxnet-cu', pin)]


@pytest.mark.parametrize('python', PYTHONS)
def test_the_pins_with_hashes_are_the_same(python):
    assert pins(HASHES, on(python)) == pins('requirements.txt', on(python))


@pytest.mark.parametrize('python', PYTHONS)
@pytest.mark.parametrize('name', LOCKS)
def test_the_locks_are_complete(name, python):
    """All that pyproject.toml asks for, and the metadata of what is installed in this version."""
    environment, pinned, walked = on(python), pins(name, on(python)), set()
    found = {canonicalize_name(distribution.metadata['Name']): distribution
             for distribution in metadata.distributions()}
    todo = [(line, '', 'pyproject.toml') for line in
            sum((EXTRAS[extra] for extra in LOCKS[name]), PROJECT['dependencies'])]
    while todo:
        line, extra, asked_by = todo.pop()
        requirement = Requirement(line)
        if not applies(requirement, {**environment, 'extra': extra}) or (line, extra) in walked:
            continue
        walked.add((line, extra))
        package = canonicalize_name(requirement.name)
        version = pinned.get(package)
        assert version, f'{asked_by} asks for {line}, which has no pin: bash .ci/lock'
        assert package in INSTEAD or requirement.specifier.contains(version, prereleases=True), (
            f'{asked_by} asks for {line}, but {version} is pinned')
        if package in found and found[package].version == version:
            todo += [(child, extra, package) for child in found[package].requires or ()
                     for extra in ('', *requirement.extras)]
    assert SpecifierSet(PROJECT['requires-python']).contains(python)
    assert len(walked) > 50


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
    # All that a lock names was asked for by name, and so was what somebody has added.
    added = sorted(found.keys() - pins('requirements.txt').keys())
    if added:
        pytest.skip(f'somebody added to this environment: {", ".join(added)}')
    return {name: distribution.version for name, distribution in found.items()}


def test_the_pins_are_installed(installed):
    assert installed == pins('requirements.txt'), (
        'make a fresh environment and install requirements.txt')


# What the package index says

@pytest.fixture
def uv():
    if not shutil.which('uv'):
        pytest.skip('.ci/lock needs uv')


@pytest.mark.index
def test_the_locks_are_what_pyproject_gives(uv, tmp_path):
    """The metadata of every pin, for all Pythons."""
    shutil.copytree(ROOT / '.requirements', tmp_path / '.requirements')
    shutil.copytree(ROOT / '.ci', tmp_path / '.ci')
    for name in ('pyproject.toml', 'requirements.txt', 'README.md', 'LICENSE'):
        shutil.copy(ROOT / name, tmp_path)
    subprocess.run(['bash', tmp_path / '.ci' / 'lock', '--no-upgrade'], check=True)
    for name in LOCKS:
        assert (tmp_path / name).read_text() == (ROOT / name).read_text(), 'bash .ci/lock'


@pytest.mark.index
def test_no_package_is_older_than_two_years_without_a_reason(uv, tmp_path):
    old = (datetime.datetime.now(datetime.timezone.utc) - datetime.timedelta(days=730))
    lines = {line for name in LOCKS if name != HASHES for line in content(name)} - {'-e .'}
    (tmp_path / 'all.txt').write_text('\n'.join(sorted(lines)))
    subprocess.run(['uv', 'pip', 'compile', 'all.txt', '--no-deps', '--universal', '--quiet',
                    '--python-version', '3.10', '--output-file', 'pylock.toml'],
                   cwd=tmp_path, check=True)
    reasons = {word for name in LOCKS
               for line in (ROOT / name).read_text(encoding='utf-8').splitlines()
               if line.startswith('#') for word in re.findall(r'[\w-]+', line)}
    packages = tomllib.loads((tmp_path / 'pylock.toml').read_text())['packages']
    without = [package['name'] for package in packages if package['name'] not in reasons and min(
        file['upload-time'] for file in (*package.get('wheels', ()), package.get('sdist'))
        if file) < old]
    assert len(packages) > 150 and without == []


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


def test_all_that_is_imported_is_asked_for_by_name():
    lines = sum(EXTRAS.values(), PROJECT['dependencies'])
    known = {canonicalize_name(Requirement(line).name) for line in lines}
    own = {'d2l_ext', 'tests', *(path.stem for path in (ROOT / 'tests').rglob('*'))}
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
