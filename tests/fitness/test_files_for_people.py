"""What candidates write for people to read, beside plain transformers; and what is refused before."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from evomerge.config.trust import check_trust
from evomerge.errors import ConfigError, FitnessError
from evomerge.models.loaded import LoadedModel
from fitness.files import FilesFitness
from fitness.several import SeveralFitness
from fitness.unlabelled import UnlabelledFitness

PROMPTS = ("w1 w2 w3", "w9", "w4 w5 w6 w7 w8", "w3 w2 w1")


@pytest.fixture
def model(model_folder: Path) -> LoadedModel:
    module = AutoModelForCausalLM.from_pretrained(model_folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    return LoadedModel(module, tokenizer, torch.float32, torch.device("cpu"), str(model_folder))


@pytest.fixture
def file(tmp_path: Path) -> str:
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps({"prompt": text}) + "\n" for text in PROMPTS))
    return str(tmp_path / "prompts.jsonl")


def written(fitness: FilesFitness, model: LoadedModel) -> dict[str, Any]:
    fitness.check()
    fitness.prepare(model)
    scores = fitness.run(model)
    assert scores.objectives == {}
    return dict(scores.responses)


def generated(model: LoadedModel, text: str, tokens: int) -> str:
    """What transformers' own generate writes."""
    ids = model.tokenizer(text, return_tensors="pt").input_ids
    out = model.module.generate(ids, do_sample=False, max_new_tokens=tokens, pad_token_id=0)
    return str(model.tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True))


@pytest.mark.parametrize("chat", [False, True])
def test_the_likeliest_tokens_as_transformers_generates_them(chat: bool, file: str, model: LoadedModel) -> None:
    fitness = FilesFitness({"all": file, "first": {"file": file, "limit": 1}}, tokens=9, chat_template=chat)
    asked = [f"user : {text} . assistant : " if chat else text for text in PROMPTS]
    expected = [generated(model, text, 9) for text in asked]
    assert len(set(expected)) > 2
    assert written(fitness, model) == {"all": expected, "first": expected[:1]}
    assert [list(texts) for texts in fitness.rating().prompts.values()] == [list(PROMPTS), [PROMPTS[0]]]
    assert fitness.rating().counts == {"all": 4, "first": 1}


def test_answers_end_where_they_are_told_to(file: str, model: LoadedModel) -> None:
    whole = written(FilesFitness(file, tokens=9), model)["prompts"]
    stop = whole[0].split()[3]
    found = written(FilesFitness(file, tokens=9, until=[stop, "never"]), model)["prompts"]
    assert found == [text.partition(stop)[0] for text in whole]


def test_sampling_belongs_to_the_seed(file: str, model: LoadedModel) -> None:
    def drawn(seed: int) -> Any:
        return written(FilesFitness(file, tokens=9, temperature=2.0, seed=seed), model)["prompts"]

    assert drawn(1) == drawn(1) != drawn(2)


def test_fingerprints_are_of_what_is_written_and_asked_not_of_who_rates(file: str, model: LoadedModel) -> None:
    def print_of(**more: Any) -> str:
        fitness = FilesFitness(file, **{"tokens": 9, **more})
        fitness.prepare(model)
        return fitness.fingerprint()

    assert print_of() == print_of(raters=2) == print_of(raters=["a", "b"]) == print_of(hours=3.0, look_every=1.0)
    others = [print_of(tokens=5), print_of(seed=1), print_of(scale=None), print_of(by="candidate"), print_of(until="x")]
    assert len({print_of(), *others, print_of(chat_template=True), print_of(direction="minimize")}) == 8


def test_what_it_counts(file: str) -> None:
    fitness = FilesFitness({"a": file, "b": {"file": file, "limit": 2}}, direction="minimize", objective="faults")
    fitness.check()
    assert [(s.metric, s.weight, s.direction) for s in fitness.shares()] == [
        ("a/rating", 0.5, "minimize"),
        ("b/rating", 0.5, "minimize"),
    ]
    assert [s.metric for s in FilesFitness(file, by="candidate").shares()] == ["all/rating"]
    assert fitness.work() == {"documents": 6, "texts": 6, "written": 6 * 64}
    assert fitness.texts(1) == {name: [{"prompt": PROMPTS[0], "target": ""}] for name in ("a", "b")}
    assert len(fitness.documents()) == 6
    assert not hasattr(fitness, "items")  # people are not asked for some of the texts first


