"""What seconds and threads an evaluator may be given."""

from __future__ import annotations

import math

from evomerge.errors import ConfigError

MOST_THREADS = 4096


def check_timeout(timeout: float | None) -> None:
    """`ConfigError` for seconds that are none."""
    if timeout is not None and not 0 < timeout < math.inf:
        raise ConfigError(f"evaluator.timeout is {timeout:g}", "seconds above 0, or null")


def check_threads(threads: int | None) -> None:
    """`ConfigError` for a number of threads that no machine has."""
    if threads is not None and not 1 <= threads <= MOST_THREADS:
        raise ConfigError(f"evaluator.threads is {threads}", f"1 to {MOST_THREADS}, or null")
