"""Text encoders of the pipeline whose other parts results take, with its adapter folded in."""

from __future__ import annotations

from typing import Any

import torch

from evomerge.errors import PoolError
from evomerge.models.checkpoints.folding import FoldedRoom
from evomerge.models.checkpoints.reader import Checkpoint
from evomerge.models.pipelines.adapters import TEXT_ENCODER, FoldedNetwork, NetworkAdapter
from evomerge.models.pipelines.folders import read_pipeline
from evomerge.models.pipelines.rest import PipelineRest


def adapted_text_encoders(rest: PipelineRest) -> dict[str, FoldedNetwork]:
    """By part the text encoders that the adapter changes; none where there is no adapter.

    Nothing is computed before a tensor is read, and nothing is kept.

    Raises:
        PoolError: the adapter's part is of a kind that cannot be folded, or does not fit.
    """
    found: dict[str, FoldedNetwork] = {}
    if rest.adapter is None:
        return found
    for part in read_pipeline(rest.folder).parts:
        if part.startswith(TEXT_ENCODER) and part != rest.network:
            base = Checkpoint(rest.folder / part)
            adapter = NetworkAdapter(rest.adapter, part, rest.pipeline, base)
            if adapter.deltas:
                found[part] = FoldedNetwork(base, adapter, FoldedRoom(0))
    return found


def fold_into(pipeline: Any, rest: PipelineRest) -> None:
    """Give the text encoders of a pipeline in memory the tensors that the adapter changes.

    Args:
        pipeline: of diffusers, with the parts of `rest`.
        rest: with an adapter, or none.

    Raises:
        PoolError: as `adapted_text_encoders`; a part in memory lacks a tensor.
    """
    for part, checkpoint in adapted_text_encoders(rest).items():
        own = dict(getattr(pipeline, part).named_parameters())
        short = {name.removeprefix("text_model."): parameter for name, parameter in own.items()}
        for name in sorted(checkpoint.changed):
            parameter = own.get(name, short.get(name.removeprefix("text_model.")))
            if parameter is None:
                raise PoolError(
                    f"{part} in memory has no tensor {name!r}, which the adapter changes", "upgrade diffusers"
                )
            with torch.no_grad():
                parameter.copy_(checkpoint.read(name))
