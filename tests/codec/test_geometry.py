"Property tests of subpixel_nb.codec.geometry: points, images and heatmaps move together, to 1e-4 px."

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kornia.filters import gaussian_blur2d, get_gaussian_kernel1d
from kornia.geometry.transform import warp_affine

from subpixel_nb.codec.encoding import encode
from subpixel_nb.codec.geometry import (
    CROPS,
    blur_sigma,
    compose,
    crop_square,
    flip_permutation,
    flip_points,
    from_heatmap,
    inverse,
    landmark_box,
    lands_inside,
    on_heatmap,
    reflection,
    scale_of,
    scale_shift,
    similarity,
    square_map,
    stride_map,
    to_heatmap,
    transform_points,
    warp,
)

degrees, scales, flags = st.floats(-180, 180), st.floats(0.5, 2), st.booleans()
pixels = st.floats(-50, 300)


def view(deg: float, k: float, mirrored: bool, size: int = 256) -> torch.Tensor:
    return similarity(torch.tensor([deg]), torch.tensor([k]), torch.tensor([mirrored]), size)[0]


@given(degrees, scales, flags, st.lists(st.tuples(pixels, pixels), min_size=1, max_size=8))
def test_a_map_and_its_inverse(deg, k, mirrored, points):
    points, m = torch.tensor(points), view(deg, k, mirrored)
    assert (transform_points(inverse(m), transform_points(m, points)) - points).abs().max() < 1e-4
    assert (inverse(m) - torch.linalg.inv(m)).abs().max() < 1e-4
    assert scale_of(m).item() == pytest.approx(k, rel=1e-5)


@given(degrees, scales, flags, degrees, scales, st.tuples(pixels, pixels))
def test_composition_is_one_after_the_other(deg, k, mirrored, deg2, k2, point):
    a, b, p = view(deg, k, mirrored), view(deg2, k2, False), torch.tensor([point])
    assert (transform_points(compose(a, b), p) - transform_points(b, transform_points(a, p))).abs().max() < 2e-4


@given(degrees, scales, flags, st.tuples(pixels, pixels), st.sampled_from([2, 4, 8]))
def test_images_and_heatmaps_commute(deg, k, mirrored, point, stride):
    "To the grid and then moved, or moved and then to the grid: one place."
    m, p = view(deg, k, mirrored), torch.tensor([point])
    there = transform_points(on_heatmap(m, stride), to_heatmap(p, stride))
    assert (there - to_heatmap(transform_points(m, p), stride)).abs().max() < 1e-4
    assert (transform_points(stride_map(stride), p) - to_heatmap(p, stride)).abs().max() < 1e-4
    assert (from_heatmap(to_heatmap(p, stride), stride) - p).abs().max() < 1e-4


def test_rotation_is_counter_clockwise_on_the_screen():
    right_of_centre = torch.tensor([[227.5, 127.5]])
    assert torch.allclose(
        transform_points(view(90.0, 1.0, False), right_of_centre), torch.tensor([[127.5, 27.5]]), atol=1e-4
    )


@settings(max_examples=30)
@given(st.lists(st.tuples(st.floats(0, 255), st.floats(0, 255)), min_size=3, max_size=3))
def test_flip_of_the_image_is_flip_of_the_heatmap(points):
    points, swap = torch.tensor(points, dtype=torch.float64), flip_permutation([(0, 2)], 3)
    mirrored = encode(flip_points(points, 256, swap))
    assert (mirrored - encode(points).flip(-1)[swap]).abs().max() < 1e-12
    assert torch.equal(compose(reflection(256), stride_map(4)), compose(stride_map(4), reflection(64)))


@settings(max_examples=40, deadline=None)
@given(st.floats(-30, 30), st.floats(0.85, 1.15), flags, st.tuples(st.floats(80, 176), st.floats(80, 176)))
def test_encode_after_map_is_map_after_encode(deg, k, mirrored, point):
    "Up to bilinear interpolation, at most 1 / (4 sigma^2); under scale k the mapped Gaussian has sigma k."
    m, p, sigma = view(deg, k, mirrored), torch.tensor([[point]]), 1.5
    moved = warp(encode(p, sigma=sigma), on_heatmap(m), 64)
    bound = 1 / (4 * sigma**2)
    assert (moved - encode(transform_points(m, p), sigma=sigma * k)).abs().max() < bound
    centre = (moved[0, 0] * torch.stack(torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing='xy'))).sum(
        (-2, -1)
    ) / moved.sum()
    assert (centre - to_heatmap(transform_points(m, p))[0, 0]).abs().max() < 0.1  # x / s would move it by 0.375
    spread = ((torch.arange(64.0) - centre[0]) ** 2 * moved[0, 0].sum(0)).sum() / moved.sum()
    assert spread.item() == pytest.approx((sigma * k) ** 2, rel=0.12)  # bilinear adds about k^2 / 6


