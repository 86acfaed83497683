"""What it took to move the resident model."""

from __future__ import annotations

from dataclasses import asdict, dataclass


@dataclass
class MergeCount:
    """What moving the resident model to a plan took: numbers of slices by where they came from.

    Attributes:
        kept: were in the model already.
        referenced: are a source's own, used where they lie.
        memory: came from the worker's own cache.
        shared: came from the cache that the node's workers share.
        computed: were merged.
        bytes: size of all slices.
        computed_bytes: size of those that were merged.
        seconds: that it took.
        noted: of these, seconds for what was found out of the sources for all candidates to come.
        saved: seconds that computing the kept and cached ones took when they were computed.
    """

    kept: int = 0
    referenced: int = 0
    memory: int = 0
    shared: int = 0
    computed: int = 0
    bytes: int = 0
    computed_bytes: int = 0
    seconds: float = 0.0
    noted: float = 0.0
    saved: float = 0.0

    def add(self, other: MergeCount) -> None:
        """Count another move of the same candidate with this one."""
        for name, value in asdict(other).items():
            setattr(self, name, getattr(self, name) + value)

    def as_dict(self) -> dict[str, float]:
        """The numbers by name."""
        return asdict(self)
