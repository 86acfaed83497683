"""Writes a mixture of experts with fewer of them: a folder that transformers loads."""

from __future__ import annotations

import functools
import json
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from evomerge.calibration.encoding import Encoded, encode
from evomerge.calibration.expert_usage import Usage, counts_of, expert_usage
from evomerge.errors import ConfigError, PoolError
from evomerge.export.aligned_model import files_alongside, float32_module
from evomerge.export.output import check_output, check_space, new_folder
from evomerge.export.shards import DTYPES, Declared, ShardWriter
from evomerge.export.writer import MAX_SHARD_BYTES
from evomerge.merge.experts.grouping import Counts, by_clusters, by_dominant, dominant, numbers_by_threshold
from evomerge.merge.experts.merging import Layer, merged_layer
from evomerge.merge.experts.settings import Method, Router, Scope, check_settings
from evomerge.models.architecture.conversion import Join
from evomerge.models.architecture.equal_experts import (
    Groups,
    Rows,
    equal_experts,
    numbers_left,
    router_rows,
    told_apart,
)
from evomerge.models.architecture.expert_counts import EXPERTS_FILE, check_counts, read_counts
from evomerge.models.architecture.layout import skeleton
from evomerge.models.architecture.mixtures import CHOSEN, Mixture, count_keys, mixtures_of, with_experts
from evomerge.models.checkpoints.weight_files import NAMES_FILES
from evomerge.models.opening import open_pool
from evomerge.models.placed import PlacedTensors, split
from evomerge.models.pool import Pool, require_own_rows
from evomerge.models.tokenizers import load_tokenizer
from evomerge.protocols import CalibrationItem

_MODEL = "model"
_MOST_TOKENS = 512


@dataclass(frozen=True)
class FewerExperts:
    """What was done.

    Attributes:
        before, after: experts of a layer; where a router was kept, `after` are told apart in each of the layers.
        groups: by layer, the experts that became one, the dominant one first.
        counts: by layer, the tokens that each expert was sent.
        parameters: numbers in the folder's tensors, of the model and of what was written.
        tokens: that the experts were seen at work on.
    """

    before: int
    after: tuple[int, ...]
    groups: Mapping[int, Groups]
    counts: Mapping[int, tuple[int, ...]]
    parameters: tuple[int, int]
    tokens: int


def fewer_experts(
    model: str,
    out: Path,
    number: float,
    *,
    texts: Sequence[CalibrationItem],
    method: Method = "m_smoe",
    router: Router = "mean",
    scope: Scope = "layer",
    align: bool | None = None,
    rank: float = 1.0,
    seed: int = 0,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    usage: Callable[..., Mapping[int, Usage]] = expert_usage,
) -> FewerExperts:
    """Merge the experts of every layer of a model into fewer and write it. See `evomerge.merge.experts`.

    Args:
        model: folder or hub id of a mixture of experts, perhaps with an adapter.
        out: the folder to write; must not exist or be empty.
        number: of experts of a layer that are left, at least as many as a token takes; with ``scope=model`` on average.
        texts: that the experts are seen at work on.
        method: of `METHODS`.
        router: rows of the router for the experts that are left (``mean``, ``dominant``), or all rows as they were
            (``kept``): then the folder has as many experts as before, some of them equal.
        scope: ``layer``, the same number in each; ``model``, M-SMoE's one threshold for all layers, which a
            configuration cannot say: it takes a router that is kept.
        align: bring hidden units of a group into the order of its most used expert's first; by default ``m_smoe`` does.
        rank: of ``sub_moe``, the share of a group's singular values that are kept.
        seed: of k-means.
        max_shard_bytes: largest size of one file, single larger tensors aside.
        usage: what looks at the experts; as `expert_usage`.

    Raises:
        ConfigError: an argument that cannot be, or two that do not go together.
        PoolError: the model cannot be opened, has no experts, or other ones than are known here.
        FitnessError: no text has tokens.
        OutputError: `out` is not empty or cannot be written.
    """
    out = Path(out)
    check_output(out)
    check_settings(number, method, router, scope, rank, seed)
    if not texts:
        raise ConfigError("no texts are given", "texts that the experts are seen at work on", "--texts FILE")
    pool = open_pool({_MODEL: model})
    require_own_rows(pool, "merging experts")
    mixtures = mixtures_of(skeleton(pool.config, pool.trust_remote_code))
    before = mixtures[0].count
    if not number < before:
        raise ConfigError(f"--experts is {number:g}", f"less than {before}, which a layer of the model has")
    config = with_experts(pool.config, before if router == "kept" else int(number), pool.trust_remote_code)
    copied = files_alongside(pool.folder(_MODEL))
    items = encode(texts, load_tokenizer(pool.tokenizer_folder, pool.trust_remote_code), _MOST_TOKENS)
    seen = usage(
        float32_module(pool, functools.partial(pool.read, _MODEL)), mixtures, items, outputs=method == "sub_moe"
    )
    groups = groups_of(seen, number, method, scope, seed)
    align = method == "m_smoe" if align is None else align
    record = {"method": method, "router": router, "scope": scope, "align": align, "rank": rank, "seed": seed}
    make = functools.partial(merged_layer, align=align, rank=rank, router=router)
    writing = _Writing(pool, config, mixtures, groups, counts_of(seen), make)
    sizes = writing.write(out, copied, max_shard_bytes, record)
    return FewerExperts(
        before,
        tuple(len(groups[own.layer]) for own in mixtures),
        groups,
        {layer: tuple(int(count) for count in own.counts) for layer, own in seen.items()},
        sizes,
        sum(len(item.ids) for item in items if isinstance(item, Encoded)),
    )


