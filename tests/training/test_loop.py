"The loop of subpixel_nb.training.loop on small drawn faces: what a run is, and that nothing of it is lost."

import dataclasses
import errno
import json
import math
import os
import random
import signal
import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import subpixel_nb.training.checkpoints as checkpoints
import subpixel_nb.training.loop as training
from subpixel_nb.codec.encoding import encode
from subpixel_nb.data.crops import load_faces
from subpixel_nb.model.rivals import METHODS, find_method
from subpixel_nb.model.siamese import MERGES
from subpixel_nb.training.checkpoints import load_state, load_weights, read_metrics, read_record
from subpixel_nb.training.loop import (
    Feed,
    build_trainer,
    check_finite,
    face_errors,
    plan_epoch,
    predict,
    seconds_left,
    set_rate,
    share_of,
    step_loss,
    train,
    write_duration,
)
from subpixel_nb.training.recipe import build_network, configure

SMALL = dict(
    dataset='synthetic',
    width=8,
    stacks=1,
    size=64,
    depth=2,
    epochs=3,
    batch=8,
    lr=3e-3,
    limit=24,
    test_every=2,
    precision='float32',
)
EVERY_STEP = dict(save_minutes=1e-9)


@pytest.fixture(scope='module')
def faces():
    return load_faces('synthetic', 'train', size=64, limit=24), load_faces('synthetic', 'test', size=64, limit=8)


@pytest.fixture(scope='module')
def whole(faces, tmp_path_factory):
    "The folder of a run that was not stopped."
    config = configure(**SMALL, output=str(tmp_path_factory.mktemp('run') / 'whole'))
    train(config, *faces)
    return config.folder


def same_run(a, b) -> None:
    "Weights, optimiser, position and metrics of two finished runs, bit for bit."
    states = []
    for folder in (a, b):
        net = build_network(configure(**SMALL), 68)
        adam = torch.optim.Adam(net.parameters(), fused=True)
        states.append(
            (
                load_state(folder / 'state.safetensors', net, adam, run_of(folder)),
                net.state_dict(),
                adam.state_dict()['state'],
            )
        )
    (place, weights, moments), (place2, weights2, moments2) = states
    assert place[:2] == place2[:2] and torch.equal(place.losses, place2.losses)
    for name in weights:
        assert torch.equal(weights[name], weights2[name]), name
    for i in moments:
        assert all(torch.equal(moments[i][k], moments2[i][k]) for k in ('exp_avg', 'exp_avg_sq', 'step'))
    for name, value in load_weights(a)[0].state_dict().items():
        assert torch.equal(value, load_weights(b)[0].state_dict()[name])
    assert (a / 'metrics.jsonl').read_bytes() == (b / 'metrics.jsonl').read_bytes()


def run_of(folder) -> str:
    from safetensors import safe_open

    with safe_open(folder / 'state.safetensors', 'pt') as file:
        return file.metadata()['run']


# A run's chance


def test_an_epoch_is_planned_from_the_seed_alone(faces):
    config = configure(**SMALL, method='siamese')
    before = torch.random.get_rng_state()
    plans = [plan_epoch(replace(config, seed=s), faces[0], e, views=2) for s, e in ((0, 0), (0, 0), (0, 1), (1, 0))]
    assert torch.equal(before, torch.random.get_rng_state())
    orders, seeds = [p.order for p in plans], [p.seeds for p in plans]
    assert orders[0].shape == (3, 8) and seeds[0].shape == (3, 2) and len(set(seeds[0].flatten().tolist())) == 6
    assert orders[0].flatten().sort().values.tolist() == list(range(24))
    assert torch.equal(orders[0], orders[1]) and torch.equal(seeds[0], seeds[1])
    for other in (2, 3):
        assert not torch.equal(orders[0], orders[other]) and not torch.equal(seeds[0], seeds[other])
    assert plan_epoch(replace(config, batch=10), faces[0], 0).order.shape == (2, 10)  # 4 wait for the next epoch
    assert plan_epoch(replace(config, batch=100), faces[0], 0).order.shape == (1, 24)


