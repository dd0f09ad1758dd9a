"Every file format read back by other code than wrote it, and what it says where it cannot."

import csv
import json
import os

import numpy as np
import pytest
import torch

from subpixel_nb.data.datasets import DataError, read_pts
from subpixel_nb.inference.landmarks import (
    Landmarks,
    as_coco,
    as_table,
    check_output,
    joined,
    pts_names,
    read_boxes,
    save_landmarks,
)


def some(n: int = 3, k: int = 4, names=None, **extra) -> Landmarks:
    rng = torch.Generator().manual_seed(n)

    def draw(*shape):
        return torch.rand(*shape, generator=rng, dtype=torch.float64)

    root = draw(n, k, 2, 2)
    names = names or [f'{i}.png' for i in range(n)]
    return Landmarks(
        4000 * draw(n, k, 2) - 5,
        draw(n, k),
        root @ root.mT,
        100 * draw(n, 4),
        names,
        dict.fromkeys(names, (640, 480)),
        **extra,
    )


def test_pts_count_from_one(tmp_path):
    found = some(names=['a/x.jpg', 'a/x.jpg', 'y'])
    save_landmarks(found, tmp_path / 'out')
    assert sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob('*') if p.is_file()) == [
        'out/a/x_0.pts',
        'out/a/x_1.pts',
        'out/y.pts',
    ]
    lines = (tmp_path / 'out/y.pts').read_text().splitlines()
    assert lines[:3] == ['version: 1', 'n_points: 4', '{'] and lines[-1] == '}'
    assert [float(v) for v in lines[3].split()] == pytest.approx(
        (found.points[2, 0] + 1).tolist(), abs=1e-6
    )  # the first pixel is 1
    for name, points in zip(pts_names(found), found.points):
        assert (read_pts(tmp_path / 'out' / name, 4) - points).abs().max() < 3e-4  # float32


def test_csv(tmp_path):
    found = some(names=['a', 'b', 'b'])
    save_landmarks(found, tmp_path / 'deep/er/found.csv')
    rows = list(csv.DictReader(open(tmp_path / 'deep/er/found.csv')))
    assert len(rows) == 12 and list(rows[0]) == [
        'photo',
        'face',
        'landmark',
        'x',
        'y',
        'score',
        'var_x',
        'var_y',
        'cov_xy',
    ]
    last = rows[-1]
    assert (last['photo'], last['face'], last['landmark']) == ('b', '1', '3') and float(last['y']) == pytest.approx(
        found.points[2, 3, 1].item(), abs=1e-5
    )
    assert [float(last[c]) for c in ('var_x', 'var_y', 'cov_xy')] == pytest.approx(
        found.covariance[2, 3].flatten()[[0, 3, 1]].tolist(), rel=1e-6
    )
    timed = some(2, names=['0', '1'], times=torch.tensor([0.0, 0.04], dtype=torch.float64), tracks=torch.tensor([7, 7]))
    assert as_table(timed)[['time', 'face']].to_numpy()[[0, -1]].tolist() == [[0, 7], [0.04, 7]]


def test_coco(tmp_path):
    found = some(names=['a.png', 'b.png', 'b.png'])
    found.photos['empty.png'] = (10, 20)
    found.covariance[1, 2] = torch.inf
    save_landmarks(found, tmp_path / 'found.json')
    coco = json.loads((tmp_path / 'found.json').read_text(), parse_constant=lambda v: pytest.fail(f'{v} is not JSON'))
    assert coco == as_coco(found)
    assert [i['file_name'] for i in coco['images']] == ['a.png', 'b.png', 'empty.png'] and coco['images'][2][
        'height'
    ] == 20
    second = coco['annotations'][1]
    assert second['image_id'] == 2 and second['num_keypoints'] == 4 and second['keypoints'][2::3] == [2, 2, 2, 2]
    assert np.reshape(second['keypoints'], (4, 3))[:, :2] == pytest.approx(found.points[1].numpy(), abs=1e-5)  # 0-based
    assert second['keypoint_covariances'][2] is None and second['keypoint_covariances'][3] == pytest.approx(
        found.covariance[1, 3].flatten()[[0, 1, 3]].tolist(), abs=1e-7
    )
    x1, y1, x2, y2 = found.boxes[1].tolist()
    assert (
        second['bbox'] == pytest.approx([x1, y1, x2 - x1, y2 - y1], abs=1e-3)
        and len(coco['categories'][0]['keypoints']) == 4
    )


