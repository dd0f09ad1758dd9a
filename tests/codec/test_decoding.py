"The decoders against Eq. 4-5 written out in float64, at borders, and their round trip."

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from subpixel_nb.codec.decoding import (
    DECODERS,
    argmax,
    calibrated_softargmax,
    dark,
    decode,
    fhr,
    gaussian_fit,
    gaussian_fit_plain,
    global_softargmax,
    local_softargmax,
    local_softargmax_plain,
    log_parabola,
    peak,
    peak_patch,
    peak_plain,
    quarter,
    scores_on_host,
    selection_matrix,
    solve_by_elimination,
    udp,
    window_plain,
)
from subpixel_nb.codec.encoding import encode
from subpixel_nb.codec.geometry import from_heatmap


def eq4(heatmap, tau, window):
    "Eq. 4-5 for one (H, W) map in plain Python: indices from 0, l = (d - 1) / 2, pixels beyond the map left out."
    height, width, l = *heatmap.shape, (window - 1) // 2  # noqa: E741  # the paper's letter
    value = max(heatmap[j, i].item() for j in range(height) for i in range(width))
    y, x = next((j, i) for j in range(height) for i in range(width) if heatmap[j, i].item() == value)
    weights = {
        (m, n): math.exp(tau * (heatmap[y - l + n, x - l + m].item() - value))
        for m in range(window)
        for n in range(window)
        if 0 <= y - l + n < height and 0 <= x - l + m < width
    }
    total = sum(weights.values())
    return x + sum(w * m for (m, _), w in weights.items()) / total - l, y + sum(
        w * n for (_, n), w in weights.items()
    ) / total - l


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.5, 40), st.sampled_from([1, 3, 5, 7, 9]), st.sampled_from([(9, 13), (4, 4)]))
def test_local_softargmax_is_eq4(seed, tau, window, shape):
    "On noise, so that the peak also falls on borders and corners; the map may be smaller than the window."
    heatmap = torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    for decoder in (local_softargmax, local_softargmax_plain):
        points, score = decoder(heatmap[None], tau, window)
        assert points[0].tolist() == pytest.approx(eq4(heatmap, tau, window), abs=1e-10)
        assert score.item() == heatmap.max().item()


# The plain forms: products, sums and comparisons, for any batch


def test_selection_takes_rows_out():
    maps, start = torch.rand(2, 3, 9, 9), torch.tensor([[0.0, 1, 2], [3, 4, 5]])
    rows = selection_matrix(start, 4, 9) @ maps
    for b in range(2):
        for k in range(3):
            assert torch.equal(rows[b, k], maps[b, k, int(start[b, k]) : int(start[b, k]) + 4])


def noisy_maps(noise: float, shape: tuple[int, int] = (64, 64), sigma: float = 1.5) -> torch.Tensor:
    "(30, 20, H, W): centres over the whole frame, borders and corners included."
    g, (height, width) = torch.Generator().manual_seed(1), shape
    centres = torch.rand(30, 20, 2, generator=g) * torch.tensor([width, height]) - 0.5
    maps = 0.6 * encode(from_heatmap(centres), size=shape, sigma=sigma)
    return maps + noise * torch.randn(maps.shape, generator=g)


@pytest.mark.parametrize('size', [1, 3, 5, 13, 21])
@pytest.mark.parametrize('shape', [(16, 16), (16, 11)])
def test_plain_windows_slide_into_the_frame(size, shape):
    maps, (height, width) = noisy_maps(0.2, shape), shape
    x, y, _ = peak_plain(maps)
    patch, columns, rows = window_plain(maps, x, y, size)
    h, w = min(size, height), min(size, width)
    assert patch.shape == (30, 20, h, w) and columns.shape == (30, 20, w) and rows.shape == (30, 20, h)
    at_x, at_y = (columns + x[..., None]).long(), (rows + y[..., None]).long()
    assert at_x.min() >= 0 and at_x.max() < width and at_y.min() >= 0 and at_y.max() < height
    picked = maps.gather(2, at_y[..., None].expand(-1, -1, -1, width))
    assert torch.equal(patch, picked.gather(3, at_x[:, :, None].expand(-1, -1, h, -1)))


