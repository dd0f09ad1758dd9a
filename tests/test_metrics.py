"The metrics against hand-computed cases, independent integration, and what may not change them."
from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st

from subpixel_nb.metrics import NORMALISERS, auc, ced, failure_rate, nme, normaliser, point_errors, summary

EYES = (36, 45)
TRUE = np.array([[[0., 0.], [3., 0.], [0., 4.], [3., 4.]], [[10., 10.], [16., 10.], [10., 18.], [16., 18.]]])
OFF = TRUE + np.array([[[0., 0.], [0., 0.], [0., 0.], [0., 1.]], [[3., 4.]] * 4])
MASK = np.array([[True, True, True, False], [False, False, False, False]])


def faces(seed: int, count: int = 4) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    "Random true and predicted points (count, 68, 2), and a mask that shows at least one point per face."
    rng = torch.Generator().manual_seed(seed)
    true = torch.rand(count, 68, 2, generator=rng, dtype=torch.float64) * 200
    visible = torch.rand(count, 68, generator=rng) < 0.7
    visible[:, 0] = True
    return true, true + torch.randn(true.shape, generator=rng, dtype=torch.float64), visible


# ---- hand-computed cases

@pytest.mark.parametrize('kind, expected', [('ic', (5., 10.)), ('pupil', (5., 10.)), ('box', (12**.5, 48**.5)),
                                            ('diag', (5., 10.)), ('side', (4., 8.))])
def test_normaliser_by_hand(kind, expected):
    assert normaliser(TRUE, kind=kind, scheme=(0, 3)).tolist() == pytest.approx(expected, abs=1e-12)


def test_normaliser_measures_visible_points_only():
    visible = np.array([[True, True, False, False], [True, False, False, True]])
    assert normaliser(TRUE, visible, 'side').tolist() == [3., 8.]
    assert normaliser(TRUE, visible, 'ic', (0, 3)).tolist() == [5., 10.]     # the eye corners count as they are


def test_normaliser_reads_a_scheme():
    scheme = SimpleNamespace(eyes=((0,), (3,)), pupils=((0, 1), (2, 3)))
    assert normaliser(TRUE, None, 'ic', scheme).tolist() == [5., 10.]
    assert normaliser(TRUE, None, 'pupil', scheme).tolist() == [4., 8.]      # mean of two points each


def test_nme_by_hand():
    norm = normaliser(TRUE, kind='diag')
    assert point_errors(OFF, TRUE).tolist() == [[0, 0, 0, 1], [5, 5, 5, 5]]
    assert nme(OFF, TRUE, norm).tolist() == [5., 50.]                        # 100 * (1 / 4) / 5; 100 * 5 / 10
    last = np.array([[False, False, False, True]] * 2)
    assert nme(OFF, TRUE, norm, last).tolist() == [20., 50.]


def test_a_face_without_visible_points_has_no_error():
    errors = nme(OFF, TRUE, normaliser(TRUE, MASK, 'diag'), MASK)
    assert errors[0] == 0 and errors[1].isnan()
    got = summary(OFF, TRUE, MASK, kind='diag', cutoff=7)
    assert got == dict(normaliser='diag', faces=2, scored=1, nme=0., cutoff=7, auc=100., failure_rate=0.)


def test_masked_points_may_be_anything():
    norm, rubbish = normaliser(TRUE, MASK, 'diag'), np.where(MASK[..., None], OFF, np.nan)
    assert nme(rubbish, np.where(MASK[..., None], TRUE, np.inf), norm, MASK)[0] == 0
    known = normaliser(np.where(MASK[..., None], TRUE, np.nan), MASK, 'box')
    assert torch.equal(known[:1], normaliser(TRUE, MASK, 'box')[:1])


def test_mean_is_over_faces_not_over_points():
    true, predicted = torch.zeros(2, 4, 2), torch.zeros(2, 4, 2)
    true[:, 1] = predicted[:, 1] = 100.
    predicted[0, 0, 0], predicted[1, 0, 0] = 2., 20.
    visible = torch.tensor([[True] * 4, [True, True, False, False]])
    per_face = summary(predicted, true, visible, (0, 1))['nme']
    assert per_face == pytest.approx(100 / 2 * (2 / 4 + 20 / 2) / (100 * 2**.5))


ERRORS = [1., 2., 2., 6., 12.]


def test_auc_failure_rate_and_curve_by_hand():
    assert auc(ERRORS, 8) == pytest.approx(100 * (7 + 6 + 6 + 2) / 5 / 8, abs=1e-12)
    assert [failure_rate(ERRORS, t) for t in (0.5, 1, 2, 6, 11.999, 12)] == [100, 80, 40, 20, 20, 0]  # equal: none
    assert ced(ERRORS, [0, 1, 1.999, 2, 6, 12]).tolist() == [0, 20, 20, 60, 80, 100]
    assert auc([0., 0.], 8) == 100 and auc([8., 9.], 8) == 0


def test_faces_without_error_are_left_out_and_lost_faces_fail():
    nan, inf = float('nan'), float('inf')
    assert auc(ERRORS + [nan], 8) == auc(ERRORS, 8) and failure_rate(ERRORS + [nan], 8) == 20
    assert torch.equal(ced(ERRORS + [nan], [2, 20]), ced(ERRORS, [2, 20]))
    assert failure_rate([1., inf], 8) == 50 and auc([0., inf], 8) == 50 and ced([1., inf], [8]).item() == 50


