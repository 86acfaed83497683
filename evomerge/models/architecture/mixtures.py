"""The mixtures of experts in a model class: where their weights are, and how a configuration says how many."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from torch import nn

from evomerge.errors import PoolError
from evomerge.models.architecture.layout import skeleton
from evomerge.models.architecture.stacks import find_layers

COUNTS = ("num_experts", "num_local_experts")
"""Keys of configurations that may say how many experts a layer has."""
CHOSEN = "num_experts_per_tok"

_TRIED = "Mixtral, Qwen2-MoE, Qwen3-MoE or OLMoE"


@dataclass(frozen=True)
class Mixture:
    """The experts of a layer, as transformers holds them.

    Attributes:
        layer: its number.
        experts: name of the module that holds them.
        router: place of the router's rows, of shape ``(experts, width)``.
        gate_up: place of what reads the stream, of shape ``(experts, 2 units, width)``: gates, then the others.
        down: place of what writes it, of shape ``(experts, width, units)``.
        count: how many experts.
    """

    layer: int
    experts: str
    router: str
    gate_up: str
    down: str
    count: int


def mixtures_of(module: nn.Module) -> tuple[Mixture, ...]:
    """The mixtures of a module, also on the meta device, by layer; layers without experts are left out.

    Raises:
        PoolError: it has none, or experts or routers with weights that are not known here.
    """
    prefix, _ = find_layers(module)
    found = []
    for name, own in module.named_modules():
        experts, gate = getattr(own, "experts", None), getattr(own, "gate", None)
        if not isinstance(experts, nn.Module) or not name.startswith(f"{prefix}."):
            continue
        state = {key: tuple(tensor.shape) for key, tensor in experts.state_dict().items()}
        rows = {k: tuple(t.shape) for k, t in gate.state_dict().items()} if isinstance(gate, nn.Module) else {}
        gate_up, down = state.get("gate_up_proj", ()), state.get("down_proj", ())
        known = state.keys() == {"gate_up_proj", "down_proj"} and rows.keys() == {"weight"}
        if not known or len(gate_up) != 3 or gate_up != (down[0], 2 * down[2], down[1]) or rows["weight"][0] != down[0]:
            raise PoolError(
                f"{type(own).__name__} at {name!r} has experts with {', '.join(sorted(state)) or 'nothing'} and a "
                f"router with {', '.join(sorted(rows)) or 'nothing'}",
                f"experts of gate_up_proj and down_proj and a router of weight, as of {_TRIED}",
            )
        layer = int(name.removeprefix(f"{prefix}.").partition(".")[0])
        places = (f"{name}.gate.weight", f"{name}.experts.gate_up_proj", f"{name}.experts.down_proj")
        found.append(Mixture(layer, f"{name}.experts", *places, down[0]))
    if not found:
        raise PoolError(f"{type(module).__name__} has no experts", f"a mixture of experts: {_TRIED}")
    return tuple(found)


def with_experts(config: Any, count: int, trust_remote_code: bool = False) -> Any:
    """A copy of a configuration whose layers have another number of experts.

    Raises:
        PoolError: it cannot say that, or each token takes more experts.
    """
    chosen = getattr(config, CHOSEN, 1)
    if count < chosen:
        raise PoolError(f"each token takes {chosen} experts ({CHOSEN})", f"at least {chosen} experts, not {count}")
    changed = deepcopy(config)
    for key in COUNTS:
        if hasattr(changed, key):
            setattr(changed, key, count)
    if {own.count for own in mixtures_of(skeleton(changed, trust_remote_code))} != {count}:
        raise PoolError(
            f"the configuration of {config.model_type!r} cannot say that a layer has {count} experts",
            f"one with {' or '.join(COUNTS)}",
        )
    return changed


def count_keys(content: Mapping[str, Any], config: Any) -> tuple[str, ...]:
    """The keys of a config.json that say how many experts there are: those that it has, or would have."""
    own = config.to_dict()
    return tuple(key for key in COUNTS if key in content) or tuple(key for key in COUNTS if key in own)
