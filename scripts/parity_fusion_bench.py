"""Merge methods against fusion_bench: `python scripts/parity_fusion_bench.py --python ENV/bin/python`.

`scripts/fusion_bench_environment.sh ENV` makes the environment. Two pools are merged whole by both and compared tensor
by tensor: the demo's (`--demo demo_pool/seed0`, two sources), and a tiny ViT with three sources that is made here.
evomerge merges as `evomerge merge` does, in float32; fusion_bench in float64, as `scripts/fusion_bench_side.py` says.
The table has, by method and pool, the largest difference of any element of a tensor in units of the largest change of
that tensor from the base. Statistics of data are made by both of the same items: the demo's search items, each source
of its own task, and random images. The exit status is 1 where one is above its bound, or where a difference that is
known is gone.
"""

from __future__ import annotations

import argparse
import itertools
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from evomerge.calibration.encoding import Encoded, EncodedTensors, Item, encode
from evomerge.calibration.measure import measure
from evomerge.calibration.measurement import Measurement
from evomerge.errors import EvomergeError
from evomerge.export.writer import write_model
from evomerge.merge.methods import specs
from evomerge.models.opening import open_pool, with_statistics
from evomerge.models.pool import Pool
from evomerge.models.statistics import ModelStatistics
from evomerge.models.tokenizers import load_tokenizer
from evomerge.recipes.calibration import CalibrationRef
from evomerge.recipes.method_spec import Scalar
from evomerge.recipes.recipe import Recipe
from evomerge.recipes.slices import Input, SliceRecipe, parameters
from fitness.calibration_texts import TextItems

State = Mapping[str, Tensor]
COUNT = 32
"""Calibration items of each source."""
TASKS = {"math": "demo_e_maths", "lang": "demo_j_language"}
DROPPED = 0.7
"""Of fusion_bench's DARE; evomerge's density is what is left."""


@dataclass(frozen=True)
class Case:
    """A merge that both carry out.

    Attributes:
        method: evomerge's name.
        each: parameters of every input, the same for all.
        shared: the other parameters.
        sources: how many enter; ``None`` is all of the pool.
        bound: of the relative difference.
        rounds: share of the elements that may differ: a comparison that rounding decides.
        apart: whether tensors whose task vectors are more than 90 degrees apart are left out.
        differs: whether fusion_bench makes something else.
        note: for the table.
    """

    method: str
    each: Mapping[str, Scalar] = field(default_factory=dict)
    shared: Mapping[str, Scalar] = field(default_factory=dict)
    sources: int | None = None
    bound: float = 1e-5
    rounds: float = 0.0
    apart: bool = True
    differs: bool = False
    note: str = ""


STOCK = (
    "of two models up to 90 degrees apart; beyond, its t is negative and evomerge's 0; of more it averages angles, "
    "evomerge cosines"
)
THETA_0 = "its class takes \\|theta_0 - tau_t\\| for \\|tau_t\\|, and is not followed"
ADAM = "Adam makes the rounding of task vectors to float32 larger: with these in float64 both agree to 1e-13"
BATCHES = "it squares the sum of a batch's gradients, and is not followed; with a batch size of 1 it is `fisher`"
CASES: Mapping[str, Case] = {
    "linear": Case("linear"),
    "task_arithmetic": Case("task_arithmetic", {"weight": 0.3}),
    "slerp": Case("slerp", {}, {"t": 0.35}, sources=2),
    "model_stock": Case("model_stock", sources=2, bound=1e-4, apart=False, note=STOCK),
    "ties": Case("ties", {"density": 0.2}),
    "dare_linear": Case("dare_linear", {"density": 1 - DROPPED}, sources=1, note="where both masks keep an element"),
    "magmax": Case("magmax"),
    "emr": Case("emr"),
    "consensus": Case("consensus", {"selectivity": 0.4}, {"k": 2}, rounds=1e-5),
    "consensus of theta_0": Case("consensus", {"selectivity": 0.4}, {"k": 2}, differs=True, note=THETA_0),
    "iso_c": Case("iso_c"),
    "iso_cts": Case("iso_cts", {}, {"common": 0.8}),
    "tsv_m": Case("tsv_m", bound=1e-4),
    "wudi": Case("wudi", {}, {"iterations": 300, "rate": 1e-5}),
    "opcm": Case("opcm", {}, {"alpha": 0.5}, bound=1e-4),
    "doge": Case(
        "doge",
        {},
        {"eta": 0.07, "density": 0.3, "iterations": 400, "rate": 1e-4, "subspace": 6},
        bound=1e-3,
        note=ADAM,
    ),
    "fisher": Case("fisher", {}, {"normalize": False}, bound=1e-3, note="of squares of single items, batch size 1"),
    "fisher of batches": Case("fisher", {}, {"normalize": False}, differs=True, note=BATCHES),
    "regmean": Case("regmean", {}, {"alpha": 0.9, "log_ridge": -30.0}, bound=1e-4),
}
"""By case of `scripts/fusion_bench_side.py`; parameters are those that it has there."""


