"One process or many, from a shell or a notebook: subpixel_nb.launch. Each run is a process of its own, as a user's is."

import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import torch
from conftest import ENVIRON, ROOT, SCRIPTS
from safetensors.torch import load_file

from subpixel_nb.training.checkpoints import read_metrics
from subpixel_nb.training.launch import free_port, launch, read_parameters, train_from_shell
from subpixel_nb.training.recipe import configure

SMALL = dict(dataset='synthetic', width=8, stacks=1, size=64, depth=2, batch=8, limit=48, lr=3e-3, precision='float32')


def words(**parameters) -> list[str]:
    return [w for name, value in parameters.items() for w in ('-p', name, str(value))]


def start(*command: object) -> subprocess.Popen:
    "A command in a session of its own, what it says on both channels in one."
    return subprocess.Popen(
        [*map(str, command)],
        cwd=ROOT,
        env=ENVIRON,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def ended(job: subprocess.Popen, timeout: float = 900) -> tuple[int, str]:
    "Exit status and what was said; whatever is left of the job after `timeout` seconds is killed, and the test fails."
    try:
        said = job.communicate(timeout=timeout)[0]
    finally:
        try:
            os.killpg(job.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
    return job.returncode, said


def script(text: str, *args: object, timeout: float = 900) -> tuple[int, str]:
    "Runs a script that begins with what all of them need: small faces, and a config that it may change."
    begin = f"""
        import json, os, signal, sys, time
        import torch
        import subpixel_nb.training.launch as launching
        import subpixel_nb.training.loop as training
        from subpixel_nb.data.crops import load_faces
        from subpixel_nb.training.recipe import configure
        faces = load_faces('synthetic', 'train', size=64, limit=48)
        test = load_faces('synthetic', 'test', size=64, limit=9)
        def config(**changes): return configure(**{SMALL!r} | changes)
        """
    return ended(start(sys.executable, '-c', textwrap.dedent(begin) + textwrap.dedent(text), *args), timeout)


def wait_for(job: subprocess.Popen, done, seconds: float = 900) -> None:
    deadline = time.monotonic() + seconds
    while not done():
        assert job.poll() is None, f'the job ended early: {job.communicate()[0]}'
        assert time.monotonic() < deadline, 'the job did not get as far'
        time.sleep(0.05)


def same_run(a: Path, b: Path) -> None:
    "Two runs are one to the bit: weights, optimiser, position, metrics."
    for name in ('state', 'weights'):
        one, other = (load_file(f / f'{name}.safetensors') for f in (a, b))
        assert one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)
    assert (a / 'metrics.jsonl').read_bytes() == (b / 'metrics.jsonl').read_bytes()


# Words


def test_parameters_are_read_as_papermill_reads_them():
    from papermill.cli import _resolve_type

    pairs = dict(
        a='1',
        b='-2',
        c='1e-4',
        d='0.5',
        e='True',
        f='False',
        g='None',
        h='wflw',
        i='false',
        j='runs/1',
        k='',
        l='1_000',
        m='inf',
    )
    read = read_parameters([w for name, text in pairs.items() for w in ('-p', name, text)])
    assert read == {name: _resolve_type(text) for name, text in pairs.items()}
    assert [type(v) for v in read.values()][:8] == [int, int, float, float, bool, bool, type(None), str]
    assert read_parameters([]) == {}


@pytest.mark.parametrize('wrong', [['-p', 'width'], ['--width', '3'], ['width', '3']])
def test_words_that_are_no_parameters(wrong, capsys):
    with pytest.raises(SystemExit) as end:
        read_parameters(wrong)
    assert end.value.code == 2 and 'python -m subpixel_nb.launch' in capsys.readouterr().err


@pytest.mark.background
@pytest.mark.slow
def test_a_wrong_parameter_ends_the_command():
    status, said = ended(start(sys.executable, '-m', 'subpixel_nb.launch', *words(widht=3)))
    assert status == 1 and "unknown parameter 'widht'; known: width" in said


def test_a_dry_run_says_what_a_run_takes_and_leaves_no_folder(tmp_path, capsys):
    train_from_shell(['--dry-run', *words(**SMALL, output=tmp_path / 'run')])
    said = capsys.readouterr().out
    for line in (
        r'width +8',
        r'faces +48 to train on, \d+ to test on',
        'steps +6 of 8 faces',
        'time +about',
        r'disk +\d+ MB',
    ):
        assert re.search(line, said), line
    assert not (tmp_path / 'run').exists()


def test_ports_are_free():
    import socket

    with socket.socket() as s:
        s.bind(('127.0.0.1', int(free_port())))


def test_processes_and_gpus_must_agree(monkeypatch):
    config = configure(**SMALL, processes=4)
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 2)
    with pytest.raises(ValueError, match='processes: 4 asked for, this machine has 2 GPUs'):
        launch(config, None, None)
    monkeypatch.setattr(torch.cuda, 'is_initialized', lambda: True)
    with pytest.raises(RuntimeError, match='restart its kernel'):
        launch(config, None, None)


