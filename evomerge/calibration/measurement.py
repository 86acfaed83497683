"""What is measured, and the key under which it is kept."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

from evomerge.calibration.encoding import Item, fingerprint
from evomerge.errors import ConfigError, nearest
from evomerge.models.statistics import FORMAT
from evomerge.recipes.calibration import MEASURED, OF_EXPERTS
from evomerge.recipes.slices import DTYPES

LABELS = ("text", "sampled")
GRAMS = ("full", "diagonal")


@dataclass(frozen=True)
class Measurement:
    """How statistics are made.

    Attributes:
        kind: one of `calibration.MEASURED`.
        labels: whose likelihood gradients are of: ``text``, the items' own (the empirical Fisher), or ``sampled``, by
            the model itself (the Fisher information).
        grams: all inner products of inputs, or their squares only (``diagonal``).
        dtype: that models compute in.
        seed: of the labels that are sampled, and of the signs of ``hessian``.
        state: of ``curvature``, the hash of the optimizer's state that it is read from.

    Raises:
        ConfigError: none of those possible, naming the key of the configuration.
    """

    kind: str
    labels: str = "text"
    grams: str = "full"
    dtype: str = "float32"
    seed: int = 0
    state: str = ""

    def __post_init__(self) -> None:
        for key, value, allowed in (
            ("kinds", self.kind, MEASURED),
            ("labels", self.labels, LABELS),
            ("grams", self.grams, GRAMS),
            ("dtype", self.dtype, DTYPES),
        ):
            if value not in allowed:
                raise ConfigError(f"statistics.{key} is {value!r}", nearest(str(value), allowed))

    def key(self, identity: str, items: Sequence[Item]) -> str:
        """``sha256:...`` of a model's content, its items, and what of this changes the result."""
        own: list[object] = [self.labels, self.seed if self.labels == "sampled" or self.kind == "hessian" else 0]
        if self.kind in ("gram", "curvature"):
            own = [self.grams if self.kind == "gram" else self.state]
        elif self.kind in ("activation", *OF_EXPERTS):
            own = []
        content = ["evomerge statistics", FORMAT, self.kind, *own, self.dtype, identity, fingerprint(items)]
        return f"sha256:{hashlib.sha256(json.dumps(content).encode()).hexdigest()}"
