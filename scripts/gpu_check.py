"""What a GPU does with merging, scoring, memory and Ray: run once where there is one.

    python scripts/gpu_check.py [--out gpu_check.json] [--device cuda] [--only merges placements]

Writes its findings after every step, so that a run that is cut short still counts, and prints a table in the end. On
``--device cpu`` everything is smaller, and memory runs out on a pretended GPU.
"""

# ruff: noqa: E402 - what the tests are made of is found first

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import os
import platform
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
from merge.path_models import path_recipe  # type: ignore[import-not-found]
from pretended_gpu import PretendedGpu  # type: ignore[import-not-found]
from tiny_models import write_tokenizer  # type: ignore[import-not-found]
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from evomerge.candidate import Candidate
from evomerge.errors import nearest
from evomerge.evaluation.ray_pool import RayEvaluator
from evomerge.evaluation.worker import Worker
from evomerge.export.writer import write_model
from evomerge.merge.execution.sources import Placement
from evomerge.merge.execution.tensor_merge import merge_tensor
from evomerge.merge.methods import METHODS, call_values
from evomerge.merge.planning.plan import make_plan
from evomerge.merge.planning.slice_plan import Plan
from evomerge.merge.resident.model import Resident
from evomerge.models.opening import open_pool
from evomerge.models.pool import Pool
from evomerge.objectives import Objective
from evomerge.protocols import Scores
from evomerge.recipes.slices import Input, SliceRecipe, parameters
from fitness.lm_eval_tasks import LmEvalFitness

METHOD_VALUES: dict[str, dict[str, float]] = {
    "linear": {"weight": 0.4},
    "task_arithmetic": {"weight": 0.6},
    "slerp": {},
    "ties": {"weight": 0.6, "density": 0.5},
    "dare_linear": {"weight": 0.6, "density": 0.5},
    "dare_ties": {"weight": 0.6, "density": 0.5},
    "breadcrumbs": {"weight": 0.6, "density": 0.5},
    "della": {"weight": 0.6, "density": 0.5},
}
MUCH = 1 << 50
Findings = dict[str, Any]


