"""Render README.md from nbs/index.ipynb: run `python tests/render_readme.py` after a change of that notebook.

README.md lies one folder above the notebook, so links and pictures relative to nbs/ are rewritten.
"""

import posixpath
import re
from pathlib import Path

import nbformat
from nbconvert import MarkdownExporter

ROOT = Path(__file__).resolve().parent.parent
LINK = re.compile(r'(?<=\]\()(?!\w+:|#|/)[^)\s]+')  # the target in [text](target), unless a URL, an anchor or absolute


def render(notebook: Path = ROOT / 'nbs' / 'index.ipynb') -> str:
    "The Markdown of `notebook`, with links that hold in the folder above it."
    cells = nbformat.read(notebook, as_version=4)
    for cell in cells.cells:
        if cell.source.startswith('#| echo: false'):  # Quarto's directive: the page shows the outputs without the code
            cell.source = ''
    cells.metadata.language_info = {'name': 'python'}  # nbdev_clean strips it; with it code is fenced as ```python
    markdown, resources = MarkdownExporter().from_notebook_node(cells)
    if resources.get('outputs'):
        raise ValueError(f'{notebook.name} shows a picture: save it in figures/, link to it')
    markdown = re.sub(r'```python\s*```\n', '', markdown)
    folder = notebook.parent.name
    markdown = LINK.sub(lambda m: posixpath.normpath(posixpath.join(folder, m[0])), markdown)
    return re.sub(r'\n{3,}', '\n\n', markdown).strip() + '\n'


if __name__ == '__main__':
    (ROOT / 'README.md').write_text(render(), encoding='utf-8', newline='\n')
