"""Which slices share genes: groups of layers, lists of components, and anchors over depth."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from evomerge.errors import ConfigError, nearest
from evomerge.recipes.pool_info import PoolInfo
from evomerge.recipes.slices import (
    COMPONENTS,
    EVERY_COMPONENT,
    EVERY_LAYER_COMPONENT,
    EVERY_OUTER_COMPONENT,
    LAYER_COMPONENTS,
    OUTER_COMPONENTS,
    Component,
    SliceId,
)

Shares = tuple[tuple[int, float], ...]
"""What a slice takes from gene groups: pairs of group number and share; shares sum to 1."""


BLOCKS = ("block", "section")
"""Groups of layers by the names of an architecture's blocks."""

AUTO = "auto"
"""What is as fine as the budget of a search allows, and otherwise as fine as can be."""


@dataclass(frozen=True)
class Sharing:
    """Gene groups and how slices use them.

    Attributes:
        names: of the gene groups, in model order.
        shares: for every slice of the pool; one group with share 1, or the two anchors around a layer.
    """

    names: tuple[str, ...]
    shares: Mapping[SliceId, Shares]


def component_lists(components: str | Sequence[Sequence[str]], key: str) -> list[list[Component]]:
    """Check the lists of components that share genes, and complete them by those that every model has.

    ``each`` gives every component its own list; ``all`` one list for the components of a layer and one
    for the others. Components that no list names form one more list (layer components and the others
    apart), in the order of `COMPONENTS` as all lists do.

    Raises:
        ConfigError: an unknown word, a component named twice, or an empty list.
    """
    components = "each" if components == AUTO else components
    if isinstance(components, str):
        if components not in ("each", "all"):
            allowed = f"{nearest(components, ('auto', 'each', 'all'))}, or lists of {', '.join(COMPONENTS)}"
            raise ConfigError(f"{key} is {components!r}", allowed)
        given: Sequence[Sequence[str]] = [[c] for c in COMPONENTS] if components == "each" else []
    else:
        given = components
    named: set[str] = set()
    for i, words in enumerate(given):
        if not words:
            raise ConfigError(f"{key}[{i}] is empty", f"one or more of {', '.join(COMPONENTS)}", "remove it")
        for word in words:
            if word not in EVERY_COMPONENT:
                raise ConfigError(f"{key}[{i}] names {word!r}", nearest(str(word), EVERY_COMPONENT))
            if word in named:
                raise ConfigError(f"{key}[{i}] names {word!r} a second time", "every component belongs to one list")
            named.add(word)
    lists = [[c for c in EVERY_COMPONENT if c in words] for words in given]
    for kind in (True, False):
        rest = [c for c in COMPONENTS if c not in named and (c in LAYER_COMPONENTS) == kind]
        if rest:
            lists.append(rest)
    return lists


