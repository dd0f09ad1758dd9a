"The metrics against hand-computed cases, independent integration, and what may not change them."

from fractions import Fraction
from functools import partial
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate, stats

from subpixel_nb.data.metrics import (
    AUC_RULES,
    INNER_49,
    NORMALISER_KINDS,
    auc,
    bootstrap,
    ced,
    estimate_yaw,
    face_values,
    failure_rate,
    landmark_errors,
    mean_nme,
    measure_jitter,
    nme,
    normaliser,
    part_scores,
    point_errors,
    pose_bins,
    region_errors,
    score,
    summary,
    video_jitter,
)

EYES = (36, 45)
TRUE = np.array(
    [[[0.0, 0.0], [3.0, 0.0], [0.0, 4.0], [3.0, 4.0]], [[10.0, 10.0], [16.0, 10.0], [10.0, 18.0], [16.0, 18.0]]]
)
OFF = TRUE + np.array([[[0.0, 0.0], [0.0, 0.0], [0.0, 0.0], [0.0, 1.0]], [[3.0, 4.0]] * 4])
MASK = np.array([[True, True, True, False], [False, False, False, False]])


def faces(seed: int, count: int = 4) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    "Random true and predicted points (count, 68, 2), and a mask that shows at least one point per face."
    rng = torch.Generator().manual_seed(seed)
    true = torch.rand(count, 68, 2, generator=rng, dtype=torch.float64) * 200
    visible = torch.rand(count, 68, generator=rng) < 0.7
    visible[:, 0] = True
    return true, true + torch.randn(true.shape, generator=rng, dtype=torch.float64), visible


# ---- hand-computed cases


@pytest.mark.parametrize(
    'kind, expected',
    [
        ('ic', (5.0, 10.0)),
        ('pupil', (5.0, 10.0)),
        ('box', (12**0.5, 48**0.5)),
        ('diag', (5.0, 10.0)),
        ('side', (4.0, 8.0)),
    ],
)
def test_normaliser_by_hand(kind, expected):
    assert normaliser(TRUE, kind=kind, scheme=(0, 3)).tolist() == pytest.approx(expected, abs=1e-12)


def test_normaliser_measures_visible_points_only():
    visible = np.array([[True, True, False, False], [True, False, False, True]])
    assert normaliser(TRUE, visible, 'side').tolist() == [3.0, 8.0]
    assert normaliser(TRUE, visible, 'ic', (0, 3)).tolist() == [5.0, 10.0]  # the eye corners count as they are


def test_normaliser_reads_a_scheme():
    scheme = SimpleNamespace(eyes=((0,), (3,)), pupils=((0, 1), (2, 3)))
    assert normaliser(TRUE, None, 'ic', scheme).tolist() == [5.0, 10.0]
    assert normaliser(TRUE, None, 'pupil', scheme).tolist() == [4.0, 8.0]  # mean of two points each


def test_nme_by_hand():
    norm = normaliser(TRUE, kind='diag')
    assert point_errors(OFF, TRUE).tolist() == [[0, 0, 0, 1], [5, 5, 5, 5]]
    assert nme(OFF, TRUE, norm).tolist() == [5.0, 50.0]  # 100 * (1 / 4) / 5; 100 * 5 / 10
    last = np.array([[False, False, False, True]] * 2)
    assert nme(OFF, TRUE, norm, last).tolist() == [20.0, 50.0]


def test_a_face_without_visible_points_has_no_error():
    errors = nme(OFF, TRUE, normaliser(TRUE, MASK, 'diag'), MASK)
    assert errors[0] == 0 and errors[1].isnan()
    got = summary(OFF, TRUE, MASK, kind='diag', cutoff=7)
    assert got == dict(normaliser='diag', faces=2, scored=1, nme=0.0, cutoff=7, auc=100.0, failure_rate=0.0)


def test_masked_points_may_be_anything():
    norm, rubbish = normaliser(TRUE, MASK, 'diag'), np.where(MASK[..., None], OFF, np.nan)
    assert nme(rubbish, np.where(MASK[..., None], TRUE, np.inf), norm, MASK)[0] == 0
    known = normaliser(np.where(MASK[..., None], TRUE, np.nan), MASK, 'box')
    assert torch.equal(known[:1], normaliser(TRUE, MASK, 'box')[:1])


