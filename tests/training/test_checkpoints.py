"A run's folder under kills, full disks, second runs and strangers' files: subpixel_nb.training.checkpoints."

import fcntl
import hashlib
import json
import os
import re
import subprocess
import sys
import textwrap
import threading
from dataclasses import asdict, replace

import pytest
import torch
from conftest import ROOT
from safetensors import safe_open
from safetensors.torch import save_file

from subpixel_nb.core import append_line, write_atomic
from subpixel_nb.data.crops import load_faces
from subpixel_nb.training.checkpoints import (
    FORMAT,
    Position,
    evaluation_config,
    find_checkpoint,
    fingerprint,
    git_state,
    load_state,
    load_weights,
    open_run,
    read_metrics,
    read_record,
    record_start,
    save_state,
    save_weights,
    shipped_models,
    start_from,
)
from subpixel_nb.training.loop import train
from subpixel_nb.training.recipe import build_network, configure, learnt_from

SMALL = dict(dataset='synthetic', width=8, stacks=1, size=64, depth=2, limit=12, precision='float32')


@pytest.fixture(scope='module')
def faces():
    return load_faces('synthetic', 'train', size=64, limit=12)


def network(**other):
    "A small network that has taken one step, and its optimiser."
    net = build_network(configure(**SMALL | other), 68)
    adam = torch.optim.Adam(net.parameters(), 1e-3, fused=True)
    net(torch.rand(2, 3, 64, 64))[-1].square().sum().backward()
    adam.step()
    return net, adam


