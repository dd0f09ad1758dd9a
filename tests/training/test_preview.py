"What a run will take, before it begins: subpixel_nb.training.preview."

import json
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import subpixel_nb.training.loop as training
import subpixel_nb.training.preview as previewing
from subpixel_nb.data.crops import load_faces
from subpixel_nb.training.loop import train
from subpixel_nb.training.preview import disk_use, largest_batch, preview_run, settle_batch, training_views
from subpixel_nb.training.recipe import build_network, configure

SMALL = dict(dataset='synthetic', width=8, stacks=1, size=64, depth=2, epochs=2, batch=8, limit=24, precision='float32')


@pytest.fixture(scope='module')
def faces():
    return load_faces('synthetic', 'train', size=64, limit=24), load_faces('synthetic', 'test', size=64, limit=8)


@given(room=st.integers(1, 5000), most=st.integers(1, 3000))
def test_the_largest_batch_is_found_with_few_trials(room, most):
    "A made-up memory that holds `room` faces: the answer is exact, and no batch beyond twice the memory is tried."
    tried = []

    def fits(batch: int) -> bool:
        tried.append(batch)
        return batch <= room

    assert largest_batch(fits, most) == min(room, most)
    assert max(tried) <= min(2 * room, most) and len(tried) <= 2 * most.bit_length() + 1


def test_a_face_that_does_not_fit():
    with pytest.raises(ValueError, match='not even one face fits'):
        largest_batch(lambda batch: False, 100)


def test_batch_auto(faces, tmp_path, monkeypatch):
    "Without a GPU a sentence; with one the search; and a run that goes on keeps the batch that its folder names."
    config = configure(**SMALL | dict(batch='auto'), output=str(tmp_path / 'run'))
    with pytest.raises(
        ValueError, match='batch auto: it fills the memory of a GPU, and there is none here.*recipe has 16'
    ):
        settle_batch(config, faces[0])
    (tmp_path / 'run').mkdir()
    (tmp_path / 'run/config.json').write_text(json.dumps(dict(batch=12)))
    assert settle_batch(config, faces[0]).batch == 12
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(previewing, 'processes', lambda: type('one', (), dict(num_processes=1)))
    monkeypatch.setattr(previewing, 'step_fits', lambda config, faces, batch: batch <= 19)
    assert settle_batch(replace(config, resume=False), faces[0]).batch == 19
    monkeypatch.delenv('WORLD_SIZE', raising=False)
    forks = replace(config, resume=False, processes=2)
    assert settle_batch(forks, faces[0]).batch == 'auto'  # this process must not touch the GPU
    assert settle_batch(configure(**SMALL), faces[0]).batch == 8


def test_the_disk_is_what_the_run_then_takes(faces, tmp_path):
    "Bytes that are promised and bytes that lie there, up to the second state; and a disk that is too small."
    config = configure(**SMALL, output=str(tmp_path / 'run'))
    before = preview_run(config, *faces)
    assert not config.folder.exists() and before.steps == 3 and before.begins == (0, 0)
    assert before.seconds == pytest.approx(6 * before.step_seconds + before.test_seconds)
    assert before.step_seconds > 0 and before.test_seconds > 0 and '24 to train on, 8 to test on' in str(before)
    train(config, *faces)
    sizes = {p.name: p.stat().st_size for p in config.folder.iterdir()}
    assert sum(sizes.values()) + sizes['state.safetensors'] <= before.disk <= 2 * sum(sizes.values()) + 2**21
    again = preview_run(config, *faces)
    assert again.begins == (2, 0) and again.seconds is None and 'the run is finished' in str(again)


def test_what_could_not_end_is_stopped(faces, tmp_path, monkeypatch):
    config = configure(**SMALL, output=str(tmp_path / 'run'))
    with pytest.raises(ValueError, match='batch: 32 faces per step, and only 24 to train on'):
        preview_run(replace(config, batch=32), *faces)
    usage = type('usage', (), dict(free=disk_use(build_network(config, 68), faces[1]) - 1))
    monkeypatch.setattr(previewing.shutil, 'disk_usage', lambda place: usage)
    with pytest.raises(OSError, match='of disk, and .* are free there. Make room, or name another output'):
        preview_run(config, *faces)


def test_a_run_that_goes_on_takes_the_rest(faces, tmp_path):
    before = preview_run(configure(**SMALL, output=str(tmp_path / 'run')), *faces)
    half = replace(before, begins=(1, 2))
    assert half.seconds == pytest.approx(before.step_seconds + before.test_seconds)
    assert 'of which 1 and 2 steps are done' in str(half)


@pytest.mark.parametrize('method, views', [('local', 1), ('siamese', 2)])
def test_the_contact_sheet_shows_the_first_step(faces, tmp_path, monkeypatch, method, views):
    "Views, points and masks are those that the loop then hands to the network, to the bit."
    config, honest, used = configure(**SMALL, method=method, output=str(tmp_path / 'run')), training.random_view, []

    def told(*args):
        used.append(honest(*args))
        return used[-1]

    monkeypatch.setattr(training, 'random_view', told)
    seen = training_views(config, faces[0], count=3)
    train(replace(config, epochs=1), *faces)
    assert len(seen.names) == 3 and len(seen.views) == len(seen.targets) == views
    for here, there in zip(seen.views, used):
        for name in ('images', 'points', 'visible', 'maps'):
            assert torch.equal(getattr(here, name), getattr(there, name)[:3]), name
    assert (seen.merged is None) == (views == 1)
