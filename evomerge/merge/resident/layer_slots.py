"""Layers of a resident model in any number and order: layer slots that hold no weights of their own.

A slot is a copy of a layer's modules that shares nothing with it but what is not learned. Its parameters point to the
tensors of whichever source layer the path wants there; what else a layer is (see `layer_kinds`) follows the source.
Each place in the path has slots of its own, one per kind, so that every place has its own key-value cache even where
a layer repeats.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from evomerge.errors import RecipeError
from evomerge.merge.resident.layer_kinds import Kind, Kinds
from evomerge.merge.resident.module_slices import ModuleSlice, ModuleSlices
from evomerge.models.architecture.layout import skeleton
from evomerge.models.architecture.self_built import SelfBuilt
from evomerge.models.architecture.stacks import find_layers, find_stacks
from evomerge.models.pool import Pool
from evomerge.recipes.slices import EVERY_LAYER_COMPONENT, Component, SliceId


class Factor:
    """A forward hook that multiplies what a module gives; nothing happens at 1."""

    def __init__(self) -> None:
        self.value = 1.0

    def __call__(self, module: nn.Module, inputs: Any, output: Any) -> Any:
        """The scaled output; of several, the first is what goes to the residual stream."""
        if self.value == 1.0:
            return None
        if isinstance(output, tuple):
            return (output[0] * self.value, *output[1:])
        return output * self.value


@dataclass(eq=False)
class LayerSlot:
    """A layer in one place of the path.

    Attributes:
        module: the layer.
        slices: its slices by component.
        factors: what its residual outputs are multiplied by, of components that were ever scaled.
    """

    module: nn.Module
    slices: Mapping[Component, ModuleSlice]
    factors: dict[Component, Factor] = field(default_factory=dict)


class LayerSlots:
    """The layers of a resident model, which paths of any depth are made of.

    Args:
        module: as `from_pretrained` loaded it.
        pool: the source models.
        slices: of the module.
    """

    def __init__(self, module: nn.Module, pool: Pool, slices: ModuleSlices) -> None:
        self._pool, self._slices = pool, slices
        self._config: Any = pool.config
        self._fixed, self._list, self._prefix = pool.layout.fixed, nn.ModuleList(), ""
        if isinstance(pool.config, SelfBuilt):  # whose layers are no list of its own
            modules = [module] * pool.layout.layers
        else:
            stacks = find_stacks(module)
            self._prefix, self._list = stacks[0]
            self._config = module.config.get_text_config()  # type: ignore[operator,union-attr]
            modules = [layer for _, layers in stacks for layer in layers]
            if len(stacks) > 1:
                self._fixed = f"the layers of an encoder-decoder stay in place: {len(modules)}"
        own = []
        for number, layer in enumerate(modules):
            ids = (SliceId(component, number) for component in EVERY_LAYER_COMPONENT)
            own.append(LayerSlot(layer, {s.component: slices.of(s) for s in ids if s in slices.forms}))
        self.own = tuple(own)
        self.path: tuple[LayerSlot, ...] = self.own
        self._found: Kinds | None = None
        self._of_models: dict[str, Sequence[Kind | None]] = {}
        self._made: dict[tuple[int, Kind], LayerSlot] = {}

    @property
    def _kinds(self) -> Kinds:
        """The kinds of the module's own layers: first asked for while they are as they were loaded."""
        if self._found is None:
            self._found = Kinds([slot.module for slot in self.own], self._config)
            self._made = {(i, kind): self.own[i] for i, kind in enumerate(self._found.own)}
        return self._found

    def every(self) -> set[ModuleSlice]:
        """The slices of all layers that there ever were."""
        return {place for slot in {*self.own, *self._made.values()} for place in slot.slices.values()}

    def arrange(self, origins: Sequence[tuple[str, int]]) -> tuple[LayerSlot, ...]:
        """Make the module's layers layer slots for a path; returns them. Their weights are still what they were.

        Args:
            origins: for each place, the model and the layer that it follows in all but weights.

        Raises:
            RecipeError: layers of this architecture cannot be put elsewhere, or the resident model has none like one
                of them.
        """
        if len(origins) == len(self.own) and all(place == layer for place, (_, layer) in enumerate(origins)):
            path = self.own
            kinds: Sequence[Kind] = ()
        elif self._fixed:
            raise RecipeError(f"a path of {len(origins)} layers", self._fixed)
        else:
            kinds = [self._kind(model, layer) for model, layer in origins]
            path = tuple(self._layer_slot(place, kind) for place, kind in enumerate(kinds))
        if path == self.path:
            return path
        modules = self._list._modules
        modules.clear()
        modules.update({str(place): slot.module for place, slot in enumerate(path)})
        self._config.num_hidden_layers = len(path)
        for name, values in (self._found.lists if self._found is not None else {}).items():
            setattr(self._config, name, [kind.entries[name] for kind in kinds] if kinds else values)
        self.path = path
        return path

    def scale(self, slot: LayerSlot, component: Component, factor: float) -> None:
        """Multiply what a component of a slot adds to the residual stream by `factor`.

        Raises:
            RecipeError: the architecture's residual outputs cannot be scaled.
        """
        known = slot.factors.get(component)
        if known is None:
            if factor == 1.0:
                return
            residual = self._pool.residual
            if residual.unscalable:
                raise RecipeError(f"a scale of {factor} on {component}", residual.unscalable)
            parts = dict(slot.module.named_modules())
            # Of all kinds of layers: dense ones write with other modules than those with experts.
            writers = [parts[name] for name in residual.writers.get(component, ()) if name in parts]
            if not writers:
                raise RecipeError(f"a scale of {factor} on {component}", "the layer has no module that it could scale")
            known = Factor()
            for module in writers:
                module.register_forward_hook(known)
            slot.factors[component] = known  # last: a factor that is known here is one that works
        known.value = factor

    def _kind(self, model: str, layer: int) -> Kind:
        """The kind of a source layer, as the module has it."""
        kinds = self._kinds
        if layer < len(self.own):
            kind: Kind | None = kinds.own[layer]
        else:
            if model not in self._of_models:
                from transformers import AutoConfig

                remote = self._pool.trust_remote_code
                config = AutoConfig.from_pretrained(str(self._pool.folder(model)), trust_remote_code=remote)
                layers = list(find_layers(skeleton(config, remote))[1])
                self._of_models[model] = kinds.like(layers, config.get_text_config())
            kind = self._of_models[model][layer]
        if kind is None:
            raise RecipeError(
                f"layer {layer} of {model} is of a kind that {self._pool.info.config_from} has no layer of",
                "layers of the kinds that the model which gives the configuration has",
                "let the deepest model of the pool be its base, or its first",
            )
        if kind.refers:
            raise RecipeError(
                f"layer {layer} of {model} refers to other layers by number ({', '.join(kind.refers)})",
                "architectures whose layers stand for themselves can change their order and number",
            )
        return kind

    def _layer_slot(self, place: int, kind: Kind) -> LayerSlot:
        if (place, kind) not in self._made:
            self._made[place, kind] = self._build(place, kind)
        return self._made[place, kind]

    @torch.no_grad()
    def _build(self, place: int, kind: Kind) -> LayerSlot:
        """A slot of a kind for a place in the path, without weights."""
        template = kind.module
        memo: dict[int, Any] = {
            id(module.config): module.config for module in template.modules() if _has_config(module)
        }
        for parameter in template.parameters():
            memo[id(parameter)] = nn.Parameter(parameter.new_empty(0), parameter.requires_grad)
        for buffer in template.buffers():
            memo[id(buffer)] = buffer.detach()  # the same memory under an object of its own
        module = copy.deepcopy(template, memo)
        for part in module.modules():
            for name in self._kinds.numbers & vars(part).keys():
                if type(getattr(part, name)) is int and getattr(part, name) == kind.layer:
                    setattr(part, name, place)
            for number in [n for n, hook in part._forward_hooks.items() if isinstance(hook, Factor)]:
                del part._forward_hooks[number]
        names = dict(template.named_parameters()) | dict(template.named_buffers())
        copies = dict(module.named_parameters()) | dict(module.named_buffers())
        prefix = f"{self._prefix}.{kind.layer}."
        tensors = {f"{prefix}{name}": copies[name] for name in names}
        parts = {f"{prefix}{name}": part for name, part in module.named_modules()}
        ids = (SliceId(component, kind.layer) for component in EVERY_LAYER_COMPONENT)
        slices = {s.component: self._slices.within(s, tensors, parts) for s in ids if s in self._slices.forms}
        return LayerSlot(module, slices)


def _has_config(module: nn.Module) -> bool:
    return hasattr(module, "config") and not isinstance(module.config, nn.Module)
