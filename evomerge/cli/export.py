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
    parser.add_argument(
        "recipe", metavar="RUN|RECIPE", help="a run folder (its best recipe) or a recipe file, evomerge's or mergekit's"
    )
    parser.add_argument("--format", choices=("evomerge", "mergekit"), default="evomerge")
    parser.add_argument("-o", "--output", type=Path, help="file to write (default: standard output)")
    add_import_option(parser)
    options = parser.parse_intermixed_args(list(arguments))

    from evomerge.cli.sources import open_recipe, read_recipe
    from evomerge.files import write_text_atomic
    from evomerge.recipe_yaml import dump_recipe

    import_modules(options.imports, "--import")
    if options.format == "mergekit":
        from evomerge.mergekit.writer import to_mergekit

        recipe, pool = open_recipe(options.recipe)
        text = to_mergekit(recipe, pool.layout)
    else:
        text = dump_recipe(read_recipe(options.recipe))
    if options.output:
        write_text_atomic(options.output, text)
    else:
        sys.stdout.write(text)
    return 0
