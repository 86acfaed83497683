"""What a path can be made of: the models of a pool, and the winner of the phase before, layer by layer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from evomerge.errors import ConfigError, nearest
from evomerge.recipes.pool_info import PoolInfo
from evomerge.recipes.recipe import Recipe
from evomerge.recipes.slices import Component, Input, SliceId, SliceRecipe

KEY = "search_space"
MERGED = "merged"
"""What the winner of the phase before is called as a source."""


class Alone:
    """The type of `ALONE`."""


ALONE: Final = Alone()
"""Said instead of a winner where a space searches by itself; ``None`` stands for a winner that is not known yet."""


@dataclass(frozen=True)
class PathPool:
    """The models whose layers a path takes, in order.

    Attributes:
        info: the pool.
        models: names of the models, the winner of the phase before in front.
        winner: name and recipe of that winner: an intermediate of the recipes that use it.
    """

    info: PoolInfo
    models: tuple[str, ...]
    winner: tuple[str, Recipe] | None = None

    @staticmethod
    def of(info: PoolInfo, models: Sequence[str] | None, winner: Recipe | Alone | None) -> PathPool:
        """The models that a configuration asks for.

        Args:
            info: the pool.
            models: those whose layers are used; its sources for ``None``.
            winner: joins them as the first; ``None`` where it is not known yet, which a source then stands in for.

        Raises:
            ConfigError: a model that the pool does not have, or one named twice; or layers of this architecture cannot
                be put in other places.
        """
        if info.immovable:
            raise ConfigError(
                f"{KEY} is a path, and layers of this architecture cannot change places: {info.immovable}",
                "architectures whose layers compute the same wherever they are",
                "search parameters: search_space=ties",
            )
        known = [name for name, _ in info.refs]
        chosen = list(info.sources if models is None else models)
        for name in chosen:
            if name not in known:
                raise ConfigError(f"{KEY}.models names {name!r}", nearest(str(name), known), "name models of the pool")
        if not chosen or len(set(chosen)) < len(chosen):
            raise ConfigError(f"{KEY}.models is {chosen}", "one or more models of the pool, each once")
        if isinstance(winner, Alone):
            return PathPool(info, tuple(chosen))
        taken = {*known, *(winner.stages if winner is not None else ())}
        number, merged = 1, MERGED
        while merged in taken:
            number += 1
            merged = f"{MERGED}{number}"
        recipe = winner if winner is not None else info.linear({info.sources[0]: 1.0})
        assert recipe.hash  # made once, for all recipes that take it
        return PathPool(info, (merged, *chosen), (merged, recipe))

    def depth(self, model: str) -> int:
        """How many layers a model has."""
        if self.winner is not None and model == self.winner[0]:
            return 1 + max((e.slice.layer for e in self.winner[1].slices if e.slice.layer is not None), default=-1)
        return self.info.depth(model)

    def model(self, name: str | None, key: str) -> str:
        """The model that a configuration key names; the first one for ``None``.

        Raises:
            ConfigError: there is none of this name.
        """
        known = [*self.models, *(other for other, _ in self.info.refs if other not in self.models)]
        if name is not None and name not in known:
            raise ConfigError(f"{KEY}.{key} is {name!r}", nearest(name, known), "name a model of the pool")
        return self.models[0] if name is None else name

    def components(self, layer: int) -> tuple[Component, ...]:
        """The components of a layer, in order."""
        layer = min(layer, self.info.layers - 1)  # layers that only a deeper model of the pool has are like the last
        return tuple(s.component for s in self.info.slices if s.layer == layer)

    @property
    def outer(self) -> tuple[SliceId, ...]:
        """The slices outside the layers."""
        return tuple(s for s in self.info.slices if s.layer is None)

    def layer_sizes(self) -> tuple[int, ...] | None:
        """Parameters of every layer, of the deepest model too; ``None`` where the pool does not know."""
        if not self.info.sizes:
            return None
        sizes = [0] * self.info.layers
        for slice_, size in zip(self.info.slices, self.info.sizes, strict=True):
            if slice_.layer is not None:
                sizes[slice_.layer] += size
        deepest = max(self.depth(name) for name in self.models)
        return (*sizes, *[sizes[-1]] * (deepest - len(sizes)))

    def outer_size(self) -> int:
        """Parameters outside the layers."""
        pairs = zip(self.info.slices, self.info.sizes, strict=False)
        return sum(size for slice_, size in pairs if slice_.layer is None)

    def recipe(self, slices: Iterable[SliceRecipe], seed: int = 0) -> Recipe:
        """A recipe of these slices; the winner is an intermediate where one of them takes it."""
        entries = tuple(slices)
        own: tuple[tuple[str, Recipe], ...] = ()
        if self.winner is not None and any(source.model == self.winner[0] for e in entries for source in _sources(e)):
            own = (self.winner,)
        info = self.info
        fields = info.dtype, info.config_from, seed, own, info.tokenizer_from, info.calibration
        return Recipe(info.refs, entries, *fields, info.tokenizer, info.heads)


def _sources(entry: SliceRecipe) -> tuple[Input, ...]:
    return entry.inputs if entry.base is None else (*entry.inputs, entry.base)
