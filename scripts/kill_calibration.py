"""Kills ``evomerge calibrate`` at seeded instants: ``python scripts/kill_calibration.py --kills 20 KEY=VALUE ...``.

With ``--verb learn`` it is ``evomerge learn``. Statistics of data, or what is learnt, are first made undisturbed. Then
the same command is killed with SIGKILL at instants uniform in the time that it took, begun again, killed again, and so
on, until it comes to its end; its files are compared with the undisturbed ones, byte by byte, and all begins anew until
there were as many kills. States that it goes on from are written as often as can be::

    python scripts/kill_calibration.py --kills 20 experiment=demo pool.root=DEMO/seed0 calibration=text \\
        'calibration.files=[DEMO/seed0/tasks/demo_e_maths.jsonl]'

With ``--kinds hessian,activation`` each kind of statistics is made and killed by itself, as often; with ``--kinds all``
every kind, those of experts only where the models have experts.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import NoReturn

import numpy as np
import torch

from evomerge.calibration import measure
from evomerge.cli.main import main as main_of_evomerge
from evomerge.recipes.calibration import MEASURED, OF_EXPERTS

MOST_ROUNDS = 100
RECIPE = "learned.yaml"
REFUSED = 2
IMPORTED = ("hydra", "evomerge.session.calibration_rows", "evomerge.session.learning", "transformers.modeling_utils")
"""What children need and would each import."""


def command(verb: str, words: Sequence[str], cache: Path) -> NoReturn:
    """The command in a child process: its files in a folder, its errors in a file beside it."""
    os.environ["EVOMERGE_CACHE"] = str(cache)
    for stream, place in ((1, os.devnull), (2, said_by(cache))):
        os.dup2(os.open(place, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
    if verb == "learn":
        sys.exit(main_of_evomerge(["learn", "learning.checkpoint=1", *words, f"learning.out='{cache / RECIPE}'"]))
    inner, measure._SHARE = measure.measure, 0
    measure.measure = lambda *given, **named: inner(*given, **{**named, "every": 0.0})
    sys.exit(main_of_evomerge(["calibrate", *words]))


def said_by(cache: Path) -> Path:
    """Where a command's errors are."""
    return cache.with_name(f"{cache.name} errors")


def begun(verb: str, words: Sequence[str], cache: Path) -> BaseProcess:
    """A child that has all of this process's imports, so that instants of chance fall into its work."""
    cache.mkdir(exist_ok=True)
    child = get_context("fork").Process(target=command, args=(verb, words, cache))
    child.start()
    return child


def contents(cache: Path) -> dict[str, bytes]:
    """Every file of statistics by its place, what is learnt and its recipe; a kill may leave parts of others there."""
    parts = [cache / "statistics", cache / "learned", cache / RECIPE]
    files = [path for part in parts for path in (part, *part.rglob("*")) if path.is_file()]
    return {str(path.relative_to(cache)): path.read_bytes() for path in files if not path.name.startswith(".")}


def main() -> int:
    """Kill and compare; exit status 1 when a file differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="+", metavar="KEY=VALUE", help="of evomerge calibrate")
    parser.add_argument("--verb", choices=("calibrate", "learn"), default="calibrate")
    parser.add_argument("--kinds", help=f"of statistics, each by itself: all, or some of {', '.join(MEASURED)}")
    parser.add_argument("--kills", type=int, default=20, help="of each kind (default: 20)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    every = options.kinds == "all"
    kinds = MEASURED if every else options.kinds.split(",") if options.kinds else ()
    unknown = [kind for kind in kinds if kind not in MEASURED]
    if unknown or (kinds and options.verb != "calibrate"):
        parser.error(f"--kinds is {options.kinds}: all, or some of {', '.join(MEASURED)}, of evomerge calibrate")
    worst = 0
    for name in IMPORTED:
        import_module(name)
    torch.set_num_threads(1)  # children of a process whose threads have worked would wait for these
    for kind in kinds or ("",):
        words = [*options.words, f"statistics.kinds=[{kind}]"] if kind else options.words
        found = series(options.verb, words, options.kills, options.seed)
        print(f"{kind}: {found.said}" if kind else found.said, flush=True)
        if not (every and kind in OF_EXPERTS and found.status == REFUSED):
            worst = max(worst, found.status)
    return worst


@dataclass(frozen=True)
class Series:
    """What a series of kills has come to.

    Attributes:
        status: 0, 1 when a file differs, or `REFUSED`.
        said: in words.
    """

    status: int
    said: str


def series(verb: str, words: Sequence[str], wanted: int, seed: int) -> Series:
    """Kill a command at instants of chance until there were as many kills, and compare what it wrote."""
    rng = np.random.default_rng(seed)
    kills = went_on = equal = rounds = 0
    with tempfile.TemporaryDirectory() as temporary:
        start = time.monotonic()
        undisturbed = begun(verb, words, Path(temporary) / "whole")
        undisturbed.join()
        if undisturbed.exitcode:
            return Series(REFUSED, said_by(Path(temporary) / "whole").read_text().strip())
        took, whole = time.monotonic() - start, contents(Path(temporary) / "whole")
        while kills < wanted and rounds < MOST_ROUNDS:
            cache, ended = Path(temporary) / f"round {rounds}", False
            while not ended:
                before = contents(cache)
                process = begun(verb, words, cache)
                limit = float(rng.uniform(0, took)) if kills < wanted else None
                process.join(limit)
                ended = not process.is_alive()
                if not ended:
                    process.kill()
                    process.join()
                    kills += 1
                    ended = (cache / RECIPE).is_file()  # which is written last
                    went_on += bool(before)
            rounds += 1
            found = contents(cache)
            equal += (process.exitcode == 0 or (cache / RECIPE).is_file()) and {
                name: found.get(name) for name in whole
            } == whole
    files = f"{len(whole)} files, {sum(map(len, whole.values())):,} bytes"
    ends = f"{equal} of {rounds} ends equal"
    return Series(int(equal != rounds), f"{kills} kills, {went_on} of one that went on; {ends}: {files}")


if __name__ == "__main__":
    sys.exit(main())
