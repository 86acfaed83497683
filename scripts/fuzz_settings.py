"""Gives every key of the configuration values that make no sense, and tells what did not end in one line.

    python scripts/fuzz_settings.py POOL                # every key with every value
    python scripts/fuzz_settings.py POOL --most 100     # that many of them, drawn with --seed

Each case is ``evomerge validate experiment=demo KEY=VALUE``: it must be valid, or end with exit status 2 and one line
of error, within ten seconds. POOL is the folder of the demo's models (`evomerge demo --quick --pool-only` says which).
"""

from __future__ import annotations

import argparse
import contextlib
import io
import random
import sys
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

from evomerge.cli.main import main as command
from evomerge.config.compose import compose_config
from evomerge.config.construct import to_builtin
from evomerge.config.trust import leaves
from scripts.time_limit import TooLong, within

SLOW = 10  # seconds
SKIPPED = ("pool.root", "run_dir", "name", "hydra")
"""Keys that say where things are: the cases must find the pool."""
VALUES = (
    *("null", "''", "' '", "-1", "0", "1e30", "1" + "0" * 30, "nan", "inf", "-inf", "1e-300", "true", "[]", "{}"),
    *(
        "[1,[2]]",
        "{a: {b: [c]}}",
        "'${nowhere}'",
        "'no/such/place'",
        "'\\0'",
        "'a: b'",
        "x" * 300,
        "'\u202e'",
        "{_target_: os.system}",
    ),
)


def keys(pool: Path) -> list[str]:
    """Every key of the demo's experiment that is no mapping."""
    config = to_builtin(compose_config(["experiment=demo", f"pool.root='{pool}'"]))
    found = [key for key, _ in leaves(config) if not key.startswith(SKIPPED) and not key.endswith("_target_")]
    return sorted({key for key in found if not any(part.isdigit() for part in key.split("."))})


def cases(pool: Path, most: int | None, seed: int) -> list[str]:
    """Words of the command line: all, or so many of them."""
    every = [f"{key}={value}" for key in keys(pool) for value in VALUES]
    return every if most is None else random.Random(seed).sample(every, min(most, len(every)))


def _words(pool: Path, word: str) -> list[str]:
    return ["validate", "experiment=demo", f"pool.root='{pool}'", "fitness.limit=4", word]


def fault(pool: Path, word: str) -> str:
    """What is wrong with how a case ends; empty where nothing is."""
    said = io.StringIO()
    try:
        with within(SLOW), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said):
            status = command(_words(pool, word))
    except TooLong as error:
        return str(error)
    except BaseException as error:
        return f"{type(error).__name__}: {error}"
    errors = [line for line in said.getvalue().splitlines() if not line.startswith((" ", "warning:"))]
    lines = [line for line in errors if line.startswith("evomerge:")]
    if status not in (0, 2):
        return f"exit status {status}: {lines[-1] if lines else ''}"
    return "" if len(lines) == (status == 2) else f"{len(lines)} lines of error: {said.getvalue()[:300]}"


def import_all(pool: Path) -> None:
    """Import what the cases need, without a limit: an import that is broken off breaks all that come later."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        status = command(_words(pool, "search.seed=0"))
    if status != 0:
        sys.exit(f"{pool} is not the folder of the demo's models")


def main(arguments: Sequence[str] | None = None) -> int:
    """Try the cases and print what was found; 1 where anything was."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("pool", type=Path, help="folder of the demo's models")
    parser.add_argument("--most", type=int, help="how many cases; default: all")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    words = cases(options.pool, options.most, options.seed)
    import_all(options.pool)
    found = 0
    for word in words:
        wrong = fault(options.pool, word)
        if wrong:
            found += 1
            print(f"{word[:120]}\n    {wrong}", flush=True)
    print(f"{len(words):,} cases, {found} that ended otherwise than in one line")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
