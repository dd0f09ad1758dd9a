"The network: its size and work, order of operations, shapes, and what it refuses."

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from subpixel_nb.model.hourglass import (
    BLOCKS,
    POOLS,
    BottleneckBlock,
    HierarchicalBlock,
    Hourglass,
    StackedHourglass,
    check_side,
    multiply_adds,
    parameter_count,
)


def small(**options) -> StackedHourglass:
    "A quick network for 32 px photos, the same at each call; batch norms and heads are not in their initial state."
    torch.manual_seed(0)
    net = StackedHourglass(**dict(points=5, stacks=2, width=16, depth=2) | options)
    for m in net.modules():
        if isinstance(m, nn.BatchNorm2d):
            for t in (m.weight, m.running_var):
                nn.init.uniform_(t, 0.5, 1.5)
            for t in (m.bias, m.running_mean):
                nn.init.normal_(t, std=0.1)
    for head in net.heads:
        head.reset_parameters()
    return net


@pytest.fixture
def photos():
    return torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


# ---- size


def test_the_papers_network_has_its_size():
    with torch.device('meta'):
        net = StackedHourglass()
    assert parameter_count(net) == 12_106_504 and round(parameter_count(net) / 1e6, 2) == 12.11
    assert multiply_adds(net) == 13_923_647_488 and round(multiply_adds(net) / 1e9, 1) == 13.9


@pytest.mark.parametrize('stacks, parameters', [(1, 6_249_668), (2, 12_106_504), (4, 23_820_176)])
def test_parameters_are_those_of_fan(stacks, parameters):
    "FAN's 1, 2 and 4 stacks in its PyTorch release: the same layers, so that its weights fit."
    with torch.device('meta'):
        assert parameter_count(StackedHourglass(stacks=stacks)) == parameters


def test_work_grows_with_the_area_and_counting_changes_nothing(photos):
    net = small().eval()
    before = net(photos)[-1]
    assert multiply_adds(net, 64) == 4 * multiply_adds(net, 32)
    assert torch.equal(net(photos)[-1], before) and next(net.parameters()).device.type == 'cpu'


def test_one_convolution_is_counted_by_hand():
    assert multiply_adds(nn.Conv2d(3, 8, 3, padding=1), 10) == 10 * 10 * 8 * 3 * 9


# ---- order of operations


def reference_block(block: HierarchicalBlock, x: torch.Tensor) -> torch.Tensor:
    "BN - ReLU - 3 x 3 three times, concatenated, plus the input or BN - ReLU - 1 x 1 of it."

    def pre(norm, conv, t, padding=1):
        t = F.batch_norm(t, norm.running_mean, norm.running_var, norm.weight, norm.bias)
        return F.conv2d(t.clamp(min=0), conv.weight, None, padding=padding)

    a = pre(block.norm1, block.conv1, x)
    b = pre(block.norm2, block.conv2, a)
    c = pre(block.norm3, block.conv3, b)
    direct = x if isinstance(block.shortcut, nn.Identity) else pre(block.shortcut[0], block.shortcut[2], x, 0)
    return torch.cat([a, b, c], 1) + direct


def reference_hourglass(net: Hourglass, x: torch.Tensor) -> torch.Tensor:
    inner = reference_hourglass if isinstance(net.inner, Hourglass) else reference_block
    low = reference_block(net.after, inner(net.inner, reference_block(net.before, F.avg_pool2d(x, 2))))
    return reference_block(net.skip, x) + low.repeat_interleave(2, -1).repeat_interleave(2, -2)


def test_the_network_is_its_definition(photos):
    "Written out a second time, without modules, in-place operations or loops over stacks."
    net = small().eval()

    def norm(m, t):
        return F.batch_norm(t, m.running_mean, m.running_var, m.weight, m.bias).clamp(min=0)

    x = norm(net.stem[1], F.conv2d(photos, net.stem[0].weight, net.stem[0].bias, stride=2, padding=3))
    x = F.avg_pool2d(reference_block(net.stem[3], x), 2)
    x = reference_block(net.stem[6], reference_block(net.stem[5], x))
    one = net.necks[0][1](reference_block(net.necks[0][0], reference_hourglass(net.hourglasses[0], x)))
    one = norm(net.necks[0][2], one)
    first = net.heads[0](one)
    x = x + net.remap_features[0](one) + net.remap_heatmaps[0](first)
    two = net.necks[1][1](reference_block(net.necks[1][0], reference_hourglass(net.hourglasses[1], x)))
    second = net.heads[1](norm(net.necks[1][2], two))
    for got, expected in zip(net(photos), (first, second)):
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


