"Property tests of subpixel_nb.geometry: points, images and heatmaps move together, to 1e-4 px."
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st

from subpixel_nb.encoding import encode
from subpixel_nb.geometry import (CROPS, Sampling, compose, coverage, crop_square, flip_permutation, flip_points, from_heatmap,
                                  inverse, landmark_box, on_heatmap, reflection, sampling_grid, scale_of, similarity, smooth,
                                  square_map, stride_map, to_heatmap, transform_points, warp)

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
    assert torch.allclose(transform_points(view(90., 1., False), right_of_centre), torch.tensor([[127.5, 27.5]]), atol=1e-4)


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
    bound = 1 / (4 * sigma ** 2)
    assert (moved - encode(transform_points(m, p), sigma=sigma * k)).abs().max() < bound
    centre = (moved[0, 0] * torch.stack(torch.meshgrid(torch.arange(64.), torch.arange(64.), indexing='xy'))).sum((-2, -1)) / moved.sum()
    assert (centre - to_heatmap(transform_points(m, p))[0, 0]).abs().max() < 0.1       # x / s would move it by 0.375
    spread = ((torch.arange(64.) - centre[0]) ** 2 * moved[0, 0].sum(0)).sum() / moved.sum()
    assert spread.item() == pytest.approx((sigma * k) ** 2, rel=0.12)                  # bilinear adds about k^2 / 6


def test_warp_by_nothing_and_by_a_mirror():
    image = torch.rand(2, 3, 33, 47)
    assert torch.allclose(warp(image, torch.eye(3), (33, 47)), image, atol=1e-4)
    assert torch.allclose(warp(image, reflection(47), (33, 47)), image.flip(-1), atol=1e-4)
    assert warp(image[0], torch.eye(3), 20).shape == (3, 20, 20)


def test_warp_averages_where_it_shrinks():
    stripes = (torch.arange(128) % 2).float().expand(1, 1, 128, 128).contiguous()
    m = view(0., 0.5, False, 128)
    plain, filtered = warp(stripes, m, 128), warp(stripes, m, 128, min_scale=0.5)
    inner = (..., slice(40, 88), slice(40, 88))
    assert (filtered[inner] - 0.5).abs().max() < 0.1 and torch.isfinite(plain).all()
    assert torch.allclose(warp(stripes, torch.eye(3), 128, min_scale=0.5), stripes, atol=1e-3)


def test_bytes_are_warped_as_their_numbers_and_a_batch_as_its_images():
    "Several images go in small parts on a CPU: the cuts must not show."
    images = torch.randint(0, 256, (5, 3, 40, 40), dtype=torch.uint8)
    m = torch.stack([view(d, k, f, 40) for d, k, f in ((0, .85, True), (20, 1., False), (-30, 1.1, True), (9, .9, False), (0, 1., False))])
    whole = warp(images, m, 30, min_scale=0.85)
    assert whole.dtype == torch.float32 and torch.equal(whole, warp(images.float(), m, 30, min_scale=0.85))
    assert torch.allclose(whole, torch.stack([warp(i, t, 30, min_scale=0.85) for i, t in zip(images, m)]), atol=1e-4)


def test_smoothing_is_scipys():
    from scipy.ndimage import correlate1d
    from scipy.special import ive
    images, variance = torch.rand(3, 2, 12, 17, dtype=torch.float64), torch.tensor([0., 0.1, 0.8], dtype=torch.float64)
    for image, v, ours in zip(images.numpy(), variance.tolist(), smooth(images, variance, 3).numpy()):
        taps = ive(np.abs(np.arange(-3, 4)), v)
        theirs = correlate1d(correlate1d(image, taps / taps.sum(), axis=-1, mode='mirror'), taps / taps.sum(), axis=-2, mode='mirror')
        assert np.abs(ours - theirs).max() < 1e-12


@pytest.mark.parametrize('k', [0.97, 0.85, 0.5, 0.2])
def test_what_shrinks_is_smoothed_by_the_variance_that_it_lacks(k):
    "A point of light under a map that shrinks by k, as `warp` filters it: the narrow filters are those a sampled Gaussian gets wrong."
    v, radius = 0.25 * (k ** -2 - 1), 1 + int(1.5 * (k ** -2 - 1) ** 0.5)
    light = torch.zeros(1, 1, 41, 41, dtype=torch.float64)
    light[..., 20, 20] = 1
    spread, axis = smooth(light, torch.tensor([v], dtype=torch.float64), radius)[0, 0], torch.arange(41) - 20.
    assert abs(spread.sum() - 1) < 1e-12
    assert abs((spread.sum(0) * axis ** 2).sum() - v) < 0.1 * v and abs((spread.sum(1) * axis ** 2).sum() - v) < 0.1 * v


