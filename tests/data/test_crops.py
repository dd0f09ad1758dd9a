"Photos opened and cropped, the crop cache, and Faces: numbers, formats, faults, killed and racing processes."

import inspect
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import time
import warnings
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from face_files import (
    REAL,
    ROOT,
    face_points,
    needs_real,
    quietly,
    write_face,
    write_pts,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile

from subpixel_nb.codec.geometry import square_map, transform_points
from subpixel_nb.data import crops, datasets
from subpixel_nb.data.crops import (
    Faces,
    StreamedCrops,
    build_cache,
    cache_folder,
    crop_view,
    data_root,
    load_faces,
    open_photo,
)
from subpixel_nb.data.datasets import (
    CATALOGUE,
    Annotation,
    DataError,
    Dataset,
    Scheme,
    Split,
    find_dataset,
    read_pts,
    read_split,
    register,
)

# ---------------------------------------------------------------------------------------------------------- bad folders


def rewrite(pts: Path, change: Callable[[str], str]) -> None:
    pts.write_text(change(pts.read_text()))


# how -> what is done to a photo and its points, which of the two an error must name, and a word of the reason
FAULTS: dict[str, tuple[Callable[[Path, Path], object], str, str]] = {
    '67': (lambda _, pts: rewrite(pts, lambda t: ''.join(t.splitlines(True)[:-2]) + '}\n'), 'pts', '67 points'),
    'nan': (lambda _, pts: rewrite(pts, lambda t: t.replace(t.split()[6], 'nan', 1)), 'pts', 'not finite'),
    'empty pts': (lambda _, pts: pts.write_text(''), 'pts', 'an empty file'),
    'one point': (lambda _, pts: write_pts(pts, np.ones((68, 2))), 'photo', 'all landmarks are one point'),
    'no points': (lambda _, pts: pts.unlink(), 'photo', 'a photo without points'),
    'no photo': (lambda photo, _: photo.unlink(), 'pts', 'points without a photo'),
    'two photos': (lambda photo, _: shutil.copy(photo, photo.with_suffix('.bmp')), 'pts', 'two photos'),
    'cut photo': (lambda photo, _: os.truncate(photo, photo.stat().st_size // 2), 'photo', 'not a readable photo'),
    'empty photo': (lambda photo, _: photo.write_bytes(b''), 'photo', 'not a readable photo'),
    'text photo': (lambda photo, _: photo.write_text('<html>404</html>'), 'photo', 'not a readable photo'),
    'off': (lambda _, pts: write_pts(pts, face_points(0) + 5000), 'photo', 'does not fit its photo of 120 x 120'),
    'huge': (lambda _, pts: write_pts(pts, face_points(0) * [1e6, 1]), 'photo', 'does not fit its photo'),
}


def spoil(folder: Path, how: str) -> tuple[Path, str]:
    "Damages one face of a folder; returns the file that an error must name and a word of the reason."
    photo, pts = next(p for p in sorted(folder.iterdir()) if p.suffix != '.pts'), sorted(folder.glob('*.pts'))[0]
    damage, file, reason = FAULTS[how]
    damage(photo, pts)
    return dict(photo=photo, pts=pts)[file], reason


@pytest.mark.parametrize('how', FAULTS)
def test_a_fault_names_its_file_or_is_skipped_with_a_tally(own: Path, tmp_path: Path, how: str):

    def load(**options) -> Faces:
        return load_faces('folder', 'train', own, size=16, cache=tmp_path / 'cache', **options)

    file, reason = spoil(own / 'train', how)
    for _ in range(2):  # the second time from the cache
        with pytest.raises(DataError) as e:
            load()
        for word in (str(file), reason, '1 of 6', 'skip'):
            assert word in str(e.value)
        with pytest.warns(UserWarning, match='1 of 6 faces cannot be used') as said:
            faces = load(on_error='skip')
        assert len(faces) == 5 and any(str(file) in str(w.message) and reason in str(w.message) for w in said)
        whole = crop_view(open_photo(own / faces.names[-1])[0], faces.squares[-1], 16, 5)
        assert np.array_equal(faces.images[-1], whole)  # rows stay with their names
    assert '0' not in [Path(n).stem for n in faces.names]


def test_every_photo_unreadable(own: Path, tmp_path: Path):
    for p in (own / 'train').glob('*.png'):
        p.write_bytes(b'')
    with pytest.warns(UserWarning, match='6 of 6'), pytest.raises(DataError, match='no face is left'):
        load_faces('folder', 'train', own, size=16, cache=tmp_path / 'cache', on_error='skip')


# --------------------------------------------------------------------------------------------------------------- photos


@pytest.mark.parametrize('share', [0.02, 0.3, 0.6, 0.9, 0.98])
@pytest.mark.parametrize('kind', ['jpeg', 'progressive', 'png'])
def test_a_truncated_photo_is_never_accepted(tmp_path: Path, kind: str, share: float, monkeypatch):
    monkeypatch.setattr(ImageFile, 'LOAD_TRUNCATED_IMAGES', True)  # as another library may leave it
    path = tmp_path / ('a.png' if kind == 'png' else 'a.jpg')
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (80, 90, 3), dtype=np.uint8))
    noise.save(path, **(dict(progressive=True) if kind == 'progressive' else {}))
    assert open_photo(path)[0].size == (90, 80)
    os.truncate(path, int(path.stat().st_size * share))
    with pytest.raises(DataError, match='not a readable photo') as e:
        open_photo(path)
    assert str(path) in str(e.value)


@pytest.mark.parametrize(
    'mode, suffix', [('L', '.jpg'), ('CMYK', '.jpg'), ('RGBA', '.png'), ('LA', '.png'), ('P', '.png'), ('1', '.png')]
)
def test_every_kind_of_photo_becomes_rgb(tmp_path: Path, mode: str, suffix: str):
    ramp = Image.fromarray(np.repeat(np.linspace(0, 255, 64, dtype=np.uint8)[None, :, None], 48, 0).repeat(3, 2))
    ramp.convert(mode).save(tmp_path / f'a{suffix}')
    photo, turned = open_photo(tmp_path / f'a{suffix}')
    assert photo.mode == 'RGB' and photo.size == (64, 48) and not turned
    if mode not in ('1', 'P'):
        assert np.abs(np.asarray(photo).astype(int) - np.asarray(ramp)).max() <= 8
    assert crop_view(photo, (31.5, 23.5, 200), 32).shape == (3, 32, 32)
    assert crop_view(photo, (31.5, 23.5, 200), 32)[:, 0].max() == 0  # outside is black in every mode


def test_sixteen_bit_photos_are_named(tmp_path: Path):
    Image.fromarray(np.full((20, 20), 40000, np.uint16)).save(tmp_path / 'deep.png')
    with pytest.raises(DataError, match='deep.png.*8 bits per channel'):
        open_photo(tmp_path / 'deep.png')


def test_an_exif_rotation_is_ignored_with_a_warning(own: Path, tmp_path: Path):
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
    grey = 220 * np.exp(-((xx - x) ** 2 + (yy - y) ** 2) / (2 * sigma**2))
    return Image.fromarray(grey.round().astype(np.uint8)).convert('RGB')


def centroid(view: np.ndarray) -> np.ndarray:
    weight = view.astype(float) ** 2
    yy, xx = np.mgrid[: view.shape[0], : view.shape[1]]
    return np.array([(weight * xx).sum(), (weight * yy).sum()]) / weight.sum()


@given(
    st.floats(-0.25, 0.25),
    st.floats(-0.25, 0.25),
    st.floats(40, 1400),
    st.floats(100, 200),
    st.floats(80, 160),
    st.sampled_from([(256, 80), (128, 40), (256, 0)]),
)
@settings(max_examples=25)
def test_a_blob_is_where_the_map_says(dx: float, dy: float, side: float, x: float, y: float, view: tuple[int, int]):
    "Within 0.02 px of the view, also over the edge; if enlarged, within 0.005 px of the photo, which has 8 bits."
    size, margin = view
    sigma = max(2.5, 3 * side / size)  # at least 3 px in the view
    square = torch.tensor([x + dx * side, y + dy * side, side], dtype=torch.float64)
    photo = blob(x, y, sigma, 400, 300) if sigma < 20 else blob(x + 300, y + 300, sigma, 800, 700)
    if sigma >= 20:
        square[:2] += 300
        x, y = x + 300, y + 300
    where = transform_points(square_map(square, size, margin), torch.tensor([[x, y]], dtype=torch.float64))[0].numpy()
    reach = 3.7 * sigma * size / side  # all of the blob must be in the view
    if (where - reach < 0).any() or (where + reach > size + 2 * margin - 1).any():
        return
    assert np.abs(centroid(crop_view(photo, square, size, margin)[0]) - where).max() < max(0.02, 0.005 * size / side)


def test_the_view_is_the_photo_itself_at_scale_one():
    pixels = np.random.default_rng(0).integers(0, 255, (40, 40, 3), dtype=np.uint8)
    view = crop_view(Image.fromarray(pixels), (19.5, 19.5, 32), 32)  # edges on pixel edges
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
    points = torch.tensor([[10.0, 20.0], [50.0, 100.0], [90.0, 60.0], [1e4, float('nan')]])
    face = Annotation(tmp_path / 'a.png', points, torch.tensor([True, True, True, False]), 'a.png')
    faces = build_cache([face], Scheme('four', 4), crop, 32, tmp_path / 'cache')
    assert faces.squares[0].tolist() == pytest.approx([50, 60, 80 * side], rel=1e-6)
    assert faces.points.isfinite().all() and faces.crop == crop and faces.boxes == 'landmarks'


def test_boxes_from_the_dataset(tmp_path: Path):
    write_face(tmp_path / 'a.png', 0)
    face = Annotation(tmp_path / 'a.png', torch.rand(4, 2) * 80, torch.ones(4, dtype=torch.bool), 'a.png')
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
    assert (side - 32 * 220 / 256).abs().max() < 1e-4  # the paper: the face is 220 of 256 px
    assert load_faces('folder', 'train', own, cache=cache, limit=1).images.shape == (1, 3, 416, 416)


def test_opened_again_no_photo_is_decoded(loaded, monkeypatch):
    load, cache = loaded
    first = load()
    monkeypatch.setattr(crops, 'open_photo', lambda path: pytest.fail('decoded again'))
    again = load()
    assert np.array_equal(first.images[:], again.images[:]) and torch.equal(first.points, again.points)
    assert isinstance(again.images.base.base, np.memmap) or isinstance(again.images.base, np.memmap)
    assert len(list(cache.iterdir())) == 1 and not list(cache.glob('.*'))


def test_the_key_is_the_content(own: Path, loaded, tmp_path: Path):
    load, cache = loaded

    def entries() -> int:
        return len(list(cache.iterdir()))

    load()
    for change in (dict(size=48), dict(crop='hrnet'), dict(limit=3)):
        before = entries()
        load(**change)
        assert entries() == before + 1
    before = entries()
    for path in (own / 'train').iterdir():
        os.utime(path, (1, 1))  # touched: the same content
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
    'pickle': lambda e: np.save(e / 'images.npy', np.array([object()] * 6), allow_pickle=True),
}


