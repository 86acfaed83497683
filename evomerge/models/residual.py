"""How the residual stream of an architecture is written and read: what makes a scaled path an ordinary model.

A data flow path scales the residual stream on its way into a layer (Akiba et al. 2024, arXiv:2403.13187, section 3.2).
The blocks of a pre-norm architecture give the same whatever the stream's scale, so dividing what they add to the
stream by the product of the scales so far is the same function; a negative product also flips the norms that read the
stream. Which tensors those are is found by trying it on a tiny random instance of the same class.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from evomerge.errors import PoolError
from evomerge.models import residual_probe as probe
from evomerge.models.layer_places import immovable
from evomerge.models.layout import component_of, model_class
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


_KNOWN: dict[str, Residual] = {}


def residual_of(config: Any, trust_remote_code: bool = False) -> Residual:
    """How the residual stream of an architecture is written and read, found once for each shape of configuration.

    Args:
        config: a transformers configuration of a model that takes tokens.
        trust_remote_code: whether the model brings its own code; such a model is not tried out.

    Returns:
        with `unscalable` or `unflippable` set where the architecture does not allow it; never raises.
    """
    if trust_remote_code and getattr(config, "auto_map", None):
        return Residual("", unscalable="the model brings its own code")
    if getattr(config.get_text_config(), "is_heterogeneous", False):
        why = "its configuration has settings of their own for single layers (per_layer_config)"
        return Residual("", unscalable=why, immovable=why)
    try:
        key = f"{model_class(config).__name__} {json.dumps(probe.tiny(config).to_dict(), sort_keys=True, default=str)}"
        if key not in _KNOWN:
            with torch.no_grad():
                module = probe.build(config)
                _KNOWN[key] = replace(_found(module), immovable=immovable(module))
    except PoolError as error:
        return Residual("", unscalable=f"a small {config.model_type} cannot be tried out ({error.given})")
    except Exception as error:  # a configuration of no known kind
        return Residual(
            "", unscalable=f"a small {config.model_type} cannot be tried out ({type(error).__name__}: {error})"
        )
    return _KNOWN[key]


def _found(module: nn.Module) -> Residual:
    """What trying out a tiny module shows."""
    prefix, layers, end = probe.stages(module)
    writers: dict[Component, dict[str, None]] = {"attn": {}, "mlp": {}}
    readers: dict[str, None] = {}
    rules: dict[str, Rule] = {}
    unflippable = ""
    for layer in layers.values():
        reading = layer.unnormalised()
        if reading is not None:
            return Residual(prefix, unscalable=f"its {reading} reads the residual stream without normalising it")
        written = layer.writers()
        if written is None:
            return Residual(
                prefix, unscalable="what its layers add to the residual stream depends on the stream's scale"
            )
        calls: dict[str, probe.Call] = {}
        layer.run(1.0, calls=calls)
        for name in written:
            offsets = probe.rules_of(layer.units[name], calls[name], (2.0, -3.0), flip=False)
            if offsets is None:
                return Residual(prefix, unscalable=f"the output of its {name} follows none of its parameters")
            component = _component_of(layer, name, calls)
            writers[component][name] = None
            rules |= {f"{name}.{parameter}": Rule(component, offset) for parameter, offset in offsets.items()}
        flips, problem = _flips(layer, calls, written, "norm")
        readers |= dict.fromkeys(name.rpartition(".")[0] for name in flips)
        rules |= flips
        unflippable = unflippable or problem
    if not probe.close(end.run(2.0), end.run(1.0)):
        return Residual(prefix, unscalable="nothing normalises what its last layer gives")
    calls = {}
    end.run(1.0, calls=calls)
    flips, problem = _flips(end, calls, (), "final_norm")
    return Residual(
        prefix,
        {component: tuple(names) for component, names in writers.items() if names},
        tuple(readers),
        rules | flips,
        unflippable=unflippable or problem,
    )


def _flips(
    stage: probe.Stage, calls: Mapping[str, probe.Call], written: tuple[str, ...], component: Component
) -> tuple[dict[str, Rule], str]:
    """The rules of the norms that read the stream, and why the stage cannot take a negative one, if it cannot."""
    doubled: dict[str, probe.Call] = {}
    base = stage.run(1.0)
    stage.run(2.0, dict.fromkeys(written, 2.0), doubled)
    rules: dict[str, Rule] = {}
    negated: dict[str, dict[str, torch.Tensor]] = {}
    for name, call in calls.items():
        before, after = call.input, doubled[name].input
        if before is None or after is None or not before.is_floating_point() or not probe.close(after, 2.0 * before):
            continue
        offsets = probe.rules_of(stage.units[name], call, (-1.0,), flip=True)
        if offsets is None:
            return {}, f"its {name} reads the residual stream and cannot be turned around"
        rules |= {f"{name}.{parameter}": Rule(component, offset) for parameter, offset in offsets.items()}
        own = dict(stage.units[name].named_parameters(recurse=False))
        negated[name] = {p: -(own[p].data + offset) - offset for p, offset in offsets.items()}
    with ExitStack() as stack:
        for name, values in negated.items():
            stack.enter_context(probe.parameters_of(stage.units[name], values))
        wanted = base if component == "final_norm" else -2.0 * base
        if not probe.close(stage.run(-2.0, dict.fromkeys(written, -2.0)), wanted):
            return {}, "its layers depend on the sign of the residual stream in other ways than by norms with weights"
    return rules, ""


def _component_of(layer: probe.Stage, name: str, calls: Mapping[str, probe.Call]) -> Component:
    """The component that a writer gives the output of: its own, or for a post-norm that of what ran before it."""
    order = list(calls)
    for earlier in reversed(order[: order.index(name) + 1]):
        component = component_of(layer.module, f"{earlier}.weight")
        if component != "norm":
            return component
    return "mlp"
