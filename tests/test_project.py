"Guards on the project itself: notebooks, exported modules, README and settings say the same thing."
import ast
import importlib.metadata
import json
import posixpath
import re
import subprocess
import sys
from configparser import ConfigParser
from functools import cache

import pytest
from conftest import ROOT, copy_project, project_files, run_tool
from render_readme import render

NOTEBOOKS = sorted((ROOT / 'nbs').glob('*.ipynb'))
MODULES = sorted(p for p in (ROOT / 'subpixel_nb').glob('*.py') if not p.name.startswith('_'))
TOP = {'.ci', '.gitattributes', '.gitignore', 'LICENSE', 'MANIFEST.in', 'README.md', 'figures', 'nbs', 'pyproject.toml',
       'settings.ini', 'setup.py', 'subpixel_nb', 'tests'}
TRAINING_PATH = re.compile(r'(?!04)(0\d[a-z]?|10|11)_')          # the lessons whose modules a bare GPU node imports
SCREEN = ['matplotlib', 'plotly', 'ipywidgets', 'IPython', 'ipykernel', 'jupyter_core', 'jupyterlab', 'notebook',
          'nbformat', 'nbclient', 'nbdev', 'papermill', 'execnb', 'fastcore']


def notebook_id(path) -> str: return path.stem


@cache
def read(path) -> dict:
    "A notebook's JSON, each source and text joined to one string."
    notebook = json.loads(path.read_text(encoding='utf-8'))
    for cell in notebook['cells']: cell['source'] = ''.join(cell['source'])
    return notebook


def code(path) -> list[dict]:
    "A notebook's code cells, without empty ones."
    return [c for c in read(path)['cells'] if c['cell_type'] == 'code' and c['source'].strip()]


def python(source: str) -> ast.Module:
    "A cell's syntax tree, without its lines of IPython magic."
    return ast.parse(re.sub(r'^([%!]).*$', 'pass', source, flags=re.M))


def imported(tree: ast.AST) -> set[str]:
    "Dotted names of the modules that some code imports; relative ones as subpixel_nb's own."
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import): names |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            base = f'subpixel_nb.{node.module or ""}'.rstrip('.') if node.level else node.module
            names |= {f'{base}.{alias.name}' for alias in node.names} if base == 'subpixel_nb' else {base}
    return names


@cache
def exporters() -> dict[str, list]:
    "The notebooks that export each module, by the module's name."
    found = {}
    for path in NOTEBOOKS:
        for cell in code(path):
            for name in re.findall(r'^#\s*\|\s*default_exp\s+(\S+)', cell['source'], re.M):
                found.setdefault(name, []).append(path)
    return found


def settings():
    config = ConfigParser(delimiters=['='])
    config.read(ROOT / 'settings.ini', encoding='utf-8')
    return config['DEFAULT']


# What is written by tools is what they would write now

def test_export_reproduces_the_package(tmp_path):
    copy = copy_project(tmp_path)
    before = {p.name: p.read_bytes() for p in (copy / 'subpixel_nb').glob('*.py')}
    for p in (copy / 'subpixel_nb').glob('*.py'): p.unlink()
    run_tool('nbdev_export', cwd=copy)
    after = {p.name: p.read_bytes() for p in (copy / 'subpixel_nb').glob('*.py')}
    assert sorted(before) == sorted(after), 'a module without a notebook, or a notebook not exported: run nbdev_export'
    assert [n for n in before if before[n] != after[n]] == [], 'these differ from their notebooks: run nbdev_export'


def test_notebooks_are_clean(tmp_path):
    copy = copy_project(tmp_path)
    run_tool('nbdev_clean', cwd=copy)
    dirty = [p.name for p in NOTEBOOKS if p.read_bytes() != (copy / 'nbs' / p.name).read_bytes()]
    assert dirty == [], 'nbdev_clean would change these: run it'


