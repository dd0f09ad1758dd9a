"The grid of Tables 1 to 3: its trainings, its memory, its figures and intervals, and a run of it as a user calls it."

import json
import subprocess

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import ENVIRON, ROOT, SCRIPTS

mpl.use('Agg')
import matplotlib.pyplot as plt

from subpixel_nb.codec.encoding import encode
from subpixel_nb.data.crops import load_faces
from subpixel_nb.evaluation.ablation import (
    ABLATION_TABLES,
    KEPT_READERS,
    Line,
    Results,
    Training,
    ablation_decoders,
    ablation_grid,
    compare,
    measure,
    plot_differences,
    run_grid,
)
from subpixel_nb.evaluation.published import find_table
from subpixel_nb.model.hourglass import StackedHourglass
from subpixel_nb.training.recipe import configure


def fill(folder, seeds=(0, 1), faces: int = 40, gain: float = 0.2) -> Results:
    "Two kinds of training with known errors: the second is better by `gain` on every face; NME_box is half of NME."
    results, g = Results(folder, 'toy'), torch.Generator().manual_seed(0)
    hard = torch.rand(faces, generator=g).double() * 4 + 1
    for seed in seeds:
        for method, better in (('baseline', 0.0), ('local', gain)):
            errors = {'quarter': hard + 0.1 * seed - better, 'local 5': hard - better, 'odd': hard}
            results.add(Training(method, seed), errors, torch.full((faces,), 0.5), minutes=1.5)
    return results


def test_the_grid_has_every_row_of_the_tables_once():
    trainings = ablation_grid(3)
    names = [t.name for t in trainings]
    assert len(set(names)) == len(names) and [t.kind for t in trainings[:3]] == ['siamese', 'baseline', 'local']
    kinds = {t.kind for t in trainings}
    for lines in ABLATION_TABLES.values():
        assert {line.kind for line in lines} <= kinds
    for method in ('baseline', 'local', 'siamese'):
        assert sum(t.kind == method for t in trainings) == 3
    assert {
        'siamese-merged',
        'siamese-sum',
        'local-sigma1',
        'local-sigma2',
        'window',
        'static',
        'dynamic',
        'global',
        'prior',
    } <= kinds


def test_the_grid_of_two_cores_has_five_trainings_with_two_seeds_at_most():
    trainings = ablation_grid(3, 'cpu')
    kinds = ['window-strong', 'window', 'local', 'siamese', 'siamese+window']
    assert [t.name for t in trainings] == [f'{kind}-{seed}' for seed in (0, 1) for kind in kinds]
    strong = configure(**trainings[0].parameters('cpu', dataset='300w'))
    assert (strong.size, strong.epochs, strong.width, strong.augment) == (256, 50, 64, 'strong')


def test_the_papers_column_is_the_papers():
    for number, lines in ABLATION_TABLES.items():
        printed = {r.values[0] for r in find_table(number).rows}
        assert {line.paper for line in lines} - {None} == printed


def test_a_command_is_what_the_loop_is_told():
    "Every command of the grid parses into a config with the values it names."
    from subpixel_nb.training.launch import read_parameters

    for t in ablation_grid(2):
        config = configure(**read_parameters(t.command('small', dataset='300w', output='runs/x')[3:]))
        assert (config.method, config.seed, config.dataset, config.width, config.size) == (
            t.method,
            t.seed,
            '300w',
            32,
            128,
        )
        for name, value in t.changes:
            assert getattr(config, name) == value
    with pytest.raises(ValueError, match="unknown setting 'papr'; known: paper"):
        Training('local').command('papr')


