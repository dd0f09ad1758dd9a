"Photos with .pts files beside them, as several tests write them."

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from subpixel_nb.data import datasets

ROOT = Path(__file__).resolve().parents[2]
REAL = ROOT.parent / 'shared' / 'data' / '300w'
needs_real = pytest.mark.skipif(not (REAL / 'helen/trainset').is_dir(), reason=f'no 300W photos in {REAL}')


def face_points(seed: int, count: int = 68, side: int = 120) -> np.ndarray:
    "Points (count, 2), 0-based px inside a photo of `side` px, with six decimals as in the files."
    return np.random.default_rng(seed).uniform(0.25 * side, 0.75 * side, (count, 2)).round(6)


def write_pts(path: Path, points: np.ndarray, header: bool = True, end: str = '\n') -> None:
    "Points, 0-based, as iBUG writes them: 1-based."
    lines = [f'{x:.6f} {y:.6f}' for x, y in np.asarray(points) + 1]
    if header:
        lines = ['version: 1', f'n_points:  {len(points)}', '{', *lines, '}']
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes((end.join(lines) + end).encode())


def write_face(path: Path, seed: int, count: int = 68, side: int = 120, **how: Any) -> np.ndarray:
    "A photo and its points beside it; returns the true points, 0-based."
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
            name = f'{folder}/image {i}{suffix}'  # official names hold blanks, too
            truth[name] = write_face(root / name, len(truth), header=i % 2 == 0, end='\r\n' if i % 3 == 2 else '\n')
    return truth


def own_folder(root: Path) -> Path:
    "A folder of people's own data: 6 faces in train/, 3 in test/, 68 points."
    for i in range(9):
        write_face(root / ('train' if i < 6 else 'test') / f'{i}.png', i)
    return root


def quietly(work: Callable, *args: Any, **kwargs: Any) -> Any:
    "The result of `work`, without its warnings."
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        return work(*args, **kwargs)
