"""The verbs of the command, and the parser of each."""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable
from typing import Any, NoReturn

from evomerge.errors import ConfigError, nearest

VERBS = {
    "search": "search for a merge recipe",
    "resume": "go on with a run that ended early, or with a larger budget",
    "status": "show how far a run is, also while it goes on",
    "rate": "score what the candidates of a search wrote, where people are its fitness",
    "report": "write a run's report, or several side by side, as one HTML file",
    "dashboard": "show a run in optuna-dashboard, also while it goes on",
    "validate": "check an experiment without loading a model",
    "calibrate": "make the statistics of data that methods such as fisher and regmean read",
    "frank-wolfe": "weigh the sources by gradients of their loss on calibration items",
    "learn": "learn coefficients, a mask or factors of columns by gradients on data, and write their recipe",
    "protocol": "compare methods and searches as a published protocol does, beside its numbers",
    "demo": "make the demo's models and tasks, then search on them",
    "export": "write a recipe as evomerge or mergekit YAML, or a run as a study of Optuna or a landscape",
    "merge": "write the model of a recipe: safetensors, tokenizer, model card",
    "experts": "write a mixture of experts with its experts merged into fewer",
    "mixture": "write a mixture of experts made of dense models, by a recipe of mergekit-moe",
    "align": "write a model with its units in the order of another's, to be merged with it",
    "evaluate": "score a recipe or a model with a fitness",
    "import": "write a mergekit-evolve configuration as an experiment",
    "methods": "list the merge methods and their parameters",
}


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, with the nearest valid choices.

    An empty text is no value: as a path it would be the current folder.
    """

    def add_argument(self, *names: Any, **options: Any) -> argparse.Action:
        """As of `argparse`, for what takes values: none of them may be empty."""
        if options.get("action", "store") in ("store", "append"):
            options["type"] = _not_empty(options.get("type", str))
        return super().add_argument(*names, **options)

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            raise argparse.ArgumentError(action, f"it is {value!r}; {nearest(str(value), map(str, action.choices))}")

    def error(self, message: str) -> NoReturn:
        raise ConfigError(message, "", f"see `{self.prog} --help`")


def _not_empty(kind: Callable[[str], Any]) -> Callable[[str], Any]:
    """The type of an argument, which takes no empty text: what an unset variable of a shell leaves."""

    @functools.wraps(kind, updated=())
    def converted(text: str) -> Any:
        if not text:
            raise argparse.ArgumentTypeError("it is empty, as a variable that is not set leaves it")
        return kind(text)

    return converted


def verb_parser(verb: str, **arguments: Any) -> argparse.ArgumentParser:
    """A parser for one verb's own arguments."""
    return _Parser(prog=f"evomerge {verb}", description=VERBS[verb].capitalize() + ".", **arguments)
