"""Sums over calibration items, one item after the other: of what gradients give, and of what layers read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import nn

from evomerge.calibration.encoding import Encoded, Item, size_of
from evomerge.calibration.forwards import forward
from evomerge.calibration.losses import loss_of
from evomerge.calibration.measurement import Measurement
from evomerge.calibration.places import Place

_COLUMNS = 1 << 16


class Sums(Protocol):
    """Sums of some tensors' statistics.

    Attributes:
        sums: by the name of a tensor in the checkpoint.
        shared: other tensors whose statistic is the same: its name by theirs.
    """

    sums: dict[str, torch.Tensor]
    shared: dict[str, str]

    def add(self, number: int, item: Item) -> None:
        """Add those of one item."""

    def statistic(self, name: str, items: Sequence[Item]) -> torch.Tensor:
        """What is kept of a sum over all items."""

    def close(self) -> None:
        """Leave the module as it was."""


class GradientSums:
    """Sums of what is made of the gradients of each item's loss, minus its log-likelihood, in float32.

    A gradient is taken up and let go as soon as it is there: of all layers together, there is never more than one.

    Args:
        module: whose parameters they are; all others are told not to ask for gradients.
        places: of the parameters.
        how: says which labels.
        rows: of a sum, for those that keep each item's; ``None`` for one row.
    """

    def __init__(self, module: Any, places: Sequence[Place], how: Measurement, rows: int | None = None) -> None:
        self._module, self._how, self._number = module, how, 0
        self.shared: dict[str, str] = {}
        parameters = dict(module.named_parameters(remove_duplicate=False))
        more = () if rows is None else (rows,)
        self.sums = {p.name: torch.zeros((*more, *p.shape), device=parameters[p.parameter].device) for p in places}
        for parameter in module.parameters():
            parameter.requires_grad_(False)
        self._hooks = []
        for place in places:
            parameter = parameters[place.parameter].requires_grad_(True)
            self._hooks.append(parameter.register_post_accumulate_grad_hook(self._taken(place.name)))

    def _taken(self, name: str) -> Any:
        def hook(parameter: nn.Parameter) -> None:
            assert parameter.grad is not None, "hooks of gradients run once there is one"
            self.take(self.sums[name], parameter.grad.reshape(-1).float(), parameter.detach().reshape(-1))
            parameter.grad = None

        return hook

    def take(self, into: torch.Tensor, gradient: torch.Tensor, weight: torch.Tensor) -> None:
        """Add what is made of a gradient, which may be written to."""
        into += gradient.square_()

    def statistic(self, name: str, items: Sequence[Item]) -> torch.Tensor:
        """The mean over items."""
        return self.sums[name] / len(items)

    def add(self, number: int, item: Item) -> None:
        """Add what one item gives.

        Raises:
            PoolError: the model has no likelihood of such items.
        """
        self._number = number
        with torch.enable_grad():
            loss_of(self._module, item, self._how, number).backward()

    def close(self) -> None:
        """Leave the module without hooks and gradients."""
        for hook in self._hooks:
            hook.remove()
        for parameter in self._module.parameters():
            parameter.requires_grad_(False)


class SensitivitySums(GradientSums):
    """Each item's products of gradient and weight; kept is the middle one of every element.

    Args:
        module, places, how: as of `GradientSums`.
        items: how many there are; memory is that of so many sums.
    """

    def __init__(self, module: Any, places: Sequence[Place], how: Measurement, items: int) -> None:
        super().__init__(module, places, how, items)

    def take(self, into: torch.Tensor, gradient: torch.Tensor, weight: torch.Tensor) -> None:
        """Put down one item's."""
        torch.mul(gradient, weight.float(), out=into[self._number])

    def statistic(self, name: str, items: Sequence[Item]) -> torch.Tensor:
        """Of n items that of rank ``n // 2`` from 0: at most a limit where more than half of them are."""
        each = self.sums[name]
        parts = [part.kthvalue(len(items) // 2 + 1, dim=0).values for part in each.split(_COLUMNS, dim=1)]
        return torch.cat(parts) if parts else each[0]


class KnownMoments:
    """Adam's second moments, which no item is read for.

    Args:
        moments: by the names of parameters.
        places: of the parameters.
    """

    def __init__(self, moments: Mapping[str, torch.Tensor], places: Sequence[Place]) -> None:
        self.shared: dict[str, str] = {}
        self.sums = {p.name: moments[p.parameter].reshape(-1) for p in places}

    def add(self, number: int, item: Item) -> None:
        """Nothing: it is all there."""

    def statistic(self, name: str, items: Sequence[Item]) -> torch.Tensor:
        """The second moments as they are."""
        return self.sums[name]

    def close(self) -> None:
        """Nothing was changed."""


class TokenSums:
    """What sums over the tokens of forwards have in common: hooks that see them.

    Args:
        module: in evaluation mode.
        hooks: on it, that sum.
    """

    def __init__(self, module: Any, hooks: Sequence[Any]) -> None:
        self._module, self._hooks = module, hooks

    def add(self, number: int, item: Item) -> None:
        """Send the tokens of one item through the model."""
        with torch.no_grad():
            forward(self._module, item)

    def close(self) -> None:
        """Leave the module without hooks."""
        for hook in self._hooks:
            hook.remove()


class InputSums(TokenSums):
    """Sums over tokens of what linear layers read, in float64: of ``x x^T`` or its diagonal, or of ``x``.

    Layers of a slice that read the very same tensor (queries, keys and values) share one sum.

    Args:
        module: in evaluation mode.
        places: of the layers' weights.
        first: an item, by which layers that share are found.
        squares: of ``x x^T`` or its diagonal, as shapes say; else of ``x``.
    """

    def __init__(self, module: Any, places: Sequence[Place], first: Item, *, squares: bool = True) -> None:
        self._squares = squares
        self._rows: dict[str, int] = {}
        layers = dict(module.named_modules())
        self.shared = self._sharing(module, layers, places, first)
        self.sums = {
            p.name: torch.zeros(p.shape, dtype=torch.float64, device=layers[p.module].weight.device)
            for p in places
            if p.name not in self.shared
        }
        summed = [p for p in places if p.name in self.sums]
        super().__init__(module, [layers[p.module].register_forward_pre_hook(self._products(p.name)) for p in summed])

    def _products(self, name: str) -> Any:
        def hook(_: nn.Module, given: tuple[torch.Tensor, ...]) -> None:
            rows = given[0].detach().reshape(-1, given[0].shape[-1]).float()
            into = self.sums[name]
            if not self._squares:
                into += rows.sum(0, dtype=torch.float64)
            else:
                into += rows.T @ rows if into.dim() == 2 else rows.square().sum(0)

        return hook

    def _sharing(self, module: Any, layers: Mapping[str, Any], places: Sequence[Place], first: Item) -> dict[str, str]:
        seen: dict[str, list[torch.Tensor]] = {}

        def noting(name: str) -> Any:
            return lambda _, given: seen.setdefault(name, []).append(given[0])  # kept: a tensor's id may come again

        hooks = [layers[place.module].register_forward_pre_hook(noting(place.name)) for place in places]
        with _removed(hooks), torch.no_grad():
            forward(module, first)
        shared, leaders = {}, dict[tuple[object, ...], str]()
        for place in places:
            tensors = seen.get(place.name, [])
            self._rows[place.name] = sum(x.numel() // x.shape[-1] for x in tensors)
            read = tuple(id(tensor) for tensor in tensors)
            if read:  # of one slice: files of slices stand for themselves
                leader = leaders.setdefault((place.slice, place.shape, *read), place.name)
                if leader != place.name:
                    shared[place.name] = leader
        return shared

    def statistic(self, name: str, items: Sequence[Item]) -> torch.Tensor:
        """The mean over tokens; of items that are no texts over what the layer read, of each as of the first."""
        if isinstance(items[0], Encoded):
            return self.sums[name] / sum(size_of(item) for item in items)
        return self.sums[name] / max(1, self._rows[name] * len(items))


@contextmanager
def _removed(hooks: Sequence[Any]) -> Iterator[None]:
    """Remove hooks in the end."""
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
