"""The ``evomerge`` command. Imports nothing heavy: each verb is imported when it is run."""

from __future__ import annotations

import errno
import importlib
import io
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from types import FrameType
from typing import Any

from evomerge.cli.misplaced import misplaced
from evomerge.cli.scarce_memory import lack_of_memory, require_addresses
from evomerge.cli.verbs import VERBS
from evomerge.errors import ConfigError, EvomergeError, EvomergeWarning, nearest
from evomerge.utils.installation import VERSION
from evomerge.utils.plain_text import one_printable_line, printable

_HELP = """evomerge finds model-merging recipes by evolution.

  evomerge demo                        makes small models and tasks, searches, prints the result
  evomerge search experiment=demo      a search from a configuration; any key can be overridden
  evomerge export runs/NAME            the best recipe (--format mergekit for mergekit's YAML)
  evomerge merge runs/NAME my-model    the best recipe's model, ready for transformers

`evomerge VERB --help` tells more. Completion: eval "$(evomerge -sc install=bash)"
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb. Exit status: 0 done, 1 an unexpected failure, 2 something the user can mend, 130 interrupted."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments or bool(os.environ.get("EVOMERGE_DEBUG"))
    arguments = [argument for argument in arguments if argument != "--debug"]
    _complete_streams()
    shown = warnings.showwarning
    warnings.showwarning = partial(_show_warning, shown)
    asked_to_end = _heed_sigterm()
    try:
        _require_folder()
        status = _run(arguments)
        sys.stdout.flush()  # what finds no room is said here, not after all is over
        return status
    except EvomergeError as error:
        if debug:
            raise
        shown_error = lack_of_memory(error) or misplaced(error) or error
        print(one_printable_line(f"evomerge: error: {shown_error}"), file=sys.stderr)
        return shown_error.exit_status
    except KeyboardInterrupt as error:
        again = getattr(error, "resume", "")
        print(
            one_printable_line(f"evomerge: interrupted{f'; `{again}` goes on' if again else ''}"),
            file=sys.stderr,
        )
        return 143 if type(error).__name__ == "Terminated" else 130
    except BrokenPipeError:  # the reader of our output went away, as in `evomerge export ... | head`
        _drop_output()
        return 1
    except Exception as error:
        if debug:
            raise
        if known := lack_of_memory(error) or misplaced(error):
            print(one_printable_line(f"evomerge: error: {known}"), file=sys.stderr)
            return known.exit_status
        if isinstance(error, OSError) and error.errno and (error.filename or error.errno == errno.ENOSPC):
            if not error.filename:
                _drop_output()
            place = error.filename or "the output"
            reason = f"{place} cannot be read or written: {error.strerror}; a place that is there, and room in it"
            print(one_printable_line(f"evomerge: error: {reason}"), file=sys.stderr)
            return 2
        text = " ".join(str(error).split())[:500]
        print(
            one_printable_line(f"evomerge: {type(error).__name__}: {text} (--debug shows the traceback)"),
            file=sys.stderr,
        )
        return 1
    finally:
        warnings.showwarning = shown
        if asked_to_end:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _heed_sigterm() -> bool:
    """Let SIGTERM end the program as SIGINT does: folders that are half written go. Whether it is done here."""
    own = threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL

    def end(number: int, frame: FrameType | None) -> None:
        from evomerge.session.signals import Terminated

        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # asked again, it does not wait
        raise Terminated("SIGTERM")

    if own:
        signal.signal(signal.SIGTERM, end)
    return own


def _drop_output() -> None:
    """Let what is still to be printed go nowhere: Python tries again at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _show_warning(
    otherwise: Callable[..., None], message: Warning | str, category: type[Warning], *where: Any, **options: Any
) -> None:
    """Show a warning of evomerge's own in one line, without the place in the code."""
    if issubclass(category, EvomergeWarning):
        print(printable(f"warning: {message}"), file=sys.stderr)
    else:
        otherwise(message, category, *where, **options)


def _complete_streams() -> None:
    """Streams that were closed go nowhere, as some daemons start programs; characters that one lacks are replaced."""
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "r" if name == "stdin" else "w"))  # noqa: SIM115  # it stays open
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def _require_folder() -> None:
    """`ConfigError` where the current folder was deleted: libraries say odd things there, or end the process."""
    try:
        os.getcwd()
    except OSError as error:
        raise ConfigError(
            "the current folder is gone", "a folder that is there", "change to one and try again"
        ) from error


def _run(arguments: list[str]) -> int:
    if arguments[:1] in (["-sc"], ["--shell-completion"], ["--shell_completion"]):
        completion = importlib.import_module("evomerge.cli.completion")
        return int(completion.run(arguments))
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_help())
        return 0
    if arguments[0] == "--version":
        print(f"evomerge {VERSION}")
        return 0
    verb, rest = arguments[0], arguments[1:]
    if verb not in VERBS:
        raise ConfigError(f"{verb!r} is not a verb of evomerge", nearest(verb, VERBS), "see `evomerge --help`")
    require_addresses(verb)
    module = "import_evolve" if verb == "import" else verb.replace("-", "_")
    return int(importlib.import_module(f"evomerge.cli.{module}").run(rest))


def _help() -> str:
    verbs = "\n".join(f"  {name:10} {text}" for name, text in VERBS.items())
    options = "  --version  print the version\n  --debug    show tracebacks instead of one-line errors"
    return f"usage: evomerge VERB ...\n\n{_HELP}\nverbs:\n{verbs}\n\noptions:\n{options}"


if __name__ == "__main__":
    sys.exit(main())
