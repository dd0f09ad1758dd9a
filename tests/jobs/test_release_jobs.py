"""Every dataset through the papermill jobs: a few steps of training on small files in the official formats.

Datasets without training faces go through evaluate, and one test follows a chain of runs."""

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from test_jobs import run
from test_releases import (
    cofw,  # noqa: F401  a fixture
    cofw68,  # noqa: F401  a fixture
    painted,
    pts,
    write_300vw,
    write_aflw,
    write_coco,
    write_csv,
    write_lp,
    write_photos,
)

TINY = dict(width=8, stacks=1, size=64, depth=2, batch=2, epochs=1, precision='float32', method='local')


def write_300w(root, **counts):
    "Painted photos with .pts: helen_trainset=3 makes three in helen/trainset."
    for folder, count in counts.items():
        for i in range(count):
            photo, points = painted(i + 500, 68)
            path = root / folder.replace('_', '/', 1) / f'face {i}.png'
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(photo).save(path)
            path.with_suffix('.pts').write_text(pts(points))
    return root


def write_wflw(root, count: int = 3):
    for part in ('train', 'test'):
        listing, lines = root / f'WFLW_annotations/list_98pt_rect_attr_train_test/list_98pt_rect_attr_{part}.txt', []
        for i in range(count):
            photo, points = painted(i + 700, 98)
            (root / 'WFLW_images/a').mkdir(parents=True, exist_ok=True)
            Image.fromarray(photo).save(root / f'WFLW_images/a/{part}{i}.png')
            lines.append(' '.join([*map(str, points.ravel()), '3 3 50 40', '1 0 0 0 0 1', f'a/{part}{i}.png']))
        listing.parent.mkdir(parents=True, exist_ok=True)
        listing.write_text('\n'.join(lines))
    return root


def write_whole_aflw(root):
    "Four of the 20,000 training faces share the test faces' photos; the others have none."

    def copied(array, order):
        array[order[:4]] = array[order[20000:]]
        return array

    return write_aflw(root, nameList=copied, data=copied, bbox=lambda b, order: np.tile([1.0, 58, 2, 42], (len(b), 1)))


def write_lists(root, write):
    faces = write_photos(root, 10)
    for part, names in (('train', list(faces)[:6]), ('test', list(faces)[6:])):
        write(root / f'mine_{part}{".csv" if write is write_csv else ".json"}', {n: faces[n] for n in names})
    return root


BUILD = {
    'wflw': write_wflw,
    'aflw': write_whole_aflw,
    'csv': lambda root: write_lists(root, write_csv),
    'coco': lambda root: write_lists(root, write_coco),
    '300vw-c': lambda root: [write_300vw(root, video, 6, seed) for seed, video in enumerate(('001', '410'))] and root,
    '300w-private': lambda root: (
        write_300w(root, helen_trainset=3, ibug=1) and write_300w(root, **{'300W_01_Indoor': 2})
    ),
}


@pytest.mark.background
@pytest.mark.parametrize('name', BUILD)
def test_each_dataset_trains_and_is_tested(name, tmp_path):
    root = BUILD[name](tmp_path / 'data')
    run(
        'train',
        tmp_path / 'out.ipynb',
        dataset=name,
        root=root,
        output=tmp_path / 'run',
        cache=tmp_path / 'cache',
        on_error='skip',
        **TINY,
    )
    table = pd.read_csv(tmp_path / 'run/results.csv').set_index('decoder')
    assert (
        table.loc['local', [c for c in table if c.startswith('NME')]].notna().all(axis=None) and (table.faces > 0).all()
    )
    assert ('NME_given %' in table) == (name == 'aflw') and ('NME_ic %' in table) == (name != 'aflw')


def test_cofw_trains_and_is_tested(cofw, tmp_path):  # noqa: F811
    run(
        'train',
        tmp_path / 'out.ipynb',
        dataset='cofw',
        root=cofw,
        output=tmp_path / 'run',
        cache=tmp_path / 'cache',
        **TINY,
    )
    assert set(pd.read_csv(tmp_path / 'run/results.csv').faces) == {4}


def test_pretrain_finetune_and_test_elsewhere(cofw68, tmp_path):  # noqa: F811
    "300W-LP tested on 300W, then 300W from its weights, then COFW-68 and Menpo, which have no training faces."
    for i in range(4):
        write_lp(tmp_path / 'lp', 'AFW', f'a_{i}', i)
    write_300w(tmp_path / '300w', helen_trainset=3, helen_testset=2)
    write_300w(tmp_path / 'menpo', semi_frontal=2)
    common = dict(cache=tmp_path / 'cache', **TINY)
    run(
        'train',
        tmp_path / '1.ipynb',
        dataset='300w-lp',
        root=tmp_path / 'lp',
        test_on='300w',
        test_root=tmp_path / '300w',
        output=tmp_path / 'first',
        **common,
    )
    run(
        'train',
        tmp_path / '2.ipynb',
        dataset='300w',
        root=tmp_path / '300w',
        init=tmp_path / 'first',
        output=tmp_path / 'second',
        **common,
    )
    assert set(pd.read_csv(tmp_path / 'first/results.csv').subset) == {'common', 'full'}
    for name, root, count in (('cofw68', cofw68, 3), ('menpo', tmp_path / 'menpo', 2)):
        run(
            'evaluate',
            tmp_path / f'{name}.ipynb',
            checkpoint=tmp_path / 'second',
            dataset=name,
            root=root,
            cache=tmp_path / 'cache',
            output=tmp_path / name,
        )
        table = pd.read_csv(tmp_path / name / 'results.csv')
        assert set(table.faces) == {count} and 'AUC_box@7 %' in table
        assert list((tmp_path / name).glob('table_*.md')) and list((tmp_path / name).glob('table_*.tex'))
