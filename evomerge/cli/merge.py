"""``evomerge merge``: the model of a recipe."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from evomerge.cli.options import add_import_option, add_trust_option
from evomerge.cli.verbs import verb_parser
from evomerge.utils.imports import import_modules, without_collector
from evomerge.utils.sizes import byte_count


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
    add_trust_option(parser)
    options = parser.parse_intermixed_args(list(arguments))
    shard = byte_count(options.max_shard_size, "--max-shard-size")

    with without_collector():
        from evomerge.cli.sources import held_out_scores, open_recipe
        from evomerge.export.output import check_output

        check_output(options.out)
        import_modules(options.imports, "--import")
        recipe, pool = open_recipe(options.recipe, trust=options.trust)

        from evomerge.cli.console import merge_progress
        from evomerge.export.licences import licence_notes, stated_licences
        from evomerge.export.model_card import source_licences
        from evomerge.export.writer import write_model
        from evomerge.report.plain_console import errors
    if options.dtype:
        recipe = replace(recipe, dtype=options.dtype)
    scores = held_out_scores(options.recipe, recipe)
    folders = {name: pool.checkpoints[name].folders for name, _ in recipe.models}
    for note in licence_notes(stated_licences(source_licences(recipe, folders))):
        if note.conflict:
            errors.print(f"warning: licence: {note.text}", style="yellow")
    with merge_progress() as progress:
        write_model(recipe, pool, options.out, max_shard_bytes=shard, scores=scores, progress=progress)
    print(f"wrote {options.out}")
    return 0
