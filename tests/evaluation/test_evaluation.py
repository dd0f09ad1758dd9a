"Tables, files and pictures of subpixel_nb.evaluation.evaluation against figures computed by hand."

import dataclasses
import json

import matplotlib as mpl
import numpy as np
import pytest
import torch

mpl.use('Agg')
import matplotlib.pyplot as plt

from subpixel_nb.codec.geometry import landmark_box
from subpixel_nb.data.crops import load_faces
from subpixel_nb.data.datasets import DataError, find_dataset
from subpixel_nb.evaluation.evaluation import (
    best_gains,
    breakdown,
    jitter_table,
    mean_shape,
    mean_shape_in_box,
    plot_ced,
    plot_chosen,
    plot_faces,
    plot_history,
    plot_training_views,
    read_predictions,
    results_table,
    save_results,
    worst_faces,
)
from subpixel_nb.training.loop import face_errors
from subpixel_nb.training.preview import training_views
from subpixel_nb.training.recipe import configure


@pytest.fixture(scope='module')
def faces():
    return load_faces('synthetic', 'test', size=64, limit=12)


def test_mean_shape_is_a_mean_in_the_box(faces):
    shape = mean_shape(faces)
    assert torch.allclose(
        mean_shape_in_box(mean_shape(faces[[0]]), faces[[0]])[faces[[0]].visible],
        faces.points[[0]][faces[[0]].visible],
        atol=1e-3,
    )
    placed = mean_shape_in_box(shape, faces)
    box = landmark_box(faces.points, faces.visible)
    assert torch.allclose((placed[:, 30] - box[:, :2]) / (box[:, 2:] - box[:, :2]), shape[30].expand(12, 2), atol=1e-5)
    scaled = dataclasses.replace(faces, points=faces.points * 0.5)  # units of the box: a scale changes nothing
    assert torch.allclose(mean_shape(scaled), shape, atol=1e-5)


def test_table_by_hand(faces):
    off = faces.points + torch.tensor([3.0, 4.0])  # 5 px everywhere
    faces = dataclasses.replace(faces, subsets=[('common',)] * 8 + [('challenge',)] * 4)
    table = results_table({'off': off, 'true': faces.points}, faces, find_dataset('300w')).set_index(
        ['subset', 'decoder']
    )
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
    visible = faces.visible.clone()
    visible[:, 50] = False
    hidden, wild = dataclasses.replace(faces, visible=visible), faces.points.clone()
    wild[:, 50] = 1e6
    assert torch.equal(face_errors(wild, hidden), face_errors(faces.points, hidden))


def test_predictions_are_in_the_photos_pixels(faces, tmp_path):
    faces = dataclasses.replace(
        faces, squares=torch.tensor([[300.0, 200.0, 128.0]]).repeat(12, 1)
    )  # 64 px views of 128 px squares
    table = results_table({'local': faces.points}, faces, find_dataset('synthetic'))
    save_results(tmp_path, {'local': faces.points}, torch.ones(12, 68), faces, table)
    stored = np.load(tmp_path / 'predictions.npz')
    by_hand = (faces.points - faces.margin + 0.5).double() * 2 + torch.tensor([300.0, 200.0]) - 64
    assert np.abs(stored['points_local'] - by_hand.numpy()).max() < 1e-3
    assert stored['names'].tolist() == faces.names and sorted(p.name for p in tmp_path.iterdir()) == [
        'predictions.npz',
        'results.csv',
    ]


def test_pictures(faces):
    found = {'a': faces.points + 1, 'b': faces.points + 2}
    ced = plot_ced(found, faces, find_dataset('synthetic'))
    line = ced.axes[0].lines[0].get_ydata()
    assert (np.diff(line) >= 0).all() and line[-1] == 100
    assert len(plot_history([dict(epoch=1, loss=2.0)]).axes) == 2
    titles = [
        ax.get_title() for ax in plot_faces(faces.points * torch.linspace(1, 1.1, 12)[:, None, None], faces, 2).axes
    ]
    errors = [float(t.split(': ')[1].split()[0]) for t in titles]
    assert [t.split(':')[0] for t in titles] == ['best'] * 2 + ['median'] * 2 + ['worst'] * 2 and errors == sorted(
        errors
    )
    plt.close('all')


