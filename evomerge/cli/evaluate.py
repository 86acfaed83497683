"""``evomerge evaluate``: scores of a recipe or a model with a fitness configuration."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

from evomerge.cli.all_tasks import open_heads, refuse_parts
from evomerge.cli.evaluated_target import check_target, check_there
from evomerge.cli.options import add_import_option, add_preference_option, add_trust_option, chosen
from evomerge.cli.pipeline_target import KEYS, open_drawing, refuse_keys
from evomerge.cli.scored_tasks import check_tasks, keep_tasks_of_head
from evomerge.cli.verbs import verb_parser
from evomerge.errors import ConfigError, EvomergeError, FitnessError, nearest
from evomerge.recipes.slices import DTYPES
from evomerge.recipes.switches import task_recipe, with_dtype
from evomerge.run.inside import LEDGER
from evomerge.run.outputs import check_output_folder
from evomerge.utils.files import place_problem
from evomerge.utils.imports import import_modules

if TYPE_CHECKING:
    from evomerge.candidate import Split
    from evomerge.config.schema import Config
    from evomerge.models.pool import Pool
    from evomerge.protocols import Fitness
    from evomerge.recipes.recipe import Recipe


def run(arguments: Sequence[str]) -> int:
    """Evaluate and print every metric."""
    parser = verb_parser(
        "evaluate", epilog="The fitness comes from the run, or from overrides: experiment=demo, fitness.tasks=[gsm8k]."
    )
    parser.add_argument(
        "target", metavar="RUN|RECIPE|MODEL", help="a run folder, a recipe file, a model folder or hub id"
    )
    parser.add_argument(
        "--task",
        metavar="NAME",
        help="of a model with a switch: score this task's model on all items; of one with heads, or of a folder of "
        "--all-tasks that has a model for each: on the head's own",
    )
    parser.add_argument("--held-out", action="store_true", help="use the held-out fitness")
    parser.add_argument(
        "--log-samples",
        type=Path,
        metavar="FOLDER",
        help="write prompts, responses and scores of every item there, in the files of lm_eval --log_samples",
    )
    add_preference_option(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")
    add_trust_option(parser, "run code that the models bring along, or that the run's configuration names")
    add_import_option(parser)
    parser.add_argument("overrides", nargs="*", help="configuration overrides, as in `evomerge search`")
    options = parser.parse_intermixed_args(list(arguments))

    _check_used(options.overrides)
    check_there(options.target, options.overrides)
    options.target = chosen(options.target, options.preference)
    refuse_parts(options.target, options.task)
    named = [f"imports={name}" for name in options.imports]
    config = _config(options.target, options.overrides, None if options.trust else [*options.overrides, *named])
    import_modules(options.imports, "--import")
    check_target(options.target, _root(config, options.overrides))
    import_modules(config.imports, "imports")
    if (device := config.evaluator.get("device", "auto")) != "auto":
        from evomerge.evaluation.devices import check_device

        check_device({"device": device}, here=True)
    key = "held_out" if options.held_out else "fitness"
    split: Split = "held_out" if options.held_out else "search"

    from evomerge.session.builders import check_fitnesses, fitness_from_config

    if options.task:
        keep_tasks_of_head(getattr(config, key), options.task)
    fitness = fitness_from_config(config, key, exact=True)
    if hasattr(fitness, "rating"):
        given = f"{key} is scored by people, whom a search waits for"
        do = "`evomerge status RUN` has what they said of a run's best; score by another one, such as fitness=lm_eval"
        raise ConfigError(given, "a fitness that scores by itself", do)
    _check_used(options.overrides, compares=hasattr(fitness, "references"))
    write_samples = getattr(fitness, "write_samples", None)
    if options.log_samples is not None:
        _check_samples(options.log_samples, write_samples, key)
    recipe, pool = _recipe(options.target, config, options.overrides, trust=options.trust)
    pool = _with_references(pool, fitness, config, trust=options.trust)
    if options.task:
        recipe = task_recipe(recipe, options.task)
    check_tasks(recipe, fitness, key)
    check_fitnesses(fitness, pool=pool, key=key)

    from evomerge.candidate import Candidate
    from evomerge.cli.console import print_scores
    from evomerge.evaluation.worker import Worker
    from evomerge.report.formatting import count
    from evomerge.report.plain_console import errors
    from evomerge.run.responses import unanswered
    from evomerge.session.answers import advice, gains
    from evomerge.session.batch_norms import giving_batch_norms
    from evomerge.session.engines import check_vllm_heads, require_engine

    settings = config.evaluator
    device, threads = settings.get("device", "auto"), settings.get("threads")
    engine = require_engine(config, full=True)
    engine = replace(engine, adapters=min(engine.adapters, 1))
    check_vllm_heads(engine, pool, settings)
    scored = {split: fitness, **({} if split == "search" else giving_batch_norms(config, pool))}
    worker = Worker(pool, scored, device=device, threads=threads, engine=engine)
    evaluation = worker.evaluate(Candidate(0, recipe), split)
    if not evaluation.ok:
        raise EvomergeError(f"{options.target} could not be scored: {evaluation.error}")
    if options.log_samples is not None:
        assert write_samples is not None
        files = write_samples(options.log_samples, options.target)
        errors.print(f"wrote {count(len(files), 'file')} into {files[0].parent}")
    line = unanswered({options.target: (evaluation.responses, evaluation.items)}, gains(fitness))
    if line:
        errors.print(f"{line}; {advice(fitness)}", markup=False, highlight=False)
    if options.json:
        json.dump(
            {"objectives": dict(evaluation.objectives), "metrics": dict(evaluation.metrics)}, sys.stdout, indent=2
        )
        print()
    else:
        print_scores(options.target, evaluation)
    return 0


def _root(config: Config, overrides: Sequence[str]) -> str | None:
    """Where models are looked up first: said by the command line, since a run's own place is that of its pool."""
    given = {override.lstrip("+").partition("=")[0] for override in overrides}
    return config.pool.root if "pool.root" in given else None


