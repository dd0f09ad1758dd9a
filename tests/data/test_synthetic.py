"The drawn faces: landmarks where the picture has them, the crop rule, repeatability, the catalogue, and wrong input."

from dataclasses import replace

import numpy as np
import pytest
import torch

from subpixel_nb.codec.geometry import crop_square, flip_permutation, landmark_box, square_map
from subpixel_nb.data.crops import load_faces
from subpixel_nb.data.datasets import CATALOGUE, SCHEMES
from subpixel_nb.data.heads import Head, Portrait
from subpixel_nb.data.synthetic import (
    SPLIT_NAMES,
    close_up,
    draw_portrait,
    find_corner,
    find_edge,
    image_shift,
    render_portrait,
    sample_bilinear,
    sample_portrait,
    synthetic_faces,
)

PARTNER = flip_permutation(SCHEMES[68].pairs, 68).numpy()


def plain(index: int, **changes) -> Portrait:
    "A random face without anything that hides it."
    return replace(sample_portrait(5, index), texture=None, hair='bald', glasses=0.0, **changes)


def test_every_polygon_of_many_faces_can_be_drawn():
    for i in range(25):  # corners on the grid, slivers, shapes off the canvas
        image, points, visible = render_portrait(sample_portrait(11, i, difficulty=2), 32)
        assert image.dtype == np.uint8 and np.isfinite(points).all() and visible.sum() > 40


def test_a_mirrored_portrait_is_the_mirrored_picture():
    p = replace(plain(3, yaw=22.0, roll=9.0, light_x=40.0, gaze_x=0.4), hair='long', glasses=0.3)
    q = replace(p, yaw=-22.0, roll=-9.0, light_x=-40.0, gaze_x=-0.4)
    (a, points, seen), (b, other, also) = draw_portrait(p, 128), draw_portrait(q, 128)
    assert np.abs(a - b[..., ::-1]).max() < 2e-3
    assert np.allclose(points, (other * (-1, 1) + (a.shape[2] - 1, 0))[PARTNER]) and (seen == also[PARTNER]).all()


# the picture agrees with the landmarks


@pytest.mark.slow
@pytest.mark.parametrize('size', (128, 256))
def test_four_times_as_large_is_the_same_picture(size):
    found = {name: [] for name in SCHEMES[68].regions}
    for i in range(4):
        p = plain(i)
        image, points, visible = draw_portrait(p, size)
        large, four, _ = draw_portrait(p, 4 * size)
        assert np.allclose((four + 0.5) / 4 - 0.5, points)
        side = image.shape[1]
        large = large.reshape(3, side, 4, side, 4).mean((2, 4))
        for name, part in SCHEMES[68].regions.items():
            found[name] += [np.hypot(*image_shift(image, large, points[k])) for k in part if visible[k]]
    everything = np.concatenate(list(found.values()))
    assert np.median(everything) < 0.005 and np.quantile(everything, 0.95) < 0.02
    for name in ('eyes', 'mouth', 'nose', 'brows'):
        assert np.quantile(found[name], 0.9) < 0.02, name


def test_image_shift_sees_a_shift_of_the_size_that_is_refused_above():
    a, points, _ = draw_portrait(Portrait(), 256)
    b, moved, _ = draw_portrait(Portrait(roll=0.1), 256)
    for k in (36, 45, 48, 54):
        true, seen = moved[k] - points[k], image_shift(a, b, points[k])
        assert np.hypot(*true) > 0.05 and np.hypot(*(seen - true)) < 0.5 * np.hypot(*true)


@pytest.mark.parametrize(
    'landmark, other, colour',
    (
        (36, 39, 'eye_white'),
        (39, 36, 'eye_white'),
        (42, 45, 'eye_white'),
        (45, 42, 'eye_white'),
        (48, 54, 'lipstick'),
        (54, 48, 'lipstick'),
    ),
)
def test_corners_found_in_the_pixels_are_the_landmarks(landmark, other, colour):
    rng, errors = np.random.default_rng(landmark), []
    for i in range(10):
        p = plain(i, blink=0.0, gaze_x=0.0, yaw=sample_portrait(5, i).yaw / 2)
        q = Head(p).points
        picture, at = close_up(p, landmark)
        area = np.abs(
            picture - close_up(replace(p, **{colour: 0.0 if getattr(p, colour) > 0.5 else 0.9}), landmark)[0]
        ).sum(0)
        way = (q[other] - q[landmark]) / np.hypot(*(q[other] - q[landmark])) + 0.05 * rng.normal(size=2)
        errors.append((find_corner(area, at + rng.uniform(-4, 4, 2), way, 30) - at) / 16)
    distance = np.hypot(*np.array(errors).T)
    assert np.isfinite(distance).sum() >= 8 and np.nanmedian(distance) < 0.02 and np.nanquantile(distance, 0.8) < 0.05


