"""The lessons with sliders in JupyterLab in a browser: Run All, sliders moved by keys, numbers checked.

Needs a chromium of the system (Debian: apt-get install chromium); playwright's own download is not used.
"""

import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from conftest import copy_project

from subpixel_nb.codec.decoding import DECODERS, decode
from subpixel_nb.codec.encoding import encode
from subpixel_nb.codec.explore import ideal_heatmap
from subpixel_nb.codec.geometry import from_heatmap

pytestmark = [pytest.mark.browser, pytest.mark.slow]
CHROMIUM = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)
START, RUN = 120, 600  # seconds to wait for the server and page, and for Run All; a busy machine takes minutes
LINE = re.compile(r'^local\s+tau=(\S+) window=(\d+) sigma=(\S+) offset=(\S+) +error (\S+) px', re.M)
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


def free_port() -> int:
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]


@contextmanager
def jupyter_lab(project: Path, scratch: Path) -> Iterator[Callable[[str], str]]:
    "Yields the address, with its token, of a notebook in a JupyterLab that serves `project` and writes into `scratch`."
    own = {
        name: str(scratch / name.lower())
        for name in (
            'HOME',
            'JUPYTER_CONFIG_DIR',
            'JUPYTER_DATA_DIR',
            'JUPYTER_RUNTIME_DIR',
            'JUPYTERLAB_SETTINGS_DIR',
            'JUPYTERLAB_WORKSPACES_DIR',
            'IPYTHONDIR',
            'MPLCONFIGDIR',
        )
    }
    for folder in own.values():
        Path(folder).mkdir(parents=True)
    tracker = Path(own['JUPYTERLAB_SETTINGS_DIR'], '@jupyterlab', 'notebook-extension', 'tracker.jupyterlab-settings')
    tracker.parent.mkdir(parents=True)
    tracker.write_text(json.dumps({'windowingMode': 'none'}))  # all cells are in the page
    port, token = free_port(), secrets.token_hex(16)
    log = scratch / 'jupyter.log'
    with log.open('w') as out:
        server = subprocess.Popen(
            [
                sys.executable,
                '-m',
                'jupyterlab',
                '--no-browser',
                '--allow-root',
                '--ip=127.0.0.1',
                f'--port={port}',
                '--ServerApp.port_retries=0',
                f'--ServerApp.root_dir={project}',
                f'--IdentityProvider.token={token}',
                '--LabApp.expose_app_in_browser=True',
                '--LabApp.news_url=None',
                '--LabApp.extension_manager=readonly',
                '--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate',
            ],
            cwd=project,
            env=os.environ | own | {'PYTHONPATH': str(project), 'OMP_NUM_THREADS': '1'},
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            start_new_session=True,
        )
        try:
            address, deadline = f'http://127.0.0.1:{port}', time.monotonic() + START
            while True:
                try:
                    urllib.request.urlopen(f'{address}/api?token={token}', timeout=5).close()
                    break
                except (urllib.error.URLError, OSError):
                    if server.poll() is not None or time.monotonic() > deadline:
                        pytest.fail(f'no JupyterLab within {START} s:\n{log.read_text()[-3000:]}', pytrace=False)
                    time.sleep(0.3)
            yield lambda notebook: f'{address}/lab/tree/nbs/{notebook}.ipynb?reset&token={token}'
        finally:
            server.terminate()  # shuts its kernels down, too
            try:
                server.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(server.pid, signal.SIGKILL)


def shown(text: str) -> dict[str, float] | None:
    "The settings and the error that the local soft-argmax's line on screen states."
    m = LINE.search(text)
    return m and dict(zip(('tau', 'window', 'sigma', 'offset', 'error'), map(float, m.groups())))


def error(tau: float, window: float, sigma: float, offset: float, **_) -> float:
    "What the library gives for the lesson's example: one landmark at (8 + offset, 8) on a map of 17 x 17."
    place = torch.tensor([[8 + offset, 8.0]])
    found, _ = decode(encode(from_heatmap(place), size=17, sigma=sigma), 'local', tau=tau, window=int(window))
    return (found - place).norm().item()