def test_mean_is_over_faces_not_over_points():
    true, predicted = torch.zeros(2, 4, 2), torch.zeros(2, 4, 2)
    true[:, 1] = predicted[:, 1] = 100.0
    predicted[0, 0, 0], predicted[1, 0, 0] = 2.0, 20.0
    visible = torch.tensor([[True] * 4, [True, True, False, False]])
    per_face = summary(predicted, true, visible, (0, 1))['nme']
    assert per_face == pytest.approx(100 / 2 * (2 / 4 + 20 / 2) / (100 * 2**0.5))


ERRORS = [1.0, 2.0, 2.0, 6.0, 12.0]


def test_the_equations_in_plain_loops():
    true, predicted, visible = faces(11)
    norm = normaliser(true, visible, 'diag')
    for k, error in enumerate(nme(predicted, true, norm, visible).tolist()):
        shown = [j for j in range(68) if visible[k, j]]
        distances = [np.hypot(*(predicted[k, j] - true[k, j]).tolist()) for j in shown]
        assert error == pytest.approx(100 * sum(distances) / len(shown) / norm[k].item(), rel=1e-12)


def test_auc_failure_rate_and_curve_by_hand():
    assert auc(ERRORS, 8) == pytest.approx(100 * (7 + 6 + 6 + 2) / 5 / 8, abs=1e-12)
    assert [failure_rate(ERRORS, t) for t in (0.5, 1, 2, 6, 11.999, 12)] == [100, 80, 40, 20, 20, 0]  # equal: none
    assert ced(ERRORS, [0, 1, 1.999, 2, 6, 12]).tolist() == [0, 20, 20, 60, 80, 100]
    assert auc([0.0, 0.0], 8) == 100 and auc([8.0, 9.0], 8) == 0


def test_faces_without_error_are_left_out_and_lost_faces_fail():
    nan, inf = float('nan'), float('inf')
    assert auc(ERRORS + [nan], 8) == auc(ERRORS, 8) and failure_rate(ERRORS + [nan], 8) == 20
    assert torch.equal(ced(ERRORS + [nan], [2, 20]), ced(ERRORS, [2, 20]))
    assert failure_rate([1.0, inf], 8) == 50 and auc([0.0, inf], 8) == 50 and ced([1.0, inf], [8]).item() == 50


def test_python_floats_keep_their_precision():
    "0.1 is not float32(0.1): an error on the cut-off is no failure, given as a list or as an array."
    assert failure_rate([0.1, 2.3026351105653085], 2.3026351105653085) == 0 and ced([0.1], [0.1]).item() == 100
    assert auc([0.1], 0.3) == auc(np.array([0.1]), 0.3) == auc(torch.tensor([0.1], dtype=torch.float64), 0.3)


# ---- protocols


def test_given_boxes_by_hand():
    boxes = np.array([[0.0, 0.0, 9.0, 4.0], [np.nan] * 4])
    norm = normaliser(TRUE, None, 'given', boxes=boxes)
    assert norm[0] == 6 and norm[1].isnan()
    assert normaliser(TRUE, MASK, 'given', boxes=[[0, 0, 9, 4], [1, 1, 2, 2]]).isnan().tolist() == [
        False,
        True,
    ]  # face 1 shows nothing
    with pytest.raises(ValueError, match='face 1'):
        nme(OFF, TRUE, norm)  # without a box nobody leaves the table by itself
    kept = norm.isfinite()[:, None].expand(2, 4)
    assert nme(OFF, TRUE, norm, kept)[0] == pytest.approx(100 / 4 / 6)
    assert summary(OFF[:1], TRUE[:1], kind='given', boxes=boxes[:1])['nme'] == pytest.approx(100 / 4 / 6)


def test_mean_over_points_is_one_mean():
    true, predicted, visible = faces(3)
    norm = normaliser(true, visible, 'box')
    distance = np.linalg.norm((predicted - true).numpy(), axis=-1) / norm.numpy()[:, None]
    shown = visible.numpy()
    assert mean_nme(predicted, true, norm, visible, 'points') == pytest.approx(100 * distance[shown].mean(), rel=1e-12)
    by_face = np.mean([d[v].mean() for d, v in zip(distance, shown)])
    assert mean_nme(predicted, true, norm, visible) == pytest.approx(100 * by_face, rel=1e-12)
    assert mean_nme(predicted, true, norm) == pytest.approx(
        mean_nme(predicted, true, norm, average='points')
    )  # all visible: the same
    hidden = normaliser(TRUE, MASK, 'diag')
    assert mean_nme(OFF, TRUE, hidden, MASK) == mean_nme(OFF, TRUE, hidden, MASK, 'points') == 0