def test_npz_holds_everything(tmp_path):
    found = some(2, times=torch.tensor([0.0, 1.0]), tracks=torch.tensor([0, 0]))
    save_landmarks(found, tmp_path / 'found.npz')
    with np.load(tmp_path / 'found.npz', allow_pickle=False) as file:
        assert (file['points'] == found.points.numpy()).all() and (file['covariance'] == found.covariance.numpy()).all()
        assert (
            file['photos'].tolist() == list(found.photos)
            and (file['sizes'] == (640, 480)).all()
            and file['tracks'].tolist() == [0, 0]
        )
        assert (
            file['names'].tolist() == found.names
            and file['times'].tolist() == [0, 1]
            and (file['boxes'] == found.boxes.numpy()).all()
        )


def test_pts_stay_in_their_folder(tmp_path):
    assert pts_names(some(2, names=['../photos/x.jpg', '/home/y.jpg'])) == ['photos/x.pts', 'home/y.pts']
    with pytest.raises(ValueError, match='2 faces would be written to x_1.pts'):
        pts_names(some(3, names=['x.jpg', 'x.jpg', 'x_1.jpg']))


def test_nothing_is_written_where_it_cannot_be(tmp_path):
    with pytest.raises(ValueError, match="unknown suffix '.xls'; known"):
        save_landmarks(some(), tmp_path / 'a.xls')
    with pytest.raises(ValueError, match='2 faces would be written to x.pts'):
        save_landmarks(some(2, names=['x.jpg', 'x.png']), tmp_path / 'out')
    assert not list(tmp_path.iterdir())
    save_landmarks(some(), tmp_path / 'a.json')
    before, broken = (tmp_path / 'a.json').read_bytes(), some()
    broken.points[0, 0, 0] = torch.nan
    with pytest.raises(ValueError):
        save_landmarks(broken, tmp_path / 'a.json')  # JSON has no NaN
    assert (tmp_path / 'a.json').read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ['a.json']


@pytest.mark.parametrize('path', ['a.csv', 'a.npz', 'a.json', 'a'])
def test_a_name_that_is_not_utf8_is_refused_alike_by_all_formats_and_before_the_work(tmp_path, path):
    odd = os.fsdecode(b'caf\xe9.jpg')
    for check in (
        lambda: check_output(tmp_path / path, ['fine é.jpg', odd]),
        lambda: save_landmarks(some(1, names=[odd]), tmp_path / path),
    ):
        with pytest.raises(ValueError, match=r'the name of a photo is not UTF-8: caf\\udce9.jpg. Rename the photo'):
            check()
    assert not list(tmp_path.iterdir()) and check_output(tmp_path / path, ['fine é.jpg']) == tmp_path / path
    save_landmarks(some(1, names=['fine é.jpg']), tmp_path / path)


def test_what_cannot_be_written_is_known_before_the_work(tmp_path):
    with pytest.raises(ValueError, match='2 faces would be written to a/x.pts'):
        check_output(tmp_path / 'out', ['a/x.jpg', 'a/y.png', 'a/x.png'])
    assert check_output(tmp_path / 'out.csv', ['a/x.jpg', 'a/x.png'])
    (tmp_path / 'file').write_text('')
    (tmp_path / 'b.csv').mkdir()
    for path in ('file', 'file/a.csv', 'file/deep/pts', 'b.csv'):
        with pytest.raises(OSError, match='cannot be written: .* is no folder to write to, or there is a folder of'):
            check_output(tmp_path / path)


