"""``evomerge rate``: score what the candidates of a search have written, one text after the other."""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from evomerge.cli.verbs import verb_parser
from evomerge.errors import ConfigError, nearest

if TYPE_CHECKING:
    from evomerge.run.folder import RunFolder
    from evomerge.run.ratings.folder import RatedCandidate, RatingFolder
    from evomerge.run.ratings.rules import RatingRules, Text

_KEYS = "Enter: later; b: back; q: enough for now"
_ASK = "score> "
_IMAGE = "data:image/"
_PAIR = "1: the first is better; 2: the second; 0: neither"
PAIR_KEYS = {"1": 1.0, "2": 0.0, "0": 0.5}
"""What is typed for a pair, and the score that it is."""


def run(arguments: Sequence[str]) -> int:
    """Ask for scores and save each at once; what is left can be scored another time."""
    parser = verb_parser("rate", epilog="Every score is saved at once; begin again where you ended.")
    parser.add_argument("run", metavar="RUN", help="a run folder")
    parser.add_argument("--rater", metavar="NAME", help="who you are, where several people rate")
    parser.add_argument("--wait", action="store_true", help="wait for more texts, until the search has ended")
    parser.add_argument("--page", action="store_true", help="on a page in a browser of this machine, images too")
    options = parser.parse_args(list(arguments))

    from evomerge.run.folder import RunFolder
    from evomerge.run.ledger_file import lock_holder
    from evomerge.run.ratings.folder import RatingFolder
    from evomerge.run.ratings.waiting import left_for

    folder = RunFolder.open(options.run)
    ratings = RatingFolder(folder.rating)
    rules = next(iter(ratings.rules().values()), None)
    if rules is None:
        allowed = "the run of a search with fitness=files, or with fitness=text_to_image fitness.metrics=rating"
        raise ConfigError(f"in {options.run} nobody is asked to rate", allowed)
    rater = _rater(options.rater, rules)
    if options.page:
        return _serve(ratings, rater)
    if any(_drawn(candidate.texts()) for candidate, _, _ in left_for(ratings, rater)):
        do = f"evomerge rate {shlex.quote(options.run)} --rater {rater} --page"
        raise ConfigError(f"what waits in {options.run} are images", "a page, which shows them", do)
    while _rate_all(ratings, rater) and options.wait and lock_holder(folder.lock) is not None:
        _await_more(folder, ratings, rater, rules.look_every)
    return 0


def _drawn(texts: Sequence[Text]) -> bool:
    """Whether they are images."""
    return any(own.startswith(_IMAGE) for text in texts for own in (text.text, text.other))


def _serve(ratings: RatingFolder, rater: str) -> int:
    """Serve the page until Ctrl-C."""
    from evomerge.cli.rate_page import address, serve
    from evomerge.report.plain_console import console

    with serve(ratings, rater) as server:
        console.print(
            f"{address(server)}  (Ctrl-C ends it; every score is saved at once)", markup=False, highlight=False
        )
        try:
            server.serve_forever(poll_interval=0.2)
        except KeyboardInterrupt:
            return 0
    return 0


def _rater(given: str | None, rules: RatingRules) -> str:
    """Whose file is written."""
    from evomerge.run.ratings.rules import ANYONE, RATER

    if given is None:
        if len(rules.names) > 1:
            raise ConfigError("--rater is not given", f"one of: {', '.join(rules.names)}", "say who you are")
        return rules.names[0] if rules.names else ANYONE
    if rules.names and given not in rules.names:
        raise ConfigError(f"--rater is {given!r}", nearest(given, rules.names))
    if not RATER.fullmatch(given):
        raise ConfigError(f"--rater is {given!r}", "letters, digits, - and _: a file is called by it")
    return given


