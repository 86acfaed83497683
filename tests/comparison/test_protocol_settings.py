from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import yaml
from omegaconf import OmegaConf
from scipy.stats import spearmanr

from evomerge import conf_dir
from evomerge.comparison.beside_published import beside_published, spearman
from evomerge.comparison.columns import Column
from evomerge.comparison.named import check_named
from evomerge.comparison.plan import GRID, TEST, Plan, parts_of
from evomerge.comparison.rows import ComparedRow, Outcome, _against, _with_means
from evomerge.comparison.settings import STAND_IN, Protocol, names, require_name
from evomerge.comparison.tables import Table, as_csv, html, markdown
from evomerge.config.construct import to_builtin
from evomerge.errors import ConfigError
from evomerge.objectives import MetricShare, Objective

ALL = pytest.mark.nightly
TIES = {"method": "ties", "parameters": {"density": 0.2}, "grid": {"lambda": [0.5, 1.0], "density": [0.1, 0.2]}}


def test_members_of_a_grid_are_all_of_its_combinations() -> None:
    protocol = Protocol(title="", methods={"ties": TIES}, searches={"own": {"words": ["a=1"]}})
    assert {name: values for name, (_, values) in protocol.grid_members.items()} == {
        "ties lambda=0.5 density=0.1": {"density": 0.1, "lambda": 0.5},
        "ties lambda=0.5 density=0.2": {"density": 0.2, "lambda": 0.5},
        "ties lambda=1.0 density=0.1": {"density": 0.1, "lambda": 1.0},
        "ties lambda=1.0 density=0.2": {"density": 0.2, "lambda": 1.0},
    }
    assert protocol.budget(protocol.searches[0]) == 4  # as many as the grids have members


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({}, "neither methods nor searches"),
        ({"methods": {"a": {"metod": "ties"}}}, r"protocol\.methods\.a has no key 'metod'.*'method'"),
        ({"methods": {"a": {}}}, r"protocol\.methods\.a\.method is None"),
        ({"methods": {"a": {"method": "ties", "grid": {"lambda": 1.0}}}}, r"a\.grid\.lambda is 1\.0"),
        ({"methods": {"a": {"method": "ties", "grid": {"lambda": [1.0, 1.0]}}}}, "each once"),
        ({"methods": {"a": {"method": "ties", "untuned": False}}}, r"a\.untuned is False"),
        ({"methods": {"a/b": {"method": "ties"}}}, "row 'a/b'"),
        ({"methods": {"a": {"method": "ties"}}, "searches": {"a": {"evaluations": 3}}}, "row 'a'"),
        ({"searches": {"a": {"words": "strategy=ga"}}}, r"searches\.a\.words is 'strategy=ga'"),
        ({"searches": {"a": {"evaluations": 0}}}, r"searches\.a\.evaluations is 0"),
        ({"searches": {"a": {"preferences": {"x": 1}}}}, r"searches\.a\.preferences"),
        ({"methods": {"a": {"method": "ties"}}, "published": {"rows": {}}}, r"published\.source is None"),
        ({"methods": {"a": {"method": "ties"}}, "published": {"source": "x", "unit": "%"}}, r"published\.unit is '%'"),
        (
            {"methods": {"a": {"method": "ties"}}, "published": {"source": "x", "rows": {"a": {"t": "56"}}}},
            r"published\.rows\.a\.t is '56'",
        ),
    ],
)
def test_mistakes_are_named(given: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        Protocol(title="", **given)


def test_a_search_without_a_grid_needs_a_number() -> None:
    protocol = Protocol(title="", searches={"own": {}})
    with pytest.raises(ConfigError, match=r"protocol\.searches\.own\.evaluations is null, and no method has a grid"):
        protocol.budget(protocol.searches[0])


def test_names_are_looked_up() -> None:
    assert require_name("gpt2_glue", stand_in=True) == "gpt2_glue_stand_in"
    with pytest.raises(ConfigError, match=r"'gpt2_glu'.*'gpt2_glue'"):
        require_name("gpt2_glu", stand_in=False)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(own + more, marks=[] if own == "gpt2_glue" and more else ALL)
        for own in names()
        for more in ("", STAND_IN)
    ],
)
def test_every_protocol_can_be_composed_and_every_part_of_it(name: str, tmp_path: Any) -> None:
    plan = Plan.of(name, [f"run_dir='{tmp_path / 'run'}'"])
    if name != "scale":  # which has no models of its own
        plan.check(tmp_path / "run")
    assert plan.protocol.title
    assert plan.protocol.about
    assert plan.protocol.sources
    assert (plan.protocol.stand_in is not None) == name.endswith(STAND_IN)
    assert parts_of(plan)[-1] == TEST
    for entry in plan.protocol.searches:
        if name == "scale":
            continue
        config = plan.search(tmp_path / "run", entry)
        assert config.search.evaluations == plan.protocol.budget(entry)
        assert config.held_out is None
        assert config.protocol is None
    test = plan.test(tmp_path / "run", {"a": "linear"})
    assert to_builtin(test.fitness)["tasks"] == to_builtin(plan.config.held_out or plan.config.fitness)["tasks"]
    if plan.tests_apart:
        assert test.fitness.get("forwards") != "auto"


