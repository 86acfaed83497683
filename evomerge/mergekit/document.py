"""The structure of mergekit files: one merge, or several stages, every key checked."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from evomerge.errors import RecipeError, nearest
from evomerge.mergekit.forms import FORMS
from evomerge.mergekit.references import Reference, read_reference
from evomerge.mergekit.settings import Settings, read_settings
from evomerge.mergekit.tokenizers import TokenizerEntry, read_entry
from evomerge.recipes.slices import DTYPES
from evomerge.utils import safe_yaml

MAX_LAYERS = 10_000
_MODULES = ("default", "text_decoder", "text_model", "language_model")


@dataclass(frozen=True)
class Source:
    """A model of a slice.

    Attributes:
        model: a reference; to an intermediate where its path is the name of one.
        layers: the first layer and the one after the last; ``None`` for all.
        settings: its parameters.
        where: the key, for messages.
    """

    model: Reference
    layers: tuple[int, int] | None
    settings: Settings
    where: str


@dataclass(frozen=True)
class Slice:
    """A run of output layers: the same sources, base and parameters."""

    sources: tuple[Source, ...]
    base: Reference | None
    settings: Settings
    where: str


@dataclass(frozen=True)
class Document:
    """One merge.

    Attributes:
        name: of the intermediate that it makes; ``None`` for the result.
        method: of merging.
        base: the base model of slices that name no other; also gives configuration and tokenizer.
        slices: in order. A list of `models` is one slice of all layers.
        whole: whether `models` were listed, so that the base is added to them.
        module, top: parameters of the module and of the file.
        dtype: of the result, as far as the file says: `out_dtype`, or `dtype`.
        tokenizer: the vocabulary of the result; ``None`` where the file does not say.
    """

    name: str | None
    method: str
    base: Reference | None
    slices: tuple[Slice, ...]
    whole: bool
    module: Settings
    top: Settings
    dtype: str | None
    tokenizer: TokenizerEntry | None

    def references(self) -> Iterator[Reference]:
        """Every model that is named, in order, intermediates too."""
        for slice_ in self.slices:
            yield from (source.model for source in slice_.sources)
            if slice_.base is not None:
                yield slice_.base
        if self.base is not None:
            yield self.base
        if self.tokenizer is not None:
            yield from self.tokenizer.references.values()


def looks_like_mergekit(text: str) -> bool:
    """Whether a file is mergekit's, not an evomerge recipe: `merge_method` is a key of it, `evomerge_recipe` none."""
    keys = {found[1] for found in re.finditer(r"^[{ ]{0,2}(?:.*[{,] *)?(merge_method|evomerge_recipe) *:", text, re.M)}
    return keys == {"merge_method"}


def read_documents(text: str) -> list[Document]:
    """The merges of a file, in its order.

    Raises:
        RecipeError: the text is not such a file; names the key, and the stage where there are several.
    """
    contents = [content for content in safe_yaml.parse_all(text) if content is not None]
    if not contents:
        raise RecipeError("the file is empty", "a mapping with merge_method and models, slices or modules")
    documents = []
    for number, content in enumerate(contents, 1):
        try:
            documents.append(_document(content))
        except RecipeError as error:
            if len(contents) == 1:
                raise
            raise RecipeError(f"{_stage(content, number)}: {error.given}", error.allowed, error.do) from None
    return documents


def _stage(content: Any, number: int) -> str:
    name = content.get("name") if isinstance(content, dict) else None
    return f"stage {name}" if isinstance(name, str) else f"document {number}"


def _document(content: Any) -> Document:
    kinds = ("models", "slices", "modules")
    optional = ("base_model", "dtype", "out_dtype", "tokenizer_source", "tokenizer", "chat_template", "parameters")
    fields = safe_yaml.mapping(content, "", ("merge_method",), (*kinds, *optional, "name"))
    fields = {key: value for key, value in fields.items() if value is not None}
    method = safe_yaml.text(fields["merge_method"], "merge_method") if "merge_method" in fields else ""
    if method not in FORMS:
        _check_own(method)
    given = [kind for kind in kinds if kind in fields]
    if len(given) != 1:
        what = " and ".join(given) + " are given" if given else "neither models, slices nor modules are given"
        raise RecipeError(what, "one of the three")
    if "chat_template" in fields:
        raise RecipeError(
            "chat_template is given",
            "the result takes the chat template of its tokenizer's model",
            "remove it, and edit the written tokenizer where another one is wanted",
        )
    module: Settings = {}
    slices, whole = _parts(fields, "") if "modules" not in fields else ((), False)
    if "modules" in fields:
        slices, whole, module = _module(fields["modules"])
    name = safe_yaml.optional(fields, "name", "", safe_yaml.text)
    base = safe_yaml.optional(fields, "base_model", "", read_reference)
    tokenizer = read_entry(fields, base)
    return Document(
        name,
        method,
        base,
        slices,
        whole,
        module,
        read_settings(fields.get("parameters"), "parameters"),
        _dtype(fields),
        tokenizer,
    )


