"Steps of realism: what they change, what they must not, and that a face stays a function of its number."

import json
import subprocess
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import ROOT, SCRIPTS

from subpixel_nb.codec.geometry import crop_square, flip_permutation, landmark_box
from subpixel_nb.data.crops import load_faces
from subpixel_nb.data.datasets import CATALOGUE, SCHEMES
from subpixel_nb.data.heads import MOUTH, Portrait
from subpixel_nb.data.synthetic import (
    draw_portrait,
    image_shift,
    render_portrait,
    sample_portrait,
    synthetic_faces,
)
from subpixel_nb.data.wild import STEP_SETS, STEPS, Wild, develop, recompress, sample_wild, wild_faces

PIXELS = ('camera', 'light', 'things')  # steps that leave every landmark where it is
EVERY = tuple(STEPS)


def test_nothing_wild_is_a_portrait():
    for i in range(3):
        p = sample_portrait(1, i)
        (a, points, seen), (b, other, also) = render_portrait(p, 64), render_portrait(sample_wild(1, i, steps=()), 64)
        assert (a == b).all() and (points == other).all() and (seen == also).all()
    assert (render_portrait(Wild(), 64)[0] == render_portrait(Portrait(), 64)[0]).all()


@pytest.mark.parametrize('step', STEPS)
def test_each_step_changes_pictures_and_landmarks_only_where_it_should(step):
    changed = []
    for i in range(12):
        plain, wild = (draw_all(sample_wild(2, i, steps=s)) for s in ((), (step,)))
        changed.append((plain[0] != wild[0]).any())
        if step in PIXELS:
            assert (plain[1] == wild[1]).all()
    assert np.mean(changed) > (0.9 if step in ('camera', 'light', 'loose', 'marks', 'habits') else 0.3)


def draw_all(p):
    return render_portrait(p, 64, slide_limit=90)


def test_a_step_is_the_same_whatever_other_steps_there_are():
    for i in range(5):
        alone, all_of_them = sample_wild(3, i, steps=('camera',)), sample_wild(3, i)
        assert alone.jpeg == all_of_them.jpeg and alone.cast == all_of_them.cast and alone.gamma == all_of_them.gamma
        assert alone.hat == alone.grin == alone.shade == 0 and alone.loose == (0, 0, 0)


def test_people_mark_a_turned_face_elsewhere():
    "At a yaw of 30 degrees annotated points of the far jaw lie 1 cm higher, of the near jaw lower; from the front 0."
    front, turned = (Wild(yaw=yaw, marked=1.0).head(90) for yaw in (0.0, 30.0))
    assert (front.marks == front.points).all() and (Wild(yaw=30.0).head(90).marks == turned.points).all()
    moved = turned.marks - turned.points
    assert moved[13, 1] == pytest.approx(-1) and moved[3, 1] == pytest.approx(1) and moved[8].tolist() == [1.1, 0]
    mirrored = Wild(yaw=-30.0, marked=1.0).head(90)
    permutation = flip_permutation(SCHEMES[68].pairs, 68).numpy()
    assert np.allclose(mirrored.marks - mirrored.points, moved[permutation] * (-1, 1))
    leaning = Wild(yaw=30.0, roll=90.0, marked=1.0).head(90)
    assert np.allclose((leaning.marks - leaning.points)[8], (0, 1.1))
    habit = Wild(habit=1.0).head(90)
    shift = habit.marks - habit.points
    assert shift[8].tolist() == [0, -0.25] and np.allclose(shift[permutation] * (-1, 1), shift)
    points = draw_portrait(Wild(yaw=30.0, marked=1.0), 128)[1]
    scale, shift = turned.placement(128, 40)
    assert np.allclose(points, scale * turned.marks + shift)


