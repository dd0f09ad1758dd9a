"Readers of the official releases: files in their exact formats, points to the pixel, and wrong files of every kind."

import json
import os
import subprocess
import sys
import types
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import av
import h5py
import numpy as np
import pytest
from PIL import Image
from scipy.io import loadmat, savemat
from scipy.ndimage import map_coordinates

from subpixel_nb.data import releases
from subpixel_nb.data.crops import load_faces, open_photo
from subpixel_nb.data.datasets import CATALOGUE, SCHEMES, DataError, Dataset, Scheme, Split, find_dataset, read_split
from subpixel_nb.data.releases import (
    FrameReader,
    count_frames,
    group_by_video,
    read_frames,
    read_skips,
    read_video_frame,
)

ROOT = Path(__file__).resolve().parents[2]


# ------------------------------------------------------------------------------------------------------------- fixtures


def painted(seed: int, count: int, width: int = 60, height: int = 44) -> tuple[np.ndarray, np.ndarray]:
    "A black photo (H, W) whose point i, 0-based whole px, is one pixel of level i + 1; and the points (count, 2)."
    rng = np.random.default_rng(seed)
    cells = rng.permutation([(x, y) for y in range(3, height - 3) for x in range(3, width - 3)])[:count]
    photo = np.zeros((height, width), np.uint8)
    for i, (x, y) in enumerate(cells):
        photo[y, x] = i + 1
    return photo, cells.astype(float)


def levels(face) -> list[int]:
    "What the photo of a face holds at its points."
    photo = np.asarray(open_photo(face.photo)[0])
    return [int(photo[round(y), round(x), 0]) for x, y in face.points.tolist()]


def exact(faces, count: int) -> bool:
    return bool(faces) and all(levels(f) == list(range(1, count + 1)) for f in faces)


def quietly(work: Callable, *args, **kwargs):
    "The result of `work`, its warnings unheard."
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        return work(*args, **kwargs)


def heard(work: Callable, *args, **kwargs) -> tuple[object, str]:
    "The result of `work` and its warnings in one string."
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter('always')
        result = work(*args, **kwargs)
    return result, '\n'.join(str(w.message) for w in said)


def fault(work: Callable, *args, **kwargs) -> str:
    "The message of the DataError that `work` must raise."
    with pytest.raises(DataError) as info:
        quietly(work, *args, **kwargs)
    return str(info.value)


def write_cofw(
    path: Path, photos: list[np.ndarray], points: list[np.ndarray], tag: str, boxes: np.ndarray | None = None
) -> None:
    "As MATLAB's save -v7.3 lays it out: arrays are transposed, cells are references, numbers count from 1."
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, 'w', userblock_size=512) as file:
        cells = file.create_dataset(f'Is{tag}', (1, len(photos)), h5py.ref_dtype)
        cells.attrs['MATLAB_class'] = np.bytes_('cell')
        for i, photo in enumerate(photos):
            cells[0, i] = file.create_dataset(f'#refs#/{i:04d}', data=photo.T).ref
        if points:
            phis = [
                [*(p[:, 0] + 1), *(p[:, 1] + 1), *(k % 3 == i % 3 for k in range(29))] for i, p in enumerate(points)
            ]
            file[f'phis{tag}'] = np.array(phis, float).T
            file[f'bboxes{tag}'] = (np.tile([11.0, 6, 30, 20], (len(points), 1)) if boxes is None else boxes).T
    with open(path, 'r+b') as file:
        file.write(b'MATLAB 7.3 MAT-file, Platform: GLNXA64'.ljust(116) + bytes(8) + b'\x00\x02IM')


@pytest.fixture
def cofw(tmp_path: Path) -> Path:
    "COFW with 2 training faces and 4 test faces, every other one grey."
    for name, tag, count in (('train', 'Tr', 2), ('test', 'T', 4)):
        pairs = [painted(10 * count + i, 29) for i in range(count)]
        photos = [np.stack([p, p + 100, p + 200], -1) if i % 2 == 0 else p for i, (p, _) in enumerate(pairs)]
        write_cofw(tmp_path / 'cofw' / f'COFW_{name}_color.mat', photos, [p for _, p in pairs], tag)
    return tmp_path / 'cofw'


@pytest.fixture
def cofw68(cofw: Path) -> Path:
    "COFW-68 on photos of its own: 3 faces."
    pairs = [painted(60 + i, 68) for i in range(3)]
    write_cofw(cofw / 'COFW_test_color.mat', [p for p, _ in pairs], [], 'T')
    (cofw / 'test_annotations').mkdir()
    for i, (_, points) in enumerate(pairs, 1):
        savemat(
            cofw / f'test_annotations/{i}_points.mat',
            dict(Points=points + 1, Occ=(np.arange(68) % 5 == i).astype(np.uint8)[None]),
        )
    savemat(cofw / 'cofw68_test_bboxes.mat', dict(bboxes=np.array([[1, 2, 30, 40]] * 3, np.int16)))
    return cofw


AFLW_TEST = (
    '0/image00002.png',
    '2/日本 é.png',
    '3/image.png',
    '0/image00002.png',
)  # the last: a second face of the first photo


def write_aflw(root: Path, total: int = 20000 + len(AFLW_TEST), **changes) -> Path:
    "AFLW-19: 20,004 faces, the last four of `ra` with photos. `changes` replace, drop (...) or change arrays."
    rng = np.random.default_rng(0)
    order = rng.permutation(total)
    arrays = dict(
        bbox=np.tile([1.0, 58, 2, 42], (total, 1)),
        data=np.zeros((total, 38)),
        mask_new=np.ones((total, 19), np.uint8),
        nameList=np.array([[f'0/absent{i}.jpg'] for i in range(total)], object),
        ra=order[None] + 1.0,
    )
    photos = {name: painted(70 + k, 38) for k, name in enumerate(dict.fromkeys(AFLW_TEST))}
    for k, (i, name) in enumerate(zip(order[20000:], AFLW_TEST)):
        photo, points = photos[name]
        path = root / 'data/flickr' / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(photo).save(path)
        points = points[19:] if k == 3 else points[:19]
        arrays['data'][i], arrays['nameList'][i, 0] = [*points[:, 0], *points[:, 1]], name
        if k == 1:
            arrays['mask_new'][i, 4], arrays['data'][i, 4] = 0, 30
        if k == 2:
            arrays['bbox'][i, 2] = points[:, 1].min() + 1
    for key, change in changes.items():
        changed = change(arrays[key], order) if callable(change) else change
        if changed is not None:
            arrays[key] = changed
    (root / 'data/flickr').mkdir(parents=True, exist_ok=True)
    savemat(root / 'AFLWinfo_release.mat', {k: v for k, v in arrays.items() if v is not ...})
    return root


def write_lp(root: Path, folder: str, stem: str, seed: int, apart: bool = True) -> None:
    "A photo of 300W-LP with its two .mat files; where both hold points, those beside the photo are rubbish."
    photo, points = painted(seed, 68)
    (root / folder).mkdir(parents=True, exist_ok=True)
    Image.fromarray(photo).save(root / folder / f'{stem}.jpg', 'PNG')  # lossless, under the official name
    savemat(root / folder / f'{stem}.mat', dict(pt2d=(0 * points if apart else points).T, Pose_Para=np.zeros((1, 7))))
    if apart:
        (root / 'landmarks' / folder).mkdir(parents=True, exist_ok=True)
        savemat(root / 'landmarks' / folder / f'{stem}_pts.mat', dict(pts_2d=points, pts_3d=-points))