def equal_once(
    model: str, out: Path, counts: Path, *, router: Rows = "mean", max_shard_bytes: int = MAX_SHARD_BYTES
) -> FewerExperts:
    """Write a model of which some experts are equal with each once: what `fitness.fewer_experts` scores.

    Args:
        model: folder or hub id of a mixture of experts whose router was kept when experts were merged.
        out: the folder to write; must not exist or be empty.
        counts: ``evomerge_experts.json`` of a variant, or its folder: how often experts are used.
        router: rows of equal experts: their mean by use, or that of the most used.
        max_shard_bytes: largest size of one file, single larger tensors aside.

    Raises:
        PoolError: the model cannot be opened, or has no experts that are equal; counts that are not its own.
        OutputError: `out` is not empty or cannot be written.
    """
    out = Path(out)
    check_output(out)
    known = read_counts(counts, "--equal")
    pool = open_pool({_MODEL: model})
    require_own_rows(pool, "merging experts")
    mixtures, placed = mixtures_of(skeleton(pool.config, pool.trust_remote_code)), PlacedTensors(pool)
    check_counts(known, mixtures, "--equal")
    found: dict[int, Groups] = {}
    for own in mixtures:
        gate_up, down = placed.read(_MODEL, own.gate_up), placed.read(_MODEL, own.down)
        found[own.layer] = equal_experts(gate_up, down, known[own.layer])
    number = numbers_left(list(found.values()), int(getattr(pool.config, CHOSEN, 1)))
    if number == mixtures[0].count:
        what = f"a layer has {number} experts that differ, or a token takes as many"
        raise PoolError(what, f"fewer than {number} in every layer", "merge experts first, with --router kept")
    groups = {layer: told_apart(own, known[layer], number) for layer, own in found.items()}

    def make(layer: Layer, own: Groups, used: Counts) -> Layer:
        first = [group[0] for group in own]
        return Layer(router_rows(layer.router, own, used, router), layer.gate_up[first], layer.down[first])

    used = {layer: np.array(own) for layer, own in known.items()}
    config = with_experts(pool.config, number, pool.trust_remote_code)
    writing = _Writing(pool, config, mixtures, groups, used, make)
    sizes = writing.write(
        out, files_alongside(pool.folder(_MODEL)), max_shard_bytes, {"method": "equal", "router": router}
    )
    seen = {layer: tuple(int(count) for count in own) for layer, own in known.items()}
    tokens = max(map(sum, seen.values())) // int(getattr(pool.config, CHOSEN, 1))  # each is counted with every choice
    return FewerExperts(mixtures[0].count, (number,) * len(mixtures), groups, seen, sizes, tokens)


def groups_of(seen: Mapping[int, Usage], number: float, method: str, scope: str, seed: int) -> dict[int, Groups]:
    """The experts of each layer that become one.

    Args:
        seen: what they do, by layer.
        number: of groups of a layer, or on average.
        method, scope, seed: as for `fewer_experts`.
    """
    numbers = dict.fromkeys(seen, int(number))
    if scope == "model":
        numbers = numbers_by_threshold(counts_of(seen), number)
    found: dict[int, Groups] = {}
    for layer, own in seen.items():
        if method == "drop":
            found[layer] = tuple((expert,) for expert in sorted(dominant(own.counts, numbers[layer])))
        elif method == "sub_moe":
            assert own.outputs is not None, "asked for"
            found[layer] = by_clusters(own.outputs, own.counts, numbers[layer], seed)
        else:
            found[layer] = by_dominant(own.routed, own.counts, numbers[layer])
    return found