@pytest.mark.parametrize('t', [5, 7, 8, 10])
def test_published_areas_against_their_definitions(t):
    "Each rule once more in plain loops over fractions."
    errors = np.random.default_rng(t).lognormal(np.log(2.0), 0.5, 300)
    e, cut = errors / 100, t / 100
    grid = np.arange(0, cut + 1e-4, 1e-4)
    assert auc(errors, t, 'simpson') == pytest.approx(
        100 * integrate.simpson([np.mean(e <= x) for x in grid], x=grid) / cut, abs=1e-9
    )
    bins = [i / 999 for i in range(10 * t)]
    assert auc(errors, t, 'fan') == pytest.approx(100 * np.mean([np.mean(e < b) for b in bins]), abs=1e-9)
    x, area = sorted(e), 0.0
    for k in range(len(x) - 1):
        if x[k + 1] < cut:
            area += (x[k + 1] - x[k]) * (2 * k + 3) / 2 / len(x)
        elif x[k] < cut:
            area += (cut - x[k]) * (k + 1 + (cut - x[k]) / (x[k + 1] - x[k]) / 2) / len(x)
    area += max(cut - x[-1], 0)
    assert auc(errors, t, 'luvli') == pytest.approx(100 * area / cut, abs=1e-9)
    assert auc(errors, t, 'spiga') == pytest.approx(auc(errors, t), abs=0.02)


def test_luvlis_area_of_few_faces():
    assert (
        auc([8.0, 9.0], 7, 'luvli') == 0
        and auc([3.5], 7, 'luvli') == pytest.approx(50)
        and auc([0.0, 7.0], 7, 'luvli') == pytest.approx(75)
    )


def test_the_simpson_grid_overshoots_at_seven_and_not_at_eight():
    assert auc([0.0], 7, 'simpson') == pytest.approx(100 * 0.0701 / 0.07) and auc([0.0], 8, 'simpson') == pytest.approx(
        100
    )


def test_published_areas_differ_as_known():
    "One network on the 300W test, t = 7 %: exact 71.003, LUVLi 71.072, Simpson 71.146, FAN 70.307; to 4 sd."
    known = dict(luvli=71.072, simpson=71.146, fan=70.307)
    errors = np.random.default_rng(0).lognormal(np.log(1.9), 0.36, 600)
    found = {rule: auc(errors, 7, rule) - auc(errors, 7) for rule in known}
    assert abs(auc(errors, 7) - 71.003) < 2
    for rule, sd in dict(luvli=0.003, simpson=0.002, fan=0.018).items():
        assert abs(found[rule] - (known[rule] - 71.003)) < 4 * sd
    assert found['fan'] < 0 < found['luvli'] < found['simpson']


def test_lost_faces_in_published_areas():
    for rule in AUC_RULES:
        assert auc([1.0, 2.0, np.inf], 7, rule) == pytest.approx(2 / 3 * auc([1.0, 2.0], 7, rule), abs=0.01)
        assert auc([np.inf, np.inf], 7, rule) == auc([50.0, 60.0], 7, rule) == 0


def test_score_and_parts_by_hand():
    assert score(ERRORS + [np.nan], 8) == dict(
        faces=6, scored=5, nme=4.6, cutoff=8, auc=auc(ERRORS, 8), failure_rate=20
    )
    assert score(ERRORS, 7, 'simpson')['auc'] == auc(ERRORS, 7, 'simpson')
    rows = part_scores(ERRORS, dict(low=[True, True, False, False, False], none=np.zeros(5, bool)), 8)
    assert rows['low']['nme'] == 1.5 and rows['low']['faces'] == 2
    assert rows['none']['scored'] == 0 and np.isnan([rows['none'][k] for k in ('nme', 'auc', 'failure_rate')]).all()
    lost = part_scores([1.0, np.nan], dict(lost=[False, True]))['lost']
    assert lost['faces'] == 1 and lost['scored'] == 0 and np.isnan(lost['nme'])