def python(script: str, *words: object) -> subprocess.Popen:
    "A second process that runs a script."
    return subprocess.Popen(
        [sys.executable, '-c', textwrap.dedent(script), *map(str, words)],
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


# Files


def test_write_atomic_leaves_the_old_file_where_writing_fails(tmp_path):
    path = tmp_path / 'f'
    path.write_text('old')

    def fails(p):
        p.write_text('half')
        raise KeyError('planted')

    with pytest.raises(KeyError, match='planted'):
        write_atomic(path, fails)
    assert path.read_text() == 'old' and [p.name for p in tmp_path.iterdir()] == ['f']


@pytest.mark.slow
def test_a_full_disk_is_named_and_the_last_state_is_untouched(tmp_path):
    "In a process that may write files of 40 kB: the state does not fit, nor does a long line of a log."
    net, adam = network()
    save_state(tmp_path / 'state.safetensors', net, adam, Position(3))
    before = (tmp_path / 'state.safetensors').read_bytes()
    assert len(before) > 80_000
    done = python(
        """
        import resource, sys
        from pathlib import Path
        import torch
        from subpixel_nb.training.checkpoints import Position, save_state
        from subpixel_nb.core import append_line
        from subpixel_nb.training.recipe import build_network, configure
        folder, small = Path(sys.argv[1]), dict(dataset='synthetic', width=8, stacks=1, size=64, depth=2)
        net = build_network(configure(**small), 68)
        adam = torch.optim.Adam(net.parameters())
        resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))
        for write in (lambda: save_state(folder / 'state.safetensors', net, adam, Position(4)),
                      lambda: append_line(folder / 'metrics.jsonl', dict(a='x' * 50_000))):
            try: write()
            except OSError as e: print(e)
        """,
        tmp_path,
    )
    printed, failed = done.communicate(timeout=900)
    assert not done.returncode, failed
    for name in ('state.safetensors', 'metrics.jsonl'):
        assert (
            f'File too large: {name} could not be written; what was there is untouched. '
            f"Make room there, then run the same command again: it goes on: '{tmp_path / name}'"
        ) in printed
    assert (tmp_path / 'state.safetensors').read_bytes() == before
    assert {p.name for p in tmp_path.iterdir()} <= {'state.safetensors', 'metrics.jsonl'}
    assert read_metrics(tmp_path) == []


@pytest.mark.parametrize(
    'code, said',
    [
        (28, 'No space left on device: f could .* Make room there'),
        (122, 'Disk quota exceeded: f could .* Make room there'),
        (30, 'Read-only file system: f could .* Make it writable'),
    ],
)
def test_what_to_do_about_a_disk(tmp_path, code, said):
    def fails(p):
        raise OSError(code, 'as the system says it')

    with pytest.raises(OSError, match=said) as told:
        write_atomic(tmp_path / 'f', fails)
    assert told.value.errno == code


def test_files_are_readable_to_whom_the_folder_is(tmp_path, faces):
    net, adam = network()
    mask = os.umask(0o022)
    try:
        save_state(tmp_path / 'state.safetensors', net, adam, Position())
        save_weights(tmp_path / 'weights.safetensors', net, configure(**SMALL), faces)
    finally:
        os.umask(mask)
    assert {p.stat().st_mode & 0o777 for p in tmp_path.iterdir()} == {0o644}


def test_a_line_that_was_cut_short_is_left_out(tmp_path):
    for i in range(3):
        append_line(tmp_path / 'metrics.jsonl', dict(epoch=i, loss=0.1 + i))
    with (tmp_path / 'metrics.jsonl').open('a') as file:
        file.write('{"epoch": 3, "lo')
    assert read_metrics(tmp_path) == [dict(epoch=i, loss=0.1 + i) for i in range(3)]
    append_line(tmp_path / 'metrics.jsonl', dict(epoch=3, loss=3.1))  # the rest of the cut line is removed first
    assert read_metrics(tmp_path) == [dict(epoch=i, loss=0.1 + i) for i in range(4)]
    assert read_metrics(tmp_path / 'none') == []


# State and weights


def test_a_state_comes_back_to_the_bit(tmp_path):
    net, adam = network()
    save_state(tmp_path / 's', net, adam, Position(7, 3, torch.rand(3)), 'me')
    other, fresh = network(seed=5)
    place = load_state(tmp_path / 's', other, fresh, 'me')
    assert (place.epoch, place.step, len(place.losses)) == (7, 3, 3)
    for a, b in zip(net.state_dict().values(), other.state_dict().values()):
        assert torch.equal(a, b)
    saved, found = adam.state_dict()['state'], fresh.state_dict()['state']
    assert saved.keys() == found.keys()
    for i in saved:
        for k in ('exp_avg', 'exp_avg_sq', 'step'):
            assert torch.equal(saved[i][k], found[i][k]) and saved[i][k].stride() == found[i][k].stride()


@pytest.mark.parametrize(
    'spoil, said',
    [
        (
            lambda path: os.truncate(path, path.stat().st_size // 2),
            'not a readable safetensors file .* Delete it to begin this run anew',
        ),
        (lambda path: os.truncate(path, 0), 'not a readable safetensors file'),
        (lambda path: path.write_bytes(b'\x80\x04pickle'), 'not a readable safetensors file'),
        (
            lambda path: save_file(dict(a=torch.zeros(1)), path),
            'the state of another run. Take it away, or name another output',
        ),
        (lambda path: save_state(path, *network(), Position(1), 'another'), 'the state of another run'),
        (lambda path: save_state(path, *network(width=16), Position(1), 'me'), 'the state of another network'),
    ],
)
def test_a_state_that_is_none_of_ours_is_left_alone(tmp_path, spoil, said):
    path = tmp_path / 'state.safetensors'
    net, adam = network()
    save_state(path, net, adam, Position(1), 'me')
    spoil(path)
    before = path.read_bytes()
    with pytest.raises(ValueError, match=said):
        load_state(path, net, adam, 'me')
    assert path.read_bytes() == before


def test_weights_come_back_with_their_config(tmp_path, faces):
    net, config = network()[0], configure(**SMALL)
    save_weights(tmp_path / 'weights.safetensors', net, config, faces)
    for path in (tmp_path, tmp_path / 'weights.safetensors', str(tmp_path)):
        loaded, found = load_weights(path)
        assert found == config and not loaded.training
        for a, b in zip(loaded.state_dict().values(), net.state_dict().values()):
            assert torch.equal(a, b)


def test_weights_that_are_none(tmp_path):
    with pytest.raises(FileNotFoundError, match='no weights there.* the models that ship are: '):
        load_weights(tmp_path)
    (tmp_path / 'weights.safetensors').write_bytes(b'not safetensors')
    with pytest.raises(ValueError, match='not a readable safetensors file'):
        load_weights(tmp_path)
    save_file(dict(a=torch.zeros(1)), tmp_path / 'weights.safetensors')
    with pytest.raises(ValueError, match='without our config'):
        load_weights(tmp_path)


def test_weights_in_half_the_space_come_back_rounded(tmp_path, faces):
    net = network()[0]
    for name, dtype in (('whole', torch.float32), ('half', torch.bfloat16)):
        save_weights(tmp_path / name, net, configure(**SMALL), faces, dtype)
    saved = (tmp_path / 'whole').stat().st_size - (tmp_path / 'half').stat().st_size
    assert saved == pytest.approx(
        2 * sum(v.numel() for v in net.state_dict().values() if v.is_floating_point()), rel=0.05
    )
    for (key, a), b in zip(load_weights(tmp_path / 'half')[0].state_dict().items(), net.state_dict().values()):
        assert a.dtype == b.dtype and torch.equal(a, b.bfloat16().to(b.dtype) if b.is_floating_point() else b), key


def test_weights_of_a_dataset_that_is_not_known_here_open(tmp_path, faces):
    save_weights(tmp_path / 'theirs', network()[0], replace(configure(**SMALL), dataset='theirs'), faces)
    assert load_weights(tmp_path / 'theirs')[1].dataset == 'theirs'


@pytest.mark.parametrize(
    'change, said',
    [
        (dict(points='98'), 'size mismatch'),
        (dict(config='{"width": 8, "colour": 3}'), 'colour'),
        (dict(config='{'), 'Expecting'),
        (dict(config='{"method": "magic"}'), "unknown method 'magic'"),
        (dict(points=None), 'points'),
    ],
    ids=str,
)
def test_weights_that_their_config_does_not_describe(tmp_path, faces, change, said):
    save_weights(tmp_path / 'weights', network()[0], configure(**SMALL), faces)
    with safe_open(tmp_path / 'weights', 'pt') as file:
        about, tensors = file.metadata(), {k: file.get_tensor(k) for k in file.keys()}
    save_file(tensors, tmp_path / 'weights', {k: v for k, v in (about | change).items() if v is not None})
    with pytest.raises(
        ValueError, match=f'(?s)weights: its weights do not fit the network that its config describes .*{said}'
    ):
        load_weights(tmp_path / 'weights')


def test_start_from_wants_the_same_network(tmp_path, faces):
    net, config = network()[0], configure(**SMALL)
    save_weights(tmp_path / 'weights.safetensors', net, config, faces)
    other = build_network(replace(config, seed=9), 68)
    start_from(tmp_path, other, replace(config, seed=9))
    assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), other.state_dict().values()))
    for change, said in (
        (dict(width=16), 'width 8 there, 16 here'),
        (dict(method='static'), 'kind StackedHourglass there, CorrectedHourglass here'),
    ):
        wide = replace(config, **change)
        with pytest.raises(ValueError, match=f'another network .{said}'):
            start_from(tmp_path, build_network(wide, 68), wide)
    with pytest.raises(ValueError, match='landmarks 68 there, 19 here'):
        start_from(tmp_path, build_network(config, 19), config)


