"Readers, catalogue, crops, cache and Faces: formats, numbers, faults. Fixtures are files in the official formats."
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile

from subpixel_nb import datasets
from subpixel_nb.datasets import (CATALOGUE, SCHEMES, DataError, Dataset, Face, Faces, Scheme, Split, build_cache,
                                  cache_folder, crop_view, data_root, find_dataset, load_faces, mirror_gap, open_photo,
                                  read_folder, read_pts, read_split, register)
from subpixel_nb.geometry import flip_permutation, square_map, transform_points

ROOT = Path(__file__).resolve().parent.parent
REAL = ROOT.parent / 'shared' / 'data' / '300w'
needs_real = pytest.mark.skipif(not (REAL / 'helen/trainset').is_dir(), reason=f'no 300W photos in {REAL}')


# ------------------------------------------------------------------------------------------------------------- fixtures

def face_points(seed: int, count: int = 68, side: int = 120) -> np.ndarray:
    "Points (count, 2), 0-based px inside a photo of `side` px, with six decimals as in the files."
    return np.random.default_rng(seed).uniform(0.25 * side, 0.75 * side, (count, 2)).round(6)


def write_pts(path: Path, points: np.ndarray, header: bool = True, end: str = '\n') -> None:
    "Points, 0-based, as iBUG writes them: 1-based."
    lines = [f'{x:.6f} {y:.6f}' for x, y in np.asarray(points) + 1]
    if header: lines = ['version: 1', f'n_points:  {len(points)}', '{', *lines, '}']
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes((end.join(lines) + end).encode())


def write_face(path: Path, seed: int, count: int = 68, side: int = 120, **how) -> np.ndarray:
    points = face_points(seed, count, side)
    write_pts(path.with_suffix('.pts'), points, **how)
    coarse = np.random.default_rng(seed).integers(0, 255, (9, 9, 3), dtype=np.uint8)
    photo = Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC)
    photo.save(path, format='PNG' if path.suffix.lower() == '.png' else 'JPEG')
    return points


def release(root: Path, per_folder: int = 3) -> dict[str, np.ndarray]:
    "A small 300W with all eight folders; name -> true points."
    truth = {}
    for folder in (*datasets._PUBLIC, *datasets._PRIVATE):
        for i in range(per_folder):
            suffix = '.png' if folder.startswith(('lfpw', '300W')) else ('.jpg', '.JPG', '.jpeg')[i % 3]
            name = f'{folder}/image {i}{suffix}'                  # official names hold blanks, too
            truth[name] = write_face(root / name, len(truth), header=i % 2 == 0, end='\r\n' if i % 3 == 2 else '\n')
    return truth


@pytest.fixture
def home(tmp_path: Path) -> tuple[Path, dict[str, np.ndarray]]:
    return tmp_path / '300w', release(tmp_path / '300w')


@pytest.fixture
def own(tmp_path: Path) -> Path:
    "A folder of people's own data: 6 faces in train/, 3 in test/, 68 points."
    for i in range(9): write_face(tmp_path / 'own' / ('train' if i < 6 else 'test') / f'{i}.png', i)
    return tmp_path / 'own'


def quietly(work, *args, **kwargs):
    "The result of `work`, its warnings unheard."
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        return work(*args, **kwargs)


# -------------------------------------------------------------------------------------------------------------- schemes

PAIRS = {   # written out from the datasets' own numbering, not by the formulas of the notebook
    68: '0-16 1-15 2-14 3-13 4-12 5-11 6-10 7-9 17-26 18-25 19-24 20-23 21-22 31-35 32-34 36-45 37-44 38-43 '
        '39-42 40-47 41-46 48-54 49-53 50-52 55-59 56-58 60-64 61-63 65-67',
    98: '0-32 1-31 2-30 3-29 4-28 5-27 6-26 7-25 8-24 9-23 10-22 11-21 12-20 13-19 14-18 15-17 33-46 34-45 '
        '35-44 36-43 37-42 38-50 39-49 40-48 41-47 55-59 56-58 60-72 61-71 62-70 63-69 64-68 65-75 66-74 '
        '67-73 76-82 77-81 78-80 83-87 84-86 88-92 89-91 93-95 96-97',
    29: '0-1 2-3 4-6 5-7 8-9 10-11 12-14 13-15 16-17 18-19 22-23',
    19: '0-5 1-4 2-3 6-11 7-10 8-9 12-14 15-17'}


@pytest.mark.parametrize('count', PAIRS)
def test_flip_pairs(count: int):
    wanted = {tuple(map(int, pair.split('-'))) for pair in PAIRS[count].split()}
    assert {tuple(sorted(p)) for p in SCHEMES[count].pairs} == wanted
    mirror = flip_permutation(SCHEMES[count].pairs, count)
    assert torch.equal(mirror[mirror], torch.arange(count))


@pytest.mark.parametrize('count', PAIRS)
def test_regions_cover_each_point_once_and_mirror_into_themselves(count: int):
    scheme, mirror = SCHEMES[count], flip_permutation(SCHEMES[count].pairs, count)
    assert sorted(i for region in scheme.regions.values() for i in region) == list(range(count))
    for region in scheme.regions.values(): assert set(mirror[list(region)].tolist()) == set(region)
    for a, b in filter(None, (scheme.eyes, scheme.pupils)): assert set(mirror[list(a)].tolist()) == set(b)


def test_normalisers():
    assert [(s.eyes, s.normaliser) for s in SCHEMES.values()] == [
        (((36,), (45,)), 'ic'), (((60,), (72,)), 'ic'), (((8,), (9,)), 'ic'), ((), 'box')]
    assert SCHEMES[68].pupils == ((36, 37, 38, 39, 40, 41), (42, 43, 44, 45, 46, 47))


@pytest.mark.parametrize('wrong', [dict(pairs=((0, 1), (1, 2))), dict(pairs=((0, 5),)), dict(eyes=((0,),)),
                                   dict(eyes=((0,), (7,))), dict(regions={'nose': (9,)})])
def test_a_wrong_scheme_raises(wrong: dict):
    with pytest.raises(ValueError, match='0..4'): Scheme('mine', 5, **wrong)


# ----------------------------------------------------------------------------------------------------------- .pts files

@pytest.mark.parametrize('change', [
    lambda t: t, lambda t: t.replace('\n', '\r\n'), lambda t: '\ufeff' + t, lambda t: t.replace('{\n', ''),
    lambda t: t.replace('}\n', ''), lambda t: t.replace('\n', '\n\n'), lambda t: t.rstrip('\n'),
    lambda t: t.replace(' ', '\t'),
    lambda t: '\n'.join(t.split('\n')[3:5]), lambda t: t + 'anything after the brace\n', lambda t: t.upper()],
    ids='plain crlf bom open-brace close-brace blank-lines no-last-newline tabs headerless after upper'.split())
