"""LoRA adapters as PEFT saves them: settings and tensors, checked without reading the weights."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from evomerge.errors import PoolError
from evomerge.models.architecture.patterns import slow_pattern
from evomerge.models.checkpoints.headers import FLOAT_DTYPES, TensorInfo, read_header, read_json
from evomerge.models.checkpoints.reader import TensorFiles

_CONFIG = "adapter_config.json"
_WEIGHTS = "adapter_model.safetensors"

_PREFIX = "base_model.model."
_PART = re.compile(r"(?P<module>.+)\.(?P<part>lora_[AB]\.weight|lora_B\.bias|lora_embedding_[AB])")

# Settings with which the adapter is more than a sum of low rank, and what they mean.
_REFUSED = {
    "use_dora": "DoRA also scales the columns of the merged weight",
    "use_qalora": "QA-LoRA pools the inputs of quantised weights",
    "use_bdlora": "its factors are block-diagonal",
    "arrow_config": "it routes between adapters by token",
    "kasa_config": "it changes the base weights when it is loaded",
    "monteclora_config": "its factors are drawn at random",
    "alora_invocation_tokens": "it acts on part of the text only",
    "layer_replication": "it repeats layers of the base model",
    "target_parameters": "it changes parameters that are no module's weight",
    "trainable_token_indices": "it stores single rows of the embeddings",
}
# With these, A and B start from something that leaves the base weights alone.
_PLAIN_INITIALIZERS = (True, False, None, "gaussian", "eva", "orthogonal")


@dataclass
class Change:
    """What an adapter does to one tensor of its base model, in the names of the adapter's tensors.

    Attributes:
        module: the module that it changes, as PEFT names it.
        replacement: the tensor that takes the base's place, before anything is added.
        a, b: the factors of the difference ``scale * b @ a``.
        embedding: whether the factors are those of an embedding, whose product is transposed.
        bias: a vector that is added ``scale`` times.
        scale: alpha / r, or alpha / sqrt(r) for rsLoRA.
    """

    module: str
    replacement: str | None = None
    a: str | None = None
    b: str | None = None
    embedding: bool = False
    bias: str | None = None
    scale: float = 1.0

    @property
    def is_product(self) -> bool:
        """Whether it has both factors."""
        return self.a is not None and self.b is not None


@dataclass(frozen=True)
class _Settings:
    """What of ``adapter_config.json`` enters the arithmetic."""

    rank: int
    alpha: float
    ranks: Mapping[str, int] = field(default_factory=dict)
    alphas: Mapping[str, float] = field(default_factory=dict)
    rank_stabilized: bool = False


class Adapter(TensorFiles):
    """A folder with ``adapter_config.json`` and ``adapter_model.safetensors``, as PEFT writes them.

    Raises:
        PoolError: a file is missing or malformed, or the adapter is of a kind that cannot be folded into weights.
    """

    # Where it was trained, and settings of training.
    _volatile = ("base_model_name_or_path", "revision", "inference_mode", "peft_version", "lora_dropout", "task_type")
    _kind = "adapter"

    def __init__(self, folder: str | Path) -> None:
        folder = Path(folder)
        if not (folder / _CONFIG).is_file():
            raise PoolError(
                f"{folder} has no {_CONFIG}", "what follows + is a LoRA adapter that PEFT saved", "name its folder"
            )
        config = read_json(folder / _CONFIG, "the adapter's settings")
        self._settings = _settings(folder / _CONFIG, config)
        super().__init__(folder, config, _headers(folder))

    @property
    def base(self) -> str | None:
        """The model that it was trained on, by its own account."""
        given = self.config.get("base_model_name_or_path")
        return given if isinstance(given, str) and given else None

    @property
    def tied_together(self) -> bool:
        """Whether tied embeddings were trained as one (PEFT's ``ensure_weight_tying``)."""
        return bool(self.config.get("ensure_weight_tying"))

    def is_saved(self, module: str) -> bool:
        """Whether `module` was trained and saved whole, apart from what is tied to it (``modules_to_save``)."""
        return any(module.endswith(str(name)) for name in self.config.get("modules_to_save") or ())

    @cached_property
    def changes(self) -> dict[str, Change]:
        """The change of every tensor that the adapter touches, by the tensor's name in PEFT's base model.

        Raises:
            PoolError: a tensor is not one of a plain LoRA adapter, or a factor lacks or does not fit the other.
        """
        changes: dict[str, Change] = {}
        for name in self.tensors:
            if not name.startswith(_PREFIX):
                raise self._problem(name, f"is not named {_PREFIX}...", "names as PEFT writes them")
            own = name.removeprefix(_PREFIX)
            match = _PART.fullmatch(own)
            if match is None:
                if "lora_" in own or ".token_adapter." in own:
                    raise self._problem(name, "is not part of a plain LoRA adapter", "lora_A, lora_B and whole tensors")
                own = own.replace(".base_layer.", ".")
                changes.setdefault(own, Change(own.rpartition(".")[0])).replacement = name
                continue
            module, part = match["module"], match["part"]
            target = f"{module}.bias" if part == "lora_B.bias" else f"{module}.weight"
            change = changes.setdefault(target, Change(module))
            if part == "lora_B.bias":
                change.bias = name
            elif part.startswith("lora_embedding"):
                change.embedding = True
                setattr(change, part[-1].lower(), name)
            else:
                setattr(change, part[5].lower(), name)
        for change in changes.values():
            self._complete(change)
        return changes

    def _complete(self, change: Change) -> None:
        """Check that the factors belong together and set their scale."""
        given = change.a or change.b or change.bias
        if given is None:
            return
        rank = for_module(self._settings.ranks, change.module, self._settings.rank)
        alpha = for_module(self._settings.alphas, change.module, self._settings.alpha)
        try:
            change.scale = alpha / (math.sqrt(rank) if self._settings.rank_stabilized else rank)
        except OverflowError:
            raise self._problem(given, "has a rank or alpha that no float holds", "numbers below 1e308") from None
        if change.a is None and change.b is None:
            return
        if change.a is None or change.b is None:
            lacking = "B" if change.b is None else "A"
            raise self._problem(given, f"has no lora_{lacking} beside it", "both factors", "save the adapter again")
        a, b = self.tensors[change.a], self.tensors[change.b]
        for info, axis in ((a, 0), (b, 1)):
            if len(info.shape) != 2:
                raise self._problem(info.name, f"has shape {info.shape}", "factors are matrices; convolutions are not")
            if info.shape[axis] != rank:
                raise self._problem(
                    info.name, f"has shape {info.shape}", f"{_CONFIG} gives {change.module} rank {rank}"
                )

    def _problem(self, name: str, what: str, allowed: str = "", do: str = "") -> PoolError:
        return PoolError(f"{self.folder / _WEIGHTS}: tensor {name!r} {what}", allowed, do)


def _settings(path: Path, config: Mapping[str, Any]) -> _Settings:
    """The settings of a plain LoRA adapter; `PoolError` for every other kind."""
    kind = config.get("peft_type")
    if kind != "LORA":
        raise PoolError(f"{path}: the adapter is of type {kind}", "LORA", "merge it into its base with PEFT first")
    for key, why in _REFUSED.items():
        if config.get(key):
            raise PoolError(f"{path} sets {key}: {why}", "plain LoRA", "merge it into its base with PEFT first")
    initializer = config.get("init_lora_weights", True)
    if initializer not in _PLAIN_INITIALIZERS:
        raise PoolError(
            f"{path} has init_lora_weights {initializer!r}, which also changes the base weights",
            "an adapter that adds to the base as it was published",
            "save it with path_initial_model_for_weight_conversion, or merge it into its base with PEFT first",
        )
    rank, alpha = config.get("r"), config.get("lora_alpha")
    ranks, alphas = config.get("rank_pattern") or {}, config.get("alpha_pattern") or {}
    for key, values, whole in (("r", {"": rank}, True), ("rank_pattern", ranks, True)):
        for value in pattern_values(path, key, values):
            if whole and (not isinstance(value, int) or value < 1):
                raise PoolError(f"{path} has {key} {value!r}", "a whole number from 1")
    for key, values in (("lora_alpha", {"": alpha}), ("alpha_pattern", alphas)):
        for value in pattern_values(path, key, values):
            if not (abs(value) < 2**63 and math.isfinite(value)):
                raise PoolError(f"{path} has {key} {value!r}", "a finite number")
    if not isinstance(config.get("modules_to_save") or [], list):
        raise PoolError(f"{path} has modules_to_save {config['modules_to_save']!r}", "a list of names")
    assert isinstance(rank, int)
    return _Settings(rank, float(alpha), ranks, alphas, bool(config.get("use_rslora")))  # type: ignore[arg-type]


def pattern_values(path: Path, key: str, values: Any) -> list[Any]:
    """The numbers of a setting by pattern, whose keys must be regular expressions.

    Raises:
        PoolError: they are none, or would take too long to match.
    """
    if not isinstance(values, dict):
        raise PoolError(f"{path} has {key} {values!r}", "a mapping of module names to numbers")
    for pattern, value in values.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise PoolError(f"{path} has {key} {value!r}", "a number")
        try:
            problem = slow_pattern(pattern)
        except (re.error, RecursionError, OverflowError) as error:
            raise PoolError(f"{path}: {key} has {pattern[:200]!r}", f"regular expressions ({error})") from None
        if problem:
            raise PoolError(f"{path}: {key} has {pattern[:200]!r}", problem, "name the modules")
    return list(values.values())


def for_module(patterns: Mapping[str, Any], module: str, default: Any) -> Any:
    """The value of the first pattern that matches the end of a module's name, as PEFT chooses it."""
    return next((v for p, v in patterns.items() if re.match(rf"(.*\.)?({p})$", module)), default)


def _headers(folder: Path) -> dict[str, TensorInfo]:
    """The adapter's tensors, of which there is at least one and all are floats."""
    path = folder / _WEIGHTS
    if not path.is_file():
        if (folder / "adapter_model.bin").is_file():
            raise PoolError(
                f"{folder} has no {_WEIGHTS}, only adapter_model.bin",
                "pickled weights can run code when read, so they are not opened",
                "convert them: load the adapter with PEFT and save it with save_pretrained",
            )
        raise PoolError(f"{folder} has no {_WEIGHTS}", f"an adapter's folder holds {_CONFIG} and {_WEIGHTS}")
    tensors = read_header(path)
    if not tensors:
        raise PoolError(f"{path} holds no tensors", "", "save the adapter again")
    for name, info in tensors.items():
        if not info.is_float:
            raise PoolError(f"{path}: tensor {name!r} is stored as {info.dtype}", f"one of {', '.join(FLOAT_DTYPES)}")
    return tensors
