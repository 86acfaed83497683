"""One tensor's merge: by whichever backend there is for its device, in one piece or in several."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch

from evomerge.errors import EvomergeError
from evomerge.merge.execution.noted_statistics import NotedStatistics
from evomerge.merge.execution.notes import Notes
from evomerge.merge.methods import Context, Method
from evomerge.merge.mixes.backend import Backend, backend_of
from evomerge.merge.mixes.cpu_mix import MixCall, mix_, mix_call
from evomerge.merge.mixes.mix import Mix
from evomerge.merge.mixes.torch_mix import mix_block
from evomerge.merge.planning.slice_plan import Factor
from evomerge.models.statistics import Statistic

_CPU_BLOCK = 1 << 16  # elements: a handful of float32 temporaries of a block stay in the second-level cache
DEVICE_BLOCK = 1 << 26  # few large kernels
_LARGE = 1e3  # of a parameter: what overflows may do so by it


def merge_tensor(
    method: Method,
    inputs: Sequence[torch.Tensor],
    base: torch.Tensor | None,
    values: Mapping[str, Any],
    keys: Sequence[int] = (),
    *,
    out: torch.Tensor,
    statistics: NotedStatistics | None = None,
    block: int | None = None,
) -> None:
    """Merge one tensor into `out`.

    Args:
        method: the merge method.
        inputs, base: the source tensors, as many elements as `out`, of any of the merged dtypes; not written to.
        values: the method's arguments by name (`methods.call_values`).
        keys: mask keys of the inputs, for methods that drop at random.
        out: receives the result, computed in float32 and rounded once to its dtype; contiguous.
        statistics: of the inputs; computed when asked by default.
        block: elements merged at a time by torch operations; the result does not depend on it.

    Raises:
        EvomergeError: the result would not be finite.
    """
    TensorMerge(method, inputs, base, values, keys, tuple(out.shape), statistics).run(out.view(-1), block=block)


class TensorMerge:
    """One tensor's merge, to be carried out at once or in pieces.

    Args:
        method, inputs, base, values, keys, statistics: as for `merge_tensor`.
        shape: of the tensor.
        factor: changes the result before it is rounded.
        data: statistics of data of the inputs, for methods that read them.

    Attributes:
        mix: what the method is on this tensor, where it is a `Mix`.
        of_sources: whether `mix` is one of the inputs as they were given, and not of what was made of them.
        divisible: whether `run` can give a part of the tensor.
    """

    def __init__(
        self,
        method: Method,
        inputs: Sequence[torch.Tensor],
        base: torch.Tensor | None,
        values: Mapping[str, Any],
        keys: Sequence[int],
        shape: tuple[int, ...],
        statistics: NotedStatistics | None = None,
        factor: Factor | None = None,
        data: Sequence[Statistic | None] = (),
    ) -> None:
        self._data = tuple(data)
        self._factor = factor
        self._method, self._values, self._keys, self._shape = method, values, tuple(keys), shape
        self._inputs, self._base = [_flat(tensor) for tensor in inputs], _flat(base) if base is not None else None
        self.mix: Mix | None = None
        self.of_sources = True
        if statistics is None and (method.mix is not None or method.derived is not None):
            names: list[Hashable] = list(range(len(self._inputs) + (base is not None)))
            statistics = NotedStatistics(self._inputs, self._base, shape, keys, names, Notes(0))
        if method.derived is not None and statistics is not None:
            self.mix = method.derived.simple(values, len(self._inputs))
            made = statistics.derived(method, values) if self.mix is None and self._base is not None else None
            if made is not None and self._base is not None:
                self.mix, self.of_sources = method.derived.mix(values), False
                self._inputs = [self._base, *made]
        elif method.mix is not None and statistics is not None:
            self.mix = method.mix(values, statistics)
        self._scopes = statistics
        self.divisible = self.mix is not None or method.elementwise

    def run(self, out: torch.Tensor, begin: int = 0, block: int | None = None) -> None:
        """Merge into `out`, flat: the whole tensor, or its elements from `begin` on.

        Raises:
            EvomergeError: the result would not be finite.
        """
        if not self.into(out, begin, block):
            raise self.not_finite(out.dtype)

    def into(self, out: torch.Tensor, begin: int = 0, block: int | None = None) -> bool | torch.Tensor:
        """`run`, returning whether the result is finite: on accelerators a tensor there, which nobody need wait for."""
        if self._factor is None:
            return self._merged(out, begin, block)
        wide = out if out.dtype == torch.float32 else torch.empty_like(out, dtype=torch.float32)
        finite = self._merged(wide, begin, block)
        self._factor(wide)
        if wide is not out:
            out.copy_(wide)
        return finite & _finite(out)

    def _merged(self, out: torch.Tensor, begin: int, block: int | None) -> bool | torch.Tensor:
        """The merge without a factor; returns whether all of it is finite."""
        backend = self._backend(out)
        if self.mix is not None and backend is Backend.CPU:
            return mix_(out, self.mix, self._inputs, self._base, self._keys, begin)
        if self.mix is not None and backend is Backend.TRITON:
            from evomerge.merge.mixes import triton_mix  # there is Triton where this is the backend

            return triton_mix.mix_(out, self.mix, self._inputs, self._base, self._keys, begin)
        return self._by_blocks(out, begin, block) if self.divisible else self._whole(out)

    def _backend(self, out: torch.Tensor) -> Backend:
        return backend_of(out.device, [out.dtype, *[tensor.dtype for tensor in self._inputs]])

    def call(self, out: torch.Tensor) -> MixCall | None:
        """The whole tensor's merge into `out`, flat, ready for any thread; ``None`` where that is not to be had."""
        if self.mix is None or self._factor is not None or not out.numel() or self._backend(out) is not Backend.CPU:
            return None
        return mix_call(out, self.mix, self._inputs, self._base, self._keys)

    def not_finite(self, dtype: torch.dtype, *, look: bool = True) -> EvomergeError:
        """The error for a result that is not finite; names the input that has such values, unless nobody is to `look`.

        On an accelerator looking would wait for it.
        """
        known = {"the base": self._base} if self._base is not None and look else {}
        known |= {f"input {number}": tensor for number, tensor in enumerate(self._inputs, 1) if look}
        bad = next((name for name, tensor in known.items() if not bool(torch.isfinite(tensor).all())), None)
        large = _largest(self._values)
        return EvomergeError(
            f"merging by {self._method.spec.name} gives numbers that are NaN or beyond the range of {_name(dtype)}"
            + (f"; {bad} has such values" if bad else f"; its largest parameter is {large}" if large else ""),
            "finite numbers",
            "check the sources' weights and the parameters, or merge to another dtype",
        )

    def _whole(self, out: torch.Tensor) -> bool | torch.Tensor:
        """The method's function on whole tensors; returns whether all of it is finite."""
        assert self._method.function is not None, "a method has a mix or a function"
        shaped = [tensor.float().view(self._shape) for tensor in self._inputs]
        below = self._base.float().view(self._shape) if self._base is not None else None
        context = Context(0, self._keys, self._scopes, self._data)
        result = self._method.function(shaped, below, context=context, **self._values)
        out.copy_(result.reshape(-1))
        return _finite(out)

    def _by_blocks(self, out: torch.Tensor, begin: int, block: int | None) -> bool | torch.Tensor:
        """The mix or the method's function by torch operations; returns whether all of it is finite."""
        size = block or (_CPU_BLOCK if out.device.type == "cpu" else DEVICE_BLOCK)
        finite: bool | torch.Tensor = True
        for start in range(0, out.numel(), size):
            target = out[start : start + size]
            at = slice(begin + start, begin + start + target.numel())
            parts = [tensor[at] for tensor in self._inputs]
            below = self._base[at] if self._base is not None else None
            if self.mix is not None:
                result = mix_block(self.mix, parts, below, self._keys, at.start)
            else:
                assert self._method.function is not None, "a method has a mix or a function"
                floats = [part.float() for part in parts]
                bottom = below.float() if below is not None else None
                data = tuple(own.part(at) if own is not None else None for own in self._data)
                context = Context(at.start, self._keys, statistics=data)
                result = self._method.function(floats, bottom, context=context, **self._values)
            target.copy_(result)
            finite = _finite(target) & finite
        return finite


def _flat(tensor: torch.Tensor) -> torch.Tensor:
    return tensor if tensor.dim() == 1 else tensor.view(-1)


def _finite(tensor: torch.Tensor) -> bool | torch.Tensor:
    """Whether all elements are finite: known on the CPU, else a tensor on the device."""
    finite = torch.isfinite(tensor).all()
    return bool(finite) if tensor.device.type == "cpu" else finite


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _largest(values: Mapping[str, Any]) -> str:
    """The largest number among a method's arguments, where it is large enough for sums to overflow; else empty."""
    found = [
        (abs(number), name, place, number)
        for name, given in values.items()
        for place, number in enumerate(given if isinstance(given, list | tuple) else [given])
        if isinstance(number, int | float) and not isinstance(number, bool)
    ]
    size, name, place, number = max(found, default=(0.0, "", 0, 0.0))
    if size < _LARGE:
        return ""
    several = isinstance(values[name], list | tuple)
    return f"{name.rstrip('_')}={number:g}" + (f" of input {place + 1}" if several else "")
