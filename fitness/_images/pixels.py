"""Images as a model reads them: decoded and processed once, kept in memory or in a file."""

from __future__ import annotations

import hashlib
import io
import json
import os
import secrets
import tempfile
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evomerge.errors import FitnessError, reason_of
from evomerge.utils.sizes import size_text
from fitness._images.decoding import opened, require_pillow
from fitness._images.sources import ImageItem

Pixels = NDArray[np.float32]
"""Of shape (images, channels, height, width)."""

FILES = ("preprocessor_config.json", "processor_config.json")


def load_processor(folder: str) -> Any:
    """The image processor of a model's folder.

    Raises:
        FitnessError: there is none, or transformers cannot load it.
    """
    check_processor(folder)
    require_pillow()
    from transformers import AutoImageProcessor
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()  # of torchvision, which it does without
    try:
        return AutoImageProcessor.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # processors raise whatever they like
        raise FitnessError(
            f"the image processor in {folder} cannot be loaded ({reason_of(error)})",
            "files that AutoImageProcessor.from_pretrained loads",
            "download them again, or name a folder that has one: fitness.processor=FOLDER",
        ) from error
    finally:
        logging.set_verbosity(level)


def check_processor(folder: str, *, given: bool = False) -> None:
    """Raise `FitnessError` where a folder has no image processor.

    Args:
        folder: the model's, or another.
        given: whether it is one that the configuration names.
    """
    if any(Path(folder, name).is_file() for name in FILES):
        return
    if given:
        what = "has no image processor" if Path(folder).is_dir() else "is no folder"
        do = "name another folder, or leave it out for the processor of the pool's base"
        raise FitnessError(f"processor names {folder!r}, which {what}", f"a folder with {FILES[0]}", do)
    raise FitnessError(
        f"{folder} has no image processor", FILES[0], "copy it from where the model is from, or set fitness.processor"
    )


def settings_of(processor: Any) -> str:
    """What a processor does, as a text: equal texts, equal tensors."""
    values = {key: value for key, value in processor.to_dict().items() if not key.startswith("_")}
    return json.dumps([type(processor).__name__, values], sort_keys=True, default=str)


def processed(items: Sequence[ImageItem], processor: Any, budget: int, folder: str) -> Pixels:
    """Decode and process images, one by one.

    Args:
        items: the images.
        processor: of the model.
        budget: bytes that they may take of memory; more of them lie in a file that is mapped.
        folder: where such files lie, and stay for other runs; a temporary one that goes with the process for empty.

    Raises:
        FitnessError: an image that is none; images that the processor does not make alike.
    """
    first = _process(items[0], processor)
    shape = (len(items), *first.shape)
    if int(np.prod(shape)) * 4 <= budget:
        found = np.empty(shape, np.float32)
        _fill(found, items, processor, first)
        return found
    kept = Path(folder).expanduser() if folder else Path(tempfile.mkdtemp(prefix="evomerge-images-"))
    digest = hashlib.sha256(settings_of(processor).encode())
    for item in items:
        digest.update(hashlib.sha256(item.read()).digest())
    path = kept / f"{digest.hexdigest()[:32]}.npy"
    if not _fits(path, shape):
        _write(path, shape, items, processor, first)
    mapped: Pixels = np.load(path, mmap_mode="r")
    if not folder:  # the mapping stays
        path.unlink()
        kept.rmdir()
    return mapped


def nbytes_of(count: int, processor: Any) -> int:
    """Bytes that so many images take, processed."""
    image = require_pillow().new("RGB", (64, 64))
    return count * int(_run(image, processor, "an image").size) * 4


def _fits(path: Path, shape: tuple[int, ...]) -> bool:
    try:
        own = np.load(path, mmap_mode="r")
    except (OSError, ValueError, EOFError):
        return False
    return bool(own.shape == shape and own.dtype == np.float32)


def _write(path: Path, shape: tuple[int, ...], items: Sequence[ImageItem], processor: Any, first: Pixels) -> None:
    """Write the file whole, or not at all."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        target = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.float32, shape=shape)
        _fill(target, items, processor, first)
        target.flush()
        del target
        os.replace(temporary, path)
    except OSError as error:
        needed = size_text(int(np.prod(shape)) * 4)
        raise FitnessError(
            f"{path} cannot be written ({error.strerror})", f"{needed} for processed images", "set fitness.cache=FOLDER"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def _fill(target: Pixels, items: Sequence[ImageItem], processor: Any, first: Pixels) -> None:
    for number, item in enumerate(items):
        own = first if number == 0 else _process(item, processor)
        if own.shape != target.shape[1:]:
            raise FitnessError(
                f"{item.where} is processed to shape {own.shape}, {items[0].where} to {target.shape[1:]}",
                "a processor that makes all images of one size",
                "set do_resize, and size or crop_size, in preprocessor_config.json",
            )
        target[number] = own


def _process(item: ImageItem, processor: Any) -> Pixels:
    picture = opened(item.read(), item.where)
    try:
        image = picture.convert("RGB")
    except Exception as error:  # decoders raise what they like on what is no image
        raise FitnessError(f"{item.where} is no image that Pillow reads ({reason_of(error)})", "an image") from error
    return _run(image, processor, item.where)


def _run(image: Any, processor: Any, where: str) -> Pixels:
    try:
        found = processor(images=[image], return_tensors="np")["pixel_values"]
        own: Pixels = np.asarray(found, dtype=np.float32)
    except Exception as error:
        raise FitnessError(
            f"{where} cannot be processed ({reason_of(error)})", "an image that the model reads"
        ) from error
    if own.ndim != 4 or len(own) != 1:
        raise FitnessError(f"{where} is processed to shape {own.shape}", "(1, channels, height, width)")
    one: Pixels = own[0]
    return one


def size_of(item: ImageItem) -> tuple[int, int]:
    """Height and width of an image, of which no more than its head is decoded."""
    image_module = require_pillow()
    try:
        with image_module.open(io.BytesIO(item.read())) as image:
            width, height = image.size
    except FitnessError:
        raise
    except Exception as error:
        raise FitnessError(f"{item.where} is no image that Pillow reads ({reason_of(error)})", "an image") from error
    return int(height), int(width)


def mask_of(item: ImageItem) -> NDArray[np.uint16]:
    """The numbers of classes that an image has for pixels: grey values, or places in a palette.

    Returns:
        Of shape (height, width).

    Raises:
        FitnessError: it is no image, or one in colours.
    """
    image_module = require_pillow()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", image_module.DecompressionBombWarning)
            found = np.asarray(image_module.open(io.BytesIO(item.read())))
    except FitnessError:
        raise
    except Exception as error:
        raise FitnessError(f"{item.where} is no image that Pillow reads ({reason_of(error)})", "a mask") from error
    if found.ndim == 3 and found.shape[2] == 3 and (found == found[..., :1]).all():
        found = found[..., 0]
    if found.ndim != 2 or found.dtype.kind not in "bui" or found.min() < 0 or found.max() > np.iinfo(np.uint16).max:
        raise FitnessError(
            f"{item.where} is an image of shape {found.shape} and {found.dtype}",
            "a mask: a number of a class for each pixel, grey or with a palette, from 0 to 65535",
            "convert colours to numbers first",
        )
    numbers: NDArray[np.uint16] = found.astype(np.uint16)
    return numbers


def digest_of(parts: Iterable[Pixels]) -> str:
    """A hash of processed images."""
    digest = hashlib.sha256()
    for own in parts:
        digest.update(str(own.shape).encode())
        for image in own:
            digest.update(np.ascontiguousarray(image).tobytes())
    return digest.hexdigest()
