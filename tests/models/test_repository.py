"""Repositories of adapters: which folders count, what they are called, and how a pool takes them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from evomerge.config.compose import compose_config
from evomerge.errors import ConfigError, EvomergeWarning, PoolError
from evomerge.models.checkpoints.repository import names_of, repository_models
from evomerge.session.series import fill_models


def adapter(folder: Path, **settings: object) -> Path:
    folder.mkdir(parents=True)
    name = "base_model.model.model.layers.0.mlp.up_proj.lora_"
    save_file(
        {f"{name}A.weight": torch.ones(2, 4), f"{name}B.weight": torch.ones(4, 2)}, folder / "adapter_model.safetensors"
    )
    given = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["up_proj"], **settings}
    (folder / "adapter_config.json").write_text(json.dumps(given))
    return folder


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Two adapters, and what is none."""
    for name in ("polite", "brief"):
        adapter(tmp_path / "hub" / name)
    (tmp_path / "hub" / "logs").mkdir()
    (tmp_path / "hub" / "README.md").write_text("")
    return tmp_path / "hub"


def test_adapters_of_a_folder_are_sorted_and_folded_into_the_base(repository: Path) -> None:
    found = repository_models("hub", "org/base", repository.parent)
    assert list(found.items()) == [
        ("brief", f"org/base+{repository / 'brief'}"),
        ("polite", f"org/base+{repository / 'polite'}"),
    ]


def test_a_pattern_chooses_some_and_tells_equal_names_apart(repository: Path) -> None:
    assert list(repository_models(f"{repository}/p*", "b")) == ["polite"]
    for name in ("polite", "brief"):
        adapter(repository / name / "final")
    assert list(repository_models("hub/*/final", "b", repository.parent)) == ["brief-final", "polite-final"]
    assert list(repository_models("hub/**", "b", repository.parent)) == [
        *("brief", "brief-final", "polite", "polite-final"),
    ]
    assert names_of([Path("a/b-c"), Path("a/b/c"), Path("a/x/c")]) == ["b-c", "b-c-2", "x-c"]


def test_those_that_cannot_be_folded_are_left_out_with_one_line(repository: Path) -> None:
    adapter(repository / "dora", use_dora=True)
    (adapter(repository / "torn") / "adapter_model.safetensors").write_bytes(b"\x08")
    (adapter(repository / "empty") / "adapter_model.safetensors").unlink()
    with pytest.warns(EvomergeWarning) as told:
        assert list(repository_models(str(repository), "b")) == ["brief", "polite"]
    (line,) = [str(warning.message) for warning in told]
    assert "\n" not in line
    assert "dora (" in line
    assert "DoRA" in line
    assert "torn (" in line
    assert "empty (" in line


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("hbu", "there is no folder hbu.*did you mean 'hub'"),
        ("hub/none", "there is no folder hub/none"),
        ("hub/q*", "nothing matches hub/q"),
        ("hub/polite", "is an adapter itself"),
        ("hub/logs", "holds no adapter"),
    ],
)
def test_refuses_what_holds_none(repository: Path, given: str, message: str) -> None:
    with pytest.raises(PoolError, match=message):
        repository_models(given, "b", repository.parent)
    with pytest.raises(ConfigError, match=r"pool.adapters is 3"):
        repository_models(3, "b")


def test_they_become_models_of_the_pool_once(repository: Path) -> None:
    words = [f"pool.adapters='{repository}'", "pool.models={base: org/base}"]
    config = compose_config(words)
    fill_models(config)
    assert list(config.pool.models) == ["base", "brief", "polite"]
    assert (config.pool.base, config.pool.adapters) == ("base", None)
    fill_models(config)  # nothing more to do

    twice = compose_config([words[0], "pool.models={base: org/base, brief: org/other}", "pool.base=base"])
    with pytest.raises(ConfigError, match=r"pool.models has 'brief', as pool.adapters"):
        fill_models(twice)
    for base, message in ((["pool.base=bsae"], "did you mean 'base'"), ([], "pool.base is None")):
        config = compose_config([words[0], "pool.models={base: org/base, more: org/more}", *base])
        with pytest.raises(ConfigError, match=message):
            fill_models(config)
