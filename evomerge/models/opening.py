"""Opens pools: reads configurations and headers, checks that the models fit together."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from evomerge.errors import ConfigError, PoolError, nearest
from evomerge.models import compatibility
from evomerge.models.architecture.layout import Layout, layout_from, name_problems, skeleton
from evomerge.models.architecture.names import NameMatch, match_names
from evomerge.models.architecture.residual_rules import residual_of
from evomerge.models.checkpoints.adapter import Adapter
from evomerge.models.checkpoints.folding import FoldedCheckpoint, warn_of_another_base
from evomerge.models.checkpoints.headers import FLOAT_DTYPES
from evomerge.models.checkpoints.location import locate
from evomerge.models.checkpoints.pins import changed_since, with_fingerprints
from evomerge.models.checkpoints.reader import Checkpoint
from evomerge.models.pool import Pool, of_model
from evomerge.recipes.pool_info import PoolInfo
from evomerge.recipes.recipe import Recipe
from evomerge.recipes.slices import DTYPES, Dtype, ModelRef, SliceId

_MOST_LISTED = 10


def open_pool(
    models: Mapping[str, str] | Mapping[str, ModelRef],
    base: str | None = None,
    root: str | Path | None = None,
    dtype: str = "auto",
    trust_remote_code: bool = False,
    fingerprints: bool = True,
    ignore_config: Collection[str] = (),
) -> Pool:
    """Open models and check from configurations, headers and tokenizers that they can be merged.

    Args:
        models: locations or references by name (see `location.locate`), the base included; ``model+adapter`` is a
            model with a LoRA adapter folded in.
        base: which of `models` is the base that task vectors are taken from; it gives configuration and
            tokenizer. Without one, the first model gives them.
        root: folder that relative locations are looked up in first.
        dtype: dtype of merged models; ``auto`` is that of the model which gives the configuration.
        trust_remote_code: let models that bring their own code run it.
        fingerprints: hash the content of models that no hub commit pins.
        ignore_config: configuration keys that may differ between models.

    Raises:
        ConfigError: `base` or `dtype` is none of those possible.
        PoolError: models are missing, unreadable or do not fit together; names all that is wrong.
    """
    if base is not None and base not in models:
        raise ConfigError(f"pool.base is {base!r}", nearest(base, models), "name one of pool.models")
    if dtype != "auto" and dtype not in DTYPES:
        raise ConfigError(f"pool.dtype is {dtype!r}", nearest(dtype, ("auto", *DTYPES)))
    sources = tuple(name for name in models if name != base)
    if not sources:
        raise PoolError(
            "the pool has no models" if base is None else f"the pool has no model besides its base {base!r}",
            "at least one source model",
            "list models under pool.models as name: folder or hub id",
        )
    reference = base or sources[0]
    problems: list[PoolError] = []
    refs, checkpoints, adapters, configs = _open_all(models, root, trust_remote_code, problems)
    _raise_all(problems)

    modules = {reference: skeleton(configs[reference], trust_remote_code)}
    architecture = type(modules[reference]).__name__
    depths = {name: int(getattr(configs[name].get_text_config(), "num_hidden_layers", 0)) for name in models}
    by_depth = {depths[reference]: modules[reference]}
    matches: dict[str, NameMatch] = {}
    for name in models:
        if name != reference:
            other = compatibility.architecture_problem(name, configs[name], reference, configs[reference])
            if other is not None:
                problems.append(other)
                continue
            if depths[name] not in by_depth:
                by_depth[depths[name]] = skeleton(configs[name], trust_remote_code)
            modules[name] = by_depth[depths[name]]
        matches[name] = match = match_names(modules[name], checkpoints[name].shapes)
        problems += [PoolError(f"model {name!r}: {p[0]}", *p[1:]) for p in name_problems(match, architecture)]
        problems += compatibility.tied_problems(name, checkpoints[name], match)
    _raise_all(problems)
    for name, adapter in adapters.items():
        warn_of_another_base(name, adapter, checkpoints[name], refs[name].location)
        try:
            checkpoints[name] = FoldedCheckpoint(checkpoints[name], adapter, modules[name], matches[name])
        except PoolError as error:
            problems.append(of_model(name, error))
    _raise_all(problems)

    layout = layout_from(modules[reference], matches[reference], checkpoints[reference].shapes)
    layouts = {n: layout if m is modules[reference] else layout.at_depth(depths[n]) for n, m in modules.items()}
    stored: dict[str, Mapping[str, str]] = {}
    for name, match in matches.items():
        try:
            stored[name] = _stored(layouts[name], match, name, reference)
        except PoolError as error:
            problems.append(error)
    _raise_all(problems)
    for name in models:
        problems += _comparison(name, reference, checkpoints, configs, stored, layouts[name], frozenset(ignore_config))
    _raise_all(problems)

    if fingerprints:
        refs = {name: with_fingerprints(ref, checkpoints[name]) for name, ref in refs.items()}
    result = dtype if dtype != "auto" else _dtype_of(configs[reference], checkpoints[reference])
    residual = residual_of(configs[reference], trust_remote_code)
    layout = replace(layout, residual=residual)
    counts = {name: math.prod(shape) for name, shape in layout.shapes.items()}
    tensors = tuple(tuple((name, counts[name]) for name in layout.tensors[slice_]) for slice_ in layout.slices)
    info = PoolInfo(
        tuple(refs.items()),
        sources,
        base,
        layout.slices,
        layout.layers,
        result,  # type: ignore[arg-type]
        depths=tuple((name, own.layers) for name, own in layouts.items() if own.layers != layout.layers),
        unscalable=residual.unscalable,
        unflippable=residual.unflippable,
        immovable=residual.immovable,
        sizes=tuple(sum(count for _, count in own) for own in tensors),
        tensors=tensors,
    )
    return Pool(info, layout, checkpoints, configs[reference], stored, trust_remote_code)


def pool_of_recipe(recipe: Recipe, root: str | Path | None = None, trust_remote_code: bool = False) -> Pool:
    """Open the models of a recipe and check that they are the ones it was made from.

    Raises:
        PoolError: as `open_pool`; also when a model's content is not what the recipe's fingerprint says.
    """
    order = dict(recipe.models)
    # The base gives configuration and tokenizer, so it is the base exactly when slices use it as one.
    entries = [entry for part in (recipe, *recipe.stages.values()) for entry in part.slices]
    is_base = any(s.base and s.base.model == recipe.config_from for s in entries) and len(order) > 1
    names = [recipe.config_from, *(name for name in order if name != recipe.config_from)]
    pool = open_pool(
        {name: order[name] for name in names},
        recipe.config_from if is_base else None,
        root,
        recipe.dtype,
        trust_remote_code,
        fingerprints=False,
    )
    problems = [problem for name, ref in order.items() for problem in changed_since(name, ref, pool.checkpoints[name])]
    _raise_all(problems)
    info = replace(pool.info, refs=tuple((name, order[name]) for name in names))
    return replace(pool, info=info, tokenizer_from=recipe.tokenizer_from)


def _open_all(
    models: Mapping[str, str] | Mapping[str, ModelRef],
    root: str | Path | None,
    trust_remote_code: bool,
    problems: list[PoolError],
) -> tuple[dict[str, ModelRef], dict[str, Checkpoint], dict[str, Adapter], dict[str, Any]]:
    """Resolve and open every model; what fails is added to `problems`."""
    from transformers import AutoConfig

    refs: dict[str, ModelRef] = {}
    checkpoints: dict[str, Checkpoint] = {}
    adapters: dict[str, Adapter] = {}
    configs: dict[str, Any] = {}
    opened: dict[Path, Checkpoint] = {}
    for name, location in models.items():
        try:
            found = locate(location, root)
            folder, refs[name] = found.folder, found.ref
            if folder not in opened:  # adapters often share a base
                opened[folder] = Checkpoint(folder)
            checkpoints[name] = checkpoint = opened[folder]
            if found.adapter is not None:
                adapters[name] = Adapter(found.adapter)
            if "quantization_config" in checkpoint.config:
                raise PoolError("its weights are quantised", "float32, bfloat16 or float16", "dequantise it first")
            try:
                configs[name] = config = AutoConfig.from_pretrained(str(folder), trust_remote_code=trust_remote_code)
                compatibility.check_counts(config, len(checkpoint.tensors))
            except PoolError:
                raise
            except Exception as error:  # configuration classes raise whatever their checks raise
                reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
                if "custom code" in str(error):
                    raise PoolError(
                        f"{folder} brings code of its own",
                        "code that models bring along is not run unasked",
                        "add --trust, or pool.trust_remote_code=true to a search, if you know where it comes from",
                    ) from error
                raise PoolError(f"transformers refuses {folder / 'config.json'} ({reason})") from error
        except PoolError as error:
            problems.append(of_model(name, error))
    return refs, checkpoints, adapters, configs


def _counts(layout: Layout, slice_: SliceId) -> tuple[tuple[str, int], ...]:
    """Names of a slice's tensors with their numbers of parameters."""
    return tuple((name, math.prod(layout.shapes[name])) for name in layout.tensors[slice_])


