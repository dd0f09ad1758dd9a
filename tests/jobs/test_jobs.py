"The papermill jobs as a user calls them: small runs on drawn and real faces, a killed run, and wrong parameters."

import fcntl
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import ENVIRON, ROOT, SCRIPTS
from safetensors.torch import load_file

from subpixel_nb.codec.decoding import DECODERS
from subpixel_nb.training.checkpoints import read_metrics

pytestmark = pytest.mark.background
SMALL = dict(width=8, stacks=1, size=64, depth=2, batch=8, limit=48, precision='float32')


def command(notebook: str, out: Path, **parameters) -> list[str]:
    return [str(SCRIPTS / 'papermill'), f'nbs/{notebook}.ipynb', str(out), '--no-progress-bar', *words(**parameters)]


def words(**parameters) -> list[str]:
    return [w for name, value in parameters.items() for w in ('-p', name, str(value))]


def papermill(notebook: str, out: Path, timeout: float = 300, **parameters) -> subprocess.CompletedProcess:
    return subprocess.run(
        command(notebook, out, **parameters),
        cwd=ROOT,
        env=ENVIRON,
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def run(notebook: str, out: Path, timeout: float = 300, **parameters) -> dict:
    "The executed notebook; fails with papermill's own words if the job failed."
    done = papermill(notebook, out, timeout, **parameters)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(out.read_text())


def test_train_then_evaluate_give_the_same_figures(tmp_path):
    folder = tmp_path / 'run'
    run('train', tmp_path / 'out.ipynb', dataset='synthetic', epochs=3, output=folder, **SMALL)
    assert {p.name for p in folder.iterdir()} == {
        '.lock',
        'config.json',
        'metrics.jsonl',
        'times.jsonl',
        'run.json',
        'state.safetensors',
        'weights.safetensors',
        'predictions.npz',
        'results.csv',
    }
    trained = pd.read_csv(folder / 'results.csv').set_index('decoder')
    assert {'mean shape in the true box', *DECODERS} == set(trained.index)
    stored = np.load(folder / 'predictions.npz')
    error = np.linalg.norm(stored['points_local'] - stored['truth'], axis=-1)
    eyes = np.linalg.norm(stored['truth'][:, 36] - stored['truth'][:, 45], axis=-1)
    by_hand = 100 * np.mean([e[v].mean() / d for e, v, d in zip(error, stored['visible'], eyes)])
    assert trained.loc['local', 'NME_ic %'] == pytest.approx(by_hand, rel=1e-5)  # the same error in the photo's pixels

    run('evaluate', tmp_path / 'eval.ipynb', checkpoint=folder, output=tmp_path / 'again')
    again = pd.read_csv(tmp_path / 'again/results.csv').set_index('decoder')
    for column in ('NME_ic %', 'NME_box %', 'NME_diag %'):
        for decoder in again.index:
            assert again.loc[decoder, column] == pytest.approx(trained.loc[decoder, column], rel=1e-6)

    shown = json.dumps(run('runs', tmp_path / 'runs.ipynb', folder=tmp_path)['cells'])
    assert '3 of 3' in shown and '1 finished, 1 no run' in shown and 'bootstrap in pairs' in shown


def test_sigkill_again_and_again_changes_nothing(tmp_path):
    """Papermill is killed twice at random moments, while a state is written after every step.

    The kernel dies with it, and the same command then finishes the run. Weights, optimiser, position and metrics are
    those of a run that was never killed, to the bit."""
    parameters = dict(SMALL, dataset='synthetic', limit=80, epochs=5, test_every=5, seed=3, save_minutes=1e-6)
    folder = tmp_path / 'killed'
    whole = subprocess.Popen(
        [sys.executable, '-m', 'subpixel_nb.launch', *words(output=tmp_path / 'whole', **parameters)],
        cwd=ROOT,
        env=ENVIRON,
    )
    for i in range(2):
        before = (folder / 'state.safetensors').stat().st_mtime_ns if i else 0
        job = subprocess.Popen(
            command('train', tmp_path / f'{i}.ipynb', output=folder, **parameters),
            cwd=ROOT,
            env=ENVIRON,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            deadline = time.monotonic() + 900
            while not (
                (folder / 'state.safetensors').exists() and (folder / 'state.safetensors').stat().st_mtime_ns > before
            ):
                assert time.monotonic() < deadline and job.poll() is None, 'the job wrote no state'
                time.sleep(0.01)
            time.sleep(random.SystemRandom().uniform(0, 0.3))
        finally:
            os.killpg(job.pid, signal.SIGKILL)
            job.wait()
        assert not (folder / 'weights.safetensors').exists(), 'it finished before it was killed: give it more epochs'
        deadline = time.monotonic() + 900
        while locked(folder):
            assert time.monotonic() < deadline, 'the kernel outlived papermill'
    run('train', tmp_path / 'out.ipynb', output=folder, **parameters)
    assert whole.wait(timeout=900) == 0
    for name in ('weights', 'state'):
        a, b = (load_file(f / f'{name}.safetensors') for f in (folder, tmp_path / 'whole'))
        assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    assert (folder / 'metrics.jsonl').read_bytes() == (tmp_path / 'whole/metrics.jsonl').read_bytes()
    starts = [row['from_step'] for row in read_metrics(folder, 'times')]
    assert any(starts) and len(starts) >= 5  # a killed epoch went on in its middle
    assert not [p for p in folder.iterdir() if p.name.startswith('.') and p.name != '.lock']


def locked(folder: Path) -> bool:
    with open(folder / '.lock', 'a') as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(0.05)
            return True
    return False


def test_two_processes_from_a_notebook(tmp_path):
    "The kernel forks two and shows what the first prints. The results are those of one process up to rounding."
    parameters = dict(SMALL, dataset='synthetic', epochs=2, test_every=1)
    done = run('train', tmp_path / 'out.ipynb', output=tmp_path / 'two', processes=2, **parameters)
    printed = ''.join(''.join(o.get('text', '')) for c in done['cells'] for o in c.get('outputs', []))
    assert [line[:9] for line in printed.splitlines() if line.startswith('epoch ')] == ['epoch   1', 'epoch   2']
    subprocess.run(
        [sys.executable, '-m', 'subpixel_nb.launch', *words(output=tmp_path / 'one', **parameters)],
        cwd=ROOT,
        env=ENVIRON,
        check=True,
    )
    one, two = ([row['loss'] for row in read_metrics(tmp_path / name)] for name in ('one', 'two'))
    assert two == pytest.approx(one, rel=3e-3) and (tmp_path / 'two/results.csv').exists()


def test_a_dead_process_ends_the_notebook_with_its_traceback(tmp_path):
    "Two processes and a learning rate that no network survives: the job's error is theirs."
    done = papermill(
        'train',
        tmp_path / 'out.ipynb',
        dataset='synthetic',
        epochs=2,
        processes=2,
        output=tmp_path / 'run',
        **SMALL,
        lr=1e30,
    )
    assert done.returncode == 1 and 'the loss or its gradient is not finite' in done.stderr, done.stderr[-2000:]


@pytest.mark.parametrize(
    'parameters, said',
    [
        (dict(widht=64), "unknown parameter 'widht'; known: width"),
        (dict(resume='false'), "resume: expected bool, got str 'false'. write True or False"),
        (dict(dataset='300w', root='nowhere'), 'nowhere'),
    ],
)
def test_wrong_parameters_end_the_job(tmp_path, parameters, said):
    done = papermill('train', tmp_path / 'out.ipynb', **parameters)
    assert done.returncode == 1 and said in done.stderr, done.stderr[-2000:]


def test_a_bad_file_ends_the_job_or_is_skipped(tmp_path, shared_data):
    "A truncated photo among real ones: the error names it; with on_error=skip the job goes on without it."
    for split in ('helen/trainset', 'helen/testset'):
        (tmp_path / '300w' / split).mkdir(parents=True)
        for pts in sorted((shared_data / '300w' / split).glob('*.pts'))[:12]:
            for f in (pts, pts.with_suffix('.jpg')):
                shutil.copy(f, tmp_path / '300w' / split / f.name)
    bad = sorted((tmp_path / '300w/helen/trainset').glob('*.jpg'))[3]
    bad.write_bytes(bad.read_bytes()[:3000])
    parameters = dict(
        dataset='300w', root=tmp_path / '300w', cache=tmp_path / 'cache', output=tmp_path / 'run', epochs=1, **SMALL
    )
    done = papermill('train', tmp_path / 'out.ipynb', **parameters)
    assert done.returncode == 1 and bad.name in done.stderr
    run('train', tmp_path / 'out.ipynb', on_error='skip', **parameters)
    assert len(np.load(tmp_path / 'run/predictions.npz')['names']) == 12


def test_a_short_run_on_real_faces(tmp_path, shared_data):
    """Six epochs of a small network on 800 faces of 300W at 128 px, crop "paper" of true boxes.

    The NME_ic on the 554 common faces was measured as 6.9 %. The mean shape in the true box has 16.7 %. A network whose
    landmarks are not exchanged in mirrored views ends at 35 %. With heatmaps drawn at x / s it ends at 7.5 %, and all
    points lie 1.5 px to one side, which the mean signed error shows."""
    folder = tmp_path / 'run'
    run(
        'train',
        tmp_path / 'out.ipynb',
        timeout=900,
        dataset='300w',
        root=shared_data / '300w',
        output=folder,
        cache=tmp_path / 'cache',
        size=128,
        depth=3,
        width=32,
        epochs=6,
        limit=800,
        lr=2e-3,
        schedule='onecycle',
        test_every=6,
    )
    error = pd.read_csv(folder / 'results.csv').query('subset == "common"').set_index('decoder')['NME_ic %']
    assert pd.read_csv(folder / 'results.csv').groupby('subset')['faces'].first().to_dict() == dict(
        common=554, challenge=9, full=563
    )
    assert error['local'] < 7.5 and error['argmax'] > error['quarter'] > error['local'] > error['gaussian']
    assert 16 < error['mean shape in the true box'] < 17.5
    stored = np.load(folder / 'predictions.npz')
    eyes = np.linalg.norm(stored['truth'][:, 36] - stored['truth'][:, 45], axis=-1)[:, None, None]
    side = 100 * ((stored['points_local'] - stored['truth']) / eyes).mean((0, 1))
    assert np.abs(side).max() < 1.6, f"the points lie to one side, by {side} % of the eyes' distance"


def test_benchmark_measures_and_names_who_is_missing(tmp_path):
    """It runs in a small setting, the points that it decodes are right, and rivals that are absent are named.

    Its speeds are not tested."""
    done = run(
        'benchmark',
        tmp_path / 'out.ipynb',
        faces=2,
        landmarks=20,
        seconds=0.2,
        compiled=False,
        stacks=1,
        photos=8,
        training=0.05,
        side=64,
        widths=8,
        output=tmp_path / 'tables',
    )
    table = pd.read_csv(tmp_path / 'tables/decoding.csv', index_col=0)
    assert table.maps_per_s.min() > 0 and {f'ours: {name}' for name in DECODERS if name != 'global'} < set(table.index)
    assert (
        table.error['ours: gaussian']
        < 0.04
        < table.error['ours: local']
        < 0.1
        < table.error['ours: quarter']
        < 0.3
        < table.error['ours: argmax']
    )
    printed = ''.join(''.join(o.get('text', '')) for c in done['cells'] for o in c.get('outputs', []))
    for package in ('face-alignment', 'mmpose', 'landmarker'):
        assert package in printed
    assert {p.name for p in (tmp_path / 'tables').iterdir()} == {
        'decoding.csv',
        'encoding.csv',
        'ratios.csv',
        'growth.png',
        'cropping.csv',
        'training.csv',
        'stages.csv',
        'training_growth.csv',
        'training_growth.png',
        'inference.csv',
        'inference_growth.csv',
        'inference_growth.png',
    }
    read = pd.read_csv(tmp_path / 'tables/inference.csv', index_col=0)
    assert {'ours, batch 1', 'ours, batch 4'} < set(read.index) and (read.faces_per_s > 0).all()
    trained, stages = (pd.read_csv(tmp_path / f'tables/{name}.csv', index_col=0) for name in ('training', 'stages'))
    loops = [f'width 8, batch 16: {who}' for who in ('plain', 'ours', 'ours, siamese')]
    assert (
        set(loops) <= set(trained.index)
        and (trained.views_per_s > 0).all()
        and stages.loc[loops].sum(1).tolist() == pytest.approx([100] * 3, abs=0.1)
    )
    assert trained.ratio.tolist() == pytest.approx(
        (trained.views_per_s / trained.views_per_s[loops[0]]).tolist(), rel=1e-3
    )
    assert '12.11 M parameters, 13.9 GMAC' in printed


def test_evaluate_scores_another_systems_points(tmp_path):
    "Five photos and a CSV whose points are 2 px off in x: the job's NME_ic is 2 px over the distance of the eyes."
    from PIL import Image

    rng, rows, expected = np.random.default_rng(0), [], []
    (tmp_path / 'faces/test').mkdir(parents=True)
    (tmp_path / 'faces/train').mkdir()
    for i in range(5):
        points = rng.uniform(40, 160, (68, 2)).round(3)
        name = f'faces/test/{i}'
        Image.fromarray(rng.integers(0, 255, (200, 200, 3), dtype=np.uint8)).save(tmp_path / f'{name}.png')
        (tmp_path / f'{name}.pts').write_text('\n'.join(f'{x} {y}' for x, y in points + 1))
        rows.append(','.join([f'{i}.png', *map(str, (points + [2, 0]).ravel())]))
        expected.append(200 / np.linalg.norm(points[36] - points[45]))
    (tmp_path / 'theirs.csv').write_text('\n'.join(rows))
    run(
        'evaluate',
        tmp_path / 'out.ipynb',
        predictions=tmp_path / 'theirs.csv',
        dataset='folder',
        root=tmp_path / 'faces',
        output=tmp_path / 'scored',
        cache=tmp_path / 'cache',
    )
    table = pd.read_csv(tmp_path / 'scored/results.csv')
    assert table.decoder.tolist() == ['theirs'] and table['NME_ic %'][0] == pytest.approx(np.mean(expected), rel=1e-4)


def test_check_data_names_the_planted_faults(tmp_path):
    from subpixel_nb.data.checks import example_folder

    run(
        'check_data',
        tmp_path / 'out.ipynb',
        dataset='folder',
        root=example_folder(tmp_path / 'faces'),
        output=tmp_path / 'found',
    )
    problems = pd.read_csv(tmp_path / 'found/problems.csv').set_index('problem')['count']
    assert problems.to_dict() == {
        'face not readable': 2,
        'photo not readable': 1,
        'points off the photo': 1,
        'same face twice': 1,
    }


def test_check_data_counts_real_files(tmp_path, shared_data):
    run('check_data', tmp_path / 'out.ipynb', dataset='300w', root=shared_data / '300w', output=tmp_path / 'found')
    counts = pd.read_csv(tmp_path / 'found/counts.csv').fillna('').set_index(['split', 'part'])
    assert counts.found[[('train', ''), ('common', ''), ('challenge', '')]].tolist() == [1675, 554, 9]
    assert counts.missing[[('train', 'afw'), ('train', 'lfpw/trainset'), ('challenge', 'ibug')]].tolist() == [
        337,
        6,
        126,
    ]
    assert pd.read_csv(tmp_path / 'found/problems.csv').empty
