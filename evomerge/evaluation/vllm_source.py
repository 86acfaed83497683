"""What vLLM takes, read from its source: importing it takes seconds and starts things. Imports nothing heavy."""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from evomerge.errors import ConfigError, nearest

_OF_LLM = ("chat_template",)
"""Arguments of ``vllm.LLM`` itself; the others are those of its ``EngineArgs``."""


def check_names(given: Iterable[str]) -> None:
    """Check names of ``evaluator.engine_args``, where vLLM is installed and its source is as it is known.

    Raises:
        ConfigError: some that vLLM has not; all of them are named.
    """
    known = _argument_names()
    wrong = [str(name) for name in given if str(name) not in known] if known else []
    if wrong:
        closest = "; ".join(nearest(name, known, 3) for name in wrong)
        raise ConfigError(f"evaluator.engine_args has {', '.join(map(repr, wrong))}", closest, "")


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


def _argument_names() -> Sequence[str]:
    """Names of the fields of ``EngineArgs``; none where they are not found."""
    tree = _parsed("engine", "arg_utils.py")
    for node in tree.body if tree else ():
        if isinstance(node, ast.ClassDef) and node.name == "EngineArgs":
            fields = (each.target for each in node.body if isinstance(each, ast.AnnAssign))
            return [*(field.id for field in fields if isinstance(field, ast.Name)), *_OF_LLM]
    return ()


def _head_widths() -> Sequence[int]:
    """Widths that the attention on processors takes; none where they are not found."""
    tree = _parsed("v1", "attention", "backends", "cpu_attn.py")
    for node in ast.walk(tree) if tree else ():
        if isinstance(node, ast.FunctionDef) and node.name == "get_supported_head_sizes":
            found = [each.value for each in node.body if isinstance(each, ast.Return) and each.value is not None]
            try:
                widths = ast.literal_eval(found[-1]) if found else ()
            except ValueError:  # computed, not listed
                return ()
            return [width for width in widths if isinstance(width, int)] if isinstance(widths, list | tuple) else ()
    return ()


def _parsed(*parts: str) -> ast.Module | None:
    """A file of the installed vLLM; ``None`` where there is none, or none that can be read."""
    spec = importlib.util.find_spec("vllm")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        try:
            return ast.parse(Path(folder, *parts).read_text(encoding="utf-8"))
        except (OSError, SyntaxError, ValueError):
            continue
    return None