def test_landmarks_and_regions_by_hand():
    norm, visible = normaliser(TRUE, kind='diag'), np.array([[True] * 4, [True, False, True, False]])
    assert landmark_errors(OFF, TRUE, norm, visible).tolist() == [25, 0, 25, 20]
    assert landmark_errors(OFF, TRUE, norm, visible & [True, True, True, False])[3].isnan()
    regions = region_errors(OFF, TRUE, norm, visible, regions=dict(top=(0, 1), last=(3,)))
    assert regions['top'].tolist() == [0, 50] and regions['last'][0] == 20 and regions['last'][1].isnan()


def test_masked_rubbish_in_landmark_errors():
    visible = np.array([[True, True, True, False]] * 2)
    rubbish = np.where(visible[..., None], OFF, np.nan)
    assert landmark_errors(rubbish, TRUE, normaliser(TRUE, kind='diag'), visible)[:3].tolist() == [25, 25, 25]


def test_the_49_inner_points():
    "The 68 without jaw and inner mouth corners; the outer eye corners become 19 and 28."
    assert len(INNER_49) == 49 and not set(INNER_49) & {*range(17), 60, 64} and (INNER_49[19], INNER_49[28]) == EYES
    true, predicted, visible = faces(5)
    eyes, index = normaliser(true, scheme=EYES), list(INNER_49)
    cut = nme(predicted[:, index], true[:, index], normaliser(true[:, index], scheme=(19, 28)), visible[:, index])
    torch.testing.assert_close(
        region_errors(predicted, true, eyes, visible, regions=dict(inner=INNER_49))['inner'], cut
    )


@pytest.mark.parametrize('degrees', [-80, -45, -10, 0, 10, 30, 60])
def test_yaw_of_a_head_in_space(degrees):
    "Eyes 9 cm apart, nose tip 4.5 cm before them: turned, nodding and tilted in orthographic view."
    head = np.zeros((68, 3))
    head[[36, 45, 48, 54, 30]] = [-4.5, 0, 0], [4.5, 0, 0], [-2.5, 7, 0], [2.5, 7, 0], [0, 3.5, 4.5]
    a, tilt = np.radians(degrees), np.radians(25)
    turned = head @ np.array([[np.cos(a), 0, np.sin(a)], [0, 1, 0], [-np.sin(a), 0, np.cos(a)]]).T
    flat = turned[:, :2] @ np.array([[np.cos(tilt), -np.sin(tilt)], [np.sin(tilt), np.cos(tilt)]]).T * 17 + 100
    assert estimate_yaw(flat[None]).item() == pytest.approx(degrees, abs=1e-9)
    mirrored = flat[None] * [-1, 1]
    swapped = mirrored[:, [*range(36), 45, *range(37, 45), 36, 46, 47, 54, *range(49, 54), 48, *range(55, 68)]]
    assert estimate_yaw(swapped).item() == pytest.approx(-degrees, abs=1e-9)
    five = flat[None][:, [36, 45, 48, 54, 30]]
    assert estimate_yaw(five, range(5)).item() == pytest.approx(degrees, abs=1e-9)


@pytest.mark.data
def test_yaw_of_other_schemes_is_of_the_same_points(shared_data):
    "WFLW's test faces are given as 68 of the 98 points; its 'largepose' flag and the estimate agree on 97 % of pairs."
    faces = np.load(shared_data / 'annotations' / 'wflw_test_68of98_2500.npz')
    turned, large = estimate_yaw(faces['points']).abs().numpy(), faces['attributes'][:, 0] == 1
    assert stats.mannwhitneyu(turned[large], turned[~large]).statistic / (large.sum() * (~large).sum()) > 0.97
    trained = np.load(shared_data / 'annotations' / 'wflw_train_750of7500_normcrop.npz')['points']
    assert (
        np.corrcoef(estimate_yaw(trained), estimate_yaw(trained, (60, 72, 76, 82, 57)))[0, 1] > 0.9
    )  # the tip and the point below it
    aflw = np.load(shared_data / 'annotations' / 'aflw19_test_4386_normcrop.npz')['points']
    assert 0.2 < np.mean(np.abs(estimate_yaw(aflw).numpy()) > 30) < 0.6  # AFLW is known for its poses


