"""Where in a LoRA adapter the tensors of a model go, and which model the adapter is for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import nn

from evomerge.errors import PoolError, RecipeError
from evomerge.models.architecture.layout import skeleton
from evomerge.models.architecture.names import tied_names
from evomerge.models.checkpoints.reader import Checkpoint
from evomerge.models.pool import Pool, unadapted
from evomerge.recipes.recipe import Recipe
from evomerge.recipes.slices import ModelRef

Kind = Literal["linear", "turned", "embedding", "bias", "whole"]


@dataclass(frozen=True)
class AdapterBase:
    """The model that an adapter is added to: a plain one, without an adapter of its own.

    Attributes:
        name: of the pool's model that it is, or that it is folded into.
        ref: where it is.
        checkpoint: its files.
        stored: layout tensor name -> name in `checkpoint`.
    """

    name: str
    ref: ModelRef
    checkpoint: Checkpoint
    stored: Mapping[str, str]

    @property
    def address(self) -> str:
        """What PEFT finds it by: its hub id, or its folder."""
        return self.ref.location if self.ref.revision else str(self.checkpoint.folder)

    def read(self, name: str) -> torch.Tensor:
        """A tensor by its name in the layout, float32."""
        return self.checkpoint.read(self.stored[name]).float()


def base_of(recipe: Recipe, pool: Pool) -> AdapterBase:
    """The model from which the recipe's slices take differences, or else the one that gives the configuration.

    Raises:
        RecipeError: slices take differences from several models, or the result has another shape than its base.
    """
    bases = sorted({entry.base.model for entry in recipe.slices if entry.base is not None})
    if len(bases) > 1:
        raise RecipeError(
            f"the recipe's slices have the bases {', '.join(bases)}",
            "an adapter is added to one model",
            "write a model: evomerge merge without --format lora",
        )
    name = bases[0] if bases and bases[0] in pool.checkpoints else recipe.config_from
    depth = 1 + max((entry.slice.layer for entry in recipe.slices if entry.slice.layer is not None), default=-1)
    if depth != pool.info.depth(name):
        raise RecipeError(
            f"the result has {depth} layers, its base {name!r} has {pool.info.depth(name)}",
            "an adapter changes weights and adds no layers",
            "write a model: evomerge merge without --format lora",
        )
    stored = pool.stored[name]
    twice = [own for own, uses in Counter(stored.values()).items() if uses > 1]
    if twice:
        raise RecipeError(
            f"the base {name!r} ties head and embeddings ({twice[0]!r}), the result does not",
            "an adapter leaves tied what its base ties",
            "write a model: evomerge merge without --format lora",
        )
    plain = unadapted(pool.checkpoints[name])
    return AdapterBase(name, replace(dict(pool.info.refs)[name], adapter=None), plain, stored)


@dataclass(frozen=True)
class Place:
    """Where a tensor goes.

    Attributes:
        module: the module that it belongs to, as transformers names it.
        parameter: its name there.
        kind: ``linear``: a weight of outputs x inputs, which gets factors; ``turned``: one of inputs x outputs, as
            GPT-2's; ``embedding``; ``bias``: of a module whose weight gets factors; ``whole``: of a module that is
            saved whole.
        tied: the modules that have the same weights.
        problem: why no adapter holds a change of it; empty where one does.
    """

    module: str
    parameter: str
    kind: Kind
    tied: tuple[str, ...] = ()
    problem: str = ""

    @property
    def has_factors(self) -> bool:
        """Whether a change of it is a product of two factors."""
        return self.kind in ("linear", "turned", "embedding")


class Places:
    """The places of all tensors of a pool's layout.

    Args:
        pool: whose architecture it is.

    Raises:
        PoolError: transformers cannot build the architecture.
    """

    def __init__(self, pool: Pool) -> None:
        self.module = skeleton(pool.config, pool.trust_remote_code)
        self._layout = pool.layout
        self._tied: dict[str, list[str]] = {}
        for other, source in tied_names(self.module).items():
            self._tied.setdefault(source, []).append(other.rpartition(".")[0])
        self._joined = {name for join in pool.layout.joins for name in join.names}

    def of(self, name: str) -> Place:
        """The place of a tensor by its name in the layout."""
        place = self._layout.parameters[name]
        path, _, parameter = place.rpartition(".")
        owner = self.module.get_submodule(path)
        own = dict(owner.named_parameters(recurse=False)).get(parameter)
        if name in self._joined:
            return Place(path, parameter, "whole", problem="it is joined with others on loading, as experts are")
        if own is None:
            return Place(path, parameter, "whole", problem="it is no parameter but a buffer")
        if any(True for _ in owner.children()) or not path:
            return Place(path, parameter, "whole", problem="its module holds further modules")
        kind = kind_of(owner)
        if kind is None or own.dim() > 2:
            return Place(path, parameter, "whole")
        if parameter == "bias":
            return Place(path, parameter, "bias")
        tied = tuple(self._tied.get(place, ()))
        return Place(path, parameter, "whole" if tied else kind, tied)

    def patterns(self, chosen: set[str]) -> list[str]:
        """The shortest names by which PEFT finds exactly these modules: last parts, or else whole paths."""
        by_end: dict[str, set[str]] = {}
        for path, _ in self.module.named_modules():
            by_end.setdefault(path.rpartition(".")[2], set()).add(path)
        found: set[str] = set()
        for path in chosen:
            end = path.rpartition(".")[2]
            found.add(end if by_end[end] <= chosen else path)
        return sorted(found)

    def state(self, path: str) -> set[str]:
        """What a module that is saved whole consists of."""
        return set(self.module.get_submodule(path).state_dict())

    def first_linear(self) -> str:
        """A module that factors can be given to.

        Raises:
            PoolError: there is none.
        """
        tied = tied_names(self.module)
        for path, module in self.module.named_modules():
            if kind_of(module) in ("linear", "turned") and f"{path}.weight" not in tied:
                return str(path)
        raise PoolError(f"{type(self.module).__name__} has no linear weights", "an adapter adds to linear weights")


def kind_of(module: nn.Module) -> Kind | None:
    """What a change of a module's weight is; ``None`` where it has no factors."""
    if isinstance(module, nn.Linear):
        return "linear"
    if isinstance(module, nn.Embedding):
        return "embedding"
    return "turned" if type(module).__name__ == "Conv1D" else None