@pytest.mark.parametrize('how', DAMAGE)
def test_a_damaged_cache_is_noticed_and_built_again(loaded, how: str):
    load, cache = loaded
    whole = load().images[:]
    DAMAGE[how](next(cache.iterdir()))
    with pytest.warns(UserWarning, match='is damaged and is built again'):
        again = load()
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
    monkeypatch.setattr(crops.os, 'fsync', lambda fd: (_ for _ in ()).throw(OSError(28, 'No space left on device')))
    with pytest.raises(OSError, match='No space'):
        load()
    assert not list(cache.iterdir())


def test_a_full_disk_raises_before_anything_is_written(loaded, monkeypatch):
    load, cache = loaded
    monkeypatch.setattr(crops.shutil, 'disk_usage', lambda path: shutil._ntuple_diskusage(1, 1, 100))
    with pytest.raises(OSError, match='0.0 GB.*SUBPIXEL_CACHE.*limit'):
        load()
    assert not list(cache.iterdir())


def test_leftovers_of_killed_runs_are_swept_when_old(loaded):
    load, cache = loaded
    for name, age in (('.old.tmp', 2 * 86400), ('.young.tmp', 60)):
        (cache / name).mkdir(parents=True)
        os.utime(cache / name, (time.time() - age,) * 2)
    load()
    assert not (cache / '.old.tmp').exists() and (cache / '.young.tmp').exists()


