"The explorer without a browser: whatever the sliders say and whatever heatmaps it gets, its numbers are the library's."

import html
import json
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st

from subpixel_nb.codec import decoding
from subpixel_nb.codec.decoding import DECODERS, decode, gaussian_fit
from subpixel_nb.codec.encoding import encode
from subpixel_nb.codec.explore import (
    IDEAL,
    SLIDERS,
    Explorer,
    answer_rows,
    confidence_ellipse,
    explore,
    ideal_heatmap,
    kept_bias_map,
    probe_heatmap,
    quiver,
    white_noise,
)
from subpixel_nb.codec.geometry import from_heatmap
from subpixel_nb.codec.quantization import bias_map

STATES = [
    dict(),
    dict(tau=2.0, window=9, sigma=2.5, x=-0.4, y=0.45, amplitude=0.3, noise=0.02, bias='gaussian'),
    dict(window=15, noise=0.3, bias='argmax'),
    dict(sigma=0.5, tau=40.0, window=3, noise=0.0, bias='calibrated'),
    dict(amplitude=2.0, noise=0.0, bias='global'),
]


def moved(explorer: Explorer, **values) -> Explorer:
    for name, value in values.items():
        explorer.controls[name].value = value
    return explorer


def table(explorer: Explorer) -> dict[str, list[str]]:
    "The table's body as a reader of its HTML finds it: decoder -> x, y, error, best."
    body = explorer.readout.table.partition('<tbody>')[2]
    cells = [
        [html.unescape(re.sub('<[^>]*>', '', c)) for c in re.findall(r'<t[dh][^>]*>.*?</t[dh]>', row)]
        for row in body.split('</tr>')[:-1]
    ]
    return {name: rest for _, name, *rest in cells}


def traces(explorer: Explorer) -> dict:
    return {trace.name: trace for trace in explorer.figure.data}


def a_network(count: int = 3, height: int = 20, width: int = 28) -> tuple[torch.Tensor, torch.Tensor]:
    "Heatmaps that no Gaussian drew, not square, and points."
    g = torch.Generator().manual_seed(1)
    maps = torch.nn.functional.avg_pool2d(torch.randn(count, height, width, generator=g), 3, 1, 1)
    truth = torch.rand(count, 2, generator=g) * 12 + 4
    return maps + 0.7 * encode(from_heatmap(truth), (height, width), 2.0), truth


# The numbers


@settings(max_examples=25)
@given(
    st.floats(-0.5, 0.5),
    st.floats(-0.5, 0.5),
    st.floats(0.5, 3),
    st.floats(0.1, 2),
    st.floats(0, 0.3),
    st.integers(0, 5),
)
def test_ideal_heatmap(x, y, sigma, amplitude, noise, seed):
    heatmap, truth = ideal_heatmap(x, y, sigma, amplitude, noise, seed)
    assert truth.tolist() == pytest.approx([16 + x, 16 + y], abs=1e-5)
    clean = amplitude * encode(from_heatmap(truth[None]), 33, sigma)[0]
    assert torch.allclose(heatmap, clean + noise * white_noise(33, 33, seed), atol=1e-6)


def test_noise_is_scaled_not_drawn_again():
    a, b = (ideal_heatmap(noise=n)[0] - ideal_heatmap()[0] for n in (0.1, 0.2))
    assert torch.allclose(2 * a, b, atol=1e-6) and a.std() == pytest.approx(0.1, rel=0.05)
    assert not torch.allclose(a, ideal_heatmap(noise=0.1, seed=1)[0] - ideal_heatmap()[0])


def test_nothing_shared_is_written_to():
    before = [white_noise(33, 33).clone(), kept_bias_map('local', 1.5, 10.0, 5, 1.0).clone()]
    for state in STATES:
        moved(explore(), **state)
    assert torch.equal(before[0], white_noise(33, 33)) and torch.equal(
        before[1], kept_bias_map('local', 1.5, 10.0, 5, 1.0)
    )


