"""Whether models can be merged with each other, seen from configurations, headers and tokenizers alone."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from evomerge.errors import PoolError
from evomerge.models.architecture.layout import Layout
from evomerge.models.architecture.names import NameMatch
from evomerge.models.checkpoints.headers import FLOAT_DTYPES, read_json
from evomerge.models.checkpoints.reader import Checkpoint

# Configuration keys that do not change what a model computes from its weights, or that are compared
# by themselves (architecture, vocabulary). Every other difference is refused: a silent one would make
# the merge of two functions a third that neither training run has seen.
_IMMATERIAL = re.compile(
    r"""_name_or_path|transformers_version|architectures|model_type|auto_map|vocab_size|dtype|torch_dtype|use_cache
    |.*_token_id|.*_token_index|.*dropout.*|.*pdrop.*|.*initializer.*|embedding_initializer_range
    |max_position_embeddings|max_length|min_length|max_window_layers|pretraining_tp|gradient_checkpointing
    |output_.*|return_dict|torchscript|use_bfloat16|id2label|label2id|problem_type|task_specific_params
    |chunk_size_feed_forward|router_aux_loss_coef|_attn_implementation.*|_experts_implementation.*|summary_.*
    |finetuning_task|tokenizer_class|prefix|is_decoder|add_cross_attention|use_mambapy|unsloth_.*""",
    re.VERBOSE,
)

_COUNT = re.compile(r"(num|n)_.*(layers?|experts?|blocks?)|.*_layers|.*_depth")
_FEW = 1024  # of these, a model without weights is built in no time

_TOKENIZER_FILES = (
    "tokenizer.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "tokenizer.model",
    "spiece.model",
    "spm.model",
    "sentencepiece.bpe.model",
)


def check_counts(config: Any, tensors: int) -> None:
    """Refuse a configuration with more layers or experts than a checkpoint has tensors, before they are built.

    Args:
        config: a transformers configuration; the parts of one that has several are looked at too.
        tensors: how many tensors there are.

    Raises:
        PoolError: names the key.
    """
    most = max(tensors, _FEW)
    for part in (config, *(value for value in vars(config).values() if hasattr(value, "to_dict"))):
        for key, value in part.to_dict().items():
            if _COUNT.fullmatch(key) and isinstance(value, int) and value > most:
                raise PoolError(
                    f"config.json has {key} {value:,}",
                    f"at most {most:,}: the checkpoint has {tensors} tensors",
                    "use the config.json that belongs to the weights",
                )


def architecture_problem(name: str, config: Any, reference: str, reference_config: Any) -> PoolError | None:
    """The error for a model of another architecture than the reference's."""
    for key in ("model_type", "architectures"):
        own, wanted = getattr(config, key, None), getattr(reference_config, key, None)
        if own != wanted:
            return PoolError(
                f"model {name!r} has {key} {own}, {reference!r} has {wanted}",
                "all models of a pool share one architecture",
            )
    return None


def config_problems(
    name: str, config: Any, reference: str, reference_config: Any, ignored: frozenset[str] = frozenset()
) -> Iterator[PoolError]:
    """Errors for every configuration key that changes the function and differs from the reference's.

    Models may differ in depth: then lists with an entry per layer differ as well.
    """
    own, wanted = _flat(config.to_dict()), _flat(reference_config.to_dict())
    if _depth(config) != _depth(reference_config):
        own, wanted = _without_depth(config, own), _without_depth(reference_config, wanted)
    for key in sorted(own.keys() | wanted.keys()):
        leaf, root = key.rpartition(".")[2], key.partition(".")[0]
        if _IMMATERIAL.fullmatch(leaf) or _IMMATERIAL.fullmatch(root) or not ignored.isdisjoint((key, leaf, root)):
            continue
        if own.get(key) != wanted.get(key):
            yield PoolError(
                f"model {name!r} has {key} {own.get(key)} in config.json, {reference!r} has {wanted.get(key)}",
                "models that compute differently from the same weights cannot be merged",
            )


def _depth(config: Any) -> Any:
    return getattr(config.get_text_config(), "num_hidden_layers", None)


def _without_depth(config: Any, content: Mapping[str, Any]) -> dict[str, Any]:
    """Flat configuration keys without the number of layers and what there is of each."""
    text, depth = config.get_text_config(), _depth(config)
    number = type(text).attribute_map.get("num_hidden_layers", "num_hidden_layers")
    return {
        key: value
        for key, value in content.items()
        if key.rpartition(".")[2] != number and not (isinstance(value, list) and len(value) == depth)
    }


def label_problem(name: str, config: Any, reference: str, reference_config: Any) -> PoolError | None:
    """The error for a classifier that gives the reference's labels other numbers: its head has other rows."""
    own, wanted = getattr(config, "id2label", None) or {}, getattr(reference_config, "id2label", None) or {}
    if own == wanted or sorted(map(str, own.values())) != sorted(map(str, wanted.values())):
        return None
    number = {label: i for i, label in own.items()}
    i, label = next((i, label) for i, label in wanted.items() if own.get(i) != label)
    return PoolError(
        f"label {label!r} is number {number[label]} in model {name!r} and {i} in {reference!r}",
        "all classifiers of a pool number their labels alike",
    )


