"""Fixtures that tests of several packages share."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pretended_gpu import PretendedGpu
from tiny_models import ARCHITECTURES, TinyModel, tiny_config, write_tokenizer

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("EVOMERGE_CACHE", tempfile.mkdtemp(prefix="evomerge-cache-"))
os.environ.setdefault("XDG_STATE_HOME", tempfile.mkdtemp(prefix="evomerge-state-"))  # not the user's own
if not Path("/dev/nvidiactl").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when Triton is imported; kernels for GPUs then run anywhere
pytest.register_assert_rewrite("contracts")


@pytest.fixture
def gpu() -> Iterator[PretendedGpu]:
    """A GPU that is pretended, present while a test runs."""
    device = PretendedGpu()
    with device.present():
        yield device


@pytest.fixture
def tiny_model(tmp_path: Path) -> TinyModel:
    """A function that saves a tiny random model and returns its folder.

    Arguments: ``name`` of the folder, ``kind`` of `ARCHITECTURES`, ``seed`` of the weights, ``dtype``,
    ``save`` keyword arguments for `save_pretrained`, and configuration overrides.
    """

    def build(
        name: str,
        kind: str = "llama",
        seed: int = 0,
        dtype: str = "float32",
        save: dict[str, Any] | None = None,
        **overrides: Any,
    ) -> Path:
        import torch
        import transformers

        transformers.utils.logging.disable_progress_bar()
        folder = tmp_path / name
        cls = f"{ARCHITECTURES[kind][0]}{'LMHeadModel' if kind == 'gpt2' else 'ForCausalLM'}"
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = getattr(transformers, cls)(tiny_config(kind, **overrides))
            # Norm weights and biases start as ones and zeros; random ones make mistakes visible.
            with torch.no_grad():
                for parameter in model.parameters():
                    if parameter.dim() < 2:
                        parameter.add_(torch.randn(parameter.shape), alpha=0.1)
        model.to(getattr(torch, dtype)).save_pretrained(folder, **(save or {}))
        write_tokenizer(folder, overrides.get("vocab_size", 40))
        return folder

    return build


@pytest.fixture(scope="session")
def llamas(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., dict[str, Path]]:
    """Folders of related models (base, a, b, c), made once per kind: number of layers, dtype, tied embeddings."""
    import torch
    from tiny_llama import save_llama

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