def _rate_all(ratings: RatingFolder, rater: str) -> bool:
    """Ask for all that a rater has left; whether it was not ended early."""
    from evomerge.report.formatting import count
    from evomerge.report.plain_console import console, errors
    from evomerge.run.ratings.waiting import left_for, problem_line

    asked: list[tuple[RatedCandidate, RatingRules, list[Text], dict[int, float], str]] = []
    for candidate, rules, sheet in left_for(ratings, rater):
        file = sheet.file if sheet is not None else f"scores-{rater}.csv"
        if sheet is not None and (sheet.problem or not file.endswith(".csv")):
            problem = problem_line(candidate.name, sheet) if sheet.problem else f"{candidate.name}/{file} is there"
            errors.print(f"left out: {problem}", markup=False, highlight=False)
            continue
        asked.append((candidate, rules, candidate.texts(), dict(sheet.scores) if sheet is not None else {}, file))
    left = sum(rules.wanted - len(scores) for _, rules, _, scores, _ in asked)
    if not left:
        console.print("nothing waits for a score")
        return True
    better = "higher is better" if asked[0][1].direction == "maximize" else "lower is better"
    better = _PAIR if asked[0][1].by == "pair" else better
    console.print(f"{count(left, 'score')} to give for {count(len(asked), 'candidate')}; {better}; {_KEYS}")
    missing = 0
    for candidate, rules, texts, scores, file in asked:
        if not _rate(candidate, rules, texts, scores, file):
            return False
        missing += rules.wanted - len(scores)
    console.print(f"{missing} left for later" if missing else "all are scored; thank you")
    return True


def _rate(
    candidate: RatedCandidate, rules: RatingRules, texts: list[Text], scores: dict[int, float], file: str
) -> bool:
    """Ask for one candidate's scores; whether the rater goes on."""
    from evomerge.report.plain_console import console
    from evomerge.run.ratings.folder import form
    from evomerge.utils.files import write_text_atomic

    steps = [texts] if rules.by == "candidate" else [[text] for text in texts]
    place = 0
    while place < len(steps):
        key = 0 if rules.by == "candidate" else steps[place][0].item
        if key in scores:
            place += 1
            continue
        console.print(f"\n{candidate.name}: {place + 1} of {len(steps)}", markup=False, highlight=False)
        for line in _lines(steps[place]):
            console.print(line, markup=False, highlight=False, soft_wrap=True)
        answer = _score(rules)
        if answer == "q":
            return False
        if answer == "b":
            place = max(0, place - 1)
            scores.pop(0 if rules.by == "candidate" else steps[place][0].item, None)
            continue
        if isinstance(answer, float):
            scores[key] = answer
            write_text_atomic(candidate.path / file, form(texts, scores, rules))
        place += 1
    return True


def _lines(texts: Sequence[Text]) -> Iterator[str]:
    """Texts as a terminal may show them: models write what they like."""
    from evomerge.report.formatting import clean_lines

    for text in texts:
        yield f"  prompt: {clean_lines(text.prompt)}"
        shown = {"first": text.text, "second": text.other} if text.other else {"text": text.text}
        for name, own in shown.items():
            yield f"  {name + ':':<7} {clean_lines('a picture: see it with --page' if own.startswith(_IMAGE) else own)}"


def _score(rules: RatingRules) -> str | float:
    """What the rater types, until it can be used: a score, an empty text, ``b`` or ``q``."""
    from evomerge.report.plain_console import console

    while True:
        try:
            typed = input(_ASK).strip().lower()
        except EOFError:
            return "q"
        if typed in ("", "b", "q"):
            return typed
        try:
            score = PAIR_KEYS[typed] if rules.by == "pair" else float(typed.replace(",", "."))
        except (ValueError, KeyError):
            score = float("nan")
        refusal = rules.refusal(score)
        if not refusal:
            return score
        console.print(f"  {_PAIR if rules.by == 'pair' else refusal}; {_KEYS}")


def _await_more(folder: RunFolder, ratings: RatingFolder, rater: str, pause: float) -> None:
    """Wait until there is more to score, or the search has ended."""
    from evomerge.report.plain_console import console
    from evomerge.run.ledger_file import lock_holder
    from evomerge.run.ratings.waiting import left_for

    before = {candidate.name for candidate, _, _ in left_for(ratings, rater)}
    console.print("waiting for more texts; Ctrl-C ends this")
    while lock_holder(folder.lock) is not None:
        if any(candidate.name not in before for candidate, _, _ in left_for(ratings, rater)):
            return
        time.sleep(pause)