def test_pts_variants(tmp_path: Path, change):
    text = 'version: 1\nn_points:  2\n{\n1.000000 2.500000\n300.25 1\n}\n'
    (tmp_path / 'a.pts').write_bytes(change(text).encode())
    points = read_pts(tmp_path / 'a.pts', 2)
    assert points.dtype == torch.float32 and points.tolist() == [[0, 1.5], [299.25, 0]]


def test_pts_base(tmp_path: Path):
    (tmp_path / 'a.pts').write_text('3 4\n')
    assert read_pts(tmp_path / 'a.pts', base=0).tolist() == [[3, 4]]


@given(st.lists(st.tuples(*[st.floats(-5000, 5000)] * 2), min_size=1, max_size=30), st.booleans(),
       st.sampled_from(['\n', '\r\n']))
@settings(max_examples=50)
def test_pts_round_trip(tmp_path_factory, points: list, header: bool, end: str):
    path = tmp_path_factory.mktemp('pts') / 'a.pts'
    write_pts(path, np.array(points), header, end)
    assert np.abs(read_pts(path).numpy() - points).max() <= 5e-4


GOOD = ''.join(f'{i} {i}.5\n' for i in range(68))
HEADER = 'version: 1\nn_points:  68\n{\n'


@pytest.mark.parametrize('text, words', [
    (HEADER + GOOD.partition('\n')[2] + '}\n', ':71: 67 points where its n_points says 68'),
    (GOOD.partition('\n')[2], ':67: 67 points where the dataset has 68'),
    (HEADER.replace('68', '67') + GOOD.partition('\n')[2] + '}\n', ':71: 67 points where the dataset has 68'),
    (GOOD + '1 1\n', ':69: 69 points'), (GOOD.replace('7 7.5', '7 nan'), ':8: a point is not finite: 7 nan'),
    (GOOD.replace('7 7.5', '-inf 7'), ':8: a point is not finite'),
    (GOOD.replace('7 7.5', '7 7,5'), ':8: expected two numbers'),
    (GOOD.replace('\n7 7.5', '\n7'), ':8: expected two numbers "x y", got 1'),
    (GOOD.replace('\n7 7.5', '\n7 7 7'), ':8: expected two numbers "x y", got 3'),
    ('version: 1\nn_points: many\n', ':2: expected "n_points: K"'), ('', 'an empty file'),
    (HEADER + '}\n', 'no points'),
    ('\x89PNG\x00\xff\n', ':1: expected two numbers')],
    ids='67 67-headerless 67-header-agrees 69 nan inf comma one three n_points empty none binary'.split())
def test_pts_errors_name_file_line_and_reason(tmp_path: Path, text: str, words: str):
    (tmp_path / 'face.pts').write_text(text, 'latin-1')
    with pytest.raises(DataError) as e: read_pts(tmp_path / 'face.pts', 68)
    assert str(e.value).startswith(str(tmp_path / 'face.pts')) and words in str(e.value)


# --------------------------------------------------------------------------------------------- catalogue and its reader

def test_official_counts():
    counts = {(d, s.name): s.count for d in ('300w', '300w-private') for s in CATALOGUE[d].splits}
    assert counts == {('300w', 'train'): 3148, ('300w', 'common'): 554, ('300w', 'challenge'): 135,
                      ('300w', 'full'): 689,
                      ('300w-private', 'train'): 3837, ('300w-private', 'private'): 600,
                      ('300w-private', 'indoor'): 300, ('300w-private', 'outdoor'): 300}
    for d in ('300w', '300w-private'):
        for s in CATALOGUE[d].splits: assert s.count == sum(s.folders.values())
    assert (CATALOGUE['300w'].test, CATALOGUE['300w'].split('test').name) == ('full', 'full')


def test_training_and_test_folders_are_apart():
    for d in ('300w', '300w-private'):
        assert not set(CATALOGUE[d].split('train').folders) & set(CATALOGUE[d].split('test').folders)


@pytest.mark.parametrize('split, folders', [
    ('train', 3), ('common', 2), ('challenge', 1), ('full', 3), ('test', 3)])
def test_split_ii_is_read_in_order_with_exact_points(home, split: str, folders: int):
    root, truth = home
    faces = quietly(read_split, '300w', split, root)
    assert len(faces) == 3 * folders and len({f.name for f in faces}) == len(faces)
    for face in faces:
        assert face.photo == root / face.name and face.visible.all()
        assert np.abs(face.points.numpy() - truth[face.name]).max() < 1e-5
    assert [f.name for f in faces] == [f.name for f in quietly(read_split, '300w', split, root)]
    tags = {s.name for s in CATALOGUE['300w'].splits if faces[0].name.rsplit('/', 1)[0] in s.folders}
    assert set(faces[0].subsets) == tags


def test_split_i(home):
    root, truth = home
    assert len(quietly(read_split, '300w-private', 'train', root)) == 18
    names = [f.name for f in quietly(read_split, '300w-private', 'test', root)]
    assert names == sorted(n for n in truth if n.startswith('300W/'))


def test_a_count_that_is_not_official_warns_with_both_numbers(home):
    shutil.rmtree(home[0] / 'afw')
    with pytest.warns(UserWarning, match=r'train: 6 faces, official count 3148 \(afw 0 of 337, helen/trainset 3'):
        read_split('300w', 'train', home[0])
    small = replace(CATALOGUE['300w'], splits=(Split('train', 3, {'ibug': 3}),), train='train', test='train')
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert len(read_split(small, 'train', home[0])) == 3


def test_unknown_names_list_the_known_nearest_first(home):
    with pytest.raises(ValueError, match="unknown dataset '300vv'; known: 300w, "): find_dataset('300vv')
    with pytest.raises(ValueError, match="unknown split of 300w 'chalenge'; known: challenge"):
        read_split('300w', 'chalenge', home[0])
    with pytest.raises(ValueError, match="unknown on_error 'ignore'"):
        read_split('300w', 'train', home[0], on_error='ignore')
    with pytest.raises(ValueError, match="unknown crop 'papr'; known: paper"):
        quietly(load_faces, '300w', 'challenge', home[0], crop='papr')
    with pytest.raises(ValueError, match="unknown boxes 'detector'"):
        quietly(load_faces, '300w', 'challenge', home[0], boxes='detector')


def test_a_missing_root_says_what_was_looked_for_and_where_it_is(tmp_path: Path):
    for root in (tmp_path / 'nowhere', tmp_path):
        with pytest.raises(FileNotFoundError) as e: read_split('300w', 'train', root)
        for word in (str(root), 'afw', 'helen/trainset', 'lfpw/trainset', 'ibug.doc.ic.ac.uk'):
            assert word in str(e.value)