def test_a_shipped_model_is_named_by_its_name(tmp_path, faces, monkeypatch):
    "By evaluate and by init, as by predict; a folder or file of that name comes first."
    monkeypatch.chdir(tmp_path)
    name, path = next(iter(shipped_models().items()))
    assert find_checkpoint(name) == path and path.parent.name == 'models'
    net, config = load_weights(name)
    assert evaluation_config(name)[0].dataset == config.tested[0]
    fresh = build_network(replace(config, seed=9), net.points)
    start_from(name, fresh, config)
    assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), fresh.state_dict().values()))
    (tmp_path / name).mkdir()
    assert find_checkpoint(name) == path  # a folder without weights
    save_weights(tmp_path / name / 'weights.safetensors', network()[0], configure(**SMALL), faces)
    assert load_weights(name)[1] == configure(**SMALL)
    with pytest.raises(FileNotFoundError, match=f'nothing: no weights there.* the models that ship are: .*{name}'):
        start_from('nothing', fresh, config)


def test_evaluation_config_is_the_run_with_what_is_given(tmp_path, faces):
    config = configure(**SMALL, root='here', test_on='300w', test_root='there', init='before')
    save_weights(tmp_path / 'weights.safetensors', network()[0], config, faces)
    known, _ = evaluation_config(tmp_path)
    assert (known.dataset, known.root, known.test_on, known.init) == ('300w', 'there', None, None)
    assert evaluation_config(tmp_path, dataset='300w-private')[0].root is None  # another dataset's folder is no help
    assert evaluation_config(tmp_path, dataset='synthetic')[0].root == 'here'
    assert evaluation_config(tmp_path, window=7, tau=None)[0] == replace(known, window=7)
    with pytest.raises(ValueError, match="unknown parameter 'widht'"):
        evaluation_config(tmp_path, widht=3)


