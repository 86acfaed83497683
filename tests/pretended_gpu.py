"""A GPU that is not there: tensors that say they are on ``cuda:0`` and are computed on the CPU.

What mixes devices raises as CUDA does; what makes the host wait, what is copied between host and device, the bytes that
kernels move and the memory that is taken are counted, and memory ends where the test says. Work on several streams is
done at once, in the order in which it is launched, and what the streams would not have kept in that order is an error.
CUDA's numerics and the temporaries inside a kernel are not to be seen here.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

CUDA = torch.device("cuda", 0)
ROOT = Path(__file__).parents[1]
PACKAGES = tuple(f"{ROOT / name}/" for name in ("evomerge", "fitness", "search_spaces"))

aten = torch.ops.aten
_WAITS = {
    aten._local_scalar_dense,
    aten.equal,
    aten.is_nonzero,
    aten.masked_select,
    aten.nonzero,
    aten.repeat_interleave,
    aten._unique2,
}
_PLACES = {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_, aten._unsafe_index}
_NOTHING_MOVES = {aten.empty, aten.empty_like, aten.empty_strided, aten.new_empty, aten.new_empty_strided}
_WRITES_ONLY = {aten.copy_, aten.fill_, aten.zero_}
_TO_PYTHON = ("__float__", "__int__", "__bool__", "__index__", "item", "tolist", "nonzero")


@dataclass
class Counts:
    """What happened on the device, by the function of this project that asked for it.

    Attributes:
        waits: the host waited for the device: a number was asked for, something was copied back, it synchronised.
        copies: tensors copied from the host to the device.
        pageable: those of them from memory that is not pinned.
        wasted: those of them that nothing read before their memory was given back.
        copied_bytes: from the host to the device.
        moved_bytes: that kernels read and wrote.
        kernels: how many there were.
    """

    waits: Counter[str] = field(default_factory=Counter)
    copies: Counter[str] = field(default_factory=Counter)
    pageable: Counter[str] = field(default_factory=Counter)
    wasted: Counter[str] = field(default_factory=Counter)
    copied_bytes: int = 0
    moved_bytes: int = 0
    kernels: int = 0


Clock = dict[int, int]
"""How far each stream was, at some moment of a stream's own."""


class Stream:
    """A queue of the device's work: number 0 is the one that is current unless told otherwise."""

    def __init__(self, gpu: PretendedGpu) -> None:
        self._gpu, self.number = gpu, len(gpu.clocks)
        gpu.clocks.append({self.number: 0})

    def wait_event(self, event: Event) -> None:
        """What is launched from now on comes after an event."""
        self._gpu.log.append(("wait", self.number))
        self._after(event.clock)

    def wait_stream(self, other: Stream) -> None:
        """What is launched from now on comes after all that another stream has."""
        self._gpu.log.append(("wait", self.number))
        self._after(self._gpu.clocks[other.number])

    def _after(self, clock: Clock) -> None:
        own = self._gpu.clocks[self.number]
        for stream, time in clock.items():
            own[stream] = max(own.get(stream, 0), time)


class Event:
    """A moment of a stream: none before it was recorded."""

    def __init__(self, gpu: PretendedGpu) -> None:
        self._gpu, self.clock = gpu, Clock()

    def record(self, stream: Stream) -> None:
        """From now on it is the moment when all that a stream has is done."""
        self._gpu.log.append(("record", stream.number))
        self.clock = dict(self._gpu.clocks[stream.number])


@dataclass
class _Use:
    """That a stream read or wrote bytes of some memory, and when."""

    begin: int
    end: int
    stream: int
    time: int
    writes: bool
    copied_by: str = ""


