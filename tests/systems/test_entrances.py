"""The dev container and Binder do what README's first command does."""
import json
import os
import re

import pytest
from conftest import ROOT
from systems.__main__ import ADD_USER, HOME, SYSTEMS, command, make_root, missing, run

DOCKERFILE = (ROOT / '.devcontainer/Dockerfile').read_text(encoding='utf-8')
POST_BUILD = ROOT / '.binder/postBuild'


def instructions(*names):
    """Return what the Dockerfile has behind these words, in order."""
    return re.findall(rf'^(?:{"|".join(names)}) (.*)$', DOCKERFILE, re.MULTILINE)


def test_each_types_the_run_command_as_it_stands_in_the_readme():
    container = json.loads((ROOT / '.devcontainer/devcontainer.json').read_text())
    assert container['postCreateCommand'] == command('run') == instructions('RUN')[-1]
    assert (ROOT / '.devcontainer' / container['build']['dockerfile']).is_file()
    assert POST_BUILD.read_text().splitlines()[-1] == command('run')
    assert os.access(POST_BUILD, os.X_OK)


def test_the_container_runs_as_an_ordinary_user_and_asks_for_a_token():
    assert instructions('USER') == ['reader']
    lab, = map(json.loads, instructions('CMD'))
    assert lab[:2] == ['jupyter', 'lab'] and not [word for word in lab if 'token' in word.lower()]


def test_both_are_for_a_python_that_the_package_is_for():
    for version in (*instructions('FROM'), (ROOT / '.binder/runtime.txt').read_text()):
        assert 10 <= int(re.search(r'python[:-]3\.(\d+)', version)[1]) <= 14


@pytest.mark.heavy
@pytest.mark.skipif(missing() is not None, reason=str(missing()))
def test_their_commands_work_on_a_bare_system(tmp_path):
    """Debian's own Python stands in for the one that the images bring."""
    for folder in (tmp_path, *tmp_path.parents[:2]):
        folder.chmod(0o755)  # the ordinary user must get through
    root = tmp_path / 'root'
    make_root(SYSTEMS[1], root)
    (root / 'usr/local/bin/python').symlink_to('/usr/bin/python3')
    path, = (value.partition('=')[2] for value in instructions('ENV'))
    path = path.replace('$PATH', '/usr/local/bin:/usr/bin:/bin')
    add_user, *commands = instructions('RUN')
    # What make_root() has done already.
    assert add_user == ADD_USER and instructions('WORKDIR') == [f'/{HOME}/d2l_ext']
    for text in (*commands, '.binder/postBuild'):
        status, out = run(root, text, PATH=path)
        assert status == 0, f'{text}\n{out}'
    assert 'Section 7.3, Network in Network' in out
