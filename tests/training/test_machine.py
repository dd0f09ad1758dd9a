"What the loop asks of the machine: subpixel_nb.training.machine. Two processes are two real ones, over gloo."

import os
import subprocess
import sys
import textwrap
import warnings
from multiprocessing import get_context

import pytest
import torch
from conftest import ENVIRON, ROOT
from torch import nn

from subpixel_nb.model.siamese import l2_loss
from subpixel_nb.training.machine import (
    Vote,
    autocast,
    best_device,
    compiled,
    describe_sharing,
    find_device,
    keep_memory,
    processes,
    rest_threads,
    share_cores,
    share_machine,
    share_norms,
)

CPU = torch.device('cpu')


def two_processes(script: str, folder, timeout: float = 900) -> list[dict]:
    "What a script, run as two processes of one gloo group, leaves in `answer` in each."
    begin = """
        import sys
        import torch, torch.distributed as dist
        from torch import nn
        from subpixel_nb.training.machine import Vote, share_norms
        rank, folder = int(sys.argv[1]), sys.argv[2]
        torch.set_num_threads(1)
        dist.init_process_group('gloo', init_method=f'file://{folder}/meet', rank=rank, world_size=2)
        """
    script = '\n'.join(
        map(textwrap.dedent, (begin, script, 'torch.save(answer, f"{folder}/{rank}.pt"); dist.destroy_process_group()'))
    )
    both = [
        subprocess.Popen(
            [sys.executable, '-c', script, str(r), str(folder)],
            cwd=ROOT,
            env=ENVIRON,
            stderr=subprocess.PIPE,
            text=True,
        )
        for r in (0, 1)
    ]
    try:
        ends = [p.communicate(timeout=timeout)[1] for p in both]
    finally:
        for p in both:
            p.kill()
    assert [p.returncode for p in both] == [0, 0], ends
    return [torch.load(folder / f'{r}.pt', weights_only=True) for r in (0, 1)]


NORM = """
    def answers(make, share, data, weight, bias, momentum_steps=2):
        norm = make(data.shape[1]).to(weight.dtype)
        norm.weight.data.copy_(weight); norm.bias.data.copy_(bias)
        x = share(data).clone().requires_grad_()
        for _ in range(momentum_steps): out = norm(x)
        gradient = share(torch.linspace(-1, 1, data.numel()).view_as(data).sin().to(weight.dtype))
        (out.to(weight.dtype) * gradient).sum().backward()
        running = norm.running_mean, norm.running_var, norm.num_batches_tracked
        return out.detach(), x.grad, norm.weight.grad, norm.bias.grad, *running
    def data(dtype, mean, layout):
        g = torch.Generator().manual_seed(0)
        x = torch.randn(6, 5, 7, 3, generator=g, dtype=torch.float64) + mean * torch.arange(5.)[:, None, None]
        scale = torch.randn(2, 5, generator=g).to(torch.float64 if dtype is torch.float64 else torch.float32)
        return x.to(dtype).contiguous(memory_format=layout), *scale
"""


@pytest.mark.background
@pytest.mark.slow
def test_shared_norm_is_the_norm_of_the_whole_batch(tmp_path):
    """Two processes with half a batch each against nn.BatchNorm2d in double on all of it: output, gradients (those of
    weight and bias summed over the processes), running statistics; double, float, bf16 input; a mean 1000 times the
    deviation; both layouts; and eval mode."""
    cases = [
        (dtype, mean, layout)
        for dtype in ('float64', 'float32', 'bfloat16')
        for mean in (0.0, 1000.0)
        for layout in ('contiguous_format', 'channels_last')
        if dtype != 'bfloat16' or not mean
    ]
    text = textwrap.dedent(NORM)
    script = text + textwrap.dedent(f"""
        answer = []
        for dtype, mean, layout in {cases}:
            x, w, b = data(getattr(torch, dtype), mean, getattr(torch, layout))
            make = lambda c: share_norms(nn.Sequential(nn.BatchNorm2d(c)), torch.device('cpu'))[0]
            answer.append(answers(make, lambda t: t.chunk(2)[rank], x, w, b))
        norm = share_norms(nn.BatchNorm2d(5), torch.device('cpu')).eval()
        answer.append(norm(x.float()))
        """)
    scope: dict = dict(torch=torch)
    exec(text, scope)
    first, second = two_processes(script, tmp_path)
    for case, a, b in zip(cases, first, second):
        dtype, mean, layout = case
        x, w, bias = scope['data'](getattr(torch, dtype), mean, getattr(torch, layout))
        exact = [t.double() for t in (x, w, bias)]  # in float32 PyTorch's own sums depend on its threads
        whole = scope['answers'](nn.BatchNorm2d, lambda t: t, *exact)
        ours = [torch.cat([a[0], b[0]]), torch.cat([a[1], b[1]]), a[2] + b[2], a[3] + b[3]]
        tolerance = dict(float64=1e-9, float32=2e-4 if mean else 2e-6, bfloat16=1e-2)[dtype]
        for mine, torchs in zip(ours, whole):
            assert ((mine.double() - torchs.double()).abs().max() / torchs.double().abs().max()).item() < tolerance, (
                case
            )
        for k in (4, 5, 6):  # running statistics: the same in both
            assert torch.equal(a[k], b[k]) and torch.allclose(
                a[k].double(), whole[k].double(), rtol=max(tolerance, 1e-6)
            ), case
        assert a[0].dtype == x.dtype == a[1].dtype and a[0].is_contiguous(memory_format=getattr(torch, layout))
    assert torch.equal(first[-1], nn.BatchNorm2d(5).eval()(x.float()))