def test_warp_by_nothing_and_by_a_mirror():
    image = torch.rand(2, 3, 33, 47)
    assert torch.allclose(warp(image, torch.eye(3), (33, 47)), image, atol=1e-4)
    assert torch.allclose(warp(image, reflection(47), (33, 47)), image.flip(-1), atol=1e-4)
    assert warp(image[0], torch.eye(3), 20).shape == (3, 20, 20)


def test_warp_averages_where_it_shrinks():
    stripes = (torch.arange(128) % 2).float().expand(1, 1, 128, 128).contiguous()
    m = view(0.0, 0.5, False, 128)
    plain, filtered = warp(stripes, m, 128), warp(stripes, m, 128, min_scale=0.5)
    inner = (..., slice(40, 88), slice(40, 88))
    assert (filtered[inner] - 0.5).abs().max() < 0.1 and torch.isfinite(plain).all()
    assert torch.allclose(warp(stripes, torch.eye(3), 128, min_scale=0.5), stripes, atol=1e-3)


def test_bytes_are_warped_as_their_numbers_and_a_batch_as_its_images():
    images = torch.randint(0, 256, (5, 3, 40, 40), dtype=torch.uint8)
    m = torch.stack(
        [
            view(d, k, f, 40)
            for d, k, f in ((0, 0.85, True), (20, 1.0, False), (-30, 1.1, True), (9, 0.9, False), (0, 1.0, False))
        ]
    )
    whole = warp(images, m, 30, min_scale=0.85)
    assert whole.dtype == torch.float32 and torch.equal(whole, warp(images.float(), m, 30, min_scale=0.85))
    assert torch.allclose(whole, torch.stack([warp(i, t, 30, min_scale=0.85) for i, t in zip(images, m)]), atol=1e-4)


@pytest.mark.parametrize('k', [0.99, 0.97, 0.9, 0.85, 0.7, 0.5, 0.2])
def test_what_shrinks_is_smoothed_by_the_variance_that_it_lacks(k):
    "A point of light, filtered as `warp` does under a scale of k; a Gaussian sampled at that variance is too narrow."
    lacks, taps = 0.25 * (k**-2 - 1), 2 * (1 + int(1.5 * (k**-2 - 1) ** 0.5)) + 1
    light = torch.zeros(1, 1, 41, 41, dtype=torch.float64)
    light[..., 20, 20] = 1
    sigma = blur_sigma(torch.tensor([k], dtype=torch.float64))
    spread, axis = gaussian_blur2d(light, taps, sigma[:, None].expand(1, 2))[0, 0], torch.arange(41) - 20.0
    assert abs(spread.sum() - 1) < 1e-12
    assert (spread.sum(0) * axis**2).sum().item() == pytest.approx(lacks, rel=0.1)
    assert (spread.sum(1) * axis**2).sum().item() == pytest.approx(lacks, rel=0.1)


def test_the_filter_of_the_papers_views_is_close_to_the_ideal():
    "Against Lindeberg's discrete Gaussian from scipy's Bessel functions; and no blur where nothing shrinks."
    from scipy.special import ive

    for k in (0.85, 0.9, 0.95):
        ideal = ive(np.abs(np.arange(-1, 2)), 0.25 * (k**-2 - 1))
        taps = get_gaussian_kernel1d(3, blur_sigma(torch.tensor([[k]], dtype=torch.float64)))[0].numpy()
        assert np.abs(taps - ideal / ideal.sum()).max() < 0.009
    still = get_gaussian_kernel1d(3, blur_sigma(torch.tensor([[1.0], [1.3]])))
    assert torch.allclose(still, torch.tensor([[0.0, 1.0, 0.0]]), atol=1e-6)


