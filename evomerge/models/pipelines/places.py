"""Where a pipeline lies: a folder, a single file, or a hub id of which the parts are fetched."""

from __future__ import annotations

from pathlib import Path

from evomerge.errors import PoolError
from evomerge.models.checkpoints.location import local_file, resolve
from evomerge.models.pipelines.folders import INDEX, NETWORKS, SINGLE_FILE, is_pipeline, read_pipeline
from evomerge.recipes.slices import ModelRef

# Weights in other formats and precisions than the plain ones are never fetched.
_UNWANTED = ["*.fp16.*", "*.non_ema.*", "*.bf16.*", "*openvino*", "*onnx*"]
_KINDS = ("*.safetensors", "*.json", "*.txt", "*.model")


def locate_pipeline(source: str | ModelRef, root: str | Path | None = None) -> tuple[Path, ModelRef]:
    """Find the folder or the file of a pipeline.

    Args:
        source: a folder, a ``.safetensors`` file, a hub id (``org/name@revision``), or a reference.
        root: folder that relative locations are looked up in first.

    Returns:
        Where it lies, and a reference, pinned where a hub commit pins it.

    Raises:
        PoolError: it is not found, or names an adapter.
    """
    ref = ModelRef(source) if isinstance(source, str) else source
    if ref.adapter is not None:
        raise PoolError(
            f"{ref.address} has an adapter", "networks as they are", "fuse it into the pipeline and save that"
        )
    file = local_file(ref.location, root, SINGLE_FILE)
    if file is not None:
        return file, ModelRef(str(file))
    folder, found = resolve(ref.location, root, ref.revision, wanted=([INDEX, "README.md"], []))
    if found.revision is not None:  # a hub's: its parts are known by now
        parts = list(read_pipeline(folder).parts) if is_pipeline(folder) else list(NETWORKS)
        wanted = [INDEX, "README.md", *(f"{part}/{kind}" for part in parts for kind in _KINDS)]
        folder, found = resolve(ref.location, root, ref.revision, wanted=(wanted, _UNWANTED))
    return folder, found
