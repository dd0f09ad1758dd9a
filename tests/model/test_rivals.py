"The rivals of Table 1 against numpy and scipy, and all methods of training."

from dataclasses import fields

import numpy as np
import pytest
import torch
from faces_and_views import METHODS, SWAP, seen_as, training_loss
from scipy.spatial.distance import jensenshannon

from subpixel_nb.codec.encoding import encode
from subpixel_nb.model.augmentation import View, build_views, draw_views, random_view
from subpixel_nb.model.hourglass import StackedHourglass
from subpixel_nb.model.rivals import (
    CorrectedHourglass,
    correction_loss,
    global_loss,
    place_error,
    split_output,
    window_loss,
)
from subpixel_nb.model.siamese import MERGES, LossOptions, Truth, merged_loss, view_loss, view_target

# ---- against numpy in float64, one landmark at a time


def rough(seed: int = 1) -> tuple[View, torch.Tensor]:
    "A view of 6 faces, one landmark hidden and one out of the frame, and rough maps: Gaussians nearby, and noise."
    g = torch.Generator().manual_seed(seed)
    points, visible = torch.rand(6, 5, 2, generator=g) * 190 + 33, torch.rand(6, 5, generator=g) > 0.2
    points[0, 0], visible[0, :2] = torch.tensor([-40.0, 120.0]), torch.tensor([True, False])
    view = seen_as(points, visible, seed)
    near = view.points + torch.randn(6, 5, 2, generator=g) * 6
    return view, encode(near, sigma=1.5) + 0.1 * torch.rand(6, 5, 64, 64, generator=g)


def one_by_one(view: View, maps: torch.Tensor, cost, reach: float | None = None) -> tuple[float, int]:
    "Sum of cost(face, landmark, place, map, peak) over what counts, divided by the visible; and how many count."
    places, total, count = (view.points.double().numpy() + 0.5) / 4 - 0.5, 0.0, 0
    for b, k in zip(*view.visible.numpy().nonzero()):
        place, h = places[b, k], maps[b, k].double().numpy()
        peak = np.array(np.unravel_index(h.argmax(), h.shape))[::-1]
        if not ((place >= -0.5) & (place < 63.5)).all():
            continue
        if reach and (abs(place - peak) > reach).any():
            continue
        total, count = total + cost(b, k, place, h, peak), count + 1
    return total / view.visible.sum().item(), count


def global_cost(prior: bool, scale: np.ndarray):
    y, x = np.mgrid[:64, :64]

    def cost(b, k, place, h, peak):
        share = np.exp(10 * (h - h.max()))
        share /= share.sum()
        distance = np.hypot((share * x).sum() - place[0], (share * y).sum() - place[1]) * 2 / 64
        if not prior:
            return distance
        target = np.exp(-((x - place[0]) ** 2 + (y - place[1]) ** 2) / (2 * (1.5 * scale[b]) ** 2))
        return distance + jensenshannon(share.ravel(), target.ravel()) ** 2  # scipy's is the root, in nats

    return cost


def window_cost(b, k, place, h, peak):
    (x, y), rows, columns = peak, *np.mgrid[:64, :64]
    inside = (abs(columns - x) <= 2) & (abs(rows - y) <= 2)
    share = np.exp(10 * (h - h.max())) * inside
    share /= share.sum()
    return ((share * columns).sum() - place[0]) ** 2 + ((share * rows).sum() - place[1]) ** 2


@pytest.mark.parametrize('prior', [False, True])
def test_global_loss_and_its_prior(prior):
    view, maps = rough()
    expected, count = one_by_one(view, maps, global_cost(prior, view.scale.double().numpy()))
    assert 0 < count < view.visible.sum()
    assert global_loss(maps, view, prior=prior).item() == pytest.approx(expected, rel=1e-5)


def test_window_loss():
    view, maps = rough()
    expected, count = one_by_one(view, maps, window_cost, 2.5)
    assert 5 < count < one_by_one(view, maps, window_cost)[1]
    assert window_loss(maps, view).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize('dynamic', [False, True])
def test_correction_loss(dynamic):
    view, maps = rough()
    offsets = torch.randn(6, 5, 2, generator=torch.Generator().manual_seed(0))

    def cost(b, k, place, h, peak):
        return ((offsets[b, k].double().numpy() - (place - (peak if dynamic else np.floor(place + 0.5)))) ** 2).sum()

    expected, count = one_by_one(view, maps, cost, 2.0 if dynamic else None)
    assert count < one_by_one(view, maps, cost)[1] or not dynamic
    assert correction_loss(maps, offsets, view, dynamic).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize('name', ['global', 'prior', 'window'])
