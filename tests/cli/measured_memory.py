"""Estimates what a search takes of memory, or runs it and measures: each in a process of its own.

Run as ``python measured_memory.py estimate|search OVERRIDES``; prints one line of JSON, last.
"""

from __future__ import annotations

import json
import resource
import sys
from typing import Any

from evomerge.config.compose import compose_config


def main() -> None:
    what, *overrides = sys.argv[1:]
    config: Any = compose_config(overrides)
    if what == "search":
        from evomerge.session.watched import search

        search(config)
        found: dict[str, Any] = {"peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}
    else:
        from evomerge.session.memory import estimate_memory
        from evomerge.session.parts import build_parts

        estimate = estimate_memory(config, build_parts(config))
        assert estimate is not None
        found = {"machine": estimate.machine(), "parts": {part.name: part.nbytes for part in estimate.parts}}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