class Check:
    """The steps, in the order of what is most worth knowing.

    Args:
        device: ``cuda`` or ``cpu``.
        folder: for models.
    """

    def __init__(self, device: str, folder: Path) -> None:
        self.device, self.folder, self.is_large = torch.device(device), folder, device != "cpu"
        self._pool: Pool | None = None

    @property
    def pool(self) -> Pool:
        """A base and two models around it in bfloat16, of Mistral's shapes and four layers where there is a GPU."""
        if self._pool is None:
            wide = {"hidden_size": 4096, "intermediate_size": 14336, "vocab_size": 32000, "num_attention_heads": 32}
            small = {"hidden_size": 64, "intermediate_size": 96, "vocab_size": 64, "num_attention_heads": 4}
            config = LlamaConfig(
                **(wide if self.is_large else small),
                num_hidden_layers=4,
                num_key_value_heads=8 if self.is_large else 2,
                max_position_embeddings=512,
                tie_word_embeddings=False,
            )
            folders = {}
            with torch.device(self.device):
                model = LlamaForCausalLM(config).to(torch.bfloat16)
            for name in ("base", "a", "b"):
                folders[name] = str(self.folder / name)
                model.save_pretrained(folders[name])
                write_tokenizer(Path(folders[name]), config.vocab_size)
                with torch.no_grad():
                    for parameter in model.parameters():
                        parameter.add_(torch.randn_like(parameter) * 0.01)
            del model
            self._pool = open_pool(folders, base="base", fingerprints=False)
        return self._pool

    def plan(self, method: str, change: float) -> Plan:
        """A method on every slice of the pool."""
        spec = METHODS[method].spec
        values = {name: value + change for name, value in METHOD_VALUES[method].items()}
        inputs = tuple(Input(name, None, parameters(values)) for name in ("a", "b"))
        base = Input("base") if spec.base != "none" else None
        shared = parameters({"t": 0.4 + change}) if method == "slerp" else ()
        slices = [SliceRecipe(s, method, inputs, shared, base) for s in self.pool.info.slices]
        return make_plan(self.pool.info.recipe(slices), self.pool)

    def wait(self) -> None:
        """Until the device has done all."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def seconds(self, work: Callable[[], object]) -> float:
        """That something takes, on the device too."""
        self.wait()
        start = time.perf_counter()
        work()
        self.wait()
        return time.perf_counter() - start

    def environment(self) -> Findings:
        """Versions, the device and how fast it copies, in GB/s."""
        count = 1 << (30 if self.is_large else 20)
        there, other = (torch.zeros(count, dtype=torch.uint8, device=self.device) for _ in range(2))
        host = torch.zeros(count, dtype=torch.uint8)
        found: Findings = {"torch": torch.__version__, "python": platform.python_version(), "device": str(self.device)}
        found["copy_"] = 2 * count / 1e9 / min(self.seconds(lambda: other.copy_(there)) for _ in range(3))
        found["from mapped"] = count / 1e9 / min(self.seconds(lambda: there.copy_(host)) for _ in range(3))
        if self.device.type == "cuda":
            pinned = host.pin_memory()
            copied = min(self.seconds(lambda: there.copy_(pinned, non_blocking=True)) for _ in range(3))
            found |= {"name": torch.cuda.get_device_name(), "from pinned": count / 1e9 / copied}
            found["memory"] = torch.cuda.mem_get_info()[1]
        return found

    def merges(self) -> Findings:
        """GB/s of every method, later candidates: every source read once and the result written once; and the peak."""
        resident = Resident(self.pool, self.device, placement=Placement(MUCH, 0, MUCH, MUCH), cache=0)
        numbers, found = sum(self.pool.info.sizes), dict[str, Any]()
        for method in METHOD_VALUES:
            plans = [self.plan(method, i / 50) for i in range(3)]
            first, *later = [self.seconds(functools.partial(resident.apply, plan)) for plan in plans]
            moved = 2 * numbers * (2 + (METHODS[method].spec.base != "none") + 1)
            found[method] = {"GB/s": moved / 1e9 / min(later), "first s": first, "later s": min(later)}
        if self.device.type == "cuda":
            found["peak bytes"] = torch.cuda.max_memory_allocated()
        resident.close()
        return found

    def placements(self) -> Findings:
        """Seconds of a linear merge by where the sources are."""
        found = {}
        for name, placement in {
            "device": Placement(MUCH, 0, MUCH, MUCH),
            "pinned": Placement(0, MUCH, MUCH),
            "mapped": Placement(0, 0, MUCH),
        }.items():
            resident = Resident(self.pool, self.device, placement=placement, cache=0)
            resident.apply(self.plan("linear", 0.0))
            found[name] = self.seconds(functools.partial(resident.apply, self.plan("linear", 0.1)))
            resident.close()
        return found

    def bits(self) -> Findings:
        """The share of elements that the device and the processor merge differently, by method."""
        there = Resident(self.pool, self.device, placement=Placement(MUCH, 0, MUCH, MUCH), cache=0)
        here = Resident(self.pool, placement=Placement(0, 0, 0), cache=0)
        found = {}
        for method in METHOD_VALUES:
            plan = self.plan(method, 0.05)
            there.apply(plan)
            here.apply(plan)
            theirs = dict(here.model.module.named_parameters())
            pairs = [(own.detach().cpu(), theirs[name]) for name, own in there.model.module.named_parameters()]
            found[method] = sum(int((a != b).sum()) for a, b in pairs) / sum(a.numel() for a, _ in pairs)
        there.close()
        return found

    def tasks(self, count: int) -> list[dict[str, Any]]:
        """A task of log-likelihoods with texts that begin alike, a rolling one, and one that is written."""
        rows = [{"q": f"w{4 + i % 20} w{5 + i % 7}", "a": f"w{4 + i % 11}"} for i in range(count)]
        file = self.folder / f"rows{count}.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        task: dict[str, Any] = {
            "task": "gpu_check",
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(file)}},
            "test_split": "test",
            "output_type": "loglikelihood",
            "doc_to_text": "w1 w2 w3 w1 w2 w3 w1 w2 w3 w1 w2 w3 w1 w2 w3 w1 w2 w3 w1 w2 w3 {{q}}",
            "doc_to_target": " {{a}}",
            "metric_list": [{"metric": "perplexity", "aggregation": "perplexity", "higher_is_better": False}],
        }
        rolling = {name: value for name, value in task.items() if name != "metric_list"}
        rolling |= {"task": "gpu_check_rolling", "output_type": "loglikelihood_rolling", "doc_to_text": ""}
        rolling |= {"doc_to_target": "{{q}} {{a}} {{q}}"}
        written = task | {"task": "gpu_check_written", "output_type": "generate_until"}
        written["generation_kwargs"] = {"until": ["."], "max_gen_toks": 8}
        written["metric_list"] = [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}]
        return [task, rolling, written]

    def fitness(self, tasks: list[dict[str, Any]], batch_size: int = 16, forwards: Any = "exact") -> LmEvalFitness:
        """A fitness of these tasks, its softmax as stock lm_eval's is asked for below."""
        given: list[Any] = [{"task": deepcopy(task)} for task in tasks]
        return LmEvalFitness(given, batch_size=batch_size, softmax_dtype="float32", forwards=forwards)

    def lm_eval(self) -> Findings:
        """Whether a worker's scores of three request types are those of stock lm_eval on the same device, twice."""
        from lm_eval import evaluator

        tasks, resident = self.tasks(64), self.bare()
        fitness = self.fitness(tasks)
        fitness.prepare(resident.model)
        ours, again = fitness.run(resident.model).metrics, fitness.run(resident.model).metrics
        resident.close()
        stock = evaluator.simple_evaluate(
            model="hf",
            model_args={"pretrained": str(self.pool.folder("base")), "dtype": "bfloat16", "softmax_dtype": "float32"},
            tasks=deepcopy(tasks),
            device=str(self.device),
            batch_size=16,
            bootstrap_iters=0,
        )
        theirs = {
            f"{task}/{key.split(',')[0]}": value for task, own in stock["results"].items() for key, value in own.items()
        }
        differ = sorted(name for name, value in ours.items() if value != theirs[name.split(",")[0]])
        found: Findings = {"equal": not differ, "again": again == ours, "metrics": len(ours)}
        return found | {name: [ours[name], theirs[name.split(",")[0]]] for name in differ}

    def bare(self) -> Resident:
        """The base model on the device, no sources kept."""
        return Resident(self.pool, self.device, placement=Placement(0, 0, 0), cache=0)

    def batches(self) -> Findings:
        """Tokens a second that log-likelihoods read, padding not counted, by batch size."""
        resident, found = self.bare(), dict[str, Any]()
        tasks = self.tasks(512 if self.is_large else 64)[:1]
        for size in (16, 64, 256):
            fitness = self.fitness(tasks, size)
            fitness.prepare(resident.model)
            tokens = fitness.run(resident.model).tokens["run"]
            found[f"tokens/s at {size}"] = tokens / self.seconds(functools.partial(fitness.run, resident.model))
        resident.close()
        return found

    def shared(self) -> Findings:
        """Shared forwards against exact ones: how far log-likelihoods are apart, tokens that are run, times faster."""
        resident, tasks = self.bare(), self.tasks(256 if self.is_large else 64)[:2]
        scores, took = list[Scores](), list[float]()
        for mode in ("exact", "shared"):
            fitness = self.fitness(tasks, forwards=mode)
            fitness.prepare(resident.model)
            scores.append(fitness.run(resident.model))
            took.append(self.seconds(functools.partial(fitness.run, resident.model)))
        resident.close()
        exact, shared = scores
        apart = max(float(abs(exact.items[name] - shared.items[name]).max()) for name in exact.items)
        run = shared.tokens["run"] / shared.tokens["stock"]
        return {"apart at most": apart, "tokens of exact": run, "times faster": took[0] / took[1]}

    def path(self) -> Findings:
        """A path with repeated layers: cached generation and logits in memory against those of its export."""
        # No factors: an export rounds them into its weights, in memory they are applied to the stream.
        layers = [("a", 0), ("b", 1), ("a", 1), ("b", 1), ("a", 2), ("b", 3)]
        recipe = path_recipe(self.pool, [(*layer, 1.0) for layer in layers])
        resident = self.bare()
        resident.apply(make_plan(recipe, self.pool))
        ids = (torch.arange(4 * 12, device=self.device) % 50).view(4, 12)
        options: dict[str, Any] = {"max_new_tokens": 16, "do_sample": False, "attention_mask": torch.ones_like(ids)}
        with torch.no_grad():
            ours = resident.model.module.generate(ids, use_cache=True, **options)
            logits = resident.model.module(ids).logits
        resident.close()
        folder = write_model(recipe, self.pool, self.folder / "path", device=self.device)
        module = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).to(self.device).eval()
        with torch.no_grad():
            theirs, again = module.generate(ids, use_cache=True, **options), module(ids).logits
        return {
            "layers": int(module.config.num_hidden_layers),
            "texts equal": bool(torch.equal(ours, theirs)),
            "logits equal": bool(torch.equal(logits, again)),
            "logits apart at most": float((logits.float() - again.float()).abs().max()),
        }

    def large(self) -> Findings:
        """Seconds and peak memory of one tensor of 152064 x 3584, an embedding of today, statistics not noted."""
        shape = (152064, 3584) if self.is_large else (1520, 36)
        base, *inputs = (torch.randn(shape, device=self.device).to(torch.bfloat16) for _ in range(3))
        out, found = torch.empty_like(base), dict[str, Any]()
        for name, values in METHOD_VALUES.items():
            method = METHODS[name]
            of = base if method.spec.base != "none" else None
            shared = {"t": 0.4} if name == "slerp" else {}
            given = call_values(method.spec, [values] * 2, shared)
            keys = (1, 2) if method.random else ()
            work = functools.partial(merge_tensor, method, inputs, of, given, keys, out=out)
            self.seconds(work)
            if self.device.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
                before = torch.cuda.memory_allocated()
            found[name] = {"s": self.seconds(work)}
            if self.device.type == "cuda":
                found[name]["bytes an element"] = (torch.cuda.max_memory_allocated() - before) / out.numel()
        return found

    def memory(self) -> Findings:
        """Whether candidates succeed where memory holds 1.2 times the model and a batch, once sources were kept."""
        with self._little_memory() as cap:
            scores = Forward()
            worker = Worker(self.pool, {"search": scores}, device="cuda")
            shares = [self.pool.info.linear({"a": 1 - i / 5, "b": i / 5}) for i in range(4)]
            found = [worker.evaluate(Candidate(i, recipe)).ok for i, recipe in enumerate(shares[:2])]
            cap(int(1.2 * self.pool.checkpoints["base"].nbytes) + scores.batch_bytes)
            found += [worker.evaluate(Candidate(i, recipe)).ok for i, recipe in enumerate(shares[2:], 2)]
            worker.close()
        return {"succeeded": sum(found), "of": len(found)}

    @contextlib.contextmanager
    def _little_memory(self) -> Iterator[Callable[[int], None]]:
        """A device whose memory can be capped: the GPU's, or a pretended one's."""
        if self.device.type == "cuda":
            total = torch.cuda.mem_get_info()[1]
            try:
                yield lambda nbytes: torch.cuda.set_per_process_memory_fraction(min(1.0, nbytes / total))
            finally:
                torch.cuda.set_per_process_memory_fraction(1.0)
            return
        gpu = PretendedGpu()
        with gpu.present():
            yield lambda nbytes: setattr(gpu, "memory", nbytes)

    def ray(self) -> Findings:
        """Two workers that share the GPU: one is killed, a device-side assert ends the other, both are replaced."""
        folders = {name: str(self.pool.folder(name)) for name in ("base", "a", "b")}
        root = self.folder / "ray"
        root.mkdir()
        evaluator = RayEvaluator(
            RayBuild(folders, root), workers=2, gpus_per_worker=0.5 if self.is_large else 0, tries=3, timeout=120
        )
        count, recipes = 10, [self.pool.info.linear({"a": 1 - i / 10, "b": i / 10}) for i in range(10)]
        try:
            evaluator.fingerprint("search")
            (root / "kill").touch()
            for number, recipe in enumerate(recipes[:5]):
                evaluator.submit(Candidate(number, recipe))
            found = [evaluator.collect() for _ in range(5)]
            (root / "assert").touch()
            for number, recipe in enumerate(recipes[5:], 5):
                evaluator.submit(Candidate(number, recipe))
            found += [evaluator.collect() for _ in range(5)]
            begun, end = root / "begun", time.monotonic() + 60
            while len(set(begun.read_text().split())) < 4 and time.monotonic() < end:
                time.sleep(0.2)  # the last to be replaced may have nothing left to do
        finally:
            evaluator.close()
        errors = sorted({evaluation.error for evaluation in found if not evaluation.ok})
        ended = [line.split() for line in (root / "ended").read_text().splitlines()]
        used = [evaluation.metrics["share of the device"] for evaluation in found if evaluation.ok]
        return {
            "succeeded": sum(evaluation.ok for evaluation in found),
            "of": count,
            "ended": [how for how, _ in ended],
            "processes": len(set((root / "begun").read_text().split())),
            "most of the device by both": max(used),
            **({"errors": errors} if errors else {}),
        }


