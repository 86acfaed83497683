"""The tokenizer of a mergekit file: whose it is, and where the rows of tokens come from that a model lacks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from evomerge.errors import RecipeError
from evomerge.mergekit.references import Reference, read_reference
from evomerge.recipes.tokenizer_spec import UNION, TokenizerSpec, read_tokenizer, token_content
from evomerge.utils import safe_yaml


@dataclass(frozen=True)
class TokenizerEntry:
    """What a file says of its tokenizer.

    Attributes:
        spec: with keys of `references` in the place of models' names.
        references: the models that it names.
        key: of the file, for messages.
    """

    spec: TokenizerSpec
    references: Mapping[str, Reference]
    key: str

    @property
    def source(self) -> Reference | None:
        """The model whose tokenizer it is; ``None`` for the union of all."""
        return self.references.get(self.spec.source)

    @property
    def is_plain(self) -> bool:
        """Whether it is that of a model, as it is."""
        return self.source is not None and not self.spec.tokens and self.spec.multiple_of is None

    def named(self, names: Mapping[Reference, str]) -> TokenizerSpec:
        """The same with the models' names in the pool."""
        own = {key: names[reference] for key, reference in self.references.items()}
        tokens = tuple(
            (token, replace(how, model=own[how.model]) if how.model is not None else how)
            for token, how in self.spec.tokens
        )
        base = None if self.spec.base is None else own[self.spec.base]
        return replace(self.spec, source=own.get(self.spec.source, UNION), base=base, tokens=tokens)


def read_entry(fields: Mapping[str, Any], base: Reference | None) -> TokenizerEntry | None:
    """The entry of a document; ``None`` where it has none.

    Raises:
        RecipeError: it is none of mergekit's; names the key.
    """
    key, content = "tokenizer_source", fields.get("tokenizer_source")
    if "tokenizer" in fields:
        if content is not None:
            raise RecipeError("tokenizer_source and tokenizer are given", "one of the two")
        key = "tokenizer"
        content = safe_yaml.mapping(fields["tokenizer"], key, (), ("source", "tokens", "pad_to_multiple_of"))
    if content is None:
        return None
    source = content.get("source") if isinstance(content, dict) and key == "tokenizer" else content
    if source == "base" and base is None:
        raise RecipeError(f"{key} is base and there is no base_model", "base_model, or the tokenizer's model")
    references: dict[str, Reference] = {}

    def register(given: Any, where: str) -> str:
        reference = given if isinstance(given, Reference) else read_reference(given, where)
        known = next((name for name, own in references.items() if own == reference), None)
        name = known or f"model {len(references)}"
        references[name] = reference
        return name

    own = None if base is None else register(base, "base_model")
    if key == "tokenizer_source":
        content = {"source": content}
    spec = read_tokenizer(content, key, register, own)
    return TokenizerEntry(spec, references, key)


def entry_content(
    spec: TokenizerSpec, model: Callable[[str], Any], base: str | None, merged: Mapping[str, bool]
) -> dict[str, Any]:
    """The keys of a document for a vocabulary.

    Args:
        spec: of a recipe.
        model: says how models are written, by their names.
        base: the model that the document has as its base.
        merged: by model, whether it is among the sources of the first and of the last slice.

    Raises:
        RecipeError: mergekit has no such vocabulary, or rows of it come from elsewhere there.
    """
    lacking = [name for name, both in merged.items() if not both]
    means = [token for token, how in spec.tokens if how.kind == "mean"]
    why = ""
    if spec.source == "aligned":
        why = "models whose rows are aligned by their ids, with rows of padding"
    elif means:
        why = f"the mean of the models' rows for token {means[0]!r}"
    elif lacking:
        why = f"a vocabulary with rows of model {lacking[0]!r}, which is not merged in the first or the last layer"
    elif spec.base != base:
        why = f"the rows of {spec.base!r}" if spec.base else f"rows of several models without the base {base!r}"
        why += " for tokens that some models lack, in this merge"
    if why:
        do = "`evomerge merge RUN OUT` writes the model"
        do = f"open the pool with pool.tokenizer=union, or a model; {do}" if spec.source == "aligned" else do
        raise RecipeError(f"mergekit cannot express {why}", "what its tokenizer key says", do)
    source = spec.source if spec.source == UNION else model(spec.source)
    if not spec.tokens and spec.multiple_of is None:
        return {"tokenizer_source": source}
    shown: dict[str, Any] = {"source": source}
    if spec.tokens:
        shown["tokens"] = {token: token_content(how, model) for token, how in spec.tokens}
    if spec.multiple_of is not None:
        shown["pad_to_multiple_of"] = spec.multiple_of
    return {"tokenizer": shown}
