"face-alignment's weights in our network, and its users' points: compared with the package where it is installed."

import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch
from conftest import ROOT
from safetensors.torch import save_file
from torch import nn

from subpixel_nb.codec.decoding import gaussian_fit, quarter
from subpixel_nb.codec.encoding import encode
from subpixel_nb.codec.geometry import from_heatmap
from subpixel_nb.inference.fan import (
    FAN_SIGMA,
    convert,
    convert_from_shell,
    fan_names,
    fan_network,
    fan_points,
    fan_state,
    load_fan,
    read_fan,
    square_of,
    subpixel,
)
from subpixel_nb.model.hourglass import StackedHourglass
from subpixel_nb.training.checkpoints import load_weights


def package(name: str):
    "A module of face-alignment, or a skip: it wants opencv, numba and scikit-image."
    for needed in ('cv2', 'numba', 'skimage'):
        pytest.importorskip(needed, reason=f'face-alignment needs {needed}')
    return pytest.importorskip(name, reason='face-alignment is not installed: its own code is not compared')


def shaken(net: nn.Module) -> nn.Module:
    "Batch norms with random weights and statistics, heads that answer; the same at each call."
    g = torch.Generator().manual_seed(1)
    for name, m in net.named_modules():
        if isinstance(m, nn.BatchNorm2d):
            for t in (m.weight, m.running_var):
                nn.init.uniform_(t, 0.5, 1.5, generator=g)
            for t in (m.bias, m.running_mean):
                nn.init.normal_(t, std=0.1, generator=g)
        if name.startswith('heads.'):
            nn.init.normal_(m.weight, std=0.1, generator=g)
    return net.eval()


@pytest.fixture(scope='module')
def small() -> StackedHourglass:
    torch.manual_seed(0)
    return shaken(StackedHourglass(stacks=2, width=16))