def test_several_may_have_people_among_them(file: str, model: LoadedModel) -> None:
    people = FilesFitness({"asked": file}, tokens=4, objective="score")
    texts = UnlabelledFitness({"read": {"file": file, "key": "prompt", "limit": 1}})
    both = SeveralFitness({"people": people, "texts": texts})
    assert [o.name for o in both.objectives] == ["people", "texts"]
    both.check()
    assert both.rating().objective == "people"
    both.prepare(model)
    scores = both.run(model)
    assert set(scores.objectives) == {"texts"}
    assert list(scores.responses) == ["asked"]
    with pytest.raises(ConfigError, match="parts a and b are both scored by people"):
        SeveralFitness({"a": FilesFitness(file), "b": FilesFitness(file, objective="other")})


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"prompts": {}}, "prompts is empty"),
        ({"prompts": ""}, "prompts is empty"),
        ({"prompts": {"a b": "x"}}, "prompts has the name 'a b'"),
        ({"prompts": {"a": {}}}, "prompts.a has neither file nor task"),
        ({"prompts": {"a": {"file": "x", "task": "y"}}}, "prompts.a has both file and task"),
        ({"prompts": {"a": {"fil": "x"}}}, "prompts.a has no key 'fil'; did you mean 'file'"),
        ({"prompts": {"a": {"file": "x.txt", "key": "q"}}}, "prompts.a.key is 'q'"),
        ({"prompts": {"a": {"file": "x", "limit": 0}}}, "prompts.a.limit is 0"),
        ({"raters": 0}, "raters is 0"),
        ({"raters": []}, "raters is \\[\\]"),
        ({"raters": ["a/b"]}, "raters has 'a/b'"),
        ({"raters": ["Anna", "anna"]}, "each name once"),
        ({"scale": [5.0, 1.0]}, "the lowest score first"),
        ({"scale": [1.0]}, "scale is"),
        ({"scale": [0.0, 9.0], "by": "pair"}, r"by is 'pair', and scale \[0, 9\]; .*leave scale out"),
        ({"tokens": 0}, "tokens is 0"),
        ({"temperature": -1.0}, "temperature is -1"),
        ({"until": ["a", ""]}, "until is"),
        ({"look_every": 0.0}, "look_every is 0"),
        ({"hours": 0.0}, "hours is 0"),
        ({"objective": "a b"}, "objective is 'a b'"),
    ],
)
def test_refuses_what_makes_no_sense(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        FilesFitness(**{"prompts": "prompts.txt", **arguments})


def test_pairs_have_no_scale_whatever_stands_in_the_file_of_the_group() -> None:
    for scale in ([1.0, 5.0], None):
        FilesFitness("prompts.txt", by="pair", scale=scale)


def test_refuses_prompts_that_cannot_be_gone_on_with(file: str, model: LoadedModel, tmp_path: Path) -> None:
    for given, key in (("nothing.txt", "prompts"), ({"a": "nothing.txt"}, r"prompts\.a")):
        with pytest.raises(FitnessError, match=f"^{key} names 'nothing.txt'"):
            FilesFitness(given).check_files()
    with pytest.raises(FitnessError, match=r"^prompts\.a\.file names"):
        FilesFitness({"a": {"file": str(tmp_path / "nothing.txt")}}).check_files()
    with pytest.raises(FitnessError, match="has no key 'question'"):
        FilesFitness({"a": {"file": file, "key": "question"}}).check()
    with pytest.raises(
        FitnessError, match="prompt 2 of prompts has 5 tokens, and tokens is 44; together the model's 48"
    ):
        FilesFitness(file, tokens=44).prepare(model)
    with pytest.raises(FitnessError, match="prepare comes before"):
        FilesFitness(file).run(model)
    fitness = FilesFitness(file, tokens=4)
    fitness.prepare(model)
    with pytest.raises(FitnessError, match="a part of the prompts"):
        fitness.run(model, {"prompts": [0]})
    model.tokenizer.chat_template = None
    with pytest.raises(FitnessError, match="chat_template is true"):
        FilesFitness(file, chat_template=True).check_tokenizer(lambda: model.tokenizer)
    with pytest.raises(FitnessError, match="no tokenizer"):
        FilesFitness(file).check_tokenizer(lambda: None)


def test_code_of_a_strangers_task_is_not_run_unasked() -> None:
    task = {"task": "t", "dataset_path": "pandas"}
    content = {"fitness": {"_target_": "fitness.files.FilesFitness", "prompts": {"a": {"task": task}}}}
    with pytest.raises(ConfigError, match="code of a task is not run unasked"):
        check_trust(content, [], "it")
    check_trust(content, ["fitness.prompts={}"], "it")