def test_shares_of_a_step_are_the_step(faces):
    "Four processes draw the same views and apply their own part of them."
    config, cpu, method = configure(**SMALL, method='siamese'), torch.device('cpu'), find_method('siamese')
    plan, feed, net = plan_epoch(config, faces[0], 0, views=2), Feed(faces[0], cpu), build_network(config, 68)
    assert torch.equal(torch.cat([plan.order[:, share_of(8, r, 4)] for r in range(4)], 1), plan.order)
    whole = build_trainer(config, method, feed, net).draw(plan.seeds[0], 8)
    parts = [build_trainer(config, method, feed, net, rank, 4).draw(plan.seeds[0], 8) for rank in range(4)]
    for view in range(2):
        assert torch.equal(torch.cat([p[view].maps for p in parts]), whole[view].maps)
    with pytest.raises(ValueError, match='batch: expected a multiple of the 3 processes, got 8'):
        share_of(8, 0, 3)


def test_a_feed_hands_out_the_faces_in_order(faces):
    order = torch.randperm(24, generator=torch.Generator().manual_seed(0)).view(3, 8)
    feed = Feed(faces[0], torch.device('cpu'))
    for start in (0, 2, 3):
        batches = list(feed.batches(order[start:]))
        assert len(batches) == 3 - start
        for crops, chosen in zip(batches, order[start:]):
            assert np.array_equal(crops.numpy(), faces[0].images[chosen.numpy()])


def test_a_feed_passes_on_what_goes_wrong(faces):
    class Broken:
        shape, dtype = faces[0].images.shape, np.dtype(np.uint8)

        def __getitem__(self, i):
            raise OSError('photo 3 is gone')

    feed = Feed(replace(faces[0], images=Broken()), torch.device('cpu'))
    with pytest.raises(OSError, match='photo 3 is gone'):
        next(feed.batches(torch.arange(4)[None]))


def test_the_rate_follows_the_schedule():
    adam = torch.optim.Adam([torch.zeros(1, requires_grad=True)], 1.0)
    config = configure(dataset='300w')
    for epochs, rate in ((0, 1e-4), (24.99, 1e-4), (25, 1e-5), (40, 1e-6)):
        assert set_rate(adam, config, epochs) == adam.param_groups[0]['lr'] == pytest.approx(rate)


def test_a_step_is_the_mean_over_the_whole_batch(faces):
    "With `count`, the mean of two shares' losses is that of the whole batch, also if few landmarks are visible in one."
    visible = torch.rand(24, 68, generator=torch.Generator().manual_seed(0)) > 0.3
    visible[:4] &= torch.arange(68) < 2
    feed, crops = Feed(replace(faces[0], visible=visible), torch.device('cpu')), torch.from_numpy(faces[0].images[:8])
    net = build_network(configure(**SMALL), 68).eval()  # no batch statistics here
    for method in ('local', 'siamese', 'global', 'window'):
        config = configure(**SMALL, method=method)
        trainer, chosen = build_trainer(config, find_method(method), feed, net), torch.arange(8)
        drawn = trainer.draw(plan_epoch(config, faces[0], 0, find_method(method).views).seeds[0], 8)
        all_at_once = step_loss(trainer, crops, chosen, drawn)
        count = visible[:8].sum() / 2
        shares = [
            step_loss(trainer, crops[s], chosen[s], [d.share(s) for d in drawn], count)
            for s in (slice(0, 4), slice(4, 8))
        ]
        assert sum(shares).item() / 2 == pytest.approx(all_at_once.item(), rel=1e-5)
        assert abs(shares[0] - shares[1]) > 0.1 * all_at_once  # 8 landmarks against nearly 200


class Copies(TorchDispatchMode):
    "Records operations that bring numbers of the host to a device (here 'meta'), or the other way."

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        kinds = {t.device.type for t in tree_leaves((args, kwargs, out)) if isinstance(t, torch.Tensor)}
        if kinds == {'cpu', 'meta'}:
            self.found.append(str(func))
        return out