def test_the_plain_peak_is_the_first_of_equals():
    maps = torch.zeros(1, 2, 8, 8)
    maps[0, 0, 2, 5] = maps[0, 0, 2, 6] = maps[0, 0, 6, 1] = 1
    x, y, value = peak_plain(maps)
    assert x[0].tolist() == [5, 0] and y[0].tolist() == [2, 0] and value[0].tolist() == [1, 0]
    maps = noisy_maps(0.3, (32, 48))
    assert all(torch.equal(a, b.to(a.dtype)) for a, b in zip(peak_plain(maps), peak(maps)))


def test_elimination_is_numpys():
    g = torch.Generator().manual_seed(0)
    half = torch.randn(50, 4, 9, generator=g, dtype=torch.float64)
    sides = torch.randn(50, 4, 3, generator=g, dtype=torch.float64)
    normal = half @ half.mT
    expected = np.linalg.solve(normal.numpy(), sides.numpy())
    assert np.allclose(solve_by_elimination(normal, sides).numpy(), expected, rtol=1e-8, atol=1e-8)
    alone = solve_by_elimination(normal, sides[0])  # one right-hand side for all systems
    assert np.allclose(alone.numpy(), np.linalg.solve(normal.numpy(), sides[:1].numpy()), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize('noise', [0.0, 0.02, 0.1])
@pytest.mark.parametrize('tau, window', [(10.0, 5), (3.5, 7), (20.0, 3)])
def test_the_plain_softargmax_is_the_fast_one(noise, tau, window):
    maps = noisy_maps(noise)
    assert (local_softargmax_plain(maps, tau, window)[0] - local_softargmax(maps, tau, window)[0]).abs().max() < 1e-4


@pytest.mark.parametrize(
    'noise, sigma, shape',
    [
        (0.0, 1.5, (64, 64)),
        (0.02, 1.0, (64, 64)),
        (0.05, 1.5, (64, 64)),
        (0.02, 3.0, (32, 48)),
        (0.02, 1.5, (8, 8)),  # smaller than the window
    ],
)
@pytest.mark.parametrize('window', [13, 7])
def test_the_plain_fit_is_the_fast_one(noise, sigma, shape, window):
    "Centres to 1e-4 px, deviations to 1e-3 of themselves, and the same maps hold a Gaussian at all."
    maps = noisy_maps(noise, shape, sigma)
    plain, fast = gaussian_fit_plain(maps, window), gaussian_fit(maps, window=window)
    fitted = fast.covariance.isfinite().all(-1).all(-1)
    assert torch.equal(fitted, plain.covariance.isfinite().all(-1).all(-1)) and fitted.float().mean() > 0.9
    assert (plain.points - fast.points).abs().max() < 1e-4 and torch.equal(plain.score, fast.score)
    assert (plain.sigma - fast.sigma)[fitted].abs().max() < 1e-4
    assert (plain.amplitude - fast.amplitude)[fitted].abs().max() < 1e-4
    if noise:
        ratio = plain.covariance[fitted] / fast.covariance[fitted]
        assert (ratio - 1).diagonal(dim1=-2, dim2=-1).abs().max() < 1e-3


@pytest.mark.parametrize(
    'maps',
    [
        torch.full((1, 2, 16, 16), 0.5),
        torch.zeros(1, 2, 16, 16),
        -torch.ones(1, 2, 16, 16),
        torch.arange(256.0).view(1, 1, 16, 16),
        torch.eye(16)[None, None],
        torch.ones(1, 1, 2, 2),
        torch.ones(1, 1, 1, 5),
    ],
    ids='flat zero negative ramp ridge tiny line'.split(),
)
def test_the_plain_fit_of_maps_without_a_gaussian(maps):
    plain, fast = gaussian_fit_plain(maps), gaussian_fit(maps)
    assert (plain.points - fast.points).abs().max() < 1e-3
    assert torch.equal(plain.covariance.isfinite(), fast.covariance.isfinite())
    assert plain.sigma.isfinite().all() and plain.amplitude.isfinite().all()
    assert local_softargmax_plain(maps)[0].isfinite().all()


@pytest.mark.parametrize('bad', [torch.nan, torch.inf])
def test_the_plain_forms_show_a_bad_pixel_in_the_score(bad):
    maps = noisy_maps(0.02)[0]
    clean = local_softargmax_plain(maps)[0], gaussian_fit_plain(maps).points
    maps[3, 40, 21] = bad
    fit, (points, score) = gaussian_fit_plain(maps), local_softargmax_plain(maps)
    for found, before, value in ((points, clean[0], score), (fit.points, clean[1], fit.score)):
        assert found.isfinite().all() and not value[3].isfinite()
        assert torch.equal(found[:3], before[:3]) and torch.equal(found[4:], before[4:])
    assert fit.covariance[3].diagonal().isinf().all()


@pytest.mark.parametrize('plain', [local_softargmax_plain, lambda h: gaussian_fit_plain(h).points])
def test_the_plain_forms_are_differentiable(plain):
    maps = noisy_maps(0.02)[:2, :3].requires_grad_()
    found = plain(maps)
    (found[0] if isinstance(found, tuple) else found).sum().backward()
    assert maps.grad.isfinite().all() and (maps.grad != 0).any()


class _Plain(torch.nn.Module):
    "Both plain decoders as a module, for the exporter."

    def forward(self, heatmaps: torch.Tensor) -> tuple[torch.Tensor, ...]:
        fit = gaussian_fit_plain(heatmaps)
        return fit.points, fit.covariance, *local_softargmax_plain(heatmaps)


@pytest.mark.slow
def test_the_plain_forms_export_for_any_batch():
    "No branch and no address depends on the data: one program for batches of 1 and of 5, with the numbers of eager."
    example, batch = (noisy_maps(0.02)[:2],), torch.export.Dim('batch')
    program = torch.export.export(_Plain(), example, dynamic_shapes={'heatmaps': {0: batch}}).module()
    for count in (1, 5):
        maps = noisy_maps(0.02)[:count]
        assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(program(maps), _Plain()(maps)))


