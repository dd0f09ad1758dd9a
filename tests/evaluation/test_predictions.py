"Result files of other systems, as they write them, and those that cannot be scored."

import dataclasses
import json
import pickle
import re
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from PIL import Image

from subpixel_nb.codec.geometry import transform_points
from subpixel_nb.data.crops import load_faces
from subpixel_nb.data.datasets import DataError, find_dataset, read_split
from subpixel_nb.evaluation.evaluation import describe_protocol, has_photos, read_predictions
from subpixel_nb.inference.landmarks import Landmarks, save_landmarks
from subpixel_nb.training.loop import face_errors


@pytest.fixture(scope='module')
def elsewhere():
    "Six faces of five photos in folders, of which one holds two; pretended predictions (6, 68, 2) in photo px."
    faces = load_faces('synthetic', 'test', size=64, limit=6)
    names = [f'test/{name}.jpg' for name in ('a', 'b', 'c_1', 'd', 'e', 'b')]
    squares = torch.tensor([[300.0, 200.0, 128.0]]).repeat(6, 1) + 300 * torch.arange(6)[:, None] * torch.tensor(
        [1, 0, 0]
    )
    faces = dataclasses.replace(faces, names=names, squares=squares)
    off = faces.points + torch.randn(6, 68, 2, generator=torch.Generator().manual_seed(0))
    return faces, off, transform_points(faces.photo_map(), off.double()).numpy()


def flat(points) -> list[float]:
    return np.concatenate([points, np.ones((len(points), 1))], 1).ravel().tolist()


def dump(path, content):
    path.write_text(json.dumps(content), 'utf-8')
    return path


def by_name(faces, photo) -> dict[str, list]:
    "Photo -> its faces, those of photo b in the other order, as a detector may find them."
    found: dict[str, list] = {}
    for name, points in zip(reversed(faces.names), photo[::-1]):
        found.setdefault(name, []).append(points.tolist())
    return found


# As other systems write them


def test_spiga(elsewhere, tmp_path):
    "Its results_300wpublic_test.json: a list with imgpath, bbox, headpose, ids, landmarks and visible."
    faces, off, photo = elsewhere
    results = [
        dict(
            imgpath=f'images/{name}',
            bbox=[1.0, 2.0, 3.0, 4.0],
            headpose=[0.0] * 6,
            ids=list(range(68)),
            landmarks=points.tolist(),
            visible=[1.0] * 68,
        )
        for name, points in zip(faces.names, photo)
    ]
    found = read_predictions(dump(tmp_path / 'results_300wpublic_test.json', results), faces)
    assert list(found) == ['results_300wpublic_test']
    assert torch.allclose(found['results_300wpublic_test'], off, atol=1e-3)


@pytest.mark.parametrize('nested', [False, True])
def test_mmpose_results_with_image_ids(elsewhere, tmp_path, nested):
    "CocoMetric's NAME.keypoints.json, and result_keypoints.json of mmpose 0.x: the ids are those of the annotations."
    faces, off, photo = elsewhere
    ids = {name: 7 + i for i, name in enumerate(dict.fromkeys(faces.names))}
    coco = dump(tmp_path / 'annotations.json', dict(images=[dict(id=i, file_name=n) for n, i in ids.items()]))
    results = [
        dict(
            image_id=ids[name],
            category_id=1,
            score=0.9,
            keypoints=np.reshape(flat(points), (-1, 3)).tolist() if nested else flat(points),
        )
        for name, points in zip(faces.names, photo)
    ]
    path = dump(tmp_path / 'hrnet.keypoints.json', results)
    assert torch.allclose(read_predictions(path, faces, images=coco)['hrnet.keypoints'], off, atol=1e-3)
    with pytest.raises(DataError, match='result 0: image_id 7 names no photo, .* -p images FILE'):
        read_predictions(path, faces)


def test_mmpose_whole_body(elsewhere, tmp_path):
    "The 68 points of the face beside the body's 17."
    faces, off, photo = elsewhere
    results = [dict(image_id=n, keypoints=[0.0] * 51, face_kpts=flat(p)) for n, p in zip(faces.names, photo)]
    found = read_predictions(dump(tmp_path / 'whole.json', results), faces)
    assert torch.allclose(found['whole'], off, atol=1e-3)