def test_pose_bins_hold_each_face_once():
    bins = pose_bins([0, -29.9, 30, -60, 90, np.nan])
    assert {k: v.nonzero().flatten().tolist() for k, v in bins.items()} == {
        '|yaw| 0-30': [0, 1],
        '|yaw| 30-60': [2],
        '|yaw| 60-90': [3, 4],
    }


# ---- trembling


def test_jitter_by_hand():
    "One point that stands still and is found at 0, 3, 0, 3: second differences 6, first differences 3."
    true, found = np.zeros((4, 1, 2)), np.zeros((4, 1, 2))
    found[:, 0, 0] = 0, 3, 0, 3
    assert measure_jitter(found, true) == (6, 6, 0, 3)
    assert measure_jitter(found, true, norm=[1, 100, 200, 300]) == pytest.approx(
        (4.5, 4.5, 0, (3 + 1.5 + 1) / 3)
    )  # 6 %, 3 %; 3 %, 1.5 %, 1 %
    assert measure_jitter(true, found) == (-6, 0, 6, 3)
    assert measure_jitter(found + 7, found) == (0, 6, 6, 0)  # a constant offset does not tremble


def test_jitter_skips_what_is_hidden():
    true, found = np.zeros((6, 2, 2)), np.zeros((6, 2, 2))
    found[:, 0, 0], found[:, 1, 1] = [0, 1, 0, 1, 0, 1], np.arange(6) ** 2
    found[4, 1] = np.nan
    visible = np.ones((6, 2), bool)
    visible[4, 1] = False
    bend = [2] * 4 + [2, 2]  # the second point: only frames 0-3 hold triples
    speed = [1] * 5 + [1, 3, 5]
    assert measure_jitter(found, true, visible) == pytest.approx((np.mean(bend), np.mean(bend), 0, np.mean(speed)))


def test_jitter_of_white_noise():
    noise = np.random.default_rng(0).standard_normal((4000, 5, 2))
    found = measure_jitter(noise, 0 * noise)
    for value, variance in ((found.predicted, 1 + 4 + 1), (found.velocity, 1 + 1)):
        assert value == pytest.approx((variance * np.pi / 2) ** 0.5, rel=0.02)


def test_videos_by_name():
    true = dict(a=np.zeros((4, 1, 2)), b=np.zeros((3, 1, 2)))
    found = dict(a=true['a'] + 1, b=true['b'] + np.array([0, 1, 0])[:, None, None])
    both = video_jitter(found, true)
    assert both['a'] == (0, 0, 0, 0) and both['b'] == measure_jitter(found['b'], true['b'])
    with pytest.raises(ValueError, match='video b: '):
        video_jitter(found | dict(b=found['b'][:2]), true)
    with pytest.raises(ValueError, match='video b: expected a landmark that three'):
        video_jitter(
            {k: v[:2] if k == 'b' else v for k, v in found.items()},
            {k: v[:2] if k == 'b' else v for k, v in true.items()},
        )
    with pytest.raises(ValueError, match="predicted .'a'. and true .'a', 'b'."):
        video_jitter(dict(a=found['a']), true)


# ---- the bootstrap


@pytest.mark.parametrize('statistic', ['nme', 'auc', 'failure_rate'])
def test_bootstrap_against_scipy(statistic):
    errors = np.random.default_rng(1).lognormal(1.5, 0.6, 400)
    function = dict(
        nme=np.mean,
        auc=lambda e, axis: 100 * np.maximum(8 - e, 0).mean(axis) / 8,
        failure_rate=lambda e, axis: 100 * (e > 8).mean(axis),
    )
    reference = stats.bootstrap(
        (errors,), function[statistic], n_resamples=4000, method='percentile', rng=np.random.default_rng(5)
    )
    found = bootstrap(errors, statistic, 8, samples=4000)
    low, high = reference.confidence_interval
    assert found.value == pytest.approx(
        dict(nme=errors.mean(), auc=auc(errors, 8), failure_rate=failure_rate(errors, 8))[statistic]
    )
    assert abs(found.low - low) < 0.1 * (high - low) and abs(found.high - high) < 0.1 * (high - low)


