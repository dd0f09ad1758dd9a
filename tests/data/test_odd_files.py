"Odd files that people really have: links, lists from Windows, other encodings, kinds of photos, COCO's exceptions."

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from face_files import face_points, write_face, write_pts
from PIL import Image
from test_releases import exact, fault, heard, painted, pts, quietly, write_coco, write_csv, write_lp, write_photos

from subpixel_nb.data import crops
from subpixel_nb.data.checks import check_dataset, problem_table
from subpixel_nb.data.crops import data_root, load_faces, open_photo
from subpixel_nb.data.datasets import (
    PHOTO_SUFFIXES,
    SCHEMES,
    Annotation,
    DataError,
    find_dataset,
    find_scheme,
    list_files,
    read_pts,
    read_scheme,
    read_split,
    read_text,
)

# --------------------------------------------------------------------------------------------------------------- links


def test_faces_below_linked_folders_are_read_once(tmp_path: Path):
    "Links to a folder elsewhere, to a link, to a folder above, to each other, and to nothing."
    write_face(tmp_path / 'disk/b/1.png', 1)
    write_face(tmp_path / 'own/train/a/0.png', 0)
    root = tmp_path / 'own/train'
    (root / 'linked').symlink_to(tmp_path / 'disk')
    (root / 'again').symlink_to(root / 'linked')
    (root / 'a/up').symlink_to(root)
    (tmp_path / 'disk/b/back').symlink_to(root / 'a')
    (root / 'none').symlink_to(tmp_path / 'nowhere')
    names = [face.name for face in read_split('folder', 'train', tmp_path / 'own')]
    assert names in (['train/a/0.png', 'train/linked/b/1.png'], ['train/a/0.png', 'train/again/b/1.png'])
    assert [face.name for face in quietly(read_split, 'menpo', 'test', tmp_path / 'own')] == names


def test_a_linked_folder_keeps_its_own_name(tmp_path: Path):
    "A link beside a folder that is there anyway adds nothing, even where the link's name comes first."
    write_face(tmp_path / 'z/0.png', 0)
    (tmp_path / 'a').symlink_to(tmp_path / 'z')
    assert list_files(tmp_path, {'.png'}) == [tmp_path / 'z/0.png']


def test_releases_may_be_linked_folder_by_folder(tmp_path: Path, home):
    (tmp_path / 'root/helen').mkdir(parents=True)
    (tmp_path / 'root/ibug').symlink_to(home[0] / 'ibug')
    (tmp_path / 'root/helen/testset').symlink_to(home[0] / 'helen/testset')
    assert len(quietly(read_split, '300w', 'full', tmp_path / 'root')) == 6


def denied(path: Path) -> bytes:
    raise PermissionError(13, 'Permission denied')


@pytest.mark.parametrize('odd', ['folder', 'dangling', 'loop', 'denied'])
def test_a_pts_that_cannot_be_opened_is_one_face_less(own: Path, monkeypatch, odd: str):
    file = own / 'train/2.pts'
    file.unlink()
    if odd == 'folder':
        file.mkdir()
    elif odd == 'denied':
        file.write_text('')
        opened = Path.read_bytes
        monkeypatch.setattr(Path, 'read_bytes', lambda p: (denied if p == file else opened)(p))
    else:
        file.symlink_to(own / 'nowhere' if odd == 'dangling' else file)
    assert '2.pts: not a readable file (' in fault(read_split, 'folder', 'train', own)
    assert len(quietly(read_split, 'folder', 'train', own, on_error='skip')) == 5


@pytest.mark.parametrize('odd', ['folder', 'dangling'])
def test_a_photo_that_cannot_be_opened_is_one_face_less(own: Path, odd: str):
    photo = own / 'train/2.png'
    photo.unlink()
    photo.mkdir() if odd == 'folder' else photo.symlink_to(own / 'nowhere')
    assert '2.p' in fault(read_split, 'folder', 'train', own)
    assert len(quietly(load_faces, 'folder', 'train', own, 16, own / 'cache', on_error='skip')) == 5


# --------------------------------------------------------------------------------------------------- lists from Windows


