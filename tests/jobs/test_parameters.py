"The parameters of every job are checked before any work: names, types, and what papermill makes of numbers."

import json
from typing import Any

import pytest
from conftest import ROOT

JOBS = sorted(
    path.stem
    for path in (ROOT / 'nbs').glob('*.ipynb')
    if any('parameters' in c['metadata'].get('tags', []) for c in json.loads(path.read_text())['cells'])
)


def first_cells(job: str, **given: Any) -> dict[str, Any]:
    "The variables after a job's parameters' cell, papermill's own cell, and the cell after them."
    cells = [c for c in json.loads((ROOT / f'nbs/{job}.ipynb').read_text())['cells'] if c['cell_type'] == 'code']
    sources, space = [''.join(c['source']) for c in cells], dict[str, Any]()
    assert 'parameters' in cells[0]['metadata']['tags'] and 'job_parameters(globals())' in sources[1]
    exec(sources[0], space)
    space.update(given)
    exec(sources[1], space)
    return space


def test_all_jobs_are_here():
    assert len(JOBS) == 13 and {'train', 'evaluate', 'predict', 'demo'} <= set(JOBS)


@pytest.mark.parametrize('job', JOBS)
def test_a_misspelt_parameter_is_named_with_the_nearest(job):
    names = list(first_cells(job)['__annotations__']) if job not in ('train', 'evaluate') else ['dataset']
    name = max(names, key=len)
    with pytest.raises(ValueError, match=f"unknown parameter '{name[:-1]}x'; known: {name}"):
        first_cells(job, **{f'{name[:-1]}x': 'y'})


@pytest.mark.parametrize(
    'job, given, said',
    [
        ('predict', dict(batch='many'), "batch: expected int, got str 'many'"),
        ('predict', dict(flip='yes'), "flip: expected bool, got str 'yes'. write True or False"),
        ('evaluate', dict(base='1'), "base: expected float, got str '1'. write 0.0001"),
        ('check_data', dict(photos='no'), "photos: expected bool, got str 'no'. write True or False"),
        ('ablation', dict(seeds=1.5), 'seeds: expected int, got float 1.5'),
        ('demo', dict(tau='high'), "tau: expected float, got str 'high'"),
    ],
)
def test_a_value_of_another_type_is_named(job, given, said):
    with pytest.raises(ValueError, match=said):
        first_cells(job, **given)


def test_a_folder_whose_name_is_a_number():
    "Papermill reads `-p output 7` as a number, and the job needs text."
    space = first_cells('check_data', output=7)
    assert space['output'] == '7' and space['given']['output'] == '7'


def test_the_cell_may_be_run_again_when_later_cells_have_made_variables():
    "In JupyterLab: what later cells have made is no parameter, and a wrong type is still named."
    space = first_cells('check_data', output='found')
    space |= dict(counts=[3], where='here', output='elsewhere')
    again = 'given = job_parameters(globals())'
    exec(again, space)
    assert space['given'] == dict(dataset='folder', root=None, photos=True, output='elsewhere')
    space['photos'] = 'no'
    with pytest.raises(ValueError, match='photos: expected bool'):
        exec(again, space)


def test_evaluate_scores_predictions_without_a_photo(tmp_path, monkeypatch, capsys):
    "The job's cells in this process: annotations alone, face-alignment's mapping as JSON, one face that it missed."
    import matplotlib.pyplot as plt
    import numpy as np
    import pandas as pd

    rng, found, expected = np.random.default_rng(0), {}, []
    (tmp_path / 'faces/test').mkdir(parents=True)
    (tmp_path / 'faces/train').mkdir()
    for i in range(5):
        points = rng.uniform(40, 160, (68, 2)).round(3)
        (tmp_path / f'faces/test/{i}.pts').write_text('\n'.join(f'{x} {y}' for x, y in points + 1))
        found[f'{i}.jpg'] = [(points + [2, 0]).tolist()] if i else None
        expected.append(200 / np.linalg.norm(points[36] - points[45]))
    (tmp_path / 'fan.json').write_text(json.dumps(found))
    space: dict[str, Any] = dict(display=lambda shown: None)
    monkeypatch.setattr('matplotlib_inline.backend_inline.set_matplotlib_formats', lambda *kinds: None)
    for cell in json.loads((ROOT / 'nbs/evaluate.ipynb').read_text())['cells']:
        if cell['cell_type'] == 'code':
            exec(''.join(cell['source']), space)
            if 'parameters' in cell['metadata'].get('tags', []):
                space |= dict(predictions=str(tmp_path / 'fan.json'), dataset='folder', root=str(tmp_path / 'faces'))
                space |= dict(output=str(tmp_path / 'scored'), on_error='skip')
    plt.close('all')
    table = pd.read_csv(tmp_path / 'scored/results.csv')
    assert table.decoder.tolist() == ['fan'] and table.faces[0] == 4
    assert table['NME_ic %'][0] == pytest.approx(np.mean(expected[1:]), rel=1e-4)
    said = capsys.readouterr().out
    assert 'points of fan.json, by a system whose crop is not known here' in said and 'no pictures of the faces' in said
