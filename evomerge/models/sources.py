"""The models of a pool opened one by one: located, their headers read, their configurations understood."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from evomerge.errors import EvomergeWarning, PoolError, reason_of
from evomerge.models import compatibility
from evomerge.models.architecture.config_fields import check_fields
from evomerge.models.architecture.own_head import OWN_HEAD, says_untied
from evomerge.models.checkpoints.adapter import Adapter
from evomerge.models.checkpoints.dequantised import plain_folder
from evomerge.models.checkpoints.headers import FLOAT_DTYPES
from evomerge.models.checkpoints.location import locate
from evomerge.models.checkpoints.reader import Checkpoint
from evomerge.models.checkpoints.side_files import check_side_files
from evomerge.models.pool_settings import of_model
from evomerge.recipes.slices import DTYPES, Dtype, ModelRef


@dataclass
class Opened:
    """The models of a pool by name, as they are found; none is compared with another.

    Attributes:
        refs: where they come from.
        checkpoints: their files.
        adapters: the adapters that are folded into some of them.
        configs: their transformers configurations.
    """

    refs: dict[str, ModelRef] = field(default_factory=dict)
    checkpoints: dict[str, Checkpoint] = field(default_factory=dict)
    adapters: dict[str, Adapter] = field(default_factory=dict)
    configs: dict[str, Any] = field(default_factory=dict)


def open_sources(
    models: Mapping[str, str] | Mapping[str, ModelRef],
    root: str | Path | None,
    trust_remote_code: bool,
    problems: list[PoolError],
) -> Opened:
    """Locate and open every model; what fails is added to `problems`."""
    found = Opened()
    by_folder: dict[Path, Checkpoint] = {}
    for name, location in models.items():
        try:
            place = locate(location, root)
            folder, found.refs[name] = place.folder, place.ref
            if folder not in by_folder:  # adapters often share a base
                if (folder / "model_index.json").is_file() and not (folder / "config.json").is_file():
                    raise PoolError(
                        f"{folder} holds a pipeline that draws images",
                        "one part of it is merged",
                        "set pool.network=auto, or name the part",
                    )
                if folder.is_dir():
                    check_side_files(folder)
                by_folder[folder] = Checkpoint(plain_folder(folder, trust_remote_code))
            found.checkpoints[name] = checkpoint = by_folder[folder]
            if place.adapter is not None:
                found.adapters[name] = Adapter(place.adapter)
            found.configs[name] = _config(checkpoint, trust_remote_code)
        except PoolError as error:
            problems.append(of_model(name, error))
    return found


def _config(checkpoint: Checkpoint, trust_remote_code: bool) -> Any:
    """The transformers configuration of a checkpoint.

    Raises:
        PoolError: config.json holds what no model has, or transformers refuses it.
    """
    from transformers import CONFIG_MAPPING, AutoConfig

    path = checkpoint.folder / "config.json"
    check_fields(checkpoint.config, path)
    try:
        config = AutoConfig.from_pretrained(str(checkpoint.folder), trust_remote_code=trust_remote_code)
    except Exception as error:  # configuration classes raise whatever their checks raise
        if "custom code" in str(error):
            raise PoolError(
                f"{checkpoint.folder} brings code of its own",
                "code that models bring along is not run unasked",
                "add --trust, or pool.trust_remote_code=true to a search, if you know where it comes from",
            ) from error
        kind = checkpoint.config.get("model_type")
        if kind in CONFIG_MAPPING:
            do = "correct it, or download it again"
        else:
            do = "upgrade transformers, or set pool.trust_remote_code if the model brings its own code"
        raise PoolError(f"transformers refuses {path} ({reason_of(error)})", "", do) from error
    if says_untied(config, checkpoint.config) and "lm_head.weight" in checkpoint.tensors:
        setattr(config, OWN_HEAD, True)
    try:
        compatibility.check_counts(config, len(checkpoint.tensors))
        config.get_text_config().to_dict()
    except PoolError:
        raise
    except Exception as error:
        raise PoolError(f"{path} makes no configuration ({reason_of(error)})", "", "download it again") from error
    return config


def dtype_of(config: Any, checkpoint: Checkpoint) -> Dtype:
    """The dtype that a configuration declares, else the one most of the weights are stored in."""
    declared = getattr(config, "dtype", None)
    name = main_dtype(checkpoint) if declared is None else str(declared).removeprefix("torch.")
    for dtype in DTYPES:
        if dtype == name:
            return dtype
    raise PoolError(
        f"{checkpoint.folder}: config.json has dtype {name}", f"one of {', '.join(DTYPES)}", "set pool.dtype"
    )


def main_dtype(checkpoint: Checkpoint) -> str:
    """The float dtype that most of a checkpoint's weights are stored in, as torch names it."""
    sizes = dict.fromkeys(FLOAT_DTYPES, 0)
    for info in checkpoint.tensors.values():
        if info.dtype in sizes:
            sizes[info.dtype] += info.nbytes
    return str(FLOAT_DTYPES[max(sizes, key=lambda dtype: sizes[dtype])]).removeprefix("torch.")


def warn_of_dtypes(checkpoints: Mapping[str, Checkpoint]) -> None:
    """Warn where models are stored in different dtypes: differences below the coarser one's steps are its rounding."""
    dtypes = {name: main_dtype(checkpoint) for name, checkpoint in checkpoints.items()}
    if len(set(dtypes.values())) > 1:
        listed = ", ".join(f"{name} in {dtype}" for name, dtype in dtypes.items())
        warnings.warn(
            f"the models of the pool are stored in different dtypes ({listed}): what they differ by holds rounding, "
            f"and pool.dtype decides what the results are stored in",
            EvomergeWarning,
            stacklevel=2,
        )