@pytest.mark.parametrize('write, kind, name', [(write_csv, 'csv', 'x.csv'), (write_coco, 'coco', 'x.json')])
@pytest.mark.parametrize('turned', ['{}', '.\\{}'])
def test_lists_with_backslashes(tmp_path: Path, write, kind: str, name: str, turned: str):
    faces = write_photos(tmp_path, 5)
    write(tmp_path / name, {turned.format(path.replace('/', '\\')): points for path, points in faces.items()})
    found = read_split(kind, 'all', tmp_path / name)
    assert exact(found, 29) and [face.name for face in found] == list(faces)


def wflw(root: Path, lines: list[str], part: str = 'test') -> Path:
    "WFLW's list of a part."
    file = root / f'WFLW_annotations/list_98pt_rect_attr_train_test/list_98pt_rect_attr_{part}.txt'
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text('\n'.join(lines), 'utf-8')
    return file


def wflw_line(root: Path, name: str, seed: int = 0) -> str:
    "A line of WFLW's list, with its photo."
    photo, points = painted(seed, 98)
    path = root / 'WFLW_images' / name.replace('\\', '/')
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(photo).save(path)
    return ' '.join(map(str, [*points.ravel(), 0, 0, 59, 43, 0, 0, 0, 0, 0, 0, name]))


def test_wflw_with_backslashes_and_a_mark_before_the_text(tmp_path: Path):
    file = wflw(tmp_path, [wflw_line(tmp_path, r'0--Parade\a.png', 0), wflw_line(tmp_path, 'b.png', 1)])
    for encoding in ('utf-8', 'utf-8-sig', 'utf-16', 'utf-32'):
        file.write_text(read_text(file), encoding)
        found = quietly(read_split, 'wflw', 'test', tmp_path)
        assert exact(found, 98) and found[0].name == 'WFLW_images/0--Parade/a.png'


def test_a_name_that_leads_out_of_the_folder_is_refused_on_either_kind_of_path(tmp_path: Path):
    good = wflw_line(tmp_path, 'a.png')
    for name in (r'..\secret.png', '../secret.png', '/etc/a.png', r'C:\faces\a.png', r'\\server\a.png'):
        wflw(tmp_path, [good, good.replace('a.png', name)])
        assert f'train_test/list_98pt_rect_attr_test.txt:2: the photo {name} lies outside' in fault(
            read_split, 'wflw', 'test', tmp_path
        )


def test_the_folder_that_is_named_is_there(tmp_path: Path):
    "Without images/ the photos are looked for beside the list."
    write_csv(tmp_path / 'x.csv', {r'sub\a.jpg': face_points(0, 5)})
    assert f'there is no photo {tmp_path}/sub/a.jpg' in fault(read_split, 'csv', 'all', tmp_path / 'x.csv')


# ----------------------------------------------------------------------------------------------------------- encodings


@pytest.mark.parametrize('encoding', ['utf-8-sig', 'utf-16', 'utf-32'])
def test_marked_encodings_are_read_everywhere(tmp_path: Path, encoding: str):
    faces = write_photos(tmp_path, 3)
    for write, name, kind in ((write_csv, 'x.csv', 'csv'), (write_coco, 'x.json', 'coco')):
        write(tmp_path / name, faces)
        (tmp_path / name).write_text((tmp_path / name).read_text('utf-8'), encoding)
        assert exact(read_split(kind, 'all', tmp_path / name), 29)
    (tmp_path / 'a.pts').write_text('version: 1\nn_points: 1\n{\n1 2.5\n}\n', encoding)
    assert read_pts(tmp_path / 'a.pts').tolist() == [[0, 1.5]]
    (tmp_path / 'scheme.json').write_text('{"name": "é", "points": 2, "pairs": [[0, 1]]}', encoding)
    assert read_scheme(tmp_path / 'scheme.json').name == 'é'


@pytest.mark.parametrize(
    'data, told',
    [
        ('1 2\né 3\n'.encode('latin-1'), 'x:2: byte 0xe9 is not UTF-8: a binary file, or text in another encoding'),
        (np.arange(20.0).tobytes(), 'x:1: byte 0xf0 is not UTF-8: a binary file'),
        (np.zeros(20).tobytes(), 'x: a binary file, or UTF-16 without a byte order mark'),
        ('1 2\n'.encode('utf-16-le'), 'x: a binary file, or UTF-16 without a byte order mark'),
        (b'\xff\xfe1', 'x:1: byte 0x31 is not UTF-16'),
        (bytes(range(200, 256)) * 20_000, 'x:1: byte 0xc8 is not UTF-8'),
    ],
)
@pytest.mark.parametrize('reader', ['pts', 'csv', 'coco', 'scheme', 'menpo-list'])
def test_other_encodings_and_binary_files_are_named_in_plain_letters(tmp_path: Path, reader, data: bytes, told: str):
    (tmp_path / 'x').write_bytes(data)
    read = dict(pts=read_pts, scheme=read_scheme).get(reader)
    said = fault(read, tmp_path / 'x') if read else fault(read_split, reader, 'all', tmp_path / 'x')
    assert told in said and said.isprintable() and len(said) < 300


