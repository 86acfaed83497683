"""``evomerge demo``: the whole road on models made here, in a few minutes."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from evomerge.cli.verbs import verb_parser
from evomerge.demo.adapters import MOST as MOST_ADAPTERS
from evomerge.demo.checkpoints import MOST
from evomerge.errors import ConfigError

if TYPE_CHECKING:
    from evomerge.config.schema import Config


_INSTEAD = ("classifiers", "retrieval", "segmentation")
"""Pools of other kinds of models, one of which is made and searched in place of language models."""


def run(arguments: Sequence[str]) -> int:
    """Make the demo pool unless it is there, then search on it."""
    parser = verb_parser("demo")
    parser.add_argument("--seed", type=int, default=0, help="of the models, the tasks and the search (default: 0)")
    parser.add_argument(
        "--folder", type=Path, default=Path("demo_pool"), help="where the models go (default: demo_pool)"
    )
    parser.add_argument("--threads", type=int, help="CPU threads for training (default: all)")
    parser.add_argument(
        "--quick", action="store_true", help="hardly train and search: seconds, and the scores mean nothing"
    )
    parser.add_argument("--pool-only", action="store_true", help="make the models and tasks, do not search")
    parser.add_argument(
        "--checkpoints",
        type=int,
        metavar="N",
        help="also train one model on, at a rate that does not fall, and keep N checkpoints of it (needs --pool-only)",
    )
    parser.add_argument(
        "--adapters",
        type=int,
        metavar="N",
        help="also train N LoRA adapters on the base, each on its own mixture of texts (needs --pool-only)",
    )
    parser.add_argument(
        "--images",
        action="store_true",
        help="make image classifiers instead: eight ViTs of one start, and ResNets (needs --pool-only)",
    )
    parser.add_argument(
        "--classifiers",
        action="store_true",
        help="instead: three classifiers of 2, 5 and 9 labels, with heads of their own, on texts of installed packages",
    )
    parser.add_argument(
        "--retrieval",
        action="store_true",
        help="instead: three embedding models that find functions of installed packages by their docstrings",
    )
    parser.add_argument(
        "--segmentation",
        action="store_true",
        help="instead: four segmenters that find digits on canvases, each in another condition",
    )
    parser.add_argument("overrides", nargs="*", help="configuration overrides, as in `evomerge search`")
    parser.add_argument("-q", "--quiet", action="store_true", help="show no progress of the search")
    options = parser.parse_intermixed_args(list(arguments))

    if options.threads is not None and options.threads < 1:
        raise ConfigError(f"--threads is {options.threads}", "1 or more")

    if options.checkpoints is not None and not (options.pool_only and 2 <= options.checkpoints <= MOST):
        raise ConfigError(
            f"--checkpoints is {options.checkpoints}{'' if options.pool_only else ' without --pool-only'}",
            f"2 to {MOST}, with --pool-only",
            "make them first, and search with `evomerge search experiment=lcsc`",
        )

    if options.adapters is not None and not (options.pool_only and 2 <= options.adapters <= MOST_ADAPTERS):
        raise ConfigError(
            f"--adapters is {options.adapters}{'' if options.pool_only else ' without --pool-only'}",
            f"2 to {MOST_ADAPTERS}, with --pool-only",
            "make them first, and search with `evomerge search experiment=demo_adapters`",
        )

    if options.images:
        _make_images(options)
        return 0
    asked = [name for name in _INSTEAD if getattr(options, name)]
    if asked and (options.checkpoints is not None or options.adapters is not None):
        other = "--checkpoints" if options.checkpoints is not None else "--adapters"
        raise ConfigError(f"--{asked[0]} and {other}", "one of them", f"{other} is of the pool of language models")
    if len(asked) > 1:
        raise ConfigError(f"--{asked[0]} and --{asked[1]}", "one of them", "make one pool after the other")

    from evomerge.cli.search import search
    from evomerge.config.compose import compose_config

    if asked:
        return _instead(options, asked[0])
    root = options.folder / (f"quick-seed{options.seed}" if options.quick else f"seed{options.seed}")
    settings = ["experiment=demo", f"pool.root='{root}'", f"search.seed={options.seed}"]
    quiet = ["display=quiet"] if options.quiet else []
    quick = ["search.evaluations=12", "strategy.popsize=4"] if options.quick else []
    config = compose_config([*settings, *quick, *quiet, *options.overrides])
    _check(config, options.pool_only)  # before training: a typo should not wait for it

    from evomerge.demo.adapters import make_adapters
    from evomerge.demo.checkpoints import make_checkpoints
    from evomerge.demo.pool import make_demo_pool

    make_demo_pool(root, options.seed, threads=options.threads, quick=options.quick)
    if options.checkpoints is not None:
        made = make_checkpoints(root, options.seed, options.checkpoints, threads=options.threads, quick=options.quick)
        print(f"the checkpoints are in {made}; `evomerge search experiment=lcsc pool.root='{root}'` combines them")
    if options.adapters is not None:
        made = make_adapters(root, options.seed, options.adapters, threads=options.threads, quick=options.quick)
        print(
            f"the adapters are in {made}; `evomerge search experiment=demo_adapters pool.root='{root}'` searches them"
        )
    if options.pool_only and options.checkpoints is None and options.adapters is None:
        print(f"the pool is in {root}; `evomerge search experiment=demo pool.root='{root}'` searches it")
    elif not options.pool_only:
        search(config)
    return 0


def _make_images(options: argparse.Namespace) -> None:
    """Make pictures and image classifiers.

    Raises:
        ConfigError: without ``--pool-only``, or with what belongs to the other pool.
    """
    asked = [name for name in ("checkpoints", "adapters", *_INSTEAD, "overrides") if getattr(options, name)]
    if not options.pool_only or asked:
        given = "--images without --pool-only" if not asked else f"--images with {asked[0]}"
        do = "make them first, and search with `evomerge search experiment=demo_images`"
        raise ConfigError(given, "--images --pool-only, with --seed, --folder, --threads and --quick", do)
    from rich.progress import Progress

    from evomerge.demo.image_pool import count_steps, make_image_pool

    root = options.folder / (f"quick-images{options.seed}" if options.quick else f"images{options.seed}")
    with Progress(disable=options.quiet) as progress:
        bar = progress.add_task("image classifiers", total=count_steps(options.quick))

        def each_step(name: str) -> None:
            progress.update(bar, advance=1, description=f"image classifiers: training {name}")

        make_image_pool(root, options.seed, threads=options.threads, quick=options.quick, each_step=each_step)
    print(f"the models are in {root}; `evomerge search experiment=demo_images pool.root='{root}'` searches them")


def _instead(options: argparse.Namespace, kind: str) -> int:
    """Make the pool of a kind of `_INSTEAD`, unless it is there, then search on it."""
    from evomerge.cli.search import search
    from evomerge.config.compose import compose_config
    from evomerge.demo.classifiers import TASKS, make_classifiers
    from evomerge.demo.retrieval import PACKAGES, make_retrieval
    from evomerge.demo.segmentation import CONDITIONS, make_segmentation

    root = options.folder / f"{kind}-{'quick-' if options.quick else ''}seed{options.seed}"
    settings = [f"experiment=demo_{kind}", f"pool.root='{root}'", f"search.seed={options.seed}"]
    quiet = ["display=quiet"] if options.quiet else []
    quick = ["search.evaluations=12", "strategy.popsize=4"] if options.quick else []
    config = compose_config([*settings, *quick, *quiet, *options.overrides])
    _check(config, options.pool_only)

    kinds: dict[str, tuple[tuple[str, ...], Callable[..., Path]]] = {
        "classifiers": (tuple(TASKS), make_classifiers),
        "retrieval": (tuple(PACKAGES), make_retrieval),
        "segmentation": (CONDITIONS, make_segmentation),
    }
    made, make = kinds[kind]
    print(f"making {root}: a start, then {', '.join(made)}")
    make(root, options.seed, threads=options.threads, quick=options.quick)
    if options.pool_only:
        print(f"the pool is in {root}; `evomerge search experiment=demo_{kind} pool.root='{root}'` searches it")
    else:
        search(config)
    return 0


def _check(config: Config, pool_only: bool) -> None:
    """Check what can be said before the models are there."""
    from evomerge.run.folder import RunFolder
    from evomerge.session.builders import fitness_from_config
    from evomerge.session.settings import check_name, check_nodes, check_settings

    check_settings(config)
    check_name(config.name)
    check_nodes(config)
    for key in ("fitness", "held_out"):
        if getattr(config, key) is not None:
            fitness_from_config(config, key, files=False)
    if not pool_only:
        RunFolder(Path(config.run_dir)).require_new()
