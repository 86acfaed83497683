"""Features of images: of a network that the user names, of CLIP's towers, or the pixels themselves."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from evomerge.errors import FitnessError, PoolError, reason_of
from evomerge.models.checkpoints.location import resolve
from evomerge.models.progress_bars import no_progress_bar
from evomerge.models.tokenizers import load_tokenizer
from fitness._images.decoding import require_pillow, require_whole
from fitness._images.pixels import FILES, load_processor
from fitness._text_to_image.terms import BY_SET

PIXELS = "pixels"
Images = NDArray[np.uint8]
"""Of shape (images, height, width, channels), 1 or 3 channels."""
Features = NDArray[np.float64]
Extractor = Callable[[Images], Features]

_BATCH = 64


def check_tower(location: str, key: str, texts: bool = False) -> None:
    """Check by the small files of a model that it has what `Tower` needs, before anything is loaded.

    Args:
        location: a folder or a hub id.
        key: that names it, for messages.
        texts: whether a text tower is needed.

    Raises:
        FitnessError: it is not there, or is no model of images, or of images and texts.
    """
    try:
        folder, _ = resolve(location, whose=f"fitness.{key}'s", wanted=(["config.json", *FILES], []))
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except PoolError as error:
        raise FitnessError(f"fitness.{key}: {error.given}", error.allowed, error.do) from error
    except (OSError, ValueError) as error:
        what = f"fitness.{key}: {location} has no config.json that can be read ({reason_of(error)})"
        raise FitnessError(what, "the folder or hub id of a model") from error
    kind, needed = config.get("model_type"), "images and texts in one space, as CLIP is" if texts else "images"
    if not any((folder / name).is_file() for name in FILES) or (texts and "text_config" not in config):
        raise FitnessError(f"fitness.{key}: {location} is a model of kind {kind}", f"a model of {needed}")


def check_compared_with(names: Collection[str], values: Mapping[str, Any]) -> None:
    """Check what images are compared with: `check_tower` of ``clip`` and ``features``, and the folder of references.

    Args:
        names: of the metrics.
        values: the arguments of the fitness by their names.
    """
    if "clip" in names or "ncs" in names:
        check_tower(values["clip"], "clip", texts="clip" in names)
    if any(name in BY_SET for name in names):
        if isinstance(values["features"], str) and values["features"] != PIXELS:
            given = values["features"]
            if not Path(given).expanduser().exists() and get_close_matches(given, [PIXELS], cutoff=0.7):
                raise FitnessError(f"features is {given!r}, and there is no such folder", f"did you mean {PIXELS!r}?")
            check_tower(given, "features")
        check_images(files_in(values["references"], "references"))


def check_images(files: Iterable[str]) -> None:
    """`FitnessError` naming the first file that is no image, or one that breaks off; few are decoded."""
    for file in files:
        try:
            require_whole(Path(file).read_bytes(), file)
        except OSError as error:
            raise FitnessError(f"{file} cannot be read ({error.strerror})", "an image") from error


class Tower:
    """An image network of a folder, and where it has one, its text tower.

    Args:
        location: a folder or a hub id.
        key: that names it, for messages.
        device: where it computes.
        texts: whether a text tower is needed.

    Raises:
        FitnessError: it cannot be loaded, has no image processor, or no such tower.
    """

    def __init__(self, location: str, key: str, device: torch.device, texts: bool = False) -> None:
        from transformers import AutoModel

        self._key, self._device = key, device
        try:
            folder, _ = resolve(location, whose=f"fitness.{key}'s")
            self._tokenizer: Any = load_tokenizer(folder) if texts else None
            with no_progress_bar():
                module = AutoModel.from_pretrained(str(folder), dtype=torch.float32, trust_remote_code=False)
            self.module: Any = module.eval().to(device)
        except PoolError as error:
            raise FitnessError(f"fitness.{key}: {error.given}", error.allowed, error.do) from error
        except Exception as error:  # classes raise whatever they like
            what = f"fitness.{key}: {location} cannot be loaded ({reason_of(error)})"
            raise FitnessError(what, "a model that AutoModel.from_pretrained loads") from error
        self._processor = load_processor(str(folder))
        if texts and (not hasattr(self.module, "get_text_features") or self._tokenizer is None):
            raise FitnessError(
                f"fitness.{key}: {location} is a {type(self.module).__name__}, without a text tower and its tokenizer",
                "a model of images and texts in one space, as CLIP is",
            )

    def __call__(self, images: Images) -> Features:
        """Features of images, float64 of shape (images, width)."""
        found = []
        for start in range(0, len(images), _BATCH):
            pictures = [_picture(own) for own in images[start : start + _BATCH]]
            try:
                pixels = self._processor(images=pictures, return_tensors="pt")["pixel_values"]
            except Exception as error:  # processors raise what they like
                what = f"fitness.{self._key}: an image cannot be processed ({reason_of(error)})"
                raise FitnessError(what, "an image processor that takes images of any size") from error
            with torch.no_grad():
                found.append(_vectors(self.module, pixels.to(self._device)))
        return np.concatenate(found)

    def texts(self, texts: Sequence[str]) -> Features:
        """Features of texts, float64 of shape (texts, width)."""
        whole = self.module.config.model_type.startswith("siglip")  # which was trained on texts of one length
        most = self.module.config.text_config.max_position_embeddings
        found = []
        for start in range(0, len(texts), _BATCH):
            padding: Any = "max_length" if whole else True
            batch = self._tokenizer(
                list(texts[start : start + _BATCH]),
                padding=padding,
                truncation=True,
                max_length=most,
                return_tensors="pt",
            )
            wanted = ("input_ids",) if whole else ("input_ids", "attention_mask")
            given = {name: batch[name].to(self._device) for name in wanted if name in batch}
            with torch.no_grad():
                out = self.module.get_text_features(**given)
            found.append(getattr(out, "pooler_output", out).double().cpu().numpy())
        return np.concatenate(found)

    def digest(self) -> str:
        """A hash of its weights' first elements, and of how images are processed."""
        from fitness._images.pixels import settings_of

        digest = hashlib.sha256(settings_of(self._processor).encode())
        for name, tensor in self.module.state_dict().items():
            digest.update(name.encode() + tensor.reshape(-1)[:64].float().cpu().numpy().tobytes())
        return digest.hexdigest()