@pytest.fixture
def photo() -> torch.Tensor:
    return torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def same(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return len(a) == len(b) and all(map(torch.equal, a, b))


# The weights


@pytest.mark.parametrize('stacks', [1, 2, 4])
def test_heatmaps_are_those_of_the_package(stacks):
    "Its own class, random weights and statistics, the same photo: every stack to 1e-5, and every key has its place."
    torch.manual_seed(stacks)
    fan = shaken(package('face_alignment.models').FAN(stacks))
    net, photo = load_fan(fan.state_dict()), torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        theirs, ours = fan(photo), net(photo)
    assert len(ours) == stacks and min(t.abs().max() for t in theirs) > 0.01
    assert all((a - b).abs().max() < 1e-5 * max(1, a.abs().max()) for a, b in zip(theirs, ours, strict=True))
    assert fan_state(net).keys() == fan.state_dict().keys()
    assert all(torch.equal(v, fan.state_dict()[k]) for k, v in fan_state(net).items())


def test_full_size(photo):
    "256 px, as FAN sees faces."
    torch.manual_seed(0)
    fan, photo = shaken(package('face_alignment.models').FAN(1)), torch.rand(1, 3, 256, 256)
    with torch.no_grad():
        theirs, ours = fan(photo)[-1], fan_network(fan.state_dict())(photo)[-1]
    assert ours.shape == (1, 68, 64, 64) and (ours - theirs).abs().max() < 1e-5


@pytest.mark.parametrize('stacks, keys', [(1, 334), (2, 599), (4, 1129)])
def test_every_tensor_has_one_name(stacks, keys):
    "FAN's published numbers of tensors; no two of ours share a name, and none is without."
    with torch.device('meta'):
        net = StackedHourglass(stacks=stacks)
    names = fan_names(stacks)
    assert len(set(names.values())) == len(names) and len(fan_state(net)) == len(net.state_dict()) == keys


def test_names_by_hand():
    names = fan_names(2)
    assert names['m1.b2_plus_1.bn3'] == 'hourglasses.1.inner.inner.inner.inner.norm3'
    assert (
        names['m0.b3_3.conv2'] == 'hourglasses.0.inner.after.conv2'
        and names['conv4.downsample.2'] == 'stem.6.shortcut.2'
    )
    assert names['al0'] == 'remap_heatmaps.0' and names['bl0'] == 'remap_features.0' and 'al1' not in names


def test_inverse_map_of_the_weights(small, photo):
    with torch.no_grad():
        assert same(fan_network(fan_state(small))(photo), small(photo))


def test_a_network_of_another_stride_has_no_names_in_fan():
    with pytest.raises(ValueError, match='stride: FAN has 4, and this network 8'):
        fan_state(StackedHourglass(points=2, stacks=1, width=8, depth=1, stride=8))


def test_what_old_checkpoints_look_like(small, photo):
    "No counters of batch norms, DataParallel's prefix, half precision: read, in float32, as a copy."
    state = {f'module.{k}': v.half() for k, v in fan_state(small).items() if not k.endswith('num_batches_tracked')}
    net = fan_network(state)
    assert (
        not net.training
        and {p.dtype for p in net.parameters()} == {torch.float32}
        and all(p.requires_grad for p in net.parameters())
    )
    with torch.no_grad():
        before = net(photo)
        assert (before[-1] - small(photo)[-1]).abs().max() < 0.05
        for value in state.values():
            value.zero_()
        assert same(net(photo), before)


def test_the_network_is_a_copy(small, photo):
    state = {k: v.clone() for k, v in fan_state(small).items()}
    net = fan_network(state)
    for value in state.values():
        value.zero_()
    with torch.no_grad():
        assert same(net(photo), small(photo))


def test_other_numbers_of_landmarks():
    assert fan_network(fan_state(StackedHourglass(points=98, stacks=1, width=8))).points == 98


def test_what_does_not_fit_is_named(small):
    state = fan_state(small)
    with pytest.raises(
        ValueError,
        match=r'FAN of 2 stacks; 4 missing: bn_end1.weight, bn_end1.bias, bn_end1.running_mean, bn_end1.running_var$',
    ):
        fan_network({k: v for k, v in state.items() if 'bn_end1' not in k})
    with pytest.raises(ValueError, match=r'1 unknown: m0.b9_4.conv1.weight'):
        fan_network(state | {'m0.b9_4.conv1.weight': torch.ones(1)})
    with pytest.raises(ValueError, match=r'1 of another shape: m0.b1_4.conv2.weight \(2, 2\)'):
        fan_network(state | {'m0.b1_4.conv2.weight': torch.ones(2, 2)})
    with pytest.raises(ValueError, match=r'FAN of 3 stacks; .* missing: '):
        fan_network(state | {'l2.weight': state['l1.weight']})
    with pytest.raises(ValueError, match='no convolution l0.weight.*begins with fc.weight'):
        fan_network({'fc.weight': torch.ones(2, 2)})
    with pytest.raises(ValueError, match='begins with nothing'):
        fan_network({})


# Files


def test_files(small, tmp_path):
    state = {k: v.contiguous() for k, v in fan_state(small).items()}
    save_file(state, tmp_path / 'a.safetensors')
    torch.save(state, tmp_path / 'b.pth.tar')
    torch.save({'epoch': 3, 'state_dict': state}, tmp_path / 'c.pth')
    torch.save(state, tmp_path / 'd.pth', _use_new_zipfile_serialization=False)
    for path in tmp_path.iterdir():
        assert same(list(fan_state(load_fan(path)).values()), list(state.values())), path.name
    assert same(list(fan_state(load_fan(str(path))).values()), list(state.values()))


class Planted:
    def __reduce__(self):
        return exec, ('import builtins; builtins.planted = True',)


def test_nothing_in_a_file_is_run(tmp_path):
    import builtins

    torch.save({'l0.weight': torch.ones(1), 'x': Planted()}, tmp_path / 'a.pth')
    with pytest.raises(ValueError, match='a.pth: expected a file of tensors alone'):
        load_fan(tmp_path / 'a.pth')
    assert not hasattr(builtins, 'planted')


@pytest.mark.filterwarnings('ignore:.*torch.jit:DeprecationWarning')
def test_a_program_is_opened_only_with_trust(small, photo, tmp_path):
    path = tmp_path / '2DFAN4.zip'

    class Named(nn.Module):  # FAN's names, as its old releases had them
        def __init__(self):
            super().__init__()
            for key, value in fan_state(small).items():
                at, parts = self, key.split('.')
                for part in parts[:-1]:
                    if part not in at._modules:
                        at.add_module(part, nn.Module())
                    at = at._modules[part]
                at.register_buffer(parts[-1], value)

        def forward(self, x):
            return x + 1

    torch.jit.trace(Named(), torch.ones(1)).save(path)
    with pytest.raises(ValueError, match='TorchScript archive, which is a program.*trust=True'):
        read_fan(path)
    with torch.no_grad():
        assert same(load_fan(path, trust=True)(photo), small(photo))


@pytest.mark.parametrize('name', ['cut.pth', 'cut.safetensors', 'text.pth', 'text.safetensors'])
def test_broken_files(small, tmp_path, name):
    path = tmp_path / name
    if name.startswith('text'):
        path.write_text('not weights')
    else:
        state = {k: v.contiguous() for k, v in fan_state(small).items()}
        save_file(state, path) if name.endswith('safetensors') else torch.save(state, path)
        path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(ValueError, match=name):
        load_fan(path)


@pytest.mark.parametrize(
    'wrap',
    [
        lambda state: {'model': state},
        lambda state: {'epoch': 3, 'model_state_dict': state, 'optimizer': {'state': {0: {'step': torch.ones(1)}}}},
        lambda state: {'checkpoint': {'net': {f'module.{k}': v for k, v in state.items()}}},
    ],
)
def test_a_state_dict_inside_of_others(small, tmp_path, wrap):
    "From a file and from memory, under whatever name, however deep."
    state = fan_state(small)
    torch.save(wrap(state), tmp_path / 'a.pth')
    for given in (tmp_path / 'a.pth', wrap(state)):
        assert same(list(fan_state(load_fan(given)).values()), list(state.values()))


@pytest.mark.parametrize('legacy', [False, True])
def test_a_damaged_download_is_called_damaged(small, tmp_path, legacy):
    "Cut short, of another hash than its name says, or a page of the server instead: not a matter of trust."
    path = tmp_path / '2DFAN4-11f355bf06.pth.tar'
    torch.save(fan_state(small), path, _use_new_zipfile_serialization=not legacy)
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], whole[:300], b'<!DOCTYPE html><html>Quota exceeded</html>', b''):
        path.write_bytes(content)
        with pytest.raises(ValueError, match='damaged or cut short.* sha256 should begin with 11f355bf06') as told:
            load_fan(path)
        assert str(path) in str(told.value) and 'trust' not in str(told.value) and 'Download it' in str(told.value)