@pytest.fixture
def elsewhere(faces):
    "Faces of made photos in folders, two of them in one photo, and pretended predictions (N, 68, 2) in photo px."
    names = [f'a/{i}.jpg' for i in range(11)] + ['a/3.jpg']
    faces = dataclasses.replace(faces, names=names, squares=torch.tensor([[300.0, 200.0, 128.0]]).repeat(12, 1))
    from subpixel_nb.codec.geometry import transform_points

    off = faces.points + torch.randn(12, 68, 2, generator=torch.Generator().manual_seed(0))
    return faces, off, transform_points(faces.photo_map(), off.double()).numpy()


def write_predictions(path, names, points):
    if path.suffix == '.npz':
        np.savez(path, names=names, points=points)
    if path.suffix == '.csv':
        lines = ['image,' + ','.join(f'{a}{i}' for i in range(points.shape[1]) for a in 'xy')]
        path.write_text(
            '\n'.join(lines + [','.join([n, *map(repr, p.ravel().tolist())]) for n, p in zip(names, points)])
        )
    if path.suffix == '.json':
        flat = [np.concatenate([p, np.ones((len(p), 1))], 1).ravel().tolist() for p in points]
        results = [dict(image_id=i, category_id=1, keypoints=k, score=1.0) for i, k in enumerate(flat)]
        path.write_text(
            json.dumps(dict(images=[dict(id=i, file_name=n) for i, n in enumerate(names)], annotations=results))
        )


@pytest.mark.parametrize('suffix', ['.npz', '.csv', '.json'])
@pytest.mark.parametrize('bare', [False, True])
def test_predictions_from_elsewhere(elsewhere, tmp_path, suffix, bare):
    "In any order of photos, by full or bare name; two faces of one photo in their order; another base is subtracted."
    faces, off, photo = elsewhere
    order = [{11: 3, 3: 11}.get(i, i) for i in range(11, -1, -1)]
    names = [faces.names[i].split('/')[-1] if bare else faces.names[i] for i in order]
    write_predictions(tmp_path / f'net{suffix}', names, photo[order])
    found = read_predictions(tmp_path / f'net{suffix}', faces)
    assert list(found) == ['net'] and torch.allclose(found['net'], off, atol=1e-3)
    write_predictions(tmp_path / f'one{suffix}', names, photo[order] + 1)
    assert torch.allclose(read_predictions(tmp_path / f'one{suffix}', faces, base=1)['one'], off, atol=1e-3)


def test_our_own_predictions_come_back(elsewhere, tmp_path):
    faces, off, _ = elsewhere
    save_results(
        tmp_path,
        {'local': off, 'true': faces.points},
        torch.ones(12, 68),
        faces,
        results_table({'local': off}, faces, find_dataset('synthetic')),
    )
    found = read_predictions(tmp_path / 'predictions.npz', faces)
    assert set(found) == {'local', 'true'} and torch.allclose(found['local'], off, atol=1e-3)


def test_predictions_that_cannot_be_used(elsewhere, tmp_path):
    faces, _, photo = elsewhere

    def refused(name, names, points, said, kind=DataError):
        write_predictions(tmp_path / name, names, points)
        with pytest.raises(kind, match=said):
            read_predictions(tmp_path / name, faces)

    refused('a.csv', faces.names[:-1], photo[:-1], 'face 2 of a/3.jpg has no prediction')
    refused('b.json', faces.names, photo[:, :29], '29 points, the faces have 68')
    refused('c.npz', ['x.jpg'] * 12, photo, 'face 1 of a/0.jpg has no prediction')
    (tmp_path / 'd.csv').write_text('name,x\na/1.jpg,1,2,three,4\n')
    with pytest.raises(DataError, match='d.csv:2: expected a name and x y pairs'):
        read_predictions(tmp_path / 'd.csv', faces)
    (tmp_path / 'e.json').write_text('{"annotations": [{"image_id": 3}]}')
    with pytest.raises(DataError, match='result 0: KeyError'):
        read_predictions(tmp_path / 'e.json', faces)
    (tmp_path / 'f.npz').write_bytes(b'no archive')
    with pytest.raises(DataError, match='f.npz: not readable as .npz predictions'):
        read_predictions(tmp_path / 'f.npz', faces)
    with pytest.raises(DataError, match='expected a file ending in .npz, .csv, .json'):
        read_predictions(tmp_path / 'g.txt', faces)
    with pytest.raises(FileNotFoundError, match='there are no predictions'):
        read_predictions(tmp_path / 'h.csv', faces)