@pytest.mark.parametrize('demo', [False, True])
def test_mmpose_inferencer(elsewhere, tmp_path, demo):
    "pred_out_dir holds a PHOTO.json of instances for each photo; the demo writes results_PHOTO.json with meta_info."
    faces, off, photo = elsewhere
    for name, found in by_name(faces, photo).items():
        instances = [dict(keypoints=p, keypoint_scores=[1.0] * 68, bbox=[[0, 0, 9, 9]]) for p in found]
        stem = name.split('/')[-1].removesuffix('.jpg')
        if demo:
            dump(tmp_path / f'results_{stem}.json', dict(meta_info=dict(dataset_name='300w'), instance_info=instances))
        else:
            dump(tmp_path / f'{stem}.json', instances)
    found = read_predictions(tmp_path, faces)
    assert torch.allclose(found[tmp_path.name], off, atol=1e-3)


@pytest.mark.parametrize('kind', ['npy', 'npz', 'json', 'order'])
@pytest.mark.parametrize('depth', [False, True])
def test_face_alignment(elsewhere, tmp_path, kind, depth):
    "Lists of (68, 2) or (68, 3) per photo: a .npy beside each, np.savez, or JSON of the mapping; and all in one array."
    faces, off, photo = elsewhere
    if depth:
        photo = np.concatenate([photo, np.full((6, 68, 1), -9.0)], -1)
    found, path = by_name(faces, photo), tmp_path
    if kind == 'npy':
        for name, some in found.items():
            (tmp_path / 'test').mkdir(exist_ok=True)
            np.save(tmp_path / name.replace('.jpg', '.npy'), some[0] if len(some) == 1 else some)
    elif kind == 'npz':
        path = tmp_path / 'fan.npz'
        np.savez(path, **{f'/photos/{name}': np.array(some) for name, some in found.items()})
    elif kind == 'json':
        path = dump(tmp_path / 'fan.json', found)
    else:
        path = tmp_path / 'fan.npy'
        np.save(path, photo)
    [points] = read_predictions(path, faces).values()
    assert torch.allclose(points, off, atol=1e-3)


@pytest.mark.parametrize('output', ['landmarks.csv', 'found.npz', 'found.json', 'points'])
def test_our_own_four_formats(elsewhere, tmp_path, output):
    "What the job predict writes is scored as it is; .pts files count from 1 and are read so."
    faces, off, photo = elsewhere
    points, n = torch.from_numpy(photo), len(photo)
    found = Landmarks(points, torch.ones(n, 68), torch.ones(n, 68, 2, 2), torch.ones(n, 4), list(faces.names))
    save_landmarks(found, tmp_path / output)
    [back] = read_predictions(tmp_path / output, faces).values()
    assert torch.allclose(back, off, atol=1e-3)


@pytest.mark.parametrize('encoding', ['utf-8-sig', 'utf-16'])
def test_a_byte_order_mark(elsewhere, tmp_path, encoding):
    faces, off, photo = elsewhere
    (tmp_path / 'a.json').write_text(json.dumps(by_name(faces, photo)), encoding)
    assert torch.allclose(read_predictions(tmp_path / 'a.json', faces)['a'], off, atol=1e-3)


def test_names_that_are_bytes(elsewhere, tmp_path):
    "As h5py and older numpy files hold them."
    faces, off, photo = elsewhere
    np.savez(tmp_path / 'a.npz', names=np.array(faces.names, dtype='S'), points=photo)
    assert torch.allclose(read_predictions(tmp_path / 'a.npz', faces)['a'], off, atol=1e-3)


# Which prediction is whose


def test_a_detectors_other_faces_are_left_out(elsewhere, tmp_path):
    "Two more faces in the photo of one: the nearest counts, whatever their order."
    faces, off, photo = elsewhere
    found = by_name(faces, photo)
    found['test/a.jpg'] = [(photo[0] + 500).tolist(), photo[0].tolist(), (photo[0] - 90).tolist()]
    path = dump(tmp_path / 'a.json', found)
    assert torch.allclose(read_predictions(path, faces)['a'], off, atol=1e-3)


def test_faces_without_a_prediction_are_left_out_where_that_is_asked(elsewhere, tmp_path):
    faces, off, photo = elsewhere
    path = dump(tmp_path / 'a.json', by_name(faces, photo) | {'test/d.jpg': None, 'test/e.jpg': []})
    with pytest.raises(DataError, match='face 1 of test/d.jpg has no prediction; 2 of 6 faces have none'):
        read_predictions(path, faces)
    with pytest.warns(UserWarning, match='2 of 6 faces have none. They are left out'):
        found = read_predictions(path, faces, on_error='skip')['a']
    known = found.isfinite().all(-1).all(-1)
    assert known.tolist() == [True, True, True, False, False, True]
    assert torch.allclose(found[known], off[known], atol=1e-3)


