"""Feeds mutated files to everything that reads files of others, and tells what was not refused with an error of ours.

    python scripts/fuzz.py                        # a minute for each parser
    python scripts/fuzz.py ledger --seconds 3600  # one of them, for an hour

Each case is a valid file whose bytes or values were changed. A parser must take it or raise an `EvomergeError`; any
other exception is a crash, and so is a case that takes over ten seconds. Crashes are printed with the case that gives
them again, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import logging
import random
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

from evomerge.errors import EvomergeError
from scripts.fuzz_mutations import mutated
from scripts.fuzz_parsers import PARSERS, Parser

SLOW = 10.0


@dataclass
class Outcome:
    """What came of the cases of one parser.

    Attributes:
        cases: how many were tried, `accepted` of them without an error.
        crashes: one case for every place that raised something else, with its number and what was raised.
        slowest: seconds of the slowest case.
    """

    cases: int = 0
    accepted: int = 0
    crashes: dict[str, tuple[int, str, bytes]] = field(default_factory=dict)
    slowest: float = 0.0


def case(parser: Parser, seed: int, number: int) -> bytes:
    """The same file for the same seed and number."""
    rng = random.Random(f"{parser.name} {seed} {number}")
    return mutated(rng.choice(parser.seeds), parser.seeds, rng, parser.load, parser.dump)


def try_case(parser: Parser, folder: Path, number: int, data: bytes, outcome: Outcome) -> None:
    """Feed one file to a parser and note what it does."""
    start = time.perf_counter()
    outcome.cases += 1
    try:
        parser.run(data, folder)
        outcome.accepted += 1
    except EvomergeError as error:
        str(error).encode("utf-8", "replace")  # messages can be shown
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        own = next((frame for frame in reversed(frames) if "evomerge" in frame.filename), frames[-1])
        place = f"{type(error).__name__} at {Path(own.filename).name}:{own.lineno}"
        outcome.crashes.setdefault(place, (number, str(error)[:200], data))
    seconds = time.perf_counter() - start
    outcome.slowest = max(outcome.slowest, seconds)
    if seconds > SLOW:
        outcome.crashes.setdefault("too slow", (number, f"{seconds:.1f} s", data))


def fuzz(parser: Parser, seed: int, cases: int | None = None, seconds: float = float("inf")) -> Outcome:
    """Try cases until there were so many, or until the time is up."""
    outcome = Outcome()
    end = time.monotonic() + seconds
    with tempfile.TemporaryDirectory() as folder:
        for number, data in enumerate(parser.seeds):
            parser.run(data, Path(folder))  # valid files are taken
            assert data, number
        while outcome.cases != cases and time.monotonic() < end:
            number = outcome.cases
            try_case(parser, Path(folder), number, case(parser, seed, number), outcome)
    return outcome


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the fuzzer from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("parsers", nargs="*", choices=[*PARSERS, []], help=f"of {', '.join(PARSERS)}; default: all")
    parser.add_argument("--seconds", type=float, default=60.0, help="for each parser")
    parser.add_argument("--cases", type=int, help="of each parser, at most")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="folder for the files that crashed a parser")
    options = parser.parse_args(arguments)
    logging.disable()  # what readers warn of
    try:
        return _run(options)
    finally:
        logging.disable(logging.NOTSET)


def _run(options: argparse.Namespace) -> int:
    crashed = total = 0
    print(f"{'parser':12} {'cases':>10} {'accepted':>10} {'crashes':>8} {'slowest':>9}")
    for name in options.parsers or PARSERS:
        outcome = fuzz(PARSERS[name], options.seed, options.cases, options.seconds)
        total += outcome.cases
        crashed += len(outcome.crashes)
        counts = f"{outcome.cases:10,} {outcome.accepted:10,} {len(outcome.crashes):8}"
        print(f"{name:12} {counts} {outcome.slowest:7.2f} s", flush=True)
        for place, (number, message, data) in outcome.crashes.items():
            print(f"  case {number}: {place}: {message!r}", flush=True)
            if options.keep:
                options.keep.mkdir(parents=True, exist_ok=True)
                (options.keep / f"{name}-{options.seed}-{number}").write_bytes(data)
    print(f"{total:,} cases, {crashed} crashes")
    return 1 if crashed else 0


if __name__ == "__main__":
    sys.exit(main())
