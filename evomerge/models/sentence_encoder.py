"""How a model's tokens become an embedding: what the files of sentence-transformers in its folder say."""

from __future__ import annotations

import json
import string
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from evomerge.errors import PoolError, nearest
from evomerge.models.checkpoints.sentence_modules import MODULES, modules_of
from evomerge.utils.files import read_bounded

POOLING = ("mean", "cls", "max", "last", "weighted", "mean_sqrt")
"""Ways from tokens to one embedding: their mean, the first, the largest of each number, the last, the mean weighted by
1, 2, 3, ... (SGPT, arXiv 2202.08904), and the sum over the square root of how many they are."""

TOKENS = "tokens"
"""In place of a way of pooling: every token has an embedding (ColBERT's late interaction, arXiv 2004.12832)."""

SIMILARITIES = ("cosine", "dot", "euclidean", "manhattan")
LATE_SIMILARITIES = ("maxsim", "meanmaxsim")

POOL, NORMALIZE = "pooling", "normalize"
"""Steps without weights."""

_POOLING = {
    "cls": "cls",
    "max": "max",
    "mean": "mean",
    "mean_sqrt_len_tokens": "mean_sqrt",
    "weightedmean": "weighted",
    "lasttoken": "last",
}
"""sentence-transformers' words, in the order in which several are put behind each other."""
_FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt",
    "pooling_mode_weightedmean_tokens": "weighted",
    "pooling_mode_lasttoken": "last",
}
"""Keys of ``1_Pooling/config.json`` before version 6."""
_ACTIVATIONS = ("Identity", "Tanh", "ReLU", "GELU", "SiLU", "Sigmoid")
_PASSED = ("Transformer", "Dropout")  # what is merged, and what does nothing when it is not trained
_SETTINGS = "config_sentence_transformers.json"
_TRANSFORMER = "sentence_bert_config.json"
_LARGEST = 2**24
_QUERY_LENGTH = 32
"""ColBERT's, of queries filled up with mask tokens."""


