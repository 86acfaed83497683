"""A run that begins: its folder is made, its ledger is empty, and nothing was evaluated before."""

from __future__ import annotations

from typing import Literal, cast

from omegaconf import DictConfig

from evomerge.config.schema import Config, to_yaml
from evomerge.protocols import Evaluator
from evomerge.run.folder import RunFolder
from evomerge.run.ledger import Ledger
from evomerge.run.observers import Observers
from evomerge.search.hooks import BestWriter
from evomerge.search.incumbent import Incumbent
from evomerge.search.loop import Search
from evomerge.session.parts import Parts
from evomerge.utils.files import write_text_atomic


class NewRun:
    """What `evomerge.session.run.run` asks of a run that begins; `evomerge.session.resume.Resumed` answers the same."""

    resumed = False

    def open_folder(self, config: Config, parts: Parts) -> RunFolder:
        """Make the run folder and write down what was asked for."""
        folder = RunFolder.create(config.run_dir)
        write_text_atomic(folder.config, to_yaml(cast(DictConfig, config)))
        if parts.pool is not None:
            folder.write_pool(parts.pool.info)
        return folder

    def open_ledger(self, folder: RunFolder, sync: Literal["every", "interval"], observe: Observers) -> Ledger:
        """An empty ledger."""
        return Ledger(folder, sync=sync, observe=observe)

    def check(self, fingerprint: str, cheap: str | None) -> None:
        """Nothing was scored before that the fitness would have to agree with."""

    def wrap(self, keep: BestWriter, evaluator: Evaluator, incumbent: Incumbent) -> tuple[BestWriter, Evaluator]:
        """Both as they are: everything is new."""
        return keep, evaluator

    def begin(self, search: Search) -> None:
        """A search begins at its beginning."""
