"""The notebooks' own checks: nbdev_test runs each lesson from top to bottom, as plain Python, without a kernel.

One test is one lesson: `pytest "tests/test_notebooks.py::test_lesson_runs[1_codec/03_decoding]"`. The runs themselves
begin before the first test (LessonRuns in conftest.py).
"""

import json
import re
from pathlib import Path

import pytest
from conftest import ROOT, LessonRuns

PAGES = ('core', 'index', 'fan', 'graph', 'launch')  # notebooks beside the jobs, which run as lessons do


def is_lesson(path: Path) -> bool:
    "Whether a notebook lies in a part, or is one of PAGES, and has code."
    if '.ipynb_checkpoints' in path.parts or not (re.match(r'\d_', path.parent.name) or path.stem in PAGES):
        return False
    cells = json.loads(path.read_text(encoding='utf-8'))['cells']
    return any(cell['cell_type'] == 'code' and ''.join(cell['source']).strip() for cell in cells)


LESSONS = sorted(
    p.relative_to(ROOT / 'nbs').with_suffix('').as_posix() for p in (ROOT / 'nbs').rglob('*.ipynb') if is_lesson(p)
)


@pytest.mark.parametrize('name', LESSONS)
def test_lesson_runs(name: str, lesson_runs: LessonRuns) -> None:
    assert f'/nbs/{name}.ipynb' in lesson_runs.result(name), 'nbdev_test did not run it'
