"""The requests of all tasks for an engine: built and tokenised once, answered for every candidate by stock code."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from evomerge.candidate import Part
from evomerge.errors import FitnessError
from fitness._lm_eval.answered_requests import AnsweredRequests, Answers
from fitness._lm_eval.chat import check_tokens
from fitness._lm_eval.engine_model import EngineLM, engine_version, says_nothing
from fitness._lm_eval.isolation import quietly, unlogged
from fitness._lm_eval.scoring import TaskScorer

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


class EngineSession(AnsweredRequests):
    """Scores with an engine, on built tasks: every candidate's requests go to lm-eval's own model at once.

    The engine batches by itself and computes prompts' common beginnings once, so that nothing is planned here.

    Args:
        lm: around the engine.
        scorers: by task, in lm-eval's order; their requests are built.
    """

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

    def ask_together(self, models: Sequence[LoadedModel], places: Sequence[Part]) -> list[Answers | Exception]:
        """What several candidates answer on documents of their own, at once; or what a candidate's answers raised.

        Seconds in the engine are divided by the number of requests.

        Args:
            models: on one engine, with an adapter each.
            places: each candidate's documents by task.
        """
        found: list[Answers | Exception] = [Answers() for _ in models]
        asked = [self._by_type(own) for own in places]
        for kind in dict.fromkeys(kind for own in asked for kind in own):
            going = [n for n, own in enumerate(asked) if kind in own and isinstance(found[n], Answers)]
            instances = [asked[n][kind] for n in going]
            with unlogged():
                answers, spent = self._lm.answer_together(kind, instances, [models[n] for n in going])
            each = spent / max(1, sum(map(len, instances)))
            for number, given in zip(going, answers, strict=True):
                own = found[number]
                if isinstance(given, Exception):
                    found[number] = given
                elif isinstance(own, Answers):
                    own.add(kind, given, each * len(given))
        return found

    def decides(self) -> dict[str, Any]:
        """What of it goes into a fingerprint."""
        return {"engine": f"vllm {engine_version()}"}
