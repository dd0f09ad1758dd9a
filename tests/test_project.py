"Guards on the project itself: notebooks, exported modules, README and settings agree, and keep the project's rules."

import ast
import importlib.metadata
import json
import posixpath
import re
import subprocess
import sys
from configparser import ConfigParser
from functools import cache
from pathlib import Path

import pytest
from conftest import ROOT, copy_project, project_files, run_tool
from render_readme import render
from run_notebooks import execute, is_current

NOTEBOOKS = sorted(p for p in (ROOT / 'nbs').rglob('*.ipynb') if '.ipynb_checkpoints' not in p.parts)
PARTS = sorted(p.name for p in (ROOT / 'nbs').iterdir() if re.match(r'\d_', p.name))  # 1_codec, 2_data, ...
SUBPACKAGES = [part.split('_')[1] for part in PARTS]
MODULES = sorted(p for p in (ROOT / 'subpixel_nb').rglob('*.py') if not p.name.startswith('_'))
COMMANDS = {
    'fan',
    'gpu_day',
    'graph',
    'launch',
}  # `python -m subpixel_nb.fan`: calls the module of that name in its part
TOP = {
    '.ci',
    '.gitattributes',
    '.gitignore',
    'LICENSE',
    'MANIFEST.in',
    'README.md',
    'figures',
    'nbs',
    'pyproject.toml',
    'settings.ini',
    'setup.py',
    'subpixel_nb',
    'tests',
}
BARE = ('codec', 'data', 'model', 'training')  # the parts that a bare GPU node imports
SCREEN = [
    'matplotlib',
    'plotly',
    'ipywidgets',
    'IPython',
    'ipykernel',
    'jupyter_core',
    'jupyterlab',
    'notebook',
    'nbformat',
    'nbclient',
    'nbdev',
    'papermill',
    'execnb',
    'fastcore',
]


def notebook_id(path) -> str:
    "`1_codec/01_geometry` of nbs/1_codec/01_geometry.ipynb."
    return path.relative_to(ROOT / 'nbs').with_suffix('').as_posix()


def module_name(path) -> str:
    "`codec.geometry` of subpixel_nb/codec/geometry.py."
    return '.'.join(path.relative_to(ROOT / 'subpixel_nb').with_suffix('').parts)


LESSONS = [p for p in NOTEBOOKS if re.match(r'\d\d_(?!index)', p.name)]
JOBS = [p for p in NOTEBOOKS if p.parent.name == 'nbs' and p.stem not in {'index', 'core', *COMMANDS} - {'gpu_day'}]


@cache
def read(path) -> dict:
    "A notebook's JSON, each source and text joined to one string."
    notebook = json.loads(path.read_text(encoding='utf-8'))
    for cell in notebook['cells']:
        cell['source'] = ''.join(cell['source'])
    return notebook


def code(path) -> list[dict]:
    "A notebook's code cells, without empty ones."
    return [c for c in read(path)['cells'] if c['cell_type'] == 'code' and c['source'].strip()]


def python(source: str) -> ast.Module:
    "A cell's syntax tree, without its lines of IPython magic."
    return ast.parse(re.sub(r'^([%!]).*$', 'pass', source, flags=re.M))


def imported(tree: ast.AST, module=None) -> set[str]:
    "Dotted names of the modules that some code imports; relative ones, of the file `module`, as subpixel_nb's own."
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            base = node.module or ''
            if node.level:
                folder = module.parents[node.level - 1].relative_to(ROOT) if module else Path('subpixel_nb')
                base = '.'.join([*folder.parts, *filter(None, [node.module])])
            whole = re.fullmatch(r'subpixel_nb(\.[a-z]+)?', base) and base.removeprefix('subpixel_nb.') not in map(
                module_name, MODULES
            )
            names |= (
                {f'{base}.{alias.name}' for alias in node.names if alias.name != '__version__'} if whole else {base}
            )
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
    package = copy / 'subpixel_nb'
    before = {str(p.relative_to(package)): p.read_bytes() for p in package.rglob('*.py')}
    for p in package.rglob('*.py'):
        p.unlink()
    run_tool('nbdev_export', cwd=copy)
    after = {str(p.relative_to(package)): p.read_bytes() for p in package.rglob('*.py')}
    assert sorted(before) == sorted(after), 'a module without a notebook, or a notebook not exported: run nbdev_export'
    assert [n for n in before if before[n] != after[n]] == [], 'these differ from their notebooks: run nbdev_export'


