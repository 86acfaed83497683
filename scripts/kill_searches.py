"""Kills searches at seeded instants and resumes them: ``python scripts/kill_searches.py --kills 100``.

Every search is first run undisturbed. Then the same search is killed with SIGKILL, resumed, killed again, and so on,
and its ledger compared with the undisturbed one. A line for every strategy says how many kills met a living process
and how many of the ledgers were equal.

Without ``--command``: the search loop with made-up workers, killed when its ledger has reached a size chosen at random.
With ``--evaluator ray``, here and below, the workers of a Ray cluster that stays up evaluate for it.
With ``--command``, ``evomerge search`` itself with the overrides that follow, killed at instants uniform in time and,
every other time, while it writes a checkpoint::

    python scripts/kill_searches.py --kills 100 --strategy cma_es m2n2 --evaluations 40 \\
        --command experiment=demo pool.root=DEMO/seed0 fitness.limit=20 held_out.limit=20
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "durability")]

import killed_commands  # type: ignore[import-not-found]  # noqa: E402
import ray_runs  # type: ignore[import-not-found]  # noqa: E402
from killed_runs import STRATEGIES, Plan, content, run_killed, session  # type: ignore[import-not-found]  # noqa: E402

from evomerge.run.folder import RunFolder  # noqa: E402

PRELOADED = ("torch", "transformers", "evomerge.session.parts", "evomerge.config.compose", "evomerge.session.resume")


def main() -> None:
    """Run for each strategy; exit status 1 when a ledger differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100, help="for each strategy")
    parser.add_argument("--each", type=int, default=5, help="kills of one run")
    parser.add_argument("--strategy", nargs="+", help="; ".join(STRATEGIES) + "; with --command any of the group")
    parser.add_argument("--evaluations", type=int, default=120)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--command", nargs="+", metavar="KEY=VALUE", help="of evomerge search")
    parser.add_argument("--evaluator", default="local", choices=("local", "ray"))
    parser.add_argument("--keep", type=Path, help="folder for the runs; a temporary one otherwise")
    options = parser.parse_args()
    differ = 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.keep or Path(temporary)
        for name in options.strategy or list(STRATEGIES):
            (folder / name).mkdir(parents=True)
            differ += (of_command if options.command else of_loop)(name, folder / name, options)
    sys.exit(1 if differ else 0)


def of_loop(name: str, folder: Path, options: argparse.Namespace) -> int:
    """Kill the loop; returns how many ledgers differ."""
    rng = np.random.default_rng([options.seed, *name.encode()])
    kills = hits = runs = equal = 0
    plan = Plan(name, options.evaluations, slots=2, in_flight=None if name == "cma_es" else 4)
    session(folder / "whole", plan)
    whole, size = content(folder / "whole"), RunFolder(folder / "whole").ledger.stat().st_size
    with ExitStack() as stack:
        if options.evaluator == "ray":
            plan = replace(plan, address=ray_cluster(stack))
        most = 6 if plan.address is None else 4
        while kills < options.kills:
            path, each = folder / str(runs), min(options.each, options.kills - kills)
            hits += run_killed(path, plan, size, each, rng, slots=int(rng.integers(1, most)))
            kills, runs, equal = kills + each, runs + 1, equal + (content(path) == whole)
    print(f"{name:8s} {kills} kills, {hits} of a living process; {equal} of {runs} ledgers equal", flush=True)
    return runs - equal


def of_command(name: str, folder: Path, options: argparse.Namespace) -> int:
    """Kill the command; returns how many ledgers or recipes differ."""
    often = ["search.checkpoint.every=0", "search.checkpoint.evaluations=1"]
    search = [*options.command, f"strategy={name}", f"search.evaluations={options.evaluations}", *often]
    with ExitStack() as stack:
        resume = []
        if options.evaluator == "ray":
            resume = [f"evaluator.address={ray_cluster(stack)}"]  # no run connects to a cluster unasked
            search += ["evaluator=ray", "evaluator.workers=2", *resume]
        return _killed_command(name, folder, search, resume, options)


def _killed_command(name: str, folder: Path, search: list[str], resume: list[str], options: argparse.Namespace) -> int:
    rng = np.random.default_rng([options.seed, *name.encode()])
    killed_commands.preload(PRELOADED)
    start = time.monotonic()
    killed_commands.session(folder / "first", search)
    killed_commands.preload(killed_commands.imported_by(folder / "first"))
    undisturbed = killed_commands.session(folder / "whole", search)
    whole = killed_commands.content(folder / "whole")
    print(f"{name:8s} undisturbed: {undisturbed.seconds:.1f} s, {undisturbed.begun:.1f} until it begins", flush=True)
    hits: list[killed_commands.Session] = []
    runs = equal = 0
    while len(hits) < options.kills:
        path, each = folder / str(runs), min(options.each, options.kills - len(hits))
        hits += killed_commands.run_killed(path, search, undisturbed, each, rng, resume)
        same = killed_commands.content(path) == whole
        runs, equal = runs + 1, equal + same
        if not same:
            print(f"{name:8s} run {runs - 1} differs", flush=True)
    saving, early = sum(hit.saving for hit in hits), sum(hit.begun == 0 for hit in hits)
    print(
        f"{name:8s} {len(hits)} kills of a living process, {saving} while it wrote a checkpoint, {early} before it had "
        f"written anything; {equal} of {runs} ledgers and recipes equal; {(time.monotonic() - start) / 60:.0f} minutes",
        flush=True,
    )
    return runs - equal


def ray_cluster(stack: ExitStack) -> str:
    """The address of a cluster of one node, which ends with the stack."""
    os.environ.update(ray_runs.ENVIRONMENT)
    temporary = stack.enter_context(tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True))
    address: str = stack.enter_context(closing(ray_runs.Node(Path(temporary), cpus=3))).address
    return address


if __name__ == "__main__":
    main()
