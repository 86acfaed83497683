"""Slices of a recipe: what is merged as one, from which inputs, by which method and parameters."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from evomerge.errors import RecipeError
from evomerge.recipes.method_spec import Value

Component = Literal["attn", "mlp", "norm", "resnet", "time", "embed", "time_embed", "final_norm", "head"]


Dtype = Literal["float32", "bfloat16", "float16"]


LAYER_COMPONENTS: tuple[Component, ...] = ("attn", "mlp", "norm")


OUTER_COMPONENTS: tuple[Component, ...] = ("embed", "final_norm", "head")


COMPONENTS: tuple[Component, ...] = (*LAYER_COMPONENTS, *OUTER_COMPONENTS)


EVERY_LAYER_COMPONENT: tuple[Component, ...] = (*LAYER_COMPONENTS, "resnet", "time")
"""With those of networks that draw images: convolutions, and what a layer makes of the time."""


EVERY_OUTER_COMPONENT: tuple[Component, ...] = ("embed", "time_embed", "final_norm", "head")
"""With that of networks that draw images: the embedding of the time, and of what is given beside it."""


EVERY_COMPONENT: tuple[Component, ...] = (*EVERY_LAYER_COMPONENT, *EVERY_OUTER_COMPONENT)


_BEFORE = ("embed", "time_embed")


DTYPES: tuple[Dtype, ...] = ("float32", "bfloat16", "float16")


Parameters = tuple[tuple[str, Value], ...]


def parameters(values: Mapping[str, Value]) -> Parameters:
    """The canonical form of parameter values."""
    return tuple(sorted(values.items()))


@dataclass(frozen=True)
class SliceId:
    """The unit of merging and caching: one component of one layer, or `embed`, `time_embed`, `final_norm`, `head`.

    Written ``layers.3.attn`` or ``embed``.

    Attributes:
        order: sorts slices in model order: ``embed``, the layers (attn, mlp, norm), ``final_norm``, ``head``.

    >>> str(SliceId("attn", 3)), SliceId.parse("embed").layer
    ('layers.3.attn', None)
    """

    component: Component
    layer: int | None = None
    order: tuple[int, int, int] = field(init=False, repr=False, compare=False)
    _text: str = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        in_layer = self.component in EVERY_LAYER_COMPONENT
        if (self.component not in EVERY_COMPONENT) or in_layer != (self.layer is not None) or (self.layer or 0) < 0:
            raise RecipeError(
                f"slice with component {self.component!r} and layer {self.layer}",
                f"{', '.join(LAYER_COMPONENTS)} belong to a layer; {', '.join(OUTER_COMPONENTS)} do not",
            )
        rank = EVERY_COMPONENT.index(self.component)
        part = 1 if self.layer is not None else 0 if self.component in _BEFORE else 2
        text = self.component if self.layer is None else f"layers.{self.layer}.{self.component}"
        # Made once: every recipe of a search sorts, compares and hashes the same slices.
        object.__setattr__(self, "order", (part, self.layer or 0, rank))
        object.__setattr__(self, "_text", text)

    def __str__(self) -> str:
        return self._text

    @staticmethod
    def parse(text: str) -> SliceId:
        """Read ``layers.3.attn`` or ``embed``; `RecipeError` for anything else."""
        if text in EVERY_OUTER_COMPONENT:
            return SliceId(text)
        match = re.fullmatch(rf"layers\.(\d{{1,6}})\.({'|'.join(EVERY_LAYER_COMPONENT)})", text)
        if match is None:
            raise RecipeError(
                f"{text!r} is not a slice",
                f"write layers.N.C with C one of {', '.join(LAYER_COMPONENTS)}, or {', '.join(OUTER_COMPONENTS)}",
            )
        return SliceId(match[2], int(match[1]))  # type: ignore[arg-type]  # the pattern allows components only


@dataclass(frozen=True)
class ModelRef:
    """Where a source model is found and what pins it.

    Attributes:
        location: a local folder or a hub id (``org/name``).
        revision: the hub commit, for hub ids.
        fingerprint: hash of the checkpoint's content, for local folders.
        adapter: the LoRA adapter that is folded into the model, itself a local folder or a hub id.
    """

    location: str
    revision: str | None = None
    fingerprint: str | None = None
    adapter: ModelRef | None = None

    @property
    def identity(self) -> str:
        """What enters hashes: the content where it is known, the location only where nothing pins it."""
        own = self.fingerprint or (f"{self.location}@{self.revision}" if self.revision else self.location)
        return f"{own}+{self.adapter.identity}" if self.adapter else own

    @property
    def address(self) -> str:
        """As people write it, with the commits of hub ids: ``org/name@commit+org/adapter@commit``."""
        own = f"{self.location}@{self.revision}" if self.revision else self.location
        return f"{own}+{self.adapter.address}" if self.adapter else own


@dataclass(frozen=True)
class Input:
    """One source of a slice: a model, one of its layers, and the per-input parameters.

    `layer` is ``None`` where the source layer has the output layer's number.
    """

    model: str
    layer: int | None = None
    parameters: Parameters = ()


@dataclass(frozen=True)
class SliceRecipe:
    """How one output slice is made.

    Attributes:
        slice: the output slice.
        method: name of a merge method.
        inputs: the sources, in order.
        parameters: the parameters that are not per input.
        base: the model whose slice the method's differences are taken from, or ``None``.
        scale: of data flow recipes: on `attn` and `mlp`, a factor on what they add to the residual stream; on `norm`
            and `final_norm`, -1 turns around the norms that read the stream. ``None`` is 1.
    """

    slice: SliceId
    method: str
    inputs: tuple[Input, ...]
    parameters: Parameters = ()
    base: Input | None = None
    scale: float | None = None
