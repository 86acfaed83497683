"""The one door to Pillow: whether it is there, and what files hold."""

from __future__ import annotations

import io
import warnings
from contextlib import suppress
from typing import Any

from evomerge.errors import ConfigError, FitnessError, reason_of

_SCAN, _END = b"\xff\xda", b"\xff\xd9"  # markers of JPEG, which its coded pixels never hold


def require_pillow() -> Any:
    """The module ``PIL.Image``; `ConfigError` where Pillow is not installed."""
    try:
        from PIL import Image
    except ImportError as error:
        raise ConfigError("images need Pillow, which is not installed", "", "pip install 'evomerge[images]'") from error
    return Image


def opened(data: bytes, where: str) -> Any:
    """Pillow's image of what a file holds: its head is read, its pixels are when they are asked for.

    Args:
        data: the bytes of the file.
        where: it is, for messages.

    Raises:
        FitnessError: it is no image that Pillow knows, or one of far too many pixels.
        ConfigError: Pillow is not installed.
    """
    image_module = require_pillow()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", image_module.DecompressionBombWarning)
            return image_module.open(io.BytesIO(data))
    except image_module.UnidentifiedImageError as error:  # whose text is the address of an object
        raise FitnessError(f"{where} is no image that Pillow reads", "an image") from error
    except Exception as error:  # decoders raise what they like on what is no image
        raise FitnessError(f"{where} is no image that Pillow reads ({reason_of(error)})", "an image") from error


def require_whole(data: bytes, where: str) -> None:
    """Raise `FitnessError` for what is no image, or an image whose file breaks off; few are decoded for it.

    PNGs are decoded where their chunks are not as their sums say, JPEGs where no end follows the last scan, others
    always.

    Args:
        data: the bytes of the file.
        where: it is, for messages.
    """
    with opened(data, where) as image:
        if image.format == "JPEG" and data.rfind(_END) > data.rfind(_SCAN):
            return
        if image.format == "PNG":
            with suppress(Exception):
                image.verify()
                return
    with opened(data, where) as image:
        try:
            image.load()
        except Exception as error:
            what = f"{where} is no whole image ({reason_of(error)})"
            raise FitnessError(what, "an image that Pillow reads to its end", "write or download it again") from error
