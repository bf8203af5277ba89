"""The first page in a real JupyterLab, in a real browser, as a reader opens and runs it."""
import os
import platform
import secrets
import socket
import subprocess
import sys
import time

import nbformat
import pytest
from conftest import ROOT
from test_site import browser  # noqa: F401  a fixture

PAGE = ROOT / 'chapters' / '07_03_nin.ipynb'
# Progress bars at once, however fast the machine is, so that they can go wrong.
BARS = 'from d2l_ext import progress\nprogress.DELAY = 0.01\n'
CHANGED = '.lm-TabBar-tab.jp-mod-dirty'  # the tab of what closing would ask to save
IDLE = '.jp-Notebook-ExecutionIndicator[data-status=idle]'
WAITS = '.jp-InputPrompt:text-is("[*]:")'
# For three seconds: cells out of sight have no prompts that could be looked at.
DONE = f'''() => {{
    const idle = document.querySelector('{IDLE}') && ![...document.querySelectorAll(
        '.jp-InputPrompt')].some(prompt => prompt.textContent == '[*]:')
    window.since = idle ? window.since || Date.now() : 0
    return idle && Date.now() - window.since > 3000
}}'''
# Remembers, in `bars`, how many bars there were at once, as they come and go.
WATCH = '''() => {
    window.bars = {all: 0, red: 0}
    new MutationObserver(() => {
        for (const [key, name] of [['all', '.progress'], ['red', '.progress-bar-danger']])
            window.bars[key] = Math.max(window.bars[key], document.querySelectorAll(name).length)
    }).observe(document.body, {attributes: true, childList: true, subtree: true})
}'''


@pytest.fixture
def folder(tmp_path):
    """A folder with nothing in it but the page, as if this Python had executed it.

    JupyterLab 4.6.6 changes every notebook that another version has executed, and no metadata
    prevent it: `_updateLanguage` of its NotebookPanel writes the kernel's `language_info`, the
    version in it, when the kernel has started, and whatever is not equal makes the notebook
    dirty. Tried in this browser: without the version, without `language_info`, and with its name
    alone, pages are marked changed by each Python.
    """
    folder = tmp_path / 'chapters'
    folder.mkdir()
    notebook = nbformat.read(PAGE, as_version=4)
    notebook.metadata.language_info.version = platform.python_version()
    nbformat.write(notebook, folder / PAGE.name)
    return folder


@pytest.fixture
def address(tmp_path, folder):
    """Where JupyterLab shows the page; it finds the reader's data, but no settings."""
    pytest.importorskip('jupyterlab', reason='needs requirements.txt')
    startup = tmp_path / 'ipython' / 'profile_default' / 'startup'
    startup.mkdir(parents=True)
    (startup / 'bars.py').write_text(BARS)
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    environment = {name: value for name, value in os.environ.items()
                   if not name.startswith(('JUPYTER', 'D2L_EXT_RERUN', 'OMP_', 'TQDM'))}
    token = secrets.token_hex()
    environment.update(
        JUPYTER_TOKEN=token, HOME=str(tmp_path / 'home'), IPYTHONDIR=str(tmp_path / 'ipython'),
        MXNET_HOME=os.environ.get('MXNET_HOME') or os.path.expanduser('~/.mxnet'),
        PYTHONPATH=os.pathsep.join(filter(None, [str(ROOT), os.environ.get('PYTHONPATH')])))
    log = tmp_path / 'log'
    with open(log, 'w') as file:
        server = subprocess.Popen(
            [sys.executable, '-m', 'jupyterlab', '--no-browser', '--allow-root', '--ip=127.0.0.1',
             f'--port={port}', '--ServerApp.port_retries=0', '--LabApp.news_url=None',
             f'--ServerApp.root_dir={folder}'],
            env=environment, stdin=subprocess.DEVNULL, stdout=file, stderr=file)
    try:
        for _ in range(600):
            assert server.poll() is None, log.read_text()
            with socket.socket() as probe:
                if not probe.connect_ex(('127.0.0.1', port)):
                    break
            time.sleep(0.1)
        yield f'http://127.0.0.1:{port}/lab/tree/{PAGE.name}?reset&token={token}'
    finally:
        server.terminate()  # it ends its kernels, too
        server.wait(60)


def show(browser, address):  # noqa: F811
    """Return the page in a new window, as it is when nothing happens any more."""
    page = browser.new_page(viewport={'width': 1440, 'height': 900})
    page.set_default_timeout(120_000)  # ms; for busy machines
    page.goto(address)
    page.locator(IDLE).wait_for()
    page.locator('.jp-MarkdownCell h1').first.wait_for()
    page.wait_for_timeout(3000)  # what opening changes is changed by now
    return page


def test_run_all_then_save_and_open_again(browser, address, folder):  # noqa: F811
    page = show(browser, address)
    assert page.locator('.lm-TabBar-tab', has_text=PAGE.name).count() == 1
    assert page.locator(CHANGED).count() == 0

    page.evaluate(WATCH)
    page.get_by_role('menuitem', name='Run', exact=True).click()
    page.get_by_role('menuitem', name='Run All Cells', exact=True).click()
    page.locator(CHANGED).wait_for()
    page.locator(WAITS).first.wait_for()
    page.wait_for_function(DONE, timeout=300_000)
    bars = page.evaluate('window.bars')
    assert bars['all'] and not bars['red']

    page.keyboard.press('Control+s')
    page.locator(CHANGED).wait_for(state='detached')
    page.close()
    assert 'widget-view' not in (folder / PAGE.name).read_text(encoding='utf-8')
    cells = [cell for cell in nbformat.read(folder / PAGE.name, as_version=4).cells
             if cell.cell_type == 'code']
    assert [output for cell in cells for output in cell.outputs
            if output.output_type == 'error'] == []
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))

    page = show(browser, address)
    assert page.locator(CHANGED).count() == 0
    assert page.locator('.progress').count() == 0
    assert page.get_by_text('Error displaying widget').count() == 0
    page.close()
