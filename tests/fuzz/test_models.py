"""Whatever a model's configuration and tokenizer files hold, opening it works or ends in one line.

`scripts/fuzz_models.py` tries all cases; these are some of them, the same in every run.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from pathlib import Path

import pytest
from tiny_models import TinyModel

from evomerge.errors import EvomergeError, PoolError
from evomerge.models.opening import open_pool
from scripts import fuzz_models
from scripts.fuzz_models import Case, cases, make_model, try_case


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("models") / "model")


@pytest.mark.parametrize("file", [*fuzz_models.FILES, "chat_template.jinja", "model.safetensors"])
def test_changed_fields_and_special_files(file: str, model: Path, tmp_path: Path) -> None:
    own = [case for case in cases(model) if case.name.startswith(f"{file}:")]
    special = [case for case in own if " = " not in case.name]
    chosen = random.Random(0).sample(own, min(30, len(own))) + random.Random(1).sample(special, min(10, len(special)))
    chosen += [case for case in own if "= control characters" in case.name]
    problems = {case.name: try_case(case, model, tmp_path) for case in chosen}
    assert {name: problem for name, problem in problems.items() if problem} == {}


def test_what_a_case_must_not_do_is_noticed(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nothing = Case("nothing", lambda folder: None)
    assert try_case(nothing, model, tmp_path) == ""

    def broken(*_: object, **__: object) -> None:
        raise KeyError("x")

    def several_lines(*_: object, **__: object) -> None:
        raise EvomergeError("a\nb")

    monkeypatch.setattr(fuzz_models, "open_pool", broken)
    assert try_case(nothing, model, tmp_path) == "KeyError: 'x'"
    monkeypatch.setattr(fuzz_models, "open_pool", several_lines)
    assert "2 lines" in try_case(nothing, model, tmp_path)


@pytest.mark.parametrize(
    ("models", "message"),
    [
        ({"a": {"x": "y"}}, "pool.models has 'a'"),
        ({None: "x"}, "pool.models has 'None'"),
        ({"a": "x" * 300}, "model 'a': 'x+...' cannot be a model's location"),
        ({"a": "~nouser/x"}, "model 'a': '~nouser/x' cannot be a model's location"),
        ({"a": "x\0y"}, "cannot be a model's location"),
        ({"a": 7}, "pool.models has 'a': '7'"),
    ],
)
def test_odd_locations(models: Mapping[str, str], message: str) -> None:
    with pytest.raises(PoolError, match=message) as caught:
        open_pool(models)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("architectures", 3, "has architectures 3; a list of class names"),
        ("hidden_size", 0, "has hidden_size 0; a whole number from 1"),
        ("num_attention_heads", float("nan"), "has num_attention_heads nan"),
        ("pad_token_id", 10**12, "config.json has pad_token_id 1000000000000; the id of a token; null for none"),
        ("vocab_size", 10**30, "has vocab_size 1000000000000000000000000000000"),
        ("model_type", "lama", "transformers refuses .*config.json"),
        ("rope_parameters", {"rope_type": "yarm", "rope_theta": 1e4}, "rope_type 'yarm': did you mean 'yarn'"),
    ],
)
def test_fields_of_a_configuration(key: str, value: object, message: str, tiny_model: TinyModel) -> None:
    folder = tiny_model("a")
    content = json.loads((folder / "config.json").read_text()) | {key: value}
    (folder / "config.json").write_text(json.dumps(content))
    with pytest.raises(PoolError, match=message) as caught:
        open_pool({"a": str(folder)})
    assert "\n" not in str(caught.value)
    assert ("upgrade" in str(caught.value)) == (key == "model_type")
