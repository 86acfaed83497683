"""Base models with an adapter of PEFT's folded in: where its tensors go, and what they make of the base's.

``W + scale * B A`` (Hu et al. 2021, arXiv:2106.09685, eq. 3), with scale ``alpha / r``, or ``alpha / sqrt(r)`` for
rank-stabilised adapters (Kalajdzievski 2023, arXiv:2312.03732).
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Mapping
from pathlib import PurePath

import torch
from torch import nn

from evomerge.errors import EvomergeWarning, PoolError, nearest
from evomerge.models.architecture.conversion import Renames
from evomerge.models.architecture.names import NameMatch, tied_names
from evomerge.models.checkpoints.adapter import Adapter, Change
from evomerge.models.checkpoints.folding import FoldedCheckpoint, FoldedRoom
from evomerge.models.checkpoints.headers import TensorInfo
from evomerge.models.checkpoints.reader import Checkpoint


class FoldedPeft(FoldedCheckpoint):
    """A base model with an adapter of PEFT's folded in: products of low rank, biases, and tensors that it has whole.

    Args:
        base: the base model.
        adapter: what is folded in.
        module: the base's transformers module, on the meta device.
        match: how the base's tensors fill it.
        room: as for `FoldedCheckpoint`.

    Raises:
        PoolError: the adapter does not fit the base, or changes one of two tied tensors; names the tensor.
    """

    def __init__(
        self, base: Checkpoint, adapter: Adapter, module: nn.Module, match: NameMatch, room: FoldedRoom | None = None
    ) -> None:
        super().__init__(base, adapter, _targets(base, adapter, module, match), room)

    def factors(self, name: str) -> tuple[torch.Tensor, torch.Tensor] | None:
        """As for `FoldedCheckpoint`; the product of a tensor that is changed by nothing else."""
        if name not in self._changes:
            return super().factors(name)
        change, turned = self._changes[name]
        if self.replaces(name) or change.a is None or change.b is None:
            return None
        a, b = (self.adapter.read(factor).to(torch.float32) for factor in (change.a, change.b))
        left, right = (a.T, b.T) if turned else (b, a)
        return left * change.scale, right

    def has_factors(self, name: str) -> bool:
        """Whether `factors` has such of a matrix."""
        return name not in self._changes or (self._changes[name][0].is_product and not self.replaces(name))

    def replaces(self, name: str) -> bool:
        """As for `FoldedCheckpoint`. PEFT saves embeddings beside their factors, as they were."""
        replacement = self._changes[name][0].replacement if name in self._changes else None
        if replacement is None:
            return False
        own, wanted = self.adapter.read(replacement), self.base.read(name)
        return not torch.equal(own.to(wanted.dtype), wanted)

    def stored(self, name: str) -> TensorInfo | None:
        """As for `FoldedCheckpoint`."""
        if name not in self._changes:
            return self.base.stored(name)
        change, _ = self._changes[name]
        if change.replacement is None or change.a is not None or change.bias is not None:
            return None
        own = self.adapter.tensors[change.replacement]
        return own if own.dtype == self.tensors[name].dtype else None

    def _fold(self, name: str) -> torch.Tensor:
        change, turned = self._changes[name]
        stored = self.adapter.read(change.replacement) if change.replacement else self.base.read(name)
        dtype = self._dtype(name)
        if change.a is None and change.bias is None:
            return stored.to(dtype)
        result = stored.to(torch.float32, copy=True)
        if change.a is not None and change.b is not None:
            a, b = (self.adapter.read(factor).to(torch.float32) for factor in (change.a, change.b))
            if turned:
                result.addmm_(a.T, b.T, alpha=change.scale)
            else:
                result.addmm_(b, a, alpha=change.scale)
        if change.bias is not None:
            result.add_(self.adapter.read(change.bias).to(torch.float32), alpha=change.scale)
        return result.to(dtype)


def warn_of_another_base(model: str, adapter: Adapter, base: Checkpoint, location: str) -> None:
    """Warn when an adapter names another base model than the one it is folded into.

    Only the last parts of the names are compared: the same model lies in different places.
    """
    known = {_last(location), _last(str(base.folder)), _last(str(base.config.get("_name_or_path", "")))}
    if adapter.base is not None and _last(adapter.base) not in known:
        warnings.warn(
            f"model {model!r}: the adapter in {adapter.folder} was trained on {adapter.base}, "
            f"and is folded into {location}",
            EvomergeWarning,
            stacklevel=2,
        )


def _last(name: str) -> str:
    return PurePath(name.rstrip("/")).name.lower()


def _targets(base: Checkpoint, adapter: Adapter, module: nn.Module, match: NameMatch) -> dict[str, tuple[Change, bool]]:
    """By name in the checkpoint of every tensor that the adapter changes: how, and whether B A is transposed."""
    renames = Renames(module)
    tied = tied_names(module)
    uses = Counter(tied.values())
    place_of = {name: place for place, name in match.stored.items()}
    of_group: dict[str, list[str]] = {}
    found: dict[str, tuple[Change, bool]] = {}
    for name, change in adapter.changes.items():
        target, place = _find(name, base, renames, match, place_of, tied)
        if target is None:
            raise _misfit(adapter, change, f"changes {name!r}, which the base model lacks", nearest(name, base.tensors))
        if not base.tensors[target].is_float:
            raise _misfit(adapter, change, f"changes {target!r}, which is stored as {base.tensors[target].dtype}")
        turned = change.embedding or _is_turned(module, place)
        _check_shapes(base, adapter, target, change, turned)
        if place in uses:
            of_group.setdefault(target, []).append(name)
        # Of tied tensors the one that the layout reads decides, should the adapter hold both.
        if target not in found or renames.place(name)[0] == place:
            found[target] = change, turned
    for target, names in of_group.items():
        _check_tied(adapter, target, [adapter.changes[name] for name in names], 1 + uses[place_of[target]])
    return found


def _find(
    name: str,
    base: Checkpoint,
    renames: Renames,
    match: NameMatch,
    place_of: Mapping[str, str],
    tied: Mapping[str, str],
) -> tuple[str | None, str | None]:
    """The checkpoint's name for a tensor of PEFT's base model, and its name in the transformers module."""
    if name in base.tensors:  # also a single expert's, of those that are joined on loading
        target = match.duplicates.get(name, name)
        return target, place_of.get(target)
    place, pattern = renames.place(name)
    place = tied.get(place, place)
    return (None, None) if pattern is not None else (match.stored.get(place), place)


def _is_turned(module: nn.Module, place: str | None) -> bool:
    """Whether a module stores its weight as inputs x outputs, as GPT-2's `Conv1D` does.

    PEFT too goes by the class, whatever ``fan_in_fan_out`` says.
    """
    if place is None:
        return False
    return type(module.get_submodule(place.rpartition(".")[0])).__name__ == "Conv1D"


def _check_shapes(base: Checkpoint, adapter: Adapter, target: str, change: Change, turned: bool) -> None:
    wanted = base.tensors[target].shape
    for whole in (change.replacement, change.bias):
        if whole is not None and adapter.tensors[whole].shape != wanted:
            shape = adapter.tensors[whole].shape
            raise _misfit(adapter, change, f"has shape {shape} in {whole!r}", f"the base's {target!r} has {wanted}")
    if change.a is not None and change.b is not None:
        a, b = adapter.tensors[change.a].shape, adapter.tensors[change.b].shape
        product = (a[1], b[0]) if turned else (b[0], a[1])
        if product != wanted:
            raise _misfit(
                adapter, change, f"makes a difference of shape {product}", f"the base's {target!r} has {wanted}"
            )


def _check_tied(adapter: Adapter, target: str, changes: list[Change], uses: int) -> None:
    """Raise `PoolError` unless the tensors that are tied in the base are still equal with the adapter.

    PEFT trains a copy of a tied tensor, or adds to one use of it, unless it is told to tie the copies: the result
    is no model of this configuration.
    """
    wholes = [change.replacement for change in changes if change.a is None and change.replacement]
    alike = all(adapter.same(wholes[0], name) for name in wholes[1:])
    if adapter.tied_together and alike:
        return
    if len(wholes) == len(changes):
        if len(wholes) == 1 and not adapter.is_saved(changes[0].module):
            return  # a copy of the base's embeddings, as PEFT saves them when the vocabulary has grown
        if len(wholes) == uses and alike:
            return
    raise _misfit(
        adapter,
        changes[0],
        f"changes {target!r}, which config.json ties to another tensor, in one of its uses only",
        "an adapter that keeps them equal (ensure_weight_tying)",
        "merge it into its base with PEFT, with tie_word_embeddings false",
    )


def _misfit(adapter: Adapter, change: Change, what: str, allowed: str = "", do: str = "") -> PoolError:
    return PoolError(f"adapter {adapter.folder}: module {change.module!r} {what}", allowed, do)
