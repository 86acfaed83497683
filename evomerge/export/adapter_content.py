"""The tensors of an adapter, collected slice by slice, and what they lose of the differences."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from evomerge.errors import RecipeError
from evomerge.merge.adapters.factors import exact_factors, made_factors, replaced
from evomerge.merge.adapters.places import AdapterBase, Place, Places, kind_of
from evomerge.merge.execution.engine import SliceMerge
from evomerge.merge.execution.notes import Notes
from evomerge.merge.execution.sources import Placement, Sources
from evomerge.merge.methods.low_rank import Bound, Factors, compressed, lost, truncated
from evomerge.merge.planning.slice_plan import Part, SlicePlan
from evomerge.models.pool import Pool

PREFIX = "base_model.model."
_ROUNDING = 5e-7  # of the base's length: what weighted sums in float32 differ by from what they should be


@dataclass(frozen=True)
class ModuleLoss:
    """What the factors of one module lose.

    Attributes:
        rank: of the factors.
        error: ``|D - B A| / |D|``, Frobenius, of the values that are stored.
        exact: whether the factors are the sources' own.
    """

    rank: int
    error: float
    exact: bool


@dataclass(frozen=True)
class AdapterLoss:
    """What an adapter loses of the difference between a result and its base.

    Attributes:
        error: over all matrices together.
        modules: by module.
        whole: modules that are saved whole, which lose nothing.
        nbytes, base_nbytes: size of the adapter's tensors, and of its base's.
    """

    error: float
    modules: Mapping[str, ModuleLoss]
    whole: tuple[str, ...]
    nbytes: int
    base_nbytes: int

    @property
    def worst(self) -> str:
        """The module of the largest error."""
        return max(self.modules, key=lambda path: self.modules[path].error)

    def sentence(self) -> str:
        """How exact the adapter is, for people."""
        ranks = sorted(own.rank for own in self.modules.values())
        spread = f"rank {ranks[0]}" if ranks[0] == ranks[-1] else f"ranks {ranks[0]} to {ranks[-1]}"
        exact = sum(own.exact for own in self.modules.values())
        head = f"{len(self.modules)} modules of {spread}"
        if exact == len(self.modules) and self.error < _SHOWN:
            return f"{head}; exact: the factors of the sources' own adapters, or what they come to in fewer ranks"
        worst = self.worst
        also = f"; {exact} of them exact" if exact else ""
        most = f"{self.modules[worst].error:.2%} at worst ({worst})"
        return f"{head}{also}; relative error {self.error:.2%} over all, {most}"

    def as_json(self, base: AdapterBase) -> dict[str, Any]:
        """As it is kept beside the adapter."""
        return {
            "evomerge_adapter": 1,
            "base": base.ref.address if base.ref.revision else base.ref.fingerprint or base.name,
            "error": self.error,
            "worst": {"module": self.worst, "error": self.modules[self.worst].error},
            "modules": {path: vars(own) for path, own in sorted(self.modules.items())},
            "whole": list(self.whole),
        }


_SHOWN = 1e-5  # a relative error below this is rounding to the adapter's dtype


class AdapterContent:
    """What an adapter holds, and the accounts of it.

    Args:
        base: what it is added to.
        places: where tensors go.
        pool: the sources, in which adapters are folded without rounding.
        bound: of ranks or errors.
        dtype: of factors.
        whole_dtype: of what is saved whole.

    Attributes:
        tensors: by PEFT's names.
        ranks: of the modules that have factors.
        whole: modules that are saved whole, in order.
        has_biases, has_turned: as `adapter_settings` asks.
    """

    def __init__(
        self,
        base: AdapterBase,
        places: Places,
        pool: Pool,
        bound: Bound,
        dtype: torch.dtype,
        whole_dtype: torch.dtype,
    ) -> None:
        self._base, self._places, self._pool, self._bound = base, places, pool, bound
        self._dtype, self._whole_dtype = dtype, whole_dtype
        self._notes = Notes(0)  # numbers only, for what ranks over the whole model
        self.tensors: dict[str, torch.Tensor] = {}
        self.ranks: dict[str, int] = {}
        self.whole: list[str] = []
        self.has_biases = self.has_turned = False
        self._modules: dict[str, ModuleLoss] = {}
        self._lost = self._norm = 0.0

    @property
    def is_empty(self) -> bool:
        """Whether nothing differs from the base."""
        return not self.tensors

    @torch.no_grad()
    def add(self, entry: SlicePlan) -> None:
        """Compare one slice with the base's and keep what differs.

        Raises:
            RecipeError: a tensor differs that no adapter can hold.
        """
        # What is folded for a slice is not kept for the next.
        merge = SliceMerge(entry, self._pool, Sources(self._pool, "cpu", Placement(0, 0, 0), notes=self._notes))
        whole: dict[str, dict[str, torch.Tensor]] = {}
        differing: set[str] = set()
        tied: dict[str, tuple[str, ...]] = {}
        biases: list[tuple[Place, torch.Tensor, bool]] = []
        for part in entry.parts:
            for index in part.tensors:
                name = entry.tensors[index]
                if merge.copied(index) is not None:
                    continue
                place = self._places.of(name)
                sources = (*part.sources, *([part.base] if part.base is not None else []))
                if place.has_factors and not replaced(sources, index, self._pool):
                    self._add_matrix(merge, part, index, place)
                    continue
                result = merge.tensor(part, index, None).view(self._pool.layout.shapes[entry.like[index]])
                differs = _differ(result, self._base.read(name))
                if differs and place.problem:
                    raise RecipeError(
                        f"tensor {name!r} differs from the base's, and no adapter holds it: {place.problem}",
                        "differences of linear weights, embeddings, norms and biases",
                        "write a model: evomerge merge without --format lora",
                    )
                if place.problem:
                    continue
                if place.kind == "bias":
                    biases.append((place, result, differs))
                    continue
                whole.setdefault(place.module, {})[place.parameter] = result
                if differs:
                    differing.add(place.module)
                    tied[place.module] = place.tied
        for place, result, differs in biases:
            if place.module in differing:
                whole[place.module][place.parameter] = result
            elif differs:
                self._add_bias(place, result)
        for path in whole:
            if path in differing:
                self._add_whole(path, whole[path])
                for other in tied.get(path, ()):  # PEFT wants every use of a tied weight
                    self._add_whole(other, whole[path])

    def complete(self) -> None:
        """Give a module factors of zeros where none has any: PEFT takes no adapter without."""
        if not self.ranks:
            self._zeros(self._places.first_linear())

    def loss(self) -> AdapterLoss:
        """What is lost, of all that was added."""
        error = math.sqrt(self._lost / self._norm) if self._norm else 0.0
        size = sum(tensor.nbytes for tensor in self.tensors.values())
        return AdapterLoss(error, self._modules, tuple(self.whole), size, self._base.checkpoint.nbytes)

    def _add_matrix(self, merge: SliceMerge, part: Part, index: int, place: Place) -> None:
        """Factors for the difference of a matrix."""
        entry = merge.plan
        with merge.naming(index):
            found = merge.merge(part, index)
            mix = found.mix if found.of_sources else None
        difference: Factors | torch.Tensor | None = exact_factors(
            mix, entry, part.sources, part.base, index, self._base, self._pool
        ) or made_factors(merge, part, index, self._base)
        if isinstance(difference, Factors):
            if not difference.rank or not _any(difference):
                return
            limit = min(difference.b.shape[0], difference.a.shape[1], self._bound.rank or difference.rank)
            exact = difference.rank <= limit or self._bound.rank is None
            kept = difference if difference.rank <= limit else compressed(difference, Bound(rank=limit))
        else:
            name = entry.tensors[index]
            below = self._base.read(name)
            difference = merge.tensor(part, index, None).view(below.shape) - below
            if float(difference.norm()) <= _ROUNDING * float(below.norm()):
                return
            kept, exact = truncated(difference, self._bound), False
        kept = Factors(kept.b.to(self._dtype), kept.a.to(self._dtype))
        error, norm = lost(difference, kept)
        self._lost += error
        self._norm += norm
        self._modules[place.module] = ModuleLoss(kept.rank, math.sqrt(error / norm) if norm else 0.0, exact)
        self._add_factors(place, kept)

    def _add_factors(self, place: Place, factors: Factors) -> None:
        """Factors by PEFT's names: `A` takes the inputs, `B` gives the outputs, however the weight is stored."""
        self.ranks[place.module] = factors.rank
        turned = place.kind in ("turned", "embedding")
        a, b = (factors.b.T, factors.a.T) if turned else (factors.a, factors.b)
        self.has_turned |= place.kind == "turned"
        names = ("lora_embedding_A", "lora_embedding_B") if place.kind == "embedding" else _FACTORS
        for name, tensor in zip(names, (a, b), strict=True):
            self.tensors[f"{PREFIX}{place.module}.{name}"] = tensor.contiguous()

    def _add_bias(self, place: Place, result: torch.Tensor) -> None:
        """A bias, beside factors: those of its weight, or of zeros."""
        if place.module not in self.ranks:
            self._zeros(place.module)
        self.has_biases = True
        self.tensors[f"{PREFIX}{place.module}.base_layer.bias"] = result.to(self._whole_dtype).contiguous()

    def _add_whole(self, path: str, parameters: Mapping[str, torch.Tensor]) -> None:
        """A module with all its parameters."""
        lacking = sorted(self._places.state(path) - parameters.keys())
        if lacking:
            raise RecipeError(
                f"module {path!r} differs from the base's, and also consists of {', '.join(lacking)}, which are not "
                "merged with it",
                "modules whose parameters are of one slice",
                "write a model: evomerge merge without --format lora",
            )
        self.whole.append(path)
        for name, tensor in parameters.items():
            self.tensors[f"{PREFIX}{path}.{name}"] = tensor.to(self._whole_dtype, copy=True).contiguous()

    def _zeros(self, path: str) -> None:
        """Factors that add nothing."""
        module = self._places.module.get_submodule(path)
        rows, columns = module.weight.shape  # type: ignore[misc]
        place = Place(path, "weight", kind_of(module) or "linear")
        self._modules[path] = ModuleLoss(1, 0.0, True)
        self._add_factors(
            place, Factors(torch.zeros(rows, 1, dtype=self._dtype), torch.zeros(1, columns, dtype=self._dtype))
        )


_FACTORS = ("lora_A.weight", "lora_B.weight")


def _any(factors: Factors) -> bool:
    return bool((factors.b != 0).any()) and bool((factors.a != 0).any())


def _differ(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two float32 tensors differ by more than rounding."""
    return float((one - other).norm()) > _ROUNDING * float(other.norm())
