"""The texts of a run's items, written once for reports: what was asked, and what the right answer is.

A fitness that can name its items has a method ``texts(most) -> {task: [{"prompt": ..., "target": ...}, ...]}``, in the
order of its per-item scores, at most so many of each task. The file is bounded, and nothing depends on it.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from evomerge.candidate import Split
from evomerge.run_folder import RunFolder
from evomerge.utils.files import write_text_atomic

_log = logging.getLogger(__name__)

MOST_ITEMS = 2000
MOST_CHARACTERS = 1200
MOST_BYTES = 16 * 2**20

Texts = Mapping[str, Sequence[Mapping[str, str]]]


def write_texts(folder: RunFolder, split: Split, fitness: Any) -> None:
    """Write down what a fitness says of its items; nothing where it cannot, which is no failure of the run."""
    name = getattr(fitness, "texts", None)
    if name is None:
        return
    try:
        found = {task: [_short(item) for item in items] for task, items in name(MOST_ITEMS).items()}
        text = json.dumps({"evomerge_texts": 1, "tasks": found}, ensure_ascii=False)
        if len(text) < MOST_BYTES // 4:  # of four bytes each at most
            write_text_atomic(_file(folder, split), text + "\n")
    except Exception as error:
        _log.warning("the texts of the %s items were not written: %s: %s", split, type(error).__name__, error)


def read_texts(folder: RunFolder, split: Split) -> dict[str, list[dict[str, str]]]:
    """The texts by task; empty where there are none, or the file is not one that `write_texts` wrote."""
    path = _file(folder, split)
    try:
        if path.stat().st_size > MOST_BYTES:
            return {}
        content = json.loads(path.read_text())
        tasks = content["tasks"] if content["evomerge_texts"] == 1 else {}
        return {
            str(task): [{"prompt": str(item["prompt"]), "target": str(item["target"])} for item in items]
            for task, items in tasks.items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}


def _file(folder: RunFolder, split: Split) -> Any:
    return folder.items / f"{split}-texts.json"


def _short(item: Mapping[str, str]) -> dict[str, str]:
    """Prompts end with the question, so that of long ones the end stays."""
    prompt, target = str(item.get("prompt", "")), str(item.get("target", ""))
    if len(prompt) > MOST_CHARACTERS:
        prompt = "…" + prompt[1 - MOST_CHARACTERS :]
    return {"prompt": prompt, "target": target[:MOST_CHARACTERS]}
