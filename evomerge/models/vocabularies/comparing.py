"""Whether two models give the same ids to the same text: their tokenizers, compared."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from evomerge.errors import PoolError, reason_of
from evomerge.models.checkpoints.headers import read_json
from evomerge.models.tokenizer_files import has_tokenizer, same_files

_MOST_LISTED = 4


def vocabulary_problem(name: str, folder: Path, reference: str, reference_folder: Path) -> PoolError | None:
    """The error for a tokenizer that maps tokens to other ids than the reference's, naming the first tokens.

    Models without tokenizer files are not compared.

    Raises:
        PoolError: a tokenizer's files cannot be read.
    """
    if not has_tokenizer(folder) or not has_tokenizer(reference_folder) or same_files(folder, reference_folder):
        return None
    own, merges = read_vocabulary(folder)
    wanted, wanted_merges = read_vocabulary(reference_folder)
    allowed = "all models of a pool share one tokenizer"
    do = "set pool.tokenizer=union, or a model, to bring them to one vocabulary; or "
    do += f"pool.tokenizer_from={reference} to merge row by row all the same, with the tokenizer of that model"
    others = {token for token, _ in own.items() ^ wanted.items()}
    if others:

        def place(token: str, vocabulary: Mapping[str, int]) -> str:
            return f"id {vocabulary[token]}" if token in vocabulary else "no id"

        def order(token: str) -> tuple[int, str]:
            return min(v[token] for v in (own, wanted) if token in v), token

        tokens = sorted(others, key=order)
        first = f"token {tokens[0]!r} has {place(tokens[0], own)} in model {name!r}, "
        first += f"{place(tokens[0], wanted)} in {reference!r}"
        listed = [f"{token!r} {place(token, own)} and {place(token, wanted)}" for token in tokens[1 : _MOST_LISTED + 1]]
        cut = f", and {len(tokens) - 1 - _MOST_LISTED} more" if len(tokens) - 1 > _MOST_LISTED else ""
        more = f" (also {', '.join(listed)}{cut})" if listed else ""
        return PoolError(f"tokenizers differ: {first}{more}", allowed, do)
    if merges is not None and wanted_merges is not None and merges != wanted_merges:
        return PoolError(
            f"tokenizers differ: {name!r} joins tokens by other merge rules than {reference!r}", allowed, do
        )
    return None


def read_vocabulary(folder: Path) -> tuple[dict[str, int], list[str] | None]:
    """Token -> id of a folder's tokenizer, and its merge rules where it has any.

    Raises:
        PoolError: the tokenizer's files cannot be read.
    """
    path = folder / "tokenizer.json"
    try:
        if path.is_file():
            content = read_json(path, "the tokenizer")
            vocabulary = content["model"]["vocab"]
            if isinstance(vocabulary, list):  # Unigram: [token, score] in the order of ids
                vocabulary = {token: i for i, (token, _) in enumerate(vocabulary)}
            added = {entry["content"]: int(entry["id"]) for entry in content.get("added_tokens") or ()}
            merges = content["model"].get("merges")
            rules = None if merges is None else [m if isinstance(m, str) else " ".join(m) for m in merges]
            found = {**vocabulary, **added}
            if not all(isinstance(token, str) and type(number) is int for token, number in found.items()):
                raise ValueError("its vocabulary does not map tokens to ids")
            return found, rules
        from transformers import AutoTokenizer

        return dict(AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False).get_vocab()), None
    except Exception as error:  # tokenizer classes raise whatever their backends raise
        raise PoolError(
            f"the tokenizer in {folder} cannot be read ({reason_of(error)})", "", "download it again, or save it again"
        ) from error
