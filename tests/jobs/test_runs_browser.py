"""The page of runs in a browser, beside a run that trains: it grows, is killed, goes on, ends, is compared.

Like test_browser, this needs a chromium of the system."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import pandas as pd
import pytest
from conftest import copy_project
from test_browser import CHROMIUM, CONTRAST, OPEN, RUN, RUN_ALL, START, evaluate, jupyter_lab

from subpixel_nb.data.crops import load_faces
from subpixel_nb.data.datasets import find_dataset
from subpixel_nb.evaluation.evaluation import results_table, save_results
from subpixel_nb.training.checkpoints import load_weights, read_metrics
from subpixel_nb.training.launch import load_test_faces
from subpixel_nb.training.loop import predict, train
from subpixel_nb.training.recipe import configure

pytestmark = [pytest.mark.browser, pytest.mark.slow]
SMALL = dict(width=8, stacks=1, size=64, depth=2, batch=8, limit=48, precision='float32', test_every=1)
STATE = """box => {
  const table = box.querySelector('table'), heads = [...table.querySelectorAll('thead th')].map(c => c.textContent);
  const rows = [...table.querySelectorAll('tbody tr')].map(
    r => Object.fromEntries([...r.cells].map((c, i) => [heads[i], c.textContent])));
  const figure = box.querySelector('.js-plotly-plot');
  return {
    runs: Object.fromEntries(rows.map(r => [r.run, r])), said: box.querySelector('[role=status]').textContent,
    traces: Object.fromEntries((figure?.data ?? []).map(t => [t.name, [...(t.x ?? [])]])),
    details: box.querySelector('.details')?.textContent ?? '', command: box.querySelector('code')?.textContent,
    pictures: box.querySelectorAll('img').length,
  };
}"""


def start(folder: Path, **changes: object) -> subprocess.Popen:
    words = [w for name, value in (SMALL | changes).items() for w in ('-p', name, str(value))]
    command = [sys.executable, '-m', 'subpixel_nb.launch', *words, '-p', 'output', str(folder)]
    quiet = dict(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    return subprocess.Popen(command, **quiet)


def answer(folder: Path) -> None:
    "The points of a finished run on its test faces, as train.ipynb keeps them."
    net, config = load_weights(folder)
    test = load_test_faces(config)
    found, scores = predict(net, test)
    save_results(folder, found, scores, test, results_table(found, test, find_dataset('synthetic')))


def seen(box, accept: Callable[[dict], bool], what: str, seconds: float = 120) -> dict:
    "What the page shows, once it is accepted."
    deadline = time.monotonic() + seconds
    while True:
        state = box.evaluate(STATE)
        if accept(state):
            return state
        if time.monotonic() > deadline:
            pytest.fail(f'{what}: not within {seconds} s, but {json.dumps(state)[:3000]}', pytrace=False)
        time.sleep(0.2)


def choose(page, box, label: str, key: str, times: int = 1) -> None:
    "Move a list of the page by the keyboard."
    box.locator('.widget-dropdown', has=page.locator(f'.widget-label:text-is("{label}")')).locator('select').focus()
    for _ in range(times):
        page.keyboard.press(key)


@pytest.fixture(scope='module')
def lab(tmp_path_factory):
    "The notebook runs.ipynb, run in JupyterLab, and the folder of runs that it shows, in which one has ended."
    if CHROMIUM is None:
        pytest.skip('no chromium: apt-get install chromium, then this test runs')
    playwright, scratch = pytest.importorskip('playwright.sync_api'), tmp_path_factory.mktemp('runs')
    project = copy_project(scratch / 'project')
    config = configure(**SMALL, epochs=2, output=str(project / 'nbs/runs/first'))
    with redirect_stdout(StringIO()):
        train(config, load_faces('synthetic', 'train', size=64, limit=48), load_test_faces(config))
    answer(config.folder)
    with jupyter_lab(project, scratch / 'jupyter') as address, playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=['--no-sandbox', '--disable-gpu'])
        page = browser.new_page(viewport={'width': 1400, 'height': 1200})
        page.set_default_timeout(START * 1000)
        page.goto(address('runs'))
        page.wait_for_function('() => window.jupyterapp')
        evaluate(page, OPEN, START, 'the notebook and its kernel were not ready')
        done = evaluate(page, RUN_ALL, RUN, 'Run All did not end')
        assert done['errors'] == [] and done['ran'] == done['codes'] > 0, done
        yield page, page.locator('.explorer.runs').first, project / 'nbs/runs'
        browser.close()


def test_a_run_is_watched_compared_and_exported(lab):
    page, box, runs = lab
    before = seen(box, lambda s: s['traces'], 'no figure')
    assert before['runs']['first']['state'] == 'finished' and before['traces'] == {'first': [1, 2]}

    job = start(runs / 'second', method='siamese', epochs=40, save_minutes=1e-6)
    try:
        growing = seen(
            box,
            lambda s: len(s['traces'].get('second', [])) >= 2 and 'second' in s['runs'] and 'method' in s['said'],
            'the new run does not grow',
        )
        assert growing['runs']['second']['state'] == 'running' and growing['runs']['second']['method'] == 'siamese'
        assert 'second has ' in growing['said'] and 'method siamese instead of local' in growing['said']
        seen(box, lambda s: len(s['traces']['second']) > len(growing['traces']['second']), 'the curve stands still')
    finally:
        os.killpg(job.pid, signal.SIGKILL)
        job.wait()
    stopped = seen(box, lambda s: s['runs']['second']['state'] == 'stopped', 'the killed run is not told')
    assert stopped['traces']['second'] == [row['epoch'] for row in read_metrics(runs / 'second')]

    job = start(runs / 'second', method='siamese', epochs=40)
    try:
        seen(box, lambda s: s['runs']['second']['state'] == 'running', 'the resumed run is not told')
        ended = seen(box, lambda s: s['runs']['second']['state'] == 'finished', 'the run does not end', 300)
    finally:
        if job.poll() is None:
            os.killpg(job.pid, signal.SIGKILL)
    assert ended['traces']['second'] == list(range(1, 41)) and ended['runs']['second']['epochs'] == '40 of 40'
    compare(page, box, runs)


def compare(page, box, runs: Path) -> None:
    "Differences with their interval, faces side by side, and an export, all by the keyboard; then both themes."
    answer(runs / 'second')
    choose(page, box, 'view', 'ArrowDown', 5)
    state = seen(box, lambda s: 'second' in s['traces'].get('difference', []) or 'low' in s['details'], 'no interval')
    assert 'bootstrap in pairs' in state['details'] and '95 % interval' in state['details']
    assert 'subpixel_nb.launch' in state['command'] and str(runs / 'first') not in state['said']
    box.get_by_text('export CSV').click()
    said = seen(box, lambda s: s['said'].startswith('Written'), 'nothing was exported')['said']
    table = pd.read_csv(runs.parent / said.removeprefix('Written: '), comment='#')
    assert table.run.tolist() == ['first', 'second'] and table.low[1] < table.difference[1] < table.high[1]
    choose(page, box, 'view', 'ArrowDown')
    seen(box, lambda s: s['pictures'] == 1, 'no faces')
    choose(page, box, 'view', 'ArrowUp', 6)
    seen(box, lambda s: len(s['traces'].get('second', [])) == 40, 'the curves are not back')
    for theme in ('JupyterLab Dark', 'JupyterLab Light'):
        page.evaluate("theme => window.jupyterapp.commands.execute('apputils:change-theme', { theme })", theme)
        page.wait_for_function('theme => document.body.dataset.jpThemeName === theme', arg=theme)
        for place in ('tbody td', '[role=status]', '.xtick text', '.details td', 'code'):
            assert box.locator(place).first.evaluate(CONTRAST) >= 4.5, f'{place} in {theme}'


def test_what_is_no_run_is_shown_as_what_it_is(lab):
    "A half-written config, a stranger's folder, and a run whose folder vanishes while it is looked at; no traceback."
    page, box, runs = lab
    (runs / 'half').mkdir()
    (runs / 'half/config.json').write_text('{"method": "lo')
    (runs / 'notes').mkdir()
    state = seen(box, lambda s: {'half', 'notes'} <= s['runs'].keys(), 'the other folders are not told')
    assert state['runs']['half']['state'] == 'broken' and 'not readable' in state['runs']['half']['why']
    assert state['runs']['notes']['state'] == 'no run'
    shutil.rmtree(runs / 'first')
    seen(box, lambda s: 'first' not in s['runs'] and 'first' not in s['traces'], 'the vanished run stays')
    assert 'Traceback' not in page.locator('body').inner_text()
