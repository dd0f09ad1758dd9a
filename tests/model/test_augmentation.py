"Random views: one seed, one answer; points, masks and pictures move together; the inverse brings heatmaps back."

import kornia.augmentation as K
import pytest
import torch

from subpixel_nb.codec.encoding import encode
from subpixel_nb.codec.geometry import flip_permutation, inverse, transform_points
from subpixel_nb.model.augmentation import (
    AUGMENTS,
    DrawnViews,
    RandomChannelGain,
    RandomView,
    View,
    build_views,
    draw_views,
    exchange,
    random_view,
    restore,
    upright_view,
)

SWAP = flip_permutation([(0, 1), (2, 3)], 5)


def blobs(points: torch.Tensor, side: int) -> torch.Tensor:
    "(B, 3, side, side) uint8 pictures: a bright dot of 4 px at each of up to three landmarks, one a colour channel."
    maps = encode(points[:, :3], side, 4.0, stride=1)
    return (maps * 255).round().to(torch.uint8)


def faces(count: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    points = torch.rand(count, 5, 2, generator=torch.Generator().manual_seed(seed)) * 100 + 154
    return blobs(points, 408), points, torch.ones(count, 5, dtype=torch.bool)


def views_of(images, points, visible, permutation=SWAP, seed=0, recipe=None, size=256) -> View:
    "Views of a recipe (its steps; None: the paper's), as a training step makes them."
    if recipe is None:
        pipeline = build_views('paper', size, mirror=permutation is not None)
    else:
        pipeline = K.AugmentationSequential(*recipe, data_keys=['input'])
    return random_view(
        pipeline, draw_views(pipeline, images.shape, size, seed), images, points, visible, permutation, size
    )


def test_the_picture_is_where_the_points_are():
    "Each colour channel's dot is found again at the landmark of the view, also in mirrored views."
    images, points, visible = faces(24)
    view = views_of(images, points, visible, None)
    swapped = views_of(
        images, points, visible, recipe=[RandomView(256), K.RandomHorizontalFlip(p=1.0), RandomChannelGain()]
    )
    x = torch.arange(256.0)
    for v, order in ((view, [0, 1, 2]), (swapped, [1, 0, 3])):
        total = v.images.sum((-2, -1))
        centre = torch.stack([(v.images.sum(-2) * x).sum(-1) / total, (v.images.sum(-1) * x).sum(-1) / total], -1)
        assert (centre - v.points[:, order]).abs().max() < 0.1
    assert swapped.mirrored.all() and not view.mirrored.any()


def test_ranges_are_the_papers_and_the_seed_is_the_view():
    points, visible = torch.rand(400, 5, 2) * 8, torch.ones(400, 5, dtype=torch.bool)
    small = torch.randint(256, (400, 3, 8, 8), dtype=torch.uint8)
    views = [views_of(small, points, visible, seed=s, size=4) for s in (1, 1, 2)]
    assert torch.equal(views[0].maps, views[1].maps) and torch.equal(views[0].images, views[1].images)
    assert not torch.equal(views[0].maps, views[2].maps)
    m, k = views[0].maps, views[0].scale
    upright = torch.where(views[0].mirrored, -1.0, 1.0)
    angle = torch.rad2deg(torch.atan2(m[:, 1, 0] / k, m[:, 1, 1] / k))
    assert torch.allclose(m[:, 0, 0], upright * m[:, 1, 1], atol=1e-5)
    assert 0.8499 <= k.min() < 0.87 and 1.13 < k.max() <= 1.1501
    assert 27 < angle.abs().max() <= 30.001 and abs(angle.mean()) < 3
    assert 0.4 < views[0].mirrored.float().mean() < 0.6


def test_a_view_turns_about_its_middle():
    drawn = draw_views(build_views('paper', 64), (50, 3, 104, 104), 64, 9)
    centre = torch.tensor([[31.5, 31.5]])
    assert (transform_points(drawn.maps, centre) - centre).abs().max() < 1e-4
    assert (transform_points(drawn.inverse, transform_points(drawn.maps, centre + 9)) - centre - 9).abs().max() < 1e-4


def test_colour_stays_in_its_range():
    grey = torch.full((64, 3, 16, 16), 100, dtype=torch.uint8)
    points, visible = torch.full((64, 5, 2), 7.5), torch.ones(64, 5, dtype=torch.bool)
    view = views_of(grey, points, visible, recipe=[RandomView(8, 0.0, None), RandomChannelGain()], size=8)
    factor = view.images.mean((-2, -1)) / (100 / 255)
    assert 0.6 <= factor.min() + 1e-6 and factor.min() < 0.65 and 1.35 < factor.max() <= 1.4001
    assert factor.std(1).mean() > 0.1, 'each channel has a factor of its own'


def test_restored_heatmaps_are_the_canonical_ones():
    images, points, visible = faces(32, 3)
    view = views_of(images, points, visible, seed=5)
    back, seen = restore(encode(view.points, sigma=1.5 * view.scale), view, SWAP)
    target = encode(points - 76, sigma=1.5)
    assert seen.shape == (32, 1, 64, 64) and 0.5 < seen.float().mean() < 1
    assert (((back - target) * seen).abs() < 1 / (4 * (1.5 * view.scale[:, None, None, None]) ** 2)).all()
    assert (transform_points(view.maps, points - 76) - exchange(view.points, view.mirrored, SWAP)).abs().max() < 1e-3


def test_masks_move_with_their_landmarks():
    images, points, visible = faces(8)
    visible[:, 0] = False
    view = views_of(images, points, visible, recipe=[RandomView(256), K.RandomHorizontalFlip(p=1.0)])
    assert not view.visible[:, 1].any() and view.visible[:, 0].all()


def test_no_pairs_no_mirror_and_upright_is_a_cut():
    images, points, visible = faces(8)
    assert not views_of(images, points, visible, None).mirrored.any()
    view = views_of(images, points, visible, recipe=[RandomView(256, 0.0, None)])
    assert (view.images - upright_view(images)).abs().max() < 1e-3
    assert torch.equal(upright_view(images), images[..., 76:332, 76:332].float() / 255)


# ---- left and right change places

CYCLE, FLAGS = torch.tensor([2, 0, 1, 4, 3]), torch.tensor([True, False, True])  # not its own inverse, as a flip is


@pytest.mark.parametrize('shape', [(3, 5), (3, 5, 2), (3, 5, 4, 6)])
def test_exchange_face_by_face(shape):
    values = torch.arange(torch.Size(shape).numel()).view(shape)
    expected = torch.stack([face[CYCLE] if flag else face for face, flag in zip(values, FLAGS)])
    assert torch.equal(exchange(values, FLAGS, CYCLE), expected)
    assert torch.equal(exchange(values > 7, FLAGS, CYCLE), expected > 7)
    assert exchange(values, FLAGS, None) is values


@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last])
def test_gradient_of_exchange(layout):
    values = torch.rand(3, 5, 2, 3, dtype=torch.float64).to(memory_format=layout).requires_grad_()
    assert torch.autograd.gradcheck(lambda v: exchange(v, FLAGS, CYCLE), values)
    weights = torch.rand_like(values)
    (ours,) = torch.autograd.grad(exchange(values, FLAGS, CYCLE), values, weights)
    (theirs,) = torch.autograd.grad(torch.where(FLAGS.view(3, 1, 1, 1), values[:, CYCLE], values), values, weights)
    assert torch.equal(ours, theirs) and not torch.equal(ours, weights)


