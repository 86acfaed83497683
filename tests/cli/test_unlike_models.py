"""Whole searches over encoder-decoders, mixtures and models of other vocabularies: the export has their scores."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from lm_eval import evaluator
from lm_eval.tasks import TaskManager
from models.architectures import save_pool
from seq2seq_models import save_seq2seq
from tiny_models import TinyModel, write_tokenizer

from evomerge.cli.main import main

Models = dict[str, Path]


def encoder_decoders(tiny_model: TinyModel, root: Path) -> tuple[Models, list[str]]:
    """T5s with heads of their own, of which one has rows of padding."""
    sizes = {"base": 40, "a": 40, "b": 44}
    models = {n: save_seq2seq(root / n, "t5_untied", i, vocab_size=size) for i, (n, size) in enumerate(sizes.items())}
    return models, []


def unlike_vocabularies(tiny_model: TinyModel, root: Path) -> tuple[Models, list[str]]:
    """Llamas whose tokens have other ids, and tokens that some lack."""
    models = {name: tiny_model(name, seed=i, max_position_embeddings=64) for i, name in enumerate(("base", "a", "b"))}
    write_tokenizer(models["a"], renamed={i: f"w{43 - i}" for i in range(4, 40)})
    write_tokenizer(models["b"], renamed={39: "new"})
    return models, ["pool.tokenizer=union"]


def mixtures(tiny_model: TinyModel, root: Path) -> tuple[Models, list[str]]:
    """Mixtrals, stored expert by expert."""
    models = save_pool("mixtral", root, max_position_embeddings=64)
    for folder in models.values():
        write_tokenizer(folder)
    return models, []


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    """`pick` of three words, and `write` of some."""
    folder, rng = tmp_path / "tasks", random.Random(0)
    folder.mkdir()
    words = [f"w{i}" for i in range(4, 39)]
    rows = [{"q": " ".join(rng.choices(words, k=6)), "c": rng.sample(words, 3), "a": "new"} for _ in range(12)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    common = {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(folder / "rows.jsonl")}},
        "test_split": "test",
        "doc_to_text": "{{q}}",
        "metadata": {"version": 1.0},
    }
    mean = {"aggregation": "mean", "higher_is_better": True}
    pick: dict[str, Any] = {"output_type": "multiple_choice", "doc_to_choice": "{{c}}", "doc_to_target": 0}
    pick["metric_list"] = [{"metric": "acc", **mean}, {"metric": "brier_score", "aggregation": "brier_score",
                                                       "higher_is_better": False}]  # fmt: skip
    write = {"output_type": "generate_until", "doc_to_target": "{{a}}", "generation_kwargs": {"until": ["."]}}
    write["generation_kwargs"] = {"until": ["."], "max_gen_toks": 4}
    write["metric_list"] = [{"metric": "exact_match", **mean}]
    for name, own in (("pick", pick), ("write", write)):
        (folder / f"{name}.yaml").write_text(yaml.safe_dump({"task": name, **common, **own}, sort_keys=False))
    return folder


@pytest.mark.parametrize(
    "pool", [encoder_decoders, unlike_vocabularies, pytest.param(mixtures, marks=pytest.mark.slow)]
)
def test_the_export_has_the_scores_of_the_search(
    pool: Callable[[TinyModel, Path], tuple[Models, list[str]]],
    tiny_model: TinyModel,
    tasks: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    models, more = pool(tiny_model, tmp_path)
    locations = ", ".join(f"{name}: '{folder}'" for name, folder in models.items())
    run, out = tmp_path / "run", tmp_path / "out"
    words = [
        f"pool.models={{{locations}}}", "pool.base=base", *more, f"fitness.include_path='{tasks}'",
        "fitness.tasks=[{task: pick, metrics: {brier_score: -1}}, write]", "search_space.layer_group=2",
        "search.evaluations=3", "strategy.popsize=3", "fitness.forwards=exact", "fitness.generation=stock",
        f"run_dir='{run}'", "display=quiet",
    ]  # fmt: skip
    assert main(["search", *words]) == 0, capsys.readouterr().err
    assert main(["merge", str(run), str(out)]) == 0, capsys.readouterr().err
    rows = [json.loads(line) for line in (run / "ledger.jsonl").read_text().splitlines()]
    told = [row["objectives"] for row in rows if row["event"] == "told"][len(models) + 1 :]  # baselines come first
    best = max(told, key=lambda objectives: objectives["score"])
    capsys.readouterr()
    assert main(["evaluate", str(run), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["objectives"] == best
    monkeypatch.setattr(evaluator, "add_env_info", lambda *_: None)  # a second of subprocesses
    stock = evaluator.simple_evaluate(
        model="hf",
        model_args={"pretrained": str(out), "dtype": "float32"},
        tasks=["pick", "write"],
        device="cpu",
        batch_size=16,
        bootstrap_iters=0,
        task_manager=TaskManager(include_path=str(tasks), include_defaults=False),
    )
    for metric in ("pick/acc", "pick/brier_score", "write/exact_match"):
        task, _, name = metric.partition("/")
        assert found["metrics"][metric] == stock["results"][task][f"{name},none"]


def test_what_is_for_decoders_is_said_of_encoder_decoders(
    tiny_model: TinyModel, tasks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models, _ = encoder_decoders(tiny_model, tmp_path)
    pool = ", ".join(f"{name}: {folder}" for name, folder in models.items() if name != "b")
    words = [f"pool.models={{{pool}}}", "pool.base=base", "search_space=task_arithmetic", "evaluator.device=cpu"]
    words += ["fitness.tasks=[pick]", f"fitness.include_path={tasks}"]
    for more, said in ((["fitness.forwards=shared", "fitness.generation=continuous"], True), ([], False)):
        capsys.readouterr()
        assert main(["validate", *words, *more]) == 0
        err = " ".join(capsys.readouterr().err.split())
        for way in ("forwards=shared", "generation=continuous"):
            assert (f"fitness.{way} is for decoders: the pool's encoder-decoders run in lm-eval's" in err) is said
