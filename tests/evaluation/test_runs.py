"Runs of a folder, read and compared: subpixel_nb.evaluation.runs and .watch. The runs are made up, nothing is trained."

import fcntl
import io
import json
import shutil
import time

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

mpl.use('Agg')
import matplotlib.pyplot as plt

from subpixel_nb.data.crops import load_faces
from subpixel_nb.data.datasets import DataError, find_dataset
from subpixel_nb.data.metrics import bootstrap
from subpixel_nb.evaluation.evaluation import results_table, save_results
from subpixel_nb.evaluation.runs import (
    curves,
    describe_difference,
    differences,
    differing_settings,
    error_curves,
    find_runs,
    most_different,
    part_errors,
    read_answers,
    read_run,
    runs_table,
)
from subpixel_nb.evaluation.watch import (
    PICTURES,
    VIEWS,
    RunsPage,
    as_csv,
    as_markdown,
    draw_compared,
    measures,
    plot_compared,
    plot_different_faces,
)


@pytest.fixture(scope='module')
def faces():
    return load_faces('synthetic', 'test', size=64, limit=30)


def made_up(folder, done: int = 3, landmarks: int = 68, noise: float = 1.0, **settings):
    "A run's folder with a log of some epochs, and answers that miss the truth of 20 faces by noise."
    folder.mkdir(parents=True, exist_ok=True)
    about = dict(dict(method='local', epochs=5, faces='0' * 16, format=2), **settings)
    (folder / 'config.json').write_text(json.dumps(about))
    rows = [dict(epoch=i, loss=6 / i, lr=1e-3, nme=dict(argmax=9.0 / i, local=8.0 / i)) for i in range(1, done + 1)]
    times = [dict(epoch=i, seconds=30.0, views_per_s=10.0, seconds_left=60.0) for i in range(1, done + 1)]
    for name, lines in (('metrics', rows), ('times', times)):
        (folder / f'{name}.jsonl').write_text(''.join(json.dumps(line) + '\n' for line in lines))
    truth = np.random.default_rng(landmarks).uniform(50, 150, (20, landmarks, 2))
    points = truth + np.random.default_rng(int(noise * 100)).normal(0, noise, truth.shape)
    names = [f'{i}.png' for i in range(20)]
    arrays = dict(names=names, truth=truth, visible=np.ones((20, landmarks), bool), points_local=points)
    np.savez(folder / 'predictions.npz', **arrays)
    return folder


# What a run is


def test_states(tmp_path):
    "Running while a process holds the lock, finished with a network, stopped otherwise; each file is only looked at."
    made_up(tmp_path / 'stopped')
    (made_up(tmp_path / 'finished') / 'weights.safetensors').touch()
    (made_up(tmp_path / 'deep/er/running') / '.lock').touch()
    (tmp_path / 'notes').mkdir()
    (tmp_path / '.hidden').mkdir()
    with open(tmp_path / 'deep/er/running/.lock') as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        runs = {run.name: run for run in find_runs(tmp_path)}
    states = {name: run.state for name, run in runs.items()}
    assert states == dict(stopped='stopped', finished='finished', notes='no run') | {'deep/er/running': 'running'}
    table = runs_table([*runs.values()]).set_index('run')
    assert table.loc['deep/er/running', 'left'] == '60 s' and table.loc['stopped', 'left'] == ''
    assert table.loc['stopped', 'epochs'] == '3 of 5' and table.loc['stopped', 'trained'] == '90 s'
    assert table.loc['stopped', 'nme'] == pytest.approx(8 / 3) and table.loc['stopped', 'decoder'] == 'local'
    assert find_runs(tmp_path / 'stopped')[0].name == 'stopped'  # a run's own folder is a folder of one run
    assert find_runs(tmp_path / 'nowhere') == []


@pytest.mark.parametrize(
    'name, content, why',
    [
        ('config.json', '{"method": "lo', 'not readable'),
        ('config.json', '[1, 2]', 'not the config of a run'),
        ('config.json', '{"name": "a web page"}', 'config.json is not that of a run'),
        ('config.json', '\udcff', 'config.json'),
        ('config.json', None, 'config.json is missing'),
        ('state.safetensors', 'half', 'not a readable safetensors file'),
    ],
)
def test_half_written_files_make_a_broken_run(tmp_path, name, content, why):
    path = made_up(tmp_path / 'run') / name
    if content is None:
        path.unlink()
    else:
        path.write_text(content, errors='surrogateescape')
    run = read_run(tmp_path / 'run')
    assert run.state == 'broken' and why in run.why and str(tmp_path) not in run.why
    assert runs_table([run]).why[0] == run.why
    assert describe_difference(run, run).startswith('run cannot be compared')