def pixels_of(images: Images) -> Features:
    """The pixels, from 0 to 1, of shape (images, height * width * channels)."""
    found: Features = images.reshape(len(images), -1).astype(np.float64) / 255.0
    return found


def unit(features: Features) -> Features:
    """Vectors of length 1."""
    found: Features = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    return found


def load_images(files: Sequence[str], size: tuple[int, int] | None, channels: int) -> Images:
    """Real images of one size and number of channels.

    Args:
        files: their paths.
        size: height and width to bring them to; ``None`` for as they are, all alike.
        channels: 1 or 3.

    Raises:
        FitnessError: a file that is no image, or of another size than the first.
    """
    image_module = require_pillow()
    found: list[Images] = []
    for file in files:
        try:
            with image_module.open(file) as opened:
                picture = opened.convert("L" if channels == 1 else "RGB")
        except Exception as error:  # decoders raise what they like
            raise FitnessError(f"{file} is no image that Pillow reads ({reason_of(error)})", "an image") from error
        if size is not None and picture.size != (size[1], size[0]):
            picture = picture.resize((size[1], size[0]), image_module.Resampling.BICUBIC)
        own = np.asarray(picture, dtype=np.uint8).reshape(picture.size[1], picture.size[0], channels)
        if found and own.shape != found[0].shape:
            raise FitnessError(f"{file} is {own.shape[:2]}, {files[0]} is {found[0].shape[:2]}", "images of one size")
        found.append(own)
    return np.stack(found)


def files_in(folder: str, key: str) -> list[str]:
    """The images in a folder and the folders in it, in order.

    Raises:
        FitnessError: there is no such folder, or no image in it.
    """
    from fitness._images.sources import read_folder

    return [str(item.file) for item in read_folder(str(Path(folder).expanduser()), key)]


def thumbnail(image: Images, size: int) -> str:
    """A small picture as text: a ``data:`` address that browsers show."""
    import base64
    import io

    image_module = require_pillow()
    picture = _picture(image)
    if max(picture.size) > size:
        picture.thumbnail((size, size))
    elif max(picture.size) * 2 <= size:  # of few pixels: each is to be seen
        factor = size // max(picture.size)
        picture = picture.resize((picture.size[0] * factor, picture.size[1] * factor), image_module.Resampling.NEAREST)
    stream = io.BytesIO()
    picture.save(stream, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"


def _picture(image: Images) -> Any:
    """One image, of shape (height, width, channels), for Pillow, in colours."""
    image_module = require_pillow()
    own = image[..., 0] if image.shape[-1] == 1 else image
    return image_module.fromarray(np.ascontiguousarray(own)).convert("RGB")


def _vectors(module: Any, pixels: torch.Tensor) -> Features:
    """A vector for each image: projected where the network projects, pooled, or the mean of what it gives."""
    out = module.get_image_features(pixel_values=pixels) if hasattr(module, "get_image_features") else module(pixels)
    for name in ("image_embeds", "pooler_output"):
        found = getattr(out, name, None)
        if isinstance(found, torch.Tensor):
            return found.reshape(len(pixels), -1).double().cpu().numpy()
    if not isinstance(out, torch.Tensor):
        out = out.last_hidden_state
    mean = out.mean(dim=1) if out.dim() == 3 else out.reshape(len(pixels), out.shape[1], -1).mean(-1)
    pooled: Features = mean.double().cpu().numpy()
    return pooled
