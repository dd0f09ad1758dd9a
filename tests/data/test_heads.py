"The head: a symmetric layout, pose, visibility, parameters that do what they say, and its place on the canvas."

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from subpixel_nb.codec.geometry import flip_permutation
from subpixel_nb.data.datasets import SCHEMES
from subpixel_nb.data.heads import (
    AZIMUTH,
    FACE_LAYOUT,
    Head,
    Portrait,
    crop_placement,
    gaussian_bumps,
    head_rotation,
    scatter_shapes,
)

PARTNER = flip_permutation(SCHEMES[68].pairs, 68).numpy()


def test_layout_is_its_own_mirror_image():
    assert (
        FACE_LAYOUT.shape == (68, 3)
        and np.allclose(FACE_LAYOUT[PARTNER] * (-1, 1, 1), FACE_LAYOUT)
        and np.allclose(AZIMUTH[PARTNER], -AZIMUTH)
    )


@pytest.mark.parametrize('yaw', (0, 10, 25, 40, 50, 60))
def test_visibility_is_symmetric_in_yaw(yaw):
    right, left = Head(Portrait(yaw=yaw)).visible, Head(Portrait(yaw=-yaw)).visible
    assert (right == left[PARTNER]).all()
    assert right[:9].all() and (right.all() or yaw > 30)  # the near side is never hidden


def test_turning_hides_more_and_more_and_the_far_side_first():
    hidden = [set(np.flatnonzero(~Head(Portrait(yaw=yaw)).visible)) for yaw in (0, 30, 40, 50, 60)]
    assert not hidden[0] and not hidden[1] and all(a < b for a, b in pairwise(hidden[1:]))
    assert (
        hidden[2] <= set(range(9, 17)) and 26 in hidden[3] and Head(Portrait(yaw=40), slide_limit=90).visible[:17].all()
    )


@settings(max_examples=30, deadline=None)
@given(st.floats(-45, 45), st.floats(-20, 20), st.floats(-25, 25), st.floats(-0.5, 1), st.floats(0, 1))
def test_mirrored_portraits_have_mirrored_landmarks(yaw, pitch, roll, smile, mouth):
    p = Portrait(yaw=yaw, pitch=pitch, roll=roll, smile=smile, mouth=mouth)
    q = replace(p, yaw=-yaw, roll=-roll)
    assert np.allclose(Head(q).points[PARTNER] * (-1, 1), Head(p).points, atol=1e-9)


def test_a_rotation_is_a_rotation():
    m = head_rotation(Portrait(yaw=25, pitch=-12, roll=8))
    assert np.allclose(m @ m.T, np.eye(3)) and np.linalg.det(m) == pytest.approx(1)
    assert np.allclose(head_rotation(Portrait()), np.eye(3))
    turned = head_rotation(Portrait(yaw=30)) @ (0, 0, 1)  # the nose goes to the picture's right
    assert turned == pytest.approx((0.5, 0, 3**0.5 / 2))


def test_parameters_change_what_they_say():
    q = {
        name: Head(p).points
        for name, p in dict(
            mean=Portrait(),
            open=Portrait(mouth=1),
            smile=Portrait(smile=1),
            up=Portrait(brow=1),
            shut=Portrait(blink=1),
            right=Portrait(yaw=20),
            nod=Portrait(pitch=15),
        ).items()
    }

    def gap(name, i, j):
        return q[name][j, 1] - q[name][i, 1]

    assert gap('open', 62, 66) > gap('mean', 62, 66) + 2 and gap('shut', 37, 41) < 0.3 * gap('mean', 37, 41)
    assert (
        q['smile'][54, 0] > q['mean'][54, 0]
        and q['smile'][54, 1] < q['mean'][54, 1]
        and q['up'][19, 1] < q['mean'][19, 1]
    )
    assert q['right'][30, 0] > q['right'][27, 0] + 0.3 and gap('nod', 27, 30) > gap('mean', 27, 30)


@pytest.mark.parametrize(
    'wrong, word', ((dict(hair='shrot'), 'short'), (dict(yaw=80), 'yaw'), (dict(pitch=float('nan')), 'pitch'))
)
def test_wrong_portraits_are_named(wrong, word):
    with pytest.raises(ValueError, match=word):
        Portrait(**wrong)


def test_the_crop_is_known_before_anything_is_drawn():
    h = Portrait(yaw=-40, roll=10).head(35)
    scale, shift = crop_placement(h.points, h.visible, 256, 80)
    q = h.points[h.visible] * scale + shift
    low, high = q.min(0), q.max(0)
    assert (high - low).max() == pytest.approx(220) and (low + high) / 2 == pytest.approx(207.5)


def test_bumps_by_hand():
    x = y = np.array([-1.0, 0.0, 2.0])
    one = gaussian_bumps(x, y, np.array([(0.0, 0.0)]), np.array([(1.0, 2.0)]), np.array([3.0]))
    assert (
        one[1, 1] == 3 and one[1, 2] == pytest.approx(3 * np.exp(-2)) and one[2, 1] == pytest.approx(3 * np.exp(-0.5))
    )
    two = gaussian_bumps(x, y, np.zeros((2, 2)), np.ones((2, 2)), np.array([(1.0, 0.0), (2.0, 5.0)]))
    assert two.shape == (2, 3, 3) and two[:, 1, 1].tolist() == [3, 5]


def test_scattered_shapes_lie_where_they_should():
    low, high = np.full(2, -4.0), np.full(2, 6.0)
    shapes = scatter_shapes(np.random.default_rng(0), 40, low, high, np.full(3, 0.5), (0.5, 1.0), 0.3)
    middles = np.array([s.outline.mean(0) for s in shapes])
    assert len(shapes) == 40 and (middles > low).all() and (middles < high).all()
    assert {len(s.outline) for s in shapes} == {4, 40} and all(0.3 <= s.alpha <= 1 for s in shapes)
