"The round trip and the bound against numbers from elsewhere: Monte Carlo, autograd, scipy's quadrature."

import math

import pytest
import torch
from scipy.special import ellipe

from subpixel_nb.codec.decoding import DECODERS, decode, local_softargmax
from subpixel_nb.codec.encoding import encode
from subpixel_nb.codec.geometry import from_heatmap, to_heatmap
from subpixel_nb.codec.quantization import (
    CODECS,
    ROUNDING,
    bias_map,
    bound_ratios,
    codec_error,
    cramer_rao,
    mean_length,
    round_trip,
)


def test_rounding_costs_what_it_must():
    g = torch.Generator().manual_seed(0)
    cell = torch.rand(400_000, 2, generator=g, dtype=torch.float64) - 0.5
    assert cell.norm(dim=-1).mean().item() == pytest.approx(ROUNDING, rel=2e-3) and ROUNDING == pytest.approx(
        0.3826, abs=5e-5
    )
    places = 40 + 170 * torch.rand(20_000, 2, generator=g)
    for codec, factor in (
        (dict(encoding='round', method='argmax'), 1),
        (dict(method='argmax'), 1),
        (dict(encoding='floor', method='argmax'), 2),
    ):
        assert codec_error(places, **codec).mean().item() / 4 == pytest.approx(factor * ROUNDING, rel=0.015)


def test_round_trip_is_encode_then_decode():
    "Any leading shape, in blocks, for any stride. Noise repeats with its seed; the amplitude only scales the map."
    points = torch.rand(3, 1500, 2) * 120
    for codec in (dict(size=31, stride=4), dict(size=62, stride=2, sigma=2.0, method='quarter')):
        method = codec.get('method', 'local')
        maps = encode(points, codec['size'], codec.get('sigma', 1.5), codec['stride'])
        expected = from_heatmap(decode(maps, method)[0], codec['stride'])
        assert torch.allclose(round_trip(points, **codec), expected, atol=1e-4)
    noisy = [round_trip(points, 31, noise=0.1, generator=torch.Generator().manual_seed(s)) for s in (1, 1, 2)]
    assert torch.equal(noisy[0], noisy[1]) and not torch.equal(noisy[0], noisy[2])
    assert torch.allclose(round_trip(points, 31, amplitude=0.5), round_trip(points, 31, tau=5.0), atol=1e-4)
    assert round_trip(points[:0]).shape == (0, 1500, 2)


@pytest.mark.parametrize('method', DECODERS)
def test_bias_maps_are_odd_and_mean_nothing(method):
    "A mirrored place has the mirrored error, so the mean over the pixel is 0."
    b = bias_map(method, cells=8)
    if method == 'global':
        b = b - b.mean((0, 1))  # it is drawn to the middle of the map
    assert (b + b.flip(0, 1)).abs().max() < (1e-3 if method in ('global', 'udp') else 1e-4)
    assert torch.allclose(b[..., 0], b[..., 1].T, atol=1e-4)
    place = torch.tensor([[[16 - 0.5 + 1.5 / 8, 16 - 0.5 + 6.5 / 8]]])  # row 6, column 1
    assert (
        torch.allclose(b[6, 1], (local_softargmax(encode(from_heatmap(place), 33))[0] - place)[0, 0], atol=1e-5)
        or method != 'local'
    )


def fisher_by_autograd(centre, size, sigma, noise, amplitude, unknown):
    "J^T J / n^2 from torch's own Jacobian of the map by its parameters."
    names = ('x', 'y', *unknown)
    given = dict(x=centre[0], y=centre[1], amplitude=amplitude, sigma=sigma)

    def draw(v):
        p = given | dict(zip(names, v))
        i = torch.arange(size, dtype=torch.float64)
        return (
            p['amplitude'] * torch.exp(-((i[None] - p['x']) ** 2 + (i[:, None] - p['y']) ** 2) / (2 * p['sigma'] ** 2))
        ).flatten()

    j = torch.autograd.functional.jacobian(draw, torch.tensor([float(given[n]) for n in names], dtype=torch.float64))
    return torch.linalg.inv(j.T @ j / noise**2)[:2, :2]


