"What a run may be told, and the network that it names: subpixel_nb.training.recipe."

import math

import pytest
import torch

from subpixel_nb.model.augmentation import AUGMENTS
from subpixel_nb.model.rivals import find_method
from subpixel_nb.training.launch import read_parameters
from subpixel_nb.training.recipe import (
    NOT_LEARNT,
    SCHEDULES,
    Config,
    build_network,
    configure,
    job_parameters,
    learnt_from,
    run_command,
)

SMALL = dict(dataset='synthetic', width=8, stacks=1, size=64, depth=2)


def test_recipes_are_the_papers():
    c = configure(dataset='300w')
    assert (c.width, c.stacks, c.size, c.epochs, c.lr, c.batch, c.sigma, c.tau, c.window) == (
        256,
        2,
        256,
        50,
        1e-4,
        16,
        1.5,
        10,
        5,
    )
    rate = [c.lr * SCHEDULES[c.schedule](e / c.epochs) for e in range(50)]
    assert (
        rate[0] == rate[24] == 1e-4
        and rate[25] == rate[39] == pytest.approx(1e-5)
        and rate[40] == rate[49] == pytest.approx(1e-6)
    )
    assert (
        configure().dataset == 'synthetic'
        and configure(width=64).width == 64
        and configure(width=None).width == configure().width
    )


def test_onecycle_warms_up_and_ends_at_zero():
    rate = SCHEDULES['onecycle']
    assert rate(0.0) == 0 and rate(0.05) == pytest.approx(0.5) and rate(0.1) == 1
    assert rate(0.55) == pytest.approx(0.5) and rate(1.0) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(
    'wrong, said',
    [
        (dict(widht=64), "unknown parameter 'widht'; known: width"),
        (dict(width=-64), 'width: expected a positive number, got -64'),
        (dict(width=64.0), 'width: expected int, got float 64.0'),
        (dict(epochs='8'), "epochs: expected int, got str '8'"),
        (dict(resume='false'), "resume: expected bool, got str 'false'. write True or False"),
        (dict(lr='1e-4'), "lr: expected float, got str '1e-4'. write 0.0001 or 1.0e-4"),
        (dict(epochs=True), 'epochs: expected int, got bool'),
        (dict(lr=math.nan), 'lr: expected a positive number, got nan'),
        (dict(save_minutes=0), 'save_minutes: expected a positive number, got 0'),
        (dict(dataset='300'), "unknown dataset '300'; known: 300w"),
        (dict(test_on='300'), "unknown dataset '300'"),
        (dict(dataset='300w-lp'), '300w-lp has no faces to test on: name a dataset that has with test_on'),
        (dict(method='local-softargmax'), "unknown method 'local-softargmax'; known: local"),
        (dict(merging='mean'), "unknown merging 'mean'"),
        (dict(augment='storng'), "unknown augment 'storng'; known: strong"),
        (dict(augment=1), 'augment: expected str, got int 1'),
        (dict(limit='all'), "limit: expected int, got str 'all'"),
        (dict(root=3), 'root: expected str, got int 3'),
        (dict(schedule='steps'), "unknown schedule 'steps'; known: step"),
        (dict(precision='fp16'), "unknown precision 'fp16'; known: bf16"),
        (dict(compile='yes'), "unknown compile 'yes'"),
        (dict(window=4), 'window: expected an odd number, got 4'),
        (dict(processes=3), 'batch: expected a multiple of processes .3., got 16'),
        (dict(size=100), 'size: expected a multiple of'),
        (dict(stride=5), 'stride: expected one of 4, 8, 16, got 5'),
        (dict(stride='8'), "stride: expected int, got str '8'"),
        (dict(stride=16, depth=4), 'got 128; with 128 px, the largest depth is 3'),
        (dict(batch='all'), "batch: expected a whole number or auto, got 'all'"),
        (dict(batch=8.0), 'batch: expected int, got float 8.0'),
        (dict(minutes=0), 'minutes: expected a positive number, got 0'),
    ],
)
def test_wrong_parameters(wrong, said):
    with pytest.raises(ValueError, match=said):
        configure(**wrong)


