"""The tables of a protocol as Markdown, HTML and CSV."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from evomerge.comparison.beside_published import BesidePublished, beside_published
from evomerge.comparison.plan import TEST, Plan
from evomerge.comparison.rows import ComparedRow, Outcome, outcome_of
from evomerge.report.formatting import clean, count, duration, p_text, signed_fixed
from evomerge.report.html.page import Page
from evomerge.utils.files import write_text_atomic
from evomerge.utils.sizes import size_text

MARKDOWN, HTML, CSV = "table.md", "table.html", "table.csv"
_KINDS = {"base": "base", "source": "fine-tuned", "untuned": "untuned", "grid": "of the grid", "tuned": "grid"}


@dataclass(frozen=True)
class Table:
    """A table of texts.

    Attributes:
        title: above it.
        note: below the title; empty for none.
        head: names of the columns.
        rows: cells; an empty one is empty.
    """

    title: str
    note: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]


def write_tables(plan: Plan, folder: Path) -> list[Path]:
    """Write the tables of a protocol whose test has ended, and return their files.

    Raises:
        EvomergeError: a part is missing or damaged, or a file cannot be written.
    """
    outcome = outcome_of(plan, folder)
    tables = [_scores(outcome), *_search_tables(outcome), *_published_tables(outcome)]
    title, lines = plan.protocol.title, _lines(outcome)
    contents = {MARKDOWN: markdown(title, lines, tables), HTML: html(title, lines, tables), CSV: as_csv(outcome)}
    for name, text in contents.items():
        write_text_atomic(folder / name, text)
    return [folder / name for name in contents]


def markdown(title: str, lines: Sequence[str], tables: Sequence[Table]) -> str:
    """The page in Markdown."""
    parts = [f"# {_plain(title)}", *map(_plain, lines)]
    for table in tables:
        right = ["---", *["---:"] * (len(table.head) - 1)]
        rows = [table.head, right, *table.rows]
        text = "\n".join("| " + " | ".join(_plain(cell) for cell in row) + " |" for row in rows)
        parts += [f"## {_plain(table.title)}", *([_plain(table.note)] if table.note else []), text]
    return "\n\n".join(parts) + "\n"


def html(title: str, lines: Sequence[str], tables: Sequence[Table]) -> str:
    """The page in HTML: one file, which fetches nothing."""
    page = Page(f"{clean(title)} · evomerge")
    sections = [
        page.section(f"table-{number}", table.title, partial(page.render, "texts.html", table=table))
        for number, table in enumerate(tables)
    ]
    head = page.section("top", "", lambda: page.render("protocol.html", title=title, lines=lines))
    return page.html([head, *sections])


def as_csv(outcome: Outcome) -> str:
    """A line for each model, with full digits, and where each number comes from: run, candidate, recipe."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    means = ["average", "normalised", "forgetting"]
    cost = ["candidates", "search_seconds", "search_peak_bytes", "merge_seconds", "peak_bytes"]
    places = ["run", "candidate", "recipe_hash", "chosen_in", "chosen_candidate", "error"]
    writer.writerow(["name", "kind", *(own.name for own in outcome.columns), *means, *cost, *places])
    for row in outcome.rows:
        scores = [row.scores.get(own.name) for own in outcome.columns]
        chosen = row.chosen
        took = [chosen.evaluations, chosen.seconds, row.choosing_memory] if chosen is not None else [None] * 3
        found = [chosen.part, chosen.candidate] if chosen is not None else [None, None]
        numbers = [*scores, row.average, row.normalised, row.forgetting, *took, row.merge_seconds, row.memory]
        writer.writerow(
            [row.name, row.kind, *map(_exact, numbers), TEST, row.candidate, row.recipe_hash, *found, row.error]
        )
    return file.getvalue()


def _exact(value: float | None) -> str:
    return "" if value is None or math.isnan(value) else repr(value)