def pts(points: np.ndarray) -> str:
    "0-based points as iBUG writes them."
    return f'version: 1\nn_points: {len(points)}\n{{\n' + ''.join(f'{x:.6f} {y:.6f}\n' for x, y in points + 1) + '}\n'


def write_video(path: Path, pictures: list[np.ndarray], times: list[int] | None = None, codec: str = 'mpeg4') -> None:
    "Pictures as a real video; `times` in 1/50 s."
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), 'w') as video:
        stream = video.add_stream(codec, rate=50 if times else 25)
        stream.height, stream.width, _ = pictures[0].shape
        stream.pix_fmt, stream.bit_rate, stream.codec_context.gop_size = 'yuv420p', 4_000_000, 12
        for i, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(picture, format='rgb24')
            frame.pts = times[i] if times else i
            video.mux(stream.encode(frame))
        video.mux(stream.encode())


def dotted(seed: int, count: int) -> tuple[list[np.ndarray], np.ndarray]:
    "Frames with a 5 px dot at landmark 30 and their number as background, and the points (count, 68, 2), 0-based."
    points = np.random.default_rng(seed).integers(20, 100, (count, 68, 2)).astype(float)
    pictures = []
    for i, (x, y) in enumerate(points[:, 30].astype(int)):
        picture = np.full((112, 144, 3), 16 + 4 * i, np.uint8)
        picture[y - 2 : y + 3, x - 2 : x + 3] = 240
        pictures.append(picture)
    return pictures, points


def number_of(picture: np.ndarray) -> int:
    return round((float(np.median(picture)) - 16) / 4)


def dot_of(picture: np.ndarray) -> np.ndarray:
    weight = np.clip(np.asarray(picture)[..., 0].astype(float) - 150, 0, None)
    y, x = np.mgrid[: weight.shape[0], : weight.shape[1]]
    return np.array([(weight * x).sum(), (weight * y).sum()]) / weight.sum()


def write_300vw(root: Path, video: str, count: int, seed: int = 0, annotated: int | None = None) -> np.ndarray:
    pictures, points = dotted(seed, max(count, annotated or 0))
    write_video(root / video / 'vid.avi', pictures[:count])
    (root / video / 'annot').mkdir()
    for i, p in enumerate(points[: annotated or count], 1):
        (root / video / 'annot' / f'{i:06d}.pts').write_text(pts(p))
    return points


@pytest.fixture(scope='module')
def forty(tmp_path_factory) -> Path:
    "A video of 40 frames of uneven length that show their number."
    path = tmp_path_factory.mktemp('video') / 'vid.mp4'
    write_video(path, dotted(1, 40)[0], np.cumsum(np.random.default_rng(0).choice([1, 2, 5], 40)).tolist())
    return path


# ------------------------------------------------------------------------------------------------------- the catalogue


@pytest.mark.slow
def test_the_catalogue_is_whole_after_any_import_and_names_what_videos_need():
    "A fresh interpreter that imports the first module alone; a protocol of one's own is not replaced."
    script = """
import sys; sys.modules['av'] = None
from subpixel_nb.data.datasets import *
register(Dataset('menpo', None, (Split('mine'),), None, 'mine'))
try: read_split('300w-lp', 'train', 'nowhere')
except FileNotFoundError as e: print('300W-LP' if 'landmarks/' in str(e) else e)
import subpixel_nb.data.releases as r
print(find_dataset('menpo').test)
print(*sorted(CATALOGUE))
for work in (lambda: next(r.read_frames('x')), lambda: r.count_frames('x')):
    try: work()
    except ImportError as e: print(e)
"""
    done = subprocess.run([sys.executable, '-c', script], cwd=ROOT, capture_output=True, text=True, timeout=60)
    read, mine, entries, *errors = done.stdout.splitlines()
    assert (read, mine) == ('300W-LP', 'mine')
    assert (
        entries.split()
        == (
            '300vw-a 300vw-b 300vw-c 300w 300w-lp 300w-private aflw aflw-frontal coco coco-base1 coco-wholebody '
            'cofw cofw68 csv csv-base1 folder menpo menpo-list menpo-list-base1 synthetic synthetic-camera '
            'synthetic-light synthetic-loose synthetic-marks synthetic-people synthetic-slide '
            'synthetic-things synthetic-wild wflw'
        ).split()
    ), done.stderr
    assert errors == ["reading videos needs PyAV: pip install 'subpixel_nb[video]'"] * 2, done.stderr


@pytest.mark.parametrize(
    'name, points, train, test, norm, cutoff',
    [
        ('cofw', '29', 1345, 507, None, 10),
        ('cofw68', '68', None, 507, 'box', 7),
        ('aflw', '19', 20000, 4386, 'given', 7),
        ('aflw-frontal', '19', 20000, 1314, 'given', 7),
        ('300w-lp', '68', 61225, None, None, 10),
        ('menpo', '68', None, 6679, 'box', 7),
    ],
)
def test_entries_state_the_protocol(name, points, train, test, norm, cutoff):
    entry = find_dataset(name)
    assert (entry.scheme.name, entry.normaliser, entry.cutoff) == (points, norm, cutoff)
    for part, count in (('train', train), ('test', test)):
        if count is None:
            with pytest.raises(ValueError, match=f'{name} has no {part} split, only .*(test_on|init)'):
                entry.split(part)
        else:
            assert entry.split(part).count == count


def test_300w_lp_counts_add_up():
    for split in find_dataset('300w-lp').splits:
        assert split.count == sum(split.folders.values())


def test_300vw_lists_are_the_published_ones():
    written = dict(
        A='114 124 125 126 150 158 401 402 505-511 514 515 518-522 524 525 537 538 540 541 546-548',
        B='203 208 211-214 218 224 403-409 412 550 551 553',
        C='410 411 516 517 526 528-531 533 557-559 562',
    )
    for name, text in written.items():
        bounds = [tuple(map(int, word.split('-'))) for word in text.split()]
        assert releases._300VW[name] == tuple(f'{n:03d}' for b in bounds for n in range(b[0], b[-1] + 1))
    assert sum(map(len, releases._300VW.values())) == 114 - 50
    assert [find_dataset(f'300vw-{c}').split('test').name for c in 'abc'] == ['A', 'B', 'C']
    assert all(find_dataset(f'300vw-{c}').cutoff == 8 for c in 'abc')


# ---------------------------------------------------------------------------------------------------------------- COFW