def test_the_papers_views_unless_others_are_named():
    assert Config().augment == configure(dataset='300w').augment == 'paper'
    assert [configure(**SMALL, augment=name).augment for name in AUGMENTS] == list(AUGMENTS)


def test_a_config_that_is_older_than_a_field_has_its_default():
    "A weights file of an earlier version names no augment."
    old = {name: value for name, value in learnt_from(configure(**SMALL)).items() if name != 'augment'}
    assert learnt_from(Config(**old)) == learnt_from(configure(**SMALL))


def test_the_stride_is_learnt_from_and_builds_the_network():
    "A run of another stride is another run; a config of an earlier version, which names none, has stride 4."
    wide = configure(**SMALL, stride=8)
    assert learnt_from(wide) == learnt_from(configure(**SMALL)) | dict(stride=8)
    assert Config(**{k: v for k, v in learnt_from(configure(**SMALL)).items() if k != 'stride'}).stride == 4
    assert configure(**read_parameters(run_command(wide)[3:])) == wide
    for method in ('local', 'static'):
        net = build_network(configure(**SMALL, stride=8, method=method), 5)
        assert type(net) is find_method(method).network and net.stride == 8


def test_a_method_that_was_looked_up_is_not_looked_up_again(monkeypatch):
    config, method = configure(**SMALL, method='static'), find_method('static')
    expected = build_network(config, 5).state_dict()
    monkeypatch.setattr('subpixel_nb.training.recipe.find_method', None)
    found = build_network(config, 5, method)
    assert type(found) is method.network
    assert all(torch.equal(a, b) for a, b in zip(found.state_dict().values(), expected.values()))


def test_job_parameters_are_the_plain_names():
    names = dict(dataset='300w', _hidden=1, In=[], Out={}, torch=torch, configure=configure, lr=0.1, root=None)
    assert job_parameters(names) == dict(dataset='300w', lr=0.1, root=None)


def test_a_seed_names_a_network_and_leaves_the_global_numbers_alone():
    before = torch.random.get_rng_state()
    nets = [build_network(configure(**SMALL, seed=s), 68) for s in (0, 0, 1)]
    first = [next(n.parameters()) for n in nets]
    assert torch.equal(first[0], first[1]) and not torch.equal(first[0], first[2])
    assert torch.equal(before, torch.random.get_rng_state())


def test_what_does_not_change_what_is_learnt():
    "Another place, another number of processes: the same run. Another sigma or seed: another."
    here = learnt_from(configure(**SMALL))
    assert here == learnt_from(
        configure(**SMALL, output='there', processes=2, save_minutes=1.0, compile='off', resume=False, minutes=3)
    )
    for other in (dict(sigma=2.0), dict(seed=1), dict(precision='bf16'), dict(limit=10), dict(augment='strong')):
        assert here != learnt_from(configure(**SMALL, **other))
    assert not here.keys() & set(NOT_LEARNT)


@pytest.mark.parametrize(
    'given',
    [
        {},
        SMALL,
        dict(dataset='300w', lr=3e-5, batch='auto', minutes=170, output='my runs/a b'),
        dict(dataset='synthetic-wild', root='x', resume=False, limit=None, save_minutes=0.5),
    ],
)
def test_a_run_names_the_command_that_makes_it_again(given):
    "The words, read as a shell's, give the same config; only what the recipe does not say is among them."
    config = configure(**given)
    words = run_command(config)
    assert words[:3] == ['python', '-m', 'subpixel_nb.launch'] and configure(**read_parameters(words[3:])) == config
    assert words[3::3] == ['-p'] * (len(words) // 3 - 1) and len(words) <= 6 + 3 * len(given)
