"Readers, schemes and catalogue: formats, numbers, faults. Fixtures are files in the official formats."

import json
import shutil
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from face_files import (
    REAL,
    needs_real,
    quietly,
    write_face,
    write_pts,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from subpixel_nb.codec.geometry import flip_permutation, transform_points
from subpixel_nb.data.crops import load_faces
from subpixel_nb.data.datasets import (
    CATALOGUE,
    SCHEMES,
    DataError,
    Scheme,
    Split,
    find_dataset,
    find_scheme,
    mirror_gap,
    read_folder,
    read_pts,
    read_split,
)

# -------------------------------------------------------------------------------------------------------------- schemes

PAIRS = {  # written out from the datasets' own numbering, not by the formulas of the notebook
    68: '0-16 1-15 2-14 3-13 4-12 5-11 6-10 7-9 17-26 18-25 19-24 20-23 21-22 31-35 32-34 36-45 37-44 38-43 '
    '39-42 40-47 41-46 48-54 49-53 50-52 55-59 56-58 60-64 61-63 65-67',
    98: '0-32 1-31 2-30 3-29 4-28 5-27 6-26 7-25 8-24 9-23 10-22 11-21 12-20 13-19 14-18 15-17 33-46 34-45 '
    '35-44 36-43 37-42 38-50 39-49 40-48 41-47 55-59 56-58 60-72 61-71 62-70 63-69 64-68 65-75 66-74 '
    '67-73 76-82 77-81 78-80 83-87 84-86 88-92 89-91 93-95 96-97',
    29: '0-1 2-3 4-6 5-7 8-9 10-11 12-14 13-15 16-17 18-19 22-23',
    19: '0-5 1-4 2-3 6-11 7-10 8-9 12-14 15-17',
}


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
    for region in scheme.regions.values():
        assert set(mirror[list(region)].tolist()) == set(region)
    for a, b in filter(None, (scheme.eyes, scheme.pupils)):
        assert set(mirror[list(a)].tolist()) == set(b)


def test_normalisers():
    assert [(s.eyes, s.normaliser) for s in SCHEMES.values()] == [
        (((36,), (45,)), 'ic'),
        (((60,), (72,)), 'ic'),
        (((8,), (9,)), 'ic'),
        ((), 'box'),
    ]
    assert SCHEMES[68].pupils == ((36, 37, 38, 39, 40, 41), (42, 43, 44, 45, 46, 47))


@pytest.mark.parametrize(
    'wrong',
    [
        dict(pairs=((0, 1), (1, 2))),
        dict(pairs=((0, 5),)),
        dict(eyes=((0,),)),
        dict(eyes=((0,), (7,))),
        dict(regions={'nose': (9,)}),
    ],
)
def test_a_wrong_scheme_raises(wrong: dict):
    with pytest.raises(ValueError, match='0..4'):
        Scheme('mine', 5, **wrong)


# ----------------------------------------------------------------------------------------------------------- .pts files


@pytest.mark.parametrize(
    'change',
    [
        lambda t: t,
        lambda t: t.replace('\n', '\r\n'),
        lambda t: '\ufeff' + t,
        lambda t: t.replace('{\n', ''),
        lambda t: t.replace('}\n', ''),
        lambda t: t.replace('\n', '\n\n'),
        lambda t: t.rstrip('\n'),
        lambda t: t.replace(' ', '\t'),
        lambda t: '\n'.join(t.split('\n')[3:5]),
        lambda t: t + 'anything after the brace\n',
        lambda t: t.upper(),
    ],
    ids='plain crlf bom open-brace close-brace blank-lines no-last-newline tabs headerless after upper'.split(),
)
def test_pts_variants(tmp_path: Path, change):
    text = 'version: 1\nn_points:  2\n{\n1.000000 2.500000\n300.25 1\n}\n'
    (tmp_path / 'a.pts').write_bytes(change(text).encode())
    points = read_pts(tmp_path / 'a.pts', 2)
    assert points.dtype == torch.float32 and points.tolist() == [[0, 1.5], [299.25, 0]]


def test_pts_base(tmp_path: Path):
    (tmp_path / 'a.pts').write_text('3 4\n')
    assert read_pts(tmp_path / 'a.pts', base=0).tolist() == [[3, 4]]


@given(
    st.lists(st.tuples(*[st.floats(-5000, 5000)] * 2), min_size=1, max_size=30),
    st.booleans(),
    st.sampled_from(['\n', '\r\n']),
)
@settings(max_examples=50)
def test_pts_round_trip(tmp_path_factory, points: list, header: bool, end: str):
    path = tmp_path_factory.mktemp('pts') / 'a.pts'
    write_pts(path, np.array(points), header, end)
    assert np.abs(read_pts(path).numpy() - points).max() <= 5e-4


GOOD = ''.join(f'{i} {i}.5\n' for i in range(68))
HEADER = 'version: 1\nn_points:  68\n{\n'


@pytest.mark.parametrize(
    'text, words',
    [
        (HEADER + GOOD.partition('\n')[2] + '}\n', ':71: 67 points where its n_points says 68'),
        (GOOD.partition('\n')[2], ':67: 67 points where the dataset has 68'),
        (HEADER.replace('68', '67') + GOOD.partition('\n')[2] + '}\n', ':71: 67 points where the dataset has 68'),
        (GOOD + '1 1\n', ':69: 69 points'),
        (GOOD.replace('7 7.5', '7 nan'), ':8: a point is not finite: 7 nan'),
        (GOOD.replace('7 7.5', '-inf 7'), ':8: a point is not finite'),
        (GOOD.replace('7 7.5', '7 7,5'), ':8: expected two numbers'),
        (GOOD.replace('\n7 7.5', '\n7'), ':8: expected two numbers "x y", got 1'),
        (GOOD.replace('\n7 7.5', '\n7 7 7'), ':8: expected two numbers "x y", got 3'),
        ('version: 1\nn_points: many\n', ':2: expected "n_points: K"'),
        ('', 'an empty file'),
        (HEADER + '}\n', 'no points'),
        ('\x89PNG\x00\xff\n', ':1: byte 0x89 is not UTF-8: a binary file'),
    ],
    ids='67 67-headerless 67-header-agrees 69 nan inf comma one three n_points empty none binary'.split(),
)
def test_pts_errors_name_file_line_and_reason(tmp_path: Path, text: str, words: str):
    (tmp_path / 'face.pts').write_text(text, 'latin-1')
    with pytest.raises(DataError) as e:
        read_pts(tmp_path / 'face.pts', 68)
    assert str(e.value).startswith(str(tmp_path / 'face.pts')) and words in str(e.value)


# --------------------------------------------------------------------------------------------- catalogue and its reader


def test_official_counts():
    counts = {(d, s.name): s.count for d in ('300w', '300w-private') for s in CATALOGUE[d].splits}
    assert counts == {
        ('300w', 'train'): 3148,
        ('300w', 'common'): 554,
        ('300w', 'challenge'): 135,
        ('300w', 'full'): 689,
        ('300w-private', 'train'): 3837,
        ('300w-private', 'private'): 600,
        ('300w-private', 'indoor'): 300,
        ('300w-private', 'outdoor'): 300,
    }
    for d in ('300w', '300w-private'):
        for s in CATALOGUE[d].splits:
            assert s.count == sum(s.folders.values())
    assert (CATALOGUE['300w'].test, CATALOGUE['300w'].split('test').name) == ('full', 'full')


def test_training_and_test_folders_are_apart():
    for d in ('300w', '300w-private'):
        assert not set(CATALOGUE[d].split('train').folders) & set(CATALOGUE[d].split('test').folders)


@pytest.mark.parametrize('split, folders', [('train', 3), ('common', 2), ('challenge', 1), ('full', 3), ('test', 3)])
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


def test_a_missing_root_says_what_was_looked_for_and_where_it_is(tmp_path: Path):
    for root in (tmp_path / 'nowhere', tmp_path):
        with pytest.raises(FileNotFoundError) as e:
            read_split('300w', 'train', root)
        for word in (str(root), 'afw', 'helen/trainset', 'lfpw/trainset', 'ibug.doc.ic.ac.uk'):
            assert word in str(e.value)


def test_a_root_one_level_off_is_pointed_out(home):
    for root in (home[0].parent, home[0] / 'helen'):
        with pytest.raises(FileNotFoundError, match='Did you mean root') as e:
            read_split('300w', 'train', root)
        assert f'Did you mean root {home[0]}?' in str(e.value)


def test_folders_without_faces(tmp_path: Path):
    (tmp_path / 'afw').mkdir()
    with pytest.raises(FileNotFoundError, match='there is not one face in this split'):
        read_split('300w', 'train', tmp_path)


def test_home_folder_is_expanded(home, monkeypatch):
    monkeypatch.setenv('HOME', str(home[0].parent))
    assert len(quietly(read_split, '300w', 'challenge', '~/300w')) == 3


@pytest.mark.parametrize('limit', [1, 2, 4, 9, 100])
def test_limit_is_spread_evenly_and_repeats(home, limit: int):
    names = [f.name for f in quietly(read_split, '300w', 'train', home[0])]
    some = [f.name for f in quietly(read_split, '300w', 'train', home[0], limit=limit)]
    where = [names.index(n) for n in some]
    assert len(set(where)) == len(where) == min(limit, 9) and where == sorted(where)
    if limit < 9:
        assert max(np.diff([*where, 9])) - min(np.diff([*where, 9])) <= 1


@pytest.mark.parametrize('limit', [0, -3, 2.5, '9'])
def test_a_wrong_limit_raises(home, limit):
    with pytest.raises(ValueError, match='limit must be an integer of at least 1'):
        read_split('300w', 'train', home[0], limit=limit)


def test_unknown_names_list_the_known_nearest_first(home):
    with pytest.raises(ValueError, match="unknown dataset '300vv'; known: 300w, "):
        find_dataset('300vv')
    with pytest.raises(ValueError, match="unknown split of 300w 'chalenge'; known: challenge"):
        read_split('300w', 'chalenge', home[0])
    with pytest.raises(ValueError, match="unknown on_error 'ignore'"):
        read_split('300w', 'train', home[0], on_error='ignore')


# ---------------------------------------------------------------------------------------------------------- bad folders


def test_all_faults_are_reported_together_the_first_ten_in_words(own: Path):
    for p in (own / 'train').glob('*.pts'):
        p.write_text('1 x\n')
    with pytest.raises(DataError, match='6 of 6') as e:
        read_split('folder', 'train', own)
    assert str(e.value).count('expected two numbers') == 6
    for i in range(20):
        (own / 'train' / f'a{i}.png').write_bytes(b'')
    with pytest.raises(DataError, match='and 16 more'):
        read_split('folder', 'train', own)
    with pytest.warns(UserWarning), pytest.raises(DataError, match='not one of 26 faces can be used; the first: '):
        read_split('folder', 'train', own, on_error='skip')


def test_hidden_and_foreign_files_are_passed_over(own: Path):
    (own / 'train/._0.png').write_bytes(b'\0')
    (own / 'train/.ipynb_checkpoints').mkdir()
    write_face(own / 'train/.ipynb_checkpoints/0.png', 0)
    (own / 'train/Thumbs.db').write_bytes(b'\0')
    (own / 'train/notes.txt').write_text('hello')
    assert len(read_split('folder', 'train', own)) == 6


# ------------------------------------------------------------------------------------------------------------- own data


def test_one_folder_is_split_by_every_fifth_face(tmp_path: Path):
    for i in range(11):
        write_face(tmp_path / 'deep' / f'{i:02d}.jpg', i, 7)
    with pytest.warns(UserWarning, match='every fifth of its 11 faces'):
        train = read_split('folder', 'train', tmp_path)
    test, every = quietly(read_split, 'folder', 'test', tmp_path), read_split('folder', 'all', tmp_path)
    assert [f.name for f in test] == ['deep/04.jpg', 'deep/09.jpg'] and len(train) == 9 and len(every) == 11
    assert not {f.name for f in train} & {f.name for f in test}


def test_train_and_test_folders(own: Path):
    assert [len(read_split('folder', s, own)) for s in ('train', 'test', 'all')] == [6, 3, 9]
    shutil.rmtree(own / 'test')
    with pytest.raises(FileNotFoundError, match='has no test/'):
        read_split('folder', 'test', own)
    with pytest.raises(FileNotFoundError, match='does not exist.*train/ and test/'):
        read_split('folder', 'test', own / 'x')


def test_any_number_of_points_as_long_as_all_agree(tmp_path: Path):
    for i in range(4):
        write_face(tmp_path / 'train' / f'{i}.png', i, 7 if i else 6)
    with pytest.raises(DataError, match='0.png: its .pts has 6 points where most files have 7'):
        read_split('folder', 'train', tmp_path)
    faces = quietly(read_split, 'folder', 'train', tmp_path, on_error='skip')
    scheme = find_scheme(tmp_path, faces)
    assert len(faces) == 3 and scheme.points == 7 and scheme.pairs is None and scheme.normaliser == 'box'


def test_scheme_file(tmp_path: Path):
    for i in range(2):
        write_face(tmp_path / 'train' / f'{i}.png', i, 5)

    def load() -> Scheme:
        return find_scheme(tmp_path, read_split('folder', 'train', tmp_path))

    given = dict(name='five', points=5, pairs=[[0, 1], [3, 4]], eyes=[[0], [1]], regions={'mouth': [3, 4]})
    (tmp_path / 'scheme.json').write_text(json.dumps(given))
    assert load() == Scheme('five', 5, ((0, 1), (3, 4)), ((0,), (1,)), regions={'mouth': (3, 4)})
    assert load().normaliser == 'ic'
    (tmp_path / 'scheme.json').write_text('{"points": 5}')
    assert load().pairs is None
    for text in (
        '{',
        '[]',
        '{"points": "x"}',
        '{"pairs": []}',
        '{"points": 5, "pairs": [[0, 9]]}',
        '{"points": 5, "pairs": 3}',
        '{"points": 6}',
    ):
        (tmp_path / 'scheme.json').write_text(text)
        with pytest.raises(DataError, match='scheme.json'):
            load()


def test_a_foreign_layout_of_68_points_is_suspected(tmp_path: Path):
    left_to_right = np.sort(np.linspace(20, 100, 68))  # mirrors i <-> 67 - i: not iBUG's pairs
    for i in range(12):
        write_face(tmp_path / 'train' / f'{i}.png', i)
    foreign = np.stack([left_to_right, 60 + 9 * np.sin(left_to_right)], 1)
    for p in (tmp_path / 'train').glob('*.pts'):
        write_pts(p, foreign)
    with pytest.warns(UserWarning, match='misses its mirror image.*scheme.json'):
        assert find_scheme(tmp_path, read_split('folder', 'train', tmp_path)) == SCHEMES[68]


# ------------------------------------------------------------------------------------------------------------ real data


@pytest.mark.data
@needs_real
@pytest.mark.parametrize(
    'folder, count',
    [('helen/trainset', 870), ('lfpw/trainset', 805), ('helen/testset', 330), ('lfpw/testset', 224), ('ibug', 9)],
)
def test_real_counts(folder: str, count: int):
    problems: list = []
    faces = read_folder(REAL / folder, REAL, problems, 68)
    assert len(faces) == count and not problems
    assert mirror_gap(torch.stack([f.points for f in faces]), SCHEMES[68].pairs) < 0.1


@pytest.mark.data
@needs_real
def test_the_common_test_is_complete_without_a_warning():
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert len(read_split('300w', 'common', REAL)) == 554


# WFLW


def wflw_line(photo: str, shift: float = 0.0, flags: str = '0 0 0 0 0 0') -> str:
    points = ' '.join(f'{20 + 3 * (i % 10) + shift:.4f} {30 + 4 * (i // 10):.4f}' for i in range(98))
    return f'{points} 15 25 60 75 {flags} {photo}'


@pytest.fixture
def wflw(tmp_path):
    lists, photos = tmp_path / 'WFLW_annotations/list_98pt_rect_attr_train_test', tmp_path / 'WFLW_images/0--Parade'
    lists.mkdir(parents=True)
    photos.mkdir(parents=True)
    for i in range(3):
        Image.new('RGB', (100, 90), (i * 50, 80, 120)).save(photos / f'{i}.jpg')
    (lists / 'list_98pt_rect_attr_test.txt').write_text(
        '\n'.join(
            wflw_line(f'0--Parade/{i}.jpg', i, flags)
            for i, flags in enumerate(('1 0 0 0 0 0', '0 0 0 0 1 1', '0 0 0 0 0 0'))
        )
        + '\n'
    )
    return tmp_path


def test_wflw_as_released(wflw, tmp_path):
    with pytest.warns(UserWarning, match='3 faces, official count 2500'):
        faces = load_faces('wflw', 'test', wflw, size=64, cache=tmp_path / 'cache')
    assert faces.scheme.points == 98 and faces.mask('largepose').tolist() == [True, False, False]
    assert faces.mask('occlusion').tolist() == faces.mask('blur').tolist() == [False, True, False]
    photo = transform_points(faces.photo_map(), faces.points.double())
    assert photo[1, 0].tolist() == pytest.approx([21, 30], abs=1e-3)  # as found: 0-based


@pytest.mark.parametrize(
    'line, said',
    [
        ('1 2 3 photo.jpg', r'test.txt:4: expected 207 columns .* got 4'),
        (
            wflw_line('0--Parade/0.jpg').replace('20.0000', 'x', 1),
            r"test.txt:4: could not convert string to float: 'x'",
        ),
        (wflw_line('absent.jpg'), r'absent.jpg: there is no such photo'),
        (wflw_line('../../secret.jpg'), r'test.txt:4: the photo .* lies outside'),
        (wflw_line('/etc/passwd'), r'test.txt:4: the photo .* lies outside'),
    ],
)
def test_wflw_bad_lines(wflw, line, said):
    with open(wflw / 'WFLW_annotations/list_98pt_rect_attr_train_test/list_98pt_rect_attr_test.txt', 'a') as f:
        f.write(line + '\n')
    with pytest.raises(DataError, match=said):
        read_split('wflw', 'test', wflw)
    with pytest.warns(UserWarning):
        assert len(read_split('wflw', 'test', wflw, on_error='skip')) == 3


def test_wflw_without_its_photos(wflw):
    shutil.rmtree(wflw / 'WFLW_images')
    with pytest.raises(
        FileNotFoundError, match=r'none of the 3 photos exists; the first is .*0--Parade/0.jpg.*WFLW.html'
    ):
        read_split('wflw', 'test', wflw)


def test_wflw_without_its_list(tmp_path):
    with pytest.raises(FileNotFoundError, match='list_98pt_rect_attr_train.txt'):
        read_split('wflw', 'train', tmp_path)


@pytest.mark.data
def test_wflw_real_test_list(shared_data, tmp_path):
    "The official test list, of which 1966 of 2500 lines are there, with empty files for photos: the subsets' counts."
    (tmp_path / 'WFLW_annotations').symlink_to((shared_data / 'wflw/WFLW_annotations').resolve())
    listing = shared_data / 'wflw/WFLW_annotations/list_98pt_rect_attr_train_test/list_98pt_rect_attr_test.txt'
    for name in {line.split()[-1] for line in listing.read_text().splitlines()}:
        (tmp_path / 'WFLW_images' / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / 'WFLW_images' / name).touch()
    with pytest.warns(UserWarning, match='1966 faces, official count 2500'):
        faces = read_split('wflw', 'test', tmp_path)
    count = {s: sum(s in f.subsets for f in faces) for s in find_dataset('wflw').subsets}
    assert count == dict(largepose=326, expression=314, illumination=698, makeup=206, occlusion=736, blur=773)
