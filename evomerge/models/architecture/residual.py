"""How the residual stream of an architecture is written and read: what makes a scaled path an ordinary model.

A data flow path scales the residual stream on its way into a layer (Akiba et al. 2024, arXiv:2403.13187, section 3.2).
The blocks of a pre-norm architecture give the same whatever the stream's scale, so dividing what they add to the
stream by the product of the scales so far is the same function; a negative product also flips the norms that read the
stream. Which tensors those are is found by trying it on a tiny random instance of the same class.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from evomerge.recipes.slices import Component


@dataclass(frozen=True)
class Rule:
    """How a tensor follows a factor c on what its module gives: ``c * (w + offset) - offset``.

    Attributes:
        component: whose factor it follows: `attn` and `mlp` for what those add to the stream; `norm` and `final_norm`
            for what reads it, by a factor of -1.
        offset: 1 where the module multiplies by ``1 + w``.
    """

    component: Component
    offset: float = 0.0

    def __call__(self, tensor: torch.Tensor, factor: float) -> torch.Tensor:
        """The scaled tensor, computed in float32 and rounded once to the tensor's dtype; `tensor` is not changed."""
        return self.apply_(tensor.to(torch.float32, copy=True), factor).to(tensor.dtype)

    def apply_(self, tensor: torch.Tensor, factor: float) -> torch.Tensor:
        """The same in place, of a float32 tensor."""
        if not self.offset:
            return tensor.mul_(factor)
        return tensor.add_(self.offset).mul_(factor).sub_(self.offset)


@dataclass(frozen=True)
class Residual:
    """What writes to the residual stream of an architecture, and what reads it.

    Attributes:
        layers: name of the list of layers in the transformers module.
        writers: by component (`attn`, `mlp`), the modules whose outputs are added to the stream, by their names in a
            layer; a post-norm where there is one.
        readers: the norms that read the stream, by their names in a layer.
        rules: how parameters follow a factor, by their names in a layer, or in the module for those outside layers.
        unscalable: why the outputs cannot be scaled; empty where they can.
        unflippable: why they cannot be scaled by negative numbers; empty where they can.
        immovable: why layers cannot be put in other places; empty where they can.
    """

    layers: str
    writers: Mapping[Component, tuple[str, ...]] = field(default_factory=dict)
    readers: tuple[str, ...] = ()
    rules: Mapping[str, Rule] = field(default_factory=dict)
    unscalable: str = ""
    unflippable: str = ""
    immovable: str = ""

    def rule(self, name: str) -> Rule | None:
        """How the parameter `name` of the transformers module follows a factor; ``None`` where it follows none."""
        if name.startswith(f"{self.layers}."):
            name = name.removeprefix(f"{self.layers}.").partition(".")[2]
        return self.rules.get(name)

    def scaled(self, name: str, tensor: torch.Tensor, factor: float) -> torch.Tensor:
        """A parameter of the transformers module as it is where what its module gives is multiplied by `factor`.

        Computed in float32 and rounded once to the tensor's dtype. Parameters that follow no factor are returned as
        they are.
        """
        rule = self.rule(name)
        return tensor if rule is None else rule(tensor, factor)