def test_a_damaged_archive_of_any_kind_is_named(small, tmp_path):
    "Bytes changed at random, most of them where the file says what it holds."
    rng, path = np.random.default_rng(0), tmp_path / 'a.pth'
    torch.save(fan_state(small), path)
    whole = np.frombuffer(path.read_bytes(), np.uint8)
    for place in (0, len(whole) - 3000):
        for _ in range(20):
            changed = whole.copy()
            changed[rng.integers(place, place + 3000, 40)] = rng.integers(0, 256, 40)
            path.write_bytes(changed.tobytes())
            with pytest.raises(ValueError, match='a.pth: |FAN of'):
                load_fan(path)
                raise ValueError('FAN of: read, the damage is elsewhere')


def test_absent_and_strange_files(tmp_path):
    with pytest.raises(FileNotFoundError, match='no weights.*torch/hub/checkpoints.*2DFAN4'):
        load_fan(tmp_path / 'a.pth')
    torch.save([1, 2], tmp_path / 'list.pth')
    with pytest.raises(ValueError, match='begins with nothing'):
        load_fan(tmp_path / 'list.pth')


def test_as_a_checkpoint(small, photo, tmp_path):
    state = fan_state(small)
    net, config = load_weights(convert(state, tmp_path / 'runs' / 'fan').parent)
    with torch.no_grad():
        assert (net(photo)[-1] - small(photo)[-1]).abs().max() < 1e-5
    assert (config.crop, config.sigma, config.stacks, config.width) == ('fan', FAN_SIGMA, 2, 16)
    with pytest.raises(ValueError, match='expected weights for 68 landmarks.*weights for 5'):
        convert(fan_state(StackedHourglass(points=5, stacks=1, width=8)), tmp_path)
    with pytest.raises(FileExistsError, match='there is a network already'):
        convert(state, tmp_path / 'runs' / 'fan')


