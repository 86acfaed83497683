"""The one door to Pillow: whether it is there, and what files hold."""

from __future__ import annotations

import io
import warnings
from typing import Any

from evomerge.errors import ConfigError, FitnessError, reason_of


def require_pillow() -> Any:
    """The module ``PIL.Image``; `ConfigError` where Pillow is not installed."""
    try:
        from PIL import Image
    except ImportError as error:
        raise ConfigError("images need Pillow, which is not installed", "", "pip install 'evomerge[images]'") from error
    return Image


def verify(data: bytes, where: str) -> None:
    """`FitnessError` for bytes that are no image, or one that is cut off or damaged as far as its format tells.

    Nothing is decoded.
    """
    with opened(data, where) as image:
        try:
            image.verify()
        except Exception as error:  # decoders raise what they like
            raise FitnessError(f"{where} is no image that Pillow reads ({reason_of(error)})", "an image") from error


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
