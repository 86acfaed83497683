"""Overrides and files that do not compose are answered in a user's words: one line, without Hydra's and OmegaConf's."""

from pathlib import Path

import pytest

from evomerge.cli.composed import hydra_app
from evomerge.config.compose import compose_config
from evomerge.config.construct import build
from evomerge.errors import ConfigError

FOREIGN = (
    "DictConfig",
    "ListConfig",
    "full_key",
    "LexerNoViable",
    "object_type",
    "defaults list",
    "NoneType",
    "'Config'",
)


def said(error: ConfigError) -> str:
    text = str(error)
    assert len(text.splitlines()) == 1
    assert not [word for word in FOREIGN if word in text]
    return text


@pytest.mark.parametrize(
    ("word", "says"),
    [
        *((word, "has no key; KEY=VALUE") for word in ("~", "=", "=x", "+=x", "~=x", " =x")),
        ("~pool.models.math=foo", "pool.models.math is 'math'; a key is taken away without a value"),
        ("~search", "leave ~search out"),
        ("pool.models.a.b=x", "where a name has a dot, write {NAME: value}"),
        ("pool.models.=x", "write others as KEY={NAME: VALUE}"),
        ("pool.models.é=x", "write others as KEY={NAME: VALUE}"),
        ("pool.models.a/b=x", "write others as KEY={NAME: VALUE}"),
        ("pool.models.a@b=x", "pool.models={NAME: FOLDER}"),
        ("pool.models={é: x}", "in a file of --config-dir"),
        ("pool.models={1: x}", "pool.models.NAME=..."),
        ("pool.models={null: x}", "pool.models.NAME=..."),
        ("search.warm_start=runs/a", "it takes a list, as in [value]"),
        ("fitness.batch_size=${nope}", "fitness.batch_size: ${nope} names no key that there is"),
        ("name=${name}", "name: it refers to itself"),
        ('search_space.bounds={"layers.[0-3]*": 0.0}', r"{layers.\[0-3\]*: 0}"),
        ("fitness.tasks=[{'task': x}]", "names inside of {} stand without quotes"),
    ],
)
def test_overrides(word: str, says: str) -> None:
    with pytest.raises(ConfigError) as error:
        compose_config(["experiment=demo", word])
    assert says in said(error.value)


def test_patterns_with_brackets_as_the_message_writes_them() -> None:
    composed = compose_config(["experiment=demo", r"search_space.bounds={layers.\[0-3\]*: 0}"])
    assert composed.search_space.bounds == {"layers.[0-3]*": 0}


@pytest.mark.parametrize("strategy", ["cma_es", "catcma"])
def test_a_documented_key_that_is_no_line_of_its_option(strategy: str) -> None:
    composed = compose_config(["experiment=demo", f"strategy={strategy}", "strategy.asynchronous=true"])
    assert composed.strategy.asynchronous is True


HEAD = "# @package _global_\n"


@pytest.mark.parametrize(
    ("file", "says"),
    [
        ("", "`# @package _global_`"),
        ("search:\n  seed: 3\n", "`# @package _global_`"),
        (HEAD + "serch: 3\n", "sets the key 'serch', which there is not; did you mean 'search'?"),
        (HEAD + "search: 3\n", "mine.yaml has 3 where a mapping stands"),
        (HEAD + "search: [1]\n", "mine.yaml has [1] where a mapping stands"),
        (HEAD + "search_space:\n  bounds: [1]\n", "mine.yaml has a list where a mapping stands"),
        (HEAD + "search_space:\n  bounds: {null: 1}\n", "search_space.bounds: a name of it is null"),
        (HEAD + "defaults:\n  - /strategy: ga\n", "write `- override /strategy: ga` in `defaults`"),
        (HEAD + "defaults:\n  - override /stratgy: ga\n", "did you mean 'strategy'?"),
    ],
)
def test_files(tmp_path: Path, file: str, says: str) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment/mine.yaml").write_text(file)
    with pytest.raises(ConfigError) as error:
        hydra_app("validate", ["--config-dir", str(tmp_path), "experiment=mine"], lambda config: None)
    assert says in said(error.value)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--config-dir"], "--config-dir is given without a value"),
        (["--cfg"], "--cfg job"),
        (["--cfg", "jb"], "did you mean 'job'?"),
        (["--config-dir", "nowhere"], "there is no folder"),
        (["name=${name}"], "it refers to itself"),
    ],
)
def test_flags(words: list[str], says: str, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError) as error:
        hydra_app("validate", words, lambda config: None)
    assert says in said(error.value)
    assert capfd.readouterr() == ("", "")


class NeedsBase:
    spec = None

    def __init__(self, pool: object, method: str = "x") -> None:
        raise ConfigError("method is 'x'", "it needs a base", "name one with pool.base")

    def decode(self, genome: object) -> None: ...


def test_keys_of_what_the_program_gives_are_not_the_parts_own() -> None:
    with pytest.raises(ConfigError) as error:
        build({"_target_": f"{__name__}.NeedsBase"}, "search_space", object())
    assert str(error.value) == "search_space.method is 'x'; it needs a base; name one with pool.base"


def test_bounds_are_a_key_of_every_space() -> None:
    with pytest.raises(ConfigError, match="did you mean 'bounds'"):
        build({"_target_": "search_spaces.parameter.ParameterSpace", "bound": {}}, "search_space", None, None)