def test_steps_hand_out_what_the_heatmaps_are_read_from(photos):
    net = small(stacks=3).eval()
    steps, answer = list(net.steps(photos)), net(photos)
    assert len(steps) == 3 and all(torch.equal(heatmaps, one) for (heatmaps, _), one in zip(steps, answer))
    for head, (heatmaps, features) in zip(net.heads, steps):
        assert features.shape == (2, 16, 8, 8) and torch.equal(head(features), heatmaps)
    with pytest.raises(ValueError, match='divisible by 16'):
        next(net.steps(photos[..., :30]))


def test_biases_are_where_fan_has_them():
    biased = {name for name, m in small().named_modules() if isinstance(m, nn.Conv2d) and m.bias is not None}
    assert biased == {'stem.0', 'necks.0.1', 'necks.1.1', 'heads.0', 'heads.1', 'remap_features.0', 'remap_heatmaps.0'}


def test_channels_of_the_hierarchical_block():
    block = HierarchicalBlock(8, 16)
    assert [c.weight.shape[:2] for c in (block.conv1, block.conv2, block.conv3)] == [(8, 8), (4, 8), (4, 4)]
    assert isinstance(HierarchicalBlock(16, 16).shortcut, nn.Identity)
    assert BottleneckBlock(8, 16)(torch.rand(1, 8, 6, 6)).shape == (1, 16, 6, 6)


@pytest.mark.parametrize('depth', [1, 3, 4])
def test_the_bottom_of_an_hourglass(depth):
    "The smallest map is the input halved `depth` times: 64 px to 4 px in the paper."
    sides, net = [], Hourglass(8, depth)
    for m in net.modules():
        if isinstance(m, HierarchicalBlock):
            m.register_forward_hook(lambda _, __, out: sides.append(out.shape[-1]))
    assert net(torch.rand(1, 8, 64, 64)).shape == (1, 8, 64, 64) and min(sides) == 64 // 2**depth


def test_pooling_is_as_named():
    average, greatest = small().eval(), small(pool='max').eval()
    greatest.load_state_dict(average.state_dict())
    flat, varied = torch.full((1, 8, 4, 4), 0.3), torch.rand(1, 8, 4, 4)
    assert torch.equal(average.stem[4](flat), greatest.stem[4](flat))
    assert torch.equal(average.stem[4](varied), F.avg_pool2d(varied, 2))
    assert torch.equal(greatest.stem[4](varied), F.max_pool2d(varied, 2))


# ---- shapes, types, memory layouts


@pytest.mark.parametrize('block', BLOCKS)
@pytest.mark.parametrize('pool', POOLS)
@pytest.mark.parametrize('stacks', [1, 3])
def test_shapes(block, pool, stacks, photos):
    heatmaps = small(block=block, pool=pool, stacks=stacks)(photos)
    assert [h.shape for h in heatmaps] == [(2, 5, 8, 8)] * stacks


def test_sides_may_differ():
    assert small()(torch.rand(1, 3, 32, 64))[-1].shape == (1, 5, 8, 16)


def test_channels_last_and_bfloat16_answer_the_same(photos):
    net = small().eval()
    plain = net(photos)[-1]
    net = net.to(memory_format=torch.channels_last)
    photos = photos.contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(net(photos)[-1], plain, atol=1e-5, rtol=1e-4)
    with torch.autocast('cpu', torch.bfloat16):
        rounded = net(photos)[-1]
    assert rounded.dtype == torch.bfloat16 and (rounded.float() - plain).abs().max() < 0.03 * plain.abs().max()


def test_the_photo_and_the_features_are_left_alone(photos):
    kept, net = photos.clone(), small()
    features = torch.rand(1, 16, 8, 8)
    before = features.clone()
    net.hourglasses[0](features)
    net(photos)
    assert torch.equal(photos, kept) and torch.equal(features, before)


def test_it_compiles_in_one_piece(photos):
    "No control flow depends on data: dynamo captures one graph, which answers the same."
    net = small(stacks=1, depth=1).eval()
    torch._dynamo.reset()
    torch.testing.assert_close(torch.compile(net, backend='eager', fullgraph=True)(photos)[-1], net(photos)[-1])


# ---- training


@pytest.mark.parametrize('block', BLOCKS)
def test_every_parameter_gets_a_gradient(block, photos):
    net = small(block=block)
    with torch.autocast('cpu', torch.bfloat16):
        heatmaps = net(photos)
    sum(h.float().square().sum() for h in heatmaps).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.abs().sum() > 0 for p in net.parameters())


