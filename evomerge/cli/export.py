"""``evomerge export``: a recipe as YAML or the picture of its path, a run as a study of Optuna or as a landscape."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from evomerge.cli.options import add_import_option, add_preference_option, add_trust_option, chosen
from evomerge.cli.verbs import verb_parser
from evomerge.errors import ConfigError, RecipeError
from evomerge.utils.imports import import_modules


def run(arguments: Sequence[str]) -> int:
    """Print or write the recipe."""
    parser = verb_parser("export")
    parser.add_argument(
        "recipe", metavar="RUN|RECIPE", help="a run folder (its best recipe) or a recipe file, evomerge's or mergekit's"
    )
    parser.add_argument(
        "--format",
        choices=("evomerge", "mergekit", "svg", "optuna", "landscape"),
        default="evomerge",
        help="svg: a picture, of paths only; optuna: a run as a study, a file that optuna-dashboard opens; landscape: "
        "a model of a run's scores, on which searches are compared without models (fitness=surrogate)",
    )
    parser.add_argument("-o", "--output", type=Path, help="file to write (default: standard output)")
    add_preference_option(parser)
    add_import_option(parser)
    add_trust_option(parser)
    options = parser.parse_intermixed_args(list(arguments))

    from evomerge.cli.sources import open_recipe, read_recipe
    from evomerge.recipes.yaml_reader import dump_recipe
    from evomerge.run.outputs import check_output_file
    from evomerge.utils.files import write_text_atomic

    if options.output:
        check_output_file(options.output, [options.recipe])
    if options.preference is not None and options.format in ("landscape", "optuna"):
        raise ConfigError("--preference picks a recipe", f"{options.format} is of the whole run", "leave it out")
    options.recipe = chosen(options.recipe, options.preference)
    import_modules(options.imports, "--import")
    if options.format == "landscape":
        _landscape(options.recipe, options.output, options.trust)
        return 0
    if options.format == "optuna":
        from evomerge.report.optuna_storage import journal_of

        text = journal_of(Path(options.recipe))
    elif options.format == "mergekit":
        from evomerge.mergekit.writer import to_mergekit
        from evomerge.session.batch_norms import NOTE, mixes_batch_norms

        recipe, pool = open_recipe(options.recipe, trust=options.trust)
        text = to_mergekit(recipe, pool.layout)
        if mixes_batch_norms(recipe, pool):
            print(f"warning: by mergekit, {NOTE}; `evomerge merge RUN OUT` computes them", file=sys.stderr)
        if any(ref.adapter is not None for _, ref in recipe.models):
            print("note: mergekit folds LoRA adapters only when it is given --lora-merge-cache FOLDER", file=sys.stderr)
    elif options.format == "svg":
        from evomerge.recipes.path import path_of
        from evomerge.report.path_svg import path_svg

        path = path_of(read_recipe(options.recipe, trust=options.trust))
        if path is None:
            raise RecipeError(f"{options.recipe} has no path: its layers all are where they were", "a data flow recipe")
        text = path_svg(path)
    else:
        text = dump_recipe(read_recipe(options.recipe, trust=options.trust))
    if options.output:
        write_text_atomic(options.output, text)
    else:
        sys.stdout.write(text)
    return 0


def _landscape(run: str, output: Path | None, trust: bool) -> None:
    """Write a run's landscape, and print how well it tells the candidates that it was not fitted to."""
    from rich.table import Table

    from evomerge.landscape.file import write_landscape
    from evomerge.report.plain_console import console
    from evomerge.session.landscape_of_run import landscape_of

    landscape = landscape_of(run, trust=trust)
    path = write_landscape(landscape, output)
    table = Table("metric", "R2", "rank correlation", "error", "of items", title="Cross-validated")
    for name, fit in landscape.fit.items():
        drawn = f"{fit.items:.4f}" if name in landscape.items else ""
        table.add_row(name, f"{fit.r2:.3f}", f"{fit.rank:.3f}", f"{fit.error:.4f}", drawn)
    console.print(table)
    evaluations, genes = landscape.source["evaluations"], len(landscape.genes)
    console.print(f"{path}: {evaluations} evaluations, {genes} genes", soft_wrap=True)
