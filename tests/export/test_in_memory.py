"""A recipe merged in memory is what transformers loads from the folder that the writer writes, bit for bit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from models.architectures import ARCHITECTURES, inputs, load, save_pool
from models.merges import opened, task_arithmetic

from evomerge.export.in_memory import merged_model
from evomerge.export.writer import write_model


@pytest.mark.parametrize("kind", ARCHITECTURES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_model_of_the_written_folder(kind: str, dtype: str, tmp_path: Path) -> None:
    pool = opened(save_pool(kind, tmp_path, dtype=dtype))
    recipe = task_arithmetic(pool)
    written = load(write_model(recipe, pool, tmp_path / "merged")).eval()
    model = merged_model(recipe, pool)
    assert type(model) is type(written)
    assert model.tokenizer is None
    mine, theirs = model.state_dict(), written.state_dict()
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) and mine[name].dtype == theirs[name].dtype for name in mine)
    given = inputs(kind)
    if ARCHITECTURES[kind].images:
        given = {"pixel_values": given["pixel_values"].to(model.dtype)}
    with torch.no_grad():
        torch.testing.assert_close(model(**given).logits, written(**given).logits)
