"""``evomerge export``: a recipe as evomerge or mergekit YAML."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from evomerge.cli.main import verb_parser
from evomerge.cli.options import add_import_option
from evomerge.imports import import_modules


def run(arguments: Sequence[str]) -> int:
    """Print or write the recipe."""
    parser = verb_parser("export")
    parser.add_argument("recipe", metavar="RUN|RECIPE", help="a run folder (its best recipe) or a recipe file")
    parser.add_argument("--format", choices=("evomerge", "mergekit"), default="evomerge")
    parser.add_argument("-o", "--output", type=Path, help="file to write (default: standard output)")
    add_import_option(parser)
    options = parser.parse_intermixed_args(list(arguments))

    from evomerge.cli.sources import load_recipe_or_run
    from evomerge.files import write_text_atomic
    from evomerge.recipe_yaml import dump_recipe

    import_modules(options.imports, "--import")
    recipe = load_recipe_or_run(options.recipe)
    if options.format == "mergekit":
        from evomerge.mergekit.writer import to_mergekit
        from evomerge.models.pool import pool_of_recipe

        text = to_mergekit(recipe, pool_of_recipe(recipe).layout)
    else:
        text = dump_recipe(recipe)
    if options.output:
        write_text_atomic(options.output, text)
    else:
        sys.stdout.write(text)
    return 0
