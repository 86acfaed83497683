"""Which slice every checkpoint tensor belongs to, found from the transformers model class.

The class is built on the meta device, so that neither weights nor per-architecture tables are needed:
transformers knows its models.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from evomerge.errors import PoolError, RecipeError, nearest, reason_of
from evomerge.models.architecture.components import OuterComponents, component_of
from evomerge.models.architecture.config_fields import advice
from evomerge.models.architecture.conversion import Join
from evomerge.models.architecture.dense_layers import attach_dense
from evomerge.models.architecture.names import NameMatch, match_names
from evomerge.models.architecture.own_head import OWN_HEAD, part_head
from evomerge.models.architecture.self_built import SelfBuilt
from evomerge.models.architecture.stacks import find_stacks, layer_place, passed_by
from evomerge.recipes.slices import LAYER_COMPONENTS, SliceId

if TYPE_CHECKING:
    from evomerge.models.architecture.residual import Residual


@dataclass(frozen=True)
class Layout:
    """The slices of an architecture and their tensors.

    Attributes:
        slices: in model order: ``embed``, then ``attn``, ``mlp``, ``norm`` of every layer, ``final_norm``, ``head``;
            slices without tensors (the head of a model with tied embeddings) are left out.
        tensors: the checkpoint tensor names of every slice, in the order of the model class. A tensor tied to
            another appears once.
        layers: number of layers; of an encoder-decoder, its encoder's come first and its decoder's go on from there.
        parameters: checkpoint tensor name -> name in the transformers module. Tensors that are joined on loading
            have the same.
        shapes: checkpoint tensor name -> the shape that the class wants.
        joins: the tensors that transformers joins on loading (experts stored one by one), see `conversion`.
        integers: the tensors that the class holds as integers or truth values: they are copied, never merged.
        residual: how the residual stream is written and read, where that is known.
        encoder: how many of the layers are an encoder's, where a decoder's follow; 0 for one stack.
        fixed: why layers can neither be moved nor repeated; empty where they can.
    """

    slices: tuple[SliceId, ...]
    tensors: Mapping[SliceId, tuple[str, ...]]
    layers: int
    parameters: Mapping[str, str]
    shapes: Mapping[str, tuple[int, ...]]
    joins: tuple[Join, ...] = ()
    integers: frozenset[str] = frozenset()
    residual: Residual | None = field(default=None, repr=False, compare=False)
    encoder: int = 0
    fixed: str = ""
    _slice_of: Mapping[str, SliceId] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        owners = {name: slice_ for slice_, names in self.tensors.items() for name in names}
        object.__setattr__(self, "_slice_of", MappingProxyType(owners))

    def slice_of(self, name: str) -> SliceId:
        """The slice of a checkpoint tensor; `RecipeError` with the nearest names when there is none."""
        if name not in self._slice_of:
            raise RecipeError(f"no slice has a tensor {name!r}", nearest(name, self._slice_of))
        return self._slice_of[name]

    def at_layer(self, name: str, layer: int) -> str:
        """The name of a layer's tensor in another layer of its stack; names outside layers are returned as they are."""
        own = self.slice_of(name).layer
        if own is None or own == layer:
            return name
        if self.fixed:
            raise RecipeError(f"layer {layer} in the place of layer {own}", self.fixed)
        parts, before = name.split("."), self.encoder if own >= self.encoder else 0
        parts[parts.index(str(own - before))] = str(
            layer - before
        )  # the layer's number comes before any other, experts' say
        return ".".join(parts)

    def at_depth(self, depth: int) -> Layout:
        """The layout of a model of the same architecture with another number of layers, in the same names.

        Layers beyond are like the first.
        """
        if depth == self.layers:
            return self
        order = [slice_ for slice_ in self.slices if slice_.layer is None or slice_.layer < depth]
        parts = [slice_.component for slice_ in self.slices if slice_.layer == 0]
        order += [SliceId(part, layer) for layer in range(self.layers, depth) for part in parts]
        slices = tuple(sorted(order, key=lambda slice_: slice_.order))
        tensors = {slice_: self.of_slice(slice_) for slice_ in slices}
        names = [name for own in tensors.values() for name in own]
        origin = dict(zip(names, (name for slice_ in slices for name in self._like(slice_)), strict=True))
        places = {name: _renumbered(self.parameters[like], like, name) for name, like in origin.items()}
        joins = [join for join in self.joins if join.names[0] in origin]
        beyond = [join for join in self.joins if self.slice_of(join.names[0]).layer == 0]
        for layer in range(self.layers, depth):
            for join in beyond:
                moved = [self.at_layer(name, layer) for name in join.names]
                of = dict(zip(join.names, moved, strict=True))
                made = tuple(_renumbered(place, join.names[0], moved[0]) for place in join.places)
                joins.append(replace(join, places=made, parts=tuple((p, of[name]) for p, name in join.parts)))
        return Layout(
            slices,
            MappingProxyType(tensors),
            depth,
            MappingProxyType(places),
            MappingProxyType({name: self.shapes[like] for name, like in origin.items()}),
            tuple(joins),
            frozenset(name for name, like in origin.items() if like in self.integers),
            self.residual,
        )

    def without(self, places: Collection[str]) -> Layout:
        """The layout without what fills these places of the module; slices that are left empty are not there."""
        kept = {s: tuple(n for n in names if self.parameters[n] not in places) for s, names in self.tensors.items()}
        kept = {slice_: names for slice_, names in kept.items() if names}
        parameters = {name: self.parameters[name] for names in kept.values() for name in names}
        return replace(
            self,
            slices=tuple(slice_ for slice_ in self.slices if slice_ in kept),
            tensors=MappingProxyType(kept),
            parameters=MappingProxyType(parameters),
            shapes=MappingProxyType({name: self.shapes[name] for name in parameters}),
            joins=tuple(join for join in self.joins if join.place not in places),
            integers=self.integers & parameters.keys(),
        )

    def _like(self, slice_: SliceId) -> tuple[str, ...]:
        """The tensors that those of a slice, perhaps of a layer beyond, are like."""
        return self.tensors[slice_ if slice_ in self.tensors else SliceId(slice_.component, 0)]

    def of_slice(self, slice_: SliceId) -> tuple[str, ...]:
        """Tensor names of an output slice, also of a layer beyond those of the pool's models.

        Raises:
            RecipeError: the architecture has no such slice.
        """
        if slice_ in self.tensors:
            return self.tensors[slice_]
        if slice_.layer is not None and not self.fixed:
            first = SliceId(slice_.component, 0)
            if slice_.layer >= self.layers and first in self.tensors:
                return tuple(self.at_layer(name, slice_.layer) for name in self.tensors[first])
        raise RecipeError(
            f"slice {slice_} does not exist in this architecture", nearest(str(slice_), map(str, self.slices))
        )


