"""What sessions have in common, whichever model answers: the requests of tasks, by type and as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from evomerge.candidate import Part
from fitness._lm_eval.scoring import TaskScorer


class TaskRequests:
    """The built requests of tasks, and lm-eval's model that they are for.

    Args:
        lm: lm-eval's model.
        scorers: by task, in lm-eval's order; their requests are built.

    Attributes:
        whole: the places of all documents by task.
    """

    def __init__(self, lm: Any, scorers: Mapping[str, TaskScorer]) -> None:
        self._lm, self._scorers = lm, scorers
        self.whole: Part = {name: range(len(scorer.documents)) for name, scorer in scorers.items()}

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