@pytest.mark.parametrize(
    'method, options',
    [(m, {}) for m in METHODS]
    + [('siamese', dict(merging=m)) for m in MERGES[1:]]
    + [('local', dict(augment='strong')), ('siamese', dict(augment='strong'))],
)
def test_a_step_never_waits_for_the_device(faces, method, options):
    """On the meta device nothing can be read back: .item(), a boolean of a tensor and nonzero raise.

    What goes from the host to the device is copied: the numbers that kornia has drawn."""
    config, meta = configure(**SMALL, method=method, **options), torch.device('meta')
    net, plan = build_network(config, 68).to(meta), plan_epoch(config, faces[0], 0, find_method(method).views)
    feed = SimpleNamespace(
        faces=faces[0],
        device=meta,
        points=faces[0].points.to(meta),
        visible=faces[0].visible.to(meta),
        permutation=Feed(faces[0], torch.device('cpu')).permutation.to(meta),
    )
    order, trainer = plan.order.to(meta), build_trainer(config, find_method(method), feed, net)
    crops = torch.empty(8, *faces[0].images.shape[1:], dtype=torch.uint8, device=meta)
    for _ in range(2):
        with Copies() as seen:
            drawn = trainer.draw(plan.seeds[0], 8)
            step_loss(trainer, crops, order[0], drawn, feed.visible[order[0]].sum() / 2).backward()
    assert set(seen.found) <= {'aten._to_copy.default', 'aten.copy_.default'}
    with Copies() as seen:
        torch.zeros(2).to(meta)
    assert seen.found == ['aten._to_copy.default']  # the probe sees what it must


# Nothing lost


@pytest.mark.slow
def test_a_run_stopped_again_and_again_is_the_same_run(faces, whole, tmp_path, monkeypatch):
    "Interrupted at random before a loss, a step of the optimiser or a state (one per step): bit for bit the whole run."
    config, chance, stops = configure(**SMALL | EVERY_STEP, output=str(tmp_path / 'stopped')), random.Random(1), []

    def stop(then):
        def may_stop(*args, **named):
            if chance.random() < 0.25:
                raise KeyboardInterrupt
            return then(*args, **named)

        return may_stop

    for owner, name in ((training, 'step_loss'), (torch.optim.Adam, 'step'), (training, 'save_state')):
        monkeypatch.setattr(owner, name, stop(getattr(owner, name)))
    while len(stops) < 50:
        try:
            train(config, *faces)
        except KeyboardInterrupt:
            stops.append(1)
        else:
            break
    assert 3 <= len(stops) < 50
    same_run(config.folder, whole)
    assert any(row['from_step'] for row in read_metrics(config.folder, 'times'))


@pytest.mark.slow
def test_a_metrics_file_that_a_kill_cut_short_is_mended(faces, whole, tmp_path, monkeypatch):
    "Killed in the middle of a line, after epoch 3 was logged and before its state was written: its epochs stay."
    config, honest = configure(**SMALL, output=str(tmp_path / 'run')), training.save_state

    def dies(path, net, adam, position, run):
        if position.epoch == 3:
            raise KeyboardInterrupt
        honest(path, net, adam, position, run)

    monkeypatch.setattr(training, 'save_state', dies)
    with pytest.raises(KeyboardInterrupt):
        train(config, *faces)
    assert [r['epoch'] for r in read_metrics(config.folder)] == [1, 2, 3] and not (
        config.folder / 'weights.safetensors'
    ).exists()
    with (config.folder / 'metrics.jsonl').open('a') as file:
        file.write('{"epoch": 4, "lo')
    monkeypatch.setattr(training, 'save_state', honest)
    train(config, *faces)
    same_run(config.folder, whole)
    rows = read_metrics(config.folder)
    assert [sorted(r) for r in rows] == [['epoch', 'loss', 'lr'], *[['epoch', 'loss', 'lr', 'nme']] * 2]


def test_a_finished_run_is_returned_as_it_is(faces, whole, monkeypatch):
    monkeypatch.setattr(training, 'step_loss', None)  # nothing is trained
    before = {p.name: p.read_bytes() for p in whole.iterdir() if p.suffix == '.jsonl'}
    again = train(configure(**SMALL, output=str(whole)), *faces)
    assert torch.equal(next(again.parameters()), next(load_weights(whole)[0].parameters())) and not again.training
    assert before == {p.name: p.read_bytes() for p in whole.iterdir() if p.suffix == '.jsonl'}


