"""Zero-shot heads: a classifier of image features from what a text tower makes of each class's prompts."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import torch

from evomerge.errors import FitnessError, PoolError, nearest, reason_of
from evomerge.models.checkpoints.headers import read_json
from evomerge.models.checkpoints.location import resolve
from evomerge.models.tokenizer_files import TOKENIZER_FILES, has_tokenizer
from evomerge.models.tokenizers import load_tokenizer
from fitness._images.terms import ImageTerm

_PROMPTS = 256  # in a forward of the text tower


@dataclass(frozen=True)
class ZeroShot:
    """The heads of several tasks.

    Attributes:
        weights: by task the classes' directions, float32 of shape (classes, width), each of length 1.
        projection: from an image tower's output to their space, of shape (width, hidden); ``None`` where the tower has
            one of its own.
        scale: that cosines are multiplied by.
    """

    weights: Mapping[str, torch.Tensor]
    projection: torch.Tensor | None
    scale: float

    def logits(self, module: Any, pixels: torch.Tensor, task: str) -> torch.Tensor:
        """Logits of a batch of images for a task's classes, float32."""
        found = _features(module, pixels)
        if self.projection is not None and found.shape[-1] == self.projection.shape[1] and not _projects(module):
            found = found @ self.projection.to(found).T
        found = torch.nn.functional.normalize(found.float(), dim=-1)
        return self.scale * found @ self.weights[task].to(found.device).T

    def digest(self) -> str:
        """A hash of all that they are."""
        digest = hashlib.sha256(str(self.scale).encode())
        for name, own in self.weights.items():
            digest.update(name.encode() + own.numpy().tobytes())
        if self.projection is not None:
            digest.update(self.projection.numpy().tobytes())
        return digest.hexdigest()


def has_head(config: Any) -> bool:
    """Whether a model of this configuration has a head for classes."""
    return any("ForImageClassification" in str(name) for name in config.architectures or ())


def prompts(term: ImageTerm, key: str, classes: Sequence[str]) -> list[list[str]]:
    """The prompts of each class: its name in every template.

    Raises:
        FitnessError: a name is given for no class.
    """
    for own in term.names:
        if own not in classes:
            raise FitnessError(f"{key}.names has {own!r}, a class of no image", nearest(own, classes))
    names = [term.names.get(own, own.replace("_", " ")) for own in classes]
    return [[template.replace("{}", name) for template in term.templates] for name in names]


def check_text_tower(location: str) -> None:
    """Check by the small files of a model that it has the text tower which `build` needs.

    Args:
        location: a folder or a hub id.

    Raises:
        FitnessError: it is not there, or has no text tower or no tokenizer.
    """
    try:
        folder, _ = resolve(location, whose="fitness.clip's", wanted=(["config.json", *TOKENIZER_FILES], []))
        config = read_json(folder / "config.json", "its configuration")
    except PoolError as error:
        raise FitnessError(f"fitness.clip: {error.given}", error.allowed, error.do) from error
    if "text_config" not in config:
        _refuse_tower(location, f"model of kind {config.get('model_type')}")
    if not has_tokenizer(folder):
        raise FitnessError(f"fitness.clip: {location} has no tokenizer", "that of its text tower", "download it again")


def _refuse_tower(location: str, what: str) -> NoReturn:
    raise FitnessError(
        f"fitness.clip: {location} is a {what}, without a text tower",
        "a model with a text tower and an image tower, such as openai/clip-vit-base-patch32",
        "set fitness.clip",
    )


@torch.no_grad()
def build(terms: Sequence[ImageTerm], classes: Mapping[str, Sequence[str]], location: str) -> ZeroShot:
    """Build the heads: of each class the mean direction of its prompts' (arXiv 2103.00020, section 3.1.4).

    Args:
        terms: the tasks.
        classes: of each task, in the order of the head's rows.
        location: a model with a text tower and an image tower in one space, such as CLIP: a folder or a hub id.

    Raises:
        FitnessError: it cannot be loaded, or has no such towers.
    """
    from transformers import AutoModel

    try:
        folder, _ = resolve(location, whose="fitness.clip's")
        tokenizer: Any = load_tokenizer(folder)
        module: Any = AutoModel.from_pretrained(str(folder), dtype=torch.float32, trust_remote_code=False).eval()
    except PoolError as error:
        raise FitnessError(error.given, error.allowed, error.do) from error
    except Exception as error:  # classes raise whatever they like
        raise FitnessError(f"fitness.clip: {location} cannot be loaded ({reason_of(error)})", "a CLIP model") from error
    if not hasattr(module, "get_text_features"):
        _refuse_tower(location, type(module).__name__)
    if tokenizer is None:
        raise FitnessError(f"{location} has no tokenizer", "that of its text tower", "download it again")
    weights = {}
    for place, term in enumerate(terms):
        texts = prompts(term, f"tasks[{place}]", classes[term.name])
        rows = [_text_features(module, tokenizer, own) for own in texts]
        mean = torch.stack([torch.nn.functional.normalize(own, dim=-1).mean(dim=0) for own in rows])
        weights[term.name] = torch.nn.functional.normalize(mean, dim=-1)
    projection = getattr(module, "visual_projection", None)
    scale = getattr(module, "logit_scale", None)
    return ZeroShot(
        weights,
        projection.weight.detach().clone() if projection is not None else None,
        float(scale.detach().exp()) if scale is not None else 1.0,
    )


def _text_features(module: Any, tokenizer: Any, texts: Sequence[str]) -> torch.Tensor:
    """Features of texts, float32 of shape (texts, width)."""
    whole = module.config.model_type.startswith("siglip")  # which was trained on texts of one length
    found = []
    for start in range(0, len(texts), _PROMPTS):
        batch = tokenizer(
            list(texts[start : start + _PROMPTS]),
            padding="max_length" if whole else True,
            truncation=True,
            max_length=module.config.text_config.max_position_embeddings,
            return_tensors="pt",
        )
        wanted = {name: batch[name] for name in ("input_ids", "attention_mask") if name in batch and not whole}
        wanted = wanted or {"input_ids": batch["input_ids"]}
        out = module.get_text_features(**wanted)
        found.append(getattr(out, "pooler_output", out))
    return torch.cat(found)


def _projects(module: Any) -> bool:
    return hasattr(module, "get_image_features") or hasattr(module, "visual_projection")


def _features(module: Any, pixels: torch.Tensor) -> torch.Tensor:
    """What an image tower gives for a batch, projected where it projects."""
    out = module.get_image_features(pixel_values=pixels) if hasattr(module, "get_image_features") else module(pixels)
    for name in ("image_embeds", "pooler_output"):
        found = getattr(out, name, None)
        if isinstance(found, torch.Tensor):
            return found
    if isinstance(out, torch.Tensor):
        return out
    raise FitnessError(
        f"{type(module).__name__} gives no features of an image", "a head for classes, or an image tower of CLIP's kind"
    )
