"""What is learnt by gradients: gradients against differences and autograd, known optima, exact continuation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import TinyModel
from torch.func import functional_call

from evomerge.calibration.encoding import Encoded
from evomerge.calibration.learning.factors import ColumnFactors, Factors, MaskFactors, WeightFactors, WeightMap
from evomerge.calibration.learning.loop import STATE, learn
from evomerge.calibration.learning.objective import Objective, batch_of
from evomerge.calibration.learning.product import Counts, write_columns, write_mask
from evomerge.calibration.learning.settings import METHODS, Settings, Usual
from evomerge.calibration.learning.tensors import Tensors
from evomerge.errors import ConfigError, PoolError
from evomerge.merge.execution.engine import merge_slice
from evomerge.merge.planning.plan import make_plan
from evomerge.merge.resident.loading import load_on
from evomerge.models.opening import open_pool, with_statistics
from evomerge.models.pool import Pool
from evomerge.models.statistics import ModelStatistics
from evomerge.recipes.calibration import CalibrationRef
from evomerge.recipes.slices import Input, SliceRecipe, parameters

ITEMS = {
    "a": [Encoded((1, 5, 9, 30, 7), 1), Encoded((1, 8, 8, 21), 2)],
    "b": [Encoded((4, 12, 17, 33, 6, 10, 39), 4), Encoded((2, 3), 1), Encoded((7, 7, 1), 1)],
}
EXPERTS = Usual("weights", "experts", 0.05, 0.3, temperature=1.5, hidden=0.1)
ENTROPY = Usual("weights", "entropy", 0.05, 0.3)


class Case:
    """A pool's merged model, ready to learn; all in float64, where differences mean something."""

    def __init__(self, pool: Pool, wide: bool = True) -> None:
        self.pool = pool
        self.module = load_on("cpu", replace(pool, info=replace(pool.info, dtype="float32")), None)
        self.module.config.use_cache = False
        if wide:
            self.module.double()
        self.tensors = Tensors(pool, self.module)
        if wide:
            self.tensors.wide = torch.float64
        self.items = {model: ITEMS[model] for model in pool.info.sources}

    def weights(self, pull: float = 0.0, start: float = 0.3, shared: bool = True) -> WeightFactors:
        """Genes: of each model one, or one for each slice."""
        slices, models = self.pool.info.slices, len(self.pool.info.sources)
        count = models if shared else models * len(slices)
        slopes = torch.zeros((len(slices), models, count), dtype=torch.float64)
        for s in range(len(slices)):
            for m in range(models):
                slopes[s, m, m if shared else s * models + m] = 1.0
        zeros = torch.zeros(count, dtype=torch.float64)
        low, high = zeros - 1, zeros + 2
        map_ = WeightMap(slices, slopes.new_zeros((len(slices), models)), slopes, low, high, zeros + start)
        return WeightFactors(self.tensors, map_, pull)

    def learn(self, factors: Factors, usual: Usual, folder: Path, steps: int = 20, **how: Any) -> torch.Tensor:
        """Losses, step by step."""
        options = {"batch": 2, "rate": usual.rate, "seed": 3, "every": 4, **how}
        folder.mkdir(exist_ok=True)
        objective = Objective(self.module, usual)
        found = learn(self.module, self.tensors, factors, objective, self.items, steps=steps, folder=folder, **options)
        return found.values.sum(1)


@pytest.fixture
def models(tiny_model: TinyModel) -> Callable[..., Pool]:
    """A pool of tiny models: a base, and sources by their seeds and kind."""

    def make(kind: str = "llama_tied", **seeds: int) -> Pool:
        folders = {"base": str(tiny_model("base", kind, seed=0))}
        folders |= {name: str(tiny_model(name, kind, seed=seed)) for name, seed in seeds.items()}
        return open_pool(folders, base="base")

    return make


