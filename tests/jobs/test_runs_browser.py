"""The page of runs in a browser, beside a run that trains: it grows, is killed, goes on, ends, is compared.

The job starts first, then the page. It is held (SIGSTOP) until the page is there, so that it cannot end too soon."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from functools import partial
from io import StringIO
from pathlib import Path

import pandas as pd
import pytest
from browsers import CONTRAST, opened, themes, voila, wait_for

from subpixel_nb.data.crops import load_faces
from subpixel_nb.data.datasets import find_dataset
from subpixel_nb.evaluation.evaluation import results_table, save_results
from subpixel_nb.training.checkpoints import load_weights, read_metrics
from subpixel_nb.training.launch import load_test_faces
from subpixel_nb.training.loop import predict, train
from subpixel_nb.training.recipe import configure

pytestmark = [pytest.mark.browser, pytest.mark.slow]
SMALL = dict(width=8, stacks=1, size=64, depth=2, batch=8, limit=16, precision='float32', test_every=8)
STATE = """box => {
  const table = box.querySelector('table'), heads = [...table.querySelectorAll('thead th')].map(c => c.textContent);
  const rows = [...table.querySelectorAll('tbody tr')].map(
    r => Object.fromEntries([...r.cells].map((c, i) => [heads[i], c.textContent])));
  const figure = box.querySelector('.js-plotly-plot');
  return {
    runs: Object.fromEntries(rows.map(r => [r.run, r])), said: box.querySelector('[role=status]').textContent,
    traces: Object.fromEntries((figure?._fullData ?? []).map(t => [t.name, [...(t.x ?? [])]])),
    details: box.querySelector('.details')?.textContent ?? '', command: box.querySelector('code')?.textContent,
    pictures: box.querySelectorAll('img').length,
    ticks: [...(figure?.querySelectorAll('.ytick text') ?? [])].map(t => t.textContent),
  };
}"""


@contextmanager
def job(folder: Path, **changes: object) -> Iterator[subprocess.Popen]:
    "A run by the shell's command, until the end of the block or its own."
    words = [w for name, value in (SMALL | changes).items() for w in ('-p', name, str(value))]
    command = [sys.executable, '-m', 'subpixel_nb.launch', *words, '-p', 'output', str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def epochs(folder: Path) -> list[int]:
    return [row['epoch'] for row in read_metrics(folder)]


def answer(folder: Path) -> None:
    "The points of a finished run on its test faces, as train.ipynb keeps them."
    net, config = load_weights(folder)
    test = load_test_faces(config)
    found, scores = predict(net, test)
    save_results(folder, found, scores, test, results_table(found, test, find_dataset('synthetic')))


def seen(box, accept: Callable[[dict], bool], what: str) -> dict:
    "What the page shows, once it is accepted."
    return wait_for(partial(box.evaluate, STATE), accept, what, 120)


def choose(page, box, label: str, key: str, times: int = 1) -> None:
    "Move a list of the page by the keyboard."
    box.locator('.widget-dropdown', has=page.locator(f'.widget-label:text-is("{label}")')).locator('select').focus()
    for _ in range(times):
        page.keyboard.press(key)


@pytest.fixture(scope='module')
def runs(lab) -> Path:
    "The folder that runs.ipynb shows, with one run that has ended. The page looks twice a second, not every 3 s."
    notebook = lab.project / 'nbs/runs.ipynb'
    notebook.write_text(notebook.read_text().replace('seconds: float = 3.0', 'seconds: float = 0.5'))
    config = configure(**SMALL, epochs=2, output=str(lab.project / 'nbs/runs/first'))
    with redirect_stdout(StringIO()):
        train(config, load_faces('synthetic', 'train', size=64, limit=16), load_test_faces(config))
    answer(config.folder)
    return lab.project / 'nbs/runs'


def test_a_run_is_watched_compared_and_exported(lab, runs, tmp_path):
    def picture(box, name: str) -> bytes:
        return box.screenshot(path=tmp_path / f'{name}.png')

    with job(runs / 'second', method='siamese', epochs=16, save_minutes=1e-6) as process:
        wait_for(lambda: epochs(runs / 'second'), len, 'the job has not begun', 300)
        os.killpg(process.pid, signal.SIGSTOP)
        before = epochs(runs / 'second')
        with lab.run_all('runs') as page:
            box = page.locator('.explorer.runs').first
            held = seen(box, lambda s: len(s['traces']) == 2, 'no figure')
            assert held['traces'] == dict(first=[1, 2], second=before)
            assert held['runs']['first']['state'] == 'finished' and held['runs']['second']['state'] == 'running'
            assert 'second has ' in held['said'] and 'method siamese instead of local' in held['said']
            pictures = [picture(box, 'running')]
            os.killpg(process.pid, signal.SIGCONT)
            wait_for(lambda: epochs(runs / 'second'), lambda now: len(now) > len(before), 'the job stands still')
            os.killpg(process.pid, signal.SIGSTOP)
            seen(box, lambda s: len(s['traces']['second']) > len(before), 'the curve does not grow')
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            stopped = seen(box, lambda s: s['runs']['second']['state'] == 'stopped', 'the killed run is not told')
            assert stopped['traces']['second'] == epochs(runs / 'second') and len(epochs(runs / 'second')) < 16
            pictures.append(picture(box, 'stopped'))
            with job(runs / 'second', method='siamese', epochs=16):
                seen(box, lambda s: s['runs']['second']['state'] == 'running', 'the resumed run is not told')
                ended = seen(box, lambda s: s['runs']['second']['state'] == 'finished', 'the run does not end')
            assert ended['traces']['second'] == list(range(1, 17))
            assert ended['runs']['second']['epochs'] == '16 of 16'
            pictures.append(picture(box, 'ended'))
            compare(page, box, runs)
            pictures.append(picture(box, 'compared'))
            others(box, runs)
            assert 'Traceback' not in page.locator('body').inner_text()
    assert len({*pictures}) == 4 and min(map(len, pictures)) > 10_000, 'screenshots that show no change'


def compare(page, box, runs: Path) -> None:
    "Differences with their interval, an export, faces side by side, NME curves, all by the keyboard; then both themes."
    answer(runs / 'second')
    choose(page, box, 'view', 'ArrowDown', 5)
    state = seen(box, lambda s: s['ticks'] == ['second'] and 'low' in s['details'], 'no interval')
    assert 'bootstrap in pairs' in state['details'] and '95 % interval' in state['details']
    assert 'subpixel_nb.launch' in state['command'] and str(runs / 'first') not in state['said']
    box.get_by_text('export CSV').click()
    said = seen(box, lambda s: s['said'].startswith('Written'), 'nothing was exported')['said']
    table = pd.read_csv(runs.parent / said.removeprefix('Written: '), comment='#')
    assert table.run.tolist() == ['first', 'second'] and table.low[1] < table.difference[1] < table.high[1]
    choose(page, box, 'view', 'ArrowDown')
    seen(box, lambda s: s['pictures'] == 1, 'no faces')
    choose(page, box, 'view', 'ArrowUp', 6)
    seen(box, lambda s: s['traces'].get('second') == [8, 16], 'the curves are not back')
    for theme in themes(page):
        for place in ('tbody td', '[role=status]', '.xtick text', '.legendtext', '.xtitle', '.details td', 'code'):
            assert box.locator(place).first.evaluate(CONTRAST) >= 4.5, f'{place} in {theme}'


def others(box, runs: Path) -> None:
    "A half-written config, a stranger's folder, and a run whose folder vanishes while it is looked at."
    (runs / 'half').mkdir()
    (runs / 'half/config.json').write_text('{"method": "lo')
    (runs / 'notes').mkdir()
    state = seen(box, lambda s: {'half', 'notes'} <= s['runs'].keys(), 'the other folders are not told')
    assert state['runs']['half']['state'] == 'broken' and 'not readable' in state['runs']['half']['why']
    assert state['runs']['notes']['state'] == 'no run'
    shutil.rmtree(runs / 'second')
    seen(box, lambda s: 'second' not in s['runs'] and 'second' not in s['traces'], 'the vanished run stays')


def test_runs_as_a_page_of_voila(browser, lab, runs, tmp_path):
    "The same page by `voila nbs/runs.ipynb`: a run that has ended, and one that begins while it is open."
    with voila(lab.project, tmp_path / 'voila', 'runs') as address, opened(browser, address) as page:
        box = page.locator('.explorer.runs').first
        state = seen(box, lambda s: s['traces'], 'no figure')
        assert state['traces']['first'] == [1, 2] and state['runs']['first']['state'] == 'finished'
        shutil.copytree(runs / 'first', runs / 'third')
        seen(box, lambda s: s['traces'].get('third') == [1, 2], 'the new run is not shown')
        choose(page, box, 'view', 'ArrowDown', 5)
        seen(box, lambda s: 'bootstrap in pairs' in s['details'], 'no interval')
        said = page.inner_text('body')
        assert 'Traceback' not in said and 'RunsPage(' not in said, 'the page, not its code'