# SIGTERM


@pytest.mark.background
@pytest.mark.slow
def test_sigterm_to_the_command_saves_and_the_same_command_finishes(tmp_path):
    def command(name):
        return (
            sys.executable,
            '-m',
            'subpixel_nb.launch',
            *words(**SMALL, epochs=6, test_every=3, output=tmp_path / name),
        )

    job = start(*command('stopped'))
    wait_for(job, lambda: (tmp_path / 'stopped/times.jsonl').exists())
    job.terminate()
    status, said = ended(job)
    assert status == 143
    found = re.search(
        r'SIGTERM: stopped in epoch (\d+) after step (\d); the state is kept in (\S+), and the same command goes on',
        said,
    )
    assert found and found[3] == str(tmp_path / 'stopped') and not (tmp_path / 'stopped/weights.safetensors').exists()
    jobs = [start(*command(name)) for name in ('stopped', 'whole')]
    assert [ended(job)[0] for job in jobs] == [0, 0]
    same_run(tmp_path / 'stopped', tmp_path / 'whole')
    resumed = [(r['epoch'], r['from_step']) for r in read_metrics(tmp_path / 'stopped', 'times')]
    assert (int(found[1]), int(found[2])) in resumed or found[2] == '6'  # 6: it was looking at the test faces


@pytest.mark.background
@pytest.mark.slow
def test_sigterm_to_torchrun_stops_both_after_the_same_step(tmp_path):
    """The launcher hands it to both processes; they vote, the first writes, and the same command finishes the run.

    To the bit it is the run that the other launcher makes, not stopped, of two processes forked from one."""
    run = words(**SMALL, epochs=5, test_every=5)
    torchrun = (
        SCRIPTS / 'torchrun',
        '--standalone',
        '--nproc_per_node=2',
        '-m',
        'subpixel_nb.launch',
        *run,
        *words(output=tmp_path / 'stopped'),
    )
    job = start(*torchrun)
    wait_for(job, lambda: (tmp_path / 'stopped/times.jsonl').exists())
    job.terminate()
    status, said = ended(job)
    assert (
        status
        and said.count('SIGTERM: stopped in epoch') == 1
        and not (tmp_path / 'stopped/weights.safetensors').exists()
    )
    whole = sys.executable, '-m', 'subpixel_nb.launch', *run, *words(output=tmp_path / 'whole', processes=2)
    for command in (torchrun, whole):
        status, printed = ended(start(*command))
        assert status == 0, printed
    same_run(tmp_path / 'stopped', tmp_path / 'whole')
    assert any(r['from_step'] for r in read_metrics(tmp_path / 'stopped', 'times')) or 'after step 6' in said


# Two processes are one run

DOUBLE = """
    honest = training.build_network
    def double(*args):                    # float32 alone would differ by its rounding, which Adam makes large
        net = honest(*args).double()
        plain = net.forward
        net.forward = lambda images: plain(images.double())
        return net
    training.build_network = double
    faces.visible = torch.rand(48, 68, generator=torch.Generator().manual_seed(0)) > 0.3
    faces.visible[:9] &= torch.arange(68) < 3         # a share of a batch may hold a few of the landmarks
    """


@pytest.mark.background
@pytest.mark.slow
def test_two_processes_are_the_run_of_one(tmp_path):
    """The same batches, half to each, masked landmarks, batch statistics over all: weights after 12 steps of Adam,
    losses and the errors of 9 test faces (5 and 4) agree. The files are written by the first process alone, each as
    often as by a single one."""
    status, said = script(
        textwrap.dedent(DOUBLE)
        + """
out, replaced = sys.argv[1], os.replace
def told(a, b):
    print(f'wrote {os.environ.get("RANK", "alone")} {b}', flush=True)
    replaced(a, b)
os.replace = told
for method in ('local', 'siamese'):
    for n in (2, 1):
        run = config(method=method, epochs=2, test_every=1, processes=n, output=f'{out}/{method}{n}')
        launching.launch(run, faces, test)
""",
        tmp_path,
    )
    assert status == 0, said
    for method in ('local', 'siamese'):
        one, two = (load_file(tmp_path / f'{method}{n}/weights.safetensors') for n in (1, 2))
        assert one.keys() == two.keys()
        for name in one:
            assert torch.allclose(one[name], two[name], rtol=1e-6, atol=1e-7), name
        for a, b in zip(read_metrics(tmp_path / f'{method}1'), read_metrics(tmp_path / f'{method}2'), strict=True):
            assert (
                a['loss'] == pytest.approx(b['loss'], rel=1e-6)
                and a['lr'] == b['lr']
                and a['nme'] == pytest.approx(b['nme'], rel=1e-5)
            )
        writers = [re.findall(rf'wrote (\w+) \S*{method}{n}/(\S+)', said) for n in (1, 2)]
        assert {rank for rank, _ in writers[1]} == {'0'} and {rank for rank, _ in writers[0]} == {'alone'}
        assert [name for _, name in writers[0]] == [name for _, name in writers[1]]