def test_a_grin_parts_the_lips_and_shows_teeth():
    shut, grin = Wild(), Wild(grin=1.0)
    a, b = shut.head(35), grin.head(35)
    assert (b.points[66] - b.points[62])[1] > (a.points[66] - a.points[62])[1] + 0.5
    others = np.delete(np.arange(68), np.arange(68)[MOUTH])
    assert (a.points[others] == b.points[others]).all() and a.teeth == 0 and b.teeth == 1
    canvas, points, _ = draw_portrait(grin, 256)
    x, y = (0.7 * points[62] + 0.3 * points[66]).round().astype(int)
    teeth, lip = canvas[:, y, x], canvas[:, round(points[57, 1]) - 3, x]
    assert teeth.min() > 0.6 > lip.min() and np.ptp(teeth) < 0.1 < np.ptp(lip)


def test_four_times_as_large_is_the_same_wild_picture():
    found = []
    for i in range(3):
        p = replace(
            sample_wild(4, i, steps=('light', 'people', 'things')),
            texture=None,
            strands=0,
            patch=0.0,
            clutter=0,
            noise=0.0,
            blur=0.0,
        )
        image, points, visible = draw_portrait(p, 128)
        large, four, _ = draw_portrait(p, 512)
        assert np.allclose((four + 0.5) / 4 - 0.5, points)
        side = image.shape[1]
        large = large.reshape(3, side, 4, side, 4).mean((2, 4))
        found += [np.hypot(*image_shift(image, large, q)) for q, seen in zip(points, visible) if seen]
    assert np.median(found) < 0.01 and np.quantile(found, 0.9) < 0.05


def test_a_loose_crop_is_the_tight_one_moved_and_scaled():
    p = replace(Wild(yaw=10.0), loose=(0.05, -0.02, np.log(1.1)))
    _, tight, _ = draw_portrait(Wild(yaw=10.0), 128, 40)
    _, loose, _ = draw_portrait(p, 128, 40)
    middle = (128 + 80 - 1) / 2
    assert np.allclose(loose, (tight - middle) * 1.1 + middle + 128 * np.array((0.05, -0.02)))


@pytest.mark.parametrize('shrink', (1.0, 1.3, 2.0, 3.5))
def test_a_smaller_copy_moves_nothing(shrink):
    y, x = np.mgrid[:168, :168]
    at = np.array((61.4, 98.7))
    blob = (
        np.repeat((20 + 200 * np.exp(-((x - at[0]) ** 2 + (y - at[1]) ** 2) / 72))[None], 3, 0).round().astype(np.uint8)
    )
    light = np.clip(recompress(blob, shrink, 0)[1] - 40.0, 0, None)
    assert np.hypot((light * x).sum() / light.sum() - at[0], (light * y).sum() / light.sum() - at[1]) < 0.05
    assert recompress(blob, shrink, 40).shape == blob.shape and (recompress(blob, shrink, 40) != blob).any()


def test_black_and_white_is():
    image = render_portrait(replace(sample_wild(5, 1), grey=1.0, warmth=0.0, noise=0.0, jpeg=0), 64)[0].astype(int)
    assert np.ptp(image, axis=0).max() <= 1
    assert np.ptp(render_portrait(replace(sample_wild(5, 1), grey=0.0, jpeg=0), 64)[0].astype(int), axis=0).max() > 20


def test_tones_and_colours_by_hand():
    neutral = dict(meter=0.0, cast=(1.0, 1.0, 1.0), grey=0.0, gamma=1.0, contrast=1.0)
    image = torch.tensor([0.2, 0.4, 1.6])[:, None, None].expand(3, 4, 4).clone()
    kept = image.clone()

    def developed(**change):
        return develop(image, **(neutral | change))[:, 0, 0].tolist()

    assert developed() == pytest.approx([0.2, 0.4, 1.6]) and torch.equal(image, kept)
    assert developed(cast=(2.0, 1.0, 0.5)) == pytest.approx([0.4, 0.4, 0.8])
    luma = 0.299 * 0.2 + 0.587 * 0.4 + 0.114 * 1.6
    assert developed(grey=1.0) == pytest.approx([luma] * 3, abs=1e-6)
    assert developed(grey=0.5) == pytest.approx([(x + luma) / 2 for x in (0.2, 0.4, 1.6)], abs=1e-6)
    assert developed(gamma=2.0) == pytest.approx([0.04, 0.16, 1.0])  # brighter than white stays white
    assert developed(contrast=1.5) == pytest.approx([0.05, 0.35, 2.15])
    assert np.mean(developed(meter=0.5)) == pytest.approx(0.5)


