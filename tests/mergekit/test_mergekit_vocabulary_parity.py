"""Models of other vocabularies: what `mergekit-yaml` writes is what we write, token by token."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from mergekit_plan import filled
from mergekit_run import assert_close, run_mergekit
from safetensors.torch import load_file
from transformers import AutoConfig, AutoTokenizer
from vocabulary_files import FILES, models

from evomerge.errors import EvomergeWarning
from evomerge.export.writer import write_model
from evomerge.mergekit.reader import read_mergekit
from evomerge.mergekit.writer import to_mergekit
from evomerge.models.opening import open_pool

pytestmark = pytest.mark.slow

ROWS = ("model.embed_tokens.weight", "lm_head.weight")


@pytest.fixture(scope="module")
def merged(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """By case: `ours`, `theirs` from the same file, and `again`, theirs from the file that we write of our recipe."""
    root = tmp_path_factory.mktemp("vocabularies")
    folders, runs, done = models(root), {}, {}
    for number, (name, text) in enumerate(FILES.items()):
        done[name] = folder = root / f"case{number}"
        folder.mkdir()
        given = folder / "merge.yaml"
        given.write_text(filled(text, folders))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", EvomergeWarning)
            read = read_mergekit(given.read_text())
            pool = open_pool(read.models, read.base, dtype=read.dtype, tokenizer=read.tokenizer)
            recipe = read.recipe(pool)
            write_model(recipe, pool, folder / "ours")
        (folder / "again.yaml").write_text(to_mergekit(recipe, pool.layout))
        runs[given], runs[folder / "again.yaml"] = folder / "theirs", folder / "again"
    run_mergekit(runs)
    return done


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("which", ["theirs", "again"])
def test_every_token_has_the_same_row(merged: dict[str, Path], name: str, which: str) -> None:
    """Tokens that several models add have no certain order there: it is that of a set."""
    folder = merged[name]
    ours, theirs = (load_file(folder / own / "model.safetensors") for own in ("ours", which))
    vocabularies = [AutoTokenizer.from_pretrained(folder / own).get_vocab() for own in ("ours", which)]
    assert set(vocabularies[0]) == set(vocabularies[1])
    order = [[own[token] for token in sorted(own)] for own in vocabularies]
    assert set(ours) == set(theirs)
    for tensor, mine in ours.items():
        assert mine.dtype == theirs[tensor].dtype == (torch.bfloat16 if name == "bfloat16" else torch.float32)
        assert mine.shape == theirs[tensor].shape
        parts = [(mine, theirs[tensor])]
        if tensor in ROWS:
            size = len(order[0])
            assert sorted(order[0]) == sorted(order[1]) == list(range(size))
            parts = [(mine[order[0]], theirs[tensor][order[1]]), (mine[size:], theirs[tensor][size:])]
        for one, other in parts:
            if name == "bfloat16":
                torch.testing.assert_close(one, other, rtol=2**-7, atol=1e-6)
            elif one.numel():
                assert_close(one, other, f"{tensor} of {name}")
    sizes = [AutoConfig.from_pretrained(folder / own).vocab_size for own in ("ours", which)]
    assert sizes[0] == sizes[1] == ours[ROWS[0]].shape[0]