def loss_of(case: Case, factors: Factors, usual: Usual, step: int = 0) -> torch.Tensor:
    """The loss at what is learnt, by transformers on unpadded items, with a graph to the merged tensors."""
    merged = {}
    factors.begin(step)
    for target in case.tensors.targets:
        merged[target.place] = factors.merged(target).detach().requires_grad_(target.learnt)
    total = torch.zeros((), dtype=torch.float64)
    for model, items in case.items.items():
        case.tensors.become(model)
        own = {name: parameter.detach().clone() for name, parameter in case.module.named_parameters()}
        rows: dict[str, list[torch.Tensor]] = {"p": [], "q": [], "h": []}
        for item in items:
            ids, heat = torch.tensor([item.ids]), usual.temperature
            each = [
                functional_call(case.module, state, (), {"input_ids": ids, "output_hidden_states": True})
                for state in (merged, own)
            ]
            p, q = ((out.logits[0, item.start - 1 : -1] / heat).log_softmax(-1) for out in each)
            rows["p"].append(p)
            rows["q"].append(q.detach())
            ours, theirs = (torch.stack(out.hidden_states[1:])[:, 0, item.start - 1 : -1] for out in each)
            rows["h"].append((ours - theirs.detach()).square().mean(-1).mean(0))
        p, q, hidden = (torch.cat(rows[key]) for key in "pqh")
        if usual.loss == "entropy":
            total = total - (p.exp() * p).sum(-1).mean()
        else:
            total = total + (q.exp() * (q - p)).sum(-1).mean() * usual.temperature**2 + usual.hidden * hidden.mean()
    found = total / len(case.items)
    factors.begin(step)
    gradients = torch.autograd.grad(found, [merged[target.place] for target in case.tensors.targets])
    for target, gradient in zip(case.tensors.targets, gradients, strict=True):
        factors.pull(target, gradient)
    penalty = factors.penalty()
    if penalty.requires_grad:
        penalty.backward()
    return (found + penalty).detach()


def factors_of(case: Case, kind: str) -> Factors:
    if kind == "weights":
        return case.weights(pull=0.1, shared=False)
    if kind == "mask":
        found: Factors = MaskFactors(case.tensors, 0.4, 0.7, seed=5)
        found.values = {name: torch.zeros_like(own).double().requires_grad_() for name, own in found.values.items()}
    else:
        found = ColumnFactors(case.tensors, case.module, 0.5, 0.3)
        found.values = {name: own.detach().double().requires_grad_() for name, own in found.values.items()}
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for own in found.values.values():
            own += 0.2 * torch.randn(own.shape, generator=generator)
    return found


@pytest.mark.parametrize(("kind", "usual"), [("weights", EXPERTS), ("mask", ENTROPY), ("columns", EXPERTS)])
def test_gradients_are_those_of_differences(models: Callable[..., Pool], kind: str, usual: Usual) -> None:
    case = Case(models("gpt2" if kind == "columns" else "llama_tied", a=1, b=2))
    factors = factors_of(case, kind)
    if isinstance(factors, WeightFactors):
        with torch.no_grad():
            factors.values["genes"] += 0.1  # off the start, where the penalty has no derivative
    loss_of(case, factors, usual)
    rng = torch.Generator().manual_seed(0)
    names = list(factors.values)
    for _ in range(2):
        name = names[int(torch.randint(len(names), (), generator=rng))]
        own = factors.values[name]
        assert own.grad is not None
        direction = torch.randn(own.shape, generator=rng, dtype=torch.float64)
        said = float((own.grad * direction).sum())
        ends = []
        for sign in (1, -1):
            with torch.no_grad():
                own += sign * 1e-3 * direction
            ends.append(float(loss_of(case, factors, usual)))
            with torch.no_grad():
                own -= sign * 1e-3 * direction
        assert said == pytest.approx((ends[0] - ends[1]) / 2e-3, rel=2e-3, abs=1e-6)
        loss_of(case, factors, usual)


@pytest.mark.parametrize("kind", ["weights", "mask", "columns"])
def test_a_step_of_the_loop_has_the_same_loss_and_gradient(
    models: Callable[..., Pool], tmp_path: Path, kind: str
) -> None:
    """Padded batches, gradients handed on by hooks and Adam's first step, against unpadded items."""
    case = Case(models(a=1, b=2))
    factors, other = factors_of(case, kind), factors_of(case, kind)
    before = {name: own.detach().clone() for name, own in factors.values.items()}
    lost = case.learn(factors, EXPERTS, tmp_path / "state", steps=1, batch=3, rate=0.01)
    assert float(lost[0]) == pytest.approx(float(loss_of(case, other, EXPERTS)), rel=1e-5)
    for name, own in factors.values.items():
        slope = other.values[name].grad
        assert slope is not None
        moved = own.detach() - before[name]
        torch.testing.assert_close(moved, -0.01 * slope / (slope.abs() + 1e-8), rtol=1e-2, atol=1e-6)


