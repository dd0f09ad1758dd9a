"Configs, files and the loop of subpixel_nb.training, on small drawn faces."
import json
import math
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from subpixel_nb.datasets import load_faces
from subpixel_nb.training import (SCHEDULES, build_network, configure, evaluation_config, face_errors, job_parameters, load_state, load_weights,
                                  predict, read_metrics, save_state, save_weights, train, write_atomic)

SMALL = dict(dataset='synthetic', width=8, stacks=1, size=64, depth=2, epochs=3, batch=8, lr=3e-3, limit=24, test_every=2,
             precision='float32')


@pytest.fixture(scope='module')
def faces():
    return load_faces('synthetic', 'train', size=64, limit=24), load_faces('synthetic', 'test', size=64, limit=8)


def test_recipes_are_the_papers():
    c = configure(dataset='300w')
    assert (c.width, c.stacks, c.size, c.epochs, c.lr, c.batch, c.sigma, c.tau, c.window) == (256, 2, 256, 50, 1e-4, 16, 1.5, 10, 5)
    rate = [c.lr * SCHEDULES[c.schedule](e / c.epochs) for e in range(50)]
    assert rate[0] == rate[24] == 1e-4 and rate[25] == rate[39] == pytest.approx(1e-5) and rate[40] == rate[49] == pytest.approx(1e-6)
    assert configure().dataset == 'synthetic' and configure(width=64).width == 64 and configure(width=None).width == configure().width


@pytest.mark.parametrize('wrong, said', [
    (dict(widht=64), "unknown parameter 'widht'; known: width"),
    (dict(width=-64), 'width: expected a positive number, got -64'),
    (dict(width=64.), 'width: expected int, got float 64.0'),
    (dict(epochs='8'), "epochs: expected int, got str '8'"),
    (dict(resume='false'), "resume: expected bool, got str 'false'. write True or False"),
    (dict(lr='1e-4'), "lr: expected float, got str '1e-4'. write 0.0001 or 1.0e-4"),
    (dict(epochs=True), 'epochs: expected int, got bool'),
    (dict(lr=math.nan), 'lr: expected a positive number, got nan'),
    (dict(dataset='300'), "unknown dataset '300'; known: 300w"),
    (dict(method='local-softargmax'), "unknown method 'local-softargmax'; known: local"),
    (dict(merging='mean'), "unknown merging 'mean'"),
    (dict(schedule='steps'), "unknown schedule 'steps'; known: step"),
    (dict(window=4), 'window: expected an odd number, got 4'),
    (dict(size=100), 'size: expected a multiple of'),
])
def test_wrong_parameters(wrong, said):
    with pytest.raises(ValueError, match=said.replace('*', r'\*')): configure(**wrong)


def test_job_parameters_are_the_plain_names():
    names = dict(dataset='300w', _hidden=1, In=[], Out={}, torch=torch, configure=configure, lr=0.1, root=None)
    assert job_parameters(names) == dict(dataset='300w', lr=0.1, root=None)


def test_a_seed_is_a_run_and_a_resumed_run_is_the_same_run(faces, tmp_path, monkeypatch):
    "Stopped after epoch 2 by an error in the middle of epoch 3, then resumed: bit for bit the run that was not stopped."
    whole = train(configure(**SMALL, output=str(tmp_path / 'whole')), *faces)
    import subpixel_nb.training as module
    calls, honest = [], module.training_loss

    def fails_at_step_8(*args):
        calls.append(1)
        if len(calls) == 8: raise KeyboardInterrupt
        return honest(*args)
    monkeypatch.setattr(module, 'training_loss', fails_at_step_8)
    config = configure(**SMALL, output=str(tmp_path / 'stopped'))
    with pytest.raises(KeyboardInterrupt): train(config, *faces)
    assert [r['epoch'] for r in read_metrics(config.folder)] == [1, 2] and not (config.folder / 'weights.safetensors').exists()
    monkeypatch.setattr(module, 'training_loss', honest)
    (config.folder / 'metrics.jsonl').open('a').write('{"epoch": 3, "lo')              # a line that a kill cut short
    resumed = train(config, *faces)
    for (name, a), b in zip(whole.state_dict().items(), resumed.state_dict().values()): assert torch.equal(a, b), name
    a, b = read_metrics(tmp_path / 'whole'), read_metrics(config.folder)
    assert [r['epoch'] for r in b] == [1, 2, 3] and [r['loss'] for r in a] == [r['loss'] for r in b]
    assert 'nme' in b[1] and 'nme' in b[2] and 'nme' not in b[0]
    again = train(config, *faces)                                                       # finished: nothing is trained
    assert torch.equal(next(again.parameters()), next(resumed.parameters()))


