"""The decoding lesson as a reader meets it: JupyterLab in a browser, Run All, a slider moved, its number checked.

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
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from conftest import copy_project

from subpixel_nb.decoding import decode
from subpixel_nb.encoding import encode
from subpixel_nb.geometry import from_heatmap

CHROMIUM = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)
START, RUN = 120, 180                                      # seconds to wait for the server and page, and for Run All
LINE = re.compile(r'^local\s+tau=(\S+) window=(\d+) sigma=(\S+) offset=(\S+) +error (\S+) px', re.M)
OPEN = '''async () => {
  const app = window.jupyterapp; await app.started; await app.restored;
  let panel;
  while (!(panel = app.shell.currentWidget)?.sessionContext) await new Promise(r => setTimeout(r, 200));
  await panel.context.ready; await panel.revealed; await panel.sessionContext.ready;
  await panel.sessionContext.session.kernel.info;
}'''
RUN_ALL = '''async () => {
  await window.jupyterapp.commands.execute('notebook:run-all-cells');
  const cells = window.jupyterapp.shell.currentWidget.context.model.sharedModel.cells;
  const codes = cells.filter(c => c.cell_type === 'code' && c.source.trim());
  const errors = codes.flatMap(c => c.getOutputs()).filter(o => o.output_type === 'error');
  return { ran: codes.filter(c => c.execution_count).length, codes: codes.length, errors: errors.map(o => o.evalue) };
}'''


def free_port() -> int:
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]


@contextmanager
def jupyter_lab(project: Path, scratch: Path):
    "The address, with its token, of a JupyterLab that serves `project` and keeps all of its own files in `scratch`."
    own = {name: str(scratch / name.lower()) for name in
           ('HOME', 'JUPYTER_CONFIG_DIR', 'JUPYTER_DATA_DIR', 'JUPYTER_RUNTIME_DIR', 'JUPYTERLAB_SETTINGS_DIR',
            'JUPYTERLAB_WORKSPACES_DIR', 'IPYTHONDIR', 'MPLCONFIGDIR')}
    for folder in own.values(): Path(folder).mkdir(parents=True)
    tracker = Path(own['JUPYTERLAB_SETTINGS_DIR'], '@jupyterlab', 'notebook-extension', 'tracker.jupyterlab-settings')
    tracker.parent.mkdir(parents=True)
    tracker.write_text(json.dumps({'windowingMode': 'none'}))                        # all cells are in the page
    port, token = free_port(), secrets.token_hex(16)
    log = scratch / 'jupyter.log'
    with log.open('w') as out:
        server = subprocess.Popen(
            [sys.executable, '-m', 'jupyterlab', '--no-browser', '--allow-root', '--ip=127.0.0.1', f'--port={port}',
             '--ServerApp.port_retries=0', f'--ServerApp.root_dir={project}', f'--IdentityProvider.token={token}',
             '--LabApp.expose_app_in_browser=True', '--LabApp.news_url=None', '--LabApp.extension_manager=readonly',
             '--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate'],
            cwd=project, env=os.environ | own | {'PYTHONPATH': str(project), 'OMP_NUM_THREADS': '1'},
            stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True)
        try:
            address, deadline = f'http://127.0.0.1:{port}', time.monotonic() + START
            while True:
                try:
                    urllib.request.urlopen(f'{address}/api?token={token}', timeout=5).close()
                    break
                except (urllib.error.URLError, OSError):
                    if server.poll() is not None or time.monotonic() > deadline:
                        pytest.fail(f'no JupyterLab within {START} s:\n{log.read_text()[-3000:]}', pytrace=False)
                    time.sleep(.3)
            yield f'{address}/lab/tree/nbs/02_decoding.ipynb?reset&token={token}'
        finally:
            server.terminate()                                                       # shuts its kernels down, too
            try: server.wait(20)
            except subprocess.TimeoutExpired: os.killpg(server.pid, signal.SIGKILL)


def shown(text: str) -> dict[str, float] | None:
    "The settings and the error that the local soft-argmax's line on screen states."
    m = LINE.search(text)
    return m and dict(zip(('tau', 'window', 'sigma', 'offset', 'error'), map(float, m.groups())))


def error(tau: float, window: float, sigma: float, offset: float, **_) -> float:
    "What the library gives for the lesson's example: one landmark at (8 + offset, 8) on a map of 17 x 17."
    place = torch.tensor([[8 + offset, 8.]])
    found, _ = decode(encode(from_heatmap(place), size=17, sigma=sigma), 'local', tau=tau, window=int(window))
    return (found - place).norm().item()


@pytest.mark.skipif(CHROMIUM is None, reason='no chromium: apt-get install chromium, then this test runs')
def test_sliders_of_the_decoding_lesson(tmp_path):
    playwright = pytest.importorskip('playwright.sync_api')
    project = copy_project(tmp_path / 'project')
    with jupyter_lab(project, tmp_path / 'jupyter') as address, playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=['--no-sandbox', '--disable-gpu'])
        try: move_sliders(browser.new_page(viewport={'width': 1400, 'height': 1000}), address)
        finally: browser.close()


def move_sliders(page, address: str):
    page.set_default_timeout(START * 1000)
    page.goto(address)
    page.wait_for_function('() => window.jupyterapp')
    evaluate(page, OPEN, START, 'the notebook and its kernel were not ready')
    done = evaluate(page, RUN_ALL, RUN, 'Run All did not end')
    assert done['errors'] == [] and done['ran'] == done['codes'] > 0, done

    panel = page.locator('.widget-interact', has=page.locator('.widget-label', has_text=re.compile('^tau$')))
    assert panel.count() == 1
    before = screen(panel, lambda s: True)
    assert before['error'] == pytest.approx(error(**before), abs=6e-5)               # four decimals are shown
    for label, key, steps in (('tau', 'ArrowLeft', 9), ('window', 'ArrowRight', 1)):
        slider = panel.locator('.widget-slider', has=page.locator('.widget-label', has_text=re.compile(f'^{label}$')))
        handle = slider.locator('[role=slider]')
        handle.scroll_into_view_if_needed()
        handle.focus()
        for _ in range(steps): handle.press(key)
        wanted = float(slider.locator('.widget-readout').inner_text())
        assert wanted != before[label], f'the slider {label} did not move'
        after = screen(panel, lambda s: s[label] == wanted)
        assert after['error'] == pytest.approx(error(**after), abs=6e-5)
        assert after['error'] != before['error'], f'{label} moved from {before} to {after}, and the error stayed'
        before = after


def screen(panel, accept) -> dict[str, float]:
    "The local soft-argmax's line in the widget's output, once it states what is waited for."
    deadline = time.monotonic() + 30
    while True:
        text = panel.inner_text()
        found = shown(text)
        if found and accept(found): return found
        if time.monotonic() > deadline: pytest.fail(f'the widget shows, after 30 s:\n{text}', pytrace=False)
        time.sleep(.1)


def evaluate(page, script: str, seconds: float, failure: str):
    "What an async function in the page gives, or a failure with the page's text after `seconds`."
    late = f'new Promise((_, no) => setTimeout(() => no(new Error("too late")), {seconds * 1000}))'
    try: return page.evaluate(f'() => Promise.race([({script})(), {late}])')
    except Exception as e:
        pytest.fail(f'{failure} within {seconds} s: {e}\n{page.inner_text("body")[-2000:]}', pytrace=False)
