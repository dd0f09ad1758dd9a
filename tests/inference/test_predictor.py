"""From a photo to landmarks in its own pixels: a 'network' of known answers, and trained networks' checkpoints.

`Colours` answers three heatmaps that are its picture's colours, averaged 4 x 4: where a soft red, green and blue spot
lie is then known exactly, whatever the square, the view or the photo's kind."""

import dataclasses
import math
import re
import warnings

import numpy as np
import pytest
import torch
from kornia.geometry import angle_to_rotation_matrix
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from subpixel_nb.codec.decoding import gaussian_fit
from subpixel_nb.codec.geometry import CROPS, Crop, crop_square, landmark_box, on_heatmap, similarity, warp
from subpixel_nb.data.datasets import SCHEMES, DataError, Scheme, read_split
from subpixel_nb.data.metrics import nme, normaliser
from subpixel_nb.data.synthetic import synthetic_faces
from subpixel_nb.inference.detection import Detections, Detector
from subpixel_nb.inference.photos import cut_square, read_photo, turn_about, turned_photo, turned_squares
from subpixel_nb.inference.predictor import (
    BoxedFace,
    Options,
    Predictor,
    box_of_square,
    convert_boxes,
    given_boxes,
    leaning_boxes,
    load_network,
    refine_boxes,
    refine_rolls,
    upright_heatmaps,
    view_heatmaps,
)
from subpixel_nb.training import checkpoints
from subpixel_nb.training.checkpoints import find_checkpoint, save_weights
from subpixel_nb.training.loop import predict
from subpixel_nb.training.recipe import Config, build_network, configure
from subpixel_nb.training.uncertainty import Covariances, held_shares, squared_mahalanobis

RGB = Scheme('rgb', 3, ())
SPOTS = torch.tensor([[70.3, 61.8], [122.6, 75.1], [95.9, 118.4]], dtype=torch.float64)


class Colours(nn.Module):
    points = 3

    def __init__(self, stride: int = 4):
        super().__init__()
        self.stride = stride

    def forward(self, images):
        return [nn.functional.avg_pool2d(images, self.stride)]


def spots(points=SPOTS, size=(200, 180), sigma=3.0) -> np.ndarray:
    "A photo (H, W, 3) float 0..1, `size` W and H, black but for a soft red, green and blue spot."
    y, x = np.mgrid[: size[1], : size[0]]
    return np.stack([np.exp(-0.5 * ((x - px) ** 2 + (y - py) ** 2) / sigma**2) for px, py in points.tolist()], -1)


def colours(**options) -> Predictor:
    return Predictor((Colours(), Config(size=128, depth=3)), scheme=RGB, **options)


BOX = landmark_box(SPOTS)[None]  # 56.6 px high: the square is 65.9 px, enlarged 1.94 times


# Where the points are


@pytest.mark.parametrize(
    'options',
    [
        {},
        dict(flip=True),
        dict(views=[(-10.0, 1.0), (10.0, 1.0), (0.0, 0.9), (7.0, 1.1)]),
        dict(views=[(20.0, 0.9)], flip=True),
        dict(decoder='calibrated', sigma=1.5),
        dict(passes=2),
    ],
    ids=str,
)
def test_points_are_the_spots(options):
    found = colours(**options)(spots(), boxes=BOX)
    assert found.points.dtype == torch.float64 and (found.points - SPOTS).abs().max() < 0.04
    assert (
        found.points.shape == (1, 3, 2)
        and found.score.shape == (1, 3)
        and found.covariance.shape == (1, 3, 2, 2)
        and found.score.min() > 0.8
    )


@pytest.mark.parametrize('factor', [0.4, 1, 3, 11])
def test_points_scale_with_the_photo(factor):
    size = tuple(round(v * factor) for v in (200, 180))
    points = (SPOTS + 0.5) * factor - 0.5
    found = colours()(spots(points, size, 3 * factor), boxes=landmark_box(points))
    assert (found.points - points).abs().max() < 0.04 * max(factor, 1)


class Noisy(Colours):
    "White noise on the heatmaps, new each time."

    def forward(self, images):
        maps = super().forward(images)[0]
        return [maps + 0.05 * torch.randn(maps.shape)]


class Same(Colours):
    "Whatever the picture: the same noisy Gaussians."

    def forward(self, images):
        y, x = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing='ij')
        maps = torch.stack([torch.exp(-0.5 * ((x - 10.3 - k) ** 2 + (y - 17.8) ** 2) / 1.5**2) for k in range(3)])
        return [
            (maps + 0.05 * torch.randn(maps.shape, generator=torch.Generator().manual_seed(0))).expand(
                len(images), -1, -1, -1
            )
        ]


