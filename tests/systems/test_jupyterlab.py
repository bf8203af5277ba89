"""The first page in a real JupyterLab, in a real browser, as a reader opens and runs it."""
import os
import shutil
import socket
import subprocess
import sys
import time

import nbformat
import pytest
from conftest import ROOT
from test_site import browser  # noqa: F401  a fixture

NAME = '07_03_nin.ipynb'
# Progress bars at once, however fast the machine is, so that they can go wrong.
BARS = 'from d2l_ext import progress\nprogress.DELAY = 0\n'
CHANGED = '.lm-TabBar-tab.jp-mod-dirty'  # of the tab; what closing it would ask to save
IDLE = '.jp-Notebook-ExecutionIndicator[data-status=idle]'
DONE = '''() => ![...document.querySelectorAll('.jp-InputPrompt')].some(
    prompt => prompt.textContent == '[*]:')'''
# Remembers, in `bars`, what the bars that come and go look like.
WATCH = '''() => {
    window.bars = {all: 0, red: 0}
    new MutationObserver(() => {
        for (const [key, names] of [['all', '.progress'],
                ['red', '.progress-bar-danger, .progress .bg-danger, .mod-danger']])
            window.bars[key] = Math.max(window.bars[key], document.querySelectorAll(names).length)
    }).observe(document.body, {attributes: true, childList: true, subtree: true})
}'''


@pytest.fixture
def folder(tmp_path):
    """A folder of the reader's with nothing in it but the page."""
    folder = tmp_path / 'reader' / 'chapters'
    folder.mkdir(parents=True)
    shutil.copy(ROOT / 'chapters' / NAME, folder)
    return folder


@pytest.fixture
def address(tmp_path, folder):
    """Where JupyterLab shows the page; it knows none of the reader's own settings."""
    pytest.importorskip('jupyterlab', reason='needs requirements.txt')
    startup = tmp_path / 'ipython' / 'profile_default' / 'startup'
    startup.mkdir(parents=True)
    (startup / 'bars.py').write_text(BARS)
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    places = os.pathsep.join(filter(None, [str(ROOT), os.environ.get('PYTHONPATH')]))
    env = {name: value for name, value in os.environ.items()
           if not name.startswith(('JUPYTER', 'D2L_EXT_RERUN', 'TQDM'))}
    env |= {'HOME': str(tmp_path / 'home'), 'IPYTHONDIR': str(tmp_path / 'ipython'),
            'D2L_EXT_CACHE': str(tmp_path / 'cache'), 'PYTHONPATH': places,
            'PATH': os.pathsep.join([os.path.dirname(sys.executable), os.environ['PATH']])}
    with open(tmp_path / 'log', 'w') as log:
        server = subprocess.Popen(
            [sys.executable, '-m', 'jupyterlab', '--no-browser', '--allow-root',
             '--ip=127.0.0.1', f'--port={port}', '--ServerApp.port_retries=0',
             '--IdentityProvider.token=', '--LabApp.news_url=None', f'--notebook-dir={folder}'],
            env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        for _ in range(600):
            assert server.poll() is None, (tmp_path / 'log').read_text()
            with socket.socket() as probe:
                if not probe.connect_ex(('127.0.0.1', port)):
                    break
            time.sleep(0.1)
        yield f'http://127.0.0.1:{port}/lab/tree/{NAME}?reset'
    finally:
        server.terminate()  # and its kernels
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def open_page(browser, address):  # noqa: F811
    """Open the page in a new window; return that when all is shown and nothing computes."""
    page = browser.new_page(viewport={'width': 1440, 'height': 900})
    page.set_default_timeout(120_000)  # ms; for busy machines
    page.goto(address)
    page.locator(IDLE).wait_for()
    page.locator('.jp-MarkdownCell h1').first.wait_for()
    page.wait_for_timeout(3000)  # what is marked as changed is so by now
    return page


def test_run_all_then_save_and_open_again(browser, address, folder):  # noqa: F811
    before = (folder / NAME).read_bytes()
    page = open_page(browser, address)
    assert page.locator('.lm-TabBar-tab', has_text=NAME).count() == 1
    assert page.locator(CHANGED).count() == 0

    page.evaluate(WATCH)
    page.get_by_role('menuitem', name='Run', exact=True).click()
    page.get_by_role('menuitem', name='Run All Cells', exact=True).click()
    page.locator(CHANGED).wait_for()
    page.get_by_text('[*]:').first.wait_for()
    page.wait_for_function(DONE, timeout=300_000)
    bars = page.evaluate('window.bars')
    assert bars['all'] and not bars['red'], bars

    page.keyboard.press('Control+s')
    page.locator(CHANGED).wait_for(state='detached')
    page.close()
    saved = nbformat.reads((folder / NAME).read_text(encoding='utf-8'), as_version=4)
    assert (folder / NAME).read_bytes() != before
    cells = [cell for cell in saved.cells if cell.cell_type == 'code']
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert [output for cell in cells for output in cell.outputs
            if output.output_type == 'error'] == []
    assert [path.name for path in folder.iterdir() if not path.name.startswith('.')] == [NAME]

    page = open_page(browser, address)
    assert page.locator(CHANGED).count() == 0
    assert page.get_by_text('Error displaying widget').count() == 0
    assert page.locator('.progress').count() == 0
    page.close()
