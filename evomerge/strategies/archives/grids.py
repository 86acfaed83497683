"""Archives of quality diversity: those of `ribs`, with the candidates' ids, and how they are saved."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from evomerge.errors import ConfigError
from evomerge.strategies.archives.ribs_import import CVTArchive, GridArchive, k_means_centroids

Array = NDArray[np.float64]
Shape = Literal["grid", "cvt"]
Odds = Callable[[Array, Array], Array]
"""Of gains and descriptors of all elites the chances to be sampled."""

SAMPLES = 100
"""Random points per centroid of a tessellation."""

MOST_CELLS = 1_000_000


class _Sampling:
    """What both kinds of archives have beyond those of `ribs`: whom they sampled last, and by which chances."""

    sampled: tuple[int, ...] = ()
    odds: Odds | None = None
    _rng: np.random.Generator

    def sample_elites(self, n: int | np.integer[Any], replace: bool = True) -> Any:
        """Draw `n` elites (`ribs.archives.ArchiveBase.sample_elites`), by `odds` where there are any."""
        if self.odds is None:
            elites = super().sample_elites(n, replace)  # type: ignore[misc]
        else:
            data = self.data()  # type: ignore[attr-defined]
            odds = self.odds(data["objective"], data["measures"])
            rows = self._rng.choice(len(odds), size=int(n), replace=replace, p=odds)
            elites = {name: values[rows] for name, values in data.items()}
        self.sampled = _ids(elites)
        return elites


class _Grid(_Sampling, GridArchive):
    """A grid."""


class _Cvt(_Sampling, CVTArchive):
    """A tessellation."""


def _ids(elites: Mapping[str, Any]) -> tuple[int, ...]:
    return tuple(int(identity) for identity in elites["id"])


Archive = _Grid | _Cvt


def cells_of(shape: Shape, cells: int | Sequence[int], dimensions: int) -> list[int]:
    """Cells per descriptor of a grid; of a tessellation their number alone.

    Raises:
        ConfigError: not one for each descriptor, none at all, or more than a million.
    """
    if shape not in ("grid", "cvt"):
        raise ConfigError(f"strategy.archive is {shape!r}", "grid or cvt")
    given = [cells] if isinstance(cells, int) else list(cells)
    if shape == "grid" and isinstance(cells, int):
        given *= dimensions
    if len(given) != (dimensions if shape == "grid" else 1):
        raise ConfigError(
            f"strategy.cells is {cells}",
            f"one number for each of {dimensions} descriptors, or one for all" if shape == "grid" else "one number",
        )
    if min(given) < 1 or np.prod(given, dtype=float) > MOST_CELLS:
        raise ConfigError(f"strategy.cells is {cells}", f"at least 1 each and {MOST_CELLS} together")
    return given


def make_archive(
    shape: Shape,
    cells: Sequence[int],
    ranges: Sequence[tuple[float, float]],
    dimension: int,
    rng: np.random.Generator,
    centroids: Array | None = None,
) -> Archive:
    """An empty archive.

    Args:
        shape: a grid (Mouret and Clune 2015, arXiv 1504.04909) or a centroidal Voronoi tessellation (Vassiliades et
            al. 2018, arXiv 1610.05729).
        cells: what `cells_of` returned.
        ranges: of the descriptors.
        dimension: of solutions.
        rng: what elites are sampled with; shared, so that the caller can save its state.
        centroids: of the tessellation, shape ``(cells, descriptors)``; new ones for ``None``.
    """
    shared: dict[str, Any] = {
        "solution_dim": dimension,
        "ranges": ranges,
        "seed": rng,
        "extra_fields": {"id": ((), np.int64)},
    }
    if shape == "grid":
        return _Grid(dims=list(cells), **shared)
    if centroids is None:
        samples, start = SAMPLES * cells[0], int(rng.integers(2**31))
        centroids, _ = k_means_centroids(centroids=cells[0], ranges=ranges, samples=samples, dtype=float, seed=start)
    return _Cvt(centroids=np.array(centroids, dtype=np.float64), **shared)


def archive_state(archive: Archive) -> dict[str, Any]:
    """The elites in the order in which their cells were first filled, and a tessellation's centroids."""
    data = archive.data(["solution", "objective", "measures", "id"])
    centroids = archive.centroids if isinstance(archive, _Cvt) else np.empty((0, archive.measure_dim))
    return {**{name: np.array(values) for name, values in data.items()}, "centroids": np.array(centroids)}


def refill(archive: Archive, state: Mapping[str, Any]) -> None:
    """Fill an empty archive with the elites of `archive_state`; their order decides who is sampled."""
    rows = (np.asarray(state[name]) for name in ("solution", "objective", "measures", "id"))
    for solution, objective, measures, identity in zip(*rows, strict=True):
        add(archive, solution, float(objective), measures, int(identity))


def add(archive: Archive, solution: Array, gain: float, measures: Array, identity: int) -> bool:
    """Offer one solution; whether it is an elite now."""
    with np.errstate(over="ignore", invalid="ignore"):  # sums of extreme scores, which nothing here reads
        info = archive.add_single(solution, gain, measures, id=identity)
    return bool(info["status"])
