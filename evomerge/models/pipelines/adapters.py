"""Adapters of networks that draw images: LoRA as diffusers, PEFT and Kohya's scripts have it, LyCORIS's LoHa and LoKr.

What a file calls its modules is brought to the network's names. What belongs to text encoders is an adapter of its own:
results have those of one pipeline, and only what is for these counts.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from evomerge.errors import EvomergeWarning, PoolError, nearest
from evomerge.models.checkpoints.adapter import for_module, pattern_values
from evomerge.models.checkpoints.folding import FoldedCheckpoint, FoldedRoom
from evomerge.models.checkpoints.headers import read_header, read_json
from evomerge.models.checkpoints.reader import Checkpoint, TensorFiles
from evomerge.models.pipelines.adapter_parts import Delta, delta_of
from evomerge.models.pipelines.libraries import pipeline_class, quiet
from evomerge.models.pipelines.original_names import PREFIX, original_names

_PEFT = "adapter_config.json"
_FILES = ("adapter_model.safetensors", "pytorch_lora_weights.safetensors")
_PEFT_PREFIX = "base_model.model."
_FLAT = ("lora_unet_", "lycoris_", "lora_transformer_")
_FLAT_TEXTS = "lora_te"
_FLAT_OF_TEXTS = {
    "text_encoder": ("lora_te_", "lora_te1_"),
    "text_encoder_2": ("lora_te2_",),
    "text_encoder_3": ("lora_te3_",),
}
TEXT_ENCODER = "text_encoder"
_TEXTS = (_FLAT_TEXTS, TEXT_ENCODER)
_WRAPPED = "text_model."
"""What CLIP's files may have before the names of modules, and adapters of them."""
_METADATA = "lora_adapter_metadata"
_KINDS = ("LORA", "LOHA", "LOKR")
_PATTERNS = ("rank_pattern", "alpha_pattern")