def test_names_that_are_not_utf8_are_refused_before_the_work(own: Path):
    odd = os.fsdecode(b'caf\xe9')
    for suffix in ('.png', '.pts'):
        (own / f'train/2{suffix}').rename(own / f'train/{odd}{suffix}')
    said = fault(read_split, 'folder', 'train', own)
    assert r'caf\udce9.png: its name is not UTF-8' in said and said.encode()
    assert len(quietly(read_split, 'folder', 'train', own, on_error='skip')) == 5
    assert 'its name is not UTF-8' in str(quietly(check_dataset, 'folder', own).problems).encode().decode()


# ------------------------------------------------------------------------------------------------------ kinds of photos


@pytest.mark.parametrize('suffix', '.webp .tif .bmp .ppm .pgm .gif .PGM .tga .jp2 .jfif'.split())
def test_every_kind_of_photo_is_paired_with_its_points(tmp_path: Path, suffix: str):
    points = face_points(0)
    write_pts(tmp_path / f'all/a{suffix}', points)
    (tmp_path / f'all/a{suffix}').rename(tmp_path / 'all/a.pts')
    Image.new('L', (120, 120), 77).save(tmp_path / f'all/a{suffix}')
    [face] = read_split('folder', 'all', tmp_path / 'all')
    assert face.name == f'a{suffix}' and np.asarray(open_photo(face.photo)[0]).shape == (120, 120, 3)


def test_the_kinds_are_those_that_pillow_decodes():
    assert PHOTO_SUFFIXES > set('.jpg .jpeg .png .bmp .webp .avif .tif .tiff .gif .ppm .pgm .heic .psd'.split())
    assert not PHOTO_SUFFIXES & set('.pts .mat .csv .json .txt .mp4 .mpg .avi .pdf .eps .h5 .npz'.split())


def test_300w_lp_reads_other_kinds_of_photos(tmp_path: Path):
    write_lp(tmp_path, 'AFW', 'a_1_0', 0)
    (tmp_path / 'AFW/a_1_0.jpg').rename(tmp_path / 'AFW/a_1_0.png')
    assert exact(quietly(read_split, '300w-lp', 'train', tmp_path), 68)


@pytest.mark.parametrize('suffix', '.webp .tif .bmp .ppm .gif .tga .jp2 .psd .pcx .sgi .png .ico .dds'.split())
def test_a_broken_photo_of_any_kind_is_one_face_less(tmp_path: Path, suffix: str):
    "Cut short anywhere, or overwritten: a picture, or an error that names the file."
    rng, path = np.random.default_rng(0), tmp_path / f'a{suffix}'
    picture = Image.fromarray(rng.integers(0, 255, (32, 32, 3), np.uint8))
    if suffix == '.psd':
        whole = b'8BPS\0\1' + bytes(6) + b'\0\3\0\0\0\x20\0\0\0\x20\0\x08\0\3' + bytes(14) + rng.bytes(3072)
    else:
        picture.save(path)
        whole = path.read_bytes()
    for share in (0, 0.01, 0.02, 0.05, 0.3, 0.9):
        path.write_bytes(whole[: int(share * len(whole))])
        quietly(seen_or_named, path)
        noisy = bytearray(whole)
        for place in rng.integers(0, min(len(whole), 200), 12):
            noisy[place] = rng.integers(256)
        path.write_bytes(noisy)
        quietly(seen_or_named, path)


def seen_or_named(path: Path) -> None:
    "Open a photo; a fault must be a DataError that names the file."
    try:
        assert open_photo(path)[0].mode == 'RGB'
    except DataError as e:
        assert str(path) in str(e)


