"""Tables of `scripts/digits_diffusion.py`, as Markdown: what held-out images say of its searches' winners.

python scripts/digits_diffusion_table.py WORK
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

DIGITS = 10
WAYS = ("m2n2", "slerp", "cma_es")


def held_out(run: Path) -> dict[str, Floats]:
    """By model what each held-out image got; the winner is ``best``."""
    from evomerge.report.outcome import read_run

    record = read_run(run)
    models = {own.name: own.evaluation for own in record.baselines}
    if record.best is not None:
        models["best"] = record.best.evaluation
    return {name: next(iter(own.items.values())) for name, own in models.items()}


def searched(run: Path) -> dict[str, float]:
    """By model of those that a winner is compared with: its score on the images of the search."""
    from evomerge.report.progress import RunProgress
    from evomerge.run.folder import RunFolder
    from evomerge.run.ledger import read_ledger

    seen = RunProgress()
    for event in read_ledger(RunFolder.open(run)):
        seen.update(event)
    return {name: next(iter(own.objectives.values())) for name, own in seen.baselines.items()}


def compared(one: Sequence[Floats], other: Sequence[Floats], lower: bool) -> str:
    """How much better the first is, of several seeds' runs: the difference of means, and the p-value by image."""
    from evomerge.report.formatting import p_text
    from evomerge.report.statistics import compare

    tasks = [{str(seed): own for seed, own in enumerate(side)} for side in (one, other)]
    found = compare(*tasks, lower_is_better=set(tasks[0]) if lower else ())
    return f"{found.difference:+.3f} ({p_text(found.p_value)})"


def table(work: Path) -> None:
    """What the runs' ledgers say of held-out images: a row for each seed, and one for all."""
    for last, make in (("averages", lcsc_table), ("cma_es", merges_table)):
        seeds = sorted(int(path.name.rpartition("-")[2]) for path in (work / "runs").glob(f"{last}-*"))
        if seeds:
            make(work, seeds)


def lcsc_table(work: Path, seeds: Sequence[int]) -> None:
    """KID of LCSC's winner beside averages, of which one is chosen as the winner is, by the search's noise."""
    rows = []
    for seed in seeds:
        folders = [work / "runs" / f"{name}-{seed}" for name in ("lcsc", "averages")]
        own, trained = map(held_out, folders)
        scores = {name: value for folder in folders for name, value in searched(folder).items()}
        means = {name: each for name, each in {**own, **trained}.items() if name.lower().startswith("ema")}
        last = next(name for name in own if name.startswith("step-"))
        chosen = max(means, key=scores.__getitem__)  # of objectives more is better
        best = min(means, key=lambda name: means[name].mean())
        models = [own[last], own["uniform average"], means[chosen], means[best], own["best"]]
        rows.append((str(seed), models, ["", "", f" ({chosen})", f" ({best})", ""]))
    names = ["last", "uniform", "EMA", "best EMA"]
    _print(["", *names, "LCSC", *(f"over {name}" for name in names)], rows, lower=True)


def merges_table(work: Path, seeds: Sequence[int]) -> None:
    """How likely the digit that was asked for is to be drawn; then by halves of the digits, and how many are drawn."""
    rows, halves = [], []
    names = ["base", "even", "odd", "average", "slerp", "CMA-ES", "M2N2"]
    for seed in seeds:
        runs = {name: held_out(work / "runs" / f"{name}-{seed}") for name in WAYS}
        models = [runs["m2n2"][name] for name in ("base", "even", "odd", "uniform average")]
        models += [runs[name]["best"] for name in ("slerp", "cma_es", "m2n2")]
        rows.append((str(seed), models, [""] * len(models)))
        halves.append((str(seed), [_halves(own) for own in models]))
    _print(["", *names, *(f"over {name}" for name in names[:-1])], rows, lower=False)
    print(f"\n| even / odd / drawn | {' | '.join(names)} |\n| {' | '.join(['---'] * (len(names) + 1))} |")
    for name, cells in halves:
        print(f"| {name} | {' | '.join(cells)} |")


def _halves(own: Floats) -> str:
    """Means over even and odd digits, and of how many the right one is likelier than all others together."""
    by_digit = own.reshape(DIGITS, -1).mean(axis=1)
    return f"{by_digit[::2].mean():.2f} / {by_digit[1::2].mean():.2f} / {(by_digit > 0.5).sum()}"


def _print(head: list[str], rows: Sequence[tuple[str, list[Floats], list[str]]], *, lower: bool) -> None:
    print(f"| {' | '.join(head)} |\n| {' | '.join(['---'] * len(head))} |")
    every = [(name, [[own] for own in models], notes) for name, models, notes in rows]
    if len(rows) > 1:
        columns = [list(own) for own in zip(*(models for _, models, _ in rows), strict=True)]
        every.append(("all", columns, [""] * len(columns)))
    for name, columns, notes in every:
        means = [np.mean([own.mean() for own in column]) for column in columns]
        cells = [f"{mean:.3f}{note}" for mean, note in zip(means, notes, strict=True)]
        cells += [compared(columns[-1], column, lower) for column in columns[:-1]]
        print(f"| {name} | {' | '.join(cells)} |")


def main() -> None:
    """What the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    table(parser.parse_args().work.absolute())


if __name__ == "__main__":
    main()