def test_means_spread_and_paired_intervals_by_hand(tmp_path):
    results = fill(tmp_path)
    table = compare(
        results, [Line('a', 'baseline', 'quarter', 4.2), Line('b', 'local', 'quarter'), Line('c', 'siamese', 'quarter')]
    )
    means = results.rows.query('kind == "baseline" and reader == "quarter"').nme
    assert table.ours[0] == pytest.approx(means.mean()) and table.sd[0] == pytest.approx(0.1 / 2**0.5, rel=1e-3)
    assert table.seeds.tolist() == [2, 2, 0] and np.isnan(table.ours[2]) and table.paper[0] == 4.2
    assert table.difference[1] == pytest.approx(-0.2, abs=1e-4)
    assert table.low[1] == pytest.approx(-0.2, abs=1e-4) and table.high[1] == pytest.approx(
        -0.2, abs=1e-4
    )  # on every face: no width
    box = compare(results, [Line('a', 'baseline', 'quarter'), Line('b', 'local', 'quarter')], box=True)
    assert box.difference[1] == pytest.approx(-0.1, abs=1e-4) and box.ours[0] == pytest.approx(
        table.ours[0] / 2, abs=1e-3
    )


def test_what_is_kept_is_read_again(tmp_path):
    first = fill(tmp_path)
    again = Results(tmp_path, 'toy')
    assert (
        again.has(Training('local', 1)) and not again.has(Training('local', 2)) and not again.has(Training('siamese'))
    )
    pd.testing.assert_frame_equal(first.rows, again.rows)
    assert again.errors('local', 'odd') == {}  # only KEPT_READERS keep their faces
    for seed, values in first.errors('local', 'local 5').items():
        assert np.array_equal(values, again.errors('local', 'local 5')[seed])
    with pytest.raises(ValueError, match='holds 40 test faces, this training was measured on 3'):
        again.add(Training('siamese'), {'argmax': torch.ones(3).double()}, torch.ones(3))
    assert not Results(tmp_path, 'none').has(Training('local'))
    figure = plot_differences({'t': compare(again, ABLATION_TABLES['2'])}, 'NME')
    assert len(figure.axes) == 2 and figure.axes[0].get_yticklabels()[0].get_text() == 'Baseline'
    plt.close(figure)


def test_labels_of_the_picture_lie_beside_the_bars(tmp_path):
    "Every number stands right of its frame and inside the picture, and the intervals are those of the table."
    table = compare(fill(tmp_path), [Line('a', 'baseline', 'quarter'), Line('b', 'local', 'local 5')])
    figure = plot_differences({'one': table, 'two': table, 'empty': table[:0]}, 'NME')
    figure.canvas.draw()
    for ax in figure.axes[1:4:2]:
        (label,) = ax.texts
        assert label.get_text() == f'{table.difference[1]:+.2f} [{table.low[1]:+.2f}, {table.high[1]:+.2f}]'
        box = label.get_window_extent()
        assert ax.get_window_extent().x1 < box.x0 and box.x1 < figure.bbox.x1
        drawn = [tuple(x for x, _ in segment) for segment in ax.collections[0].get_segments() if len(segment)]
        assert drawn[-1] == pytest.approx((table.low[1], table.high[1]))
    plt.close(figure)


def test_an_interval_is_that_of_plain_resampling(tmp_path):
    "The interval of a difference, against 2000 samples of the faces drawn one by one."
    results, g = Results(tmp_path, 'toy'), torch.Generator().manual_seed(1)
    first, second = (torch.rand(50, generator=g).double() + 1 for _ in range(2))
    results.add(Training('baseline'), {'quarter': first}, torch.ones(50))
    results.add(Training('local'), {'quarter': second}, torch.ones(50))
    table = compare(results, [Line('a', 'baseline', 'quarter'), Line('b', 'local', 'quarter')])
    rng, difference = np.random.default_rng(0), (second - first).numpy()
    means = [difference[rng.integers(0, 50, 50)].mean() for _ in range(2000)]
    assert (table.low[1], table.high[1]) == pytest.approx(np.quantile(means, [0.025, 0.975]), abs=1e-6)


