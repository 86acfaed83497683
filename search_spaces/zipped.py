"""Shares of hidden units that two models have in common, one for each layer (PLeaS, arXiv 2407.02447)."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from evomerge.errors import ConfigError
from evomerge.genomes.genome import Genome, GenomeSpec
from evomerge.recipes.method_spec import ByTensor, MethodSpec, ParameterSpec, Scalar
from evomerge.recipes.pool_info import PoolInfo
from evomerge.recipes.recipe import Recipe
from evomerge.recipes.slices import Input, SliceId, SliceRecipe, parameters
from search_spaces.ranges import Range, explored

KEY = "search_space"
METHOD = "fold"
WRITTEN_BY = "evomerge_zip.json"
_HALVINGS = 60
_RATIO = ParameterSpec("ratio", 0.0, minimum=0.0, maximum=1.0, searched=True, initial=0.5)
_SECOND = ParameterSpec("second", 0.5, minimum=0.0, maximum=1.0)
_GIVES = ("gate_up_proj", "gate_proj", "up_proj", "fc1", "c_fc", "dense_h_to_4h", "intermediate.dense", "lin1")
_READS = ("down_proj", "fc2", "c_proj", "dense_4h_to_h", "output.dense", "lin2")


class ZippedSpace:
    """A gene for each layer: which share of its pairs of hidden units is merged; implements `protocols.SearchSpace`.

    The pool has one source, which holds the hidden units of two models side by side: what ``evomerge align REFERENCE
    MODEL OUT --ratio 0`` writes. Feed-forward layers are merged by `fold`, all else is as it is. Genes are called
    ``layers.3/ratio``; where `second` is searched, there is a ``layers.3/second`` too.

    With a `width`, layers have so many hidden units on average, whatever the genes: shares are moved up or down
    together, within 0 and 1, until they have. So the sizes of PLeaS's merges, which a budget limits, are searched by
    what the whole model scores.

    Args:
        pool: of one source.
        methods: declarations by name.
        ratio: a share for all layers, or ``{low, high, initial, resolution}`` (any of them) of every layer's gene.
        second: how much of a merged unit is of the second model, likewise; one half is what ``evomerge align`` takes.
        width: hidden units of a layer on average, in units of those of one model: 1 if all are merged, 2 if none;
            ``None`` for what the genes say.

    Raises:
        ConfigError: a pool or a value that cannot be; names the key.
    """

    def __init__(
        self,
        pool: PoolInfo,
        methods: Mapping[str, MethodSpec],
        *,
        ratio: float | dict[str, Any] | None = None,
        second: float | dict[str, Any] | None = 0.5,
        width: float | None = None,
    ) -> None:
        self._layers = [own for own in pool.slices if own.component == "mlp"]
        _check_pool(pool, self._layers)
        if width is not None and not (isinstance(width, int | float) and 1 <= width <= 2):
            raise ConfigError(f"{KEY}.width is {width!r}", "a number from 1, all units merged, to 2, none; or null")
        self._pool, self._width = pool, width
        self._found = {
            spec.name: explored(spec, option, 1, False, None, f"{KEY}.{spec.name}")
            for spec, option in ((_RATIO, ratio), (_SECOND, second))
        }
        for name, own in self._found.items():
            if not isinstance(own, Range | int | float):
                given = ratio if name == "ratio" else second
                raise ConfigError(f"{KEY}.{name} is {given!r}", "a number, or {low: 0.0, high: 1.0} to search")
        genes = [
            own.gene(f"layers.{slice_.layer}/{name}")
            for slice_ in self._layers
            for name, own in self._found.items()
            if isinstance(own, Range)
        ]
        if not genes:
            raise ConfigError(f"{KEY}.ratio is {ratio!r}, and nothing is searched", "a range, or leave it out")
        self._spec = GenomeSpec(tuple(genes))

    @property
    def spec(self) -> GenomeSpec:
        """The genes."""
        return self._spec

    def decode(self, genome: Genome) -> Recipe:
        """The genome's recipe.

        Raises:
            ConfigError: the genome is not one of this space.
        """
        self._spec.check(genome)
        return self._pool.recipe(self.entries(genome, self._pool.slices))

    def entries(self, genome: Genome, slices: Iterable[SliceId]) -> Iterator[SliceRecipe]:
        """How the genome, one of this space, makes some of the pool's slices."""
        ratios = dict(zip(self._layers, self._ratios(genome), strict=True))
        source = Input(self._pool.sources[0])
        for slice_ in slices:
            if slice_ not in ratios:
                yield SliceRecipe(slice_, "passthrough", (source,))
                continue
            values = {"ratio": ratios[slice_], "second": self._value(genome, slice_, "second")}
            assert slice_.layer is not None, "feed-forward layers are layers"
            yield SliceRecipe(slice_, METHOD, (source,), parameters({**values, **_axes(slice_.layer)}))

    def active(self, genome: Genome) -> frozenset[str]:
        """The names of the genes that the recipe depends on: all of them."""
        return frozenset(gene.name for gene in self._spec)

    def _ratios(self, genome: Genome) -> list[float]:
        """The layers' shares, moved until they keep to the width."""
        given = [self._value(genome, slice_, "ratio") for slice_ in self._layers]
        if self._width is None:
            return given
        wanted, low, high = 2.0 - self._width, -1.0, 1.0
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            if sum(_moved(given, middle)) / len(given) < wanted:
                low = middle
            else:
                high = middle
        return _moved(given, high)

    def _value(self, genome: Genome, slice_: SliceId, name: str) -> float:
        found = self._found[name]
        value = self._spec.value(genome, f"layers.{slice_.layer}/{name}") if isinstance(found, Range) else found
        assert isinstance(value, int | float), "shares are numbers"
        return float(value)