def test_the_camera_meters():
    for i in range(6):
        p = replace(sample_wild(6, i, steps=('light',)), meter=0.4, noise=0.0)
        assert abs(render_portrait(p, 64)[0].mean() / 255 - 0.4) < 0.08
    dark = render_portrait(replace(Wild(exposure=0.1, meter=0.4)), 64)[0]
    assert dark.mean() > 1.2 * render_portrait(Wild(exposure=0.1), 64)[0].mean()


def test_a_wild_face_depends_on_its_number_alone():
    many, few = wild_faces(12, 7, 64), wild_faces(5, 7, 64, workers=2)
    assert (many.images[:5] == few.images).all() and (many.points[:5] == few.points).all()
    assert (many.images[:5] != synthetic_faces(5, 7, 64).images).any()


@pytest.mark.slow
def test_the_catalogue_serves_every_step():
    assert list(STEP_SETS) == [
        'synthetic-slide',
        'synthetic-camera',
        'synthetic-light',
        'synthetic-people',
        'synthetic-things',
        'synthetic-loose',
        'synthetic-marks',
        'synthetic-wild',
    ]
    assert (
        STEP_SETS['synthetic-slide'] == ()
        and STEP_SETS['synthetic-camera'] == ('camera',)
        and STEP_SETS['synthetic-wild'] == EVERY
    )
    for name in STEP_SETS:
        test, train = load_faces(name, 'test', size=64, limit=2), load_faces(name, 'train', size=64, limit=2)
        assert (
            test.scheme is SCHEMES[68]
            and not set(test.names) & set(train.names)
            and CATALOGUE[name].split('train').count == 8000
        )
    slide = load_faces('synthetic-slide', 'train', size=64, limit=40)
    assert slide.visible[:, :17].all() and not synthetic_faces(40, 0, 64).visible[:, :17].all()
    squares = crop_square(landmark_box(slide.points.double(), slide.visible), 'paper')
    assert (squares - slide.squares).abs().max() < 1e-3
    loose = load_faces('synthetic-wild', 'train', size=64, limit=40)
    away = (crop_square(landmark_box(loose.points.double(), loose.visible), 'paper') - loose.squares)[:, :2].norm(
        dim=-1
    )
    assert 0.5 < away.median() < 6


def test_an_unknown_step_is_named():
    with pytest.raises(ValueError, match='camrea.*camera'):
        sample_wild(0, 0, steps=('camrea',))


@pytest.mark.slow
def test_the_job_orders_the_steps(tmp_path):
    "Two of the nine trainings, as small as can be, on drawn faces: kept with their commands, and shown."
    out = tmp_path / 'out.ipynb'
    words = [str(SCRIPTS / 'papermill'), 'nbs/realism.ipynb', str(out), '--no-progress-bar']
    for name, value in dict(
        setting='tiny',
        test_on='synthetic',
        faces=16,
        only='local-synthetic-0,local-synthetic-wild-0',
        runs=tmp_path / 'runs',
        results=tmp_path / 'kept',
    ).items():
        words += ['-p', name, str(value)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    text = ''.join(
        ''.join(o.get('text', '')) for c in json.loads(out.read_text())['cells'] for o in c.get('outputs', [])
    )
    assert '2 of 9 trainings are kept' in text and text.count('missing python -m') == 9
    kept = pd.read_csv(tmp_path / 'kept/steps.csv')
    assert (
        set(kept.training) == {'local-synthetic-0', 'local-synthetic-wild-0'} and (tmp_path / 'kept/steps.png').exists()
    )
    assert kept[kept.training == 'local-synthetic-wild-0'].command.str.contains('-p dataset synthetic-wild').all()
