"""Writes a model with its units in the order of another's: the same function, nearer to the other."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from evomerge.errors import ConfigError, NoMemoryError, PoolError, one_line
from evomerge.export.output import check_output, check_space, new_folder
from evomerge.export.shards import DTYPES, Declared, ShardWriter
from evomerge.export.writer import MAX_SHARD_BYTES
from evomerge.merge.alignment.finding import family_of, symmetries_of
from evomerge.merge.alignment.matching import Matching, match
from evomerge.merge.alignment.orders import Order, Symmetries
from evomerge.merge.alignment.trial import TOLERANCE, difference, free_kinds, outputs, random_inputs
from evomerge.models.architecture.layout import skeleton
from evomerge.models.checkpoints.sentence_modules import sentence_files
from evomerge.models.checkpoints.side_files import CODE, INPUT_FOLDERS, INPUTS, check_inside, matching
from evomerge.models.checkpoints.weight_files import NAMES_FILES
from evomerge.models.opening import open_pool
from evomerge.models.placed import PlacedTensors
from evomerge.models.pool import Pool, require_own_rows
from evomerge.models.progress_bars import no_progress_bar
from evomerge.utils.memory import free_host_memory
from evomerge.utils.sizes import size_text

ALIGNMENT_FILE = "evomerge_alignment.json"
REFERENCE, MODEL = "reference", "model"
_ALONGSIDE = (*INPUTS, CODE, "generation_config.json", "README.md", "LICENSE*")


@dataclass(frozen=True)
class Alignment:
    """What an alignment has done.

    Attributes:
        before, after: cosine of the two models' weights, as they were and aligned.
        moved: whether any unit has changed its place.
        free: the kinds of units that may (`orders.KINDS`).
        difference: of the outputs of model and aligned model on random inputs, in float32, as a share of the largest;
            ``None`` where they were not compared.
        searches: how many were made.
        chosen: which of them the order is of, from 0.
    """

    before: float
    after: float
    moved: bool
    free: tuple[str, ...]
    difference: float | None
    searches: int
    chosen: int


def align(
    reference: str,
    model: str,
    out: Path,
    *,
    starts: int = 3,
    seed: int = 0,
    check: bool = True,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    progress: Callable[[int, int], None] | None = None,
) -> Alignment:
    """Write a copy of a model whose units stand where those of a reference do that are most like them.

    The copy computes what the model does: the tensors hold the same bits in other places, and before they are written
    the outputs are compared. Everything beside the weights is the model's. See `evomerge.merge.alignment`.

    Args:
        reference, model: folders or hub ids, perhaps with an adapter, as of a pool; their shapes and tokenizers agree.
        out: the folder to write; must not exist or be empty.
        starts: searches for the order, of which the best is kept.
        seed: of the searches.
        check: compare the outputs: both are computed in float32, which takes memory for 8 bytes per parameter.
        max_shard_bytes: largest size of one file, single larger tensors aside.
        progress: told after every search how many are done and their number.

    Raises:
        ConfigError: `starts` is less than 1, or `seed` less than 0.
        PoolError: the models do not fit together, or their architecture is not one that can be aligned.
        NoMemoryError: there is no room for the comparison.
        OutputError: `out` is not empty or cannot be written.
    """
    out = Path(out)
    check_output(out)
    if starts < 1:
        raise ConfigError(f"--starts is {starts}", "at least 1")
    if seed < 0:
        raise ConfigError(f"--seed is {seed}", "at least 0")
    pool = open_pool({REFERENCE: reference, MODEL: model})
    require_own_rows(pool, "aligning")
    symmetries = symmetries_of_pool(pool)
    copied = files_alongside(pool.folder(MODEL))
    if check:
        _require_memory(pool)
    placed = PlacedTensors(pool)
    matching = match(
        symmetries,
        lambda place: placed.read(REFERENCE, place),
        lambda place: placed.read(MODEL, place),
        starts=starts,
        seed=seed,
        progress=progress,
    )
    changed = _checked(pool, symmetries, matching.order) if check else None
    found = Alignment(
        matching.before,
        matching.after,
        matching.moved,
        tuple(sorted(symmetries.free)),
        changed,
        starts,
        matching.chosen,
    )
    _write(pool, symmetries, matching, out, copied, max_shard_bytes, _record(pool, found, seed))
    return found


def symmetries_of_pool(pool: Pool) -> Symmetries:
    """What may change places in both models; `PoolError` where that is not known, or they differ in depth."""
    family_of(pool.config)
    if pool.info.depths:
        raise PoolError(pool.info.uneven, "models of one depth are aligned, layer by layer")
    free = free_kinds(pool.config)
    placed = PlacedTensors(pool)
    found = symmetries_of(placed.module, pool.config, placed.shapes)
    return replace(found, free=found.free & free)


class _Ordered:
    """The tensors of the aligned model, by their names in the layout; experts stored one by one come together."""

    def __init__(self, pool: Pool, symmetries: Symmetries, order: Order) -> None:
        self._pool, self._symmetries, self._order = pool, symmetries, order
        self._placed = PlacedTensors(pool)
        self._last: tuple[str, Mapping[str, torch.Tensor]] = ("", {})

    def __call__(self, name: str) -> torch.Tensor:
        place = self._pool.layout.parameters[name]
        if place != self._last[0]:
            tensor = self._symmetries.apply(place, self._placed.read(MODEL, place), self._order)
            self._last = place, self._placed.split(place, tensor)
        return self._last[1][name]


def _require_memory(pool: Pool) -> None:
    needed = 8 * sum(own.numel() for own in skeleton(pool.config).parameters())
    free = free_host_memory()
    if needed > free:
        raise NoMemoryError(
            f"comparing the model with its aligned copy takes {size_text(needed)}, {size_text(free)} are free",
            "room for the model in float32, twice",
            "free some, or leave the comparison out (--no-check)",
        )


def _checked(pool: Pool, symmetries: Symmetries, order: Order) -> float:
    """How far the outputs of the aligned model are from the model's; `PoolError` where that is more than rounding."""
    before = _outputs(pool, lambda name: pool.read(MODEL, name))
    found = difference(before, _outputs(pool, _Ordered(pool, symmetries, order)))
    if not found <= TOLERANCE:
        raise PoolError(
            f"the aligned model's outputs differ from the model's by {found:.1e} of the largest",
            f"at most {TOLERANCE:g}: the same function, computed in another order",
            "nothing was written; a model whose outputs overflow float32 cannot be checked (--no-check)",
        )
    return found


