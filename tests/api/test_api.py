"""The front door for Python: what a notebook does, without the command line."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM

import evomerge
from evomerge.api import tables
from evomerge.config.compose import compose_config
from evomerge.config.keywords import override_words
from evomerge.demo.pool import make_demo_pool
from evomerge.errors import ConfigError, EvomergeError, OutputError, RecipeError
from evomerge.recipes import Recipe as PlainRecipe
from evomerge.recipes import SliceId
from evomerge.report.plain_console import PlainConsole

TASKS = ("demo_e_maths", "demo_j_language", "demo_j_maths")


@pytest.fixture(scope="module")
def pool_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_demo_pool(tmp_path_factory.mktemp("pool") / "it's a pool", 0, quick=True, progress=False)


@pytest.fixture(scope="module")
def search(pool_root: Path) -> Callable[..., evomerge.Run]:
    def made(*overrides: str, **keys: Any) -> evomerge.Run:
        small = {"search": {"evaluations": 8}, "fitness": {"limit": 4}, "held_out": {"limit": 4}, "display": "quiet"}
        return evomerge.search("experiment=demo", *overrides, pool={"root": pool_root}, **{**small, **keys})

    return made


@pytest.fixture(scope="module")
def run(search: Callable[..., evomerge.Run], tmp_path_factory: pytest.TempPathFactory) -> evomerge.Run:
    return search(strategy={"popsize": 4}, run_dir=tmp_path_factory.mktemp("runs") / "run")


def in_a_new_python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_importing_evomerge_imports_nothing_large() -> None:
    heavy = ("torch", "numpy", "transformers", "hydra", "omegaconf", "rich", "yaml", "evomerge.api")
    code = f"import sys, evomerge; print([name for name in {heavy} if name in sys.modules])"
    assert in_a_new_python(code) == "[]"
    doors = "import sys, evomerge.recipes; print([name for name in ('torch', 'numpy') if name in sys.modules])"
    assert in_a_new_python(doors) == "[]"


@pytest.mark.parametrize(
    "code",
    [
        "import evomerge, evomerge.search.loop",
        "import evomerge.search.loop; import evomerge",
        "from evomerge.search.loop import Search; import evomerge",
        "import evomerge; evomerge.search; import evomerge.search.loop",
        "import evomerge; from evomerge.search.loop import Search; from evomerge.search import loop",
        "import evomerge.search.loop as loop; loop.Search; import evomerge",
        "from evomerge import search; assert callable(search); import evomerge.search.phases, evomerge",
    ],
)
def test_search_is_the_function_whatever_was_imported(code: str) -> None:
    after = "import inspect; assert inspect.isfunction(evomerge.search); from evomerge.search.loop import Search"
    assert in_a_new_python(f"{code}; {after}; print(evomerge.search.__module__)") == "evomerge.api.searching"


def test_names_are_listed_before_they_are_imported() -> None:
    listed = in_a_new_python("import evomerge, json; print(json.dumps(dir(evomerge)))")
    assert {"search", "open_run", "load_recipe", "load_pool", "merge_methods", "Run", "Recipe"} <= {*json.loads(listed)}
    with pytest.raises(AttributeError, match="no attribute 'serach'"):
        evomerge.serach  # type: ignore[attr-defined]  # noqa: B018


@pytest.mark.parametrize(
    "text",
    ["plain", "it's", "two words", "a=b,c", "C:\\x\\", "q\\'x", "", "true", "12", "[a]", "~/x", "{a: b}", "a\nb"],
)
def test_text_survives_the_way_through_overrides(text: str) -> None:
    config = compose_config(override_words([], {"name": text, "pool": {"models": {"m": text}}, "imports": [text]}))
    assert (config.name, config.pool.models["m"], list(config.imports)) == (text, text, [text])


@pytest.mark.parametrize("name", ["plain", "two words", "a=b,c", "org/x@main", "a:b", "[a]", "{a}", "f(x)", "m7b"])
def test_names_survive_the_way_through_overrides(name: str) -> None:
    assert [*compose_config(override_words([], {"pool": {"models": {name: "x"}}})).pool.models] == [name]


@pytest.mark.parametrize("name", ["", "it's", "true", "12", "7b", "π", "~/x", "a\nb", 'a"b'])
def test_names_that_hydra_cannot_read_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=r"pool\.models has the name .*; ASCII letters"):
        override_words([], {"pool": {"models": {name: "x"}}})


def test_values_survive_the_way_through_overrides() -> None:
    settings = {"evaluations": torch.tensor(7), "give_up": None, "ordered": False, "weights": {"a": np.float64(1e-07)}}
    words = override_words(
        ["experiment=demo"],
        {"search": settings, "strategy": "ga", "pool": {"root": Path("x y")}, "held_out": None},
    )
    config = compose_config(words)
    assert (config.search.evaluations, config.search.give_up, config.search.ordered) == (7, None, False)
    assert config.search.weights == {"a": 1e-07}
    assert config.strategy._target_.startswith("evomerge.strategies.genetic.")
    assert (config.pool.root, config.held_out) == ("x y", None)
    node = {"_target_": "my_fitness.Texts", "file": "texts.txt"}
    assert compose_config(override_words([], {"fitness": node, "held_out": node})).fitness == node


@pytest.mark.parametrize(
    ("overrides", "keys", "message"),
    [
        (("experiment=dmo",), {}, r"experiment=dmo: there is no such option; did you mean 'demo'"),
        ((), {"serach": {"evaluations": 3}}, r"there is no key 'serach'; did you mean 'search'"),
        ((), {"search": {"evalutions": 3}}, r"there is no key 'search\.evalutions'.*search\.evaluations"),
        ((), {"strategy": object()}, r"strategy is of type object; text, numbers"),
        ((3,), {}, r"an override is 3; text: 'key=value'"),
        ((), {"pool": {"models": {"a": "nowhere/a"}}, "fitness": {"tasks": ["x"]}}, r"nowhere/a"),
        ((), {"display": "loud"}, r"display is 'loud'"),
    ],
)
def test_what_is_wrong_is_one_line(overrides: tuple[Any, ...], keys: dict[str, Any], message: str) -> None:
    with pytest.raises(EvomergeError, match=message) as raised:
        evomerge.search(*overrides, **{"run_dir": "never", **keys})
    assert "\n" not in str(raised.value)


def test_code_of_configuration_files_is_not_run_unasked(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "theirs.yaml").write_text("# @package _global_\nimports: [antigravity]\n")
    with pytest.raises(ConfigError, match="not imported unasked"):
        evomerge.search("experiment=theirs", config_dir=tmp_path)


def test_a_run_tells_what_it_found(run: evomerge.Run) -> None:
    best = run.best
    assert best is not None
    assert run.status.state == "ended"
    assert f"{run!r}" == f"<Run {run.path}: ended, 8 of 8 evaluations, best score {best.score:.4f}>"
    assert best.recipe == run.recipe
    assert best.objectives == {"score": best.score}
    assert "layers.0/math/weight" in best.genes
    assert [found.candidate for found in run.front] == [best.candidate]
    table = run.evaluations
    assert len(table) == 4 + 8
    winner = table[table.candidate == best.candidate].iloc[0]
    assert winner["score"] == best.score == table[table.name.isna()]["score"].max()
    assert winner["genes.layers.0/math/weight"] == best.genes["layers.0/math/weight"]
    assert list(table.name[:4]) == ["math", "lang", "base", "uniform average"]
    assert "metrics.demo_e_maths/acc" in table


def test_a_run_shows_its_table(run: evomerge.Run) -> None:
    held_out = run.held_out
    assert list(held_out.model) == ["math", "lang", "base", "uniform average", "evolved"]
    assert {f"{task}_held_out" for task in TASKS} <= {*held_out.columns}
    text, page = run.table(), run._repr_html_()
    assert "on the held-out items" in text
    assert "evolved" in text
    assert "<pre" in page
    assert "uniform average" in page
    assert all(len(line) <= 80 for line in run.table(80).splitlines() if "Best recipe" not in line and "/" not in line)


def test_a_notebook_is_no_terminal() -> None:
    """Its output streams say that they are one, and show the codes that would move the cursor."""

    class Screen(StringIO):
        def isatty(self) -> bool:
            return True

    assert PlainConsole(file=Screen()).is_terminal
    Screen.__module__ = "ipykernel.iostream"
    assert not PlainConsole(file=Screen()).is_terminal


def test_without_pandas_tables_are_lists(run: evomerge.Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    rows = run.evaluations
    assert isinstance(rows, list)
    assert rows[0]["name"] == "math"
    assert tables.frame([]) == []


def test_resuming_and_reporting(search: Callable[..., evomerge.Run], tmp_path: Path) -> None:
    run = search(strategy={"popsize": 4}, run_dir=tmp_path / "run", search={"evaluations": 4})
    assert run.resume("search.evaluations=8", display="quiet") is run
    assert run.status.told == 8
    assert run.resume(search={"evaluations": 8}, display="quiet").status.told == 8
    assert run.report(tmp_path / "page.html").is_file()
    assert run.report() == run.path / "report.html"
    with pytest.raises(EvomergeError, match=r"strategy.* cannot change"):
        run.resume(strategy="ga")


@pytest.mark.slow
def test_hidden_states_change_nothing_but_the_time(search: Callable[..., evomerge.Run], tmp_path: Path) -> None:
    lineage = ("search_space=lineage", "search_space.mix.high=0", "strategy=m2n2", "strategy.size=4")

    def made(name: str, evaluations: int, states: str) -> evomerge.Run:
        keys: dict[str, Any] = {"search": {"evaluations": evaluations}, "evaluator": {"hidden_states": states}}
        return search(*lineage, run_dir=tmp_path / name, **keys)

    def told(run: evomerge.Run) -> list[dict[str, Any]]:
        events = [json.loads(line) for line in (run.path / "ledger.jsonl").read_text().splitlines()]
        same = ("candidate", "split", "objectives", "metrics", "items_hash", "status")
        return [{key: event.get(key) for key in same} for event in events if event["event"] == "told"]

    whole = made("with", 14, "auto")
    expected = told(made("without", 14, "0"))
    assert told(whole) == expected
    assert whole.status.tokens["hidden"] > 0.2 * whole.status.tokens["run"]
    resumed = made("resumed", 7, "auto").resume(search={"evaluations": 14}, display="quiet")
    assert resumed.status.told == 14
    assert [event for event in told(resumed) if event["split"] == "search"] == [
        event for event in expected if event["split"] == "search"
    ]


def test_a_run_can_begin_others(run: evomerge.Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    forked = evomerge.search(from_run=run, run_dir=tmp_path / "forked", display="plain", search={"evaluations": 8})
    assert forked.best is not None
    assert run.best is not None
    assert forked.best.score == run.best.score
    assert f"run folder: {tmp_path / 'forked'}" in capsys.readouterr().out


def test_held_out_tasks_need_no_choice(pool_root: Path, tmp_path: Path) -> None:
    run = evomerge.search(
        pool={"models": {n: pool_root / n for n in ("base", "math", "lang")}, "base": "base"},
        search_space="by_layer",
        strategy="random",
        fitness={"tasks": ["demo_e_maths"], "include_path": pool_root / "tasks", "limit": 4},
        held_out={"tasks": ["demo_e_maths_held_out"], "include_path": pool_root / "tasks", "limit": 4},
        search={"evaluations": 2},
        run_dir=tmp_path / "run",
        display="quiet",
    )
    assert list(run.held_out.columns[:4]) == ["model", "kind", "status", "demo_e_maths_held_out"]


def test_the_model_in_memory_is_the_one_that_is_written(run: evomerge.Run, tmp_path: Path) -> None:
    folder = run.merge(tmp_path / "model")
    written = AutoModelForCausalLM.from_pretrained(folder)
    model = run.model()
    assert "Held-out scores" in (folder / "README.md").read_text()
    assert not model.training
    mine, theirs = model.state_dict(), written.state_dict()
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    tokens = model.tokenizer("J", return_tensors="pt")["input_ids"]
    assert torch.equal(model(tokens).logits, written(tokens).logits)
    assert model.generation_config.to_dict() == written.generation_config.to_dict()
    with pytest.raises(OutputError, match="is not empty"):
        run.merge(folder)


def test_other_dtypes(run: evomerge.Run, tmp_path: Path) -> None:
    assert replace(run.recipe, dtype="bfloat16").merge().dtype == torch.bfloat16
    folder = run.merge(tmp_path / "half", dtype="float16", max_shard_size="100KB")
    assert json.loads((folder / "config.json").read_text())["dtype"] == "float16"
    assert len([*folder.glob("*.safetensors")]) > 1


def test_recipes_are_recipes(run: evomerge.Run, pool_root: Path, tmp_path: Path) -> None:
    recipe = evomerge.load_recipe(run)
    assert isinstance(recipe, PlainRecipe)
    assert recipe == evomerge.load_recipe(run.path / "best" / "recipe.yaml") == evomerge.load_recipe(recipe.to_yaml())
    recipe.to_yaml(tmp_path / "recipe.yaml")
    assert {recipe: 1}[evomerge.load_recipe(str(tmp_path / "recipe.yaml"))] == 1
    for missing in (tmp_path / "none.yaml", "none"):
        with pytest.raises(RecipeError, match="there is no file or folder"):
            evomerge.load_recipe(missing)


def test_a_path_in_memory_is_the_one_that_is_written(pool_root: Path, tmp_path: Path) -> None:
    """Layers twice, left out and scaled: the model has another depth than any source."""
    pool = evomerge.load_pool({name: pool_root / name for name in ("base", "math", "lang")}, base="base")
    math, lang = pool.info.linear({"math": 1.0}), pool.info.linear({"lang": 1.0})
    parts: list[Any] = [entry for entry in math.slices if entry.slice.layer is None]
    for place, (source, layer) in enumerate([(math, 0), (lang, 2), (lang, 2), (math, 5)]):
        for entry in source.slices:
            if entry.slice.layer == layer:
                moved = tuple(replace(one, layer=layer) for one in entry.inputs)
                scale = 0.5 if place == 2 and entry.slice.component == "mlp" else None
                own = SliceId(entry.slice.component, place)
                parts.append(replace(entry, slice=own, inputs=moved, scale=scale))
    recipe = evomerge.Recipe.of(pool.info.recipe(parts))
    model = recipe.merge(pool)
    written = AutoModelForCausalLM.from_pretrained(recipe.save(tmp_path / "model", pool))
    assert model.config.num_hidden_layers == 4
    mine, theirs = model.state_dict(), written.state_dict()
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_a_front_has_recipes(search: Callable[..., evomerge.Run], run: evomerge.Run, tmp_path: Path) -> None:
    tasks = [
        {"task": task, "metrics": {"perplexity": {"transform": "log"}}, "objective": task.rpartition("_")[2]}
        for task in ("demo_e_maths", "demo_j_language")
    ]
    found = search(
        strategy="nsga2",
        search={"evaluations": 12, "warm_start": [run]},
        fitness={"tasks": tasks, "limit": 4},
        run_dir=tmp_path / "run",
        **{"strategy.popsize": 4},
    )
    listed = yaml.safe_load((found.path / "best" / "pareto.yaml").read_text())["front"]
    assert {one.candidate: dict(one.objectives) for one in found.front} == {
        one["candidate"]: one["objectives"] for one in listed
    }
    assert all(one.recipe is not None for one in found.front)
    assert found.best is not None
    assert found.best.candidate in {one.candidate for one in found.front}
    assert {"maths", "language"} <= {*found.evaluations.columns}


def test_genomes_that_are_weights_have_no_recipe(tmp_path: Path) -> None:
    run = evomerge.search(
        "experiment=m2n2_digits_cma_es",
        search={"evaluations": 40},
        run_dir=tmp_path / "run",
        display="quiet",
    )
    best = run.best
    assert best is not None
    assert (best.recipe, dict(best.genes)) == (None, {})
    assert len(run.evaluations) == 40
    assert "40 of 40" in run.table()
    with pytest.raises(RecipeError, match="has no best recipe"):
        run.merge(tmp_path / "model")


def test_a_run_that_ended_early_can_be_looked_at(run: evomerge.Run, tmp_path: Path) -> None:
    early = tmp_path / "early"
    shutil.copytree(run.path, early, ignore=shutil.ignore_patterns("best"))
    lines = (run.path / "ledger.jsonl").read_text().splitlines(keepends=True)
    (early / "ledger.jsonl").write_text(lines[0])
    found = evomerge.open_run(early)
    assert found.best is None
    assert found.front == []
    assert found.held_out is None
    assert len(found.evaluations) == 0
    assert repr(found) == f"<Run {early}: dead, 0 of 8 evaluations>"
    assert "0 of 8" in found.table()
    (early / "ledger.jsonl").write_text("not a ledger\n")
    assert "ledger" in repr(found)


def test_merge_methods() -> None:
    methods = evomerge.merge_methods()
    assert list(methods) == sorted(methods)
    assert methods["ties"].base == "required"
    assert methods["slerp"].summary


def test_errors_can_be_caught_by_their_name() -> None:
    with pytest.raises(evomerge.EvomergeError, match="did you mean 'demo'"):
        evomerge.search("experiment=dmeo")
