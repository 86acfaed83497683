"""Kills searches at seeded instants and resumes them: ``python scripts/kill_searches.py --kills 100``.

Every search is first run undisturbed. Then the same search is killed with SIGKILL when its ledger has reached a size
chosen at random, resumed, killed again, and so on, and its ledger compared with the undisturbed one. A line for every
strategy says how many kills met a living process and how many of the ledgers were equal.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "durability")]

from killed_runs import STRATEGIES, Plan, content, run_killed, session  # type: ignore[import-not-found]  # noqa: E402

from evomerge.ledger import RunFolder  # noqa: E402


def main() -> None:
    """Run for each strategy; exit status 1 when a ledger differs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100, help="for each strategy")
    parser.add_argument("--each", type=int, default=5, help="kills of one run")
    parser.add_argument("--strategy", nargs="+", default=list(STRATEGIES), choices=list(STRATEGIES))
    parser.add_argument("--evaluations", type=int, default=120)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng, differ = np.random.default_rng(options.seed), 0
    for name in options.strategy:
        kills = hits = runs = equal = 0
        with tempfile.TemporaryDirectory() as folder:
            plan = Plan(name, options.evaluations, slots=2, in_flight=None if name == "cma_es" else 4)
            session(Path(folder) / "whole", plan)
            whole, size = content(Path(folder) / "whole"), RunFolder(Path(folder) / "whole").ledger.stat().st_size
            while kills < options.kills:
                path, each = Path(folder) / str(runs), min(options.each, options.kills - kills)
                hits += run_killed(path, plan, size, each, rng, slots=int(rng.integers(1, 6)))
                kills, runs, equal = kills + each, runs + 1, equal + (content(path) == whole)
        differ += runs - equal
        print(f"{name:8s} {kills} kills, {hits} of a living process; {equal} of {runs} ledgers equal", flush=True)
    sys.exit(1 if differ else 0)


if __name__ == "__main__":
    main()
