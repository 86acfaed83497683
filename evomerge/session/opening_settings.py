"""What a pool is opened with, beside its models."""

from __future__ import annotations

from typing import Any

from evomerge.config.construct import to_builtin


def opening_settings(pool: Any) -> dict[str, Any]:
    """What `opening.open_pool` is told of vocabulary, heads, kept tensors and dense layers.

    Folders of earlier runs say less.

    Args:
        pool: the node of the configuration.
    """
    return {
        "tokenizer_from": pool.get("tokenizer_from"),
        "tokenizer": to_builtin(pool.get("tokenizer")),
        "heads": to_builtin(pool.get("heads", "auto")),
        "kept": to_builtin(pool.get("kept")),
        "kept_from": pool.get("kept_from"),
        "dense": pool.get("dense", "auto"),
    }
