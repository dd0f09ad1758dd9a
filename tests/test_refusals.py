"No error of the package is longer than 1,000 characters, and none repeats what a file holds."

import ast
import json
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import ROOT
from safetensors import safe_open
from safetensors.torch import save_file

from subpixel_nb.core import shorten, unknown
from subpixel_nb.data.crops import load_faces
from subpixel_nb.data.datasets import DataError, find_dataset, read_scheme, read_split, report_problems
from subpixel_nb.data.metrics import video_jitter
from subpixel_nb.evaluation.evaluation import read_predictions
from subpixel_nb.inference.fan import fan_network, load_fan
from subpixel_nb.training.checkpoints import load_state, load_weights, save_weights
from subpixel_nb.training.machine import find_device
from subpixel_nb.training.recipe import build_network, configure

LONG, SECRET = 'x' * 50_000, 'caf\xe9 ' * 20_000
SMALL = dict(dataset='synthetic', width=8, stacks=1, size=64, depth=2)


@pytest.fixture(scope='module')
def faces():
    return load_faces('synthetic', 'test', size=64, limit=3)


def weights(path, faces, **change) -> None:
    "A weights file whose config is that of another network than its tensors."
    config = configure(**SMALL)
    save_weights(path, build_network(config, 68), config, faces)
    with safe_open(path, 'pt') as file:
        about, tensors = file.metadata(), {f'{LONG[:200]}{k}': file.get_tensor(k) for k in file.keys()}
    save_file(tensors, path, about | change)


def coco(path) -> None:
    "A COCO file in Latin-1, of many characters that UTF-8 cannot read."
    path.write_text(json.dumps(dict(info=SECRET, images=[], annotations=[]), ensure_ascii=False), 'latin-1')


def latin(path, text: str = SECRET):
    path.write_text(text, 'latin-1')
    return path


REFUSALS: dict[str, Callable] = {
    'unknown name': lambda p, f: (_ for _ in ()).throw(unknown('option', LONG, [LONG, LONG])),
    'data error': lambda p, f: (_ for _ in ()).throw(DataError(p, LONG)),
    'fifty problems': lambda p, f: report_problems([DataError(p / LONG[:200], LONG)] * 50, 99, 'set', 'raise'),
    'other weights': lambda p, f: (weights(p / 'w', f), load_weights(p / 'w')),
    'damaged config': lambda p, f: (weights(p / 'w', f, config=LONG), load_weights(p / 'w')),
    'no checkpoint': lambda p, f: load_weights(LONG[:250]),
    'a state that is text': lambda p, f: load_state(latin(p / 's'), build_network(configure(**SMALL), 68), None),
    'latin-1 coco': lambda p, f: (coco(p / 'x_test.json'), read_split('coco', 'test', p)),
    'latin-1 csv': lambda p, f: (latin(p / 'x_test.csv'), read_split('csv', 'test', p)),
    'a header of 9,999 columns': lambda p, f: (latin(p / 'x_test.csv', 'a;' * 9999), read_split('csv', 'test', p)),
    'latin-1 scheme': lambda p, f: read_scheme(latin(p / 'scheme.json')),
    'latin-1 predictions': lambda p, f: read_predictions(latin(p / 'a.json'), f),
    'latin-1 csv predictions': lambda p, f: read_predictions(latin(p / 'a.csv'), f),
    'predictions in one word': lambda p, f: read_predictions(latin(p / 'a.json', f'["{LONG}"]'), f),
    'predictions of 9,999 arrays': lambda p, f: (
        np.savez(p / 'a.npz', names=[], **{f'array_{i}': 1 for i in range(2000)}),
        read_predictions(p / 'a.npz', f),
    ),
    'keys that are not of FAN': lambda p, f: fan_network({f'{LONG[:100]}{i}': torch.ones(1) for i in range(900)}),
    'a download that is a page': lambda p, f: load_fan(latin(p / 'fan.pth')),
    'a device': lambda p, f: find_device(LONG),
    'a method': lambda p, f: configure(method=LONG),
    'a number that is text': lambda p, f: configure(lr=LONG),
    'videos that differ': lambda p, f: video_jitter({str(i) * 20: 0 for i in range(300)}, {}),
    '114 videos that are not there': lambda p, f: read_split('300vw-a', 'test', p),
    'a dataset': lambda p, f: find_dataset(LONG),
}


@pytest.mark.parametrize('name', REFUSALS)
def test_a_refusal_is_short_and_repeats_no_file(name, tmp_path, faces):
    with pytest.raises((ValueError, OSError)) as told:
        REFUSALS[name](tmp_path, faces)
    said = str(told.value)
    assert 10 < len(said) <= 1000 and said.count('caf') < 20, said[:3000]


