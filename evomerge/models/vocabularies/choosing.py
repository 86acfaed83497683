"""Whether the models of a pool need a common vocabulary, and which."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evomerge.errors import PoolError
from evomerge.models.tokenizer_files import has_tokenizer, same_files
from evomerge.models.tokenizers import load_tokenizer
from evomerge.models.vocabularies.built_tokenizer import result_tokenizer
from evomerge.models.vocabularies.comparing import read_vocabulary
from evomerge.models.vocabularies.row_map import RowMap, Vocabularies, by_ids, by_tokens
from evomerge.models.vocabularies.vocabulary import Vocabulary
from evomerge.recipes.tokenizer_spec import ALIGNED, TokenizerSpec

_MOST_LISTED = 3


def choose_vocabulary(
    spec: TokenizerSpec | None,
    reference: str,
    tokenizer_from: str | None,
    configs: Mapping[str, Any],
    folders: Mapping[str, Path],
    trust_remote_code: bool = False,
) -> Vocabulary | None:
    """The vocabulary that models are brought to; ``None`` where they are merged as they are.

    Args:
        spec: what is asked for; ``None`` for the ids that the models agree on, where they do.
        reference: the model that gives the configuration.
        tokenizer_from: the model whose tokenizer results take, where that is said.
        configs: transformers configurations by model.
        folders: of the models.
        trust_remote_code: let tokenizers that bring their own code run it.

    Raises:
        PoolError: what is asked for cannot be had of these tokenizers.
    """
    rows = {name: _rows(config) for name, config in configs.items()}
    if any(own is None for own in rows.values()):
        return None
    known = {name: own for name, own in rows.items() if own is not None}
    if spec is None or spec.source == ALIGNED:
        return _by_ids(spec, reference, tokenizer_from, configs, known, folders)
    tokenizers = {}
    for name, folder in folders.items():
        tokenizer = load_tokenizer(folder, trust_remote_code)
        if tokenizer is not None:
            tokenizers[name] = tokenizer
    giver = spec.source if spec.source in folders else spec.base or reference
    for name in folders:
        if name not in tokenizers:
            raise PoolError(
                f"model {name!r} has no tokenizer, and pool.tokenizer is {spec.source}",
                "models with tokenizers: rows are found by their tokens",
                f"copy the tokenizer that it was trained with into {folders[name]}",
            )
    folder, result = result_tokenizer(spec, giver, folders, tokenizers, known, trust_remote_code)
    own = {name: _with_rows(tokenizers[name].get_vocab(), known[name]) for name in folders}
    vocabulary = dict(sorted(result.get_vocab().items(), key=lambda pair: pair[1]))
    row_map = by_tokens(spec, vocabulary, own, known)
    if row_map.is_trivial(known):
        return None
    note = _lacking(spec, row_map, own, vocabulary)
    return _made(spec, row_map, giver, folder, reference, configs, own, vocabulary, note)


def giver_of(spec: TokenizerSpec | None, reference: str, tokenizer_from: str | None) -> str:
    """The model whose tokenizer results take where all are merged as they are."""
    if spec is not None and spec.source not in (ALIGNED, "union"):
        return spec.source
    return tokenizer_from or (spec.base if spec is not None and spec.base else reference)


def _rows(config: Any) -> int | None:
    found = getattr(config.get_text_config(), "vocab_size", None)
    return found if isinstance(found, int) else None


def _with_rows(vocabulary: Mapping[str, int], rows: int) -> dict[str, int]:
    """The tokens that have a row."""
    return {token: i for token, i in vocabulary.items() if i < rows}


def _by_ids(
    spec: TokenizerSpec | None,
    reference: str,
    tokenizer_from: str | None,
    configs: Mapping[str, Any],
    rows: Mapping[str, int],
    folders: Mapping[str, Path],
) -> Vocabulary | None:
    """The vocabulary of models that agree on their ids; ``None`` where they do not, or need none."""
    even = len(set(rows.values())) == 1
    if even and (tokenizer_from is not None or _are_alike(reference, folders)):
        return None
    read = {name: read_vocabulary(folder) for name, folder in folders.items() if has_tokenizer(folder)}
    whole = {name: own for name, (own, _) in read.items()}
    merges = [rules for _, rules in read.values() if rules is not None]
    ids, by_id = dict[str, int](), dict[int, str]()
    for own in whole.values():
        for token, i in own.items():
            if ids.setdefault(token, i) != i or by_id.setdefault(i, token) != token:
                return None
    if any(rules != merges[0] for rules in merges) or (len(read) < len(folders) and not even):
        return None
    known = {name: _with_rows(own, rows[name]) for name, own in whole.items()}
    every = {token for own in known.values() for token in own}
    order = [tokenizer_from] if tokenizer_from is not None else [reference, *folders]
    giver = next((name for name in order if name in whole and every <= whole[name].keys()), None)
    if giver is None:
        return None
    needed = 1 + max((ids[token] for token in every), default=-1)
    count = rows[reference] if rows[reference] >= needed else min(own for own in rows.values() if own >= needed)
    row_map = by_ids(count, rows, known, reference)
    if row_map.is_trivial(rows):
        return None
    own_spec = spec or TokenizerSpec(ALIGNED)
    note = _alignment(rows, count, known, every, giver)
    return _made(own_spec, row_map, giver, folders[giver], reference, configs, known, ids, note)


def _are_alike(reference: str, folders: Mapping[str, Path]) -> bool:
    """Whether all tokenizers are the same files, or there are none to compare."""
    return all(
        not has_tokenizer(folder) or not has_tokenizer(folders[reference]) or same_files(folder, folders[reference])
        for folder in folders.values()
    )


def _made(
    spec: TokenizerSpec,
    rows: RowMap,
    giver: str,
    folder: Path,
    reference: str,
    configs: Mapping[str, Any],
    known: Vocabularies,
    result: Mapping[str, int],
    note: str,
) -> Vocabulary:
    ids = {old: result.get(token) for token, old in known.get(reference, {}).items() if result.get(token) != old}
    theirs = {old: result.get(token) for token, old in known.get(giver, {}).items()}
    given: dict[str, Any] = {}
    for key, value in configs[giver].get_text_config().to_dict().items():
        if key.endswith("_token_id"):
            given[key] = theirs.get(value) if isinstance(value, int) else None
            if isinstance(value, list):
                given[key] = [theirs[old] for old in value if theirs.get(old) is not None] or None
    digest = hashlib.sha256(f"{rows.digest} {sorted(ids.items())}".encode()).hexdigest()
    return Vocabulary(spec, rows, giver, folder, ids, given, digest, note)


def _alignment(rows: Mapping[str, int], count: int, known: Vocabularies, every: set[str], giver: str) -> str:
    """What is trimmed, added and taken from others."""
    other = [f"{name} has {own}" for name, own in rows.items() if own != count]
    parts = [f"the rows of embeddings are made {count} in all ({', '.join(other)})"] if other else []
    more: dict[str, list[str]] = {}
    for name, own in known.items():
        for token in every - own.keys():
            more.setdefault(token, []).append(name)
    if more:
        first = sorted(more)[:_MOST_LISTED]
        cut = f" and {len(more) - len(first)} more" if len(more) > len(first) else ""
        listed = ", ".join(f"{token!r} (not in {' and '.join(more[token])})" for token in first)
        parts.append(f"tokens that some models lack come from those that have them: {listed}{cut}")
    return f"{'; '.join(parts) or 'rows of padding differ'}; results take the tokenizer of {giver!r}"


def _lacking(spec: TokenizerSpec, rows: RowMap, known: Vocabularies, result: Mapping[str, int]) -> str:
    """Which models lack tokens of the result, and which tokens no model has a row for; empty where there are none."""
    given = {token for token, _ in spec.tokens}
    orphans = [t for t in result if t not in given and all(t not in own for own in known.values())]
    parts = []
    for name in rows.rows:
        lacking = rows.lacking(name) - len(rows.averaged)
        if lacking > 0:
            parts.append(f"{name} lacks {lacking} of {len(result)} tokens")
    if orphans:
        cut = f" and {len(orphans) - 1} more" if orphans[1:] else ""
        parts.append(f"no model has a row for {orphans[0]!r}{cut}: zeros")
    return f"one vocabulary for all models: {'; '.join(parts)}" if parts else ""