# ---- drawn beforehand


@pytest.mark.parametrize('name', AUGMENTS)
def test_a_draw_is_replayed_to_the_bit(name):
    "Also the noise, and without touching the global random state."
    images, points, visible = faces(6)
    pipeline = build_views(name)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    drawn = [draw_views(pipeline, images.shape, 256, seed) for seed in (4, 4, 5)]
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(3)
    first, again, other = (random_view(pipeline, d, images, points, visible, SWAP) for d in drawn)
    assert torch.equal(first.images, again.images) and torch.equal(first.points, again.points)
    assert not torch.equal(first.images, other.images)
    assert 0 <= first.images.min() and first.images.max() <= 1


@pytest.mark.parametrize('name', AUGMENTS)
def test_shares_of_a_draw_are_parts_of_the_whole(name):
    "What two processes apply, each to its half of the faces, is what one applies to all."
    images, points, visible = faces(6)
    pipeline = build_views(name)
    drawn = draw_views(pipeline, images.shape, 256, 4)
    whole = random_view(pipeline, drawn, images, points, visible, SWAP)
    for part in (slice(0, 3), slice(3, 6)):
        half = random_view(pipeline, drawn.share(part), images[part], points[part], visible[part], SWAP)
        assert torch.allclose(half.images, whole.images[part], atol=1e-5)
        assert torch.equal(half.points, whole.points[part]) and torch.equal(half.maps, whole.maps[part])
    assert isinstance(drawn.to(torch.device('cpu')), DrawnViews)


def test_a_recipe_of_ones_own_keeps_its_maps():
    "A shear is affine: points and pictures still agree. A perspective map has no inverse for Eq. 6 and is refused."
    images, points, visible = faces(8)
    recipe = [RandomView(256), K.RandomShear((-10.0, 10.0), align_corners=True, p=1.0)]
    view = views_of(images, points, visible, recipe=recipe)
    x, total = torch.arange(256.0), view.images.sum((-2, -1))
    centre = torch.stack([(view.images.sum(-2) * x).sum(-1) / total, (view.images.sum(-1) * x).sum(-1) / total], -1)
    assert (centre - view.points[:, :3]).abs().max() < 0.1
    assert torch.allclose(view.inverse, inverse(view.maps))
    perspective = K.AugmentationSequential(RandomView(256), K.RandomPerspective(0.5, p=1.0), data_keys=['input'])
    with pytest.raises(ValueError, match='augment: expected affine maps'):
        draw_views(perspective, images.shape, 256, 0)


def test_strong_changes_the_picture_and_not_the_points():
    images, points, visible = faces(12)
    plain, strong = (build_views(name) for name in ('paper', 'strong'))
    draws = [draw_views(p, images.shape, 256, 3) for p in (plain, strong)]
    one, two = (random_view(p, d, images, points, visible, SWAP) for p, d in zip((plain, strong), draws, strict=True))
    assert torch.equal(one.maps, two.maps) and torch.equal(one.points, two.points)
    assert (one.images - two.images).abs().amax((1, 2, 3)).gt(0.01).sum() >= 6


def test_an_unknown_recipe():
    with pytest.raises(ValueError, match="unknown augment 'strng'; known: strong, paper"):
        build_views('strng')
