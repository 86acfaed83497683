"""What a recipe's path is: the layers that hidden states pass through, and the scales on the way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from evomerge.recipes.recipe import Recipe
from evomerge.recipes.slices import SliceRecipe


@dataclass(frozen=True)
class PathLayer:
    """One layer of a path.

    Attributes:
        models: where it comes from: one model, or those that it is merged of.
        layer: its number there.
        input_scale: the scale on the way into it; 1 for the first.
    """

    models: tuple[str, ...]
    layer: int
    input_scale: float

    @property
    def source(self) -> str:
        """For people: ``math``, or ``math + lang``."""
        return " + ".join(self.models)


@dataclass(frozen=True)
class LayerPath:
    """The path of a recipe.

    Attributes:
        layers: in order.
        sources: the `PathLayer.source`s that occur: intermediates, models in the recipe's order, merges of several.
        ends: where the slices outside the layers come from, by their name.
    """

    layers: tuple[PathLayer, ...]
    sources: tuple[str, ...]
    ends: tuple[tuple[str, str], ...]

    @property
    def title(self) -> str:
        """``A path of 12 layers: 8 of math, 4 of lang``."""
        counts = [f"{sum(layer.source == s for layer in self.layers)} of {s}" for s in self.sources]
        return f"A path of {len(self.layers)} layers: {', '.join(counts)}"

    @property
    def text(self) -> str:
        """``math 0 to 3, lang 2 (×0.83), math 4``: runs of layers that follow each other, and scales on the way."""
        runs: list[list[PathLayer]] = []
        for layer in self.layers:
            last = runs[-1][-1] if runs else None
            if (
                last
                and not is_scaled(layer.input_scale)
                and (last.source, last.layer + 1) == (layer.source, layer.layer)
            ):
                runs[-1].append(layer)
            else:
                runs.append([layer])
        return ", ".join(_run(run) for run in runs)

    @property
    def note(self) -> str:
        """Where the rest of the model comes from, and what the scales mean where there are any."""
        grouped: dict[str, list[str]] = {}
        for name, source in self.ends:
            grouped.setdefault(source, []).append(name)
        ends = "; ".join(f"{' and '.join(names)} of {source}" for source, names in grouped.items())
        scaled = any(is_scaled(layer.input_scale) for layer in self.layers)
        return ends + ("; × is the scale of the hidden states on their way into a layer" if scaled else "")


def _run(layers: Sequence[PathLayer]) -> str:
    first = layers[0]
    until = f" to {layers[-1].layer}" if layers[1:] else ""
    return f"{first.source} {first.layer}{until}" + (
        f" ({scale_text(first.input_scale)})" if is_scaled(first.input_scale) else ""
    )


_END_NAMES = {"embed": "embeddings", "time_embed": "embedding of the time", "final_norm": "final norm", "head": "head"}


def path_of(recipe: Recipe) -> LayerPath | None:
    """The path of a recipe; ``None`` for a merge whose layers all are where they were, of the same models, unscaled."""
    entries: dict[int, SliceRecipe] = {}
    for entry in recipe.slices:
        if entry.slice.layer is not None and (entry.slice.layer not in entries or entry.slice.component == "attn"):
            entries[entry.slice.layer] = entry
    if not entries:
        return None
    found, before = [], 1.0
    for place, entry in sorted(entries.items()):
        numbers = [place if source.layer is None else source.layer for source in entry.inputs]
        factor = 1.0 if entry.scale is None else entry.scale
        models = tuple(dict.fromkeys(source.model for source in entry.inputs))
        found.append(PathLayer(models, numbers[0], before / factor))
        before = factor
    moved = any(layer.layer != place or layer.input_scale != 1 for place, layer in enumerate(found))
    if not moved and len({layer.models for layer in found}) == 1:
        return None
    order = [name for name, _ in (*recipe.intermediates, *recipe.models)]
    kinds = sorted({layer.models for layer in found}, key=lambda m: (len(m), [order.index(name) for name in m]))
    ends = tuple(
        (_END_NAMES[e.slice.component], " + ".join(dict.fromkeys(source.model for source in e.inputs)))
        for e in recipe.slices
        if e.slice.layer is None
    )
    return LayerPath(tuple(found), tuple(" + ".join(models) for models in kinds), ends)


def scale_text(value: float) -> str:
    """A scale in few characters: ``×0.83``, ``×-1.25``, ``×12.5``, ``×2e-3``."""
    if 0.01 <= abs(value) < 9999.5:
        for digits in (2, 1, 0):
            text = f"{value:.{digits}f}"
            if len(text.lstrip("-")) <= 4:
                return f"×{text}"
    return f"×{value:.0e}".replace("e+0", "e").replace("e-0", "e-")


def is_scaled(input_scale: float) -> bool:
    """Whether a scale differs from 1 by more than rounding."""
    return abs(input_scale - 1.0) > 1e-9


"""One for each source: readable on light and on dark ground, and apart for most colour-blind readers."""
