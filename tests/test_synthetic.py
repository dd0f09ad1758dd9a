"The drawn faces: exact areas, no seams, landmarks where the picture has them, the crop rule, visibility, repeatability."
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from subpixel_nb.datasets import CATALOGUE, SCHEMES, load_faces
from subpixel_nb.geometry import crop_square, flip_permutation, landmark_box, square_map
from subpixel_nb.synthetic import (AZIMUTH, LAYOUT, SPLITS, Head, Path, Portrait, close_up, coverage, curve, draw, find_corner, find_edge,
                                   image_shift, paint, render, sample_portrait, smooth, synthetic_faces)

PARTNER = flip_permutation(SCHEMES[68].pairs, 68).numpy()


def plain(index: int, **changes) -> Portrait:
    "A random face without anything that hides it."
    return replace(sample_portrait(5, index), texture=None, hair='bald', glasses=0., **changes)


def polygon(size: float, corners: int, seed: int) -> np.ndarray:
    "A random star-shaped polygon about (0, 0)."
    rng = np.random.default_rng(seed)
    turn = (np.arange(corners) + rng.uniform(0, .45, corners)) * 2 * np.pi / corners
    return size * rng.uniform(.3, 1, (corners, 1)) * np.stack([np.cos(turn), np.sin(turn)], 1)


def area_of(q: np.ndarray) -> float:
    a, b = q, np.roll(q, -1, 0)
    return abs((a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]).sum()) / 2


def filled(outline: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    boxes, areas = coverage([outline], size)
    full = np.zeros(size)
    x0, y0, x1, y1 = boxes[0]
    full[y0:y1, x0:x1] = areas[0]
    return full


# coverage

@settings(max_examples=60, deadline=None)
@given(st.floats(.2, 9), st.integers(3, 12), st.integers(0, 999), st.floats(10, 14), st.floats(10, 14))
def test_coverage_has_the_polygons_area(size, corners, seed, x, y):
    q = polygon(size, corners, seed) + (x, y)
    assert filled(q, (24, 24)).sum() == pytest.approx(area_of(q), abs=2e-4)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 999), st.floats(-6, 22), st.floats(-6, 22))
def test_coverage_is_cut_at_the_canvas_without_a_change_inside(seed, x, y):
    q = polygon(8, 7, seed)
    whole = filled(q + (x + 24, y + 24), (72, 72))[24:40, 24:44]
    assert np.abs(filled(q + (x, y), (16, 20)) - whole).max() < 1e-5


def test_coverage_of_corners_on_the_grid():
    square = np.array([(1, 1), (3, 1), (3, 2), (1, 2)], float)
    assert filled(square, (4, 5)).tolist() == [[0] * 5, [0, 1, 1, 0, 0], [0] * 5, [0] * 5]
    assert filled(square[::-1] + .5, (4, 5))[1:3, 1:4].tolist() == [[.25, .5, .25]] * 2


def test_a_child_is_cut_at_its_parents_box():
    boxes, areas = coverage([np.array([(2, 2), (5, 2), (5, 5), (2, 5)], float), np.array([(0, 0), (9, 0), (9, 4), (0, 4)], float)], (9, 9), [-1, 0])
    assert boxes[1].tolist()[:2] == [2, 2] and boxes[1][2] <= boxes[0][2] and (areas[1][:2] == 1).all()


def test_every_polygon_of_many_faces_can_be_drawn():
    for i in range(25):                                        # corners on the grid, slivers, shapes off the canvas
        image, points, visible = render(sample_portrait(11, i, difficulty=2), 32)
        assert image.dtype == np.uint8 and np.isfinite(points).all() and visible.sum() > 40


# paths

def test_curves_pass_through_their_points():
    q = np.random.default_rng(0).normal(size=(6, 2))
    assert np.allclose(curve(q)[::6], q) and np.allclose(curve(q, closed=True)[::6], q)


def test_sheets_leave_no_seam():
    canvas, box = np.zeros((3, 8, 8), np.float32), lambda y0, y1: np.array([(1, y0), (7, y0), (7, y1), (1, y1)])
    canvas[0] = 1
    paint(canvas, [Path(box(1, 7), (0, 0, 0), inside=[Path(box(3.7, 7), (1, 1, 1), fits=True)])], {}, 1, np.array((-.5, -.5)))
    assert np.allclose(canvas[:, 3, 4], .3) and np.allclose(canvas[:, 6, 4], 1)
    assert np.allclose(canvas[:, 1, 4], 0)


def test_smooth_moves_and_loses_nothing():
    image = np.zeros((1, 41, 41), np.float32)
    image[0, 20, 20] = 1
    out = smooth(image.copy(), 2.3)[0]
    i = np.arange(41)
    assert out.sum() == pytest.approx(1, abs=1e-5) and np.allclose(out, out[::-1, ::-1], atol=1e-7)
    assert out.sum(0) @ (i - 20) ** 2 == pytest.approx(2.3, rel=1e-3)


# layout, pose, visibility