def test_a_root_one_level_off_is_pointed_out(home):
    for root in (home[0].parent, home[0] / 'helen'):
        with pytest.raises(FileNotFoundError, match='Did you mean root') as e: read_split('300w', 'train', root)
        assert f'Did you mean root {home[0]}?' in str(e.value)


def test_folders_without_faces(tmp_path: Path):
    (tmp_path / 'afw').mkdir()
    with pytest.raises(FileNotFoundError, match='not one face'): read_split('300w', 'train', tmp_path)


def test_home_folder_is_expanded(home, monkeypatch):
    monkeypatch.setenv('HOME', str(home[0].parent))
    assert len(quietly(read_split, '300w', 'challenge', '~/300w')) == 3


@pytest.mark.parametrize('limit', [1, 2, 4, 9, 100])
def test_limit_is_spread_evenly_and_repeats(home, limit: int):
    names = [f.name for f in quietly(read_split, '300w', 'train', home[0])]
    some = [f.name for f in quietly(read_split, '300w', 'train', home[0], limit=limit)]
    where = [names.index(n) for n in some]
    assert len(set(where)) == len(where) == min(limit, 9) and where == sorted(where)
    if limit < 9: assert max(np.diff([*where, 9])) - min(np.diff([*where, 9])) <= 1


@pytest.mark.parametrize('limit', [0, -3, 2.5, '9'])
def test_a_wrong_limit_raises(home, limit):
    with pytest.raises(ValueError, match='limit must be an integer of at least 1'):
        read_split('300w', 'train', home[0], limit=limit)


# ---------------------------------------------------------------------------------------------------------- bad folders

def spoil(folder: Path, how: str) -> tuple[Path, str]:
    "Damages one face of a folder; returns the file that an error must name and a word of the reason."
    photo, pts = next(p for p in sorted(folder.iterdir()) if p.suffix != '.pts'), sorted(folder.glob('*.pts'))[0]
    text = pts.read_text()
    if how == '67': pts.write_text(''.join(text.splitlines(keepends=True)[:-2]) + '}\n'); return pts, '67 points'
    if how == 'nan': pts.write_text(text.replace(text.split()[6], 'nan', 1)); return pts, 'not finite'
    if how == 'empty pts': pts.write_text(''); return pts, 'an empty file'
    if how == 'one point': write_pts(pts, np.ones((68, 2))); return photo, 'all landmarks are one point'
    if how == 'no points': pts.unlink(); return photo, 'a photo without points'
    if how == 'no photo': photo.unlink(); return pts, 'points without a photo'
    if how == 'two photos': shutil.copy(photo, photo.with_suffix('.bmp')); return pts, 'two photos'
    if how == 'cut photo': os.truncate(photo, photo.stat().st_size // 2); return photo, 'not a readable photo'
    if how == 'empty photo': photo.write_bytes(b''); return photo, 'not a readable photo'
    if how == 'text photo': photo.write_text('<html>404</html>'); return photo, 'not a readable photo'
    if how == 'off': write_pts(pts, face_points(0) + 5000); return photo, 'does not fit its photo of 120 x 120'
    if how == 'huge': write_pts(pts, face_points(0) * [1e6, 1]); return photo, 'does not fit its photo'
    raise AssertionError(how)


FAULTS = ['67', 'nan', 'empty pts', 'one point', 'no points', 'no photo', 'two photos', 'cut photo', 'empty photo',
          'text photo', 'off', 'huge']


@pytest.mark.parametrize('how', FAULTS)
def test_a_fault_names_its_file_or_is_skipped_with_a_tally(own: Path, tmp_path: Path, how: str):
    load = lambda **how: load_faces('folder', 'train', own, size=16, cache=tmp_path / 'cache', **how)
    file, reason = spoil(own / 'train', how)
    for _ in range(2):                                            # the second time from the cache
        with pytest.raises(DataError) as e: load()
        for word in (str(file), reason, '1 of 6', 'skip'): assert word in str(e.value)
        with pytest.warns(UserWarning, match='1 of 6 faces cannot be used') as said: faces = load(on_error='skip')
        assert len(faces) == 5 and any(str(file) in str(w.message) and reason in str(w.message) for w in said)
        whole = crop_view(open_photo(own / faces.names[-1])[0], faces.squares[-1], 16, 5)
        assert np.array_equal(faces.images[-1], whole)            # rows stay with their names
    assert '0' not in [Path(n).stem for n in faces.names]


def test_all_faults_are_reported_together_the_first_ten_in_words(own: Path):
    for p in (own / 'train').glob('*.pts'): p.write_text('1 x\n')
    with pytest.raises(DataError, match='6 of 6') as e: read_split('folder', 'train', own)
    assert str(e.value).count('expected two numbers') == 6
    for i in range(20): (own / 'train' / f'a{i}.png').write_bytes(b'')
    with pytest.raises(DataError, match='and 16 more'): read_split('folder', 'train', own)
    with pytest.warns(UserWarning), pytest.raises(FileNotFoundError, match='not one face'):
        read_split('folder', 'train', own, on_error='skip')


def test_every_photo_unreadable(own: Path, tmp_path: Path):
    for p in (own / 'train').glob('*.png'): p.write_bytes(b'')
    with pytest.warns(UserWarning, match='6 of 6'), pytest.raises(DataError, match='no face is left'):
        load_faces('folder', 'train', own, size=16, cache=tmp_path / 'cache', on_error='skip')


def test_hidden_and_foreign_files_are_passed_over(own: Path):
    (own / 'train/._0.png').write_bytes(b'\0')
    (own / 'train/.ipynb_checkpoints').mkdir()
    write_face(own / 'train/.ipynb_checkpoints/0.png', 0)
    (own / 'train/Thumbs.db').write_bytes(b'\0')
    (own / 'train/notes.txt').write_text('hello')
    assert len(read_split('folder', 'train', own)) == 6


# --------------------------------------------------------------------------------------------------------------- photos

@pytest.mark.parametrize('share', [0.02, 0.3, 0.6, 0.9, 0.98])
@pytest.mark.parametrize('kind', ['jpeg', 'progressive', 'png'])
def test_a_truncated_photo_is_never_accepted(tmp_path: Path, kind: str, share: float, monkeypatch):
    monkeypatch.setattr(ImageFile, 'LOAD_TRUNCATED_IMAGES', True)          # as another library may leave it
    path = tmp_path / ('a.png' if kind == 'png' else 'a.jpg')
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (80, 90, 3), dtype=np.uint8))
    noise.save(path, **(dict(progressive=True) if kind == 'progressive' else {}))
    assert open_photo(path)[0].size == (90, 80)
    os.truncate(path, int(path.stat().st_size * share))
    with pytest.raises(DataError, match='not a readable photo') as e: open_photo(path)
    assert str(path) in str(e.value)


@pytest.mark.parametrize('mode, suffix', [
    ('L', '.jpg'), ('CMYK', '.jpg'), ('RGBA', '.png'), ('LA', '.png'), ('P', '.png'), ('1', '.png')])