def test_another_seed_is_another_run(faces, tmp_path):
    nets = [build_network(configure(**SMALL, seed=s), 68) for s in (0, 0, 1)]
    first = [next(n.parameters()) for n in nets]
    assert torch.equal(first[0], first[1]) and not torch.equal(first[0], first[2])
    before = torch.random.get_rng_state()
    build_network(configure(**SMALL), 68)
    assert torch.equal(before, torch.random.get_rng_state())


def test_a_folder_refuses_another_run(faces, tmp_path):
    here = dict(SMALL, epochs=1, output=str(tmp_path / 'run'))
    train(configure(**here), *faces)
    with pytest.raises(ValueError, match='sigma: 1.5 there, 2.0 now'): train(configure(**dict(here, sigma=2.)), *faces)
    with pytest.raises(ValueError, match='faces: .* Name another output'): train(configure(**here), faces[0][:16], faces[1])
    train(configure(**dict(here, sigma=2., resume=False)), *faces)                     # deletes and starts anew
    assert json.loads((tmp_path / 'run/config.json').read_text())['sigma'] == 2
    (tmp_path / 'mine').mkdir(); (tmp_path / 'mine/thesis.tex').write_text('x')
    with pytest.raises(ValueError, match='holds no run: it is not deleted'):
        train(configure(**dict(here, resume=False, output=str(tmp_path / 'mine'))), *faces)


def test_training_learns_and_every_method_runs(faces, tmp_path):
    for method in ('baseline', 'siamese'):
        config = configure(**dict(SMALL, epochs=6), method=method, output=str(tmp_path / method))
        train(config, *faces)
        losses = [r['loss'] for r in read_metrics(config.folder)]
        assert losses[-1] < 0.9 * losses[0]


def test_a_loss_that_is_not_finite_stops_and_keeps_the_state(faces, tmp_path, monkeypatch):
    import subpixel_nb.training as module
    config = configure(**SMALL, output=str(tmp_path / 'run'))
    honest, calls = module.training_loss, []
    monkeypatch.setattr(module, 'training_loss', lambda *a: honest(*a) * (math.nan if calls.append(1) or len(calls) > 4 else 1))
    with pytest.raises(FloatingPointError, match='epoch 2: the loss is nan. The state after epoch 1'): train(config, *faces)
    net = build_network(config, 68)
    assert load_state(config.folder / 'state.safetensors', net, torch.optim.Adam(net.parameters())) == 1
    assert all(p.isfinite().all() for p in net.parameters())


def test_state_and_weights_survive_the_disk(faces, tmp_path):
    config = configure(**SMALL)
    net = build_network(config, 68)
    optimiser = torch.optim.Adam(net.parameters(), 1e-3, fused=True)
    net(torch.rand(2, 3, 64, 64))[-1].square().sum().backward(); optimiser.step()
    save_state(tmp_path / 's', net, optimiser, 7)
    other = build_network(configure(**SMALL, seed=5), 68)
    adam = torch.optim.Adam(other.parameters(), 1e-3, fused=True)
    assert load_state(tmp_path / 's', other, adam) == 7
    for a, b in zip(net.state_dict().values(), other.state_dict().values()): assert torch.equal(a, b)
    saved, found = optimiser.state_dict()['state'], adam.state_dict()['state']
    assert saved.keys() == found.keys()
    for i in saved:
        for k in ('exp_avg', 'exp_avg_sq', 'step'):
            assert torch.equal(saved[i][k], found[i][k]) and saved[i][k].stride() == found[i][k].stride()
    save_weights(tmp_path / 'weights.safetensors', net, config, faces[0])
    for path in (tmp_path, tmp_path / 'weights.safetensors'):
        loaded, found = load_weights(path)
        assert found == config and torch.equal(next(loaded.parameters()), next(net.parameters())) and not loaded.training


