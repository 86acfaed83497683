"""Item by item: what the winner gets right that another model gets wrong, and the other way round, with examples."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from evomerge.report.formatting import clean, clean_lines, count, number
from evomerge.report.html.data import RunView
from evomerge.report.html.page import Page
from evomerge.report.html.plots import ACCENT, Plot, axis, figure, label
from evomerge.report.outcome import Scored, task_name
from evomerge.report.table import distinct
from evomerge.run.items import read_texts
from evomerge.run.responses import read_responses

EXAMPLES = 4
_MOST_TASKS = 40
_PICTURE = re.compile(r"data:image/png;base64,[A-Za-z0-9+/=]+")
_MOST_MODELS = 8


@dataclass(frozen=True)
class Differences:
    """The winner against one model on one task.

    Attributes:
        task: its name.
        gain: by item, signed so that positive is better; NaN where one of them was not run.
        own, other: the scores.
    """

    task: str
    gain: NDArray[np.float64]
    own: NDArray[np.float64]
    other: NDArray[np.float64]


@dataclass(frozen=True)
class Example:
    """One item: its place in the task, both scores, its text and what both models answered where the run kept that."""

    task: str
    place: int
    own: str
    other: str
    prompt: str = ""
    target: str = ""
    own_response: str = ""
    other_response: str = ""


def items(view: RunView, page: Page) -> Markup | None:
    """Wins and losses by task, and examples of both."""
    record, summary = view.record, view.summary
    if record is None or summary is None or record.best is None:
        return None
    rivals = _rivals(view)
    against = {model.name: found for model in rivals if (found := differences(view, model))}
    if not against:
        return None
    first, found = next(iter(against.items()))
    texts = read_texts(view.folder, record.split)
    rival = next(model for model in rivals if model.name == first)
    answers = (_responses(view, record.best), _responses(view, rival))
    wins, losses = (_examples(found, texts, answers, sign) for sign in (1, -1))
    totals = [int(sum((d.gain * sign > 0).sum() for d in found)) for sign in (1, -1)]
    return page.render(
        "items.html",
        rival=clean(first, 60),
        split="held-out" if record.split == "held_out" else "search",
        won=totals[0],
        lost=totals[1],
        same=int(sum((d.gain == 0).sum() for d in found)),
        picture=_picture(against),
        wins=wins,
        losses=losses,
        texts=any(example.prompt for example in (*wins, *losses)),
    )


def differences(view: RunView, model: Scored) -> list[Differences]:
    """The winner against a model, task by task."""
    record = view.record
    assert record is not None
    assert record.best is not None
    best = record.best.evaluation
    found = []
    for task, metric in record.headlines(best).items():
        own, other = best.items.get(metric), model.evaluation.items.get(metric)
        if own is None or other is None or own.shape != other.shape:
            continue
        gain = other - own if record.lower_is_better(metric) else own - other
        found.append(Differences(task, gain, own, other))
    return found


def _rivals(view: RunView) -> list[Scored]:
    """The best source first, then the other baselines by their score."""
    record, summary = view.record, view.summary
    assert record is not None
    assert summary is not None
    gains = {row.name: row.gain for row in summary.rows if row.kind != "evolved" and row.gain is not None}
    sources = set(record.pool.sources)
    ranked = sorted((m for m in record.baselines if m.name in gains), key=lambda m: -(gains[m.name] or 0.0))
    best = next((m for m in ranked if m.name in sources), None)
    return ([best] if best else []) + [m for m in ranked if m is not best][: _MOST_MODELS - 1]


def _picture(against: dict[str, list[Differences]]) -> Plot:
    """Bars to the right for items won, to the left for items lost."""
    views = {f"against {clean(name, 24)}": _bars(found) for name, found in against.items()}
    tasks = min(_MOST_TASKS, max(len(found) for found in against.values()))
    return Plot(views, 80 + 44 * tasks, f"Items won and lost by task, against {len(against)} models")


def _bars(found: Sequence[Differences]) -> dict[str, Any]:
    shown = found[:_MOST_TASKS]
    names = [label(name, 34) for name in distinct([d.task for d in shown])]
    wins = [int((d.gain > 0).sum()) for d in shown]
    losses = [int((d.gain < 0).sum()) for d in shown]
    longest = max([1, *wins, *losses])

    def bars(values: list[int], sign: int, color: str, word: str) -> dict[str, Any]:
        return {
            "type": "bar",
            "orientation": "h",
            "y": names,
            "x": [sign * value for value in values],
            "text": [count(value) for value in values],
            "textposition": "outside",
            "cliponaxis": False,
            "marker": {"color": color},
            "name": word,
            "hovertemplate": f"%{{text}} {word}<extra></extra>",
            "width": 0.55,
        }

    layout = {
        "barmode": "relative",
        "xaxis": axis("items lost  ·  items won", range=[-1.22 * longest, 1.22 * longest])
        | {"showticklabels": False, "showgrid": False, "zeroline": True},
        "yaxis": axis(autorange="reversed", showgrid=False),
    }
    return figure(bars(wins, 1, ACCENT, "won"), bars(losses, -1, "var(--minus)", "lost"), **layout)


_Responses = Mapping[str, Sequence[str]]


def _responses(view: RunView, model: Scored) -> _Responses:
    """What a model answered to the items that the winner is judged by."""
    return read_responses(view.folder, model.evaluation.candidate, model.evaluation.split)


def _examples(
    found: Sequence[Differences],
    texts: dict[str, list[dict[str, str]]],
    answers: tuple[_Responses, _Responses],
    sign: int,
) -> list[Example]:
    """A few items, from all tasks in turn; of scores that are no 0 or 1, the largest differences."""
    ranked = []
    for own in found:
        places = np.flatnonzero(sign * own.gain > 0)
        ranked.append(places[np.argsort(-sign * own.gain[places], kind="stable")].tolist())
    chosen: list[Example] = []
    for turn in range(EXAMPLES):
        for own, places in zip(found, ranked, strict=True):
            if turn < len(places) and len(chosen) < EXAMPLES:
                task = task_name(f"{own.task}/")
                own_answers, other_answers = ([*of_model.get(task, ())] for of_model in answers)
                chosen.append(_example(own, places[turn], texts.get(task) or [], own_answers, other_answers))
    return chosen


def _score(value: float, own: Differences) -> str:
    """``right`` and ``wrong`` where scores are 0 and 1."""
    known = np.concatenate([own.own, own.other])
    if np.isin(known[~np.isnan(known)], (0.0, 1.0)).all():
        return "right" if value else "wrong"
    return number(value)


def _answer(text: str) -> str:
    """What a model answered; a picture as it is, where it is nothing but one."""
    return text if _PICTURE.fullmatch(text) else clean_lines(text, 500)


def _example(
    own: Differences,
    place: int,
    texts: Sequence[dict[str, str]],
    own_answers: Sequence[str],
    other_answers: Sequence[str],
) -> Example:
    text = texts[place] if place < len(texts) and len(texts) <= len(own.own) else {}
    answers = [_answer(found[place]) if place < len(found) else "" for found in (own_answers, other_answers)]
    return Example(
        clean(own.task, 60),
        place,
        _score(float(own.own[place]), own),
        _score(float(own.other[place]), own),
        clean_lines(text.get("prompt", ""), 700),
        clean(text.get("target", ""), 200),
        *answers,
    )
