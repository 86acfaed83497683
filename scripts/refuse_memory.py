"""Refuses a pretended GPU's memory to candidates, allocation by allocation, and prints what became of them.

    python scripts/refuse_memory.py [--every] [--only requests slerp] [--jobs 2]

Without ``--every`` once at each place, told apart by the whole stack. Each candidate that was refused memory must end
with the scores of one that was not, in batches of the same size, and leave no memory behind, which also one that was
ended as `evaluator.timeout` does must not. Exit status 1 where one did.
"""

# ruff: noqa: E402 - what the tests are made of is found first

from __future__ import annotations

import argparse
import gc
import logging
import os
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
from refused_allocations import Bench, refused, time_is_up  # type: ignore[import-not-found]


def main() -> int:
    """Try all kinds of candidates."""
    parser = argparse.ArgumentParser(description="refuse memory to candidates on a pretended GPU")
    parser.add_argument("--every", action="store_true", help="at each allocation, not once at each place")
    parser.add_argument("--shallow", action="store_true", help="places differ by this project's part of the stack")
    parser.add_argument("--one-slice", action="store_true", help="merge methods on one slice, not on all")
    parser.add_argument("--only", nargs="+", default=[""], metavar="WORD", help="kinds whose names have one of them")
    parser.add_argument("--jobs", type=int, help="processes at a time")
    given = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("evomerge").setLevel(logging.ERROR)
    failed = False
    print("| candidate | allocations | places | refused or ended | wrong |\n| --- | ---: | ---: | ---: | ---: |")
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), jobs=given.jobs)
        gc.collect()
        gc.freeze()
        with bench.gpu.present():
            for kind in (*bench.scoring(), *bench.merging(whole=not given.one_slice)):
                if not any(word in kind.name for word in given.only):
                    continue
                found = bench.try_each(kind, [refused, time_is_up], given.every, not given.shallow)
                wrong = sum(map(len, found.wrong.values()))
                print(f"| {kind} | {found.allocations} | {found.places} | {found.attempts} | {wrong} |", flush=True)
                for what, numbers in found.wrong.items():
                    print(f"  {what}: {numbers}", file=sys.stderr)
                failed |= wrong > 0
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
