"""Functions of installed packages: what a docstring says first, and the signature that it belongs to."""

from __future__ import annotations

import ast
import inspect
import re
import warnings
from collections.abc import Iterator

import numpy as np

from evomerge.demo.docstrings import sources

_SHORTEST, _LONGEST = 24, 160  # characters of a sentence
_MOST_ARGUMENTS = 6


def functions(library: str, most: int, rng: np.random.Generator) -> list[tuple[str, str]]:
    """First sentences and signatures of a library's public functions, each sentence and each signature once.

    Args:
        library: an installed package.
        most: how many at most.
        rng: draws files.

    Raises:
        EvomergeError: the library is not installed.
    """
    found, known = list[tuple[str, str]](), set[str]()
    for source in sources(library, rng):
        for sentence, signature in documented(source):
            if not {sentence.lower(), signature.lower()} & known:
                known |= {sentence.lower(), signature.lower()}
                found.append((sentence, signature))
                if len(found) == most:
                    return found
    return found


def documented(source: str) -> Iterator[tuple[str, str]]:
    """First sentence and signature of every public function that a source documents, in its order.

    >>> list(documented('def turn(x, to=1):\\n    \\"\\"\\"Turn something that is given around. Twice.\\"\\"\\"'))
    [('Turn something that is given around.', 'turn(x, to)')]
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of other people's escapes
            tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError):
        return
    for node in ast.walk(tree):
        if not isinstance(node, ast.FunctionDef) or node.name.startswith("_"):
            continue
        first = re.split(r"(?<=\.)\s|\n\s*\n", inspect.cleandoc(ast.get_docstring(node) or "").strip(), maxsplit=1)[0]
        sentence = " ".join(first.split())
        if _SHORTEST <= len(sentence) <= _LONGEST and re.search("[a-z]{3}", sentence) and sentence.count(" ") > 2:
            own = node.args
            names = [
                arg.arg for arg in (*own.posonlyargs, *own.args, *own.kwonlyargs) if arg.arg not in ("self", "cls")
            ]
            yield sentence, f"{node.name}({', '.join(names[:_MOST_ARGUMENTS])})"
