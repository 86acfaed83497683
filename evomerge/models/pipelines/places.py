"""Where a pipeline lies: a folder, a single file, or a hub id of which the parts are fetched."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from evomerge.models.checkpoints.location import local_file, resolve, split_adapter
from evomerge.models.pipelines.folders import INDEX, NETWORKS, SINGLE_FILE, is_pipeline, read_pipeline
from evomerge.recipes.slices import ModelRef

# Weights in other formats and precisions than the plain ones are never fetched.
_UNWANTED = ["*.fp16.*", "*.non_ema.*", "*.bf16.*", "*openvino*", "*onnx*"]
_KINDS = ("*.safetensors", "*.json", "*.txt", "*.model")


def locate_adapted(source: str | ModelRef, root: str | Path | None = None) -> tuple[Path, Path | None, ModelRef]:
    """Find a pipeline and, where ``PIPELINE+ADAPTER`` names one, its adapter: a file, a folder or a hub id.

    Args:
        source: both, or a reference; as for `locate_pipeline`.
        root: folder that relative locations are looked up in first.

    Returns:
        Where the pipeline lies, where the adapter, and a reference with both.

    Raises:
        PoolError: one of them is not found.
    """
    if isinstance(source, str):
        location, adapter = split_adapter(source, root)
        source = ModelRef(location, adapter=None if adapter is None else ModelRef(adapter))
    if source.adapter is None:
        place, ref = locate_pipeline(source, root)
        return place, None, ref
    place, ref = locate_pipeline(replace(source, adapter=None), root)
    own = local_file(source.adapter.location, root, SINGLE_FILE)
    found = ModelRef(str(own)) if own is not None else None
    if own is None or found is None:
        own, found = resolve(source.adapter.location, root, source.adapter.revision, "an adapter's")
    return place, own, replace(ref, adapter=found)


def locate_pipeline(source: str | ModelRef, root: str | Path | None = None) -> tuple[Path, ModelRef]:
    """Find the folder or the file of a pipeline.

    Args:
        source: a folder, a ``.safetensors`` file, a hub id (``org/name@revision``), or a reference.
        root: folder that relative locations are looked up in first.

    Returns:
        Where it lies, and a reference, pinned where a hub commit pins it.

    Raises:
        PoolError: it is not found.
    """
    ref = ModelRef(source) if isinstance(source, str) else source
    file = local_file(ref.location, root, SINGLE_FILE)
    if file is not None:
        return file, ModelRef(str(file))
    folder, found = resolve(ref.location, root, ref.revision, wanted=([INDEX, "README.md"], []))
    if found.revision is not None:  # a hub's: its parts are known by now
        parts = list(read_pipeline(folder).parts) if is_pipeline(folder) else list(NETWORKS)
        wanted = [INDEX, "README.md", *(f"{part}/{kind}" for part in parts for kind in _KINDS)]
        folder, found = resolve(ref.location, root, ref.revision, wanted=(wanted, _UNWANTED))
    return folder, found
