"""What raters are given and give: the folder ``rating`` of a run."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from evomerge.errors import OutputError
from evomerge.run.ratings.rules import RatingRules, Text, split_of
from evomerge.run.ratings.sheets import MOST_BYTES, Sheet, read_sheets
from evomerge.utils.files import read_bounded, write_text_atomic

RULES = "rating.json"
OUTPUTS = "outputs.jsonl"
ACCEPTED = "accepted.json"
FORM = "form.csv"
_GUIDE = "README.txt"
_FORMULAS = tuple("=+-@\t\r")


@dataclass(frozen=True)
class RatedCandidate:
    """The folder of one candidate: its texts, the raters' files, and what was counted of them.

    Attributes:
        path: the folder, by its blind name.
    """

    path: Path

    @property
    def name(self) -> str:
        """Its blind name."""
        return self.path.name

    @property
    def accepted(self) -> Path:
        """What was counted, once it was: what raters change afterwards changes nothing."""
        return self.path / ACCEPTED

    def write(self, texts: Sequence[Text], rules: RatingRules) -> None:
        """Write the texts and the forms; a rater's form that is there stays.

        `OutputError` where they cannot be written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"{self.path} cannot be made: {error.strerror}", "a place you can write") from error
        shown = rules.shuffled(texts, self.name)
        for file in [f"scores-{rater}.csv" for rater in rules.names] or [FORM]:
            if not (self.path / file).exists():
                write_text_atomic(self.path / file, form(shown, {}, rules))
        rows = [{name: value for name, value in text._asdict().items() if name != "other" or value} for text in shown]
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
        write_text_atomic(self.path / OUTPUTS, "".join(lines))  # last: what has it is whole

    def texts(self) -> list[Text]:
        """What raters are shown, in that order; empty where the file is not there, or is not what was written."""
        try:
            content = read_bounded(self.path / OUTPUTS, MOST_BYTES, follow=False).decode()
            rows = [json.loads(line) for line in content.splitlines() if line]
            return [
                Text(int(r["item"]), str(r["task"]), str(r["prompt"]), str(r["text"]), str(r.get("other", "")))
                for r in rows
            ]
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return []

    def sheets(self, rules: RatingRules) -> list[Sheet]:
        """What raters have written so far."""
        return read_sheets(self.path, rules)

    def accept(self, scores: Mapping[str, Sequence[float]]) -> None:
        """Write down what counts: by rater the scores, by item."""
        content = {"evomerge_rating": 1, "raters": {rater: list(own) for rater, own in scores.items()}}
        write_text_atomic(self.accepted, json.dumps(content) + "\n")

    def read_accepted(self, rules: RatingRules) -> dict[str, list[float]] | None:
        """What counts, by rater; ``None`` where nothing was accepted yet, or what is there was not written by us."""
        try:
            content = json.loads(read_bounded(self.accepted, MOST_BYTES, follow=False))
            found = {str(rater): [float(score) for score in own] for rater, own in content["raters"].items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return None
        good = all(len(own) == rules.wanted and not any(map(rules.refusal, own)) for own in found.values())
        return found if found and good else None


@dataclass(frozen=True)
class RatingFolder:
    """The folder ``rating`` of a run.

    Attributes:
        path: the folder.
    """

    path: Path

    def begin(self, rules: Mapping[str, RatingRules]) -> None:
        """Make the folder, and write down what is asked, for `status`, `rate` and people."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"{self.path} cannot be made: {error.strerror}", "a place you can write") from error
        content = {"evomerge_rating": 1, "splits": {split: own.to_json() for split, own in rules.items()}}
        write_text_atomic(self.path / RULES, json.dumps(content, indent=2) + "\n")
        write_text_atomic(self.path / _GUIDE, guide(next(iter(rules.values()))))

    def rules(self) -> dict[str, RatingRules]:
        """What is asked, by split; empty where no search has people rate, or the file is not what was written."""
        try:
            content = json.loads(read_bounded(self.path / RULES, MOST_BYTES, follow=False))
            return {str(split): RatingRules.from_json(own) for split, own in content["splits"].items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return {}

    def candidate(self, name: str) -> RatedCandidate:
        """The folder of a candidate, which need not be there."""
        return RatedCandidate(self.path / name)

    def candidates(self, rules: Mapping[str, RatingRules]) -> list[tuple[RatedCandidate, RatingRules]]:
        """Those whose texts are there, by name, with what is asked of each."""
        found = [path.parent for path in sorted(self.path.glob(f"*/{OUTPUTS}")) if path.parent.name[0] != "."]
        return [(RatedCandidate(path), rules[split_of(path.name)]) for path in found if split_of(path.name) in rules]


def form(texts: Sequence[Text], scores: Mapping[int, float], rules: RatingRules) -> str:
    """A table for people to fill in: item, prompt, text, score; of pairs the other text, too.

    Args:
        texts: in the order in which they are shown.
        scores: those that are there already, by item; of a candidate as a whole, of item 0.
        rules: what is asked.
    """
    out = io.StringIO()
    rows = csv.writer(out, lineterminator="\n")
    pairs = rules.by == "pair"
    rows.writerow(["item", "prompt", "text", *(["other"] if pairs else []), "score"])
    for place, text in enumerate(texts):
        key = place if rules.by == "candidate" else text.item
        score = f"{scores[key]:g}" if key in scores else ""
        other = [_cell(text.other)] if pairs else []
        rows.writerow([text.item, _cell(text.prompt), _cell(text.text), *other, score])
    return out.getvalue()


def _cell(text: str) -> str:
    """A text that spreadsheets take for a text, not for a formula to be carried out."""
    if text.startswith("data:image/"):
        return "a picture: evomerge rate RUN --page shows it"
    return f"'{text}" if text.startswith(_FORMULAS) else text


def guide(rules: RatingRules) -> str:
    """What raters need to know, in plain words."""
    better = "higher is better" if rules.direction == "maximize" else "lower is better"
    better = "the first is text, the second is other" if rules.by == "pair" else better
    what = {
        "item": "each text",
        "candidate": "each folder one score, for all of its texts together",
        "pair": "each pair of texts",
    }[rules.by]
    where = (
        "fill in the column score of your own file, scores-NAME.csv"
        if rules.names
        else f"copy {FORM} to scores-NAME.csv, with your name for NAME, and fill in the column score"
    )
    line, often = {
        "item": ('{"item": 0, "score": 3}', "for each text"),
        "candidate": ('{"score": 3}', "in all"),
        "pair": ('{"item": 0, "score": 1}', "for each pair"),
    }[rules.by]
    whose = "two models" if rules.by == "pair" else "one model"
    return f"""Every folder here has texts that {whose} wrote. Which model that is, nobody is told.

Score {what}: {rules.scale}; {better}.

In every folder, {where}. A score may be changed until all are there;
then they are counted once, and the folder has a file {ACCEPTED}. Who likes a terminal better types

  evomerge rate RUN --rater NAME

Programs read outputs.jsonl (a text on each line: item, task, prompt, text) and write scores-NAME.jsonl, a line
{line} {often}. A scores-NAME.csv without scores may stay beside it.
"""
