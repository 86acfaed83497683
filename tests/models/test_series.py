"""Checkpoints of a training run's folder: which are taken, in which order, under which names."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from tiny_llama import save_llama

from evomerge.config.compose import compose_config
from evomerge.errors import ConfigError, EvomergeWarning, PoolError
from evomerge.models.checkpoints.series import SeriesSettings, series_models, thinned
from evomerge.session.series import fill_models


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training's folder: steps 5 to 100, one of them unfinished, and what else trainers leave."""
    folder = tmp_path_factory.mktemp("runs") / "out"
    model = save_llama(folder / "checkpoint-5", 0, layers=1)
    for step in (100, 20, 40, 60, 80):
        shutil.copytree(model, folder / f"checkpoint-{step}")
    half = folder / "checkpoint-120"
    shutil.copytree(model, half)
    weights = (half / "model.safetensors").read_bytes()
    (half / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    (folder / "checkpoint-140").mkdir()
    (folder / "logs").mkdir()
    (folder / "checkpoint-best").mkdir()
    (folder / "trainer_state.json").write_text("{}")
    return folder


def steps(run: Path, **settings: Any) -> list[str]:
    with pytest.warns(EvomergeWarning, match="unfinished checkpoints are left out"):
        return list(series_models(SeriesSettings.of({"folder": str(run), **settings})))


def test_finished_checkpoints_come_in_the_order_of_their_steps(run: Path) -> None:
    with pytest.warns(EvomergeWarning) as told:
        found = series_models(SeriesSettings.of("out"), run.parent)
    assert list(found) == ["step-5", "step-20", "step-40", "step-60", "step-80", "step-100"]
    assert found["step-20"] == str(run / "checkpoint-20")
    (line,) = [str(warning.message) for warning in told]
    assert "checkpoint-120 (" in line
    assert "checkpoint-140 (" in line
    assert "\n" not in line


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        ({"first": 20, "last": 80}, [20, 40, 60, 80]),
        ({"every": 2}, [20, 60, 100]),
        ({"every": 5}, [5, 100]),
        ({"most": 3}, [5, 40, 100]),
        ({"most": 50}, [5, 20, 40, 60, 80, 100]),
        ({"first": 20, "every": 2, "most": 2, "last": None}, [20, 100]),
    ],
)
def test_they_are_thinned_out(run: Path, settings: dict[str, Any], wanted: list[int]) -> None:
    assert steps(run, **settings) == [f"step-{step}" for step in wanted]


def test_many_are_evenly_spread_and_the_ends_stay() -> None:
    assert thinned(list(range(1, 101)), SeriesSettings("out", most=12)) == [
        1,
        10,
        19,
        28,
        37,
        46,
        55,
        64,
        73,
        82,
        91,
        100,
    ]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"folder": "out", "evry": 2}, r"has no key 'evry'.*did you mean 'every'"),
        ({"every": 2}, r"pool.checkpoints.folder is None"),
        ({"folder": "out", "every": 0}, r"pool.checkpoints.every is 0.*from 1"),
        ({"folder": "out", "most": 1}, r"pool.checkpoints.most is 1.*from 2"),
        ({"folder": "out", "most": True}, r"pool.checkpoints.most is True"),
        ({"folder": "out", "first": 9, "last": 3}, r"from step 9 to 3"),
        ([1, 2], r"a folder, or a mapping of folder, first"),
    ],
)
def test_settings_that_cannot_be(given: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        SeriesSettings.of(given)


def test_folders_that_are_none_are_one_line(run: Path, tmp_path: Path) -> None:
    with pytest.raises(PoolError, match=r"no folder ot .*did you mean 'out'"):
        series_models(SeriesSettings("ot"), run.parent)
    with pytest.raises(PoolError, match=r"holds no finished checkpoint.*checkpoint-100"):
        series_models(SeriesSettings(str(tmp_path)))
    with (
        pytest.raises(PoolError, match=r"takes 1 of 6 checkpoints .* of steps 5 to 100"),
        pytest.warns(EvomergeWarning),
    ):
        series_models(SeriesSettings(str(run), first=90))
    (tmp_path / "checkpoint-1").mkdir()
    with pytest.raises(PoolError, match=r"no finished checkpoint: checkpoint-1 \(.*config.json"):
        series_models(SeriesSettings(str(tmp_path)))
    for name in ("checkpoint-5", "step_5"):
        shutil.copytree(run / "checkpoint-5", tmp_path / name, dirs_exist_ok=True)
    with pytest.raises(PoolError, match="checkpoint-5 and step_5"):
        series_models(SeriesSettings(str(tmp_path)))


def test_adapters_are_folded_into_the_base(tmp_path: Path) -> None:
    for step in (10, 20):
        (tmp_path / f"checkpoint-{step}").mkdir()
        for name in ("adapter_config.json", "adapter_model.safetensors"):
            (tmp_path / f"checkpoint-{step}" / name).write_bytes(b"{}")
    with pytest.raises(PoolError, match="holds an adapter"):
        series_models(SeriesSettings(str(tmp_path)))
    found = series_models(SeriesSettings(str(tmp_path)), adapted="org/base")
    assert found["step-10"] == f"org/base+{tmp_path / 'checkpoint-10'}"


@pytest.mark.filterwarnings("ignore:.*unfinished")
def test_a_configuration_comes_to_name_the_models_that_were_found(run: Path) -> None:
    config = compose_config([f"pool.checkpoints='{run}'", "search_space=checkpoints"])
    fill_models(config)
    assert list(config.pool.models)[:2] == ["step-5", "step-20"]
    assert (config.pool.base, config.pool.checkpoints) == ("step-5", None)
    fill_models(config)  # nothing more to do

    given = [f"pool.checkpoints.folder='{run}'", "pool.checkpoints.most=2", "pool.models={start: org/start}"]
    config = compose_config(["pool=checkpoints", "search_space=checkpoints", *given, "pool.base=step-100"])
    fill_models(config)
    assert list(config.pool.models) == ["start", "step-5", "step-100"]
    assert config.pool.base == "step-100"

    config = compose_config([f"pool.checkpoints='{run}'", "pool.models={step-5: org/other}"])
    with pytest.raises(ConfigError, match=r"pool.models has 'step-5'"):
        fill_models(config)


@pytest.mark.parametrize(
    ("words", "key"),
    [
        (["pool=checkpoints"], "pool.checkpoints.folder"),
        (["pool=adapters", "pool.adapters=x"], "pool.models.base"),
    ],
)
def test_what_a_group_leaves_open_is_asked_for(words: list[str], key: str) -> None:
    with pytest.raises(ConfigError) as raised:
        fill_models(compose_config(words))
    assert str(raised.value) == f"{key} is not set; it has no default; set it with {key}=..."