@settings(max_examples=30, deadline=None)
@given(degrees, st.floats(0.4, 2.5), flags, st.tuples(st.floats(-9, 9), st.floats(-9, 9)), st.integers(0, 99))
def test_sums_of_rows_are_grid_sample_and_their_way_back_is_the_transpose(deg, k, mirrored, shift, seed):
    g = torch.Generator().manual_seed(seed)
    m = compose(similarity(torch.tensor([deg, -deg]), torch.tensor([k, 1 / k]), torch.tensor([mirrored, False]), 20),
                torch.eye(3) + torch.tensor([[0, 0, shift[0]], [0, 0, shift[1]], [0, 0, 0]])).double()
    x, y = torch.rand(2, 3, 14, 21, generator=g, dtype=torch.float64), torch.rand(2, 3, 17, 11, generator=g, dtype=torch.float64)
    sampling = Sampling(m, (14, 21), (17, 11))
    there = F.grid_sample(x, sampling_grid(m, (14, 21), (17, 11)), align_corners=True)
    assert (sampling.rows(x) - there).abs().max() < 1e-9
    assert abs((sampling.rows(x) * y).sum() - (x * sampling.rows(y, back=True)).sum()) < 1e-9


@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize('k', [1., 9.])                                      # 9: a source pixel is felt too far for sums of rows
def test_many_channels_are_warped_like_few(layout, k):
    m, x = view(-20., k, True, 24)[None], torch.rand(2, 18, 24, 24).contiguous(memory_format=layout).requires_grad_()
    assert Sampling(m, (24, 24), (24, 24)).by_rows(x) == (k == 1)
    many, few = warp(x, m, 24), torch.cat([warp(part, m, 24) for part in x.split(3, 1)], 1)
    weights = torch.rand(many.shape)
    for a, b in ((many, few), *zip(*(torch.autograd.grad((h * weights).sum(), x) for h in (many, few)))):
        assert torch.allclose(a, b, atol=2e-4)


def test_coverage_is_where_ones_come_from():
    m = view(30., 1.1, True, 64)
    ones = warp(torch.ones(1, 64, 64), m, 64)[0]
    seen = coverage(m, 64, 64)
    assert (ones[seen] > 0.999).all() and (ones[~seen] < 1).all() and 0 < seen.float().mean() < 1


@given(st.tuples(st.floats(0, 2000), st.floats(0, 2000)), st.floats(20, 1500), st.sampled_from([64, 256]), st.sampled_from([0, 80]))
def test_square_map_puts_edges_on_edges(centre, side, size, margin):
    square = torch.tensor([*centre, side], dtype=torch.float64)
    m = square_map(square, size, margin)
    corners = torch.stack([square[:2] - side / 2, square[:2] + side / 2])
    expected = torch.tensor([[-0.5, -0.5], [size - 0.5, size - 0.5]], dtype=torch.float64) + margin
    assert (transform_points(m, corners) - expected).abs().max() < 1e-4


def test_named_crops():
    box = torch.tensor([100., 50., 320., 200.])                                        # 220 x 150
    assert crop_square(box, 'paper').tolist() == pytest.approx([210, 125, 256], rel=1e-6)
    assert crop_square(box, 'hrnet').tolist() == pytest.approx([210, 125, 275], rel=1e-6)
    assert crop_square(box, 'luvli')[2].item() == pytest.approx(242)
    assert crop_square(box, 'fan').tolist() == pytest.approx([210, 125 - 18, 370 / 195 * 200], rel=1e-6)
    assert set(CROPS) == {'paper', 'hrnet', 'luvli', 'fan'}
    with pytest.raises(ValueError, match="unknown crop 'hrnt'; known: hrnet"): crop_square(box, 'hrnt')


def test_landmark_box_of_the_visible():
    points = torch.tensor([[[0., 0.], [10., 5.], [99., 99.]]])
    visible = torch.tensor([[True, True, False]])
    assert landmark_box(points, visible).tolist() == [[0, 0, 10, 5]]
    assert landmark_box(points).tolist() == [[0, 0, 99, 99]]
    with pytest.raises(ValueError, match='visible'): landmark_box(points, torch.zeros(1, 3, dtype=torch.bool))


def test_flip_pairs_are_checked():
    assert flip_permutation([(0, 2)], 4).tolist() == [2, 1, 0, 3]
    for wrong in ([(0, 1), (1, 2)], [(0, 9)]):
        with pytest.raises(ValueError, match='flip pairs'): flip_permutation(wrong, 4)