@pytest.mark.parametrize('window', [3, 5, 15])
def test_probe(window):
    heatmap, truth = ideal_heatmap(0.2, -0.3, noise=0.05)
    seen = probe_heatmap(heatmap, truth, 8.0, window, 1.4)
    for name in DECODERS:
        found = decode(heatmap[None], name, 8.0, window, 1.4)[0][0]
        assert torch.equal(seen.points[name], found) and seen.errors[name] == pytest.approx(
            (found - truth).norm().item()
        )
    assert torch.equal(seen.covariance, gaussian_fit(heatmap[None]).covariance[0])
    assert seen.peak == (16, 16) and seen.weights.sum().item() == pytest.approx(1)
    low = 16 - window // 2
    assert torch.equal(seen.patch, heatmap[low : low + window, low : low + window])
    mean = (
        (seen.weights.sum(0) * (torch.arange(window) + low)).sum(),
        (seen.weights.sum(1) * (torch.arange(window) + low)).sum(),
    )
    assert torch.allclose(torch.stack(mean), seen.points['local'], atol=1e-4)  # Eq. 4
    assert probe_heatmap(heatmap).errors is None


def test_probe_in_a_corner_gives_no_weight_to_the_outside():
    seen = probe_heatmap(encode(from_heatmap(torch.tensor([[0.2, 31.0]])), 32)[0])
    assert (
        seen.peak == (0, 31)
        and seen.patch[0, 0] == -torch.inf
        and seen.weights[:, :2].sum() == 0 == seen.weights[3:].sum()
    )
    assert probe_heatmap(torch.ones(9, 9)).covariance.isinf().any(), 'no Gaussian there'


def test_ellipse_holds_its_share():
    g, covariance = torch.Generator().manual_seed(0), torch.tensor([[0.04, 0.015], [0.015, 0.01]])
    outline = confidence_ellipse(torch.tensor([3.0, 4.0]), covariance, 0.9) - torch.tensor([3.0, 4.0])
    radius = (outline[:, None] @ torch.linalg.inv(covariance) @ outline[..., None]).flatten()
    drawn = torch.randn(20_000, 2, generator=g) @ torch.linalg.cholesky(covariance).mT
    inside = (drawn[:, None] @ torch.linalg.inv(covariance) @ drawn[..., None]).flatten() < radius.mean()
    assert radius.std() < 1e-3 and inside.float().mean().item() == pytest.approx(0.9, abs=0.01)
    assert torch.equal(outline[0], outline[-1]) or torch.allclose(outline[0], outline[-1], atol=1e-5)
    assert confidence_ellipse(torch.zeros(2), torch.full((2, 2), torch.inf)).isnan().all()


def test_quiver_points_where_the_bias_does():
    bias = bias_map('argmax')
    start, end, gap = quiver(bias).view(-1, 3, 2).unbind(1)
    assert (
        len(start) == 49 and gap.isnan().all() and torch.allclose(end, torch.zeros_like(end), atol=1e-4)
    )  # all to the middle


# What is shown


