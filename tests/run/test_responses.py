from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from evomerge.candidate import Evaluation
from evomerge.run.folder import RunFolder
from evomerge.run.items import MOST_CHARACTERS
from evomerge.run.responses import read_responses, unanswered, write_responses


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder.create(tmp_path / "run")


def test_there_and_back(folder: RunFolder) -> None:
    write_responses(folder, Evaluation(3, "ok", "held_out", responses={"sums": ["2", ""], "talk": ["はい"]}))
    assert read_responses(folder, 3, "held_out") == {"sums": ["2", ""], "talk": ["はい"]}
    assert read_responses(folder, 3, "search") == read_responses(folder, 4, "held_out") == {}


def test_of_long_responses_both_ends_stay(folder: RunFolder) -> None:
    write_responses(folder, Evaluation(0, "ok", responses={"sums": ["first " + "x" * 5000 + " 42"]}))
    (text,) = read_responses(folder, 0, "search")["sums"]
    assert text.startswith("first x")
    assert text.endswith("x 42")
    assert len(text) <= MOST_CHARACTERS + 1


def test_nothing_is_written_of_no_responses_or_of_too_many(folder: RunFolder, caplog: pytest.LogCaptureFixture) -> None:
    write_responses(folder, Evaluation(0, "failed"))
    assert caplog.text == ""
    write_responses(folder, Evaluation(0, "ok", responses={"sums": ["x" * 1000] * 5000}))
    assert "was not written" in caplog.text
    assert not list(folder.items.iterdir())


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{}", '{"evomerge_responses": 2, "tasks": {}}', '{"evomerge_responses": 1, "tasks": {"a": 1}}'],
)
def test_other_files_have_no_responses(content: str, folder: RunFolder) -> None:
    folder.responses_file(0, "search").write_text(content)
    assert read_responses(folder, 0, "search") == {}


SUMS = ["I think\nthat", "4"]


def test_a_model_that_answers_nothing_right_is_named_with_two_answers() -> None:
    responses = {"sums": SUMS, "talk": ["yes"] * 5}
    nothing = {"sums/exact_match": np.zeros(5), "sums/wer": np.ones(5), "talk/acc": np.zeros(5)}
    better = ["sums/exact_match", "talk/acc"]
    line = "me scores 0 on all items of sums, talk; in sums, me answers 'I think that' and '4'"
    assert unanswered({"me": (responses, nothing)}, better) == line
    something = nothing | {"talk/acc": np.array([0.0, 1, 0, 0, 0])}
    assert unanswered({"me": (responses, something)}, better).startswith("me scores 0 on all items of sums; in")
    assert unanswered({"me": (responses, something)}, []) == ""  # of the metrics of sums one is not 0
    assert unanswered({"other": (responses, something), "me": (responses, nothing)}, better).startswith(
        "every model of the pool scores 0 on all items of sums; in sums, other answers"
    )


def test_that_one_of_several_models_knows_nothing_of_one_task_is_no_surprise() -> None:
    responses = {"sums": SUMS, "talk": ["yes"] * 5}
    one = {"sums/acc": np.zeros(5), "talk/acc": np.ones(5)}
    other = {"sums/acc": np.ones(5), "talk/acc": np.zeros(5)}
    assert unanswered({"a": (responses, one), "b": (responses, other)}, []) == ""
    neither = {"sums/acc": np.zeros(5), "talk/acc": np.zeros(5)}
    both = {"sums/acc": np.ones(5), "talk/acc": np.ones(5)}
    assert unanswered({"a": (responses, both), "b": (responses, neither)}, []).startswith("b scores 0 on all")


def test_likelihoods_are_no_answers() -> None:
    responses = {"sums": ["log-likelihood -3.00; greedy decoding gives something else"] * 5}
    assert unanswered({"me": (responses, {"sums/acc": np.zeros(5)})}, []) == ""


def test_few_items_say_nothing() -> None:
    assert unanswered({"me": ({"sums": ["1"] * 3}, {"sums/acc": np.zeros(3)})}, []) == ""
