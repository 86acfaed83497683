"""A pool's configuration as a model in memory, with its tokenizer, as transformers loads them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from evomerge.errors import PoolError
from evomerge.merge.execution.engine import TORCH_DTYPES
from evomerge.models.architecture.layout import model_class
from evomerge.models.compatibility import has_tokenizer
from evomerge.models.pool import Pool


def load_module(pool: Pool, attn_implementation: str | None, device_map: str | None = None) -> Any:
    """The model as `from_pretrained` loads it, in evaluation mode, its weights in memory of its own.

    Args:
        pool: the source models.
        attn_implementation: as in `from_pretrained`; ``None`` leaves the choice to transformers.
        device_map: as in `from_pretrained`; ``None`` for the CPU.

    Raises:
        PoolError: transformers cannot load the model.
    """
    folder = str(pool.folder(pool.info.config_from))
    options = {"attn_implementation": attn_implementation, "device_map": device_map}
    options = {name: value for name, value in options.items() if value}
    try:
        with no_progress_bar():
            module = model_class(pool.config, pool.trust_remote_code).from_pretrained(
                folder,
                dtype=TORCH_DTYPES[pool.info.dtype],
                trust_remote_code=pool.trust_remote_code,
                use_safetensors=True,
                **options,
            )
    except Exception as error:  # transformers raises whatever the architecture's code raises
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise PoolError(f"transformers cannot load {folder} ({reason})") from error
    module.eval()
    for parameter in module.parameters():
        # Loading may leave them as views of the mapped file, or of larger storages.
        parameter.data = parameter.data.clone(memory_format=torch.contiguous_format)
    return module


@contextmanager
def no_progress_bar() -> Iterator[None]:
    """Let transformers load without a bar of its own."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def load_tokenizer(pool: Pool) -> Any:
    """The tokenizer that the pool's models get, ``None`` where there is none."""
    from transformers import AutoTokenizer

    folder = pool.folder(pool.tokenizer_from or pool.info.config_from)
    if not has_tokenizer(folder):
        return None
    return AutoTokenizer.from_pretrained(str(folder), trust_remote_code=pool.trust_remote_code)