def test_breakdown_by_hand(faces):
    "Every point 2 px off but the mouth's, 4 px: the mean of all points lies between, by region each has its own."
    off = torch.full((68, 1), 2.0)
    off[48:] = 4.0
    table = breakdown(faces.points + off * torch.tensor([0.0, 1.0]), faces, find_dataset('300w')).set_index('part')
    eyes = (faces.points[:, 36] - faces.points[:, 45]).norm(dim=-1)

    def part(index: slice) -> float:
        visible = faces.visible[:, index]
        return (100 * (off[index, 0] * visible).sum(1) / visible.sum(1) / eyes).mean().item()

    assert table.loc['mouth', 'NME_ic %'] == pytest.approx(part(slice(48, 68)), rel=1e-5)
    assert table.loc['nose', 'NME_ic %'] == pytest.approx(part(slice(27, 36)), rel=1e-5)
    assert table.loc['all', 'NME_ic %'] == pytest.approx(part(slice(0, 68)), rel=1e-5)
    several = table[table.faces > 1]
    assert (
        (several.low <= several['NME_ic %']).all()
        and (several['NME_ic %'] <= several.high).all()
        and table.loc['all', 'faces'] == 12
    )
    assert table.loc[[p for p in table.index if 'yaw' in p], 'faces'].sum() == 12


def test_jitter_is_measured_in_the_photo(faces):
    "A crop of half the photo's scale: an offset of +-1 view px is +-2 photo px, with a second difference of 8 px."
    still = dataclasses.replace(
        faces,
        points=faces.points[:1].expand(12, -1, -1).clone(),
        visible=torch.ones_like(faces.visible),
        squares=torch.tensor([[300.0, 200.0, 128.0]]).repeat(12, 1),
        names=[f'001/{i:06d}' for i in range(12)],
    )
    shake = torch.tensor([0.0, 1.0]) * torch.tensor([1.0, -1.0]).repeat(6)[:, None, None]
    table = jitter_table({'true': still.points, 'shaken': still.points + shake}, still)
    assert table.loc['shaken', 'predicted'] == pytest.approx(8, rel=1e-4) and table.loc[
        'shaken', 'velocity'
    ] == pytest.approx(4, rel=1e-4)
    assert table.loc['true'].abs().max() == pytest.approx(0, abs=1e-4)


def test_chosen_faces_are_drawn(faces):
    off = faces.points + 1
    fig = plot_chosen({'baseline': (off, [3, 1]), 'ours': (faces.points, [3, 1]), 'worst': (off, [0])}, faces)
    assert fig.axes[0].get_title() == f'baseline: {face_errors(off, faces)[3]:.2f} %' and fig.axes[
        4
    ].get_title().startswith('worst')
    plt.close(fig)


def test_best_gains_and_worst_faces():
    ours, baseline = [3.0, 2.0, 5.0, 1.0, 6.0, 0.5], [4.0, 9.0, 3.0, np.nan, 6.0, 7.5]
    assert best_gains(torch.tensor(ours), torch.tensor(baseline), 10) == [
        1,
        5,
        0,
    ]  # 7 twice: in order; 4 gains 0, 2 loses, 3 is NaN
    assert best_gains(ours, baseline, 1) == [1]
    assert worst_faces(torch.tensor(baseline), 3) == [1, 5, 4] and worst_faces(baseline, 99) == [1, 5, 4, 0, 2]
    with pytest.raises(ValueError, match=r'got \(2,\) and \(3,\)'):
        best_gains([1.0, 2.0], [1.0, 2.0, 3.0], 1)
    with pytest.raises(ValueError, match='at least 1, got 0'):
        worst_faces([1.0], 0)
    with pytest.raises(ValueError, match=r'got \(1, 1\)'):
        worst_faces([[1.0]], 1)


def test_a_contact_sheet_has_a_row_per_face(faces):
    "One view: picture and target. Two views: both, their targets, and what Eq. 6 merges. Every visible point is drawn."
    for method, titles in (
        ('local', ['view', 'target']),
        ('siamese', ['view 1', 'view 2', 'target 1', 'target 2', 'merged (Eq. 6)']),
    ):
        seen = training_views(configure(method=method, size=64, depth=2, batch=4), faces, count=2)
        axes = np.reshape(plot_training_views(seen).axes, (2, -1))
        assert [ax.get_title() for ax in axes[0]] == titles
        drawn = [len(ax.collections[0].get_offsets()) for ax in axes[:, 0]]
        assert drawn == seen.views[0].visible.sum(1).tolist()
        assert all(len(ax.images) == 2 for ax in axes[:, -1])  # the picture and its glow
    plt.close('all')