def test_every_kind_of_photo_becomes_rgb(tmp_path: Path, mode: str, suffix: str):
    ramp = Image.fromarray(np.repeat(np.linspace(0, 255, 64, dtype=np.uint8)[None, :, None], 48, 0).repeat(3, 2))
    ramp.convert(mode).save(tmp_path / f'a{suffix}')
    photo, turned = open_photo(tmp_path / f'a{suffix}')
    assert photo.mode == 'RGB' and photo.size == (64, 48) and not turned
    if mode not in ('1', 'P'): assert np.abs(np.asarray(photo).astype(int) - np.asarray(ramp)).max() <= 8
    assert crop_view(photo, (31.5, 23.5, 200), 32).shape == (3, 32, 32)
    assert crop_view(photo, (31.5, 23.5, 200), 32)[:, 0].max() == 0        # outside is black in every mode


def test_sixteen_bit_photos_are_named(tmp_path: Path):
    Image.fromarray(np.full((20, 20), 40000, np.uint16)).save(tmp_path / 'deep.png')
    with pytest.raises(DataError, match='deep.png.*8 bits per channel'): open_photo(tmp_path / 'deep.png')


def test_exif_rotation_is_not_obeyed_and_said(own: Path, tmp_path: Path):
    path = own / 'train/0.png'
    exif = Image.Exif()
    exif[0x0112] = 6
    photo = Image.open(path)
    photo.load()
    before = load_faces('folder', 'train', own, size=16, cache=tmp_path / 'cache').images[0]
    photo.save(path, exif=exif)
    with pytest.warns(UserWarning, match='1 photos carry an EXIF rotation'):
        after = load_faces('folder', 'train', own, size=16, cache=tmp_path / 'cache').images[0]
    assert np.array_equal(before, after)


# ---------------------------------------------------------------------------------------------------------------- crops

def blob(x: float, y: float, sigma: float, width: int = 300, height: int = 240) -> Image.Image:
    yy, xx = np.mgrid[:height, :width]
    grey = 220 * np.exp(-((xx - x) ** 2 + (yy - y) ** 2) / (2 * sigma ** 2))
    return Image.fromarray(grey.round().astype(np.uint8)).convert('RGB')


def centroid(view: np.ndarray) -> np.ndarray:
    weight = view.astype(float) ** 2
    yy, xx = np.mgrid[:view.shape[0], :view.shape[1]]
    return np.array([(weight * xx).sum(), (weight * yy).sum()]) / weight.sum()


@given(st.floats(-0.25, 0.25), st.floats(-0.25, 0.25), st.floats(40, 1400), st.floats(100, 200), st.floats(80, 160),
       st.sampled_from([(256, 80), (128, 40), (256, 0)]))
@settings(max_examples=25)
def test_a_blob_is_where_the_map_says(dx: float, dy: float, side: float, x: float, y: float, view: tuple[int, int]):
    "Squares that hang over the edge: within 0.02 px of the view; enlarged, within 0.005 px of the photo, whose pixels are 8 bits."
    size, margin = view
    sigma = max(2.5, 3 * side / size)                                       # at least 3 px in the view
    square = torch.tensor([x + dx * side, y + dy * side, side], dtype=torch.float64)
    photo = blob(x, y, sigma, 400, 300) if sigma < 20 else blob(x + 300, y + 300, sigma, 800, 700)
    if sigma >= 20: square[:2] += 300; x, y = x + 300, y + 300
    where = transform_points(square_map(square, size, margin), torch.tensor([[x, y]], dtype=torch.float64))[0].numpy()
    reach = 3.7 * sigma * size / side                                       # all of the blob must be in the view
    if (where - reach < 0).any() or (where + reach > size + 2 * margin - 1).any(): return
    assert np.abs(centroid(crop_view(photo, square, size, margin)[0]) - where).max() < max(0.02, 0.005 * size / side)


def test_the_view_is_the_photo_itself_at_scale_one():
    pixels = np.random.default_rng(0).integers(0, 255, (40, 40, 3), dtype=np.uint8)
    view = crop_view(Image.fromarray(pixels), (19.5, 19.5, 32), 32)          # edges on pixel edges
    assert np.array_equal(view, pixels[4:36, 4:36].transpose(2, 0, 1))


@pytest.mark.parametrize('side', [40.3, 151.7])
def test_a_margin_only_adds_to_the_view(side: float):
    "The middle of the wider crop is the crop without margin, to its very edge: the filter sees what lies beyond."
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 255, (200, 200, 3), dtype=np.uint8))
    alone, wide = (crop_view(photo, (99.6, 101.3, side), 64, margin).astype(int) for margin in (0, 20))
    assert np.abs(wide[:, 20:-20, 20:-20] - alone).max() <= 2


def test_outside_the_photo_is_black_and_inside_is_not():
    view = crop_view(Image.new('RGB', (40, 40), 'white'), (-0.5, 19.5, 32), 32)
    assert view[:, :, :15].max() == 0 and view[:, :, 17:].min() == 255


def test_shrinking_is_antialiased():
    stripes = np.zeros((256, 256, 3), np.uint8)
    stripes[:, ::2] = 254
    view = crop_view(Image.fromarray(stripes), (127.5, 127.5, 256), 32)
    assert np.abs(view[:, 2:-2, 2:-2].astype(int) - 127).max() <= 2


@pytest.mark.parametrize('crop, side', [('paper', 256 / 220), ('hrnet', 1.25)])
def test_the_named_crop_is_taken_around_the_visible_landmarks(tmp_path: Path, crop: str, side: float):
    write_face(tmp_path / 'a.png', 0)
    points = torch.tensor([[10., 20.], [50., 100.], [90., 60.], [1e4, float('nan')]])
    face = Face(tmp_path / 'a.png', points, torch.tensor([True, True, True, False]), 'a.png')
    faces = build_cache([face], Scheme('four', 4), crop, 32, tmp_path / 'cache')
    assert faces.squares[0].tolist() == pytest.approx([50, 60, 80 * side], rel=1e-6)
    assert faces.points.isfinite().all() and faces.crop == crop and faces.boxes == 'landmarks'


def test_boxes_from_the_dataset(tmp_path: Path):
    write_face(tmp_path / 'a.png', 0)
    face = Face(tmp_path / 'a.png', torch.rand(4, 2) * 80, torch.ones(4, dtype=torch.bool), 'a.png')
    with pytest.raises(DataError, match='no box for this face'):
        build_cache([face], Scheme('four', 4), size=32, cache=tmp_path / 'cache', boxes='file')
    face = replace(face, box=(10, 20, 90, 70))
    boxed = build_cache([face], Scheme('four', 4), 'hrnet', 32, tmp_path / 'cache', boxes='file')
    assert boxed.squares[0].tolist() == [50, 45, 100] and boxed.boxes == 'file'


