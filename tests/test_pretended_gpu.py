"""That the pretended GPU sees what CUDA would refuse, and what costs time there."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from pretended_gpu import CUDA, DeviceTensor, PretendedGpu

HOST = torch.arange(6.0)


@pytest.fixture
def gpu() -> Iterator[PretendedGpu]:
    device = PretendedGpu(memory=1 << 20)
    with device.present():
        yield device


@pytest.mark.parametrize(
    "mix",
    [
        lambda x, y: x + y,
        lambda x, y: y + x,
        lambda x, y: torch.stack([x, y]),
        lambda x, y: torch.where(x > 1, x, y),
        lambda x, y: torch.add(x, x, out=y),
        lambda x, y: y[x.long() * 0],
        lambda x, y: x.add_(y),
        lambda x, y: torch.nn.functional.linear(x, y.view(2, 3).T.contiguous().view(1, 6)),
    ],
)
def test_mixed_devices_raise(gpu: PretendedGpu, mix: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> None:
    with pytest.raises(RuntimeError, match=r"mixed devices|same device"):
        mix(gpu.put(HOST), HOST.clone())


def test_results_are_those_of_the_host_and_stay_on_the_device(gpu: PretendedGpu) -> None:
    x = HOST.to(CUDA)
    y = torch.softmax(x.view(2, 3), dim=-1).mul_(2).to(torch.bfloat16)
    assert isinstance(y, DeviceTensor)
    assert y.device == CUDA
    assert y.is_cuda
    assert y.shape == (2, 3)
    assert torch.equal(y.cpu(), torch.softmax(HOST.view(2, 3), dim=-1).mul_(2).to(torch.bfloat16))
    made = torch.zeros(3, device="cuda")
    assert made.device == CUDA
    assert torch.empty_like(made).device == CUDA


@pytest.mark.parametrize(
    "ask",
    [
        lambda x: float(x.sum()),
        lambda x: bool((x > 1).all()),
        lambda x: x.cpu(),
        lambda x: x.tolist(),
        lambda x: x[x > 1],
        lambda x: torch.nonzero(x),
        lambda x: torch.equal(x, x),
        lambda x: torch.empty(6).copy_(x),
        lambda x: x[torch.tensor([1, 2])],
        lambda x: torch.cuda.synchronize(),
    ],
)
def test_what_makes_the_host_wait_is_counted(gpu: PretendedGpu, ask: Callable[[torch.Tensor], object]) -> None:
    x = HOST.to(CUDA)
    x.mul(2).add_(1).view(2, 3).sum(0)
    dropped = x > 1
    dropped[2:] |= x[2:] == 3
    assert not gpu.reset().waits
    ask(x)
    assert gpu.counts.waits.total() == 1


def test_copies_are_counted_with_their_bytes(gpu: PretendedGpu) -> None:
    HOST.to(CUDA).sum()
    HOST.pin_memory().to(CUDA, non_blocking=True).sum()
    torch.empty(6, device=CUDA).copy_(HOST)
    torch.tensor([1.0], device="cuda").sum()
    counts = gpu.counts
    assert (counts.copies.total(), counts.pageable.total(), counts.copied_bytes) == (4, 3, 3 * 24 + 4)
    assert not counts.wasted


def test_a_copy_that_nothing_reads_is_wasted(gpu: PretendedGpu) -> None:
    HOST.to(CUDA).view(2, 3)
    assert gpu.counts.wasted.total() == 1


def test_bytes_that_kernels_move(gpu: PretendedGpu) -> None:
    x, y = gpu.put(HOST), gpu.put(HOST)
    gpu.reset()
    x.view(3, 2)[1]
    assert gpu.counts.moved_bytes == 0
    x.add(y)
    assert gpu.reset().moved_bytes == 3 * 24
    x.mul_(2)
    assert gpu.reset().moved_bytes == 2 * 24
    torch.add(x, y, out=torch.empty(6, device=CUDA))
    assert (gpu.counts.kernels, gpu.reset().moved_bytes) == (1, 3 * 24)
    x.to(torch.bfloat16)
    assert gpu.reset().moved_bytes == 24 + 12


def test_memory_is_taken_given_back_and_ends(gpu: PretendedGpu) -> None:
    x = torch.empty(1 << 19, dtype=torch.uint8, device=CUDA)
    view = x[4:]
    assert gpu.used == 1 << 19
    with pytest.raises(torch.OutOfMemoryError, match="out of memory"):
        torch.empty((1 << 19) + 1, dtype=torch.uint8, device=CUDA)
    del x
    assert gpu.used == 1 << 19
    assert torch.cuda.mem_get_info() == (1 << 19, 1 << 20)
    del view
    assert (gpu.used, gpu.peak) == (0, 1 << 19)


def test_a_module_moves_and_its_parameters_change(gpu: PretendedGpu) -> None:
    layer = torch.nn.Linear(3, 2).to(CUDA)
    assert layer.weight.device == CUDA
    other = gpu.put(torch.ones(2, 3))
    layer.weight.data = other
    with torch.no_grad():
        out = layer(gpu.put(torch.ones(1, 3)))
    assert torch.equal(out.cpu(), 3 + layer.bias.detach().cpu().view(1, 2))


def test_nothing_is_left_of_it() -> None:
    available = torch.cuda.is_available
    with PretendedGpu().present():
        assert torch.cuda.is_available()
    assert torch.cuda.is_available is available
    assert type(torch.zeros(2) + 1) is torch.Tensor


def test_streams_that_do_not_wait_for_each_other_race(gpu: PretendedGpu) -> None:
    stream, event = torch.cuda.Stream(), torch.cuda.Event()
    buffer = torch.empty(12, device=CUDA)
    first, second = buffer[:6], buffer[6:]
    with pytest.raises(RuntimeError, match="race: stream 1 does not wait for stream 0"), torch.cuda.stream(stream):
        first.copy_(HOST)  # its memory may still be used by what had it before
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        first.copy_(HOST)
    event.record(stream)
    second.zero_()
    with pytest.raises(RuntimeError, match="race: stream 0 does not wait for stream 1"):
        first.sum()
    torch.cuda.current_stream().wait_event(event)
    first.sum()
    with pytest.raises(RuntimeError, match="race"), torch.cuda.stream(stream):
        first.copy_(HOST)
    event.record(torch.cuda.current_stream())
    stream.wait_event(event)
    assert not gpu.counts.wasted
    with torch.cuda.stream(stream):
        first.copy_(HOST)
        first.copy_(HOST)
    assert gpu.counts.wasted.total() == 1
    del buffer, first, second
    assert len(gpu.races) == 1
    gpu.races.clear()
