"""Checks what import-linter does not: circles of files, doors of heavy dependencies, long files; part of ``make lint``.

Exit status 1 and a line for each finding.
"""

from __future__ import annotations

import graphlib
import sys
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

import grimp

PACKAGES = ("evomerge", "search_spaces", "fitness")
LONGEST = 320
"""Lines of a file: longer ones hold two ideas."""

DOORS = {
    "lm_eval": ("fitness.lm_eval_tasks", "fitness._lm_eval.*"),
    "ray": ("evomerge.evaluation.ray_*",),
    "cma": ("evomerge.strategies.cma_es",),
    "cmaes": ("evomerge.strategies.catcma", "evomerge.strategies.bases.acting_catcma"),
    "ribs": ("evomerge.strategies.archives.ribs_import",),
    "smac": ("evomerge.strategies.bases.forest_search",),
    "ConfigSpace": ("evomerge.strategies.bases.forest_search",),
    "hydra": ("evomerge.config.*", "evomerge.session.*", "evomerge.cli.*"),
    "optuna_dashboard": ("evomerge.cli.dashboard",),
    "plotly": ("evomerge.report.html.*",),
    "wandb": ("evomerge.trackers.wandb",),
    "mlflow": ("evomerge.trackers.mlflow",),
    "tensorboard": ("evomerge.trackers.tensorboard",),
    "bitsandbytes": ("evomerge.merge.resident.nf4_codec",),
    "vllm": ("evomerge.evaluation.vllm_*",),
    "httpx": ("evomerge.evaluation.server_client",),
    "PIL": ("fitness._images.decoding", "evomerge.demo.image_tasks"),
    "diffusers": ("evomerge.models.pipelines.*",),
    "pyarrow": ("fitness._images.sources", "fitness._classification.tables"),
    "triton": ("evomerge.merge.kernels.triton_mixing", "evomerge.merge.kernels.triton_sums"),
}
"""Who may import a dependency that is heavy, or that we may want to replace."""


def circle(graph: grimp.ImportGraph) -> list[str]:
    """Files that import each other in a circle, annotations and imports inside functions included; empty for none."""
    files = {m for m in graph.modules if m.split(".")[0] in PACKAGES}
    sorter = graphlib.TopologicalSorter(
        {file: graph.find_modules_directly_imported_by(file) & files - {file} for file in files}
    )
    try:
        sorter.prepare()
    except graphlib.CycleError as error:
        return list(error.args[1])
    return []


def trespassers(graph: grimp.ImportGraph) -> Iterator[str]:
    """Files that import a dependency past its door."""
    for dependency, doors in DOORS.items():
        if dependency not in graph.modules:
            continue
        for file in sorted(graph.find_modules_that_directly_import(dependency)):
            if not any(fnmatchcase(file, door) for door in doors):
                yield f"{file} imports {dependency}; only {', '.join(doors)} may"


def long_files(root: Path) -> Iterator[str]:
    """Files of the packages that are too long."""
    for package in PACKAGES:
        for file in sorted((root / package).rglob("*.py")):
            lines = len(file.read_text(encoding="utf-8").splitlines())
            if lines > LONGEST:
                yield f"{file.relative_to(root)} has {lines} lines; at most {LONGEST}"


def main() -> int:
    """Print what is found."""
    root = Path(__file__).resolve().parent.parent
    sys.path.insert(0, str(root))
    graph = grimp.build_graph(*PACKAGES, include_external_packages=True, cache_dir=None)
    found = [*trespassers(graph), *long_files(root)]
    round_trip = circle(graph)
    if round_trip:
        found.append(f"files import each other in a circle: {' -> '.join(round_trip)}")
    print(*found or ["layout: no circles, every door kept, no long file"], sep="\n")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
