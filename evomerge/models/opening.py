"""Opens pools: reads configurations and headers, checks that the models fit together."""

from __future__ import annotations

import math
import warnings
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from evomerge.errors import ConfigError, EvomergeError, EvomergeWarning, PoolError, reason_of
from evomerge.models import compatibility
from evomerge.models.architecture.config_fields import check_generation
from evomerge.models.architecture.layout import layout_from
from evomerge.models.architecture.residual_rules import residual_of
from evomerge.models.checkpoints.folded_peft import FoldedPeft, warn_of_another_base
from evomerge.models.checkpoints.folding import FoldedRoom
from evomerge.models.checkpoints.pins import changed_since, with_fingerprints
from evomerge.models.comparing import comparison
from evomerge.models.dense import SAME, settle_dense
from evomerge.models.equal_slices import equal_slices
from evomerge.models.heads import AUTO, Setting, config_giver, find_heads, headed_of, stored_heads
from evomerge.models.keeping import find_kept, kept_names
from evomerge.models.pool import Pool
from evomerge.models.pool_settings import (
    check_heads,
    check_kept,
    check_pool_settings,
    of_model,
    raise_all,
    tokenizer_spec,
)
from evomerge.models.sources import Opened, dtype_of, open_sources, warn_of_dtypes
from evomerge.models.statistics import ModelStatistics, default_folder
from evomerge.models.tokenizer_files import check_files
from evomerge.models.tokenizers import check_tokenizer
from evomerge.models.tying import match_models, stored_names
from evomerge.models.vocabularies.aligning import aligned, axes_in, rows_problem, with_rows
from evomerge.models.vocabularies.choosing import choose_vocabulary, giver_of
from evomerge.recipes.calibration import CalibrationRef
from evomerge.recipes.heads import Heads
from evomerge.recipes.kept import Kept, opening_settings
from evomerge.recipes.pool_info import PoolInfo
from evomerge.recipes.recipe import Recipe
from evomerge.recipes.slices import ModelRef
from evomerge.recipes.tokenizer_spec import TokenizerSpec
from evomerge.utils.memory import free_host_memory


