"""Sums over calibration items, one item after the other: squared gradients, inner products of inputs."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import nn
from torch.nn import functional

from evomerge.calibration.encoding import Encoded
from evomerge.calibration.measurement import Measurement
from evomerge.calibration.places import Place
from evomerge.errors import PoolError


class Sums(Protocol):
    """Sums of some tensors' statistics.

    Attributes:
        sums: by the name of a tensor in the checkpoint.
        shared: other tensors whose statistic is the same: its name by theirs.
    """

    sums: dict[str, torch.Tensor]
    shared: dict[str, str]

    def add(self, number: int, item: Encoded) -> None:
        """Add those of one item."""

    def close(self) -> None:
        """Leave the module as it was."""


class FisherSums:
    """Sums of squares of the gradients of each item's log-likelihood, in float32.

    A gradient is squared and let go as soon as it is there: of all layers together, there is never more than one.

    Args:
        module: whose parameters they are; all others are told not to ask for gradients.
        places: of the parameters.
        how: says which labels.
    """

    def __init__(self, module: Any, places: Sequence[Place], how: Measurement) -> None:
        self._module, self._how = module, how
        self.shared: dict[str, str] = {}
        parameters = dict(module.named_parameters(remove_duplicate=False))
        self.sums = {p.name: torch.zeros(p.shape, device=parameters[p.parameter].device) for p in places}
        for parameter in module.parameters():
            parameter.requires_grad_(False)
        self._hooks = []
        for place in places:
            parameter = parameters[place.parameter].requires_grad_(True)
            self._hooks.append(parameter.register_post_accumulate_grad_hook(self._squared(place.name)))

    def _squared(self, name: str) -> Any:
        def hook(parameter: nn.Parameter) -> None:
            assert parameter.grad is not None, "hooks of gradients run once there is one"
            self.sums[name] += parameter.grad.reshape(-1).float().square_()
            parameter.grad = None

        return hook

    def add(self, number: int, item: Encoded) -> None:
        """Add the squares of one item.

        Raises:
            PoolError: the model has no likelihood of texts.
        """
        ids = torch.tensor([item.ids], device=self._module.device)
        with torch.enable_grad():
            logits = self._module(input_ids=ids).logits.float()
            if logits.dim() == 3 and self._module.can_generate():
                scores, labels = logits[0, item.start - 1 : -1], ids[0, item.start :]
            elif logits.dim() == 2 and self._how.labels == "sampled":
                scores, labels = logits, ids[0, :0]
            else:
                raise PoolError(
                    f"{type(self._module).__name__} gives texts no likelihood",
                    "causal language models; classifiers with statistics.labels=sampled",
                )
            if self._how.labels == "sampled":
                labels = self._sampled(scores.detach(), number)
            functional.cross_entropy(scores, labels, reduction="sum").backward()

    def _sampled(self, scores: torch.Tensor, number: int) -> torch.Tensor:
        """A label for each row of scores by its probability: the same for the same item, wherever one begins."""
        digest = hashlib.sha256(f"{self._how.seed} {number}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
        chances = scores.double().cpu().softmax(-1)
        return torch.multinomial(chances, 1, generator=generator)[:, 0].to(scores.device)

    def close(self) -> None:
        """Leave the module without hooks and gradients."""
        for hook in self._hooks:
            hook.remove()
        for parameter in self._module.parameters():
            parameter.requires_grad_(False)


class GramSums:
    """Sums over tokens of ``x x^T``, or of its diagonal, of what linear layers read, in float64.

    Layers of a slice that read the very same tensor (queries, keys and values) share one sum.

    Args:
        module: in evaluation mode.
        places: of the layers' weights.
        first: an item, by which layers that share are found.
    """

    def __init__(self, module: Any, places: Sequence[Place], first: Encoded) -> None:
        self._module = module
        self.shared = self._sharing(places, first)
        layers = dict(module.named_modules())
        self.sums = {
            p.name: torch.zeros(p.shape, dtype=torch.float64, device=layers[p.module].weight.device)
            for p in places
            if p.name not in self.shared
        }
        self._hooks = [
            layers[p.module].register_forward_pre_hook(self._products(p.name)) for p in places if p.name in self.sums
        ]

    def _products(self, name: str) -> Any:
        def hook(_: nn.Module, given: tuple[torch.Tensor, ...]) -> None:
            rows = given[0].detach().reshape(-1, given[0].shape[-1]).float()
            into = self.sums[name]
            into += rows.T @ rows if into.dim() == 2 else rows.square().sum(0)

        return hook

    def _sharing(self, places: Sequence[Place], first: Encoded) -> dict[str, str]:
        layers, seen = dict(self._module.named_modules()), dict[str, list[torch.Tensor]]()

        def noting(name: str) -> Any:
            return lambda _, given: seen.setdefault(name, []).append(given[0])  # kept: a tensor's id may come again

        hooks = [layers[place.module].register_forward_pre_hook(noting(place.name)) for place in places]
        with _removed(hooks):
            self._forward(first)
        shared, leaders = {}, dict[tuple[object, ...], str]()
        for place in places:
            read = tuple(id(tensor) for tensor in seen.get(place.name, ()))
            if read:  # of one slice: files of slices stand for themselves
                leader = leaders.setdefault((place.slice, place.shape, *read), place.name)
                if leader != place.name:
                    shared[place.name] = leader
        return shared

    def _forward(self, item: Encoded) -> None:
        with torch.no_grad():
            self._module(input_ids=torch.tensor([item.ids], device=self._module.device))

    def add(self, number: int, item: Encoded) -> None:
        """Add the tokens of one item."""
        self._forward(item)

    def close(self) -> None:
        """Leave the module without hooks."""
        for hook in self._hooks:
            hook.remove()


@contextmanager
def _removed(hooks: Sequence[Any]) -> Iterator[None]:
    """Remove hooks in the end."""
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
