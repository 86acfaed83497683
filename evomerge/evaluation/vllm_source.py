"""What vLLM takes, read from its source: importing it takes seconds and starts things. Imports nothing heavy."""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from typing import Any

from evomerge.errors import ConfigError, nearest
from evomerge.utils.installed_source import class_fields, parsed

_OF_LLM = ("chat_template",)
"""Arguments of ``vllm.LLM`` itself; the others are those of its ``EngineArgs``."""

_COUNTS = ("max_num_seqs", "max_num_batched_tokens", "kv_cache_memory_bytes")
"""Whole numbers from 1."""


def check_arguments(given: Mapping[str, Any]) -> None:
    """Check ``evaluator.engine_args``, where vLLM is installed and its source is as it is known.

    Raises:
        ConfigError: names that vLLM has not, all of them; a value that is none of its plain kind.
    """
    fields = class_fields("vllm", ("engine", "arg_utils.py"), "EngineArgs")
    known = [*fields, *_OF_LLM] if fields else []
    wrong = [str(name) for name in given if str(name) not in known] if known else []
    if wrong:
        closest = "; ".join(nearest(name, known, 3) for name in wrong)
        raise ConfigError(f"evaluator.engine_args has {', '.join(map(repr, wrong))}", closest, "")
    for name, value in given.items():
        if name in _COUNTS and isinstance(value, int) and value < 1:
            raise ConfigError(f"evaluator.engine_args.{name} is {value!r}", "a whole number, 1 or more", "")
        if allowed := _wrong_kind(value, fields.get(str(name), "")):
            raise ConfigError(f"evaluator.engine_args.{name} is {value!r}", allowed, "")


def check_heads(config: Any, model: str) -> None:
    """Check that vLLM's attention on a processor takes a model's heads, as far as its source shows.

    Args:
        config: of transformers.
        model: what it is called, for the message.

    Raises:
        ConfigError: they are of another width.
    """
    text = config.get_text_config()
    if getattr(text, "kv_lora_rank", None):  # attention of another kind
        return
    width, heads = getattr(text, "head_dim", None), getattr(text, "num_attention_heads", None)
    if not width and isinstance(heads, int) and heads > 0:
        width = text.hidden_size // heads
    widths = _head_widths()
    if width and widths and width not in widths:
        raise ConfigError(
            f"evaluator.engine is vllm on a processor, and heads of {model} are {width} wide",
            f"heads of {', '.join(map(str, widths))}",
            "set evaluator.engine=transformers, or search on a machine with a GPU",
        )


def _wrong_kind(value: Any, annotation: str) -> str:
    """What a value of a plain kind should be; empty where it is, or the kind is none that can be told here."""
    kinds = {kind.strip() for kind in annotation.split("|")}
    if value is None or not kinds <= {*_KINDS, "None"} or not kinds & {*_KINDS}:
        return ""
    if any(_is(value, kind) for kind in kinds - {"None"}):
        return ""
    return ", or ".join(_KINDS[kind] for kind in sorted(kinds - {"None"}))


def _is(value: Any, kind: str) -> bool:
    if kind == "bool" or isinstance(value, bool):
        return kind == "bool" and isinstance(value, bool)
    if kind == "int":
        return isinstance(value, int)
    return isinstance(value, int | float) if kind == "float" else isinstance(value, str)


_KINDS = {"bool": "true or false", "int": "a whole number", "float": "a number", "str": "a text"}
"""Plain kinds of vLLM's fields, and what is said of them."""


def _head_widths() -> Sequence[int]:
    """Widths that the attention on processors takes; none where they are not found."""
    tree = parsed("vllm", "v1", "attention", "backends", "cpu_attn.py")
    for node in ast.walk(tree) if tree else ():
        if isinstance(node, ast.FunctionDef) and node.name == "get_supported_head_sizes":
            found = [each.value for each in node.body if isinstance(each, ast.Return) and each.value is not None]
            try:
                widths = ast.literal_eval(found[-1]) if found else ()
            except ValueError:  # computed, not listed
                return ()
            return [width for width in widths if isinstance(width, int)] if isinstance(widths, list | tuple) else ()
    return ()
