"""What is learnt, and how."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

from evomerge.calibration.encoding import Encoded, fingerprint
from evomerge.errors import ConfigError, nearest
from evomerge.models.statistics import FORMAT
from evomerge.recipes.slices import DTYPES


class Usual(NamedTuple):
    """What a method is, and the values that its source has.

    Attributes:
        learns: ``weights`` of task vectors, one ``mask`` for all of them, or ``columns``' factors.
        loss: ``experts``, the distance to each expert's predictions on its own items, or ``entropy`` of one's own.
        rate: size of Adam's steps.
        init: coefficients in the beginning; ``None`` for one over the number of models.
        temperature: that logits are divided by.
        hidden: weight of the distance of hidden states to the expert's.
        pull: weight of the distance of coefficients to where they began.
        similarity: weight of the cosine of models' factors.
    """

    learns: Literal["weights", "mask", "columns"]
    loss: Literal["experts", "entropy"]
    rate: float
    init: float | None
    temperature: float = 1.0
    hidden: float = 0.0
    pull: float = 0.0
    similarity: float = 0.0


METHODS: Mapping[str, Usual] = MappingProxyType(
    {
        "expert_merging": Usual("weights", "experts", 0.01, 0.1, hidden=0.1, pull=0.1),
        "adamerging": Usual("weights", "entropy", 0.01, 0.3),
        "concrete": Usual("mask", "entropy", 0.01, 0.3),
        "dam": Usual("columns", "experts", 0.01, None, temperature=2.0, similarity=0.01),
    }
)
"""Expert Merging (arXiv 2509.25712), AdaMerging (2310.02575), concrete subspaces (2312.06173), DAM (2410.08371)."""

_LARGEST = 1_000_000


@dataclass(frozen=True)
class Settings:
    """How something is learnt; ``None`` is what its source has (`METHODS`).

    Attributes:
        method: one of `METHODS`.
        loss: as of `Usual`.
        steps: of Adam.
        batch: items of each model in a step.
        rate, init, temperature, hidden, pull, similarity: as of `Usual`.
        mask_temperature: of the relaxed masks: near 0 they are 0 or 1, and gradients are large or none.
        seed: of the order of items and of masks.
        dtype: that the merged model computes in.

    Raises:
        ConfigError: one that cannot be, naming the key.
    """

    method: str = "expert_merging"
    loss: str | None = None
    steps: int = 200
    batch: int = 16
    rate: float | None = None
    init: float | None = None
    temperature: float | None = None
    hidden: float | None = None
    pull: float | None = None
    similarity: float | None = None
    mask_temperature: float = 0.5
    seed: int = 0
    dtype: str = "float32"

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ConfigError(f"learning.method is {self.method!r}", nearest(self.method, METHODS))
        if self.loss is not None and self.loss not in ("experts", "entropy"):
            raise ConfigError(f"learning.loss is {self.loss!r}", nearest(self.loss, ("experts", "entropy")))
        if self.dtype not in DTYPES:
            raise ConfigError(f"statistics.dtype is {self.dtype!r}", nearest(self.dtype, DTYPES))
        for key, whole, least in (("steps", self.steps, 1), ("batch", self.batch, 1), ("seed", self.seed, 0)):
            if not least <= whole <= _LARGEST:
                raise ConfigError(f"learning.{key} is {whole}", f"{least} to {_LARGEST:,}")
        for key, above in (("rate", True), ("temperature", True), ("mask_temperature", True), ("init", False)):
            self._check(key, above)
        for key in ("hidden", "pull", "similarity"):
            self._check(key, False)

    def _check(self, key: str, above: bool) -> None:
        value: float | None = getattr(self, key)
        if value is None:
            return
        if not math.isfinite(value) or value < 0 or (above and value == 0) or value > _LARGEST:
            raise ConfigError(f"learning.{key} is {value}", f"a number {'above' if above else 'from'} 0")

    def usual(self, models: int) -> Usual:
        """The values that count, for so many models."""
        own = METHODS[self.method]
        given = {key: getattr(self, key) for key in Usual._fields if key != "learns"}
        found = own._replace(**{key: value for key, value in given.items() if value is not None})
        return found if found.init is not None else found._replace(init=1.0 / models)

    def key(self, identities: Sequence[str], items: Sequence[Sequence[Encoded]], genes: Any) -> str:
        """``sha256:...`` of all that changes the result: the models' content, their items, what is learnt and how.

        Args:
            identities: of the sources in order, and of the base.
            items: of the sources.
            genes: what describes the coefficients that are learnt, in plain values.
        """
        content = ["evomerge learning", FORMAT, asdict(self), self.usual(len(items)), list(identities)]
        text = json.dumps([*content, [fingerprint(own) for own in items], genes], sort_keys=True)
        return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"
