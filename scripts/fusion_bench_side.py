"""What fusion_bench makes of a pool; run by `scripts/parity_fusion_bench.py` in fusion_bench's own environment.

`python fusion_bench_side.py POOL OUT [CASE ...]` reads `POOL/base` and the other models of POOL, in alphabetical order,
and writes `OUT/CASE.safetensors` for the cases below. All is computed in float64.
Where fusion_bench works on a whole model (the trims of TIES and DOGE, the norms of OPCM), it is given one of a single
tensor at a time, since evomerge works tensor by tensor; and the share that it keeps is chosen so that as many elements
are kept, as its trim keeps one more.
"""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from fusion_bench.method.dare.utils import param_random_drop_
from fusion_bench.method.doge_ta.doge_ta import DOGE_TA_Algorithm
from fusion_bench.method.emr_merging.utils import emr_merge
from fusion_bench.method.isotropic_merging.iso_utils import iso_c, iso_cts
from fusion_bench.method.magmax.magmax import _magmax_select
from fusion_bench.method.model_stock import ModelStock
from fusion_bench.method.opcm.opcm_general import OPCM
from fusion_bench.method.simple_average import simple_average
from fusion_bench.method.slerp.slerp_utils import slerp
from fusion_bench.method.tall_mask import task_arithmetic as tall_masks_of_theta_0
from fusion_bench.method.tall_mask import utils as tall_masks
from fusion_bench.method.task_arithmetic import TaskArithmeticAlgorithm
from fusion_bench.method.task_singular_vector.utils.TSVM_utils import compute_and_sum_svd_mem_reduction
from fusion_bench.method.ties_merging.ties_merging_utils import ties_merging
from fusion_bench.method.wudi.wudi import wudi_merging
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

State = dict[str, Tensor]
Merge = Callable[[State, list[State]], State]


def _tasks(base: State, models: list[State]) -> list[State]:
    return [{name: model[name] - base[name] for name in base} for model in models]


def _added(base: State, task: State, factor: float = 1.0) -> State:
    return {name: base[name] + factor * task[name].detach() for name in base}


def _module(tensor: Tensor) -> nn.Module:
    """A model with one tensor, which is a linear layer's where it is a matrix."""
    encoder: nn.Module = nn.Module()
    if tensor.dim() == 2:
        encoder = nn.Linear(tensor.shape[1], tensor.shape[0], bias=False, dtype=tensor.dtype)
    encoder.weight = nn.Parameter(tensor.clone())
    return nn.ModuleDict({"encoder": encoder})


def _each(run: Callable[[dict[str, nn.Module]], nn.Module]) -> Merge:
    """What an algorithm makes of every tensor by itself."""

    def merge(base: State, models: list[State]) -> State:
        found = {}
        for name, tensor in base.items():
            pool = {"_pretrained_": _module(tensor)} | {f"{i}": _module(m[name]) for i, m in enumerate(models)}
            found[name] = run(pool).state_dict()["encoder.weight"].detach()
        return found

    return merge


def _by_task(function: Callable[[list[State]], State]) -> Merge:
    """What a function of task vectors makes, added to the base."""
    return lambda base, models: _added(base, function(_tasks(base, models)))


