"Eq. 6 and its losses: the identity, coverage, masks, modes; a broken flip or mask is seen."
import pytest
import torch

from subpixel_nb.augmentation import random_view, restore
from subpixel_nb.encoding import encode
from subpixel_nb.geometry import flip_permutation
from subpixel_nb.siamese import MERGES, METHODS, find_method, l2_loss, merge, merged_loss, training_loss, view_loss

SWAP = flip_permutation([(0, 1), (2, 3)], 5)


def two_views(count: int = 16, seed: int = 0):
    g = torch.Generator().manual_seed(seed)
    points, visible = torch.rand(count, 5, 2, generator=g) * 130 + 63, torch.ones(count, 5, dtype=torch.bool)
    views = [random_view(torch.zeros(count, 3, 416, 416, dtype=torch.uint8), points + 80, visible, SWAP, g) for _ in range(2)]
    return points, visible, views, [encode(v.points, sigma=1.5 * v.scale) for v in views]


def test_loss_by_hand():
    maps, target = torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 4, 4)
    target[0, 0, 0, 0], target[0, 1, 1, 1], target[1, 2, 3, 3] = 2, 3, 5
    visible = torch.tensor([[1, 1, 0], [0, 0, 1]], dtype=torch.bool)
    assert l2_loss(maps, target, visible).item() == pytest.approx((4 + 9 + 25) / 3)
    seen = torch.ones(2, 1, 4, 4, dtype=torch.bool); seen[1, 0, 3, 3] = False
    assert l2_loss(maps, target, visible, seen).item() == pytest.approx((4 + 9) / 3)
    assert l2_loss(maps, target, torch.zeros_like(visible)).item() == 0


def test_identity_of_merged_and_single():
    "(|a-G|^2 + |b-G|^2) / 2 = |(a+b)/2 - G|^2 + |a-b|^2 / 4"
    a, b, G, visible = *torch.rand(3, 4, 5, 16, 16, dtype=torch.float64), torch.rand(4, 5) > 0.3
    merged, _ = merge([a, b], [torch.ones(4, 1, 16, 16, dtype=torch.bool)] * 2)
    left = (l2_loss(a, G, visible).double() + l2_loss(b, G, visible).double()) / 2
    right = l2_loss(merged, G, visible).double() + l2_loss(a, b, visible).double() / 4
    assert left.item() == pytest.approx(right.item(), rel=1e-5)


def test_merge_counts_the_views_that_see():
    a, b = torch.full((1, 2, 2, 2), 1.), torch.full((1, 2, 2, 2), 3.)
    see_a, see_b = torch.tensor([[[[1, 1], [0, 0]]]], dtype=torch.bool), torch.tensor([[[[1, 0], [1, 0]]]], dtype=torch.bool)
    mean, covered = merge([a, b], [see_a, see_b])
    assert mean[0, 1].tolist() == [[2, 1], [3, 0]] and covered[0, 0].tolist() == [[True, True], [True, False]]
    total, _ = merge([a, b], [see_a, see_b], mean=False)
    assert total[0, 0].tolist() == [[4, 1], [3, 0]]


def test_a_perfect_network_pays_almost_nothing_and_a_careless_one_pays():
    points, visible, views, perfect = two_views()
    empty = merged_loss([torch.zeros_like(h) for h in perfect], views, points, visible, SWAP).item()
    good = merged_loss(perfect, views, points, visible, SWAP).item()
    assert good < 0.005 * empty and view_loss(perfect[0], views[0]).item() == 0
    assert merged_loss(perfect, views, points, visible, None).item() > 20 * good                   # channels not exchanged
    fixed_sigma = [encode(v.points, sigma=1.5) for v in views]
    assert merged_loss(fixed_sigma, views, points, visible, SWAP).item() > 1.3 * good              # sigma without the scale
    assert merged_loss(perfect, views, points, visible, SWAP, mean=False).item() > 0.5 * empty     # sum = G is missed by a perfect network


def test_merged_alone_does_not_see_disagreement():
    points, visible, views, _ = two_views()
    shift = torch.tensor([6., 0.])
    apart = []
    for sign, v in zip((1, -1), views):
        moved = points + sign * shift                                    # views err in opposite directions of the photo
        p = (moved @ v.maps[:, :2, :2].transpose(1, 2)) + v.maps[:, None, :2, 2]
        p = torch.where(v.mirrored[:, None, None], p[:, SWAP], p)
        apart.append(encode(p, sigma=1.5 * v.scale))
    merged = training_loss([[h] for h in apart], views, points, visible, SWAP, METHODS['siamese'], merging='merged')
    both = training_loss([[h] for h in apart], views, points, visible, SWAP, METHODS['siamese'])
    assert both > 2.5 * merged


def test_stacks_add_up_and_masked_landmarks_are_free():
    points, visible, views, perfect = two_views(4)
    zero = [torch.zeros_like(h) for h in perfect]
    for merging in MERGES:
        one = training_loss([[h] for h in zero], views, points, visible, SWAP, METHODS['siamese'], merging=merging)
        two = training_loss([[h, h] for h in zero], views, points, visible, SWAP, METHODS['siamese'], merging=merging)
        assert two.item() == pytest.approx(2 * one.item(), rel=1e-5)
    hidden = torch.zeros_like(visible); hidden[:, 4] = True
    for v in views: v.visible = hidden
    broken = [h.clone() for h in zero]
    for h in broken: h[:, :4] = 100.
    a = training_loss([[h] for h in zero], views, points, hidden, SWAP, METHODS['siamese'])
    b = training_loss([[h] for h in broken], views, points, hidden, SWAP, METHODS['siamese'])
    assert a.item() == pytest.approx(b.item())


def test_single_view_methods_draw_their_own_targets():
    points, visible, views, perfect = two_views()
    loss = {name: training_loss([[perfect[0]]], views[:1], points, visible, SWAP, METHODS[name]).item() for name in ('baseline', 'local')}
    assert loss['local'] == 0 and loss['baseline'] > 0.1                 # Eq. 2's targets are not where the landmarks are
    rounded = encode(views[0].points, sigma=1.5 * views[0].scale, mode='round')
    assert training_loss([[rounded]], views[:1], points, visible, SWAP, METHODS['baseline']).item() == 0


def test_names():
    assert [m.decoder for m in METHODS.values()] == ['quarter', 'quarter', 'local', 'local']
    with pytest.raises(ValueError, match="unknown method 'siamesse'; known: siamese"): find_method('siamesse')
    points, visible, views, perfect = two_views(2)
    with pytest.raises(ValueError, match='unknown merging'):
        training_loss([[h] for h in perfect], views, points, visible, SWAP, METHODS['siamese'], merging='mean')


def test_restore_is_differentiable():
    _, _, views, perfect = two_views(2)
    h = perfect[0].clone().requires_grad_()
    restore(h, views[0], SWAP)[0].sum().backward()
    assert h.grad.abs().sum() > 0 and h.grad.isfinite().all()
