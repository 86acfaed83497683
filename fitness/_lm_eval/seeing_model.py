"""lm-eval's Hugging Face model of texts and images around a resident module, with pixels prepared once."""

from __future__ import annotations

import copy
import gc
import hashlib
import json
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import transformers
from lm_eval.models.hf_vlms import HFMultimodalLM
from lm_eval.models.huggingface import HFLM
from transformers import LogitsProcessorList

from evomerge.errors import FitnessError, reason_of
from evomerge.models.architecture.language_part import sees
from fitness._lm_eval.arguments import ModelArguments
from fitness._lm_eval.finite_scores import FiniteScores, NotFinite
from fitness._lm_eval.isolation import quietly
from fitness._lm_eval.model import ResidentLM
from fitness._lm_eval.resident_model import softmax_dtype_of

if TYPE_CHECKING:
    from evomerge.models.loaded import LoadedModel

_MOST = 2 * 2**30
"""Bytes of prepared batches that are kept in main memory; those beyond are prepared for every candidate."""


class SeeingLM(ResidentLM, HFMultimodalLM):
    """`HFMultimodalLM` around a module whose weights change in place.

    Requests with images are answered by stock code, with what its processor makes of a batch remembered. Requests
    without are those of `ResidentLM`.

    Args:
        model: the resident model; processor and configuration are those of its folder, with its tokenizer.
        arguments: as for ``lm_eval --model hf-multimodal``.
        softmax_dtype: of log-likelihoods, ``None`` for that of the logits.
    """

    def __init__(self, model: LoadedModel, arguments: ModelArguments, softmax_dtype: torch.dtype | None) -> None:
        self._folder = model.name_or_path
        self._ready: dict[Any, Any] = {}
        self._kept = 0
        super().__init__(model, arguments, softmax_dtype, **dict(arguments.image_args))

    def _create_tokenizer(self, pretrained: Any, tokenizer: Any, *args: Any, **kwargs: Any) -> None:
        """The processor of the folder, with the model's tokenizer: stock code loads both from the folder."""
        self.processor = transformers.AutoProcessor.from_pretrained(self._folder, **self.pixels)
        self.processor.tokenizer = tokenizer
        self.tokenizer = tokenizer

    def decides(self) -> dict[str, Any]:
        """What a fingerprint says of how images and chats are prepared."""
        settings = getattr(self.processor, "image_processor", None)
        told = json.dumps(settings.to_dict() if settings is not None else {}, sort_keys=True, default=str)
        return {"processor": told, "template": getattr(self.processor, "chat_template", None)}

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """Stock generation; requests without images are answered apart, as by a command of their own."""
        found: dict[int, str] = {}
        for images, stock in ((True, HFMultimodalLM), (False, HFLM)):
            numbers = [n for n, request in enumerate(requests) if (len(request.args) >= 3) == images]
            if numbers:
                gc.freeze()  # stock code collects garbage after every batch: of what is new, that takes no time
                try:
                    answers = stock.generate_until(self, [requests[n] for n in numbers], disable_tqdm=disable_tqdm)
                finally:
                    gc.unfreeze()
                found |= dict(zip(numbers, answers, strict=True))
        return [found[number] for number in range(len(requests))]

    def tok_batch_multimodal_encode(
        self,
        strings: Sequence[str],
        images: Sequence[Sequence[Any]],
        padding_side: str = "left",
        left_truncate_len: int | None = None,
        truncation: bool = False,
    ) -> Any:
        """Stock encoding of a padded batch with its images, remembered in main memory."""
        self._prompts = strings
        key = (tuple(strings), tuple(tuple(map(digest, each)) for each in images), left_truncate_len, truncation)
        known = self._ready.get(key)
        if known is None:
            found = super().tok_batch_multimodal_encode(
                list(strings), [list(each) for each in images], padding_side, left_truncate_len, truncation
            )
            nbytes = sum(value.nbytes for value in found.values() if isinstance(value, torch.Tensor))
            if self._kept + nbytes <= _MOST:
                self._kept += nbytes
                self._ready[key] = copy.copy(found).to("cpu")
            return found
        return copy.copy(known).to(self.device)

    def _model_multimodal_generate(self, inputs: Any, max_length: int, stop: list[str], **kwargs: Any) -> torch.Tensor:
        check = FiniteScores(at_once=bool(kwargs.get("do_sample")))
        start = time.perf_counter()
        try:
            tokens: torch.Tensor = super()._model_multimodal_generate(
                inputs, max_length, stop, logits_processor=LogitsProcessorList([check]), **kwargs
            )
            check.require_finite()
        except NotFinite as error:
            raise self._not_finite(error, self._prompts) from None
        self._seconds += time.perf_counter() - start
        return tokens


def digest(image: Any) -> str:
    """SHA-256 (hex) of what an image, a ``PIL.Image``, shows."""
    return hashlib.sha256(f"{image.mode} {image.size}".encode() + image.tobytes()).hexdigest()


def seeing_lm(model: LoadedModel, arguments: ModelArguments) -> SeeingLM:
    """lm-eval's model of texts and images around `model`.

    Raises:
        FitnessError: it reads texts alone, or the folder of its configuration has no processor.
    """
    if model.module is None or not sees(model.module.config):
        raise FitnessError(
            "tasks have images, and the model reads texts alone",
            "a pool of models that see: LLaVA's, Qwen2-VL's, SmolVLM's or Gemma 3's kind",
            "leave the tasks with images out",
        )
    try:
        with quietly():
            return SeeingLM(model, arguments, softmax_dtype_of(arguments, model.dtype))
    except FitnessError:
        raise
    except Exception as error:  # processors raise what they like
        raise FitnessError(
            f"lm-eval's hf-multimodal cannot be built from {model.name_or_path} ({reason_of(error)})",
            "a folder that AutoProcessor.from_pretrained loads, and an image token",
            "copy the files of the processor there, or see fitness.image_args",
        ) from error