def test_weights_that_are_none(tmp_path):
    with pytest.raises(FileNotFoundError, match='no trained network here'): load_weights(tmp_path)
    (tmp_path / 'weights.safetensors').write_bytes(b'not safetensors')
    with pytest.raises(ValueError, match='not a readable safetensors file'): load_weights(tmp_path)
    save_file(dict(a=torch.zeros(1)), tmp_path / 'weights.safetensors')
    with pytest.raises(ValueError, match='without our config'): load_weights(tmp_path)


def test_write_atomic_leaves_the_old_file_where_writing_fails(tmp_path):
    path = tmp_path / 'f'
    path.write_text('old')
    def fails(p): p.write_text('half'); raise OSError('disk full')
    with pytest.raises(OSError, match='disk full'): write_atomic(path, fails)
    assert path.read_text() == 'old' and [p.name for p in tmp_path.iterdir()] == ['f']


def test_predict_reads_heatmaps_where_the_faces_are(faces):
    "A network that draws the truth is read back to the truth, in the pixels of `faces.points`."
    from subpixel_nb.encoding import encode
    test = faces[1]

    class Oracle(torch.nn.Module):
        points, start = 68, 0
        def __init__(self): super().__init__(); self.p = torch.nn.Parameter(torch.zeros(1))
        def forward(self, x):
            i = slice(self.start, self.start + len(x)); self.start += len(x)
            return [encode(test.points[i] - test.margin, 16)]
    found, scores = predict(Oracle(), test, batch=3)
    error = (found['local'] - test.points)[test.visible].norm(dim=-1)
    assert error.mean() < 0.25 and scores.shape == (8, 68)                              # 0.03 heatmap px of 4 px, borders included
    assert face_errors(found['argmax'], test).mean() > 3 * face_errors(found['local'], test).mean()
    with pytest.raises(ValueError, match='answers 68 landmarks, the faces have 4'):
        import dataclasses
        odd = dataclasses.replace(test, points=test.points[:, :4], visible=test.visible[:, :4],
                                  scheme=dataclasses.replace(test.scheme, name='own4', points=4, pairs=None, eyes=(), pupils=(), regions={}))
        predict(Oracle(), odd)


def test_init_begins_with_another_runs_weights(faces, tmp_path):
    "With a learning rate of next to nothing, what comes out is what went in; another network is refused, with the difference."
    first = train(configure(**SMALL | dict(epochs=1), output=str(tmp_path / 'first')), *faces)
    still = SMALL | dict(epochs=1, lr=1e-12, init=str(tmp_path / 'first'))
    second = train(configure(**still, seed=5, output=str(tmp_path / 'second')), *faces)
    drift = max((a - b).abs().max().item() for a, b in zip(first.parameters(), second.parameters()))
    assert drift < 1e-9 < max((a - b).abs().max().item() for a, b in zip(first.parameters(), build_network(
        configure(**SMALL, seed=5), 68).parameters()))
    with pytest.raises(ValueError, match='another network .width 8 there, 16 here'):
        train(configure(**still | dict(width=16), output=str(tmp_path / 'third')), *faces)
    with pytest.raises(FileNotFoundError, match='no trained network here'):
        train(configure(**still | dict(init=str(tmp_path / 'none')), output=str(tmp_path / 'fourth')), *faces)


def test_test_on_names_another_protocol(faces, tmp_path):
    config = configure(**SMALL, test_on='300w', test_root='there')
    assert config.tested == ('300w', 'there') and configure(**SMALL, root='here').tested == ('synthetic', 'here')
    with pytest.raises(ValueError, match="unknown dataset '300'"): configure(**SMALL, test_on='300')
    train(replace(config, epochs=1, output=str(tmp_path / 'run')), *faces)
    known, _ = evaluation_config(tmp_path / 'run')
    assert (known.dataset, known.root, known.test_on) == ('300w', 'there', None)
    given, _ = evaluation_config(tmp_path / 'run', dataset='300w-private')
    assert (given.dataset, given.root) == ('300w-private', None)
    given, _ = evaluation_config(tmp_path / 'run', dataset='synthetic')
    assert (given.dataset, given.root) == ('synthetic', None)