@pytest.mark.slow
def test_command(small, tmp_path):
    torch.save(fan_state(small), tmp_path / 'fan.pth')
    words = [sys.executable, '-m', 'subpixel_nb.fan', str(tmp_path / 'fan.pth'), str(tmp_path / 'run')]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and load_weights(done.stdout.strip())[0].stacks == 2, done.stderr
    with pytest.raises(SystemExit, match='there are no weights'):
        convert_from_shell([str(tmp_path / 'no.pth'), str(tmp_path)])


# Where its points lie


def corner(point, center, scale, resolution, invert=True):
    "Its `transform` in our words: whole photo px, truncated."
    return np.trunc(np.asarray(center) + 200 * scale * (np.asarray(point, dtype=float) / resolution - 0.5))


def square(box) -> tuple[np.ndarray, float]:
    x1, y1, x2, y2 = box
    return np.array([(x1 + x2) / 2, (y1 + y2) / 2 - 0.12 * (y2 - y1)]), (x2 - x1 + y2 - y1) / 195


def test_square_by_hand():
    "Center 100.25, 120, scale 1: 200 px from .25; the crop takes columns 1 .. 199 and rows 20 .. 219."
    start, sides = square_of([100.25, 120.0], 1.0, corner)
    assert start.tolist() == [0.5, 19.5] and sides.tolist() == [199.0, 200.0]
    start, sides = square_of([100.25, 120.0], 1.0, corner, 'fan')
    assert start.tolist() == [0.25, 20.0] and sides.tolist() == [200.0, 200.0]
    with pytest.raises(ValueError, match="unknown coordinates 'pixels'; known: pixel, fan"):
        square_of([0.0, 0.0], 1.0, corner, 'pixels')


def test_its_transform_is_ours():
    utils, rng = package('face_alignment.utils'), np.random.default_rng(0)
    for _ in range(200):
        center, scale = rng.uniform(-50, 900, 2), rng.uniform(0.3, 6)
        for v in (1, 256):
            assert (
                utils.transform([v, v], center, scale, 256.0, True).tolist()
                == corner([v, v], center, scale, 256).tolist()
            )


@pytest.mark.parametrize('side', [80, 250, 500])
def test_its_crop_shows_what_the_square_says(side):
    "A blurred spot in a photo, found again in its crop: the square of `pixel` maps back to it, that of `fan` does not."
    utils, rng, off = package('face_alignment.utils'), np.random.default_rng(side), {'pixel': [], 'fan': []}
    for _ in range(6):
        x, y = rng.uniform(400, 420, 2)
        center, scale = square((x, y, x + side, y + side))
        at = center + 200 * scale * rng.uniform(-0.2, 0.2, 2)
        column, row = (np.exp(-0.5 * ((np.arange(1600) - v) / (4 * scale)) ** 2) for v in at)
        photo = np.repeat(np.round(255 * row[:, None] * column)[..., None], 3, -1).astype(np.uint8)
        seen = utils.crop(photo, center, scale)[..., 0].astype(float)
        middle = np.array([(seen.sum(axis) * np.arange(256)).sum() / seen.sum() for axis in (0, 1)])
        for name, errors in off.items():
            start, sides = square_of(center, scale, utils.transform, name)
            errors.append(np.abs(start + sides * (middle + 0.5) / 256 - at).max())
    assert max(off['pixel']) < 0.05 < 0.3 < max(off['fan'])


