"""Prompts that are tokenised together have the tokens that they have alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from evomerge.models.loaded import LoadedModel
from fitness._lm_eval import model as model_module
from fitness._lm_eval.arguments import ModelArguments
from fitness._lm_eval.resident_model import resident_lm


@dataclass
class Asked:
    """What `loglikelihood` reads of an instance."""

    args: tuple[str, str]
    task_name: str = "task"
    doc_id: int = 0

    @property
    def doc(self) -> str:
        return self.args[0]


TEXTS = [
    ("w1 w2", " w3"),
    ("w1 w2 ", "w3 w4"),  # its space goes to the continuation
    ("w1  ", " w5"),
    ("", "w6 w7"),
    ("<bos> w1", " w2"),  # begins with the model's first token
    ("w1 w2", " w3"),
    ("unknown", " w3"),
]


@pytest.mark.parametrize("add_bos_token", [None, True, False])
def test_tokens_are_those_of_each_text_alone(
    model: LoadedModel, add_bos_token: bool | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    instances = [Asked(pair) for pair in TEXTS]
    arguments = ModelArguments(add_bos_token=add_bos_token)
    together = resident_lm(model, arguments)
    alone: list[str] = []
    encode = together.tokenizer.encode
    monkeypatch.setattr(together.tokenizer, "encode", lambda text, **more: alone.append(text) or encode(text, **more))
    found = together.token_requests(instances)
    assert set(alone) == {"w6 w7", "<bos> w1 w2", "<bos> w1"}  # the others came from one call
    monkeypatch.setattr(model_module, "encoded_ahead", lambda lm, instances: {})
    assert found == resident_lm(model, arguments).token_requests(instances)


def test_a_text_that_cannot_be_tokenised_is_named_alone(model: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    lm: Any = resident_lm(model, ModelArguments())

    def refuse(texts: Any, **_: Any) -> Any:
        raise TypeError(texts)

    monkeypatch.setattr(type(lm.tokenizer), "__call__", refuse)
    assert model_module.encoded_ahead(lm, [Asked(pair) for pair in TEXTS]) == {}
