"""The requests of all tasks for a server: built and tokenised once, asked for every candidate by stock code."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from evomerge.errors import FitnessError
from fitness._lm_eval.answered_requests import AnsweredRequests
from fitness._lm_eval.chat import check_tokens
from fitness._lm_eval.isolation import quietly
from fitness._lm_eval.scoring import TaskScorer
from fitness._lm_eval.server_model import ServerLM

if TYPE_CHECKING:
    from evomerge.models.loaded import LoadedModel
    from fitness._lm_eval.arguments import ModelArguments


def server_lm(model: LoadedModel, arguments: ModelArguments) -> ServerLM:
    """lm-eval's model of the server that has `model`.

    Raises:
        FitnessError: no tokenizer, or one without a token that `arguments` name.
    """
    if model.tokenizer is None:
        raise FitnessError(
            "the model has no tokenizer", "lm-eval tasks need one", "add tokenizer files to the model's folder"
        )
    check_tokens(model.tokenizer, arguments.prefix_token_id, None)
    with quietly():
        return ServerLM(model, arguments)


class ServerSession(AnsweredRequests):
    """Scores with a server, on built tasks.

    Args:
        lm: of the server.
        scorers: by task, in lm-eval's order; their requests are built.
        rows: of the model's embeddings.
        asked: prompts in a request.
    """

    _lm: ServerLM

    def __init__(self, lm: ServerLM, scorers: Mapping[str, TaskScorer], rows: int, asked: int) -> None:
        super().__init__(lm, scorers)
        self._asked = asked
        by_type = self._tokenised()
        room = lm.max_length - 1  # a server writes a token after what it scores
        self._require_sound(by_type.get("loglikelihood", []), room)
        self._require_rows(by_type, rows)

    def decides(self) -> dict[str, Any]:
        """What of it goes into a fingerprint: not where the server is, which may be another one tomorrow."""
        return {"engine": "server", "batch_size": self._asked}