# All decoders


@pytest.mark.parametrize(
    'sigma, expected', [(1.0, (0.381, 0.190, 0.135)), (1.5, (0.381, 0.190, 0.029)), (2.0, (0.381, 0.190, 0.0095))]
)
def test_round_trip_is_as_known(sigma, expected):
    truth = torch.rand(200, 100, 2, generator=torch.Generator().manual_seed(1)) * 40 + 12
    maps = encode(from_heatmap(truth), sigma=sigma)
    for name, value in zip(('argmax', 'quarter', 'local'), expected):
        assert (decode(maps, name)[0] - truth).norm(dim=-1).mean().item() == pytest.approx(value, rel=0.025)


def test_symmetric_maps_answer_their_centre():
    for centre in ((20.0, 30.0), (0.0, 0.0), (63.0, 63.0)):
        for name in set(DECODERS) - {'global'}:
            found = decode(encode(from_heatmap(torch.tensor([centre])), sigma=1.0), name, sigma=1.0)[0][0]
            exact = name not in ('local', 'udp', 'calibrated') or centre == (
                20.0,
                30.0,
            )  # else they see half a Gaussian
            assert (found - torch.tensor(centre)).abs().max() < (1e-4 if exact else 0.6), name


def test_flip_commutes_with_every_decoder():
    maps = encode(from_heatmap(torch.rand(1, 300, 2, dtype=torch.float64) * 63))
    for name in DECODERS:
        a, b = decode(maps, name)[0], decode(maps.flip(-1), name)[0]
        assert torch.allclose(b[..., 0], 63 - a[..., 0], atol=2e-4) and torch.allclose(
            b[..., 1], a[..., 1], atol=2e-4
        ), name


def test_quarter_steps_towards_the_larger_neighbour():
    h = torch.zeros(1, 8, 8)
    h[0, 3, 4] = 1
    h[0, 3, 5] = 0.5
    h[0, 2, 4] = 0.2
    assert quarter(h)[0].tolist() == [[4.25, 2.75]]
    h = torch.zeros(1, 8, 8)
    h[0, 0, 7] = 1
    h[0, 0, 6] = 0.5
    h[0, 1, 7] = 0.2
    assert quarter(h)[0].tolist() == [[7.0, 0.0]]  # FAN does not step at a border


def test_peak_takes_the_first_of_equals_and_any_batch_shape():
    h = torch.zeros(2, 3, 5, 6)
    h[1, 2, 1, 4] = h[1, 2, 3, 0] = 2
    x, y, value = peak(h)
    assert (x[1, 2], y[1, 2], value[1, 2]) == (4, 1, 2) and (x[0, 0], y[0, 0]) == (0, 0)
    assert argmax(h[1, 2])[0].tolist() == [4, 1] and argmax(h[:0])[0].shape == (0, 3, 2)


