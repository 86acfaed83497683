"""Opens pools of pipelines: one part of each is merged, the others are kept from one of them."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from evomerge.errors import ConfigError, PoolError, nearest
from evomerge.models import compatibility
from evomerge.models.architecture.layout import Layout
from evomerge.models.checkpoints.folding import FoldedRoom
from evomerge.models.checkpoints.headers import read_json
from evomerge.models.checkpoints.pins import with_fingerprints
from evomerge.models.checkpoints.reader import Checkpoint
from evomerge.models.equal_slices import equal_slices
from evomerge.models.pipelines.adapters import FoldedNetwork, NetworkAdapter
from evomerge.models.pipelines.blocks import Blocks, layout_of_network
from evomerge.models.pipelines.checkpoint import NetworkCheckpoint, network_values
from evomerge.models.pipelines.folders import AUTO, INDEX, NETWORKS, PipelineFolder, is_pipeline, read_pipeline
from evomerge.models.pipelines.libraries import pipeline_class, require_diffusers
from evomerge.models.pipelines.network_config import NetworkConfig
from evomerge.models.pipelines.places import locate_adapted, locate_pipeline
from evomerge.models.pipelines.rest import PipelineRest
from evomerge.models.pipelines.single_file import SingleFile
from evomerge.models.pipelines.text_encoders import adapted_text_encoders
from evomerge.models.pool import Pool
from evomerge.models.pool_settings import check_pool_settings, of_model, raise_all
from evomerge.models.sources import main_dtype, warn_of_dtypes
from evomerge.recipes.network import Network
from evomerge.recipes.pool_info import PoolInfo
from evomerge.recipes.slices import DTYPES, ModelRef

_KEPT = 2**30
"""Bytes of tensors with adapters folded in that are kept in memory; the others are computed whenever they are read."""
_SCHEDULER = "scheduler"
_PREDICTS = "prediction_type"
_IMMATERIAL = ("dropout", "upcast_attention", "attention_type", "_class_name")


def open_pipelines(
    models: Mapping[str, str] | Mapping[str, ModelRef],
    base: str | None = None,
    root: str | Path | None = None,
    dtype: str = "auto",
    *,
    network: str = AUTO,
    others: str | None = None,
    fingerprints: bool = True,
    ignore_config: Collection[str] = (),
) -> Pool:
    """Open pipelines that draw images, and check from configurations and headers that their networks can be merged.

    Args:
        models: folders of pipelines as diffusers saves them, single files in the original layout, or hub ids of
            pipelines, by name, the base included; each may be followed by ``+`` and an adapter.
        base: which of `models` is the base that task vectors are taken from.
        root: folder that relative locations are looked up in first.
        dtype: dtype of merged networks; ``auto`` is that of the base, or else the first model.
        network: the part that is merged; ``auto`` is ``transformer`` or ``unet``.
        others: the model whose other parts results take, or a folder or hub id of a pipeline that has them; the base
            or the first model that is a folder for ``None``.
        fingerprints: hash the networks' content, and find the slices that are equal in all.
        ignore_config: configuration keys that may differ between networks.

    Raises:
        ConfigError: `base`, `dtype` or `others` is none of those possible, or diffusers is not installed.
        PoolError: models are missing, unreadable or do not fit together; names all that is wrong.
    """
    sources = check_pool_settings(models, base, dtype, None)
    require_diffusers()
    problems: list[PoolError] = []
    places: dict[str, Path] = {}
    refs: dict[str, ModelRef] = {}
    adapters: dict[str, Path | None] = {}
    for name, location in models.items():
        try:
            places[name], adapters[name], refs[name] = locate_adapted(location, root)
            _require_some_network(places[name], NETWORKS if network == AUTO else (network,))
        except PoolError as error:
            problems.append(of_model(name, error))
    raise_all(problems)
    reference = base or sources[0]
    giver, whose = _giver(others, places, reference, root)
    part = giver.network(network)
    checkpoints: dict[str, Checkpoint] = {}
    configs: dict[str, NetworkConfig] = {}
    pipeline_class(giver.class_name)
    room = FoldedRoom(_KEPT)
    for name, place in places.items():
        try:
            checkpoints[name] = _checkpoint(place, part, giver)
            configs[name] = NetworkConfig(checkpoints[name].config, place)
            adapted = adapters[name]
            if adapted is not None:
                adapter = NetworkAdapter(adapted, part, giver.class_name, checkpoints[name], warn=name != whose)
                checkpoints[name] = FoldedNetwork(checkpoints[name], adapter, room)
            if is_pipeline(place):
                _check_scheduler(name, read_pipeline(place), giver, whose)
        except PoolError as error:
            problems.append(of_model(name, error))
    raise_all(problems)
    config = configs[reference]
    layout, blocks = layout_of_network(config.skeleton())
    config.num_hidden_layers = layout.layers
    config.rest = PipelineRest(giver.folder, part, giver.class_name, whose, adapters.get(whose))
    adapted_text_encoders(config.rest)  # refuses what does not fit
    ignored = {*_IMMATERIAL, *ignore_config}
    if not whose:
        _check_giver(giver, part, reference, config, {*ignored, "sample_size"})
    stored = {name: dict.fromkeys(layout.parameters) for name in models}
    names: dict[str, Mapping[str, str]] = {name: {key: key for key in own} for name, own in stored.items()}
    for name, own in checkpoints.items():
        problems += _config_problems(name, configs[name], reference, config, ignored)
        problems += _name_problems(name, own, layout, config.model_type)
    raise_all(problems)
    for name, own in checkpoints.items():
        problems += compatibility.tensor_problems(name, own, names[name], reference, layout)
    raise_all(problems)
    warn_of_dtypes(checkpoints)
    if fingerprints:
        refs = {name: with_fingerprints(ref, checkpoints[name]) for name, ref in refs.items()}
    result = dtype if dtype != "auto" else _dtype_of(checkpoints[reference])
    info = _info(layout, blocks, refs, sources, base, result, Network(part, whose or str(giver.folder)))
    if fingerprints:
        info = replace(info, constant=equal_slices(layout, checkpoints, names))
    return Pool(info, layout, checkpoints, config, MappingProxyType(names))


def _info(
    layout: Layout,
    blocks: Blocks,
    refs: Mapping[str, ModelRef],
    sources: tuple[str, ...],
    base: str | None,
    dtype: str,
    network: Network,
) -> PoolInfo:
    """What search spaces see."""
    counts = {name: math.prod(shape) for name, shape in layout.shapes.items()}
    tensors = tuple(tuple((name, counts[name]) for name in layout.tensors[slice_]) for slice_ in layout.slices)
    return PoolInfo(
        tuple(refs.items()),
        sources,
        base,
        layout.slices,
        layout.layers,
        dtype,  # type: ignore[arg-type]
        unscalable=layout.fixed,
        unflippable=layout.fixed,
        immovable=layout.fixed,
        sizes=tuple(sum(count for _, count in own) for own in tensors),
        tensors=tensors,
        network=network,
        blocks=blocks.names,
    )


def _giver(
    others: str | None, places: Mapping[str, Path], reference: str, root: str | Path | None
) -> tuple[PipelineFolder, str]:
    """The pipeline whose other parts results take, and the model that it is of; empty where it is of none.

    Raises:
        ConfigError: `others` is a single file, or there are nothing but such.
        PoolError: it is no pipeline.
    """
    if others is None:
        own = [name for name in (reference, *places) if is_pipeline(places[name])]
        if not own:
            raise ConfigError(
                "pool.others is not set, and no model is the folder of a whole pipeline",
                "a folder of a pipeline of their kind: text encoders, autoencoder, scheduler, and configurations",
                "set pool.others to such a folder, or to a hub id",
            )
        others = own[0]
    if others in places:
        place, whose = places[others], others
    else:
        try:
            place, whose = locate_pipeline(others, root)[0], ""
        except PoolError as error:
            raise PoolError(
                f"pool.others is {others!r}: {error.given}", nearest(others, places), "name a model, or a folder"
            ) from error
    if not is_pipeline(place):
        raise ConfigError(
            f"pool.others is {others!r}, which is no folder of a whole pipeline",
            "a folder of a pipeline, as diffusers saves it",
            "set pool.others to such a folder",
        )
    return read_pipeline(place), whose


def _require_some_network(place: Path, parts: Sequence[str]) -> None:
    """Refuse a folder that is neither a pipeline's nor holds a network, such as that of a language model."""
    if place.is_file() or is_pipeline(place) or any((place / part / "config.json").is_file() for part in parts):
        return
    kind = ", but a model of transformers" if (place / "config.json").is_file() else ""
    raise PoolError(
        f"{place} has neither {INDEX} nor a network in {' or '.join(parts)}{kind}",
        "a folder of a pipeline as diffusers saves it, or a single .safetensors file",
        "leave pool.network out for models of transformers" if kind else "",
    )