@pytest.mark.parametrize('split, count', [('train', 2), ('test', 4)])
def test_cofw_to_the_pixel(cofw, split, count):
    faces, said = heard(read_split, 'cofw', split, cofw)
    official = {'train': 1345, 'test': 507}[split]
    assert len(faces) == count and exact(faces, 29) and f'{count} faces, official count {official}' in said
    for i, face in enumerate(faces):
        assert face.box == (10, 5, 40, 25) and face.visible.all()
        assert face.occluded.tolist() == [k % 3 == i % 3 for k in range(29)]
        assert (face.name, face.subsets) == (f'COFW_{split}_color.mat/{i + 1}', (split,))
    photo = np.asarray(open_photo(faces[0].photo)[0])
    assert photo.shape == (44, 60, 3) and photo[0, 0].tolist() == [0, 100, 200]  # channels in order
    grey = np.asarray(open_photo(faces[1].photo)[0])
    assert grey.shape == (44, 60, 3) and (grey == grey[..., :1]).all()


def test_cofw_loads_with_threads_and_given_boxes(cofw, tmp_path):
    faces = quietly(load_faces, 'cofw', 'test', cofw, size=64, cache=tmp_path / 'cache')
    again = quietly(load_faces, 'cofw', 'test', cofw, size=64, cache=tmp_path / 'cache')
    assert len(faces) == 4 and (faces.images[:] == again.images[:]).all() and faces.given.shape == (4, 4)
    photos = [f.photo for f in quietly(read_split, 'cofw', 'test', cofw)]
    alone = [np.asarray(open_photo(p)[0]) for p in photos]
    with ThreadPoolExecutor(8) as pool:
        seen = list(pool.map(lambda i: np.asarray(open_photo(photos[i % 4])[0]), range(64)))
    assert all((seen[i] == alone[i % 4]).all() for i in range(64))


def test_cofw_wrong_files(cofw, tmp_path):
    path, photo = cofw / 'COFW_test_color.mat', painted(0, 29)

    def read():
        return read_split('cofw', 'test', cofw)

    write_cofw(path, [photo[0]], [photo[1]], 'Tr')
    assert 'COFW_test_color.mat: expected IsT, phisT, bboxesT, found IsTr, bboxesTr, phisTr: is it another' in fault(
        read
    )
    with h5py.File(path, 'w') as file:
        file['IsT'], file['phisT'], file['bboxesT'] = np.zeros((1, 3)), np.zeros((87, 3)), np.zeros((4, 3))
    assert 'IsT: expected a cell array of photos, got float64' in fault(read)
    write_cofw(path, [photo[0]] * 2, [photo[1]], 'T')
    assert 'COFW_test_color.mat: phisT: expected 87 x 2 numbers, got 87 x 1 of float64' in fault(read)
    savemat(path, dict(IsT=1, phisT=2, bboxesT=3))
    assert 'COFW_test_color.mat: not a readable MATLAB file of version 7.3' in fault(read)
    path.write_bytes(b'')
    assert 'COFW_test_color.mat: not a readable MATLAB file of version 7.3' in fault(read)
    path.unlink()
    with pytest.raises(FileNotFoundError, match='has no COFW_test_color.mat.*caltech'):
        read()


def test_cofw_wrong_photos(cofw):
    photo = painted(0, 29)
    write_cofw(
        cofw / 'COFW_test_color.mat',
        [photo[0], photo[0].astype(np.float32), np.zeros((5, 4, 2), np.uint8)],
        [photo[1]] * 3,
        'T',
    )
    faces = quietly(read_split, 'cofw', 'test', cofw)
    assert exact(faces[:1], 29)
    file = cofw / 'COFW_test_color.mat'
    assert f'{file}[IsT{{2}}]: expected H x W or H x W x 3 uint8, got (44, 60) float32' in fault(
        open_photo, faces[1].photo
    )
    assert '[IsT{3}]: expected H x W or H x W x 3 uint8, got (5, 4, 2)' in fault(open_photo, faces[2].photo)
    assert '[IsT{9}]: not a readable photo (IndexError' in fault(releases.read_cofw_photo, file, 'IsT{9}')
    assert '[IsT{2}]' in fault(load_faces, 'cofw', 'test', cofw, size=64, cache=cofw / 'cache')


def test_cofw_nan_is_named(cofw):
    photo, points = painted(0, 29)
    points[3, 1] = np.nan
    write_cofw(cofw / 'COFW_test_color.mat', [photo], [points], 'T')
    assert 'COFW_test_color.mat[IsT{1}]: a visible landmark is not finite' in fault(read_split, 'cofw', 'test', cofw)


# -------------------------------------------------------------------------------------------------------------- COFW-68


def test_cofw68_to_the_pixel(cofw68):
    faces = quietly(read_split, 'cofw68', 'test', cofw68)
    assert len(faces) == 3 and exact(faces, 68)
    for i, face in enumerate(faces, 1):
        assert (
            face.box == (0, 1, 30, 41)
            and face.visible.all()
            and face.occluded.tolist() == [k % 5 == i for k in range(68)]
        )


@pytest.mark.data
def test_cofw68_official_annotations(cofw68, shared_data):
    "All 507 as released, on stand-in photos; against scipy's reading, with the negative coordinates kept."
    official = shared_data / 'cofw68'
    with h5py.File(cofw68 / 'COFW_test_color.mat', 'w') as file:
        blank = file.create_dataset('#refs#/a', data=np.zeros((9, 7), np.uint8))
        file.create_dataset('IsT', (1, 507), h5py.ref_dtype)[0] = [blank.ref] * 507
    (cofw68 / 'cofw68_test_bboxes.mat').write_bytes((official / 'cofw68_test_bboxes.mat').read_bytes())
    for path in (official / 'test_annotations').glob('*.mat'):
        (cofw68 / 'test_annotations' / path.name).write_bytes(path.read_bytes())
    faces, said = heard(read_split, 'cofw68', 'test', cofw68)
    assert len(faces) == 507 and said == ''
    raw = [loadmat(official / f'test_annotations/{i}_points.mat') for i in range(1, 508)]
    assert all(np.abs(f.points.numpy() - (r['Points'] - 1)).max() < 1e-4 for f, r in zip(faces, raw))
    assert all((f.occluded.numpy() == r['Occ'][0]).all() for f, r in zip(faces, raw))
    assert (
        sum(int((r['Points'] < 0).sum()) for r in raw) == 8 == sum(int((f.points.double() < -1).sum()) for f in faces)
    )
    inside = [
        f.box[0] < f.points[:, 0].mean() < f.box[2] and f.box[1] < f.points[:, 1].mean() < f.box[3] for f in faces
    ]
    assert all(inside)  # boxes and annotations are numbered alike


def test_cofw68_wrong_files(cofw68):

    def read():
        return read_split('cofw68', 'test', cofw68)

    folder = cofw68 / 'test_annotations'
    savemat(folder / '1_points.mat', dict(Points=np.ones((29, 2)), Occ=np.zeros((1, 29))))
    (folder / '2_points.mat').unlink()
    savemat(folder / '3_points.mat', dict(pt2d=np.ones((2, 68))))
    text = fault(read)
    assert '3 of 3 faces cannot be used' in text and '1_points.mat: Points: expected 68 x 2 numbers, got 29 x 2' in text
    assert f'{folder / "2_points.mat"}: it is not there: COFW_test_color.mat holds 3 photos' in text
    assert '3_points.mat: expected Points, Occ, found pt2d: is it another' in text
    savemat(cofw68 / 'cofw68_test_bboxes.mat', dict(bboxes=np.ones((2, 4))))
    assert 'cofw68_test_bboxes.mat: bboxes: expected 3 x 4 numbers, got 2 x 4' in fault(read)


