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
    assert len(JOBS) == 10 and {'train', 'evaluate', 'predict', 'demo'} <= set(JOBS)


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