def test_shared_norm_in_a_group_of_none_is_the_plain_one():
    "Outside a group nothing is shared; the network's names and weights stay, and other norms are left alone."
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.BatchNorm1d(4))
    before, x = {k: v.clone() for k, v in net.state_dict().items()}, torch.randn(2, 4, 3, 3)
    shared = share_norms(net, CPU)
    assert [type(m).__name__ for m in shared] == ['Conv2d', 'SharedBatchNorm2d', 'BatchNorm1d']
    assert before.keys() == shared.state_dict().keys() and all(
        torch.equal(before[k], v) for k, v in shared.state_dict().items()
    )
    assert torch.equal(shared[1](x), nn.BatchNorm2d(4)(x))


@pytest.mark.background
@pytest.mark.slow
def test_shared_norm_under_autocast_keeps_bf16(tmp_path):
    first, _ = two_processes(
        """
        net = share_norms(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()), torch.device('cpu'))
        with torch.autocast('cpu', torch.bfloat16): out = net(torch.rand(2, 3, 8, 8))
        out.float().sum().backward()
        answer = dict(dtype=str(out.dtype), finite=all(p.grad.isfinite().all().item() for p in net.parameters()))
        """,
        tmp_path,
    )
    assert first == dict(dtype='torch.bfloat16', finite=True)


@pytest.mark.background
@pytest.mark.slow
def test_a_vote_is_whether_any_says_yes(tmp_path):
    first, second = two_processes(
        """
        vote = Vote(2)
        answer = [vote(rank == 0, False), vote(rank == 1), vote(False), vote(True, rank == 0, rank == 1)]
        """,
        tmp_path,
    )
    assert first == second == [[True, False], [True], [False], [True, True, True]]
    assert Vote(1)(True, False) == [True, False]


# One process


def test_precision_is_what_was_asked():
    assert not autocast(CPU, 'float32')._enabled and autocast(CPU, 'bf16')._enabled
    assert autocast(CPU)._enabled == torch.ops.mkldnn._is_mkldnn_bf16_supported()
    a = torch.rand(4, 4)
    with autocast(CPU, 'bf16'):
        assert (a @ a).dtype == torch.bfloat16
    with autocast(CPU, 'float32'):
        assert (a @ a).dtype == torch.float32
    assert best_device().type == ('cuda' if torch.cuda.is_available() else 'cpu')


def test_processes_without_a_launcher_are_one(monkeypatch):
    monkeypatch.setenv('ACCELERATE_MIXED_PRECISION', 'bf16')  # a habit of the user's: the config decides, not it
    one = processes()
    assert (one.num_processes, one.process_index, one.is_main_process, one.mixed_precision) == (1, 0, True, 'no')


def test_cores_are_shared(monkeypatch):
    before = torch.get_num_threads()
    monkeypatch.setattr('os.sched_getaffinity', lambda _: set(range(6)))
    monkeypatch.setenv('OMP_NUM_THREADS', '7')
    try:
        for count, threads in ((1, 6), (2, 3), (4, 1), (9, 1)):
            share_cores(count)
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


def test_memory_is_kept_without_changing_an_answer():
    x = torch.rand(1 << 20)
    expected = (x * 2).sum()
    assert keep_memory() in (True, False)
    for _ in range(3):
        assert torch.equal((x * 2).sum(), expected)


def test_a_forked_process_computes_on_several_threads():
    "Without `rest_threads` GNU's OpenMP has the child wait for threads that only the parent has (lesson 4.1 shows it)."
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        numbers = torch.rand(1_000_000)
        expected = numbers.exp().sum()
        if not rest_threads():
            pytest.skip('this OpenMP cannot end its threads')
        queue = get_context('fork').SimpleQueue()
        child = get_context('fork').Process(target=lambda: queue.put(numbers.exp().sum().item()))
        child.start()
        child.join(60)
        alive = child.is_alive()
        child.kill()
        assert (
            not alive and queue.get() == pytest.approx(expected.item()) and torch.equal(numbers.exp().sum(), expected)
        )
    finally:
        torch.set_num_threads(before)