# ---------------------------------------------------------------------------------------------------------------- cache

@pytest.fixture
def loaded(own: Path, tmp_path: Path):
    "A way to load the 6 training faces at 32 px, and the cache's folder."
    cache = tmp_path / 'cache'
    return (lambda **how: load_faces('folder', 'train', own, **dict(size=32, cache=cache) | how)), cache


def test_cached_pixels_and_points(own: Path, loaded):
    load, cache = loaded
    faces = load()
    assert faces.images.shape == (6, 3, 52, 52) and (faces.size, faces.margin) == (32, 10)
    back = transform_points(faces.photo_map(), faces.points.double())
    for i, name in enumerate(faces.names):
        assert np.array_equal(faces.images[i], crop_view(open_photo(own / name)[0], faces.squares[i], 32, 10))
        assert (back[i] - read_pts(own / Path(name).with_suffix('.pts'))).abs().max() < 1e-4
    side = (faces.points.amax(1) - faces.points.amin(1)).amax(1)
    assert (side - 32 * 220 / 256).abs().max() < 1e-4                        # the paper: the face is 220 of 256 px
    assert load_faces('folder', 'train', own, cache=cache, limit=1).images.shape == (1, 3, 416, 416)


def test_opened_again_no_photo_is_decoded(loaded, monkeypatch):
    load, cache = loaded
    first = load()
    monkeypatch.setattr(datasets, 'open_photo', lambda path: pytest.fail('decoded again'))
    again = load()
    assert np.array_equal(first.images[:], again.images[:]) and torch.equal(first.points, again.points)
    assert isinstance(again.images.base.base, np.memmap) or isinstance(again.images.base, np.memmap)
    assert len(list(cache.iterdir())) == 1 and not list(cache.glob('.*'))


def test_the_key_is_the_content(own: Path, loaded, tmp_path: Path):
    load, cache = loaded
    entries = lambda: len(list(cache.iterdir()))
    load()
    for change in (dict(size=48), dict(crop='hrnet'), dict(limit=3)):
        before = entries()
        load(**change)
        assert entries() == before + 1
    before = entries()
    for path in (own / 'train').iterdir(): os.utime(path, (1, 1))            # touched: the same content
    shutil.move(own, tmp_path / 'moved')
    load_faces('folder', 'train', tmp_path / 'moved', 32, cache)
    assert entries() == before
    shutil.move(tmp_path / 'moved', own)
    photo = own / 'train/0.png'
    pixels = np.asarray(Image.open(photo)).copy()
    pixels[60, 60] ^= 255
    Image.fromarray(pixels).save(photo)
    new = load()
    assert entries() == before + 1
    assert np.array_equal(new.images[0], crop_view(open_photo(photo)[0], new.squares[0], 32, 10))


def test_a_corrected_landmark_inside_the_box_needs_no_new_pixels(own: Path, loaded):
    load, cache = loaded
    old = load()
    points = face_points(0)
    middle = np.abs(points - 60).sum(1).argmin()
    points[middle] += 3
    write_pts(own / 'train/0.pts', points)
    new = load()
    assert len(list(cache.iterdir())) == 1 and (new.points - old.points)[0, middle].min() > 0.5


def blank(images: Path) -> None:
    "A file of full length whose pixels never reached the disk."
    whole = images.read_bytes()
    images.write_bytes(whole[:128] + bytes(len(whole) - 128))


DAMAGE = {
    'cut': lambda e: os.truncate(e / 'images.npy', 5000),
    'empty': lambda e: os.truncate(e / 'images.npy', 0),
    'zeros': lambda e: blank(e / 'images.npy'),
    'no images': lambda e: (e / 'images.npy').unlink(),
    'no index': lambda e: (e / 'index.json').unlink(),
    'bad index': lambda e: (e / 'index.json').write_text('{"checksums": ['),
    'other index': lambda e: (e / 'index.json').write_text('[]'),
    'shape': lambda e: np.save(e / 'images.npy', np.zeros((6, 3, 52, 51), np.uint8)),
    'pickle': lambda e: np.save(e / 'images.npy', np.array([object()] * 6), allow_pickle=True)}


@pytest.mark.parametrize('how', DAMAGE)
def test_a_damaged_cache_is_noticed_and_built_again(loaded, how: str):
    load, cache = loaded
    whole = load().images[:]
    DAMAGE[how](next(cache.iterdir()))
    with pytest.warns(UserWarning, match='is damaged and is built again'): again = load()
    assert np.array_equal(again.images[:], whole)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        load()


def test_deleting_the_cache_is_safe_even_while_it_is_read(loaded):
    load, cache = loaded
    faces = load()
    whole = faces.images[:]
    shutil.rmtree(cache)
    assert np.array_equal(faces.images[:], whole) and np.array_equal(load().images[:], whole)


def test_a_failed_build_leaves_nothing(loaded, monkeypatch):
    load, cache = loaded
    monkeypatch.setattr(datasets.os, 'fsync', lambda fd: (_ for _ in ()).throw(OSError(28, 'No space left on device')))
    with pytest.raises(OSError, match='No space'): load()
    assert not list(cache.iterdir())


def test_a_full_disk_is_said_before_anything_is_written(loaded, monkeypatch):
    load, cache = loaded
    monkeypatch.setattr(datasets.shutil, 'disk_usage', lambda path: shutil._ntuple_diskusage(1, 1, 100))
    with pytest.raises(OSError, match='0.0 GB.*SUBPIXEL_CACHE.*limit'): load()
    assert not list(cache.iterdir())


def test_leftovers_of_killed_runs_are_swept_when_old(loaded):
    load, cache = loaded
    for name, age in (('.old.tmp', 2 * 86400), ('.young.tmp', 60)):
        (cache / name).mkdir(parents=True)
        os.utime(cache / name, (time.time() - age,) * 2)
    load()
    assert not (cache / '.old.tmp').exists() and (cache / '.young.tmp').exists()


LOAD = ('import sys, zlib; from subpixel_nb.datasets import load_faces; '
        'f = load_faces("folder", "train", sys.argv[1], size=int(sys.argv[3]), cache=sys.argv[2]); '
        'print(len(f), zlib.crc32(f.images[:].tobytes()))')