def make_vit_pool(folder: Path, sources: int = 3) -> None:
    """Write a ViT of two layers as ``base``, and models around it: changes of rank 4 and noise, half of them common."""
    from transformers import ViTConfig, ViTForImageClassification

    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = ViTForImageClassification(ViTConfig(**sizes, image_size=16, patch_size=4, num_labels=6))
    generator = torch.Generator().manual_seed(0)
    base = {name: torch.randn(x.shape, generator=generator) * 0.1 for name, x in model.state_dict().items()}
    model.load_state_dict(base)
    model.save_pretrained(folder / "base")
    common = {name: _change(x, generator) for name, x in base.items()}
    for number in range(sources):
        changed = {name: x + 0.05 * (common[name] + _change(x, generator)) for name, x in base.items()}
        model.load_state_dict(changed)
        model.save_pretrained(folder / f"source{number}")


def _change(tensor: Tensor, generator: torch.Generator) -> Tensor:
    noise = torch.randn(tensor.shape, generator=generator)
    if tensor.dim() < 2:
        return noise
    rows, columns = tensor.shape[0], tensor[0].numel()
    left, right = torch.randn(rows, 4, generator=generator), torch.randn(4, columns, generator=generator)
    return (left @ right).view(tensor.shape) / 2 + 0.1 * noise


def opened(folder: Path) -> Pool:
    """The models of a folder, those besides ``base`` in alphabetical order."""
    sources = sorted(own.name for own in folder.iterdir() if (own / "config.json").is_file() and own.name != "base")
    return open_pool({name: str(folder / name) for name in ("base", *sources)}, base="base")


def calibrated(pool: Pool, items: Mapping[str, Sequence[Item]], folder: Path) -> Pool:
    """The pool with statistics of both kinds, of each source on its items."""
    known = []
    for (name, ref), kind in itertools.product(pool.info.refs, ("fisher", "gram")):
        if name in items:
            how = Measurement(kind)
            into = ModelStatistics(folder, kind, how.key(ref.identity, items[name]))
            measure(open_pool({name: ref}, dtype="float32"), items[name], how, into, memory=1 << 30)
            known.append((name, kind, into.key))
    return with_statistics(pool, CalibrationRef(tuple(known), ("+calibration=null",)), folder)


def items_of(pool: Pool, root: Path) -> dict[str, Sequence[Item]]:
    """Random images with labels, or of the demo the first search items of each source's own task."""
    tasks = root / "tasks"
    if not tasks.is_dir():
        rng = np.random.default_rng(0)
        return {
            name: [
                EncodedTensors((("pixel_values", rng.normal(size=(3, 16, 16)).astype(np.float32)),), int(label))
                for label in rng.integers(0, 6, COUNT)
            ]
            for name in pool.info.sources
        }
    source = TextItems({model: f"{tasks}/{task}.jsonl" for model, task in TASKS.items()}, items=COUNT)
    return {
        name: encode(source.items(name), load_tokenizer(pool.folder(name), False), 512) for name in pool.info.sources
    }