# The compiler


def test_auto_does_not_compile_on_a_cpu():
    for how in ('auto', 'off'):
        assert compiled(l2_loss, CPU, how) is l2_loss


def loss_and_gradient(loss) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    heatmaps = torch.rand(2, 3, 8, 8, generator=g).requires_grad_()
    value = loss(heatmaps, torch.rand(2, 3, 8, 8, generator=g), torch.rand(2, 3, generator=g) > 0.3)
    value.backward()
    return value.detach(), heatmaps.grad


@pytest.mark.slow
def test_compiled_gives_the_same_loss():
    with warnings.catch_warnings():
        warnings.simplefilter('error', UserWarning)
        from torch._inductor.cpp_builder import get_cpp_compiler
        from torch._inductor.exc import InvalidCxxCompiler

        try:
            get_cpp_compiler()
        except InvalidCxxCompiler:
            pytest.skip('no C++ compiler here')
        for a, b in zip(loss_and_gradient(compiled(l2_loss, CPU, 'on')), loss_and_gradient(l2_loss)):
            assert torch.allclose(a, b, rtol=1e-5)


def test_what_does_not_compile_says_why_and_runs_as_it_is(monkeypatch):
    torch._dynamo.reset()
    monkeypatch.setattr(torch._inductor.config.cpp, 'cxx', ('no-such-compiler',))
    loss = compiled(lambda *a: l2_loss(*a) * 3, CPU, 'on')
    with pytest.warns(
        UserWarning, match='torch.compile does not work here, training goes on without it: .*no-such-compiler'
    ):
        found = loss_and_gradient(loss)
    with warnings.catch_warnings():
        warnings.simplefilter('error')  # it warns once
        again = loss_and_gradient(loss)
    for a, b, c in zip(found, again, loss_and_gradient(l2_loss)):
        assert torch.equal(a, b) and torch.allclose(a, 3 * c)


def test_an_error_of_the_function_itself_is_no_failed_compilation():
    loss = compiled(lambda x: x.undefined, CPU, 'on')
    with pytest.raises(AttributeError, match='undefined'):
        loss(torch.zeros(1))


# Devices that a user names


def test_devices_that_are_there():
    assert find_device() == best_device() and find_device('cpu') == find_device(CPU) == CPU
    assert find_device('meta').type == 'meta'


@pytest.mark.parametrize('given', ['gpu', 'CUDA', 'cdua', '', 0, 1.5])
def test_a_device_of_no_known_kind(given):
    with pytest.raises(ValueError, match='unknown device .*; known: .*cuda'):
        find_device(given)


@pytest.mark.parametrize('given', ['cuda:99', torch.device('cuda:99'), 'cuda:x', 'xpu', 'mps'])
def test_a_device_that_this_machine_does_not_have(given):
    "No machine of the tests has 100 GPUs, nor one of Intel's or Apple's."
    with pytest.raises(ValueError, match='device .* cannot be used here .*This machine has: cpu'):
        find_device(given)


@pytest.mark.skipif(torch.cuda.is_available(), reason='this machine has CUDA')
def test_cuda_without_cuda():
    with pytest.raises(
        ValueError, match=r"device 'cuda' cannot be used here \(.*(CUDA|NVIDIA).*\). This machine has: cpu$"
    ):
        find_device('cuda')


def test_a_machine_that_others_use_is_told(monkeypatch):
    monkeypatch.setattr(os, 'cpu_count', lambda: 4)
    monkeypatch.setattr(os, 'getloadavg', lambda: (4.0, 9.0, 9.0))
    assert describe_sharing() == ''
    monkeypatch.setattr(os, 'getloadavg', lambda: (4.26, 0.0, 0.0))
    assert describe_sharing().startswith('This machine is shared: its load is 4.3 on 4 cores')


def test_a_busy_machine_is_shared_with_one_thread(monkeypatch):
    asked = []
    monkeypatch.setattr(torch, 'set_num_threads', asked.append)
    monkeypatch.setattr(os, 'cpu_count', lambda: 4)
    monkeypatch.setattr(os, 'getloadavg', lambda: (1.0, 9.0, 9.0))
    assert share_machine() == '' and asked == []
    monkeypatch.setattr(os, 'getloadavg', lambda: (6.0, 0.0, 0.0))
    assert 'shared' in share_machine() and 'One thread' in share_machine() and asked == [1, 1]
