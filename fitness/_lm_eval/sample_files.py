"""The files of ``lm_eval --log_samples --output_path``, written by lm-eval's own code."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lm_eval.loggers import EvaluationTracker

from evomerge.errors import FitnessError
from fitness._lm_eval.isolation import quietly


def write_sample_files(folder: Path, model: str, results: Mapping[str, Any], settings: Mapping[str, Any]) -> list[Path]:
    """Write ``results_TIME.json`` and a ``samples_TASK_TIME.jsonl`` for each task; all of them or none.

    Args:
        folder: made if it is not there; files of other times stay.
        model: its name: theirs lie in a folder of that name, as with lm-eval.
        results: as `lm_eval.simple_evaluate` returns them, samples included.
        settings: `system_instruction`, `chat_template`, `fewshot_as_multiturn`.

    Raises:
        FitnessError: the files cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".samples-", dir=folder) as unfinished, quietly():
            tracker = EvaluationTracker(output_path=unfinished)
            tracker.general_config_tracker.log_experiment_args("hf", {"pretrained": model}, **settings)
            rest = dict(results)
            samples = rest.pop("samples")
            tracker.save_results_aggregated(results=rest, samples=samples)
            for task, of_task in samples.items():
                tracker.save_results_samples(task_name=task, samples=of_task)
            made = sorted(path for path in Path(unfinished).rglob("*") if path.is_file())
            if len(made) != 1 + len(samples):  # lm-eval logs what went wrong and goes on
                raise FitnessError(f"lm-eval wrote {len(made)} files for {folder}", f"{1 + len(samples)} of them")
            moved = []
            for path in made:
                target = folder / path.relative_to(unfinished)
                target.parent.mkdir(parents=True, exist_ok=True)
                os.replace(path, target)
                moved.append(target)
            return moved
    except OSError as error:
        raise FitnessError(f"{folder} cannot be written: {error.strerror}", "a folder you can write") from error