def test_python_floats_keep_their_precision():
    "0.1 is not float32(0.1): an error on the cut-off is no failure, given as a list or as an array."
    assert failure_rate([0.1, 2.3026351105653085], 2.3026351105653085) == 0 and ced([0.1], [0.1]).item() == 100
    assert auc([0.1], 0.3) == auc(np.array([0.1]), 0.3) == auc(torch.tensor([0.1], dtype=torch.float64), 0.3)


# ---- properties

@given(st.lists(st.floats(0, 30, allow_subnormal=False), min_size=1, max_size=60), st.floats(0.01, 20))
def test_auc_is_the_area_of_the_staircase(errors, cutoff):
    "Rectangles under the step function, in exact rational arithmetic; to 1e-12 of the whole."
    t, exact = Fraction(cutoff), [Fraction(e) for e in errors]
    corners = [Fraction(0), *sorted(e for e in exact if e < t), t]
    area = sum((b - a) * sum(e <= a for e in exact) for a, b in zip(corners, corners[1:])) / len(exact) / t
    assert auc(errors, cutoff) / 100 == pytest.approx(float(area), abs=1e-12)


@given(st.lists(st.floats(0, 20), min_size=1, max_size=40), st.floats(0.01, 20))
def test_failure_rate_complements_the_curve(errors, cutoff):
    curve = ced(errors, torch.linspace(0, 20, 50, dtype=torch.float64))
    assert failure_rate(errors, cutoff) + ced(errors, [cutoff]).item() == pytest.approx(100)
    assert (curve.diff() >= 0).all() and curve[-1] == 100 and 0 <= auc(errors, cutoff) <= 100


@given(st.integers(0, 10_000), st.floats(0.1, 10), st.floats(-180, 180), st.floats(-500, 500),
       st.sampled_from(list(NORMALISERS)))
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
    assert (diag >= 2**.5 * box * (1 - 1e-12)).all() and (box <= side).all() and (side <= diag).all()


# ---- what comes in

@pytest.mark.parametrize('convert', [np.float32, lambda x: torch.tensor(x, dtype=torch.float32), lambda x: x.tolist(),
                                     lambda x: torch.tensor(x, requires_grad=True)])
def test_arrays_lists_and_tensors_of_any_precision(convert):
    true = convert(TRUE)
    errors = nme(convert(OFF), true, normaliser(true, MASK, 'diag'), torch.tensor(MASK))
    assert errors.dtype == torch.float64 and not errors.requires_grad and errors[0] == 0


def test_inputs_are_not_changed():
    true, predicted, visible = faces(0)
    kept = [x.clone() for x in (true, predicted, visible)]
    summary(predicted, true, visible, EYES)
    assert all(torch.equal(a, b) for a, b in zip(kept, (true, predicted, visible)))


@pytest.mark.parametrize('call, message', [
    (lambda: normaliser(TRUE, kind='daig'), "unknown normaliser 'daig'; known: diag"),
    (lambda: normaliser(TRUE), 'needs a scheme'),
    (lambda: normaliser(TRUE, scheme=SimpleNamespace(eyes=(), pupils=())), 'needs a scheme'),
    (lambda: normaliser(TRUE, scheme=EYES), r'indices in 0\.\.3'),
    (lambda: normaliser(TRUE, scheme=(0, 1, 2)), 'two groups'),
    (lambda: normaliser(TRUE, scheme=(-1, 2)), 'two groups'),
    (lambda: normaliser(TRUE * np.array([1, 0])[:, None, None], kind='box'), 'face 1'),
    (lambda: normaliser(TRUE[:, [0, 0, 1, 1]], scheme=(0, 1)), 'face 0'),
    (lambda: normaliser(np.where(MASK[..., None], TRUE, np.nan), ~MASK, 'box'), 'face 0'),
    (lambda: normaliser(TRUE[0]), r'\(N, K, 2\)'),
    (lambda: nme(OFF, TRUE, [1., 0.]), 'face 1'),
    (lambda: nme(OFF, TRUE, [1., float('nan')]), 'face 1'),
    (lambda: nme(OFF, TRUE, [1.]), 'one per face'),
    (lambda: nme(OFF[:1], TRUE, [1., 1.]), 'differ in shape'),
    (lambda: nme(OFF * np.array([1, np.nan])[:, None, None], TRUE, [1., 1.]), 'face 1, point 0'),
    (lambda: nme(OFF, TRUE, [1., 1.], np.ones((2, 4))), 'bool'),
    (lambda: nme(OFF, TRUE, [1., 1.], MASK[:1]), r'\(2, 4\)'),
    (lambda: auc(ERRORS, 0), 'cutoff'),
    (lambda: failure_rate(ERRORS, float('nan')), 'cutoff'),
    (lambda: auc([], 8), 'no face'),
    (lambda: ced([float('nan')], [1.]), 'no face'),
    (lambda: auc([-1.], 8), '>= 0')])
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message): call()


def test_normalisers_on_real_faces(shared_data):
    "Known for a trained network on 300W: 2.994 by eye corners, 4.203 pupils, 1.742 box, 1.687 side, 1.229 diagonal."
    true = np.load(shared_data / 'annotations' / '300w_public_test_689.npz')['points']
    noise = np.random.default_rng(0).standard_normal(true.shape)
    guess = true + 0.02 * normaliser(true, kind='box').numpy()[:, None, None] * noise
    groups = dict(ic=EYES, pupil=(range(36, 42), range(42, 48)))
    found = {kind: nme(guess, true, normaliser(true, None, kind, groups.get(kind))).mean().item()
             for kind in NORMALISERS}
    for kind, known in dict(pupil=4.203, box=1.742, side=1.687, diag=1.229).items():
        assert found[kind] / found['ic'] == pytest.approx(known / 2.994, rel=0.02)