def test_layout_is_its_own_mirror_image():
    assert LAYOUT.shape == (68, 3) and np.allclose(LAYOUT[PARTNER] * (-1, 1, 1), LAYOUT) and np.allclose(AZIMUTH[PARTNER], -AZIMUTH)


@pytest.mark.parametrize('yaw', (0, 10, 25, 40, 50, 60))
def test_visibility_is_symmetric_in_yaw(yaw):
    right, left = Head(Portrait(yaw=yaw)).visible, Head(Portrait(yaw=-yaw)).visible
    assert (right == left[PARTNER]).all()
    assert right[:9].all() and (right.all() or yaw > 30)       # the near side is never hidden


def test_turning_hides_more_and_more_and_the_far_side_first():
    hidden = [set(np.flatnonzero(~Head(Portrait(yaw=yaw)).visible)) for yaw in (0, 30, 40, 50, 60)]
    assert not hidden[0] and not hidden[1] and all(a < b for a, b in zip(hidden[1:], hidden[2:]))
    assert hidden[2] <= set(range(9, 17)) and 26 in hidden[3] and Head(Portrait(yaw=40), slide_limit=90).visible[:17].all()


@settings(max_examples=30, deadline=None)
@given(st.floats(-45, 45), st.floats(-20, 20), st.floats(-25, 25), st.floats(-.5, 1), st.floats(0, 1))
def test_mirrored_portraits_have_mirrored_landmarks(yaw, pitch, roll, smile, mouth):
    p = Portrait(yaw=yaw, pitch=pitch, roll=roll, smile=smile, mouth=mouth)
    q = replace(p, yaw=-yaw, roll=-roll)
    assert np.allclose(Head(q).points[PARTNER] * (-1, 1), Head(p).points, atol=1e-9)


def test_a_mirrored_portrait_is_the_mirrored_picture():
    p = replace(plain(3, yaw=22., roll=9., light_x=40., gaze_x=.4), hair='long', glasses=.3)
    q = replace(p, yaw=-22., roll=-9., light_x=-40., gaze_x=-.4)
    (a, points, seen), (b, other, also) = draw(p, 128), draw(q, 128)
    assert np.abs(a - b[..., ::-1]).max() < 2e-3
    assert np.allclose(points, (other * (-1, 1) + (a.shape[2] - 1, 0))[PARTNER]) and (seen == also[PARTNER]).all()


# the picture agrees with the landmarks

@pytest.mark.parametrize('size', (128, 256))
def test_four_times_as_large_is_the_same_picture(size):
    found = {name: [] for name in SCHEMES[68].regions}
    for i in range(4):
        p = plain(i)
        image, points, visible = draw(p, size)
        large, four, _ = draw(p, 4 * size)
        assert np.allclose((four + .5) / 4 - .5, points)
        side = image.shape[1]
        large = large.reshape(3, side, 4, side, 4).mean((2, 4))
        for name, part in SCHEMES[68].regions.items():
            found[name] += [np.hypot(*image_shift(image, large, points[k])) for k in part if visible[k]]
    everything = np.concatenate(list(found.values()))
    assert np.median(everything) < .005 and np.quantile(everything, .95) < .02
    for name in ('eyes', 'mouth', 'nose', 'brows'): assert np.quantile(found[name], .9) < .02, name


def test_image_shift_sees_a_shift_of_the_size_that_is_refused_above():
    a, points, _ = draw(Portrait(), 256)
    b, moved, _ = draw(Portrait(roll=.1), 256)
    for k in (36, 45, 48, 54):
        true, seen = moved[k] - points[k], image_shift(a, b, points[k])
        assert np.hypot(*true) > .05 and np.hypot(*(seen - true)) < .5 * np.hypot(*true)


@pytest.mark.parametrize('landmark, other, colour', ((36, 39, 'eye_white'), (39, 36, 'eye_white'), (42, 45, 'eye_white'),
                                                     (45, 42, 'eye_white'), (48, 54, 'lipstick'), (54, 48, 'lipstick')))
def test_corners_found_in_the_pixels_are_the_landmarks(landmark, other, colour):
    rng, errors = np.random.default_rng(landmark), []
    for i in range(10):
        p = plain(i, blink=0., gaze_x=0., yaw=sample_portrait(5, i).yaw / 2)
        q = Head(p).points
        picture, at = close_up(p, landmark)
        area = np.abs(picture - close_up(replace(p, **{colour: 0. if getattr(p, colour) > .5 else .9}), landmark)[0]).sum(0)
        way = (q[other] - q[landmark]) / np.hypot(*(q[other] - q[landmark])) + .05 * rng.normal(size=2)
        errors.append((find_corner(area, at + rng.uniform(-4, 4, 2), way, 30) - at) / 16)
    distance = np.hypot(*np.array(errors).T)
    assert np.isfinite(distance).sum() >= 8 and np.nanmedian(distance) < .02 and np.nanquantile(distance, .8) < .05


def test_edges_found_in_the_pixels_pass_through_the_landmarks():
    off = []
    for i in range(3):
        picture, points, visible = draw(plain(i, yaw=sample_portrait(5, i).yaw / 2), 1024)
        off += [abs(find_edge(picture, points[k])) / 4 for k in (*range(3, 14), 19, 24, 33, 50, 52, *range(55, 60)) if visible[k]]
    assert np.median(off) < .02 and np.quantile(off, .9) < .05