def near_base(tiny_model: TinyModel, *names: str) -> Pool:
    """A base and fine-tunes of it: their distance to it is a tenth of that of strangers, and the loss is convex."""
    base = tiny_model("base", seed=0)
    folders = {"base": str(base)}
    for name in names:
        folder = tiny_model(name, seed=1)
        tensors, below = (load_file(own / "model.safetensors") for own in (folder, base))
        tensors = {key: torch.lerp(below[key], value, 0.1) for key, value in tensors.items()}
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        folders[name] = str(folder)
    return open_pool(folders, base="base")


def test_one_expert_is_what_is_learnt(tiny_model: TinyModel, tmp_path: Path) -> None:
    case = Case(near_base(tiny_model, "a"))
    factors = case.weights(shared=True)
    lost = case.learn(factors, EXPERTS, tmp_path / "state", steps=50)
    assert factors.values["genes"].tolist()[0] == pytest.approx(1.0, abs=0.06)
    assert float(lost[-1]) < 0.05 * float(lost[0])


def test_equal_experts_share_one(tiny_model: TinyModel, tmp_path: Path) -> None:
    case = Case(near_base(tiny_model, "a", "b"))
    case.items["b"] = case.items["a"]
    factors = case.weights(start=0.1)
    case.learn(factors, EXPERTS, tmp_path / "state", steps=50)
    genes = factors.values["genes"].tolist()
    assert genes[0] == pytest.approx(genes[1], abs=0.02)
    assert sum(genes) == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize("method", METHODS)
def test_losses_fall(models: Callable[..., Pool], tmp_path: Path, method: str) -> None:
    case, usual = Case(models(a=1, b=2), wide=False), Settings(method, rate=0.05).usual(2)
    start = usual.init or 0.0
    factors: Factors = {
        "weights": lambda: case.weights(usual.pull, start, shared=False),
        "mask": lambda: MaskFactors(case.tensors, start, 0.5, 0),
        "columns": lambda: ColumnFactors(case.tensors, case.module, start, usual.similarity),
    }[usual.learns]()
    lost = case.learn(factors, usual, tmp_path / "state", steps=30, batch=3)
    assert float(lost[-5:].mean()) < 0.97 * float(lost[0])


class Killed(Exception):
    """What stops a test's learning."""


@pytest.mark.parametrize("kind", ["weights", "mask", "columns"])
def test_killed_and_gone_on_with_it_is_the_same_bytes(models: Callable[..., Pool], tmp_path: Path, kind: str) -> None:
    pool = models(a=1, b=2)
    whole = Case(pool, wide=False)
    whole.learn(factors_of(whole, kind), EXPERTS, tmp_path / "whole", steps=9)
    for stop in (2, 7):  # before the first state, and between two

        def killed(done: int, total: int, stop: int = stop) -> None:
            if done == stop:
                raise Killed

        case = Case(pool, wide=False)
        with pytest.raises(Killed):
            case.learn(factors_of(case, kind), EXPERTS, tmp_path / "parts", steps=9, progress=killed)
    told: list[int] = []
    case = Case(pool, wide=False)
    seen = lambda done, total: told.append(done)  # noqa: E731
    case.learn(factors_of(case, kind), EXPERTS, tmp_path / "parts", steps=9, progress=seen)
    assert told == [4, 5, 6, 7, 8, 9]
    assert (tmp_path / "parts" / STATE).read_bytes() == (tmp_path / "whole" / STATE).read_bytes()
    (tmp_path / "parts" / STATE).write_bytes(b"torn")
    case = Case(pool, wide=False)
    case.learn(factors_of(case, kind), EXPERTS, tmp_path / "parts", steps=9)
    assert (tmp_path / "parts" / STATE).read_bytes() == (tmp_path / "whole" / STATE).read_bytes()