@pytest.mark.parametrize('mode, suffix', [('RGBA', '.png'), ('LA', '.png'), ('P', '.png'), ('RGBA', '.webp')])
def test_transparent_pixels_are_white_in_training_as_in_the_predictor(tmp_path: Path, mode: str, suffix: str):
    photo = Image.new('RGBA', (40, 30), (200, 200, 200, 255))
    photo.paste((10, 10, 10, 0), (0, 0, 20, 30))  # hidden darkness
    path = tmp_path / f'a{suffix}'
    photo = photo.quantize(4, Image.Quantize.FASTOCTREE) if mode == 'P' else photo.convert(mode)
    photo.save(path, **({'lossless': True, 'exact': True} if suffix == '.webp' else {}))
    pixels = np.asarray(open_photo(path)[0])
    assert (pixels[:, :20] == 255).all() and (pixels[:, 20:] == 200).all()


def test_cached_crops_with_hidden_colours_are_made_again(own: Path, tmp_path: Path, monkeypatch):
    "A cache of an older version may hold them: the key of these photos differs, that of others does not."

    def key() -> str:
        return crops._key([own / 'train/0.png'], torch.zeros(1, 3), 16, 5)

    opaque = key()
    monkeypatch.setattr(crops, '_decodes_anew', lambda path: False)
    assert key() == opaque
    monkeypatch.undo()
    Image.open(own / 'train/0.png').convert('RGBA').save(own / 'train/0.png')
    transparent = key()
    monkeypatch.setattr(crops, '_decodes_anew', lambda path: False)
    assert key() != transparent


@pytest.mark.parametrize('orientation', range(2, 9))
def test_a_turned_tiff_is_read_as_stored(tmp_path: Path, orientation: int):
    "Pillow turns TIFFs as it loads them; the points of a dataset refer to the stored pixels."
    pixels, exif = np.random.default_rng(0).integers(0, 255, (20, 30, 3), np.uint8), Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(tmp_path / 'a.tif', exif=exif)
    photo, turned = open_photo(tmp_path / 'a.tif')
    assert turned and np.array_equal(np.asarray(photo), pixels)


def test_an_animation_says_that_one_picture_is_read(tmp_path: Path):
    pages = [Image.new('L', (20, 20), level) for level in (50, 100, 150)]
    for suffix in ('.gif', '.webp', '.tif', '.png'):
        pages[0].save(tmp_path / f'a{suffix}', save_all=True, append_images=pages[1:])
        (photo, _), said = heard(open_photo, tmp_path / f'a{suffix}')
        assert f'a{suffix}: 3 pictures are in it, and the first is read' in said
        assert abs(int(np.asarray(photo)[5, 5, 0]) - 50) < 3


# ---------------------------------------------------------------------------------------------------------------- EXIF


@pytest.mark.parametrize('suffix', ['.jpg', '.png', '.tif'])
def test_a_rotation_is_told_at_every_opening(own: Path, tmp_path: Path, suffix: str):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(own / 'train/0.png').save(own / f'train/0{suffix}', exif=exif)
    if suffix != '.png':
        (own / 'train/0.png').unlink()
    told = '1 photos carry an EXIF rotation'
    for cache in (tmp_path / 'cache', tmp_path / 'cache', 'stream'):
        assert told in heard(load_faces, 'folder', 'train', own, 16, cache)[1]
    [entry] = (tmp_path / 'cache').iterdir()
    index = json.loads((entry / 'index.json').read_text())
    assert index['turned'] == [True] + 5 * [False]
    del index['turned']  # as older versions wrote it
    (entry / 'index.json').write_text(json.dumps(index))
    assert told in heard(load_faces, 'folder', 'train', own, 16, tmp_path / 'cache')[1]
    assert heard(load_faces, 'folder', 'test', own, 16, 'stream')[1] == ''


# ---------------------------------------------------------------------------------------------------------------- COCO


def coco_of(root: Path, count: int = 4) -> dict:
    "A COCO file, and its content."
    return write_coco(root / 'x.json', write_photos(root, count))


def read_content(root: Path, content: dict, kind: str = 'coco'):
    (root / 'x.json').write_text(json.dumps(content))
    return heard(read_split, kind, 'all', root / 'x.json')


