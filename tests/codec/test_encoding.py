"Eq. 1-3 against the formula written out in float64, one pixel at a time."

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from subpixel_nb.codec.encoding import encode, heatmap_centres
from subpixel_nb.codec.geometry import to_heatmap


def eq1(point, size, sigma, amplitude=1.0):
    x, y = point
    return torch.tensor(
        [
            [amplitude * math.exp(-((i - x) ** 2 + (j - y) ** 2) / (2 * sigma**2)) for i in range(size[1])]
            for j in range(size[0])
        ],
        dtype=torch.float64,
    )


@settings(max_examples=40, deadline=None)
@given(st.floats(-10, 80), st.floats(-10, 60), st.floats(0.5, 4), st.sampled_from([2, 4]))
def test_formula_anywhere(x, y, sigma, stride):
    "Inside, at the border and outside the frame, on a map that is not square."
    point = torch.tensor([[x, y]], dtype=torch.float64) * stride
    centre = ((x * stride + 0.5) / stride - 0.5, (y * stride + 0.5) / stride - 0.5)
    assert (encode(point, (12, 17), sigma, stride)[0] - eq1(centre, (12, 17), sigma)).abs().max() < 1e-12
    density = encode(point, (12, 17), sigma, stride, amplitude='density')[0]
    assert (density - eq1(centre, (12, 17), sigma, 1 / (2 * math.pi * sigma**2))).abs().max() < 1e-12


def test_modes():
    points = torch.tensor([[101.4, 103.5], [101.6, 99.3]])  # heatmap 24.975, 25.5 / 25.025, 24.45
    assert heatmap_centres(points, mode='round').tolist() == [[25, 26], [25, 24]]
    assert heatmap_centres(points, mode='floor').tolist() == [[24, 25], [25, 24]]
    assert torch.equal(heatmap_centres(points), to_heatmap(points))
    rounded = encode(points, mode='round')
    assert [divmod(int(i), 64)[::-1] for i in rounded.flatten(-2).argmax(-1)] == [(25, 26), (25, 24)]
    assert rounded.amax((-2, -1)).tolist() == [1, 1]


def test_every_border_pixel_has_its_peak():
    "Renderers that paste a patch put the peak one cell off within 4 cells of the border."
    cells = [(x, y) for x in range(16) for y in range(16)]
    maps = encode((torch.tensor(cells, dtype=torch.float32) + 0.5) * 4 - 0.5, size=16)
    assert [divmod(int(i), 16)[::-1] for i in maps.flatten(-2).argmax(-1)] == cells


def test_masks_batches_sigma_per_face():
    points = torch.rand(3, 5, 2) * 255
    visible = torch.rand(3, 5) > 0.4
    maps = encode(points, 64, torch.tensor([1.0, 1.5, 2.0]), visible=visible)
    assert maps.shape == (3, 5, 64, 64)
    for b, sigma in enumerate((1.0, 1.5, 2.0)):
        assert torch.allclose(maps[b][visible[b]], encode(points[b], sigma=sigma)[visible[b]])
    assert (maps[~visible] == 0).all()
    points[~visible] = torch.nan
    assert encode(points, visible=visible).isfinite().all()  # an invisible landmark may be anything
    assert encode(points[:0]).shape == (0, 5, 64, 64)


def test_wrong_names():
    with pytest.raises(ValueError, match="unknown encoding mode 'rounded'; known: round"):
        encode(torch.zeros(1, 2), mode='rounded')
    with pytest.raises(ValueError, match="unknown amplitude 'peek'; known: peak"):
        encode(torch.zeros(1, 2), amplitude='peek')


def test_amplitude_and_memory_are_named():
    with pytest.raises(TypeError, match='positional'):
        encode(torch.zeros(1, 2), 64, 1.5, 4, 'round', None, 'density')


def test_gradient():
    points = torch.tensor([[30.3, 40.1]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda p: encode(p, 16, stride=4.0), points)


@pytest.mark.parametrize('sigma', [0, -1.5, math.nan, math.inf, torch.tensor([1.0, 0.0])])
def test_a_sigma_that_draws_nothing_is_refused(sigma):
    with pytest.raises(ValueError, match='sigma: expected heatmap px above 0, got '):
        encode(torch.rand(2, 5, 2), 16, sigma)


@pytest.mark.parametrize('value', [math.nan, math.inf])
def test_points_that_are_nowhere_are_refused_unless_they_are_masked(value):
    points, visible = torch.full((2, 5, 2), 9.0), torch.ones(2, 5, dtype=torch.bool)
    points[1, 3, 0], visible[1, 3] = value, False
    with pytest.raises(ValueError, match=r'1 points are not finite, the first is \[1, 3\]: mask them with `visible`'):
        encode(points, 16)
    maps = encode(points, 16, visible=visible)
    assert maps.isfinite().all() and (maps[1, 3] == 0).all()


@pytest.mark.parametrize('stride', [0, -4, math.nan])
def test_a_stride_that_maps_to_nowhere_is_refused(stride):
    with pytest.raises(ValueError, match='stride: expected image px per heatmap px above 0, got'):
        encode(torch.rand(2, 5, 2), 16, stride=stride)


def test_out_is_drawn_into():
    points, memory = torch.rand(2, 5, 2) * 255, torch.full((2, 5, 64, 64), 7.0)
    assert encode(points, out=memory) is memory and torch.equal(memory, encode(points))


def test_kornia_renders_the_same_gaussian():
    "kornia normalises the map to sum 1; well inside that is Eq. 1's density."
    from kornia.geometry.subpix import render_gaussian2d

    centres = torch.rand(20, 2, dtype=torch.float64) * 30 + 17
    kornias = render_gaussian2d(
        centres, torch.full((1, 2), 1.5, dtype=torch.float64), (64, 64), normalized_coordinates=False
    )
    assert torch.allclose(kornias, encode(centres, 64, 1.5, stride=1, amplitude='density'), atol=1e-6)