@pytest.mark.slow
def test_edges_found_in_the_pixels_pass_through_the_landmarks():
    off = []
    for i in range(3):
        picture, points, visible = draw_portrait(plain(i, yaw=sample_portrait(5, i).yaw / 2), 1024)
        off += [
            abs(find_edge(picture, points[k])) / 4
            for k in (*range(3, 14), 19, 24, 33, 50, 52, *range(55, 60))
            if visible[k]
        ]
    assert np.median(off) < 0.02 and np.quantile(off, 0.9) < 0.05


# the crop rule


@pytest.mark.parametrize('size, margin', ((128, None), (256, 0), (100, 17)))
def test_the_paper_crop_of_the_visible_points_is_the_field(size, margin):
    faces = synthetic_faces(6, 3, size, margin)
    margin = faces.margin
    assert faces.images.shape == (6, 3, size + 2 * margin, size + 2 * margin) and faces.crop == 'paper'
    squares = crop_square(landmark_box(faces.points.double(), faces.visible), 'paper')
    assert torch.allclose(squares, faces.squares, atol=1e-3)
    assert torch.allclose(
        square_map(squares, size, margin), torch.eye(3, dtype=torch.float64).expand(6, 3, 3), atol=1e-2
    )


def test_default_margin_is_that_of_the_cache():
    assert synthetic_faces(1, size=256).margin == 80 and synthetic_faces(1, size=128).margin == 40


# repeatability


def test_a_face_depends_on_its_number_alone():
    many, few = synthetic_faces(20, 4, 64), synthetic_faces(9, 4, 64, workers=2)
    assert (
        (many.images[:9] == few.images).all() and (many.points[:9] == few.points).all() and many.names[:9] == few.names
    )
    image, points, visible = render_portrait(sample_portrait(4, 13), 64)
    assert (many.images[13] == image).all() and np.allclose(many.points[13].numpy(), points, atol=1e-4)
    assert (many.visible[13].numpy() == visible).all()


def test_drawing_leaves_the_global_streams_alone():
    torch.manual_seed(3), np.random.seed(3)  # noqa: NPY002 - the global stream is the subject
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    synthetic_faces(3, size=32)
    assert torch.equal(before[0], torch.get_rng_state())
    assert (before[1] == np.random.get_state()[1]).all()  # noqa: NPY002


def test_splits_and_seeds_share_no_face():
    faces = {(s, seed): sample_portrait(seed, 0, s) for s in SPLIT_NAMES for seed in range(5)}
    faces |= {(s, -i): sample_portrait(0, i, s) for s in SPLIT_NAMES for i in range(1, 5)}
    assert len(set(faces.values())) == len(faces)


def test_size_is_a_resolution_and_nothing_else():
    a, b = render_portrait(sample_portrait(4, 2), 64), render_portrait(sample_portrait(4, 2), 128)
    assert np.allclose((b[1] + 0.5) / 2 - 0.5, a[1]) and (a[2] == b[2]).all()


def test_difficulty_scales_the_spread():
    yaws = {d: np.std([sample_portrait(0, i, difficulty=d).yaw for i in range(40)]) for d in (0, 0.5, 1)}
    assert yaws[0] == 0 < yaws[0.5] < yaws[1] and sample_portrait(0, 1, difficulty=0).noise == 0


# the catalogue, and wrong input


def test_the_catalogue_serves_synthetic_faces():
    test, train = load_faces('synthetic', 'test', size=64, limit=3), load_faces('synthetic', 'train', size=64, limit=2)
    assert len(test) == 3 and len(train) == 2 and test.scheme is SCHEMES[68] and not set(test.names) & set(train.names)
    assert CATALOGUE['synthetic'].split('test').count == 200


@pytest.mark.parametrize(
    'wrong, word',
    (
        (dict(count=0), 'count'),
        (dict(count=2.5), 'count'),
        (dict(count=True), 'count'),
        (dict(size=8), 'size'),
        (dict(size='128'), 'size'),
        (dict(margin=1.5), 'margin'),
        (dict(margin=-1), 'margin'),
        (dict(seed=-1), 'seed'),
        (dict(split='tset'), 'test'),
        (dict(difficulty=-1), 'difficulty'),
        (dict(difficulty=float('nan')), 'difficulty'),
    ),
)
def test_wrong_arguments_are_named(wrong, word):
    with pytest.raises(ValueError, match=word):
        synthetic_faces(**({'count': 2, 'size': 64} | wrong))


def test_bilinear_samples_by_hand():
    pictures = np.array([[(0.0, 1.0, 2.0), (10.0, 11.0, 12.0)], [(5.0, 5.0, 5.0), (5.0, 5.0, 5.0)]])
    at = np.array([(0.5, 0.0), (1.25, 0.5), (2.0, 1.0), (9.0, 9.0)])  # the last is outside: the border is repeated
    assert sample_bilinear(pictures, at).tolist() == [[0.5, 6.25, 12, 12], [5, 5, 5, 5]]