def _module(content: Any) -> tuple[tuple[Slice, ...], bool, Settings]:
    """The only module of a model with one stack of layers."""
    if not isinstance(content, dict) or len(content) != 1:
        raise RecipeError(f"modules is {safe_yaml.shown(content)}", "one module: evomerge merges one stack of layers")
    name, inner = next(iter(content.items()))
    if name not in _MODULES:
        raise RecipeError(f"modules.{name} is not a language model's", nearest(str(name), _MODULES))
    where = f"modules.{name}"
    fields = safe_yaml.mapping(inner, where, (), ("models", "slices", "parameters"))
    fields = {key: value for key, value in fields.items() if value is not None}
    if ("models" in fields) == ("slices" in fields):
        raise RecipeError(f"{where} has both models and slices, or neither", "one of the two")
    slices, whole = _parts(fields, f"{where}.")
    return slices, whole, read_settings(fields.get("parameters"), f"{where}.parameters")


def _parts(fields: Mapping[str, Any], dot: str) -> tuple[tuple[Slice, ...], bool]:
    """`models` as one slice, or `slices`."""
    if "models" in fields:
        where = f"{dot}models"
        listed = safe_yaml.items(fields["models"], where)
        sources = tuple(_source(item, f"{where}[{i}]", whole=True) for i, item in enumerate(listed))
        return (Slice(sources, None, {}, where),), True
    where = f"{dot}slices"
    return tuple(_slice(item, f"{where}[{i}]") for i, item in enumerate(safe_yaml.items(fields["slices"], where))), (
        False
    )


def _slice(content: Any, where: str) -> Slice:
    fields = safe_yaml.mapping(content, where, ("sources",), ("base_model", "parameters", "residual_weight"))
    if fields.get("residual_weight") is not None:
        raise RecipeError(f"{where}.residual_weight is given", "mergekit itself does nothing with it", "remove it")
    listed = safe_yaml.items(fields["sources"], f"{where}.sources")
    return Slice(
        tuple(_source(item, f"{where}.sources[{i}]", whole=False) for i, item in enumerate(listed)),
        safe_yaml.optional(fields, "base_model", where, read_reference),
        read_settings(fields.get("parameters"), f"{where}.parameters"),
        where,
    )


def _source(content: Any, where: str, *, whole: bool) -> Source:
    layers = ("layer_range",)
    fields = safe_yaml.mapping(
        content, where, ("model",) if whole else ("model", *layers), ("parameters", *(layers if whole else ()))
    )
    given = fields.get("layer_range")
    found = None if whole and given is None else _layer_range(given, f"{where}.layer_range")
    return Source(
        read_reference(fields["model"], f"{where}.model"),
        found,
        read_settings(fields.get("parameters"), f"{where}.parameters"),
        where,
    )


def _layer_range(content: Any, where: str) -> tuple[int, int]:
    if not isinstance(content, list) or len(content) != 2:
        raise RecipeError(
            f"{where} is {safe_yaml.shown(content)}", "two numbers: the first layer, and one past the last"
        )
    first, stop = (safe_yaml.integer(number, where) for number in content)
    if not 0 <= first < stop <= MAX_LAYERS:
        raise RecipeError(f"{where} is [{first}, {stop}]", "the first layer, counted from 0, and one past the last")
    return first, stop


def _dtype(fields: Mapping[str, Any]) -> str | None:
    """What the result is rounded to."""
    found = None
    for key in ("dtype", "out_dtype"):
        if key in fields:
            found = safe_yaml.text(fields[key], key).removeprefix("torch.")
            if found not in DTYPES:
                raise RecipeError(f"{key} is {found!r}", nearest(found, DTYPES))
    return found


def _check_own(method: str) -> None:
    """Refuse what is no method of mergekit's and none of evomerge's that such a file can say."""
    from evomerge.merge.methods import specs  # imports torch, which most files need not wait for

    known = specs()
    if method in known and known[method].family == "switches":
        allowed = "a method that merges the models"
        raise RecipeError(f"merge_method is {method!r}, a switch on a merged model", allowed, f"--switch {method}")
    if method in known and known[method].kinds:
        do = "a search makes them, and its recipes name them (calibration)"
        raise RecipeError(f"merge_method is {method!r}, which reads statistics of data", "a file has none", do)
    if method not in known:
        raise RecipeError(f"merge_method is {method!r}", nearest(method, known))
