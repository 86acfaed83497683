"""How much a candidate asks of a model, counted from tasks and their documents before any prompt is built."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lm_eval.evaluator_utils import get_sample_size

from fitness._lm_eval.generation_names import LENGTHS
from fitness._lm_eval.isolation import quietly
from fitness._lm_eval.task_errors import said
from fitness._lm_eval.time_limit import limited

if TYPE_CHECKING:
    from fitness._lm_eval.loading import TaskSet
    from fitness._lm_eval.terms import TaskTerm

_GENERATED = 256  # what lm-eval's models write at most where nobody says


def count_work(tasks: TaskSet, limit: int | float | None, gen_kwargs: Mapping[str, Any]) -> dict[str, int]:
    """Documents, texts that are read, and tokens that are written at most, for one candidate.

    A document of a multiple choice is read once with each of its answers; the first document's number counts for all.

    Args:
        tasks: loaded, as a fitness has them.
        limit: documents of each task, where its term has none of its own.
        gen_kwargs: arguments of generation, which those of a term go before.
    """
    terms = {name: loaded.term for loaded in tasks.terms for name in loaded.tasks}
    work = {"documents": 0, "texts": 0, "written": 0}
    for name, task in tasks.tasks.items():
        given = f"what task {name!r} asks of a model cannot be told"
        with quietly(), said(given), limited(name, tasks.timeout, "reading it"):
            documents = _documents(task, terms[name], limit)
            choices = 1
            kind = task.get_config("output_type")
            if kind == "multiple_choice" and documents:
                choices = max(1, len(task.doc_to_choice(task.eval_docs[0])))
            if kind == "generate_until":
                work["written"] += documents * written(task, terms[name], gen_kwargs)
            work["documents"] += documents
            work["texts"] += documents * choices
    return work


def count_documents(tasks: TaskSet, limit: int | float | None) -> dict[str, int]:
    """How many documents each task has, by name. Arguments as for `count_work`."""
    terms = {name: loaded.term for loaded in tasks.terms for name in loaded.tasks}
    found = {}
    for name, task in tasks.tasks.items():
        given = f"the documents of task {name!r} cannot be counted"
        with quietly(), said(given), limited(name, tasks.timeout, "reading it"):
            found[name] = _documents(task, terms[name], limit)
    return found


def _documents(task: Any, term: TaskTerm, limit: int | float | None) -> int:
    documents = len(task.eval_docs)
    asked = get_sample_size(task, limit if term.limit is None else term.limit)
    return documents if asked is None else min(documents, int(asked))


def written(task: Any, term: TaskTerm, gen_kwargs: Mapping[str, Any]) -> int:
    """Tokens that are written at most for a document of a generative task."""
    arguments = {**(task.get_config("generation_kwargs") or {}), **gen_kwargs, **term.gen_kwargs}
    return int(next((arguments[key] for key in LENGTHS if arguments.get(key) is not None), _GENERATED))