def test_truncated_mat_files_raise_data_errors_only(cofw68, tmp_path):
    whole, path = (cofw68 / 'test_annotations/1_points.mat').read_bytes(), tmp_path / 'cut.mat'
    for length in range(0, len(whole) - 8, 61):
        path.write_bytes(whole[:length])
        with pytest.raises(DataError):
            releases.read_mat(path, 'Points', 'Occ')


# ----------------------------------------------------------------------------------------------------------------- AFLW


@pytest.mark.slow
def test_aflw_to_the_pixel(tmp_path):
    root = write_aflw(tmp_path / 'aflw')
    faces, said = heard(read_split, 'aflw', 'test', root)
    assert [f.name for f in faces] == [*(f'data/flickr/{n}' for n in AFLW_TEST[:3]), f'data/flickr/{AFLW_TEST[3]}#2']
    assert 'split full: 4 faces, official count 4386' in said and 'twice' not in said
    for k, face in enumerate(faces):
        seen, first = levels(face), 20 if k == 3 else 1
        assert [s for s, v in zip(seen, face.visible) if v] == [first + i for i in range(19) if face.visible[i]]
        assert (~face.visible).nonzero().flatten().tolist() == ([4] if k == 1 else [])
        assert face.box == (1, 2 if k != 2 else face.box[1], 58, 42)
    assert [f.subsets for f in faces] == [('full', 'frontal'), ('full',), ('full',), ('full', 'frontal')]
    assert [f.name for f in quietly(read_split, 'aflw', 'frontal', root)] == [faces[0].name, faces[3].name]
    assert [f.name for f in quietly(read_split, 'aflw-frontal', 'test', root)] == [faces[0].name, faces[3].name]
    loaded = quietly(load_faces, 'aflw', 'test', root, size=64, cache=tmp_path / 'cache')
    assert loaded.given.shape == (4, 4) and loaded.mask('frontal').tolist() == [True, False, False, True]


@pytest.mark.slow
def test_aflw_trains_on_the_first_20000_of_ra(tmp_path):
    root = write_aflw(
        tmp_path / 'aflw',
        nameList=lambda names, order: names.__setitem__((order[:20000], 0), AFLW_TEST[0]),
        data=lambda data, order: data.__setitem__(order[:20000], np.arange(20000 * 38).reshape(20000, 38)),
    )
    faces, said = heard(read_split, 'aflw', 'train', root)
    assert len(faces) == 20000 and 'official' not in said
    assert [f.points[0, 0].item() for f in faces[:3]] == [0, 38, 76] and len({f.name for f in faces}) == 20000
    assert faces[1].points[0].tolist() == [38, 38 + 19] and faces[0].subsets == ('train',)


@pytest.mark.parametrize(
    'change, message',
    [
        (dict(ra=lambda ra, _: ra.__setitem__((0, 7), 11)), 'ra(8): expected a whole number in 1..10, got 11'),
        (dict(ra=lambda ra, _: ra.__setitem__((0, 0), 0)), 'ra(1): expected a whole number in 1..10, got 0'),
        (dict(ra=lambda ra, _: ra.__setitem__((0, 2), 1.5)), 'ra(3): expected a whole number in 1..10, got 1.5'),
        (dict(ra=lambda ra, _: ra.__setitem__((0, 1), ra[0, 0])), 'ra: not a permutation'),
        (dict(ra=np.ones((1, 5))), 'ra: expected 1 x 10 numbers, got 1 x 5'),
        (dict(data=np.zeros((10, 42))), 'data: expected 10 x 38 numbers, got 10 x 42'),
        (dict(mask_new=np.ones((7, 19))), 'mask_new: expected 10 x 19'),
        (dict(bbox=...), 'expected bbox, data, mask_new, nameList, ra, found data, mask_new, nameList, ra'),
    ],
)
def test_aflw_wrong_arrays(tmp_path, change, message):
    text = fault(read_split, 'aflw', 'test', write_aflw(tmp_path / 'aflw', 10, **change))
    assert str(tmp_path / 'aflw/AFLWinfo_release.mat') in text and message in text


@pytest.mark.slow
def test_aflw_wrong_names(tmp_path):
    wrong = {
        '/etc/passwd': 'the photo /etc/passwd lies outside',
        '../../secret.png': 'the photo ../../secret.png lies outside',
        '0\\..\\..\\secret.png': 'lies outside',
        'C:/secret.png': 'lies outside',
        '0/gone.jpg': 'there is no photo',
        '': 'no photo is named',
    }
    root = write_aflw(
        tmp_path / 'aflw',
        20000 + 4 + len(wrong),
        nameList=lambda names, order: names.__setitem__((order[20004:], 0), list(wrong)),
    )
    text = fault(read_split, 'aflw', 'test', root)
    assert f'{len(wrong)} of {4 + len(wrong)} faces cannot be used' in text
    order = np.random.default_rng(0).permutation(20000 + 4 + len(wrong))
    for line, (i, message) in zip(text.splitlines()[1:], zip(order[20004:], wrong.values())):
        assert f'AFLWinfo_release.mat: nameList{{{i + 1}}}: ' in line and message in line
    assert len(quietly(read_split, 'aflw', 'test', root, on_error='skip')) == 4


@pytest.mark.slow
def test_aflw_twice_empty_box_and_empty_photo(tmp_path):
    root = write_aflw(
        tmp_path / 'aflw',
        data=lambda data, order: data.__setitem__(order[20003], data[order[20000]]),
        bbox=lambda bbox, order: bbox.__setitem__((order[20002], 1), 1.0),
    )
    faces, said = heard(read_split, 'aflw', 'test', root, on_error='skip')
    assert len(faces) == 3 and 'an empty box, xmin 1 xmax 1' in said
    assert '1 faces are listed twice, same photo and same points: data/flickr/0/image00002.png' in said
    write_aflw(root)
    photo = root / 'data/flickr' / AFLW_TEST[1]
    photo.write_bytes(b'')
    text = fault(load_faces, 'aflw', 'test', root, size=64, cache=tmp_path / 'cache')
    assert str(photo) in text and 'not a readable photo' in text


# -------------------------------------------------------------------------------------------------------------- 300W-LP


def test_300w_lp_to_the_pixel(tmp_path):
    root = tmp_path / '300W_LP'
    for i, folder in enumerate(('AFW', 'HELEN', 'AFW_Flip')):
        write_lp(root, folder, f'{folder} é_1_{i}', i, apart=folder != 'AFW_Flip')
    faces, said = heard(read_split, '300w-lp', 'train', root)
    assert [f.name for f in faces] == ['AFW/AFW é_1_0.jpg', 'HELEN/HELEN é_1_1.jpg'] and exact(faces, 68)
    assert '2 faces, official count 61225 (AFW 1 of 5207, HELEN 1 of 37676, IBUG 0 of 1786, LFPW 0 of 16556)' in said
    flipped, whole = (quietly(read_split, '300w-lp', part, root) for part in ('flipped', 'all'))
    assert exact(flipped, 68) and len(flipped) == 1 and len(whole) == 3 and whole[2].subsets == ('flipped', 'all')


