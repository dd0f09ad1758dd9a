"Random views: one seed, one answer; points, masks and pictures move together; the way back leads back."
import pytest
import torch

from subpixel_nb.augmentation import UPRIGHT, Jitter, exchange, random_view, restore, upright_view
from subpixel_nb.encoding import encode
from subpixel_nb.geometry import flip_permutation, transform_points

SWAP = flip_permutation([(0, 1), (2, 3)], 5)


def blobs(points: torch.Tensor, side: int) -> torch.Tensor:
    "(B, 3, side, side) uint8 pictures: a bright dot of 4 px at each of up to three landmarks, one a colour channel."
    maps = encode(points[:, :3], side, 4., stride=1)
    return (maps * 255).round().to(torch.uint8)


def faces(count: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    points = torch.rand(count, 5, 2, generator=torch.Generator().manual_seed(seed)) * 100 + 158
    return blobs(points, 416), points, torch.ones(count, 5, dtype=torch.bool)


def test_the_picture_is_where_the_points_are():
    "Each colour channel's dot is found again at the landmark of the view, also in mirrored views."
    images, points, visible = faces(24)
    view = random_view(images, points, visible, None, torch.Generator().manual_seed(0), jitter=Jitter(mirror=0))
    swapped = random_view(images, points, visible, SWAP, torch.Generator().manual_seed(0), jitter=Jitter(mirror=1))
    x = torch.arange(256.)
    for v, order in ((view, [0, 1, 2]), (swapped, [1, 0, 3])):
        total = v.images.sum((-2, -1))
        centre = torch.stack([(v.images.sum(-2) * x).sum(-1) / total, (v.images.sum(-1) * x).sum(-1) / total], -1)
        assert (centre - v.points[:, order]).abs().max() < 0.1
    assert swapped.mirrored.all() and not view.mirrored.any()


def test_ranges_are_the_papers_and_the_seed_is_the_view():
    images, points, visible = faces(400)
    small = images[:, :, :8, :8].contiguous()
    views = [random_view(small, points, visible, SWAP, torch.Generator().manual_seed(s), size=4) for s in (1, 1, 2)]
    assert torch.equal(views[0].maps, views[1].maps) and torch.equal(views[0].images, views[1].images)
    assert not torch.equal(views[0].maps, views[2].maps)
    m, k = views[0].maps, views[0].scale
    upright = torch.where(views[0].mirrored, -1., 1.)
    angle = torch.rad2deg(torch.atan2(m[:, 0, 1] / k, m[:, 0, 0] / k * upright))
    assert 0.85 <= k.min() < 0.87 and 1.13 < k.max() <= 1.15
    assert 27 < angle.abs().max() <= 30.001 and abs(angle.mean()) < 3
    assert 0.4 < views[0].mirrored.float().mean() < 0.6


def test_colour_stays_in_its_range():
    grey = torch.full((64, 3, 16, 16), 100, dtype=torch.uint8)
    points, visible = torch.full((64, 5, 2), 7.5), torch.ones(64, 5, dtype=torch.bool)
    view = random_view(grey, points, visible, SWAP, torch.Generator().manual_seed(0), size=8, jitter=Jitter(0, 0, 0, 0.4))
    factor = view.images.mean((-2, -1)) / (100 / 255)
    assert 0.6 <= factor.min() < 0.65 and 1.35 < factor.max() <= 1.4001 and factor.std(1).mean() > 0.1


def test_the_way_back():
    images, points, visible = faces(32, 3)
    view = random_view(images, points, visible, SWAP, torch.Generator().manual_seed(5))
    back, seen = restore(encode(view.points, sigma=1.5 * view.scale), view, SWAP)
    target = encode(points - 80, sigma=1.5)
    assert seen.shape == (32, 1, 64, 64) and 0.5 < seen.float().mean() < 1
    assert (((back - target) * seen).abs() < 1 / (4 * (1.5 * view.scale[:, None, None, None]) ** 2)).all()
    assert (transform_points(view.maps, points - 80) - exchange(view.points, view.mirrored, SWAP)).abs().max() < 1e-3


def test_masks_travel_with_their_landmarks():
    images, points, visible = faces(8)
    visible[:, 0] = False
    view = random_view(images, points, visible, SWAP, torch.Generator(), jitter=Jitter(mirror=1))
    assert not view.visible[:, 1].any() and view.visible[:, 0].all()


def test_no_pairs_no_mirror_and_upright_is_a_cut():
    images, points, visible = faces(8)
    assert not random_view(images, points, visible, None, torch.Generator()).mirrored.any()
    view = random_view(images, points, visible, SWAP, torch.Generator(), jitter=UPRIGHT)
    assert (view.images - upright_view(images)).abs().max() < 1e-3
    assert torch.equal(upright_view(images), images[..., 80:336, 80:336].float() / 255)


@pytest.mark.parametrize('wrong', [dict(degrees=-1.), dict(scale=1.), dict(mirror=2.), dict(colour=float('nan'))])
def test_wrong_jitter(wrong):
    with pytest.raises(ValueError, match=f'jitter {next(iter(wrong))}'): Jitter(**wrong)
