"""The parts of `ribs` that are used here, imported without torch.

`ribs` imports torch where it is installed, for parts that nothing here uses; that takes seconds, and strategies run
without a model.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from types import ModuleType


class _NoTorch(MetaPathFinder):
    """Torch cannot be found while this is first in the path; where it is loaded already, it stays."""

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> None:
        """Refuse torch, leave everything else to the others."""
        if fullname == "torch":
            raise ModuleNotFoundError("not needed here", name="torch")


_hiding = _NoTorch()
sys.meta_path.insert(0, _hiding)
try:
    from ribs.archives import CVTArchive, GridArchive, k_means_centroids
    from ribs.emitters import EvolutionStrategyEmitter, GaussianEmitter, IsoLineEmitter
finally:
    sys.meta_path.remove(_hiding)

__all__ = [
    "CVTArchive",
    "EvolutionStrategyEmitter",
    "GaussianEmitter",
    "GridArchive",
    "IsoLineEmitter",
    "k_means_centroids",
]