def test_gradients_survive_the_in_place_operations():
    "In float64, against finite differences."
    torch.manual_seed(0)
    net = Hourglass(8, 1).double().eval()
    features = torch.rand(1, 8, 4, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(net, features, fast_mode=True)


def test_it_learns(photos):
    "Two photos, five maps of noise: the error falls to a tenth."
    net, target = small(stacks=1, depth=1), torch.rand(2, 5, 8, 8, generator=torch.Generator().manual_seed(1))
    optimiser, errors = torch.optim.Adam(net.parameters(), 1e-2), []
    for _ in range(60):
        heatmaps = net(photos)
        errors.append((heatmaps[-1] - target).square().mean().item())
        optimiser.zero_grad()
        sum((h - target).square().mean() for h in heatmaps).backward()
        optimiser.step()
    assert errors[-1] < 0.1 * errors[0]


def test_answers_begin_near_zero(photos):
    "As most of a heatmap is: a large first loss would stall Adam."
    assert all(h.abs().max() < 0.1 for h in StackedHourglass(width=64, depth=2)(photos))


def test_a_seed_repeats_the_network(photos):
    assert torch.equal(small().eval()(photos)[-1], small().eval()(photos)[-1])


@pytest.mark.parametrize('stride', [4, 8, 16])
@pytest.mark.parametrize('pool', POOLS)
def test_maps_of_each_stride(stride, pool):
    "Each doubling of the stride halves the side of every map; the stem halves it by a block and a pooling."
    net = StackedHourglass(points=5, stacks=2, width=16, depth=1, pool=pool, stride=stride).eval()
    assert [tuple(h.shape) for h in net(torch.rand(2, 3, 64, 96))] == [(2, 5, 64 // stride, 96 // stride)] * 2
    assert net.stride == stride and sum(isinstance(m, type(POOLS[pool]())) for m in net.stem) == stride.bit_length() - 2


def test_stride_4_is_the_network_that_it_was():
    "Names, layers and the order in which the first weights are drawn: earlier runs and checkpoints depend on them."
    torch.manual_seed(3)
    first = [nn.Conv2d(3, 4, 7, stride=2, padding=3), nn.BatchNorm2d(4), nn.ReLU(), HierarchicalBlock(4, 8)]
    stem = nn.Sequential(*first, nn.AvgPool2d(2), HierarchicalBlock(8, 8), HierarchicalBlock(8, 16))
    hourglass = Hourglass(16, 2)
    torch.manual_seed(3)
    net = StackedHourglass(points=5, stacks=1, width=16, depth=2)
    for ours, theirs in ((net.stem, stem), (net.hourglasses[0], hourglass)):
        old, new = theirs.state_dict(), ours.state_dict()
        assert list(old) == list(new) and all(torch.equal(old[k], new[k]) for k in old)


# ---- what it refuses


@pytest.mark.parametrize(
    'options, message',
    [
        (dict(width=-64), 'width: expected a positive whole number, got -64'),
        (dict(width=0), 'width'),
        (dict(width=64.0), 'width'),
        (dict(width=100), 'multiple of 8, got 100; nearest: 96'),
        (dict(width=3), 'nearest: 8'),
        (dict(points=0), 'points'),
        (dict(stacks=True), 'stacks'),
        (dict(stacks='2'), "stacks: .* got '2'"),
        (dict(depth=0), 'depth'),
        (dict(block='hierachical'), "unknown block 'hierachical'; known: hierarchical"),
        (dict(pool='mean'), "unknown pool 'mean'"),
        (dict(stride=2), 'stride: expected one of 4, 8, 16, got 2'),
        (dict(stride=8.0), 'stride: expected one of 4, 8, 16, got 8.0'),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        StackedHourglass(**options)


@pytest.mark.parametrize(
    'shape, message',
    [
        ((3, 32, 32), r'\(B, 3, H, W\), got \(3, 32, 32\)'),
        ((1, 1, 32, 32), r'\(1, 1, 32, 32\)'),
        ((1, 3, 30, 32), 'divisible by 16 .* got 30 x 32'),
        ((1, 3, 0, 32), 'got 0 x 32'),
    ],
)
def test_bad_photos_are_named(shape, message):
    with pytest.raises(ValueError, match=message):
        small()(torch.rand(shape))


@pytest.mark.parametrize(
    'size, stride, depth, message',
    [
        (250, 4, 4, r'multiple of stride \* 2\*\*depth = 4 \* 2\*\*4 = 64 px, got 250$'),
        (128, 16, 4, '16 .* = 256 px, got 128; with 128 px, the largest depth is 3$'),
        (0, 8, 2, 'got 0$'),
        (64.0, 8, 2, 'got 64.0$'),
        (256, 5, 2, 'stride: expected one of 4, 8, 16, got 5'),
    ],
)
def test_a_side_that_cannot_be_halved_is_named(size, stride, depth, message):
    with pytest.raises(ValueError, match=message):
        check_side(size, stride, depth)
    check_side(256, 16, 4)  # down to a single pixel


def test_bytes_are_refused():
    with pytest.raises(TypeError, match='divide uint8 by 255'):
        small()(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))
