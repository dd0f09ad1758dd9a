"A run told to TensorBoard, read back by TensorBoard's own reader: subpixel_nb.training.loop.Trackers."

import subprocess
import sys
import textwrap

import pytest
from accelerate.tracking import TensorBoardTracker
from conftest import ROOT
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import subpixel_nb.training.loop as training
from subpixel_nb.data.crops import load_faces
from subpixel_nb.training.checkpoints import read_metrics
from subpixel_nb.training.loop import train
from subpixel_nb.training.recipe import configure

SMALL = dict(
    **dict(dataset='synthetic', width=8, stacks=1, size=64, depth=2, epochs=4, batch=8, limit=16, test_every=2),
    **dict(precision='float32', track='tensorboard'),
)


@pytest.fixture(scope='module')
def faces():
    return load_faces('synthetic', 'train', size=64, limit=16), load_faces('synthetic', 'test', size=64, limit=12)


def check_history(folder) -> None:
    "Every epoch of metrics.jsonl is there once, in order, with its numbers; the faces where they were measured."
    files = [p for p in (folder / 'tensorboard').rglob('*') if p.is_file()]
    assert len(files) == 1, 'events of an earlier start lie there still'
    events = EventAccumulator(
        str(files[0]), size_guidance=dict(scalars=0, images=0), purge_orphaned_data=False
    ).Reload()
    rows = read_metrics(folder)
    for name in ('loss', 'lr'):
        told = events.Scalars(name)
        assert [event.step for event in told] == [row['epoch'] for row in rows] == list(range(1, len(rows) + 1))
        assert [event.value for event in told] == pytest.approx([row[name] for row in rows], rel=1e-6)
    assert [event.step for event in events.Scalars('views_per_s')] == [row['epoch'] for row in rows]
    measured = [row for row in rows if 'nme' in row]
    for decoder in ('argmax', 'quarter', 'local'):
        told = {event.step: event.value for event in events.Scalars(f'nme/{decoder}')}
        assert told == pytest.approx({row['epoch']: row['nme'][decoder] for row in measured}, rel=1e-6)
    pictures = events.Images('faces')
    assert [event.step for event in pictures] == [row['epoch'] for row in measured]
    assert {(event.width, event.height) for event in pictures} == {(576, 576)}  # three times three of 192 px


def test_a_run_that_is_stopped_has_one_history(faces, tmp_path, monkeypatch):
    """Stopped in the middle of an epoch, and between the line of an epoch and its state; then it goes on to the end.

    A finished run can be told to a tracker later, too."""
    config, honest, calls = configure(**SMALL, output=str(tmp_path / 'run')), training.step_loss, []

    def step(*args):
        calls.append(1)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return honest(*args)

    monkeypatch.setattr(training, 'step_loss', step)
    with pytest.raises(KeyboardInterrupt):
        train(config, *faces)
    check_history(config.folder)
    save = training.StateKeeper.save

    def before_the_state(keeper, position):
        if position == (3, 0, position.losses):
            raise KeyboardInterrupt
        save(keeper, position)

    monkeypatch.setattr(training.StateKeeper, 'save', before_the_state)
    with pytest.raises(KeyboardInterrupt):
        train(config, *faces)
    check_history(config.folder)
    assert len(read_metrics(config.folder)) == 3
    monkeypatch.setattr(training.StateKeeper, 'save', save)
    for _ in range(2):
        train(config, *faces)
        check_history(config.folder)
    assert len(read_metrics(config.folder)) == 4
    picture = Image.open(config.folder / 'faces/0004.jpg')
    assert picture.size == (576, 576) and not (config.folder / 'faces/0003.jpg').exists()


def test_a_tracker_that_fails_is_given_up(faces, tmp_path, monkeypatch):
    "The network is down: a warning, and the run ends as always."

    def fails(*args, **named):
        raise ConnectionError('planted')

    monkeypatch.setattr(TensorBoardTracker, 'log', fails)
    config = configure(**SMALL | dict(epochs=1), output=str(tmp_path / 'run'))
    with pytest.warns(UserWarning, match='track tensorboard: it failed, and the run goes on without it.*planted'):
        train(config, *faces)
    assert (config.folder / 'weights.safetensors').exists()


def test_trackers_that_are_not_there(faces, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="unknown track 'tensorbord'; known: tensorboard"):
        configure(track='tensorbord')
    assert configure(track='tensorboard, wandb').trackers == ['tensorboard', 'wandb']
    monkeypatch.setattr(training, 'get_available_trackers', list)
    with pytest.raises(ValueError, match='track tensorboard: it is not installed here'):
        train(configure(**SMALL, output=str(tmp_path / 'run')), *faces)


@pytest.mark.slow
def test_nothing_is_imported_that_is_not_asked_for(tmp_path):
    "A run without trackers imports none of them, and leaves no file of theirs."
    script = f"""
        import sys
        from subpixel_nb.data.crops import load_faces
        from subpixel_nb.training.loop import train
        from subpixel_nb.training.recipe import configure
        faces = load_faces('synthetic', 'train', size=64, limit=16)
        train(configure(**{SMALL | dict(epochs=1, track=None)!r}, output=sys.argv[1]), faces, faces)
        print([name for name in ('tensorboard', 'wandb', 'mlflow', 'tensorboardX') if name in sys.modules])
        """
    done = subprocess.run(
        [sys.executable, '-c', textwrap.dedent(script), tmp_path / 'run'], cwd=ROOT, capture_output=True, text=True
    )
    assert done.stdout.splitlines()[-1] == '[]', done.stdout + done.stderr
    assert not {'tensorboard', 'faces'} & {p.name for p in (tmp_path / 'run').iterdir()}
