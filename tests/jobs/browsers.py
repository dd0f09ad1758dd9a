"""JupyterLab, Voilà and a browser for the tests that drive a page.

A plugin of tests/conftest.py, so that its fixtures are made once for a whole session. They need a chromium of the
system (Debian: apt-get install chromium); playwright's own download is not used."""

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)
START, RUN = 120, 600  # seconds to wait for a server or page, and for Run All; a busy machine takes minutes
OPEN = """async () => {
  const app = window.jupyterapp; await app.started; await app.restored;
  let panel;
  while (!(panel = app.shell.currentWidget)?.sessionContext) await new Promise(r => setTimeout(r, 200));
  await panel.context.ready; await panel.revealed; await panel.sessionContext.ready;
  await panel.sessionContext.session.kernel.info;
}"""
RUN_ALL = """async () => {
  await window.jupyterapp.commands.execute('notebook:run-all-cells');
  const cells = window.jupyterapp.shell.currentWidget.context.model.sharedModel.cells;
  const codes = cells.filter(c => c.cell_type === 'code' && c.source.trim());
  const errors = codes.flatMap(c => c.getOutputs()).filter(o => o.output_type === 'error');
  return { ran: codes.filter(c => c.execution_count).length, codes: codes.length, errors: errors.map(o => o.evalue) };
}"""
T = TypeVar('T')
SHUT_DOWN = '() => window.jupyterapp.shell.currentWidget.sessionContext.shutdown()'
CONTRAST = """element => {
  const rgba = text => { const v = text.match(/[\\d.]+/g).map(Number); return v.length < 4 ? [...v, 1] : v; };
  const style = getComputedStyle(element), svg = element instanceof SVGElement;
  let behind = element, under = [0, 0, 0, 0];
  while (under[3] === 0 && (behind = behind.parentElement)) under = rgba(getComputedStyle(behind).backgroundColor);
  const text = rgba(svg ? style.fill : style.color), over = text.map((c, i) => c * text[3] + under[i] * (1 - text[3]));
  const light = c => c.slice(0, 3).map(v => v / 255).map(v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0) + .05;
  const both = [light(over), light(under)];
  return Math.max(...both) / Math.min(...both);
}"""


# Servers


@contextmanager
def served(words: Sequence[str], project: Path, scratch: Path, answers: str) -> Iterator[None]:
    "A Jupyter server, `python -m` with some words, in the folder `project`, while its address `answers`."
    names = 'HOME JUPYTER_CONFIG_DIR JUPYTER_DATA_DIR JUPYTER_RUNTIME_DIR IPYTHONDIR MPLCONFIGDIR'.split()
    names += ['JUPYTERLAB_SETTINGS_DIR', 'JUPYTERLAB_WORKSPACES_DIR']
    own = {name: str(scratch / name.lower()) for name in names}
    for folder in own.values():
        Path(folder).mkdir(parents=True, exist_ok=True)
    paths = os.pathsep.join([str(project), *filter(None, [os.environ.get('PYTHONPATH')])])
    log = scratch / 'server.log'
    with log.open('w') as out:
        server = subprocess.Popen(
            [sys.executable, '-m', *words],
            cwd=project,
            env=os.environ | own | {'PYTHONPATH': paths, 'OMP_NUM_THREADS': '1'},
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            start_new_session=True,
        )
        try:
            deadline = time.monotonic() + START
            while not does_answer(answers):
                if server.poll() is not None or time.monotonic() > deadline:
                    pytest.fail(f'no {words[0]} within {START} s:\n{log.read_text()[-3000:]}', pytrace=False)
                time.sleep(0.2)
            yield
        finally:
            server.terminate()  # shuts its kernels down, too
            try:
                server.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(server.pid, signal.SIGKILL)


def does_answer(address: str) -> bool:
    "Whether a server answers, whatever it says."
    try:
        urllib.request.urlopen(address, timeout=5).close()
    except urllib.error.HTTPError:
        return True
    except (urllib.error.URLError, OSError):
        return False
    return True


@contextmanager
def jupyter_lab(project: Path, scratch: Path) -> Iterator[Callable[[str], str]]:
    "Yields the address, with its token, of a notebook in a JupyterLab that serves `project` and writes into `scratch`."
    from subpixel_nb.training.launch import free_port

    tracker = scratch / 'jupyterlab_settings_dir/@jupyterlab/notebook-extension/tracker.jupyterlab-settings'
    tracker.parent.mkdir(parents=True)
    tracker.write_text(json.dumps({'windowingMode': 'none'}))  # all cells are in the page
    port, token = free_port(), secrets.token_hex(16)
    words = f"""jupyterlab --no-browser --allow-root --ip=127.0.0.1 --port={port} --ServerApp.port_retries=0
        --IdentityProvider.token={token} --LabApp.expose_app_in_browser=True --LabApp.news_url=None
        --LabApp.extension_manager=readonly --LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate""".split()
    address = f'http://127.0.0.1:{port}'
    with served([*words, f'--ServerApp.root_dir={project}'], project, scratch, f'{address}/api?token={token}'):
        yield lambda notebook: f'{address}/lab/tree/nbs/{notebook}.ipynb?reset&token={token}'


