"""Make the demo pool: `python scripts/make_demo_pool.py FOLDER [--seed 0] [--checkpoints 16] [--quick]`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from evomerge.demo.checkpoints import make_checkpoints
from evomerge.demo.pool import make_demo_pool
from evomerge.errors import EvomergeError


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line and make the pool; returns the exit status."""
    parser = argparse.ArgumentParser(description="Train the demo pool and write its lm-eval tasks.")
    parser.add_argument("folder", type=Path, help="where the pool goes")
    parser.add_argument("--seed", type=int, default=0, help="decides items, texts and parameters (default: 0)")
    parser.add_argument("--threads", type=int, default=None, help="torch threads (default: torch's number)")
    parser.add_argument("--checkpoints", type=int, default=None, help="also keep so many of one more training")
    parser.add_argument("--quick", action="store_true", help="a few steps and items only, for tests")
    given = parser.parse_args(arguments)
    try:
        pool = make_demo_pool(given.folder, given.seed, threads=given.threads, quick=given.quick)
        print(pool)
        if given.checkpoints is not None:
            print(make_checkpoints(pool, given.seed, given.checkpoints, threads=given.threads, quick=given.quick))
    except EvomergeError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
