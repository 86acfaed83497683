"""Candidates at once: `python scripts/benchmark_adapters_at_once.py --pool demo_pool/seed0`.

Adapters of random factors on a random model of the demo's kind, or its own base (`--width 0`); candidates of
`task_arithmetic` with a weight for every adapter and layer; and the demo's own tasks with few items each: short ones,
whose forwards take less time than what is around them. Every K is measured both ways, in turns, on candidates that were
not scored before: on one thread, in one process. The time is that of the processor unless `--wall`. The table has the
process's peak beyond what it had before each K.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from evomerge.candidate import Candidate
from evomerge.evaluation.worker import Worker
from evomerge.models.opening import open_pool
from evomerge.recipes.slices import Input, SliceRecipe, parameters
from evomerge.utils.files import write_text_atomic
from fitness.lm_eval_tasks import LmEvalFitness

MB = 1 << 20
TASKS = ("demo_e_maths", "demo_j_language", "demo_j_maths")


def make_adapter(folder: Path, base: Path, seed: int, rank: int) -> None:
    """Write an adapter of random factors for all linear weights of the base's layers, as PEFT would."""
    generator = torch.Generator().manual_seed(seed)
    tensors, targets = {}, set()
    with safe_open(base / "model.safetensors", "pt") as file:
        shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    for name, shape in shapes.items():
        if ".layers." in name and len(shape) == 2:
            own = f"base_model.model.{name.removesuffix('.weight')}"
            tensors[f"{own}.lora_A.weight"] = 0.05 * torch.randn(rank, shape[1], generator=generator)
            tensors[f"{own}.lora_B.weight"] = 0.05 * torch.randn(shape[0], rank, generator=generator)
            targets.add(own.rpartition(".")[2])
    folder.mkdir(parents=True)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    settings = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "target_modules": sorted(targets)}
    write_text_atomic(folder / "adapter_config.json", json.dumps({**settings, "base_model_name_or_path": str(base)}))


def make_base(folder: Path, demo: Path, width: int) -> None:
    """Write a model of random weights of the demo's kind, of another width, with its tokenizer."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    config = AutoConfig.from_pretrained(demo)
    config.update({"hidden_size": width, "intermediate_size": 2 * width, "head_dim": width // 4})
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
    AutoTokenizer.from_pretrained(demo).save_pretrained(folder)


def candidates(pool: Any, names: Sequence[str], count: int, seed: int) -> list[Candidate]:
    """Candidates with a weight for every adapter and slice."""
    rng, made = torch.Generator().manual_seed(seed), []
    for number in range(count):
        slices = []
        for own in pool.info.slices:
            weights = torch.rand(len(names), generator=rng).tolist()
            inputs = tuple(Input(n, None, parameters({"weight": w})) for n, w in zip(names, weights, strict=True))
            slices.append(SliceRecipe(own, "task_arithmetic", inputs, (), Input("base")))
        recipe = pool.info.recipe(slices)
        assert recipe.hash  # which a ledger has of every candidate
        made.append(Candidate(number, recipe))
    return made


def peak() -> float:
    """MB of the largest resident set since `begin_peak`."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024 / MB


def begin_peak() -> float:
    """Forget the largest resident set; returns MB of the present one."""
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    return peak()


def main(arguments: list[str] | None = None) -> int:
    """Measure every K and print the table; returns the exit status."""
    parser = argparse.ArgumentParser(description="Candidates a second, one at a time and K at once.")
    parser.add_argument("--pool", type=Path, required=True, help="folder of the demo's models")
    parser.add_argument("--at-once", default="1,4,16,64", help="numbers of candidates (default: 1,4,16,64)")
    parser.add_argument("--adapters", type=int, default=16)
    parser.add_argument("--width", type=int, default=256, help="of the model; 0 is the demo's base (default: 256)")
    parser.add_argument("--rank", type=int, default=4)
    parser.add_argument("--items", type=int, default=1, help="of each of three tasks (default: 1)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--wall", action="store_true", help="wall clock time instead of the processor's")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    clock = time.perf_counter if options.wall else time.process_time
    with TemporaryDirectory() as temporary:
        folder, base = Path(temporary), options.pool.absolute() / "base"
        if options.width:
            make_base(folder / "base", base, options.width)
            base = folder / "base"
        names = [f"adapter{number}" for number in range(options.adapters)]
        for number, name in enumerate(names):
            make_adapter(folder / name, base, number, options.rank)
        pool = open_pool({"base": str(base)} | {name: f"{base}+{folder / name}" for name in names}, "base")
        fitness = LmEvalFitness(
            [{"task": task, "metrics": {"acc": 1.0}} for task in TASKS],
            include_path=str(options.pool / "tasks"),
            limit=options.items,
            forwards="shared",
        )
        fitness.check()
        worker = Worker(pool, {"search": fitness}, device="cpu", threads=1)
        worker.evaluate_together(candidates(pool, names, 2, 0))
        print("| K | one at a time, /s | at once, /s | ratio | memory at once, MB | largest difference, relative |")
        print("| ---: | ---: | ---: | ---: | ---: | ---: |")
        for count in map(int, options.at_once.split(",")):
            rates: list[tuple[float, float]] = []
            memory = apart = 0.0
            for turn in range(options.rounds):
                own = candidates(pool, names, count, 1 + turn + 100 * count)
                other = candidates(pool, names, count, 51 + turn + 100 * count)
                start = clock()
                for candidate in own:
                    worker.evaluate(candidate)
                alone = clock() - start
                before = begin_peak()
                start = clock()
                worker.evaluate_together(other)
                rates.append((count / alone, count / (clock() - start)))
                memory = max(memory, peak() - before)
                if not turn:
                    pairs = zip(map(worker.evaluate, own), worker.evaluate_together(own), strict=True)
                    apart = max(
                        abs(a.metrics[key] / b.metrics[key] - 1)
                        for a, b in pairs
                        for key in a.metrics
                        if b.metrics[key]
                    )
            one, many = (statistics.median(rate) for rate in zip(*rates, strict=True))
            ratio = statistics.median(many / one for one, many in rates)
            print(f"| {count} | {one:.1f} | {many:.1f} | {ratio:.2f} | {memory:.1f} | {apart:.1e} |", flush=True)
        worker.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
