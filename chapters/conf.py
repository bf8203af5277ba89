"""The site. Build it with `python -m sphinx -M html chapters _site -W` in the folder above."""
import importlib.util
import os
import re
import urllib.parse

from docutils import nodes
from sphinx.util import logging

import d2l_ext

project = 'Network in Network'
html_title = project
language = 'en'
exclude_patterns = ['.ipynb_checkpoints', 'results']
extensions = ['myst_nb', 'numpydoc', 'sphinx.ext.autodoc', 'sphinx.ext.mathjax',
              'sphinx_copybutton']

nb_execution_mode = 'off'  # the pages show what is committed
myst_enable_extensions = ['dollarmath']
myst_heading_anchors = 3
numpydoc_show_class_members = False
copybutton_selector = 'div:not(.output) > div.highlight > pre'  # code, not what it prints

html_theme = 'sphinx_book_theme'
html_theme_options = {
    'navbar_persistent': [],  # the sidebar has a search field
    'footer_content_items': [],
    'show_prev_next': False,  # the notebooks' last line says what comes next
    'icon_links': [
        {'name': "The book's section", 'icon': 'fa-solid fa-book',
         'url': 'https://d2l.ai/chapter_convolutional-modern/nin.html'},
        {'name': 'Its discussion', 'icon': 'fa-solid fa-comments',
         'url': 'https://discuss.d2l.ai/t/79'},
    ],
}
repository = os.environ.get('D2L_EXT_REPOSITORY')  # such as https://github.com/owner/name
if repository:
    html_theme_options |= {
        'repository_url': repository, 'use_repository_button': True,
        'repository_branch': 'main', 'path_to_docs': 'chapters',
        'launch_buttons': {'binderhub_url': 'https://mybinder.org',
                           'notebook_interface': 'jupyterlab'},
    }

# One file of MathJax that asks for no other, loaded by the pages with maths.
mathjax_path = 'tex-svg.js'
_mathjax, = importlib.util.find_spec('sphinx-mathjax-offline').submodule_search_locations
html_static_path = ['_static', f'{_mathjax}/static/mathjax/{mathjax_path}']
html_css_files = ['site.css']
html_favicon = '_static/favicon.svg'
templates_path = ['_templates']
html_context = {'default_mode': 'auto'}  # light or dark, as the reader's system


def complete(app, docname, source):
    """Add to two pages, which JupyterLab shows without, what only Sphinx understands."""
    if docname == 'index':  # the sidebar, from the lists
        for part in source[0].split('\n## ')[1:]:
            pages = '\n'.join(re.findall(r'^- \[.+?\]\((\w+)\.\w+\)', part, re.M))
            caption = part.partition('\n')[0]
            source[0] += f'\n```{{toctree}}\n:hidden:\n:caption: {caption}\n\n{pages}\n```\n'
    elif docname == 'api':  # all that is public, by module
        modules = {}
        for name in filter(lambda name: callable(getattr(d2l_ext, name)), d2l_ext.__all__):
            modules.setdefault(getattr(d2l_ext, name).__module__, []).append(name)
        for module in sorted(modules, key=lambda module: (module.count('.'), module)):
            about = importlib.import_module(module).__doc__.partition('\n')[0]
            source[0] += f'\n## {about.rstrip(".")}\n\n```{{eval-rst}}\n'
            for name in modules[module]:
                kind = 'class' if isinstance(getattr(d2l_ext, name), type) else 'function'
                source[0] += f'.. auto{kind}:: d2l_ext.{name}\n'
            source[0] += '```\n'


def check_and_link(app, doctree):
    """Warn of figures without a text; put a download under the cell that readers hand in."""
    for image in doctree.findall(nodes.image):
        if not image.get('alt'):
            logging.getLogger(__name__).warning(
                'a figure without alt text: say what is to be seen in the metadata of its cell, '
                '{"mystnb": {"image": {"alt": "..."}}}', location=image)
    cells = [cell for cell in doctree.findall(nodes.container)
             if 'tag_copy-this' in cell['classes']]
    for number, cell in enumerate(cells, start=1):
        name = f'{app.env.docname}_{number}.py' if len(cells) > 1 else f'{app.env.docname}.py'
        code = next(cell.findall(nodes.literal_block)).astext() + '\n'
        cell += nodes.raw('', format='html', text=(
            f'<a class="download-cell" download="{name}" '
            f'href="data:text/x-python;charset=utf-8,{urllib.parse.quote(code)}">'
            f'Download this cell: {name}</a>'))


def setup(app):
    app.connect('source-read', complete)
    app.connect('doctree-read', check_and_link)