def _lines(outcome: Outcome) -> list[str]:
    """What is said above the tables: what this is, and whether anything leaked."""
    protocol = outcome.plan.protocol
    lines = [protocol.about] if protocol.about else []
    if protocol.stand_in is not None:
        hardly = ", hardly trained: nothing can be read from the scores" if protocol.quick else ""
        lines.append(f"A stand-in: tiny models and items of the same shapes, made on the spot{hardly}.")
    if not outcome.plan.tests_apart:
        lines.append("SEARCHED ON THE TEST ITEMS: winners were chosen by the items that they are scored on.")
    elif outcome.overlap is None:
        lines.append("Whether test items are items of the search is not known.")
    else:
        same, tested = outcome.overlap
        lines.append(f"{count(same)} of {count(tested, 'test item')} are items of the search.")
    if protocol.leakage:
        lines.append(protocol.leakage)
    lines.append(
        f"Every score is an evaluation in {TEST}/ledger.jsonl, by the number in the last column; what was chosen was "
        f"chosen in the run that is named. Average: over tasks. Normalised: mean of the shares of the fine-tuned "
        f"models' scores. Forgetting: how far below the base, a mean over tasks in which gains count as 0. Seconds and "
        f"memory are of this machine; memory is the peak of the process (on GPUs: of what was allocated)."
    )
    if protocol.sources:
        lines.append("Sources: " + "; ".join(protocol.sources) + ".")
    return lines


def _scores(outcome: Outcome) -> Table:
    head = ["model", "", *(own.name for own in outcome.columns), "average", "normalised", "forgetting"]
    head += ["candidates", "search", "its memory", "merging", "memory", "evaluation"]
    return Table("Scores", "", head, [_score_row(row, outcome) for row in outcome.rows])


def _score_row(row: ComparedRow, outcome: Outcome) -> list[str]:
    chosen = row.chosen
    kind = _KINDS.get(row.kind, row.kind)
    where = f"{TEST} {row.candidate}"
    if chosen is not None:
        where += f", chosen in {chosen.part} {chosen.candidate}"
    return [
        row.name,
        f"{kind}: {clean(row.error, 80)}" if row.error else kind,
        *(_score(row.scores.get(own.name)) for own in outcome.columns),
        *(_score(value) for value in (row.average, row.normalised, row.forgetting)),
        str(chosen.evaluations) if chosen is not None else "",
        duration(chosen.seconds) if chosen is not None else "",
        size_text(row.choosing_memory) if row.choosing_memory else "",
        duration(row.merge_seconds) if not math.isnan(row.merge_seconds) else "",
        size_text(row.memory) if row.memory else "",
        where,
    ]


def _search_tables(outcome: Outcome) -> list[Table]:
    """Searches against what costs nothing."""
    if not outcome.against:
        return []
    others = list(dict.fromkeys(name for tests in outcome.against.values() for name in tests))
    rows = []
    for name in others:
        cells = [name]
        for tests in outcome.against.values():
            own = tests.get(name)
            cells.append("" if own is None else f"{signed_fixed(own.difference)}, p = {p_text(own.p_value)}")
        rows.append(cells)
    note = "Gain of each search over each untuned method, and p: paired, item by item, two-sided, not corrected."
    return [Table("Searches against untuned methods", note, ["", *outcome.against], rows)]


def _published_tables(outcome: Outcome) -> list[Table]:
    both, published = beside_published(outcome), outcome.plan.protocol.published
    if both is None or published is None:
        return []
    rows = []
    for row in both.rows:
        rows.append([row, *(_beside(both, row, column, 1 if published.scale > 1 else 3) for column in both.columns)])
    rows.append(["rank correlation", *(_correlation(both, column) for column in both.columns)])
    note = f"Ours / published (difference). Published: {published.source}"
    if outcome.plan.protocol.stand_in is not None:
        note += ". Ours are of the stand-in's models, the published ones of the real: differences say nothing"
    return [Table("Beside the published numbers", f"{note}.", ["", *both.columns], rows)]


def _beside(both: BesidePublished, row: str, column: str, digits: int) -> str:
    ours, published = both.ours.get(row, {}).get(column), both.published[row].get(column)
    if ours is None and published is None:
        return ""
    difference = both.difference(row, column)
    text = " / ".join("" if value is None else f"{value:.{digits}f}" for value in (ours, published))
    if difference is None:
        return text
    shown = f"{difference:+.{digits}f}"
    return f"{text} ({shown if float(shown) else '0'})"


def _correlation(both: BesidePublished, column: str) -> str:
    return f"{both.correlations[column]:.2f}" if column in both.correlations else ""


def _score(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}" if abs(value) < 100 else f"{value:.1f}"


def _plain(text: str) -> str:
    """Text as a cell of Markdown: in one line, without what would end the cell."""
    return " ".join(str(text).split()).replace("|", "\\|")