def _flat(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in content.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = list(value) if isinstance(value, tuple) else value
    return flat


def tensor_problems(
    name: str,
    checkpoint: Checkpoint,
    stored: Mapping[str, str],
    reference: str,
    layout: Layout,
) -> Iterator[PoolError]:
    """Errors for tensors that are not merged floats or whose shape differs from the reference's.

    Args:
        stored: the model's checkpoint names by the layout's names.
    """
    for canonical, own in stored.items():
        info, wanted = checkpoint.tensors[own], layout.shapes[canonical]
        if info.shape != wanted:
            if name == reference:
                yield PoolError(
                    f"model {name!r}: tensor {own!r} has shape {info.shape}, config.json makes it {wanted}",
                    "",
                    "configuration and weights must belong together",
                )
            else:
                yield PoolError(
                    f"tensor {own!r} has shape {info.shape} in model {name!r} and {wanted} in {reference!r}",
                    "all models of a pool have the same shapes",
                )
        if not info.is_float and canonical not in layout.integers:
            yield PoolError(
                f"model {name!r}: tensor {own!r} is stored as {info.dtype}",
                f"weights are merged from {', '.join(FLOAT_DTYPES)}",
                "save the model in one of these",
            )


def tied_problems(name: str, checkpoint: Checkpoint, match: NameMatch) -> Iterator[PoolError]:
    """Errors for weights that the configuration ties but that the checkpoint stores twice with different values."""
    for duplicate, kept in match.duplicates.items():
        if not checkpoint.same(duplicate, kept):
            yield PoolError(
                f"model {name!r} stores different values in {kept!r} and {duplicate!r}, which its config.json ties",
                "",
                "set tie_word_embeddings to false in its config.json if the two are meant to differ",
            )


def vocabulary_problem(name: str, folder: Path, reference: str, reference_folder: Path) -> PoolError | None:
    """The error for a tokenizer that maps tokens to other ids than the reference's, naming the first token.

    Models without tokenizer files are not compared.
    """
    if not has_tokenizer(folder) or not has_tokenizer(reference_folder) or _same_files(folder, reference_folder):
        return None
    own, merges = read_vocabulary(folder)
    wanted, wanted_merges = read_vocabulary(reference_folder)
    only_own = sorted(own.items() - wanted.items(), key=lambda item: (item[1], item[0]))
    only_wanted = sorted(wanted.items() - own.items(), key=lambda item: (item[1], item[0]))
    allowed = "all models of a pool share one tokenizer"
    if only_own or only_wanted:
        token, _ = min(only_own[:1] + only_wanted[:1], key=lambda item: (item[1], item[0]))

        def place(vocabulary: Mapping[str, int]) -> str:
            return f"id {vocabulary[token]}" if token in vocabulary else "no id"

        return PoolError(
            f"tokenizers differ: token {token!r} has {place(own)} in model {name!r}, {place(wanted)} in {reference!r}",
            allowed,
        )
    if merges is not None and wanted_merges is not None and merges != wanted_merges:
        return PoolError(f"tokenizers differ: {name!r} joins tokens by other merge rules than {reference!r}", allowed)
    return None


def read_vocabulary(folder: Path) -> tuple[dict[str, int], list[str] | None]:
    """Token -> id of a folder's tokenizer, and its merge rules where it has any.

    Raises:
        PoolError: the tokenizer's files cannot be read.
    """
    path = folder / "tokenizer.json"
    try:
        if path.is_file():
            content = read_json(path, "the tokenizer")
            vocabulary = content["model"]["vocab"]
            if isinstance(vocabulary, list):  # Unigram: [token, score] in the order of ids
                vocabulary = {token: i for i, (token, _) in enumerate(vocabulary)}
            added = {entry["content"]: int(entry["id"]) for entry in content.get("added_tokens") or ()}
            merges = content["model"].get("merges")
            rules = None if merges is None else [m if isinstance(m, str) else " ".join(m) for m in merges]
            return {**vocabulary, **added}, rules
        from transformers import AutoTokenizer

        return dict(AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False).get_vocab()), None
    except Exception as error:  # tokenizer classes raise whatever their backends raise
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise PoolError(f"the tokenizer in {folder} cannot be read ({reason})", "", "save it again") from error


def has_tokenizer(folder: Path) -> bool:
    """Whether a folder holds a tokenizer."""
    return any((folder / name).is_file() for name in _TOKENIZER_FILES)


def _same_files(folder: Path, other: Path) -> bool:
    """Whether both folders' tokenizer files are the same, byte for byte."""
    for name in _TOKENIZER_FILES:
        a, b = folder / name, other / name
        if a.is_file() != b.is_file():
            return False
        if a.is_file() and (a.stat().st_size != b.stat().st_size or a.read_bytes() != b.read_bytes()):
            return False
    return True