def _renumbered(place: str, like: str, name: str) -> str:
    """The place in the module of the layer of `name`, given that of the tensor in another layer that it is like."""
    if like == name:
        return place
    at = next(i for i, (own, other) in enumerate(zip(like.split("."), name.split("."), strict=True)) if own != other)
    parts = place.split(".")
    parts[parts.index(like.split(".")[at])] = name.split(".")[at]
    return ".".join(parts)


def model_class(config: Any, trust_remote_code: bool = False) -> Any:
    """The transformers class of a configuration: the one it names (``architectures``), else `AutoModelForCausalLM`."""
    import transformers

    named = next(iter(getattr(config, "architectures", None) or ()), None)
    remote = trust_remote_code and getattr(config, "auto_map", None)
    cls = None if remote or named is None else getattr(transformers, str(named), None)
    # The name comes from a file: of all that transformers has, only models are built from it.
    is_model = isinstance(cls, type) and issubclass(cls, transformers.PreTrainedModel)
    return cls if is_model else transformers.AutoModelForCausalLM


def skeleton(config: Any, trust_remote_code: bool = False) -> nn.Module:
    """The transformers module of a configuration on the meta device: names, shapes and classes, no weights.

    Raises:
        PoolError: transformers cannot build it.
    """
    if isinstance(config, SelfBuilt):
        return config.skeleton()
    cls = model_class(config, trust_remote_code)
    try:
        with torch.device("meta"):
            if hasattr(cls, "_from_config"):
                module: nn.Module = cls._from_config(config)
            else:
                module = cls.from_config(config, trust_remote_code=trust_remote_code)
    except Exception as error:  # the class may refuse its configuration in any way
        what = f"transformers cannot build a {config.model_type!r} model from config.json ({reason_of(error)})"
        raise PoolError(what, *advice(config)) from error
    if getattr(config, OWN_HEAD, False):
        part_head(module)
    with torch.device("meta"):
        attach_dense(module, config)
    return module


