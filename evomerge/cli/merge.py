"""``evomerge merge``: the model of a recipe."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from evomerge.cli.merge_switched import (
    add_switch_options,
    check_options,
    say_shared,
    switched,
    write_all,
    write_from_folder,
)
from evomerge.cli.options import add_import_option, add_preference_option, add_trust_option, chosen
from evomerge.cli.verbs import verb_parser
from evomerge.errors import ConfigError
from evomerge.recipes.switches import task_recipe, tasks_of, with_dtype
from evomerge.utils.imports import import_modules, without_collector
from evomerge.utils.sizes import byte_count

if TYPE_CHECKING:
    import torch

    from evomerge.export.model_card import ScoreRow
    from evomerge.merge.methods.low_rank import Bound
    from evomerge.models.pool import Pool
    from evomerge.recipes.recipe import Recipe


def run(arguments: Sequence[str]) -> int:
    """Write the model."""
    parser = verb_parser("merge")
    parser.add_argument(
        "recipe",
        metavar="RUN|RECIPE",
        help="a run folder (its best recipe) or a recipe file, evomerge's or mergekit's; or a folder of --all-tasks",
    )
    parser.add_argument("out", metavar="OUT", type=Path, help="folder to write; must be new or empty")
    parser.add_argument(
        "--format",
        choices=("model", "lora", "single"),
        default="model",
        help="lora: an adapter of the recipe's base, which PEFT loads; single: a pipeline's network in one file, by "
        "the names of its first authors; default: model",
    )
    parser.add_argument(
        "--rank",
        metavar="R|auto",
        help="of an adapter: the largest rank; auto, the default: exact where the recipe sums adapters, else the "
        "smallest rank within --max-error",
    )
    parser.add_argument(
        "--max-error",
        metavar="SHARE",
        type=float,
        help="of an adapter's matrices, as a share of the difference from the base; instead of a rank; default: 0.01",
    )
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        help="default: the recipe's; an adapter's factors are float32",
    )
    parser.add_argument("--max-shard-size", default="5GB", help="default: 5GB")
    parser.add_argument(
        "--batch-norms",
        choices=("computed", "merged"),
        default="computed",
        help="of a run by images: statistics that the merged weights give, as when it was scored, or those of the "
        "sources merged like weights; default: computed",
    )
    add_switch_options(parser)
    add_preference_option(parser)
    add_import_option(parser)
    add_trust_option(parser)
    options = parser.parse_intermixed_args(list(arguments))
    shard = byte_count(options.max_shard_size, "--max-shard-size")
    bound = _bound(options)

    with without_collector():
        from evomerge.cli.sources import held_out_scores, open_recipe
        from evomerge.export.output import check_output

        if options.format == "single":
            from evomerge.export.single_file_writer import check_single_output

            check_single_output(options.out)
        else:
            check_output(options.out)
        options.recipe = chosen(options.recipe, options.preference)
        import_modules(options.imports, "--import")
        if (Path(options.recipe) / "switches" / "evomerge_recipe.yaml").is_file():
            write_from_folder(options, shard)
            return 0
        check_options(options)
        recipe, pool = open_recipe(options.recipe, trust=options.trust)
        held_out = held_out_scores(options.recipe, recipe)
        recipe = switched(recipe, options)

        from evomerge.cli.console import merge_progress
        from evomerge.export.licences import licence_notes, stated_licences
        from evomerge.export.model_card import source_licences
        from evomerge.export.result import write_result
        from evomerge.models.rotated import refuse_rotated
        from evomerge.report.plain_console import errors
    refuse_rotated(pool)
    if options.dtype and bound is None:
        recipe = with_dtype(recipe, options.dtype)
    several = bool(tasks_of(recipe))  # scores are of each task with its own switch on, or its own head
    scores = held_out if options.all_tasks or not several else []
    folders = {name: pool.checkpoints[name].folders for name, _ in recipe.models}
    for note in licence_notes(stated_licences(source_licences(recipe, folders))):
        if note.conflict:
            errors.print(f"warning: licence: {note.text}", style="yellow")
    if options.format == "single" or (recipe.network is not None and bound is not None):
        _write_single(recipe, pool, options)
        return 0
    if bound is not None:
        _write_adapter(recipe, pool, options, bound, scores)
        return 0
    if options.all_tasks:
        write_all(recipe, pool, options, shard, scores, _head_batch_norms(recipe, pool, options))
        return 0
    given = _batch_norms(recipe, pool, options)
    with merge_progress() as progress:
        write_result(recipe, pool, options.out, max_shard_bytes=shard, scores=scores, progress=progress, given=given)
    print(f"wrote {options.out}")
    say_shared(recipe)
    return 0


def _bound(options: argparse.Namespace) -> Bound | None:
    """How far an adapter is truncated; ``None`` for a model."""
    if options.format != "lora":
        given = next((name for name in ("rank", "max_error") if getattr(options, name) is not None), None)
        if given is not None:
            raise ConfigError(f"--{given.replace('_', '-')} is of adapters", "--format lora", "add it")
        return None
    from evomerge.export.adapter_writer import rank_bound

    return rank_bound(options.rank, options.max_error)


def _write_single(recipe: Recipe, pool: Pool, options: argparse.Namespace) -> None:
    """Write the network of a pipeline as one file."""
    from evomerge.cli.console import merge_progress
    from evomerge.errors import RecipeError
    from evomerge.export.single_file_writer import write_single_file

    if options.format == "lora":
        raise RecipeError("the recipe merges the networks of pipelines", "a folder, or --format single", "leave it out")
    with merge_progress() as progress:
        write_single_file(recipe, pool, options.out, progress=progress)
    print(f"wrote {options.out}")


def _batch_norms(recipe: Recipe, pool: Pool, options: argparse.Namespace) -> dict[str, torch.Tensor]:
    """The statistics that a run's models were scored with; a warning where they stay as they are merged."""
    from evomerge.cli.sources import run_folder
    from evomerge.evaluation.batch_norms import has_batch_norms
    from evomerge.report.plain_console import errors
    from evomerge.run.folder import RunFolder
    from evomerge.session.batch_norms import NOTE, batch_norms_of_run

    if options.batch_norms == "merged" or not has_batch_norms(pool):
        return {}
    folder = run_folder(options.recipe)
    if folder is not None:
        return batch_norms_of_run(RunFolder.open(folder), recipe, pool, trust=options.trust)
    errors.print(f"warning: {NOTE}; merge the run, not a copy of its recipe", style="yellow")
    return {}


