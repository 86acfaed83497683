"""Estimates what a search takes of memory, or runs it and measures: each in a process of its own.

Run as ``python measured_memory.py estimate|search OVERRIDES``; prints one line of JSON, last.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from evomerge.config.compose import compose_config


def peak() -> int:
    """The most memory in bytes that this process held: ru_maxrss counts that of the process it was forked from, too."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def main() -> None:
    what, *overrides = sys.argv[1:]
    config: Any = compose_config(overrides)
    if what == "search":
        from evomerge.session.watched import search

        search(config)
        found: dict[str, Any] = {"peak": peak()}
    else:
        from evomerge.session.memory import estimate_memory
        from evomerge.session.parts import build_parts

        estimate = estimate_memory(config, build_parts(config))
        assert estimate is not None
        found = {"machine": estimate.machine(), "parts": {part.name: part.nbytes for part in estimate.parts}}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