def _stored(layout: Layout, match: NameMatch, model: str, reference: str) -> dict[str, str]:
    """A model's own tensor names by the layout's names; `PoolError` for a name that it has no tensor for."""
    stored: dict[str, str] = {}
    for join in layout.joins:
        own = match.joins.get(join.place)
        if own is not None and own.patterns == join.patterns:
            stored |= zip(join.names, own.names, strict=True)
    joined = {name for join in layout.joins for name in join.names}
    for name, place in layout.parameters.items():
        if place in match.stored and name not in joined:
            stored[name] = match.stored[place]
    for name, place in layout.parameters.items():
        if name not in stored:
            other = match.stored.get(place) or next(
                iter(match.joins[place].names if place in match.joins else ()), None
            )
            raise PoolError(
                f"model {model!r} has no tensor for {name!r} of {reference!r}"
                + (f", it stores {other!r} in its place" if other else ""),
                "all models of a pool store their weights in the same pieces",
                "load both and save them by save_pretrained(save_original_format=False)" if other else "",
            )
    return stored


def _comparison(
    name: str,
    reference: str,
    checkpoints: Mapping[str, Checkpoint],
    configs: Mapping[str, Any],
    stored: Mapping[str, Mapping[str, str]],
    layout: Layout,
    ignored: frozenset[str],
) -> list[PoolError]:
    """All that keeps a model from being merged with the reference."""
    problems: list[PoolError] = []
    own, wanted = configs[name].get_text_config(), configs[reference].get_text_config()
    sizes = getattr(own, "vocab_size", None), getattr(wanted, "vocab_size", None)
    tensors = list(compatibility.tensor_problems(name, checkpoints[name], stored[name], reference, layout))
    if sizes[0] != sizes[1]:
        problems.append(
            PoolError(
                f"model {name!r} has a vocabulary of {sizes[0]}, {reference!r} of {sizes[1]}",
                "all models of a pool share one vocabulary",
            )
        )
        # Embeddings and head have another shape for that reason; saying so twice does not help.
        embeddings = {n for s, names in layout.tensors.items() if s.component in ("embed", "head") for n in names}
        inner = {k: v for k, v in stored[name].items() if k not in embeddings}
        tensors = list(compatibility.tensor_problems(name, checkpoints[name], inner, reference, layout))
    problems += tensors
    if name != reference:
        problems += compatibility.config_problems(name, configs[name], reference, configs[reference], ignored)
        labels = compatibility.label_problem(name, configs[name], reference, configs[reference])
        problems += [labels] if labels and "id2label" not in ignored else []
        folders = checkpoints[name].folder, checkpoints[reference].folder
        try:
            tokenizer = compatibility.vocabulary_problem(name, folders[0], reference, folders[1])
        except PoolError as error:
            tokenizer = error
        problems += [tokenizer] if tokenizer else []
    return problems


def _dtype_of(config: Any, checkpoint: Checkpoint) -> Dtype:
    """The dtype that a configuration declares, else the one most of the weights are stored in."""
    declared = getattr(config, "dtype", None)
    if declared is None:
        sizes = {
            dtype: sum(info.nbytes for info in checkpoint.tensors.values() if info.dtype == dtype)
            for dtype in FLOAT_DTYPES
        }
        declared = FLOAT_DTYPES[max(sizes, key=lambda dtype: sizes[dtype])]
    name = str(declared).removeprefix("torch.")
    for dtype in DTYPES:
        if dtype == name:
            return dtype
    raise PoolError(
        f"{checkpoint.folder}: config.json has dtype {name}", f"one of {', '.join(DTYPES)}", "set pool.dtype"
    )


def _raise_all(problems: list[PoolError]) -> None:
    """Raise one error for all problems, the first in front."""
    if len(problems) == 1:
        raise problems[0]
    if problems:
        listed = " | ".join(str(problem) for problem in problems[:_MOST_LISTED])
        cut = f" | and {len(problems) - _MOST_LISTED} more" if len(problems) > _MOST_LISTED else ""
        raise PoolError(f"{len(problems)} problems with the pool: {listed}{cut}")