class _Memory:
    """Memory of the device, given back when the last tensor that has it goes.

    Attributes:
        is_read: whether anything read it since it was copied as a whole.
        last: when the stream that had it first used it last.
        uses: by which other streams and since: kept from when there is a second one.
    """

    def __init__(self, gpu: PretendedGpu, nbytes: int, copied_by: str = "") -> None:
        self._gpu, self._nbytes, self._copied_by, self.is_read = gpu, nbytes, copied_by, False
        self._first, self.last = gpu.stream, gpu.clocks[gpu.stream][gpu.stream]
        self.uses: list[_Use] | None = None
        gpu.used += nbytes
        gpu.peak = max(gpu.peak, gpu.used)

    def use(self, begin: int, end: int, writes: bool, copied_by: str = "") -> None:
        """The current stream reads or writes bytes of it: an error where another's use is not known to be over."""
        gpu = self._gpu
        clock = gpu.clocks[gpu.stream]
        now = _Use(begin, end, gpu.stream, clock[gpu.stream], writes, copied_by)
        if self.uses is None:
            if gpu.stream == self._first:
                self.last = now.time
                return
            self.uses = [_Use(0, self._nbytes, self._first, self.last, True)]
        for use in self.uses:
            if use.begin < end and begin < use.end and (use.writes or writes):
                if clock.get(use.stream, 0) < use.time:
                    raise RuntimeError(f"race: stream {gpu.stream} does not wait for stream {use.stream}, {_asking()}")
                if writes and use.copied_by:
                    gpu.counts.wasted[use.copied_by] += 1
                use.copied_by = ""
        if writes:  # what came before is over: waited for
            self.uses = [use for use in self.uses if not (begin <= use.begin and use.end <= end)]
        self.uses.append(now)

    def __del__(self) -> None:
        self._gpu.used -= self._nbytes
        if self._copied_by and not self.is_read:
            self._gpu.counts.wasted[self._copied_by] += 1
        clock = self._gpu.clocks[self._first]
        for use in self.uses or ():
            if use.copied_by:
                self._gpu.counts.wasted[use.copied_by] += 1
            if clock.get(use.stream, 0) < use.time:
                self._gpu.races.append(f"memory is given back that stream {use.stream} may be using")


class DeviceTensor(torch.Tensor):
    """A tensor that says it is on `CUDA`.

    Attributes:
        there: what it is, on the CPU.
        memory: of the device; shared by views.
        gpu: the device.
    """

    there: torch.Tensor
    memory: _Memory
    gpu: PretendedGpu

    @staticmethod
    def __new__(cls, there: torch.Tensor, memory: _Memory, gpu: PretendedGpu) -> DeviceTensor:
        made: DeviceTensor = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            there.size(),
            strides=there.stride(),
            storage_offset=there.storage_offset(),
            dtype=there.dtype,
            layout=there.layout,
            device=CUDA,
            requires_grad=False,
        )
        made.there, made.memory, made.gpu = there, memory, gpu
        return made

    def __init__(self, *_: Any) -> None:
        super().__init__()

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        gpu = next(x.gpu for x in tree_leaves((args, kwargs)) if isinstance(x, DeviceTensor))
        return gpu.call(func, args, kwargs or {})

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        gpu = next(x.gpu for x in tree_leaves((args, kwargs)) if isinstance(x, DeviceTensor))
        return gpu.dispatch(func, args, kwargs or {})

    def __repr__(self, **_: Any) -> str:
        return f"DeviceTensor({self.there})"


class Cudart:
    """What registers memory of the host.

    Attributes:
        registered: where each piece begins and ends.
        code: what registering returns; nothing is registered unless it is 0.
        most: how many pieces there have been at a time.
    """

    def __init__(self) -> None:
        self.registered: dict[int, int] = {}
        self.code = self.most = 0

    def cudaHostRegister(self, address: int, nbytes: int, flags: int) -> int:
        assert address not in self.registered, "registered twice"
        if not self.code:
            self.registered[address] = address + nbytes
            self.most = max(self.most, len(self.registered))
        return self.code

    def cudaHostUnregister(self, address: int) -> int:
        del self.registered[address]
        return 0