@settings(max_examples=20)
@given(text=st.text())
def test_a_log_of_anything_is_read(tmp_path_factory, text):
    "Lines that are no lines of an epoch are left out, whatever they are."
    folder = made_up(tmp_path_factory.mktemp('log') / 'run', done=2)
    for name in ('metrics', 'times', 'run'):
        with open(folder / f'{name}.jsonl', 'a', encoding='utf-8', errors='replace') as file:
            file.write(
                '7\n[]\n{"loss": 1}\n{"epoch": "x"}\n{"epoch": 9, "seconds": "x", "nme": {"local": [], "dark": 1}}\n'
                + text
            )
    (folder / 'run.json').write_text('{"starts": "yesterday", "config": []}')
    run = read_run(folder)
    assert run.state == 'stopped' and [row['epoch'] for row in run.rows[:2]] == [1, 2]
    assert len(curves([run], 'loss').table) == 2 and run.seconds == 60 and run.error() == (1, 'dark')
    assert len(runs_table([run])) == 1


def test_a_folder_that_vanishes_while_it_is_read(tmp_path):
    run = read_run(made_up(tmp_path / 'run'))
    shutil.rmtree(tmp_path / 'run')
    assert read_run(tmp_path / 'run').state == 'broken'
    with pytest.raises(DataError, match='no predictions yet'):
        read_answers(run)
    assert 'no predictions yet' in differences([run], 'local').notes[0]


# How runs differ


def test_only_what_differs_is_shown(tmp_path):
    one, other = (read_run(made_up(tmp_path / n, **s)) for n, s in (('a', {}), ('b', dict(sigma=2.0, epochs=9))))
    assert differing_settings([one, other]) == ['sigma', 'epochs'] and differing_settings([one]) == []
    assert describe_difference(other, one) == 'b has sigma 2.0 instead of 1.5, epochs 9 instead of 5 (a)'
    assert describe_difference(one, one) == 'a has the settings of a'
    table = runs_table([one, other])
    assert (
        table.columns.is_unique and table.sigma.tolist() == [1.5, 2.0] and table.epochs.tolist() == ['3 of 5', '3 of 9']
    )


def test_a_record_tells_the_settings_that_do_not_change_what_is_learnt(tmp_path):
    folder = made_up(tmp_path / 'a')
    starts = [dict(machine='an old one'), dict(machine='a GPU')]
    record = dict(command='python -m x', config=dict(test_on='cofw', batch=8), starts=starts)
    (folder / 'run.json').write_text(json.dumps(record))
    run = read_run(folder)
    assert run.settings['test_on'] == 'cofw' and run.settings['method'] == 'local' and run.machine == 'a GPU'


def test_errors_are_those_of_the_library(faces, tmp_path):
    "NME, region, pose and landmark from the kept file, against results_table; a curve ends at all faces."
    folder, dataset = made_up(tmp_path / 'run'), find_dataset('synthetic')
    found = {'local': faces.points + torch.randn(faces.points.shape)}
    table = results_table(found, faces, dataset)
    save_results(folder, found, torch.ones(30, 68), faces, table)
    run = read_run(folder)
    assert read_answers(run).errors('local').mean().item() == pytest.approx(table['NME_ic %'][0], rel=1e-5)
    shown = error_curves([run], 'local')
    assert len(shown.table) == 30 and shown.table.faces.iloc[-1] == 100 and shown.table.NME.is_monotonic_increasing
    assert set(part_errors([run], 'local', 'region').table.region) == set(faces.scheme.regions)
    assert len(part_errors([run], 'local', 'landmark').table) == 68
    assert '|yaw| 0-30' in set(part_errors([run], 'local', 'pose').table.pose)
    assert '30 test faces, 68 landmarks, crop "paper"' in shown.protocol and 'NME_ic' in shown.protocol
    with pytest.raises(ValueError, match='unknown part'):
        part_errors([run], 'local', 'nose')


def test_differences_are_paired(tmp_path):
    "The interval is the paired bootstrap of lesson 2.4, from the first run; the files are those of now."
    runs = [read_run(made_up(tmp_path / name, noise=noise)) for name, noise in (('a', 3.0), ('b', 2.0))]
    table = differences(runs, 'local').table.set_index('run')
    errors = [read_answers(run).errors('local') for run in runs]
    assert table.loc['b', ['difference', 'low', 'high']].tolist() == pytest.approx(
        [*bootstrap(errors[1], other=errors[0])]
    )
    assert np.isnan(table.loc['a', 'difference']) and table.loc['b', 'high'] < 0
    gap = (errors[1] - errors[0]).abs()
    assert most_different(runs[1], runs[0], 'local', 3) == gap.topk(3).indices.tolist()
    made_up(tmp_path / 'b', noise=3.0)
    again = differences([runs[0], read_run(tmp_path / 'b')], 'local').table.set_index('run')
    assert again.loc['b', 'difference'] != table.loc['b', 'difference']


