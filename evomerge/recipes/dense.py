"""What a recipe says of dense layers of sentence-transformers behind its models.

``dense: merged`` in its file: their tensors are part of the head's slice. ``dense: kept``: those of `config_from` are
taken. Nothing: all models have the same, or none has any.
"""

from __future__ import annotations

from typing import Any

from evomerge.errors import RecipeError

MERGED, KEPT = "merged", "kept"


def read_dense(content: Any, where: str) -> str | None:
    """What a recipe file says; ``None`` for nothing.

    Raises:
        RecipeError: another word.
    """
    if content is not None and content not in (MERGED, KEPT):
        raise RecipeError(f"{where} is {str(content)[:80]!r}", f"{MERGED} or {KEPT}")
    return None if content is None else str(content)
