"""Several candidates in one forward: a common model, and for every candidate a product of low rank beside each weight.

A batch has the rows of the first candidate, then those of the second, and so on. Where a weight ``W`` is common and
candidate k adds ``B_k A_k``, a layer gives ``x W^T + (x A_k^T) B_k^T`` to the rows of k: one product with ``W`` for all
rows, and two batched products of low rank, so that no candidate's weights are ever made (S-LoRA, arXiv 2311.03285, for
adapters; EGGROLL, arXiv 2511.16652, for perturbations). Equal to merging each by itself up to the rounding of float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from evomerge.merge.adapters.places import Kind
from evomerge.merge.methods.low_rank import Factors

Terms = Mapping[str, tuple[Factors, Kind]]
"""What a candidate adds to the common model, by module, as `ExactAdapters.of` gives it."""


class _Layer:
    """The factors of one module, of all candidates: [candidates, inputs, rank] and [candidates, rank, outputs]."""

    def __init__(self, kind: Kind, into: torch.Tensor, out: torch.Tensor) -> None:
        self.kind, self.into, self.out = kind, into, out


class AtOnce:
    """Several candidates in one module, which has the common weights; implements `protocols.Several`.

    Outside of `installed` the module is the common model. Products are taken in float32 and added in the dtype of the
    layer's output.

    Args:
        module: the common model.
        terms: of each candidate what it adds; nothing for the common model itself.

    Attributes:
        count: how many candidates.
    """

    def __init__(self, module: nn.Module, terms: Sequence[Terms]) -> None:
        self._module, self.count = module, len(terms)
        self._shown = slice(0, self.count)
        self._layers: dict[str, _Layer] = {}
        for name in dict.fromkeys(name for own in terms for name in own):
            device = next(module.get_submodule(name).parameters()).device
            self._layers[name] = _stacked([own.get(name) for own in terms], device)

    @property
    def nbytes(self) -> int:
        """Bytes of all factors."""
        return sum(t.nbytes for layer in self._layers.values() for t in (layer.into, layer.out))

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Let the module be all candidates within this."""
        hooks = [
            self._module.get_submodule(name).register_forward_hook(self._hook(layer))
            for name, layer in self._layers.items()
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    @contextmanager
    def only(self, first: int, last: int | None = None) -> Iterator[None]:
        """Let the rows of a batch be those of candidates `first` to `last`, or of `first` alone, within this."""
        before, self._shown = self._shown, slice(first, first + 1 if last is None else last)
        try:
            yield
        finally:
            self._shown = before

    def _hook(self, layer: _Layer) -> Callable[..., Any]:
        def add(_: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
            into, out = layer.into[self._shown], layer.out[self._shown]
            count = len(into)
            if not output.is_contiguous():
                output = output.contiguous()
            if layer.kind == "embedding":
                ids = args[0].reshape(count, -1)
                narrow = torch.stack([own[of] for own, of in zip(into, ids, strict=True)])
            else:
                narrow = torch.bmm(args[0].reshape(count, -1, args[0].shape[-1]).float(), into)
            wide = output.view(count, -1, output.shape[-1])  # a layer's output is nobody else's yet
            if output.dtype == torch.float32:
                wide.baddbmm_(narrow, out)
            else:
                wide.add_(torch.bmm(narrow, out).to(output.dtype))
            return output

        return add


def _stacked(own: Sequence[tuple[Factors, Kind] | None], device: torch.device) -> _Layer:
    """Factors of one module, filled up with zeros to the largest rank."""
    known = next(entry for entry in own if entry is not None)
    turned = known[1] in ("turned", "embedding")  # whose weights are inputs x outputs
    rank = max(entry[0].rank for entry in own if entry is not None)
    first = known[0].b.shape[0] if turned else known[0].a.shape[1]
    last = known[0].a.shape[1] if turned else known[0].b.shape[0]
    into, out = torch.zeros(len(own), first, rank), torch.zeros(len(own), rank, last)
    for number, entry in enumerate(own):
        if entry is not None:
            b, a = entry[0]
            into[number, :, : entry[0].rank] = b if turned else a.T
            out[number, : entry[0].rank] = a if turned else b.T
    return _Layer(known[1], into.to(device), out.to(device))