def test_published_numbers_of_gpt2_on_glue() -> None:
    content = yaml.safe_load((conf_dir() / "protocol" / "gpt2_glue.yaml").read_text())
    rows = content["protocol"]["published"]["rows"]
    averages = {"simple_average": 56.1, "fisher": 58.7, "regmean": 68.8, "task_arithmetic lambda=0.5": 70.0163}
    assert {name: rows[name]["average"] for name in averages} == averages
    for name, numbers in rows.items():
        tasks = [value for column, value in numbers.items() if column != "average"]
        assert len(tasks) == 7, name
        assert abs(np.mean(tasks) - numbers["average"]) < 0.06, name


NEVER_RUN = {"clip_b32": ["fisher", "regmean"], "clip_l14": ["fisher", "regmean"], "mergebench": ["regmean++"]}
"""Rows that were published, and of which a protocol has no method."""


@pytest.mark.parametrize("name", names())
def test_what_protocols_publish_are_rows_and_columns_of_theirs(name: str) -> None:
    plan = Plan.of(name)
    if plan.protocol.published is None:
        return
    said = check_named(dataclasses.replace(plan, overrides=("fitness.limit=1",)), Tested())  # type: ignore[arg-type]
    assert [line.split("'")[1] for line in said] == NEVER_RUN.get(name, [])
    tasks = [own if isinstance(own, str) else own["task"] for own in to_builtin(plan.config.held_out)["tasks"]]
    assert {column for row in plan.protocol.published.rows.values() for column in row} <= {*tasks, "average"}


class Tested:
    """A fitness that counts one metric of each of two tasks."""

    objectives = (Objective("score", "maximize"),)

    def shares(self) -> list[MetricShare]:
        return [MetricShare(f"{task}/acc", 1.0, "maximize", "score") for task in ("one_held_out", "two_held_out")]


def named(words: list[str] | None = None, **protocol: Any) -> list[str]:
    made = Protocol(title="T", methods={"average": {"method": "linear"}, "ties": TIES}, **protocol)
    config: Any = OmegaConf.create({"pool": {"models": {"base": "a", "maths": "b"}}})
    return check_named(Plan("x", tuple(words or ()), config, made), Tested())  # type: ignore[arg-type]


def test_names_of_a_published_table_are_the_protocols() -> None:
    def rows(**given: Any) -> dict[str, Any]:
        return {"source": "x", "rows": given}

    numbers = {"one_held_out": 1.0, "average": 2.0}
    good = {"average": numbers, "maths": numbers, "ties lambda=0.5 density=0.1": numbers, "ties, tuned": numbers}
    assert not named(published=rows(**good), experts={"one_held_out": "maths"}, forgetting=["two_held_out"])
    with pytest.raises(ConfigError, match=r"rows has 'avrage', which is no row here; did you mean 'average'"):
        named(published=rows(avrage=numbers))
    with pytest.raises(ConfigError, match=r"rows has column 'one_held_uot', .*'one_held_out'"):
        named(published=rows(average={"one_held_uot": 1.0}))
    with pytest.raises(ConfigError, match=r"experts has source 'math', .*'maths'"):
        named(experts={"one_held_out": "math"})
    (said,) = named(published=rows(average={"one": 1.0, "average": 2.0}))
    assert "column 'one', which is no column here" in said
    assert "one_held_out, two_held_out, average" in said
    (said,) = named(published=rows(ours=numbers))
    assert "'ours', which is no row here" in said
    assert not named(["~protocol.methods.ties"], published=rows(avrage={"one": 1.0}))  # what was taken out is meant


def row(name: str, kind: Any, **scores: float) -> ComparedRow:
    return ComparedRow(name, kind, 0, "", "", scores, {key: np.array([value]) for key, value in scores.items()})


COLUMNS = [Column("one", "one", "one/acc", False), Column("two", "two", "two/acc", False)]
COLUMNS += [Column("length", "one", "one/response_length", True)]


def outcome(rows: list[ComparedRow], **protocol: Any) -> Outcome:
    made = Protocol(title="T", methods={"a": {"method": "ties"}}, **protocol)
    plan = Plan("x", (), None, made)  # type: ignore[arg-type]  # nothing of the configuration is read
    rows = [_with_means(own, rows, COLUMNS, plan) for own in rows]
    return Outcome(plan, COLUMNS, rows, {}, None)