def test_the_same_name_in_another_folder_is_another_photo(elsewhere, tmp_path):
    "Predictions for a training photo of the same name do not take the test face's place."
    faces, off, photo = elsewhere
    found = by_name(faces, photo) | {'train/a.jpg': [(photo[0] + 1).tolist()], 'train/c_2.jpg': [photo[1].tolist()]}
    assert torch.allclose(read_predictions(dump(tmp_path / 'a.json', found), faces)['a'], off, atol=1e-3)


def test_two_faces_of_a_photo_in_a_list(elsewhere, tmp_path):
    "The readers of CSV and COCO call the second face of a photo b.jpg#2."
    faces, off, photo = elsewhere
    path = dump(tmp_path / 'a.json', by_name(faces, photo))
    faces = dataclasses.replace(faces, names=[*faces.names[:-1], 'test/b.jpg#2'])
    assert torch.allclose(read_predictions(path, faces)['a'], off, atol=1e-3)


# What is refused


CONTENTS = {
    'null.json': (b'null', 'expected a list of results, or photos with their faces, got NoneType'),
    'one.json': (b'[1]', 'result 0: expected image_id and keypoints, got 1'),
    'text.json': (b'"a.jpg"', 'expected a list of results, or photos with their faces, got str'),
    'empty.json': (b'', 'not readable as .json predictions'),
    'latin.json': (b'["\xe9"]', 'UTF-8'),
    'none.json': (b'{}', 'no predictions'),
    'words.json': (b'{"test/a.jpg": "points"}', "test/a.jpg: could not convert string to float: 'p'"),
    'empty.npz': (b'', 'not readable as .npz predictions'),
    'empty.csv': (b'', 'no predictions'),
    'semicolon.csv': (b'test/a.jpg;1;2;3;4\n', "a name and x y pairs with commas between, got 'test/a.jpg;1"),
    'rows.csv': (b'photo,face,landmark,x,y\na.jpg,0,1,3,4\n', 'a.jpg: expected landmark 0, got 1'),
    'cells.csv': (b'photo,face,landmark,x,y\na.jpg,0,zero,3,4\n', 'cells.csv:2: expected photo, face, landmark, x, y'),
    'ids.json': (
        b'{"images": [{"id": 3, "file_name": "a.jpg"}], "annotations": [{"image_id": "3", "keypoints": [1, 2, 3]}]}',
        "result 0: image_id '3', and the id in images is 3: write both as numbers or as text",
    ),
    'strange.json': (
        b'{"images": [{"id": 3, "file_name": "a.jpg"}], "annotations": [{"image_id": 4, "keypoints": [1, 2, 3]}]}',
        'result 0: image_id 4 is not among the 1 images',
    ),
}


@pytest.mark.parametrize('name', CONTENTS)
def test_what_cannot_be_read_is_named(elsewhere, tmp_path, name):
    content, said = CONTENTS[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=f'{name}.*{re.escape(said)}|{re.escape(said)}') as told:
        read_predictions(tmp_path / name, elsewhere[0])
    assert str(tmp_path / name) in str(told.value) and len(str(told.value)) <= 1000


@pytest.mark.parametrize(
    'change, said',
    [
        (dict(points=np.zeros((6, 67, 2))), 'test/a.jpg: 67 points, the faces have 68'),
        (dict(points=np.zeros((6, 68, 4))), r'expected points \(K, 2\) or \(K, 3\), got \(68, 4\)'),
        (dict(points=np.full((6, 68, 2), np.nan)), 'test/a.jpg: a point is not finite'),
        (dict(points=np.full((6, 68, 2), 'x')), 'test/a.jpg: could not convert string'),
        (dict(points=np.zeros((5, 68, 2))), '6 names, and 5 faces of a'),
        (dict(points=np.array([None] * 6, dtype=object)), 'Python objects, which are never opened'),
        (dict(points=np.array(3)), 'not readable as .npz predictions'),
    ],
)
def test_arrays_that_are_no_points(elsewhere, tmp_path, change, said):
    np.savez(tmp_path / 'a.npz', **dict(names=elsewhere[0].names) | change)
    with pytest.raises(DataError, match=said):
        read_predictions(tmp_path / 'a.npz', elsewhere[0])


