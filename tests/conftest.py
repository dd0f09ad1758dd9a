"What every test shares: the project's folder, the real data where there is any, and how torch and hypothesis run."
import os
import shutil
import signal
import subprocess
import sysconfig
from pathlib import Path

import hypothesis
import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = Path(sysconfig.get_path('scripts'))   # where this environment's nbdev_export, papermill, ... are

torch.set_num_threads(min(2, os.cpu_count() or 1))                               # small tensors gain nothing from more
hypothesis.settings.register_profile('project', deadline=None, derandomize=bool(os.environ.get('CI')), print_blob=True)
hypothesis.settings.load_profile('project')


def project_files(*kinds: str) -> list[str]:
    "Paths, relative to the project, of what git tracks or would track (not what .gitignore names), or of `kinds` only."
    kinds = kinds or ('--cached', '--others')
    listed = subprocess.run(['git', 'ls-files', '-z', *kinds, '--exclude-standard'],
                            cwd=ROOT, capture_output=True, text=True)
    if listed.returncode: pytest.skip(f'needs a git checkout with git installed: {listed.stderr.strip()}')
    return sorted(f for f in set(listed.stdout.split('\0')) if f and (ROOT / f).is_file())


def copy_project(folder: Path) -> Path:
    "Copy the project's files to `folder`, so that a tool may write there."
    for f in project_files():
        (folder / f).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / f, folder / f)
    return folder


def run_tool(*command: str, cwd: Path, timeout: float = 120, **env: str) -> str:
    "What a command-line tool of this environment prints; fails with all of it if the tool fails."
    env = {k: v for k, v in os.environ.items() if k != 'IN_TEST'} | env
    tool = subprocess.Popen([SCRIPTS / command[0], *command[1:]], cwd=cwd, env=env, text=True, encoding='utf-8',
                            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                            start_new_session=True)
    try: printed, end = tool.communicate(timeout=timeout)[0], f'exited {tool.returncode}'
    except subprocess.TimeoutExpired:
        os.killpg(tool.pid, signal.SIGKILL)                                          # with the workers that it started
        printed, end = tool.communicate()[0], f'was not done after {timeout:g} s'
    if tool.returncode: pytest.fail(f'{" ".join(command)} {end}:\n{printed[-6000:]}', pytrace=False)
    return printed


@pytest.fixture(scope='session')
def root() -> Path:
    "The project's folder."
    return ROOT


@pytest.fixture(scope='session')
def shared_data() -> Path:
    "The folder of real faces and annotations that lies beside the checkout, or a skip that says what was looked for."
    folder = ROOT.parent / 'shared' / 'data'
    if not folder.is_dir(): pytest.skip('no ../shared/data beside the checkout: tests on real faces are left out')
    return folder
