"""Adam on what is learnt, going on where it was killed with the same bytes."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from evomerge.calibration.encoding import Encoded
from evomerge.calibration.files import save
from evomerge.calibration.learning.factors import Factors
from evomerge.calibration.learning.objective import Objective, Outputs, batch_of
from evomerge.calibration.learning.tensors import Target, Tensors
from evomerge.errors import PoolError

STATE = "state.safetensors"
PENALTY = "penalty"
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class History:
    """What was lost, step by step.

    Attributes:
        names: of the parts: those of the objective, then what is added for what is learnt alone.
        values: float64 of shape ``(steps, parts)``; each with its weight, a mean over the models' batches.
    """

    names: tuple[str, ...]
    values: torch.Tensor


def learn(
    module: Any,
    tensors: Tensors,
    factors: Factors,
    objective: Objective,
    items: Mapping[str, Sequence[Encoded]],
    *,
    steps: int,
    batch: int,
    rate: float,
    seed: int,
    folder: Path,
    every: int,
    progress: Progress = lambda done, total: None,
) -> History:
    """Learn, from the start or from where `folder` has it; `factors` then holds what was learnt.

    Each step takes a batch of each model's items, in an order of the seed, and the mean of their losses.

    Args:
        module: that is merged in, on its device, in evaluation mode.
        tensors: the sources.
        factors: what is learnt.
        objective: what is to be least, of the module.
        items: of every source.
        steps, batch, rate, seed: as of `settings.Settings`.
        folder: where the state is kept.
        every: steps between two states; the last is written too.
        progress: told the steps that are done and their number.

    Raises:
        PoolError: a loss is no number.
        OutputError: the folder cannot be written.
    """
    names = (*objective.parts, PENALTY)
    adam = {f"{kind} {name}": torch.zeros_like(value) for name, value in factors.values.items() for kind in "mv"}
    lost = torch.zeros((steps, len(names)), dtype=torch.float64)
    done = _restored(folder / STATE, factors, adam, lost)
    progress(done, steps)
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    learnt = [target for target in tensors.targets if target.learnt]
    hooks = [_pulled(factors, target) for target in learnt]
    device = tensors.targets[0].parameter.device
    try:
        for step in range(done, steps):
            batches = [batch_of(_chosen(items[m], batch, seed, n, step), device) for n, m in enumerate(tensors.sources)]
            experts: list[Outputs | None] = []
            for model, own in zip(tensors.sources, batches, strict=True):
                if objective.of_experts:
                    tensors.become(model)
                    with torch.no_grad():
                        experts.append(objective.outputs(own))
            factors.begin(step)
            with torch.no_grad():
                for target in tensors.targets:
                    target.parameter.copy_(factors.merged(target))
            for own, expert in zip(batches, experts or [None] * len(batches), strict=True):
                with torch.enable_grad():
                    parts = objective.losses(own, expert)
                    (torch.stack(list(parts.values())).sum() / len(batches)).backward()
                lost[step, : len(parts)] += torch.stack([part.detach().double().cpu() for part in parts.values()])
            lost[step] /= len(batches)
            with torch.enable_grad():
                penalty = factors.penalty()
                if penalty.requires_grad:
                    penalty.backward()
            lost[step, -1] = penalty.detach().double().cpu()
            if not torch.isfinite(lost[step]).all():
                raise PoolError(
                    f"the loss of step {step} is no number",
                    "a loss that is finite",
                    "set statistics.dtype=float32 or a smaller learning.rate, or leave out the items that overflow",
                )
            _step(factors.values, adam, step + 1, rate)
            factors.settle()
            if (step + 1) % every == 0 or step + 1 == steps:
                _keep(folder / STATE, factors, adam, lost, step + 1)
            progress(step + 1, steps)
    finally:
        for hook in hooks:
            hook.remove()
        for target in learnt:
            target.parameter.requires_grad_(False)
    return History(names, lost)


def _pulled(factors: Factors, target: Target) -> Any:
    """Hand each gradient of a merged tensor on as soon as it is there."""

    def hook(parameter: torch.Tensor) -> None:
        assert parameter.grad is not None, "hooks of gradients run once there is one"
        with torch.no_grad():
            factors.pull(target, parameter.grad)
        parameter.grad = None

    return target.parameter.requires_grad_(True).register_post_accumulate_grad_hook(hook)


def _chosen(items: Sequence[Encoded], count: int, seed: int, number: int, step: int) -> list[Encoded]:
    """The items of a step: one shuffled round after the other, which depend on seed, model and step alone."""
    count = min(count, len(items))
    places = range(step * count, (step + 1) * count)
    orders = {
        turn: np.random.default_rng([seed, number, turn]).permutation(len(items))
        for turn in {place // len(items) for place in places}
    }
    return [items[int(orders[place // len(items)][place % len(items)])] for place in places]


def _step(values: Mapping[str, torch.Tensor], adam: Mapping[str, torch.Tensor], step: int, rate: float) -> None:
    """A step of Adam with its usual settings (arXiv 1412.6980, algorithm 1)."""
    with torch.no_grad():
        for name, value in values.items():
            if value.grad is None:  # reached by no item
                continue
            first, second = adam[f"m {name}"], adam[f"v {name}"]
            first.mul_(0.9).add_(value.grad, alpha=0.1)
            second.mul_(0.999).addcmul_(value.grad, value.grad, value=0.001)
            size = (second / (1 - 0.999**step)).sqrt_().add_(1e-8)
            value.addcdiv_(first, size, value=-rate / (1 - 0.9**step))


def _keep(path: Path, factors: Factors, adam: Mapping[str, torch.Tensor], lost: torch.Tensor, done: int) -> None:
    values = {f"value {name}": own.detach().cpu() for name, own in factors.values.items()}
    moments = {name: own.cpu() for name, own in adam.items()}
    save(path, {**values, **moments, "lost": lost}, {"steps": done})


def _restored(path: Path, factors: Factors, adam: Mapping[str, torch.Tensor], lost: torch.Tensor) -> int:
    """Take up what was learnt so far; how many steps it took."""
    into = {f"value {name}": own for name, own in factors.values.items()} | {**adam, "lost": lost}
    try:
        with safe_open(str(path), "pt") as content:
            done = int(json.loads(content.metadata()["state"])["steps"])
            found = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118 - no mapping
        if found.keys() != into.keys() or any(found[name].shape != own.shape for name, own in into.items()):
            return 0
    except (OSError, SafetensorError, KeyError, TypeError, ValueError):  # none, or no longer readable
        return 0
    with torch.no_grad():
        for name, own in into.items():
            own.copy_(found[name])
    return done
