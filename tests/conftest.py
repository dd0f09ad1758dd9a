"""What every test shares: the project's folder, real data where there is any, seeds, markers, and the lessons' runs.

Random numbers: before each test and each fixture, random, numpy and torch are seeded with one number, which the header
and each failure show. `pytest --seed N` sets it. Without, it is another one in every run, and 0 where CI is set.

Lessons: tests/test_notebooks.py runs each notebook in a process of its own. They start together with the first test of
any file, on the core that pytest leaves free, and give way to the tests; pytest reaches the lessons last. Before them,
that core runs the tests with the marker `background`: those that only wait for other processes, and share nothing.
"""

import os
import random
import secrets
import shlex
import shutil
import signal
import subprocess
import sysconfig
import tempfile
import threading
import zlib
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import cached_property
from pathlib import Path

# Read as torch is imported: one core for the tests, one for what runs beside them.
os.environ.setdefault('OMP_NUM_THREADS', '1')

import hypothesis
import numpy as np
import pytest
import torch

pytest_plugins = ['browsers']  # in tests/jobs: a JupyterLab and a browser, once for all tests
ROOT = Path(__file__).resolve().parent.parent
ENVIRON = {k: v for k, v in os.environ.items() if k != 'IN_TEST'}  # for other processes: no test has changed it
SCRIPTS = Path(sysconfig.get_path('scripts'))  # where this environment's nbdev_export, papermill, ... are

hypothesis.settings.register_profile('project', deadline=None, derandomize=bool(os.environ.get('CI')), print_blob=True)
hypothesis.settings.load_profile('project')


def project_files(*kinds: str) -> list[str]:
    "Paths, relative to the project, of what git tracks or would track (not what .gitignore names), or of `kinds` only."
    kinds = kinds or ('--cached', '--others')
    listed = subprocess.run(
        ['git', 'ls-files', '-z', *kinds, '--exclude-standard'], cwd=ROOT, capture_output=True, text=True
    )
    if listed.returncode:
        pytest.skip(f'needs a git checkout with git installed: {listed.stderr.strip()}')
    return sorted(f for f in set(listed.stdout.split('\0')) if f and (ROOT / f).is_file())


def copy_project(folder: Path) -> Path:
    "Copy the project's files to `folder`, so that a tool may write there."
    for f in project_files():
        (folder / f).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / f, folder / f)
    return folder


