"""Source models and merge methods."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from evomerge.errors import ConfigError
from evomerge.merge.methods import specs
from evomerge.models.opening import open_pool
from evomerge.models.pool import Pool
from evomerge.models.pool_settings import check_dense, check_network
from evomerge.recipes.method_spec import MethodSpec

Location = str | os.PathLike[str]


def load_pool(
    models: Mapping[str, Location],
    base: str | None = None,
    *,
    root: Location | None = None,
    dtype: str = "auto",
    trust_remote_code: bool = False,
    tokenizer_from: str | None = None,
    tokenizer: str | Mapping[str, Any] | None = None,
    heads: str | Sequence[str] | None = "auto",
    kept: str | Sequence[str] | None = "auto",
    kept_from: str | None = None,
    network: str | None = None,
    others: str | None = None,
    dense: str = "auto",
) -> Pool:
    """Open models that are to be merged, reading configurations and headers only, and check that they fit together.

    Args:
        models: by name, the base included: folders, hub ids (``org/model@revision``), or either with a LoRA adapter
            (``model+adapter``).
        base: the name of the base that task vectors are taken from; it gives configuration and tokenizer. Without one,
            the first model gives them.
        root: folder that relative locations are looked up in first.
        dtype: of merged models: ``float32``, ``bfloat16``, ``float16``; ``auto`` is the base's.
        trust_remote_code: run code that models bring along.
        tokenizer_from: the model whose tokenizer results take, where tokenizers differ and that is meant.
        tokenizer: the vocabulary that all models are brought to: ``union``, ``base`` or a model, or a mapping with
            ``source``, ``tokens`` and ``pad_to_multiple_of`` as in mergekit's files.
        heads: tensors that are carried from their sources and not merged: ``auto`` finds those of models with labels of
            their own; names or patterns of names; ``None`` for none.
        kept: tensors that results have from one model as they are: of models that see ``auto`` keeps all but the
            language model, and the projector where all have one; names or patterns of names; ``None`` for none.
        kept_from: that model; ``None`` for the base, or else the first source, that sees.
        network: of diffusers pipelines the part that is merged: ``auto``, ``unet``, ``transformer``; ``None`` for
            models that are merged whole.
        others: the model, or the folder of a pipeline, whose other parts results take.
        dense: of sentence-transformers' dense layers: ``auto`` merges them where models differ, ``merged`` does anyhow,
            ``kept`` takes those of the model that gives the configuration.

    Raises:
        ConfigError: `base`, `dtype`, `tokenizer_from`, `tokenizer`, `heads`, `kept`, `kept_from` or `dense` is none of
            those possible.
        PoolError: models are missing, unreadable or do not fit together; names all that is wrong.

    >>> pool = evomerge.load_pool({"base": "base", "math": "math"}, base="base", root="demo_pool/seed0")
    >>> pool.info.layers, pool.info.dtype
    (6, 'float32')
    """
    if not isinstance(models, Mapping):
        raise ConfigError(f"models is a {type(models).__name__}", "a mapping of names to folders or hub ids")
    locations = {name: os.fspath(location) for name, location in models.items()}
    folder = Path(root) if root is not None else None
    check_dense(dense)
    check_network(network, others, tokenizer, tokenizer_from)
    if network is not None:
        from evomerge.models.pipelines.opening import open_pipelines

        return open_pipelines(locations, base, folder, dtype, network=network, others=others)
    more = {
        "tokenizer_from": tokenizer_from,
        "tokenizer": tokenizer,
        "heads": heads,
        "kept": kept,
        "kept_from": kept_from,
        "dense": dense,
    }
    return open_pool(locations, base, folder, dtype, trust_remote_code, **more)  # type: ignore[arg-type]


def merge_methods() -> dict[str, MethodSpec]:
    """Every merge method by name: what it does, its parameters with defaults and ranges, how many inputs it takes.

    >>> ties = evomerge.merge_methods()["ties"]
    >>> ties.base, [parameter.name for parameter in ties.parameters if parameter.searched]
    ('required', ['weight', 'density'])
    """
    return dict(sorted(specs().items()))