@dataclass(frozen=True)
class Dense:
    """A linear layer behind a model, with its activation.

    Attributes:
        place: its folder in the model's.
        inputs, outputs: widths.
        bias: whether it has one.
        activation: name of a class in ``torch.nn``.
        residual: whether its input, projected where the widths differ, is added to what it gives.
    """

    place: str
    inputs: int
    outputs: int
    bias: bool = True
    activation: str = "Tanh"
    residual: bool = False

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Its tensors, as its file names them."""
        found: dict[str, tuple[int, ...]] = {"linear.weight": (self.outputs, self.inputs)}
        if self.bias:
            found["linear.bias"] = (self.outputs,)
        if self.residual and self.inputs != self.outputs:
            found["residual.weight"] = (self.outputs, self.inputs)
        return found


@dataclass(frozen=True)
class Expansion:
    """Mask tokens that queries are filled up with (ColBERT's query augmentation).

    Attributes:
        length: tokens of a query.
        fixed: whether longer ones are cut there.
        attend: whether the model's attention sees them.
        token: that is filled in; empty for the tokenizer's mask token.
    """

    length: int
    fixed: bool = True
    attend: bool = False
    token: str = ""


@dataclass(frozen=True)
class SentenceEncoder:
    """From the last hidden states of a model to embeddings, and from these to a similarity.

    Attributes:
        steps: in order: `POOL`, `NORMALIZE` or a dense layer.
        pooling: one of `POOLING`, or several, whose embeddings lie behind each other; none where every token has one.
        include_prompt: whether tokens of a prompt are pooled.
        prompts: texts before others, by name.
        default_prompt: name of the one before texts that are neither queries nor documents; empty for none.
        similarity: one of `SIMILARITIES` or, of tokens, of `LATE_SIMILARITIES`.
        max_length, query_length, document_length: tokens; ``None`` for the tokenizer's own.
        lower: whether texts are put in lower case.
        expansion: of queries; ``None`` for none.
        skipped: tokens of documents that are not compared.
        markers: prompts, or their first words, that are one token where the vocabulary has it.
    """

    steps: tuple[str | Dense, ...] = (POOL,)
    pooling: tuple[str, ...] = ("mean",)
    include_prompt: bool = True
    prompts: Mapping[str, str] = field(default_factory=dict)
    default_prompt: str = ""
    similarity: str = "cosine"
    max_length: int | None = None
    query_length: int | None = None
    document_length: int | None = None
    lower: bool = False
    expansion: Expansion | None = None
    skipped: tuple[str, ...] = ()
    markers: tuple[str, ...] = ()

    @property
    def is_late(self) -> bool:
        """Whether every token has an embedding of its own."""
        return not self.pooling

    @property
    def dense(self) -> tuple[Dense, ...]:
        """The layers with weights, in order."""
        return tuple(step for step in self.steps if isinstance(step, Dense))

    def prompt(self, role: str) -> str:
        """What stands before texts of a role: the first prompt of its names, of which the default is none for others.

        Args:
            role: ``query``, ``document`` or ``text``.
        """
        roles = {"query": ("query",), "document": ("document", "passage", "corpus")}
        names = roles.get(role, (self.default_prompt,))
        return next((self.prompts[name] for name in names if self.prompts.get(name)), "")


def read_encoder(folder: Path) -> SentenceEncoder | None:
    """The encoder that a model's folder describes; ``None`` without ``modules.json``.

    Folders of PyLate and of `MultiVectorEncoder` (late interaction) are read too.

    Raises:
        PoolError: a file is malformed, or names a module or a setting that cannot be followed.
    """
    if not (folder / MODULES).is_file():
        return None
    settings = _json(folder / _SETTINGS)
    own = next((found for name in (_TRANSFORMER,) if (found := _json(folder / name))), {})
    modalities = own.get("modality_config")
    if isinstance(modalities, Mapping) and "message" in modalities:
        raise PoolError(
            f"{folder / _TRANSFORMER} wants texts as chat messages", "a model that reads them as they are", ""
        )
    late = str(settings.get("model_type", "")) in ("ColBERT", "MultiVectorEncoder")
    steps, pooling, include, skipped = list[str | Dense](), tuple[str, ...](), True, list[Any]()
    for place, kind in modules_of(folder).items():
        content = _json(folder / place / "config.json")
        where = folder / place / "config.json"
        if kind == "Pooling":
            steps.append(POOL)
            pooling, include = _pooling(content, where), content.get("include_prompt", True) is not False
        elif kind == "Dense":
            steps.append(_dense(str(place), content, where))
        elif kind == "Normalize":
            steps.append(NORMALIZE)
        elif kind == "MultiVectorMask":
            late, skipped = True, list(content.get("skiplist_words") or [])
        elif kind not in _PASSED:
            raise PoolError(
                f"{folder / MODULES} has a module {kind}",
                f"one of {', '.join((*_PASSED, 'Pooling', 'Dense', 'Normalize', 'MultiVectorMask'))}",
            )
    if not pooling and not late:
        raise PoolError(f"{folder / MODULES} has no Pooling", "one, or a MultiVectorMask: an embedding of every token")
    if pooling and late:
        raise PoolError(f"{folder / MODULES} has Pooling and MultiVectorMask", "one of the two")
    prompts = {str(name): str(text or "") for name, text in dict(settings.get("prompts") or {}).items()}
    markers = list[str]()
    for role in ("query", "document"):
        marker = str(settings.get(f"{role}_prefix") or "")
        if marker:
            prompts[role] = marker + prompts.get(role, "").removeprefix(marker)
            markers.append(marker)
    if settings.get("model_type") == "ColBERT":  # PyLate to version 3, which normalises and skips without a module
        steps.append(NORMALIZE)
        words = settings.get("skiplist_words")
        skipped = list(string.punctuation) if words is None else list(words)
    similarity = settings.get("similarity_fn_name") or ("maxsim" if late else "cosine")
    known = LATE_SIMILARITIES if late else SIMILARITIES
    if late and similarity not in known:  # what such folders had before there was a name for it
        similarity = "maxsim"
    if similarity not in known:
        raise PoolError(f"{folder / _SETTINGS} has similarity_fn_name {similarity!r}", nearest(str(similarity), known))
    return SentenceEncoder(
        tuple(steps),
        pooling,
        include,
        prompts,
        str(settings.get("default_prompt_name") or ""),
        similarity,
        _count(own, "max_seq_length", folder / _TRANSFORMER),
        _count(own | _known(settings, "query_length"), "query_length", folder / _TRANSFORMER),
        _count(own | _known(settings, "document_length"), "document_length", folder / _TRANSFORMER),
        own.get("do_lower_case") is True,
        _expansion(settings, own, folder) if late else None,
        tuple(str(word) for word in skipped),
        tuple(markers),
    )


def _pooling(content: Mapping[str, Any], where: Path) -> tuple[str, ...]:
    """What ``1_Pooling/config.json`` says, of any version."""
    given = content.get("pooling_mode")
    if given is None:
        return tuple(own for flag, own in _FLAGS.items() if content.get(flag) is True) or ("mean",)
    names = [given] if isinstance(given, str) else list(given)
    for name in names:
        if name not in _POOLING:
            raise PoolError(f"{where} has pooling_mode {name!r}", nearest(str(name), _POOLING))
    return tuple(_POOLING[name] for name in names)


def _dense(place: str, content: Mapping[str, Any], where: Path) -> Dense:
    widths = [_count(content, key, where) for key in ("in_features", "out_features")]
    activation = str(content.get("activation_function") or "torch.nn.modules.activation.Tanh").rpartition(".")[2]
    if None in widths or activation not in _ACTIVATIONS:
        raise PoolError(
            f"{where} has in_features {widths[0]}, out_features {widths[1]} and activation_function {activation}",
            f"two numbers, and one of {', '.join(_ACTIVATIONS)}",
        )
    return Dense(
        place,
        int(widths[0] or 0),
        int(widths[1] or 0),
        content.get("bias", True) is not False,
        activation,
        content.get("use_residual") is True,
    )


def _expansion(settings: Mapping[str, Any], own: Mapping[str, Any], folder: Path) -> Expansion | None:
    """Of queries: ``query_expansion`` of the transformer, or what PyLate wrote in its place."""
    given = own.get("query_expansion", settings.get("query_expansion"))
    if isinstance(given, Mapping):
        length = _count(given, "length", folder / _TRANSFORMER) or _QUERY_LENGTH
        return Expansion(
            length, given.get("strategy") != "min", given.get("attend") is True, str(given.get("token") or "")
        )
    marks = ("query_length", "query_prefix", "document_prefix", "do_query_expansion", "attend_to_expansion_tokens")
    if "query_expansion" in own or settings.get("do_query_expansion") is False:
        return None
    if not any(mark in settings for mark in marks):
        return None
    length = _count(settings, "query_length", folder / _SETTINGS) or _QUERY_LENGTH
    return Expansion(length, attend=settings.get("attend_to_expansion_tokens") is True)


def _json(path: Path) -> dict[str, Any]:
    """What a file of settings holds; nothing where there is none. Imports no torch, so that checks come early."""
    if not path.is_file():
        return {}
    try:
        content = json.loads(read_bounded(path, _LARGEST).decode("utf-8"))
    except (ValueError, RecursionError, OSError) as error:
        raise PoolError(f"{path} is not JSON ({type(error).__name__})", "settings", "download it again") from error
    if not isinstance(content, dict):
        raise PoolError(f"{path} holds a {type(content).__name__}", "a JSON object", "download it again")
    return content


def _known(settings: Mapping[str, Any], key: str) -> dict[str, Any]:
    return {key: settings[key]} if settings.get(key) is not None else {}


def _count(content: Mapping[str, Any], key: str, where: Path) -> int | None:
    value = content.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise PoolError(f"{where} has {key} {value!r}", "a whole number of 1 or more", "correct it")
    return value