@pytest.mark.parametrize('decoder, worst', [('gaussian', 1e-3), ('calibrated', 1e-2), ('local', 1.0)])
def test_exact_gaussians_come_back(decoder, worst):
    rng = np.random.default_rng(0)
    center, scale = square((301.2, 280.9, 702.3, 690.6))
    start, sides = square_of(center, scale, corner)
    truth = start + sides * rng.uniform(0.2, 0.8, (68, 2))
    maps = 1.7 * encode(from_heatmap(torch.from_numpy((truth - start) / sides * 64 - 0.5)), sigma=FAN_SIGMA).float()
    places, found, scores = fan_points(maps[None].numpy(), center, scale, transform=corner, decoder=decoder)
    assert places.dtype == found.dtype == np.float32 and found.shape == (1, 68, 2) and scores.shape == (1, 68)
    assert np.abs(found[0] - truth).max() < worst and np.allclose(places[0], (truth - start) / sides * 64, atol=worst)
    assert np.allclose(scores[0], maps.amax((1, 2)))


@pytest.mark.slow
def test_points_of_the_package_before_it_truncates_them():
    "Quarter offset in its own coordinates, truncated: exactly `get_preds_fromhm`; without a center there is no photo."
    utils, g = package('face_alignment.utils'), torch.Generator().manual_seed(0)
    maps = encode(from_heatmap(torch.rand(1, 300, 2, generator=g) * 58 + 3), sigma=1.75).numpy()
    center, scale = square((301.2, 280.9, 702.3, 690.6))
    places, photo, scores = utils.get_preds_fromhm(maps, center, scale)
    ours = fan_points(maps, center, scale, transform=utils.transform, decoder='quarter', coordinates='fan')
    assert (
        np.array_equal(np.trunc(ours[1]), photo) and np.array_equal(ours[0], places) and np.array_equal(ours[2], scores)
    )
    assert not fan_points(maps, transform=utils.transform)[1].any() and not utils.get_preds_fromhm(maps)[1].any()


@pytest.mark.parametrize('side, bias', [(100, 0.0994), (400, -1.1026)])
def test_bias_of_its_decoder(side, bias):
    "Exact Gaussians where its crop shows the points: its mean error is 1/2 - h / 512 around the square's middle."
    utils, errors = package('face_alignment.utils'), []
    for seed in range(15):
        rng = np.random.default_rng(seed)
        x, y = 1000 + rng.random(2)
        center, scale = square((x, y, x + side, y + side))
        start, sides = square_of(center, scale, utils.transform)
        truth = center + 200 * scale * rng.uniform(-0.25, 0.25, (68, 2))
        maps = (
            encode(from_heatmap(torch.from_numpy((truth - start) / sides * 64 - 0.5)), sigma=FAN_SIGMA).float().numpy()
        )
        errors.append(utils.get_preds_fromhm(maps[None], center, scale)[1][0] - truth)
    assert abs(np.mean(errors) - bias) < 0.1 and abs(bias - (0.5 - 200 * 2 * side / 195 / 512)) < 1e-4


