"""Statistics of mixtures of experts: which experts tokens are sent to, and how alike what experts give is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from evomerge.calibration.encoding import Encoded, Item, size_of
from evomerge.calibration.places import Place, Places
from evomerge.calibration.sums import TokenSums
from evomerge.errors import PoolError, reason_of
from evomerge.models.memory import out_of_memory
from evomerge.models.pool import Pool
from evomerge.recipes.slices import SliceId

_CALLED = ("hidden_states", "top_k_index", "top_k_weights")
_ALSO_CALLED = {"router_indices": "top_k_index", "routing_weights": "top_k_weights"}


def mixtures(module: nn.Module) -> dict[str, int]:
    """What holds the experts of each mixture, by its path: how many there are.

    That are the modules that transformers calls with tokens, the experts chosen for each, and their weights.
    """
    found = {}
    for path, own in module.named_modules():
        called = getattr(type(own).forward, "__code__", None)
        inner = getattr(type(own).forward, "__wrapped__", None)
        names = (inner.__code__ if inner is not None else called).co_varnames[1:4] if called is not None else ()
        if tuple(_ALSO_CALLED.get(name, name) for name in names) != _CALLED:
            continue
        first: Any = next(own.parameters(recurse=False), None)
        count = getattr(own, "num_experts", None) or (first.shape[0] if first is not None and first.dim() == 3 else 0)
        if isinstance(count, int) and count > 0:
            found[path] = count
    return found


def require_mixtures(module: nn.Module, kind: str) -> None:
    """`PoolError` for a model without mixtures whose tokens can be followed."""
    if not mixtures(module):
        raise PoolError(
            f"statistics {kind!r} are asked of {type(module).__name__}, in which no mixture of experts is found",
            "models of transformers that call experts with hidden_states, top_k_index and top_k_weights",
            f"leave {kind} out of statistics.kinds, and methods that read it out of the search space",
        )


def expert_places(pool: Pool, module: nn.Module, kind: str) -> Places:
    """Routers and experts of the only model of a pool; those of a mixture have one statistic together.

    Raises:
        PoolError: there are no mixtures.
    """
    require_mixtures(module, kind)
    found, (model,) = Places(), pool.stored
    layout, counts = pool.layout, mixtures(module)
    experts = _experts_of(pool)
    leaders: dict[tuple[SliceId, str], str] = {}
    for slice_ in layout.slices:
        for name in layout.tensors[slice_]:
            own = _mixture_of(layout.parameters[name], layout.shapes[name], counts, name in experts)
            if own is None or not pool.is_merged(name):
                continue
            size, sides = counts[own], layout.shapes[name]
            whole = len(sides) == 3 and sides[0] == size
            shape = (2, size) if kind == "routing" else (size, size)
            stored = pool.stored[model][name]
            leader = leaders.setdefault((slice_, own), stored)
            expert = -1 if whole else experts.get(name, -1)
            place = Place(stored, slice_, layout.parameters[name], own, expert, shape)
            found.of_slice.setdefault(slice_, []).append(place if leader == stored else replace(place, leader=leader))
    return found


def _mixture_of(parameter: str, shape: tuple[int, ...], counts: dict[str, int], alone: bool) -> str | None:
    """The mixture that a tensor belongs to: one of its experts, or what sends tokens to them."""
    for path, count in counts.items():
        if parameter.startswith(f"{path}."):
            return path if alone or shape[:1] == (count,) else None
        block = path.rpartition(".")[0]
        own = parameter.removeprefix(f"{block}.")
        if own != parameter and own.count(".") == 1 and shape[:1] == (count,) and len(shape) <= 2:
            return path  # the router's; a shared expert's tensors lie deeper
    return None


def _experts_of(pool: Pool) -> dict[str, int]:
    """Of tensors that are each of one expert, and that loading joins, its number: by the name in the layout."""
    found = {}
    for join in pool.layout.joins:
        seen: Counter[str] = Counter()
        for pattern, name in join.parts:
            found[name] = seen[pattern]
            seen[pattern] += 1
    return found


class RoutingSums(TokenSums):
    """Sums over tokens: how many chose each expert, and with which weights; in float64.

    Args:
        module: in evaluation mode.
        places: by `expert_places`.
    """

    def __init__(self, module: nn.Module, places: Sequence[Place]) -> None:
        self.shared = {p.name: p.leader for p in places if p.leader}
        own, layers = [p for p in places if not p.leader], dict(module.named_modules())
        self._rows: dict[str, int] = {}
        self.sums = {p.name: torch.zeros(p.shape, dtype=torch.float64, device=_device(layers[p.module])) for p in own}
        hooks = [layers[p.module].register_forward_pre_hook(self._seen(p.name), with_kwargs=True) for p in own]
        super().__init__(module, hooks)

    def _seen(self, name: str) -> Any:
        def hook(experts: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
            tokens, index, weights = (*given, *named.values())[:3]
            rows = tokens.detach().reshape(-1, tokens.shape[-1])
            self._rows[name] = len(rows)
            self.take(experts, name, rows, index.detach(), weights.detach())

        return hook

    def take(
        self, experts: nn.Module, name: str, tokens: torch.Tensor, index: torch.Tensor, weights: torch.Tensor
    ) -> None:
        """Count one call of a mixture's experts.

        Args:
            experts: what holds them.
            name: of the sum.
            tokens: of shape ``(tokens, width)``.
            index: the experts of each token, of shape ``(tokens, chosen)``; what is no expert's number is none.
            weights: theirs, of that shape, or ``(tokens, experts)``.
        """
        into = self.sums[name]
        count, index = into.shape[1], index.reshape(len(tokens), -1)
        weights = weights.reshape(len(tokens), -1).double()
        if weights.shape != index.shape:
            weights = weights.gather(1, index)
        chosen = index.reshape(-1).clamp(max=count)
        ones = torch.ones_like(weights).reshape(-1)
        for row, values in zip(into, (ones, weights.reshape(-1)), strict=True):
            row += values.new_zeros(count + 1).index_add_(0, chosen, values)[:count]

    def statistic(self, name: str, items: Sequence[Item]) -> torch.Tensor:
        """Shares of all choices and of all weights: each row has the sum 1."""
        found = self.sums[name]
        return found / found.sum(1, keepdim=True).clamp(min=torch.finfo(torch.float64).tiny)


class ExpertOutputSums(RoutingSums):
    """Sums over tokens of the inner products of what experts give, each expert being given every token; in float64.

    So one expert after the other computes what a mixture would not have asked it for: an item takes as long as a model
    in which every expert is chosen. Memory: of one mixture at a time, what each expert gives of an item.
    """

    def take(
        self, experts: nn.Module, name: str, tokens: torch.Tensor, index: torch.Tensor, weights: torch.Tensor
    ) -> None:
        """Give one call's tokens to every expert."""
        into = self.sums[name]
        whole = torch.ones((len(tokens), 1), dtype=weights.dtype, device=tokens.device)
        given = []
        for expert in range(len(into)):
            chosen = torch.full((len(tokens), 1), expert, dtype=index.dtype, device=tokens.device)
            try:
                found = experts.forward(tokens, chosen, whole)  # past the hooks
            except Exception as error:  # a model's code raises what it likes
                if out_of_memory(error):
                    raise
                raise PoolError(
                    f"{type(experts).__name__} cannot give all tokens to expert {expert} ({reason_of(error)})",
                    "experts that can be called one by one",
                    "leave expert_outputs out of statistics.kinds",
                ) from error
            given.append(found.reshape(-1).double())
        both = torch.stack(given)
        into += both @ both.T

    def statistic(self, name: str, items: Sequence[Item]) -> torch.Tensor:
        """The mean over tokens; of items that are no texts over what the mixture read, of each as of the last."""
        if isinstance(items[0], Encoded):
            return self.sums[name] / sum(size_of(item) for item in items)
        return self.sums[name] / max(1, self._rows.get(name, 1) * len(items))


def _device(experts: nn.Module) -> torch.device:
    return next(experts.parameters()).device
