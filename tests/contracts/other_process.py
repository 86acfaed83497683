"""Calls in another process, to show that results depend on nothing that this one holds."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from typing import Any


def elsewhere(function: Callable[..., Any], *args: Any) -> Any:
    """Call a function in another process, which later calls share: starting one imports and compiles for seconds."""
    return _other().submit(function, *args).result(timeout=240)


def in_new_process(function: Callable[..., Any], *args: Any) -> Any:
    """Call a function in a process of its own."""
    with _process() as process:
        return process.submit(function, *args).result(timeout=240)


@cache
def _other() -> ProcessPoolExecutor:
    return _process()


def _process() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))
