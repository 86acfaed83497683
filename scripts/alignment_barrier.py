"""Measures what alignment does for models from different starts: loss and accuracy along the line between two of them.

    python scripts/alignment_barrier.py                  # perceptrons on digits, and models of the demo's size
    python scripts/alignment_barrier.py --only digits    # seconds
    python scripts/alignment_barrier.py --only demo --bases demo_pool/seed{0,1}/base   # no training

Two models are trained from different starts on the same task. Their weights are averaged, from all of one to all of the
other, as they are and with the second one aligned to the first. The barrier is how far the worst average lies above
the line between the losses of the two (Frankle et al. 2020, arXiv 1912.05671). Then both are merged in part: wider
layers, weights as they are and by least squares.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from evomerge.demo.items import Texts
from evomerge.demo.tasks import HELD_OUT_SKILLS, draw_items
from evomerge.demo.train import BATCH, STAGES, Batch, draw, new_model, pack, train
from evomerge.merge.alignment.finding import perceptron_symmetries, symmetries_of
from evomerge.merge.alignment.least_squares import joint_grams, solvable, solved
from evomerge.merge.alignment.matching import match
from evomerge.merge.alignment.orders import Symmetries
from evomerge.merge.alignment.zipping import reading_axes, zipped

SHARES = np.linspace(0, 1, 11)
RATIOS = (1.0, 0.75, 0.5, 0.25, 0.0)
State = dict[str, torch.Tensor]
Score = Callable[[State], tuple[float, float]]
"""Loss and accuracy of weights."""


def barrier(losses: np.ndarray) -> float:
    """How far the worst of the losses at `SHARES` lies above the line between the first and the last."""
    return float((losses - np.interp(SHARES, [0, 1], losses[[0, -1]])).max())


def along(one: State, other: State, score: Score) -> np.ndarray:
    """Losses and accuracies of the averages of two models' weights, shape ``(2, len(SHARES))``."""
    between = [{name: torch.lerp(one[name], other[name], float(share)) for name in one} for share in SHARES]
    return np.array([score(state) for state in between]).T


def compare(title: str, symmetries: Symmetries, states: list[State], score: Score, starts: int) -> State:
    """Print the line between two models before and after the second is aligned; returns that."""
    one, other = states
    found = match(symmetries, one.__getitem__, other.__getitem__, starts=starts)
    aligned = {name: symmetries.apply(name, tensor, found.order) for name, tensor in other.items()}
    before, after = along(one, other, score), along(one, aligned, score)
    print(f"\n{title}: cosine {found.before:.3f} before, {found.after:.3f} aligned (search {found.chosen})")
    print("| share of the second | " + " | ".join(f"{share:.1f}" for share in SHARES) + " | barrier |")
    print("| --- |" + " --- |" * (len(SHARES) + 1))
    for name, values in (("as they are", before), ("aligned", after)):
        print(f"| loss, {name} | " + " | ".join(f"{v:.2f}" for v in values[0]) + f" | {barrier(values[0]):.2f} |")
    for name, values in (("as they are", before), ("aligned", after)):
        print(f"| accuracy, {name} | " + " | ".join(f"{v:.2f}" for v in values[1]) + " | |", flush=True)
    return aligned


def in_part(
    symmetries: Symmetries,
    modules: tuple[nn.Module, nn.Module],
    inputs: Sequence[Any],
    forward: Callable[[nn.Module, Any], object],
    score: Callable[[State, int], tuple[float, float]],
) -> np.ndarray:
    """Scores of merges of two aligned models in part, as they are and by least squares on inputs that both read.

    Args:
        symmetries: of both.
        modules: the second aligned to the first.
        inputs: of the least squares.
        forward: runs a module on one of them.
        score: loss and accuracy of weights with so many hidden units.

    Returns:
        Of shape ``(len(RATIOS), 2, 2)``: by share, as they are and by least squares, loss and accuracy.
    """
    first, second = ({name: own.detach() for name, own in module.named_parameters()} for module in modules)
    reads = {name: axis for name, axis in reading_axes(modules[0]).items() if name in first}
    whole = zipped(symmetries, first.__getitem__, second.__getitem__, 1.0, reads)
    grams = joint_grams(modules, solvable(whole, modules[0]), inputs, forward)
    found = []
    for ratio in RATIOS:
        zip_ = zipped(symmetries, first.__getitem__, second.__getitem__, ratio, reads)
        width = next(zip_.width(part) for part in zip_.shared)
        plain = {name: zip_.merged(name, own, second[name]) for name, own in first.items()}
        least = plain | {n: solved(zip_, n, first[n], second[n], gram) for n, gram in grams.items()}
        found.append((score(plain, width), score(least, width)))
    return np.array(found)


