"""How models are asked where things are: some give every pixel a class, SAM's kind a mask for each prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from evomerge.errors import FitnessError, PoolError, reason_of
from evomerge.models.checkpoints.headers import read_json
from evomerge.models.checkpoints.location import resolve
from fitness._images.pixels import FILES
from fitness._segmentation.prompts import Prompts
from fitness._segmentation.scored import stretch

Kind = Literal["classes", "prompts", "encoder"]
"""A class for every pixel; a mask for every prompt; the image encoder of one of these alone."""

_PROMPTED = ("SamModel", "SamHQModel")
_ENCODERS = ("SamVisionModel",)
_PADDING = -10  # label of a point that only fills up, in transformers' SAM


def kind_of(config: Any) -> Kind:
    """How a model of this configuration is asked.

    Raises:
        FitnessError: it segments nothing, or in another way.
    """
    names = [str(name) for name in config.architectures or ()]
    if any("ForSemanticSegmentation" in name for name in names):
        return "classes"
    if any(name in _PROMPTED for name in names):
        return "prompts"
    if any(name in _ENCODERS for name in names):
        return "encoder"
    raise FitnessError(
        f"a {names[0] if names else config.model_type} gives no masks",
        f"...ForSemanticSegmentation, {', '.join((*_PROMPTED, *_ENCODERS))}",
        "name the class that it was saved from in its config.json",
    )


def processor_settings(folder: str) -> dict[str, Any]:
    """What an image processor's file says of how images are cut and masks are read.

    Raises:
        FitnessError: images are cropped, after which no one knows where on the image a mask is.
    """
    for name in FILES:
        path = Path(folder, name)
        if path.is_file():
            try:
                found = read_json(path, "how images are processed")
            except PoolError as error:
                raise FitnessError(error.given, error.allowed, error.do) from error
            found = found.get("image_processor", found) if isinstance(found, dict) else {}
            if found.get("do_center_crop"):
                what = f"the image processor in {folder} crops images, and masks are of whole ones"
                raise FitnessError(what, "do_center_crop: false", f"set it in {path.name}, with size for size")
            return dict(found)
    return {}


@dataclass(frozen=True)
class Frame:
    """Where on what the model reads an image is: from the left top on, the rest is padding.

    Attributes:
        inner: height and width of the image there.
        whole: height and width of what the model reads.
    """

    inner: tuple[int, int]
    whole: tuple[int, int]


def frame_of(processor: Any, size: Sequence[int], whole: Sequence[int]) -> Frame:
    """Where an image lies on what a processor makes of it.

    SAM's makes its longer side as long as the model wants and pads the other; others stretch images.

    Args:
        processor: of the model.
        size: height and width of the image.
        whole: height and width of what the model reads.
    """
    longest = getattr(getattr(processor, "size", None), "longest_edge", None)
    if longest is None and isinstance(getattr(processor, "size", None), dict):
        longest = processor.size.get("longest_edge")
    height, width = int(whole[0]), int(whole[1])
    if not longest or not getattr(processor, "do_pad", False):
        return Frame((height, width), (height, width))
    scale = int(longest) / max(size)
    return Frame((int(size[0] * scale + 0.5), int(size[1] * scale + 0.5)), (height, width))


def find_sam(location: str) -> str:
    """The folder of the model whose prompt encoder and mask decoder score image encoders.

    Raises:
        FitnessError: nothing is named, it is not there, or is no SAM.
    """
    if not location:
        what = "the pool has image encoders alone, which give no masks"
        raise FitnessError(what, "a SAM that has the rest", "set fitness.sam=FOLDER")
    try:
        folder, _ = resolve(location, whose="fitness.sam's")
        config = read_json(Path(folder, "config.json"), "what model it is")
    except PoolError as error:
        raise FitnessError(error.given, error.allowed, error.do) from error
    kind = config.get("model_type") if isinstance(config, dict) else None
    if kind != "sam":
        raise FitnessError(f"fitness.sam: {location} is a {kind}", "a SAM: SamModel")
    return str(folder)


def load_sam(location: str) -> Any:
    """That model, float32.

    Raises:
        FitnessError: as for `find_sam`, or it cannot be loaded.
    """
    from transformers import SamModel

    folder = find_sam(location)
    try:
        return SamModel.from_pretrained(folder, dtype=torch.float32).eval()
    except Exception as error:  # classes raise whatever they like
        raise FitnessError(f"fitness.sam: {location} cannot be loaded ({reason_of(error)})", "a SAM") from error


def masks_for(
    module: Any, sam: Any, pixels: torch.Tensor, prompts: Prompts, frame: Frame, size: Sequence[int]
) -> torch.Tensor:
    """The mask of each prompt, the model's single one, as SAM's processor brings it back to the image's size.

    Args:
        module: a SAM; or its image encoder, where `sam` has the rest.
        sam: what has the rest; ``None`` where `module` does.
        pixels: of the image as the model reads it, of shape (channels, height, width).
        prompts: of the image.
        frame: where it lies on `pixels`.
        size: height and width of the image.

    Returns:
        Logits, positive inside; float32 of shape (things, height, width).
    """
    scale = np.array([frame.inner[1] / size[1], frame.inner[0] / size[0]])
    places = torch.from_numpy(prompts.places.reshape(-1, 2) * scale).reshape(prompts.places.shape)
    asked: dict[str, Any] = {}
    owner = module if sam is None else sam
    dtype = next(owner.parameters()).dtype
    if prompts.given is None:
        asked["input_boxes"] = places[None].to(pixels.device, dtype)
    else:
        labels = torch.from_numpy(np.where(prompts.given, 1, _PADDING))
        asked["input_points"] = places[None].to(pixels.device, dtype)
        asked["input_labels"] = labels[None].to(pixels.device)
    if sam is None:
        asked["pixel_values"] = pixels[None]
    else:
        asked["image_embeddings"] = module(pixel_values=pixels[None])[0].to(dtype)
    found = owner(**asked, multimask_output=False).pred_masks[0, :, 0]
    inner = stretch(found, frame.whole)[:, : frame.inner[0], : frame.inner[1]]
    return stretch(inner, size)
