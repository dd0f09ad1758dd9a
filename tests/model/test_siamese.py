"Eq. 6 and its losses: the identity, coverage, masks, modes; a broken flip or mask is seen."

import pytest
import torch
from faces_and_views import METHODS, SWAP, seen_as, training_loss, two_views

from subpixel_nb.codec.decoding import decode
from subpixel_nb.codec.encoding import encode
from subpixel_nb.codec.geometry import to_heatmap
from subpixel_nb.model.augmentation import restore
from subpixel_nb.model.rivals import CorrectedHourglass, find_method
from subpixel_nb.model.siamese import (
    MERGES,
    LossOptions,
    Truth,
    l2_loss,
    mean_visible,
    merge,
    merged_loss,
    view_loss,
    view_target,
)


def test_loss_by_hand():
    maps, target = torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 4, 4)
    target[0, 0, 0, 0], target[0, 1, 1, 1], target[1, 2, 3, 3] = 2, 3, 5
    visible = torch.tensor([[1, 1, 0], [0, 0, 1]], dtype=torch.bool)
    assert l2_loss(maps, target, visible).item() == pytest.approx((4 + 9 + 25) / 3)
    assert l2_loss(maps, target, visible, torch.tensor(2.0)).item() == pytest.approx((4 + 9 + 25) / 2)
    assert l2_loss(maps.bfloat16(), target.bfloat16(), visible).dtype == torch.float32
    assert l2_loss(maps, target, torch.zeros_like(visible)).item() == 0


def test_identity_of_merged_and_single():
    "(|a-G|^2 + |b-G|^2) / 2 = |(a+b)/2 - G|^2 + |a-b|^2 / 4"
    a, b, G, visible = *torch.rand(3, 4, 5, 16, 16, dtype=torch.float64), torch.rand(4, 5) > 0.3
    merged, _ = merge([a, b], [torch.ones(4, 1, 16, 16, dtype=torch.bool)] * 2)
    left = (l2_loss(a, G, visible).double() + l2_loss(b, G, visible).double()) / 2
    right = l2_loss(merged, G, visible).double() + l2_loss(a, b, visible).double() / 4
    assert left.item() == pytest.approx(right.item(), rel=1e-5)


def test_merge_counts_the_views_that_see():
    a, b = torch.full((1, 2, 2, 2), 1.0), torch.full((1, 2, 2, 2), 3.0)
    see_a, see_b = (
        torch.tensor([[[[1, 1], [0, 0]]]], dtype=torch.bool),
        torch.tensor([[[[1, 0], [1, 0]]]], dtype=torch.bool),
    )
    mean, covered = merge([a, b], [see_a, see_b])
    assert mean[0, 1].tolist() == [[2, 1], [3, 0]] and covered[0, 0].tolist() == [[True, True], [True, False]]
    total, _ = merge([a, b], [see_a, see_b], mean=False)
    assert total[0, 0].tolist() == [[4, 1], [3, 0]]


def test_a_perfect_network_pays_almost_nothing_and_a_careless_one_pays():
    points, visible, views, perfect = two_views()
    empty = merged_loss([[torch.zeros_like(h)] for h in perfect], views, Truth(points, visible, SWAP)).item()
    good = merged_loss([[h] for h in perfect], views, Truth(points, visible, SWAP)).item()
    assert good < 0.005 * empty and view_loss(perfect[0], views[0]).item() == 0
    assert (
        merged_loss([[h] for h in perfect], views, Truth(points, visible, None)).item() > 20 * good
    )  # channels not exchanged
    fixed_sigma = [encode(v.points, sigma=1.5) for v in views]
    assert (
        merged_loss([[h] for h in fixed_sigma], views, Truth(points, visible, SWAP)).item() > 1.3 * good
    )  # sigma without the scale
    assert (
        merged_loss([[h] for h in perfect], views, Truth(points, visible, SWAP), LossOptions(merging='sum')).item()
        > 0.5 * empty
    )  # sum = G is missed by a perfect network


def test_merged_alone_does_not_see_disagreement():
    points, visible, views, _ = two_views()
    shift = torch.tensor([6.0, 0.0])
    apart = []
    for sign, v in zip((1, -1), views):
        moved = points + sign * shift  # views err in opposite directions of the photo
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
    hidden = torch.zeros_like(visible)
    hidden[:, 4] = True
    for v in views:
        v.visible = hidden
    broken = [h.clone() for h in zero]
    for h in broken:
        h[:, :4] = 100.0
    a = training_loss([[h] for h in zero], views, points, hidden, SWAP, METHODS['siamese'])
    b = training_loss([[h] for h in broken], views, points, hidden, SWAP, METHODS['siamese'])
    assert a.item() == pytest.approx(b.item())