@pytest.mark.parametrize('unknown', [(), ('amplitude',), ('amplitude', 'sigma')])
@pytest.mark.parametrize('centre', [(15.2, 14.7), (-0.4, 9.0), (30.9, -1.0)])
def test_the_bound_against_autograd(unknown, centre):
    ours = cramer_rao(torch.tensor([centre], dtype=torch.float64), 32, 1.3, 0.07, 0.6, unknown)[0]
    assert torch.allclose(ours, fisher_by_autograd(centre, 32, 1.3, 0.07, 0.6, unknown), rtol=1e-6)


def test_inside_the_bound_is_the_noise_and_at_the_border_more():
    inside, edge = torch.tensor([31.4, 30.2]), torch.tensor([-0.4, 30.0])
    for sigma in (1.5, 2.0, 3.0):
        assert torch.allclose(
            cramer_rao(inside, sigma=sigma, noise=0.1),
            torch.eye(2, dtype=torch.float64) * 0.02 / math.pi,
            rtol=2e-3,
            atol=1e-8,
        )
    told, untold = (mean_length(cramer_rao(edge, unknown=u)).item() for u in ((), ('amplitude', 'sigma')))
    assert untold > told > 1.1 * mean_length(cramer_rao(inside)).item()


def test_mean_length_against_sampling_and_scipy():
    c = torch.tensor(
        [[[4.0, 0.5], [0.5, 1.0]], [[1.0, 0.0], [0.0, 1.0]], [[9.0, 0.0], [0.0, 0.01]]], dtype=torch.float64
    )
    small, large = torch.linalg.eigvalsh(c).unbind(-1)
    assert torch.allclose(
        mean_length(c), (2 * large / math.pi).sqrt() * torch.from_numpy(ellipe((1 - small / large).numpy())), rtol=1e-4
    )
    draws = (
        torch.randn(200_000, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        @ torch.linalg.cholesky(c[0]).T
    )
    assert mean_length(c)[0].item() == pytest.approx(draws.norm(dim=-1).mean().item(), rel=0.01)


@pytest.mark.slow
def test_no_decoder_beats_the_bound_and_the_fit_reaches_it():
    "4,000 places leave 0.8 % of chance in a mean: the fit has to be within 3 % of the bound, without being told sigma."
    ratios = bound_ratios(sigmas=(1.0, 2.0), noises=(0.01, 0.1), count=4000, size=48)
    for found in ratios.values():
        assert min(found.values()) > 0.97 and found['gaussian'] < 1.03
        assert found['gaussian'] < found['calibrated'] < found['local'] < found['quarter'] < found['argmax']


@pytest.mark.data
@pytest.mark.slow
def test_codec_errors_on_real_landmarks(shared_data):
    "300W public at a 220 px face, NME by eye corners: what is known from elsewhere."
    import numpy as np

    from subpixel_nb.codec.geometry import crop_square, landmark_box, square_map, transform_points
    from subpixel_nb.data.metrics import normaliser

    points = torch.from_numpy(np.load(shared_data / 'annotations/300w_public_test_689.npz')['points'][::4]) - 1
    view = transform_points(square_map(crop_square(landmark_box(points), 'paper'), 256), points)
    d = normaliser(view, None, 'ic', (36, 45))
    known = {
        'floor, argmax': 2.43,
        'round, quarter': 1.23,
        'continuous, quarter': 0.61,
        'continuous, local 5 x 5': 0.093,
        'continuous, Gaussian fit': 0.0,
    }
    for name, value in known.items():
        assert (100 * codec_error(view, **CODECS[name]).mean(-1) / d).mean().item() == pytest.approx(
            value, rel=0.04, abs=1e-5
        ), name


def test_the_settings_of_a_round_trip_are_named():
    with pytest.raises(TypeError, match='positional'):
        round_trip(torch.zeros(1, 2), 64, 1.5, 4, 'round')


def test_unknown_points_stay_unknown():
    points = torch.tensor([[[100.0, 80.0], [torch.nan, 3.0]], [[60.0, torch.nan], [30.0, 200.0]]])
    found = codec_error(points, method='gaussian')
    assert found.isnan().tolist() == [[False, True], [True, False]] and found.nan_to_num().max() < 1e-3
    assert to_heatmap(round_trip(points[0, :1], method='argmax')).frac().abs().max() < 1e-5
