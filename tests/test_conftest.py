"What conftest.py does for every test: seeds, markers, and the order in which the lessons' tests come."

import json
import re
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
from conftest import ROOT, SCRIPTS, LessonRuns, run_tool
from nbformat.v4 import new_code_cell, new_notebook

DRAWS = """
import random
import numpy as np
import pytest
import torch

def numbers():
    return [random.random(), np.random.rand(), torch.rand(()).item()]

@pytest.fixture(scope='module')
def shared():
    return numbers()

def test_one(shared):
    assert not print('one', shared, numbers()), numbers()

def test_two(shared):
    assert print('two', shared, numbers()), 'fails'
"""


def run(*words: str, cwd: Path, ci: str = '') -> str:
    "What pytest prints in the folder `cwd` with this project's conftest.py as a plugin."
    env = {
        'PYTHONPATH': f'{ROOT}:{ROOT / "tests"}:{ROOT / "tests/jobs"}',
        'PATH': str(SCRIPTS),
        'CI': ci,
        'HOME': str(cwd),
    }
    command = [sys.executable, '-m', 'pytest', '-p', 'no:cacheprovider', '-p', 'conftest', '-s', *words]
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=120).stdout


@pytest.mark.background
@pytest.mark.slow
def test_a_failure_shows_its_seed_and_the_seed_repeats_it(tmp_path):
    "Alone or after another test, with the seed of the failure a test and its fixture draw the same numbers."
    (tmp_path / 'test_draws.py').write_text(DRAWS)
    first = run(cwd=tmp_path)
    seed = re.search(r'the same again: pytest --seed (\d+) test_draws.py::test_two', first)[1]
    assert f'random numbers: --seed {seed}' in first and first.count('the same again') == 1
    drawn = re.search(r'^.*two (\[.*\])', first, re.M)[1]
    assert drawn in run('--seed', seed, 'test_draws.py::test_two', cwd=tmp_path)
    fixed = run(cwd=tmp_path, ci='true')
    assert 'random numbers: --seed 0\n' in fixed and drawn not in fixed


COLLECT = """
import json, sys
import pytest

class Report:
    def pytest_collection_finish(self, session):
        marked = [[item.nodeid, [m.name for m in item.iter_markers()]] for item in session.items]
        open(sys.argv[1], 'w').write(json.dumps(marked))

pytest.main(['--collect-only', '-q', '-p', 'no:cacheprovider'], plugins=[Report()])
"""


@pytest.fixture(scope='module')
def marked(tmp_path_factory) -> dict[str, set[str]]:
    "The markers of every test of the suite, in the order in which pytest would run them."
    out = tmp_path_factory.mktemp('collected') / 'tests.json'
    done = subprocess.run([sys.executable, '-c', COLLECT, out], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert out.exists(), done.stdout + done.stderr
    return {name: set(markers) for name, markers in json.loads(out.read_text())}


def select(marked: dict[str, set[str]], marker: str) -> list[str]:
    return [name for name, markers in marked.items() if marker in markers]


@pytest.mark.slow
def test_the_quick_part_is_large_and_holds_no_job_lesson_or_browser(marked):
    quick = [name for name in marked if 'slow' not in marked[name]]
    assert len(quick) >= 1000
    assert [name for name in quick if name.startswith(('tests/jobs/', 'tests/test_notebooks.py'))] == []
    assert select(marked, 'browser') and set(select(marked, 'browser')) <= set(select(marked, 'slow'))


@pytest.mark.slow
def test_users_of_the_real_data_are_marked(marked):
    data = select(marked, 'data')
    assert len(data) >= 10 and 'tests/data/test_checks.py::test_real_counts' in data
    assert len(data) < len(marked) / 20


@pytest.mark.slow
def test_lessons_come_last(marked):
    "They run beside the other tests meanwhile."
    lessons = ['test_lesson_runs[' in name for name in marked]
    assert any(lessons) and lessons == sorted(lessons)
    assert 'tests/test_notebooks.py::test_lesson_runs[1_codec/01_geometry]' in marked


@pytest.fixture
def two_lessons(tmp_path) -> Iterator[LessonRuns]:
    "Runs of a notebook that passes and of one that fails, in a project of these two."
    (tmp_path / 'nbs').mkdir()
    shutil.copy(ROOT / 'settings.ini', tmp_path)
    kernel = dict(display_name='python3', language='python', name='python3')
    for name, source in (('good', 'x = 1\nassert x'), ('bad', '#| export\nx = 1\nassert x == 2, "not two"')):
        cells = [new_code_cell('import os'), new_code_cell(source)]
        nbformat.write(new_notebook(cells=cells, metadata=dict(kernelspec=kernel)), tmp_path / f'nbs/{name}.ipynb')
    runs = type('SmallRuns', (LessonRuns,), {'project': tmp_path})(tmp_path, ['good', 'bad'])
    yield runs
    runs.stop()


@pytest.mark.slow
def test_a_lesson_that_fails_shows_its_cell_and_the_others_pass(two_lessons):
    with pytest.raises(pytest.fail.Exception, match=r'(?s)bad\.ipynb.*Cell #2.*not two'):
        two_lessons.result('bad')
    assert '/nbs/good.ipynb' in two_lessons.result('good')


@pytest.mark.slow
def test_lessons_begin_before_they_are_waited_for(two_lessons):
    "One alone, until a test waits; then two at a time."
    assert two_lessons.runs['good'].result(timeout=60) and not two_lessons.waited_for
    with pytest.raises(pytest.fail.Exception):
        two_lessons.result('bad')
    assert two_lessons.waited_for


@pytest.mark.background
@pytest.mark.slow
def test_a_test_in_the_background(tmp_path):
    "One runs while another test does; a failure there is a failure here; what has not begun is run by pytest itself."
    tests = """
        import threading, time
        import pytest
        begun, main = threading.Event(), threading.main_thread()

        def test_beside():
            assert begun.wait(60)

        @pytest.mark.background
        def test_taken_back():
            assert threading.current_thread() is main

        @pytest.mark.background
        @pytest.mark.parametrize('n', [3])
        def test_of_the_background(n, tmp_path):
            begun.set()
            time.sleep(2)
            assert threading.current_thread() is not main and tmp_path.is_dir() and n == 3, 'another thread'
            assert n == 4, 'told'
        """
    (tmp_path / 'test_some.py').write_text(textwrap.dedent(tests))
    said = run('-q', cwd=tmp_path)
    assert '1 failed, 2 passed' in said and 'AssertionError: told' in said, said


def test_an_end_of_some_runs_leaves_the_others(tmp_path):
    "The end of one object's runs does not kill a tool that another one has started."
    tool = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'], start_new_session=True)
    mine, theirs = (LessonRuns(tmp_path, []) for _ in range(2))
    theirs.running.add(tool)
    try:
        mine.stop()
        assert tool.poll() is None
        theirs.stop()
        assert tool.wait(10) != 0
    finally:
        tool.kill()


def test_a_tool_that_takes_too_long_is_ended_with_what_it_started(tmp_path):
    child = '[sys.executable, "-c", "import time; time.sleep(60)"]'
    script = f'import subprocess, sys; print("begun", flush=True); subprocess.run({child})'
    with pytest.raises(pytest.fail.Exception, match=r'(?s)was not done after 1 s.*begun'):
        run_tool('python', '-c', script, cwd=tmp_path, timeout=1)