def test_means_normalised_and_forgotten_by_hand() -> None:
    rows = [
        row("base", "base", one=0.5, two=0.4, length=7.0),
        row("x", "source", one=0.8, two=0.2, length=9.0),
        row("y", "source", one=0.3, two=0.5, length=3.0),
        row("a", "untuned", one=0.6, two=0.3, length=5.0),
    ]
    found = {own.name: own for own in outcome(rows).rows}
    assert found["a"].average == pytest.approx(0.45)
    assert found["a"].normalised == pytest.approx((0.6 / 0.8 + 0.3 / 0.5) / 2)  # the best source on each
    assert found["a"].forgetting == pytest.approx((0.0 + 0.1) / 2)
    assert found["base"].forgetting is None
    named = {own.name: own for own in outcome(rows, experts={"one": "y"}, forgetting=["two"]).rows}
    assert named["a"].normalised == pytest.approx((0.6 / 0.3 + 0.3 / 0.5) / 2)
    assert named["a"].forgetting == pytest.approx(0.1)
    failed = {own.name: own for own in outcome([*rows, row("b", "untuned", one=0.1)]).rows}
    assert failed["b"].average is None
    assert failed["b"].normalised is None


def test_searches_are_tested_against_untuned_methods_item_by_item() -> None:
    rng = np.random.default_rng(0)
    own = {name: (rng.random(200) < 0.9).astype(float) for name in ("one", "two")}
    low = {name: (rng.random(200) < 0.5).astype(float) for name in ("one", "two")}
    rows = [
        ComparedRow("s", "search", 1, "", "", {}, own),
        ComparedRow("a", "untuned", 2, "", "", {}, low),
        ComparedRow("t", "tuned", 3, "", "", {}, low),
    ]
    tests = _against(rows, COLUMNS)
    assert list(tests) == ["s"]
    assert list(tests["s"]) == ["a"]
    expected = np.mean([own[name].mean() - low[name].mean() for name in own])
    assert tests["s"]["a"].difference == pytest.approx(expected)
    assert tests["s"]["a"].p_value < 1e-6


def test_beside_published_numbers() -> None:
    rows = [row("a", "untuned", one=0.5, two=0.25), row("b", "untuned", one=0.6, two=0.5)]
    rows += [row("c", "untuned", one=0.4, two=0.75)]
    published = {"source": "S", "rows": {"a": {"one": 51.0, "average": 40.0}, "b": {"one": 70.0}, "c": {"one": 12.0}}}
    published["rows"]["gone"] = {"one": 1.0, "three": 2.0}  # type: ignore[index]
    found = beside_published(outcome(rows, published=published))
    assert found is not None
    assert found.columns == ["one", "three", "average"]
    assert found.difference("a", "one") == pytest.approx(-1.0)
    assert found.difference("a", "average") == pytest.approx(37.5 - 40.0)
    assert found.difference("gone", "one") is None
    assert found.correlations == {"one": pytest.approx(1.0)}  # of three rows; the others have one pair or none


def test_rank_correlation_is_scipy_s() -> None:
    rng = np.random.default_rng(1)
    pairs = [(float(a), float(b)) for a, b in rng.integers(0, 6, (12, 2))]
    expected = spearmanr(*zip(*pairs, strict=True)).statistic
    assert spearman(pairs) == pytest.approx(expected)
    assert spearman(pairs[:2]) is None
    assert spearman([(1.0, 2.0), (1.0, 3.0), (1.0, 4.0)]) is None


def test_tables_say_what_is_there_and_leave_the_rest_empty() -> None:
    table = Table("Scores", "A | note", ["model", "one"], [["a <b>", "0.5"], ["x", ""]])
    text = markdown("Title", ["A line."], [table])
    assert "| a <b> | 0.5 |" in text
    assert "| x |  |" in text
    assert "A \\| note" in text
    page = html("Title <i>", ["A line."], [table])
    assert "a &lt;b&gt;" in page
    assert "<i>" not in page.split("</head>")[1].split("</header>")[1].split("</main>")[0].replace("<i class", "")
    written = as_csv(outcome([row("a", "untuned", one=0.5, two=0.25), row("b", "untuned", one=1 / 3)]))
    lines = written.splitlines()
    assert lines[0].startswith("name,kind,one,two,length,average,normalised,forgetting,candidates,")
    assert lines[1].startswith("a,untuned,0.5,0.25,,0.375,")
    assert lines[2].startswith(f"b,untuned,{1 / 3!r},,,,")
    assert GRID == "grid"
    assert not math.isnan(0.5)