@dataclass
class RayBuild:
    """Makes a worker in its actor.

    Attributes:
        folders: of the pool's models.
        orders: a folder where files say what happens to the next evaluation, once.
    """

    folders: dict[str, str]
    orders: Path

    def __call__(self, *, device: str, threads: int | None, cache: Any) -> Worker:
        """Open the pool and build the worker."""
        pool = open_pool(self.folders, base="base", fingerprints=False)
        return Worker(pool, {"search": Doomed(self.orders)}, device=device, threads=threads, cache=cache)


class Forward:
    """Scores by one forward of a batch, and keeps how much memory that takes."""

    objectives = (Objective("score"),)

    def __init__(self) -> None:
        self.batch_bytes = 0

    def check(self) -> None:
        """Nothing can be wrong."""

    def cautions(self) -> list[str]:
        """None."""
        return []

    def prepare(self, model: Any) -> None:
        """Make the batch, and see what it takes."""
        self.ids = torch.arange(8 * 64, device=model.device).remainder(60).view(8, 64)
        before = torch.cuda.mem_get_info()[0]
        self.run(model)
        # A pretended GPU gives back at once; what a real one took stays in its allocator.
        rows = model.module.config.vocab_size + 8 * model.module.config.intermediate_size
        self.batch_bytes = max(before - torch.cuda.mem_get_info()[0], self.ids.numel() * rows * 8)

    def run(self, model: Any, part: Any = None) -> Scores:
        """The sum of the logits."""
        with torch.no_grad():
            return Scores({"score": float(model.module(self.ids, use_cache=False).logits.float().sum())})

    def fingerprint(self) -> str:
        """The same everywhere."""
        return "sha256:forward"