def test_lost_metrics_are_told(faces, tmp_path):
    config = configure(**SMALL | dict(epochs=2), output=str(tmp_path / 'run'))
    train(config, *faces)
    (config.folder / 'metrics.jsonl').unlink()
    with pytest.warns(UserWarning, match='metrics.jsonl lacks lines of the 2 finished epochs'):
        train(config, *faces)


@pytest.mark.slow
@pytest.mark.parametrize('moment', ['step_loss', 'decoder_errors'])
def test_sigterm_saves_says_so_and_exits(faces, whole, tmp_path, monkeypatch, capsys, moment):
    "In the middle of an epoch the step is finished first; while test faces are looked at, the process ends at once."
    config, honest, calls = configure(**SMALL, output=str(tmp_path / 'run')), getattr(training, moment), []

    def signalled(*args):
        calls.append(1)
        if len(calls) == (5 if moment == 'step_loss' else 1):
            os.kill(os.getpid(), signal.SIGTERM)
            if moment == 'decoder_errors':
                raise AssertionError('the process should have ended')
        return honest(*args)

    monkeypatch.setattr(training, moment, signalled)
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as end:
        train(config, *faces)
    assert end.value.code == 143 and signal.getsignal(signal.SIGTERM) is handler
    step = 2 if moment == 'step_loss' else 3
    said = f'SIGTERM: stopped in epoch 2 after step {step}; the state is kept in {config.folder}'
    assert said in capsys.readouterr().out
    monkeypatch.setattr(training, moment, honest)
    train(config, *faces)
    same_run(config.folder, whole)


@pytest.mark.slow
def test_a_run_stops_when_its_time_is_up_and_goes_on(faces, whole, tmp_path, capsys):
    "`minutes` count from the moment that the job began. A step is finished and the state is kept."
    config, handler = configure(**SMALL, output=str(tmp_path / 'run'), minutes=2), signal.getsignal(signal.SIGALRM)
    with pytest.raises(SystemExit) as end:
        train(config, *faces, began=time.monotonic() - 121)
    assert end.value.code == 143 and signal.getsignal(signal.SIGALRM) is handler
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)
    said = f'The time is up (minutes): stopped in epoch 1 after step 1; the state is kept in {config.folder}'
    assert said in capsys.readouterr().out
    train(config, *faces)
    assert 's left' in capsys.readouterr().out
    same_run(config.folder, whole)
    starts = read_record(config.folder)['starts']
    assert [(s['epoch'], s['step']) for s in starts] == [(0, 0), (0, 1)]
    assert read_metrics(config.folder, 'times')[-1]['seconds_left'] == 0


def test_the_time_that_is_left():
    "Steps and measurements that are still to do; the last epoch is always measured."
    config = configure(**SMALL | dict(epochs=5, test_every=2))
    assert [seconds_left(config, done, 10, 1.0, 100.0) for done in range(6)] == [350, 340, 230, 220, 110, 0]
    assert [write_duration(s) for s in (0.4, 99, 100, 5940, 6000, 90000)] == [
        '0 s',
        '99 s',
        '2 min',
        '99 min',
        '1 h 40 min',
        '25 h 00 min',
    ]


@pytest.mark.slow
def test_a_full_disk_stops_and_the_last_state_goes_on(faces, whole, tmp_path, monkeypatch):
    config, sync, calls, kept = configure(**SMALL | EVERY_STEP, output=str(tmp_path / 'run')), os.fsync, [], {}

    def full(file):
        calls.append(1)
        if len(calls) > 8:
            kept.setdefault('state', (config.folder / 'state.safetensors').read_bytes())
            raise OSError(errno.ENOSPC, 'No space left on device')
        sync(file)

    monkeypatch.setattr(checkpoints.os, 'fsync', full)
    said = 'No space left on device: state.safetensors could not be written; what was there is untouched. Make room'
    with pytest.raises(OSError, match=said):
        train(config, *faces)
    assert (config.folder / 'state.safetensors').read_bytes() == kept['state']
    assert not [p.name for p in config.folder.iterdir() if re_temporary(p.name)]
    monkeypatch.setattr(checkpoints.os, 'fsync', sync)
    train(config, *faces)
    same_run(config.folder, whole)