def test_no_pickle_is_opened(elsewhere, tmp_path):
    (tmp_path / 'dump.pkl').write_bytes(pickle.dumps([1]))
    with pytest.raises(DataError, match='a pickle is never opened.*CocoMetric'):
        read_predictions(tmp_path / 'dump.pkl', elsewhere[0])
    np.save(tmp_path / 'a.npy', np.array({'a.jpg': [1]}, dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match='Python objects, which are never opened'):
        read_predictions(tmp_path / 'a.npy', elsewhere[0])


@pytest.mark.parametrize('base', ['1', None, float('nan'), True])
def test_a_base_that_is_no_number(elsewhere, tmp_path, base):
    with pytest.raises(ValueError, match='base: expected a number, such as 0 or 1, got'):
        read_predictions(tmp_path / 'a.npz', elsewhere[0], base)


def test_a_wrong_number_of_faces_without_names(elsewhere, tmp_path):
    np.save(tmp_path / 'a.npy', elsewhere[2][:5])
    with pytest.raises(DataError, match='5 faces without names, where the test set has 6'):
        read_predictions(tmp_path / 'a.npy', elsewhere[0])


# Without photos


@pytest.fixture
def annotated(tmp_path):
    "A folder of train/ and test/ with .pts files and no photos, and the points of the test faces."
    rng, points = np.random.default_rng(0), {}
    for split in ('train', 'test'):
        (tmp_path / 'faces' / split).mkdir(parents=True)
        for i in range(3):
            points[split, i] = rng.uniform(40, 160, (68, 2)).round(3)
            text = '\n'.join(f'{x} {y}' for x, y in points[split, i] + 1)
            (tmp_path / f'faces/{split}/{i}.pts').write_text(text)
    return tmp_path / 'faces', np.stack([points['test', i] for i in range(3)])


def test_annotations_alone_are_scored(annotated, tmp_path):
    root, points = annotated
    faces = load_faces('folder', 'test', root, photos=False)
    assert faces.names == ['test/0.jpg', 'test/1.jpg', 'test/2.jpg'] and not has_photos(faces)
    np.savez(tmp_path / 'two_px.npz', names=['0.png', '1.png', '2.png'], points=points + [2, 0])
    [found] = read_predictions(tmp_path / 'two_px.npz', faces).values()
    expected = 200 / np.linalg.norm(points[:, 36] - points[:, 45], axis=-1)
    assert face_errors(found, faces).numpy() == pytest.approx(expected, rel=1e-4)
    said = describe_protocol(faces, find_dataset('folder'), 'two_px.npz')
    assert 'points of two_px.npz' in said and 'crop "' not in said


def test_training_still_wants_its_photos(annotated):
    root, _ = annotated
    with pytest.raises(DataError, match='points without a photo: no 0.jpg'):
        read_split('folder', 'test', root)
    assert len(read_split('folder', 'test', root, photos=False)) == 3
    with pytest.raises(DataError, match='points without a photo: no 0.jpg'):
        read_split('folder', 'test', root)


def test_photos_that_are_there_can_be_drawn(annotated, tmp_path):
    root, _ = annotated
    for i in range(3):
        Image.new('RGB', (200, 200)).save(root / f'test/{i}.png')
    faces = load_faces('folder', 'test', root, cache=tmp_path / 'cache', photos=False)
    assert faces.names[0] == 'test/0.png' and has_photos(faces) and faces.images[0].shape[0] == 3
    assert not (tmp_path / 'cache').exists()


@pytest.mark.parametrize('dataset', ['wflw', 'coco', 'csv'])
def test_lists_without_photos(tmp_path, dataset):
    "The faces of every kind of list are read without the photos that it names."
    rng = np.random.default_rng(0)
    if dataset == 'wflw':
        path = tmp_path / 'WFLW_annotations/list_98pt_rect_attr_train_test/list_98pt_rect_attr_test.txt'
        path.parent.mkdir(parents=True)
        path.write_text(' '.join([*map(str, rng.uniform(1, 99, 196)), '1 1 99 99 0 0 0 0 0 0 a/b.jpg']))
    elif dataset == 'coco':
        keypoints = flat(rng.uniform(1, 99, (68, 2)))
        dump(
            tmp_path / 'x_test.json',
            dict(images=[dict(id=1, file_name='a/b.jpg')], annotations=[dict(image_id=1, keypoints=keypoints)]),
        )
    else:
        header = [
            'image_name',
            'scale',
            'center_w',
            'center_h',
            *(f'original_{i}_{a}' for i in range(68) for a in 'xy'),
        ]
        row = ['a/b.jpg', '1', '50', '50', *map(str, rng.uniform(1, 99, 136))]
        (tmp_path / 'x_test.csv').write_text('\n'.join(map(','.join, (header, row))))
    with pytest.warns(UserWarning, match='official count 2500') if dataset == 'wflw' else nullcontext():
        faces = read_split(dataset, 'test', tmp_path, photos=False)
    assert [face.name.endswith('a/b.jpg') for face in faces] == [True]
    with pytest.raises((DataError, FileNotFoundError), match=r'there is no photo|none of the 1 photos exists'):
        read_split(dataset, 'test', tmp_path)