def write_items(items: Mapping[str, Sequence[Item]], folder: Path) -> None:
    """Items as `scripts/fusion_bench_side.py` reads them."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, own in items.items():
        images = [item for item in own if isinstance(item, EncodedTensors)]
        texts = [item for item in own if isinstance(item, Encoded)]
        if images:
            pixels = np.stack([dict(item.tensors)["pixel_values"] for item in images])
            content = {
                "pixel_values": torch.from_numpy(pixels),
                "labels": torch.tensor([item.label for item in images]),
            }
        else:
            content = {str(number): torch.tensor(item.ids) for number, item in enumerate(texts)}
            content["starts"] = torch.tensor([item.start for item in texts])
        save_file(content, folder / f"{name}.safetensors")


def recipe(pool: Pool, case: Case) -> Recipe:
    """A case on every slice of a pool."""
    spec, info = specs()[case.method], pool.info
    inputs = tuple(Input(name, None, parameters(case.each)) for name in info.sources[: case.sources])
    base = Input("base") if spec.base != "none" else None
    return info.recipe(SliceRecipe(own, case.method, inputs, parameters(case.shared), base) for own in info.slices)


def difference(ours: State, theirs: State, base: State, rounds: float = 0.0) -> tuple[float, str]:
    """The largest difference of an element in units of the largest change of its tensor, and the tensor's name.

    Args:
        ours, theirs, base: tensors by name; those that `theirs` has are compared.
        rounds: share of all elements that is left out, where that makes the difference smaller.

    Raises:
        EvomergeError: a tensor is missing or of another shape.
    """
    found = []
    left_out = int(rounds * sum(tensor.numel() for tensor in theirs.values()))
    for name, expected in theirs.items():
        if name not in ours or ours[name].shape != expected.shape:
            raise EvomergeError(f"the merged model has no tensor {name} of shape {tuple(expected.shape)}")
        scale = float((expected - base[name].double()).abs().max())
        apart = (ours[name].double() - expected).abs().flatten() / (scale or 1.0)
        found += [(value, name) for value in apart.topk(min(left_out + 1, len(apart))).values.tolist()]
    return sorted(found, reverse=True)[left_out]


def within_90_degrees(sources: Sequence[State], base: State) -> set[str]:
    """The tensors whose task vectors have no negative inner product."""
    tasks = [{name: (source[name].double() - base[name].double()).flatten() for name in base} for source in sources]
    return {
        name
        for name in base
        if all(float(one[name] @ other[name]) >= 0 for one, other in itertools.combinations(tasks, 2))
    }


def dropped_alike(ours: State, theirs: State, base: State, source: State) -> tuple[float, str]:
    """Of a random drop, whose masks differ: as `difference`, where both keep an element.

    The share that each keeps is to be within four standard deviations of what was asked for; else the difference is 1.
    """
    worst, kept, total = (0.0, ""), [0, 0], 0
    for name, below in base.items():
        task = source[name].double() - below.double()
        found = [merged[name].double() - below.double() for merged in (ours, theirs)]
        masks = [each.abs() > 0.5 * task.abs() for each in found]
        both, total = masks[0] & masks[1], total + int((task != 0).sum())
        kept = [count + int(mask.sum()) for count, mask in zip(kept, masks, strict=True)]
        apart = (found[0] - found[1])[both].abs()
        scale = float(task.abs().max()) / (1 - DROPPED)
        worst = max(worst, (float(apart.max()) / scale if apart.numel() else 0.0, name))
    spread = 4 * (total * DROPPED * (1 - DROPPED)) ** 0.5
    off = [abs(count - total * (1 - DROPPED)) > spread for count in kept]
    return (1.0, f"keeps {kept[0] / total:.3f}, fusion_bench {kept[1] / total:.3f}") if any(off) else worst


def compare_pool(folder: Path, theirs: Path, names: Sequence[str]) -> dict[str, tuple[float, str, bool]]:
    """By case the difference, what is to be said of it, and whether it is as it should be."""
    pool = opened(folder)
    if any(specs()[CASES[name].method].kinds for name in names):
        pool = calibrated(pool, items_of(pool, folder), theirs / "statistics")
    read = {name: load_file(folder / name / "model.safetensors") for name in ("base", *pool.info.sources)}
    found = {}
    for name in names:
        case = CASES[name]
        with TemporaryDirectory() as temporary:
            ours = load_file(write_model(recipe(pool, case), pool, Path(temporary) / "merged") / "model.safetensors")
        expected = load_file(theirs / f"{name}.safetensors")
        used = [read[source] for source in pool.info.sources[: case.sources]]
        if case.method == "dare_linear":
            apart, where = dropped_alike(ours, expected, read["base"], *used)
        else:
            if not case.apart:
                expected = {own: expected[own] for own in within_90_degrees(used, read["base"])}
            apart, where = difference(ours, expected, read["base"], case.rounds)
        good = (apart > case.bound) is case.differs
        found[name] = (apart, case.note if good else f"NOT AS EXPECTED: {where}", good)
        print(f"{folder.name}: {name} {apart:.1e} {where}", file=sys.stderr, flush=True)
    return found


def main(arguments: list[str] | None = None) -> int:
    """Merge, compare and print the table; returns the exit status."""
    parser = argparse.ArgumentParser(description="Compare merge methods with fusion_bench, tensor by tensor.")
    parser.add_argument("--python", type=Path, required=True, help="of the environment that has fusion_bench")
    parser.add_argument("--demo", type=Path, help="folder of a demo pool, compared too")
    parser.add_argument("--keep", type=Path, help="keep what fusion_bench makes in this folder, and use what is there")
    parser.add_argument("--cases", default=",".join(CASES), help="some of them, with commas between")
    options = parser.parse_args(arguments)
    names = [name for name in CASES if name in options.cases.split(",")]
    side = Path(__file__).with_name("fusion_bench_side.py")
    results = {}
    with TemporaryDirectory() as temporary:
        vit = Path(temporary) / "vit"
        make_vit_pool(vit)
        pools = {"ViT, 3 sources": vit} | ({"demo, 2 sources": options.demo} if options.demo else {})
        for label, folder in pools.items():
            theirs = (options.keep or Path(temporary)) / f"fusion_bench-{folder.name}"
            missing = [name for name in names if not (theirs / f"{name}.safetensors").is_file()]
            if missing:
                if any(specs()[CASES[name].method].kinds for name in missing):
                    write_items(items_of(opened(folder), folder), theirs / "calibration")
                subprocess.run([options.python, side, folder, theirs, *missing], check=True)
            results[label] = compare_pool(folder, theirs, names)
    print(_table(results, names))
    return 0 if all(good for own in results.values() for _, _, good in own.values()) else 1


def _table(results: Mapping[str, Mapping[str, tuple[float, str, bool]]], names: Sequence[str]) -> str:
    lines = [f"| method | {' | '.join(results)} | |", f"| --- |{' ---: |' * len(results)} --- |"]
    for name in names:
        own = [found[name] for found in results.values()]
        said = "; ".join(dict.fromkeys(why for _, why, _ in own if why))
        lines.append(f"| `{name}` | {' | '.join(f'{apart:.0e}' for apart, _, _ in own)} | {said} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