@pytest.mark.parametrize('state', STATES, ids=str)
def test_shown_is_what_the_library_gives(state):
    explorer = moved(explore(), **state)
    v = {name: value for name, (value, *_) in SLIDERS.items()} | dict(bias='local') | state
    heatmap, truth = ideal_heatmap(v['x'], v['y'], v['sigma'], v['amplitude'], v['noise'])
    points = {name: decode(heatmap[None], name, v['tau'], v['window'], v['sigma'])[0][0] for name in DECODERS}
    errors = {name: (p - truth).norm().item() for name, p in points.items()}
    shown, drawn = table(explorer), traces(explorer)
    assert list(shown) == list(DECODERS)
    for name, cells in shown.items():
        assert [float(c) for c in cells[:3]] == pytest.approx([*points[name].tolist(), errors[name]], abs=6e-5)
    best = [name for name, cells in shown.items() if cells[3] == 'best']
    assert min(errors, key=errors.get) in best and max(errors[name] for name in best) < min(errors.values()) + 1e-4
    assert f'local {errors["local"]:.4f} px' in explorer.readout.summary

    answers = torch.stack(list(points.values()))
    for panel in ('heatmap', 'patch'):
        assert np.allclose(
            np.stack([drawn[f'answers on {panel}'].x, drawn[f'answers on {panel}'].y], 1), answers, atol=1e-4
        )
        assert [drawn[f'truth on {panel}'].x[0], drawn[f'truth on {panel}'].y[0]] == pytest.approx(truth.tolist())
    assert np.allclose(drawn['heatmap'].z, heatmap)
    assert (
        np.array(drawn['weights'].z, float).sum() == pytest.approx(1, abs=1e-5) and len(drawn['patch'].z) == v['window']
    )
    bias = bias_map(v['bias'], v['sigma'], v['tau'], v['window'], v['amplitude']).norm(dim=-1)
    assert np.allclose(drawn['bias'].z, bias.clamp(min=1e-6).log10(), atol=1e-3)
    assert [drawn['here'].x[0], drawn['here'].y[0]] == pytest.approx([v['x'], v['y']], abs=1e-5)


def test_figure_is_updated_in_place_and_made_anew_only_for_a_page():
    explorer = explore()
    figure, heat = explorer.figure, traces(explorer)['heatmap']
    moved(explorer, **STATES[1])
    assert explorer.figure is figure and traces(explorer)['heatmap'] is heat
    bundle = explorer._repr_mimebundle_()
    assert explorer.figure is not figure and explorer.view.children[1] is explorer.figure
    assert np.array_equal(traces(explorer)['heatmap'].z, heat.z), 'what the page is given first is what was last shown'
    assert 'application/vnd.jupyter.widget-view+json' in bundle and bundle['text/plain'] == repr(explorer)
    assert explorer._repr_mimebundle_() and explorer.figure is explorer.view.children[1]


def test_what_is_sent_is_json():
    "NaN and infinity are no JSON: a window over the border, an unknown truth, no Gaussian to fit."
    maps = torch.zeros(2, 16, 16)
    maps[0, 0, 0] = 1
    explorer = moved(explore(maps), window=9)
    for k in (0, 1):
        explorer.controls['source'].value = k
        for trace in explorer.figure.data:
            if trace.type == 'heatmap' and trace.name != 'bias':
                json.dumps(np.asarray(trace.z, object).tolist(), allow_nan=False)
        json.dumps(
            [explorer.figure.layout.to_plotly_json(), explorer.readout.table, explorer.readout.summary], allow_nan=False
        )
    assert 'no Gaussian' in explorer.readout.summary


def test_text_for_readers_without_a_screen():
    explorer = explore()
    lines = repr(explorer).splitlines()
    assert [line.split()[0] for line in lines[:-1]] == list(DECODERS) and lines[-1] == explorer.readout.summary
    assert (
        'role' in explorer.readout._esm
        and 'aria-live' in explorer.readout._esm
        and '<caption>' in explorer.readout.table
    )


def test_a_decoder_of_ones_own_is_shown(monkeypatch):
    monkeypatch.setitem(
        decoding.DECODERS, '<mine>', lambda h, tau, window, sigma: decode(h, 'local', tau, window, sigma)
    )
    explorer = moved(explore(), bias='<mine>', noise=0.0)
    assert table(explorer)['<mine>'][:3] == table(explorer)['local'][:3] and '<mine>' not in explorer.readout.table