def layout_of(config: Any, shapes: Mapping[str, tuple[int, ...]], trust_remote_code: bool = False) -> Layout:
    """The layout of a checkpoint with tensors of these `shapes` and this transformers configuration.

    Raises:
        PoolError: the class cannot be built or sliced, or the checkpoint lacks tensors or has unexpected ones.
    """
    module = skeleton(config, trust_remote_code)
    match = match_names(module, shapes)
    problems = name_problems(match, type(module).__name__)
    if problems:
        raise PoolError(*problems[0])
    return layout_from(module, match, shapes)


def name_problems(match: NameMatch, architecture: str) -> list[tuple[str, str, str]]:
    """What keeps a checkpoint from filling its class, as the three parts of errors."""
    problems = [(text, f"tensors that {architecture} joins on loading fit together", "") for text in match.unjoined[:1]]
    for names, what in ((match.missing, "lacks"), (match.unexpected, "has an unexpected")):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            does = "needs" if what == "lacks" else "has no place for"
            do = "download it again" if what == "lacks" else "name the class that it was saved from in its config.json"
            problems.append((f"it {what} tensor {names[0]!r}{more}", f"{architecture} {does} it", do))
    return problems


def layout_from(module: nn.Module, match: NameMatch, shapes: Mapping[str, tuple[int, ...]]) -> Layout:
    """The layout of a module whose parameters are stored as `match` says.

    Args:
        module: on the meta device.
        match: of the checkpoint that gives the layout its names.
        shapes: of that checkpoint's tensors.
    """
    stacks = find_stacks(module)
    layers = [layer for _, own in stacks for layer in own]
    state = module.state_dict()
    parameters: dict[str, str] = {}
    grouped: dict[SliceId, list[str]] = {}
    passed, outer = set[str](), OuterComponents(module)
    for place in state:
        join = match.joins.get(place)
        names = join.names if join else (match.stored[place],) if place in match.stored else ()
        if not names:
            continue
        inside = layer_place(place, stacks)
        if inside is not None:
            number, inner, prefix = inside
            passed.add(prefix)
            slice_ = SliceId(component_of(layers[number], inner), number)
        else:
            slice_ = SliceId(outer(place, passed_by(place, stacks, passed)))
        grouped.setdefault(slice_, []).extend(names)
        parameters |= dict.fromkeys(names, place)
    order = [SliceId("embed")]
    order += [SliceId(component, i) for i in range(len(layers)) for component in LAYER_COMPONENTS]
    order += [SliceId("final_norm"), SliceId("head")]
    slices = tuple(slice_ for slice_ in order if slice_ in grouped)
    joined = {name for join in match.joins.values() for name in join.names}
    wanted = {name: shapes[name] if name in joined else tuple(state[place].shape) for name, place in parameters.items()}
    return Layout(
        slices,
        MappingProxyType({slice_: tuple(grouped[slice_]) for slice_ in slices}),
        len(layers),
        MappingProxyType(parameters),
        MappingProxyType(wanted),
        tuple(match.joins[place] for place in state if place in match.joins),
        frozenset(name for name, place in parameters.items() if not state[place].is_floating_point()),
        encoder=len(stacks[0][1]) if len(stacks) > 1 else 0,
    )
