"The decoders against Eq. 4-5 written out in float64, at borders, and their round trip."
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from subpixel_nb.decoding import (DECODERS, argmax, calibrated_softargmax, dark, decode, fhr, gaussian_fit, global_softargmax,
                                  local_softargmax, log_parabola, peak, peak_patch, quarter, udp)
from subpixel_nb.encoding import encode
from subpixel_nb.geometry import from_heatmap


def eq4(heatmap, tau, window):
    "Eq. 4-5 for one (H, W) map in plain Python: indices from 0, l = (d - 1) / 2, pixels beyond the map left out."
    height, width, l = *heatmap.shape, (window - 1) // 2
    value, x, y = max((heatmap[j, i].item(), -j, -i) for j in range(height) for i in range(width))[0], None, None
    y, x = next((j, i) for j in range(height) for i in range(width) if heatmap[j, i].item() == value)
    weights = {(m, n): math.exp(tau * (heatmap[y - l + n, x - l + m].item() - value)) for m in range(window) for n in range(window)
               if 0 <= y - l + n < height and 0 <= x - l + m < width}
    total = sum(weights.values())
    return x + sum(w * m for (m, _), w in weights.items()) / total - l, y + sum(w * n for (_, n), w in weights.items()) / total - l


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.5, 40), st.sampled_from([1, 3, 5, 7, 9]), st.sampled_from([(9, 13), (4, 4)]))
def test_local_softargmax_is_eq4(seed, tau, window, shape):
    "On noise, so that the peak also falls on borders and corners; the map may be smaller than the window."
    heatmap = torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    points, score = local_softargmax(heatmap[None], tau, window)
    assert points[0].tolist() == pytest.approx(eq4(heatmap, tau, window), abs=1e-10)
    assert score.item() == heatmap.max().item()


@pytest.mark.parametrize('sigma, expected', [(1., (.381, .190, .135)), (1.5, (.381, .190, .029)), (2., (.381, .190, .0095))])
def test_round_trip_is_as_known(sigma, expected):
    truth = torch.rand(200, 100, 2, generator=torch.Generator().manual_seed(1)) * 40 + 12
    maps = encode(from_heatmap(truth), sigma=sigma)
    for name, value in zip(('argmax', 'quarter', 'local'), expected):
        assert (decode(maps, name)[0] - truth).norm(dim=-1).mean().item() == pytest.approx(value, rel=0.025)


def test_symmetric_maps_answer_their_centre():
    for centre in ((20., 30.), (0., 0.), (63., 63.)):
        for name in set(DECODERS) - {'global'}:
            found = decode(encode(from_heatmap(torch.tensor([centre])), sigma=1.), name, sigma=1.)[0][0]
            exact = name not in ('local', 'udp', 'calibrated') or centre == (20., 30.)  # else they see half a Gaussian
            assert (found - torch.tensor(centre)).abs().max() < (1e-4 if exact else 0.6), name


def test_flip_commutes_with_every_decoder():
    maps = encode(from_heatmap(torch.rand(1, 300, 2, dtype=torch.float64) * 63))
    for name in DECODERS:
        a, b = decode(maps, name)[0], decode(maps.flip(-1), name)[0]
        assert torch.allclose(b[..., 0], 63 - a[..., 0], atol=2e-4) and torch.allclose(b[..., 1], a[..., 1], atol=2e-4), name


def test_quarter_steps_towards_the_larger_neighbour():
    h = torch.zeros(1, 8, 8); h[0, 3, 4] = 1; h[0, 3, 5] = .5; h[0, 2, 4] = .2
    assert quarter(h)[0].tolist() == [[4.25, 2.75]]
    h = torch.zeros(1, 8, 8); h[0, 0, 7] = 1; h[0, 0, 6] = .5; h[0, 1, 7] = .2
    assert quarter(h)[0].tolist() == [[7., 0.]]                       # FAN does not step at a border


def test_peak_takes_the_first_of_equals_and_any_batch_shape():
    h = torch.zeros(2, 3, 5, 6); h[1, 2, 1, 4] = h[1, 2, 3, 0] = 2
    x, y, value = peak(h)
    assert (x[1, 2], y[1, 2], value[1, 2]) == (4, 1, 2) and (x[0, 0], y[0, 0]) == (0, 0)
    assert argmax(h[1, 2])[0].tolist() == [4, 1] and argmax(h[:0])[0].shape == (0, 3, 2)


