"""The site builds without a warning, and a real browser finds nothing wrong with any page."""
import functools
import http.server
import importlib
import os
import pathlib
import re
import shutil
import subprocess
import sys
import threading

import nbformat
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
CHAPTERS = ROOT / 'chapters'
NOTEBOOKS = sorted(path.stem for path in CHAPTERS.glob('*.ipynb'))
PAGES = [*NOTEBOOKS, 'api', 'index', 'genindex', 'search']
LISTED = re.findall(r'^- \[([^]]+)\]\((\w+)\.ipynb\):(.+?)\n(?=-|\n|\Z)',
                    (CHAPTERS / 'index.md').read_text(encoding='utf-8'), re.M | re.S)


def cells(notebook, folder=CHAPTERS):
    return nbformat.read(folder / f'{notebook}.ipynb', as_version=4).cells


# The start page, which JupyterLab shows, too

def test_the_start_page_lists_every_notebook_once():
    assert sorted(page for _, page, _ in LISTED) == NOTEBOOKS


@pytest.mark.parametrize('title, page, about', LISTED, ids=[page for _, page, _ in LISTED])
def test_the_start_page_has_title_question_and_times(title, page, about):
    texts = [cell.source for cell in cells(page) if cell.cell_type == 'markdown']
    assert texts[0].startswith(f'# {title}\n')
    minutes = round(sum(len(text.split()) for text in texts  # words, read with thought
                        if 'Without <code>d2l_ext' not in text) / 125)
    assert re.fullmatch(fr'.+\? \*{minutes} minutes to read, \d+ (seconds|minutes) to run\.\*',
                        ' '.join(about.split()))


# The build

def build(folder):
    """Build the site of `folder`/chapters as the README says."""
    pytest.importorskip('myst_nb', reason='needs .requirements/site.txt')
    places = os.pathsep.join(filter(None, [str(ROOT), os.environ.get('PYTHONPATH')]))
    return subprocess.run(
        [sys.executable, '-m', 'sphinx', '-M', 'html', 'chapters', '_site', '-W'], cwd=folder,
        env={**os.environ, 'PYTHONPATH': places}, capture_output=True, text=True, timeout=600)


def test_a_figure_without_alt_text_ends_the_build(tmp_path):
    folder = tmp_path / 'chapters'
    shutil.copytree(CHAPTERS, folder, ignore=shutil.ignore_patterns('*.ipynb', '*.md', '*.json'))
    (folder / 'index.md').write_text('# Title\n\n![](results/07_03_nin.png)\n')
    result = build(tmp_path)
    assert result.returncode and 'a figure without alt text' in result.stderr


@pytest.fixture(scope='module')
def chapters(tmp_path_factory):
    """A copy of the pages in which the first code cell of one is there to be copied."""
    folder = tmp_path_factory.mktemp('site') / 'chapters'
    shutil.copytree(CHAPTERS, folder, ignore=shutil.ignore_patterns('.ipynb_checkpoints'))
    path = folder / f'{NOTEBOOKS[0]}.ipynb'
    notebook = nbformat.read(path, as_version=4)
    if not any('copy-this' in cell.metadata.get('tags', ()) for cell in notebook.cells):
        cell = next(cell for cell in notebook.cells if cell.cell_type == 'code')
        cell.metadata['tags'] = ['copy-this']
        nbformat.write(notebook, path)
    return folder


@pytest.fixture(scope='module')
def html(chapters):
    result = build(chapters.parent)
    assert not result.returncode, result.stderr
    return chapters.parent / '_site' / 'html'


# In a browser

@pytest.fixture(scope='module')
def browser():
    playwright = pytest.importorskip('playwright.sync_api', reason='needs axe-playwright-python')
    path = shutil.which('chromium') or shutil.which('google-chrome')
    if path is None:
        pytest.skip('needs a browser: apt-get install chromium')
    with playwright.sync_playwright() as running:
        yield running.chromium.launch(executable_path=path, args=[
            '--no-sandbox', '--disable-gpu', '--disable-background-networking'])


