"""Tensors that transformers joins, splits or turns when it loads a checkpoint, by its own converters.

A checkpoint stores the experts of a mixture one by one; the module holds them in one parameter. Models are merged
in the checkpoint's tensors, which are what a file takes. A model in memory gets them through the `Join` of its
layout: written straight into `Join.views` of the module's tensor where there are such, so that nothing is copied
twice, or into tensors of their own that `Join.join` then makes the module's of. Views may be strided: check
`is_contiguous` before flattening them.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode


class Renames:
    """Where transformers puts a checkpoint's tensors in a module: its renaming, prefix and conversion rules.

    Args:
        module: a transformers module; its weights are not read.
    """

    def __init__(self, module: nn.Module) -> None:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightConverter, WeightRenaming

        transforms = get_model_conversion_mapping(module)
        self._renamings = [t for t in transforms if isinstance(t, WeightRenaming)]
        self._converters = [t for t in transforms if isinstance(t, WeightConverter)]
        self._prefix = getattr(module, "base_model_prefix", "") or ""
        self._places = module.state_dict()
        self.by_pattern = {p: converter for converter in self._converters for p in converter.source_patterns}

    def place(self, name: str) -> tuple[str, str | None]:
        """The name in the module and, where the tensor is converted, the converter's pattern (see `by_pattern`)."""
        from transformers.core_model_loading import rename_source_key

        place, pattern = rename_source_key(name, self._renamings, self._converters, self._prefix, self._places)
        if place not in self._places and name in self._places:
            return name, None
        return place, pattern


@dataclass(frozen=True)
class Join:
    """Checkpoint tensors that one converter makes one or several module tensors of.

    Attributes:
        places: the module tensors; mostly one.
        parts: for every checkpoint tensor, in the order in which transformers collects them: the converter's
            pattern that it matches, and its name.
        shapes: of the checkpoint tensors, in the same order.
        converter: the `WeightConverter`.
    """

    places: tuple[str, ...]
    parts: tuple[tuple[str, str], ...]
    shapes: tuple[tuple[int, ...], ...]
    converter: Any = field(compare=False, repr=False)

    @property
    def place(self) -> str:
        """The first of the module tensors, under which the join is known."""
        return self.places[0]

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The checkpoint tensors."""
        return tuple(name for _, name in self.parts)

    @property
    def patterns(self) -> tuple[str, ...]:
        """The pattern of every part: joins of two checkpoints agree in them, whatever their names."""
        return tuple(pattern for pattern, _ in self.parts)

    def join(self, tensors: Mapping[str, torch.Tensor], module: nn.Module) -> dict[str, torch.Tensor]:
        """The module's tensors by name, made of the checkpoint's.

        Args:
            tensors: by checkpoint name; also on the meta device, for shapes alone.
            module: the transformers module, for converters that look at its configuration or shapes.

        Raises:
            Exception: whatever the converter raises for tensors that do not fit together.
        """
        converter = deepcopy(self.converter)
        for pattern, name in self.parts:
            converter.add_tensor(self.place, name, pattern, tensors[name])
        made = converter.convert(self.place, model=module, config=module.config)
        if isinstance(made, tuple):  # transformers 5.0 returns errors beside the tensors
            made = made[0]
        return {place: value[0] if isinstance(value, list) else value for place, value in made.items()}

    def views(self, target: torch.Tensor, module: nn.Module) -> dict[str, torch.Tensor] | None:
        """Views into `target`, the module's tensor, that hold the checkpoint's tensors; ``None`` if there are none.

        They come from the converter's inverse, with which transformers saves models.

        Args:
            target: in the shape of the module's tensor; its content does not matter.
            module: the transformers module.
        """
        if len(self.places) > 1:
            return None
        try:
            inverse = self.converter.reverse_transform()
            tensors: Any = {inverse.source_patterns[0]: [target]}
            with torch.no_grad(), _WithoutCopies():
                for operation in inverse.operations:
                    tensors = operation.convert(
                        tensors,
                        source_patterns=inverse.source_patterns,
                        target_patterns=inverse.target_patterns,
                        full_layer_name=self.place,
                        model=module,
                        config=module.config,
                    )
            order = dict(zip(self.converter.source_patterns, inverse.target_patterns, strict=True))
            counts = dict.fromkeys(order, 0)
            views = {}
            for pattern, name in self.parts:
                found = tensors.pop(order[pattern].replace("*", str(counts[pattern])))
                views[name] = found[0] if isinstance(found, list) else found
                counts[pattern] += 1
        except Exception:  # converters without an inverse raise what they like
            return None
        if tensors or tuple(tuple(view.shape) for view in views.values()) != self.shapes:
            return None
        own = target.untyped_storage().data_ptr()
        shared = all(view.untyped_storage().data_ptr() == own for view in views.values())
        return views if shared and sum(view.numel() for view in views.values()) == target.numel() else None


class _WithoutCopies(TorchFunctionMode):
    """Converters end in `contiguous`, which would copy what is wanted as a view."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return args[0] if func is torch.Tensor.contiguous else func(*args, **(kwargs or {}))
