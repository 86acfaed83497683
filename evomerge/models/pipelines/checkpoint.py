"""The weights of a pipeline's network: in a folder of their own, in one file or in shards."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evomerge.errors import PoolError
from evomerge.models.checkpoints.headers import TensorInfo, read_header, read_json
from evomerge.models.checkpoints.reader import Checkpoint, TensorFiles
from evomerge.models.checkpoints.weight_files import read_sharded

SINGLE = "diffusion_pytorch_model.safetensors"
INDEX = "diffusion_pytorch_model.safetensors.index.json"
VOLATILE = ("_name_or_path", "_diffusers_version", "_use_default_values", "sample_size")
"""What a network's config.json says of no network: where and with what it was saved, what size is drawn by default."""


class NetworkCheckpoint(Checkpoint):
    """The network of a pipeline's folder.

    Args:
        folder: the pipeline's.
        network: the part.

    Raises:
        PoolError: a file is missing, truncated or malformed.
    """

    _volatile = VOLATILE
    _kind = "network"

    def __init__(self, folder: Path, network: str) -> None:
        self.network = network
        config = read_json(folder / network / "config.json", "the network's configuration")
        TensorFiles.__init__(self, folder, config, read_network_headers(folder / network))

    @property
    def folders(self) -> tuple[Path, ...]:
        """The pipeline's."""
        return (self.folder,)


def read_network_headers(folder: Path) -> dict[str, TensorInfo]:
    """The tensors of a network's folder from its files' headers.

    Raises:
        PoolError: there are none, or they are malformed or incomplete.
    """
    single, index = folder / SINGLE, folder / INDEX
    if single.is_file():
        return read_header(single)
    if index.is_file():
        return read_sharded(folder, index)
    variants = sorted(file.name for file in folder.glob("*.safetensors"))
    if len(variants) == 1:
        return read_header(folder / variants[0])
    pickled = sorted(file.name for file in folder.glob("*.bin"))
    if variants:
        raise PoolError(
            f"{folder} has {len(variants)} safetensors files and neither {SINGLE} nor {INDEX}",
            "one file, or shards with their index",
            "save the pipeline again with save_pretrained",
        )
    if pickled:
        raise PoolError(
            f"{folder} has no safetensors, only {pickled[0]}",
            "pickled weights can run code when read, so they are not opened",
            "save the pipeline again with save_pretrained(safe_serialization=True)",
        )
    raise PoolError(f"{folder} has no safetensors files", f"a network's folder holds config.json and {SINGLE}")


def network_values(config: Mapping[str, Any]) -> dict[str, Any]:
    """What of a network's config.json changes what it computes."""
    return {key: value for key, value in config.items() if key not in VOLATILE}