def test_readme_is_rendered_from_index():
    assert (ROOT / 'README.md').read_text(encoding='utf-8') == render(), 'run python tests/render_readme.py'


def test_readme_links_lead_somewhere():
    text = (ROOT / 'README.md').read_text(encoding='utf-8')
    links = [t for t in re.findall(r'\]\(([^)\s]+)\)', text) if not re.match(r'\w+:|#', t)]
    assert links and [t for t in links if posixpath.normpath(t) not in project_files()] == []


def test_readme_lists_every_notebook():
    text = (ROOT / 'README.md').read_text(encoding='utf-8')
    listed = re.findall(r'^\| \[(\w+)\]\(nbs/\1\.ipynb\) \|', text, re.M)
    assert sorted(listed) == [p.stem for p in NOTEBOOKS if p.stem != 'index']


def test_readme_sets_up_in_two_commands():
    lines = re.findall(r'^python3 -m venv .*$', (ROOT / 'README.md').read_text(encoding='utf-8'), re.M)
    assert len(lines) == 2
    assert lines[0].endswith('&& papermill nbs/train.ipynb out.ipynb')
    assert lines[1].endswith('&& pytest')                                     # .ci/run takes this line from README.md


# One notebook for one module, each importing only what stands above it

@pytest.mark.parametrize('module', MODULES, ids=notebook_id)
def test_module_has_one_notebook(module):
    found = [p.name for p in exporters().get(module.stem, [])]
    assert len(found) == 1, f'{module.name} should be exported by one notebook, not by {found}'
    assert re.fullmatch(rf'\d\d[a-z]?_{module.stem}\.ipynb', found[0])


@pytest.mark.parametrize('module', MODULES, ids=notebook_id)
def test_module_imports_only_from_above(module):
    order = {name: paths[0].name.split('_')[0] for name, paths in exporters().items()}
    names = imported(ast.parse(module.read_text(encoding='utf-8')))
    own = {name.split('.')[1] for name in names if name.startswith('subpixel_nb.')}
    late = [f'{name} ({order.get(name, "no lesson")})' for name in own if order.get(name, '99') >= order[module.stem]]
    assert late == [], f'{module.stem} ({order[module.stem]}) imports from lessons that are not above it'


