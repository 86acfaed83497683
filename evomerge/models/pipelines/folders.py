"""Folders of diffusers pipelines: their parts, and which of them is the network. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evomerge.errors import PoolError, nearest
from evomerge.models.checkpoints.headers import read_json

INDEX = "model_index.json"
AUTO = "auto"
NETWORKS = ("transformer", "unet")
"""What the network is called, the first that a pipeline has."""
SINGLE_FILE = ".safetensors"


@dataclass(frozen=True)
class PipelineFolder:
    """A folder with ``model_index.json`` and a folder for each part.

    Attributes:
        folder: it.
        class_name: of the pipeline, such as ``StableDiffusionXLPipeline``.
        parts: by name, library and class; parts that a pipeline goes without are not there.
        settings: what else the index says, such as ``force_zeros_for_empty_prompt``.
    """

    folder: Path
    class_name: str
    parts: dict[str, tuple[str, str]]
    settings: dict[str, Any]

    def network(self, wanted: str = AUTO) -> str:
        """The name of the part that is merged.

        Raises:
            PoolError: there is no such part, or it is no network of diffusers.
        """
        name = wanted
        if wanted == AUTO:
            name = next((known for known in NETWORKS if known in self.parts), "")
            if not name:
                raise PoolError(
                    f"the pipeline {self.folder} has neither {' nor '.join(NETWORKS)}",
                    f"its parts are {', '.join(self.parts)}",
                    "set pool.network to the one that is to be merged",
                )
        if name not in self.parts:
            given = f"pool.network: the pipeline {self.folder} has no part {name!r}"
            raise PoolError(given, nearest(name, self.parts), "set pool.network=auto")
        library, kind = self.parts[name]
        if library != "diffusers" or kind.endswith("Scheduler") or "Autoencoder" in kind or kind.startswith("VQ"):
            raise PoolError(
                f"pool.network: part {name!r} of the pipeline {self.folder} is a {kind} of {library}",
                f"a network of blocks, of diffusers: {', '.join(NETWORKS)}",
                "set pool.network=auto",
            )
        return name


def is_pipeline(folder: Path) -> bool:
    """Whether a folder holds a pipeline."""
    return (folder / INDEX).is_file()


def read_pipeline(folder: Path) -> PipelineFolder:
    """The parts of a pipeline.

    Raises:
        PoolError: there is no index, or it is none.
    """
    path = folder / INDEX
    content = read_json(path, "the parts of a pipeline")
    name = content.get("_class_name")
    if not isinstance(name, str) or not name.isidentifier():
        raise PoolError(f"{path} has _class_name {str(name)[:80]!r}", "the name of a pipeline's class")
    parts: dict[str, tuple[str, str]] = {}
    settings: dict[str, Any] = {}
    for key, value in content.items():
        if isinstance(value, list) and len(value) == 2 and all(word is None or isinstance(word, str) for word in value):
            if value[0] is not None and value[1] is not None:
                parts[key] = value[0], value[1]
        elif not key.startswith("_"):
            settings[key] = value
    for key, (library, kind) in parts.items():
        if not (key.isidentifier() and kind.isidentifier()):
            raise PoolError(f"{path} has a part {key[:80]!r} of class {kind[:80]!r}", "names")
        # A pipeline's own module, "stable_diffusion" say, is one that diffusers has.
        if not library.replace("_", "").replace(".", "").isalnum():
            raise PoolError(f"{path}: part {key!r} is of {library[:80]!r}", "diffusers or transformers")
    return PipelineFolder(folder, name, parts, settings)
