"""Tokenizers that no model has: a union of several, one with more tokens, one without those that have no row."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evomerge.errors import PoolError, reason_of
from evomerge.models.checkpoints.side_files import INPUTS, matching
from evomerge.models.tokenizers import load_tokenizer
from evomerge.recipes.tokenizer_spec import UNION, TokenizerSpec
from evomerge.utils.cache_folder import cache_root, made_once


def result_tokenizer(
    spec: TokenizerSpec,
    giver: str,
    folders: Mapping[str, Path],
    tokenizers: Mapping[str, Any],
    rows: Mapping[str, int],
    trust_remote_code: bool = False,
) -> tuple[Path, Any]:
    """The folder and tokenizer of a vocabulary: the giver's own where that is it, else one made once in the cache.

    The tokens of a union come in mergekit's order: the giver's, the other models' plain tokens, their added tokens.

    Args:
        spec: the vocabulary.
        giver: the model whose tokenizer it is, or begins with.
        folders: of all models.
        tokenizers: of those that have one, in the pool's order.
        rows: of all models.

    Raises:
        PoolError: a tokenizer cannot be written out, or lacks what makes it editable.
    """
    own = tokenizers[giver]
    # Only where its model's rows decide: of a model that is named, the tokenizer is taken as it is.
    stripped = spec.source in (UNION, spec.base) and max(own.get_vocab().values(), default=-1) >= rows[giver]
    plain, added = _more(spec, giver, tokenizers, rows)
    if not stripped and not plain and not added:
        return folders[giver], own

    def make(target: Path) -> None:
        try:
            made = load_tokenizer(folders[giver], trust_remote_code)
            if stripped:
                _strip(made, rows[giver], giver)
            made.add_tokens(plain)
            made.add_tokens(added)
            made.save_pretrained(str(target))
        except PoolError:
            raise
        except Exception as error:  # tokenizer classes raise whatever their backends raise
            raise PoolError(
                f"the tokenizer of {giver!r} takes no further tokens ({reason_of(error)})",
                "a tokenizer that transformers loads as a fast one",
                "set pool.tokenizer to a model",
            ) from error

    from transformers import __version__

    folder = made_once(cache_root("tokenizers") / _digest(spec, giver, folders, rows, __version__), make)
    return folder, load_tokenizer(folder, trust_remote_code)


def _more(
    spec: TokenizerSpec, giver: str, tokenizers: Mapping[str, Any], rows: Mapping[str, int]
) -> tuple[list[str], list[Any]]:
    """Tokens that the giver's tokenizer lacks: plain ones, and such with settings."""
    known = {token for token, i in tokenizers[giver].get_vocab().items() if i < rows[giver] or spec.source != UNION}
    plain: dict[str, None] = {}
    settings: dict[str, Any] = {}
    if spec.source == UNION:
        for model, tokenizer in tokenizers.items():
            added = {i: entry for i, entry in tokenizer.added_tokens_decoder.items() if i < rows[model]}
            names = {entry.content for entry in tokenizer.added_tokens_decoder.values()}
            ordered = sorted(tokenizer.get_vocab().items(), key=lambda pair: pair[1])
            plain |= dict.fromkeys(t for t, i in ordered if i < rows[model] and t not in names and t not in known)
            settings |= {e.content: e for e in added.values() if e.content not in known | settings.keys()}
    plain = {token: None for token in plain if token not in settings}
    wanted = [token for token, _ in spec.tokens if token not in known and token not in plain and token not in settings]
    return list(plain), [*settings.values(), *wanted]


def _strip(tokenizer: Any, rows: int, giver: str) -> None:
    """Take the tokens out that have no row."""
    import tokenizers

    content = json.loads(tokenizer.backend_tokenizer.to_str())
    model = content["model"]
    vocabulary = model.get("vocab")
    content["added_tokens"] = [entry for entry in content["added_tokens"] if entry["id"] < rows]
    if isinstance(vocabulary, dict):
        gone = {token for token, i in vocabulary.items() if i >= rows}
        model["vocab"] = {token: i for token, i in vocabulary.items() if i < rows}
        merges = [pair.split(" ") if isinstance(pair, str) else pair for pair in model.get("merges") or ()]
        if merges:
            model["merges"] = [pair for pair in merges if gone.isdisjoint((*pair, "".join(pair)))]
    elif isinstance(vocabulary, list):
        model["vocab"] = vocabulary[:rows]
    else:
        raise PoolError(f"the tokenizer of {giver!r} has ids beyond its {rows} rows", "ids that have a row")
    tokenizer._tokenizer = tokenizers.Tokenizer.from_str(json.dumps(content))


def _digest(spec: TokenizerSpec, giver: str, folders: Mapping[str, Path], rows: Mapping[str, int], version: str) -> str:
    """What the tokenizer depends on."""
    found = hashlib.sha256(json.dumps([1, version, spec.content(), giver, dict(rows)]).encode())
    for name, folder in folders.items():
        found.update(name.encode())
        for file in matching(folder, INPUTS):
            if file.is_file():
                found.update(f" {file.name} {file.stat().st_size} ".encode())
                with file.open("rb") as opened:
                    found.update(hashlib.file_digest(opened, "sha256").digest())
    return found.hexdigest()[:32]