def _check_samples(folder: Path, write_samples: object, key: str) -> None:
    """Refuse what `--log-samples` cannot do before the model is scored."""
    if write_samples is None:
        raise ConfigError(f"the fitness of {key} writes no samples", "fitness=lm_eval does", "leave --log-samples out")
    check_output_folder(folder)
    problem = place_problem(folder)
    if problem:
        raise ConfigError(f"--log-samples {folder}: {problem}", "a folder you can write, made if it is not there")


def _config(target: str, overrides: Sequence[str], asked: Sequence[str] | None) -> Config:
    """The configuration of a run, or of the overrides alone; code that is not `asked` for is refused, unless `None`."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    from evomerge.cli.sources import run_folder
    from evomerge.config.compose import compose_config, explain
    from evomerge.config.key_types import check_types
    from evomerge.config.trust import check_trust
    from evomerge.run.folder import RunFolder
    from evomerge.session.resume import read_config

    folder = run_folder(target)
    named = next((word for word in overrides if word.lstrip("+~").partition("=")[0] == "experiment"), None)
    if folder is not None and named is not None and folder == Path(target):
        do = f"give keys of it, or {named} with the recipe {folder / 'best' / 'recipe.yaml'}"
        raise ConfigError(f"{named} was given with a run", f"the configuration is that of {target}", do)
    if folder is None or named is not None:
        return _with_engine(compose_config(overrides), "transformers", overrides)
    for override in overrides:
        if override.startswith("~") or "=" not in override:
            raise ConfigError(f"cannot read the override {override!r}", "key=value, of the run's configuration")
    kept = read_config(RunFolder.open(folder))
    try:
        OmegaConf.set_struct(kept, True)
        # A run may be older than a key: building the part says what there is.
        for node in (kept.fitness, kept.held_out, kept.evaluator):
            if OmegaConf.is_dict(node):
                OmegaConf.set_struct(node, False)
        config = OmegaConf.merge(kept, OmegaConf.from_dotlist([word.lstrip("+") for word in overrides]))
    except OmegaConfBaseException as error:
        raise explain(error, overrides) from error
    check_types(config)
    if asked is not None:
        check_trust(OmegaConf.to_container(config, resolve=True), asked, "the run's configuration")
    own = str(kept.evaluator.get("engine") or "transformers")
    return _with_engine(cast("Config", config), own, overrides)


def _with_engine(config: Config, own: str, overrides: Sequence[str]) -> Config:
    """The configuration, without what belongs to another engine where transformers is asked for in its place.

    Raises:
        ConfigError: an engine is asked for that is neither transformers nor the run's `own`.
    """
    from omegaconf import open_dict

    if not any(word.lstrip("+").partition("=")[0] == "evaluator.engine" for word in overrides):
        return config
    name = str(config.evaluator.get("engine") or "transformers")
    if name not in ("transformers", own):
        of = "" if own == "transformers" else f", or {own} as in the run"
        raise ConfigError(f"evaluator.engine is {name!r}", f"`evomerge evaluate` scores with transformers{of}")
    if name == "transformers":
        with open_dict(config.evaluator):
            config.evaluator.update(engine_args=None, server=None)
    return config


_WHOLE = ("fitness", "held_out", "imports", "experiment")
_SINGLE = (
    *("pool.dtype", "pool.root", "pool.trust_remote_code"),
    *("evaluator.device", "evaluator.threads", "evaluator.engine"),
    *KEYS,
)
_COMPARED = ("pool", "pool.base", "pool.models")
"""Keys of models that a fitness may compare with."""


def _check_used(overrides: Sequence[str], *, compares: bool = True) -> None:
    """Refuse keys that scoring one model does nothing with: a value that is ignored is a wrong score.

    Args:
        overrides: of the command line.
        compares: whether the fitness may compare with models of the configuration's pool.
    """
    for override in overrides:
        key = override.lstrip("+~").partition("=")[0].partition("@")[0]
        used = key == "evaluator" or key.partition(".")[0] in _WHOLE or key in _SINGLE or override == "pool=pipelines"
        used = used or (compares and (key in _COMPARED or key.startswith("pool.models.")))
        if key in ("evaluator.quantise", "evaluator.quantise_held_out"):
            given = f"`evomerge evaluate` does not use {key}"
            raise ConfigError(given, "it always scores in full precision", "leave it out")
        if not used and not override.startswith("-"):
            raise ConfigError(
                f"`evomerge evaluate` does not use {key}", f"keys that it uses: {', '.join((*_WHOLE, *_SINGLE))}"
            )


def _with_references(pool: Pool, fitness: Fitness, config: Config, *, trust: bool) -> Pool:
    """The pool, with the models of the configuration's where the fitness compares with one that it does not have."""
    from evomerge.config.construct import to_builtin
    from evomerge.evaluation.references import references
    from evomerge.models.dense import SAME
    from evomerge.models.opening import open_pool
    from evomerge.recipes.kept import opening_settings

    settings = config.pool
    models = to_builtin(settings.models) or {}
    try:
        references(fitness, pool.info)
    except FitnessError:
        if not models:
            return pool  # checking the fitness says what is missing
        own = dict(pool.info.refs)
        more = {name: model for name, model in models.items() if name not in own}
        rest = {**opening_settings(pool.info.kept), "dense": pool.info.dense or SAME}
        return open_pool({**own, **more}, settings.base, settings.root, pool.info.dtype, trust, **rest)
    return pool


