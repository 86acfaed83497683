"""Writes a merge of two models from different starts: aligned, merged in part, weights by least squares."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from evomerge.calibration.encoding import Encoded, encode
from evomerge.errors import ConfigError, PoolError, nearest, reason_of
from evomerge.export import aligned_model as aligned
from evomerge.export.output import check_output, check_space, new_folder
from evomerge.export.shards import DTYPES, Declared, ShardWriter
from evomerge.export.writer import MAX_SHARD_BYTES
from evomerge.merge.alignment.least_squares import RIDGE, joint_grams, solvable, solved
from evomerge.merge.alignment.matching import match
from evomerge.merge.alignment.zipping import KIND, Zip, reading_axes, zipped
from evomerge.models.architecture.layout import skeleton
from evomerge.models.checkpoints.weight_files import NAMES_FILES
from evomerge.models.opening import open_pool
from evomerge.models.pool import Pool, require_own_rows
from evomerge.models.progress_bars import no_progress_bar
from evomerge.models.tokenizers import load_tokenizer
from evomerge.protocols import CalibrationItem

WIDTHS = ("intermediate_size", "n_inner", "ffn_dim", "hidden_dim")
"""Keys of configurations that may say how many hidden units feed-forward layers have."""
ZIP_FILE = "evomerge_zip.json"
_ROOM = 2 << 30
_MOST_TOKENS = 512


@dataclass(frozen=True)
class Zipped:
    """What a merge in part has done.

    Attributes:
        before, after: cosine of the two models' weights, as they were and aligned.
        width: hidden units of a feed-forward layer; of the models, and of the merge.
        widths: by layer those of the merge that are not zero.
        solved: how many weights were found by least squares.
        tokens: that these were found on.
    """

    before: float
    after: float
    width: tuple[int, int]
    solved: int
    tokens: int
    widths: tuple[int, ...] = ()


def zip_models(
    reference: str,
    model: str,
    out: Path,
    *,
    ratio: float | Sequence[float] = 1.0,
    texts: Sequence[CalibrationItem] = (),
    ridge: float = RIDGE,
    starts: int = 3,
    seed: int = 0,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    progress: Callable[[int, int], None] | None = None,
) -> Zipped:
    """Write a merge of two models of which one is aligned to the other. See `evomerge.merge.alignment.zipping`.

    Args:
        reference, model: folders or hub ids, as for `aligned_model.align`; configuration and files are the reference's.
        out: the folder to write; must not exist or be empty.
        ratio: share of the hidden units of feed-forward layers that are merged, those that match best; the others are
            kept side by side, and layers are wider. One for all layers, or one for each: as configurations have one
            width, narrower layers are then filled up with zeros to that of the widest.
        texts: the weights of linear layers are found on these by least squares; none for weights merged as they are.
        ridge: how strongly these weights hold to those merged as they are, in units of what inputs say on average.
        starts, seed: of the search for the order.
        max_shard_bytes: largest size of one file, single larger tensors aside.
        progress: told after every search how many are done and their number.

    Raises:
        ConfigError: a ratio, ridge, starts or seed that cannot be.
        PoolError: models that do not fit together, or whose architecture cannot be aligned, or widened.
        OutputError: `out` is not empty or cannot be written.
    """
    out = Path(out)
    check_output(out)
    for given, wrong, allowed in (
        (f"--ratio is {ratio}", not all(0 <= own <= 1 for own in _each(ratio)), "shares, from 0 to 1"),
        (f"--ridge is {ridge}", not 0 < ridge < math.inf, "a number above 0, such as 0.01"),
        (f"--starts is {starts}", starts < 1, "at least 1"),
        (f"--seed is {seed}", seed < 0, "at least 0"),
    ):
        if wrong:
            raise ConfigError(given, allowed)
    pool = open_pool({aligned.REFERENCE: reference, aligned.MODEL: model})
    require_own_rows(pool, "zipping")
    symmetries = aligned.symmetries_of_pool(pool)
    if symmetries.stacked:
        raise PoolError(
            f"{pool.config.model_type!r} models are mixtures of experts, which are not merged in part",
            "models without experts",
            "leave --ratio and --texts out: experts are aligned",
        )
    copied = aligned.files_alongside(pool.folder(aligned.REFERENCE))
    reads = reading_axes(skeleton(pool.config, pool.trust_remote_code))
    config, widths = _widened(pool, symmetries, ratio)
    items = encode(texts, load_tokenizer(pool.tokenizer_folder, pool.trust_remote_code), _MOST_TOKENS) if texts else []
    names = {place: name for name, place in pool.layout.parameters.items()}

    def first(place: str) -> torch.Tensor:
        return pool.read(aligned.REFERENCE, names[place])

    def second(place: str) -> torch.Tensor:
        return pool.read(aligned.MODEL, names[place])

    matching = match(symmetries, first, second, starts=starts, seed=seed, progress=progress)
    merged = [place for place, name in names.items() if pool.is_merged(name)]
    ordered = {place: symmetries.apply(place, second(place), matching.order) for place in merged}
    known = {place: axis for place, axis in reads.items() if place in names}
    zip_ = zipped(symmetries, first, ordered.__getitem__, ratio, known, even=True)
    tensors = {place: zip_.merged(place, first(place), own) for place, own in ordered.items()}
    count = 0
    if items:
        count = _solve(pool, zip_, ordered, tensors, items, ridge)
    tokens = sum(len(item.ids) for item in items)
    by_layer = tuple(zip_.width(part) for part in zip_.shared)
    found = Zipped(matching.before, matching.after, widths, count, tokens, by_layer)
    _check_shapes(config, tensors)
    shown = ratio if isinstance(ratio, int | float) else list(ratio)
    record = {"ratio": shown, "seed": seed, **({"ridge": ridge} if items else {}), **vars(found)}
    _write(pool, config, tensors, out, copied, max_shard_bytes, record)
    return found


def _each(ratio: float | Sequence[float]) -> Sequence[float]:
    """The shares that are given."""
    return [ratio] if isinstance(ratio, int | float) else ratio


def _widened(pool: Pool, symmetries: Any, ratio: float | Sequence[float]) -> tuple[Any, tuple[int, int]]:
    """The configuration of the merge, and the hidden units of a layer before and after."""
    sizes = {group.size for part, group in symmetries.groups.items() if part.kind == KIND}
    units, each = next(iter(sizes), 0), _each(ratio)
    layers = sum(part.kind == KIND for part in symmetries.groups)
    if not isinstance(ratio, int | float) and len(each) != layers:
        raise ConfigError(
            f"--ratio has {len(each)} shares", f"one, or one for each of {layers} layers", "separate them by commas"
        )
    wide = 2 * units - min(round(own * units) for own in each)
    if wide == units or not sizes:
        return pool.config, (units, units)
    if KIND not in symmetries.free or len(sizes) > 1:
        raise PoolError("hidden units of feed-forward layers stay, or layers have different numbers", "--ratio 1")
    for key in WIDTHS:
        if not hasattr(pool.config, key):
            continue
        config = deepcopy(pool.config)
        setattr(config, key, wide)
        shapes = {name: tuple(own.shape) for name, own in skeleton(config, pool.trust_remote_code).named_parameters()}
        before = {name: tuple(own.shape) for name, own in skeleton(pool.config).named_parameters()}
        if shapes != before:
            return config, (units, wide)
    raise PoolError(
        f"the configuration of {pool.config.model_type!r} cannot say that feed-forward layers have {wide} hidden units",
        f"one with {' or '.join(WIDTHS)}",
        "--ratio 1",
    )


def _check_shapes(config: Any, tensors: Mapping[str, torch.Tensor]) -> None:
    for name, own in skeleton(config).named_parameters():
        if name in tensors and tuple(tensors[name].shape) != tuple(own.shape):
            raise PoolError(
                f"{name!r} of the merge has shape {tuple(tensors[name].shape)}, and its class wants {tuple(own.shape)}",
                "layers that are widened as their configuration says",
                "--ratio 1",
            )


def _solve(
    pool: Pool,
    zip_: Zip,
    ordered: Mapping[str, torch.Tensor],
    tensors: dict[str, torch.Tensor],
    items: Sequence[Encoded],
    ridge: float,
) -> int:
    """Replace weights by those of least squares; as many layers at a time as there is room for."""
    names = {place: name for name, place in pool.layout.parameters.items()}
    first = {place: pool.read(aligned.REFERENCE, name) for place, name in names.items()}
    modules = _module(pool, first), _module(pool, {**first, **ordered})
    todo = [name for name in solvable(zip_, modules[0]) if name in tensors]
    groups: list[list[str]] = [[]]
    used = 0
    for name in todo:
        size = 32 * tensors[name].shape[zip_.reads[name]] ** 2
        if groups[-1] and used + size > _ROOM:
            groups.append([])
            used = 0
        groups[-1].append(name)
        used += size
    done = 0
    for group in groups:
        grams = joint_grams(modules, group, items, lambda m, item: m(input_ids=torch.tensor([item.ids])))
        for name, gram in grams.items():
            tensors[name] = solved(zip_, name, first[name], ordered[name], gram, ridge)
            done += 1
    return done


def _module(pool: Pool, tensors: Mapping[str, torch.Tensor]) -> nn.Module:
    """A model with these tensors, by their places, in float32."""
    names = {place: name for name, place in pool.layout.parameters.items()}
    own = {name: tensors[place].to(torch.float32, copy=True) for place, name in names.items() if place in tensors}
    cls: Any = type(skeleton(pool.config, pool.trust_remote_code))
    with no_progress_bar():
        module: nn.Module = cls.from_pretrained(None, config=pool.config, state_dict=own, dtype=torch.float32).eval()
    return module


def _write(
    pool: Pool,
    config: Any,
    tensors: Mapping[str, torch.Tensor],
    out: Path,
    copied: Mapping[Path, Path],
    max_shard_bytes: int,
    record: Mapping[str, Any],
) -> None:
    """Write the merge under the reference's names, in its dtype; what is tied is written once."""
    stored: dict[str, tuple[str, str]] = {}
    for name, place in pool.layout.parameters.items():
        stored.setdefault(pool.stored[aligned.REFERENCE][name], (name, place))
    declared = []
    for key, (name, place) in stored.items():
        own = pool.read(aligned.REFERENCE, name)
        declared.append(Declared(key, own.dtype, tuple(tensors.get(place, own).shape)))
    assert all(tensor.dtype in DTYPES for tensor in declared), "a pool has no others"
    with new_folder(out) as folder, ShardWriter(folder, declared, max_shard_bytes) as shards:
        check_space(folder, out, shards.nbytes + sum(file.stat().st_size for file in copied.values()))
        for key, (name, place) in stored.items():
            read = pool.read(aligned.REFERENCE, name)
            shards.write(key, tensors[place].to(read.dtype).contiguous() if place in tensors else read)
        shards.finish()
        for place_, file in copied.items():
            (folder / place_).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, folder / place_)
        content = {k: v for k, v in pool.checkpoints[aligned.REFERENCE].config.items() if k not in NAMES_FILES}
        content |= {
            key: getattr(config, key) for key in WIDTHS if getattr(config, key, None) != getattr(pool.config, key, None)
        }
        models = {name: ref.address for name, ref in pool.info.refs}
        for file_name, values in (("config.json", content), (ZIP_FILE, {"models": models, **record})):
            (folder / file_name).write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_texts(path: Path) -> list[CalibrationItem]:
    """Texts of a file: a line each, or JSON lines with ``text`` and perhaps ``answer``.

    Raises:
        ConfigError: the file cannot be read, or has none.
    """
    try:
        lines = [(n, line) for n, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1) if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--texts {path} cannot be read ({error})", "texts, or JSON lines with text") from error
    is_json = path.suffix == ".jsonl"
    found = [_parsed(line, f"--texts {path}, line {n}") if is_json else CalibrationItem(line, "") for n, line in lines]
    if not found:
        raise ConfigError(f"--texts {path} has no text", "a line at least")
    return found


def _parsed(line: str, where: str) -> CalibrationItem:
    """What a JSON line holds."""
    allowed = 'lines such as {"text": "words"}'
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{where} is no JSON: {reason_of(error)}", allowed) from error
    if not isinstance(row, Mapping):
        raise ConfigError(f"{where} is no mapping", allowed)
    if "text" not in row:
        raise ConfigError(f"{where} has no key 'text'", nearest("text", [str(own) for own in row]), allowed)
    text, answer = row["text"], row.get("answer") or ""
    for key, value in (("text", text), ("answer", answer)):
        if not isinstance(value, str):
            raise ConfigError(f"{where}: its {key} is {str(value)[:60]!r}", "a text")
    return _item(text, answer)


def _item(text: str, answer: str) -> CalibrationItem:
    """A text and its answer, with a space between unless there is one: as calibration reads them."""
    between = "" if not answer or text[-1:].isspace() or answer[0].isspace() else " "
    return CalibrationItem(text, between + answer)