@pytest.mark.parametrize('change', [dict(keypoints=None), dict(keypoints=[]), None])
def test_coco_annotations_without_keypoints_are_left_out_and_counted(tmp_path: Path, change):
    content = coco_of(tmp_path)
    content['annotations'][1].update(change or {})
    if change is None:
        del content['annotations'][1]['keypoints']
    found, said = read_content(tmp_path, content)
    assert len(found) == 3 and exact(found, 29)
    assert '1 of 4 annotations have no labelled keypoint and are left out' in said


def test_coco_crowds_are_left_out_and_counted(tmp_path: Path):
    content = coco_of(tmp_path)
    content['annotations'][1]['iscrowd'] = content['annotations'][2]['iscrowd'] = 1
    found, said = read_content(tmp_path, content)
    assert [face.name for face in found] == ['a/é 0.png', 'a/é 3.png']
    assert '2 of 4 annotations are crowds (iscrowd) and are left out' in said


@pytest.mark.parametrize('box', [[], None, [0, 0, 0, 0], [5, 5, -2, 8]])
def test_coco_boxes_may_be_empty(tmp_path: Path, box):
    content = coco_of(tmp_path)
    content['annotations'][1]['bbox'] = box
    found, said = read_content(tmp_path, content)
    assert found[1].box is None and found[0].box and exact(found, 29) and not said
    content['annotations'][1]['bbox'] = [1, 2, float('nan'), 4]
    assert 'annotations[1]: expected bbox x y w h, got [1, 2, nan, 4]' in fault(read_content, tmp_path, content)


def test_coco_keypoints_must_be_those_of_the_category(tmp_path: Path):
    content = coco_of(tmp_path)
    content['categories'] = [dict(id=1, name='face', keypoints=[str(i) for i in range(30)])]
    said = fault(read_content, tmp_path, content)
    assert 'annotations[0]: 29 keypoints where its category names 30' in said
    del content['annotations'][0]['category_id']
    assert 'annotations[0]: 29 keypoints where its category names 30' in fault(read_content, tmp_path, content)
    content['categories'][0]['keypoints'].pop()
    assert exact(read_content(tmp_path, content)[0], 29)


def test_ids_of_another_type_are_named(tmp_path: Path):
    content = coco_of(tmp_path)
    content['annotations'][1]['image_id'] = '8'
    said = fault(read_content, tmp_path, content)
    assert "annotations[1]: image_id '8' is not among images: the id there is 8, so write both as" in said
    content['annotations'][1]['image_id'], content['images'][1]['file_name'] = 8, None
    assert 'annotations[1]: no photo is named' in fault(read_content, tmp_path, content)
    (tmp_path / 'x.json').write_text(100_000 * '[')
    assert 'x.json: not a COCO file' in fault(read_split, 'coco', 'all', tmp_path / 'x.json')


@pytest.mark.parametrize('lost', [None, float('nan')])
def test_a_masked_keypoint_may_lie_nowhere(tmp_path: Path, lost):
    content = coco_of(tmp_path)
    keypoints = content['annotations'][1]['keypoints']
    keypoints[3:6], keypoints[6:9] = [lost, lost, 0], [lost, 7.0, 0]
    found, _ = read_content(tmp_path, content)
    assert not found[1].visible[1:3].any() and found[1].visible.sum() == 27 and found[1].points.isfinite().all()
    assert len(load_faces('coco', 'all', tmp_path / 'x.json', 16, 'stream')) == 4
    keypoints[5] = 2
    assert 'annotations[1]: a keypoint is not finite' in fault(read_content, tmp_path, content)
    keypoints[5] = None
    assert 'annotations[1]: a keypoint is not finite' in fault(read_content, tmp_path, content)


def test_joined_coco_files_are_refused(tmp_path: Path):
    "An id for two photos, and an id for two layouts; the same entry twice does no harm."
    content = coco_of(tmp_path)
    content['images'].append(dict(content['images'][0]))
    assert exact(read_content(tmp_path, content)[0], 29)
    content['images'][-1]['file_name'] = 'b/other.png'
    said = fault(read_content, tmp_path, content)
    assert "image id 7 occurs twice, for 'a/é 0.png' and for 'b/other.png': were files joined?" in said
    content = coco_of(tmp_path)
    content['categories'] = [dict(id=1, keypoints=['x'] * count) for count in (29, 68)]
    assert 'category id 1 occurs twice, for 29 and for 68' in fault(read_content, tmp_path, content)


