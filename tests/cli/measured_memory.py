"""Estimates what a search takes of memory, then runs it and measures, in a process of its own.

Run as ``python measured_memory.py OVERRIDES``; prints one line of JSON, last.
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
    from evomerge.session.memory import estimate_memory
    from evomerge.session.parts import build_parts
    from evomerge.session.watched import search

    config: Any = compose_config(sys.argv[1:])
    estimate = estimate_memory(config, build_parts(config))
    assert estimate is not None
    said = {"machine": estimate.machine(), "parts": {part.name: part.nbytes for part in estimate.parts}}
    search(config)
    print(json.dumps({**said, "peak": peak()}))


if __name__ == "__main__":
    main()