def test_sigma_of_its_kernels():
    "`_gaussian` draws a deviation of a quarter of its size: 7 px, as the published weights learnt, are FAN_SIGMA."
    utils = package('face_alignment.utils')
    for size, sigma in ((7, FAN_SIGMA), (13, 3.25)):
        kernel = torch.zeros(1, 41, 41)
        kernel[0, 20 - size // 2 : 21 + size // 2, 20 - size // 2 : 21 + size // 2] = torch.from_numpy(
            utils._gaussian(size=size)
        )
        assert abs(gaussian_fit(kernel, window=size).sigma.item() - sigma) < 1e-3


# The drop-in

SHADOW = textwrap.dedent("""
    import torch

    def transform(point, center, scale, resolution, invert):
        return [float(int(c + 200 * scale * (p / resolution - .5))) for c, p in zip(center, point)]

    def get_preds_fromhm(maps, center, scale):
        raise AssertionError('the package decoded')

    class FaceAlignment:
        device = 'cpu'
        @torch.no_grad()
        def get_landmarks_from_image(self, image, detected_faces=None, return_landmark_score=False):
            "Its own words."
            assert not torch.is_grad_enabled()
            points, photo, scores = get_preds_fromhm(image, *detected_faces)
            return (photo, scores) if return_landmark_score else photo
        def get_landmarks(self, image, **how): return self.get_landmarks_from_image(image, **how)
""")


@pytest.fixture
def shadow() -> type:
    "A class in a module of its own that decodes as face-alignment does, for where that is not installed."
    space = {'__name__': 'shadow'}
    exec(SHADOW, space)
    return space['FaceAlignment']


def test_the_method_finds_our_decoder(shadow):
    fa, maps = shadow(), encode(torch.rand(1, 68, 2) * 200 + 20, sigma=1.75).numpy()
    smooth = subpixel(fa)
    photo, scores = smooth.get_landmarks(maps, detected_faces=([300.0, 300.0], 2.0), return_landmark_score=True)
    expected = fan_points(maps, [300.0, 300.0], 2.0, transform=corner)
    assert np.array_equal(photo, expected[1]) and np.array_equal(scores, expected[2])
    assert (
        isinstance(smooth, shadow)
        and smooth.device == 'cpu'
        and smooth.get_landmarks_from_image.__doc__ == 'Its own words.'
    )
    with pytest.raises(AssertionError, match='the package decoded'):
        fa.get_landmarks(maps, detected_faces=([300.0, 300.0], 2.0))
    again = subpixel(smooth, 'quarter', 'fan').get_landmarks(maps, detected_faces=([300.0, 300.0], 2.0))
    assert np.allclose(again, 100 + 400 * (quarter(torch.from_numpy(maps))[0].numpy() + 0.5) / 64, atol=1e-3)


def test_what_cannot_be_exchanged(shadow):
    with pytest.raises(TypeError, match='expected a face_alignment.FaceAlignment.*got object'):
        subpixel(object())
    with pytest.raises(TypeError, match='got StackedHourglass'):
        subpixel(StackedHourglass(stacks=1, width=8))
    with pytest.raises(ValueError, match="unknown decoder 'gausian'; known: gaussian"):
        subpixel(shadow(), 'gausian')
    with pytest.raises(ValueError, match='unknown coordinates'):
        subpixel(shadow(), coordinates='photo')


class Shrink(nn.Module):
    "In FAN's place: 68 times the crop's brightness, averaged over 4 x 4 px."

    def forward(self, x):
        return [nn.functional.avg_pool2d(x.mean(1, True), 4).repeat(1, 68, 1, 1)]


class Depth(nn.Module):
    def forward(self, x):
        return torch.zeros(len(x), 68)


@pytest.fixture
def fa():
    "The package's class, no weights: it answers where the photo is bright, detector aside."
    api = package('face_alignment')

    class Spotted(api.FaceAlignment):
        def _load_native(self, *_):
            return Shrink()

        def _load_native_depth(self, *_):
            return Depth()

    return lambda kind=1, **how: Spotted(kind, device='cpu', face_detector='folder', compile=False, **how)


