"""``evomerge frank-wolfe``: weights of the sources by gradients on calibration items, as a recipe."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from evomerge.cli.verbs import verb_parser
from evomerge.config.schema import Config
from evomerge.errors import ConfigError, OutputError

_GRANULARITIES, _STARTS = ("layer", "task"), ("average", "base")


def run(arguments: Sequence[str]) -> int:
    """Find the weights that the arguments describe, and write their recipe."""
    parser = verb_parser(
        "frank-wolfe",
        epilog="FW-Merging (arXiv 2503.12649). KEY=VALUE are those of evomerge calibrate: pool and calibration say "
        "which models and items. The recipe can be merged, and begins a search with search.warm_start=[OUT].",
    )
    parser.add_argument("out", metavar="OUT", type=Path, help="recipe to write; must be new")
    parser.add_argument("words", metavar="KEY=VALUE", nargs="*", help="overrides of the configuration")
    parser.add_argument("--iterations", metavar="N", type=int, default=10, help="steps; default: 10")
    parser.add_argument("--step", metavar="S", type=float, default=0.1, help="length of a step, 0 to 1; default: 0.1")
    parser.add_argument(
        "--granularity", choices=_GRANULARITIES, default="layer", help="weights by layer, or one for the model"
    )
    parser.add_argument(
        "--start", choices=_STARTS, default="average", help="the sources' average (default) or the base"
    )
    options, rest = parser.parse_known_intermixed_args(list(arguments))
    if options.iterations < 1 or not 0 < options.step <= 1:
        raise ConfigError(
            f"--iterations is {options.iterations} and --step {options.step:g}", "1 step at least, above 0 to 1 long"
        )
    if options.out.exists():
        raise OutputError(f"{options.out} is there already", "a file to be made", "choose another name")
    if not options.out.absolute().parent.is_dir():
        raise OutputError(f"the folder of {options.out} is not there", "a folder that exists", "make it")
    from evomerge.cli.composed import hydra_app

    return hydra_app("frank-wolfe", [*options.words, *rest], partial(_find, options))


def _find(options: Namespace, config: Config) -> None:
    from rich.progress import Progress
    from rich.table import Table

    from evomerge.calibration.frank_wolfe import frank_wolfe, groups_of, recipe_of
    from evomerge.evaluation.devices import choose_device
    from evomerge.models.opening import open_pool
    from evomerge.recipes.kept import opening_settings
    from evomerge.recipes.yaml_reader import dump_recipe
    from evomerge.report.plain_console import console, errors
    from evomerge.session.calibration_items import plan_items
    from evomerge.session.calibration_pool import calibration_pool, check_not_held_out
    from evomerge.utils.files import write_text_atomic

    pool = calibration_pool(config)
    if options.start == "base" and pool.info.base is None:
        raise ConfigError("--start is base, and the pool has none", "average", "set pool.base=NAME")
    items, documents = plan_items(config, pool)
    check_not_held_out(config, documents)
    dtype, trust = config.statistics.dtype, pool.trust_remote_code
    kept = opening_settings(pool.info.kept)
    wide = open_pool(dict(pool.info.refs), base=pool.info.base, dtype=dtype, trust_remote_code=trust, **kept)
    groups, device = groups_of(pool, options.granularity), choose_device(config.statistics.device)
    with Progress(console=errors, disable=not sys.stderr.isatty(), transient=True) as bar:
        task = bar.add_task("gradients", total=None)
        found = frank_wolfe(
            wide,
            items,
            groups,
            iterations=options.iterations,
            step=options.step,
            start=options.start,
            device=device,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    write_text_atomic(options.out, dump_recipe(recipe_of(pool, groups, found.weights)))
    table = Table("step", "loss", "gap", *pool.info.sources, title="Frank-Wolfe", title_justify="left")
    for number, (loss, gap, chosen) in enumerate(zip(found.losses, found.gaps, found.chosen, strict=False), 1):
        counts = [f"{chosen.count(k)}" for k in range(len(pool.info.sources))]
        table.add_row(str(number), f"{loss:.4g}", f"{gap:.4g}", *counts)
    table.add_row("end", f"{found.losses[-1]:.4g}", "", *("" for _ in pool.info.sources))
    console.print(table)
    console.print(
        f"columns of models: groups of slices that stepped towards each; wrote {options.out}", highlight=False
    )
