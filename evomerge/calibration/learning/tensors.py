"""The sources' tensors beside the parameters of the model that they are merged in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from evomerge.errors import PoolError
from evomerge.models.pool import Pool
from evomerge.recipes.slices import SliceId


@dataclass(frozen=True, eq=False)
class Target:
    """A tensor that is merged.

    Attributes:
        name: in the layout.
        slice: that it belongs to.
        place: in the module.
        parameter: of the module, or a buffer.
        learnt: whether gradients reach it.
    """

    name: str
    slice: SliceId
    place: str
    parameter: torch.Tensor
    learnt: bool


class Tensors:
    """What the models of a pool have, on the device of a module, in the dtype that they are stored in.

    Args:
        pool: with a base.
        module: of the pool's configuration.

    Attributes:
        targets: all that is merged, in model order.
        sources: the models that are merged.
        wide: the dtype that is computed in.

    Raises:
        PoolError: experts that the module holds as one tensor.
    """

    def __init__(self, pool: Pool, module: Any) -> None:
        assert pool.info.base is not None, "it was checked before"
        self.pool, self.sources, self._base = pool, pool.info.sources, pool.info.base
        self.wide = torch.float32
        refuse_joins(pool)
        state = module.state_dict(keep_vars=True)
        layout = pool.layout
        learnt = {id(own) for own in module.parameters()}
        self.targets = tuple(
            Target(name, slice_, layout.parameters[name], own, id(own) in learnt)
            for slice_ in layout.slices
            for name in layout.tensors[slice_]
            if pool.is_merged(name) and (own := state.get(layout.parameters[name])) is not None
        )
        self._kept: dict[tuple[str, str], torch.Tensor] = {}

    def of(self, model: str, target: Target) -> torch.Tensor:
        """A model's own, in the dtype that is computed in."""
        key = model, target.name
        device = target.parameter.device
        if device.type == "cpu":  # mapped from its file
            return self.pool.read(*key).view(target.parameter.shape).to(self.wide)
        if key not in self._kept:
            self._kept[key] = self.pool.read(*key).view(target.parameter.shape).to(device)
        return self._kept[key].to(self.wide)

    def base(self, target: Target) -> torch.Tensor:
        """The base's own."""
        return self.of(self._base, target)

    def become(self, model: str) -> None:
        """Make the module a model of the pool."""
        with torch.no_grad():
            for target in self.targets:
                target.parameter.copy_(self.of(model, target))


def refuse_joins(pool: Pool) -> None:
    """`PoolError` for experts that the checkpoint holds one by one and the module as one tensor."""
    if pool.layout.joins:
        raise PoolError(
            f"tensor {pool.layout.joins[0].names[0]!r} is joined with others on loading",
            "weights stored as transformers holds them",
            "load the models and save them by save_pretrained(save_original_format=False)",
        )


def needed_bytes(pool: Pool, learns: str, width: int, cpu: bool) -> int:
    """Memory for the merged model, a tensor of each source, and what is learnt; activations come on top.

    Args:
        pool: of the sources.
        learns: as of `Usual`.
        width: bytes of a number of the merged model.
        cpu: where the sources stay in their files.
    """
    sizes: Sequence[int] = pool.info.sizes
    total = sum(sizes)
    largest = max((count for tensors in pool.info.tensors for _, count in tensors), default=0)
    own = total * width + 16 * largest + (12 * total if learns == "mask" else 0)
    return own if cpu else own + pool.nbytes