def test_gradients_are_the_finite_differences(name):
    "Central differences of the references above, at pixels around the peaks."
    view, maps = rough(3)
    cost, reach = {
        'global': (global_cost(False, view.scale.double().numpy()), None),
        'window': (window_cost, 2.5),
        'prior': (global_cost(True, view.scale.double().numpy()), None),
    }[name]
    loss = dict(window=window_loss, prior=lambda h, v: global_loss(h, v, prior=True)).get(name, global_loss)
    (gradient,) = torch.autograd.grad(loss(maps.requires_grad_(), view), maps)
    for b, k in (view.visible & (gradient.abs().amax((-2, -1)) > 0)).nonzero()[::4].tolist():
        at = gradient[b, k].abs().argmax()
        values = []
        for step in (1e-5, -1e-5):
            moved = maps.detach().double()
            moved[b, k].flatten()[at] += step
            values.append(one_by_one(view, moved, cost, reach)[0])
        assert gradient[b, k].flatten()[at].item() == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-3)


def test_the_window_is_all_that_the_window_loss_moves():
    view, maps = rough()
    (gradient,) = torch.autograd.grad(window_loss(maps.requires_grad_(), view), maps)
    for b in range(6):
        for k in range(5):
            y, x = divmod(maps[b, k].argmax().item(), 64)
            around = torch.zeros(64, 64, dtype=torch.bool)
            around[max(y - 2, 0) : y + 3, max(x - 2, 0) : x + 3] = True
            assert not gradient[b, k][~around].any()
    assert gradient.any()


def upright(x: float, y: float) -> View:
    "A view of one landmark at (x, y) heatmap px, the canonical frame itself."
    return View(
        torch.zeros(1, 3, 256, 256),
        torch.tensor([[[4 * x + 1.5, 4 * y + 1.5]]]),
        torch.ones(1, 1, dtype=torch.bool),
        torch.eye(3)[None],
        torch.eye(3)[None],
    )


@pytest.mark.parametrize('window, reach', [(3, 1.5), (5, 2.5), (7, 3.5)])
def test_the_window_loss_looks_as_far_as_its_window(window, reach):
    "To the edge of the window's last pixel; a correction to its centre, 2 px."
    peak = torch.zeros(1, 1, 64, 64)
    peak[..., 20, 30] = 5.0  # so high that its soft-argmax is itself
    for beside in (reach - 0.1, reach + 0.1):
        cost = beside**2 if beside < reach else 0
        assert window_loss(peak, upright(30 + beside, 20.0), LossOptions(window=window)).item() == pytest.approx(
            cost, abs=1e-4
        )
    for beside, cost in ((1.9, 1.9**2), (2.1, 0)):
        assert correction_loss(peak, torch.zeros(1, 1, 2), upright(30.0, 20 - beside), True).item() == pytest.approx(
            cost, abs=1e-4
        )


def test_what_global_and_prior_want():
    "A flat map centred right is free for one; a parabola in the map, a Gaussian under the softmax, for both."
    middle, flat = upright(31.5, 31.5), torch.zeros(1, 1, 64, 64)
    assert global_loss(flat, middle).item() < 1e-5 and global_loss(flat, middle, prior=True).item() > 0.6
    view, axis = upright(20.3, 41.8), torch.arange(64.0)
    parabola = 1 - ((axis - 20.3) ** 2 + (axis[:, None] - 41.8) ** 2)[None, None] / (2 * 10 * 1.5**2)
    assert global_loss(parabola, view, prior=True).item() < 1e-4
    assert global_loss(parabola.roll(1, -1), view).item() == pytest.approx(1 / 32, rel=1e-3)
    far = global_loss(parabola.roll(20, -1), view, prior=True).item()
    assert far == pytest.approx(20 / 32 + np.log(2), rel=1e-3)  # the divergence is at most ln 2


def test_the_argmax_of_rounded_maps_makes_both_truths_one():
    view, _ = rough()
    maps, offsets = encode(view.points, mode='round'), torch.randn(6, 5, 2)
    assert correction_loss(maps, offsets, view, True).item() == pytest.approx(
        correction_loss(maps, offsets, view, False).item()
    )
    shifted = maps.roll(3, -1)  # 3 px off: nothing that a correction mends
    assert (
        correction_loss(shifted, offsets, view, True).item()
        == 0
        < correction_loss(shifted, offsets, view, False).item()
    )


def test_corrections_teach_the_offsets_and_not_the_maps():
    view, maps = rough()
    offsets = torch.zeros(6, 5, 2, requires_grad=True)
    loss = correction_loss(maps.requires_grad_(), offsets, view, True)
    assert loss.requires_grad and torch.autograd.grad(loss, maps, allow_unused=True, retain_graph=True)[0] is None
    assert torch.autograd.grad(loss, offsets)[0].any()


