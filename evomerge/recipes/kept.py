"""Tensors that are kept: those that results have from the model of their configuration, and that are never merged.

    kept: ["model.vision_tower.*", "model.multi_modal_projector.*"]

Of vision-language models that is what looks at images, where only the language models are merged.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from evomerge.errors import RecipeError
from evomerge.utils import safe_yaml

MOST_PATTERNS = 10_000


@dataclass(frozen=True)
class Kept:
    """What a pool keeps, and of which model.

    Attributes:
        tensors: names in the transformers module, or patterns of them; no slice holds what they match.
        model: whose they are; it gives the configuration.

    >>> Kept(("model.vision_tower.*",), "llava").has("model.vision_tower.encoder.layers.0.mlp.fc1.weight")
    True
    """

    tensors: tuple[str, ...]
    model: str

    def has(self, place: str) -> bool:
        """Whether a tensor of the module is one of them."""
        return any(fnmatchcase(place, pattern) for pattern in self.tensors)

    def among(self, places: Iterable[str]) -> tuple[str, ...]:
        """Those of some tensors of the module that are kept, in order."""
        return tuple(place for place in places if self.has(place))


def opening_settings(kept: Kept | None) -> dict[str, Any]:
    """What `models.opening.open_pool` is told, so that a pool keeps the same."""
    if kept is None:
        return {"kept": None}
    return {"kept": list(kept.tensors), "kept_from": kept.model}


def check_kept(tensors: tuple[str, ...]) -> None:
    """`RecipeError` for a recipe's `kept` that is none."""
    if len(set(tensors)) < len(tensors) or len(tensors) > MOST_PATTERNS:
        raise RecipeError(f"kept is {', '.join(tensors[:20])}", "names of tensors or patterns of them, each once")


def read_kept(content: Any, where: str) -> tuple[str, ...]:
    """What a recipe file says is kept; empty for nothing.

    Raises:
        RecipeError: it says something else; names the place.
    """
    if content is None:
        return ()
    found = tuple(safe_yaml.text(own, where) for own in safe_yaml.items(content, where))
    if not found:
        raise RecipeError(f"{where} is empty", "names of tensors or patterns of them", "leave it out")
    return found
