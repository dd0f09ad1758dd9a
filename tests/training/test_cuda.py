"""Every step on a GPU: faked where there is none, compared with the CPU where there is one.

A fake tensor has a device and a shape, and no numbers. An operation on tensors of two devices raises an error there,
and so does everything for which the host needs a number: an item, a mask as an index, nonzero. Only a build of PyTorch
with CUDA can fake a GPU, and only forward passes can be faked."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import cache
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from subpixel_nb.codec.decoding import DECODERS, decode, gaussian_fit, gaussian_fit_plain, local_softargmax_plain
from subpixel_nb.codec.encoding import MODES, encode
from subpixel_nb.data.crops import Faces
from subpixel_nb.data.synthetic import synthetic_faces
from subpixel_nb.model.augmentation import AUGMENTS, restore
from subpixel_nb.model.hourglass import StackedHourglass
from subpixel_nb.model.rivals import METHODS, find_method
from subpixel_nb.model.siamese import MERGES
from subpixel_nb.training.loop import Feed, build_trainer, plan_epoch, predict, random_view, step_loss, train
from subpixel_nb.training.recipe import Config, build_network

CPU, CUDA = torch.device('cpu'), torch.device('cuda')
WHY_NOT_FAKED = (
    'this build of PyTorch has no CUDA, so it cannot fake a GPU'
    if torch.version.cuda is None
    else 'here is a GPU, and the other tests use it'
)
fake = pytest.mark.skipif(torch.version.cuda is None or torch.cuda.is_available(), reason=WHY_NOT_FAKED)
real = pytest.mark.skipif(not torch.cuda.is_available(), reason='no CUDA device: nothing is run on a GPU')


class Host(TorchDispatchMode):
    """Computes for real what needs no GPU, and notes in `copies` what is copied from the GPU to the host.

    Such a copy is all zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.copies: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        values = tree_leaves((args, kwargs or {}))
        places = {v.device.type for v in values if isinstance(v, Tensor)}
        wanted = {v.type for v in values if isinstance(v, torch.device)}
        with nullcontext() if 'cuda' in places | wanted else unset_fake_temporarily():
            out = func(*args, **(kwargs or {}))
        if 'cuda' in places and isinstance(out, Tensor) and out.device.type == 'cpu':
            self.copies.append(func.name())
            with unset_fake_temporarily():
                return torch.zeros(out.shape, dtype=out.dtype)
        return out


def bf16_on_cuda(device: torch.device, precision: str) -> torch.autocast:
    "autocast on the GPU, which otherwise turns itself off where there is none."
    found = dict(is_available=mock.Mock(return_value=True), is_bf16_supported=mock.Mock(return_value=True))
    with mock.patch.multiple(torch.cuda, **found):
        return torch.autocast(device.type, torch.bfloat16)


@contextmanager
def faked_gpu() -> Iterator[list[str]]:
    "Tensors on the device `cuda` are fakes in the block; the list has what was copied from there to the host."
    host = Host()
    with (
        mock.patch.object(torch.cuda, 'mem_get_info', lambda device: (10**12, 10**12)),
        mock.patch.object(torch.cuda, 'current_stream', lambda device: SimpleNamespace(synchronize=lambda: None)),
        # (kornia waits once in a process, when it has made its JPEG tables)
        mock.patch('subpixel_nb.training.loop.autocast', bf16_on_cuda),
        torch.backends.cudnn.flags(enabled=False),  # cuDNN's sampling of grids has no fake
        FakeTensorMode(allow_non_fake_inputs=True, allow_fallback_kernels=False),
        host,
    ):
        yield host.copies


@cache
def four_faces() -> Faces:
    return synthetic_faces(4, size=64)


def small(**given) -> Config:
    usual = dict(width=8, stacks=2, size=64, depth=2, batch=4, precision='float32', compile='off')
    return Config(dataset='synthetic', **usual | given)


def first_loss(config: Config, device: torch.device, net: nn.Module) -> Tensor:
    "The loss of a run's first step on a device."
    faces, method = four_faces(), find_method(config.method)
    trainer, plan = build_trainer(config, method, Feed(faces, device), net), plan_epoch(config, faces, 0, method.views)
    crops = next(trainer.feed.batches(plan.order))
    return step_loss(trainer, crops, plan.order.to(device)[0], trainer.draw(plan.seeds[0], 4))


def network(config: Config, device: torch.device) -> StackedHourglass:
    "The config's network, built on a device (a fake one cannot be moved there)."
    with device:
        return find_method(config.method).network(68, config.stacks, config.width, config.depth)


STEPS = {name: dict(method=name) for name in METHODS}
STEPS |= {f'siamese-{merging}': dict(method='siamese', merging=merging) for merging in MERGES}
STEPS |= {f'{name}-strong': dict(method=name, augment='strong') for name in ('local', 'siamese')}


@fake
def test_the_fake_notices_two_devices_and_who_waits():
    with faked_gpu() as copies:
        x = torch.ones(2, 5, 16, 16, device=CUDA)
        for wrong in (
            lambda: x + torch.ones(16),
            lambda: x.sum().item(),
            lambda: bool(x.isfinite().all()),
            lambda: x.nonzero(),
            lambda: x[x > 0],
        ):
            with pytest.raises(RuntimeError):
                wrong()
        assert not copies
        assert x.cpu().sum().item() == 0 and copies == ['aten::_to_copy']
        assert torch.ones(3).sum().item() == 3  # the host's own numbers are real