def test_bootstrap_covers_as_often_as_it_says():
    rng = np.random.default_rng(0)
    inside = [
        f.low <= np.exp(0.125) <= f.high
        for f in (bootstrap(rng.lognormal(0, 0.5, 200), samples=400, seed=i) for i in range(300))
    ]
    assert 0.90 < np.mean(inside) < 0.98


def test_paired_difference():
    "Faces are redrawn in pairs, so a constant gain has no width. Redrawn alone, it would have the width of the faces."
    rng = np.random.default_rng(2)
    hard = rng.lognormal(1, 0.5, 300)
    assert bootstrap(hard + 0.5, other=hard) == pytest.approx((0.5, 0.5, 0.5))
    found, noise = bootstrap(hard + rng.normal(0.1, 0.2, 300), other=hard), 1.96 * 0.2 / 300**0.5
    assert found.high - found.low == pytest.approx(2 * noise, rel=0.2)
    swapped = bootstrap(hard, 'auc', 8, hard + 0.5)
    assert swapped.value == pytest.approx(auc(hard, 8) - auc(hard + 0.5, 8)) and swapped.low > 0


def test_bootstrap_is_seeded_and_leaves_out_faces_without_error():
    assert bootstrap(ERRORS) == bootstrap(ERRORS + [np.nan]) != bootstrap(ERRORS, seed=1)
    wide, narrow = bootstrap(ERRORS, level=99), bootstrap(ERRORS, level=50)
    assert wide.low <= narrow.low <= narrow.high <= wide.high
    assert bootstrap([1.0, np.inf], 'failure_rate', 8).value == 50
    assert face_values([1.0, np.nan], 'failure_rate', 8).isnan().tolist() == [False, True]


# ---- properties


@given(st.lists(st.floats(0, 30, allow_subnormal=False), min_size=1, max_size=60), st.floats(0.01, 20))
def test_auc_is_the_area_of_the_staircase(errors, cutoff):
    "Rectangles under the step function, in exact rational arithmetic; to 1e-12 of the whole."
    t, exact = Fraction(cutoff), [Fraction(e) for e in errors]
    corners = [Fraction(0), *sorted(e for e in exact if e < t), t]
    area = sum((b - a) * sum(e <= a for e in exact) for a, b in pairwise(corners)) / len(exact) / t
    assert auc(errors, cutoff) / 100 == pytest.approx(float(area), abs=1e-12)


@given(st.lists(st.floats(0, 20), min_size=1, max_size=40), st.floats(0.01, 20))
def test_failure_rate_complements_the_curve(errors, cutoff):
    curve = ced(errors, torch.linspace(0, 20, 50, dtype=torch.float64))
    assert failure_rate(errors, cutoff) + ced(errors, [cutoff]).item() == pytest.approx(100)
    assert (curve.diff() >= 0).all() and curve[-1] == 100 and 0 <= auc(errors, cutoff) <= 100