class NetworkAdapter(TensorFiles):
    """An adapter's file and what it adds to each tensor of a network.

    Args:
        place: the file, or a folder with one.
        network: the part of the pipeline that it is for. Of a text encoder there may be nothing in it.
        pipeline: the pipeline's class.
        base: the network.
        warn: say so where there is something for text encoders, and `network` is none.

    Raises:
        PoolError: there is no such file, it is of a kind that cannot be folded, or does not fit the network.
    """

    _kind = "adapter"

    def __init__(self, place: Path, network: str, pipeline: str, base: Checkpoint, *, warn: bool = True) -> None:
        texts = network.startswith(TEXT_ENCODER)
        self.file = place if place.is_file() else _file_in(place)
        config = read_json(place / _PEFT, "the adapter's settings") if (place / _PEFT).is_file() else {}
        super().__init__(self.file.parent, config, read_header(self.file))
        dora = next((name for name in self.tensors if "dora_scale" in name or "magnitude_vector" in name), None)
        if dora is not None:
            raise PoolError(
                f"{self.file} has {dora!r}: DoRA also scales the columns of the merged weight",
                "LoRA, LoHa or LoKr",
                "fuse it into the network first",
            )
        found: dict[str, dict[str, torch.Tensor]] = {}
        left_out = 0
        parts_of = self._parts_of_texts if texts else self._parts
        for name, module, part in parts_of(network, pipeline, base):
            if module is None:
                left_out += 1
                continue
            found.setdefault(module, {})[part] = self.read(name) if name in self.tensors else self._converted[name]
        if left_out and warn and not texts:
            warnings.warn(
                f"{left_out} tensors of {self.file} are of text encoders, and those of results are another model's "
                "(pool.others): they are left out",
                EvomergeWarning,
                stacklevel=2,
            )
        if not found and not texts:
            raise PoolError(f"{self.file} holds nothing for the {network}", "an adapter of the part that is merged")
        self.deltas: dict[str, Delta] = {}
        settings = self._settings_of(network)
        for module, parts in found.items():
            target = f"{module}.weight"
            info = base.tensors.get(target)
            if info is None:
                raise PoolError(
                    f"{self.file} changes {module!r}, which the {network} lacks", nearest(target, base.tensors)
                )
            self.deltas[target] = delta_of(self.file, module, parts, self._scale(settings, module), info.shape)

    def fingerprint(self) -> str:
        """``sha256:...`` over the tensors and how much each counts, which may stand in the file's metadata."""
        scales = json.dumps({name: own.scale for name, own in sorted(self.deltas.items())})
        return f"sha256:{hashlib.sha256(f'{super().fingerprint()} {scales}'.encode()).hexdigest()}"

    def _parts(self, network: str, pipeline: str, base: Checkpoint) -> Iterator[tuple[str, str | None, str]]:
        """By tensor of the file, or of what diffusers makes of it: its name, its module in the network, its part."""
        names = list(self.tensors)
        self._converted: dict[str, torch.Tensor] = {}
        if self.config:
            kind = self.config.get("peft_type")
            if kind not in _KINDS:
                raise PoolError(f"{self.folder / _PEFT}: the adapter is of type {kind}", ", ".join(_KINDS))
            for name in names:
                yield name, *_split(name.removeprefix(_PEFT_PREFIX))
            return
        modules = _flat_modules(base)
        flats = {name: _flat(name) for name in names if not name.startswith(_TEXTS)}
        if all(name.startswith(_FLAT) for name in flats) and (not flats or modules.keys() & flats.values()):
            for name in names:
                if name.startswith(_TEXTS):
                    yield name, None, ""
                    continue
                flat, part = flats[name], name.partition(".")[2]
                if flat not in modules:
                    raise PoolError(f"{self.file} changes {flat!r}, which the {network} lacks", nearest(flat, modules))
                yield name, modules[flat], part
            return
        yield from self._through_diffusers(network, pipeline)

    def _parts_of_texts(self, network: str, pipeline: str, base: Checkpoint) -> Iterator[tuple[str, str | None, str]]:
        """As `_parts`, of a text encoder."""
        self._converted = {}
        if self.config or not any(name.startswith(_TEXTS) for name in self.tensors):
            return  # PEFT's folders are of one network
        weights = [name.removesuffix(".weight") for name in base.tensors if name.endswith(".weight")]
        modules = {name.removeprefix(_WRAPPED): name for name in weights}
        if all(name.startswith((*_FLAT, _FLAT_TEXTS)) for name in self.tensors):
            flats = {name.replace(".", "_"): module for name, module in modules.items()}
            for name in self.tensors:
                before = next((own for own in _FLAT_OF_TEXTS.get(network, ()) if name.startswith(own)), None)
                if before is not None:
                    flat, _, part = name.removeprefix(before).partition(".")
                    flat = flat.removeprefix(_WRAPPED.replace(".", "_"))
                    yield name, flats.get(flat, flat), part
            return
        from diffusers.utils import convert_state_dict_to_diffusers, convert_state_dict_to_peft

        content, alphas = self._read_by_diffusers(pipeline)
        before = f"{network}."
        own = {name.removeprefix(before): each for name, each in content.items() if name.startswith(before)}
        with quiet():
            self._converted = convert_state_dict_to_peft(convert_state_dict_to_diffusers(own)) if own else {}
        self._converted |= {name.removeprefix(before): each for name, each in alphas.items() if name.startswith(before)}
        for name in self._converted:
            module, part = _split(name)
            yield name, modules.get(str(module).removeprefix(_WRAPPED), module), part

    def _read_by_diffusers(self, pipeline: str) -> tuple[Mapping[str, torch.Tensor], dict[str, torch.Tensor]]:
        """The file in the form that diffusers gives it, and what it says of alphas."""
        owner = pipeline_class(pipeline)
        if not hasattr(owner, "lora_state_dict"):
            raise PoolError(
                f"{self.file} is an adapter, and {pipeline} loads none", "", "fuse it into the network first"
            )
        tensors = {name: self.read(name) for name in self.tensors}
        unet = "unet" in owner._lora_loadable_modules
        try:
            with quiet():
                found = owner.lora_state_dict(tensors, **({} if unet else {"return_alphas": True}))
        except (ValueError, KeyError, RuntimeError, AttributeError) as error:
            raise PoolError(f"{self.file} is no adapter that diffusers reads ({str(error)[:200]})") from error
        content, alphas = found if isinstance(found, tuple) else (found, None)
        return content, {name: torch.tensor(float(own)) for name, own in (alphas or {}).items()}

    def _through_diffusers(self, network: str, pipeline: str) -> Iterator[tuple[str, str | None, str]]:
        """Parts of a file in any other form that diffusers reads."""
        from diffusers.utils import convert_unet_state_dict_to_peft

        content, alphas = self._read_by_diffusers(pipeline)
        try:
            with quiet():
                content = convert_unet_state_dict_to_peft(content) if network == "unet" else content
        except (ValueError, KeyError, RuntimeError, AttributeError) as error:
            raise PoolError(f"{self.file} is no adapter that diffusers reads ({str(error)[:200]})") from error
        self._converted = {**content, **alphas}
        for name in self._converted:
            if name.startswith(_TEXTS):
                yield name, None, ""
            elif name.startswith(f"{network}."):
                yield name, *_split(name.removeprefix(f"{network}."))
            else:
                raise PoolError(f"{self.file} changes {name!r}", f"tensors of the {network}")

    def _settings_of(self, network: str) -> Mapping[str, Any]:
        """Settings of the folder, or in the file's metadata; none where the file's tensors say all.

        Raises:
            PoolError: DoRA, or patterns that are none.
        """
        config, before, where = self.config, "", self.folder / _PEFT
        if not config:
            with safe_open(self.file, "pt") as file:
                text = (file.metadata() or {}).get(_METADATA)
            config, before, where = json.loads(text or "{}"), f"{network}.", self.file
        own = {key.removeprefix(before): value for key, value in config.items() if key.startswith(before)}
        if own.get("use_dora"):
            raise PoolError(f"{self.file} sets use_dora: DoRA also scales the columns of the merged weight", "LoRA")
        for key in _PATTERNS:
            pattern_values(where, key, own.get(key) or {})
        return own

    @staticmethod
    def _scale(settings: Mapping[str, Any], module: str) -> float | None:
        """Alpha over rank by the adapter's settings; ``None`` where the file's tensors say it."""
        alpha = settings.get("lora_alpha", settings.get("alpha"))
        if alpha is None or settings.get("r") is None:
            return None
        rank, alpha = (
            float(for_module(settings.get(key) or {}, module, default))
            for key, default in zip(_PATTERNS, (settings["r"], alpha), strict=True)
        )
        return alpha / (math.sqrt(rank) if settings.get("use_rslora") else rank)