def _head_batch_norms(recipe: Recipe, pool: Pool, options: argparse.Namespace) -> dict[str, dict[str, torch.Tensor]]:
    """`_batch_norms` for each task with a head of its own: computed once, unless heads have batch norms too."""
    from evomerge.cli.sources import run_folder
    from evomerge.evaluation.batch_norms import heads_have_batch_norms

    if recipe.heads is None:
        return {}
    if heads_have_batch_norms(pool) and run_folder(options.recipe) is not None:
        return {task: _batch_norms(task_recipe(recipe, task), pool, options) for task in recipe.heads.tasks}
    found = _batch_norms(recipe, pool, options)
    return dict.fromkeys(recipe.heads.tasks, found)


def _write_adapter(
    recipe: Recipe, pool: Pool, options: argparse.Namespace, bound: Bound, scores: Sequence[ScoreRow]
) -> None:
    """Write an adapter and say how exact it is."""
    from evomerge.cli.console import merge_progress
    from evomerge.export.adapter_writer import write_adapter
    from evomerge.report.plain_console import errors

    with merge_progress() as progress:
        loss = write_adapter(
            recipe, pool, options.out, bound=bound, dtype=options.dtype, scores=scores, progress=progress
        )
    print(f"wrote {options.out}: {loss.sentence()}")
    if loss.whole:
        print(f"saved whole: {len(loss.whole)} modules ({', '.join(loss.whole[:3])}{', ...' * (len(loss.whole) > 3)})")
    if loss.nbytes > loss.base_nbytes:
        errors.print(
            "warning: the adapter is larger than its base; give it a --rank, or write a model without --format lora",
            style="yellow",
        )