def test_300w_lp_wrong_files(tmp_path):
    root = tmp_path / 'lp'
    for i in range(5):
        write_lp(root, 'AFW', f'a_{i}', i)
    folder = root / 'landmarks/AFW'
    (folder / 'a_1_pts.mat').unlink()
    savemat(folder / 'a_2_pts.mat', dict(pts_2d=np.zeros((2, 68))))
    (root / 'AFW/a_3.jpg').unlink()
    savemat(folder / 'a_4_pts.mat', dict(Points=np.zeros((68, 2))))
    text = fault(read_split, '300w-lp', 'train', root)
    assert '4 of 5 faces cannot be used' in text
    assert f'{root / "AFW/a_1.jpg"}: a photo without points: there is no {folder / "a_1_pts.mat"}' in text
    assert 'a_2_pts.mat: pts_2d: expected 68 x 2 numbers, got 2 x 68' in text
    assert 'a_3_pts.mat: points without a photo: no a_3.jpg in AFW/' in text
    assert 'a_4_pts.mat: expected pts_2d, found Points' in text


# ---------------------------------------------------------------------------------------------------------------- Menpo


def test_menpo_keeps_the_68(tmp_path):
    root = tmp_path / 'menpo'
    for i, count in enumerate((68, 39, 68, 39, 29)):
        photo, points = painted(i, count)
        path = root / ('profile' if count == 39 else 'semifrontal') / f'face ü{i}.png'
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(photo).save(path)
        path.with_suffix('.pts').write_text(pts(points), 'utf-8')
    faces, said = heard(read_split, 'menpo', 'test', root)
    assert [f.name for f in faces] == ['semifrontal/face ü0.png', 'semifrontal/face ü2.png'] and exact(faces, 68)
    assert '3 of 5 faces are not near-frontal and are left out: 1 with 29 points, 2 with 39 points' in said
    assert 'split frontal: 2 faces, official count 6679' in said
    (root / 'semifrontal/face ü0.png').unlink()
    (root / 'profile/face ü1.pts').unlink()
    (root / 'semifrontal/face ü2.pts').write_text('version: 1\nn_points: 68\n{\n1 2\n3 x\n')
    text = fault(read_split, 'menpo', 'test', root)
    assert (
        'expected one photo beside it, face ü0.jpg or .png, found 0' in text
        and 'a photo without points: face ü1.pts' in text
    )
    assert 'face ü2.pts:5: expected two numbers "x y", got \'3 x\'' in text


# --------------------------------------------------------------------------------------------------------------- roots


@pytest.mark.parametrize(
    'name, build',
    [
        ('cofw', lambda root: write_cofw(root / 'COFW_test_color.mat', [painted(0, 29)[0]], [painted(0, 29)[1]], 'T')),
        ('aflw', write_aflw),
        ('300w-lp', lambda root: write_lp(root, 'AFW', 'a', 0)),
        ('300vw-c', lambda root: write_300vw(root, '410', 2)),
    ],
    ids=lambda v: v if isinstance(v, str) else '',
)
def test_root_one_level_off_is_named(tmp_path, name, build):
    root, split = tmp_path / 'up' / 'release', 'train' if name == '300w-lp' else 'test'
    root.mkdir(parents=True)
    build(root)
    inner = next((p for p in root.iterdir() if p.is_dir()), root / 'inner')
    inner.mkdir(exist_ok=True)
    for wrong in (tmp_path / 'up', tmp_path, inner):
        with pytest.raises(FileNotFoundError) as info:
            quietly(read_split, name, split, wrong)
        assert f'Did you mean root {root}?' in str(info.value) and 'https://' in str(info.value).replace(
            'http://', 'https://'
        )
    with pytest.raises(FileNotFoundError, match='is not there; it should be a folder with'):
        quietly(read_split, name, split, tmp_path / 'a/b/c/d')
    file = next(p for p in root.rglob('*') if p.is_file())
    with pytest.raises(FileNotFoundError, match='is a file; it should be a folder with'):
        quietly(read_split, name, split, file)


# --------------------------------------------------------------------------------------------------------------- video


def test_frames_count_in_display_order_whatever_the_clock_says(forty):
    stream = read_frames(forty)
    assert isinstance(stream, types.GeneratorType)  # nothing is read before it is asked for
    index, picture = next(stream)
    assert (index, picture.shape, picture.dtype) == (0, (112, 144, 3), np.uint8)
    stream.close()
    assert [(i, number_of(p)) for i, p in read_frames(forty)] == [(i, i) for i in range(40)]
    assert count_frames(forty) == 40
    with av.open(str(forty)) as video:
        times = [f.time for f in video.decode(video=0)]
    assert len({round(b - a, 3) for a, b in pairwise(times)}) > 1  # the clock is uneven indeed


def test_video_is_decoded_once_and_forgets(forty):
    video = FrameReader(forty)
    with ThreadPoolExecutor(8) as pool:  # eight at a time: none falls behind what is kept
        found = [
            n for first in range(0, 40, 8) for n in pool.map(lambda i: number_of(video[i]), range(first, first + 8))
        ]
    assert found == list(range(40))
    assert video.decoded == 40 and len(video.recent) == video.keep == 24
    assert number_of(video[20]) == 20 and video.decoded == 40  # still kept
    assert number_of(video[3]) == 3 and video.decoded == 44  # back: from the beginning
    small = FrameReader(forty, keep=1)
    order = np.random.default_rng(0).permutation(40)[:12]
    assert [number_of(small[i]) for i in order] == order.tolist() and len(small.recent) == 1
    with pytest.raises(DataError, match='vid.mp4: frame 41: the video ends after 40 frames'):
        small[40]
    assert number_of(small[39]) == 39


def test_video_frame_counts_from_1_and_keeps_few_open(tmp_path):
    for i in range(5):
        write_video(tmp_path / f'{i}.avi', dotted(i, 3)[0])
    for i in range(5):
        assert number_of(np.asarray(read_video_frame(tmp_path / f'{i}.avi', '2'))) == 1
    assert len(releases._VIDEOS) <= 3
    write_video(tmp_path / '4.avi', dotted(0, 6)[0][3:])  # another file under the same name
    os.utime(tmp_path / '4.avi', (1, 1))
    assert number_of(np.asarray(read_video_frame(tmp_path / '4.avi', '2'))) == 4


