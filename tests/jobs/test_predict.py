"The job predict: what it writes is what the library answers, for a folder, a film and nothing at all."

import json

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from test_jobs import papermill, run

from subpixel_nb.codec.geometry import landmark_box
from subpixel_nb.data.synthetic import synthetic_faces
from subpixel_nb.inference.predictor import Predictor
from subpixel_nb.inference.video import read_video, track_video, write_video


@pytest.fixture(scope='module')
def faces():
    return synthetic_faces(3, seed=3, size=128, split='test')


def boxes_csv(path, names, boxes):
    pd.DataFrame(
        [[name, *box.tolist()] for name, box in zip(names, boxes)], columns=['photo', 'x1', 'y1', 'x2', 'y2']
    ).to_csv(path, index=False)
    return path


def test_a_folder_with_boxes(tmp_path, faces):
    "Two of three photos with a face, in a folder and below it, and a file that is none."
    names, boxes = ['a.png', 'b/c.png'], landmark_box(faces.points)[:2]
    for name, image in zip((*names, 'wall.png'), faces.images):
        (tmp_path / 'photos' / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.transpose(1, 2, 0)).save(tmp_path / 'photos' / name)
    (tmp_path / 'photos/broken.jpg').write_bytes(b'none')
    done = run(
        'predict',
        tmp_path / 'out.ipynb',
        source=tmp_path / 'photos',
        output=tmp_path / 'found.csv',
        decoder='local',
        tau=8.0,
        flip=True,
        boxes=boxes_csv(tmp_path / 'boxes.csv', (*names, 'wall.png'), landmark_box(faces.points)),
    )
    table = pd.read_csv(tmp_path / 'found.csv')
    asked = Predictor('synthetic', decoder='local', tau=8.0, flip=True)(
        [tmp_path / 'photos' / name for name in names], boxes=boxes[:, None]
    )
    for name, points in zip(names, asked.points):
        assert np.abs(table[table.photo == name][['x', 'y']].to_numpy() - points.numpy()).max() < 1e-4, name
    assert sorted(set(table.photo)) == sorted((*names, 'wall.png')) and len(table) == 3 * 68
    printed = ''.join(''.join(o.get('text', '')) for c in done['cells'] for o in c.get('outputs', []))
    assert '3 faces in 3 pictures' in printed and 'broken.jpg: not a readable photo' in printed


def test_a_film_with_a_box_in_its_first_frame(tmp_path, faces):
    picture, box = faces.images[0].transpose(1, 2, 0), landmark_box(faces.points[:1])
    write_video(tmp_path / 'film.mp4', [(i / 25, np.roll(picture, i, 1)) for i in range(4)])
    run(
        'predict',
        tmp_path / 'out.ipynb',
        source=tmp_path / 'film.mp4',
        output=tmp_path / 'found.json',
        video=tmp_path / 'drawn.mkv',
        boxes=boxes_csv(tmp_path / 'boxes.csv', [0], box),
    )
    found, asked = (
        json.loads((tmp_path / 'found.json').read_text()),
        track_video(Predictor('synthetic'), tmp_path / 'film.mp4', boxes=box),
    )
    keypoints = torch.tensor([row['keypoints'] for row in found['annotations']]).view(-1, 68, 3)[..., :2]
    assert keypoints.shape == asked.points.shape == (4, 68, 2) and (keypoints - asked.points).abs().max() < 1e-3
    assert (asked.points[3] - asked.points[0]).median(0).values.tolist() == pytest.approx([3, 0], abs=0.3), (
        'it moves by a pixel per frame'
    )
    assert len(list(read_video(tmp_path / 'drawn.mkv'))) == 4


def test_of_nothing_the_example(tmp_path):
    run('predict', tmp_path / 'out.ipynb', output=tmp_path / 'points')
    written = [p.name for p in (tmp_path / 'points').iterdir()]
    assert written in (['astronaut.pts'], ['a drawn face.pts'])


def test_a_wrong_output_ends_it_before_the_work(tmp_path):
    done = papermill('predict', tmp_path / 'out.ipynb', source='nowhere', output='found.xls')
    assert done.returncode == 1 and "unknown suffix '.xls'" in done.stderr, done.stderr[-2000:]