def start(own: Path, cache: Path, size: int = 64, code: str = LOAD) -> subprocess.Popen:
    env = dict(os.environ, PYTHONPATH=str(ROOT), OMP_NUM_THREADS='1')
    return subprocess.Popen([sys.executable, '-c', code, str(own), str(cache), str(size)], env=env, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def test_two_processes_may_build_at_once(own: Path, tmp_path: Path):
    racers = [start(own, tmp_path / 'cache') for _ in range(2)]
    outs = [r.communicate(timeout=300) for r in racers]
    assert [r.returncode for r in racers] == [0, 0], outs
    assert outs[0][0] == outs[1][0] and outs[0][0].startswith('6 ')
    assert len(list((tmp_path / 'cache').iterdir())) == 1


def test_where_another_process_was_first_its_work_stands(loaded, monkeypatch, tmp_path: Path):
    load, cache = loaded
    load(cache=tmp_path / 'theirs')
    rename = os.rename

    def late(a, b):
        shutil.copytree(next((tmp_path / 'theirs').iterdir()), b)
        rename(a, b)
    monkeypatch.setattr(datasets.os, 'rename', late)
    assert len(load()) == 6 and len(list(cache.iterdir())) == 1


def test_a_killed_build_is_no_cache(own: Path, tmp_path: Path):
    slow = LOAD.replace('f = load', 'import time, subpixel_nb.datasets as d; old = d.crop_view; '
                        'd.crop_view = lambda *a: (time.sleep(0.5), old(*a))[1]; print("go", flush=True); f = load')
    victim = start(own, tmp_path / 'cache', code=slow)
    assert victim.stdout.readline() == 'go\n'
    until = time.time() + 240
    while not list((tmp_path / 'cache').glob('.*/images.npy')) and time.time() < until: time.sleep(0.05)
    victim.send_signal(signal.SIGKILL)
    victim.communicate()
    assert victim.returncode == -signal.SIGKILL and not [p for p in (tmp_path / 'cache').iterdir() if p.name[0] != '.']
    assert len(load_faces('folder', 'train', own, 64, tmp_path / 'cache')) == 6


def test_a_killed_build_goes_on_where_it_stopped(own: Path, tmp_path: Path, monkeypatch):
    "Killed after three of six crops: the next run crops the other three, and the row whose pixels do not match its checksum."
    slow = LOAD.replace('f = load', 'import time, subpixel_nb.datasets as d; old = d.crop_view; d._threads = lambda: '
                        'd.ThreadPoolExecutor(1); d.crop_view = lambda *a: (time.sleep(0.3), old(*a))[1]; f = load')
    cache = tmp_path / 'cache'
    victim, until = start(own, cache, code=slow), time.time() + 240
    while sum(len(p.read_text().splitlines()) for p in cache.glob('.*/rows.jsonl')) < 3 and time.time() < until: time.sleep(0.02)
    victim.send_signal(signal.SIGKILL)
    victim.communicate()
    log = next(cache.glob('.*/rows.jsonl'))
    finished = len(log.read_text().splitlines())
    assert 3 <= finished < 6
    with open(log.with_name('images.npy'), 'r+b') as file: file.seek(200); file.write(b'damage')
    log.open('a').write('[5, 12')                                              # the line at which it was killed
    calls, honest = [], datasets.crop_view
    monkeypatch.setattr(datasets, 'crop_view', lambda *a: (calls.append(1), honest(*a))[1])
    again = load_faces('folder', 'train', own, 64, cache).images[:]
    assert len(calls) == 6 - finished + 1
    assert np.array_equal(again, load_faces('folder', 'train', own, 64, tmp_path / 'whole').images[:])
    assert [sorted(p.name for p in e.iterdir() if p.name != 'lock') for e in cache.iterdir()] == [['images.npy', 'index.json']]


def test_memory_stays_flat(tmp_path: Path):
    "120 crops of 416 px are 62 MB of pixels; building them holds a few at a time."
    folder = tmp_path / 'own/train'
    write_face(folder / '0.png', 0)
    for i in range(1, 120):
        for suffix in ('.png', '.pts'): shutil.copy(folder / f'0{suffix}', folder / f'{i}{suffix}')
    code = ('import sys, resource; from subpixel_nb.datasets import load_faces; '
            'rss = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024; '
            'load_faces("folder", "train", sys.argv[1], size=256, cache=sys.argv[2] + "1", limit=8); before = rss(); '
            'load_faces("folder", "train", sys.argv[1], size=256, cache=sys.argv[2]); print(rss() - before)')
    out, err = start(tmp_path / 'own', tmp_path / 'cache', code=code).communicate(timeout=300)
    assert float(out) < 30, (out, err)


def test_cache_location(monkeypatch, tmp_path: Path):
    for name in ('SUBPIXEL_CACHE', 'XDG_CACHE_HOME'): monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv('HOME', '/me')
    assert cache_folder() == Path('/me/.cache/subpixel_nb')
    monkeypatch.setenv('XDG_CACHE_HOME', '/xdg')
    assert cache_folder() == Path('/xdg/subpixel_nb')
    monkeypatch.setenv('SUBPIXEL_CACHE', '~/big')
    assert cache_folder() == Path('/me/big') and cache_folder('/there') == Path('/there')


@pytest.mark.parametrize('size', [0, -256, 8, 256.0, '256'])
def test_a_wrong_size_raises(own: Path, tmp_path: Path, size):
    with pytest.raises(ValueError, match='size must be an integer'): load_faces('folder', 'train', own, size, tmp_path)


# ---------------------------------------------------------------------------------------------------------------- Faces

def some_faces(n: int = 5, k: int = 3, **other) -> Faces:
    images = np.arange(n, dtype=np.uint8)[:, None, None, None].repeat(3, 1).repeat(26, 2).repeat(26, 3)
    tags = [('odd',) if i % 2 else ('even', 'first') if i == 0 else ('even',) for i in range(n)]
    given = dict(images=images, points=torch.arange(n * k * 2.).reshape(n, k, 2), size=16, margin=5,
                 visible=torch.ones(n, k, dtype=torch.bool), squares=torch.tensor([[10., 20., 32.]]).repeat(n, 1),
                 names=[f'f{i}' for i in range(n)], scheme=Scheme('s', k), subsets=tags)
    return Faces(**given | other)


@pytest.mark.parametrize('index, wanted', [
    (2, [2]), (-1, [4]), (slice(1, 4), [1, 2, 3]), ([3, 0], [3, 0]), (np.array([1, 1]), [1, 1]),
    (torch.tensor([4, 2]), [4, 2]), (torch.tensor([True, False, True, False, False]), [0, 2]), ([], [])])
def test_indexing(index, wanted: list):
    faces = some_faces()
    part = faces[index]
    assert part.names == [f'f{i}' for i in wanted] and part.images.shape == (len(wanted), 3, 26, 26)
    assert part.images[:][:, 0, 0, 0].tolist() == wanted and torch.equal(part.points, faces.points[wanted])
    assert part.subsets == [faces.subsets[i] for i in wanted] and part.photo_map().shape == (len(wanted), 3, 3)


def test_indexing_twice_copies_no_image():
    faces = some_faces()
    part = faces[[4, 2, 0]][1:]
    assert part.names == ['f2', 'f0'] and np.shares_memory(part.images.base, faces.images)
    assert np.asarray(part.images)[:, 0, 0, 0].tolist() == [2, 0]
    part.images[0][:] = 99                                                   # a copy: the base is untouched
    assert faces.images[2, 0, 0, 0] == 2
    assert [f.names for f in faces] == [[f'f{i}'] for i in range(5)]
    with pytest.raises(IndexError): faces[5]


def test_batches_can_be_written_to_and_become_tensors(loaded):
    faces = loaded[0]()
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert torch.from_numpy(faces.images[[1, 0]]).shape == (2, 3, 52, 52)
        assert torch.from_numpy(faces.images[0]).shape == (3, 52, 52)


def test_mask():
    assert some_faces().mask('odd').tolist() == [False, True, False, True, False]
    with pytest.raises(ValueError, match="unknown subset 'eve'; known: even"): some_faces().mask('eve')


def test_subsets_of_the_full_test(home, tmp_path: Path):
    faces = quietly(load_faces, '300w', 'test', home[0], 16, tmp_path / 'cache')
    assert faces.mask('common').sum() == 6 and faces.mask('challenge').sum() == 3 and faces.mask('full').all()
    alone = quietly(load_faces, '300w', 'challenge', home[0], 16, tmp_path / 'cache')
    part = faces[faces.mask('challenge')]
    assert part.names == alone.names and np.array_equal(part.images[:], alone.images[:])


@pytest.mark.parametrize('wrong, words', [
    (dict(points=torch.zeros(5, 4, 2)), r'points must be \(5, 3, 2\), got \(5, 4, 2\)'),
    (dict(images=np.zeros((5, 3, 16, 16), np.uint8)), r'images must be \(5, 3, 26, 26\)'),
    (dict(images=np.zeros((5, 3, 26, 26), np.float32)), 'images must be uint8'),
    (dict(visible=torch.ones(5, 3)), 'visible bool'),
    (dict(points=torch.full((5, 3, 2), torch.nan)), 'visible points are not finite in f0, f1'),
    (dict(squares=torch.zeros(4, 3)), 'squares must be')])
def test_faces_check_what_they_are_given(wrong: dict, words: str):
    with pytest.raises(ValueError, match=words): some_faces(**wrong)


def test_invisible_points_poison_nothing():
    points, visible = torch.ones(5, 3, 2), torch.ones(5, 3, dtype=torch.bool)
    points[1, 2], visible[1, 2] = torch.nan, False
    assert some_faces(points=points, visible=visible).points[1, 2].tolist() == [0, 0]


def test_photo_map_is_exact():
    faces = some_faces(1)
    corner = torch.tensor([[[4.5, 4.5], [20.5, 20.5]]], dtype=torch.float64)  # the view's edges, in cached px
    assert transform_points(faces.photo_map(), corner).tolist() == [[[-6, 4], [26, 36]]]


# ------------------------------------------------------------------------------------------------------------- own data

def test_one_folder_is_split_by_every_fifth_face(tmp_path: Path):
    for i in range(11): write_face(tmp_path / 'deep' / f'{i:02d}.jpg', i, 7)
    with pytest.warns(UserWarning, match='every fifth of its 11 faces'): train = read_split('folder', 'train', tmp_path)
    test, every = quietly(read_split, 'folder', 'test', tmp_path), read_split('folder', 'all', tmp_path)
    assert [f.name for f in test] == ['deep/04.jpg', 'deep/09.jpg'] and len(train) == 9 and len(every) == 11
    assert not {f.name for f in train} & {f.name for f in test}


def test_train_and_test_folders(own: Path):
    assert [len(read_split('folder', s, own)) for s in ('train', 'test', 'all')] == [6, 3, 9]
    shutil.rmtree(own / 'test')
    with pytest.raises(FileNotFoundError, match='has no test/'): read_split('folder', 'test', own)
    with pytest.raises(FileNotFoundError, match='does not exist.*train/ and test/'):
        read_split('folder', 'test', own / 'x')


def test_any_number_of_points_as_long_as_all_agree(tmp_path: Path):
    for i in range(4): write_face(tmp_path / 'train' / f'{i}.png', i, 7 if i else 6)
    with pytest.raises(DataError, match='0.png: its .pts has 6 points where most files have 7'):
        read_split('folder', 'train', tmp_path)
    faces = quietly(load_faces, 'folder', 'train', tmp_path, 16, tmp_path / 'cache', 'skip')
    assert faces.points.shape == (3, 7, 2) and faces.scheme.pairs is None and faces.scheme.normaliser == 'box'


def test_scheme_file(tmp_path: Path):
    for i in range(2): write_face(tmp_path / 'train' / f'{i}.png', i, 5)
    load = lambda: load_faces('folder', 'train', tmp_path, 16, tmp_path / 'cache').scheme
    given = dict(name='five', points=5, pairs=[[0, 1], [3, 4]], eyes=[[0], [1]], regions={'mouth': [3, 4]})
    (tmp_path / 'scheme.json').write_text(json.dumps(given))
    assert load() == Scheme('five', 5, ((0, 1), (3, 4)), ((0,), (1,)), regions={'mouth': (3, 4)})
    assert load().normaliser == 'ic'
    (tmp_path / 'scheme.json').write_text('{"points": 5}')
    assert load().pairs is None
    for text in ('{', '[]', '{"points": "x"}', '{"pairs": []}', '{"points": 5, "pairs": [[0, 9]]}',
                 '{"points": 5, "pairs": 3}', '{"points": 6}'):
        (tmp_path / 'scheme.json').write_text(text)
        with pytest.raises(DataError, match='scheme.json'): load()


def test_a_foreign_layout_of_68_points_is_suspected(tmp_path: Path):
    left_to_right = np.sort(np.linspace(20, 100, 68))                         # mirrors i <-> 67 - i: not iBUG's pairs
    for i in range(12): write_face(tmp_path / 'train' / f'{i}.png', i)
    foreign = np.stack([left_to_right, 60 + 9 * np.sin(left_to_right)], 1)
    for p in (tmp_path / 'train').glob('*.pts'): write_pts(p, foreign)
    with pytest.warns(UserWarning, match='misses its mirror image.*scheme.json'):
        assert load_faces('folder', 'train', tmp_path, 16, tmp_path / 'cache').scheme == SCHEMES[68]


def test_a_drawn_dataset_needs_no_root(monkeypatch):
    monkeypatch.setattr(datasets, 'CATALOGUE', dict(CATALOGUE))
    register(Dataset('drawn', Scheme('s', 3), (Split('train'), Split('test')), 'train', 'test',
                     make=lambda split, size, limit: some_faces(limit or 5)))
    assert len(load_faces('drawn', 'test', limit=2)) == 2
    with pytest.raises(ValueError, match='no files to read'): read_split('drawn', 'test', '.')
    with pytest.raises(ValueError, match='unknown split of bad'):
        register(replace(find_dataset('drawn'), name='bad', test='nope'))


# ------------------------------------------------------------------------------------------------------------ real data

@needs_real
@pytest.mark.parametrize('folder, count', [('helen/trainset', 870), ('lfpw/trainset', 805), ('helen/testset', 330),
                                           ('lfpw/testset', 224), ('ibug', 9)])
def test_real_counts(folder: str, count: int):
    problems: list = []
    faces = read_folder(REAL / folder, REAL, problems, 68)
    assert len(faces) == count and not problems
    assert mirror_gap(torch.stack([f.points for f in faces]), SCHEMES[68].pairs) < 0.1


@needs_real
def test_the_common_test_is_complete_and_says_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert len(read_split('300w', 'common', REAL)) == 554


@needs_real
def test_real_faces_are_cropped_as_the_paper_says(tmp_path: Path):
    faces = quietly(load_faces, '300w', 'train', REAL, cache=tmp_path, limit=12)
    assert faces.images.shape == (12, 3, 416, 416) and len({n.split('/')[0] for n in faces.names}) == 2
    box = faces.points.amax(1) - faces.points.amin(1)
    assert (box.amax(1) - 220).abs().max() < 1e-3
    middle = (faces.points.amax(1) + faces.points.amin(1)) / 2
    assert (middle - 207.5).abs().max() < 1e-3
    assert faces.images[:][:, :, 160:256, 160:256].std() > 20                 # there is a picture where the face is


# WFLW

def wflw_line(photo: str, shift: float = 0., flags: str = '0 0 0 0 0 0') -> str:
    points = ' '.join(f'{20 + 3 * (i % 10) + shift:.4f} {30 + 4 * (i // 10):.4f}' for i in range(98))
    return f'{points} 15 25 60 75 {flags} {photo}'


@pytest.fixture
def wflw(tmp_path):
    lists, photos = tmp_path / 'WFLW_annotations/list_98pt_rect_attr_train_test', tmp_path / 'WFLW_images/0--Parade'
    lists.mkdir(parents=True); photos.mkdir(parents=True)
    for i in range(3): Image.new('RGB', (100, 90), (i * 50, 80, 120)).save(photos / f'{i}.jpg')
    (lists / 'list_98pt_rect_attr_test.txt').write_text('\n'.join(
        wflw_line(f'0--Parade/{i}.jpg', i, flags) for i, flags in enumerate(('1 0 0 0 0 0', '0 0 0 0 1 1', '0 0 0 0 0 0'))) + '\n')
    return tmp_path


def test_wflw_as_released(wflw, tmp_path):
    with pytest.warns(UserWarning, match='3 faces, official count 2500'):
        faces = load_faces('wflw', 'test', wflw, size=64, cache=tmp_path / 'cache')
    assert faces.scheme.points == 98 and faces.mask('largepose').tolist() == [True, False, False]
    assert faces.mask('occlusion').tolist() == faces.mask('blur').tolist() == [False, True, False]
    photo = transform_points(faces.photo_map(), faces.points.double())
    assert photo[1, 0].tolist() == pytest.approx([21, 30], abs=1e-3)                    # as found: 0-based


@pytest.mark.parametrize('line, said', [
    ('1 2 3 photo.jpg', r'test.txt:4: expected 207 columns .* got 4'),
    (wflw_line('0--Parade/0.jpg').replace('20.0000', 'x', 1), r"test.txt:4: could not convert string to float: 'x'"),
    (wflw_line('absent.jpg'), r'absent.jpg: there is no such photo'),
    (wflw_line('../../secret.jpg'), r'test.txt:4: the photo .* lies outside'),
    (wflw_line('/etc/passwd'), r'test.txt:4: the photo .* lies outside'),
])
def test_wflw_bad_lines(wflw, line, said):
    with open(wflw / 'WFLW_annotations/list_98pt_rect_attr_train_test/list_98pt_rect_attr_test.txt', 'a') as f: f.write(line + '\n')
    with pytest.raises(DataError, match=said): read_split('wflw', 'test', wflw)
    with pytest.warns(UserWarning): assert len(read_split('wflw', 'test', wflw, on_error='skip')) == 3


def test_wflw_without_its_list(tmp_path):
    with pytest.raises(FileNotFoundError, match='list_98pt_rect_attr_train.txt'): read_split('wflw', 'train', tmp_path)


def test_wflw_real_test_list(shared_data, tmp_path):
    "The official test list (1966 of its 2500 lines are there), its photos stood in for by empty files, and the subsets' counts."
    (tmp_path / 'WFLW_annotations').symlink_to((shared_data / 'wflw/WFLW_annotations').resolve())
    listing = shared_data / 'wflw/WFLW_annotations/list_98pt_rect_attr_train_test/list_98pt_rect_attr_test.txt'
    for name in {line.split()[-1] for line in listing.read_text().splitlines()}:
        (tmp_path / 'WFLW_images' / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / 'WFLW_images' / name).touch()
    with pytest.warns(UserWarning, match='1966 faces, official count 2500'): faces = read_split('wflw', 'test', tmp_path)
    count = {s: sum(s in f.subsets for f in faces) for s in find_dataset('wflw').subsets}
    assert count == dict(largepose=326, expression=314, illumination=698, makeup=206, occlusion=736, blur=773)


def test_where_data_is_looked_for(tmp_path, monkeypatch):
    d = find_dataset('300w')
    monkeypatch.delenv('SUBPIXEL_DATA', raising=False)
    assert data_root(d, tmp_path) == tmp_path and data_root(d) == Path('data/300w')
    monkeypatch.setenv('SUBPIXEL_DATA', str(tmp_path))
    assert data_root(d) == tmp_path
    (tmp_path / '300w').mkdir()
    assert data_root(d) == tmp_path / '300w'


def test_streamed_crops_are_the_cached_ones_and_leave_nothing(own: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setenv('SUBPIXEL_CACHE', str(tmp_path / 'cache'))
    kept, streamed = load_faces('folder', 'train', own, 64), load_faces('folder', 'train', own, 64, 'stream')
    assert streamed.images.shape == kept.images.shape and isinstance(streamed.images, datasets.Crops)
    for index in (slice(None), [3, 1], 2, np.array([[0, 5]]), []): assert np.array_equal(streamed.images[index], kept.images[index]), index
    assert np.array_equal(np.asarray(streamed[[4, 2]].images), np.asarray(kept[[4, 2]].images)) and torch.equal(streamed.points, kept.points)
    shutil.rmtree(tmp_path / 'cache')
    load_faces('folder', 'train', own, 64, 'stream').images[:]
    assert not (tmp_path / 'cache').exists()
    photo = next(p for p in sorted((own / 'train').iterdir()) if p.suffix != '.pts')
    photo.write_bytes(b'')
    with pytest.raises(DataError, match=photo.name): load_faces('folder', 'train', own, 64, 'stream').images[:]