def test_covariance_is_in_photo_px():
    "The same heatmaps, from a square four times as wide: 16 times the covariance. `inflate` multiplies it."

    def noisy(**options):
        predictor = Predictor((Same(), Config(size=128, depth=3)), scheme=RGB, **options)
        return predictor(np.zeros((400, 500)), boxes=[[9, 9, 109, 99], [20, 30, 420, 390]])

    one, four = noisy().covariance
    assert (four / one).numpy() == pytest.approx(16) and one.isfinite().all()
    wide = noisy(inflate=torch.tensor([2.0, 3.0, 4.0]))
    assert (wide.covariance[0] / one)[:, 0, 0].tolist() == pytest.approx([2, 3, 4]) and torch.equal(
        wide.points, noisy().points
    )


def test_noise_is_what_the_covariance_says():
    "With new noise on the heatmaps each time, the points spread as the fit's covariance predicts."
    torch.manual_seed(0)
    found = Predictor((Noisy(), Config(size=128, depth=3)), scheme=RGB)([spots()] * 300, boxes=BOX.repeat(300, 1))
    spread, said = found.points.var(0), found.covariance.diagonal(dim1=-2, dim2=-1).median(0).values
    assert (spread / said).numpy() == pytest.approx(1, abs=0.35) and (found.points.mean(0) - SPOTS).abs().max() < 0.05


def test_mirrored_photo_gives_mirrored_points():
    photo, box = spots()[:, ::-1].copy(), BOX.clone()
    box[:, [0, 2]] = 199 - BOX[:, [2, 0]]
    for options in ({}, dict(flip=True)):
        here, there = colours(**options)(spots(), boxes=BOX).points, colours(**options)(photo, boxes=box).points
        assert (199 - there[..., 0] - here[..., 0]).abs().max() < 2e-3 and (
            there[..., 1] - here[..., 1]
        ).abs().max() < 2e-3