def test_training_path_imports_without_notebook_tools():
    names = [f'subpixel_nb.{name}' for name, paths in exporters().items() if TRAINING_PATH.match(paths[0].name)]
    assert names
    script = f'''
import importlib, sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in {SCREEN}: raise ModuleNotFoundError(name + ' is not there on a bare GPU node')
sys.meta_path.insert(0, Blocker())
try: import matplotlib
except ModuleNotFoundError: pass
else: raise SystemExit('the blocker blocks nothing')
for name in {names}: importlib.import_module(name)
'''
    done = subprocess.run([sys.executable, '-c', script], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_requirements_are_what_is_imported():
    owners = importlib.metadata.packages_distributions() | dict(dlib=['dlib-bin'])        # whose metadata names another module

    def normal(name: str) -> str: return re.sub(r'[-_.]+', '-', name).lower()

    def listed(key: str) -> set[str]: return {normal(re.match(r'[\w.-]+', line)[0]) for line in settings()[key].split()}

    def owned(trees) -> set[str]:
        tops = {name.split('.')[0] for tree in trees for name in imported(tree)}
        tops -= {*sys.stdlib_module_names, 'subpixel_nb', *(p.stem for p in (ROOT / 'tests').glob('*.py'))}
        return {normal(owners[top][0]) if top in owners else top for top in tops}

    required, dev = listed('requirements'), listed('dev_requirements')
    extras = set().union(*(listed(key) for key in settings() if key.endswith('_requirements') and key != 'dev_requirements'))
    package = owned(ast.parse(p.read_text(encoding='utf-8')) for p in MODULES)
    lessons = owned(python(cell['source']) for path in NOTEBOOKS for cell in code(path))
    tests = owned(ast.parse(p.read_text(encoding='utf-8')) for p in (ROOT / 'tests').glob('*.py'))
    assert package | lessons <= required | extras, 'imported by a notebook, not in settings.ini requirements'
    assert extras <= package | lessons and not extras & required, 'an extra that nothing imports, or that is no extra'
    assert tests <= required | dev | extras, 'imported by a test, in no list of settings.ini'
    programs = {'jupyterlab', 'papermill', 'ipykernel'}
    assert required - programs <= package | lessons, 'required, but no notebook imports it'


# What a reader of the notebooks sees

@pytest.mark.parametrize('path', [p for p in NOTEBOOKS if re.match(r'(?!index)\D', p.name)], ids=notebook_id)
def test_job_has_one_parameters_cell(path):
    tagged = [c['source'] for c in read(path)['cells'] if 'parameters' in c['metadata'].get('tags', [])]
    assert len(tagged) == 1, 'papermill puts what it is given below the cell tagged `parameters`'


@pytest.mark.parametrize('path', [p for p in NOTEBOOKS if re.match(r'\d', p.name)], ids=notebook_id)
def test_lesson_begins_as_one(path):
    first, second = read(path)['cells'][:2]
    assert re.fullmatch(r'# [^\n]+\n+> [^\n]+', first['source'].strip()), 'an H1 and a > subtitle'
    assert re.fullmatch(r'#\| default_exp \w+', second['source'].strip()), 'then the module that it exports'


def shows(source: str) -> bool:
    "Whether a cell surely prints or displays something: a print, or a value that is not a call at its end."
    body = python(source).body
    values = [s.value for s in body if isinstance(s, ast.Expr)]
    calls = [ast.unparse(v.func) for v in values if isinstance(v, ast.Call)]
    ends = bool(body) and isinstance(body[-1], ast.Expr) and not source.rstrip().endswith(';')
    value = (ast.Name, ast.Attribute, ast.Subscript, ast.Compare, ast.BinOp, ast.Tuple, ast.Dict)
    return not {'print', 'plt.show', 'display'}.isdisjoint(calls) or (ends and isinstance(values[-1], value))


@pytest.mark.parametrize('path', NOTEBOOKS, ids=notebook_id)
def test_stored_outputs(path):
    "Each cell that shows something has its output; no errors, no widget state, nothing large, no endless cell."
    notebook = read(path)
    run = [c for c in code(path) if 'eval: false' not in c['source']]
    silent = [c['source'][:80] for c in run if shows(c['source']) and not c['outputs']]
    assert silent == [], 'these cells have no stored output: run the notebook and save it'
    errors = [o['ename'] for c in code(path) for o in c['outputs'] if o['output_type'] == 'error']
    assert errors == []
    assert 'widgets' not in notebook['metadata'], 'widget state is stored: save without it'
    assert path.stat().st_size < 600_000
    assert [c['source'][:80] for c in code(path) if len(c['source'].splitlines()) > 40] == []
    assert notebook['metadata']['kernelspec']['name'] == 'python3'


# What does not belong in a repository

def test_top_level_is_the_house():
    assert {f.split('/')[0] for f in project_files('--cached')} - TOP == set(), 'no part of the project'


def test_no_paths_of_one_machine():
    "No absolute path of somebody's machine and no host of a package registry in any text file."
    private = re.compile(r'(?<![\w.])/(?:root|work|opt|tmp|home/\w+|Users/\w+)/\w[^\s"\']*'
                         r'|\b(?:[\w-]+\.)*(?:pypi|pythonhosted|npmjs|debian)\.org')
    found = []
    for f in project_files():
        if f.endswith(('.png', '.jpg', '.npz')): continue
        text = (ROOT / f).read_text(encoding='latin-1' if f.endswith('.safetensors') else 'utf-8')
        if f.endswith('.ipynb'): text = re.sub(r'"image/\w+": "[^"]*"', '', text)
        found += [f'{f}: {m[0]}' for m in private.finditer(text)]
    assert found == []