class FoldedNetwork(FoldedCheckpoint):
    """A network with an adapter folded in. Convolutions and Hadamard products are no products of two matrices.

    Args:
        base: the network.
        adapter: what is folded in.
        room: for folded tensors, shared with other models.
    """

    def __init__(self, base: Checkpoint, adapter: NetworkAdapter, room: FoldedRoom) -> None:
        super().__init__(base, adapter, adapter.deltas, room)

    def _fold(self, name: str) -> torch.Tensor:
        delta: Delta = self._changes[name]
        changed = self.base.read(name).to(torch.float32) + delta.compute(self.tensors[name].shape)
        return changed.to(self._dtype(name))


def _file_in(folder: Path) -> Path:
    """The adapter's file of a folder."""
    known = next((folder / name for name in _FILES if (folder / name).is_file()), None)
    if known is not None:
        return known
    found = sorted(folder.glob("*.safetensors"))
    if len(found) != 1:
        raise PoolError(
            f"{folder} has {len(found)} safetensors files, none called {' or '.join(_FILES)}",
            "an adapter's file, or a folder with one",
            "name the file",
        )
    return found[0]


def _flat(name: str) -> str:
    """The module of a tensor in Kohya's form, without what it begins with."""
    own = name.partition(".")[0]
    return next((own.removeprefix(prefix) for prefix in _FLAT if own.startswith(prefix)), own)


def _flat_modules(base: Checkpoint) -> dict[str, str]:
    """By the names that Kohya's form has for modules, the network's own and its original files', the network's."""
    weights = [name for name in base.tensors if name.endswith(".weight")]
    found = {}
    try:
        original = original_names(base.config, weights)
    except PoolError:
        original = {}
    for name in weights:
        module = name.removesuffix(".weight")
        for known in (module, original.get(name, name).removeprefix(PREFIX).removesuffix(".weight")):
            found[known.replace(".", "_")] = module
    return found


_PART = re.compile(r"(?P<module>.+?)\.(?P<part>(lora|hada|lokr)[_.].+|alpha|diff|diff_b|dora_scale)")


def _split(name: str) -> tuple[str | None, str]:
    """Module and part of a tensor's name."""
    match = _PART.fullmatch(name)
    return (match["module"], match["part"]) if match is not None else (name, "")
