"""Makes the demo pool's folder: models, tasks and a manifest that says what they were made from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from evomerge.demo.building import built, versions
from evomerge.errors import OutputError

if TYPE_CHECKING:
    from rich.progress import Progress

MANIFEST = "manifest.json"

MODELS = ("base", "math", "lang")
"""The folders of the models; the last two are the specialists."""

SEARCH_ITEMS, HELD_OUT_ITEMS = 250, 1000
QUICK_SEARCH_ITEMS, QUICK_HELD_OUT_ITEMS = 24, 40
QUICK_STEPS = 4

_CODE = ("items.py", "languages.py", "pool.py", "tasks.py", "train.py")


def make_demo_pool(
    folder: Path,
    seed: int = 0,
    *,
    threads: int | None = None,
    quick: bool = False,
    progress: bool | Progress = True,
) -> Path:
    """Make the demo pool in `folder`, unless it already holds this very pool.

    Writes one folder per model (`MODELS`: safetensors, config, generation config and fast tokenizer), `tasks/` with the
    lm-eval tasks, and `manifest.json`. All of it is built in a temporary folder beside `folder` and moved at the end.

    Args:
        folder: where the pool goes; an earlier demo pool there is replaced, anything else is left alone.
        seed: decides items, texts and parameters; the same pool comes out for the same seed, versions and threads.
        threads: torch threads to train with; None keeps torch's number. Not part of what makes a pool current.
        quick: a few steps and items instead of the whole training: models of the right shape that can do nothing.
        progress: whether to show a progress bar, or the rich progress to show it in.

    Returns:
        The absolute path of `folder`.

    Raises:
        OutputError: `folder` exists and is not a demo pool.
    """
    folder = Path(folder).absolute()
    wanted = {"demo_pool": 1, "seed": seed, "quick": quick, "folder": str(folder), "recipe": _recipe_hash()}
    wanted |= {"versions": versions("torch", "transformers", "tokenizers")}
    found = _manifest(folder)
    if found is not None and {key: found.get(key) for key in wanted} == wanted:
        return folder
    if found is None and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise OutputError(
            f"{folder} is not empty and holds no demo pool",
            "the demo pool goes into a new folder, an empty one or an earlier demo pool",
            "choose another folder",
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    with built(folder) as building:
        used = _build(building, folder, seed, threads, quick, progress)
        _write_json(building / MANIFEST, wanted | used)
    return folder


def _build(
    building: Path, folder: Path, seed: int, threads: int | None, quick: bool, progress: bool | Progress
) -> dict[str, Any]:
    """Train and write everything; returns what the manifest records beside what was wanted."""
    import torch

    from evomerge.demo.items import Texts
    from evomerge.demo.languages import make_tokenizer
    from evomerge.demo.tasks import J_LANGUAGE, draw_items, write_tasks
    from evomerge.demo.train import MODEL, STAGES, new_model, save_model, torch_threads, train

    counts = (QUICK_SEARCH_ITEMS, QUICK_HELD_OUT_ITEMS) if quick else (SEARCH_ITEMS, HELD_OUT_ITEMS)
    items_seed, text_seed, parameter_seed = np.random.SeedSequence(seed).spawn(3)
    items = draw_items(*counts, np.random.default_rng(items_seed))
    write_tasks(building / "tasks", folder / "tasks", items)
    withheld = frozenset(
        question for task in (J_LANGUAGE, f"{J_LANGUAGE}_held_out") for question in items.of_task[task]
    )
    texts = Texts(list(items.sorting_to_learn), withheld)
    tokenizer = make_tokenizer(MODEL["max_position_embeddings"])
    stages = [replace(stage, steps=min(stage.steps, QUICK_STEPS)) if quick else stage for stage in STAGES]
    trained: dict[str, Mapping[str, torch.Tensor]] = {}
    with torch_threads(threads), _shown(progress, sum(stage.steps for stage in stages)) as show:
        for stage, stream in zip(stages, text_seed.spawn(len(stages)), strict=True):
            model = new_model(int(parameter_seed.generate_state(1)[0]))
            if stage.start is not None:
                model.load_state_dict(trained[stage.start])
            train(model, stage, texts, np.random.default_rng(stream), partial(show, stage.name))
            trained[stage.name] = model.state_dict()
            save_model(model, tokenizer, building / stage.name)
        return {"threads": torch.get_num_threads(), "steps": {stage.name: stage.steps for stage in stages}}


@contextmanager
def _shown(progress: bool | Progress, total: int) -> Iterator[Any]:
    """A function `show(stage)` that advances a progress bar by one step."""
    if progress is False:
        yield lambda stage: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    if isinstance(progress, Progress):
        bar = progress.add_task("demo pool", total=total)
        yield lambda stage: progress.update(bar, advance=1, description=f"demo pool: training {stage}")
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns) as own, _shown(own, total) as show:
        yield show


def _recipe_hash() -> str:
    """A hash of the code and constants that decide the pool."""
    digest = hashlib.sha256()
    for name in _CODE:
        digest.update((Path(__file__).parent / name).read_bytes())
    return f"sha256:{digest.hexdigest()}"


def _manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest of the pool in `folder`, or None when there is no pool."""
    try:
        found = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and "demo_pool" in found else None


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
