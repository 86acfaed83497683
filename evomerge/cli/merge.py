"""``evomerge merge``: the model of a recipe."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from evomerge.cli.main import verb_parser
from evomerge.cli.options import add_import_option
from evomerge.errors import ConfigError
from evomerge.imports import import_modules

_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


def run(arguments: Sequence[str]) -> int:
    """Write the model."""
    parser = verb_parser("merge")
    parser.add_argument(
        "recipe", metavar="RUN|RECIPE", help="a run folder (its best recipe) or a recipe file, evomerge's or mergekit's"
    )
    parser.add_argument("out", metavar="OUT", type=Path, help="folder to write; must be new or empty")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="default: the recipe's")
    parser.add_argument("--max-shard-size", default="5GB", help="default: 5GB")
    add_import_option(parser)
    options = parser.parse_intermixed_args(list(arguments))
    shard = byte_count(options.max_shard_size, "--max-shard-size")

    from evomerge.cli.console import merge_progress
    from evomerge.cli.sources import held_out_scores, open_recipe
    from evomerge.export.writer import check_output, write_model

    import_modules(options.imports, "--import")
    check_output(options.out)
    recipe, pool = open_recipe(options.recipe)
    if options.dtype:
        recipe = replace(recipe, dtype=options.dtype)
    scores = held_out_scores(options.recipe, recipe)
    with merge_progress() as progress:
        write_model(recipe, pool, options.out, max_shard_bytes=shard, scores=scores, progress=progress)
    print(f"wrote {options.out}")
    return 0


def byte_count(text: str, key: str) -> int:
    """Read ``5GB``, ``500MB`` or a number of bytes."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?B?)", text.strip().upper())
    unit = match[2] if match else ""
    unit = unit if unit.endswith("B") and len(unit) == 2 else f"{unit.rstrip('B')}B" if unit.rstrip("B") else ""
    if match is None or int(float(match[1]) * _UNITS[unit]) < 1:
        raise ConfigError(f"{key} is {text!r}", "a size such as 5GB or 500MB")
    return int(float(match[1]) * _UNITS[unit])
