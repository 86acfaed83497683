"""The requests of all tasks for an engine: built and tokenised once, answered for every candidate by stock code."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from evomerge.candidate import Part
from evomerge.errors import FitnessError
from fitness._lm_eval.chat import check_tokens
from fitness._lm_eval.document_errors import require_finite
from fitness._lm_eval.engine_model import EngineLM, engine_version, says_nothing
from fitness._lm_eval.isolation import quietly, unlogged
from fitness._lm_eval.scoring import RawValues, TaskScorer
from fitness._lm_eval.task_requests import TaskRequests

if TYPE_CHECKING:
    from evomerge.models.loaded import LoadedModel
    from fitness._lm_eval.arguments import ModelArguments

_log = logging.getLogger(__name__)


def engine_lm(model: LoadedModel, arguments: ModelArguments) -> EngineLM:
    """lm-eval's model around the engine of `model`.

    Raises:
        FitnessError: no tokenizer, or one without a token that `arguments` name.
    """
    if model.tokenizer is None:
        raise FitnessError(
            "the model has no tokenizer", "lm-eval tasks need one", "add tokenizer files to the model's folder"
        )
    check_tokens(model.tokenizer, arguments.prefix_token_id, arguments.think_end_token)
    with quietly():
        return EngineLM(model, arguments)


class EngineSession(TaskRequests):
    """Scores with an engine, on built tasks: every candidate's requests go to lm-eval's own model at once.

    The engine batches by itself and computes prompts' common beginnings once, so that nothing is planned here.

    Args:
        lm: around the engine.
        scorers: by task, in lm-eval's order; their requests are built.

    Attributes:
        shares: no: what `Session` shares is the engine's own business.
    """

    shares = False

    _lm: EngineLM

    def __init__(self, lm: EngineLM, scorers: Mapping[str, TaskScorer]) -> None:
        super().__init__(lm, scorers)
        by_type = self._tokenised()
        open_tasks = dict.fromkeys(i.task_name for i in by_type.get("generate_until", []) if says_nothing(i.args[1]))
        for name in open_tasks:
            _log.warning(
                "task %r names neither do_sample nor temperature: its texts are greedy, as those of lm_eval --model "
                "vllm --gen_kwargs temperature=0; without that, the command draws them at temperature 1",
                name,
            )
        room = lm.max_length - 1  # vLLM writes a token after what it scores
        self._require_sound(by_type.get("loglikelihood", []), room)
        self._require_rows(by_type, lm._config.get_text_config().vocab_size)

    def score(self, model: LoadedModel, places: Part, raw: dict[str, RawValues]) -> tuple[float, dict[str, float]]:
        """Score the documents at `places` into `raw`; returns the seconds spent in the engine, and the tokens.

        Raises:
            FitnessError: a score that is not finite, naming the task and document.
        """
        self._lm.rebind(model)
        seconds, tokens = 0.0, 0
        for kind, instances in self._by_type(places).items():
            for instance in instances:
                instance.resps, instance.filtered_resps = [], {}
            with unlogged():  # what it warns of it would say for every candidate
                answers, spent = self._lm.answer(kind, instances)
            seconds += spent
            if kind != "generate_until":
                values = [answer[0] if isinstance(answer, tuple) else answer for answer in answers]
                require_finite(np.array(values, dtype=np.float64), instances)
            for instance, answer in zip(instances, answers, strict=True):
                instance.resps.append(answer)
                tokens += sum(len(r.context) + len(r.continuation) for r in self.requests.get(id(instance), ()))
        for name, of_task in places.items():
            if of_task:
                self._scorers[name].collect(of_task, raw.setdefault(name, {}))
        return seconds, {"run": tokens, "stock": tokens}

    @contextmanager
    def exactly(self) -> Iterator[None]:
        """Score as lm-eval does within this: as always."""
        yield

    def decides(self) -> dict[str, Any]:
        """What of it goes into a fingerprint."""
        return {"engine": f"vllm {engine_version()}"}
