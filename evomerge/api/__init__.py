"""evomerge in Python: what scripts and notebooks use, all of it reachable as ``evomerge.NAME``."""

from __future__ import annotations

from evomerge.api.calibrating import calibrate
from evomerge.api.pool import load_pool, merge_methods
from evomerge.api.recipe import Recipe, load_recipe, load_task
from evomerge.api.run import FoundCandidate, Run, open_run
from evomerge.api.searching import search

__all__ = [
    "FoundCandidate",
    "Recipe",
    "Run",
    "calibrate",
    "load_pool",
    "load_recipe",
    "load_task",
    "merge_methods",
    "open_run",
    "search",
]
