"The notebooks' own checks: nbdev_test runs each lesson from top to bottom, as plain Python, without a kernel."
from conftest import ROOT, copy_project, run_tool


def test_lessons_run(tmp_path):
    "Two at a time, one thread each, on a copy, since lessons write pictures; a failure prints the cell's traceback."
    copy = copy_project(tmp_path / ROOT.name)
    shared = ROOT.parent / 'shared'
    if shared.is_dir(): (tmp_path / 'shared').symlink_to(shared)                     # lessons look for real faces there
    printed = run_tool('nbdev_test', '--file_re', r'^(\d\d[a-z]?_.*|index)\.ipynb$', '--n_workers', '2', '--do_print',
                       cwd=copy, timeout=900, OMP_NUM_THREADS='1', MPLBACKEND='agg')
    lessons = {p.name for p in (ROOT / 'nbs').glob('*.ipynb') if p.name[0].isdigit() or p.stem == 'index'}
    assert lessons and [name for name in sorted(lessons) if f'/{name}' not in printed] == [], 'these did not run'
