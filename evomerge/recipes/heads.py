"""Heads of their own: tensors that belong to a source's task, which are carried from there and never merged.

    heads:
      tensors: [classifier.weight, classifier.bias]
      tasks: [topic, kind]

Such a recipe is one encoder and a model for each task: `switches.task_recipe` gives one. As it is, it has the head of
its `config_from`.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from evomerge.errors import RecipeError, nearest
from evomerge.utils import safe_yaml

MOST_TENSORS = 10_000


@dataclass(frozen=True)
class Heads:
    """Which tensors are whose.

    Attributes:
        tensors: names of the heads' tensors in the transformers module, in its order; no slice holds them.
        tasks: the models whose heads are carried. A task has the name of its model.

    >>> Heads(("classifier.weight", "classifier.bias"), ("topic", "kind")).tasks
    ('topic', 'kind')
    """

    tensors: tuple[str, ...]
    tasks: tuple[str, ...]

    def check(self, names: Collection[str], config_from: str) -> None:
        """Check them against a recipe.

        Args:
            names: of the recipe's models.
            config_from: of the recipe.

        Raises:
            RecipeError: no tensors or tasks, one given twice, or a task that is no model; `config_from` has no head.
        """
        for key, own in (("tensors", self.tensors), ("tasks", self.tasks)):
            if not own or len(set(own)) < len(own) or len(own) > MOST_TENSORS:
                raise RecipeError(f"heads.{key} is {', '.join(own[:20]) or 'empty'}", "one or more, each once")
        for task in self.tasks:
            if task not in names:
                raise RecipeError(f"heads.tasks has {task!r}", nearest(task, names), "name one of the models")
        if config_from not in self.tasks:
            raise RecipeError(
                f"config_from is {config_from!r}, whose head is not carried",
                f"one of heads.tasks: {', '.join(self.tasks)}",
                "configuration and head are of one model",
            )


def read_heads(content: Any, where: str) -> Heads | None:
    """The heads that a recipe file says; ``None`` for none.

    Raises:
        RecipeError: it says something else; names the place.
    """
    if content is None:
        return None
    fields = safe_yaml.mapping(content, where, ("tensors", "tasks"), ())
    lists = {key: safe_yaml.items(fields[key], f"{where}.{key}") for key in ("tensors", "tasks")}
    return Heads(**{key: tuple(safe_yaml.text(own, f"{where}.{key}") for own in each) for key, each in lists.items()})
