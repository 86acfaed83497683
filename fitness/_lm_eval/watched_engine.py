"""vLLM's engine as stock code uses it, for one candidate or for several at once."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


class NotFiniteText(Exception):
    """A text was written from scores that are not finite: the tokens of its prompt."""

    def __init__(self, tokens: Sequence[int]) -> None:
        super().__init__(tokens)
        self.tokens = tuple(tokens)


class Unanswered(BaseException):
    """Stock code asks for what is not answered yet. Not an `Exception`: nothing of stock code takes it for its own."""


@dataclass
class Script:
    """What stock code asks an engine for one candidate, and what it was answered: code that is run again gets that.

    Attributes:
        answered: outputs of its calls, in order.
        asked: prompts and sampling parameters of the call that comes after those; ``None`` before it is made.
        place: of the next call.
    """

    answered: list[list[Any]] = field(default_factory=list)
    asked: tuple[Sequence[Any], Sequence[Any]] | None = None
    place: int = 0

    def next(self, prompts: Sequence[Any], sampling_params: Sequence[Any]) -> list[Any]:
        """The outputs of the next call.

        Raises:
            Unanswered: there are none yet.
        """
        if self.place == len(self.answered):
            self.asked = prompts, sampling_params
            raise Unanswered
        self.place += 1
        return self.answered[self.place - 1]


class WatchedEngine:
    """An engine as stock code uses it: without a bar, with its time measured, and with texts that are not finite found.

    Args:
        llm: a ``vllm.LLM``.

    Attributes:
        seconds: spent in it.
        adapter: that it is asked with; ``None`` for its own weights.
        script: answers instead of it, where there is one.
    """

    def __init__(self, llm: Any) -> None:
        self._llm = llm
        self.seconds = 0.0
        self.adapter: Any = None
        self.script: Script | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._llm, name)

    def generate(self, prompts: Sequence[Any], sampling_params: Sequence[Any], **options: Any) -> list[Any]:
        """As ``vllm.LLM.generate``.

        Raises:
            NotFiniteText: of a text that is written, the score of a token is NaN or infinite: vLLM writes on.
        """
        if self.script is not None:
            outputs = self.script.next(prompts, sampling_params)
        else:
            outputs = self._ask(prompts, sampling_params, self.adapter, **options)
        for output, params in zip(outputs, sampling_params, strict=True):
            own = params.prompt_logprobs is None
            score = output.outputs[0].cumulative_logprob if own else 0.0
            if score is not None and not math.isfinite(score):
                raise NotFiniteText(output.prompt_token_ids)
        return outputs

    def answer(self, scripts: Sequence[Script], adapters: Sequence[Any]) -> None:
        """Answer what several candidates ask, in one call: the engine batches over all of them.

        Args:
            scripts: of those that have asked for something.
            adapters: of each.
        """
        prompts: list[Any] = []
        parameters: list[Any] = []
        whose: list[Any] = []
        for script, adapter in zip(scripts, adapters, strict=True):
            assert script.asked is not None
            prompts += script.asked[0]
            parameters += script.asked[1]
            whose += [adapter] * len(script.asked[0])
        outputs = self._ask(prompts, parameters, whose)
        for script in scripts:
            assert script.asked is not None
            count = len(script.asked[0])
            script.answered.append(outputs[:count])
            script.asked, outputs = None, outputs[count:]

    def _ask(self, prompts: Sequence[Any], sampling_params: Sequence[Any], adapter: Any, **options: Any) -> list[Any]:
        for params in sampling_params:
            if params.prompt_logprobs is None and params.logprobs is None:
                params.logprobs = 0  # of the tokens that are written; which these are stays as it is
        start = time.perf_counter()
        given = {**options, "use_tqdm": False, "lora_request": adapter}
        outputs: list[Any] = self._llm.generate(prompts, sampling_params=sampling_params, **given)
        self.seconds += time.perf_counter() - start
        return outputs
