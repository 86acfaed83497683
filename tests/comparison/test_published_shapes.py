"""Every protocol's real pool, without the hub: configurations and headers as published, files of holes for the numbers.

The items are made up: the tasks' own are on the hub.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny_images import save_clip, save_images, save_processor
from tiny_models import write_tokenizer

from evomerge.cli.main import main
from evomerge.comparison.plan import Plan
from evomerge.config.construct import to_builtin

SHAPES = {
    "gpt2_glue": "gpt2",
    "clip_b32": "clip_b32",
    "clip_l14": "clip_l14",
    "mergebench": "llama_3_2_3b",
    "evollm": "mistral_7b",
    "m2n2": "llama_2_7b",
    "alignment_3h": "mistral_7b",
    "long_to_short": "qwen_2_5_7b",
    "scale": "llama_3_2_3b",
}
_SIZES = {"F32": 4, "BF16": 2}


def write_model(folder: Path, name: str, content: dict[str, Any], labels: int | None) -> None:
    """Configuration and header of a model, a hole for its numbers but for the first of every tensor."""
    folder.mkdir(parents=True)
    own = content.get("base" if labels is None else "source", {})
    more = {} if labels is None else {"id2label": {str(i): f"LABEL_{i}" for i in range(labels)}}
    (folder / "config.json").write_text(json.dumps({**content["config"], **own, **more}))
    wanted = {**content["tensors"], **(content.get("source_tensors", {}) if labels is not None else {})}
    header, places, end = {}, [], 0
    for pattern, shape in wanted.items():
        for layer in range(content["layers"]) if "{}" in pattern else (0,):
            sizes = [labels if side == "LABELS" else side for side in shape]
            size = _SIZES[content["dtype"]]
            for side in sizes:
                size *= side
            header[pattern.format(layer)] = {
                "dtype": content["dtype"],
                "shape": sizes,
                "data_offsets": [end, end + size],
            }
            places.append(end)
            end += size
    text = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for place in places:  # no two models have equal tensors
            file.seek(8 + len(text) + place)
            file.write(bytes([sum(name.encode()) % 100 + 1]) * 4)
        file.truncate(8 + len(text) + end)
    write_tokenizer(folder)


def items(kind: str, root: Path, names: list[str]) -> list[str]:
    """Overrides for made-up items of the same form."""
    if kind == "gpt2_glue":
        return []
    if kind.startswith("clip"):
        save_images(root / "images", classes=("w4", "w5", "w6"))
        clip = save_clip(root / "clip")
        tasks = ", ".join(f"{{task: {name}, images: '{root / 'images'}', templates: ['w7 {{}}']}}" for name in names)
        one = f"[{tasks}]"
        return [f"{node}.{key}" for node in ("fitness", "held_out") for key in (f"tasks={one}", f"clip='{clip}'")]
    (root / "tasks").mkdir()
    lines = root / "tasks" / "one.jsonl"
    lines.write_text('{"text": "w4 w5", "answer": "w6"}\n{"text": "w7", "answer": "w8"}\n')
    task = {"dataset_path": "json", "test_split": "test", "dataset_kwargs": {"data_files": {"test": str(lines)}}}
    task |= {"output_type": "loglikelihood", "doc_to_text": "{{text}}", "doc_to_target": " {{answer}}"}
    metric = "acc"
    if kind == "long_to_short":
        metric = "exact_match"
        task |= {"output_type": "generate_until", "doc_to_target": "{{answer}}", "generation_kwargs": {"until": ["."]}}
    task |= {"metric_list": [{"metric": metric, "aggregation": "mean", "higher_is_better": True}]}
    objectives = ("helpful", "honest", "harmless") if kind == "alignment_3h" else ("",)
    listed = []
    for objective in objectives:
        name = f"own_{objective}"
        (root / "tasks" / f"{name}.yaml").write_text(yaml.safe_dump({"task": name, **task}))
        listed.append(f"{{task: {name}, metrics: {{{metric}: 1.0}}{objective and ', objective: '}{objective}}}")
    words = [f"include_path='{root / 'tasks'}'", f"tasks=[{', '.join(listed)}]"]
    return [f"{node}.{word}" for node in ("fitness", "held_out") for word in words]


@pytest.mark.nightly
@pytest.mark.parametrize("kind", sorted(SHAPES))
def test_validate_passes_without_the_hub(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    content = yaml.safe_load((Path(__file__).parent / "shapes" / f"{SHAPES[kind]}.yaml").read_text())
    models: dict[str, str] = dict(to_builtin(Plan.of(kind).config.pool.models)) or {
        name: name for name in ("base", "expert1", "expert2", "expert3")
    }
    for name in models:
        labels = None if name == "base" or "source" not in content else (3 if name == "mnli" else 2)
        write_model(tmp_path / "models" / name, name, content, labels)
    if kind.startswith("clip"):
        save_processor(tmp_path / "models" / "base", 224)
    if kind == "gpt2_glue":
        write_glue(tmp_path, Plan.of(kind))
    places = ", ".join(f"{name}: {name}" for name in models)
    own = items(kind, tmp_path, [name for name in models if name != "base"])
    words = ["--validate", "--pool", str(tmp_path / "models"), f"pool.models={{{places}}}", *own]
    assert main(["protocol", kind, *words]) == 0
    said = capsys.readouterr().out
    assert "The configuration is valid" in said
    assert "test:" in said
    assert not (tmp_path / "runs").exists()


def write_glue(folder: Path, plan: Plan) -> None:
    """A few lines for every file that the protocol reads."""
    import numpy as np
    from safetensors.numpy import save_file

    for node in (plan.config.fitness, plan.config.held_out):
        for entry in to_builtin(node)["tasks"]:
            file = folder / entry["file"]
            file.parent.mkdir(parents=True, exist_ok=True)
            keys = [entry["text"], *([entry["pair"]] if entry.get("pair") else [])]
            rows = [{**dict.fromkeys(keys, f"w{4 + place} w9"), "label": place % 2} for place in range(8)]
            file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for files in to_builtin(plan.config.calibration)["files"].values():
        tokens = {name: np.ones((4, 5), dtype=np.int64) for name in ("input_ids", "attention_mask")}
        save_file({**tokens, "labels": np.zeros(4, dtype=np.int64)}, folder / files[0])