@given(
    st.integers(0, 10_000),
    st.floats(0.1, 10),
    st.floats(-180, 180),
    st.floats(-500, 500),
    st.sampled_from(list(NORMALISER_KINDS)),
)
def test_nme_ignores_scale_place_and_rotation(seed, scale, degrees, shift, kind):
    "The distance of the eyes turns with the face; the box does not, so there only scale and place are free."
    true, predicted, visible = faces(seed)
    angle = np.radians(degrees if kind in ('ic', 'pupil') else 0)
    turn = torch.tensor([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    moved = [points @ turn.T * scale + shift for points in (true, predicted)]
    before = nme(predicted, true, normaliser(true, visible, kind, EYES), visible)
    after = nme(moved[1], moved[0], normaliser(moved[0], visible, kind, EYES), visible)
    torch.testing.assert_close(after, before, rtol=1e-9, atol=1e-9)


@given(st.integers(0, 10_000), st.permutations(range(6)))
def test_order_of_faces_and_points_is_free(seed, order):
    true, predicted, visible = faces(seed, 6)
    errors = nme(predicted, true, normaliser(true, visible, 'box'), visible)
    swap = torch.randperm(68, generator=torch.Generator().manual_seed(seed))
    mixed = [x[order][:, swap] for x in (predicted, true, visible)]
    again = nme(mixed[0], mixed[1], normaliser(mixed[1], mixed[2], 'box'), mixed[2])
    torch.testing.assert_close(again, errors[order])
    assert auc(again, 5) == pytest.approx(auc(errors, 5)) and failure_rate(again, 5) == failure_rate(errors, 5)


@given(st.integers(0, 10_000))
def test_box_and_diagonal_are_bound(seed):
    "w^2 + h^2 >= 2 w h: NME_box >= sqrt(2) NME_diag, and w h <= side^2 <= diag^2."
    true, _, visible = faces(seed)
    box, diag, side = (normaliser(true, visible, kind) for kind in ('box', 'diag', 'side'))
    assert (diag >= 2**0.5 * box * (1 - 1e-12)).all() and (box <= side).all() and (side <= diag).all()


# ---- what comes in


@pytest.mark.parametrize(
    'convert',
    [
        np.float32,
        lambda x: torch.tensor(x, dtype=torch.float32),
        lambda x: x.tolist(),
        lambda x: torch.tensor(x, requires_grad=True),
    ],
)
def test_arrays_lists_and_tensors_of_any_precision(convert):
    true = convert(TRUE)
    errors = nme(convert(OFF), true, normaliser(true, MASK, 'diag'), torch.tensor(MASK))
    assert errors.dtype == torch.float64 and not errors.requires_grad and errors[0] == 0


def test_summary_takes_its_settings_by_name():
    with pytest.raises(TypeError, match='positional'):
        summary(OFF, TRUE, MASK, (0, 3), 'diag')


def test_inputs_are_not_changed():
    true, predicted, visible = faces(0)
    kept = [x.clone() for x in (true, predicted, visible)]
    summary(predicted, true, visible, EYES)
    assert all(torch.equal(a, b) for a, b in zip(kept, (true, predicted, visible)))


@pytest.mark.parametrize(
    'call, message',
    [
        (partial(normaliser, TRUE, kind='daig'), "unknown normaliser 'daig'; known: diag"),
        (partial(normaliser, TRUE), 'needs a scheme'),
        (partial(normaliser, TRUE, scheme=SimpleNamespace(eyes=(), pupils=())), 'needs a scheme'),
        (partial(normaliser, TRUE, scheme=EYES), r'indices in 0\.\.3'),
        (partial(normaliser, TRUE, scheme=(0, 1, 2)), 'two groups'),
        (partial(normaliser, TRUE, scheme=(-1, 2)), 'two groups'),
        (partial(normaliser, TRUE * np.array([1, 0])[:, None, None], kind='box'), 'face 1'),
        (partial(normaliser, TRUE[:, [0, 0, 1, 1]], scheme=(0, 1)), 'face 0'),
        (partial(normaliser, np.where(MASK[..., None], TRUE, np.nan), ~MASK, 'box'), 'face 0'),
        (partial(normaliser, TRUE[0]), r'\(N, K, 2\)'),
        (partial(nme, OFF, TRUE, [1.0, 0.0]), 'face 1'),
        (partial(nme, OFF, TRUE, [1.0, float('nan')]), 'face 1'),
        (partial(nme, OFF, TRUE, [1.0]), 'one per face'),
        (partial(nme, OFF[:1], TRUE, [1.0, 1.0]), 'differ in shape'),
        (partial(nme, OFF * np.array([1, np.nan])[:, None, None], TRUE, [1.0, 1.0]), 'face 1, point 0'),
        (partial(nme, OFF, TRUE, [1.0, 1.0], np.ones((2, 4))), 'bool'),
        (partial(nme, OFF, TRUE, [1.0, 1.0], MASK[:1]), r'\(2, 4\)'),
        (partial(auc, ERRORS, 0), 'cutoff'),
        (partial(failure_rate, ERRORS, float('nan')), 'cutoff'),
        (partial(auc, [], 8), 'no face'),
        (partial(ced, [float('nan')], [1.0]), 'no face'),
        (partial(auc, [-1.0], 8), '>= 0'),
        (partial(auc, [1.0], 8, 'simpsons'), "unknown rule 'simpsons'; known: simpson"),
        (partial(normaliser, TRUE, kind='given'), 'needs boxes'),
        (partial(normaliser, TRUE, kind='given', boxes=[[0, 0, 1, 1]]), r'expected \(2, 4\).*got \(1, 4\)'),
        (partial(normaliser, TRUE, kind='given', boxes=[[0, 0, 1, 1], [4, 4, 2, 2]]), 'face 1'),
        (partial(normaliser, TRUE, kind='given', boxes=[[0, 0, 1, 1], [0, 0, np.nan, 1]]), 'face 1'),
        (partial(normaliser, TRUE, kind='given', boxes=[[0, 0, np.inf, 1], [0, 0, 1, 1]]), 'face 0'),
        (partial(mean_nme, OFF, TRUE, [1.0, 1.0], average='point'), "unknown average 'point'; known: points"),
        (partial(mean_nme, OFF, TRUE, [1.0, 1.0], MASK & ~MASK, 'points'), 'no face'),
        (partial(part_scores, ERRORS, dict(some=[True])), r"part 'some'.*\(5,\)"),
        (partial(part_scores, ERRORS, dict(some=[1] * 5)), r"part 'some'.*bool"),
        (partial(region_errors, OFF, TRUE, [1.0, 1.0], regions=dict(ears=(2, 4))), r"region 'ears'.*0\.\.3"),
        (partial(region_errors, OFF, TRUE, [1.0, 1.0], regions=dict(ears=())), "region 'ears'"),
        (partial(landmark_errors, OFF, TRUE, [1.0]), 'one per face'),
        (partial(estimate_yaw, TRUE), 'marks are known for'),
        (partial(pose_bins, [1.0], (30, 0)), 'rising'),
        (partial(measure_jitter, OFF[:, :, :1], TRUE), r'\(N, K, 2\)'),
        (partial(measure_jitter, OFF, TRUE), 'three successive frames show'),
        (partial(measure_jitter, OFF, TRUE, norm=[1.0]), 'one per face'),
        (partial(bootstrap, [1.0, 2.0], 'mean'), 'unknown statistic'),
        (partial(bootstrap, [1.0]), '2 faces'),
        (partial(bootstrap, [1.0, 2.0], level=100), 'level'),
        (partial(bootstrap, [1.0, np.inf]), 'infinite'),
        (partial(bootstrap, [1.0, -2.0]), '>= 0'),
        (partial(bootstrap, [1.0, 2.0], other=[1.0]), 'expected 2 faces'),
        (partial(bootstrap, [1.0, 2.0], other=[np.nan, 2.0]), 'face 0'),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.data
def test_normalisers_on_real_faces(shared_data):
    "Known for a trained network on 300W: 2.994 by eye corners, 4.203 pupils, 1.742 box, 1.687 side, 1.229 diagonal."
    true = np.load(shared_data / 'annotations' / '300w_public_test_689.npz')['points']
    noise = np.random.default_rng(0).standard_normal(true.shape)
    guess = true + 0.02 * normaliser(true, kind='box').numpy()[:, None, None] * noise
    groups = dict(ic=EYES, pupil=(range(36, 42), range(42, 48)))
    found = {
        kind: nme(guess, true, normaliser(true, None, kind, groups.get(kind))).mean().item()
        for kind in NORMALISER_KINDS
    }
    for kind, known in dict(pupil=4.203, box=1.742, side=1.687, diag=1.229).items():
        assert found[kind] / found['ic'] == pytest.approx(known / 2.994, rel=0.02)


# ------------------------------------------------------------------------------------------------------------ fractions


@pytest.mark.parametrize('figure', [auc, failure_rate, partial(face_values, statistic='auc'), score])
def test_fractions_beside_percent_are_told(figure):
    "Errors as fractions against a cut-off in percent give an AUC of 99 %; percent against 0.07 gives none."
    errors = np.array([0.03, 0.05, 0.09, 1.4])
    with pytest.warns(UserWarning, match=r'cut-off 10 %: the errors \(median 0.05\) look like fractions'):
        figure(errors, cutoff=10)
    with pytest.warns(UserWarning, match='cut-off 0.07 %: the cut-off looks like a fraction, beside errors with a med'):
        figure(100 * errors, cutoff=0.07)


def test_true_percent_and_perfect_points_are_not_suspected(recwarn):
    for errors in ([0.6, 3, 5, 80], [0, 0, 0], [np.nan, 0.7, 4]):
        auc(np.array(errors), 7)
        failure_rate(np.array(errors), 7)
    assert not recwarn
