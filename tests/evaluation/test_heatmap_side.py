"Networks of three strides: their grid, what they cost, and the job that trains, measures and keeps them."

import json
import subprocess

import pandas as pd
import pytest
import torch
from conftest import ROOT, SCRIPTS

from subpixel_nb.codec.quantization import ROUNDING, round_trip
from subpixel_nb.data.crops import load_faces
from subpixel_nb.evaluation.ablation import ABLATION_SETTINGS, Results, Training, fill_results
from subpixel_nb.evaluation.heatmap_side import network_cost, side_trainings
from subpixel_nb.inference.predictor import Predictor
from subpixel_nb.model.hourglass import STRIDES
from subpixel_nb.training.recipe import configure


def test_the_grid_keeps_the_innermost_map():
    "At each stride the hourglass ends at the same side, and stride 4 is the plain training of the setting."
    for setting in ABLATION_SETTINGS:
        trainings = side_trainings(setting, ['local', 'window'], seeds=2)
        configs = [configure(**t.parameters(setting, dataset='300w')) for t in trainings]
        assert len({c.size // (c.stride * 2**c.depth) for c in configs}) == 1
        assert {c.stride for c in configs} == ({4, 8} if setting == 'tiny' else set(STRIDES))
        assert len({t.name for t in trainings}) == len(trainings)
        plain = {t for t, c in zip(trainings, configs) if c.stride == 4}
        assert plain == {Training(m, seed) for m in ('local', 'window') for seed in (0, 1)}


def test_a_larger_stride_costs_less():
    faces = load_faces('synthetic', 'train', size=64, limit=16)
    small = dict(width=8, stacks=1, size=64, batch=4, precision='float32')
    rows = pd.DataFrame([network_cost(configure(**small, stride=s, depth=d), faces, 1) for s, d in ((4, 2), (8, 1))])
    assert rows.side.tolist() == [16, 8] and (rows.multiply_adds.diff()[1:] < 0).all()
    assert (rows[['views_per_s', 'faces_per_s']] > 0).all(axis=None)


@pytest.mark.parametrize('stride', STRIDES)
def test_round_trips_of_every_stride(stride):
    "Between pixels the fit is exact; rounding costs 0.383 heatmap px; a decoder in between lies in between."
    places = 18 + 220 * torch.rand(3000, 2, generator=torch.Generator().manual_seed(0))

    def error(**codec) -> float:
        return (round_trip(places, 256 // stride, stride=stride, **codec) - places).norm(dim=-1).mean().item()

    assert error(method='gaussian') < 0.01
    for encoding in ('round', 'continuous'):
        assert error(encoding=encoding, method='argmax') == pytest.approx(ROUNDING * stride, rel=0.05)
    assert 0.01 < error(method='local') < error(method='quarter') < ROUNDING * stride


@pytest.mark.slow
def test_a_finished_network_of_stride_8_is_measured_and_predicts(tmp_path):
    test = load_faces('synthetic', 'test', size=64, limit=8)
    (training,) = side_trainings('tiny', ['local'])[1:]
    kept = Results(tmp_path / 'kept', 'tiny')
    place = dict(dataset='synthetic', root=None, cache=str(tmp_path / 'cache'))
    fill_results(kept, [training], 'tiny', test, tmp_path, **place)
    again = Results(tmp_path / 'kept', 'tiny')
    assert again.has(training) and again.errors('local-stride8-depth1', 'local 5')[0].shape == (8,)
    command = again.rows.command[0]
    assert str(tmp_path) not in command and '-p stride 8' in command and '-p depth 1' in command
    fill_results(again, [training], 'tiny', test, tmp_path / 'nowhere', **place)  # kept: trains nothing
    photo = torch.zeros(3, 90, 90, dtype=torch.uint8)
    assert Predictor(tmp_path / training.name)(photo, boxes=[20, 20, 70, 70]).points.shape == (1, 68, 2)


@pytest.mark.slow
def test_a_failed_training_is_named_and_the_others_are_kept(tmp_path):
    test, kept = load_faces('synthetic', 'test', size=64, limit=8), Results(tmp_path / 'kept', 'tiny')
    wrong = Training('local', 0, (('stride', 16), ('depth', 3)))
    with pytest.raises(RuntimeError, match='(?s)1 of 1 trainings failed.*-depth3-0: .*got 64.*depth is 2'):
        fill_results(kept, [wrong], 'tiny', test, tmp_path, dataset='synthetic')


@pytest.mark.slow
def test_the_job(tmp_path):
    out, words = tmp_path / 'out.ipynb', []
    given = dict(
        setting='tiny', dataset='synthetic', methods='local', runs=tmp_path / 'runs', results=tmp_path / 'kept'
    )
    for name, value in given.items():
        words += ['-p', name, str(value)]
    command = [str(SCRIPTS / 'papermill'), 'nbs/heatmap_side.ipynb', str(out), '--no-progress-bar', *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    text = ''.join(
        ''.join(o.get('text', '')) for c in json.loads(out.read_text())['cells'] for o in c.get('outputs', [])
    )
    assert '2 trainings are kept' in text
    assert set(pd.read_csv(tmp_path / 'kept/synthetic-tiny.csv').kind) == {'local', 'local-stride8-depth1'}
    assert pd.read_csv(tmp_path / 'kept/synthetic-tiny-cost.csv').stride.tolist() == [4, 8]
