"""The language model inside a model that sees: where it is, and how another model's language part fills it."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from evomerge.models.architecture.names import NameMatch

_PROJECTOR = re.compile(r"(^|\.)(\w*(projector|connector|merger)\w*|embed_vision|image_newline)(\.|$)")


def sees(config: Any) -> bool:
    """Whether a configuration is of a language model that sees: one with a part for images and a part for texts.

    Models with two towers in one space, CLIP's kind, write nothing and are none; nor are encoder-decoders.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

    parts = getattr(config, "vision_config", None), getattr(config, "text_config", None)
    writes = getattr(config, "model_type", None) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
    return writes and None not in parts and not getattr(config, "is_encoder_decoder", False)


def language_prefix(module: nn.Module) -> str | None:
    """Name of the language model in a module that sees, without its head; ``None`` in all others."""
    if not sees(getattr(module, "config", None)) or not hasattr(module, "get_decoder"):
        return None
    decoder: Any = module.get_decoder()  # type: ignore[operator]
    return next((name for name, part in module.named_modules() if part is decoder and name), None)


def is_projector(place: str) -> bool:
    """Whether a tensor outside the language model is one of what carries images over to it."""
    return _PROJECTOR.search(place) is not None


@dataclass(frozen=True)
class LanguageNames:
    """What the language part of a module is called there.

    Attributes:
        body: name of what holds embeddings, layers and the final norm.
        embeddings: name of the weight of the embeddings.
        head: name of the module of the output embeddings; ``None`` where there is none.
    """

    body: str
    embeddings: str | None
    head: str | None

    @staticmethod
    def of(module: nn.Module) -> LanguageNames:
        """Those of a module that sees, or of a language model."""
        prefix = language_prefix(module)
        if prefix is None:
            prefix = str(getattr(module, "base_model_prefix", ""))
        names = {id(part): name for name, part in module.named_modules()}
        head: Any = module.get_output_embeddings() if hasattr(module, "get_output_embeddings") else None  # type: ignore[operator]
        words: Any = module.get_input_embeddings() if hasattr(module, "get_input_embeddings") else None  # type: ignore[operator]
        inner = names.get(id(words))
        return LanguageNames(prefix, None if inner is None else f"{inner}.weight", names.get(id(head)))

    def has(self, place: str) -> bool:
        """Whether a tensor of the module is the language part's."""
        return place.startswith(f"{self.body}.") or (self.head is not None and place.startswith(f"{self.head}."))

    def moved(self, place: str, to: LanguageNames) -> str | None:
        """What a tensor of the language part is called in another module; ``None`` for one of another part."""
        if self.head is not None and place.startswith(f"{self.head}."):
            return None if to.head is None else to.head + place.removeprefix(self.head)
        return to.body + place.removeprefix(self.body) if place.startswith(f"{self.body}.") else None


def patterns_of(chosen: Collection[str], every: Collection[str]) -> tuple[str, ...]:
    """The fewest names and patterns ``prefix.*`` that match these tensors and no others of a module."""
    others = set(every) - set(chosen)
    taken = {".".join(parts[:depth]) for parts in (o.split(".") for o in others) for depth in range(1, len(parts))}
    found: dict[str, None] = {}
    for place in chosen:
        parts = place.split(".")
        own = (".".join(parts[:depth]) for depth in range(1, len(parts)))
        free = next((prefix for prefix in own if prefix not in taken), None)
        found[place if free is None else f"{free}.*"] = None
    return tuple(found)


def language_match(match: NameMatch, own: nn.Module, module: nn.Module) -> NameMatch:
    """How the language part of a checkpoint fills another module than its own.

    Args:
        match: of the checkpoint with its own module.
        own: that module.
        module: the one to be filled.
    """
    mine, other = LanguageNames.of(own), LanguageNames.of(module)

    def moved(named: Mapping[str, Any]) -> dict[str, Any]:
        places = {place: mine.moved(place, other) for place in named}
        return {to: named[place] for place, to in places.items() if to is not None}

    joins = {
        place: replace(join, places=tuple(mine.moved(each, other) or each for each in join.places))
        for place, join in moved(match.joins).items()
    }
    return replace(match, stored=moved(match.stored), joins=joins, unexpected=(), missing=match.missing)