def re_temporary(name: str) -> bool:
    return name.startswith('.') and name != '.lock'


def test_a_damaged_state_stops_the_run_and_is_left_alone(faces, tmp_path):
    config = configure(**SMALL | dict(epochs=1), output=str(tmp_path / 'run'))
    train(config, *faces)
    state = config.folder / 'state.safetensors'
    os.truncate(state, state.stat().st_size - 5)
    before = {p.name: p.read_bytes() for p in config.folder.iterdir()}
    with pytest.raises(ValueError, match='not a readable safetensors file .* Delete it to begin this run anew'):
        train(config, *faces)
    assert before == {p.name: p.read_bytes() for p in config.folder.iterdir()}


def test_another_recipe_or_other_faces_are_refused(faces, tmp_path):
    config = configure(**SMALL | dict(epochs=1), output=str(tmp_path / 'run'))
    train(config, *faces)
    before = {p.name: p.read_bytes() for p in config.folder.iterdir()}
    with pytest.raises(ValueError, match='sigma: 1.5 there, 2.0 now'):
        train(replace(config, sigma=2.0), *faces)
    with pytest.raises(ValueError, match='faces: .* Name another output'):
        train(config, faces[0][:16], faces[1])
    assert before == {p.name: p.read_bytes() for p in config.folder.iterdir()}
    train(replace(config, sigma=2.0, resume=False), *faces)  # deletes and starts anew
    assert json.loads((config.folder / 'config.json').read_text())['sigma'] == 2


class Poison(torch.autograd.Function):
    "The value itself; its gradient is not a number."

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * math.nan


@pytest.mark.parametrize(
    'poison', [lambda loss: loss * math.nan, lambda loss: loss * math.inf, Poison.apply], ids=['nan', 'inf', 'gradient']
)
def test_what_is_not_finite_stops_and_keeps_the_state_before(faces, tmp_path, monkeypatch, poison):
    "At step 2 of epoch 2, with a state after every step: the state is that of step 1, and the faces are named."
    config, honest, calls = configure(**SMALL | EVERY_STEP, output=str(tmp_path / 'run')), training.step_loss, []

    def spoilt(*args):
        calls.append(1)
        return poison(honest(*args)) if len(calls) == 5 else honest(*args)

    monkeypatch.setattr(training, 'step_loss', spoilt)
    with pytest.raises(FloatingPointError, match='epoch 2, step 2: the loss or its gradient is not finite') as told:
        train(config, *faces)
    names = [faces[0].names[i] for i in plan_epoch(config, faces[0], 1).order[1].tolist()]
    assert str(told.value).endswith('Faces: ' + ', '.join(sorted(names)))
    net = build_network(config, 68)
    adam = torch.optim.Adam(net.parameters(), fused=True)
    assert load_state(config.folder / 'state.safetensors', net, adam, run_of(config.folder))[:2] == (1, 1)
    assert all(v.isfinite().all() for v in net.state_dict().values())
    assert all(v['exp_avg'].isfinite().all() for v in adam.state_dict()['state'].values())


def test_check_finite_names_the_first_bad_step(faces, tmp_path):
    plan, losses = plan_epoch(configure(**SMALL), faces[0], 0), torch.tensor([1.0, math.inf, math.nan])
    check_finite(losses[:1], plan, 0, faces[0], tmp_path)
    with pytest.raises(FloatingPointError, match='epoch 1, step 2'):
        check_finite(losses, plan, 0, faces[0], tmp_path)


# What is trained


@pytest.mark.slow
def test_every_method_trains(faces, tmp_path):
    for method in METHODS:
        config = configure(**SMALL | dict(epochs=2), method=method, output=str(tmp_path / method))
        net = train(config, *faces)
        rows = read_metrics(config.folder)
        assert (
            len(rows) == 2
            and all(math.isfinite(r['loss']) for r in rows)
            and all(math.isfinite(v) for v in rows[1]['nme'].values())
        )
        assert find_method(method).decoder in rows[-1]['nme'] and type(net) is find_method(method).network