def test_notebooks_are_clean(tmp_path):
    copy = copy_project(tmp_path)
    run_tool('nbdev_clean', cwd=copy)
    dirty = [notebook_id(p) for p in NOTEBOOKS if p.read_bytes() != (copy / p.relative_to(ROOT)).read_bytes()]
    assert dirty == [], 'nbdev_clean would change these: run it'


def test_readme_is_rendered_from_index():
    assert (ROOT / 'README.md').read_text(encoding='utf-8') == render(), 'run python tests/render_readme.py'


def test_readme_links_lead_somewhere():
    text = (ROOT / 'README.md').read_text(encoding='utf-8')
    links = [t for t in re.findall(r'\]\(([^)\s]+)\)', text) if not re.match(r'\w+:|#', t)]
    assert links and [t for t in links if posixpath.normpath(t) not in project_files()] == []


@pytest.mark.parametrize('part', PARTS)
def test_index_of_a_part_lists_its_lessons(part):
    text = (ROOT / f'nbs/{part}/00_index.ipynb').read_text(encoding='utf-8')
    listed = re.findall(r'\[(\d\d_\w+)\]\(\1\.ipynb\)', text)
    assert listed == [p.stem for p in LESSONS if p.parent.name == part]


def test_readme_lists_every_part_and_job():
    text = (ROOT / 'README.md').read_text(encoding='utf-8')
    assert [part for part in PARTS if f'(nbs/{part}/00_index.ipynb)' not in text] == [], 'no link to these parts'
    assert [p.stem for p in JOBS if f'nbs/{p.name}' not in text] == [], 'these jobs are not named'


def test_readme_is_short():
    lines = (ROOT / 'README.md').read_text(encoding='utf-8').splitlines()
    assert len(lines) <= 150, 'details belong in the index of a part'


def test_readme_sets_up_in_two_commands():
    lines = re.findall(r'^python3 -m venv .*$', (ROOT / 'README.md').read_text(encoding='utf-8'), re.M)
    assert len(lines) == 2
    assert lines[0].endswith('&& papermill nbs/train.ipynb out.ipynb')
    assert lines[1].endswith('&& pytest')  # .ci/run takes this line from README.md


# One notebook for one module, each importing only what stands above it


@pytest.mark.parametrize('module', MODULES, ids=module_name)
def test_module_has_one_notebook(module):
    name = module_name(module)
    found = exporters().get(name, [])
    assert len(found) == 1, f'{name} should be exported by one notebook, not by {[p.name for p in found]}'
    part, _, stem = name.rpartition('.')
    assert re.fullmatch(rf'\d\d_{stem}' if part else stem, found[0].stem)
    assert found[0].parent.name == (PARTS[SUBPACKAGES.index(part)] if part else 'nbs')


def place(name: str) -> tuple[int, str]:
    "Where a module stands: the number of its part (core: -1; a command: last), and its notebook's number in it."
    if name in COMMANDS:
        return len(PARTS), name
    part = name.rpartition('.')[0]
    return (SUBPACKAGES.index(part) if part else -1), exporters()[name][0].name


@pytest.mark.parametrize('module', MODULES, ids=module_name)
def test_module_imports_only_from_above(module):
    "From core, from parts with a lower number, from lessons above it in its own part; inference and evaluation apart."
    here = place(module_name(module))
    names = imported(ast.parse(module.read_text(encoding='utf-8')), module)
    own = {name.removeprefix('subpixel_nb.') for name in names if name.startswith('subpixel_nb.')}
    assert [name for name in own if place(name) >= here] == [], 'these lessons are not above it'
    if module.parent.name == 'inference':
        assert [n for n in own if n.startswith('evaluation.')] == []


