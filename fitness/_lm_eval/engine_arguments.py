"""What a fitness can ask of another engine than transformers. Imports nothing heavy."""

from __future__ import annotations

from evomerge.errors import FitnessError
from fitness._lm_eval.arguments import ModelArguments
from fitness._lm_eval.forwards import Forwards

_DEFAULTS = ModelArguments()


class TakesEngines:
    """A fitness of lm-eval tasks as those see it who choose the engine that answers them."""

    _arguments: ModelArguments
    _forwards: Forwards

    def check_engine(self, engine: str) -> None:
        """Raise `FitnessError` for what lm-eval's model for an engine (``vllm``) has no argument for."""
        if engine != "vllm":
            return
        own = self._arguments
        for name, why in (
            ("mixed_precision_dtype", "vLLM computes in the model's dtype: set pool.dtype"),
            ("truncation", "lm_eval --model vllm cuts prompts at the engine's positions: set max_length"),
            ("logits_cache", "vLLM scores every request by itself"),
        ):
            if getattr(own, name) != getattr(_DEFAULTS, name):
                raise FitnessError(f"{name} is {getattr(own, name)} and evaluator.engine is vllm", why, "leave it out")
        if own.softmax_dtype not in ("auto", "float32"):
            given = f"softmax_dtype is {own.softmax_dtype} and evaluator.engine is vllm"
            raise FitnessError(given, "vLLM takes it in float32", "leave it out")
        if isinstance(own.think_end_token, int):
            given = f"think_end_token is {own.think_end_token} and evaluator.engine is vllm"
            raise FitnessError(given, "the token's text, such as '</think>'")
        for name, mode, stock in (
            ("forwards", self._forwards.mode, "exact"),
            ("generation", self._forwards.generation, "stock"),
        ):
            if mode not in (stock, "auto"):
                raise FitnessError(
                    f"{name} is {mode} and evaluator.engine is vllm",
                    "the engine itself keeps its batch full and computes common beginnings once",
                    f"leave it out, or set {name}={stock}",
                )