class PretendedGpu:
    """The device.

    Args:
        memory: its bytes; what would take more raises `torch.OutOfMemoryError`.

    Attributes:
        used, peak: bytes taken now, and at most since `reset`.
        counts: what happened since `reset`.
        memory: may be changed at any time.
        cudart: what registers memory of the host.
        log: what was launched since `reset`, in order: ``copy`` (from the host), ``kernel`` (or several), ``record``
            and ``wait`` of an event, each with the number of its stream.
        stream: number of the current one.
        clocks: of every stream.
        races: what went wrong with streams where nothing could be raised.
        on_allocation: called with the bytes of each allocation before it is made; may raise.
    """

    def __init__(self, memory: int = 1 << 34) -> None:
        self.memory = memory
        self.used = self.peak = 0
        self.counts = Counts()
        self.cudart = Cudart()
        self.log: list[tuple[str, int]] = []
        self.clocks: list[Clock] = []
        self.races: list[str] = []
        self.stream = 0
        self._streams = [Stream(self)]
        self.on_allocation: Callable[[int], None] = lambda nbytes: None
        self._pinned: dict[int, torch.UntypedStorage] = {}

    def reset(self) -> Counts:
        """Count anew; returns what was counted."""
        counts, self.counts, self.peak, self.log = self.counts, Counts(), self.used, []
        return counts

    @contextlib.contextmanager
    def present(self) -> Iterator[PretendedGpu]:
        """``cuda:0`` is this device, for torch and all that ask it."""
        torch._C._ensureCUDADeviceGuardSet()
        with contextlib.ExitStack() as stack:
            # transformers' threads that load would not see the device: modes are a thread's own.
            stack.enter_context(mock.patch.dict(os.environ, {"HF_DEACTIVATE_ASYNC_LOAD": "1"}))
            for owner, name, value in self._stand_ins():
                stack.callback(setattr, owner, name, getattr(owner, name))
                setattr(owner, name, value)
            stack.enter_context(torch.no_grad())  # autograd would ask CUDA itself
            stack.enter_context(_Functions(self))
            stack.enter_context(_Dispatch(self))
            yield self
        assert not self.races, self.races

    @contextlib.contextmanager
    def _on(self, stream: Stream) -> Iterator[None]:
        before, self.stream = self.stream, stream.number
        try:
            yield
        finally:
            self.stream = before

    def _new_stream(self, device: Any = None) -> Stream:
        self._streams.append(Stream(self))
        return self._streams[-1]

    def _launched(self, what: str) -> None:
        """Something more on the current stream."""
        self.clocks[self.stream][self.stream] += 1
        if what != "kernel" or not self.log or self.log[-1] != (what, self.stream):
            self.log.append((what, self.stream))

    def _stand_ins(self) -> list[tuple[Any, str, Any]]:
        cuda: Any = torch.cuda
        state = torch.zeros(16, dtype=torch.uint8)

        def wait(device: Any = None) -> None:
            self.counts.waits[f"synchronize in {_asking()}"] += 1

        def pinned(tensor: torch.Tensor, *_: Any) -> torch.Tensor:
            copy = tensor.clone()
            self._pinned[copy.untyped_storage().data_ptr()] = copy.untyped_storage()
            return copy

        return [
            (cuda, "_lazy_init", lambda: None),
            (cuda, "is_available", lambda: True),
            (cuda, "is_initialized", lambda: True),
            (cuda, "device_count", lambda: 1),
            (cuda, "current_device", lambda: 0),
            (cuda, "get_device_name", lambda device=None: "a pretended GPU"),
            (cuda, "get_device_capability", lambda device=None: (9, 0)),
            (cuda, "mem_get_info", lambda device=None: (max(0, self.memory - self.used), self.memory)),
            (cuda, "memory_reserved", lambda device=None: self.used),
            (cuda, "memory_allocated", lambda device=None: self.used),
            (cuda, "synchronize", wait),
            (cuda, "cudart", lambda: self.cudart),
            (cuda, "Stream", self._new_stream),
            (cuda, "Event", lambda: Event(self)),
            (cuda, "stream", self._on),
            (cuda, "current_stream", lambda device=None: self._streams[self.stream]),
            (cuda, "empty_cache", lambda: None),
            (cuda, "get_rng_state", lambda device=None: state),
            (cuda, "set_rng_state", lambda new, device=None: None),
            (cuda, "manual_seed_all", lambda seed: None),
            (torch.Tensor, "pin_memory", pinned),
        ]

    def is_pinned(self, tensor: torch.Tensor) -> bool:
        """Whether a tensor of the host is in pinned memory."""
        begin = tensor.data_ptr()
        if any(start <= begin and begin + tensor.nbytes <= end for start, end in self.cudart.registered.items()):
            return True
        return tensor.untyped_storage().data_ptr() in self._pinned

    def put(self, tensor: torch.Tensor) -> DeviceTensor:
        """A tensor of the host on the device, uncounted."""
        return DeviceTensor(tensor.clone(), self._take(tensor.nbytes), self)

    def _take(self, nbytes: int, copied_by: str = "") -> _Memory:
        self.on_allocation(nbytes)
        if nbytes and self.used + nbytes > self.memory:
            raise torch.OutOfMemoryError(
                f"CUDA out of memory. Tried to allocate {nbytes} bytes: {self.used} of {self.memory} are taken."
            )
        return _Memory(self, nbytes, copied_by)

    def call(self, func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """A function or method of torch's Python side, some of which look at devices before they dispatch."""
        name = getattr(func, "__name__", "")
        if name == "_has_compatible_shallow_copy_type":
            return isinstance(args[0], DeviceTensor) == isinstance(args[1], DeviceTensor)
        if name in _TO_PYTHON:
            self.counts.waits[f"{name} in {_asking()}"] += 1
            return self._as_host(getattr(torch.Tensor, name), args, kwargs)
        if name in ("__getitem__", "__setitem__"):
            return self._indexed(name, args)
        if name == "copy_":
            return self._copied_over(*args[:2])
        try:
            with torch._C.DisableTorchFunctionSubclass():
                out = func(*args, **kwargs)
        except RuntimeError as error:
            if "not linked with support" not in str(error):
                raise
            self._require_here(name, (args, kwargs))
            out = self._as_host(func, args, kwargs)
        if func == torch.Tensor.data.__set__:  # type: ignore[attr-defined]
            args[0].there, args[0].memory = args[1].there, args[1].memory
        return out

    def _indexed(self, name: str, args: Sequence[Any]) -> Any:
        """Reads and writes by index: a mask or an index of the host makes the host wait."""
        index = [x for x in tree_leaves(args[1]) if isinstance(x, torch.Tensor) and x.dim()]
        if not isinstance(args[0], DeviceTensor):
            raise RuntimeError(f"mixed devices: {name} of a tensor of the host by one of the device in {_asking()}")
        if any(x.dtype == torch.bool or not isinstance(x, DeviceTensor) for x in index):
            self.counts.waits[f"index in {_asking()}"] += 1
        if len(args) > 2 and isinstance(args[2], torch.Tensor):
            self._crossed(args[2], to_device=True)
        return self._as_host(getattr(torch.Tensor, name), args, {})

    def _copied_over(self, target: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
        with torch._C.DisableTorchFunctionSubclass():
            to, of = (x.there if isinstance(x, DeviceTensor) else x for x in (target, source))
            to.copy_(of)
        copied_by = self._crossed(source, isinstance(target, DeviceTensor))
        self._launched("copy" if copied_by else "kernel")
        if isinstance(source, DeviceTensor):
            self._used(source)
        if isinstance(target, DeviceTensor):
            self._used(target, writes=True, copied_by=copied_by)
        self.counts.kernels += 1
        self.counts.moved_bytes += source.nbytes + target.nbytes
        return target

    def _as_host(self, func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """What a function gives on the CPU, on the device."""
        here = [x for x in tree_leaves((args, kwargs)) if isinstance(x, DeviceTensor)]
        self._launched("kernel")
        for tensor in here:
            self._used(tensor)
        with torch._C.DisableTorchFunctionSubclass():
            given, options = tree_map(_there, (args, kwargs))
            out = func(*given, **options)
        return self._on_device(out, here)

    def _on_device(self, out: Any, here: Sequence[DeviceTensor], copied_by: str = "") -> Any:
        """Results of the CPU as tensors of the device, with the memory of what they are views of."""
        same = {id(x.there): x for x in here}
        storages = {x.there.untyped_storage()._cdata: x.memory for x in here}

        def wrapped(x: Any) -> Any:
            if not isinstance(x, torch.Tensor) or isinstance(x, DeviceTensor):
                return x
            if id(x) in same:
                return same[id(x)]
            storage = x.untyped_storage()
            memory = storages.get(storage._cdata)
            if memory is None:
                memory = storages[storage._cdata] = self._take(storage.nbytes(), copied_by)
            return DeviceTensor(x, memory, self)

        return tree_map(wrapped, out)

    def dispatch(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """An operation, on whichever device its tensors or its arguments say."""
        leaves = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        here = [x for x in leaves if isinstance(x, DeviceTensor)]
        name, asked = func.overloadpacket, kwargs.get("device")
        to_device, copied_by = bool(here), ""
        if name is aten._to_copy:
            to_device = bool(here) if asked is None else _is_cuda(asked)
            copied_by = self._crossed(leaves[0], to_device)
        elif name is aten.copy_:
            to_device = isinstance(args[0], DeviceTensor)
            self._crossed(args[1], to_device)
        elif asked is not None:
            to_device = _is_cuda(asked)
        elif here:
            self._require_here(str(func), leaves, index=name in _PLACES and isinstance(args[0], DeviceTensor))
        if here and name in _WAITS:
            self.counts.waits[f"{name.__name__} in {_asking()}"] += 1
        options = dict(kwargs)
        options.pop("pin_memory", None)
        if _is_cuda(asked):
            options["device"] = torch.device("cpu")
        given, options = tree_map(_there, (args, options))
        out = func(*given, **options)
        if copied_by:
            self._launched("copy")
        if here:
            self._count_bytes(func, args, kwargs, out)
        return self._on_device(out, here, copied_by) if to_device else out

    def _used(self, tensor: DeviceTensor, writes: bool = False, copied_by: str = "") -> None:
        """The current stream reads or writes a tensor."""
        tensor.memory.is_read |= not writes
        tensor.memory.use(*_range(tensor.there), writes, copied_by)

    def _crossed(self, source: torch.Tensor, to_device: bool) -> str:
        """Count a copy between host and device; returns who copied to the device."""
        if isinstance(source, DeviceTensor) == to_device:
            return ""
        who = _asking()
        if not to_device:
            self.counts.waits[f"copy back in {who}"] += 1
            return ""
        self.counts.copies[who] += 1
        self.counts.copied_bytes += source.nbytes
        if not self.is_pinned(source):
            self.counts.pageable[who] += 1
        return who

    def _require_here(self, what: str, tensors: Any, index: bool = False) -> None:
        """Raise where a tensor of the host, other than a number, meets those of the device."""
        host = [x for x in tree_leaves(tensors) if isinstance(x, torch.Tensor) and not isinstance(x, DeviceTensor)]
        if not any(x.dim() for x in host):
            return
        if not index:
            raise RuntimeError(f"Expected all tensors to be on the same device: mixed devices in {what}, {_asking()}")
        self.counts.waits[f"index in {_asking()}"] += 1

    def _count_bytes(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], out: Any) -> None:
        """Bytes that an operation reads and writes, temporaries inside it not counted."""
        name = func.overloadpacket
        read, written = list[torch.Tensor](), list[torch.Tensor]()
        for argument, value in itertools.chain(
            zip(func._schema.arguments, args, strict=False),
            ((argument, kwargs.get(argument.name)) for argument in func._schema.arguments[len(args) :]),
        ):
            tensors = [x for x in tree_leaves(value) if isinstance(x, DeviceTensor)]
            if argument.alias_info is not None and argument.alias_info.is_write:
                written += tensors
                read += [] if argument.name == "out" or name in _WRITES_ONLY else tensors
            else:
                read += tensors
        results = [x for x in tree_leaves(out) if isinstance(x, torch.Tensor)]
        storages = {x.there.untyped_storage()._cdata for x in (*read, *written)}
        fresh = [x for x in results if x.untyped_storage()._cdata not in storages]
        if func.is_view or (not written and not fresh and results):
            return
        self._launched("kernel")
        for tensor in read:
            self._used(tensor)
        for tensor in written:
            self._used(tensor, writes=True)
        if name not in _NOTHING_MOVES:
            self.counts.kernels += 1
            self.counts.moved_bytes += sum(_extent(x) for x in (*read, *written, *fresh))


def _range(x: torch.Tensor) -> tuple[int, int]:
    """The bytes of its storage that a tensor begins and ends at."""
    if not x.numel():
        return 0, 0
    last = sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True))
    begin = x.storage_offset() * x.element_size()
    return begin, begin + (last + 1) * x.element_size()


def _there(x: Any) -> Any:
    return x.there if isinstance(x, DeviceTensor) else x


def _is_cuda(device: Any) -> bool:
    return device is not None and torch.device(device).type == "cuda"


def _numbered(x: Any) -> Any:
    """``cuda`` as ``cuda:0``: torch would ask CUDA which of its devices is meant."""
    return CUDA if isinstance(x, torch.device) and x.type == "cuda" else x


def _extent(x: torch.Tensor) -> int:
    """Bytes of a tensor's elements, those that it repeats counted once."""
    count = 1
    for size, stride in zip(x.shape, x.stride(), strict=True):
        count *= size if stride else 1
    return (count if x.numel() else 0) * x.element_size()


def _asking() -> str:
    """The function of this project that is nearest to the top of the stack: ``merge/execution/sources.py flat``."""
    frame: Any = sys._getframe(1)
    while frame is not None:
        code = frame.f_code
        if code.co_filename.startswith(PACKAGES) and not code.co_name.startswith("<"):
            return f"{Path(code.co_filename).relative_to(ROOT)} {code.co_name}"
        frame = frame.f_back
    return "elsewhere"


class _Functions(TorchFunctionMode):
    """Functions that make tensors of Python's numbers."""

    def __init__(self, gpu: PretendedGpu) -> None:
        super().__init__()
        self._gpu = gpu

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        args, options = tuple(map(_numbered, args)), {name: _numbered(x) for name, x in (kwargs or {}).items()}
        if func in (torch.tensor, torch.as_tensor) and _is_cuda(options.get("device")):
            made = func(*args, **{**options, "device": "cpu"})
            who = self._gpu._crossed(made, to_device=True)
            return DeviceTensor(made, self._gpu._take(made.nbytes, who), self._gpu)
        return func(*args, **options)


class _Dispatch(TorchDispatchMode):
    """Operations on tensors of the host, which may go to the device."""

    def __init__(self, gpu: PretendedGpu) -> None:
        super().__init__()
        self._gpu = gpu

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return self._gpu.dispatch(func, args, kwargs or {})
