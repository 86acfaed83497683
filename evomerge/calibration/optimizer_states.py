"""Adam's second moments from the optimizer's state that transformers' Trainer leaves beside a model."""

from __future__ import annotations

import hashlib
import json
import pickle
import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from evomerge.errors import PoolError

FILE = "optimizer.pt"
_DO = "remove or rename the file, or set statistics.optimizer=false: squared gradients of items are then taken"


def optimizer_state(folder: Path) -> str | None:
    """A hash of the optimizer's state in a folder, from the checksums in it; ``None`` where there is none.

    Raises:
        PoolError: it is no file that ``torch.save`` writes.
    """
    path = folder / FILE
    if not path.is_file():
        return None
    try:
        with zipfile.ZipFile(path) as content:
            records = [[own.filename.partition("/")[2], own.file_size, own.CRC] for own in content.infolist()]
    except (OSError, zipfile.BadZipFile) as error:
        raise PoolError(f"{path} cannot be read ({error})", "what torch.save writes", _DO) from error
    return hashlib.sha256(json.dumps(sorted(records)).encode()).hexdigest()


def second_moments(folder: Path, module: nn.Module) -> dict[str, torch.Tensor]:
    """``exp_avg_sq`` of every parameter that was trained, by all of its names in a module; float32, on the CPU.

    The state numbers parameters group by group, in the module's order. Which are in the group without weight decay is
    not kept: Trainer's rules, old and new, are tried until one fits all shapes. Read with ``weights_only``: no code of
    the file is run.

    Raises:
        PoolError: the file cannot be read, or is not of this module's parameters.
    """
    path = folder / FILE
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        states, groups = content["state"], [list(group["params"]) for group in content["param_groups"]]
        found = {number: own["exp_avg_sq"] for number, own in states.items()}
        numbers = [[number for number in group if number in found] for group in groups]
    except (OSError, RuntimeError, pickle.UnpicklingError, KeyError, TypeError, AttributeError) as error:
        given = f"{path} is no state of Adam ({type(error).__name__}: {error})"
        raise PoolError(given, "one with exp_avg_sq, as Trainer saves it", _DO) from error
    unique = list(module.named_parameters())
    for order in _orders(module, [name for name, _ in unique], len(numbers)):
        names = [name for group in order for name in group]
        flat = [number for group in numbers for number in group]
        sizes = [len(group) for group in order] == [len(group) for group in numbers]
        shapes = dict(unique)
        if sizes and all(found[n].shape == shapes[name].shape for n, name in zip(flat, names, strict=True)):
            own = {id(shapes[name]): found[n].float() for n, name in zip(flat, names, strict=True)}
            return {name: own[id(p)] for name, p in module.named_parameters(remove_duplicate=False) if id(p) in own}
    count = sum(len(group) for group in numbers)
    raise PoolError(
        f"{path} has second moments of {count} parameters, not of this model's {len(unique)} in an order of Trainer",
        "the state of a run that trained the whole model on one device",
        _DO,
    )


def _orders(module: nn.Module, names: Sequence[str], groups: int) -> Iterator[list[list[str]]]:
    """How parameters may be numbered: with weight decay, then without; or all in one group."""
    if groups == 1:
        yield [list(names)]
        return
    normed = {f"{path}.weight" for path, own in module.named_modules() if "norm" in type(own).__name__.lower()}
    layer_norms = {f"{path}.weight" for path, own in module.named_modules() if isinstance(own, nn.LayerNorm)}
    named = re.compile(r"bias|layernorm|rmsnorm|(?:^|\.)norm(?:$|\.)|_norm(?:$|\.)", re.IGNORECASE)
    parameters: Mapping[str, Any] = dict(module.named_parameters())
    rules = (
        lambda name: name in layer_norms or named.search(name),
        lambda name: name in normed or "bias" in name,
        lambda name: name in layer_norms or "bias" in name,
        lambda name: parameters[name].dim() < 2,
    )
    for rule in rules:
        without = {name for name in names if rule(name)}
        yield [[name for name in names if name not in without], [name for name in names if name in without]]