class Doomed(Forward):
    """Does to its process what a file orders."""

    def __init__(self, orders: Path) -> None:
        super().__init__()
        self.orders = orders

    def _said(self, file: str, text: str) -> None:
        with (self.orders / file).open("a") as log:
            log.write(text + "\n")

    def prepare(self, model: Any) -> None:
        """Make the batch, and say that there is another process."""
        self.ids = torch.arange(8 * 64, device=model.device).remainder(60).view(8, 64)
        self._said("begun", str(os.getpid()))

    def run(self, model: Any, part: Any = None) -> Scores:
        """The sum of the logits, if nothing else was ordered."""
        time.sleep(0.2)  # both workers have a candidate
        for order in ("kill", "assert"):
            try:
                (self.orders / order).unlink()
            except FileNotFoundError:
                continue
            self._said("ended", f"{order} {os.getpid()}")
            if order == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if model.device.type != "cuda":
                raise RuntimeError("CUDA error: device-side assert triggered")
            model.module.model.embed_tokens(self.ids + (1 << 30))
            torch.cuda.synchronize()
        scores, share = super().run(model), 0.0
        if model.device.type == "cuda":
            free, total = torch.cuda.mem_get_info()
            share = 1 - free / total
        return Scores(scores.objectives, {"share of the device": share})


