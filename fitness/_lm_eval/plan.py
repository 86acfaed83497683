"""Documents that are scored together, in batches that stay."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from evomerge.candidate import Part
from fitness._lm_eval.batches import TooLarge
from fitness._lm_eval.shared_forwards import SharedForwards


@dataclass
class Plan:
    """Documents that are scored together, with their frozen batches.

    Attributes:
        places: of the documents.
        instances: by request type, repeated where the task repeats.
        loglikelihood, rolling: batches, smaller ones from when memory had no room for them.
        windows: of each rolling instance, how many.
        stock_tokens: of log-likelihoods, as lm-eval would run them, without padding.
    """

    places: Part
    instances: dict[str, list[Any]]
    loglikelihood: Any  # list[Batch], SharedForwards, or of an encoder-decoder StockForwards
    rolling: Any
    windows: list[int]
    stock_tokens: int

    def __post_init__(self) -> None:
        self._planned = [len(own) if isinstance(own, list) else 0 for own in (self.loglikelihood, self.rolling)]

    def halved(self, too_large: Mapping[str, TooLarge], generated: int) -> dict[str, float]:
        """How often batches that this plan runs were halved, as an entry ``halved``; none where they are whole.

        Args:
            too_large: what is known of memory, by request type.
            generated: how often batches of generation were.
        """
        found = generated if "generate_until" in self.instances else 0
        kinds = ("loglikelihood", "loglikelihood_rolling")
        for kind, own, planned in zip(kinds, (self.loglikelihood, self.rolling), self._planned, strict=True):
            if isinstance(own, SharedForwards):
                found += own.halved
            elif isinstance(own, list) and len(own) > planned:
                found += too_large[kind].halved
        return {"halved": found} if found else {}
