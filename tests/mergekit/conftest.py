"""The pool that most of these tests merge."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from evomerge.models.opening import open_pool
from evomerge.models.pool import Pool


@pytest.fixture(scope="module")
def pool(llamas: Callable[..., dict[str, Path]]) -> Pool:
    return open_pool({name: str(folder) for name, folder in llamas(layers=3).items()}, "base")