def open_pool(
    models: Mapping[str, str] | Mapping[str, ModelRef],
    base: str | None = None,
    root: str | Path | None = None,
    dtype: str = "auto",
    trust_remote_code: bool = False,
    fingerprints: bool = True,
    ignore_config: Collection[str] = (),
    tokenizer_from: str | None = None,
    tokenizer: TokenizerSpec | str | Mapping[str, Any] | None = None,
    heads: Setting = AUTO,
    tasks: Collection[str] | None = None,
    kept: Setting = AUTO,
    kept_from: str | None = None,
    dense: str = SAME,
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
        fingerprints: hash the content of models that no hub commit pins, and find the slices that are equal in all.
        ignore_config: configuration keys that may differ between models.
        tokenizer_from: the model whose tokenizer the results take; tokenizers may then differ, which is warned of.
        tokenizer: the vocabulary that all models are brought to (see `recipes.tokenizer_spec`); by default, the ids
            that they agree on, where they do and need it.
        heads: tensors that sources carry on their own, which may differ in shape: found from labels, shapes and names
            (``auto``), patterns of names, or ``None``: all are merged. A base may then be of another task's class.
        tasks: the sources that have such a head; all by default.
        kept: tensors that results have from one model as they are: of models that see all but the language model and
            the projector (``auto``), patterns of names, or ``None``: all are merged.
        kept_from: that model; by default the base, or else the first source, that sees.
        dense: what becomes of sentence-transformers' dense layers that differ, see `models.dense`; by default, models
            that differ in them are refused.

    Raises:
        ConfigError: `base`, `dtype`, `tokenizer_from`, `tokenizer`, `heads`, `kept` or `kept_from` is none of those
            possible.
        PoolError: models are missing, unreadable or do not fit together; names all that is wrong.
    """
    sources = check_pool_settings(models, base, dtype, tokenizer_from, tokenizer)
    spec = tokenizer_spec(tokenizer, base, models)
    check_heads(heads)
    check_kept(kept, kept_from, models)
    problems: list[PoolError] = []
    opened = open_sources(models, root, trust_remote_code, problems)
    raise_all(problems)
    try:
        own = find_heads(heads, headed_of(tasks, sources), opened.configs, opened.checkpoints, trust_remote_code)
        whole = find_kept(kept, kept_from, base, sources, opened.configs, opened.checkpoints, trust_remote_code)
        if own is not None and whole is not None:
            raise ConfigError(
                f"the pool has heads of their own ({own.tensors[0]}) and keeps {whole.tensors[0]} of {whole.model!r}",
                "one of the two",
                "set pool.heads=null or pool.kept=null",
            )
        how = trust_remote_code, fingerprints, ignore_config, tokenizer_from, spec, own, whole
        layers = settle_dense(dense, config_giver(own, base, sources), opened.checkpoints, opened.configs)
        found = _fitted(opened, sources, base, dtype, *how)
        return found if layers is None else replace(found, info=replace(found.info, dense=layers))
    except EvomergeError:
        raise
    except Exception as error:  # a configuration that transformers takes may still hold anything
        raise PoolError(
            f"the configurations of {', '.join(models)} cannot be compared ({reason_of(error)})",
            "",
            "check each config.json, or download it again",
        ) from error


def _other_widths(configs: Mapping[str, Any], reference: str, ignored: frozenset[str]) -> list[PoolError]:
    """What configurations of one kind say otherwise than the reference's, where shapes of tensors follow from it."""
    wanted = configs[reference]
    alike = {name: own for name, own in configs.items() if own.model_type == wanted.model_type and name != reference}
    found = (compatibility.config_problems(name, own, reference, wanted, ignored) for name, own in alike.items())
    return [problem for each in found for problem in compatibility.of_widths(each)]


def _fitted(
    opened: Opened,
    sources: tuple[str, ...],
    base: str | None,
    dtype: str,
    trust_remote_code: bool,
    fingerprints: bool,
    ignore_config: Collection[str],
    tokenizer_from: str | None,
    spec: TokenizerSpec | None,
    heads: Heads | None,
    kept: Kept | None,
) -> Pool:
    """The pool of models that have been opened, once they fit together."""
    problems: list[PoolError] = []
    reference = config_giver(heads, base, sources) if kept is None else kept.model
    refs, checkpoints, adapters = opened.refs, opened.checkpoints, opened.adapters
    matched = match_models(reference, opened.configs, checkpoints, adapters, trust_remote_code, problems, heads, kept)
    if problems and kept is None:  # what config.json says is mostly the reason
        raise_all(_other_widths(opened.configs, reference, frozenset(ignore_config)))
    raise_all(problems)
    configs, modules, matches = matched.configs, matched.modules, matched.matches
    # However many adapters there are: what is not kept is folded for every candidate.
    room = FoldedRoom(max(free_host_memory() // 4, *(own.nbytes for own in checkpoints.values())))
    for name, adapter in adapters.items():
        warn_of_another_base(name, adapter, checkpoints[name], refs[name].location)
        try:
            checkpoints[name] = FoldedPeft(checkpoints[name], adapter, *matched.own[name], room)
        except PoolError as error:
            problems.append(of_model(name, error))
    raise_all(problems)

    assert matched.names is not None
    depths = {name: int(compatibility.depth_of(config) or 0) for name, config in configs.items()}
    layout = layout_from(modules[reference], matched.names, checkpoints[reference].shapes)
    carried, whole = None, dict[str, str]()
    if kept is not None:
        whole = kept_names(kept, layout, matched.names)
        layout = layout.without(whole)
    if heads is not None:
        layout = layout.without(heads.tensors)
        carried = stored_heads(heads, configs, matches, checkpoints, matched.names, trust_remote_code, problems)
        raise_all(problems)
    layouts = {n: layout if m is modules[reference] else layout.at_depth(depths[n]) for n, m in modules.items()}
    stored: dict[str, Mapping[str, str]] = {}
    for name, match in matches.items():
        try:
            stored[name] = stored_names(layouts[name], match, name, reference)
        except PoolError as error:
            problems.append(error)
    raise_all(problems)
    for name, own in checkpoints.items():  # before they are compared: what is damaged is said once
        try:
            check_files(own.folder)
        except PoolError as error:
            problems.append(of_model(name, error))
    raise_all(problems)
    folders = {name: own.folder for name, own in checkpoints.items()}
    vocabulary = choose_vocabulary(spec, reference, tokenizer_from, configs, folders, trust_remote_code)
    axes = axes_in(layout, configs[reference], trust_remote_code) if vocabulary is not None else {}
    ignored = frozenset(ignore_config) | ({"id2label"} if heads is not None else set())
    for name, config in configs.items():
        its = layouts[name]
        if vocabulary is not None:
            own_rows = config.get_text_config().vocab_size
            damage = rows_problem(name, checkpoints[name], stored[name], axes, own_rows)
            if damage is not None:
                problems.append(damage)
                continue
            its = with_rows(its, axes, own_rows)
        problems += comparison(
            name, reference, checkpoints, configs, stored, its, ignored, tokenizer_from, vocabulary, kept
        )
    giver = vocabulary.giver if vocabulary is not None else giver_of(spec, reference, tokenizer_from)
    tokenizer_from = giver if vocabulary is None and giver != reference else tokenizer_from
    rows = vocabulary.rows.count if vocabulary else getattr(configs[giver].get_text_config(), "vocab_size", None)
    inputs = vocabulary.folder if vocabulary is not None else folders[giver]
    for name, check in (
        (reference, lambda: check_generation(checkpoints[reference].folder)),
        (giver, lambda: check_tokenizer(giver, inputs, rows, trust_remote_code)),
    ):
        try:
            check()
        except PoolError as error:
            problems.append(of_model(name, error) if name else error)
    raise_all(problems)
    warn_of_dtypes(checkpoints)
    if vocabulary is not None and vocabulary.note:
        warnings.warn(vocabulary.note, EvomergeWarning, stacklevel=3)

    if fingerprints:
        refs = {name: with_fingerprints(ref, checkpoints[name]) for name, ref in refs.items()}
    result = dtype if dtype != "auto" else dtype_of(configs[reference], checkpoints[reference])
    config = configs[reference]
    if vocabulary is not None:
        checkpoints, stored = aligned(vocabulary, axes, checkpoints, stored, room)
        layout, config = with_rows(layout, axes, vocabulary.rows.count), vocabulary.config(config)
        tokenizer_from = None
    residual = residual_of(config, trust_remote_code)
    layout = replace(layout, residual=residual)
    counts = {name: math.prod(shape) for name, shape in layout.shapes.items()}
    even = all(own.layers == layout.layers for own in layouts.values())
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
        tokenizer_from=tokenizer_from,
        constant=equal_slices(layout, checkpoints, stored) if fingerprints and even else (),
        tokenizer=vocabulary.spec if vocabulary is not None else None,
        heads=heads,
        kept=kept,
    )
    more: dict[str, Any] = {"vocabulary": vocabulary, "heads": carried, "kept": whole}
    return Pool(info, layout, checkpoints, config, stored, trust_remote_code, tokenizer_from, matched.tied, **more)


def pool_of_recipe(recipe: Recipe, root: str | Path | None = None, trust_remote_code: bool = False) -> Pool:
    """Open the models of a recipe and check that they are the ones it was made from.

    Raises:
        PoolError: as `open_pool`; also when a model's content is not what the recipe's fingerprint says.
    """
    if recipe.network is not None:
        from evomerge.models.pipelines.of_recipe import pipelines_of_recipe

        return pipelines_of_recipe(recipe, root)
    order = dict(recipe.models)
    # The base gives configuration and tokenizer, so it is the base exactly when slices use it as one.
    entries = [entry for part in (recipe, *recipe.stages.values()) for entry in part.slices]
    bases = [s.base.model for s in entries if s.base]
    base = recipe.config_from if recipe.config_from in bases and len(order) > 1 else None
    heads = recipe.heads
    if heads is not None:  # whose base has none
        base = next((name for name in bases if name in order and name not in heads.tasks), None)
    elif recipe.kept and base is None:  # a plain language model
        base = next((name for name in bases if name in order), None)
    names = [recipe.config_from, *(name for name in order if name != recipe.config_from)]
    pool = open_pool(
        {name: order[name] for name in names},
        base,
        root,
        recipe.dtype,
        trust_remote_code,
        fingerprints=False,
        tokenizer_from=recipe.tokenizer_from,
        tokenizer=recipe.tokenizer,
        heads=list(heads.tensors) if heads is not None else None,
        tasks=heads.tasks if heads is not None else None,
        **opening_settings(Kept(recipe.kept, recipe.config_from) if recipe.kept else None),
        dense=recipe.dense or SAME,
    )
    problems = [problem for name, ref in order.items() for problem in changed_since(name, ref, pool.checkpoints[name])]
    raise_all(problems)
    info = replace(pool.info, refs=tuple((name, order[name]) for name in names))
    return with_statistics(replace(pool, info=info), recipe.calibration)


def with_statistics(pool: Pool, ref: CalibrationRef | None, folder: str | Path | None = None) -> Pool:
    """The pool with statistics of data, which are read once a method asks for them.

    Args:
        pool: the source models.
        ref: names the statistics; ``None`` for none.
        folder: where they lie; `statistics.default_folder` by default.
    """
    root = Path(folder) if folder is not None else default_folder()
    every = ref.statistics if ref is not None else ()
    known = {(model, kind): ModelStatistics(root, kind, key) for model, kind, key in every}
    return replace(pool, info=replace(pool.info, calibration=ref), statistics=known)
