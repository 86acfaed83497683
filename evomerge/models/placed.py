"""A pool's tensors as its module holds them: those that transformers joins on loading, joined."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import torch

from evomerge.errors import PoolError
from evomerge.models.architecture.conversion import Join
from evomerge.models.architecture.layout import skeleton
from evomerge.models.pool import Pool


class PlacedTensors:
    """Reads and splits tensors by their places in the module.

    Args:
        pool: the source models.
    """

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._joins: dict[str, Join] = {}
        for join in pool.layout.joins:
            if len(join.places) > 1:
                raise PoolError(
                    f"tensor {join.names[0]!r} is joined with others into {len(join.places)} on loading",
                    "weights that are joined to one each",
                    "load the models and save them by save_pretrained(save_original_format=False)",
                )
            self._joins[join.place] = join
        self._names = {place: name for name, place in pool.layout.parameters.items()}

    @cached_property
    def module(self) -> Any:
        """The pool's module, on the meta device."""
        return skeleton(self._pool.config, self._pool.trust_remote_code)

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes of all that is merged, by place."""
        state = self.module.state_dict()
        merged = [place for place, name in self._names.items() if self._pool.is_merged(name)]
        return {place: tuple(state[place].shape) for place in merged}

    def names(self, place: str) -> tuple[str, ...]:
        """The layout's names of what fills a place."""
        join = self._joins.get(place)
        return join.names if join is not None else (self._names[place],)

    def read(self, model: str, place: str) -> torch.Tensor:
        """A model's tensor in the shape and order of the module, in the stored dtype."""
        join = self._joins.get(place)
        if join is None:
            return self._pool.read(model, self._names[place])
        return join.join({name: self._pool.read(model, name) for name in join.names}, self.module)[place]

    def split(self, place: str, tensor: torch.Tensor) -> Mapping[str, torch.Tensor]:
        """The layout's tensors that a module's tensor is made of, by name: views of it.

        Raises:
            PoolError: transformers has no way back from the joined tensor.
        """
        join = self._joins.get(place)
        if join is None:
            return {self._names[place]: tensor}
        return split(join, tensor, self.module)


def split(join: Join, tensor: torch.Tensor, module: Any) -> Mapping[str, torch.Tensor]:
    """The tensors that a joined one is made of, by name: views of it.

    Raises:
        PoolError: transformers has no way back.
    """
    views = join.views(tensor.contiguous(), module)
    if views is None:
        raise PoolError(
            f"transformers joins {join.names[0]!r} and {len(join.names) - 1} more, and cannot take them apart again",
            "weights stored as transformers holds them",
            "load the models and save them by save_pretrained(save_original_format=False)",
        )
    return views