# the crop rule

@pytest.mark.parametrize('size, margin', ((128, None), (256, 0), (100, 17)))
def test_the_paper_crop_of_the_visible_points_is_the_field(size, margin):
    faces = synthetic_faces(6, 3, size, margin)
    margin = faces.margin
    assert faces.images.shape == (6, 3, size + 2 * margin, size + 2 * margin) and faces.crop == 'paper'
    squares = crop_square(landmark_box(faces.points.double(), faces.visible), 'paper')
    assert torch.allclose(squares, faces.squares, atol=1e-3)
    assert torch.allclose(square_map(squares, size, margin), torch.eye(3, dtype=torch.float64).expand(6, 3, 3), atol=1e-2)


def test_default_margin_is_that_of_the_cache():
    assert synthetic_faces(1, size=256).margin == 80 and synthetic_faces(1, size=128).margin == 40


# repeatability

def test_a_face_depends_on_its_number_alone():
    many, few = synthetic_faces(20, 4, 64), synthetic_faces(9, 4, 64, workers=2)
    assert (many.images[:9] == few.images).all() and (many.points[:9] == few.points).all() and many.names[:9] == few.names
    image, points, visible = render(sample_portrait(4, 13), 64)
    assert (many.images[13] == image).all() and np.allclose(many.points[13].numpy(), points, atol=1e-4)
    assert (many.visible[13].numpy() == visible).all()


def test_drawing_leaves_the_global_streams_alone():
    torch.manual_seed(3), np.random.seed(3)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    synthetic_faces(3, size=32)
    assert torch.equal(before[0], torch.get_rng_state()) and (before[1] == np.random.get_state()[1]).all()


def test_splits_and_seeds_share_no_face():
    faces = {(s, seed): sample_portrait(seed, 0, s) for s in SPLITS for seed in range(5)}
    faces |= {(s, -i): sample_portrait(0, i, s) for s in SPLITS for i in range(1, 5)}
    assert len(set(faces.values())) == len(faces)


def test_size_is_a_resolution_and_nothing_else():
    a, b = render(sample_portrait(4, 2), 64), render(sample_portrait(4, 2), 128)
    assert np.allclose((b[1] + .5) / 2 - .5, a[1]) and (a[2] == b[2]).all()


def test_knobs_change_what_they_say():
    q = {name: Head(p).points for name, p in dict(mean=Portrait(), open=Portrait(mouth=1), smile=Portrait(smile=1), up=Portrait(brow=1),
                                                  shut=Portrait(blink=1), right=Portrait(yaw=20), nod=Portrait(pitch=15)).items()}
    gap = lambda name, i, j: q[name][j, 1] - q[name][i, 1]
    assert gap('open', 62, 66) > gap('mean', 62, 66) + 2 and gap('shut', 37, 41) < .3 * gap('mean', 37, 41)
    assert q['smile'][54, 0] > q['mean'][54, 0] and q['smile'][54, 1] < q['mean'][54, 1] and q['up'][19, 1] < q['mean'][19, 1]
    assert q['right'][30, 0] > q['right'][27, 0] + .3 and gap('nod', 27, 30) > gap('mean', 27, 30)


def test_difficulty_scales_the_spread():
    yaws = {d: np.std([sample_portrait(0, i, difficulty=d).yaw for i in range(40)]) for d in (0, .5, 1)}
    assert yaws[0] == 0 < yaws[.5] < yaws[1] and sample_portrait(0, 1, difficulty=0).noise == 0


# the catalogue, and wrong input

def test_the_catalogue_serves_synthetic_faces():
    test, train = load_faces('synthetic', 'test', size=64, limit=3), load_faces('synthetic', 'train', size=64, limit=2)
    assert len(test) == 3 and len(train) == 2 and test.scheme is SCHEMES[68] and not set(test.names) & set(train.names)
    assert CATALOGUE['synthetic'].split('test').count == 200


@pytest.mark.parametrize('wrong, word', ((dict(count=0), 'count'), (dict(count=2.5), 'count'), (dict(count=True), 'count'), (dict(size=8), 'size'),
                                         (dict(size='128'), 'size'), (dict(margin=1.5), 'margin'), (dict(margin=-1), 'margin'), (dict(seed=-1), 'seed'),
                                         (dict(split='tset'), 'test'), (dict(difficulty=-1), 'difficulty'),
                                         (dict(difficulty=float('nan')), 'difficulty')))
def test_wrong_arguments_are_named(wrong, word):
    with pytest.raises(ValueError, match=word): synthetic_faces(**({'count': 2, 'size': 64} | wrong))


@pytest.mark.parametrize('wrong, word', ((dict(hair='shrot'), 'short'), (dict(yaw=80), 'yaw'), (dict(pitch=float('nan')), 'pitch')))
def test_wrong_portraits_are_named(wrong, word):
    with pytest.raises(ValueError, match=word): Portrait(**wrong)
