"""Kills ``evomerge calibrate`` at seeded instants: ``python scripts/kill_calibration.py --kills 20 KEY=VALUE ...``.

With ``--verb learn`` it is ``evomerge learn``. Statistics of data, or what is learnt, are first made undisturbed. Then
the same command is killed with SIGKILL at instants uniform in the time that it took, begun again, killed again, and so
on, until it comes to its end; its files are compared with the undisturbed ones, byte by byte, and all begins anew until
there were as many kills. States that it goes on from are written as often as can be::

    python scripts/kill_calibration.py --kills 20 experiment=demo pool.root=DEMO/seed0 calibration=text \\
        'calibration.files=[DEMO/seed0/tasks/demo_e_maths.jsonl]'
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

MOST_ROUNDS = 100
COMMANDS = {
    "calibrate": """
import sys
from evomerge.calibration import measure as module
from evomerge.cli.main import main

inner, module._SHARE = module.measure, 0
module.measure = lambda *given, **named: inner(*given, **{**named, "every": 0.0})
sys.exit(main(["calibrate", *sys.argv[1:]]))
""",
    "learn": """
import sys
from evomerge.cli.main import main

sys.exit(main(["learn", "learning.checkpoint=1", *sys.argv[1:]]))
""",
}
RECIPE = "learned.yaml"


def begun(verb: str, words: Sequence[str], cache: Path) -> subprocess.Popen[bytes]:
    """The command, with its files in a folder."""
    out = [f"learning.out='{cache / RECIPE}'"] if verb == "learn" else []
    cache.mkdir(exist_ok=True)
    command = [sys.executable, "-c", COMMANDS[verb], *words, *out]
    surroundings = {**os.environ, "EVOMERGE_CACHE": str(cache)}
    return subprocess.Popen(command, env=surroundings, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def contents(cache: Path) -> dict[str, bytes]:
    """Every file of statistics by its place, what is learnt and its recipe; a kill may leave parts of others there."""
    parts = [cache / "statistics", cache / "learned", cache / RECIPE]
    files = [path for part in parts for path in (part, *part.rglob("*")) if path.is_file()]
    return {str(path.relative_to(cache)): path.read_bytes() for path in files if not path.name.startswith(".")}


def main() -> int:
    """Kill and compare; exit status 1 when a file differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="+", metavar="KEY=VALUE", help="of evomerge calibrate")
    parser.add_argument("--verb", choices=COMMANDS, default="calibrate")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng = np.random.default_rng(options.seed)
    kills = begun_anew = went_on = equal = rounds = 0
    with tempfile.TemporaryDirectory() as temporary:
        start = time.monotonic()
        undisturbed = begun(options.verb, options.words, Path(temporary) / "whole")
        _, said = undisturbed.communicate()
        if undisturbed.returncode:
            sys.stderr.write(said.decode())
            return 2
        took, whole = time.monotonic() - start, contents(Path(temporary) / "whole")
        while kills < options.kills and rounds < MOST_ROUNDS:
            cache, ended = Path(temporary) / f"round {rounds}", False
            while not ended:
                before = contents(cache)
                process = begun(options.verb, options.words, cache)
                limit = float(rng.uniform(0, took)) if kills < options.kills else None
                try:
                    process.communicate(timeout=limit)
                    ended = True
                except subprocess.TimeoutExpired:
                    process.send_signal(signal.SIGKILL)
                    process.communicate()
                    kills += 1
                    ended = (cache / RECIPE).is_file()  # which is written last
                    went_on += bool(before)
                    begun_anew += not before
            rounds += 1
            found = contents(cache)
            equal += (process.returncode == 0 or (cache / RECIPE).is_file()) and {
                name: found.get(name) for name in whole
            } == whole
    files = f"{len(whole)} files, {sum(map(len, whole.values())):,} bytes"
    print(f"{kills} kills, {went_on} of one that went on; {equal} of {rounds} ends equal: {files}")
    return 0 if equal == rounds else 1


if __name__ == "__main__":
    sys.exit(main())