STEPS = (
    *("environment", "merges", "large", "placements", "bits", "lm_eval", "batches", "shared", "path"),
    *("memory", "ray"),
)


def _step(name: str) -> str:
    """A step's name, as given."""
    if name not in STEPS:
        raise argparse.ArgumentTypeError(f"there is no step {name!r}; {nearest(name, STEPS)}")
    return name


def main() -> int:
    """Run the steps; exit status 1 where one of them failed."""
    parser = argparse.ArgumentParser(description="what a GPU does with evomerge")
    parser.add_argument("--out", type=Path, default=Path("gpu_check.json"))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=["cuda", "cpu"])
    parser.add_argument("--only", nargs="+", default=STEPS, type=_step, metavar="STEP", help=f"of {', '.join(STEPS)}")
    given = parser.parse_args()
    found: dict[str, Findings] = {}
    with tempfile.TemporaryDirectory() as folder:
        check = Check(given.device, Path(folder))
        for step in given.only:
            start = time.perf_counter()
            try:
                found[step] = getattr(check, step)()
            except Exception:
                found[step] = {"failed": traceback.format_exc()}
            found[step]["step s"] = time.perf_counter() - start
            given.out.write_text(json.dumps(found, indent=1))
    for step, findings in found.items():
        for name, value in findings.items():
            for inner, number in value.items() if isinstance(value, dict) else [("", value)]:
                shown = f"{number:.4g}" if isinstance(number, float) else str(number)
                print(f"| {step} | {' '.join(filter(None, (name, inner)))} | {shown} |")
    return int(any("failed" in findings for findings in found.values()))


if __name__ == "__main__":
    sys.exit(main())
