"""Documents of lm-eval tasks, which statistics of data are made on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from evomerge.errors import ConfigError
from evomerge.protocols import CalibrationItem
from fitness._documents import Document, by_model, check_draw, drawn, of_all
from fitness._lm_eval.terms import check_timeout, parse_terms, plain

if TYPE_CHECKING:
    from fitness._lm_eval.loading import TaskSet

Split = Literal["train", "validation", "scored"]


class TaskItems:
    """Items of tasks: the question as the task writes it, and the right answer, whose likelihood counts.

    Without few-shot examples and chat templates.

    Args:
        tasks: names, groups or paths to task YAMLs, for all models; or a mapping of models to theirs.
        include_path: folder or folders with task YAMLs.
        split: ``train`` or ``validation`` documents, or those that the task itself has ``scored``; held-out items are
            refused wherever they come from.
        items: of each model; drawn from all of its tasks where these have more.
        seed: of the draw.
        task_timeout: seconds that templates of a task may take, as of `LmEvalFitness`.

    Raises:
        ConfigError: an argument out of its range.
    """

    def __init__(
        self,
        tasks: list[str] | dict[str, Any],
        *,
        include_path: str | list[str] | None = None,
        split: Split = "train",
        items: int = 256,
        seed: int = 0,
        task_timeout: float | None = 30.0,
    ) -> None:
        check_draw(items, seed)
        check_timeout(task_timeout, "task_timeout")
        self._tasks = plain(tasks)
        every = of_all(self._tasks) if isinstance(self._tasks, dict) else [str(task) for task in self._tasks]
        if not every:
            raise ConfigError("tasks is empty", "at least one lm-eval task", "for example tasks=[gsm8k]")
        self._terms = parse_terms(every)
        folders = plain(include_path) or []
        self._folders: list[str] = [folders] if isinstance(folders, str) else folders
        self._split, self._items, self._seed, self._timeout = split, items, seed, task_timeout
        self._loaded: TaskSet | None = None
        self._generators: Any = None
        self._read: dict[str, list[tuple[CalibrationItem, Document]]] = {}
        self._given: dict[str, list[Document]] = {}

    def check(self) -> None:
        """Load the tasks; `FitnessError` for one that is unknown, or has no documents of the split."""
        from fitness._lm_eval.isolation import StockGenerators
        from fitness._lm_eval.loading import load_tasks
        from fitness._lm_eval.training_items import require_split

        if self._loaded is None:
            self._generators = StockGenerators()
            with self._generators:
                self._loaded = load_tasks(self._terms, self._folders, self._timeout)
            require_split(self._loaded, self._split)

    def items(self, model: str) -> Sequence[CalibrationItem]:
        """The items of a model; `check` comes before."""
        from fitness._lm_eval.training_items import task_items

        assert self._loaded is not None, "check comes before"
        wanted = by_model(self._tasks, model, "tasks")
        named = [name for term in self._loaded.terms if str(term.term.source) in wanted for name in term.tasks]
        for name in named:
            if name not in self._read:
                self._read[name] = task_items(self._loaded, name, self._split, self._generators)
        chosen = drawn([pair for name in named for pair in self._read[name]], self._items, self._seed)
        self._given[model] = [document for _, document in chosen]
        return [item for item, _ in chosen]

    def documents(self) -> Sequence[tuple[str, str]]:
        """Hashes of the items of all models so far, as of `LmEvalFitness.documents`."""
        return [document for own in self._given.values() for document in own]