def test_300vw_to_the_pixel(tmp_path):
    truth = {v: write_300vw(tmp_path, v, n, seed=int(v)) for v, n in (('410', 30), ('562', 3), ('001', 2), ('114', 2))}
    faces, said = heard(read_split, '300vw-c', 'test', tmp_path)
    assert [f.name for f in faces] == [*(f'410/{i:06d}' for i in range(1, 31)), *(f'562/{i:06d}' for i in range(1, 4))]
    assert 'split C: 2 videos, officially 14 (no 411, 516,' in said and faces[0].subsets == ('C',)
    for face in faces:
        picture = np.asarray(open_photo(face.photo)[0])
        video, frame = face.name.split('/')
        assert number_of(picture) == int(frame) - 1
        assert np.abs(face.points.numpy() - truth[video][int(frame) - 1]).max() < 1e-5
        assert np.abs(dot_of(picture) - face.points[30].numpy()).max() < 0.15  # a lossy codec
    assert group_by_video([f.name for f in faces[::-1]]) == {'410': list(range(32, 2, -1)), '562': [2, 1, 0]}
    train, said = heard(read_split, '300vw-a', 'train', tmp_path)
    assert [f.name for f in train] == ['001/000001', '001/000002'] and '1 videos, officially 50' in said
    loaded = quietly(load_faces, '300vw-c', 'test', tmp_path, size=64, cache=tmp_path / 'cache', limit=11)
    assert len(loaded) == 11 and loaded.names[0] == '410/000001'


def test_300vw_skip_list(tmp_path):
    write_300vw(tmp_path, '410', 6)
    (tmp_path / 'skip.txt').write_text('# broken\n410 2-3\n410 6  # blur\n\n999 1\n')
    faces, said = heard(read_split, '300vw-c', 'test', tmp_path)
    assert [f.name for f in faces] == ['410/000001', '410/000004', '410/000005']
    assert f'3 frames are left out by {tmp_path / "skip.txt"}' in said
    assert read_skips(tmp_path / 'none.txt') == {}
    for text, line in (('410', 1), ('410 1\n41 2', 2), ('410 a-b', 1), ('410 1-2-3', 1)):
        (tmp_path / 'skip.txt').write_text(text)
        assert f'skip.txt:{line}: expected "NNN frame" or "NNN first-last"' in fault(
            read_split, '300vw-c', 'test', tmp_path
        )


def test_300vw_video_that_ends_early(tmp_path):
    write_300vw(tmp_path, '410', 5, annotated=8)
    write_300vw(tmp_path, '411', 3, annotated=2)
    text = fault(read_split, '300vw-c', 'test', tmp_path)
    assert '3 of 10 faces cannot be used' in text
    assert f'{tmp_path / "410/vid.avi"}: frame 6: the video ends after 5 frames, annot/ goes up to 8' in text
    faces, said = heard(read_split, '300vw-c', 'test', tmp_path, on_error='skip')
    assert len(faces) == 7 and '411/vid.avi: 2 of its 3 frames are annotated' in said


@pytest.mark.parametrize('share', [0.5, 0.8, 0.95])
def test_300vw_corrupt_tail_is_defined(tmp_path, share):
    "Whole frames before the damage are right; those after it are errors that name the video, never wrong pictures."
    write_300vw(tmp_path, '410', 30)
    path = tmp_path / '410/vid.avi'
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    faces, said = heard(load_faces, '300vw-c', 'test', tmp_path, size=64, cache=tmp_path / 'cache', on_error='skip')
    assert 0 < len(faces) < 30 and faces.names == [f'410/{i:06d}' for i in range(1, len(faces) + 1)]
    assert str(path) in said
    seen = []
    with pytest.raises(DataError, match=r'vid.avi: (frame \d+ is damaged|not a readable video after \d+ frames)'):
        for i, picture in read_frames(path):
            seen.append((i, number_of(picture)))
    assert seen == [(i, i) for i in range(len(faces))]
    path.write_bytes(whole[:100])
    assert f'{path}: not a readable video' in fault(read_split, '300vw-c', 'test', tmp_path)


