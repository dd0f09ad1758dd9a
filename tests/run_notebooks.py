"""Run notebooks and store their outputs: `python tests/run_notebooks.py [NOTEBOOK ...]`.

Each notebook's metadata holds `ran`, a hash of the code that its stored outputs come from. Without names, the notebooks
whose code has changed since then are run: first core, then the lessons in their order, then the jobs. A notebook that
raises an error is left as it was.

    python tests/run_notebooks.py nbs/1_codec/03_decoding.ipynb               # run one lesson
    python tests/run_notebooks.py nbs/ablation.ipynb -p root data/300w        # run a job with a parameter
    python tests/run_notebooks.py --stamp nbs/core.ipynb                      # only write the hash, run nothing
"""

import argparse
import ast
import hashlib
import inspect
import json
import os
import sys
import time
from collections.abc import Iterable, Mapping
from configparser import ConfigParser
from pathlib import Path

import nbformat
from execnb.nbio import write_nb
from IPython.core.inputtransformer2 import TransformerManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError
from nbdev.clean import clean_nb
from nbformat import NotebookNode

ROOT = Path(__file__).resolve().parent.parent


# The hash of a notebook's code


class Reduced(ast.NodeTransformer):
    "Takes import statements out of a syntax tree, and the indentation out of its docstrings."

    def visit_Import(self, node: ast.Import) -> None:
        return None

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        return None

    def generic_visit(self, node: ast.AST) -> ast.AST:
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            if ast.get_docstring(node, clean=False) is not None:
                text = node.body[0].value
                text.value = inspect.cleandoc(text.value)
        return super().generic_visit(node)


def describe(node: object) -> str:
    "A syntax tree as text that is the same in every version of Python: empty fields and type comments are left out."
    if isinstance(node, list):
        return f'[{", ".join(map(describe, node))}]'
    if not isinstance(node, ast.AST):
        return repr(node)
    fields = [(name, value) for name, value in ast.iter_fields(node) if name not in ('kind', 'type_comment')]
    filled = ', '.join(f'{name}={describe(value)}' for name, value in fields if value is not None and value != [])
    return f'{type(node).__name__}({filled})'


def code_hash(notebook: Mapping) -> str:
    """A hash of the statements in a notebook's code cells, 16 hexadecimal digits.

    Import statements, comments and formatting do not count, so that a module may move and a cell may be reformatted.
    A semicolon at the end of a cell counts, since it hides the cell's value, and so do IPython's magic commands.
    """
    cells = []
    for cell in notebook['cells']:
        source = ''.join(cell['source'])
        if cell['cell_type'] != 'code' or not source.strip():
            continue
        tree = Reduced().visit(ast.parse(TransformerManager().transform_cell(source)))
        if tree.body:
            cells.append(describe(tree) + (';' if source.rstrip().endswith(';') else ''))
    return hashlib.sha256('\n'.join(cells).encode()).hexdigest()[:16]


def is_current(notebook: Mapping) -> bool:
    "Whether a notebook's stored outputs come from the code that it holds. Without code there is nothing to run."
    has_code = any(c['cell_type'] == 'code' and ''.join(c['source']).strip() for c in notebook['cells'])
    return not has_code or notebook['metadata'].get('ran') == code_hash(notebook)


# Running one


def with_parameters(notebook: NotebookNode, parameters: Mapping[str, object]) -> NotebookNode:
    """A copy of a job with a cell below its cell of parameters that sets others, as papermill adds it.

    Raises ValueError if the notebook has no cell with the tag `parameters`."""
    tagged = [i for i, cell in enumerate(notebook.cells) if 'parameters' in cell.metadata.get('tags', [])]
    if not tagged:
        raise ValueError('-p was given, but the notebook has no cell with the tag `parameters`: it is not a job')
    copy = NotebookNode(notebook | {'cells': list(notebook.cells)})
    values = '\n'.join(f'{name} = {value!r}' for name, value in parameters.items())
    copy.cells.insert(tagged[0] + 1, nbformat.v4.new_code_cell(values, metadata={'tags': ['injected-parameters']}))
    return copy