def run_tool(
    *command: str,
    cwd: Path,
    timeout: float = 120,
    niceness: int = 0,
    running: set[subprocess.Popen] | None = None,
    **env: str,
) -> str:
    """What a command-line tool of this environment prints; fails with all of it if the tool fails.

    The tool gets `env` besides the environment that pytest had. With a `niceness` it gives way to other processes.
    While it runs, it is in `running`."""
    nice = ['nice', '-n', str(niceness)] if niceness and shutil.which('nice') else []
    tool = subprocess.Popen(
        [*nice, SCRIPTS / command[0], *command[1:]],
        cwd=cwd,
        env=ENVIRON | env,
        text=True,
        encoding='utf-8',
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    running = set() if running is None else running
    running.add(tool)
    try:
        printed, end = tool.communicate(timeout=timeout)[0], f'exited {tool.returncode}'
    except subprocess.TimeoutExpired:
        kill(tool)
        printed, end = tool.communicate()[0], f'was not done after {timeout:g} s'
    finally:
        running.discard(tool)
    if tool.returncode:
        pytest.fail(f'{" ".join(command)} {end}:\n{printed[-6000:]}', pytrace=False)
    return printed


def kill(tool: subprocess.Popen) -> None:
    "End a tool that run_tool started, with the workers that it started in turn."
    if tool.poll() is None:
        os.killpg(tool.pid, signal.SIGKILL)


@pytest.fixture(scope='session')
def root() -> Path:
    "The project's folder."
    return ROOT


@pytest.fixture(scope='session')
def shared_data() -> Path:
    "The folder of real faces and annotations that lies beside the checkout, or a skip that says what was looked for."
    folder = ROOT.parent / 'shared' / 'data'
    if not folder.is_dir():
        pytest.skip('no ../shared/data beside the checkout: tests on real faces are left out')
    return folder


@pytest.fixture
def home(tmp_path: Path) -> tuple[Path, dict[str, np.ndarray]]:
    "A small 300W, and its true points."
    from face_files import release

    return tmp_path / '300w', release(tmp_path / '300w')


@pytest.fixture
def own(tmp_path: Path) -> Path:
    "A folder of people's own data."
    from face_files import own_folder

    return own_folder(tmp_path / 'own')


# Markers


@pytest.hookimpl(tryfirst=True)  # before pytest selects by -m
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    "Mark whole folders and the users of the real data; put the lessons, which run beside the other tests, at the end."
    for item in items:
        where = item.path.relative_to(ROOT / 'tests') if item.path.is_relative_to(ROOT / 'tests') else item.path
        if where.parts[0] == 'jobs' or where.name == 'test_notebooks.py' or item.get_closest_marker('browser'):
            item.add_marker('slow')
        if 'shared_data' in getattr(item, 'fixturenames', ()):
            item.add_marker('data')
    items.sort(key=lambda item: item.path.name == 'test_notebooks.py')


# Seeds


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption('--seed', type=int, help='seed of random, numpy and torch before each test; default: see header')


def pytest_configure(config: pytest.Config) -> None:
    if config.option.seed is None:
        config.option.seed = 0 if os.environ.get('CI') else secrets.randbelow(2**32)


def pytest_report_header(config: pytest.Config) -> str:
    return f'random numbers: --seed {config.option.seed}'


def seed_all(seed: int, name: str = '') -> None:
    "Set the generators that a test uses without making one: those of random, numpy and torch; another start by name."
    seed = (seed ^ zlib.crc32(name.encode())) % 2**32
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002  the global generator is the one to be seeded
    torch.manual_seed(seed)


@pytest.hookimpl(tryfirst=True)
def pytest_fixture_setup(request: pytest.FixtureRequest) -> None:
    "A fixture that several tests share draws the same numbers, whichever of them is the first."
    seed_all(request.config.option.seed, request.fixturename or '')


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call(item: pytest.Item) -> None:
    seed_all(item.config.option.seed)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    report = yield
    if report.failed:
        seed = item.config.option.seed
        report.sections.append(('random numbers', f'the same again: pytest --seed {seed} {shlex.quote(item.nodeid)}'))
    return report


# Lessons, and tests in the background


class LessonRuns:
    """Runs of notebooks from top to bottom by nbdev_test: as plain Python, without a kernel, one thread each.

    They run in the background on a copy of the project, since lessons write pictures: one at a time, below the priority
    of the tests, and two at a time from the moment when a test waits for one. `result` waits for its notebook. The
    `tests`, functions by the tests' names, run before them."""

    def __init__(self, folder: Path, names: list[str], tests: Mapping[str, Callable[[], object]] | None = None) -> None:
        self.folder, self.waited_for, self.running = folder, False, set[subprocess.Popen]()
        self.lock, self.free = threading.Lock(), threading.Semaphore(1)
        self.pool, self.first = ThreadPoolExecutor(2), ThreadPoolExecutor(1)
        self.tests = {name: self.first.submit(act) for name, act in (tests or {}).items()}
        self.runs: dict[str, Future[str]] = {name: self.pool.submit(self.run, name) for name in names}

    @cached_property
    def project(self) -> Path:
        "The copy, made by the first run; beside it the real data, where lessons look for it."
        shared = ROOT.parent / 'shared'
        if shared.is_dir():
            (self.folder / 'shared').symlink_to(shared)
        return copy_project(self.folder / ROOT.name)

    def run(self, name: str) -> str:
        wait(self.tests.values())
        with self.free:
            with self.lock:
                project = self.project
            return run_tool(
                *('nbdev_test', '--path', f'nbs/{name}.ipynb', '--do_print'),
                cwd=project,
                timeout=900,
                niceness=0 if self.waited_for else 10,
                running=self.running,
                PYTHONPATH=str(project),
                OMP_NUM_THREADS='1',
                MPLBACKEND='agg',
            )

    def result(self, name: str) -> str:
        "What the run of a notebook printed; fails with it, and so with the cell's traceback, if the notebook failed."
        if not self.waited_for:
            self.waited_for = True
            self.free.release()  # for the second
        return self.runs[name].result()

    def stop(self) -> None:
        for pool in (self.first, self.pool):
            pool.shutdown(wait=False, cancel_futures=True)
        for tool in list(self.running):
            kill(tool)


@pytest.fixture(scope='session', autouse=True)
def lesson_runs(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LessonRuns | None]:
    """Runs of the selected notebooks and of selected tests in the background, begun before the session's first test.

    The background takes its tests from the last to the first, and so meets pytest, which begins with the first."""
    items = request.session.items
    chosen = [item.callspec.params['name'] for item in items if item.name.startswith('test_lesson_runs[')]
    marked = [item for item in items if item.get_closest_marker('background')]
    if len(items) == 1:  # it has nobody to run beside
        marked = []
    folder = tmp_path_factory.mktemp('lessons') if chosen or marked else None
    runs = folder and LessonRuns(
        folder, chosen, {item.nodeid: background_test(item, folder) for item in reversed(marked)}
    )
    yield runs
    if runs:
        runs.stop()


def background_test(item: pytest.Function, folder: Path) -> Callable[[], object]:
    "A test's function with its parameters, a folder of its own as `tmp_path`, and the real data as `shared_data`."

    def act() -> object:
        mine = Path(tempfile.mkdtemp(dir=folder))
        given = dict(tmp_path=mine, shared_data=ROOT.parent / 'shared' / 'data')
        given |= item.callspec.params if hasattr(item, 'callspec') else {}
        return item.obj(**{name: given[name] for name in item._fixtureinfo.argnames})

    return act


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    "The outcome of a test that the background has begun; one that still waits there is taken back and run here."
    runs = pyfuncitem.funcargs.get('lesson_runs')
    begun = runs and runs.tests.get(pyfuncitem.nodeid)
    if not begun or begun.cancel():
        return None
    begun.result()
    return True