# One run to a folder


def entered(config, faces) -> tuple[str, set[str]]:
    with open_run(config, faces) as (folder, run):
        return run, {p.name for p in folder.iterdir()}


def test_a_folder_holds_one_run(faces, tmp_path):
    here = configure(**SMALL, output=str(tmp_path / 'run'))
    run, files = entered(here, faces)
    assert re.fullmatch('[0-9a-f]{16}', run) and files == {'.lock', 'config.json'}
    assert (
        entered(replace(here, save_minutes=1.0, test_every=1), faces)[0] == run
    )  # these change nothing that is learnt
    with pytest.raises(
        ValueError, match=r'holds another run \(sigma: 1.5 there, 2.0 now; seed: 0 there, 4 now\). Name another output'
    ):
        entered(replace(here, sigma=2.0, seed=4), faces)
    (tmp_path / 'run/results.csv').write_text('old')
    again, files = entered(replace(here, sigma=2.0, resume=False), faces)
    assert (
        again != run
        and files == {'.lock', 'config.json'}
        and json.loads((tmp_path / 'run/config.json').read_text())['sigma'] == 2
    )


@pytest.mark.parametrize(
    'change',
    [
        lambda f: f[:8],
        lambda f: replace(f, points=f.points + 1e-3),
        lambda f: replace(f, visible=~f.visible),
        lambda f: replace(f, names=[*f.names[1:], 'another']),
        lambda f: replace(f, images=255 - f.images[:]),
        lambda f: replace(f, crop='hrnet'),
    ],
    ids=['number', 'points', 'masks', 'names', 'pictures', 'crop'],
)
def test_changed_faces_are_another_run(faces, tmp_path, change):
    here = configure(**SMALL, output=str(tmp_path))
    entered(here, faces)
    before = (tmp_path / 'config.json').read_bytes()
    assert fingerprint(change(faces)) != fingerprint(faces) == fingerprint(replace(faces, names=list(faces.names)))
    with pytest.raises(ValueError, match='holds another run .faces: .* Name another output'):
        entered(here, change(faces))
    assert (tmp_path / 'config.json').read_bytes() == before


@pytest.mark.parametrize(
    'text, said',
    [
        ('{"dataset": "synth', 'config.json: not readable .* Put it back, or name another output'),
        ('[1]', 'config.json: not the config of a run'),
        ('', 'config.json: not readable'),
    ],
)
def test_a_damaged_config(faces, tmp_path, text, said):
    here = configure(**SMALL, output=str(tmp_path))
    entered(here, faces)
    (tmp_path / 'config.json').write_text(text)
    for config in (here, replace(here, resume=False)):
        with pytest.raises(ValueError, match=said):
            entered(config, faces)
    assert (tmp_path / 'config.json').read_text() == text


@pytest.mark.parametrize('name, text', [('thesis.tex', 'x'), ('config.json', '{"model_type": "bert"}')])
def test_what_is_no_run_is_not_deleted(faces, tmp_path, name, text):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match='holds no run: it is not deleted'):
        entered(configure(**SMALL, resume=False, output=str(tmp_path)), faces)
    assert (tmp_path / name).read_text() == text