def test_patch_at_the_corner():
    h = torch.arange(16.).view(1, 4, 4)
    patch = peak_patch(h, torch.tensor([3]), torch.tensor([3]), 3, outside=-1)
    assert patch.tolist() == [[[10, 11, -1], [14, 15, -1], [-1, -1, -1]]]


def everywhere(count: int, sigma: float, amplitude: float = 1., noise: float = 0., seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    "Centres over the whole frame (with noise: away from its border), and their maps."
    g = torch.Generator().manual_seed(seed)
    truth = torch.rand(count, 2, generator=g) * (30 if noise else 64) + (17 if noise else -0.5)
    maps = amplitude * encode(from_heatmap(truth), sigma=sigma)
    return truth, maps + noise * torch.randn(maps.shape, generator=g)


@pytest.mark.parametrize('sigma', [0.75, 1., 1.5, 2., 3.])
@pytest.mark.parametrize('amplitude', [0.25, 2.])
def test_the_fit_is_exact_without_noise(sigma, amplitude):
    truth, maps = everywhere(400, sigma, amplitude)
    fit = gaussian_fit(maps)
    assert (fit.points - truth).abs().max() < 1e-4
    assert (fit.sigma - sigma).abs().max() < 1e-3 and (fit.amplitude / amplitude - 1).abs().max() < 1e-3
    assert (gaussian_fit(maps, sigma).points - truth).abs().max() < 1e-4
    assert (log_parabola(maps)[0] - truth).abs().max() < 1e-4 and (fhr(maps, sigma)[0] - truth).abs().max() < 1e-4


@pytest.mark.parametrize('sigma, noise', [(1., .1), (1.5, .05), (2., .01)])
def test_the_fit_reaches_the_cramer_rao_bound_and_knows_its_error(sigma, noise):
    "The bound on the mean L2 error is the noise's deviation itself; 4,000 maps leave 1 % of chance in the mean."
    truth, maps = everywhere(4000, sigma, noise=noise)
    fit = gaussian_fit(maps)
    off = fit.points - truth
    assert 0.97 < off.norm(dim=-1).mean().item() / noise < 1.04
    inside = (off[:, None] @ torch.linalg.inv(fit.covariance) @ off[..., None]).flatten()
    for share in (.5, .9, .99):
        assert (inside < -2 * math.log(1 - share)).float().mean().item() == pytest.approx(share, abs=0.03)


def test_the_fit_against_scipy():
    "One noisy map, the same least-squares problem by another optimiser in float64, covariance too."
    from scipy.optimize import curve_fit
    truth, maps = everywhere(1, 1.5, noise=0.05, seed=3)
    x, y, _ = (int(v[0]) for v in peak(maps))
    ys, xs = torch.meshgrid(torch.arange(y - 6, y + 7), torch.arange(x - 6, x + 7), indexing='ij')
    patch, fit = maps[0, ys, xs].double().flatten().numpy(), gaussian_fit(maps.double(), steps=12)
    model = lambda p, a, cx, cy, s: a * np.exp(-((p[0] - cx) ** 2 + (p[1] - cy) ** 2) / (2 * s * s))
    best, covariance = curve_fit(model, (xs.flatten().numpy(), ys.flatten().numpy()), patch, p0=(1, x, y, 1.5))
    assert fit.points[0].tolist() == pytest.approx(best[1:3], abs=1e-5)
    assert (fit.amplitude.item(), fit.sigma.item()) == pytest.approx((best[0], best[3]), abs=1e-5)
    assert fit.covariance[0].flatten().tolist() == pytest.approx(covariance[1:3, 1:3].flatten(), rel=0.05, abs=1e-6)


def newton_on_log(heatmap, centre, blur, far):
    "DARK (far: over two pixels) and UDP (over one) for one map in float64, with scipy's correlation for the blur."
    from scipy.ndimage import correlate1d
    sigma = 0.3 * ((blur - 1) * 0.5 - 1) + 0.8
    kernel = np.exp(-0.5 * ((np.arange(blur) - blur // 2) / sigma) ** 2); kernel /= kernel.sum()
    b = correlate1d(correlate1d(heatmap, kernel, 0, mode='constant'), kernel, 1, mode='constant')
    b *= heatmap.max() / b.max()
    p, (x, y) = np.pad(np.log(np.maximum(b, 1e-10) if far else np.clip(b, 1e-3, 50)), 2, mode='edge'), centre
    at = lambda i, j: p[y + j + 2, x + i + 2]
    g = np.array([at(1, 0) - at(-1, 0), at(0, 1) - at(0, -1)]) / 2
    if far: xx, yy, xy = (at(2, 0) - 2 * at(0, 0) + at(-2, 0)) / 4, (at(0, 2) - 2 * at(0, 0) + at(0, -2)) / 4, \
            (at(1, 1) - at(1, -1) - at(-1, 1) + at(-1, -1)) / 4
    else: xx, yy, xy = at(1, 0) - 2 * at(0, 0) + at(-1, 0), at(0, 1) - 2 * at(0, 0) + at(0, -1), \
            (at(1, 1) - at(1, 0) - at(0, 1) + 2 * at(0, 0) - at(-1, 0) - at(0, -1) + at(-1, -1)) / 2
    return np.array(centre) - np.linalg.solve([[xx, xy], [xy, yy]], g)


@pytest.mark.parametrize('decoder, far', [(dark, True), (udp, False)])
@pytest.mark.parametrize('blur', [7, 11])
def test_dark_and_udp_against_whole_map_float64(decoder, far, blur):
    truth, maps = everywhere(60, 1.5)
    maps = maps + 0.03 * torch.rand(maps.shape, generator=torch.Generator().manual_seed(1))
    found = decoder(maps.double(), blur)[0]
    for heatmap, point in zip(maps.double(), found):
        x, y = (int(v[0]) for v in peak(heatmap[None])[:2])
        expected = newton_on_log(heatmap.numpy(), (x, y), blur, far)
        if far and not (1 < x < 62 and 1 < y < 62): expected = (x, y)
        assert point.tolist() == pytest.approx(expected, abs=1e-6)


def test_global_softargmax_is_the_mean_of_the_map_and_kornias():
    from kornia.geometry.subpix import spatial_soft_argmax2d
    h = torch.rand(2, 3, 9, 12, dtype=torch.float64)
    for tau in (1., 10.):
        w = (tau * h).exp()
        x = (w.sum(-2) * torch.arange(12)).sum(-1) / w.sum((-2, -1))
        assert torch.allclose(global_softargmax(h, tau)[0][..., 0], x)
    assert torch.allclose(spatial_soft_argmax2d(h, torch.tensor(1.), normalized_coordinates=False), global_softargmax(h, 1.)[0])


@pytest.mark.parametrize('sigma', [1., 1.5, 2.])
def test_calibrated_softargmax_has_no_bias_whatever_the_amplitude(sigma):
    for amplitude in (0.25, 1., 2.):
        truth, maps = everywhere(500, sigma, amplitude)
        error = (calibrated_softargmax(maps, sigma)[0] - truth).norm(dim=-1)
        assert error[((truth > 4) & (truth < 59)).all(-1)].max() < 5e-3 and error.mean() < 5e-3
    truth, maps = everywhere(2000, sigma, noise=0.05)
    ratio = lambda points: (points - truth).norm(dim=-1).mean().item() / 0.05
    assert ratio(calibrated_softargmax(maps, sigma)[0]) < 1.25 < 1.7 < ratio(local_softargmax(maps)[0])


def test_flat_and_empty_maps_have_an_answer():
    "A constant map answers its first pixel's neighbourhood, finite, and the fit says that it knows nothing."
    for flat in (torch.zeros(1, 16, 16), torch.full((1, 16, 16), 0.5)):
        for name in DECODERS: assert decode(flat, name)[0].isfinite().all(), name
    assert gaussian_fit(torch.zeros(1, 16, 16)).covariance.isinf().any()
    for name in DECODERS: assert decode(torch.zeros(0, 5, 16, 16), name)[0].shape == (0, 5, 2), name


def test_the_fit_is_differentiable():
    truth, maps = everywhere(2, 1.5, noise=0.02)
    h = maps.double()[:, 10:40, 10:40].contiguous().requires_grad_()
    assert torch.autograd.gradcheck(lambda v: gaussian_fit(h + v, steps=8).points, torch.zeros(2, 1, 1, dtype=torch.float64, requires_grad=True))


def test_differentiable():
    h = torch.rand(2, 9, 9, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda h: local_softargmax(h)[0], h)


def test_wrong_input():
    h = torch.rand(1, 8, 8)
    for window in (4, 0, -3):
        with pytest.raises(ValueError, match='window must be odd'): decode(h, window=window)
    with pytest.raises(ValueError, match='tau must be positive'): decode(h, tau=-1)
    with pytest.raises(ValueError, match="unknown decoder 'locl'; known: local"): decode(h, 'locl')
    with pytest.raises(ValueError, match='floating point'): decode(torch.zeros(1, 8, 8, dtype=torch.int64))