def float32_module(pool: Pool, read: Callable[[str], torch.Tensor]) -> Any:
    """A model of the pool's kind whose tensors `read` gives by their names, in float32 and for evaluation.

    Raises:
        PoolError: transformers cannot load it.
    """
    tensors = {
        name: read(name).to(torch.float32 if pool.is_merged(name) else None, copy=True)
        for name in pool.layout.parameters
    }
    cls: Any = type(skeleton(pool.config, pool.trust_remote_code))
    try:
        with no_progress_bar():
            return cls.from_pretrained(None, config=pool.config, state_dict=tensors, dtype=torch.float32).eval()
    except Exception as error:  # transformers raises whatever the architecture's code raises
        raise PoolError(f"transformers cannot load the model ({one_line(error)})") from error


def _outputs(pool: Pool, read: Callable[[str], torch.Tensor]) -> Mapping[str, torch.Tensor]:
    """What a model with these tensors gives on random inputs, in float32."""
    module = float32_module(pool, read)
    return outputs(module, random_inputs(module))


def _write(
    pool: Pool,
    symmetries: Symmetries,
    matching: Matching,
    out: Path,
    copied: Mapping[Path, Path],
    max_shard_bytes: int,
    record: Mapping[str, Any],
) -> None:
    """Write the model's folder under its own names; what is tied is written once."""
    own: dict[str, str] = {}
    for name in pool.layout.parameters:
        own.setdefault(pool.stored[MODEL][name], name)
    declared = [
        Declared(stored, pool.read(MODEL, name).dtype, tuple(pool.layout.shapes[name])) for stored, name in own.items()
    ]
    assert all(tensor.dtype in DTYPES for tensor in declared), "a pool has no others"
    ordered = _Ordered(pool, symmetries, matching.order)
    with new_folder(out) as folder, ShardWriter(folder, declared, max_shard_bytes) as shards:
        check_space(folder, out, shards.nbytes + sum(file.stat().st_size for file in copied.values()))
        for stored, name in own.items():
            shards.write(stored, ordered(name))
        shards.finish()
        for place, file in copied.items():
            target = folder / place
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)
        config = {key: value for key, value in pool.checkpoints[MODEL].config.items() if key not in NAMES_FILES}
        for name, content in (("config.json", config), (ALIGNMENT_FILE, record)):
            (folder / name).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def files_alongside(folder: Path) -> dict[Path, Path]:
    """A model's files beside weights and configuration, by their place in its folder.

    Raises:
        PoolError: one lies outside.
    """
    found = {Path(file.name): file for file in matching(folder, _ALONGSIDE) if file.is_file()}
    for name in INPUT_FOLDERS:
        found |= {Path(name) / file.name: file for file in sorted((folder / name).glob("*")) if file.is_file()}
    for file in found.values():
        check_inside(file, folder)
    return found | sentence_files(folder)


def _record(pool: Pool, found: Alignment, seed: int) -> dict[str, Any]:
    """What the aligned model's folder says of how it was made."""
    models = {}
    for name, ref in pool.info.refs:
        models[name] = {
            "location": ref.location if ref.adapter is None else f"{ref.location}+{ref.adapter.location}",
            "fingerprint": pool.checkpoints[name].fingerprint(),
        }
    return {
        **models,
        "seed": seed,
        "searches": found.searches,
        "cosine": {"before": found.before, "after": found.after},
        "moved": found.moved,
        "units": list(found.free),
        "difference": found.difference,
    }