@pytest.fixture(scope='module')
def run_all(tmp_path_factory):
    "Opens a lesson (`part/lesson`) in a new page and runs its cells: one JupyterLab and one browser for all tests."
    if CHROMIUM is None:
        pytest.skip('no chromium: apt-get install chromium, then this test runs')
    playwright, scratch = pytest.importorskip('playwright.sync_api'), tmp_path_factory.mktemp('browser')
    with (
        jupyter_lab(copy_project(scratch / 'project'), scratch / 'jupyter') as address,
        playwright.sync_playwright() as p,
    ):
        browser = p.chromium.launch(executable_path=CHROMIUM, args=['--no-sandbox', '--disable-gpu'])

        def opened(notebook: str):
            page = browser.new_page(viewport={'width': 1400, 'height': 1000})
            page.set_default_timeout(START * 1000)
            page.goto(address(notebook))
            page.wait_for_function('() => window.jupyterapp')
            evaluate(page, OPEN, START, 'the notebook and its kernel were not ready')
            done = evaluate(page, RUN_ALL, RUN, 'Run All did not end')
            assert done['errors'] == [] and done['ran'] == done['codes'] > 0, done
            return page

        try:
            yield opened
        finally:
            browser.close()


def test_sliders_of_the_decoding_lesson(run_all):
    page = run_all('1_codec/03_decoding')
    panel = page.locator('.widget-interact', has=page.locator('.widget-label', has_text=re.compile('^tau$')))
    assert panel.count() == 1
    before = screen(panel)
    assert before['error'] == pytest.approx(error(**before), abs=6e-5)  # four decimals are shown
    for label, key, steps in (('tau', 'ArrowLeft', 9), ('window', 'ArrowRight', 1)):
        slider = panel.locator('.widget-slider', has=page.locator('.widget-label', has_text=re.compile(f'^{label}$')))
        handle = slider.locator('[role=slider]')
        handle.scroll_into_view_if_needed()
        handle.focus()
        for _ in range(steps):
            handle.press(key)
        wanted = float(slider.locator('.widget-readout').inner_text())
        assert wanted != before[label], f'the slider {label} did not move'
        after = screen(panel, **{label: wanted})
        assert after['error'] == pytest.approx(error(**after), abs=6e-5)
        assert after['error'] != before['error'], f'{label} moved from {before} to {after}, and the error stayed'
        before = after
    page.close()


def screen(panel, **wanted: float) -> dict[str, float]:
    "The local soft-argmax's line in the widget's output, once it states the wanted settings."
    deadline = time.monotonic() + 30
    while True:
        text = panel.inner_text()
        found = shown(text)
        if found and wanted.items() <= found.items():
            return found
        if time.monotonic() > deadline:
            pytest.fail(f'the widget shows, after 30 s:\n{text}', pytrace=False)
        time.sleep(0.1)


STATE = """box => {
  const cells = r => [...r.cells].map(c => c.textContent);
  const figure = box.querySelector('.js-plotly-plot'), traces = Object.fromEntries(figure.data.map(t => [t.name, t]));
  return {
    rows: Object.fromEntries(
      [...box.querySelectorAll('tbody tr')].map(cells).map(([_, name, ...rest]) => [name, rest])),
    summary: box.querySelector('[role=status]').textContent, caption: box.querySelector('caption').textContent,
    settings: Object.fromEntries([...box.querySelectorAll('.widget-slider')].map(s => [
      s.querySelector('[role=slider]').ariaLabel,
      parseFloat(s.querySelector('.widget-readout').textContent.replace('\u2212', '-'))])),
    answers: [...traces['answers on patch'].x].map((x, i) => [x, traces['answers on patch'].y[i]]),
    titles: [...figure.querySelectorAll('.annotation-text')].map(t => t.textContent),
  };
}"""
WATCH = """box => {
  window.changed = false;
  const watch = new MutationObserver(() => { window.changed = true; watch.disconnect(); });
  watch.observe(box.querySelector('table').parentElement, { childList: true });
}"""
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


def decoded(settings: dict[str, float]) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    "What the library gives for the sliders of lesson 1.5: each decoder's point, and the truth."
    s = dict(settings, x=settings['x offset'], y=settings['y offset'], window=int(settings['window']))
    heatmap, truth = ideal_heatmap(**{k: s[k] for k in ('x', 'y', 'sigma', 'amplitude', 'noise')})
    return {name: decode(heatmap[None], name, s['tau'], s['window'], s['sigma'])[0][0] for name in DECODERS}, truth


def settled(box) -> dict:
    "What an explorer shows once its figure has followed its table."
    deadline = time.monotonic() + 30
    while True:
        state = box.evaluate(STATE)
        table = [float(v) for shown in state['rows'].values() for v in shown[:2]]
        if table == pytest.approx([v for point in state['answers'] for v in point], abs=1e-4):
            return state
        if time.monotonic() > deadline:
            pytest.fail(f'figure and table differ after 30 s: {state}', pytrace=False)
        time.sleep(0.05)