def execute(path: Path, parameters: Mapping[str, object] | None = None) -> NotebookNode:
    """The notebook with the outputs of a run in a new kernel, which starts in the notebook's folder.

    Nothing is written. The kernel imports the package of this checkout. Raises CellExecutionError with the traceback of
    the cell that fails.
    """
    notebook = nbformat.read(path, as_version=4)
    run = with_parameters(notebook, parameters) if parameters else notebook
    env = {k: v for k, v in os.environ.items() if k not in ('MPLBACKEND', 'IN_TEST')}
    env['PYTHONPATH'] = os.pathsep.join(filter(None, [str(ROOT), env.get('PYTHONPATH')]))
    client = NotebookClient(
        run,
        timeout=None,
        kernel_name='python3',
        coalesce_streams=True,
        resources={'metadata': {'path': str(path.resolve().parent)}},
    )
    client.execute(env=env)
    notebook.cells = [c for c in run.cells if 'injected-parameters' not in c.metadata.get('tags', [])]
    return notebook


def store(notebook: NotebookNode, path: Path) -> None:
    "Write a notebook with the hash of its code, cleaned as nbdev_clean does it, and without the state of its widgets."
    config = ConfigParser(delimiters=['='])
    config.read(ROOT / 'settings.ini', encoding='utf-8')
    allowed = {key: config['DEFAULT'][key].split() for key in ('allowed_metadata_keys', 'allowed_cell_metadata_keys')}
    plain = json.loads(nbformat.writes(notebook))
    plain['metadata'].pop('widgets', None)
    plain['metadata']['ran'] = code_hash(plain)
    clean_nb(plain, **allowed)
    write_nb(plain, path)


# The command


def default_notebooks() -> list[Path]:
    "Every notebook whose code has changed since it was run: core, the lessons in their order, then the rest."
    paths = [p for p in (ROOT / 'nbs').rglob('*.ipynb') if '.ipynb_checkpoints' not in p.parts]
    paths.sort(key=lambda p: (p.stem != 'core', p.parent.name == 'nbs', p))
    return [p for p in paths if not is_current(nbformat.read(p, as_version=4))]


def read_value(text: str) -> object:
    "A parameter's value: a Python literal (3, 1e-4, True, None), or the text itself."
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def shown(path: Path) -> str:
    "The path from the project's folder, or the whole path of a notebook outside it."
    path = path.resolve()
    return str(path.relative_to(ROOT) if path.is_relative_to(ROOT) else path)


def main(words: Iterable[str] | None = None) -> int:
    "Run or stamp the notebooks that the command line names; the exit status is the number of those that failed."
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('notebooks', nargs='*', type=Path, help='default: all whose code changed since they were run')
    parser.add_argument(
        '-p', nargs=2, action='append', default=[], metavar=('NAME', 'VALUE'), help='a parameter of a job; repeatable'
    )
    parser.add_argument('--stamp', action='store_true', help='only write the hash: the stored outputs are current')
    given = parser.parse_args(None if words is None else list(words))
    if given.p and len(given.notebooks) != 1:
        parser.error('-p belongs to one notebook: name exactly one job')
    if missing := [str(p) for p in given.notebooks if not p.is_file()]:
        parser.error(f'no such notebook: {", ".join(missing)}')
    paths = given.notebooks or default_notebooks()
    if not paths:
        print('every notebook is as it was run: nothing to do')
    parameters = {name: read_value(value) for name, value in given.p}
    failed = 0
    for path in paths:
        start = time.monotonic()
        if given.stamp:
            store(nbformat.read(path, as_version=4), path)
            print(f'{shown(path)}: hash written, not run', flush=True)
            continue
        try:
            store(execute(path, parameters), path)
            print(f'{shown(path)}: ran in {time.monotonic() - start:.1f} s, outputs stored', flush=True)
        except (CellExecutionError, DeadKernelError, ValueError) as error:
            failed += 1
            print(f'{shown(path)}: failed after {time.monotonic() - start:.1f} s, left as it was\n{error}', flush=True)
    return failed


if __name__ == '__main__':
    sys.exit(min(main(), 1))
