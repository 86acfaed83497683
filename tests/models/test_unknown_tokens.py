from __future__ import annotations

from types import SimpleNamespace

from evomerge.models.unknown_tokens import UnknownTokens


def test_shares_are_of_the_tokens_of_a_file() -> None:
    own = SimpleNamespace(unk_token_id=3, bos_token_id=1, eos_token_id=2)
    found = UnknownTokens()
    found.add("a.txt", [1, 3, 3, 7, 2], own, "math")
    found.add("a.txt", [1, 5], own, "math")
    found.add("a.txt", [1, 3, 5], own, "lang")
    found.add("b.txt", [1, 4, 4, 4, 4, 3], own)
    assert found.shares == {"a.txt": 0.5, "b.txt": 0.2}
    assert found.lines("files") == [
        "files: 50% of the tokens of a.txt are unknown to the tokenizer, and all the same to a model; "
        "take texts in the words that it knows"
    ]


def test_tokenizers_that_know_all_are_not_counted() -> None:
    found = UnknownTokens()
    found.add("a.txt", [0, 0], SimpleNamespace(unk_token_id=None))
    found.add("a.txt", [0, 0], SimpleNamespace(unk_token_id=0, bos_token_id=0, eos_token_id=0))  # GPT-2's
    assert found.shares == {}