LOAD = (
    'import sys, zlib; from subpixel_nb.data.crops import load_faces; '
    'f = load_faces("folder", "train", sys.argv[1], size=int(sys.argv[3]), cache=sys.argv[2]); '
    'print(len(f), zlib.crc32(f.images[:].tobytes()))'
)


def start(own: Path, cache: Path, size: int = 64, code: str = LOAD) -> subprocess.Popen:
    env = dict(os.environ, PYTHONPATH=str(ROOT), OMP_NUM_THREADS='1')
    return subprocess.Popen(
        [sys.executable, '-c', code, str(own), str(cache), str(size)],
        env=env,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


@pytest.mark.slow
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

    monkeypatch.setattr(crops.os, 'rename', late)
    assert len(load()) == 6 and len(list(cache.iterdir())) == 1


@pytest.mark.slow
def test_a_killed_build_is_no_cache(own: Path, tmp_path: Path):
    slow = LOAD.replace(
        'f = load',
        'import time, subpixel_nb.data.crops as d; old = d.crop_view; '
        'd.crop_view = lambda *a: (time.sleep(0.5), old(*a))[1]; print("go", flush=True); f = load',
    )
    victim = start(own, tmp_path / 'cache', code=slow)
    assert victim.stdout.readline() == 'go\n'
    until = time.time() + 240
    while not list((tmp_path / 'cache').glob('.*/images.npy')) and time.time() < until:
        time.sleep(0.05)
    victim.send_signal(signal.SIGKILL)
    victim.communicate()
    assert victim.returncode == -signal.SIGKILL and not [p for p in (tmp_path / 'cache').iterdir() if p.name[0] != '.']
    assert len(load_faces('folder', 'train', own, 64, tmp_path / 'cache')) == 6


@pytest.mark.slow
def test_a_killed_build_goes_on_where_it_stopped(own: Path, tmp_path: Path, monkeypatch):
    "Killed after three of six crops: the next run makes the others, and the row that differs from its checksum."
    slow = LOAD.replace(
        'f = load',
        'import time, subpixel_nb.data.crops as d; old = d.crop_view; d._threads = lambda: '
        'd.ThreadPoolExecutor(1); d.crop_view = lambda *a: (time.sleep(0.3), old(*a))[1]; f = load',
    )
    cache = tmp_path / 'cache'
    victim, until = start(own, cache, code=slow), time.time() + 240
    while sum(len(p.read_text().splitlines()) for p in cache.glob('.*/rows.jsonl')) < 3 and time.time() < until:
        time.sleep(0.02)
    victim.send_signal(signal.SIGKILL)
    victim.communicate()
    log = next(cache.glob('.*/rows.jsonl'))
    finished = len(log.read_text().splitlines())
    assert 3 <= finished < 6
    with open(log.with_name('images.npy'), 'r+b') as file:
        file.seek(200)
        file.write(b'damage')
    log.open('a').write('[5, 12')  # the line at which it was killed
    calls, honest = [], crops.crop_view
    monkeypatch.setattr(crops, 'crop_view', lambda *a: (calls.append(1), honest(*a))[1])
    again = load_faces('folder', 'train', own, 64, cache).images[:]
    assert len(calls) == 6 - finished + 1
    assert np.array_equal(again, load_faces('folder', 'train', own, 64, tmp_path / 'whole').images[:])
    assert [sorted(p.name for p in e.iterdir() if p.name != 'lock') for e in cache.iterdir()] == [
        ['images.npy', 'index.json']
    ]


@pytest.mark.slow
def test_memory_stays_flat(tmp_path: Path):
    "120 crops of 416 px are 62 MB of pixels; building them holds a few at a time."
    folder = tmp_path / 'own/train'
    write_face(folder / '0.png', 0)
    for i in range(1, 120):
        for suffix in ('.png', '.pts'):
            shutil.copy(folder / f'0{suffix}', folder / f'{i}{suffix}')
    code = (
        'import sys, resource; from subpixel_nb.data.crops import load_faces; '
        'rss = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024; '
        'load_faces("folder", "train", sys.argv[1], size=256, cache=sys.argv[2] + "1", limit=8); before = rss(); '
        'load_faces("folder", "train", sys.argv[1], size=256, cache=sys.argv[2]); print(rss() - before)'
    )
    out, err = start(tmp_path / 'own', tmp_path / 'cache', code=code).communicate(timeout=300)
    assert float(out) < 30, (out, err)


def test_cache_location(monkeypatch, tmp_path: Path):
    for name in ('SUBPIXEL_CACHE', 'XDG_CACHE_HOME'):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv('HOME', '/me')
    assert cache_folder() == Path('/me/.cache/subpixel_nb')
    monkeypatch.setenv('XDG_CACHE_HOME', '/xdg')
    assert cache_folder() == Path('/xdg/subpixel_nb')
    monkeypatch.setenv('SUBPIXEL_CACHE', '~/big')
    assert cache_folder() == Path('/me/big') and cache_folder('/there') == Path('/there')


@pytest.mark.parametrize('size', [0, -256, 8, 256.0, '256'])
def test_a_wrong_size_raises(own: Path, tmp_path: Path, size):
    with pytest.raises(ValueError, match='size must be an integer'):
        load_faces('folder', 'train', own, size, tmp_path)


# ---------------------------------------------------------------------------------------------------------------- Faces


def some_faces(n: int = 5, k: int = 3, **other) -> Faces:
    images = np.arange(n, dtype=np.uint8)[:, None, None, None].repeat(3, 1).repeat(26, 2).repeat(26, 3)
    tags = [('odd',) if i % 2 else ('even', 'first') if i == 0 else ('even',) for i in range(n)]
    given = dict(
        images=images,
        points=torch.arange(n * k * 2.0).reshape(n, k, 2),
        size=16,
        margin=5,
        visible=torch.ones(n, k, dtype=torch.bool),
        squares=torch.tensor([[10.0, 20.0, 32.0]]).repeat(n, 1),
        names=[f'f{i}' for i in range(n)],
        scheme=Scheme('s', k),
        subsets=tags,
    )
    return Faces(**given | other)


@pytest.mark.parametrize(
    'index, wanted',
    [
        (2, [2]),
        (-1, [4]),
        (slice(1, 4), [1, 2, 3]),
        ([3, 0], [3, 0]),
        (np.array([1, 1]), [1, 1]),
        (torch.tensor([4, 2]), [4, 2]),
        (torch.tensor([True, False, True, False, False]), [0, 2]),
        ([], []),
    ],
)
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
    part.images[0][:] = 99  # a copy: the base is untouched
    assert faces.images[2, 0, 0, 0] == 2
    assert [f.names for f in faces] == [[f'f{i}'] for i in range(5)]
    with pytest.raises(IndexError):
        faces[5]


def test_batches_can_be_written_to_and_become_tensors(loaded):
    faces = loaded[0]()
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert torch.from_numpy(faces.images[[1, 0]]).shape == (2, 3, 52, 52)
        assert torch.from_numpy(faces.images[0]).shape == (3, 52, 52)


def test_mask():
    assert some_faces().mask('odd').tolist() == [False, True, False, True, False]
    with pytest.raises(ValueError, match="unknown subset 'eve'; known: even"):
        some_faces().mask('eve')


def test_subsets_of_the_full_test(home, tmp_path: Path):
    faces = quietly(load_faces, '300w', 'test', home[0], 16, tmp_path / 'cache')
    assert faces.mask('common').sum() == 6 and faces.mask('challenge').sum() == 3 and faces.mask('full').all()
    alone = quietly(load_faces, '300w', 'challenge', home[0], 16, tmp_path / 'cache')
    part = faces[faces.mask('challenge')]
    assert part.names == alone.names and np.array_equal(part.images[:], alone.images[:])


@pytest.mark.parametrize(
    'wrong, words',
    [
        (dict(points=torch.zeros(5, 4, 2)), r'points must be \(5, 3, 2\), got \(5, 4, 2\)'),
        (dict(images=np.zeros((5, 3, 16, 16), np.uint8)), r'images must be \(5, 3, 26, 26\)'),
        (dict(images=np.zeros((5, 3, 26, 26), np.float32)), 'images must be uint8'),
        (dict(visible=torch.ones(5, 3)), 'visible bool'),
        (dict(points=torch.full((5, 3, 2), torch.nan)), 'visible points are not finite in f0, f1'),
        (dict(squares=torch.zeros(4, 3)), 'squares must be'),
    ],
)
def test_faces_check_what_they_are_given(wrong: dict, words: str):
    with pytest.raises(ValueError, match=words):
        some_faces(**wrong)


def test_points_that_are_not_visible_may_be_nan():
    points, visible = torch.ones(5, 3, 2), torch.ones(5, 3, dtype=torch.bool)
    points[1, 2], visible[1, 2] = torch.nan, False
    assert some_faces(points=points, visible=visible).points[1, 2].tolist() == [0, 0]


def test_photo_map_is_exact():
    faces = some_faces(1)
    corner = torch.tensor([[[4.5, 4.5], [20.5, 20.5]]], dtype=torch.float64)  # the view's edges, in cached px
    assert transform_points(faces.photo_map(), corner).tolist() == [[[-6, 4], [26, 36]]]


# ----------------------------------------------------------------------------------------------------------- load_faces


def test_unknown_crops_and_boxes_list_the_known(home):
    with pytest.raises(ValueError, match="unknown crop 'papr'; known: paper"):
        quietly(load_faces, '300w', 'challenge', home[0], crop='papr')
    with pytest.raises(ValueError, match="unknown boxes 'detector'"):
        quietly(load_faces, '300w', 'challenge', home[0], boxes='detector')


def test_a_drawn_dataset_needs_no_root(monkeypatch):
    monkeypatch.setattr(datasets, 'CATALOGUE', dict(CATALOGUE))
    register(
        Dataset(
            'drawn',
            Scheme('s', 3),
            (Split('train'), Split('test')),
            'train',
            'test',
            make=lambda split, size, limit: some_faces(limit or 5),
        )
    )
    assert len(load_faces('drawn', 'test', limit=2)) == 2
    with pytest.raises(ValueError, match='no files to read'):
        read_split('drawn', 'test', '.')
    with pytest.raises(ValueError, match='unknown split of bad'):
        register(replace(find_dataset('drawn'), name='bad', test='nope'))


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
    assert streamed.images.shape == kept.images.shape and isinstance(streamed.images, StreamedCrops)
    for index in (slice(None), [3, 1], 2, np.array([[0, 5]]), []):
        assert np.array_equal(streamed.images[index], kept.images[index]), index
    assert np.array_equal(np.asarray(streamed[[4, 2]].images), np.asarray(kept[[4, 2]].images))
    assert torch.equal(streamed.points, kept.points)
    shutil.rmtree(tmp_path / 'cache')
    load_faces('folder', 'train', own, 64, 'stream').images[:]
    assert not (tmp_path / 'cache').exists()
    photo = next(p for p in sorted((own / 'train').iterdir()) if p.suffix != '.pts')
    photo.write_bytes(b'')
    with pytest.raises(DataError, match=photo.name):
        load_faces('folder', 'train', own, 64, 'stream').images[:]


@pytest.mark.data
@needs_real
def test_real_faces_are_cropped_as_the_paper_says(tmp_path: Path):
    faces = quietly(load_faces, '300w', 'train', REAL, cache=tmp_path, limit=12)
    assert faces.images.shape == (12, 3, 416, 416) and len({n.split('/')[0] for n in faces.names}) == 2
    box = faces.points.amax(1) - faces.points.amin(1)
    assert (box.amax(1) - 220).abs().max() < 1e-3
    middle = (faces.points.amax(1) + faces.points.amin(1)) / 2
    assert (middle - 207.5).abs().max() < 1e-3
    assert faces.images[:][:, :, 160:256, 160:256].std() > 20  # there is a picture where the face is


# --------------------------------------------------------------------------------------------- the same cache as before


def bitmap(level: int, side: int = 40) -> bytes:
    "An uncompressed BMP file of `side` x `side` grey pixels, byte by byte."
    body = bytes([level]) * (3 * side * side)
    sizes = (54 + len(body), 0, 0, 54, 40, side, side, 1, 24, 0, len(body), 2835, 2835, 0, 0)
    return struct.pack('<2sIHHIIiiHHIIiiII', b'BM', *sizes) + body


def test_an_entry_of_the_first_release_is_read_without_cropping(tmp_path: Path, monkeypatch):
    """Key, version and format are those of the code before this module was split from `datasets`.

    That code named this folder for these very photos and points. Its pixels are made up here: nobody cropped them."""
    folder = tmp_path / 'own/train'
    folder.mkdir(parents=True)
    for i in range(3):
        (folder / f'{i}.bmp').write_bytes(bitmap(50 * i + 20))
        (folder / f'{i}.pts').write_text(f'{11 + i} 12\n30 {13 + i}\n20.5 28.25\n')
    entry = tmp_path / 'cache/folder-train-16-721529409dd2c253'
    entry.mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 255, (3, 3, 26, 26), dtype=np.uint8)
    header = "{'descr': '|u1', 'fortran_order': False, 'shape': (3, 3, 26, 26), }".ljust(117) + '\n'
    (entry / 'images.npy').write_bytes(b'\x93NUMPY\x01\x00v\x00' + header.encode() + pixels.tobytes())
    checksums = ', '.join(str(zlib.crc32(row.tobytes())) for row in pixels)
    (entry / 'index.json').write_text('{"checksums": [' + checksums + '], "reasons": ["", "", ""]}')
    monkeypatch.setattr(crops, 'open_photo', lambda path: pytest.fail('cropped again'))
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        faces = load_faces('folder', 'train', tmp_path / 'own', 16, tmp_path / 'cache')
    assert np.array_equal(faces.images[:], pixels) and [p.name for p in (tmp_path / 'cache').iterdir()] == [entry.name]


def test_what_is_written_today_has_the_same_bytes_of_format(own: Path, tmp_path: Path):
    load_faces('folder', 'train', own, 16, tmp_path / 'cache')
    [entry] = (tmp_path / 'cache').iterdir()
    whole = (entry / 'images.npy').read_bytes()
    header = "{'descr': '|u1', 'fortran_order': False, 'shape': (6, 3, 26, 26), }".ljust(117) + '\n'
    assert whole[:128] == b'\x93NUMPY\x01\x00v\x00' + header.encode() and len(whole) == 128 + 6 * 3 * 26 * 26
    index = json.loads((entry / 'index.json').read_text())
    assert list(index) == ['checksums', 'reasons', 'turned'] and index['reasons'] == [''] * 6
    rows = np.frombuffer(whole[128:], np.uint8).reshape(6, -1)
    assert index['checksums'] == [zlib.crc32(row.tobytes()) for row in rows]


def test_seven_arguments_by_position_at_most():
    for function in (build_cache, load_faces, Faces, Dataset, Annotation):
        kinds = [p.kind for p in inspect.signature(function).parameters.values()]
        assert kinds.count(inspect.Parameter.POSITIONAL_OR_KEYWORD) <= 7, function