def test_flip_exchanges_pairs():
    "A network whose first two landmarks are left and right of the middle: a mirrored view exchanges them."

    class Sides(nn.Module):
        points = 3

        def forward(self, images):
            grey = nn.functional.avg_pool2d(images.amax(1, keepdim=True), 4)
            left = (torch.arange(grey.shape[-1]) < grey.shape[-1] // 2).to(grey)
            return [torch.cat([grey * left, grey * (1 - left), grey], 1)]

    points = torch.tensor([[70.3, 90.0], [122.6, 90.0], [122.6, 90.0]], dtype=torch.float64)
    picture = spots(points[:2].repeat(2, 1)[:3]).max(-1)
    net = Sides(), Config(size=128, depth=3)
    pair = Predictor(net, scheme=Scheme('pair', 3, ((0, 1),)), flip=True)
    box = [60.0, 60.0, 133.0, 120.0]
    assert (pair(picture, boxes=box).points[0, :2] - points[:2]).abs().max() < 0.05
    wrong = Predictor(net, scheme=Scheme('none', 3, ()), flip=True)(
        picture, boxes=box
    )  # without pairs, half peaks on either side
    assert wrong.score[0, :2].max() < 0.6 < pair(picture, boxes=box).score[0, :2].min()


def test_as_training_predicts():
    faces = synthetic_faces(5, seed=9, size=64)
    config = configure(dataset='synthetic', size=64, depth=2, width=16)
    net = build_network(config, 68)
    for head in net.heads:
        nn.init.normal_(head.weight, std=1.0)  # a new network's answers are nearly 0
    for decoder in ('gaussian', 'local', 'argmax', 'quarter'):
        kept = predict(net.eval(), faces, decoders=[decoder])[0][decoder]
        found = Predictor((net, config), decoder=decoder, batch=2)(
            torch.from_numpy(faces.images), boxes=landmark_box(faces.points, faces.visible)
        )
        assert (found.points - kept).abs().max() < 1e-3, decoder


@pytest.mark.parametrize('stride', [4, 8, 16])
def test_points_of_every_stride_are_where_the_spots_are(stride):
    "A pixel of a map is the mean of stride x stride px, so an answer that is off by half a heatmap px would show."
    net = Colours(stride), Config(size=128, depth=1, stride=stride)
    photo = spots(sigma=stride)  # about as wide in heatmap px at each stride
    for options in (dict(), dict(flip=True)):
        found = Predictor(net, scheme=RGB, **options)(photo, boxes=BOX)
        assert (found.points[0] - SPOTS).abs().max() < 0.1, options
    covariance = Predictor(net, scheme=RGB)(photo, boxes=BOX).covariance
    assert covariance.isfinite().all()


# What may be given


def test_every_way_to_give_photos_and_boxes(tmp_path):
    photo, p = np.rint(255 * spots()).astype(np.uint8), colours(batch=2)
    right = p(photo, boxes=BOX).points
    Image.fromarray(photo).save(tmp_path / 'a.png')
    Image.fromarray(photo).save(tmp_path / 'b.png')
    tensor = torch.from_numpy(photo).movedim(-1, 0)
    for given in (BOX, BOX[0], BOX.tolist(), BOX[0].tolist(), BOX.numpy(), [BOX], {'photo-1': BOX[0]}):
        for one in (photo, tensor, Image.fromarray(photo)):
            assert torch.equal(p(one, boxes=given).points, right)
    for many, names in (
        ([photo] * 3, ['photo-1', 'photo-2', 'photo-3']),
        (torch.stack([tensor] * 3), None),
        (np.stack([photo] * 3), None),
    ):
        for given in (BOX.repeat(3, 1), [BOX] * 3, [BOX[0]] * 3, BOX.repeat(3, 1).numpy()):
            found = p(many, boxes=given)
            assert (
                torch.equal(found.points, right.expand(3, -1, -1))
                and found.names == (names or found.names)
                and len(found) == 3
            )
    found = p(tmp_path, boxes={'b.png': BOX, 'a.png': torch.cat([BOX, BOX + 1])})
    assert (
        found.names == ['a.png', 'a.png', 'b.png']
        and found.faces == [0, 1, 0]
        and found.photos == {'a.png': (200, 180), 'b.png': (200, 180)}
    )
    assert torch.equal(found.boxes, torch.cat([BOX, BOX + 1, BOX])) and len(p(photo, boxes=np.zeros((0, 4)))) == 0


def test_batches_do_not_matter():
    photos = [spots(SPOTS + i) for i in range(5)]
    boxes = torch.stack([BOX[0] + i for i in range(5)])
    alone = colours(batch=1)(photos, boxes=boxes)
    assert (colours(batch=16)(photos, boxes=boxes).points - alone.points).abs().max() < 1e-4


@pytest.mark.parametrize(
    'boxes, message',
    [
        ([[0, 0, 10]], 'photo-1: boxes are x1 y1 x2 y2'),
        ([[10, 10, 5, 50]], 'x1 < x2'),
        ([[10, 10, 50, 10]], 'y1 < y2'),
        ([[0, 0, math.nan, 5]], 'finite'),
        ({'other': [0, 0, 9, 9]}, 'boxes for photos that are not there: other'),
        ([[0, 0, 9, 9], None], '2 entries for 1 photos'),
    ],
)
def test_bad_boxes(boxes, message):
    with pytest.raises(ValueError, match=message):
        colours()(spots(), boxes=boxes)


def test_boxes_that_miss_the_photo():
    for box in ([500, 20, 600, 120], [20, -300, 120, -200], [-9e5, -9e5, 9e5, 9e5]):
        with pytest.raises(DataError, match='photo-1: a face in a square of .* does not fit a photo of 200 x 180 px'):
            colours()(spots(), boxes=box)
    with pytest.raises(ValueError, match='2 entries for 3 photos'):
        given_boxes([BOX, BOX], ['a', 'b', 'c'])


# No face, several, and where boxes come from


def test_no_face_gives_no_rows():
    nobody = Detector(lambda pixels: ([], []), Crop('mine', 1.0))
    with pytest.warns(UserWarning, match='no face found in 2 of 2 photos: photo-1, photo-2'):
        found = colours(detector=nobody)([spots(), spots()])
    assert len(found) == 0 and found.points.shape == (0, 3, 2) and found.empty == ['photo-1', 'photo-2']


def test_found_boxes_get_two_passes():
    "A detector that errs by a fifth of the face; the second pass is cut around the landmarks of the first."
    seen = Detector(
        lambda pixels: ([tuple((BOX[0] + 11).tolist()), (5, 5, 30, 30)], [1.0, 1.0]), Crop('mine', 1.2), least=20
    )  # 20: the photo is not scaled
    once, twice = colours(detector=seen, passes=1)(spots()), colours(detector=seen)(spots())
    assert len(once) == len(twice) == 2 and twice.faces == [0, 1]
    assert (twice.boxes[0] - BOX[0]).abs().max() < 0.5 < 5 < (once.boxes[0] - BOX[0]).abs().max()
    assert (twice.points[0] - SPOTS).abs().max() < 0.04
    mixed = colours(detector=seen)([spots(), spots(), spots()], boxes=[None, BOX, None])
    assert mixed.names == ['photo-1', 'photo-1', 'photo-2', 'photo-3', 'photo-3'] and torch.equal(
        mixed.boxes[2], BOX[0]
    )


def test_refined_boxes_by_hand():
    boxes = torch.tensor([[0.0, 0.0, 100.0, 100.0]] * 4)
    points = torch.tensor(
        [
            [[10.0, 20.0], [90.0, 80.0]],
            [[40.0, 40.0], [60.0, 60.0]],
            [[70.0, 70.0], [160.0, 160.0]],
            [[-90.0, 0.0], [150.0, 10.0]],
        ]
    )
    assert refine_boxes(boxes, points).tolist() == [
        [10, 20, 90, 80],
        [0, 0, 100, 100],
        [0, 0, 100, 100],
        [0, 0, 100, 100],
    ]  # fine, small, away, large


def test_bad_photos_in_a_folder(tmp_path):
    for name in 'abc':
        Image.fromarray(np.rint(255 * spots()).astype(np.uint8)).save(tmp_path / f'{name}.png')
    (tmp_path / 'b.png').write_bytes((tmp_path / 'b.png').read_bytes()[:200])
    boxes = {f'{n}.png': BOX for n in 'abc'}
    with pytest.raises(DataError, match='b.png: not a readable photo'):
        colours()(tmp_path, boxes=boxes)
    with pytest.warns(UserWarning, match='1 of 3 photos are left out\n  b.png'):
        found = colours()(tmp_path, boxes, on_error='skip')
    assert found.names == ['a.png', 'c.png'] and set(found.photos) == {'a.png', 'c.png'}
    with pytest.raises(ValueError, match="unknown on_error 'ignore'"):
        colours()(tmp_path, boxes, on_error='ignore')
    with pytest.raises(DataError, match='NaN'):
        colours()(np.full((9, 9), np.nan), boxes=BOX)


def test_small_and_cut_faces_are_answered():
    tiny = (SPOTS + 0.5) * 0.3 - 0.5  # 17 px
    found = colours()(spots(tiny, (60, 54), 1.0), boxes=landmark_box(tiny))
    assert (found.points - tiny).abs().max() < 0.1
    photo = spots()[:, :100]  # the green spot, at x 122.6, is outside
    found = colours()(photo, boxes=BOX)
    assert (found.points[0, [0, 2]] - SPOTS[[0, 2]]).abs().max() < 0.5 and found.score[0, 1] < 0.1 < 0.8 < found.score[
        0, 0
    ]
    assert not (found.covariance[0, 1].diagonal() < 1).any()


# Checkpoints and options


@pytest.fixture
def run(tmp_path):
    "A run's folder with the weights of a new network of 68 landmarks."
    config = configure(dataset='synthetic', size=64, depth=2, width=8, stacks=1)
    save_weights(tmp_path / 'weights.safetensors', build_network(config, 68), config, synthetic_faces(1, size=64))
    return tmp_path


def test_checkpoints_by_folder_file_and_name(run, monkeypatch):
    for given in (run, str(run), run / 'weights.safetensors'):
        net, config, scheme, learnt = load_network(given)
        assert learnt is None and net.points == 68 and config.size == 64 and scheme is SCHEMES[68] and not net.training
    assert Predictor(run, flip=True)(np.zeros((90, 90), np.uint8), boxes=[20, 20, 70, 70]).points.shape == (1, 68, 2)
    monkeypatch.setattr(
        checkpoints, 'shipped_models', lambda: {'small': run / 'weights.safetensors', 'other': run / 'x'}
    )
    assert find_checkpoint('small') == run / 'weights.safetensors'
    with pytest.raises(FileNotFoundError, match='large: no weights there.*the models that ship are: small, other'):
        find_checkpoint('large')
    with pytest.raises(FileNotFoundError, match='weights'):
        find_checkpoint(run / 'nowhere')


def test_a_name_stands_for_one_photo(tmp_path):
    two = [read_photo(spots()), read_photo(np.zeros((180, 200, 3), np.uint8))]
    found = colours()(two, boxes=[BOX, BOX + 20])
    assert found.names == ['photo-1', 'photo-2'] and (found.boxes[1] - found.boxes[0]).tolist() == [20] * 4
    read_photo(spots()).image.save(tmp_path / 'a.png')
    with pytest.raises(ValueError, match='a.png: given twice'):
        colours()([tmp_path / 'a.png'] * 2, boxes=[BOX, BOX])
    assert len(colours()([tmp_path / 'a.png'], boxes={tmp_path / 'a.png': BOX})) == 1
    with pytest.raises(ValueError, match='boxes for photos that are not there: b.png; there are a.png'):
        colours()(tmp_path, boxes={'b.png': BOX})


def test_skipping_goes_on(tmp_path):
    "A photo that is missing, one that its box misses, and a good one."
    read_photo(spots()).image.save(tmp_path / 'a.png')
    read_photo(spots()).image.save(tmp_path / 'b.png')
    paths, boxes = [str(tmp_path / name) for name in ('none.png', 'a.png', 'b.png')], [BOX, BOX + 1000, BOX]
    with pytest.warns(
        UserWarning, match='(?s)2 of 3 photos are left out.*none.png.*a.png: a face in a square .* does not fit'
    ):
        found = colours()(paths, boxes=boxes, on_error='skip')
    assert found.names == [paths[2]] and (found.points - SPOTS).abs().max() < 0.04
    with pytest.raises(FileNotFoundError):
        colours()(paths, boxes=boxes)
    with pytest.raises(DataError, match='does not fit'):
        colours()(paths[1:], boxes=boxes[1:])


@pytest.mark.parametrize('crop', ['hrnet', 'fan'])
def test_boxes_of_another_kind_become_landmark_boxes(crop):
    "Their square is cut by their own rule; the next pass and the boxes of the result follow the checkpoint's."
    asked = colours(crop=crop)(spots(), boxes=BOX)
    squares = crop_square(BOX, crop)
    assert torch.allclose(crop_square(asked.boxes, 'paper'), squares)
    assert (colours(crop=crop, passes=2)(spots(), boxes=BOX).points - SPOTS).abs().max() < 0.04
    rule = Crop('x', 1.5, 'sum', 0.1)
    assert torch.allclose(crop_square(box_of_square(squares, rule), rule), squares)


def test_small_faces_are_asked_for():
    "`smallest` reaches the detector: a face of 20 px is found where the photo is enlarged for it."
    least = []
    eye = Detector(lambda pixels: (least.append(pixels.shape[:2]) or [], []), Crop('x', 1.0), least=80)
    with pytest.warns(UserWarning, match='no face found .* look for smaller ones with `smallest`'):
        for smallest in (None, 20):
            colours(detector=eye, smallest=smallest)(spots())
    turned = [(180, 200), (200, 180), (180, 200), (200, 180)]  # no face was found upright
    assert least == turned + [(4 * h, 4 * w) for h, w in turned]
    with pytest.raises(ValueError, match="unknown detector 'dlibb'; known: dlib"):
        colours(detector='dlibb')
    assert colours(detector=lambda photo: (BOX.numpy(), [1.0]))(spots()).points.shape == (1, 3, 2)


def test_a_checkpoint_keeps_the_covariances_that_were_learnt_for_it(tmp_path):
    "In a view of 128 px around the face they are B_k a^p s^q times the stride and the square's scale, squared."
    net, config, _, _ = load_network('synthetic')
    face = synthetic_faces(1, seed=3, size=128)
    learnt = Covariances(torch.linspace(1, 2, 68)[:, None, None] * torch.tensor([[2.0, 0.3], [0.3, 1.0]]), (-2.0, 1.0))
    save_weights(tmp_path / 'weights.safetensors', net, config, face, covariances=learnt.as_dict())
    photo, box = torch.from_numpy(face.images[0]), landmark_box(face.points)
    p, plain = Predictor(tmp_path), Predictor(tmp_path, inflate=1.0)
    square = crop_square(box, config.crop)
    heatmaps = p.reader.heatmaps(torch.from_numpy(cut_square(read_photo(photo), square[0], 128))[None])
    fit = gaussian_fit(heatmaps)
    expected = learnt.base * (fit.amplitude**-2 * fit.sigma)[0, :, None, None] * (4 * square[0, 2] / 128) ** 2
    found = p(photo, boxes=box).covariance[0]
    fitted = plain(photo, boxes=box).covariance[0]
    known = fitted.isfinite().all(-1).all(-1)
    assert known.sum() > 60 and torch.allclose(found[known].float(), expected[known], rtol=1e-3)
    four = Predictor(tmp_path, inflate=4.0)(photo, boxes=box).covariance[0]
    assert torch.allclose(four[known], 4 * fitted[known])
    assert torch.allclose(Predictor((net, config))(photo, boxes=box).covariance[0][known], fitted[known])


@pytest.mark.parametrize(
    'option, said',
    [
        (dict(flip='no'), "flip: expected bool, got str 'no'"),
        (dict(flip=None), 'flip: expected bool, got NoneType None'),
        (dict(tau='10'), "tau: expected float, got str '10'"),
        (dict(tau=0), 'tau: expected a positive number, got 0'),
        (dict(tau=True), 'tau: expected float, got bool True'),
        (dict(window=4), 'window: expected an odd number, got 4'),
        (dict(sigma=math.nan), 'sigma: expected a positive number, got nan'),
        (dict(smallest=-5), 'smallest: expected a positive number, got -5'),
        (dict(inflate=-1), 'inflate: expected a positive number'),
        (dict(inflate=torch.tensor([1.0, 0.0])), 'inflate: expected a positive number or a tensor'),
        (dict(detector=3), 'unknown detector 3'),
        (dict(crop=1.2), 'unknown crop 1.2'),
        (dict(scheme='68'), "scheme: expected a Scheme, got '68'"),
        (dict(device='gpu'), "unknown device 'gpu'"),
    ],
    ids=str,
)
def test_options_are_checked_when_the_predictor_is_made(option, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        Predictor((Colours(), Config(size=128, depth=3)), **dict(scheme=RGB) | option)


@pytest.mark.parametrize('empty', ['', '  '])
def test_an_empty_path_is_not_the_working_folder(empty, tmp_path, monkeypatch):
    read_photo(spots()).image.save(tmp_path / 'a.png')
    save_file({}, tmp_path / 'weights.safetensors')
    monkeypatch.chdir(tmp_path)
    for act in (lambda: colours()(empty), lambda: read_photo(empty), lambda: colours()([empty])):
        with pytest.raises(ValueError, match='an empty path where a photo or a folder is expected'):
            act()
    with pytest.raises(FileNotFoundError, match='no weights there'):
        Predictor(empty)
    assert colours()('.', boxes=[BOX]).names == ['a.png']


def test_a_read_only_array_of_boxes_is_no_one_elses_warning():
    boxes = BOX.numpy().copy()
    boxes.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        colours()(spots(), boxes=boxes)


# Faces that lean


@pytest.mark.parametrize('roll', [0.0, 33.0, 90.0, -140.0, 180.0])
def test_a_leaning_face_is_read_upright(roll):
    "The photo is turned, and the detector says how the face leans: points and covariances turn with it."
    corners = (BOX[0, :2] + BOX[0, 2:])[None] / 2
    leaning, (*points, middle) = turned_photo(read_photo(spots()), torch.cat([SPOTS, corners]), roll)
    points = torch.stack(points)
    size = (BOX[0, 2:] - BOX[0, :2]) / 2
    box = torch.cat([middle - size, middle + size])
    one = torch.tensor([roll], dtype=torch.float64)
    seen = Detections(box[None].double(), torch.ones(1), one, (one / 90).round() % 4 * 90)
    p = colours(detector=lambda photo: seen)
    p.reader.covariances = Covariances(torch.tensor([[[4.0, 1.0], [1.0, 2.0]]] * 3), (0.0, 0.0))
    found = p(leaning)
    assert (found.points[0] - points).norm(dim=-1).max() < 0.15 and found.rolls.tolist() == [roll]
    turn = angle_to_rotation_matrix(torch.tensor(-roll, dtype=torch.float64))
    scale = crop_square(found.boxes)[0, 2] / 32  # photo px in a pixel of the heatmap
    expected = turn @ torch.tensor([[4.0, 1.0], [1.0, 2.0]], dtype=torch.float64) @ turn.T * scale**2
    assert torch.allclose(found.covariance[0], expected.expand(3, 2, 2))


def test_the_next_pass_takes_the_roll_of_the_eyes():
    "Eyes 0 and 1: a line that falls by 30 degrees. Too close, too far from the last roll, or no eyes named: it stays."
    scheme = Scheme('three', 3, ((0, 1),), eyes=((0,), (1,)))
    box = torch.tensor([[0.0, 0.0, 100.0, 100.0]], dtype=torch.float64)
    fall = torch.tensor([math.cos(math.radians(30)), math.sin(math.radians(30))], dtype=torch.float64)
    points = torch.stack([30 + 0 * fall, 30 + 40 * fall, 60 + 0 * fall])[None]
    for marks, roll, expected in (
        (points, 20.0, 30.0),
        (points, 380.0, 390.0),
        (points, 100.0, 100.0),
        (points * torch.tensor(0.3), 20.0, 20.0),
    ):
        found = refine_rolls(torch.tensor([roll], dtype=torch.float64), box, marks, scheme)
        assert found.tolist() == pytest.approx([expected])
    assert refine_rolls(torch.tensor([7.0]), box, points, RGB).tolist() == [7.0]


def test_boxes_of_leaning_faces_by_hand():
    "A square of landmarks, turned by 45 degrees, has its own tight box again when looked at upright."
    corners = torch.tensor([[[0.0, 0.0], [80.0, 0.0], [80.0, 40.0], [0.0, 40.0]]], dtype=torch.float64)
    rolls = torch.tensor([45.0], dtype=torch.float64)
    leaning = turn_about(corners, torch.tensor([100.0, 50.0], dtype=torch.float64), rolls[:, None])
    middle = leaning.mean(1)[0]
    assert torch.allclose(
        leaning_boxes(leaning, rolls)[0],
        torch.cat([middle - torch.tensor([40.0, 20.0]), middle + torch.tensor([40.0, 20.0])]),
    )
    fan = CROPS['fan']  # its rule lifts the square: in a leaning face, along the face
    squares = turned_squares(leaning_boxes(leaning, rolls), rolls, fan)
    assert torch.allclose(turned_squares(box_of_square(squares, fan, rolls), rolls, fan), squares)
    boxes = convert_boxes(leaning_boxes(leaning, rolls), 'fan', 'paper', rolls)
    assert torch.allclose(turned_squares(boxes, rolls, 'paper'), squares)


def test_a_stop_in_the_middle_keeps_what_was_found():
    "Ctrl-C at the fourth photo: the batches before it are returned, and a warning says how many photos they are."
    asked = []

    def tired(photo):
        asked.append(photo.name)
        if len(asked) == 4:
            raise KeyboardInterrupt
        return BOX.numpy(), [1.0]

    with pytest.warns(UserWarning, match='stopped: what was found in 2 of 6 photos is kept'):
        found = colours(detector=tired, batch=2)([spots()] * 6)
    assert found.names == ['photo-1', 'photo-2'] == list(found.photos)


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.filterwarnings('ignore:300w. trained on 300-W')
@pytest.mark.parametrize('name, worst, held', [('synthetic', 4.9, (88, 95)), ('300w', 3.15, (93, 97))])
def test_the_networks_that_ship(shared_data, name, worst, held):
    "On the 554 common faces of 300W, in true boxes: what the card says, at most `worst`; 95 % ellipses hold `held`."
    path = find_checkpoint(name)
    assert path.stat().st_size <= 2e6
    card = path.with_suffix('.md').read_text()
    stated = float(re.search(r'^\| 300W common \| bf16 \|.*\| ([\d.]+) \|$', card, re.M)[1])
    common = read_split('300w', 'common', shared_data / '300w')
    truth = torch.stack([face.points for face in common])
    found = Predictor(name)(
        {face.name: face.photo for face in common}, boxes={face.name: landmark_box(face.points) for face in common}
    )
    error = nme(found.points, truth, normaliser(truth, None, 'ic', SCHEMES[68])).mean().item()
    assert len(common) == 554 and error == pytest.approx(stated, abs=0.03) and error < worst
    half, most = held_shares(squared_mahalanobis(truth - found.points, found.covariance), (0.5, 0.95))
    assert 0.45 < half < 0.6 and held[0] < 100 * most < held[1]


def test_a_network_whose_use_is_restricted_says_so(tmp_path):
    net, config, _, _ = load_network('synthetic')
    save_weights(tmp_path / 'weights.safetensors', net, config, synthetic_faces(1, size=64), terms='for research only')
    with pytest.warns(UserWarning, match='weights: for research only'):
        Predictor(tmp_path)
    card = find_checkpoint('300w').with_suffix('.md').read_text()
    assert 'Trained on 300-W, for research only, by the terms of that dataset' in card
    with pytest.warns(UserWarning, match='300w: trained on 300-W, for research only, by the terms of that dataset'):
        Predictor('300w')


def test_files_that_are_no_checkpoint(run, tmp_path):
    whole = (run / 'weights.safetensors').read_bytes()
    (tmp_path / 'cut.safetensors').write_bytes(whole[:-100])
    (tmp_path / 'pickle.pth').write_bytes(b'\x80\x04 a pickle')
    save_file({'a': torch.zeros(2)}, tmp_path / 'foreign.safetensors')
    for name, message in (
        ('cut.safetensors', 'not a readable safetensors'),
        ('pickle.pth', 'not a readable safetensors'),
        ('foreign.safetensors', 'without our config'),
    ):
        with pytest.raises(ValueError, match=f'{name}: .*{message}'):
            Predictor(tmp_path / name)
    tensors = load_file(run / 'weights.safetensors')
    with safe_open(run / 'weights.safetensors', 'pt') as file:
        about = file.metadata()
    save_file(tensors, tmp_path / 'others.safetensors', about | {'points': '98'})
    with pytest.raises(
        ValueError, match='others.safetensors: its weights do not fit the network that its config describes'
    ):
        Predictor(tmp_path / 'others.safetensors')
    save_file(tensors, tmp_path / 'worse.safetensors', about | {'config': '{"layers": 3}'})
    with pytest.raises(ValueError, match='worse.safetensors'):
        Predictor(tmp_path / 'worse.safetensors')


def test_other_landmark_counts(tmp_path):
    config = configure(dataset='synthetic', size=64, depth=2, width=8, stacks=1)
    photo, box = np.zeros((90, 90), np.uint8), [20, 20, 70, 70]
    for count in (98, 51):
        net = build_network(config, count), config
        assert Predictor(net)(photo, boxes=box).points.shape == (1, count, 2)
    assert Predictor((build_network(config, 98), config), flip=True).reader.permutation is not None
    with pytest.raises(ValueError, match='flip: the mirror pairs of 51 points are not known. Give the scheme'):
        Predictor(net, flip=True)
    with pytest.raises(ValueError, match='scheme 68 has 68 landmarks, the network answers 51'):
        Predictor(net, scheme=SCHEMES[68])
    faces = dataclasses.replace(
        synthetic_faces(1, size=64), scheme=Scheme('mine', 68, ((0, 1),))
    )  # 68 points, but others
    save_weights(tmp_path / 'weights.safetensors', build_network(config, 68), config, faces)
    assert load_network(tmp_path)[2] == Scheme('mine', 68)
    with pytest.raises(ValueError, match='flip: the mirror pairs of mine are not known'):
        Predictor(tmp_path, flip=True)


@pytest.mark.parametrize(
    'options, message',
    [
        (dict(decoder='gausian'), "unknown decoder 'gausian'; known: gaussian"),
        (dict(precision='half'), "unknown precision 'half'"),
        (dict(crop='papr'), 'unknown crop'),
        (dict(batch=0), 'batch: expected a positive number, got 0'),
        (dict(passes=0), 'passes'),
        (dict(batch=2.0), 'batch'),
        (dict(views=[(45.0, 1.0)]), 'views: expected up to 30 degrees'),
        (dict(views=[(0.0, 0.5)]), 'views'),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        colours(**options)


def test_options_are_checked_before_the_checkpoint_is_read_and_stay():
    with pytest.raises(ValueError, match="unknown decoder 'gausian'"):
        Predictor('no such checkpoint', decoder='gausian')
    with pytest.raises(TypeError, match="unknown option 'flips'; known: flip"):
        Predictor('no such checkpoint', flips=True)
    with pytest.raises(TypeError):
        Options('cpu')  # by name only
    p = colours(decoder='local', tau=3.0)
    with pytest.raises(dataclasses.FrozenInstanceError):
        p.options.decoder = 'argmax'
    o = p.options
    assert (o.decoder, o.tau, o.window, o.sigma, o.crop) == ('local', 3.0, 5, 1.5, 'paper')  # the rest: the config's
    assert p.reader.options is p.options and p.net is p.reader.net and (p.reader.size, p.reader.margin) == (128, 0)


def test_a_reader_decodes_in_another_way_on_request():
    p, maps = colours(decoder='argmax'), torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    for decoder in ('local', 'gaussian'):
        other = colours(decoder=decoder).reader.read(maps)
        assert all(torch.equal(a, b) for a, b in zip(p.reader.read(maps, decoder), other))
    assert torch.equal(p.reader.read(maps)[0], p.reader.read(maps, 'argmax')[0])


@pytest.mark.parametrize('degrees, scale, mirrored', [(0, 1, True), (20, 1, False), (-10, 0.9, True), (5, 1.1, False)])
def test_views_are_moved_back(degrees, scale, mirrored):
    "The upright view's heatmaps, moved forward as the view moves, meet those of the view where it sees: by hand."
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(2, 3, 8, 8, generator=generator)
    crops = (255 * nn.functional.interpolate(coarse, 208, mode='bicubic').clamp(0, 1)).to(torch.uint8)
    permutation = torch.tensor([1, 0, 2]) if mirrored else None
    seen_by_network = []

    def network(images):
        seen_by_network.append(images)
        maps = nn.functional.avg_pool2d(images, 4)
        return maps[:, [1, 0, 2]] if mirrored else maps  # the mirrored view's left is the upright one's right

    back, mask = view_heatmaps(network, crops, 128, degrees, scale, permutation)
    upright, everywhere = upright_heatmaps(lambda images: nn.functional.avg_pool2d(images, 4), crops, 128)
    assert mask.shape == (2, 1, 32, 32) and mask.float().mean() > 0.7 and everywhere.all()
    assert seen_by_network[0].shape == (2, 3, 128, 128) and 0 <= seen_by_network[0].min() and upright.max() <= 1
    assert ((back - upright).abs() * mask).max() < 0.06 and (back - upright).abs()[mask.expand_as(back)].mean() < 0.01
    view = similarity(*(torch.full((2,), float(v)) for v in (degrees, scale, mirrored)), 128)
    forward = warp(upright, on_heatmap(view, 4), 32)[:, :, 12:20, 12:20]
    assert (forward - nn.functional.avg_pool2d(seen_by_network[0], 4)[:, :, 12:20, 12:20]).abs().max() < 0.06


def test_faces_one_by_one_with_boxes_of_another_rule():
    "`predict_faces` is the batch of a call."
    p, photo = colours(), read_photo(spots(), 'x')
    found = p.predict_faces([BoxedFace(photo, BOX[0]), BoxedFace(photo, BOX[0] + 3)], 'hrnet', 2)
    assert found.names == ['x', 'x'] and (found.points - SPOTS).abs().max() < 0.04
    assert torch.equal(convert_boxes(BOX, 'hrnet', 'hrnet'), BOX)
    assert torch.allclose(crop_square(convert_boxes(BOX, 'fan', 'paper'), 'paper'), crop_square(BOX, 'fan'))


def test_given_boxes_have_a_crop_of_their_own():
    "Boxes of another detector, with a rule that says what they are."
    shifted = BOX.clone()
    shifted[:, [1, 3]] -= 0.2 * (BOX[:, 3] - BOX[:, 1])
    side = (BOX[0, 2:] - BOX[0, :2]).max() / (BOX[0, 3] - BOX[0, 1])
    rule = Crop('theirs', 256 / 220, lift=-0.2)
    assert (
        colours(crop=rule)(spots(), boxes=shifted).points - colours()(spots(), boxes=BOX).points
    ).abs().max() < 1e-6 and side >= 1


def test_a_diverged_network_says_so():
    class Broken(Colours):
        def forward(self, images):
            return [nn.functional.avg_pool2d(images, 4) * math.nan]

    with pytest.raises(ValueError, match='3 of 3 heatmaps hold NaN or infinity'):
        Predictor((Broken(), Config(size=128, depth=3)), scheme=RGB)(spots(), boxes=BOX)


def test_seconds_are_told_by_stage():
    p = colours()
    p(spots(), boxes=BOX)
    assert set(p.seconds) == {'read', 'crop', 'network', 'decode'} and min(p.seconds.values()) > 0


def test_no_warning_where_all_is_well():
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        colours(views=[(5.0, 1.0)], flip=True)(spots(), boxes=BOX)
