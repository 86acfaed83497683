"""What a pipeline has beside the network that is merged, and whose it is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class PipelineRest:
    """The other parts of a pipeline.

    Attributes:
        folder: of the pipeline that they are of.
        network: the part that is not taken from there.
        pipeline: the pipeline's class, such as ``StableDiffusionXLPipeline``.
        whose: the model of the pool that they are of; empty where they are of none.
        adapter: that model's adapter, a file or a folder: what it holds for text encoders is folded into these.
    """

    folder: Path
    network: str
    pipeline: str
    whose: str = ""
    adapter: Path | None = None