def test_which_places_count():
    view = upright(10.0, 20.0)
    error, counted = place_error(torch.tensor([[[8.0, 21.5]]]), view, 64)
    assert torch.allclose(error, torch.tensor([[[2.0, -1.5]]])) and counted.item()
    assert place_error(torch.tensor([[[8.0, 21.5]]]), view, 64, 2.0)[1].item()
    assert not place_error(torch.tensor([[[7.9, 21.5]]]), view, 64, 2.0)[1].item()
    for x, there in ((-0.5, True), (-0.6, False), (255.4, True), (255.5, False)):
        view.points[0, 0, 1] = x
        assert place_error(torch.zeros(1, 1, 2), view, 64)[1].item() == there
    view.points[0, 0, 1], view.visible = 100.0, torch.zeros(1, 1, dtype=torch.bool)
    assert not place_error(torch.zeros(1, 1, 2), view, 64)[1].any()


# ---- all methods


def setting(name: str, count: int = 6) -> dict:
    "What `training_loss` takes: two stacks of rough maps, and fewer visible landmarks in the first half of the faces."
    g, m = torch.Generator().manual_seed(5), METHODS[name]
    points, visible = torch.rand(count, 5, 2, generator=g) * 130 + 63, torch.ones(count, 5, dtype=torch.bool)
    visible[: count // 2, 1:] = False
    views = [seen_as(points, visible, i) for i in range(m.views)]
    maps = [
        [encode(v.points + 3, sigma=1.5) + 0.1 * torch.rand(count, 5, 64, 64, generator=g) for _ in range(2)]
        for v in views
    ]
    offsets = torch.randn(count, 5, 2, generator=g) if m.network is CorrectedHourglass else None
    return dict(outputs=maps, views=views, points=points, visible=visible, permutation=SWAP, method=m, offsets=offsets)


@pytest.mark.parametrize('name', METHODS)
def test_the_loss_is_the_sum_of_its_parts(name):
    s = setting(name)
    m, view, maps = s['method'], s['views'][0], s['outputs'][0]
    own = [view_loss(h, v, LossOptions(mode=m.mode)) for maps, v in zip(s['outputs'], s['views']) for h in maps]
    merged = [merged_loss(s['outputs'], s['views'], Truth(s['points'], s['visible'], SWAP))] if m.views == 2 else []
    extra = {
        'static': lambda: correction_loss(maps[-1], s['offsets'], view, False),
        'window': lambda: window_loss(maps[-1], view),
        'siamese+window': lambda: sum(window_loss(h[-1], v) for h, v in zip(s['outputs'], s['views'])) / 2,
        'dynamic': lambda: correction_loss(maps[-1], s['offsets'], view, True),
    }.get(name, lambda: 0.0)()
    parts = sum(own) / m.views + sum(merged) + extra
    if name in ('global', 'prior'):
        parts = sum(global_loss(h, view, prior=name == 'prior') for h in maps)
    assert training_loss(**s).item() == pytest.approx(parts.item(), rel=1e-6)
    assert torch.equal(
        view_target(view, 64, LossOptions(mode=m.mode)),
        encode(view.points, 64, 1.5 * view.scale, 4, m.mode, view.visible),
    )


@pytest.mark.parametrize(
    'name, options',
    [
        ('siamese', dict(sigma=2.0)),
        ('prior', dict(sigma=2.0)),
        ('global', dict(tau=5.0)),
        ('window', dict(tau=5.0)),
        ('window', dict(window=3)),
        ('dynamic', dict(window=3)),
    ],
)
def test_options_reach_their_losses(name, options):
    s = setting(name)
    assert abs(training_loss(**s, **options).item() - training_loss(**s).item()) > 1e-4  # float32 rounds these at 4e-6


def part(s: dict, faces: slice, count: torch.Tensor | None) -> tuple[float, list[torch.Tensor]]:
    "Loss and gradients of some faces of a setting."
    outputs = [[h[faces].clone().requires_grad_() for h in maps] for maps in s['outputs']]
    offsets = None if s['offsets'] is None else s['offsets'][faces].clone().requires_grad_()
    views = [View(*(getattr(v, f.name)[faces] for f in fields(v))) for v in s['views']]
    loss = training_loss(
        outputs,
        views,
        s['points'][faces],
        s['visible'][faces],
        SWAP,
        s['method'],
        offsets=offsets,
        count=count,
        **s['options'],
    )
    leaves = [h for maps in outputs for h in maps] + ([] if offsets is None else [offsets])
    return loss.item(), list(torch.autograd.grad(loss, leaves))


@pytest.mark.parametrize(
    'name, options', [(name, {}) for name in METHODS] + [('siamese', dict(merging=m)) for m in MERGES[1:]]
)
def test_two_halves_are_the_whole(name, options):
    "With half of the whole's count, the mean of the halves' losses and gradients is the whole's; without, it is not."
    s = setting(name) | dict(options=options)
    share = s['visible'].sum() / 2
    whole, gradients = part(s, slice(None), None)
    (a, first), (b, second) = part(s, slice(0, 3), share), part(s, slice(3, 6), share)
    assert (a + b) / 2 == pytest.approx(whole, rel=1e-5)
    for one, two, both in zip(first, second, gradients):
        rounding = 1e-4 * both.abs().max().item()
        torch.testing.assert_close(torch.cat([one, two]) / 2, both, rtol=1e-4, atol=rounding)
    careless = [part(s, faces, None)[1][-1] for faces in (slice(0, 3), slice(3, 6))]
    assert not torch.allclose(torch.cat(careless) / 2, gradients[-1], rtol=1e-2, atol=1e-9)


@pytest.mark.parametrize('name', METHODS)
def test_nothing_visible_and_half_precision(name):
    s = setting(name)
    halved = s | dict(outputs=[[h.bfloat16() for h in maps] for maps in s['outputs']])
    rounded = s | dict(outputs=[[h.bfloat16().float() for h in maps] for maps in s['outputs']])
    assert (
        training_loss(**halved).dtype == torch.float32
        and training_loss(**halved).item() == training_loss(**rounded).item()
    )
    for v in s['views']:
        v.visible = torch.zeros_like(v.visible)
    outputs = [[h.requires_grad_() for h in maps] for maps in s['outputs']]
    loss = training_loss(**s | dict(outputs=outputs, visible=torch.zeros_like(s['visible'])))
    (gradient,) = torch.autograd.grad(loss, outputs[0][-1])
    assert loss.item() == 0 and not gradient.any()


@pytest.mark.parametrize('name', METHODS)
def test_it_compiles_in_one_piece(name):
    "No control flow depends on data: dynamo captures one graph, which costs the same."
    s = setting(name, 2)
    torch._dynamo.reset()
    fast = torch.compile(training_loss, backend='eager', fullgraph=True)
    assert fast(**s).item() == pytest.approx(training_loss(**s).item())


# ---- the network with a correction


def networks(**options) -> tuple[StackedHourglass, CorrectedHourglass]:
    sizes = dict(points=5, stacks=2, width=16, depth=2) | options
    made = []
    for kind in (StackedHourglass, CorrectedHourglass):
        torch.manual_seed(0)
        made.append(kind(**sizes))
    return tuple(made)


def test_the_correction_is_an_addition():
    "The same heatmaps from the same seed; the offsets begin at zero, and are a line through the pooled last features."
    (plain, corrected), photos = networks(), torch.rand(3, 3, 32, 32)
    heatmaps, offsets = corrected(photos)
    assert (
        all(torch.equal(a, b) for a, b in zip(heatmaps, plain(photos)))
        and offsets.shape == (3, 5, 2)
        and not offsets.any()
    )
    assert set(corrected.state_dict()) - set(plain.state_dict()) == {'correction.weight', 'correction.bias'}
    with torch.no_grad():
        corrected.eval()
        for p in corrected.correction.parameters():
            p.normal_()
        pooled = list(corrected.steps(photos))[-1][1].double().flatten(-2).sum(-1) / 64
        expected = (pooled @ corrected.correction.weight.double().T + corrected.correction.bias.double()).view(3, 5, 2)
        assert (corrected(photos)[1] - expected).abs().max() < 1e-4
    assert split_output((heatmaps, offsets)) == (heatmaps, offsets) and split_output(heatmaps) == (heatmaps, None)
    with pytest.raises(ValueError, match='multiple of 8, got 12'):
        CorrectedHourglass(width=12)


@pytest.mark.parametrize('name', METHODS)
def test_a_step_moves_every_parameter(name):
    m, g = METHODS[name], torch.Generator().manual_seed(0)
    net = networks()[m.network is CorrectedHourglass]
    for head in net.heads:
        head.reset_parameters()
    if m.network is CorrectedHourglass:
        torch.nn.init.normal_(net.correction.weight)
    points, visible = torch.rand(4, 5, 2, generator=g) * 60 + 20, torch.ones(4, 5, dtype=torch.bool)
    crops = torch.randint(256, (4, 3, 104, 104), dtype=torch.uint8, generator=g)
    recipe = build_views('paper', 64)
    views = [
        random_view(recipe, draw_views(recipe, crops.shape, 64, i), crops, points, visible, SWAP, 64)
        for i in range(m.views)
    ]
    maps, offsets = split_output(net(torch.cat([v.images for v in views])))
    outputs = list(zip(*(h.chunk(m.views) for h in maps)))
    training_loss(outputs, views, points - 20, visible, SWAP, m, offsets=offsets).backward()
    still = [n for n, p in net.named_parameters() if p.grad is None or not p.grad.isfinite().all() or not p.grad.any()]
    assert not [
        n for n in still if not (name == 'dynamic' and 'correction' in n)
    ]  # an untrained peak may be too far to correct
