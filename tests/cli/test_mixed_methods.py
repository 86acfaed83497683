"""A search in which the method of every layer group is a gene, over methods that need no weights or make tensors."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from evomerge.api.recipe import load_recipe
from evomerge.cli.main import main
from evomerge.report.history import read_history
from evomerge.run.folder import RunFolder
from evomerge.run.ledger import read_ledger

NEW = ("magmax", "emr", "widen", "consensus", "iso_c", "tsv_m")


@pytest.mark.filterwarnings("ignore")
def test_six_methods_in_one_search(quick_pool: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = [
        "search_space=parameter",
        f"search_space.method=[{','.join(NEW)}]",
        "search_space.layer_group=all",
        "strategy=catcma",
        "strategy.popsize=6",
        "search.evaluations=18",
        "search.baselines=false",
        "fitness.limit=2",
        "fitness@held_out=null",
    ]
    assert main(["search", "experiment=demo", f"pool.root='{quick_pool}'", f"run_dir='{run}'", *words]) == 0
    trials = [trial for trial in read_history(run).trials if trial.objectives]
    assert len(trials) == 18
    methods = {
        value
        for event in read_ledger(RunFolder.open(run))
        if event["event"] == "asked"
        for value in event["genome"]
        if isinstance(value, str)
    }
    assert methods == set(NEW)
    # The winner, merged again, is one of these methods on every slice.
    best = load_recipe(run)
    assert {entry.method for entry in best.slices} <= set(NEW)
    written = load_file(best.save(tmp_path / "model") / "model.safetensors")
    assert all(torch.isfinite(tensor).all() for tensor in written.values())