def show(title: str, units: int, scores: np.ndarray) -> None:
    """Print a table of merges in part."""
    print(f"\n| {title}, share merged | hidden units | loss | least squares | accuracy | least squares |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for ratio, own in zip(RATIOS, scores, strict=True):
        cells = [f"{value:.2f}" for value in own.T.ravel()]
        print(f"| {ratio:g} | {2 * units - round(ratio * units)} | " + " | ".join(cells) + " |", flush=True)


def perceptron(seed: int, images: torch.Tensor, labels: torch.Tensor, width: int) -> nn.Sequential:
    """Two hidden layers, trained with Adam for 30 epochs."""
    torch.manual_seed(seed)
    module = nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10))
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-3)
    for _ in range(30):
        for rows in torch.randperm(len(images)).split(64):
            loss = functional.cross_entropy(module(images[rows]), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return module


class Digits:
    """Perceptrons on the digits of scikit-learn: trained on the first four fifths, scored on the rest.

    Args:
        width: of both hidden layers.
        seeds: of two of them.
        halves: whether the first learns from zeros to fours alone, and the second from fives to nines.
    """

    def __init__(self, width: int, seeds: tuple[int, int], *, halves: bool = False) -> None:
        from sklearn.datasets import load_digits

        data = load_digits()
        images, labels = torch.tensor(data.data / 16, dtype=torch.float32), torch.tensor(data.target)
        count = len(images) * 4 // 5
        self.learnt, self._images, self._labels = images[:count], images[count:], labels[count:]
        low = labels[:count] < 5
        own = (low, ~low) if halves else (torch.ones_like(low),) * 2
        self.modules = tuple(
            perceptron(seed, self.learnt[rows], labels[:count][rows], width)
            for seed, rows in zip(seeds, own, strict=True)
        )
        self.symmetries = perceptron_symmetries(self.modules[0])

    @property
    def states(self) -> list[State]:
        """The weights of both."""
        return [{k: v.detach() for k, v in module.state_dict().items()} for module in self.modules]

    def score(self, state: State, units: int) -> tuple[float, float]:
        """Loss and accuracy of weights with so many hidden units."""
        layers = nn.Linear(64, units), nn.ReLU(), nn.Linear(units, units), nn.ReLU(), nn.Linear(units, 10)
        with torch.no_grad():
            logits = torch.func.functional_call(nn.Sequential(*layers), state, self._images)
        right = logits.argmax(1) == self._labels
        return float(functional.cross_entropy(logits, self._labels)), float(right.float().mean())

    def in_part(self, aligned: State) -> np.ndarray:
        """Scores of merges in part, given the second's aligned weights."""
        self.modules[1].load_state_dict(aligned)
        both = (self.modules[0], self.modules[1])
        return in_part(self.symmetries, both, [self.learnt], lambda module, given: module(given), self.score)


def digits(starts: int, width: int) -> None:
    """Two perceptrons, along the line between them and merged in part."""
    own = Digits(width, (0, 1))
    title = f"perceptrons of width {width} on digits"
    aligned = compare(title, own.symmetries, own.states, lambda state: own.score(state, width), starts)
    show(f"perceptrons of width {width}", width, own.in_part(aligned))


def pairs(starts: int, width: int, *, halves: bool) -> None:
    """The mean over three pairs of narrow perceptrons, merged in part."""
    found = []
    for seed in (0, 2, 4):
        own = Digits(width, (seed, seed + 1), halves=halves)
        one, other = own.states
        order = match(own.symmetries, one.__getitem__, other.__getitem__, starts=starts).order
        found.append(own.in_part({name: own.symmetries.apply(name, x, order) for name, x in other.items()}))
    title = f"perceptrons of width {width}" + (" of half of the digits each" if halves else "")
    show(f"{title}, mean of {len(found)} pairs", width, np.mean(found, axis=0))


def demo(starts: int, steps: int, first: int, bases: Sequence[str]) -> None:
    """Models of the demo's shape, each trained as the demo's base is, from its own start and on texts of its own.

    Args:
        starts: searches for each order.
        steps: of training.
        first: seed of the first model, the second has the next.
        bases: folders of two that are there already, the bases of demo pools of different seeds.
    """
    items = draw_items(250, 1000, np.random.default_rng(0))
    texts = Texts(list(items.sorting_to_learn), frozenset(q for skill in HELD_OUT_SKILLS for q in items.of_task[skill]))
    stage = replace(STAGES[0], steps=steps)
    models = [new_model(0).from_pretrained(folder).eval() for folder in bases]
    for seed in () if bases else (first, first + 1):
        model = new_model(seed)
        train(model, stage, texts, np.random.default_rng(seed), lambda: None)
        models.append(model)
    rng = np.random.default_rng(12345)
    batches = [pack(draw(texts, stage.mixture, BATCH, rng)) for _ in range(8)]
    states = [{name: value.detach() for name, value in model.named_parameters()} for model in models]
    shapes = {name: tuple(value.shape) for name, value in states[0].items()}
    symmetries = symmetries_of(models[0], models[0].config, shapes)
    scored = new_model(0).eval()

    def score(state: State) -> tuple[float, float]:
        scored.load_state_dict(state, strict=False)
        return _scores(scored, batches)

    title = "bases of two demo pools" if bases else f"models of the demo, starts {first} and {first + 1}"
    aligned = compare(title, symmetries, states, score, starts)
    models[1].load_state_dict(aligned, strict=False)
    learnt = [pack(draw(texts, stage.mixture, BATCH, np.random.default_rng(seed))) for seed in range(8)]

    def wide(state: State, units: int) -> tuple[float, float]:
        config = deepcopy(models[0].config)
        config.intermediate_size = units
        module = type(models[0])(config).eval()
        module.load_state_dict(state, strict=False)
        return _scores(module, batches)

    def forward(module: nn.Module, batch: Batch) -> object:
        given = {"input_ids": batch.ids, "position_ids": batch.positions, "attention_mask": batch.mask}
        return module(**given, use_cache=False)

    both = (models[0].eval(), models[1].eval())
    show("models of the demo", models[0].config.intermediate_size, in_part(symmetries, both, learnt, forward, wide))


def _scores(model: nn.Module, batches: list[Batch]) -> tuple[float, float]:
    """Mean loss of the learnt tokens, and the share of them that are the likeliest."""
    losses, right, count = 0.0, 0, 0
    for batch in batches:
        learnt = batch.targets >= 0
        with torch.no_grad():
            logits = model(
                input_ids=batch.ids, position_ids=batch.positions, attention_mask=batch.mask, use_cache=False
            ).logits[learnt]
        targets = batch.targets[learnt]
        losses += float(functional.cross_entropy(logits, targets, reduction="sum"))
        right += int((logits.argmax(1) == targets).sum())
        count += len(targets)
    return losses / count, right / count


def main() -> int:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--only", choices=("digits", "demo"), help="default: both")
    parser.add_argument("--starts", type=int, default=5, help="searches for each order; default: 5")
    parser.add_argument("--steps", type=int, default=STAGES[0].steps, help="of training the demo's models")
    parser.add_argument("--seed", type=int, default=0, help="of the first model of the demo, the second has the next")
    parser.add_argument(
        "--bases", nargs=2, default=(), metavar="FOLDER", help="models of the demo, in place of trained"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.only != "demo":
        for width in (64, 512):
            digits(options.starts, width)
        pairs(options.starts, 16, halves=False)
        pairs(options.starts, 32, halves=True)
    if options.only != "digits":
        demo(options.starts, options.steps, options.seed, options.bases)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