@pytest.mark.parametrize(("kind", "method"), [("mask", "masked"), ("columns", "columns")])
@pytest.mark.parametrize("model", ["llama_tied", "gpt2"])
def test_methods_merge_what_was_learnt(
    models: Callable[..., Pool], tmp_path: Path, kind: str, method: str, model: str
) -> None:
    case = Case(models(model, a=1, b=2), wide=False)
    factors = factors_of(case, kind)
    keys = {name: f"sha256:{digit * 64}" for name, digit in (("a", "1"), ("b", "1" if kind == "mask" else "2"))}
    into = [ModelStatistics(tmp_path, kind, key) for key in keys.values()]
    if isinstance(factors, MaskFactors):
        write_mask(case.tensors, factors, into[0], Counts(5, 21))
    elif isinstance(factors, ColumnFactors):
        write_columns(case.tensors, factors, into, Counts(5, 21))
    ref = CalibrationRef(tuple((name, kind, key) for name, key in keys.items()), ("pool.base=base",))
    pool = with_statistics(case.pool, ref, tmp_path)
    shared = parameters({"lambda": 0.4} if kind == "mask" else {})
    inputs = tuple(Input(name) for name in "ab")
    recipe = pool.info.recipe(SliceRecipe(s, method, inputs, shared, Input("base")) for s in pool.info.slices)
    plan = make_plan(recipe, pool)
    factors.begin(0)
    for target in case.tensors.targets:
        merged = merge_slice(plan.by_slice[target.slice], pool)[target.name]
        if isinstance(factors, MaskFactors):
            tasks = sum(case.tensors.of(name, target) - case.tensors.base(target) for name in "ab")
            expected = case.tensors.base(target) + 0.4 * factors.mask(target.name).reshape(tasks.shape).float() * tasks
        else:
            expected = factors.merged(target).float()
        torch.testing.assert_close(merged, expected, rtol=1e-5, atol=1e-6)
    gone = with_statistics(case.pool, ref, tmp_path / "elsewhere")
    with pytest.raises(PoolError, match=r"evomerge learn 'pool.models=\{base: .*\}' pool.base=base"):
        make_plan(recipe, gone)


def test_masks_near_zero_temperature_are_bernoulli(models: Callable[..., Pool]) -> None:
    """The share of ones is the sigmoid of the logits, whatever the temperature rounds to."""
    case = Case(models(a=1), wide=False)
    factors = MaskFactors(case.tensors, 0.4, 1e-4, seed=1)
    target = max(case.tensors.targets, key=lambda own: own.parameter.numel())
    with torch.no_grad():
        factors.values[target.name] += 1.0
    drawn = []
    for step in range(40):
        factors.begin(step)
        drawn.append(factors._drawn(target))
    assert torch.equal(factors._drawn(target), drawn[-1])
    share = torch.stack(drawn)
    assert float(((share > 0.001) & (share < 0.999)).float().mean()) < 0.001
    assert float(share.mean()) == pytest.approx(0.731, abs=0.01)


def test_items_come_in_rounds_and_batches_are_padded() -> None:
    batch = batch_of(ITEMS["b"], torch.device("cpu"))
    assert batch.ids.shape == (3, 7)
    assert batch.mask.sum(1).tolist() == [7, 2, 3]
    assert batch.rows.tolist() == [0, 0, 0, 1, 2, 2]
    assert batch.columns.tolist() == [3, 4, 5, 0, 0, 1]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"method": "expertmerging"}, "learning.method is 'expertmerging'"),
        ({"loss": "kl"}, "learning.loss is 'kl'"),
        ({"steps": 0}, "learning.steps is 0"),
        ({"rate": 0.0}, "learning.rate is 0.0"),
        ({"hidden": -1.0}, "learning.hidden is -1.0"),
        ({"init": float("nan")}, "learning.init is nan"),
        ({"dtype": "int8"}, "statistics.dtype is 'int8'"),
    ],
)
def test_settings_that_cannot_be(given: Mapping[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Settings(**given)


def test_keys_tell_what_changes_the_result() -> None:
    items: Sequence[Sequence[Encoded]] = [ITEMS["a"], ITEMS["b"]]
    known = Settings().key(["1", "2", "3"], items, None)
    others = [
        Settings(steps=100).key(["1", "2", "3"], items, None),
        Settings(seed=1).key(["1", "2", "3"], items, None),
        Settings().key(["1", "2", "4"], items, None),
        Settings().key(["1", "2", "3"], [ITEMS["b"], ITEMS["a"]], None),
        Settings().key(["1", "2", "3"], items, [0.5]),
    ]
    assert Settings().key(["1", "2", "3"], items, None) == known
    assert len({known, *others}) == 6
    assert Settings("dam").usual(4).init == 0.25