def test_what_a_kill_left_half_written_goes(faces, tmp_path):
    for name in ('.state.safetensors.4711', '.metrics.jsonl.12', '.hidden', 'mine.12'):
        (tmp_path / name).write_text('half')
    assert entered(configure(**SMALL, output=str(tmp_path)), faces)[1] == {'.lock', 'config.json', '.hidden', 'mine.12'}


@pytest.mark.parametrize('place', ['file/run', 'file'])
def test_a_folder_that_cannot_be(faces, tmp_path, place):
    (tmp_path / 'file').write_text('x')
    with pytest.raises(OSError, match='the run cannot be kept there. Name another output'):
        entered(configure(**SMALL, output=str(tmp_path / place)), faces)


def test_a_folder_that_may_not_be_written(faces, tmp_path):
    (tmp_path / 'run').mkdir(mode=0o500)
    if os.access(tmp_path / 'run', os.W_OK):
        place = '/proc'  # root writes anywhere but there
    else:
        place = str(tmp_path / 'run')
    with pytest.raises(OSError, match='the run cannot be kept there. Name another output'):
        entered(configure(**SMALL, output=place), faces)


def test_a_second_process_is_refused_and_told_who_is_first(faces, tmp_path):
    first = python(
        """
        import sys, time
        from subpixel_nb.training.checkpoints import open_run
        from subpixel_nb.data.crops import load_faces
        from subpixel_nb.training.recipe import configure
        config = configure(dataset='synthetic', size=64, depth=2, limit=12, output=sys.argv[1])
        with open_run(config, load_faces('synthetic', 'train', size=64, limit=12)):
            print('open', flush=True)
            time.sleep(120)
        """,
        tmp_path,
    )
    here = configure(dataset='synthetic', size=64, depth=2, limit=12, output=str(tmp_path))
    try:
        assert first.stdout.readline() == 'open\n', first.stderr.read()
        for config in (here, replace(here, resume=False)):
            with pytest.raises(
                ValueError, match=f'another run is at work there .process {first.pid} on .*Wait for it, or name'
            ):
                entered(config, faces)
    finally:
        first.kill()
        first.communicate()
    assert entered(here, faces)  # the lock went with the process


# Networks of another stride


def test_a_run_of_another_stride_is_left_as_it_was(faces, tmp_path):
    "A folder goes on with its own stride alone, and `init` takes no network of another one. Nothing is lost."
    here = configure(**SMALL, stride=8, epochs=1, batch=6, test_every=1, output=str(tmp_path / 'run'))
    train(here, faces, faces)
    before = {p.name: p.read_bytes() for p in (tmp_path / 'run').iterdir() if p.name != '.lock'}
    net, config = load_weights(tmp_path / 'run')
    assert config.stride == net.stride == 8 and net(torch.rand(1, 3, 64, 64))[-1].shape == (1, 68, 8, 8)
    for stride in (4, 16):
        with pytest.raises(ValueError, match=f'holds another run .stride: 8 there, {stride} now.. Name another output'):
            train(replace(here, stride=stride), faces, faces)
        begun = replace(here, stride=stride, init=str(tmp_path / 'run'), output=str(tmp_path / f'{stride}'))
        with pytest.raises(ValueError, match=f'another network .stride 8 there, {stride} here.*Give this run the same'):
            train(begun, faces, faces)
        assert not (tmp_path / f'{stride}/weights.safetensors').exists()
    assert {p.name: p.read_bytes() for p in (tmp_path / 'run').iterdir() if p.name != '.lock'} == before


def test_a_run_from_before_there_was_a_stride_goes_on(faces, tmp_path):
    "Its config.json and its weights name none: it is one of stride 4, and keeps its name."
    here = configure(**SMALL, epochs=2, batch=6, test_every=2, output=str(tmp_path))
    about = {k: v for k, v in learnt_from(here).items() if k != 'stride'}
    (tmp_path / 'config.json').write_text(json.dumps(about | dict(faces=fingerprint(faces), format=FORMAT)))
    before = (tmp_path / 'config.json').read_bytes()
    train(here, faces, faces)
    assert (tmp_path / 'config.json').read_bytes() == before
    with pytest.raises(ValueError, match='stride: 4 there, 8 now'):
        train(replace(here, stride=8), faces, faces)


