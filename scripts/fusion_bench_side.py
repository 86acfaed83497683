"""What fusion_bench makes of a pool; run by `scripts/parity_fusion_bench.py` in fusion_bench's own environment.

`python fusion_bench_side.py POOL OUT [CASE ...]` reads `POOL/base` and the other models of POOL, in alphabetical order,
and writes `OUT/CASE.safetensors` for the cases below. All is computed in float64.
Statistics of data are of `OUT/calibration/MODEL.safetensors`: images and their labels, or tokens of texts.
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
from fusion_bench.method.fisher_merging.fisher_merging import get_param_squared_gradients, merging_with_fisher_weights
from fusion_bench.method.isotropic_merging.iso_utils import iso_c, iso_cts
from fusion_bench.method.magmax.magmax import _magmax_select
from fusion_bench.method.model_stock import ModelStock
from fusion_bench.method.opcm.opcm_general import OPCM
from fusion_bench.method.regmean.regmean import merging_with_regmean_weights
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
from transformers import AutoModelForCausalLM, AutoModelForImageClassification

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


class Calibrated:
    """A model's statistics, in float64, by autograd and hooks.

    Args:
        folder: of the model.
        items: file of what it reads.
    """

    def __init__(self, folder: Path, items: Path) -> None:
        content = load_file(items)
        images = "pixel_values" in content
        kind = AutoModelForImageClassification if images else AutoModelForCausalLM
        self.model = kind.from_pretrained(folder, torch_dtype=torch.float64).eval()
        missing = load_file(folder / "model.safetensors").keys() - self.model.state_dict().keys()
        if missing:
            raise SystemExit(f"transformers calls tensors of {folder} otherwise: {sorted(missing)[:3]}")
        if images:
            pairs = zip(content["pixel_values"].double(), content["labels"], strict=True)
            self.items = [({"pixel_values": x[None]}, 0, y[None]) for x, y in pairs]
        else:
            names = sorted((name for name in content if name != "starts"), key=int)
            texts = zip((content[name] for name in names), content["starts"].tolist(), strict=True)
            self.items = [({"input_ids": ids[None]}, start, ids[start:]) for ids, start in texts]

    def _loss(self, given: dict[str, Tensor], start: int, labels: Tensor) -> Tensor:
        logits = self.model(**given).logits
        return nn.functional.cross_entropy(logits[0, start - 1 : -1] if start else logits, labels, reduction="sum")

    def squares(self, *, together: bool) -> State:
        """Mean squares of each item's gradient; or what their batches have, of the sum of gradients, over items."""
        names, found = [name for name, _ in self.model.named_parameters()], dict[str, Tensor]()
        self.model.zero_grad()
        for number, item in enumerate(self.items):
            self._loss(*item).backward()
            if not together or number + 1 == len(self.items):
                for name, square in get_param_squared_gradients(self.model, names).items():
                    found[name] = found.get(name, torch.zeros_like(square)) + square / len(self.items)
                self.model.zero_grad()
        return found

    def products(self) -> State:
        """By linear layer the mean of ``x x^T`` over what it reads, as the hooks of their classes have it."""
        sums, counts, hooks = dict[str, Tensor](), dict[str, int](), []

        def noting(name: str) -> Callable[..., None]:
            def hook(module: nn.Module, given: tuple[Tensor, ...]) -> None:
                x = given[0].detach().reshape(-1, given[0].shape[-1])
                sums[name] = sums.get(name, torch.zeros(x.shape[1], x.shape[1], dtype=x.dtype)) + x.T @ x
                counts[name] = counts.get(name, 0) + len(x)

            return hook

        for name, module in self.model.named_modules():
            if isinstance(module, nn.Linear):
                hooks.append(module.register_forward_pre_hook(noting(name)))
        with torch.no_grad():
            for given, _, _ in self.items:
                self.model(**given)
        for hook in hooks:
            hook.remove()
        return {name: x / counts[name] for name, x in sums.items()}


def _fisher(models: list[State], known: list[Calibrated], *, together: bool) -> State:
    squares = [own.squares(together=together) for own in known]
    each = {name: [model[name] for model in models] for name in squares[0] if name in models[0]}
    means = [torch.cat([x.flatten() for x in own.values()]).mean() for own in squares]
    floor = 1e-6 * float(sum(means) / len(means))
    ones = torch.ones(len(models), dtype=torch.float64)
    found: State = merging_with_fisher_weights(each, squares, ones, False, floor)
    return found


def _regmean(models: list[State], known: list[Calibrated]) -> State:
    products = [own.products() for own in known]
    each = {name: [model[name] for model in models] for name in models[0]}
    found: State = merging_with_regmean_weights(each, products, reduce_non_diagonal_ratio=0.9)
    return found


CALIBRATED: dict[str, Callable[[list[State], list[Calibrated]], State]] = {
    "fisher": lambda models, known: _fisher(models, known, together=False),
    "fisher of batches": lambda models, known: _fisher(models, known, together=True),
    "regmean": _regmean,
}
"""By case, of statistics of data."""


def main(pool: Path, out: Path, names: list[str]) -> None:
    """Merge a pool by the cases of these names, or all."""
    folders = sorted(own for own in pool.iterdir() if (own / "config.json").is_file() and own.name != "base")
    base, *models = [
        {name: tensor.double() for name, tensor in load_file(folder / "model.safetensors").items()}
        for folder in (pool / "base", *folders)
    ]
    out.mkdir(parents=True, exist_ok=True)
    calibrated = [case for case in CALIBRATED if not names or case in names]
    if calibrated:
        known = [Calibrated(folder, out / "calibration" / f"{folder.name}.safetensors") for folder in folders]
        for case in calibrated:
            found = {name: x.detach().double().contiguous() for name, x in CALIBRATED[case](models, known).items()}
            save_file(found, out / f"{case}.safetensors")
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
