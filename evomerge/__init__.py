"""evomerge finds model-merging recipes by evolution.

>>> import evomerge
>>> settings = {"search": {"evaluations": 8}, "fitness": {"limit": 4}, "held_out": {"limit": 4}}
>>> run = evomerge.search("experiment=demo", display="quiet", **settings)
>>> folder = run.merge("my-model")
>>> run
<Run runs/demo-seed0-...: ended, 8 of 8 evaluations, best score ...>
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from evomerge.errors import EvomergeError
from evomerge.utils.installation import VERSION as __version__
from evomerge.utils.installation import check_siblings, conf_dir

if TYPE_CHECKING:
    from evomerge.api import (
        FoundCandidate,
        Recipe,
        Run,
        calibrate,
        load_pool,
        load_recipe,
        load_task,
        merge_methods,
        open_run,
        search,
    )

__all__ = [
    "EvomergeError",
    "FoundCandidate",
    "Recipe",
    "Run",
    "__version__",
    "calibrate",
    "conf_dir",
    "load_pool",
    "load_recipe",
    "load_task",
    "merge_methods",
    "open_run",
    "search",
]


class _Package(ModuleType):
    """The package, whose attribute `search` is the function whatever parts of the subpackage are imported.

    Importing ``evomerge.search.loop`` would set the attribute to the subpackage. ``import evomerge.search.loop`` and
    ``from evomerge.search.loop import Search`` find the modules in `sys.modules`, as ever.
    """

    def __setattr__(self, name: str, value: object) -> None:
        if not (name == "search" and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


if not TYPE_CHECKING:  # which would take every misspelt name for one of these

    def __getattr__(name: str) -> Any:
        """A name of `evomerge.api`, which is imported when the first of them is asked for."""
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        globals()[name] = found = getattr(importlib.import_module("evomerge.api"), name)
        return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


check_siblings()
sys.modules[__name__].__class__ = _Package