@fake
@pytest.mark.parametrize('name', STEPS)
def test_fake_training_step(name):
    "The views, the network in bf16 and the loss of every method: one device, and no wait."
    config = small(**STEPS[name])
    with faked_gpu() as copies:
        loss = first_loss(config, CUDA, network(config, CUDA).train())
        assert loss.device.type == 'cuda' and loss.shape == () and loss.requires_grad and not copies


@fake
@pytest.mark.parametrize('name', METHODS)
def test_fake_predict(name):
    "All decoders read a batch before the host waits for it: then each gives its points, and the last one its scores."
    config = small(method=name)
    with faked_gpu() as copies:
        found, scores = predict(network(config, CUDA), four_faces(), batch=2)
    assert set(DECODERS) <= set(found) and scores.shape == (4, 68) and scores.device.type == 'cpu'
    assert copies == 2 * (len(found) + 1) * ['aten::_to_copy']


@fake
@pytest.mark.parametrize('name', DECODERS)
def test_fake_decoder(name):
    with faked_gpu() as copies:
        points, score = decode(torch.zeros(2, 5, 64, 64, device=CUDA), name)
        assert points.device.type == score.device.type == 'cuda' and not copies


@fake
@pytest.mark.parametrize('fit', [gaussian_fit, gaussian_fit_plain, local_softargmax_plain])
def test_fake_fit(fit):
    with faked_gpu() as copies:
        assert all(v.device.type == 'cuda' for v in tree_leaves(vars_of(fit(torch.zeros(2, 5, 64, 64, device=CUDA)))))
        assert not copies


def vars_of(found: object) -> object:
    return found if isinstance(found, tuple) else vars(found)


@fake
@pytest.mark.parametrize('mode', MODES)
@pytest.mark.parametrize('amplitude', ['peak', 'density'])
def test_fake_encoder(mode, amplitude):
    with faked_gpu() as copies:
        points, visible = torch.zeros(2, 5, 2, device=CUDA), torch.ones(2, 5, dtype=torch.bool, device=CUDA)
        sigma, memory = torch.ones(2, 1, device=CUDA), torch.empty(2, 5, 64, 64, device=CUDA)
        for given in (dict(), dict(sigma=sigma, visible=visible), dict(out=memory)):
            assert encode(points, mode=mode, amplitude=amplitude, **given).device.type == 'cuda'
        assert not copies


@fake
@pytest.mark.parametrize('augment', AUGMENTS)
def test_fake_views(augment):
    "A random view, and the way back of its heatmaps."
    config, faces = small(augment=augment), four_faces()
    with faked_gpu() as copies:
        trainer = build_trainer(config, find_method('local'), Feed(faces, CUDA), nn.Identity())
        [drawn] = trainer.draw(torch.tensor([3]), 4)
        feed = trainer.feed
        view = random_view(trainer.views, drawn, feed.images, feed.points, feed.visible, feed.permutation, faces.size)
        upright, seen = restore(torch.zeros(4, 68, 16, 16, device=CUDA), view, feed.permutation)
        assert {v.device.type for v in (view.images, view.points, upright, seen)} == {'cuda'} and not copies


@real
@pytest.mark.parametrize('name', STEPS)
def test_a_step_on_the_gpu_is_that_of_the_cpu(name):
    "In float32, the loss and the gradient of the first weights."
    config, losses, gradients = small(**STEPS[name]), [], []
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        for device in (CPU, CUDA):
            net = build_network(config, 68).to(device).train()
            losses.append(first_loss(config, device, net))
            losses[-1].backward()
            gradients.append(next(net.parameters()).grad.cpu())
    noisy = STEPS[name].get('augment') == 'strong'  # its noise is drawn on the device
    assert losses[1].item() == pytest.approx(losses[0].item(), rel=0.2 if noisy else 1e-3)
    if not noisy:
        assert (gradients[1] - gradients[0]).norm() < 0.02 * gradients[0].norm()


@real
def test_the_gpu_predicts_as_the_cpu():
    config = small()
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        answers = [predict(build_network(config, 68).to(device), four_faces())[0] for device in (CPU, CUDA)]
    for name in DECODERS:
        gap = (answers[0][name] - answers[1][name]).abs()
        assert np.median(gap.numpy()) < 0.05, name  # of an untrained network, whose peaks are near ties


@real
@pytest.mark.parametrize('compiled', ['off', 'on'])
def test_a_run_on_the_gpu_goes_on_where_it_was(compiled, tmp_path):
    "Two epochs in bf16, eager and compiled: the second call finds a finished run and loads its weights."
    config = small(precision='bf16', compile=compiled, epochs=2, method='siamese', output=str(tmp_path / 'run'))
    trained = train(config, four_faces(), four_faces())
    again = train(config, four_faces(), four_faces())
    for a, b in zip(trained.state_dict().values(), again.state_dict().values()):
        assert a.device.type == 'cuda' and torch.equal(a, b)
