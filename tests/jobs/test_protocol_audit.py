"The protocol audit as a user calls it: on predictions with known figures, on simulated ones, and on wrong input."

import json

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from conftest import ROOT
from test_jobs import papermill, run

from subpixel_nb.data.datasets import DataError

TABLES = {'normalisers', 'auc', 'crops', 'base', 'worth', 'paper_300w', 'paper_aflw', 'paper_cofw', 'paper_slack'}


def printed(notebook: dict) -> str:
    return ''.join(''.join(o.get('text', '')) for c in notebook['cells'] for o in c.get('outputs', []))


def write(path, count: int = 30, points: int = 68, **changes) -> dict:
    "A predictions.npz of random faces of 100 x 200 px, each point 3 px too far left; the last face is half hidden."
    rng = np.random.default_rng(0)
    truth = rng.uniform(0.1, 0.9, (count, points, 2))
    truth[:, 0], truth[:, 1] = 0, 1  # the box's corners
    truth = truth * [100, 200] + 500
    visible = np.ones((count, points), bool)
    visible[-1, points // 2 :] = False
    arrays = (
        dict(
            names=np.array([f'{i}.jpg' for i in range(count)]),
            truth=truth,
            visible=visible,
            scores=np.ones((count, points)),
            points_local=truth - [3, 0],
            points_argmax=truth - [9, 0],
        )
        | changes
    )
    np.savez(path, **arrays)
    return arrays


def execute(**parameters) -> None:
    "The job's cells in this process, with parameters put in where papermill puts them: quicker than a kernel each."
    space = dict(display=print)
    for cell in json.loads((ROOT / 'nbs/protocol_audit.ipynb').read_text())['cells']:
        if cell['cell_type'] != 'code':
            continue
        exec(''.join(cell['source']), space)
        if 'parameters' in cell['metadata'].get('tags', []):
            space.update(parameters)
    plt.close('all')


@pytest.fixture(scope='module')
def audit(tmp_path_factory):
    "The executed job on those faces, its folder, and the predictions."
    folder = tmp_path_factory.mktemp('audit')
    arrays = write(folder / 'predictions.npz')
    notebook = run(
        'protocol_audit', folder / 'out.ipynb', predictions=folder / 'predictions.npz', output=folder / 'tables'
    )
    return notebook, folder / 'tables', arrays


def test_it_writes_its_tables_and_one_picture(audit):
    notebook, folder, _ = audit
    assert {p.name for p in folder.iterdir()} == {f'{t}.csv' for t in TABLES} | {'protocol_audit.png'}
    assert 'points_local: 30 faces, 68 points' in printed(notebook) and 'PRETENDED' not in printed(notebook)


def test_normalisers_by_hand(audit):
    "3 px over sqrt(100 200), over hypot(100, 200), over 200 px, and over each face's eyes."
    _, folder, arrays = audit
    table = pd.read_csv(folder / 'normalisers.csv', index_col=0)
    for kind, length in dict(box=20000**0.5, diag=50000**0.5, side=200).items():
        assert table.loc[kind, 'NME'] == pytest.approx(300 / length, rel=1e-5)
    eyes = np.linalg.norm(arrays['truth'][:, 36] - arrays['truth'][:, 45], axis=-1)
    assert table.loc['ic', 'NME'] == pytest.approx(np.mean(300 / eyes), rel=1e-5)
    assert (
        table.loc['ic', 'low'] < table.loc['ic', 'NME'] < table.loc['ic', 'high']
        and table.loc['box', 'low'] == table.loc['box', 'high']
    )
    assert table.loc['ic', 'AUC@10'] == pytest.approx(np.mean(100 * np.maximum(0, 10 - 300 / eyes) / 10), rel=1e-5)


def test_areas_by_hand(audit):
    "All faces err by 2.1213 % of the box: the exact area is 1 - e / t, FAN counts the bins above it."
    area, e = pd.read_csv(audit[1] / 'auc.csv', index_col=0)['AUC_box@7'], 3 / 20000**0.5
    assert area['exact'] == pytest.approx(100 * (1 - e / 0.07), rel=1e-5)
    assert area['fan'] == pytest.approx(100 * sum(e < i / 999 for i in range(70)) / 70, rel=1e-5)
    assert area['simpson'] - area['exact'] == pytest.approx(100 / 700, abs=0.15) and area['luvli'] == pytest.approx(
        area['exact'], abs=0.15
    )


def test_crops_by_hand(audit):
    "Boxes of 100 x 200 px: squares of 200 times 256/220, 1.25 and 1.1, and 300 times 200/195."
    crops = pd.read_csv(audit[1] / 'crops.csv', index_col=0)
    sides = pd.Series(dict(paper=200 * 256 / 220, hrnet=250, luvli=220, fan=300 * 200 / 195))
    np.testing.assert_allclose(crops['face, px of 256'][sides.index], 200 * 256 / sides, rtol=1e-5)
    ic, one = 'same error in heatmap px', 'NME of 1 heatmap px'
    np.testing.assert_allclose(crops[ic] / crops.loc['paper', ic], (sides / sides.paper)[crops.index], rtol=1e-4)
    np.testing.assert_allclose(crops[one] / crops.loc['paper', one], (sides / sides.paper)[crops.index], rtol=1e-4)
    np.testing.assert_allclose(crops['quantised'] / crops[one], 0.3826, rtol=0.05)  # mean distance within a pixel
    assert (crops['argmax, %'] > crops['quarter, %']).all() and (crops['quarter, %'] > crops['local, %']).all()


def test_offset_by_hand(audit):
    "Found 3 px to the left, moved by (1, 1): (-2, 1) is left, sqrt(5) in place of 3; the offset alone is sqrt(2)."
    _, folder, arrays = audit
    row = pd.read_csv(folder / 'base.csv', index_col=0).loc['all']
    eyes = np.linalg.norm(arrays['truth'][:, 36] - arrays['truth'][:, 45], axis=-1)
    assert row['with offset'] == pytest.approx(np.mean(100 * 5**0.5 / eyes), rel=1e-5)
    assert row['offset alone'] == pytest.approx(np.mean(100 * 2**0.5 / eyes), rel=1e-5)
    worth = pd.read_csv(folder / 'worth.csv').set_index(['choice', 'to'])
    assert worth.loc[('pixel base', '1 px apart'), 'worth'] == pytest.approx(row['with offset'] - row['NME'], abs=1e-4)
    assert worth.loc[('box', 'max - min + 1'), 'becomes'] == pytest.approx(300 / (101 * 201) ** 0.5, rel=1e-5)
    assert worth.loc[('normaliser', 'box'), 'worth'] == pytest.approx(300 / 20000**0.5 - np.mean(300 / eyes), rel=1e-4)
    shown = np.where(arrays['visible'], (300 / eyes)[:, None], np.nan)
    assert worth.loc[('average', 'over visible points'), 'becomes'] == pytest.approx(np.nanmean(shown), rel=1e-5)


def test_what_the_paper_prints(audit):
    "300W: (554 2.61 + 135 4.13) / 689 = 2.91, not 2.94. AFLW: 2.14 / 1.31 = 1.63. FAN: AUC 66.5 < 100 (1 - 2.32 / 7)."
    _, folder, _ = audit
    full = pd.read_csv(folder / 'paper_300w.csv', index_col=0)
    assert (
        full.loc['Ours', 'computed'] == pytest.approx((554 * 2.61 + 135 * 4.13) / 689, abs=1e-4)
        and full.loc['Ours', 'printed'] == 2.94
    )
    assert full.index[~full.fits].tolist() == ['CPM+SRB', 'LAB (w/B)', 'Ours']
    aflw = pd.read_csv(folder / 'paper_aflw.csv', index_col=0).loc['Ours']
    assert aflw.ratio == pytest.approx(2.14 / 1.31, abs=1e-4) and aflw.low > 2**0.5
    assert np.hypot(aflw.aspect, 1) / aflw.aspect**0.5 == pytest.approx(
        aflw.ratio, abs=1e-3
    )  # a box so long has that ratio
    slack = pd.read_csv(folder / 'paper_slack.csv').set_index(['test set', 'method'])
    assert slack.loc[('300w-private', 'FAN'), 'slack'] == pytest.approx(66.5 - 100 * (1 - 2.32 / 7), abs=1e-3)
    assert not slack.loc[('300w-private', 'FAN'), 'possible'] and slack.loc[('300w-private', 'Ours'), 'possible']
    cofw = pd.read_csv(folder / 'paper_cofw.csv', index_col=0)
    assert (cofw.printed / cofw.by_corners_if_printed_by_pupils).between(1.3, 1.5).all() and set(
        cofw.index[~cofw.marked]
    ) >= {'HR-Net', 'Ours'}


def test_drawn_faces_where_there_is_nothing_else(tmp_path, capsys):
    "No predictions, no annotations: it pretends, and says so on the page and in the table."
    (tmp_path / 'empty/annotations').mkdir(parents=True)
    execute(data=str(tmp_path / 'empty'), faces=40, output=str(tmp_path / 'tables'))
    said = capsys.readouterr().out
    assert 'PRETENDED predictions around the points of drawn faces' in said and 'Gaussian errors' in said
    assert 'skipped: no AFLW annotations' in said and '40 drawn faces, because COFW is not here' in said
    worth = pd.read_csv(tmp_path / 'tables/worth.csv')
    assert worth.predictions.str.startswith('PRETENDED').all()
    assert worth.set_index('to').loc['over visible points', 'worth'] != 0  # turned heads hide points


@pytest.mark.data
def test_real_faces_are_the_default(tmp_path, shared_data, capsys):
    execute(data=str(shared_data), output=str(tmp_path / 'tables'))
    assert (
        'PRETENDED predictions around the true points of the public 300W test faces: 689 faces'
        in capsys.readouterr().out
    )
    table = pd.read_csv(tmp_path / 'tables/normalisers.csv', index_col=0)
    for kind, known in dict(
        pupil=4.203, box=1.742, side=1.687, diag=1.229
    ).items():  # a trained network's, by eye corners 2.994
        assert table.loc[kind, 'ratio'] == pytest.approx(known / 2.994, rel=0.02)
    area = pd.read_csv(tmp_path / 'tables/auc.csv', index_col=0)['d AUC_box@7']
    for rule, known in dict(luvli=0.069, simpson=0.143, fan=-0.696).items():
        assert area[rule] == pytest.approx(known, abs=0.04)


def test_a_wrong_parameter_ends_the_job(tmp_path):
    done = papermill('protocol_audit', tmp_path / 'out.ipynb', datset='300w', output=tmp_path / 'o')
    assert done.returncode == 1 and "unknown parameter 'datset'; known: dataset" in done.stderr, done.stderr[-2000:]


@pytest.mark.parametrize(
    'parameters, error, said',
    [
        (dict(predictions='nowhere.npz'), FileNotFoundError, 'nowhere.npz: there are no predictions'),
        (dict(decoder='locl'), ValueError, "unknown decoder of .*predictions.npz 'locl'; known: local"),
        (dict(dataset='wflw'), DataError, r'predictions.npz: expected \(N, 98, 2\) for wflw'),
        (dict(dataset='wflw', predictions=None), ValueError, 'has 98 points, what is pretended has 68'),
        (dict(dataset='folder'), ValueError, 'takes its layout from files'),
        (dict(dataset='300-w'), ValueError, "unknown dataset '300-w'; known: 300w"),
        (dict(data='nowhere'), FileNotFoundError, 'nowhere has no folder annotations'),
        (dict(faces='many'), ValueError, "faces: expected int, got str 'many'"),
        (dict(faces=1), ValueError, '2 or more'),
    ],
)
def test_wrong_parameters_are_named(tmp_path, parameters, error, said):
    write(tmp_path / 'predictions.npz', 4)
    given = dict(predictions=str(tmp_path / 'predictions.npz'), output=str(tmp_path / 'o')) | parameters
    with pytest.raises(error, match=said):
        execute(**given)


@pytest.mark.parametrize(
    'spoil, said',
    [
        (lambda path: path.write_bytes(path.read_bytes()[:2000]), 'predictions.npz: no .npz of arrays'),
        (lambda path: path.write_bytes(b''), 'predictions.npz: no .npz of arrays'),
        (lambda path: path.write_text('x y'), 'predictions.npz: no .npz of arrays'),
        (
            lambda path: np.savez(path, truth=np.zeros((3, 68, 2))),
            'predictions.npz: expected truth, visible and points_NAME',
        ),
        (lambda path: write(path, 4, points_local=np.zeros((4, 67, 2))), r'points_local \(4, 67, 2\)'),
        (lambda path: write(path, 4, points_local=np.full((4, 68, 2), np.nan)), 'face 0, point 0'),
    ],
)
def test_a_bad_file_is_named(tmp_path, spoil, said):
    write(tmp_path / 'predictions.npz', 4)
    spoil(tmp_path / 'predictions.npz')
    with pytest.raises(ValueError, match=said):
        execute(predictions=str(tmp_path / 'predictions.npz'), output=str(tmp_path / 'o'))