def test_rows_are_picked_and_joined():
    found = some(4, names=['a', 'a', 'b', 'c'], tracks=torch.tensor([3, 1, 3, 2]))
    assert found.faces == [3, 1, 3, 2] and some(4, names=['a', 'a', 'b', 'a']).faces == [0, 1, 0, 2]
    for index, names in (
        (0, ['a']),
        (slice(1, 3), ['a', 'b']),
        ([3, 0], ['c', 'a']),
        (torch.tensor([False, False, True, True]), ['b', 'c']),
        ([], []),
    ):
        part = found[index]
        assert (
            part.names == names
            and len(part) == len(part.points) == len(part.tracks) == len(names)
            and set(part.photos) == set('abc')
        )
    assert found[[2]].empty == ['a', 'c']
    both = joined([found[:1], joined([], 4), found[1:]])
    assert (
        both.names == found.names and torch.equal(both.points, found.points) and torch.equal(both.tracks, found.tracks)
    )
    none = joined([], 68)
    assert (
        len(none) == 0
        and none.points.shape == (0, 68, 2)
        and none.covariance.shape == (0, 68, 2, 2)
        and none.score.shape == (0, 68)
    )
    assert as_table(none).empty and as_coco(none)['annotations'] == []


# Boxes from a file


def boxes_file(path, text: str, encoding: str = 'utf-8'):
    path.write_text(text, encoding)
    return path


@pytest.mark.parametrize('encoding', ['utf-8', 'utf-8-sig'])
def test_boxes_of_photos_and_of_frames(tmp_path, encoding):
    "In any order of columns and rows, with others between; names that are numbers stay names."
    text = 'score,photo,x1,y1,x2, y2\n1,7,1,2,3,4\n1,a/b.jpg,5,6,7,8\n1,7,9,10,11,12.5\n'
    found = read_boxes(boxes_file(tmp_path / 'a.csv', text, encoding))
    assert {name: box.tolist() for name, box in found.items()} == {
        '7': [[1, 2, 3, 4], [9, 10, 11, 12.5]],
        'a/b.jpg': [[5, 6, 7, 8]],
    }
    frames = boxes_file(tmp_path / 'b.csv', 'photo,x1,y1,x2,y2\n0,1,2,3,4\n12,1,2,3,4\n', encoding)
    assert list(read_boxes(frames, frames=True)) == [0, 12]


@pytest.mark.parametrize(
    'text, said',
    [
        (
            'image,left,top,right,bottom\na.jpg,1,2,3,4\n',
            'a.csv:1: expected the columns photo, x1, y1, x2, y2, got image',
        ),
        ('photo,x1,y1,x2,h\na.jpg,1,2,3,4\n', 'got photo, x1, y1, x2, h: no y2'),
        ('photo;x1;y1;x2;y2\na.jpg;1;2;3;4\n', 'no photo .separate them by commas'),
        ('photo\tx1\ty1\tx2\ty2\na.jpg\t1\t2\t3\t4\n', 'no photo .separate them by commas'),
        ('photo,x1,y1,x2,y2\na.jpg,1,2,3,4\nb.jpg,1,two,3,4\n', 'a.csv:3: x1, y1, x2, y2: expected four numbers'),
        ('photo,x1,y1,x2,y2\na.jpg,1,2,3,\n', 'a.csv:2: x1, y1, x2, y2: expected four numbers'),
        ('photo,x1,y1,x2,y2\n,1,2,3,4\n', 'a.csv:2: photo: expected a name, got nan'),
        ('', 'a.csv: not a CSV file in UTF-8'),
    ],
)
def test_boxes_that_cannot_be_read(tmp_path, text, said):
    with pytest.raises(DataError, match=said):
        read_boxes(boxes_file(tmp_path / 'a.csv', text))


def test_boxes_of_a_film_name_frames(tmp_path):
    path = boxes_file(tmp_path / 'a.csv', 'photo,x1,y1,x2,y2\nfilm.mp4,1,2,3,4\n')
    with pytest.raises(DataError, match="a.csv:2: photo: expected the number of a frame, got 'film.mp4'"):
        read_boxes(path, frames=True)