def test_blurred_then_warped_by_hand():
    "`warp` with a smallest scale is kornia's two functions, each view with its own sigma; views that grow stay sharp."
    m = torch.stack([view(20.0, 0.85, False, 64), view(-30.0, 1.1, True, 64)])
    photos = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    sigma = blur_sigma(torch.tensor([0.85]))[:, None].expand(1, 2)
    first = warp_affine(gaussian_blur2d(photos[:1], 3, sigma), m[:1, :2], (64, 64), align_corners=True)
    second = warp_affine(photos[1:], m[1:, :2], (64, 64), align_corners=True)
    assert torch.allclose(warp(photos, m, 64, min_scale=0.85), torch.cat([first, second]), atol=1e-4)


def test_leading_axes_of_maps_and_points():
    maps = torch.stack([view(d, 1.1, d > 0) for d in (10.0, -20.0, 30.0)])
    points = torch.rand(2, 3, 4, 2, generator=torch.Generator().manual_seed(1)) * 256
    both = transform_points(maps, points)
    assert both.shape == (2, 3, 4, 2)
    assert torch.allclose(both[1, 2], transform_points(maps[2], points[1, 2]), atol=1e-4)
    assert transform_points(maps[:0], points[:, :0]).shape == (2, 0, 4, 2)
    assert transform_points(maps, points[..., :0, :]).shape == (2, 3, 0, 2)
    assert inverse(maps.expand(2, 3, 3, 3)).shape == (2, 3, 3, 3)
    grown = scale_shift(torch.tensor([[2.0, 3.0]]), torch.tensor([[5.0, -1.0]]))
    assert torch.equal(grown, torch.tensor([[[2.0, 0, 5], [0, 3, -1], [0, 0, 1]]]))


def test_coverage_is_where_ones_come_from():
    m = view(30.0, 1.1, True, 64)
    ones = warp(torch.ones(1, 64, 64), m, 64)[0]
    seen = lands_inside(inverse(m), 64, 64)
    assert (ones[seen] > 0.999).all() and (ones[~seen] < 1).all() and 0 < seen.float().mean() < 1


@given(
    st.tuples(st.floats(0, 2000), st.floats(0, 2000)),
    st.floats(20, 1500),
    st.sampled_from([64, 256]),
    st.sampled_from([0, 80]),
)
def test_square_map_puts_edges_on_edges(centre, side, size, margin):
    square = torch.tensor([*centre, side], dtype=torch.float64)
    m = square_map(square, size, margin)
    corners = torch.stack([square[:2] - side / 2, square[:2] + side / 2])
    expected = torch.tensor([[-0.5, -0.5], [size - 0.5, size - 0.5]], dtype=torch.float64) + margin
    assert (transform_points(m, corners) - expected).abs().max() < 1e-4


def test_named_crops():
    box = torch.tensor([100.0, 50.0, 320.0, 200.0])  # 220 x 150
    assert crop_square(box, 'paper').tolist() == pytest.approx([210, 125, 256], rel=1e-6)
    assert crop_square(box, 'hrnet').tolist() == pytest.approx([210, 125, 275], rel=1e-6)
    assert crop_square(box, 'luvli')[2].item() == pytest.approx(242)
    assert crop_square(box, 'fan').tolist() == pytest.approx([210, 125 - 18, 370 / 195 * 200], rel=1e-6)
    assert set(CROPS) == {'paper', 'hrnet', 'luvli', 'fan'}
    with pytest.raises(ValueError, match="unknown crop 'hrnt'; known: hrnet"):
        crop_square(box, 'hrnt')


def test_landmark_box_of_the_visible():
    points = torch.tensor([[[0.0, 0.0], [10.0, 5.0], [99.0, 99.0]]])
    visible = torch.tensor([[True, True, False]])
    assert landmark_box(points, visible).tolist() == [[0, 0, 10, 5]]
    assert landmark_box(points).tolist() == [[0, 0, 99, 99]]
    with pytest.raises(ValueError, match='visible'):
        landmark_box(points, torch.zeros(1, 3, dtype=torch.bool))


def test_flip_pairs_are_checked():
    assert flip_permutation([(0, 2)], 4).tolist() == [2, 1, 0, 3]
    for wrong in ([(0, 1), (1, 2)], [(0, 9)]):
        with pytest.raises(ValueError, match='flip pairs'):
            flip_permutation(wrong, 4)