def _checkpoint(place: Path, part: str, giver: PipelineFolder) -> Checkpoint:
    """The network of one model."""
    if place.is_file():
        values = read_json(giver.folder / part / "config.json", "the network's configuration")
        return SingleFile(place, values)
    if is_pipeline(place):
        read_pipeline(place).network(part)
    elif not (place / part / "config.json").is_file():
        raise PoolError(
            f"{place} has neither {INDEX} nor a network in {part}",
            "a folder of a pipeline as diffusers saves it, or a single .safetensors file",
        )
    return NetworkCheckpoint(place, part)


def _dtype_of(checkpoint: Checkpoint) -> str:
    found = main_dtype(checkpoint)
    if found not in DTYPES:
        raise PoolError(f"{checkpoint.folder} is stored in {found}", f"one of {', '.join(DTYPES)}", "set pool.dtype")
    return found


def _check_scheduler(name: str, own: PipelineFolder, giver: PipelineFolder, whose: str) -> None:
    """Refuse a network that predicts something else than that of the pipeline which gives the scheduler."""
    kinds = []
    for each in (own, giver):
        path = each.folder / _SCHEDULER / "scheduler_config.json"
        content: dict[str, Any] = read_json(path, "how noise is taken away") if path.is_file() else {}
        kinds.append(content.get(_PREDICTS, "epsilon"))
    if kinds[0] != kinds[1]:
        raise PoolError(
            f"it predicts {str(kinds[0])[:40]} ({_PREDICTS} of its scheduler), {whose or giver.folder} "
            f"{str(kinds[1])[:40]}",
            "networks that predict the same",
        )