class _Writing:
    """The tensors that are written, by name.

    Args:
        pool: of the one model.
        config: of what is written.
        mixtures: of the model.
        groups, counts: by layer.
        make: a layer with an expert for each group, of the layer, the groups and the counts.
    """

    def __init__(
        self,
        pool: Pool,
        config: Any,
        mixtures: Sequence[Mixture],
        groups: Mapping[int, Groups],
        counts: Mapping[int, Counts],
        make: Callable[[Layer, Groups, Counts], Layer],
    ) -> None:
        self._pool, self._config, self._groups, self._counts, self._make = pool, config, groups, counts, make
        self._placed = PlacedTensors(pool)
        self._module = skeleton(config, pool.trust_remote_code)
        self._after = {own.layer: own for own in mixtures_of(self._module)}
        self._joins = {join.place: join for join in pool.layout.joins}
        self._of = {place: own for own in mixtures for place in (own.router, own.gate_up, own.down)}
        self._merged: tuple[int, dict[str, torch.Tensor]] = (-1, {})

    def write(
        self, out: Path, copied: Mapping[Path, Path], max_shard_bytes: int, record: Mapping[str, Any]
    ) -> tuple[int, int]:
        """Write the folder; how many parameters the model has, and what was written."""
        pool = self._pool
        declared, before = [], 0
        for name, place in pool.layout.parameters.items():
            own = pool.read(_MODEL, name)
            before += own.numel()
            shape = self._shape(name, place, tuple(own.shape))
            if shape is not None:
                declared.append(Declared(pool.stored[_MODEL][name], own.dtype, shape))
        assert all(tensor.dtype in DTYPES for tensor in declared), "a pool has no others"
        wanted = {tensor.name for tensor in declared}
        with new_folder(out) as folder, ShardWriter(folder, declared, max_shard_bytes) as shards:
            check_space(folder, out, shards.nbytes + sum(file.stat().st_size for file in copied.values()))
            for place in dict.fromkeys(pool.layout.parameters.values()):
                for name, tensor in self._tensors(place).items():
                    stored = pool.stored[_MODEL][name]
                    if stored in wanted:  # what is tied is written once
                        shards.write(stored, tensor.contiguous())
                        wanted.discard(stored)
            shards.finish()
            for place_, file in copied.items():
                (folder / place_).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, folder / place_)
            content = {k: v for k, v in pool.checkpoints[_MODEL].config.items() if k not in NAMES_FILES}
            count = next(iter(self._after.values())).count
            content |= dict.fromkeys(count_keys(content, pool.config), count)
            said = {
                "model": dict(pool.info.refs)[_MODEL].address,
                **record,
                "groups": {str(layer): [list(own) for own in groups] for layer, groups in self._groups.items()},
                "tokens": {str(layer): [int(n) for n in own] for layer, own in self._counts.items()},
            }
            for file_name, values in (("config.json", content), (EXPERTS_FILE, said)):
                text = json.dumps(values, indent=2, ensure_ascii=False) + "\n"
                (folder / file_name).write_text(text, encoding="utf-8")
        return before, sum(math.prod(tensor.shape) for tensor in declared)

    def _shape(self, name: str, place: str, shape: tuple[int, ...]) -> tuple[int, ...] | None:
        """The shape of a tensor that is written; ``None`` for one of an expert that is not."""
        mixture = self._of.get(place)
        if mixture is None:
            return shape
        join = self._joins.get(place)
        if join is None:
            return self._after[mixture.layer].count, *shape[1:]
        return shape if name in self._fewer(join, mixture).names else None

    def _fewer(self, join: Join, mixture: Mixture) -> Join:
        """The join with the tensors of as many experts as are left."""
        count = self._after[mixture.layer].count
        seen: dict[str, int] = {}
        kept = []
        for number, (pattern, _) in enumerate(join.parts):
            seen[pattern] = seen.get(pattern, 0) + 1
            if seen[pattern] <= count:
                kept.append(number)
        return replace(join, parts=tuple(join.parts[i] for i in kept), shapes=tuple(join.shapes[i] for i in kept))

    def _tensors(self, place: str) -> Mapping[str, torch.Tensor]:
        """What fills a place, by the layout's names."""
        mixture = self._of.get(place)
        if mixture is None:
            return self._placed.split(place, self._placed.read(_MODEL, place))
        if self._merged[0] != mixture.layer:
            own = Layer(*(self._placed.read(_MODEL, key) for key in (mixture.router, mixture.gate_up, mixture.down)))
            made = self._make(own, self._groups[mixture.layer], self._counts[mixture.layer])
            places = {mixture.router: made.router, mixture.gate_up: made.gate_up, mixture.down: made.down}
            self._merged = mixture.layer, places
        tensor, join = self._merged[1][place], self._joins.get(place)
        if join is None:
            return {self._placed.names(place)[0]: tensor}
        return split(self._fewer(join, mixture), tensor, self._module)
