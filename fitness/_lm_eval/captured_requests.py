"""Stock code's own token requests, without an answer: what a model is asked is known before it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fitness._lm_eval.document_errors import no_target, tokenising
from fitness._lm_eval.model import TokenRequest


class CapturesRequests:
    """Beside a class of lm-eval's models that keeps what its `_loglikelihood_tokens` is called with.

    Attributes:
        captured: takes token requests instead of the model, where it is a list.
    """

    captured: list[Any] | None = None

    def token_requests(self, instances: Sequence[Any]) -> list[TokenRequest]:
        """What stock `loglikelihood` would ask for `instances`, in their order.

        Raises:
            FitnessError: a tokenizer that makes nothing of one, naming the task and document.
        """
        own: Any = self
        captured: list[Any] = []
        self.captured = captured
        try:
            for instance in instances:
                with tokenising(instance):
                    context, continuation = instance.args
                    if context == "" and not own.tok_encode(continuation, add_special_tokens=False):
                        raise no_target(instance)
                    own.loglikelihood([instance], disable_tqdm=True)
        finally:
            self.captured = None
        return [TokenRequest(*request) for request in captured]

    def token_windows(self, instance: Any) -> list[TokenRequest]:
        """The windows that stock `loglikelihood_rolling` would ask for one instance; none for an empty text."""
        own: Any = self
        captured: list[Any] = []
        self.captured = captured
        try:
            with tokenising(instance):
                own.loglikelihood_rolling([instance], disable_tqdm=True)
        finally:
            self.captured = None
        return [TokenRequest(*request) for request in captured]