def whole_body(root: Path) -> tuple[dict, dict]:
    "COCO-WholeBody as it lies on disk, and the faces by name: one photo has a person without a face, one a crowd."
    faces = {f'{i:012}.jpg': painted(i, 68) for i in range(5)}
    annotations = []
    for i, (name, (photo, points)) in enumerate(faces.items()):
        (root / 'val2017').mkdir(parents=True, exist_ok=True)
        Image.fromarray(photo).save(root / 'val2017' / name, 'PNG')
        body = dict(id=i, image_id=i, category_id=1, iscrowd=int(i == 3), keypoints=17 * [5, 6, 2], bbox=[0, 0, 60, 44])
        flat = [float(v) for x, y in points for v in (x, y, 1)] if i != 4 else [0.0] * 204
        annotations.append(body | dict(face_valid=i != 4, face_box=[1, 2, 30, 20], face_kpts=flat))
    images = [dict(id=i, file_name=name) for i, name in enumerate(faces)]
    people = [dict(id=1, name='person', keypoints=[str(i) for i in range(17)])]
    return dict(images=images, annotations=annotations, categories=people), faces


def test_whole_body_files_hold_faces_of_68_points(tmp_path: Path):
    content, _ = whole_body(tmp_path)
    listing = tmp_path / 'annotations/coco_wholebody_val_v1.0.json'
    listing.parent.mkdir()
    listing.write_text(json.dumps(content))
    found, said = heard(read_split, 'coco-wholebody', 'test', tmp_path)
    assert exact(found, 68) and [face.name for face in found] == [f'{i:012}.jpg' for i in range(3)]
    assert (
        found[0].box == (1, 2, 31, 22) and '1 of 5 annotations are crowds' in said and '1 of 5 annotations hav' in said
    )
    assert 'Take dataset coco-wholebody for the 68 points' in fault(read_split, 'coco', 'test', tmp_path)
    content['annotations'][0]['face_kpts'].pop()
    listing.write_text(json.dumps(content))
    assert 'annotations[0]: expected keypoints x y v' in fault(read_split, 'coco-wholebody', 'test', tmp_path)
    coco_of(tmp_path)
    assert 'expected COCO-WholeBody with face_kpts' in fault(read_split, 'coco-wholebody', 'all', tmp_path / 'x.json')


def test_whole_body_faces_must_have_68_points(tmp_path: Path):
    content, _ = whole_body(tmp_path)
    for annotation in content['annotations']:
        annotation['face_kpts'] = annotation['face_kpts'][:-3]
    said = fault(read_content, tmp_path, content, 'coco-wholebody')
    assert '67 keypoints where its category names 68' in said


def test_hidden_points_do_not_make_a_layout_suspect(tmp_path: Path):
    "Masked keypoints are 0 in most files, which says nothing about the flip pairs."
    mean = torch.rand(68, 2, dtype=torch.float64)
    for i, j in SCHEMES[68].pairs:
        mean[j] = torch.stack([1 - mean[i, 0], mean[i, 1]])
    points, visible = 100 * mean.float(), torch.ones(68, dtype=torch.bool)
    hidden = torch.where(torch.arange(68)[:, None] < 60, 0.0, points)
    faces = [Annotation(tmp_path, points, visible, str(i)) for i in range(12)]
    faces += [Annotation(tmp_path, hidden, torch.arange(68) >= 60, str(i)) for i in range(200)]
    assert heard(find_scheme, tmp_path, faces)[1] == ''


# ------------------------------------------------------------------------------------------------------------- 300W-LP


def test_300w_lp_whose_poses_share_their_points_is_refused(tmp_path: Path):
    "Such `pt2d` are those of the photo before it was turned; landmarks/ has the right ones."
    for i in range(3):
        write_lp(tmp_path, 'AFW', f'AFW_5_1_{i}', 7, apart=False)  # the same points for three poses
    write_lp(tmp_path, 'HELEN', 'HELEN_8_1_0', 8, apart=False)
    said = fault(read_split, '300w-lp', 'train', tmp_path)
    assert '3 of 4 faces cannot be used' in said and 'AFW_5_1_0 and AFW_5_1_1 hold the same' in said
    assert [f.name for f in quietly(read_split, '300w-lp', 'train', tmp_path, 'skip')] == ['HELEN/HELEN_8_1_0.jpg']
    assert check_dataset('300w-lp', tmp_path).problems
    for i in range(3):
        write_lp(tmp_path, 'AFW', f'AFW_5_1_{i}', 7 + i)
    assert exact(quietly(read_split, '300w-lp', 'train', tmp_path), 68)