# A run that was made before the format of config.json had a number


def old_run(folder, faces, config, done: int) -> str:
    "A folder as the first version left it after `done` epochs: no format number, no augment. The run's 16 hex digits."
    about = {k: v for k, v in learnt_from(config).items() if k != 'augment'} | dict(faces=fingerprint(faces))
    run = hashlib.blake2b(json.dumps(about, sort_keys=True).encode(), digest_size=8).hexdigest()
    folder.mkdir(exist_ok=True)
    (folder / 'config.json').write_text(json.dumps(about, indent=1))
    net, adam = network()
    save_state(folder / 'state.safetensors', net, adam, Position(done), run)
    if done == config.epochs:
        old_weights(folder / 'weights.safetensors', net, config, faces)
    return run


def old_weights(path, net, config, faces) -> None:
    "Weights as the first version wrote them: their config names no augment."
    save_weights(path, net, config, faces)
    with safe_open(path, 'pt') as file:
        about, tensors = file.metadata(), {k: file.get_tensor(k) for k in file.keys()}
    about['config'] = json.dumps({k: v for k, v in asdict(config).items() if k != 'augment'})
    save_file(tensors, path, about)


def files_of(folder) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.name != '.lock'}


def test_a_new_run_says_its_format(faces, tmp_path):
    here = configure(**SMALL, output=str(tmp_path))
    run, _ = entered(here, faces)
    about = json.loads((tmp_path / 'config.json').read_text())
    assert about['format'] == FORMAT == 2 and about['augment'] == 'paper' and entered(here, faces)[0] == run
    with pytest.raises(ValueError, match=r"holds another run .augment: 'paper' there, 'strong' now.. Name another"):
        entered(replace(here, augment='strong'), faces)


def test_an_old_run_is_not_continued_in_the_middle(faces, tmp_path):
    here = configure(**SMALL, output=str(tmp_path / 'run'), epochs=3)
    old_run(tmp_path / 'run', faces, here, done=1)
    before = files_of(tmp_path / 'run')
    said = (
        'made by an earlier version, and random views are drawn differently now: it cannot be continued. '
        'Name another output, or set resume to False'
    )
    for begin in (lambda: entered(here, faces), lambda: train(here, faces, faces)):
        with pytest.raises(ValueError, match=said):
            begin()
    assert files_of(tmp_path / 'run') == before
    entered(replace(here, resume=False), faces)  # what the sentence advises
    assert json.loads((tmp_path / 'run/config.json').read_text())['format'] == FORMAT
    assert not (tmp_path / 'run/state.safetensors').exists()


def test_an_old_run_that_is_finished_is_answered_as_finished(faces, tmp_path):
    here = configure(**SMALL, output=str(tmp_path / 'run'), epochs=3)
    run = old_run(tmp_path / 'run', faces, here, done=3)
    (tmp_path / 'run/metrics.jsonl').write_text(''.join(json.dumps(dict(epoch=i + 1)) + '\n' for i in range(3)))
    before, kept = files_of(tmp_path / 'run'), load_weights(tmp_path / 'run')[0].state_dict()
    assert entered(here, faces)[0] == run
    found = train(here, faces, faces).state_dict()
    assert all(torch.equal(kept[k], found[k]) for k in kept)
    for name in ('config.json', 'state.safetensors', 'metrics.jsonl'):
        assert files_of(tmp_path / 'run')[name] == before[name]
    with pytest.raises(ValueError, match=r"holds another run .augment: 'paper' there, 'strong' now"):
        entered(replace(here, augment='strong'), faces)
    (tmp_path / 'run/state.safetensors').unlink()  # its weights alone: it would begin anew in the old folder
    with pytest.raises(ValueError, match='made by an earlier version.* can still be evaluated'):
        entered(here, faces)


def test_an_old_run_of_which_nothing_was_kept_begins_anew(faces, tmp_path):
    here = configure(**SMALL, output=str(tmp_path / 'run'), epochs=3)
    old = old_run(tmp_path / 'run', faces, here, done=1)
    (tmp_path / 'run/state.safetensors').unlink()
    run, _ = entered(here, faces)
    assert run != old and json.loads((tmp_path / 'run/config.json').read_text())['format'] == FORMAT


