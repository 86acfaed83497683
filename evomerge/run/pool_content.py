"""A pool as the plain values of a run's ``pool.json``."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, cast

from evomerge.recipes.calibration import CalibrationRef
from evomerge.recipes.dense import read_dense
from evomerge.recipes.heads import Heads
from evomerge.recipes.kept import Kept
from evomerge.recipes.network import network_content, read_network
from evomerge.recipes.pool_info import PoolInfo
from evomerge.recipes.slices import DTYPES, ModelRef, SliceId
from evomerge.recipes.tokenizer_spec import read_tokenizer


def pool_content(info: PoolInfo) -> dict[str, Any]:
    """The models with what pins them, and the slices of their architecture."""
    content: dict[str, Any] = {
        "evomerge_pool": 1,
        "models": {name: asdict(ref) for name, ref in info.refs},
        "sources": list(info.sources),
        "base": info.base,
        "dtype": info.dtype,
        "layers": info.layers,
        "depths": dict(info.depths),
        "slices": [str(entry) for entry in info.slices],
        "unscalable": info.unscalable,
        "unflippable": info.unflippable,
        "immovable": info.immovable,
        "constant": [str(entry) for entry in info.constant],
    }
    if info.tokenizer_from is not None:
        content["tokenizer_from"] = info.tokenizer_from
    if info.tokenizer is not None:
        content["tokenizer"] = info.tokenizer.content()
    if info.heads is not None:
        content["heads"] = asdict(info.heads)
    if info.kept is not None:
        content["kept"] = asdict(info.kept)
    if info.dense is not None:
        content["dense"] = info.dense
    if info.network is not None:
        content["network"] = network_content(info.network)
    if info.blocks:
        content["blocks"] = [list(block) for block in info.blocks]
    if info.calibration is not None:
        content["calibration"] = asdict(info.calibration)
    return content


def pool_info(content: Any) -> PoolInfo:
    """What `pool_content` gave; raises whatever reading malformed values raises."""
    if content["evomerge_pool"] != 1:
        raise ValueError(f"format {content['evomerge_pool']!r}, this version reads 1")
    refs = tuple((name, _model_ref(ref)) for name, ref in content["models"].items())
    names = {name for name, _ in refs}
    sources, base = tuple(content["sources"]), content["base"]
    unknown = {*sources, *([base] if base is not None else [])} - names
    if unknown:
        raise ValueError(f"no model is named {', '.join(sorted(map(str, unknown)))}")
    if content["dtype"] not in DTYPES:
        raise ValueError(f"dtype {content['dtype']!r}")
    slices = tuple(SliceId.parse(text) for text in content["slices"])
    depths = tuple((name, int(depth)) for name, depth in content.get("depths", {}).items())
    return PoolInfo(
        refs,
        cast(tuple[str, ...], sources),
        base,
        slices,
        int(content["layers"]),
        content["dtype"],
        depths,
        unscalable=str(content.get("unscalable", "")),
        unflippable=str(content.get("unflippable", "")),
        immovable=str(content.get("immovable", "")),
        constant=tuple(SliceId.parse(text) for text in content.get("constant", ())),
        calibration=_calibration(content.get("calibration"), names),
        tokenizer_from=content.get("tokenizer_from"),
        tokenizer=None if (own := content.get("tokenizer")) is None else read_tokenizer(own, "tokenizer"),
        heads=_heads(content.get("heads"), names),
        kept=_kept(content.get("kept"), names),
        dense=read_dense(content.get("dense"), "dense"),
        network=read_network(content.get("network"), "network"),
        blocks=tuple((str(name), int(count)) for name, count in content.get("blocks", ())),
    )


def _heads(content: Any, names: set[str]) -> Heads | None:
    if content is None:
        return None
    heads = Heads(tuple(map(str, content["tensors"])), tuple(map(str, content["tasks"])))
    heads.check(names, heads.tasks[0] if heads.tasks else "")
    return heads


def _kept(content: Any, names: set[str]) -> Kept | None:
    if content is None:
        return None
    if content["model"] not in names:
        raise ValueError(f"no model is named {content['model']}")
    return Kept(tuple(map(str, content["tensors"])), str(content["model"]))


def _calibration(content: Any, names: set[str]) -> CalibrationRef | None:
    if content is None:
        return None
    found = tuple((str(model), str(kind), str(key)) for model, kind, key in content["statistics"])
    unknown = {model for model, _, _ in found} - names
    if unknown:
        raise ValueError(f"no model is named {', '.join(sorted(unknown))}")
    return CalibrationRef(found, tuple(str(word) for word in content["made_by"]))


def _model_ref(content: Any) -> ModelRef:
    adapter = content.get("adapter")
    return ModelRef(**{**content, "adapter": None if adapter is None else ModelRef(**adapter)})
