"The first day on a GPU: photos in one file, rows that are measured once, and a day that is killed again and again."

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import ROOT
from PIL import Image

from subpixel_nb.data.datasets import read_split
from subpixel_nb.evaluation.gpu_day import (
    Day,
    Rows,
    day_from_shell,
    day_trainings,
    pack_photos,
    run_day,
    speed_order,
    unpacked,
)


def test_packed_photos_are_the_same_faces(home, tmp_path):
    root, _ = home
    size = pack_photos(root, tmp_path / 'out/300w.zip')
    assert size == (tmp_path / 'out/300w.zip').stat().st_size
    back = unpacked(tmp_path / 'out/300w.zip', tmp_path / 'work')
    assert unpacked(tmp_path / 'out/300w.zip', tmp_path / 'work') == back == str(tmp_path / 'work/300w')
    assert unpacked(root, tmp_path) == str(root) and unpacked(None, tmp_path) is None
    with pytest.warns(UserWarning, match='official count'):
        own, packed = (read_split('300w', 'train', folder) for folder in (root, back))
    assert len(own) == len(packed) > 5
    for a, b in zip(own, packed):
        assert torch.equal(a.points, b.points) and a.subsets == b.subsets
        pixels = [np.asarray(Image.open(face.photo).convert('RGB'), float) for face in (a, b)]
        assert np.abs(pixels[0] - pixels[1]).mean() < 4


def test_photos_of_one_name_stay_two(tmp_path):
    "a.jpg and a.webp cannot both become a.webp."
    for suffix, colour in (('jpg', 'red'), ('webp', 'blue')):
        (tmp_path / 'photos').mkdir(exist_ok=True)
        Image.new('RGB', (64, 64), colour).save(tmp_path / f'photos/a.{suffix}')
    pack_photos(tmp_path / 'photos', tmp_path / 'a.zip')
    back = Path(unpacked(tmp_path / 'a.zip', tmp_path))
    assert {p.name for p in back.iterdir()} == {'a.jpg', 'a.webp'}


def test_nothing_to_pack_and_a_damaged_archive(tmp_path):
    with pytest.raises(FileNotFoundError, match='no photo to pack'):
        pack_photos(tmp_path, tmp_path / 'x.zip')
    (tmp_path / 'cut.zip').write_bytes(b'PK\3\4 cut short')
    with pytest.raises(ValueError, match='not a whole zip file'):
        unpacked(tmp_path / 'cut.zip', tmp_path / 'work')
    assert list((tmp_path / 'work').iterdir()) == []


def test_rows_are_measured_once_on_a_machine(tmp_path, capsys):
    asked = []

    def work(name: str, error: bool = False) -> dict:
        asked.append(name)
        if error:
            raise torch.OutOfMemoryError('no room')
        return dict(value=1.23456789)

    todo = dict(a=lambda: work('a'), b=lambda: work('b', True))
    other = dict(name='a', machine='another card', value=9)
    (tmp_path / 'speed.jsonl').write_text(json.dumps(other) + '\n{"name": "b", "mach')  # a kill cut the last line
    for _ in range(2):
        Rows(tmp_path, 'speed').fill(todo, time.monotonic() + 60)
    rows = Rows(tmp_path, 'speed')
    assert asked == ['a', 'b'] and rows.rows[0] == other and len(rows.rows) == 3
    assert rows.here()['a']['value'] == 1.2346 and 'no room' in rows.here()['b']['error']
    rows.fill(dict(c=lambda: work('c')), time.monotonic() - 1)  # the time is up
    assert 'c' not in rows.here() and 'speed: a: value 1.235' in capsys.readouterr().out


def test_the_order_of_the_day():
    names = list(speed_order([16, 32]))
    assert names[:3] == ['local, batch 16, eager', 'siamese, batch 16, eager', 'plain loop, batch 16']
    assert names[-2:] == ['local, batch 32, compiled', 'siamese, batch 32, compiled'] and len(set(names)) == 10
    assert [t.name for t in day_trainings(2)][:5] == ['siamese-0', 'baseline-0', 'local-0', 'window-0', 'siamese-1']
    config = Day().config()
    assert (config.width, config.stacks, config.size, config.epochs, config.lr) == (256, 2, 256, 50, 1e-4)