def _recipe(target: str, config: Config, overrides: Sequence[str], *, trust: bool) -> tuple[Recipe, Pool]:
    """The recipe and the pool of what is to be scored: a model is the recipe that takes it whole."""
    from evomerge.cli.sources import one_model, open_recipe
    from evomerge.models.opening import open_pool

    given = {override.lstrip("+").partition("=")[0] for override in overrides}
    settings = config.pool
    trusted = trust or ("pool.trust_remote_code" in given and settings.trust_remote_code)
    root = _root(config, overrides)
    dtype = str(settings.dtype) if "pool.dtype" in given else "auto"
    path = Path(target)
    is_recipe = path.is_file() and path.suffix not in (".gguf", ".safetensors")
    if is_recipe or (path / LEDGER).is_file():
        refuse_keys(given, target)
        recipe, pool = open_recipe(target, root=root, trust=trusted)
        if dtype == "auto":
            return recipe, pool
        if dtype not in DTYPES:
            raise ConfigError(f"pool.dtype is {dtype!r}", nearest(dtype, ("auto", *DTYPES)))
        chosen = DTYPES[DTYPES.index(dtype)]
        return with_dtype(recipe, chosen), replace(pool, info=replace(pool.info, dtype=chosen))
    if (headed := open_heads(target, dtype, trust=trusted)) is not None:
        return headed
    opened = open_drawing(target, settings, given, root, dtype)
    if opened is None:
        with one_model("model"):
            opened = open_pool({"model": target}, root=root, dtype=dtype, trust_remote_code=trusted)
    return opened.info.linear({"model": 1.0}), opened
