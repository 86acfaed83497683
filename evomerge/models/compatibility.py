"""Whether models can be merged with each other, seen from configurations, headers and tokenizers alone."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from evomerge.errors import PoolError
from evomerge.models.architecture.layout import Layout
from evomerge.models.architecture.names import NameMatch
from evomerge.models.architecture.rotary import rotary_of
from evomerge.models.checkpoints.headers import FLOAT_DTYPES
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

_ROTARY = re.compile(r"(^|\.)(rope_parameters|rope_scaling|rope_theta|original_max_position_embeddings)(\.|$)")

WIDTHS = ", or bring one to the other's widths: evomerge align --widths"
EXPERTS = ", or merge those of one into fewer: evomerge experts"
LEAVE_OUT = "leave one of the two out of the pool"
_WIDTH = re.compile(
    r"hidden_size|d_model|n_embd|.*intermediate_size|d_ff|n_inner|(num|n)_.*(heads?|experts)|head_dim|d_kv|.*_dim|.*_rank"
)
_COUNT = re.compile(r"(num|n)_.*(layers?|experts?|blocks?)|.*_layers|.*_depth")
_DECODER = ("num_decoder_layers", "decoder_layers")
_LONGEST = 200  # characters of a value that is shown
_FEW = 1024  # of these, a model without weights is built in no time


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


def architecture_problem(
    name: str, config: Any, reference: str, reference_config: Any, headless: bool = False
) -> PoolError | None:
    """The error for a model of another architecture than the reference's; `headless` ones may be of another task."""
    for key in ("model_type", *(() if headless else ("architectures",))):
        own, wanted = getattr(config, key, None), getattr(reference_config, key, None)
        if own != wanted:
            return PoolError(
                f"model {name!r} has {key} {_shown(own)}, {reference!r} has {_shown(wanted)}",
                "all models of a pool share one architecture",
                LEAVE_OUT,
            )
    return None


def depth_problem(name: str, config: Any, reference: str, reference_config: Any) -> PoolError | None:
    """The error for an encoder-decoder of other depths than the reference's: layers count on in the decoder."""
    if not getattr(reference_config, "is_encoder_decoder", False):
        return None
    for stack, keys in (("encoder", ("num_layers", "encoder_layers")), ("decoder", _DECODER)):
        own, wanted = (
            next((getattr(each, key) for key in keys if isinstance(getattr(each, key, None), int)), None)
            for each in (config, reference_config)
        )
        if own != wanted:
            return PoolError(
                f"model {name!r} has {own} layers in its {stack}, {reference!r} has {wanted}",
                "encoder-decoders of one depth: a layer's number is that of its place in both stacks",
                LEAVE_OUT,
            )
    return None


def config_problems(
    name: str, config: Any, reference: str, reference_config: Any, ignored: frozenset[str] = frozenset()
) -> Iterator[PoolError]:
    """Errors for every configuration key that changes the function and differs from the reference's.

    Models may differ in depth: then lists with an entry per layer differ as well.
    """
    own, wanted = _flat(config.to_dict()), _flat(reference_config.to_dict())
    rotary, reference_rotary = rotary_of(config), rotary_of(reference_config)
    same_rotary = rotary is not None and rotary == reference_rotary
    other_rotary = rotary is not None and reference_rotary is not None and not same_rotary
    if depth_of(config) != depth_of(reference_config):
        own, wanted = _without_depth(config, own), _without_depth(reference_config, wanted)
    for key in sorted(own.keys() | wanted.keys()):
        leaf, root = key.rpartition(".")[2], key.partition(".")[0]
        if same_rotary and _ROTARY.search(key):  # spelled otherwise
            continue
        ours, theirs = _shown(own.get(key)), _shown(wanted.get(key))
        is_length = leaf.endswith("max_position_embeddings")
        if is_length and other_rotary and ignored.isdisjoint((key, leaf, root)) and own.get(key) != wanted.get(key):
            yield PoolError(
                f"model {name!r} has {key} {ours} in config.json, {reference!r} has {theirs}",
                "their rotary embeddings scale with it: models that compute differently from the same weights cannot "
                "be merged",
                _what_to_do(leaf, reference),
            )
        elif _IMMATERIAL.fullmatch(leaf) or _IMMATERIAL.fullmatch(root) or not ignored.isdisjoint((key, leaf, root)):
            continue
        elif own.get(key) != wanted.get(key):
            yield PoolError(
                f"model {name!r} has {key} {ours} in config.json, {reference!r} has {theirs}",
                "models that compute differently from the same weights cannot be merged",
                _what_to_do(leaf, reference),
            )


def of_widths(problems: Iterable[PoolError]) -> list[PoolError]:
    """Those of `config_problems` that shapes of tensors follow from."""
    return [problem for problem in problems if problem.do.endswith((WIDTHS, EXPERTS))]


def is_width(key: str) -> bool:
    """Whether a key of a configuration, the last part of it, decides shapes of tensors."""
    return _WIDTH.fullmatch(key) is not None


def _what_to_do(key: str, reference: str) -> str:
    if is_width(key):
        return LEAVE_OUT + (EXPERTS if key.endswith("experts") else WIDTHS)
    return f"{LEAVE_OUT}; where it is meant, merge a copy of it whose config.json says what that of {reference!r} says"


def _shown(value: Any) -> str:
    """A value of config.json for a line of text."""
    text = str(value)
    text = text if text.isprintable() else repr(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def depth_of(config: Any) -> Any:
    """The number of layers that a configuration gives, ``None`` where it gives none."""
    return getattr(config.get_text_config(), "num_hidden_layers", None)


def _without_depth(config: Any, content: Mapping[str, Any]) -> dict[str, Any]:
    """Flat configuration keys without the number of layers and what there is of each."""
    text, depth = config.get_text_config(), depth_of(config)
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
        f"number them as {reference!r} does, rows of the head too, or leave {name!r} out of the pool",
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
                    LEAVE_OUT,
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
