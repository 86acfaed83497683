"""What lm-eval's model of texts and images takes beside what its model of texts does. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from evomerge.errors import ConfigError, nearest

_KINDS: Mapping[str, type] = {
    "image_token_id": int,
    "image_string": str,
    "interleave": bool,
    "max_images": int,
    "convert_img_format": bool,
    "min_pixels": int,
    "max_pixels": int,
    "image_width": int,
    "image_height": int,
    "image_max_side": int,
}
IMAGE_ARGUMENTS = tuple(_KINDS)
"""Names, as in lm-eval's ``--model hf-multimodal --model_args``."""
_WHAT = {int: "a whole number, 1 or more", str: "a text", bool: "true or false"}


def check_image_arguments(given: Any, key: str) -> None:
    """Raise `ConfigError` unless `given` is a mapping of such arguments, naming the argument."""
    if not isinstance(given, Mapping):
        raise ConfigError(f"{key} is {given!r}", f"a mapping of {', '.join(IMAGE_ARGUMENTS)}")
    for name, value in given.items():
        if name not in _KINDS:
            raise ConfigError(f"{key} has {name!r}", nearest(str(name), IMAGE_ARGUMENTS))
        kind = _KINDS[name]
        least = 0 if name == "image_token_id" else 1
        if type(value) is not kind or (isinstance(value, int) and kind is int and value < least):
            raise ConfigError(f"{key}.{name} is {value!r}", _WHAT[kind])
    if "image_max_side" in given and ("image_width" in given or "image_height" in given):
        raise ConfigError(f"{key} has image_max_side and a width or height", "one of the two", "leave the other out")
