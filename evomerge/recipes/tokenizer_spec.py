"""Whose tokenizer a merged model takes, and where the embeddings of tokens come from that a model lacks.

The words and rules are mergekit's (``tokenizer``): the rows of every model's embeddings and head are put in the order
of one vocabulary first, and merged then.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from json.encoder import encode_basestring_ascii as quote
from typing import Any, Literal

from evomerge.errors import RecipeError, nearest
from evomerge.utils import safe_yaml

UNION = "union"
"""The tokens of all models."""
ALIGNED = "aligned"
"""The ids that the models agree on: rows of padding are trimmed or added, tokens of some models kept."""
MOST_ROWS = 2**24
MOST_TOKENS = 100_000

Kind = Literal["model", "zero", "mean"]
ReadModel = Callable[[Any, str], str]


@dataclass(frozen=True)
class TokenSource:
    """Where the rows of one token come from in models that lack it, or in all.

    Attributes:
        kind: ``model``, ``zero``, or the ``mean`` of the models that have the token.
        model: of kind ``model``: whose row.
        token, id: of kind ``model``: of which of its tokens; of the same token where both are ``None``.
        force: whether models that have the token take this row too.
    """

    kind: Kind
    model: str | None = None
    token: str | None = None
    id: int | None = None
    force: bool = False


@dataclass(frozen=True)
class TokenizerSpec:
    """A vocabulary that the models of a pool are brought to.

    Attributes:
        source: the model whose tokenizer it is; `UNION` or `ALIGNED`.
        base: the model whose row stands in for a token that several models have and others lack; ``None``: their mean.
            The first tokens of a union are its own, or those of the model that gives the configuration.
        tokens: tokens with a source of their own, which are added where they are missing, as pairs in order.
        multiple_of: the number of rows is made a multiple of this, with the mean of all rows.
    """

    source: str
    base: str | None = None
    tokens: tuple[tuple[str, TokenSource], ...] = ()
    multiple_of: int | None = None

    @property
    def models(self) -> tuple[str, ...]:
        """The models that are named."""
        named = [self.source] if self.source not in (UNION, ALIGNED) else []
        named += [self.base] if self.base is not None else []
        return tuple(dict.fromkeys([*named, *(own.model for _, own in self.tokens if own.model is not None)]))

    def canonical_text(self, identities: Mapping[str, str], models: Sequence[str]) -> str:
        """What enters hashes, as JSON.

        Args:
            identities: what pins the content of every model, quoted.
            models: all that give rows, in order.
        """
        tokens = [
            f"[{quote(token)},{quote(own.kind)},{'null' if own.model is None else identities[own.model]},"
            f"{'null' if own.token is None else quote(own.token)},{'null' if own.id is None else own.id},"
            f"{'true' if own.force else 'false'}]"
            for token, own in self.tokens
        ]
        source = identities.get(self.source, quote(self.source))
        base = "null" if self.base is None else identities[self.base]
        every = ",".join(identities[name] for name in models)
        return f"[{source},{base},[{','.join(tokens)}],{self.multiple_of or 0},[{every}]]"

    def content(self) -> dict[str, Any]:
        """As plain values, which `read_tokenizer` reads."""
        shown: dict[str, Any] = {"source": self.source}
        if self.base is not None:
            shown["base"] = self.base
        if self.tokens:
            shown["tokens"] = {token: token_content(own) for token, own in self.tokens}
        if self.multiple_of is not None:
            shown["pad_to_multiple_of"] = self.multiple_of
        return shown

    def check_models(self, models: Collection[str], key: str) -> None:
        """`RecipeError` where a model is named that is none of `models`."""
        for name in self.models:
            if name not in models:
                known = [*models, *([UNION, ALIGNED] if name == self.source else [])]
                raise RecipeError(f"{key} names model {name!r}", nearest(name, known), "name one of the models")


def token_content(own: TokenSource, model: Callable[[str], Any] = str) -> dict[str, Any]:
    """A token's source as mergekit writes it; `model` says how models are named."""
    if own.kind != "model" or own.model is None:
        shown: dict[str, Any] = {"source": {"kind": own.kind}}
    elif own.token is None and own.id is None:
        shown = {"source": model(own.model)}
    else:
        which = {"token": own.token} if own.token is not None else {"token_id": own.id}
        shown = {"source": {"kind": "model_token", "model": model(own.model), **which}}
    return shown | ({"force": True} if own.force else {})


