"""Opens models whose configuration and tokenizer files were changed, and tells what was not refused with one line.

    python scripts/fuzz_models.py                  # every case once
    python scripts/fuzz_models.py --cases 500      # so many, chosen by --seed

A case is a small model in which one field of a JSON file has another value (a wrong type, empty, huge, NaN), or one
file is something else (a pipe, a link, junk). Opening it, alone and beside the model it was made from, must work or
raise an `EvomergeError` of one line within `LIMIT` seconds; where it works, so must making the resident model. Anything
else is a crash; crashes are printed and the exit status is 1.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

from evomerge.errors import EvomergeError
from evomerge.merge.resident.model import Resident
from evomerge.models.opening import open_pool
from scripts.time_limit import TooLong, within

LIMIT = 60
LONGEST = 8000  # characters of a message
FILES = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json")


def _deep(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = {"a": value}
    return value


VALUES: dict[str, Any] = {
    "null": None,
    "true": True,
    "0": 0,
    "-1": -1,
    "3": 3,
    "1.5": 1.5,
    "10**30": 10**30,
    "10**3000": 10**3000,
    "1e308": 1e308,
    "NaN": float("nan"),
    "Infinity": float("inf"),
    "an empty text": "",
    "a text": "x",
    "a long text": "x" * 5000,
    "control characters": "a\n\x1b[31m\x00b",
    "a way out": "../../etc/passwd",
    "an empty list": [],
    "a list": [1, "x", None],
    "an empty mapping": {},
    "a mapping": {"a": {"b": 1}, "type": "x"},
    "nested": _deep(60),
    "text": "x y",
}

NEW: dict[str, tuple[str, ...]] = {
    "config.json": (
        "auto_map",
        "fusion_config",
        "id2label",
        "is_encoder_decoder",
        "layer_types",
        "per_layer_config",
        "quantization_config",
        "rope_scaling",
        "rope_theta",
        "text_config",
        "torch_dtype",
        "transformers_weights",
        "vision_config",
    ),
    "generation_config.json": ("cache_implementation", "stop_strings", "temperature", "watermarking_config"),
    "tokenizer.json": ("decoder", "normalizer", "padding", "post_processor", "truncation"),
    "tokenizer_config.json": (
        "added_tokens_decoder",
        "additional_special_tokens",
        "auto_map",
        "chat_template",
        "clean_up_tokenization_spaces",
        "extra_special_tokens",
        "padding_side",
        "processor_class",
    ),
}


@dataclass(frozen=True)
class Case:
    """One change of a model's folder.

    Attributes:
        name: what is changed, and into what.
        change: makes it so.
    """

    name: str
    change: Callable[[Path], None]


def make_model(folder: Path, seed: int = 0) -> Path:
    """A model of one layer with a tokenizer and a chat template."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
    from transformers.utils import logging

    logging.disable_progress_bar()
    config = LlamaConfig(
        vocab_size=24,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=32,
        pad_token_id=2,
    )
    torch.manual_seed(seed)
    LlamaForCausalLM(config).save_pretrained(folder)
    words = {word: i for i, word in enumerate(["<s>", "</s>", "<pad>", *(f"w{i}" for i in range(3, 24))])}
    inner = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    tokenizer.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}{% endfor %}"
    tokenizer.save_pretrained(folder)
    return folder


def cases(model: Path) -> Iterator[Case]:
    """All cases, in the same order for the same model."""
    for file in FILES:
        content = json.loads((model / file).read_text())
        places = [*_fields(content), *((key,) for key in NEW[file] if key not in content)]
        for place in places:
            for label, value in VALUES.items():
                yield Case(f"{file}: {'.'.join(map(str, place))} = {label}", _setting(file, place, value))
            yield Case(f"{file}: without {'.'.join(map(str, place))}", _setting(file, place, ...))
    for file in (*FILES, "chat_template.jinja", "special_tokens_map.json", "vocab.json", "model.safetensors"):
        for label, change in _SPECIAL.items():
            yield Case(f"{file}: {label}", _replacing(file, change))


