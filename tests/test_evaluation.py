"Tables, files and pictures of subpixel_nb.evaluation against figures computed by hand."
import dataclasses

import matplotlib
import numpy as np
import pytest
import torch

matplotlib.use('Agg')
import matplotlib.pyplot as plt

from subpixel_nb.datasets import find_dataset, load_faces
from subpixel_nb.evaluation import mean_shape, mean_shape_in_box, plot_ced, plot_faces, plot_history, results_table, save_results
from subpixel_nb.geometry import landmark_box
from subpixel_nb.training import face_errors


@pytest.fixture(scope='module')
def faces():
    return load_faces('synthetic', 'test', size=64, limit=12)


def test_mean_shape_is_a_mean_in_the_box(faces):
    shape = mean_shape(faces)
    assert torch.allclose(mean_shape_in_box(mean_shape(faces[[0]]), faces[[0]])[faces[[0]].visible], faces.points[[0]][faces[[0]].visible], atol=1e-3)
    placed = mean_shape_in_box(shape, faces)
    box = landmark_box(faces.points, faces.visible)
    assert torch.allclose((placed[:, 30] - box[:, :2]) / (box[:, 2:] - box[:, :2]), shape[30].expand(12, 2), atol=1e-5)
    scaled = dataclasses.replace(faces, points=faces.points * 0.5)                     # units of the box: a scale changes nothing
    assert torch.allclose(mean_shape(scaled), shape, atol=1e-5)


def test_table_by_hand(faces):
    off = faces.points + torch.tensor([3., 4.])                                        # 5 px everywhere
    faces = dataclasses.replace(faces, subsets=[('common',)] * 8 + [('challenge',)] * 4)
    table = results_table({'off': off, 'true': faces.points}, faces, find_dataset('300w')).set_index(['subset', 'decoder'])
    eyes = (faces.points[:, 36] - faces.points[:, 45]).norm(dim=-1)
    box = landmark_box(faces.points, faces.visible)
    w, h = box[:, 2] - box[:, 0], box[:, 3] - box[:, 1]
    error = 500 / eyes
    for subset, part in (('common', slice(0, 8)), ('challenge', slice(8, 12)), ('full', slice(0, 12))):
        row = table.loc[(subset, 'off')]
        assert row['faces'] == len(error[part])
        assert row['NME_ic %'] == pytest.approx(error[part].mean().item(), rel=1e-5)
        assert row['NME_box %'] == pytest.approx((500 / (w * h).sqrt())[part].mean().item(), rel=1e-5)
        assert row['NME_diag %'] == pytest.approx((500 / torch.hypot(w, h))[part].mean().item(), rel=1e-5)
        assert row['AUC_ic@10 %'] == pytest.approx(100 * (10 - error[part]).clamp(min=0).mean().item() / 10, abs=1e-4)
        assert row['FR_ic@10 %'] == pytest.approx(100 * (error[part] > 10).float().mean().item())
        assert table.loc[(subset, 'true'), 'AUC_ic@10 %'] == 100


def test_masked_points_count_for_nothing(faces):
    visible = faces.visible.clone(); visible[:, 50] = False
    hidden, wild = dataclasses.replace(faces, visible=visible), faces.points.clone()
    wild[:, 50] = 1e6
    assert torch.equal(face_errors(wild, hidden), face_errors(faces.points, hidden))


def test_predictions_are_in_the_photos_pixels(faces, tmp_path):
    faces = dataclasses.replace(faces, squares=torch.tensor([[300., 200., 128.]]).repeat(12, 1))   # 64 px views of 128 px squares
    table = results_table({'local': faces.points}, faces, find_dataset('synthetic'))
    save_results(tmp_path, {'local': faces.points}, torch.ones(12, 68), faces, table)
    stored = np.load(tmp_path / 'predictions.npz')
    by_hand = (faces.points - faces.margin + 0.5).double() * 2 + torch.tensor([300., 200.]) - 64
    assert np.abs(stored['points_local'] - by_hand.numpy()).max() < 1e-3
    assert stored['names'].tolist() == faces.names and sorted(p.name for p in tmp_path.iterdir()) == ['predictions.npz', 'results.csv']


def test_pictures(faces):
    found = {'a': faces.points + 1, 'b': faces.points + 2}
    ced = plot_ced(found, faces, find_dataset('synthetic'))
    line = ced.axes[0].lines[0].get_ydata()
    assert (np.diff(line) >= 0).all() and line[-1] == 100
    assert len(plot_history([dict(epoch=1, loss=2.)]).axes) == 2
    titles = [ax.get_title() for ax in plot_faces(faces.points * torch.linspace(1, 1.1, 12)[:, None, None], faces, 2).axes]
    errors = [float(t.split(': ')[1].split()[0]) for t in titles]
    assert [t.split(':')[0] for t in titles] == ['best'] * 2 + ['median'] * 2 + ['worst'] * 2 and errors == sorted(errors)
    plt.close('all')