@pytest.mark.slow
def test_training_learns(faces, tmp_path):
    config = configure(**dict(SMALL, epochs=8), method='siamese', output=str(tmp_path / 'run'))
    train(config, *faces)
    losses = [r['loss'] for r in read_metrics(config.folder)]
    assert losses[-1] < 0.85 * losses[0]


def test_init_begins_with_another_runs_weights(faces, whole, tmp_path):
    "With a learning rate of next to nothing, what comes out is what went in."
    still = configure(**SMALL | dict(epochs=1, lr=1e-12, seed=5), init=str(whole), output=str(tmp_path / 'second'))
    first, second = load_weights(whole)[0], train(still, *faces)
    drift = max((a - b).abs().max().item() for a, b in zip(first.parameters(), second.parameters()))
    assert (
        drift
        < 1e-9
        < max((a - b).abs().max().item() for a, b in zip(first.parameters(), build_network(still, 68).parameters()))
    )
    with pytest.raises(FileNotFoundError, match='no weights there'):
        train(replace(still, init=str(tmp_path / 'none'), output=str(tmp_path / 'third')), *faces)


# What is read


class Oracle(torch.nn.Module):
    "A network that draws the truth, batch after batch."

    points, start = 68, 0

    def __init__(self, test):
        super().__init__()
        self.test, self.weight = test, torch.nn.Parameter(torch.zeros(1))

    def forward(self, x):
        i = slice(self.start, self.start + len(x))
        self.start += len(x)
        return [encode(self.test.points[i] - self.test.margin, 16)]


def test_predict_reads_heatmaps_where_the_faces_are(faces):
    "The truth is read back as the truth, in the pixels of `faces.points`."
    test = faces[1]
    found, scores = predict(Oracle(test), test, batch=3)
    error = (found['local'] - test.points)[test.visible].norm(dim=-1)
    assert error.mean() < 0.25 and scores.shape == (8, 68)  # 0.03 heatmap px of 4 px, borders included
    assert face_errors(found['argmax'], test).mean() > 3 * face_errors(found['local'], test).mean()
    odd = replace(
        test,
        points=test.points[:, :4],
        visible=test.visible[:, :4],
        scheme=dataclasses.replace(test.scheme, name='own4', points=4, pairs=None, eyes=(), pupils=(), regions={}),
    )
    with pytest.raises(ValueError, match='answers 68 landmarks, the faces have 4'):
        predict(Oracle(test), odd)


def test_shares_of_the_test_faces_are_all_of_them_once(faces, whole):
    "Eight faces among three processes: 3, 3 and 2, in order."
    net = load_weights(whole)[0]
    all_found, all_scores = predict(net, faces[1], batch=3)
    parts = [predict(net, faces[1], batch=2, rank=r, count=3) for r in range(3)]
    assert [len(s) for _, s in parts] == [3, 3, 2]
    assert torch.allclose(torch.cat([s for _, s in parts]), all_scores, atol=1e-5)
    for name in all_found:
        assert torch.allclose(torch.cat([f[name] for f, _ in parts]), all_found[name], atol=1e-2), name


def test_own_decoders_and_corrections_are_answered(faces):
    net = build_network(configure(**SMALL, method='static'), 68)
    torch.nn.init.constant_(net.correction.bias, 0.5)
    found, _ = predict(
        net,
        faces[1],
        decoders=dict(
            corner=lambda h: (torch.zeros(*h.shape[:2], 2), h.amax((-2, -1))),
            argmax=lambda h: training.decode(h, 'argmax'),
        ),
    )
    assert set(found) == {'corner', 'argmax', 'corrected'}
    assert torch.allclose(
        found['corner'], torch.full((8, 68, 2), 1.5 + faces[1].margin)
    )  # heatmap pixel 0 in px of the view
    assert torch.allclose(found['corrected'], found['argmax'] + 0.5 * 4, atol=1e-4)
