"""Rotary settings are compared by what they compute."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_models import TinyModel

from evomerge.errors import PoolError
from evomerge.models.opening import open_pool

LINEAR = {"factor": 2.0, "rope_theta": 10000.0}
LONG = {"short_factor": [1.0, 2.0], "long_factor": [3.0, 4.0], "rope_type": "longrope", "rope_theta": 10000.0}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "rope_theta": 10000.0}
DYNAMIC = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}


def pair(tiny_model: TinyModel, one: dict[str, Any], other: dict[str, Any]) -> dict[str, str]:
    folders = {}
    for seed, (name, changes) in enumerate((("a", one), ("b", other))):
        folder = tiny_model(name, seed=seed, hidden_size=16, num_attention_heads=4, head_dim=4)
        path = Path(folder) / "config.json"
        content = json.loads(path.read_text())
        for key in ("rope_parameters", "rope_theta", "rope_scaling"):
            content.pop(key, None)
        path.write_text(json.dumps(content | changes))
        folders[name] = str(folder)
    return folders


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"rope_scaling": {"type": "linear", **LINEAR}}, {"rope_parameters": {"rope_type": "linear", **LINEAR}}),
        (
            {"rope_scaling": {"type": "linear", "rope_type": "linear", "factor": 2.0}, "rope_theta": 10000.0},
            {"rope_scaling": {"rope_type": "linear", "factor": 2}},
        ),
        ({"rope_theta": 10000.0}, {"rope_parameters": {"rope_type": "default", "rope_theta": 10000}}),
        ({"max_position_embeddings": 64}, {"max_position_embeddings": 128}),
        ({"rope_parameters": YARN}, {"rope_parameters": YARN | {"beta_fast": 32, "beta_slow": 1}}),
    ],
)
def test_the_same_spelled_otherwise(one: dict[str, Any], other: dict[str, Any], tiny_model: TinyModel) -> None:
    assert open_pool(pair(tiny_model, one, other)).info.sources == ("a", "b")


@pytest.mark.parametrize(
    ("one", "other", "key"),
    [
        (
            {"rope_parameters": LONG, "max_position_embeddings": 64, "original_max_position_embeddings": 16},
            {"rope_parameters": LONG, "max_position_embeddings": 128, "original_max_position_embeddings": 16},
            "max_position_embeddings",
        ),
        (
            {"rope_parameters": LONG | {"original_max_position_embeddings": 16}},
            {"rope_parameters": LONG | {"original_max_position_embeddings": 32}},
            "original_max_position_embeddings",
        ),
        (
            {"rope_parameters": DYNAMIC, "max_position_embeddings": 64},
            {"rope_parameters": DYNAMIC, "max_position_embeddings": 4096},
            "max_position_embeddings",
        ),
        (
            {"rope_parameters": YARN},
            {"rope_parameters": YARN | {"attention_factor": 0.5}},
            "rope_parameters.attention_factor",
        ),
        ({"rope_theta": 10000.0}, {"rope_theta": 500000.0}, "rope_parameters.rope_theta"),
        (
            {"rope_parameters": {"rope_type": "linear", **LINEAR}},
            {"rope_parameters": {"rope_type": "linear", **LINEAR, "factor": 3.0}},
            "rope_parameters.factor",
        ),
    ],
)
def test_what_computes_otherwise_is_refused(
    one: dict[str, Any], other: dict[str, Any], key: str, tiny_model: TinyModel
) -> None:
    with pytest.raises(PoolError, match=rf"model 'b' has (\w+\.)?{key} .* in config\.json, 'a' has"):
        open_pool(pair(tiny_model, one, other))


def test_an_unknown_kind_is_named_with_the_known_ones(tiny_model: TinyModel) -> None:
    changes = {"rope_parameters": {"rope_type": "yarm", "factor": 4.0, "rope_theta": 10000.0}}
    with pytest.raises(PoolError, match=r"config\.json has rope_type 'yarm': did you mean 'yarn'") as caught:
        open_pool(pair(tiny_model, changes, changes))
    assert "upgrade" not in str(caught.value)