@pytest.mark.background
@pytest.mark.slow
def test_two_processes_in_float32_of_two_threads_each(tmp_path):
    """The losses are those of one process up to rounding; without shared_norm they are not.

    The rate is low, since Adam's first steps make a rounding error as large as a gradient. All runs start from one
    parent, which has computed on two threads before it forks, and computes on afterwards."""
    status, said = script(
        """
        launching.share_cores = lambda count: torch.set_num_threads(2)
        torch.set_num_threads(2)
        torch.rand(1_000_000).exp().sum()
        for name, more in dict(one={}, two=dict(processes=2), own=dict(processes=2, shared_norm=False)).items():
            run = config(**more, epochs=2, test_every=2, lr=1e-5, output=f'{sys.argv[1]}/{name}')
            launching.launch(run, faces, test)
        assert torch.get_num_threads() == 2 and torch.rand(1_000_000).exp().isfinite().all()
        """,
        tmp_path,
    )
    assert status == 0, said
    one, two, own = ([row['loss'] for row in read_metrics(tmp_path / name)] for name in ('one', 'two', 'own'))
    assert two == pytest.approx(one, rel=1e-5)
    assert abs(own[0] - one[0]) > 10 * abs(two[0] - one[0]) and len(own) == 2


# A process that dies


@pytest.mark.background
@pytest.mark.slow
def test_a_dead_process_ends_the_job(tmp_path):
    """The second process ends in its eighth step. The first does not wait for it, the error that is reported is the
    second's, and the last state is whole.

    It raises, is killed, meets a loss that is not a number, or gets SIGTERM; after that, one process continues the run
    of two."""
    status, said = script(
        """
        honest, calls = training.step_loss, []
        def step(*args):
            calls.append(1)
            dies = len(calls) == 8 and os.environ.get('RANK') == '1'
            if dies and how == 'raises': raise KeyError('planted')
            if dies and how == 'killed': os.kill(os.getpid(), signal.SIGKILL)
            if dies and how == 'sigterm': os.kill(os.getpid(), signal.SIGTERM)
            return honest(*args) * (float('nan') if dies and how == 'nan' else 1)
        training.step_loss = step
        for how in ('raises', 'killed', 'nan', 'sigterm'):
            run = config(epochs=3, test_every=3, processes=2, output=f'{sys.argv[1]}/{how}')
            try: launching.launch(run, faces, test)
            except BaseException as e: print(f'=== {how}: {type(e).__name__} {e}', flush=True)
        training.step_loss = honest
        launching.launch(config(epochs=3, test_every=3, output=f'{sys.argv[1]}/sigterm'), faces, test)
        """,
        tmp_path,
    )
    assert status == 0, said
    ends = {part.split(':')[0]: part for part in said.split('=== ')[1:]}
    assert list(ends) == ['raises', 'killed', 'nan', 'sigterm']
    assert (
        "KeyError: 'planted'" in ends['raises']
        and 'Traceback (most recent call last)' in ends['raises']
        and 'in step' in ends['raises']
    )
    assert 'ChildFailedError' in ends['killed'] and 'Signal 9 (SIGKILL) received' in ends['killed']
    assert 'FloatingPointError: epoch 2, step 2: the loss or its gradient is not finite' in ends['nan']
    assert 'SystemExit 143' in ends['sigterm'] and 'SIGTERM: stopped in epoch 2 after step 2' in said
    for how in ('raises', 'killed', 'nan'):
        assert len(read_metrics(tmp_path / how)) == 1 and not (tmp_path / how / 'weights.safetensors').exists()
        assert load_file(tmp_path / how / 'state.safetensors')['net.heads.0.weight'].isfinite().all()
    assert [row['from_step'] for row in read_metrics(tmp_path / 'sigterm', 'times')] == [0, 2, 0]


@pytest.mark.background
@pytest.mark.slow
def test_a_dead_process_ends_torchruns_job(tmp_path):
    "A test protocol that only the second process finds wrong: its traceback is told."
    text = """
import os
import subpixel_nb.training.launch as launching
import subpixel_nb.training.loop as training
honest = training.decoder_errors
def decoder_errors(*args):
    if os.environ['RANK'] == '1': raise KeyError('planted')
    return honest(*args)
training.decoder_errors = decoder_errors
launching.train_from_shell()
"""
    (tmp_path / 'broken.py').write_text(text)
    status, said = ended(
        start(
            SCRIPTS / 'torchrun',
            '--standalone',
            '--nproc_per_node=2',
            tmp_path / 'broken.py',
            *words(**SMALL, epochs=3, test_every=1, output=tmp_path / 'run'),
        )
    )
    assert status and "KeyError: 'planted'" in said and 'Traceback (most recent call last)' in said
