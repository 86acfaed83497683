"""Several candidates in one forward: a common model, and for every candidate a product of low rank beside each weight.

A batch has the rows of the first candidate, then those of the second, and so on. Where a weight ``W`` is common and
candidate k adds ``B_k A_k``, a layer gives ``x W^T + (x A_k^T) B_k^T`` to the rows of k: one product with ``W`` for all
rows, and two batched products of low rank, so that no candidate's weights are ever made (S-LoRA, arXiv 2311.03285, for
adapters; EGGROLL, arXiv 2511.16652, for perturbations). Of weighted sums of the same adapters the factors are the same,
and each candidate's weights are between them: ``(x A^T diag(c_k)) B^T``. Equal to merging each by itself up to the
rounding of float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from evomerge.merge.adapters.places import Kind
from evomerge.merge.methods.low_rank import Factors


@dataclass(frozen=True)
class Term:
    """What is added to one weight.

    Attributes:
        factors: in float32.
        kind: of weight.
        scales: [rank] of the columns of ``factors.b``; ``None`` for 1. Candidates with the very same factors and scales
            of their own share the factors.
    """

    factors: Factors
    kind: Kind
    scales: torch.Tensor | None = None

    def scaled(self) -> Factors:
        """The factors, with the scales in them."""
        return self.factors if self.scales is None else Factors(self.factors.b * self.scales, self.factors.a)


Terms = Mapping[str, Term]
"""What a candidate adds to the common model, by module as transformers names it."""


@dataclass(frozen=True)
class _Layer:
    """The factors of one module, of all candidates.

    Attributes:
        kind: of weight.
        into, out: [candidates, inputs, rank] and [candidates, rank, outputs], or of all alike without the first.
        scales: [candidates, 1, rank], where the factors are shared.
    """

    kind: Kind
    into: torch.Tensor
    out: torch.Tensor
    scales: torch.Tensor | None = None


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
            self._layers[name] = _layer([own.get(name) for own in terms], device)

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
            output = output.contiguous()  # a layer's output is nobody else's yet, and is written to
            count = self._shown.stop - self._shown.start
            if layer.scales is None:
                into, out = layer.into[self._shown], layer.out[self._shown]
            else:
                into, out = layer.into.expand(count, -1, -1), layer.out
            if layer.kind == "embedding":
                ids = args[0].reshape(count, -1)
                narrow = torch.stack([own[of] for own, of in zip(into, ids, strict=True)])
            elif layer.scales is None:
                narrow = torch.bmm(args[0].reshape(count, -1, args[0].shape[-1]).float(), into)
            else:
                narrow = args[0].reshape(count, -1, args[0].shape[-1]).float() @ layer.into
            wide = output.view(count, -1, output.shape[-1])
            if layer.scales is not None:
                narrow = (narrow * layer.scales[self._shown]).view(-1, narrow.shape[-1])
                wide = wide.view(-1, output.shape[-1])
            if output.dtype != torch.float32:
                wide += (narrow @ out).to(output.dtype)
            elif layer.scales is None:
                wide.baddbmm_(narrow, out)
            else:
                wide.addmm_(narrow, out)
            return output

        return add


def _layer(own: Sequence[Term | None], device: torch.device) -> _Layer:
    """The factors of one module: those that all candidates share, or each one's own."""
    known = next(term for term in own if term is not None)
    turned = known.kind in ("turned", "embedding")  # whose weights are inputs x outputs
    if all(term is None or (term.factors is known.factors and term.scales is not None) for term in own):
        b, a = known.factors
        into, out = (b, a) if turned else (a.T, b.T)
        none = torch.zeros(known.factors.rank)
        scales = torch.stack([none if term is None or term.scales is None else term.scales for term in own])[:, None]
        return _Layer(known.kind, into.contiguous().to(device), out.contiguous().to(device), scales.to(device))
    rank = max(term.factors.rank for term in own if term is not None)
    first = known.factors.b.shape[0] if turned else known.factors.a.shape[1]
    last = known.factors.a.shape[1] if turned else known.factors.b.shape[0]
    into, out = torch.zeros(len(own), first, rank), torch.zeros(len(own), rank, last)
    for number, term in enumerate(own):
        if term is not None:
            b, a = term.scaled()
            into[number, :, : len(a)] = b if turned else a.T
            out[number, : len(a)] = a if turned else b.T
    return _Layer(known.kind, into.to(device), out.to(device))
