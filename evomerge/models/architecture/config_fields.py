"""Fields of config.json and generation_config.json that all relies on: checked before transformers is given them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from evomerge.errors import PoolError, nearest
from evomerge.utils.files import read_bounded

_COUNTS = (
    "hidden_size",
    "intermediate_size",
    "vocab_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
    "n_embd",
    "n_layer",
    "n_head",
    "n_positions",
)
_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")
_MOST = 2**31 - 1
_MOST_BYTES = 2**24  # of generation_config.json
_DEEPEST = 20
_AGAIN = "correct config.json, or download it again"


def check_fields(config: Mapping[str, Any], path: Path) -> None:
    """Refuse what no model has: names that are no names, sizes below one, nesting without end.

    Args:
        config: the content of config.json, with its parts.
        path: where it lies.

    Raises:
        PoolError: names the field.
    """
    for key, value in config.items():
        where = f"{path} has {key} {_shown(value)}"
        if key == "architectures" and value is not None:
            if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
                raise PoolError(where, "a list of class names", _AGAIN)
        elif key in ("model_type", "dtype", "torch_dtype") and not (value is None or isinstance(value, str)):
            raise PoolError(where, "a name", _AGAIN)
        elif key == "auto_map" and not (value is None or isinstance(value, dict)):
            raise PoolError(where, "a mapping of Auto classes to classes of the model's own code", _AGAIN)
        elif key == "id2label" and isinstance(value, Mapping):
            _check_labels(value, path)
    _check_tokens(config, path, _AGAIN)
    for key, value in _sizes(config, path, 0):
        # Some architectures give a list, with an entry for each layer: those are left to transformers.
        wrong = isinstance(value, bool | str | float) or (isinstance(value, int) and not 1 <= value <= _MOST)
        if wrong:
            raise PoolError(f"{path} has {key} {_shown(value)}", f"a whole number from 1 to {_MOST:,}", _AGAIN)


def check_generation(folder: Path) -> None:
    """Refuse a generation_config.json that generation would end at: no JSON, or ids of tokens that are none.

    Args:
        folder: of the model; without such a file there is nothing to check.

    Raises:
        PoolError: names the file, and the field.
    """
    path = folder / "generation_config.json"
    if not path.is_file():
        return
    again = "correct generation_config.json, or download it again"
    _check_tokens(read_mapping(path, _MOST_BYTES, again), path, again)


def read_mapping(path: Path, most: int, again: str) -> dict[str, Any]:
    """The JSON mapping in a file of at most so many bytes; `again` says what to do where it is none.

    Raises:
        PoolError: names the file.
    """
    try:
        content = json.loads(read_bounded(path, most))
    except OSError as error:
        raise PoolError(f"{path} cannot be read ({error.strerror})", "a file", again) from error
    except (ValueError, RecursionError) as error:
        raise PoolError(f"{path} is no JSON ({' '.join(str(error).split())[:200]})", "a mapping", again) from error
    if not isinstance(content, dict):
        raise PoolError(f"{path} is {_shown(content)}", "a mapping of settings", again)
    return content


def _check_tokens(content: Mapping[str, Any], path: Path, again: str) -> None:
    for key in _TOKENS:
        value = content.get(key)
        several = key == "eos_token_id" and isinstance(value, list) and len(value) > 0
        ids = value if several and isinstance(value, list) else [value]
        if value is not None and not all(type(each) is int and abs(each) <= _MOST for each in ids):
            allowed = "the id of a token" + (", or a list of ids" if key == "eos_token_id" else "") + "; null for none"
            raise PoolError(f"{path} has {key} {_shown(value)}", allowed, again)


def _check_labels(labels: Mapping[str, Any], path: Path) -> None:
    for number in labels:
        if not str(number).isdecimal():
            raise PoolError(f"{path} has id2label with {_shown(number)}", "numbers of labels", _AGAIN)


def _sizes(config: Mapping[str, Any], path: Path, depth: int) -> Iterator[tuple[str, Any]]:
    if depth > _DEEPEST:
        raise PoolError(f"{path} nests more than {_DEEPEST} mappings", "a model's configuration", _AGAIN)
    for key, value in config.items():
        if key in _COUNTS:
            yield key, value
        elif isinstance(value, Mapping):
            yield from _sizes(value, path, depth + 1)


def advice(config: Any) -> tuple[str, str]:
    """What is allowed and what to do where transformers knows the type of a model and cannot build it."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    text = config.get_text_config()
    known = {"default", *ROPE_INIT_FUNCTIONS}
    for kind in _rope_types(getattr(text, "rope_parameters", None)):
        if kind not in known:
            return f"config.json has rope_type {_shown(kind)}: {nearest(str(kind), known)}", "correct config.json"
    rows, padding = getattr(text, "vocab_size", None), getattr(text, "pad_token_id", None)
    if isinstance(rows, int) and isinstance(padding, int) and not -rows <= padding < rows:
        return f"config.json has pad_token_id {_shown(padding)}: from 0 to {rows - 1}", "correct config.json"
    return "a configuration that the installed transformers can build", _AGAIN


def _rope_types(values: Any) -> Iterator[Any]:
    if isinstance(values, Mapping):
        for key, value in values.items():
            if key in ("rope_type", "type"):
                yield value
            else:
                yield from _rope_types(value)


def _shown(value: object) -> str:
    """A value of a stranger's file in at most 60 characters; an integer of thousands of digits has no `repr`."""
    if isinstance(value, int) and value.bit_length() > 100:
        return f"a number of {value.bit_length()} bits"
    if isinstance(value, list | dict):
        return (
            f"a {type(value).__name__} of {len(value)}" if len(value) > 4 else f"{type(value).__name__} {_items(value)}"
        )
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _items(value: list[Any] | dict[Any, Any]) -> str:
    shown = [_shown(item) if not isinstance(item, list | dict) else "..." for item in value]
    return f"[{', '.join(shown)}]"