@pytest.mark.parametrize('limit', [60, 100, 1000])
def test_a_long_text_keeps_its_beginning_and_its_end(limit):
    text = 'a.pth: ' + LONG + ' Train again'
    short = shorten(text, limit)
    assert len(short) == limit and short.startswith('a.p') and short.endswith('in') and '50019 characters' in short
    assert shorten('a.pth', limit) == 'a.pth'


def foreign_texts(tree: ast.Module) -> Iterator[str]:
    "The raised errors whose message holds a caught error as it is: not through DataError, unknown or shorten."
    for handler in ast.walk(tree):
        if not isinstance(handler, ast.ExceptHandler) or not handler.name:
            continue
        for node in ast.walk(handler):
            call = node.exc if isinstance(node, ast.Raise) else None
            if not isinstance(call, ast.Call):
                continue
            shown = [n for n in ast.walk(call) if isinstance(n, ast.FormattedValue) and n.conversion == ord('r')]
            if any(getattr(n.value, 'id', '') == handler.name for n in shown):
                yield ast.unparse(node)  # the repr of a UnicodeDecodeError holds the file
            if getattr(call.func, 'id', '') in ('DataError', 'unknown'):
                continue
            kept = set()  # the names inside of shorten(...) and attributes of the error, such as its strerror
            for part in ast.walk(call):
                if isinstance(part, ast.Attribute) or getattr(getattr(part, 'func', None), 'id', '') == 'shorten':
                    kept |= {id(inside) for inside in ast.walk(part)}
            if any(isinstance(n, ast.Name) and n.id == handler.name and id(n) not in kept for n in ast.walk(call)):
                yield ast.unparse(node)


@pytest.mark.parametrize('path', sorted((ROOT / 'subpixel_nb').rglob('*.py')), ids=lambda p: p.stem)
def test_what_another_library_said_is_shortened(path):
    assert list(foreign_texts(ast.parse(path.read_text()))) == []


def test_the_search_for_foreign_texts_finds_one():
    bad = "try: f()\nexcept E as e: raise ValueError(f'no {e}') from e"
    assert len(list(foreign_texts(ast.parse(bad)))) == 1
    assert list(foreign_texts(ast.parse(bad.replace('{e}', '{shorten(e, 9)}')))) == []
    assert len(list(foreign_texts(ast.parse(bad.replace("ValueError(f'no {e}')", "DataError(p, f'no {e!r}')"))))) == 1


# Weights that a wrapper has saved


@pytest.mark.parametrize('prefix', ['module.', '_orig_mod.', 'module._orig_mod.', '_orig_mod.module.'])
def test_weights_saved_inside_a_wrapper_are_the_same_network(prefix, tmp_path, faces):
    "DataParallel's and torch.compile's names before every key."
    config = replace(configure(**SMALL), seed=4)
    net = build_network(config, 68)
    save_weights(tmp_path / 'w', net, config, faces)
    with safe_open(tmp_path / 'w', 'pt') as file:
        about, tensors = file.metadata(), {f'{prefix}{k}': file.get_tensor(k) for k in file.keys()}
    save_file(tensors, tmp_path / 'w', about)
    loaded, found = load_weights(tmp_path / 'w')
    assert found == config
    assert all(torch.equal(a, b) for a, b in zip(loaded.state_dict().values(), net.state_dict().values(), strict=True))


def test_a_pickle_is_named_and_not_opened(tmp_path):
    "Both of torch.save's formats; the way is FAN's converter."
    for legacy in (False, True):
        torch.save({'l0.weight': torch.ones(1)}, tmp_path / 'a.pth', _use_new_zipfile_serialization=not legacy)
        with pytest.raises(
            ValueError, match=r'a\.pth.* but a pickle.*None is opened.*subpixel_nb\.fan .*a\.pth FOLDER'
        ):
            load_weights(tmp_path / 'a.pth')


# Ids of another type


@pytest.mark.parametrize('listed, named', [(3, '3'), ('3', 3)])
def test_text_against_numbers_in_a_coco_file(tmp_path, listed, named):
    content = dict(
        images=[dict(id=listed, file_name='a.jpg')],
        annotations=[dict(image_id=named, keypoints=[1.0, 2.0, 2.0] * 68)],
    )
    (tmp_path / 'x_test.json').write_text(json.dumps(content))
    said = (
        f'image_id {named!r} is not among images: the id there is {listed!r}, so write both as numbers or both as text'
    )
    with pytest.raises(DataError, match=said):
        read_split('coco', 'test', tmp_path)
