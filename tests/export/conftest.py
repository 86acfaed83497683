"""Pools of tiny models, made once per kind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny_llama import save_llama


@pytest.fixture(scope="session")
def llamas(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., dict[str, Path]]:
    """Folders of `count` related models (base, a, b, ...), made once per kind."""
    made: dict[tuple[int, torch.dtype, bool], dict[str, Path]] = {}

    def make(layers: int = 3, dtype: torch.dtype = torch.float32, tied: bool = False) -> dict[str, Path]:
        key = (layers, dtype, tied)
        if key not in made:
            root = tmp_path_factory.mktemp(f"llamas-{layers}-{str(dtype).removeprefix('torch.')}-{tied}")
            made[key] = {
                name: save_llama(root / name, seed, layers=layers, dtype=dtype, tied=tied)
                for seed, name in enumerate(("base", "a", "b", "c"))
            }
        return made[key]

    return make