def test_the_numbers_need_no_page():
    "Without plotly, ipywidgets, anywidget, matplotlib and Jupyter the module is imported and computes."
    program = """
import sys
hidden = 'plotly', 'ipywidgets', 'anywidget', 'traitlets', 'matplotlib', 'IPython', 'jupyterlab', 'ipykernel'
sys.modules.update(dict.fromkeys(hidden))
from subpixel_nb.codec.explore import describe_errors, ideal_heatmap, probe_heatmap, table_text
seen = probe_heatmap(*ideal_heatmap(0.3, -0.2))
print(table_text(seen), describe_errors(seen), sep='\\n')
"""
    done = subprocess.run([sys.executable, '-c', program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and 'Best: ' in done.stdout, done.stderr


# A network's heatmaps


def test_given_heatmaps():
    maps, truth = a_network()
    truth[2] = torch.nan  # not known
    explorer = explore(maps.requires_grad_(), truth, ['nose', '<b>', 'chin'])
    assert explorer.controls['source'].value == 0 and explorer.controls['noise'].value == 0
    for k in range(3):
        explorer.controls['source'].value = k
        moved(explorer, tau=5.0, window=7, sigma=2.0 + k / 10)
        for name, cells in table(explorer).items():
            found = decode(maps.detach()[k : k + 1], name, 5.0, 7, 2.0 + k / 10)[0][0]
            assert [float(c) for c in cells[:2]] == pytest.approx(found.tolist(), abs=6e-5)
            assert (
                cells[2:] == ['-', '']
                if k == 2
                else float(cells[2]) == pytest.approx((found - truth[k]).norm().item(), abs=6e-5)
            )
        assert [explorer.controls[name].disabled for name in ('x', 'y', 'amplitude', 'sigma', 'tau', 'noise')] == [
            True
        ] * 3 + [False] * 3
    assert 'not known' in explorer.readout.table and 'Truth not known' in explorer.readout.summary
    assert np.isnan(traces(explorer)['truth on patch'].x).all() and np.isnan(traces(explorer)['here'].x).all()
    explorer.controls['source'].value = 1
    assert '<b>:' not in explorer.readout.table and '&lt;b&gt;' in explorer.readout.table
    assert np.allclose(traces(explorer)['heatmap'].z, maps.detach()[1])
    moved(explorer, noise=0.1)
    assert np.allclose(traces(explorer)['heatmap'].z, maps.detach()[1] + 0.1 * white_noise(20, 28), atol=1e-6)
    moved(explorer, source=IDEAL)
    assert not explorer.controls['x'].disabled and 'ideal' in explorer.readout.table


def test_half_precision_heatmaps():
    maps, truth = a_network()
    explorer = moved(explore(maps.bfloat16(), truth), noise=0.01)
    assert all(np.isfinite([float(c) for c in cells[:3]]).all() for cells in table(explorer).values())


@pytest.mark.parametrize(
    'arguments, message',
    [
        (dict(heatmaps=torch.zeros(1, 3, 8, 8)), r'\(K, H, W\).*float32 \(1, 3, 8, 8\)'),
        (dict(heatmaps=torch.zeros(8, 8)), r'\(K, H, W\).*\(8, 8\)'),
        (dict(heatmaps=torch.zeros(2, 8, 8, dtype=torch.uint8)), 'floating point.*uint8'),
        (dict(heatmaps=torch.zeros(0, 8, 8)), r'\(0, 8, 8\)'),
        (dict(heatmaps=torch.zeros(2, 8, 8), truth=torch.zeros(3, 2)), r'truth must be \(2, 2\).*\(3, 2\)'),
        (dict(heatmaps=torch.zeros(2, 8, 8), truth=torch.zeros(2, 3)), r'truth must be \(2, 2\).*\(2, 3\)'),
        (dict(heatmaps=torch.zeros(2, 8, 8), names=['nose']), 'names must be 2.*got 1'),
        (dict(heatmaps=torch.full((2, 8, 8), torch.nan), names=['nose', 'chin']), "2 of 2, the first 'nose'"),
        (dict(truth=torch.zeros(1, 2)), 'none were given'),
        (dict(names=['nose']), 'none were given'),
    ],
)
def test_wrong_input(arguments, message):
    with pytest.raises(ValueError, match=message):
        explore(**arguments)


def test_rows_round_before_they_compare():
    heatmap, truth = ideal_heatmap(0.3, -0.2)
    exact = [name for name, _, _, error, best in answer_rows(probe_heatmap(heatmap, truth)) if best]
    assert {'gaussian', 'log-parabola', 'fhr'} <= set(exact), 'all of these are exact to the four digits shown'