def read_tokenizer(
    content: Any,
    where: str,
    read_model: ReadModel = safe_yaml.text,
    base: str | None = None,
    usual: str | None = None,
) -> TokenizerSpec:
    """A vocabulary from plain values: a name, or a mapping.

    Args:
        content: ``union``, ``aligned``, ``base`` or a model; or a mapping with ``source`` (union by default),
            ``tokens`` and ``pad_to_multiple_of``, as in mergekit's files, and ``base``.
        where: the key, for messages.
        read_model: makes a model's name of what names it, given the key.
        base: of the pool: what ``base`` means, and the base where the content names none. Without one, ``base`` is
            a name like any other.
        usual: the base where the content names none and there is no `base`.

    Raises:
        RecipeError: it is none of these; names the key.
    """
    if not isinstance(content, dict):
        return TokenizerSpec(_source(content, where, read_model, base), _base_for(content, base or usual))
    fields = safe_yaml.mapping(content, where, (), ("source", "base", "tokens", "pad_to_multiple_of"))
    source = fields.get("source")
    source = UNION if source is None else source
    named = fields.get("base")
    own = (base or usual) if named is None else read_model(named, f"{where}.base")
    tokens = fields.get("tokens") or {}
    if not isinstance(tokens, dict):
        raise RecipeError(f"{where}.tokens is {safe_yaml.shown(tokens)}", "a mapping of tokens, each with its source")
    if len(tokens) > MOST_TOKENS:
        raise RecipeError(f"{where}.tokens has {len(tokens):,} tokens", f"at most {MOST_TOKENS:,}")
    multiple = safe_yaml.optional(fields, "pad_to_multiple_of", where, safe_yaml.integer)
    if multiple is not None and not 1 <= multiple <= MOST_ROWS:
        raise RecipeError(f"{where}.pad_to_multiple_of is {multiple}", f"1 to {MOST_ROWS:,}")
    spec = TokenizerSpec(
        _source(source, f"{where}.source", read_model, base),
        _base_for(source, own),
        tuple((_token(t, where), _token_source(how, f"{where}.tokens.{t}", read_model)) for t, how in tokens.items()),
        multiple,
    )
    if spec.source == ALIGNED and (spec.tokens or multiple is not None or named is not None):
        raise RecipeError(
            f"{where}.source is {ALIGNED} and more is said",
            "the ids that the models agree on, and nothing else",
            f"set {where}.source: {UNION}, or a model",
        )
    return spec


def _base_for(source: Any, base: str | None) -> str | None:
    return None if source == ALIGNED else base


def _source(content: Any, where: str, read_model: ReadModel, base: str | None) -> str:
    if content in (UNION, ALIGNED):
        return str(content)
    return base if content == "base" and base is not None else read_model(content, where)


def _token(content: Any, where: str) -> str:
    if not isinstance(content, str) or not content:
        raise RecipeError(f"{where}.tokens has {content!r}", "tokens are text", "quote it")
    return content


def _token_source(content: Any, where: str, read_model: ReadModel) -> TokenSource:
    """Where the rows of a token come from."""
    fields = safe_yaml.mapping({} if content is None else content, where, (), ("source", "force"))
    force = fields.get("force", False)
    if not isinstance(force, bool):
        raise RecipeError(f"{where}.force is {force!r}", "true or false")
    source = fields.get("source")
    if source is None:
        return TokenSource("mean", force=force)
    if not isinstance(source, dict) or "kind" not in source:
        return TokenSource("model", read_model(source, f"{where}.source"), force=force)
    kind = source["kind"]
    if kind in ("zero", "mean"):
        safe_yaml.mapping(source, f"{where}.source", ("kind",), ())
        return TokenSource(kind, force=force)
    if kind != "model_token":
        raise RecipeError(f"{where}.source.kind is {kind!r}", nearest(str(kind), ("model_token", "zero", "mean")))
    own = safe_yaml.mapping(source, f"{where}.source", ("kind", "model"), ("token", "token_id"))
    token = safe_yaml.optional(own, "token", f"{where}.source", safe_yaml.text)
    number = safe_yaml.optional(own, "token_id", f"{where}.source", safe_yaml.integer)
    if (token is None) == (number is None):
        raise RecipeError(f"{where}.source has token and token_id, or neither", "one of the two")
    if number is not None and not 0 <= number < MOST_ROWS:
        raise RecipeError(f"{where}.source.token_id is {number}", f"0 to {MOST_ROWS - 1:,}")
    return TokenSource("model", read_model(own["model"], f"{where}.source.model"), token, number, force)