def test_a_damaged_state_of_an_old_run_is_named(faces, tmp_path):
    here = configure(**SMALL, output=str(tmp_path / 'run'), epochs=3)
    old_run(tmp_path / 'run', faces, here, done=3)
    os.truncate(tmp_path / 'run/state.safetensors', 100)
    with pytest.raises(ValueError, match='state.safetensors: not a readable safetensors file'):
        entered(here, faces)


def test_the_weights_of_an_old_run_are_of_use(faces, tmp_path):
    "They are evaluated, a new run begins with them, and they predict."
    from subpixel_nb.inference.predictor import Predictor

    here = configure(**SMALL, output=str(tmp_path / 'run'), epochs=3)
    old_run(tmp_path / 'run', faces, here, done=3)
    net, config = load_weights(tmp_path / 'run')
    assert config == here and config.augment == 'paper'
    assert evaluation_config(tmp_path / 'run')[0].dataset == 'synthetic'
    tuned = replace(
        here, epochs=1, batch=12, init=str(tmp_path / 'run'), output=str(tmp_path / 'tuned'), augment='strong'
    )
    start_from(tuned.init, fresh := build_network(replace(tuned, seed=9), 68), tuned)
    assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), fresh.state_dict().values()))
    assert entered(tuned, faces)[1] == {'.lock', 'config.json'}
    photo = torch.zeros(3, 90, 90, dtype=torch.uint8)
    assert Predictor(tmp_path / 'run')(photo, boxes=[20, 20, 70, 70]).points.shape == (1, 68, 2)


def test_a_run_of_a_later_version_is_left_alone(faces, tmp_path):
    here = configure(**SMALL, output=str(tmp_path))
    entered(here, faces)
    about = json.loads((tmp_path / 'config.json').read_text()) | dict(format=FORMAT + 1)
    (tmp_path / 'config.json').write_text(json.dumps(about))
    with pytest.raises(ValueError, match='of format 3, and this version knows the formats up to 2'):
        entered(here, faces)


def test_how_a_run_was_made_is_kept(tmp_path, monkeypatch):
    "The command with its settings, and each start with versions and git state; a damaged file is written anew."
    config = configure(**SMALL, output=str(tmp_path))
    for position in (Position(), Position(2, 3)):
        record_start(config, position, steps=4)
    record = read_record(tmp_path)
    assert record['config'] == asdict(config) and record['command'].endswith(f'-p output {tmp_path}')
    assert [(s['epoch'], s['step'], s['versions']['torch']) for s in record['starts']] == [
        (0, 0, torch.__version__),
        (2, 3, torch.__version__),
    ]
    for damaged in ('{"starts": [', '[]', '\0'):
        (tmp_path / 'run.json').write_text(damaged)
        assert read_record(tmp_path) == {}
        record_start(config, Position(), steps=4)
        assert len(read_record(tmp_path)['starts']) == 1
    assert [p.name for p in tmp_path.iterdir()] == ['run.json']


def test_the_git_state_is_that_of_this_code(tmp_path, monkeypatch):
    "Commit and changed files of the checkout; None without git, and for a package that no checkout tracks."
    if not (ROOT / '.git').exists():
        pytest.skip('needs a git checkout')
    head = subprocess.run(['git', 'rev-parse', 'HEAD'], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    assert git_state()['commit'] == head and all(isinstance(name, str) for name in git_state()['changed'])
    monkeypatch.setattr('subpixel_nb.training.checkpoints.files', lambda package: tmp_path)
    assert git_state() is None
    monkeypatch.setenv('PATH', str(tmp_path))
    assert git_state() is None


def test_a_look_at_the_lock_does_not_refuse_a_run(tmp_path, faces):
    "Somebody holds the lock for an instant while a run begins: it waits for that."
    config = configure(**SMALL, output=str(tmp_path))
    with open(tmp_path / '.lock', 'w') as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        threading.Timer(0.05, fcntl.flock, (file, fcntl.LOCK_UN)).start()
        with open_run(config, faces) as (folder, _):
            assert folder == tmp_path