def _moved(given: Sequence[float], by: float) -> list[float]:
    return [min(max(own + by, 0.0), 1.0) for own in given]


def _axes(layer: int) -> dict[str, ByTensor]:
    """Where hidden units lie in the tensors of a feed-forward layer, by parts of their names.

    GPT-2's matrices are inputs by outputs, others' outputs by inputs.
    """
    turned: list[tuple[str | None, Scalar]] = [
        (f"h.{layer}.mlp.c_fc", "cols"),
        (f"h.{layer}.mlp.c_proj", "in_rows"),
    ]
    hidden = [*turned, *((name, "rows") for name in _GIVES), *((name, "in_cols") for name in _READS)]
    return {
        "hidden": ByTensor((*hidden, (None, "none"))),
        "stretches": ByTensor((("gate_up_proj", 2), (None, 1))),
    }


def _ratio_of(file: Path) -> object:
    """The share that a model was written with; ``None`` where that cannot be read."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content.get("ratio") if isinstance(content, dict) else None


def _check_pool(pool: PoolInfo, layers: Collection[SliceId]) -> None:
    """Refuse what is no model of two side by side, as far as it can be seen."""
    do = "write one: evomerge align REFERENCE MODEL OUT --ratio 0, then pool.models={zip: OUT} pool.base=null"
    allowed = "one source that holds the hidden units of two models side by side"
    if len(pool.sources) != 1 or pool.base is not None:
        raise ConfigError(
            f"{KEY} merges within a model, and the pool has {', '.join(n for n, _ in pool.refs)}", allowed, do
        )
    ((name, ref),) = pool.refs
    folder = Path(ref.location)
    if folder.is_dir() and not (folder / WRITTEN_BY).is_file():
        raise ConfigError(f"model {name!r} has no {WRITTEN_BY}", allowed, do)
    if folder.is_dir() and (given := _ratio_of(folder / WRITTEN_BY)) != 0:
        raise ConfigError(f"model {name!r} was written with --ratio {given}", allowed, do)
    known = dict(zip(pool.slices, pool.tensors, strict=True)) if pool.tensors else {}
    for slice_ in layers:
        names = [tensor for tensor, _ in known.get(slice_, ())]
        for words in (_GIVES, _READS):
            if names and not any(word in tensor for tensor in names for word in words):
                raise ConfigError(f"slice {slice_} of {name!r} has none of {', '.join(words)}", allowed, do)
    if not layers:
        raise ConfigError(f"model {name!r} has no feed-forward layers", allowed, do)