@pytest.fixture(scope='module')
def address(html):
    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments):
            pass

    with http.server.ThreadingHTTPServer(
            ('127.0.0.1', 0), functools.partial(Handler, directory=html)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f'http://127.0.0.1:{server.server_port}/'
        server.shutdown()


@pytest.fixture
def page(browser, address):
    """An empty page that remembers, in `page.wrong`, what should not have happened."""
    # Without motion the colours are there at once when the scheme changes.
    with browser.new_context(base_url=address, reduced_motion='reduce') as context:
        page = context.new_page()
        page.set_default_timeout(120_000)  # ms; for busy machines
        page.wrong, page.answers = [], []
        page.on('console', lambda said: page.wrong.append(said.text)
                if said.type in ('error', 'warning') else None)
        page.on('pageerror', lambda error: page.wrong.append(str(error)))
        page.on('requestfailed', lambda request: page.wrong.append(request.url))
        page.on('request', lambda request: None if request.url.startswith((address, 'data:'))
                else page.wrong.append(request.url))
        page.on('response', lambda answer: page.answers.append(answer))
        yield page
        assert page.wrong == []
        assert [answer.url for answer in page.answers if answer.status >= 400] == []


# Elements wider than the window, but for code and what it prints, which scroll by themselves.
TOO_WIDE = '''() => [...document.querySelectorAll('.bd-article *')].filter(element =>
    element.getBoundingClientRect().right > document.documentElement.clientWidth + 1
    && !element.closest('pre, .cell_output, mjx-assistive-mml')
).map(element => element.outerHTML)'''

# Every kind of token once, which is all that axe has to see; thousands take it minutes.
FEWER_TOKENS = '''() => {
    const seen = new Set()
    for (const token of document.querySelectorAll('.highlight span[class]'))
        if (seen.has(token.className)) token.replaceWith(token.textContent)
        else seen.add(token.className)
}'''


@pytest.mark.parametrize('name', PAGES)
def test_page(name, page, html):
    Axe = importlib.import_module('axe_playwright_python.sync_playwright').Axe
    for width in (390, 1440):
        page.set_viewport_size({'width': width, 'height': 900})
        page.goto(f'{name}.html', wait_until='networkidle')
        assert page.evaluate(TOO_WIDE) == []
        assert page.evaluate('document.documentElement.scrollWidth') == width
        page.evaluate(FEWER_TOKENS)
        for scheme in ('light', 'dark'):
            page.emulate_media(color_scheme=scheme)
            page.locator(f'html[data-theme={scheme}]').wait_for()
            found = Axe().run(page, options={'preload': False, 'resultTypes': ['violations']})
            assert [(rule['id'], rule['nodes'][0]['html'])
                    for rule in found.response['violations']] == []

    maths = page.locator('.math').count()
    assert page.locator('mjx-container svg').count() == maths
    assert bool(maths) == any('tex-svg.js' in answer.url for answer in page.answers)

    for link in set(page.evaluate('[...document.links].map(link => link.href)')):
        path, _, anchor = link.partition('#')
        if path.startswith('http://127.0.0.1'):
            target = html / (path.split('/', 3)[3].partition('?')[0] or 'index.html')
            assert target.is_file(), link
            assert not anchor or f'id="{anchor}"' in target.read_text(encoding='utf-8'), link


def test_search_finds_pages(page):
    page.goto('search.html?q=dead+start')
    page.locator('#search-results li').first.wait_for()


def test_the_cell_to_copy_can_be_downloaded(page, chapters):
    for name in NOTEBOOKS:
        page.goto(f'{name}.html')
        sources = [cell.source for cell in cells(name, chapters)
                   if 'copy-this' in cell.metadata.get('tags', ())]
        links = page.locator('a.download-cell')
        assert links.count() == len(sources)
        for number, (link, source) in enumerate(zip(links.all(), sources), start=1):
            with page.expect_download() as download:
                link.click()
            ending = f'_{number}.py' if len(sources) > 1 else '.py'
            assert download.value.suggested_filename == name + ending
            assert download.value.path().read_text(encoding='utf-8') == source + '\n'


def test_the_section_weighs_at_most_a_megabyte(page):
    page.goto(f'{LISTED[0][1]}.html', wait_until='networkidle')
    weights = {answer.url: len(answer.body()) for answer in page.answers
               if '/_static/' not in answer.url}  # the theme's files, kept by the browser
    assert len(weights) > 2 and sum(weights.values()) <= 2**20, weights
