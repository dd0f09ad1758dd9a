"The lessons with sliders in JupyterLab in a browser: Run All, sliders moved by keys, numbers checked."

import re

import pytest
import torch
from browsers import CONTRAST, themes, wait_for

from subpixel_nb.codec.decoding import DECODERS, decode
from subpixel_nb.codec.encoding import encode
from subpixel_nb.codec.explore import ideal_heatmap
from subpixel_nb.codec.geometry import from_heatmap

pytestmark = [pytest.mark.browser, pytest.mark.slow]
LINE = re.compile(r'^local\s+tau=(\S+) window=(\d+) sigma=(\S+) offset=(\S+) +error (\S+) px', re.M)


def shown(text: str) -> dict[str, float] | None:
    "The settings and the error that the local soft-argmax's line on screen states."
    m = LINE.search(text)
    return m and dict(zip(('tau', 'window', 'sigma', 'offset', 'error'), map(float, m.groups())))


def error(tau: float, window: float, sigma: float, offset: float, **_) -> float:
    "What the library gives for the lesson's example: one landmark at (8 + offset, 8) on a map of 17 x 17."
    place = torch.tensor([[8 + offset, 8.0]])
    found, _ = decode(encode(from_heatmap(place), size=17, sigma=sigma), 'local', tau=tau, window=int(window))
    return (found - place).norm().item()


def test_sliders_of_the_decoding_lesson(lab):
    with lab.run_all('1_codec/03_decoding') as page:
        panel = page.locator('.widget-interact', has=page.locator('.widget-label', has_text=re.compile('^tau$')))
        assert panel.count() == 1
        before = screen(panel)
        assert before['error'] == pytest.approx(error(**before), abs=6e-5)  # four decimals are shown
        for label, key, steps in (('tau', 'ArrowLeft', 9), ('window', 'ArrowRight', 1)):
            slider = panel.locator(
                '.widget-slider', has=page.locator('.widget-label', has_text=re.compile(f'^{label}$'))
            )
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


def screen(panel, **wanted: float) -> dict[str, float]:
    "The local soft-argmax's line in the widget's output, once it states the wanted settings."
    return wait_for(
        lambda: shown(panel.inner_text()), lambda found: found and wanted.items() <= found.items(), f'no line {wanted}'
    )


STATE = """box => {
  const cells = r => [...r.cells].map(c => c.textContent);
  const figure = box.querySelector('.js-plotly-plot');
  const traces = Object.fromEntries((figure?.data ?? []).map(t => [t.name, t]));
  return {
    rows: Object.fromEntries(
      [...box.querySelectorAll('tbody tr')].map(cells).map(([_, name, ...rest]) => [name, rest])),
    summary: box.querySelector('[role=status]').textContent, caption: box.querySelector('caption').textContent,
    settings: Object.fromEntries([...box.querySelectorAll('.widget-slider')].map(s => [
      s.querySelector('[role=slider]').ariaLabel,
      parseFloat(s.querySelector('.widget-readout').textContent.replace('\u2212', '-'))])),
    answers: [...(traces['answers on patch']?.x ?? [])]
      .map((x, i) => [x, traces['answers on patch'].y[i]]),
    titles: [...(figure?.querySelectorAll('.annotation-text') ?? [])].map(t => t.textContent),
  };
}"""
WATCH = """box => {
  window.changed = false;
  const watch = new MutationObserver(() => { window.changed = true; watch.disconnect(); });
  watch.observe(box.querySelector('table').parentElement, { childList: true });
}"""


def decoded(settings: dict[str, float]) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    "What the library gives for the sliders of lesson 1.5: each decoder's point, and the truth."
    s = dict(settings, x=settings['x offset'], y=settings['y offset'], window=int(settings['window']))
    heatmap, truth = ideal_heatmap(**{k: s[k] for k in ('x', 'y', 'sigma', 'amplitude', 'noise')})
    return {name: decode(heatmap[None], name, s['tau'], s['window'], s['sigma'])[0][0] for name in DECODERS}, truth


def settled(box) -> dict:
    "What an explorer shows once its figure has followed its table."

    def alike(state: dict) -> bool:
        table = [float(v) for shown in state['rows'].values() for v in shown[:2]]
        return table == pytest.approx([v for point in state['answers'] for v in point], abs=1e-4)

    return wait_for(lambda: box.evaluate(STATE), alike, 'figure and table differ')


def check_explorer(state: dict):
    "Table, figure, and the word `best` against the library."
    points, truth = decoded(state['settings'])
    errors = {name: (p - truth).norm().item() for name, p in points.items()}
    assert list(state['rows']) == list(DECODERS)
    for name, shown in state['rows'].items():
        assert [float(v) for v in shown[:3]] == pytest.approx([*points[name].tolist(), errors[name]], abs=6e-5), name
    assert min(errors, key=errors.get) in [name for name, shown in state['rows'].items() if shown[3] == 'best']
    assert f'local {errors["local"]:.4f} px' in state['summary']


def test_sliders_of_the_explorer(lab):
    with lab.run_all('1_codec/05_explore') as page:
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

        for theme in themes(page):
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