def test_300w_lp_without_landmarks_is_read_where_each_pose_has_its_own_points(tmp_path: Path):
    for i in range(3):
        write_lp(tmp_path, 'AFW', f'AFW_5_1_{i}', i, apart=False)
    write_lp(tmp_path, 'AFW', 'AFW_6_1_0', 0, apart=False)  # another photo
    assert exact(quietly(read_split, '300w-lp', 'train', tmp_path), 68)


# ------------------------------------------------------------------------------------------------------- Menpo's lists


def menpo_line(root: Path, name: str, seed: int, count: int = 68, base: int = 0) -> str:
    "A line of Menpo's lists: a box, five points of a detector, the landmarks."
    photo, points = painted(seed, count)
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(photo).save(root / name)
    numbers = [[1.5, 2], [50, 40], *([0.25, 0.75],) * 5, *points]
    return ' '.join([name, *(f'{v + base:g}' for point in numbers for v in point)])


@pytest.mark.parametrize('base, kind', [(0, 'menpo-list'), (1, 'menpo-list-base1')])
def test_menpo_lists(tmp_path: Path, base: int, kind: str):
    lines = [menpo_line(tmp_path, f'Menpo2D/a {i}.png', i, base=base) for i in range(3)]
    lines += ['', menpo_line(tmp_path, 'Menpo2D/side.png', 9, 39, base)]
    (tmp_path / 'Menpo2D_semifrontal_train.txt').write_text('\r\n'.join(lines))
    found, said = heard(read_split, kind, 'train', tmp_path)
    assert exact(found, 68) and [face.name for face in found] == [f'Menpo2D/a {i}.png' for i in range(3)]
    assert found[0].box == (1.5, 2, 50, 40) and '1 of 4 faces are in profile (39 points) and are left out' in said
    assert find_dataset(kind).scheme.name == '68'


def test_the_reader_of_menpos_folders_names_the_reader_of_its_lists(tmp_path: Path):
    (tmp_path / 'Menpo2D_semifrontal_train.txt').write_text(menpo_line(tmp_path, 'Menpo2D/a.png', 0))
    assert 'Menpo2D_semifrontal_train.txt: take dataset menpo-list' in fault(read_split, 'menpo', 'test', tmp_path)


@pytest.mark.parametrize(
    'change, told',
    [
        (lambda line: line + ' 7', ':2: expected a photo and 150 numbers (75 x y), got 151'),
        (lambda line: line.rpartition(' ')[0] + ' nan', ':2: a number is not finite'),
        (lambda line: line.replace('b.png', 'absent.png'), ':2: there is no photo'),
        (lambda line: line.partition(' ')[2], ':2: no photo is named'),
        (lambda line: 'b.png', ':2: expected a photo and 150 numbers (75 x y), got 0'),
    ],
)
def test_menpo_lists_with_a_fault(tmp_path: Path, change, told: str):
    lines = [menpo_line(tmp_path, 'a.png', 0), change(menpo_line(tmp_path, 'b.png', 1))]
    (tmp_path / 'x.txt').write_text('\n'.join(lines))
    assert told in fault(read_split, 'menpo-list', 'all', tmp_path / 'x.txt')


# ------------------------------------------------------------------------------------------------ what is wrong is told


def test_dlibs_mirrored_copies_are_named(tmp_path: Path):
    for name in ('a', 'a_mirror', 'b', 'b-flipped', 'smoke_and_mirror'):
        write_face(tmp_path / f'helen/testset/{name}.png', len(name))
    survey = quietly(check_dataset, '300w', tmp_path)
    told = [message for kind, message in survey.problems if kind == 'mirrored copy']
    assert told == [f'helen/testset/{copy} of helen/testset/{copy[0]}' for copy in ('a_mirror', 'b-flipped')]
    assert "dlib's release" in problem_table(survey).set_index('problem').advice['mirrored copy']


