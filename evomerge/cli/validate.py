"""``evomerge validate``: checks everything that can be seen without loading a model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from evomerge.config.schema import Config


def run(arguments: Sequence[str]) -> int:
    """Validate the configuration that the arguments compose."""
    from evomerge.cli.composed import hydra_app

    return hydra_app("validate", arguments, validate)


def validate(config: Config, *, tested_apart: bool = False) -> None:
    """Build and check the parts, and print what the search would take.

    Args:
        config: of the search.
        tested_apart: whether its winner is tested on items of their own in another run, as a protocol has it.
    """
    from evomerge.cli.console import print_plan
    from evomerge.run.folder import RunFolder
    from evomerge.session.cautions import warn_of_places, warn_settings
    from evomerge.session.parts import build_parts
    from evomerge.session.settings import check_name, check_settings

    check_settings(config)
    check_name(config.name)
    RunFolder(Path(config.run_dir)).require_place()
    parts = build_parts(config, read=False)
    from evomerge.session.memory import estimate_memory

    memory = estimate_memory(config, parts)
    warn_settings(config, parts, memory, tested_apart=tested_apart)
    warn_of_places(parts.evaluator)
    print_plan(config, parts, memory)