def test_a_difference_is_drawn_beside_the_name_of_its_run(tmp_path):
    "On an axis of names, on the page and in the still: plotly puts names on no place of a linear axis."
    runs = [read_run(made_up(tmp_path / 'a')), read_run(made_up(tmp_path / 'b', noise=2.0))]
    shown = differences(runs, 'local')
    figure, still = draw_compared(shown), plot_compared(shown)
    assert figure.layout.yaxis.type == 'category' and list(figure.data[0].y) == ['b']
    still.canvas.draw()
    assert [label.get_text() for label in still.axes[0].get_yticklabels()] == ['b']
    assert still.axes[0].lines[0].get_xdata() == pytest.approx(shown.table.difference[1:])
    plt.close('all')


def test_what_cannot_be_compared_is_left_out_and_told(tmp_path):
    runs = [read_run(made_up(tmp_path / 'a')), read_run(made_up(tmp_path / 'b', landmarks=98))]
    bad = made_up(tmp_path / 'c') / 'predictions.npz'
    bad.write_bytes(bad.read_bytes()[:500])
    (made_up(tmp_path / 'd') / 'predictions.npz').unlink()
    moved = made_up(tmp_path / 'e') / 'predictions.npz'
    arrays = dict(np.load(moved))
    np.savez(moved, **arrays | dict(truth=arrays['truth'] + 1))
    runs += [read_run(tmp_path / name) for name in 'cde']
    shown = differences(runs, 'local')
    assert shown.table.run.tolist() == ['a']
    for note, why in zip(
        shown.notes, ('98 landmarks, not 68', 'damaged', 'no predictions yet', 'other true points'), strict=True
    ):
        assert why in note, note
    assert part_errors(runs, 'local', 'region').table.run.unique().tolist() == ['a', 'b', 'e']
    assert 'no points by the decoder dark' in differences(runs[:1], 'dark').notes[0]
    with pytest.raises(ValueError, match='cannot be compared face by face: 98 landmarks'):
        most_different(runs[1], runs[0], 'local')


# The page


def test_every_view_is_drawn_and_exported_with_its_protocol(tmp_path):
    runs = [read_run(made_up(tmp_path / 'a')), read_run(made_up(tmp_path / 'b', noise=2.0))]
    for name, view in VIEWS.items():
        for chosen in (runs, runs[:1], []):
            shown = view(chosen, measures(name, chosen)[0])
            assert len(draw_compared(shown).data) in (0, 1, len(chosen)), name
            if chosen != runs[:1]:
                assert plot_compared(shown).texts[0].get_text() == shown.protocol
                plt.close('all')
            text = as_csv(shown)
            assert text.startswith(f'# {shown.protocol}\n')
            assert len(pd.read_csv(io.StringIO(text), comment='#')) == len(shown.table)
            assert as_markdown(shown).count('\n|') >= 1
    assert measures('curves', runs) == ['loss', 'lr', 'argmax', 'local'] and measures('by pose', runs) == ['local']


def test_a_page_follows_its_folder(tmp_path):
    "A run begins, grows, and vanishes; a run that does not fit is told. Nothing raises, and the sentence says what is."
    page = RunsPage(tmp_path / 'runs', exports=tmp_path / 'out')
    assert 'there is no such folder' in page.readout.summary and page.chosen == []
    (tmp_path / 'runs/a').mkdir(parents=True)
    page.look()
    assert page.chosen == [] and page.runs[0].state == 'no run'  # its files are still to be written
    made_up(tmp_path / 'runs/a')
    page.look()
    assert [run.name for run in page.chosen] == ['a'] and page.shown.table.epoch.tolist() == [1, 2, 3]
    before = page.stage.children
    page.look()
    assert page.stage.children == before, 'nothing has changed, and the figure is drawn anew'
    made_up(tmp_path / 'runs/a', done=4)
    made_up(tmp_path / 'runs/b', landmarks=98, method='siamese')
    page.look()
    assert page.shown.table.groupby('run').size().to_dict() == dict(a=4, b=3)
    assert 'b has method siamese instead of local (a)' in page.readout.summary
    page.controls['view'].value = 'differences'
    assert 'b is left out: 98 landmarks, not 68' in page.readout.summary
    page.controls['first'].value = 'b'
    assert [run.name for run in page.chosen] == ['b', 'a'] and 'a is left out: 68 landmarks' in page.readout.summary
    shutil.rmtree(tmp_path / 'runs/b')
    page._react(page.look)()  # as a tick does
    assert [run.name for run in page.chosen] == ['a'] and page.shown.table.run.tolist() == ['a']
    page.controls['folder'].value = str(tmp_path / 'elsewhere')
    assert 'No runs in' in page.readout.summary


