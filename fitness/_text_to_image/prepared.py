"""Everything that is made once: the pipeline around the network, features of references and prompts; and how images are
drawn and scored."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from evomerge.errors import FitnessError, reason_of
from evomerge.models.loaded import LoadedModel
from evomerge.models.memory import out_of_memory
from evomerge.models.pipelines.assembling import assemble
from evomerge.models.pipelines.checkpoint import NetworkCheckpoint
from evomerge.models.pipelines.folders import read_pipeline
from evomerge.models.pipelines.text_encoders import adapted_text_encoders
from fitness._text_to_image.distances import Real
from fitness._text_to_image.features import PIXELS, Extractor, Images, Tower, files_in, load_images, pixels_of, unit
from fitness._text_to_image.terms import BY_SET, Drawing, ScoreTerm

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class How:
    """How images are drawn and what they are compared with.

    Attributes:
        steps: of the sampler.
        guidance: its scale; ``None`` for the pipeline's own.
        sampler: a scheduler class of diffusers; empty for the pipeline's own.
        size: height and width; ``None`` for the pipeline's own.
        arguments: further ones of the pipeline's call.
        batch_size: images of a call.
        clip: model of images and texts, a folder; empty for none.
        features: a folder, ``pixels``, or an object; ``None`` for none.
        references: folder of real images; empty for none.
        scorer: an object that scores images; ``None`` for none.
    """

    steps: int
    guidance: float | None
    sampler: str
    size: tuple[int, int] | None
    arguments: Mapping[str, Any]
    batch_size: int
    clip: str
    features: Any
    references: str
    scorer: Any


class Prepared:
    """What `TextToImageFitness.prepare` makes.

    Args:
        model: a network of a pipeline.
        drawings: what is drawn.
        terms: the scores that count.
        how: how.

    Attributes:
        text: what a fingerprint is of.

    Raises:
        FitnessError: the model is no network of a pipeline; what is compared with cannot be read.
    """

    def __init__(self, model: LoadedModel, drawings: Sequence[Drawing], terms: Sequence[ScoreTerm], how: How) -> None:
        if model.rest is None or model.module is None:
            raise FitnessError("the model is no network of a pipeline", "pools with pool.network")
        self._drawings, self._terms, self._how = drawings, terms, how
        self._module = model.module
        self._pipeline = assemble(model.module, model.rest, model.dtype, model.device, how.sampler)
        self._names = {term.name for term in terms}
        self._clip: Tower | None = None
        self._texts: Floats | None = None
        self._references: Floats | None = None
        self._real: Real | None = None
        self._extractor: Extractor | None = None
        digests: list[Any] = []
        if self._names & {"clip", "ncs"}:
            self._clip = Tower(how.clip, "clip", model.device, texts="clip" in self._names)
            digests.append(self._clip.digest())
        if "clip" in self._names and self._clip is not None:
            self._texts = unit(self._clip.texts([own.prompt for own in drawings]))
        if "ncs" in self._names and self._clip is not None:
            files = list(dict.fromkeys(own.reference for own in drawings))
            known = np.concatenate([self._clip(load_images([file], None, 3)) for file in files])
            places = {file: place for place, file in enumerate(files)}
            self._references = unit(known[[places[own.reference] for own in drawings]])
            digests.append(hashlib.sha256(self._references.tobytes()).hexdigest())
        if self._names & set(BY_SET):
            self._prepare_real(model, digests)
        self.text = self._described(model, digests)

    def draw(self, model: LoadedModel, places: Sequence[int] | None) -> Images:
        """The images of a network, uint8 of shape (images, height, width, channels).

        Args:
            model: with the network that is asked.
            places: of the drawings; ``None`` for all.

        Raises:
            FitnessError: pixels that are not finite; what the pipeline refuses.
        """
        if model.module is not self._module:
            raise FitnessError(
                "the network is another one than the fitness was prepared for", "one network that changes"
            )
        chosen = list(range(len(self._drawings))) if places is None else list(places)
        found = []
        for start in range(0, len(chosen), self._how.batch_size):
            own = [self._drawings[place] for place in chosen[start : start + self._how.batch_size]]
            found.append(self._call(own))
        return np.concatenate(found)

    def scores(self, images: Images, places: Sequence[int] | None) -> tuple[dict[str, float], dict[str, Floats]]:
        """Values of the scores, and by image of those that are told of each.

        Raises:
            FitnessError: a value that is not finite, or of another shape.
        """
        chosen = list(range(len(self._drawings))) if places is None else list(places)
        by_image: dict[str, Floats] = {}
        values: dict[str, float] = {}
        if self._clip is not None:
            own = unit(self._clip(images))
            if self._texts is not None:
                by_image["clip"] = (own * self._texts[chosen]).sum(axis=1)
            if self._references is not None:
                # From -1 to 1 to 0 to 1 (arXiv 2508.16204, section 4.3).
                by_image["ncs"] = ((own * self._references[chosen]).sum(axis=1) + 1.0) / 2.0
        if self._extractor is not None and self._real is not None:
            features = np.asarray(self._extractor(images), dtype=np.float64).reshape(len(images), -1)
            if len(images) < 2:
                raise FitnessError("one image was drawn", "two or more for kid and fid", "raise fitness.images")
            if "kid" in self._names:
                by_image["kid"] = self._real.kid(features)
            if "fid" in self._names:
                values["fid"] = self._real.fid(features)
        if self._how.scorer is not None and "scorer" in self._names:
            given = np.asarray(
                self._how.scorer(images, [self._drawings[place].prompt for place in chosen]), dtype=np.float64
            )
            if given.shape != (len(images),):
                raise FitnessError(
                    f"fitness.scorer gives shape {given.shape}", f"({len(images)},): a number for each image"
                )
            by_image["scorer"] = given
        values |= {name: float(own.mean()) for name, own in by_image.items()}
        for name, value in values.items():
            if not np.isfinite(value):
                raise FitnessError(f"score {name} is {value}", "a finite number")
        return values, by_image

    def _call(self, drawings: Sequence[Drawing]) -> Images:
        """One call of the pipeline."""
        how = self._how
        arguments: dict[str, Any] = {"num_inference_steps": how.steps, "output_type": "np", **how.arguments}
        arguments["generator"] = [torch.Generator("cpu").manual_seed(own.seed) for own in drawings]
        if drawings[0].prompt:
            arguments["prompt"] = [own.prompt for own in drawings]
        else:
            arguments["batch_size"] = len(drawings)
        if how.guidance is not None:
            arguments["guidance_scale"] = how.guidance
        if how.size is not None:
            arguments["height"], arguments["width"] = how.size
        try:
            with torch.no_grad():
                images = self._pipeline(**arguments).images
        except FitnessError:
            raise
        except Exception as error:  # of the pipeline's own checks
            if out_of_memory(error) or not isinstance(error, TypeError | ValueError):
                raise
            raise FitnessError(
                f"{type(self._pipeline).__name__} refuses to draw ({reason_of(error)})",
                "prompts, steps, guidance, size and arguments that it takes",
            ) from error
        array = np.asarray(images)
        if array.ndim == 3:
            array = array[..., None]
        if not np.isfinite(array).all():
            raise FitnessError("the network draws pixels that are not finite", "finite weights")
        return (array * 255).round().astype(np.uint8)

    def _prepare_real(self, model: LoadedModel, digests: list[Any]) -> None:
        how, files = self._how, files_in(self._how.references, "references")
        if how.features == PIXELS:
            first = self._call(self._drawings[:1])  # says what size is drawn
            self._extractor = pixels_of
            real = load_images(files, first.shape[1:3], first.shape[3])
            features = pixels_of(real)
        elif isinstance(how.features, str):
            tower = Tower(how.features, "features", model.device)
            digests.append(tower.digest())
            self._extractor = tower
            features = np.concatenate([tower(load_images([file], None, 3)) for file in files])
        else:
            first = self._call(self._drawings[:1])
            self._extractor = how.features
            features = np.asarray(how.features(load_images(files, first.shape[1:3], first.shape[3])), dtype=np.float64)
        self._real = Real(features.reshape(len(files), -1))
        digests.append(hashlib.sha256(self._real.features.tobytes()).hexdigest())

    def _described(self, model: LoadedModel, digests: list[Any]) -> str:
        """All that scores depend on, but for the network itself."""
        how, rest = self._how, model.rest
        pipeline = read_pipeline(rest.folder)
        others, adapted = {}, adapted_text_encoders(rest)
        for name in sorted(pipeline.parts):
            if name == rest.network:
                continue
            own = rest.folder / name
            files = [file for pattern in ("*.json", "*.txt") for file in sorted(own.glob(pattern)) if file.is_file()]
            others[name] = [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]
            if (own / "config.json").is_file() and any(own.glob("diffusion_pytorch_model*.safetensors")):
                others[name].append(NetworkCheckpoint(rest.folder, name).fingerprint())
            if name in adapted:
                others[name].append(adapted[name].adapter.fingerprint())
            part = getattr(self._pipeline, name, None)
            if isinstance(part, torch.nn.Module):
                digest = hashlib.sha256()
                for key, tensor in part.state_dict().items():
                    digest.update(key.encode() + tensor.reshape(-1)[:64].float().cpu().numpy().tobytes())
                others[name].append(digest.hexdigest())
        content = {
            "versions": {name: importlib.metadata.version(name) for name in ("diffusers", "transformers", "torch")},
            "pipeline": [rest.pipeline, rest.network, pipeline.settings, others, str(model.dtype)],
            "draw": [how.steps, how.guidance, how.sampler, how.size, sorted(how.arguments.items()), how.batch_size],
            "drawings": [[own.prompt, own.seed] for own in self._drawings],
            "scores": [[term.name, term.weight, term.objective] for term in self._terms],
            "compared": digests,
            "scorer": _named(how.scorer) + _named(how.features),
        }
        return json.dumps(content, sort_keys=True, default=str)


def _named(given: Any) -> list[str]:
    """What tells an object of the user's from another: its class, and what it says of itself."""
    if given is None or isinstance(given, str):
        return [str(given)]
    own = getattr(given, "fingerprint", None)
    return [f"{type(given).__module__}.{type(given).__qualname__}", str(own()) if callable(own) else ""]
