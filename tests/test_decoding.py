"The decoders against Eq. 4-5 written out in float64, at borders, and their round trip."
import math

import pytest
import torch
from hypothesis import given, settings, strategies as st

from subpixel_nb.decoding import DECODERS, argmax, decode, local_softargmax, peak, peak_patch, quarter
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
        for name in DECODERS:
            found = decode(encode(from_heatmap(torch.tensor([centre])), sigma=1.), name)[0][0]
            exact = name != 'local' or centre == (20., 30.)          # at a border the soft-argmax sees half a Gaussian
            assert (found - torch.tensor(centre)).abs().max() < (1e-5 if exact else 0.5)


def test_flip_commutes_with_every_decoder():
    maps = encode(from_heatmap(torch.rand(1, 300, 2) * 63))
    for name in DECODERS:
        a, b = decode(maps, name)[0], decode(maps.flip(-1), name)[0]
        assert torch.allclose(b[..., 0], 63 - a[..., 0], atol=1e-4) and torch.allclose(b[..., 1], a[..., 1], atol=1e-4)


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