@contextmanager
def voila(project: Path, scratch: Path, notebook: str) -> Iterator[str]:
    "The address of a notebook as a page, from the command `voila nbs/<notebook>.ipynb` in `project`."
    from subpixel_nb.training.launch import free_port

    pytest.importorskip('voila', reason='no Voilà: pip install voila, then this test runs')
    port = free_port()
    words = f'voila --no-browser --Voila.ip=127.0.0.1 --port={port} nbs/{notebook}.ipynb'.split()
    with served(words, project, scratch, f'http://127.0.0.1:{port}/api'):
        yield f'http://127.0.0.1:{port}/'


# Pages


def evaluate(page: Any, script: str, seconds: float, failure: str) -> Any:
    "What an async function in the page gives, or a failure with the page's text after `seconds`."
    late = f'new Promise((_, no) => setTimeout(() => no(new Error("too late")), {seconds * 1000}))'
    try:
        return page.evaluate(f'() => Promise.race([({script})(), {late}])')
    except Exception as e:  # noqa: BLE001 -- playwright is optional, so its errors cannot be named here
        pytest.fail(f'{failure} within {seconds} s: {e}\n{page.inner_text("body")[-2000:]}', pytrace=False)


def wait_for(look: Callable[[], T], accept: Callable[[T], Any], what: str, seconds: float = 60) -> T:
    "What `look` gives, once it is accepted; a failure that says `what` and the last look after `seconds`."
    deadline = time.monotonic() + seconds
    while True:
        state = look()
        if accept(state):
            return state
        if time.monotonic() > deadline:
            pytest.fail(f'{what}: not within {seconds} s, but {json.dumps(state)[:3000]}', pytrace=False)
        time.sleep(0.1)


def themes(page: Any) -> Iterator[str]:
    "The themes of JupyterLab, each while it is on; the light one last."
    for theme in ('JupyterLab Dark', 'JupyterLab Light'):
        page.evaluate("theme => window.jupyterapp.commands.execute('apputils:change-theme', { theme })", theme)
        page.wait_for_function('theme => document.body.dataset.jpThemeName === theme', arg=theme)
        yield theme


@contextmanager
def opened(browser: Any, address: str) -> Iterator[Any]:
    "A new page of the browser."
    page = browser.new_page(viewport={'width': 1400, 'height': 1200})
    page.set_default_timeout(START * 1000)
    try:
        page.goto(address)
        yield page
    finally:
        page.close()


@dataclass(frozen=True)
class Lab:
    "A JupyterLab that serves a copy of the project."

    browser: Any
    project: Path
    address: Callable[[str], str]  # of a notebook, by its path below nbs, without .ipynb

    @contextmanager
    def run_all(self, notebook: str) -> Iterator[Any]:
        "The page of a notebook all of whose cells have run. Its kernel ends with the block."
        with opened(self.browser, self.address(notebook)) as page:
            page.wait_for_function('() => window.jupyterapp')
            evaluate(page, OPEN, START, 'the notebook and its kernel were not ready')
            done = evaluate(page, RUN_ALL, RUN, 'Run All did not end')
            assert done['errors'] == [] and done['ran'] == done['codes'] > 0, done
            yield page
            evaluate(page, SHUT_DOWN, START, 'the kernel did not end')


@pytest.fixture(scope='session')
def browser() -> Iterator[Any]:
    "The system's chromium."
    if CHROMIUM is None:
        pytest.skip('no chromium: apt-get install chromium, then this test runs')
    with pytest.importorskip('playwright.sync_api').sync_playwright() as p:
        started = p.chromium.launch(executable_path=CHROMIUM, args=['--no-sandbox', '--disable-gpu'])
        yield started
        started.close()


@pytest.fixture(scope='session')
def lab(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    "One JupyterLab, which serves a copy of the project, for all tests of the session."
    from conftest import copy_project

    scratch = tmp_path_factory.mktemp('lab')
    project = copy_project(scratch / 'project')
    with jupyter_lab(project, scratch / 'jupyter') as address:
        yield Lab(browser, project, address)
