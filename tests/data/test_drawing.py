"The painter: exact areas, curves through their points, no seams, and a camera that moves nothing."

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from subpixel_nb.data.drawing import (
    FilledShape,
    blur_field,
    expose,
    paint,
    pixel_coverage,
    resize_field,
    spline_curve,
    stroke_outline,
    tile_pictures,
)


def polygon(size: float, corners: int, seed: int) -> np.ndarray:
    "A random star-shaped polygon about (0, 0)."
    rng = np.random.default_rng(seed)
    turn = (np.arange(corners) + rng.uniform(0, 0.45, corners)) * 2 * np.pi / corners
    return size * rng.uniform(0.3, 1, (corners, 1)) * np.stack([np.cos(turn), np.sin(turn)], 1)


def area_of(q: np.ndarray) -> float:
    a, b = q, np.roll(q, -1, 0)
    return abs((a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]).sum()) / 2


def filled(outline: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    boxes, areas = pixel_coverage([outline], size)
    full = np.zeros(size)
    x0, y0, x1, y1 = boxes[0]
    full[y0:y1, x0:x1] = areas[0]
    return full


# coverage


@settings(max_examples=60, deadline=None)
@given(st.floats(0.2, 9), st.integers(3, 12), st.integers(0, 999), st.floats(10, 14), st.floats(10, 14))
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
    assert filled(square[::-1] + 0.5, (4, 5))[1:3, 1:4].tolist() == [[0.25, 0.5, 0.25]] * 2


def test_a_child_is_cut_at_its_parents_box():
    boxes, areas = pixel_coverage(
        [np.array([(2, 2), (5, 2), (5, 5), (2, 5)], float), np.array([(0, 0), (9, 0), (9, 4), (0, 4)], float)],
        (9, 9),
        [-1, 0],
    )
    assert boxes[1].tolist()[:2] == [2, 2] and boxes[1][2] <= boxes[0][2] and (areas[1][:2] == 1).all()


# paths


def test_curves_pass_through_their_points():
    q = np.random.default_rng(0).normal(size=(6, 2))
    assert np.allclose(spline_curve(q)[::6], q) and np.allclose(spline_curve(q, closed=True)[::6], q)


def test_sheets_leave_no_seam():
    canvas = np.zeros((3, 8, 8), np.float32)

    def box(y0, y1):
        return np.array([(1, y0), (7, y0), (7, y1), (1, y1)])

    canvas[0] = 1
    paint(
        canvas,
        [FilledShape(box(1, 7), (0, 0, 0), inside=[FilledShape(box(3.7, 7), (1, 1, 1), fits=True)])],
        {},
        1,
        np.array((-0.5, -0.5)),
    )
    assert np.allclose(canvas[:, 3, 4], 0.3) and np.allclose(canvas[:, 6, 4], 1)
    assert np.allclose(canvas[:, 1, 4], 0)


def test_strokes_have_their_width_on_both_sides():
    line = np.stack([np.linspace(2, 22, 30), np.full(30, 12.0)], 1)
    even = filled(stroke_outline(line, 3.0, left=0.5, taper=0), (24, 24)).sum(0)
    assert even[6:18] == pytest.approx(3.0, abs=1e-4)
    thin = filled(stroke_outline(line, 3.0), (24, 24)).sum(0)
    assert thin[11] == pytest.approx(3.0, abs=0.02) and thin[3] < 1.5


# the camera


@pytest.mark.parametrize('sigma', (0.8, 1.5, 2.3))
def test_blur_moves_and_loses_nothing(sigma):
    image = np.zeros((1, 41, 41), np.float32)
    image[0, 20, 20] = 1
    kept = image.copy()
    out = blur_field(image, sigma)[0]
    i = np.arange(41) - 20
    assert (image == kept).all(), 'the input is changed'
    assert out.sum() == pytest.approx(1, abs=1e-5) and np.allclose(out, out[::-1, ::-1], atol=1e-7)
    assert out.sum(0) @ i**2 == pytest.approx(sigma**2, rel=1e-2)


def test_a_blurred_border_stays_as_bright():
    assert np.allclose(blur_field(np.full((3, 9, 9), 0.7, np.float32), 2.0), 0.7, atol=1e-6)


def test_a_resized_field_keeps_its_place():
    ramp = np.tile(np.arange(8.0), (1, 8, 1))  # cell i of 8 is centred at pixel 4 i + 1.5 of 32
    whole = resize_field(ramp, (0, 0, 32, 32), 32)
    assert np.allclose(whole[0, 16, 8:24], (np.arange(8, 24) - 1.5) / 4, atol=0.02)
    assert np.allclose(resize_field(ramp, (8, 4, 24, 20), 32), whole[:, 4:20, 8:24], atol=1e-5)


def test_the_camera_warms_and_its_noise_is_seeded():
    def photo(**change):
        settings = dict(warmth=0.0, blur=0.0, noise=0.0, seed=None) | change
        return expose(np.full((3, 64, 64), 0.5, np.float32), **settings)

    assert (photo() == 128).all() and (photo(noise=0.1) == 128).all()  # without a seed there is no noise
    assert photo(warmth=0.1)[:, 0, 0].tolist() == [140, 128, 115]
    assert (photo(noise=0.05, seed=3) == photo(noise=0.05, seed=3)).all()
    assert (photo(noise=0.05, seed=3) != photo(noise=0.05, seed=4)).any()
    assert photo(noise=0.05, seed=3).std() == pytest.approx(0.05 * 255, rel=0.03)


def test_pictures_are_tiled_row_by_row():
    grey = [np.full((3, 10, 10), level, np.uint8) for level in (0, 80, 160)]
    sheet = np.asarray(Image.open(io.BytesIO(tile_pictures(*grey, columns=2, quality=95))))
    assert sheet.shape == (20, 20, 3)
    assert abs(sheet[5, 15].astype(int) - 80).max() < 3 and abs(sheet[15, 5].astype(int) - 160).max() < 3
    assert Image.open(io.BytesIO(tile_pictures(*grey, side=4))).size == (12, 4)
    half = np.full((3, 8, 8), 0.5)
    assert abs(np.asarray(Image.open(io.BytesIO(tile_pictures(half))))[4, 4].astype(int) - 128).max() < 3
