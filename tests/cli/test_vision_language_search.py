"""A search over a model that sees and plain language models: scored, resumed, written, scored again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from vlm_models import save_vlm, save_words

from evomerge.cli.main import main
from evomerge.run.ledger import read_ledger

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models, and a task of twelve images in a file of its own."""
    from datasets import Dataset
    from PIL import Image

    root = tmp_path_factory.mktemp("vlm_pool")
    save_words(root / "base", "llava", 0)
    save_vlm(root / "sees", "llava", 1)
    save_words(root / "plain", "llava", 2)
    rng = np.random.default_rng(0)
    rows = []
    for number in range(12):
        image = Image.fromarray(rng.integers(0, 255, (9, 12, 3), dtype=np.uint8))
        rows.append({"image": image, "q": f"w{5 + number}", "a": " ".join(f"w{i}" for i in range(4, 39))})
    Dataset.from_list(rows).to_parquet(root / "look.parquet")
    task = {
        "task": "look",
        "dataset_path": "parquet",
        "dataset_kwargs": {"data_files": {"test": str(root / "look.parquet")}},
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_image": ["image"],
        "doc_to_text": "<image> {{q}}",
        "doc_to_target": "{{a}}",
        "num_fewshot": 0,
        "generation_kwargs": {"until": ["w9"], "max_gen_toks": 5},
        "metric_list": [{"metric": "chrf", "aggregation": "chrf", "higher_is_better": True}],
    }
    (root / "look.yaml").write_text(json.dumps(task))
    return root


def words(pool: Path, *more: str) -> list[str]:
    return [
        *(
            "fitness=lm_eval",
            f"fitness.tasks=['{pool / 'look.yaml'}']",
            "fitness.batch_size=4",
            "search.racing.first=null",
        ),
        *("pool.models={base: base, sees: sees, plain: plain}", "pool.base=base", f"pool.root='{pool}'"),
        *("search_space.layer_group=all", "search_space.components=all", "strategy.popsize=3", "display=quiet", *more),
    ]


def told(folder: Path) -> list[dict[str, Any]]:
    events = [event for event in read_ledger(folder) if event["event"] == "told"]
    return [{key: event[key] for key in ("candidate", "status", "objectives", "metrics")} for event in events]


@pytest.fixture(scope="module")
def run(pool: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    assert main(["search", *words(pool, "search.evaluations=6", f"run_dir='{folder}'")]) == 0
    return folder


def test_the_export_has_the_score_of_the_search(
    run: Path, pool: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scores = [event["objectives"]["score"] for event in told(run)][4:]  # three models and their average come first
    assert len(set(scores)) > 2
    assert main(["merge", str(run), str(tmp_path / "best")]) == 0
    capsys.readouterr()
    task = ["fitness=lm_eval", f"fitness.tasks=['{pool / 'look.yaml'}']", "fitness.batch_size=4"]
    assert main(["evaluate", str(tmp_path / "best"), *task, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["objectives"]["score"] == max(scores)


def test_a_run_is_resumed_as_if_it_had_not_stopped(run: Path, pool: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert main(["search", *words(pool, "search.evaluations=3", f"run_dir='{folder}'")]) == 0
    assert main(["resume", str(folder), "search.evaluations=6", "--quiet"]) == 0
    assert told(folder) == told(run)
    assert main(["report", str(folder), "--out", str(tmp_path / "report.html")]) == 0


def test_validate_says_what_is_kept(pool: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", *words(pool, "search.evaluations=6")]) == 0
    said = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "kept model.vision_tower.*, model.multi_modal_projector.*: those of sees, not merged" in said


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["pool.kep=auto"], "kept"),
        (["pool.kept_from=seas"], "pool.kept_from is 'seas'; did you mean 'sees'?"),
        (["pool.kept=model.visoin*"], "pool.kept has 'model.visoin*', which is the name of no tensor"),
        (["fitness.image_args={max_image: 1}"], "image_args has 'max_image'"),
        (["~pool.models.sees"], "tasks have images (look), and the model reads texts alone"),
    ],
)
def test_what_does_not_fit_is_said_before_the_search(
    pool: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, given: list[str], said: str
) -> None:
    assert main(["search", *words(pool, f"run_dir='{tmp_path / 'run'}'", *given)]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
