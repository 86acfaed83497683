"""What a fitness can ask of another engine than transformers. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from evomerge.errors import FitnessError
from fitness._lm_eval.arguments import ModelArguments
from fitness._lm_eval.forwards import Forwards
from fitness._lm_eval.generation_names import check_engine_names
from fitness._lm_eval.settings import BuildSettings
from fitness._lm_eval.terms import TaskTerm

if TYPE_CHECKING:
    from evomerge.candidate import Part
    from evomerge.models.loaded import LoadedModel
    from evomerge.protocols import Scores

_DEFAULTS = ModelArguments()
_WHY: Mapping[str, Mapping[str, str]] = {
    "vllm": {
        "mixed_precision_dtype": "vLLM computes in the model's dtype: set pool.dtype",
        "truncation": "lm_eval --model vllm cuts prompts at the engine's positions: set max_length",
        "logits_cache": "vLLM scores every request by itself",
    },
    "server": {
        "mixed_precision_dtype": "the server computes as it was started",
        "truncation": "lm_eval --model local-completions cuts prompts at the model's positions: set max_length",
        "logits_cache": "the server scores every request by itself",
        "enable_thinking": "lm_eval --model local-completions does not cut what a model thinks",
        "think_end_token": "lm_eval --model local-completions does not cut what a model thinks",
    },
}
"""By engine the arguments that its model in lm-eval does not have, and why."""


class TakesEngines:
    """A fitness of lm-eval tasks as those see it who choose the engine that answers them."""

    reads: ClassVar[str] = "texts"
    zero_hint: ClassVar[str] = (
        "if these look right, compare them with the task's filters and stop strings; if they do not, set "
        "fitness.apply_chat_template, or more fitness.num_fewshot"
    )

    _arguments: ModelArguments
    _forwards: Forwards
    _settings: BuildSettings
    _terms: Sequence[TaskTerm]

    def run_together(self, models: Sequence[LoadedModel], parts: Sequence[Part | None]) -> list[Scores | Exception]:
        """`run` for several models of one engine, each with an adapter of its own; what one raises is in its place."""
        from fitness._lm_eval.scored import scores_together

        own: Any = self
        found, own._scored = scores_together(own._ready(), models, parts, *own._how())
        return found

    def check_engine(self, engine: str) -> None:
        """Raise `FitnessError` for what lm-eval's model for an engine (``vllm``, ``server``) has no argument for.

        ``transformers`` has all but some names of arguments of generation.
        """
        check_engine_names(engine, self._settings.gen_kwargs, self._terms)
        if engine not in _WHY:
            return
        own = self._arguments
        for name, why in _WHY[engine].items():
            if getattr(own, name) != getattr(_DEFAULTS, name):
                raise FitnessError(
                    f"{name} is {getattr(own, name)} and evaluator.engine is {engine}", why, "leave it out"
                )
        if own.softmax_dtype not in ("auto", "float32"):
            given = f"softmax_dtype is {own.softmax_dtype} and evaluator.engine is {engine}"
            raise FitnessError(
                given, "vLLM takes it in float32" if engine == "vllm" else "the server's own", "leave it out"
            )
        if isinstance(own.think_end_token, int):
            given = f"think_end_token is {own.think_end_token} and evaluator.engine is vllm"
            raise FitnessError(given, "the token's text, such as '</think>'")
        for name, mode, stock in (
            ("forwards", self._forwards.mode, "exact"),
            ("generation", self._forwards.generation, "stock"),
        ):
            if mode not in (stock, "auto"):
                raise FitnessError(
                    f"{name} is {mode} and evaluator.engine is {engine}",
                    "the engine itself keeps its batch full and computes common beginnings once",
                    f"leave it out, or set {name}={stock}",
                )
