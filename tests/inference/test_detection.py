"From a detector's box to a landmark box by hand, with made-up detectors, and dlib where it is installed."

import sys

import numpy as np
import pytest
import torch

from subpixel_nb.codec.geometry import Crop, crop_square, landmark_box
from subpixel_nb.data.crops import open_photo
from subpixel_nb.data.datasets import read_split
from subpixel_nb.inference.detection import (
    DLIB_RULE,
    KNOWN_DETECTORS,
    Detector,
    as_landmark_boxes,
    dlib_hog,
    find_detector,
    fit_rule,
)
from subpixel_nb.inference.photos import read_photo


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
        ImportError, match=r"pip install 'subpixel_nb\[detector\]', or say where the faces are with `boxes`"
    ):
        find_detector('dlib')


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
