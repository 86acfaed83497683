"""Which candidates an engine with a fixed number of layers can hold."""

from __future__ import annotations

from functools import cached_property

from evomerge.merge.planning.slice_plan import Plan, SlicePlan, origin_of
from evomerge.merge.resident.layer_kinds import Kind, Kinds
from evomerge.models.architecture.layout import skeleton
from evomerge.models.architecture.stacks import find_layers
from evomerge.models.pool import Pool


class FixedLayers:
    """The layers that an engine was started with: their number, and the kind of each.

    Args:
        pool: the source models; the engine has the layers of the one that gives the configuration.
    """

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._found: dict[str, list[Kind | None]] = {}

    def refusal(self, plan: Plan) -> str:
        """Why the engine cannot hold a plan; empty where it can.

        It can hold a path of as many layers as it has, each of the kind (sliding or full attention, with experts or
        without, of the same shapes) of the layer in whose place it is put.
        """
        layers: dict[int, SlicePlan] = {}
        for entry in plan.slices:
            if entry.slice.layer is not None:
                layers.setdefault(entry.slice.layer, entry)
        info = self._pool.info
        if len(layers) != info.layers:
            return f"the candidate has {len(layers)} layers, and the engine was started with {info.layers}"
        for place, entry in layers.items():
            model, layer = origin_of(entry)
            if layer == place:
                continue
            moved = f"layer {layer} of {model} is in place {place}"
            if info.immovable:
                return f"{moved}: {info.immovable}"
            found, wanted = self._kinds(model)[layer], self._kinds(info.config_from)[place]
            if found is None or found is not wanted:
                return f"{moved}, where the engine has a layer of another kind{_other(found, wanted)}"
        return ""

    def _kinds(self, model: str) -> list[Kind | None]:
        """The kinds of a model's layers, of those that the engine has; ``None`` for others."""
        if model not in self._found:
            config = self._pool.config
            if model != self._pool.info.config_from:
                from transformers import AutoConfig

                folder, remote = str(self._pool.folder(model)), self._pool.trust_remote_code
                config = AutoConfig.from_pretrained(folder, trust_remote_code=remote)
            module = skeleton(config, self._pool.trust_remote_code)
            self._found[model] = self._own.like(list(find_layers(module)[1]), config.get_text_config())
        return self._found[model]

    @cached_property
    def _own(self) -> Kinds:
        module = skeleton(self._pool.config, self._pool.trust_remote_code)
        return Kinds(list(find_layers(module)[1]), self._pool.config.get_text_config())


def _other(found: Kind | None, wanted: Kind | None) -> str:
    """What two kinds differ in, where the configuration says so."""
    if found is None or wanted is None:
        return ""
    names = [name for name, value in found.entries.items() if value != wanted.entries.get(name)]
    return f" ({', '.join(f'{name} {found.entries[name]}' for name in names)})" if names else ""