def try_case(case: Case, model: Path, folder: Path) -> str:
    """What is wrong with how a changed model is opened; empty where nothing is.

    Args:
        case: the change.
        model: the folder that it is made to a copy of.
        folder: an empty folder to work in.
    """
    changed = folder / "changed"
    shutil.copytree(model, changed)
    try:
        case.change(changed)
        for names in ({"a": changed}, {"plain": model, "a": changed}):
            try:
                with within(LIMIT), warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    pool = open_pool({name: str(place) for name, place in names.items()}, fingerprints=False)
                    if len(names) == 1:
                        Resident(pool, cache=0)
            except EvomergeError as error:
                text = str(error)
                if "\n" in text or len(text) > LONGEST:
                    return f"the error has {text.count(chr(10)) + 1} lines and {len(text)} characters"
        return ""
    except TooLong as error:
        return str(error)
    except Exception as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    finally:
        shutil.rmtree(changed, ignore_errors=True)


def _fields(content: Any, depth: int = 0) -> Iterator[tuple[Any, ...]]:
    """The places of a JSON value, at most three deep and three of a list or a large mapping."""
    if depth == 3 or not isinstance(content, dict | list):
        return
    keys: list[Any] = list(content) if isinstance(content, dict) else list(range(len(content)))
    if (depth and len(keys) > 12) or isinstance(content, list):
        keys = keys[:2]
    for key in keys:
        yield (key,)
        for inner in _fields(content[key], depth + 1):
            yield (key, *inner)


def _setting(file: str, place: tuple[Any, ...], value: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        content = json.loads((folder / file).read_text())
        inside = content
        for key in place[:-1]:
            inside = inside[key]
        if value is not ...:
            inside[place[-1]] = value
        else:
            del inside[place[-1]]
        (folder / file).write_text(json.dumps(content))

    def lenient(folder: Path) -> None:
        try:
            change(folder)
        except KeyError:  # a new field that is to be left out
            return

    return lenient


def _replacing(file: str, change: Callable[[Path], object]) -> Callable[[Path], None]:
    def replace(folder: Path) -> None:
        path = folder / file
        if path.exists():
            path.rename(folder / "before")
        else:
            (folder / "before").write_text("{}")
        change(path)

    return replace


def _sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(2**31)


_SPECIAL: dict[str, Callable[[Path], object]] = {
    "gone": lambda path: None,
    "a pipe": lambda path: os.mkfifo(path),
    "a folder": lambda path: path.mkdir(),
    "a link out": lambda path: path.symlink_to("/etc/hostname"),
    "a link to nothing": lambda path: path.symlink_to("nothing"),
    "a link to itself": lambda path: path.symlink_to(path.name),
    "a device": lambda path: path.symlink_to("/dev/zero"),
    "empty": lambda path: path.write_bytes(b""),
    "junk": lambda path: path.write_bytes(bytes(range(256))),
    "an empty mapping": lambda path: path.write_text("{}"),
    "a list": lambda path: path.write_text("[]"),
    "with a byte order mark": lambda path: path.write_bytes(b"\xef\xbb\xbf" + (path.parent / "before").read_bytes()),
    "twice": lambda path: path.write_bytes(2 * (path.parent / "before").read_bytes()),
    "cut in half": lambda path: path.write_bytes((lambda d: d[: len(d) // 2])((path.parent / "before").read_bytes())),
    "brackets": lambda path: path.write_text("[" * 100_000),
    "two gigabytes of nothing": _sparse,
}


def main() -> int:
    """Try cases and print what went wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, help="how many; default: all")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    crashes = 0
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        model = make_model(root / "model")
        chosen = list(cases(model))
        if options.cases is not None:
            chosen = random.Random(options.seed).sample(chosen, min(options.cases, len(chosen)))
        for case in chosen:
            problem = try_case(case, model, root)
            if problem:
                crashes += 1
                print(f"{case.name}: {problem}", flush=True)
    print(f"{len(chosen)} cases, {crashes} crashes")
    return 1 if crashes else 0


if __name__ == "__main__":
    sys.exit(main())
