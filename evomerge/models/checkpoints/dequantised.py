"""Quantised sources read as plain weights: by transformers, once, into a folder of the cache.

What quantising lost stays lost: differences from a base hold its rounding, and the model that a file was made from is
the better source. GGUF files are read in float32, which holds every quantised number exactly.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from evomerge.errors import EvomergeWarning, PoolError, reason_of
from evomerge.models.architecture.layout import model_class
from evomerge.models.checkpoints.headers import read_json
from evomerge.models.checkpoints.side_files import INPUTS, matching
from evomerge.models.progress_bars import no_progress_bar
from evomerge.utils.cache_folder import cache_root, made_once
from evomerge.utils.sizes import size_text

SUFFIX = ".gguf"
_KEY = "quantization_config"
_BACK = ("bitsandbytes", "higgs")
"""Methods whose models transformers turns back once they are loaded."""
_WHILE_LOADING = ("fp8", "mxfp4", "compressed-tensors", "metal")
"""Methods whose weights transformers reads as plain numbers where the configuration says ``dequantize``."""
_CARDS = ("README.md", "LICENSE*", "generation_config.json")


def plain_folder(place: Path, trust_remote_code: bool = False) -> Path:
    """The folder of a model's plain weights: its own, or one in the cache where it is quantised, which is warned of.

    Args:
        place: the model's folder, or a GGUF file.
        trust_remote_code: let a model that brings its own code run it.

    Raises:
        PoolError: transformers cannot undo the quantisation, or a package for it is missing.
    """
    file = _gguf_file(place)
    if file is not None:
        return _made(file, [file], "a GGUF file", lambda out: _from_gguf(file, out))
    config = place / "config.json"
    if not config.is_file():
        return place
    settings = read_json(config, "the model's configuration").get(_KEY)
    if settings is None:
        return place
    method = settings.get("quant_method") if isinstance(settings, dict) else None
    if method not in (*_BACK, *_WHILE_LOADING):
        raise PoolError(
            f"its weights are quantised ({_shown(method)}), and transformers has no way back from that",
            f"float32, bfloat16 or float16; GGUF, {', '.join((*_BACK, *_WHILE_LOADING))} are dequantised",
            "name the model that it was quantised from",
        )
    files = [config, *sorted(place.glob("*.safetensors"))]
    return _made(
        place, files, f"quantised ({method})", lambda out: _from_quantised(place, method, trust_remote_code, out)
    )


def _gguf_file(place: Path) -> Path | None:
    """The GGUF file that a place is, or holds in the place of safetensors; ``None`` for another model."""
    if place.is_file():
        return place
    files = sorted(place.glob(f"*{SUFFIX}"))
    if not files or any(place.glob("*.safetensors")):
        return None
    if len(files) > 1:
        raise PoolError(
            f"{place} holds {len(files)} GGUF files",
            f"one of them: {', '.join(file.name for file in files[:5])}",
            f"name it: {files[0]}",
        )
    return files[0]


def _made(place: Path, files: list[Path], what: str, make: Callable[[Path], None]) -> Path:
    """The folder in the cache that is made of some files, as they are now."""
    from transformers import __version__

    found = hashlib.sha256(f"dequantised 1 {__version__}".encode())
    for file in files:
        stat = file.stat()
        found.update(f"\n{file.resolve()} {stat.st_size} {stat.st_mtime_ns}".encode())
    folder = cache_root("dequantised") / f"{place.stem[:60]}-{found.hexdigest()[:16]}"
    again = folder.is_dir()

    def fill(out: Path) -> None:
        make(out)
        beside = place if place.is_dir() else place.parent
        for own in matching(beside, _CARDS):
            if own.is_file() and not (out / own.name).exists():
                shutil.copyfile(own, out / own.name)

    with no_progress_bar():
        made_once(folder, fill)
    size = size_text(sum(file.stat().st_size for file in folder.iterdir()))
    warnings.warn(
        f"{place} is {what}: merging takes its weights with the rounding of quantising, "
        f"{'dequantised before' if again else 'dequantised now'} into {folder} ({size})",
        EvomergeWarning,
        stacklevel=2,
    )
    return folder


def _from_gguf(file: Path, out: Path) -> None:
    """Write the model of a GGUF file, with its tokenizer, in float32."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if importlib.util.find_spec("gguf") is None:
        raise PoolError(f"{file} is read with the package gguf, which is not installed", "", "pip install gguf")
    options: Any = {"gguf_file": file.name}
    try:
        model = AutoModelForCausalLM.from_pretrained(str(file.parent), dtype=torch.float32, **options)
        _save(model, out)
        AutoTokenizer.from_pretrained(str(file.parent), **options).save_pretrained(str(out))
    except Exception as error:  # transformers raises whatever reading the file raises
        raise PoolError(
            f"transformers cannot read {file} ({reason_of(error)})",
            "a GGUF file of an architecture that transformers reads",
            "name the model that it was made from",
        ) from error


def _from_quantised(folder: Path, method: str, trust_remote_code: bool, out: Path) -> None:
    """Write a quantised model as plain weights, in the dtype that it computes in."""
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(str(folder), trust_remote_code=trust_remote_code)
        if method in _WHILE_LOADING:
            settings = config.quantization_config
            config.quantization_config = {**(settings if isinstance(settings, dict) else settings.to_dict())}
            config.quantization_config["dequantize"] = True
        cls = model_class(config, trust_remote_code)
        model = cls.from_pretrained(str(folder), config=config, trust_remote_code=trust_remote_code, dtype="auto")
        if method in _BACK:
            model = model.dequantize()
        _save(model, out)
    except Exception as error:  # quantisers raise whatever their packages raise
        raise PoolError(
            f"transformers cannot undo the quantisation of {folder} ({reason_of(error)})",
            f"a model of {method} whose package is installed, on a device that it computes on",
            "name the model that it was quantised from",
        ) from error
    for own in matching(folder, INPUTS):
        if own.is_file():
            shutil.copyfile(own, out / own.name)


def _save(model: Any, out: Path) -> None:
    """Write a model as one that was never quantised."""
    model.hf_quantizer = None
    model._weight_conversions = None  # those of loading quantise again
    if hasattr(model.config, _KEY):
        delattr(model.config, _KEY)
    model.save_pretrained(str(out))
    path = out / "config.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    if content.pop(_KEY, None) is not None:
        path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _shown(method: object) -> str:
    text = str(method)
    return text if text.isprintable() and len(text) < 40 else repr(text[:40])