def spots(*at: tuple[float, float]) -> np.ndarray:
    "Photo (700, 900, 3) of a blurred spot for each (x, y)."
    photo = sum(
        np.exp(-0.5 * (((np.arange(900) - x) / 7) ** 2 + ((np.arange(700)[:, None] - y) / 7) ** 2)) for x, y in at
    )
    return np.repeat(np.round(255 * photo)[..., None], 3, -1).astype(np.uint8)


FACES, AT = [[100, 180, 300, 380.0], [500, 200, 720, 410.0]], [(190.3, 271.8), (610.6, 290.2)]


@pytest.mark.parametrize('flip', [False, True])
def test_a_photo_through_the_whole_package(fa, flip):
    "Crop, network, flip, decoder: two faces; ours within 0.05 px of the spots, the package's own whole px beside them."
    whole, photo = fa(flip_input=flip), spots(*AT)
    smooth = subpixel(whole)
    points, scores, boxes = smooth.get_landmarks(
        photo, detected_faces=FACES, return_bboxes=True, return_landmark_score=True
    )
    assert (
        len(points) == len(scores) == 2 and boxes == FACES and points[0].shape == (68, 2) and scores[0].shape == (68,)
    )
    for found, at in zip(points, AT):
        assert np.abs(found - at).max() < 0.05
    theirs, their_scores, _ = whole.get_landmarks(photo, detected_faces=FACES, return_landmark_score=True)
    assert all(np.array_equal(p, np.trunc(p)) and np.abs(p - at).max() > 0.3 for p, at in zip(theirs, AT))
    assert all(np.array_equal(a, b) for a, b in zip(scores, their_scores))


@pytest.mark.parametrize('decoder', ['local', 'global'])
def test_the_temperature_is_that_of_one_view(fa, decoder):
    "face-alignment adds the mirrored view's heatmaps: the answers are as sharp as those of one view."
    photo = spots(*AT)
    once, added = (
        subpixel(fa(flip_input=flip), decoder, tau=3.0).get_landmarks(photo, detected_faces=FACES[:1])[0]
        for flip in (False, True)
    )
    assert np.abs(once - added).max() < 0.02


def test_the_other_ways_in(fa):
    smooth, photo = subpixel(fa(max_batch_size=2)), spots(*AT)
    alone = smooth.get_landmarks_from_image(photo, FACES)
    batch = torch.from_numpy(np.stack([photo, photo])).permute(0, 3, 1, 2)
    many = smooth.get_landmarks_from_batch(batch, detected_faces=[FACES, FACES[:1]])
    assert np.allclose(many[0], np.concatenate(alone), atol=1e-3) and np.allclose(many[1], alone[0], atol=1e-3)
    with pytest.warns(UserWarning, match='No faces'):
        assert smooth.get_landmarks(photo, detected_faces=[]) is None
    solid = subpixel(fa(3)).get_landmarks(photo, detected_faces=FACES)
    assert solid[0].shape == (68, 3) and np.abs(solid[0][:, :2] - AT[0]).max() < 0.05


def test_a_face_half_outside(fa):
    "The crop is black there; what is inside is found."
    found = subpixel(fa()).get_landmarks(spots((20.4, 300.7)), detected_faces=[[-90, 200, 110, 400.0]])
    assert np.abs(found[0] - (20.4, 300.7)).max() < 0.05


def test_a_network_that_diverged(fa):
    class Broken(nn.Module):
        def forward(self, x):
            return [torch.full((len(x), 68, 64, 64), torch.nan)]

    smooth = subpixel(fa())
    smooth.face_alignment_net = Broken()
    with pytest.raises(ValueError, match='68 of 68 heatmaps hold NaN'):
        smooth.get_landmarks(spots(*AT), detected_faces=FACES[:1])


def test_nothing_of_ours_imports_the_package():
    code = "import sys; sys.modules['face_alignment'] = None; import subpixel_nb.inference.fan"
    assert subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True).returncode == 0