def test_first_parts_import_without_notebook_tools():
    names = [f'subpixel_nb.{name}' for name in map(module_name, MODULES) if name.split('.')[0] in (*BARE, 'core')]
    assert {name.split('.')[1] for name in names} == {*BARE, 'core'}
    script = f"""
import importlib, sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in {SCREEN}: raise ModuleNotFoundError(name + ' is not there on a bare GPU node')
sys.meta_path.insert(0, Blocker())
try: import matplotlib
except ModuleNotFoundError: pass
else: raise SystemExit('the blocker blocks nothing')
for name in {names}: importlib.import_module(name)
"""
    done = subprocess.run([sys.executable, '-c', script], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def definitions() -> list[tuple[str, str]]:
    "(public name, module) of each function, class and value that a module of the package defines at its top level."
    found = set()
    for module in MODULES:
        for node in ast.parse(module.read_text(encoding='utf-8')).body:
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                names = [node.name]
            elif isinstance(node, (ast.Assign, ast.AnnAssign, ast.AugAssign)):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                names = [n.id for t in targets for n in ast.walk(t) if isinstance(n, ast.Name)]
            else:
                names = []
            found |= {(name, module_name(module)) for name in names if not name.startswith('_')}
    return sorted(found)


def test_a_public_name_has_one_meaning():
    "No public name is defined in two modules, and no two differ by upper and lower case alone."
    alike = {}
    for name, module in definitions():
        alike.setdefault(name.casefold(), []).append(f'{module}.{name}')
    assert len(alike) > 200
    assert [names for names in alike.values() if len(names) > 1] == [], 'rename all but one of each line'


def test_exported_names_are_defined_where_they_are_exported():
    "What nbdev lists in a module's __all__ is what definitions() finds there."
    defined = set(definitions())
    for module in MODULES:
        for node in ast.parse(module.read_text(encoding='utf-8')).body:
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == '__all__':
                listed = ast.literal_eval(node.value)
                assert [name for name in listed if (name, module_name(module)) not in defined] == []


def positional(function: ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) -> list[str]:
    "Names of the arguments that a function takes by position, without a method's self, cls or ctx."
    names = [a.arg for a in function.args.posonlyargs + function.args.args]
    return names[1:] if names[:1] in (['self'], ['cls'], ['ctx']) else names


@pytest.mark.parametrize('module', MODULES, ids=module_name)
def test_no_function_takes_more_than_seven_arguments_by_position(module):
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
    functions = [n for n in ast.walk(ast.parse(module.read_text(encoding='utf-8'))) if isinstance(n, kinds)]
    long = {getattr(f, 'name', 'lambda'): len(positional(f)) for f in functions if len(positional(f)) > 7}
    assert long == {}, 'write * before those that are better given by name'


def test_ruff_finds_nothing():
    run_tool('ruff', 'check', 'nbs', 'tests', 'setup.py', cwd=ROOT)


def test_ruff_would_format_nothing():
    run_tool('ruff', 'format', '--check', 'nbs', 'tests', 'setup.py', cwd=ROOT)


@pytest.mark.background
@pytest.mark.slow
def test_mypy_finds_nothing():
    run_tool('mypy', 'subpixel_nb', cwd=ROOT, timeout=300)


def test_requirements_are_what_is_imported():
    owners = importlib.metadata.packages_distributions() | dict(
        dlib=['dlib-bin']
    )  # whose metadata names another module

    def normal(name: str) -> str:
        return re.sub(r'[-_.]+', '-', name).lower()

    def listed(key: str) -> set[str]:
        return {normal(re.match(r'[\w.-]+', line)[0]) for line in settings()[key].split()}

    def owned(trees) -> set[str]:
        tops = {name.split('.')[0] for tree in trees for name in imported(tree)}
        tops -= {*sys.stdlib_module_names, 'subpixel_nb', *(p.stem for p in (ROOT / 'tests').rglob('*.py'))}
        return {normal(owners[top][0]) if top in owners else top for top in tops}

    required, dev = listed('requirements'), listed('dev_requirements')
    extras = set().union(
        *(listed(key) for key in settings() if key.endswith('_requirements') and key != 'dev_requirements')
    )
    package = owned(ast.parse(p.read_text(encoding='utf-8')) for p in MODULES)
    lessons = owned(python(cell['source']) for path in NOTEBOOKS for cell in code(path))
    tests = owned(ast.parse(p.read_text(encoding='utf-8')) for p in (ROOT / 'tests').rglob('*.py'))
    assert package | lessons <= required | extras, 'imported by a notebook, not in settings.ini requirements'
    assert extras <= package | lessons and not extras & required, 'an extra that nothing imports, or that is no extra'
    assert tests <= required | dev | extras, 'imported by a test, in no list of settings.ini'
    programs = {'jupyterlab', 'papermill', 'ipykernel'}  # run, not imported
    assert required - programs <= package | lessons, 'required, but no notebook imports it'
    dev_programs = {'mypy', 'ruff', 'voila', 'playwright'}  # run, or imported by pytest.importorskip
    dev_programs |= {'fastcore', 'ghapi'}  # named for their versions
    assert dev - dev_programs <= tests, 'in dev_requirements, but no test imports it'


# What a reader of the notebooks sees


@pytest.mark.parametrize('path', JOBS, ids=notebook_id)
def test_job_has_one_parameters_cell(path):
    tagged = [c['source'] for c in read(path)['cells'] if 'parameters' in c['metadata'].get('tags', [])]
    assert len(tagged) == 1, 'papermill puts what it is given below the cell tagged `parameters`'


@pytest.mark.parametrize('path', LESSONS, ids=notebook_id)
def test_lesson_begins_as_one(path):
    first, second = read(path)['cells'][:2]
    assert re.fullmatch(r'# [^\n]+\n+> [^\n]+', first['source'].strip()), 'an H1 and a > subtitle'
    assert re.fullmatch(r'#\| default_exp [\w.]+', second['source'].strip()), 'then the module that it exports'


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
    assert [c['source'][:80] for c in code(path) if len(c['source'].splitlines()) > 60] == []
    assert notebook['metadata']['kernelspec']['name'] == 'python3'


@pytest.mark.parametrize('path', NOTEBOOKS, ids=notebook_id)
def test_stored_outputs_are_of_this_code(path):
    command = f'python tests/run_notebooks.py {path.relative_to(ROOT).as_posix()}'
    assert is_current(read(path)), f'changed since it was run: {command}'


def printed(cell: dict) -> str:
    "The text of a cell's outputs, without what it writes to stderr."
    texts = [
        o['text'] if 'text' in o else o.get('data', {}).get('text/plain', '')
        for o in cell['outputs']
        if o.get('name') != 'stderr'
    ]
    return ''.join(map(''.join, texts))


@pytest.mark.slow
def test_numbers_in_the_readme_are_those_of_a_run():
    "The cells of nbs/index.ipynb are run again, and print every number that they hold, to the digit."
    path = ROOT / 'nbs/index.ipynb'
    now = [cell for cell in execute(path).cells if cell.cell_type == 'code' and cell.source.strip()]
    numbers = re.compile(r'\d+(?:\.\d+)?')
    different = [
        f'{cell["source"][:200]}\nholds\n{printed(cell)}\nprints\n{printed(fresh)}'
        for cell, fresh in zip(code(path), now, strict=True)
        if numbers.findall(printed(cell)) != numbers.findall(printed(fresh))
    ]
    assert different == [], 'run python tests/run_notebooks.py nbs/index.ipynb, then python tests/render_readme.py'


# What does not belong in a repository


def test_top_level_holds_only_the_project():
    assert {f.split('/')[0] for f in project_files('--cached')} - TOP == set(), 'these are no part of the project'


def test_no_paths_of_one_machine():
    "No absolute path of somebody's machine and no host of a package registry in any text file."
    private = re.compile(
        r'(?<![\w.])/(?:root|work|opt|tmp|home/\w+|Users/\w+)/\w[^\s"\']*'
        r'|\b(?:[\w-]+\.)*(?:pypi|pythonhosted|npmjs|debian)\.org'
    )
    found = []
    for f in project_files():
        if f.endswith(('.png', '.jpg', '.npz')):
            continue
        text = (ROOT / f).read_text(encoding='latin-1' if f.endswith('.safetensors') else 'utf-8')
        if f.endswith('.ipynb'):
            text = re.sub(r'"image/\w+": "[^"]*"', '', text)
        found += [f'{f}: {m[0]}' for m in private.finditer(text)]
    assert found == []