def test_names_are_text_and_not_html(tmp_path):
    "Neither HTML, nor plotly's tags, nor matplotlib's formulas."
    made_up(tmp_path / '<b onclick=x>&')
    made_up(tmp_path / r'$\x$')
    page = RunsPage(tmp_path)
    assert '&lt;b onclick=x&gt;' in page.chart.figure and '<b onclick' not in page.chart.figure
    for view in ('curves', 'by region', 'differences'):
        plot_compared(VIEWS[view](page.runs, 'local')).canvas.draw()
        plt.close('all')
    assert '&lt;b onclick=x&gt;&amp;' in page.readout.table and '<b onclick' not in page.readout.table


def test_exports_of_a_page(faces, tmp_path, monkeypatch):
    monkeypatch.setattr('subpixel_nb.evaluation.watch._kept_faces', lambda config: faces)
    made_up(tmp_path / 'runs/a')
    made_up(tmp_path / 'runs/deep/b', noise=2.0)
    page = RunsPage(tmp_path / 'runs', exports=tmp_path / 'out')
    page.controls['view'].value = 'differences'
    paths = [page.export(kind) for kind in ('CSV', 'PNG', 'Markdown')]
    assert [p.suffix for p in paths] == ['.csv', '.png', '.md'] and all(p.parent == tmp_path / 'out' for p in paths)
    assert 'bootstrap in pairs' in paths[0].read_text() and paths[1].read_bytes().startswith(b'\x89PNG')
    page.controls['PNG'].click()
    assert page.readout.summary == f'Written: {paths[1]}'
    page.controls['view'].value = PICTURES  # these runs are of faces that no dataset has
    page.controls['CSV'].click()
    assert 'export them as PNG' in page.readout.summary


def test_the_faces_that_differ_most_stand_side_by_side(faces, tmp_path, monkeypatch):
    "One row per run, the same faces in both, the errors in the titles; a sentence where the dataset's faces changed."
    dataset = find_dataset('synthetic')
    for name, noise in (('a', 1.0), ('b', 2.0)):
        found = {'local': faces.points + noise * torch.randn(faces.points.shape)}
        folder = made_up(tmp_path / name, dataset='synthetic', size=64)
        save_results(folder, found, torch.ones(30, 68), faces, results_table(found, faces, dataset))
    runs = [read_run(tmp_path / name) for name in 'ab']
    monkeypatch.setattr('subpixel_nb.evaluation.watch._kept_faces', lambda config: faces)
    fig = plot_different_faces(runs[1], runs[0], 'local', 3)
    fig.canvas.draw()
    heights = [(ax.title.get_window_extent().y1, ax.get_window_extent().y0) for ax in fig.axes]
    assert heights[0][0] <= fig.bbox.y1 and heights[3][0] <= heights[0][1], 'a title is cut, or lies on a picture'
    titles = [ax.get_title() for ax in fig.axes]
    assert [title[0] for title in titles] == ['a'] * 3 + ['b'] * 3
    pick = most_different(runs[1], runs[0], 'local', 1)[0]
    assert titles[0] == f'a: {read_answers(runs[0]).errors("local")[pick]:.2f} %'
    monkeypatch.setattr('subpixel_nb.evaluation.watch._kept_faces', lambda config: faces[:10])
    with pytest.raises(ValueError, match='other ones now than those that it was measured on'):
        plot_different_faces(runs[1], runs[0], 'local')
    plt.close('all')


def test_twenty_runs_answer_soon(tmp_path):
    "A step of any control with twenty runs of 50 epochs; generous, since a test machine is busy."
    for i in range(20):
        made_up(tmp_path / f'{i:02d}', done=50, seed=i, noise=1 + i / 20)
    page = RunsPage(tmp_path)
    page.controls['runs'].value = tuple(run.name for run in page.runs)
    took = []
    for name, value in (
        ('view', 'error curve'),
        ('view', 'by region'),
        ('first', '07'),
        ('view', 'curves'),
        ('measure', 'lr'),
    ):
        began = time.perf_counter()
        page.controls[name].value = value
        took.append(time.perf_counter() - began)
    assert sorted(took)[len(took) // 2] < 1.0, took