def test_300vw_noise_inside_never_shifts_a_frame(tmp_path):
    "Bytes overwritten in the middle: the frames that are given are those of their number."
    write_300vw(tmp_path, '410', 30)
    path = tmp_path / '410/vid.avi'
    whole = bytearray(path.read_bytes())
    start = whole.index(b'movi')
    for seed in range(6):
        rng, damaged = np.random.default_rng(seed), bytearray(whole)
        place = int(rng.integers(start + 3000, len(whole) - 3000))
        damaged[place : place + 400] = rng.bytes(400)
        path.write_bytes(damaged)
        seen = []
        try:
            for i, picture in read_frames(path):
                seen.append((i, number_of(picture)))
        except DataError as e:
            assert str(path) in str(e)
        assert len(seen) <= 30 and all(abs(number - i) <= 1 for i, number in seen[: len(seen) // 2])


def test_300vw_wrong_files(tmp_path):
    for video in ('410', '411', '516', '517'):
        write_300vw(tmp_path, video, 2)
    (tmp_path / '411/vid.avi').write_bytes(b'')
    (tmp_path / '516/vid.avi').write_text('no video')
    for path in (tmp_path / '517/annot').iterdir():
        path.unlink()
    (tmp_path / '410/annot/000001.pts').write_text(pts(np.ones((49, 2))))
    (tmp_path / '410/annot/first.pts').write_text('')
    text = fault(read_split, '300vw-c', 'test', tmp_path)
    for part in (
        '411/vid.avi: not a readable video',
        '516/vid.avi: not a readable video',
        '517/annot: no .pts files',
        '000001.pts:53: 49 points where the dataset has 68',
        'first.pts: expected a frame number from 1',
    ):
        assert part in text, part
    with av.open(str(tmp_path / 'sound.wav'), 'w') as sound:
        stream = sound.add_stream('pcm_s16le', rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), layout='mono')
        frame.sample_rate = 8000
        sound.mux(stream.encode(frame))
    assert 'sound.wav: there is no video in it' in fault(lambda: list(read_frames(tmp_path / 'sound.wav')))
    assert 'sound.wav: there is no video in it' in fault(count_frames, tmp_path / 'sound.wav')


# --------------------------------------------------------------------------------------------------------- CSV and COCO


def write_photos(root: Path, count: int, points: int = 29) -> dict[str, np.ndarray]:
    "Painted photos below root/images; name -> points."
    found = {}
    for i in range(count):
        name = f'a/é {i}.png'
        photo, found[name] = painted(100 + i, points)
        (root / 'images/a').mkdir(parents=True, exist_ok=True)
        Image.fromarray(photo).save(root / 'images' / name)
    return found


def write_csv(path: Path, faces: dict[str, np.ndarray], base: int = 0, extra: str = '') -> list[str]:
    "HRNet's format; returns the lines."
    count = len(next(iter(faces.values())))
    lines = [
        f'image_name,scale,{extra}center_w,center_h,'
        + ','.join(f'original_{i}_{a}' for i in range(count) for a in 'xy')
    ]
    lines += [
        f'{name},0.2,{"50.0," if extra else ""}{30 + base},{22 + base},' + ','.join(str(v + base) for v in p.ravel())
        for name, p in faces.items()
    ]
    path.write_text('\n'.join(lines) + '\n', 'utf-8')
    return lines


def write_coco(path: Path, faces: dict[str, np.ndarray], base: int = 0, **changes) -> dict:
    "mmpose's format; returns what was written. `changes` replace top-level lists."
    path.parent.mkdir(parents=True, exist_ok=True)
    content = (
        dict(
            info={},
            licenses=[],
            categories=[dict(id=1, name='person')],
            images=[dict(id=i + 7, file_name=name, height=44, width=60) for i, name in enumerate(faces)],
            annotations=[
                dict(
                    id=i,
                    image_id=i + 7,
                    category_id=1,
                    iscrowd=0,
                    num_keypoints=29,
                    bbox=[1 + base, 2 + base, 30, 40],
                    center=[1, 2],
                    scale=0.2,
                    keypoints=[float(v) for x, y in p for v in (x + base, y + base, 1)],
                )
                for i, p in enumerate(faces.values())
            ],
        )
        | changes
    )
    path.write_text(json.dumps(content), 'utf-8')
    return content


def test_csv_to_the_pixel(tmp_path):
    faces = write_photos(tmp_path, 5)
    write_csv(tmp_path / 'mine.csv', faces)
    found, said = heard(read_split, 'csv', 'all', tmp_path / 'mine.csv')
    assert exact(found, 29) and [f.name for f in found] == list(faces) and said == ''
    assert found[0].box == (10, 2, 50, 42) and found[0].subsets == ('all',)
    write_csv(tmp_path / 'mine.csv', faces, base=1, extra='box_size,')  # HRNet's AFLW has this column
    found = quietly(read_split, 'csv-base1', 'all', tmp_path / 'mine.csv')
    assert exact(found, 29) and found[0].box == (10, 2, 50, 42)


def test_csv_splits(tmp_path):
    faces = write_photos(tmp_path, 10)
    write_csv(tmp_path / 'mine.csv', faces)
    train, said = heard(read_split, 'csv', 'train', tmp_path / 'mine.csv')
    test = quietly(read_split, 'csv', 'test', tmp_path / 'mine.csv')
    assert 'is one file: every fifth of its 10 faces is held out as the test' in said
    assert [f.name for f in test] == [n for i, n in enumerate(faces) if i % 5 == 4]
    assert {f.name for f in train} | {f.name for f in test} == set(faces)
    names = list(faces)
    for part, chosen in (('train', names[:6]), ('test', names[6:8]), ('valid', names[8:])):
        write_csv(tmp_path / f'face_landmarks_x_{part}.csv', {n: faces[n] for n in chosen})
    assert [f.name for f in quietly(read_split, 'csv', 'train', tmp_path)] == names[:6]
    test, said = heard(read_split, 'csv', 'test', tmp_path)
    assert [f.name for f in test] == names[
        6:8
    ] and 'face_landmarks_x_test.csv is read, not face_landmarks_x_valid.csv' in said
    assert [f.name for f in quietly(read_split, 'csv', 'valid', tmp_path)] == names[8:]
    with pytest.raises(
        FileNotFoundError, match='split all: .* holds face_landmarks_x_test.csv, .*root should be one .csv file'
    ):
        quietly(read_split, 'csv', 'all', tmp_path)
    with pytest.raises(FileNotFoundError, match='holds no .json file'):
        quietly(read_split, 'coco', 'train', tmp_path)
    with pytest.raises(FileNotFoundError, match='is one file, it has no split valid'):
        quietly(read_split, 'csv', 'valid', tmp_path / 'mine.csv')


@pytest.mark.parametrize(
    'name, warns',
    [
        ('face_landmarks_300w_train.csv', True),
        ('300W.csv', True),
        ('face_landmarks_wflw_train.csv', False),
        ('300wlp.csv', False),
        ('300w_lp.csv', False),
    ],
)
def test_300w_base_is_said(tmp_path, name, warns):
    write_csv(tmp_path / name, write_photos(tmp_path, 2), base=1)
    found, said = heard(read_split, 'csv', 'all', tmp_path / name)
    assert ('hold the 1-based numbers' in said and 'take csv-base1' in said) is warns and not exact(found, 29)
    found, said = heard(read_split, 'csv-base1', 'all', tmp_path / name)
    assert said == '' and exact(found, 29)


def test_csv_wrong_lines(tmp_path):
    faces = write_photos(tmp_path, 7)
    lines = write_csv(tmp_path / 'x.csv', faces)
    lines[1] += ',9'
    lines[2] = lines[2].replace(',30,', ',thirty,', 1)
    lines[3] = lines[3].rpartition(',')[0] + ',nan'
    lines[4] = '/etc/hosts' + lines[4][lines[4].index(',') :]
    lines[5] = lines[5].replace('a/é 4', 'a/../../é 4')
    lines[6] = lines[6].replace('a/é 5', 'gone')
    (tmp_path / 'x.csv').write_text('\n'.join(lines), 'utf-8')
    text = fault(read_split, 'csv', 'all', tmp_path / 'x.csv')
    for part in (
        'x.csv:2: expected 62 columns as in line 1, got 63',
        "x.csv:3: center_w: expected a number, got 'thirty'",
        "x.csv:4: original_28_y: expected a number, got 'nan'",
        'x.csv:5: the photo /etc/hosts lies outside',
        'x.csv:6: the photo a/../../é 4.png lies outside',
        'x.csv:7: there is no photo',
    ):
        assert part in text, part
    assert len(quietly(read_split, 'csv', 'all', tmp_path / 'x.csv', on_error='skip')) == 1


@pytest.mark.parametrize(
    'text, message',
    [
        ('', ': an empty file'),
        ('a,b\n', ':1: expected image_name, scale, .* without image_name'),
        ('image_name,original_0_x,original_0_y,original_2_x,original_2_y\n', 'without original_1_x'),
        ('image_name,original_0_x\n', 'without original_0_y'),
        ('image_name,scale,original_0_x,original_0_y,scale\n', 'with a column twice'),
        ('image_name,scale\n', 'without original_0_x'),
    ],
)
def test_csv_wrong_headers(tmp_path, text, message):
    (tmp_path / 'x.csv').write_text(text)
    with pytest.raises(DataError, match=f'x.csv{message}' if message[0] == ':' else f'x.csv:1.*{message}'):
        quietly(read_split, 'csv', 'all', tmp_path / 'x.csv')


def test_csv_in_another_encoding_and_twice(tmp_path):
    (tmp_path / 'x.csv').write_bytes('image_name,original_0_x,original_0_y\né.png,1,2\n'.encode('latin-1'))
    assert 'x.csv:2: byte 0xe9 is not UTF-8' in fault(read_split, 'csv', 'all', tmp_path / 'x.csv')
    faces = write_photos(tmp_path, 2)
    lines = write_csv(tmp_path / 'x.csv', faces)
    moved = lines[1].rpartition(',')[0] + ',5'
    (tmp_path / 'x.csv').write_text('\n'.join([*lines, lines[1], moved]), 'utf-8')
    found, said = heard(read_split, 'csv', 'all', tmp_path / 'x.csv')
    assert '1 faces are listed twice, same photo and same points: a/é 0.png' in said
    assert [f.name for f in found] == ['a/é 0.png', 'a/é 1.png', 'a/é 0.png#2', 'a/é 0.png#3']


def test_coco_to_the_pixel(tmp_path):
    faces = write_photos(tmp_path, 3)
    write_coco(tmp_path / 'annotations/x_train.json', faces)
    found, said = heard(read_split, 'coco', 'train', tmp_path)  # photos one level up, as in mmpose
    assert exact(found, 29) and [f.name for f in found] == list(faces) and said == ''
    assert found[0].box == (1, 2, 31, 42) and found[0].occluded is None
    write_coco(tmp_path / 'x.json', faces, base=1)
    found = quietly(read_split, 'coco-base1', 'all', tmp_path / 'x.json')
    assert exact(found, 29) and found[0].box == (1, 2, 31, 42)


def test_coco_visibility(tmp_path):
    content = write_coco(tmp_path / 'x.json', write_photos(tmp_path, 3))
    first, _, third = (a['keypoints'] for a in content['annotations'])
    first[0:3], first[5] = [0, 0, 0], 2
    third[2::3] = [0] * 29
    (tmp_path / 'x.json').write_text(json.dumps(content))
    found, said = heard(read_split, 'coco', 'all', tmp_path / 'x.json')
    assert len(found) == 2 and '1 of 3 annotations have no labelled keypoint' in said
    assert found[0].visible.tolist() == [False] + [True] * 28
    assert found[0].occluded.tolist() == [False, False] + [True] * 27 and found[1].visible.all()


@pytest.mark.parametrize(
    'change, message',
    [
        (dict(keypoints=[1, 2]), r'annotations\[1\]: expected keypoints x y v x y v ..., got 2 numbers'),
        (dict(keypoints=[1, 'x', 2]), r'annotations\[1\]: expected image_id and keypoints of numbers'),
        (dict(keypoints={'a': 1}), r'annotations\[1\]: expected image_id and keypoints'),
        (dict(keypoints=[5, 5, 1]), r'a/é 1.png has 1 points where most faces have 29'),
        (dict(keypoints=[float('nan'), 5, 1]), r'annotations\[1\]: a keypoint is not finite'),
        (dict(image_id=99), r'annotations\[1\]: image_id 99 is not among images'),
        (dict(image_id=[1]), r'annotations\[1\]: expected image_id'),
        (dict(bbox=[1, 2, 3]), r'annotations\[1\]: expected bbox x y w h, got \[1, 2, 3\]'),
    ],
)
def test_coco_wrong_annotations(tmp_path, change, message):
    content = write_coco(tmp_path / 'x.json', write_photos(tmp_path, 3))
    content['annotations'][1] |= change
    (tmp_path / 'x.json').write_text(json.dumps(content))
    with pytest.raises(DataError, match=rf'1 of 3 faces cannot be used\n.*x.json: {message}'):
        quietly(read_split, 'coco', 'all', tmp_path / 'x.json')


@pytest.mark.parametrize(
    'name, message', [('gone.png', 'there is no photo'), ('../x.json', 'lies outside'), ('/etc/hosts', 'lies outside')]
)
def test_coco_wrong_names(tmp_path, name, message):
    content = write_coco(tmp_path / 'x.json', write_photos(tmp_path, 3))
    content['images'][2]['file_name'] = name
    (tmp_path / 'x.json').write_text(json.dumps(content))
    with pytest.raises(DataError, match=rf'x.json: annotations\[2\]: .*{message}'):
        quietly(read_split, 'coco', 'all', tmp_path / 'x.json')


@pytest.mark.parametrize(
    'text, message',
    [
        ('', 'x.json:1: not JSON'),
        ('{\n"images": [\n', 'x.json:3: not JSON'),
        ('[]', 'x.json: not a COCO file'),
        ('{"images": [], "annotation": []}', "not a COCO file.*'annotations'"),
        ('{"images": [1], "annotations": []}', 'not a COCO file'),
    ],
)
def test_coco_wrong_files(tmp_path, text, message):
    (tmp_path / 'x.json').write_text(text)
    with pytest.raises(DataError, match=message):
        quietly(read_split, 'coco', 'all', tmp_path / 'x.json')


def test_lists_train_as_their_number_of_points_says(tmp_path):
    write_csv(tmp_path / 'x.csv', write_photos(tmp_path, 3))
    assert (
        quietly(load_faces, 'csv', 'all', tmp_path / 'x.csv', size=64, cache=tmp_path / 'cache').scheme == SCHEMES[29]
    )
    write_csv(tmp_path / 'x.csv', write_photos(tmp_path, 3, points=5))
    (tmp_path / 'scheme.json').write_text('{"name": "five", "points": 5, "pairs": [[0, 1]]}')
    scheme = quietly(load_faces, 'csv', 'all', tmp_path / 'x.csv', size=64, cache=tmp_path / 'cache').scheme
    assert scheme == Scheme('five', 5, ((0, 1),))  # scheme.json beside the list


def test_empty_photo_is_named(tmp_path):
    faces = write_photos(tmp_path, 2)
    write_csv(tmp_path / 'x.csv', faces)
    (tmp_path / 'images/a/é 1.png').write_bytes(b'')
    text = fault(load_faces, 'csv', 'all', tmp_path / 'x.csv', size=64, cache=tmp_path / 'c')
    assert f'{tmp_path / "images/a/é 1.png"}: not a readable photo' in text


# -------------------------------------------------------------------------------------------- a new entry, and the base


def test_one_sided_entries_can_be_registered():
    for train, test in ((None, 'a'), ('a', None)):
        try:
            entry = releases.register(Dataset('one-sided', None, (Split('a'),), train, test))
            assert entry.split('a').name == 'a' and entry.split('train' if train else 'test').name == 'a'
            with pytest.raises(ValueError, match='one-sided has no .* split, only a'):
                entry.split('test' if train else 'train')
        finally:
            CATALOGUE.pop('one-sided', None)


@pytest.mark.data
def test_300w_photos_contradict_base_0(shared_data):
    """Mirror partners have mirrored gradients about the annotations' zero: on lfpw it is 1 px or more below 0.

    1 px is the base. What lies beyond is in the annotations, and is not known to be a base."""
    pairs, steps, near = [p for p in SCHEMES[68].pairs if p[0] > 16], np.arange(-7, 7.1, 0.25), np.arange(-4, 4.1, 0.25)
    left, right = [], []
    for file in sorted((shared_data / '300w/lfpw').glob('*/*.pts'))[::4]:
        photo = next(p for p in (file.with_suffix('.png'), file.with_suffix('.jpg')) if p.exists())
        picture = Image.open(photo)
        if picture.size[0] >= 384:
            continue  # resized: its pixels are not the file's
        raw = np.array([line.split() for line in file.read_text().splitlines()[3:71]], float)
        slope = np.hypot(*np.gradient(np.asarray(picture.convert('L'), float)))
        for side, store in ((0, left), (1, right)):
            x, y = raw[[p[side] for p in pairs]].T
            store.append(
                map_coordinates(
                    slope, [np.repeat(y[:, None], len(steps), 1), x[:, None] + steps], order=1, mode='nearest'
                )
            )
    assert len(left) > 100
    left, right = np.mean(left, 0), np.mean(right, 0)

    def misfit(c: float) -> float:
        return sum(
            ((np.interp(c + near, steps, a) - np.interp(c - near, steps, b)) ** 2).sum() for a, b in zip(left, right)
        )

    shifts = np.arange(-3, 3.01, 0.1)
    assert shifts[np.argmin([misfit(c) for c in shifts])] < -0.9
    assert misfit(-1) < 0.75 * misfit(0)
