"""Counts what merging asks of a GPU, on a pretended one, and writes the table in docs/performance.md.

    python scripts/gpu_counts.py [--check [METHOD ...]]

Every merge method is put on all slices of a small bfloat16 model, three times with other parameters; the first time
notes what is needed of the sources. ``--check`` changes nothing and exits with 1 where the table is not up to date, or
lines of it, where methods are named.
"""

# ruff: noqa: E402 - what the tests are made of is found first

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from contracts.test_merge_methods import Case  # type: ignore[import-not-found]
from merge.gpu_recipes import GPU_CASES, everywhere, small_pool  # type: ignore[import-not-found]
from pretended_gpu import Counts, PretendedGpu  # type: ignore[import-not-found]
from tiny_llama import save_llama  # type: ignore[import-not-found]

from evomerge.merge.execution.sources import Placement
from evomerge.merge.resident.model import Resident
from evomerge.models.pool import Pool

PAGE = ROOT / "docs" / "performance.md"
BEGIN, END = "<!-- gpu counts -->", "<!-- end of gpu counts -->"
MUCH = 10**9
HEAD = (
    "| method | waits, first | waits, later | copies, later | kernels a tensor | bytes an element | at best |\n"
    "| --- | ---: | ---: | ---: | ---: | ---: | ---: |\n"
)


def counted(case: Case, pool: Pool) -> list[tuple[Counts, int]]:
    """What three candidates of a method take on a GPU that has all sources, and how many statistics each noted."""
    gpu = PretendedGpu()
    with gpu.present():
        resident = Resident(pool, "cuda", placement=Placement(MUCH, 0, MUCH, MUCH), cache=0)
        found = []
        for seed in range(3):
            plan = everywhere(case, pool, seed)
            gpu.reset()
            before = len(resident.sources.notes._small)
            resident.apply(plan)
            found.append((gpu.reset(), len(resident.sources.notes._small) - before))
    return found


def row(case: Case, found: list[tuple[Counts, int]], pool: Pool) -> str:
    """A line of the table; where the later candidates that note nothing new differ, the one that waits more."""
    first, later = found[0][0], [counts for counts, noted in found[1:] if not noted]
    most = max(later, key=lambda counts: (counts.waits.total(), counts.moved_bytes))
    numbers, tensors = sum(pool.info.sizes), len(pool.layout.parameters)
    best = 2 * (case.count + case.based + 1)
    return (
        f"| {case} | {_number(first.waits)} | {_number(most.waits)} | {_number(most.copies)} | "
        f"{most.kernels / tensors:.0f} | {most.moved_bytes / numbers:.0f} | {best} |\n"
    )


def _number(counter: Counter[str]) -> str:
    return str(counter.total())


def lines(names: Sequence[str] = ()) -> list[str]:
    """All of the table, or those of some methods."""
    with tempfile.TemporaryDirectory() as folder:
        folders = {
            name: save_llama(Path(folder) / name, seed, layers=1, dtype=torch.bfloat16)
            for seed, name in enumerate(("base", "a", "b", "c"))
        }
        pool = small_pool(folders)
        cases = [case for case in GPU_CASES if not names or str(case) in names]
        return [row(case, counted(case, pool), pool) for case in cases]


def main() -> int:
    """Write the table, or compare it."""
    parser = argparse.ArgumentParser(description="counts for docs/performance.md")
    parser.add_argument("--check", nargs="*", choices=[str(case) for case in GPU_CASES], metavar="METHOD")
    check = parser.parse_args().check
    new = lines(check or ())
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)  # last: the page may be edited meanwhile
    old, _, after = rest.partition(END)
    if check:
        return int(not set(new) <= set(old.splitlines(keepends=True)))
    whole = "\n" + HEAD + "".join(new)
    if check is not None:
        return int(old != whole)
    PAGE.write_text(f"{before}{BEGIN}{whole}{END}{after}", encoding="utf-8")
    print(PAGE)
    return 0


if __name__ == "__main__":
    sys.exit(main())