class Oracle(StackedHourglass):
    "Answers the landmarks of the faces it is asked about in order, shifted by `shift` heatmap px, with noise."

    truth, shift, noise, start = None, 0.0, 0.0, 0

    def forward(self, images):
        i = slice(self.start, self.start + len(images))
        Oracle.start += len(images)
        points = self.truth[i] + self.stride * self.shift
        maps = encode(points, images.shape[-1] // self.stride, stride=self.stride)
        return [maps + self.noise * torch.randn(maps.shape, generator=torch.Generator().manual_seed(Oracle.start))]


@pytest.mark.parametrize('shift, noise, stride', [(0.0, 0.05, 4), (0.5, 0.05, 4), (0.0, 0.05, 8)])
def test_the_bound_sees_noise_and_not_a_shift(tmp_path, monkeypatch, shift, noise, stride):
    "With white noise alone the fit errs by the bound; a network that answers elsewhere errs more, and the bound stays."
    import subpixel_nb.evaluation.ablation as module

    test = load_faces('synthetic', 'test', size=128, limit=24)
    net = Oracle(68, 1, 8, 2, stride=stride)
    monkeypatch.setattr(Oracle, 'truth', test.points - test.margin)
    monkeypatch.setattr(Oracle, 'shift', shift)
    monkeypatch.setattr(Oracle, 'noise', noise)
    monkeypatch.setattr(Oracle, 'start', 0)
    monkeypatch.setattr(module, 'load_weights', lambda folder: (net, configure(size=128, depth=2, stride=stride)))
    errors = measure(tmp_path, test)
    assert set(errors) == {*ablation_decoders(), 'bound'} and set(KEPT_READERS) - {'corrected'} <= set(errors)
    bound, fit = errors['bound'].mean().item(), errors['gaussian'].mean().item()
    if shift:
        assert fit > 5 * bound
    else:
        assert fit == pytest.approx(bound, rel=0.1)


@pytest.mark.slow
def test_a_failed_training_is_told_and_none_begins_late(tmp_path):
    wrong = Training('local', 0, (('merging', 'men'),))
    ((training, _, error),) = run_grid([wrong], 'tiny', tmp_path, dataset='synthetic')
    assert training == wrong and "unknown merging 'men'" in error
    assert list(run_grid([Training('local')], 'tiny', tmp_path, minutes=0, dataset='synthetic')) == []


@pytest.mark.background
@pytest.mark.slow
def test_the_job_trains_what_is_missing_and_keeps_it(tmp_path):
    "Two trainings, then a call that finds them kept and, with the runs gone, trains one more."

    def job(only: str) -> str:
        out = tmp_path / 'out.ipynb'
        words = [str(SCRIPTS / 'papermill'), 'nbs/ablation.ipynb', str(out), '--no-progress-bar']
        for name, value in dict(
            setting='tiny', dataset='synthetic', seeds=1, only=only, runs=tmp_path / 'runs', results=tmp_path / 'kept'
        ).items():
            words += ['-p', name, str(value)]
        done = subprocess.run(words, cwd=ROOT, env=ENVIRON, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-3000:]
        cells = json.loads(out.read_text())['cells']
        return ''.join(''.join(o.get('text', '')) for c in cells for o in c.get('outputs', []))

    assert (
        '2 of 12 trainings are kept' in job('[bl][ao][sc]*[el]-0') and (tmp_path / 'kept/synthetic-tiny.png').exists()
    )
    before = pd.read_csv(tmp_path / 'kept/synthetic-tiny.csv')
    subprocess.run(['rm', '-r', str(tmp_path / 'runs')], check=True)
    text = job('static-0')
    after = pd.read_csv(tmp_path / 'kept/synthetic-tiny.csv')
    assert '3 of 12 trainings are kept' in text and text.count('kept    python -m') == 2
    assert (
        set(after.training) == {'baseline-0', 'local-0', 'static-0'}
        and not (tmp_path / 'runs/synthetic-tiny/local-0').exists()
    )
    pd.testing.assert_frame_equal(after[: len(before)], before)