@pytest.mark.parametrize('stride', [4, 8, 16])
def test_views_agree_at_every_stride(stride):
    "The target of a random view, moved back, has its peaks at the face's own points, to a small part of a heatmap px."
    points, _, views, _ = two_views()
    for view in views:
        restored, seen = restore(view_target(view, 256 // stride), view, SWAP)
        found, _ = decode(restored, 'gaussian')
        assert (found - to_heatmap(points, stride)).norm(dim=-1).mean() < 0.05 and seen.double().mean() > 0.8


def test_single_view_methods_draw_their_own_targets():
    points, visible, views, perfect = two_views()
    loss = {
        name: training_loss([[perfect[0]]], views[:1], points, visible, SWAP, METHODS[name]).item()
        for name in ('baseline', 'local')
    }
    assert loss['local'] == 0 and loss['baseline'] > 0.1  # Eq. 2's targets are not where the landmarks are
    rounded = encode(views[0].points, sigma=1.5 * views[0].scale, mode='round')
    assert training_loss([[rounded]], views[:1], points, visible, SWAP, METHODS['baseline']).item() == 0


def test_names():
    assert {name: (m.decoder, m.views, m.mode) for name, m in METHODS.items()} == dict(
        baseline=('quarter', 1, 'round'),
        continuous=('quarter', 1, 'continuous'),
        local=('local', 1, 'continuous'),
        siamese=('local', 2, 'continuous'),
        static=('corrected', 1, 'round'),
        dynamic=('corrected', 1, 'round'),
        prior=('global', 1, 'continuous'),
        window=('local', 1, 'continuous'),
    ) | {'global': ('global', 1, 'continuous'), 'siamese+window': ('local', 2, 'continuous')}
    assert {name for name, m in METHODS.items() if m.network is CorrectedHourglass} == {'static', 'dynamic'}
    assert all(name == m.name for name, m in METHODS.items())
    with pytest.raises(ValueError, match="unknown method 'siamesse'; known: siamese"):
        find_method('siamesse')
    points, visible, views, perfect = two_views(2)
    with pytest.raises(ValueError, match='unknown merging'):
        training_loss([[h] for h in perfect], views, points, visible, SWAP, METHODS['siamese'], merging='mean')


def test_restore_is_differentiable():
    _, _, views, perfect = two_views(2)
    h = perfect[0].clone().requires_grad_()
    restore(h, views[0], SWAP)[0].sum().backward()
    assert h.grad.abs().sum() > 0 and h.grad.isfinite().all()


@pytest.mark.parametrize('name', ['siamese', 'local'])
def test_channels_last_or_first_is_one_loss(name):
    "The plain formula, written out on kornia's warp, has the same value and the same gradient."
    from kornia.geometry.transform import warp_affine

    from subpixel_nb.codec.geometry import inverse, on_heatmap

    g, K, swap = torch.Generator().manual_seed(1), 18, torch.arange(18).flip(0)
    points, visible = torch.rand(3, K, 2, generator=g) * 60 + 34, torch.rand(3, K, generator=g) > 0.2
    views = [seen_as(points, visible, i, swap, size=128) for i in range(METHODS[name].views)]
    maps = [[torch.rand(3, K, 32, 32, generator=g) for _ in range(2)] for _ in views]

    def by_hand(outputs):
        def sum_of(error, mask):
            return ((error**2).sum((-2, -1)) * mask).sum() / mask.sum()

        total = sum(
            sum_of(h - encode(v.points, 32, 1.5 * v.scale, visible=v.visible), v.visible)
            for row, v in zip(outputs, views)
            for h in row
        )
        if len(views) == 1:
            return total
        total = total / 2
        back = [inverse(on_heatmap(v.maps)) for v in views]
        seen = [warp_affine(torch.ones(3, 1, 32, 32), m[:, :2], (32, 32), align_corners=True) > 1 - 1e-4 for m in back]
        covered = sum(s.float() for s in seen)
        for stack in zip(*outputs):
            restored = [
                warp_affine(
                    torch.where(v.mirrored.view(3, 1, 1, 1), h[:, swap], h), m[:, :2], (32, 32), align_corners=True
                )
                * s
                for h, v, m, s in zip(stack, views, back, seen)
            ]
            error = (sum(restored) / covered.clamp(min=1) - encode(points, 32, visible=visible)) * (covered > 0)
            total = total + sum_of(error, visible)
        return total

    results = []
    for loss, layout in (
        (by_hand, torch.contiguous_format),
        *[(None, f) for f in (torch.contiguous_format, torch.channels_last)],
    ):
        leaves = [[h.contiguous(memory_format=layout).requires_grad_() for h in row] for row in maps]
        value = loss(leaves) if loss else training_loss(leaves, views, points, visible, swap, METHODS[name])
        results.append([value.detach(), *torch.autograd.grad(value, [h for row in leaves for h in row])])
    for first, second, third in zip(*results):
        assert torch.allclose(first, second, rtol=1e-4, atol=2e-4 * first.abs().max()) and torch.allclose(
            second, third, rtol=1e-4, atol=1e-5
        )


def test_mean_visible_by_hand():
    values, visible = torch.tensor([[1.0, 2.0], [4.0, 8.0]]), torch.tensor([[True, False], [True, True]])
    assert mean_visible(values, visible).item() == pytest.approx(13 / 3)
    assert mean_visible(values, visible, torch.tensor(6.5)).item() == 2
    assert mean_visible(values, visible & False).item() == 0
