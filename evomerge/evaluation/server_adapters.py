"""The folder that a server reads candidates' adapters from: what is in it, and whose it is."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from safetensors.torch import save_file

from evomerge.errors import OutputError
from evomerge.evaluation.server_settings import ServerSettings
from evomerge.merge.adapters.places import AdapterBase, Kind, Places
from evomerge.merge.methods.low_rank import Factors

_PREFIX = "base_model.model."
_NAMES: Mapping[str, tuple[str, str]] = {"embedding": ("lora_embedding_A", "lora_embedding_B")}
_USUAL = ("lora_A.weight", "lora_B.weight")


class AdapterFolder:
    """Writes adapters as PEFT does, under names that say whose they are.

    A name is ``evomerge-RUN-SESSION-CONTENT``: the run, so that what a killed session left is found by the next one;
    the session and the worker; a hash of what the adapter is made of.

    Args:
        settings: of the server; `owner` are the run and the session, drawn for a worker that belongs to none.
    """

    def __init__(self, settings: ServerSettings) -> None:
        run, session = settings.owner
        self._run = f"evomerge-{run or secrets.token_hex(4)}-"
        self._session = f"{self._run}{session or secrets.token_hex(3)}"
        self._worker = f"{self._session}{secrets.token_hex(2)}-"
        self.path = Path(settings.adapters).expanduser().absolute()
        self._there = PurePosixPath(settings.adapters_there or str(self.path))
        self._mark = self.path / f".{self._session}.checked"

    def make(self) -> None:
        """Make the folder where it is not there.

        Raises:
            OutputError: it cannot be written.
        """
        with _written(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            self._mark.with_suffix(".trial").touch()
            self._mark.with_suffix(".trial").unlink()

    def name(self, content: str) -> str:
        """What an adapter is called whose content has this hash."""
        return f"{self._worker}{content[:16]}"

    def there(self, name: str) -> str:
        """Its folder, as the server sees it."""
        return str(self._there / name)

    def write(self, name: str, factors: Mapping[str, tuple[Factors, Kind]], base: AdapterBase, places: Places) -> None:
        """Write an adapter; it is there whole or not at all.

        All modules get one rank, filled up with zeros: servers take the rank from the settings.

        Args:
            name: its folder.
            factors: by module, as `ExactAdapters.of` gives them; not empty.
            base: what it is added to.
            places: of the base's modules.

        Raises:
            OutputError: the disk is full, or the folder cannot be written.
        """
        rank = max(own.rank for own, _ in factors.values())
        tensors = {}
        for module, (own, kind) in factors.items():
            turned = kind in ("turned", "embedding")
            a, b = (own.b.T, own.a.T) if turned else (own.a, own.b)
            wide_a, wide_b = torch.zeros(rank, a.shape[1]), torch.zeros(b.shape[0], rank)
            wide_a[: own.rank], wide_b[:, : own.rank] = a, b
            for part, tensor in zip(_NAMES.get(kind, _USUAL), (wide_a, wide_b), strict=True):
                tensors[f"{_PREFIX}{module}.{part}"] = tensor
        settings = {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": base.address,
            "inference_mode": True,
            "r": rank,
            "lora_alpha": rank,  # the scale is one
            "target_modules": places.patterns(set(factors)),
            "bias": "none",
            "fan_in_fan_out": any(kind == "turned" for _, kind in factors.values()),
            "lora_dropout": 0.0,
            "use_rslora": False,
            "use_dora": False,
        }
        unfinished = self.path / f".{name}"
        with _written(self.path):
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir()
            save_file(tensors, unfinished / "adapter_model.safetensors", metadata={"format": "pt"})
            (unfinished / "adapter_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
            for file in (unfinished, *unfinished.iterdir()):  # the server may be another user's
                file.chmod(file.stat().st_mode | (0o555 if file.is_dir() else 0o444))
            os.rename(unfinished, self.path / name)

    def remove(self, name: str) -> None:
        """Delete an adapter's folder, where it is there."""
        shutil.rmtree(self.path / name, ignore_errors=True)

    def left(self, names: Iterable[str]) -> list[str]:
        """Of names those that an earlier session of this run has left."""
        return [name for name in names if name.startswith(self._run) and not name.startswith(self._session)]

    def clean(self) -> None:
        """Delete what earlier sessions of this run have left."""
        for path in self.path.iterdir():
            if self.left([path.name.removeprefix(".")]):
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink(missing_ok=True)

    def first(self) -> bool:
        """Whether no worker of this session has asked before: one comparison of the base is enough for all."""
        try:
            self._mark.touch(exist_ok=False)
        except FileExistsError:
            return False
        return True

    def forget(self) -> None:
        """Let the next worker of this session be the first."""
        self._mark.unlink(missing_ok=True)


@contextlib.contextmanager
def _written(folder: Path) -> Any:
    """Name the folder where something in it cannot be written."""
    try:
        yield
    except (OSError, RuntimeError) as error:  # safetensors has errors of its own
        raise OutputError(
            f"evaluator.server.adapters is {folder}, which cannot be written: {error}",
            "a folder with room that this process writes and the server reads",
        ) from error
