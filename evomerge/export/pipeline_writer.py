"""Writes the pipeline of a recipe with a network: a folder that diffusers loads, complete or not there at all."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from evomerge.export.adapter_card import PIPELINE
from evomerge.export.model_card import ScoreLine, model_card
from evomerge.export.output import check_output, check_space, new_folder
from evomerge.export.shards import DTYPES, Declared, ShardWriter
from evomerge.export.writer import MAX_SHARD_BYTES, RECIPE_FILE, Progress, declared_tensors
from evomerge.merge.execution.notes import Notes
from evomerge.merge.execution.streaming import stream_slice
from evomerge.merge.planning.plan import make_plan
from evomerge.models.checkpoints.headers import read_json
from evomerge.models.checkpoints.side_files import check_inside
from evomerge.models.pipelines.adapters import FoldedNetwork
from evomerge.models.pipelines.checkpoint import SINGLE
from evomerge.models.pipelines.folders import INDEX, read_pipeline
from evomerge.models.pipelines.rest import PipelineRest
from evomerge.models.pipelines.text_encoders import adapted_text_encoders
from evomerge.models.pool import Pool
from evomerge.recipes.recipe import Recipe
from evomerge.recipes.yaml_reader import dump_recipe

_COPIED = ("*.json", "*.txt", "*.model", "*.safetensors", "*.jinja")
"""Of other parts. Code and pickled weights are not."""


def write_pipeline(
    recipe: Recipe,
    pool: Pool,
    out: Path,
    *,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    scores: Sequence[ScoreLine] = (),
    scores_title: str = "Held-out scores",
    progress: Progress | None = None,
    device: str | torch.device = "cpu",
) -> Path:
    """Merge the network of a recipe slice by slice and write a pipeline around it.

    The other parts are copied from where `recipe.network` says, and that model's adapter is folded into its text
    encoders. The network's configuration is that of `recipe.config_from`. Beside them are the index of the pipeline, a
    model card and the recipe.

    Args:
        recipe: what to merge.
        pool: the recipe's source models, open.
        out: the folder to write; must not exist or be empty. Its parents are created.
        max_shard_bytes: largest size of one file of the network, single larger tensors aside.
        scores: rows of the card's score table.
        scores_title: its heading.
        progress: told after every slice.
        device: where slices are computed.

    Returns:
        `out`.

    Raises:
        OutputError: `out` is not empty or cannot be written, or the disk is too small.
        RecipeError, PoolError: the recipe cannot be carried out with this pool.
    """
    out = Path(out)
    check_output(out)
    rest: PipelineRest = pool.config.rest
    plan = make_plan(recipe, pool)
    declared = declared_tensors(plan, pool, recipe)
    copied, adapted = other_files(rest), adapted_text_encoders(rest)
    weights = {
        place: file for place, file in copied.items() if place.parts[0] in adapted and ".safetensors" in place.name
    }
    copied = {place: file for place, file in copied.items() if place not in weights}
    card = model_card(
        recipe,
        pool.layout,
        out.resolve().name,
        folders={name: pool.checkpoints[name].folders for name, _ in recipe.models},
        loading=(PIPELINE, None),
        scores=scores,
        scores_title=scores_title,
        sections=["## Pipeline", pipeline_section(rest)],
    )
    with new_folder(out) as folder:
        network = folder / rest.network
        network.mkdir()
        with ShardWriter(network, declared, max_shard_bytes, single=SINGLE, shards_alike=True) as shards:
            check_space(
                folder,
                out,
                shards.nbytes + sum(file.stat().st_size for own in (copied, weights) for file in own.values()),
            )
            done, notes = 0, Notes(0)
            for entry in plan.slices:
                for name, begin, piece in stream_slice(entry, pool, device, notes=notes):
                    shards.write_piece(name, begin, piece)
                    done += piece.nbytes
                if progress is not None:
                    progress(done, shards.tensor_bytes)
            shards.finish()
        for part, texts in adapted.items():
            (folder / part).mkdir()
            _write_texts(texts, folder / part, max_shard_bytes)
        for place, file in copied.items():
            target = folder / place
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)
        _write_json(network / "config.json", pool.checkpoints[recipe.config_from].config)
        index = read_json(rest.folder / INDEX, "the parts of a pipeline")
        index.pop("_name_or_path", None)
        index[rest.network] = ["diffusers", pool.config.model_type]
        _write_json(folder / INDEX, index)
        (folder / RECIPE_FILE).write_text(dump_recipe(recipe), encoding="utf-8")
        (folder / "README.md").write_text(card, encoding="utf-8")
    return out


def _write_texts(texts: FoldedNetwork, folder: Path, max_shard_bytes: int) -> None:
    """A text encoder's tensors, those that an adapter changes with it."""
    kinds = {written: dtype for dtype, written in DTYPES.items()}
    declared = [Declared(name, kinds[own.dtype], tuple(own.shape)) for name, own in texts.tensors.items()]
    with ShardWriter(folder, declared, max_shard_bytes) as shards:
        for name in texts.tensors:
            shards.write_piece(name, 0, texts.read(name))
        shards.finish()


def other_files(rest: PipelineRest) -> dict[Path, Path]:
    """The files of a pipeline's other parts by their names in the result.

    Raises:
        PoolError: one lies outside of the pipeline's folder.
    """
    found: dict[Path, Path] = {}
    for part in read_pipeline(rest.folder).parts:
        if part == rest.network:
            continue
        for pattern in _COPIED:
            for file in sorted((rest.folder / part).glob(pattern)):
                if file.is_file():
                    check_inside(file, rest.folder)
                    found[file.relative_to(rest.folder)] = file
    return found


def pipeline_section(rest: PipelineRest) -> str:
    """What the card says of the parts."""
    parts = [part for part in read_pipeline(rest.folder).parts if part != rest.network]
    whose = rest.whose or rest.folder.name
    texts = ", ".join(adapted_text_encoders(rest))
    folded = f" Into {texts} an adapter is folded." if texts else ""
    return (
        f"Merged is the {rest.network} of a {rest.pipeline}. The other parts are those of {whose}: "
        f"{', '.join(parts)}.{folded}"
    )


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