def test_patch_at_the_corner():
    h = torch.arange(16.0).view(1, 4, 4)
    patch = peak_patch(h, torch.tensor([3]), torch.tensor([3]), 3, outside=-1)
    assert patch.tolist() == [[[10, 11, -1], [14, 15, -1], [-1, -1, -1]]]


def everywhere(
    count: int, sigma: float, amplitude: float = 1.0, noise: float = 0.0, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    "Centres over the whole frame (with noise: away from its border), and their maps."
    g = torch.Generator().manual_seed(seed)
    truth = torch.rand(count, 2, generator=g) * (30 if noise else 64) + (17 if noise else -0.5)
    maps = amplitude * encode(from_heatmap(truth), sigma=sigma)
    return truth, maps + noise * torch.randn(maps.shape, generator=g)


@pytest.mark.parametrize('sigma', [0.75, 1.0, 1.5, 2.0, 3.0])
@pytest.mark.parametrize('amplitude', [0.25, 2.0])
def test_the_fit_is_exact_without_noise(sigma, amplitude):
    truth, maps = everywhere(400, sigma, amplitude)
    fit = gaussian_fit(maps)
    assert (fit.points - truth).abs().max() < 1e-4
    assert (fit.sigma - sigma).abs().max() < 1e-3 and (fit.amplitude / amplitude - 1).abs().max() < 1e-3
    assert (gaussian_fit(maps, sigma).points - truth).abs().max() < 1e-4
    assert (log_parabola(maps)[0] - truth).abs().max() < 1e-4 and (fhr(maps, sigma)[0] - truth).abs().max() < 1e-4


@pytest.mark.parametrize('sigma, noise', [(1.0, 0.1), (1.5, 0.05), (2.0, 0.01)])
def test_the_fit_reaches_the_cramer_rao_bound_and_knows_its_error(sigma, noise):
    "The bound on the mean L2 error is the noise's deviation itself; 4,000 maps leave 1 % of chance in the mean."
    truth, maps = everywhere(4000, sigma, noise=noise)
    fit = gaussian_fit(maps)
    off = fit.points - truth
    assert 0.97 < off.norm(dim=-1).mean().item() / noise < 1.04
    inside = (off[:, None] @ torch.linalg.inv(fit.covariance) @ off[..., None]).flatten()
    for share in (0.5, 0.9, 0.99):
        assert (inside < -2 * math.log(1 - share)).float().mean().item() == pytest.approx(share, abs=0.03)


def test_a_given_sigma_may_be_wide():
    "A free sigma beyond SIGMAS is no Gaussian to the fit; one that was told is taken at its word."
    truth = torch.rand(50, 2, generator=torch.Generator().manual_seed(0)) * 100 + 78
    fit = gaussian_fit(encode(from_heatmap(truth), 256, 8.0), sigma=8.0, window=33)
    assert (fit.points - truth).abs().max() < 1e-3 and fit.covariance.isfinite().all()


def test_the_fit_against_scipy():
    "One noisy map, the same least-squares problem by another optimiser in float64, covariance too."
    from scipy.optimize import curve_fit

    _, maps = everywhere(1, 1.5, noise=0.05, seed=3)
    x, y, _ = (int(v[0]) for v in peak(maps))
    ys, xs = torch.meshgrid(torch.arange(y - 6, y + 7), torch.arange(x - 6, x + 7), indexing='ij')
    patch, fit = maps[0, ys, xs].double().flatten().numpy(), gaussian_fit(maps.double(), steps=12)

    def model(p, a, cx, cy, s):
        return a * np.exp(-((p[0] - cx) ** 2 + (p[1] - cy) ** 2) / (2 * s * s))

    best, covariance = curve_fit(model, (xs.flatten().numpy(), ys.flatten().numpy()), patch, p0=(1, x, y, 1.5))
    assert fit.points[0].tolist() == pytest.approx(best[1:3], abs=1e-5)
    assert (fit.amplitude.item(), fit.sigma.item()) == pytest.approx((best[0], best[3]), abs=1e-5)
    assert fit.covariance[0].flatten().tolist() == pytest.approx(covariance[1:3, 1:3].flatten(), rel=0.05, abs=1e-6)


def newton_on_log(heatmap, centre, blur, far):
    "DARK (far: over two pixels) and UDP (over one) for one map in float64, with scipy's correlation for the blur."
    from scipy.ndimage import correlate1d

    sigma = 0.3 * ((blur - 1) * 0.5 - 1) + 0.8
    kernel = (
        np.array([2, 7, 14, 18, 14, 7, 2.0])
        if blur == 7
        else np.exp(-0.5 * ((np.arange(blur) - blur // 2) / sigma) ** 2)
    )
    kernel /= kernel.sum()  # OpenCV has a table for 7 px, which mmpose's blur uses
    b = correlate1d(correlate1d(heatmap, kernel, 0, mode='constant'), kernel, 1, mode='constant')
    b *= heatmap.max() / b.max()
    p, (x, y) = np.pad(np.log(np.maximum(b, 1e-10) if far else np.clip(b, 1e-3, 50)), 2, mode='edge'), centre

    def at(i, j):
        return p[y + j + 2, x + i + 2]

    g = np.array([at(1, 0) - at(-1, 0), at(0, 1) - at(0, -1)]) / 2
    if far:
        xx, yy, xy = (
            (at(2, 0) - 2 * at(0, 0) + at(-2, 0)) / 4,
            (at(0, 2) - 2 * at(0, 0) + at(0, -2)) / 4,
            (at(1, 1) - at(1, -1) - at(-1, 1) + at(-1, -1)) / 4,
        )
    else:
        xx, yy, xy = (
            at(1, 0) - 2 * at(0, 0) + at(-1, 0),
            at(0, 1) - 2 * at(0, 0) + at(0, -1),
            (at(1, 1) - at(1, 0) - at(0, 1) + 2 * at(0, 0) - at(-1, 0) - at(0, -1) + at(-1, -1)) / 2,
        )
    return np.array(centre) - np.linalg.solve([[xx, xy], [xy, yy]], g)


@pytest.mark.parametrize('decoder, far', [(dark, True), (udp, False)])
@pytest.mark.parametrize('blur', [7, 11])
def test_dark_and_udp_against_whole_map_float64(decoder, far, blur):
    _, maps = everywhere(60, 1.5)
    maps = maps + 0.03 * torch.rand(maps.shape, generator=torch.Generator().manual_seed(1))
    found = decoder(maps.double(), blur)[0]
    for heatmap, point in zip(maps.double(), found):
        x, y = (int(v[0]) for v in peak(heatmap[None])[:2])
        expected = newton_on_log(heatmap.numpy(), (x, y), blur, far)
        if far and not (1 < x < 62 and 1 < y < 62):
            expected = (x, y)
        assert point.tolist() == pytest.approx(expected, abs=1e-6)


def test_global_softargmax_is_the_mean_of_the_map_and_kornias():
    "kornia's temperature multiplied the map until 0.8 and divides it from 0.9 on: tau = 10 is temperature 10 or 0.1."
    import kornia
    from kornia.geometry.subpix import spatial_soft_argmax2d

    h = torch.rand(2, 3, 9, 12, dtype=torch.float64)
    divides = tuple(int(v) for v in kornia.__version__.split('.')[:2]) >= (0, 9)
    for tau in (1.0, 10.0):
        w = (tau * h).exp()
        x = (w.sum(-2) * torch.arange(12)).sum(-1) / w.sum((-2, -1))
        assert torch.allclose(global_softargmax(h, tau)[0][..., 0], x)
        temperature = torch.tensor(1 / tau if divides else tau, dtype=h.dtype)
        assert torch.allclose(
            spatial_soft_argmax2d(h, temperature, normalized_coordinates=False), global_softargmax(h, tau)[0]
        )

    'conv_soft_argmax2d reads every window of a map; the one at the peak is Eq. 4-5. From 0.9 on it divides by tau.'
    'Masked pixels (-inf) away from the peak change no answer; next to it, every answer stays finite and close.'
    import kornia
    from kornia.geometry.subpix import conv_soft_argmax2d

    _, maps = everywhere(20, 1.5, noise=0.01)
    divides = tuple(int(v) for v in kornia.__version__.split('.')[:2]) >= (0, 9)
    places = conv_soft_argmax2d(
        maps[:, None], (5, 5), (1, 1), (2, 2), torch.tensor(0.1 if divides else 10.0), normalized_coordinates=False
    )
    x, y, _ = peak(maps)
    assert (places[torch.arange(20), 0, :, y, x] - local_softargmax(maps)[0]).abs().max() < 1e-3


@pytest.mark.parametrize('sigma', [1.0, 1.5, 2.0])
def test_calibrated_softargmax_has_no_bias_whatever_the_amplitude(sigma):
    for amplitude in (0.25, 1.0, 2.0):
        truth, maps = everywhere(500, sigma, amplitude)
        error = (calibrated_softargmax(maps, sigma)[0] - truth).norm(dim=-1)
        assert error[((truth > 4) & (truth < 59)).all(-1)].max() < 5e-3 and error.mean() < 5e-3
    truth, maps = everywhere(2000, sigma, noise=0.05)
    found = calibrated_softargmax(maps, sigma)[0], local_softargmax(maps)[0]
    ours, papers = ((points - truth).norm(dim=-1).mean().item() / 0.05 for points in found)
    assert ours < 1.25 < 1.7 < papers


FLAT = [torch.zeros(1, 16, 16), torch.full((1, 16, 16), 0.5), torch.full((1, 16, 16), -2.0)]


@pytest.mark.parametrize('name', DECODERS)
def test_flat_empty_and_tiny_maps_have_an_answer(name):
    for flat in FLAT:
        points = decode(flat, name)[0]
        assert points.isfinite().all() and ((points >= -0.5) & (points <= 15.5)).all()
    for shape in ((0, 5, 16, 16), (3, 0, 16, 16)):
        assert decode(torch.zeros(shape), name)[0].shape == (*shape[:2], 2)
    for height, width in ((1, 1), (1, 5), (2, 2), (3, 2), (4, 4)):
        h = torch.rand(7, height, width, generator=torch.Generator().manual_seed(height + width))
        points, score = decode(h, name)
        assert points.isfinite().all() and torch.equal(score, h.amax((-2, -1)))


def test_the_fit_says_that_it_knows_nothing():
    bad = torch.rand(4, 16, 16)
    bad[0] = 0
    bad[1] = -1
    bad[2, 3, 4] = torch.nan
    bad[3, 9, 2] = torch.inf
    fit = gaussian_fit(bad)
    assert (fit.covariance.diagonal(dim1=-2, dim2=-1) == torch.inf).all()
    for part in (fit.points, fit.amplitude[:3], fit.sigma):
        assert part.isfinite().all()


@pytest.mark.parametrize('name', DECODERS)
@pytest.mark.parametrize('bad', [torch.nan, torch.inf])
def test_a_bad_pixel_is_never_silent(name, bad):
    "`decode` raises and says where. The decoder itself answers that pixel, with a score that is not finite."
    _, maps = everywhere(5, 1.5)
    clean = DECODERS[name](maps, 10.0, 5, 1.5)[0]
    maps[3, 40, 21] = bad
    points, score = DECODERS[name](maps, 10.0, 5, 1.5)
    assert points[3].tolist() == [21, 40] and not score[3].isfinite() and torch.equal(points[:3], clean[:3])
    with pytest.raises(ValueError, match=r'1 of 5 heatmaps hold NaN or infinity, the first at index \(3,\)'):
        decode(maps, name)


@pytest.mark.parametrize('name', DECODERS)
def test_masked_pixels_and_negative_maps(name):
    "-inf away from the peak changes nothing that sees only the peak; next to it, every answer stays finite and close."
    truth, maps = everywhere(20, 1.5, noise=1e-9)
    far, near = maps.clone(), maps.clone()
    far[:, 0], near[torch.arange(20), truth[:, 1].round().long(), truth[:, 0].round().long() + 1] = (
        -torch.inf,
        -torch.inf,
    )
    assert torch.allclose(decode(far, name)[0], decode(maps, name)[0], atol=1e-5 if name != 'global' else 2)
    assert (decode(near, name)[0] - truth).norm(dim=-1).max() < (5 if name == 'global' else 1.5)
    assert decode(maps - 3, name)[0].isfinite().all()


@pytest.mark.parametrize('name', DECODERS)
def test_two_equal_peaks_answer_the_first_in_reading_order(name):
    h = encode(from_heatmap(torch.tensor([[20.0, 8.0], [4.0, 24.0]])), size=32).amax(0, keepdim=True)
    expected = [12.0, 16.0] if name == 'global' else [20.0, 8.0]  # the mean of both, by its definition
    assert decode(h, name, tau=100.0 if name == 'global' else 10.0)[0][0].tolist() == pytest.approx(expected, abs=0.02)


@pytest.mark.parametrize('name', DECODERS)
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision_maps_give_float32_points(name, dtype):
    _, maps = everywhere(200, 1.5)
    points, _ = decode(maps.to(dtype), name)
    assert points.dtype == torch.float32
    assert torch.allclose(points, decode(maps.to(dtype).float(), name)[0], atol=1e-4 if name != 'global' else 0.3)


@pytest.mark.parametrize('name', DECODERS)
def test_gradients_reach_the_map_and_change_no_answer(name):
    "With gradients the patches are gathered in another way: the same answers, and finite gradients, on flat maps too."
    _, maps = everywhere(50, 1.5)
    maps = torch.cat([maps, torch.zeros(1, 64, 64)])
    points, score = decode(maps.requires_grad_(), name)
    assert torch.allclose(points, decode(maps.detach(), name)[0], atol=1e-6)
    (points[:-1] * torch.randn(50, 2)).sum().add(score.sum()).backward()
    assert maps.grad.isfinite().all() and (maps.grad != 0).any()


@pytest.mark.slow
@pytest.mark.parametrize('name', ['local', 'gaussian'])
def test_compiles_without_a_graph_break(name):
    _, maps = everywhere(30, 1.5, noise=0.02)
    compiled = torch.compile(lambda h: decode(h, name), fullgraph=True, backend='aot_eager')
    assert torch.allclose(compiled(maps)[0], decode(maps, name)[0], atol=1e-5)


def test_other_memory_layouts():
    "A network's channels_last output, and a slice of a larger map."
    _, maps = everywhere(12, 1.5)
    batch = maps.view(3, 4, 64, 64).to(memory_format=torch.channels_last)
    wide = torch.zeros(12, 80, 90)
    wide[:, 5:69, 7:71] = maps
    for name in DECODERS:
        expected = decode(maps, name)[0]
        assert torch.allclose(decode(batch, name)[0].view(12, 2), expected, atol=1e-6)
        assert torch.allclose(decode(wide[:, 5:69, 7:71], name)[0], expected, atol=1e-6)


@pytest.mark.skipif(not torch.cuda.is_available(), reason='no CUDA device: decoding on the GPU is not compared')
@pytest.mark.parametrize('name', DECODERS)
def test_cuda_answers_as_the_cpu(name):
    _, maps = everywhere(100, 1.5, noise=0.02)
    assert torch.allclose(decode(maps.cuda(), name)[0].cpu(), decode(maps, name)[0], atol=1e-3)


def test_the_fit_is_differentiable():
    _, maps = everywhere(2, 1.5, noise=0.02)
    h = maps.double()[:, 10:40, 10:40].contiguous().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda v: gaussian_fit(h + v, steps=8).points, torch.zeros(2, 1, 1, dtype=torch.float64, requires_grad=True)
    )


def test_differentiable():
    h = torch.rand(2, 9, 9, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda h: local_softargmax(h)[0], h)


def test_wrong_input():
    h = torch.rand(1, 8, 8)
    for window in (4, 0, -3):
        with pytest.raises(ValueError, match='window must be odd'):
            decode(h, window=window)
    for plain in (local_softargmax_plain, gaussian_fit_plain):
        with pytest.raises(ValueError, match='window must be odd'):
            plain(h, window=4)
    for call in (decode, local_softargmax_plain):
        with pytest.raises(ValueError, match='tau must be positive'):
            call(h, tau=-1)
    with pytest.raises(ValueError, match="unknown decoder 'locl'; known: local"):
        decode(h, 'locl')
    with pytest.raises(ValueError, match='floating point'):
        decode(torch.zeros(1, 8, 8, dtype=torch.int64))


@pytest.mark.parametrize('name', DECODERS)
def test_no_decoder_waits_for_its_device(name):
    "The device `meta` has no numbers: an item, nonzero or a copy to the host raises there."
    points, score = decode(torch.empty(2, 5, 16, 16, device='meta'), name)
    assert points.shape == (2, 5, 2) and score.shape == (2, 5) and points.device.type == score.device.type == 'meta'
    with pytest.raises((NotImplementedError, RuntimeError)):
        scores_on_host(score)
