"""Bad input: one clear line and exit status 2, before any model is loaded."""

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

import evomerge.cli.main as program
from evomerge.cli.main import main
from evomerge.demo.building import built
from evomerge.export.output import new_folder


@pytest.fixture
def search(quick_search: list[str], tmp_path: Path) -> list[str]:
    return ["search", *quick_search, f"run_dir='{tmp_path / 'run'}'"]


def line(arguments: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> str:
    """Run a command that must be refused before weights are read; returns what it says."""
    import evomerge.evaluation.residents as residents

    def loaded(*args: object, **kwargs: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(residents, "Resident", loaded)
    capsys.readouterr()
    assert main(arguments) == 2
    text = capsys.readouterr().err.strip().splitlines()
    errors = [entry for entry in text if entry.startswith("evomerge: error:")]
    assert len(errors) == 1, text
    assert text == errors
    return errors[0]


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("search.evaluatons=3", ("search.evaluatons", "search.evaluations")),
        ("search.evaluations=many", ("search.evaluations", "many")),
        ("search.evaluations=0", ("search.evaluations", "1 to 1,000,000,000")),
        ("strategy=cmaes", ("cmaes", "cma_es")),
        ("strategyy=cma_es", ("strategyy", "strategy")),
        ("+strategy.popsizes=4", ("popsizes", "popsize")),
        ("strategy.popsize=x", ("strategy.popsize", "'x'")),
        ("strategy.sigma0=-1", ("sigma0", "-1")),
        ("search_space.method=tis", ("tis", "ties")),
        ("search_space.layer_group=99", ("99", "6")),
        ("search_space.layer_group=0", ("layer_group",)),
        ("search_space.components=[[atn]]", ("atn", "attn")),
        ("search_space.parameters={wieght: 1}", ("wieght", "weight")),
        ("search_space.parameters={weight: {low: 0, high: 0, initial: 0}, normalize: true}", ("normal",)),
        ("search_space.negative_weights=true && search_space.normalize=true", ("normalis", "negative")),
        ("fitness.tasks=[demo_e_math]", ("demo_e_math", "demo_e_maths")),
        ("fitness.tasks=[{task: demo_e_maths, metrics: {accuracy: 1}}]", ("accuracy", "acc", "perplexity")),
        ("fitness.tasks=[{task: demo_e_maths, metric: acc}]", ("metric", "metrics")),
        ("fitness.tasks=[]", ("tasks",)),
        ("fitness.batch_size=0", ("batch_size",)),
        ("fitness.include_path=/no/such/folder", ("/no/such/folder",)),
        ("pool.models={a: nowhere/at/all}", ("nowhere/at/all",)),
        ("pool.base=bas", ("bas", "base")),
        ("pool.dtype=float31", ("float31", "float32")),
        ("evaluator=rays", ("rays", "ray")),
        ("evaluator.device=tpu", ("evaluator.device is 'tpu': it is no device",)),
        ("experiment=dmo", ("dmo", "demo")),
        ("search.evaluations", ("search.evaluations", "key=value")),
    ],
)
def test_a_typo_is_named_with_what_is_allowed(
    search: list[str],
    override: str,
    says: tuple[str, ...],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    overrides = override.split(" && ")
    text = line([*search, *overrides], capsys, monkeypatch)
    for word in says:
        assert word in text


def copy_pool(pool: Path, tmp_path: Path) -> Path:
    shutil.copytree(pool, tmp_path / "pool")
    return tmp_path / "pool"


def dangle(file: Path) -> None:
    file.unlink()
    file.symlink_to("/nowhere/at/all")


def change_config(folder: Path, **values: object) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


@pytest.mark.parametrize(
    ("break_it", "says"),
    [
        (lambda pool: shutil.rmtree(pool / "math"), ("math",)),
        (lambda pool: (pool / "math" / "model.safetensors").unlink(), ("safetensors", "math")),
        (lambda pool: (pool / "math" / "config.json").unlink(), ("config.json", "math")),
        (
            lambda pool: change_config(pool / "math", model_type="mistral", architectures=["MistralForCausalLM"]),
            ("mistral",),
        ),
        (lambda pool: change_config(pool / "math", vocab_size=7), ("vocabulary", "7")),
        (lambda pool: swap_tokens(pool / "math" / "tokenizer.json"), ("tokenizer", "math")),
        (lambda pool: reshape(pool / "math" / "model.safetensors"), ("model.layers.2.mlp.up_proj.weight", "math")),
        (lambda pool: truncate(pool / "math" / "model.safetensors"), ("model.safetensors",)),
        (
            lambda pool: (pool / "base" / "tokenizer.json").write_text('{"a"'),
            ("error: model 'base': ", "tokenizer.json is no JSON"),  # once, not for each model that is compared
        ),
        (
            lambda pool: (pool / "math" / "tokenizer_config.json").write_bytes(b"\xff{}"),
            ("error: model 'math': ", "tokenizer_config.json is no JSON"),
        ),
        (
            lambda pool: dangle(pool / "math" / "tokenizer_config.json"),
            ("error: model 'math': ", "tokenizer_config.json cannot be read"),
        ),
    ],
    ids=[
        *("folder", "safetensors", "config", "architecture", "vocabulary", "tokenizer", "shape", "truncated"),
        *("base's tokenizer", "tokenizer_config", "dangling"),
    ],
)
def test_a_broken_pool_is_refused(
    quick_pool: Path,
    search: list[str],
    break_it: object,
    says: tuple[str, ...],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pool = copy_pool(quick_pool, tmp_path)
    break_it(pool)  # type: ignore[operator]
    text = line([*search, f"pool.root='{pool}'", f"fitness.include_path='{quick_pool}/tasks'"], capsys, monkeypatch)
    for word in says:
        assert word in text


def swap_tokens(file: Path) -> None:
    content = json.loads(file.read_text())
    vocabulary = content["model"]["vocab"]
    first, second = list(vocabulary)[10:12]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    file.write_text(json.dumps(content))


def reshape(file: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(file)
    name = "model.layers.2.mlp.up_proj.weight"
    tensors[name] = tensors[name][:-1].clone()
    save_file(tensors, file, metadata={"format": "pt"})


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1000])


def test_the_run_folder_must_be_new(
    search: list[str], finished_run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "holds a run" in line([*search, f"run_dir='{finished_run}'"], capsys, monkeypatch)


def test_the_output_folder_of_merge_must_be_new(
    finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("precious")
    text = line(["merge", str(finished_run), str(tmp_path)], capsys, monkeypatch)
    assert str(tmp_path) in text
    assert (tmp_path / "file").read_text() == "precious"


def test_a_full_disk_is_seen_before_anything_is_written(
    finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    text = line(["merge", str(finished_run), str(tmp_path / "out")], capsys, monkeypatch)
    assert "disk" in text or "free" in text
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["serch"], ("serch", "search")),
        (["export", "nowhere"], ("nowhere",)),
        (["merge", "nowhere.yaml", "out"], ("nowhere.yaml",)),
        (["merge", "x", "out", "--max-shard-size", "five"], ("--max-shard-size", "five")),
        (["export", "x", "--format", "yaml"], ("--format", "mergekit")),
        (["evaluate", "nowhere.yaml"], ("nowhere.yaml",)),
        (["demo", "--sed", "1"], ("--sed",)),
        (["evaluate", "RUN", "fitness.batch_sizes=4"], ("fitness has no key 'batch_sizes'", "'batch_size'")),
        (["search", "--multi"], ("--multi", "--multirun")),
    ],
)
def test_other_verbs(
    arguments: list[str],
    says: tuple[str, ...],
    finished_run: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    text = line([str(finished_run) if word == "RUN" else word for word in arguments], capsys, monkeypatch)
    for word in says:
        assert word in text


def test_a_recipe_whose_weights_cannot_be_normalised(
    finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from dataclasses import replace

    from evomerge.recipes.slices import Input, SliceRecipe
    from evomerge.recipes.yaml_reader import dump_recipe, load_recipe

    recipe = load_recipe((finished_run / "best" / "recipe.yaml").read_text())
    inputs = tuple(Input(name, None, (("weight", weight),)) for name, weight in (("math", 1.0), ("lang", -1.0)))
    slices = tuple(SliceRecipe(s.slice, "linear", inputs, (("normalize", True),)) for s in recipe.slices)
    (tmp_path / "recipe.yaml").write_text(dump_recipe(replace(recipe, slices=slices)))
    text = line(["merge", str(tmp_path / "recipe.yaml"), str(tmp_path / "out")], capsys, monkeypatch)
    assert "embed" in text
    assert "sum" in text
    assert not (tmp_path / "out").exists()


def test_a_slip_below_a_group_is_told_by_the_keys_of_that_group(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["fitness=several", "+fitness@fitness.parts.kind=classification", "fitness.parts.kind.tsks=3"]
    assert main(["validate", *words]) == 2
    assert "no key 'fitness.parts.kind.tsks'; did you mean 'fitness.parts.kind.tasks'?" in capsys.readouterr().err


def test_a_model_that_is_not_there_has_no_name_of_a_pool(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "nowhere/at/all", "fitness.tasks=[gsm8k]"]) == 2
    said = capsys.readouterr().err
    assert "no folder nowhere/at/all" in said
    assert "'model'" not in said


def test_sigterm_leaves_no_folder_half_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The demo's, and a model's that is written."""
    before = signal.getsignal(signal.SIGTERM)
    for building in (built, new_folder):

        def run(_: object, building: Any = building) -> int:
            with building(tmp_path / "pool") as folder:
                (folder / "half").touch()
                os.kill(os.getpid(), signal.SIGTERM)
            return 0

        monkeypatch.setattr(program, "_run", run)
        assert main(["demo"]) == 143
        assert list(tmp_path.iterdir()) == []
        assert signal.getsignal(signal.SIGTERM) is before
        assert "evomerge: interrupted" in capsys.readouterr().err