def _check_giver(
    giver: PipelineFolder, part: str, reference: str, wanted: NetworkConfig, ignored: Collection[str]
) -> None:
    """Refuse other parts of a pipeline whose own network is of another kind than the pool's.

    What its text encoders, autoencoder and scheduler give and take goes with that network alone.
    """
    if not (giver.folder / part / "config.json").is_file():
        return
    own = NetworkConfig(read_json(giver.folder / part / "config.json", "the network's configuration"), giver.folder)
    problems = _config_problems(giver.class_name, own, reference, wanted, ignored)
    if problems:
        raise PoolError(
            f"pool.others is {giver.folder}, a {giver.class_name} around another network: {problems[0].given}",
            f"the other parts of a pipeline whose {part} is as that of {reference!r}",
            "set pool.others to one of the models that is a whole pipeline, or leave it out",
        )


def _config_problems(
    name: str, config: NetworkConfig, reference: str, wanted: NetworkConfig, ignored: Collection[str]
) -> list[PoolError]:
    """Settings that change what a network computes and differ from the reference's."""
    if config.model_type != wanted.model_type:
        return [
            PoolError(
                f"model {name!r} has a {config.model_type}, {reference!r} a {wanted.model_type}",
                "all models of a pool share one architecture",
            )
        ]
    own, other = network_values(config.values), network_values(wanted.values)
    return [
        PoolError(
            f"model {name!r} has {key} {str(own.get(key))[:80]} in its network's config.json, {reference!r} has "
            f"{str(other.get(key))[:80]}",
            "networks that compute differently from the same weights cannot be merged",
        )
        for key in sorted(own.keys() & other.keys())  # what only one says is a default of a version
        if own[key] != other[key] and key not in ignored
    ]


def _name_problems(name: str, own: Checkpoint, layout: Layout, architecture: str) -> list[PoolError]:
    """Tensors that lack, and those for which there is no place."""
    missing = [tensor for tensor in layout.parameters if tensor not in own.tensors]
    strange = [tensor for tensor in own.tensors if tensor not in layout.parameters]
    found = []
    for tensors, what, does in ((missing, "lacks", "needs"), (strange, "has an unexpected", "has no place for")):
        if tensors:
            more = f" and {len(tensors) - 1} more" if len(tensors) > 1 else ""
            found.append(
                PoolError(f"model {name!r}: it {what} tensor {tensors[0]!r}{more}", f"{architecture} {does} it")
            )
    return found