def test_the_job_has_the_same_parameters():
    cells = json.loads((ROOT / 'nbs/gpu_day.ipynb').read_text())['cells']
    space: dict = {}
    exec(''.join(next(c['source'] for c in cells if 'parameters' in c['metadata'].get('tags', []))), space)
    assert vars(Day()) == {name: space[name] for name in space['__annotations__']}


@pytest.mark.slow
def test_the_job_shows_its_tables(tmp_path, monkeypatch):
    "Its cells in this process, with the codec alone: rates, and no training yet."
    monkeypatch.chdir(tmp_path)
    space: dict = {}
    for cell in json.loads((ROOT / 'nbs/gpu_day.ipynb').read_text())['cells']:
        if cell['cell_type'] == 'code':
            exec(''.join(cell['source']), space)
            if 'parameters' in cell['metadata'].get('tags', []):
                space |= dict(setting='tiny', steps='codec')
    assert (space['table']('codec').maps_per_s > 0).all() and not len(space['kept'].rows)


@pytest.mark.parametrize(
    'given, said',
    [
        (dict(steps='tests sped'), "unknown step 'sped'; known: speed"),
        (dict(setting='papr'), "unknown setting 'papr'; known: paper"),
        (dict(batches='16 0'), "batches: expected whole numbers with blanks between, got '0'"),
        (dict(minutes=-1.0), 'minutes: expected a positive number'),
        (dict(seeds='two'), 'seeds: expected int'),
    ],
)
def test_wrong_parameters(given, said):
    with pytest.raises(ValueError, match=said):
        Day(**given)


def test_wrong_commands(capsys):
    with pytest.raises(ValueError, match="unknown parameter 'bathes'; known: batches"):
        day_from_shell(['-p', 'bathes', '16'])
    day_from_shell(['--help'])
    assert "-p batches '16 32 64 128'" in capsys.readouterr().out


@pytest.mark.skipif(torch.cuda.is_available(), reason='here is a GPU: it would begin')
def test_the_papers_setting_needs_a_gpu(tmp_path):
    with pytest.raises(ValueError, match='no CUDA device here. Rehearse with -p setting tiny'):
        run_day(Day(output=str(tmp_path / 'day')))
    assert not (tmp_path / 'day').exists()


@pytest.mark.slow
def test_a_day_that_is_killed_goes_on(home, tmp_path):
    "SIGKILL in the middle of three steps: the last call finishes, and every row and training is there once."
    pack_photos(home[0], tmp_path / '300w.zip')
    output, given = tmp_path / 'day', dict(setting='tiny', batches=2, seeds=1, steps='speed codec train')
    given |= dict(root=tmp_path / '300w.zip', output=output, results=output, runs=output / 'work')
    words = [w for k, v in (given | dict(cache=tmp_path / 'cache')).items() for w in ('-p', k, str(v))]
    command = [sys.executable, '-W', 'ignore', '-m', 'subpixel_nb.gpu_day', *words]
    for sign in ('speed.jsonl', 'codec.jsonl', 'work/300w-tiny/siamese-0/config.json'):
        day = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        deadline = time.monotonic() + 300
        while not (output / sign).exists():
            assert time.monotonic() < deadline and day.poll() is None, day.communicate()[1].decode()[-2000:]
            time.sleep(0.01)
        time.sleep(random.uniform(0, 0.3))
        os.kill(day.pid, signal.SIGKILL)
        day.wait()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    for step, count in (('speed', 4), ('codec', 15), ('train', 4)):
        names = [json.loads(line)['name'] for line in (output / f'{step}.jsonl').read_text().splitlines()]
        assert len(names) == len(set(names)) == count, step
    table = pd.read_csv(output / '300w-tiny.csv')
    assert set(table.training) == {'siamese-0', 'baseline-0', 'local-0', 'window-0'}
    assert not table.duplicated(['training', 'reader']).any() and table.nme.notna().all()
    assert sum(p.is_file() for p in output.iterdir()) <= 6
