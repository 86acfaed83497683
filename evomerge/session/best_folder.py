"""The run's ``best`` folder: the winner, and with several objectives every recipe of the Pareto front."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import yaml
from safetensors import numpy as safetensors

from evomerge.candidate import Candidate
from evomerge.errors import EvomergeError
from evomerge.genomes.arrays import ArrayGenome, numbers
from evomerge.recipes.yaml_reader import dump_recipe
from evomerge.run.folder import ANOTHER_BY_MERGEKIT, NOT_MERGEKITS, RunFolder
from evomerge.search.incumbent import Incumbent
from evomerge.utils.files import write_bytes_atomic, write_text_atomic

if TYPE_CHECKING:
    from evomerge.models.pool import Pool


class BestFolder:
    """Writes what is best so far, file by file atomically; implements `search.BestWriter`.

    ``recipe.yaml`` and ``mergekit.yaml`` are the winner. With several objectives ``pareto.yaml`` lists the front, and
    ``pareto/ID.yaml`` are its recipes: a recipe is there before the list names it, and goes after it is off the list.
    Where genomes are the models, ``weights.safetensors`` holds the winner's; where they are scored as they are, of
    named genes and without a recipe, ``genome.json`` holds its values in the order of the genes.

    Args:
        folder: the run folder.
        pool: whose layout mergekit's configuration is written for; ``None`` where genomes are the models.
    """

    def __init__(self, folder: RunFolder, pool: Pool | None) -> None:
        self._folder = folder
        self._pool = pool
        self._written: set[int] = set()
        self._best: int | None = None

    def __call__(self, incumbent: Incumbent) -> None:
        """Write the winner and the front, where they have changed."""
        best = incumbent.best
        self._folder.best_recipe.parent.mkdir(exist_ok=True)  # somebody may have removed it meanwhile
        if best is not None and best.id != self._best:
            self._best = best.id
            self._write_winner(best)
        if len(incumbent.objectives) > 1:
            self._write_front(incumbent)

    def _write_winner(self, best: Candidate) -> None:
        if best.recipe is None:
            assert best.genome is not None
            if not isinstance(best.genome, ArrayGenome):
                text = json.dumps({"evomerge_genome": 1, "values": best.genome.values}) + "\n"
                write_text_atomic(self._folder.best_recipe.with_name("genome.json"), text)
                return
            weights = np.ascontiguousarray(numbers(best.genome))
            write_bytes_atomic(
                self._folder.best_recipe.with_name("weights.safetensors"), safetensors.save({"weights": weights})
            )
            return
        write_text_atomic(self._folder.best_recipe, dump_recipe(best.recipe))
        assert self._pool is not None
        from evomerge.mergekit.writer import to_mergekit
        from evomerge.session.batch_norms import NOTE, mixes_batch_norms

        try:
            text = to_mergekit(best.recipe, self._pool.layout)
            if mixes_batch_norms(best.recipe, self._pool):
                text = f"{ANOTHER_BY_MERGEKIT}: {NOTE}\n{text}"
        except EvomergeError as error:  # mergekit cannot express it: the recipe is the result, say why beside it
            text = f"{NOT_MERGEKITS}: {error}\n"
        write_text_atomic(self._folder.best_mergekit, text)

    def _write_front(self, incumbent: Incumbent) -> None:
        folder = self._folder.pareto_recipes
        folder.mkdir(exist_ok=True)
        for number, candidate in incumbent.front.items():
            if number not in self._written and candidate.recipe is not None:
                write_text_atomic(folder / f"{number}.yaml", dump_recipe(candidate.recipe))
                self._written.add(number)
        content = {
            "evomerge_pareto": 1,
            "objectives": {o.name: o.direction for o in incumbent.objectives},
            "winner": incumbent.best.id if incumbent.best is not None else None,
            "front": [
                {
                    "candidate": number,
                    "objectives": {name: float(value) for name, value in values.items()},
                    "recipe": f"{folder.name}/{number}.yaml" if number in self._written else None,
                }
                for number, values in incumbent.values.items()
            ],
        }
        write_text_atomic(self._folder.pareto, yaml.safe_dump(content, sort_keys=False))
        for number in self._written - set(incumbent.front):
            (folder / f"{number}.yaml").unlink(missing_ok=True)
            self._written.discard(number)