@pytest.mark.parametrize('part', ['point', 'box'])
def test_a_nan_in_wflw_names_its_line(tmp_path: Path, part: str):
    good = wflw_line(tmp_path, 'a.png')
    words = good.split()
    column = 7 if part == 'point' else 198
    words[column - 1] = 'nan'
    wflw(tmp_path, [good, ' '.join(words)])
    assert f'attr_test.txt:2: column {column}: expected a finite number, got nan' in fault(
        read_split, 'wflw', 'test', tmp_path
    )


def test_where_no_point_is_visible_the_list_and_the_reason_are_told(tmp_path: Path):
    content = coco_of(tmp_path)
    for annotation in content['annotations']:
        annotation['keypoints'][2::3] = [0] * 29
    content['annotations'][0]['iscrowd'] = 1
    said = fault(read_content, tmp_path, content)
    assert 'x.json: not one of its 4 annotations is a face to learn from: 1 are crowds (iscrowd), 3 have no lab' in said
    said = fault(read_content, tmp_path, content | dict(annotations=[]))
    assert 'x.json: not one of its 0 annotations is a face to learn from: there is none' in said


def test_empty_lists_say_so(tmp_path: Path):
    lines = write_csv(tmp_path / 'x.csv', write_photos(tmp_path, 1))
    (tmp_path / 'x.csv').write_text(lines[0])
    assert 'x.csv: it lists no face: there is a header and nothing below it' in fault(
        read_split, 'csv', 'all', tmp_path / 'x.csv'
    )
    (tmp_path / 'x.txt').write_text('\n\n')
    assert 'x.txt: it lists no face of 68 points' in fault(read_split, 'menpo-list', 'all', tmp_path / 'x.txt')
    wflw(tmp_path, [])
    assert 'attr_test.txt: it lists no face' in fault(read_split, 'wflw', 'test', tmp_path)


def test_too_few_faces_to_hold_out_a_test(tmp_path: Path):
    faces = write_photos(tmp_path, 3)
    write_csv(tmp_path / 'x.csv', faces)
    told = 'no face is left for test, since there are only 3: take 5 or more'
    assert told in quietly(fault, read_split, 'csv', 'test', tmp_path / 'x.csv')
    for i in range(3):
        (tmp_path / 'images/a' / f'é {i}.pts').write_text(pts(faces[f'a/é {i}.png']), 'utf-8')
    assert told in quietly(fault, read_split, 'folder', 'test', tmp_path / 'images')


def test_faces_that_are_all_unusable_say_the_first_reason(own: Path):
    for file in (own / 'train').glob('*.pts'):
        file.write_text('7 7\n' * 5)
    said = quietly(fault, read_split, 'folder', 'train', own, on_error='skip')
    assert 'not one of 6 faces can be used; the first: ' in said and 'all landmarks are one point' in said


@pytest.mark.parametrize('mark', [';', '\t', '|'])
def test_other_separators_are_named(tmp_path: Path, mark: str):
    lines = write_csv(tmp_path / 'x.csv', write_photos(tmp_path, 2))
    (tmp_path / 'x.csv').write_text('\n'.join(line.replace(',', mark) for line in lines))
    said = fault(read_split, 'csv', 'all', tmp_path / 'x.csv')
    assert f'x.csv:1: the columns are separated by {mark!r}: save the list with commas' in said and len(said) < 300


def test_a_wrong_variable_is_named(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('SUBPIXEL_DATA', 'faces/here')
    with pytest.raises(FileNotFoundError) as e:
        load_faces('300w', 'train', cache=tmp_path)
    for word in ("SUBPIXEL_DATA is 'faces/here'", f'there is no {tmp_path}/faces/here', '`root`'):
        assert word in str(e.value)
    (tmp_path / 'x.csv').write_text('')
    monkeypatch.setenv('SUBPIXEL_DATA', 'x.csv')
    assert data_root(find_dataset('csv')) == Path('x.csv')  # one list is a root, too


@pytest.mark.parametrize('cache', ['file', 'file/below', '/proc/none'])
def test_a_cache_that_cannot_be_written_says_what_to_do(own: Path, tmp_path: Path, cache: str):
    (tmp_path / 'file').write_text('')
    with pytest.raises(OSError, match='crops of folder-train cannot be stored there: name another folder with `cache`'):
        load_faces('folder', 'train', own, 16, tmp_path / cache)


def test_messages_never_carry_a_name_that_cannot_be_printed():
    assert str(DataError(os.fsdecode(b'a\xff.pts'), 'broken')) == r'a\udcff.pts: broken'
