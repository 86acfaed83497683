"""Forwards that begin above the layers whose outputs, on the same tokens, earlier candidates left."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from evomerge.models.architecture.stacks import find_layers

if TYPE_CHECKING:
    from evomerge.models.loaded import KeptStates

_plans = itertools.count()
_prefixes: WeakKeyDictionary[nn.Module, str] = WeakKeyDictionary()  # looking through a model costs as much as a layer
_CANDIDATES = 8
"""A candidate puts away what an eighth of the budget holds, besides what is known to be shared."""


class LayerStates:
    """The hidden states of fixed batches, tree by tree: where a model begins, and what is kept of it.

    Layers below the beginning are replaced by ones that hand on what is kept, so that transformers' own forward does
    the rest with the tensors that it would have computed: the same bits. All batches of a tree begin alike, so that
    nobody asks for the keys and values of a layer that did not run.

    Args:
        batches: tokens of each batch, by tree: a batch and those that come after its tokens.
        module: a model like those to be scored.

    Attributes:
        saved: tokens of the last model that need not be run, as whole passes: one that begins in the middle is a half.
    """

    def __init__(self, batches: Sequence[Sequence[int]], module: Any) -> None:
        self._plan = next(_plans)  # other batches round otherwise, and are other tokens
        self._counts = [len(tree) for tree in batches]
        self._tokens = [sum(tree) for tree in batches]
        self._width = int(module.config.get_text_config().hidden_size) * module.dtype.itemsize
        self._form: int | None = None  # of what a layer returns: the length of a tuple, 0 for a tensor
        self._usable = True
        self._layers: Sequence[nn.Module] = ()
        self._states: KeptStates | None = None
        self._keep: Mapping[int, int] = {}
        self.saved = 0.0

    def begin(self, module: Any, states: KeptStates | None) -> None:
        """Score another model from now on.

        Args:
            module: the model.
            states: what models before it gave; ``None`` to run all of it.
        """
        self.saved, self._states = 0.0, None
        if states is None or not self._usable or not states.keys:
            return
        layers = _layers_of(module)
        if len(states.keys) != len(layers) + 1 or any("forward" in vars(layer) for layer in layers):
            return
        self._layers, self._states = layers, states
        self._keep = self._to_keep(states, len(layers))

    @contextmanager
    def tree(self, number: int) -> Iterator[None]:
        """Run a tree's batches, in their order, within this."""
        states = self._states
        if states is None:
            yield
            return
        depth = 0
        found: tuple[torch.Tensor, ...] = ()
        for depth in range(states.seen, 0, -1):  # others are of no model before this one
            kept = states.get(self._key(number, states.keys[depth]))
            if kept is not None and len(kept) == self._counts[number] and self._form is not None:
                found = kept
                break
        depth = depth if found else 0
        made: dict[int, list[torch.Tensor]] = {d: [] for d, trees in self._keep.items() if d > depth and number < trees}
        changed = self._layers[: max((depth, *made))]
        try:
            for place, layer in enumerate(changed, 1):
                if place < depth:
                    layer.forward = self._handed_on
                elif place == depth:
                    layer.forward = self._given(iter(found))
                elif place in made:
                    layer.forward = self._noted(layer.forward, made[place])
            yield
        finally:
            for layer in changed:
                vars(layer).pop("forward", None)
        self.saved += self._tokens[number] * depth / len(self._layers)
        for place, tensors in made.items():
            if self._usable and len(tensors) == self._counts[number]:
                states.put(self._key(number, states.keys[place]), tensors, float(place * self._tokens[number]))

    def _key(self, number: int, key: str) -> str:
        return f"{self._plan} {number} {key}"

    def _to_keep(self, states: KeptStates, layers: int) -> dict[int, int]:
        """After which layers hidden states are kept, and of how many trees.

        Those where an earlier model went another way, since it will not be the last; and, unless models seldom begin
        alike, some on the way up, as many as there is room for.
        """
        whole = max(1, sum(self._tokens) * self._width)
        room = states.budget // _CANDIDATES
        count = min(layers, room // whole) if states.likely else 0
        spaced = range(1, layers + 1) if count == layers else [layers * (i + 1) // (count + 1) for i in range(count)]
        found = {depth: len(self._tokens) for depth in spaced if depth}
        if states.seen:
            sizes = itertools.accumulate(tokens * self._width for tokens in self._tokens)
            found[states.seen] = sum(size <= states.budget // 2 for size in sizes)
        return found

    def _handed_on(self, *args: Any, **kwargs: Any) -> Any:
        return self._returned(args[0] if args else kwargs["hidden_states"])

    def _given(self, tensors: Iterator[torch.Tensor]) -> Callable[..., Any]:
        # A copy: what comes after may write into it.
        return lambda *_, **__: self._returned(next(tensors).clone())

    def _noted(self, forward: Callable[..., Any], into: list[torch.Tensor]) -> Callable[..., Any]:
        def noted(*args: Any, **kwargs: Any) -> Any:
            output = forward(*args, **kwargs)
            hidden = output if isinstance(output, torch.Tensor) else output[0]
            more = () if isinstance(output, torch.Tensor) else output[1:]
            if any(value is not None for value in more):
                self._usable = False  # the next layer may be given that, too
            self._form = 0 if isinstance(output, torch.Tensor) else len(output)
            into.append(hidden.clone())
            return output

        return noted

    def _returned(self, hidden: Any) -> Any:
        return (hidden, *[None] * (self._form - 1)) if self._form else hidden


def _layers_of(module: nn.Module) -> list[nn.Module]:
    """The layers that a model has now; where their list is was looked for once."""
    if module not in _prefixes:
        _prefixes[module] = find_layers(module)[0]
    found = module.get_submodule(_prefixes[module])
    assert isinstance(found, nn.ModuleList)
    return list(found)
