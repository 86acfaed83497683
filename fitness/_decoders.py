"""What is only for models that write on where a text ends."""

from __future__ import annotations

from evomerge.errors import FitnessError
from evomerge.models.loaded import LoadedModel


def require_decoder(model: LoadedModel) -> None:
    """`FitnessError` for an encoder-decoder, whose texts are not continuations of its prompts."""
    if getattr(getattr(model.module, "config", None), "is_encoder_decoder", False):
        raise FitnessError(
            "the model is an encoder-decoder",
            "a decoder: texts are prompts and what follows them",
            "use fitness=lm_eval",
        )
