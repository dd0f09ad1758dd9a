"Random views: one seed, one answer; points, masks and pictures move together; the way back leads back."
import pytest
import torch

from subpixel_nb.augmentation import UPRIGHT, Draw, Jitter, draw_views, exchange, random_view, restore, upright_view
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
    points, visible = torch.rand(400, 5, 2) * 8, torch.ones(400, 5, dtype=torch.bool)
    small = torch.randint(256, (400, 3, 8, 8), dtype=torch.uint8)
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


# ---- left and right change places

CYCLE, FLAGS = torch.tensor([2, 0, 1, 4, 3]), torch.tensor([True, False, True])      # not its own inverse, as a flip is


@pytest.mark.parametrize('shape', [(3, 5), (3, 5, 2), (3, 5, 4, 6)])
def test_exchange_face_by_face(shape):
    values = torch.arange(torch.Size(shape).numel()).view(shape)
    expected = torch.stack([face[CYCLE] if flag else face for face, flag in zip(values, FLAGS)])
    assert torch.equal(exchange(values, FLAGS, CYCLE), expected)
    assert torch.equal(exchange(values > 7, FLAGS, CYCLE), expected > 7)
    assert exchange(values, FLAGS, None) is values


@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last])
def test_gradient_of_exchange(layout):
    "Against finite differences, and to the last bit against autograd's own through indexing; the layout stays."
    values = torch.rand(3, 5, 2, 3, dtype=torch.float64).to(memory_format=layout).requires_grad_()
    assert exchange(values, FLAGS, CYCLE).is_contiguous(memory_format=layout)
    assert torch.autograd.gradcheck(lambda v: exchange(v, FLAGS, CYCLE), values)
    assert torch.autograd.gradgradcheck(lambda v: exchange(v, FLAGS, CYCLE), values)
    weights = torch.rand_like(values)
    ours, = torch.autograd.grad(exchange(values, FLAGS, CYCLE), values, weights)
    theirs, = torch.autograd.grad(torch.where(FLAGS.view(3, 1, 1, 1), values[:, CYCLE], values), values, weights)
    assert torch.equal(ours, theirs) and not torch.equal(ours, weights)


# ---- drawn beforehand

@pytest.mark.parametrize('permutation', [SWAP, None])
def test_drawn_here_or_before(permutation):
    images, points, visible = faces(6)
    visible[2, 1] = False
    draw = draw_views((6,), torch.Generator().manual_seed(4), mirror=permutation is not None)
    before = random_view(images, points, visible, permutation, draw)
    here = random_view(images, points, visible, permutation, torch.Generator().manual_seed(4))
    for name in ('images', 'points', 'visible', 'maps', 'mirrored', 'scale'):
        assert torch.equal(getattr(before, name), getattr(here, name)), name
    assert here.mirrored.any() == (permutation is not None)


def test_a_draw_is_indexed_like_its_shape():
    flat, draw = (draw_views(shape, torch.Generator().manual_seed(2), size=64) for shape in ((24,), (3, 2, 4)))
    for name, tail in dict(maps=(3, 3), mirrored=(), scale=(), colour=(3,)).items():
        whole = getattr(draw, name)
        assert whole.shape == (3, 2, 4, *tail) and torch.equal(whole.flatten(0, 2), getattr(flat, name))
        assert torch.equal(getattr(draw[1, 0], name), whole[1, 0]) and torch.equal(getattr(draw[:, :, 1:3], name), whole[:, :, 1:3])
    assert isinstance(draw.to(torch.device('cpu')), Draw)


def test_a_view_is_made_of_its_draw():
    "Six numbers a view, in this order: angle, scale, mirror, three colours."
    draw = draw_views((50,), torch.Generator().manual_seed(9), 64, Jitter(20, .1, .3, .2))
    u = torch.rand(6, 50, generator=torch.Generator().manual_seed(9))
    assert torch.allclose(draw.scale, 0.9 + 0.2 * u[1]) and torch.equal(draw.mirrored, u[2] < 0.3)
    assert torch.allclose(draw.colour, 0.8 + 0.4 * u[3:].T)
    angle, sign = torch.deg2rad(40 * u[0] - 20), torch.where(u[2] < 0.3, -1., 1.)
    centre, right = torch.tensor([[31.5, 31.5]]), torch.tensor([[32.5, 31.5]])
    assert (transform_points(draw.maps, centre) - centre).abs().max() < 1e-4                         # turns about the middle
    step = torch.stack([sign * draw.scale * angle.cos(), -sign * draw.scale * angle.sin()], -1)
    assert (transform_points(draw.maps, right)[:, 0] - centre - step).abs().max() < 1e-4
    assert not draw_views((50,), torch.Generator().manual_seed(9), mirror=False).mirrored.any()


@pytest.mark.parametrize('wrong', [dict(degrees=-1.), dict(scale=1.), dict(mirror=2.), dict(colour=float('nan'))])
def test_wrong_jitter(wrong):
    with pytest.raises(ValueError, match=f'jitter {next(iter(wrong))}'): Jitter(**wrong)
