"""What sessions have in common, whichever model answers: the requests of tasks, by type and as text."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from evomerge.candidate import Part
from evomerge.errors import FitnessError
from fitness._lm_eval.document_errors import place_of, require_tokens
from fitness._lm_eval.model import TokenRequest
from fitness._lm_eval.scoring import TaskScorer

_log = logging.getLogger(__name__)
KINDS = ("loglikelihood", "loglikelihood_rolling", "generate_until")
"""What tasks may ask for."""


class TaskRequests:
    """The built requests of tasks, and lm-eval's model that they are for.

    Args:
        lm: lm-eval's model.
        scorers: by task, in lm-eval's order; their requests are built.

    Attributes:
        whole: the places of all documents by task.
        requests: token requests by identity of the instance.
    """

    def __init__(self, lm: Any, scorers: Mapping[str, TaskScorer]) -> None:
        self._lm, self._scorers = lm, scorers
        self.whole: Part = {name: range(len(scorer.documents)) for name, scorer in scorers.items()}
        self.requests: dict[int, list[TokenRequest]] = {}

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Tokens of texts, without special ones."""
        encoded = self._lm.tokenizer(list(texts), add_special_tokens=False)["input_ids"] if texts else []
        return [len(ids) for ids in encoded]

    def prompt_settings(self, prompts: Mapping[str, Any]) -> dict[str, Any]:
        """How prompts are written, as lm-eval's results name it."""
        asked = prompts["apply_chat_template"]
        return {
            "system_instruction": prompts["system_instruction"],
            "chat_template": self._lm.chat_template(asked) if asked else None,
            "fewshot_as_multiturn": prompts["fewshot_as_multiturn"],
        }

    def _by_type(self, places: Part) -> dict[str, list[Any]]:
        """Instances by request type in stock order: tasks as asked, documents in order, repeats together."""
        by_type: dict[str, list[Any]] = {}
        for name, of_task in places.items():
            for place in of_task:
                for instance in self._scorers[name].documents[place]:
                    by_type.setdefault(instance.request_type, []).extend([instance] * instance.repeats)
        return by_type

    def _tokenised(self) -> dict[str, list[Any]]:
        """All instances by request type, once `requests` has the tokens of those that are scored.

        Raises:
            FitnessError: a task asks for something else than `KINDS`; texts that cannot be tokenised, or have no room.
        """
        by_type = self._by_type(self.whole)
        for kind, instances in by_type.items():
            if kind not in KINDS:
                raise FitnessError(f"task {instances[0].task_name!r} asks for {kind!r}", f"one of: {', '.join(KINDS)}")
        loglikelihood = by_type.get("loglikelihood", [])
        for instance, request in zip(loglikelihood, self._lm.token_requests(loglikelihood), strict=True):
            self.requests[id(instance)] = [request]
        for instance in by_type.get("loglikelihood_rolling", []):
            self.requests[id(instance)] = self._lm.token_windows(instance)
        for instance in by_type.get("generate_until", []):
            self._lm.require_room(instance)
        return by_type

    def _require_sound(self, loglikelihood: Sequence[Any], room: int) -> None:
        """Raise unless every target can be scored; warn of contexts that lose their beginning.

        Args:
            loglikelihood: the requests.
            room: tokens of a context and its target together that the model takes.

        Raises:
            FitnessError: a context or target without tokens, or a target that leaves no token of its context.
        """
        cut = 0
        for instance in loglikelihood:
            (request,) = self.requests[id(instance)]
            require_tokens(instance, request.context, request.continuation)
            if len(request.continuation) >= room:
                raise FitnessError(
                    f"{place_of(instance)} has a target of {len(request.continuation)} tokens",
                    f"at most {room - 1}: with a token before them, what the model takes",
                )
            cut += len(request.context) + len(request.continuation) > room
        if cut:
            _log.warning(
                "%d requests have more than the %d tokens that the model takes and lose their beginning", cut, room
            )

    def _require_rows(self, by_type: Mapping[str, list[Any]], rows: int) -> None:
        """Raise unless the model has an embedding for every token: a tokenizer may have been given more.

        Args:
            by_type: all instances.
            rows: of the model's embeddings.

        Raises:
            FitnessError: names the document.
        """
        for instances in by_type.values():
            for instance in instances:
                asked = self.requests.get(id(instance))
                if asked is None:
                    tokens = self._lm.tok_encode(str(instance.args[0]))
                else:
                    tokens = [token for request in asked for token in (*request.context, *request.continuation)]
                if max(tokens, default=0) >= rows:
                    raise FitnessError(
                        f"{place_of(instance)} has token {max(tokens)}",
                        f"below {rows}, the rows of the model's embeddings",
                        "resize the embeddings as the tokenizer was, or take another tokenizer",
                    )