def sharings(layer_group: Any, components: Any, layers: int, whole: bool = False) -> Iterator[tuple[Any, Any]]:
    """Pairs of `layer_group` and `components` from the finest to the coarsest, of what is ``auto`` in them.

    First all components of a layer come to share their genes, then ever more layers.

    Args:
        layer_group, components: as given; what is not ``auto`` stays.
        layers: of the pool.
        whole: whether layers have no groups, since they are interpolated.
    """
    lists = ["each", "all"] if components == AUTO else [components]
    groups = ["layer"] if layer_group == AUTO else [layer_group]
    yield from ((groups[0], each) for each in lists)
    if layer_group == AUTO and not whole:
        known = layers
        for size in range(2, layers + 1):
            count = -(-layers // size)
            if count < known:
                yield "all" if count == 1 else size, lists[-1]
            known = count


def layer_groups(
    pool: PoolInfo, layer_group: int | str, components: Sequence[Sequence[Component]], key: str
) -> Sharing:
    """Runs of `layer_group` layers share genes: piecewise constant over depth.

    Args:
        pool: what there is.
        layer_group: layers per group, ``layer`` (1) or ``all``; the last group may be shorter. Of architectures whose
            blocks have names (`PoolInfo.blocks`), ``block`` for each of these, or ``section`` for those whose names
            begin alike: ``down``, ``mid``, ``up``.
        components: as `component_lists` returns them; components the pool lacks are passed over.
        key: the configuration key of `layer_group`, for messages.

    Raises:
        ConfigError: a size that fits no layer, or a list that mixes components of layers with others
            while layers have groups of their own.
    """
    components = _completed(components, pool)
    group_of = _group_numbers(pool, layer_group, key)
    if layer_group != "all":
        _refuse_mixed(components, f"{key}={layer_group}", f"set {key}=all, or list them apart")
    members: dict[tuple[int, int], list[SliceId]] = {}
    for slice_ in pool.slices:
        number = _list_of(slice_, components)
        members.setdefault((number, 0 if slice_.layer is None else group_of[slice_.layer]), []).append(slice_)
    ordered = sorted(members.values(), key=lambda slices: min(s.order for s in slices))
    shares: dict[SliceId, Shares] = {s: ((i, 1.0),) for i, slices in enumerate(ordered) for s in slices}
    names = [_name(slices, pool, layer_group, components[_list_of(slices[0], components)]) for slices in ordered]
    return Sharing(tuple(names), shares)


def layer_anchors(pool: PoolInfo, anchors: int, components: Sequence[Sequence[Component]], key: str) -> Sharing:
    """Genes at `anchors` evenly spaced depths; layers between two of them interpolate linearly.

    The first anchor is layer 0 and the last one the last layer, as for mergekit's gradients. Components
    outside the layers have a gene group each, as without interpolation.

    Raises:
        ConfigError: fewer than 2 anchors or more than layers, or a list that mixes components of layers
            with others.
    """
    if pool.layers < 2:
        raise ConfigError(f"interpolation is linear and the pool has {pool.layers} layer", "2 layers or more")
    if isinstance(anchors, bool) or not 2 <= anchors <= pool.layers:
        raise ConfigError(f"{key} is {anchors}", f"2 to {pool.layers}, the pool's number of layers")
    components = _completed(components, pool)
    _refuse_mixed(components, "interpolation over layers", "list them apart")
    depths = [k * (pool.layers - 1) / (anchors - 1) for k in range(anchors)]
    groups: dict[str, tuple[tuple[int, int, float], list[SliceId]]] = {}
    wanted: dict[SliceId, list[tuple[str, float]]] = {}
    for slice_ in pool.slices:
        number = _list_of(slice_, components)
        if slice_.layer is None:
            part = slice_.order[0]
            peers = [s for s in pool.slices if _list_of(s, components) == number]
            name = _name(peers, pool)
            groups.setdefault(name, ((part, 0, number), peers))
            wanted[slice_] = [(name, 1.0)]
            continue
        # Whole numbers, so that a layer that is an anchor uses it alone.
        left, rest = divmod(slice_.layer * (anchors - 1), pool.layers - 1)
        fraction = rest / (pool.layers - 1)
        suffix = _suffix(components[number], pool)
        wanted[slice_] = []
        for anchor, share in ((left, 1.0 - fraction), (left + 1, fraction)):
            if share > 0:
                name = f"layers@{round(depths[anchor], 3):g}{suffix}"
                groups.setdefault(name, ((1, anchor, number), []))
                wanted[slice_].append((name, share))
    names = sorted(groups, key=lambda name: groups[name][0])
    index = {name: i for i, name in enumerate(names)}
    shares = {s: tuple((index[name], share) for name, share in pairs) for s, pairs in wanted.items()}
    return Sharing(tuple(names), shares)


def _completed(components: Sequence[Sequence[Component]], pool: PoolInfo) -> list[list[Component]]:
    """Lists of components with those that only some architectures have, where the pool's does.

    What no list names goes where all others of its kind share genes, into a list of its own where all are apart, and
    into one with the others that no list names otherwise.
    """
    lists = [list(words) for words in components]
    there = {s.component for s in pool.slices}
    for kind, every in ((LAYER_COMPONENTS, EVERY_LAYER_COMPONENT), (OUTER_COMPONENTS, EVERY_OUTER_COMPONENT)):
        left = [c for c in every if c in there and not any(c in words for words in lists)]
        shared = next((words for words in lists if set(kind) <= set(words)), None)
        if shared is not None:
            shared += left
        elif all(len(words) == 1 for words in lists):
            lists += [[c] for c in left]
        elif left:
            lists.append(left)
    return lists


def _group_numbers(pool: PoolInfo, layer_group: int | str, key: str) -> list[int]:
    """The number of each layer's group."""
    if layer_group in BLOCKS:
        names = _block_names(pool, str(layer_group))
        if not names:
            raise ConfigError(
                f"{key} is {layer_group!r}",
                "the layers of this architecture have no blocks with names of their own: auto, layer, all, or a number",
            )
        known = list(dict.fromkeys(names))
        return [known.index(name) for name in names]
    size = _group_size(pool, layer_group, key)
    return [layer // size for layer in range(pool.layers)]


def _block_names(pool: PoolInfo, layer_group: str) -> list[str]:
    """The name of each layer's block, or of its section."""
    names = [name for name, count in pool.blocks for _ in range(count)]
    return [name.partition(".")[0] for name in names] if layer_group == "section" else names


def _group_size(pool: PoolInfo, layer_group: int | str, key: str) -> int:
    layers = pool.layers
    if layer_group == "all":
        return layers
    size = 1 if layer_group in ("layer", AUTO) else layer_group
    if isinstance(size, str):
        words = ("auto", "layer", "all", *(BLOCKS if pool.blocks else ()))
        raise ConfigError(f"{key} is {size!r}", f"{nearest(size, words)}, or a number of layers")
    if isinstance(size, bool) or not 1 <= size <= layers:
        raise ConfigError(
            f"{key} is {size}",
            f"1 to {layers}, the pool's number of layers",
            f"set {key}=all for one group of all layers",
        )
    return size


def _refuse_mixed(components: Sequence[Sequence[Component]], what: str, do: str) -> None:
    for words in components:
        inside = [c for c in words if c in EVERY_LAYER_COMPONENT]
        if inside and len(inside) < len(words):
            outside = next(c for c in words if c not in EVERY_LAYER_COMPONENT)
            raise ConfigError(
                f"search_space.components puts {outside!r}, which belongs to no layer, with {inside[0]!r}",
                f"with {what} they cannot share genes",
                do,
            )


def _list_of(slice_: SliceId, components: Sequence[Sequence[Component]]) -> int:
    return next(i for i, words in enumerate(components) if slice_.component in words)


def _suffix(components: Iterable[Component], pool: PoolInfo) -> str:
    """``.attn+mlp``, or nothing when these are all the components that the pool's layers have."""
    present = [c for c in EVERY_LAYER_COMPONENT if any(s.component == c for s in pool.slices)]
    named = [c for c in present if c in components]
    return "" if named == present else f".{'+'.join(named)}"


def _name(
    slices: Sequence[SliceId],
    pool: PoolInfo,
    layer_group: int | str = "layer",
    components: Sequence[Component] = (),
) -> str:
    """``embed``, ``layers.2``, ``layers.0-3.attn+mlp``, ``down.0.attn``, ``final_norm+head``, ``model``."""
    if len(slices) == len(pool.slices):
        return "model"
    words = [str(s) for s in slices if s.layer is None]
    numbers = [s.layer for s in slices if s.layer is not None]
    if numbers:
        first, last = min(numbers), max(numbers)
        span = f"{first}" if first == last else f"{first}-{last}"
        where = _block_names(pool, str(layer_group))[first] if layer_group in BLOCKS else f"layers.{span}"
        before = sum(s.layer is None and not s.order[0] for s in slices)
        # Not every layer of an architecture with blocks has all components.
        own = components if pool.blocks and components else [s.component for s in slices]
        words.insert(before, f"{where}{_suffix(own, pool)}")
    return "+".join(words)
