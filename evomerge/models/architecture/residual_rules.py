"""Finds how an architecture writes and reads its residual stream, by trying a tiny model of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from evomerge.errors import PoolError
from evomerge.models.architecture import residual_probe as probe
from evomerge.models.architecture import tiny_model
from evomerge.models.architecture.components import component_of
from evomerge.models.architecture.layer_places import immovable
from evomerge.models.architecture.layout import model_class
from evomerge.models.architecture.residual import Residual, Rule
from evomerge.models.architecture.self_built import SelfBuilt
from evomerge.recipes.slices import Component

_KNOWN: dict[str, Residual] = {}


def residual_of(config: Any, trust_remote_code: bool = False) -> Residual:
    """How the residual stream of an architecture is written and read, found once for each shape of configuration.

    Args:
        config: a transformers configuration of a model that takes tokens.
        trust_remote_code: whether the model brings its own code; such a model is not tried out.

    Returns:
        with `unscalable` or `unflippable` set where the architecture does not allow it; never raises.
    """
    if isinstance(config, SelfBuilt):
        return config.residual
    if trust_remote_code and getattr(config, "auto_map", None):
        return Residual("", unscalable="the model brings its own code")
    if getattr(config, "is_encoder_decoder", False):
        why = "it is an encoder-decoder, of two stacks of layers: a path goes through one"
        return Residual("", unscalable=why, unflippable=why, immovable=why)
    if getattr(config.get_text_config(), "is_heterogeneous", False):
        why = "its configuration has settings of their own for single layers (per_layer_config)"
        return Residual("", unscalable=why, immovable=why)
    try:
        shape = json.dumps(tiny_model.tiny(config).to_dict(), sort_keys=True, default=str)
        key = f"{model_class(config).__name__} {shape}"
        if key not in _KNOWN:
            with torch.no_grad():
                module = tiny_model.build(config)
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