def _flat(function: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Merge:
    """What a function of flat task vectors, models and base, the first two of shape ``(models, elements)``, makes."""

    def merge(base: State, models: list[State]) -> State:
        found = {}
        for name, tensor in base.items():
            below = tensor.flatten()
            each = torch.stack([model[name].flatten() for model in models])
            found[name] = tensor + function(each - below, each, below).view(tensor.shape)
        return found

    return merge


def _as_many(elements: int, density: float) -> float:
    """The share with which their trim, which keeps one element more, keeps ``int(density * elements)``."""
    return (max(1, int(density * elements)) - 0.5) / elements


def _ties(tasks: Tensor, models: Tensor, base: Tensor) -> Tensor:
    found: Tensor = ties_merging(tasks, reset_thresh=_as_many(tasks.shape[1], 0.2), merge_func="mean")
    return found


def _consensus(tasks: Tensor, models: Tensor, base: Tensor) -> Tensor:
    masks = tall_masks.generate_task_masks(tasks, models, base, tall_mask_lambda=0.4)
    found: Tensor = tasks.sum(0) * (masks.sum(0) >= 2)
    return found


def _consensus_of_theta_0(base: State, models: list[State]) -> State:
    tasks = _tasks(base, models)
    total = {name: sum(task[name] for task in tasks) for name in base}
    masks = [tall_masks_of_theta_0.generate_task_masks(total, task, base, tall_mask_lambda=0.4) for task in tasks]
    return {name: base[name] + total[name] * (sum(mask[name] for mask in masks) >= 2) for name in base}


def _dropped(base: State, models: list[State]) -> State:
    torch.manual_seed(0)
    task = {name: nn.Parameter(models[0][name] - base[name]) for name in base}
    for parameter in task.values():
        param_random_drop_(parameter, 0.7, rescale=True)
    return _added(base, {name: parameter.data for name, parameter in task.items()})


def _opcm(pool: dict[str, nn.Module]) -> nn.Module:
    merged: nn.Module = OPCM(alpha=0.5, shuffle_order=False, save_on_every_step=False).run(pool_of(pool))
    return merged


def _doge(pool: dict[str, nn.Module]) -> nn.Module:
    tensor = next(pool["_pretrained_"].parameters())
    if tensor.dim() != 2:  # what their filter on names takes are matrices
        return pool["_pretrained_"]
    share = _as_many(tensor.numel(), 0.3)
    merged: nn.Module = DOGE_TA_Algorithm(subspace=6, K=share, lamda=0.07).run(pool_of(pool))
    return merged


def pool_of(pool: dict[str, nn.Module]) -> object:
    """fusion_bench's pool of modules."""
    from fusion_bench import BaseModelPool

    return BaseModelPool(pool)


CASES: dict[str, Merge] = {
    "linear": lambda base, models: simple_average(models),
    "task_arithmetic": _each(lambda pool: TaskArithmeticAlgorithm(scaling_factor=0.3).run(pool_of(pool))),
    "slerp": lambda base, models: {name: slerp(0.35, models[0][name], models[1][name]) for name in base},
    "model_stock": lambda base, models: _each(lambda pool: ModelStock().run(pool_of(pool)))(base, models[:2]),
    "ties": _flat(_ties),
    "dare_linear": _dropped,
    "magmax": _by_task(_magmax_select),
    "emr": _by_task(lambda tasks: emr_merge(tasks)[0]),
    "consensus": _flat(_consensus),
    "consensus of theta_0": _consensus_of_theta_0,
    "iso_c": _by_task(lambda tasks: iso_c(tasks, accelerator="cpu")),
    "iso_cts": _by_task(lambda tasks: iso_cts(tasks, common_space_fraction=0.8, accelerator="cpu")),
    "tsv_m": _by_task(lambda tasks: compute_and_sum_svd_mem_reduction(tasks, accelerator="cpu")),
    "wudi": _by_task(lambda tasks: wudi_merging(tasks, accelerator="cpu", iter_num=300)),
    "opcm": _each(_opcm),
    "doge": _each(_doge),
}
"""By case, with the values that `scripts/parity_fusion_bench.py` gives evomerge."""


def main(pool: Path, out: Path, names: list[str]) -> None:
    """Merge a pool by the cases of these names, or all."""
    folders = sorted(own for own in pool.iterdir() if (own / "config.json").is_file() and own.name != "base")
    base, *models = [
        {name: tensor.double() for name, tensor in load_file(folder / "model.safetensors").items()}
        for folder in (pool / "base", *folders)
    ]
    out.mkdir(parents=True, exist_ok=True)
    for case, merge in CASES.items():
        if names and case not in names:
            continue
        given = [{name: tensor.clone() for name, tensor in model.items()} for model in models]
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            found = merge({name: tensor.clone() for name, tensor in base.items()}, given)
        found = {name: tensor.detach().double().contiguous() for name, tensor in found.items()}
        save_file(found, out / f"{case}.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