def check_explorer(state: dict):
    "Table, figure, and the word `best` against the library."
    points, truth = decoded(state['settings'])
    errors = {name: (p - truth).norm().item() for name, p in points.items()}
    assert list(state['rows']) == list(DECODERS)
    for name, shown in state['rows'].items():
        assert [float(v) for v in shown[:3]] == pytest.approx([*points[name].tolist(), errors[name]], abs=6e-5), name
    assert min(errors, key=errors.get) in [name for name, shown in state['rows'].items() if shown[3] == 'best']
    assert f'local {errors["local"]:.4f} px' in state['summary']


def test_sliders_of_the_explorer(run_all):
    page = run_all('1_codec/05_explore')
    ideal, real = page.locator('.explorer').all()
    ideal.locator('tbody tr').nth(9).wait_for()
    check_explorer(before := settled(ideal))
    ideal.locator('select').first.focus()
    page.keyboard.press('Tab')
    assert page.evaluate('document.activeElement.ariaLabel') == 'tau', 'Tab leads from the list to the first slider'
    moved = {
        'tau': ('ArrowLeft', 3),
        'window': ('ArrowRight', 1),
        'sigma': ('ArrowRight', 4),
        'x offset': ('ArrowLeft', 5),
        'y offset': ('ArrowUp', 2),
        'amplitude': ('ArrowLeft', 3),
        'noise': ('ArrowRight', 2),
    }
    for name, (key, times) in moved.items():
        handle = ideal.get_by_role('slider', name=name)
        for _ in range(times):
            handle.focus()
            ideal.evaluate(WATCH)
            handle.press(key)
            page.wait_for_function('() => window.changed')
        after = settled(ideal)
        assert [k for k in before['settings'] if after['settings'][k] != before['settings'][k]] == [name]
        assert after['rows'] != before['rows'], name
        check_explorer(after)
        before = after
    assert f'softmax({before["settings"]["tau"]:g} h)' in before['titles'] and 'patch, 7 x 7' in before['titles']

    for theme in ('JupyterLab Dark', 'JupyterLab Light'):
        page.evaluate("theme => window.jupyterapp.commands.execute('apputils:change-theme', { theme })", theme)
        page.wait_for_function('theme => document.body.dataset.jpThemeName === theme', arg=theme)
        for place in (
            'tbody td:nth-child(3)',
            'caption',
            '[role=status]',
            '.xtick text',
            '.ytick text',
            '.cbaxis text',
            '.annotation-text',
        ):
            assert ideal.locator(place).first.evaluate(CONTRAST) >= 4.5, f'{place} in {theme}'
    real_heatmaps(page, real)
    page.close()


def real_heatmaps(page, real):
    "The second explorer shows what its cell's text says; a key chooses another landmark; three sliders are off."
    said = page.evaluate("""() => [...window.jupyterapp.shell.currentWidget.context.model.sharedModel.cells]
        .flatMap(c => c.getOutputs?.() ?? []).flatMap(o => o.data?.['text/plain'] ?? []).map(t => [t].flat().join(''))
        .filter(t => t.includes('calibrated') && t.includes('Best:')).at(-1)""")
    before = settled(real)
    assert [[name, *shown] for name, shown in before['rows'].items()] == [
        (line.split() + [''])[:5] for line in said.splitlines()[:-1]
    ]
    off = real.locator('[disabled] [role=slider]').evaluate_all('handles => handles.map(h => h.ariaLabel)')
    assert off == ['x offset', 'y offset', 'amplitude']
    real.locator('select').first.focus()
    real.evaluate(WATCH)
    page.keyboard.press('ArrowDown')
    page.wait_for_function('() => window.changed')
    after = settled(real)
    assert 'landmark 34' in after['caption'] and after['rows'] != before['rows']


def evaluate(page, script: str, seconds: float, failure: str):
    "What an async function in the page gives, or a failure with the page's text after `seconds`."
    late = f'new Promise((_, no) => setTimeout(() => no(new Error("too late")), {seconds * 1000}))'
    try:
        return page.evaluate(f'() => Promise.race([({script})(), {late}])')
    except Exception as e:  # noqa: BLE001 -- playwright is optional, so its errors cannot be named here
        pytest.fail(f'{failure} within {seconds} s: {e}\n{page.inner_text("body")[-2000:]}', pytrace=False)
