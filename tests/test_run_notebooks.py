"The tool that runs notebooks and stores their outputs: what counts as a change, what it writes, what it leaves alone."

import json
from pathlib import Path

import nbformat
import pytest
from conftest import run_tool
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from run_notebooks import ROOT, code_hash, is_current, main

CELLS = (
    'import math\nfrom os import path',
    'count = 3  # a parameter',
    'def area(r: float) -> float:\n    """Of a circle.\n\n    r: its radius"""\n    return math.pi * r**2',
    'print(f"{area(count):.2f}")\n%time total = sum(range(count))',
    'total',
)


def notebook(*sources: str) -> nbformat.NotebookNode:
    cells = [new_markdown_cell('# Title'), *map(new_code_cell, sources)]
    kernel = dict(display_name='python3', language='python', name='python3')
    return new_notebook(cells=cells, metadata=dict(kernelspec=kernel))


def changed(old: str, new: str) -> nbformat.NotebookNode:
    "The fixture notebook with one piece of its code exchanged, which must be there."
    assert sum(old in source for source in CELLS) == 1
    return notebook(*(source.replace(old, new) for source in CELLS))


@pytest.fixture
def path(tmp_path) -> Path:
    file = tmp_path / 'small.ipynb'
    made = notebook(*CELLS)
    made.cells[2].metadata['tags'] = ['parameters']
    nbformat.write(made, file)
    return file


def outputs(path: Path) -> str:
    "What the cells of a notebook printed, and their values."
    found = [o for c in nbformat.read(path, as_version=4).cells for o in c.get('outputs', [])]
    return ''.join(o.text if o.output_type == 'stream' else o.data['text/plain'] for o in found)


@pytest.mark.parametrize(
    'old, new',
    [
        ('import math\n', 'import math\nimport itertools\n'),
        ('from os import path', 'from os.path import join as path'),
        ('  # a parameter', ''),
        ('  # a parameter', '  # another comment'),
        ('count = 3', '#| export\ncount  =  (3)'),
        ('"{area(count):.2f}"', "'{area(count):.2f}'"),
        ('r: float', '\n        r: float,\n    '),
        ('\n\n    r: its', '\n\n        r: its'),
    ],
)
def test_imports_comments_and_formatting_do_not_count(old, new):
    assert code_hash(changed(old, new)) == code_hash(notebook(*CELLS))


@pytest.mark.parametrize(
    'old, new',
    [
        ('count = 3', 'count = 4'),
        ('count = 3', 'count = 3.0'),
        ('count = 3', 'count = None'),
        ('r**2', 'r**2 + 0'),
        (':.2f', ':.3f'),
        ('r: float', 'r: int'),
        ('its radius', 'the radius'),
        ('%time', '%timeit'),
        ('sum(range(count))', 'sum(range(1))'),
        ('\n%time total = sum(range(count))', ''),
    ],
)
def test_changed_statements_count(old, new):
    assert code_hash(changed(old, new)) != code_hash(notebook(*CELLS))


def test_cells_count_only_as_far_as_they_are_seen():
    "Where a cell ends decides what it shows; cells of imports alone, empty ones and prose show nothing."
    same = code_hash(notebook('import a', 'x = 1\nx', '', '# only a comment'))
    assert same == code_hash(notebook('x = 1\nx', 'from a import b'))
    assert same != code_hash(notebook('x = 1', 'x'))
    assert same != code_hash(notebook('x = 1\nx;'))
    assert same != code_hash(notebook('x = 1\nx', 'x'))


def test_imports_inside_blocks_do_not_count():
    block = 'try:\n    import a\nexcept ImportError:\n    a = None'
    assert code_hash(notebook(block)) == code_hash(notebook(block.replace('import a', 'from b import a')))


@pytest.mark.parametrize('source', ['!ls', 'x = !ls', '%%bash\nls', 'print?', 'await f()'])
def test_what_only_ipython_reads_counts(source):
    assert code_hash(notebook(source)) != code_hash(notebook())


def test_hash_is_the_same_everywhere():
    "Stored hashes hold in every version of Python, so this one never changes."
    assert code_hash(notebook(*CELLS[:3])) == '02edd2a68becc57d'


def test_notebook_without_code_is_current():
    assert is_current(notebook()) and not is_current(notebook('x = 1'))


@pytest.mark.slow
def test_it_runs_stores_and_stamps(path, capsys):
    assert not is_current(json.loads(path.read_text()))
    assert main([str(path)]) == 0
    assert 'small.ipynb: ran in ' in capsys.readouterr().out
    stored = json.loads(path.read_text())
    assert is_current(stored) and outputs(path).startswith('28.27\n') and outputs(path).endswith('3')
    assert set(stored['metadata']) == {'kernelspec', 'ran'} and stored['cells'][2]['metadata'] == {
        'tags': ['parameters']
    }
    before = path.read_bytes()
    run_tool('nbdev_clean', '--fname', str(path), cwd=ROOT)
    assert path.read_bytes() == before, 'nbdev_clean would change what the tool wrote'

    path.write_text(path.read_text().replace('count = 3', 'count = 4'))
    assert not is_current(json.loads(path.read_text()))
    assert main(['--stamp', str(path)]) == 0
    assert is_current(json.loads(path.read_text())) and outputs(path).startswith('28.27\n')  # not run


def test_parameters_are_those_of_one_run(path):
    "The outputs are those of the value that was given; the notebook keeps its own."
    assert main([str(path), '-p', 'count', '5']) == 0
    stored = nbformat.read(path, as_version=4)
    assert outputs(path).startswith('78.54\n') and [c.source for c in stored.cells[1:]] == list(CELLS)
    assert is_current(stored)


def test_kernel_starts_in_the_notebooks_folder_and_has_this_package(tmp_path):
    path = tmp_path / 'where.ipynb'
    source = 'import os, subpixel_nb\nprint(os.getcwd())\nprint(subpixel_nb.__file__)'
    nbformat.write(notebook(source), path)
    assert main([str(path)]) == 0
    assert outputs(path).splitlines() == [str(tmp_path.resolve()), str(ROOT / 'subpixel_nb/__init__.py')]


@pytest.mark.slow
def test_a_notebook_that_raises_is_left_as_it_was(path, tmp_path, capsys):
    "The next one is still run."
    bad = tmp_path / 'bad.ipynb'
    nbformat.write(notebook('print(1)', '1 / 0'), bad)
    before = bad.read_bytes()
    assert main([str(bad), str(path)]) == 1
    said = capsys.readouterr().out
    assert 'bad.ipynb: failed after' in said and 'ZeroDivisionError' in said and 'small.ipynb: ran in' in said
    assert bad.read_bytes() == before


@pytest.mark.parametrize(
    'words, said',
    [(['absent.ipynb'], 'no such notebook: absent.ipynb'), (['-p', 'a', '1'], 'name exactly one job')],
)
def test_wrong_words_are_named(words, said, capsys):
    with pytest.raises(SystemExit):
        main(words)
    assert said in capsys.readouterr().err


def test_parameters_of_what_is_no_job(tmp_path, capsys):
    path = tmp_path / 'lesson.ipynb'
    nbformat.write(notebook('x = 1'), path)
    assert main([str(path), '-p', 'x', '2']) == 1
    assert 'no cell with the tag `parameters`' in capsys.readouterr().out
