"""What the stock mergekit commands write from a file is what we write from it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from mergekit_plan import filled
from mergekit_run import assert_close, run_mergekit
from safetensors.torch import load_file
from transformers import AutoConfig, AutoTokenizer

from evomerge.export.writer import write_model
from evomerge.mergekit.reader import read_mergekit
from evomerge.mergekit.writer import to_mergekit
from evomerge.models.opening import open_pool

pytestmark = pytest.mark.slow

FILES = {
    "slices, gradients, filters": """
merge_method: ties
base_model: BASE
slices:
- sources:
  - {model: A, layer_range: [0, 2], parameters: {density: [0.9, 0.5], weight: {filter: q_proj, value: 0.3}}}
  - {model: B, layer_range: [1, 3], parameters: {weight: [{filter: k_proj, value: 0.9}, {filter: '*', value: 0.2}]}}
  - {model: BASE, layer_range: [0, 2]}
  parameters: {weight: 0.5, normalize: [true, false]}
- sources:
  - {model: BASE, layer_range: [2, 3]}
  - {model: B, layer_range: [2, 3], parameters: {weight: 0.25, density: 0.5}}
  - {model: C, layer_range: [2, 3], parameters: {weight: 0.25}}
parameters: {lambda: [{filter: norm, value: 0.5}]}
dtype: float32
""",
    "the slerp that everybody uses": """
slices:
- sources:
  - {model: A, layer_range: [0, 3]}
  - {model: B, layer_range: [0, 3]}
merge_method: slerp
base_model: A
parameters:
  t:
  - {filter: self_attn, value: [0, 0.5, 0.3, 0.7, 1]}
  - {filter: mlp, value: [1, 0.5, 0.7, 0.3, 0]}
  - {value: 0.5}
dtype: float32
out_dtype: bfloat16
tokenizer_source: B
""",
    "a taller model": """
merge_method: passthrough
slices:
- sources: [{model: A, layer_range: [0, 2], parameters: {scale: [{filter: down_proj, value: 0.5}, {value: 1.0}]}}]
- sources: [{model: B, layer_range: [1, 3]}]
- sources: [{model: A, layer_range: [2, 3]}]
dtype: float16
base_model: A
""",
    "a module": """
merge_method: nuslerp
modules:
  default:
    models:
    - {model: A, parameters: {weight: [0.1, 0.9]}}
    - {model: B, parameters: {weight: 0.5}}
    parameters: {nuslerp_flatten: false}
dtype: float32
base_model: BASE
""",
    "stages": """
name: taller
merge_method: passthrough
slices:
- sources: [{model: A, layer_range: [0, 2]}]
- sources: [{model: B, layer_range: [0, 3]}]
dtype: float32
---
name: both
merge_method: task_arithmetic
base_model: BASE
slices:
- sources:
  - {model: taller, layer_range: [1, 4], parameters: {weight: [0.2, 0.8]}}
  - {model: BASE, layer_range: [0, 3]}
dtype: float32
out_dtype: bfloat16
---
merge_method: karcher
models: [{model: both}, {model: C}, {model: A}]
base_model: C
dtype: float32
""",
}


@pytest.fixture(scope="module")
def merged(llamas: Callable[..., dict[str, Path]], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """By name of the file, a folder with the models that each program made of it, and mergekit of what we wrote."""
    folders, runs = {}, {}
    for name, content in FILES.items():
        text = filled(content, llamas())
        folders[name] = folder = tmp_path_factory.mktemp("files")
        (folder / "file.yaml").write_text(text)
        file = read_mergekit(text)
        pool = open_pool(file.models, file.base, dtype=file.dtype)
        recipe = file.recipe(pool)
        write_model(recipe, pool, folder / "ours")
        (folder / "again.yaml").write_text(to_mergekit(recipe, pool.layout))
        runs[folder / "file.yaml"] = folder / "theirs"
        runs[folder / "again.yaml"] = folder / "round"
    run_mergekit(runs)
    return folders


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("other", ["theirs", "round"])
def test_both_programs_write_the_same_tensors(merged: dict[str, Path], name: str, other: str) -> None:
    ours, others = (load_file(merged[name] / which / "model.safetensors") for which in ("ours", other))
    assert ours.keys() == others.keys()
    for tensor, mine in ours.items():
        assert mine.dtype == others[tensor].dtype
        if mine.dtype == torch.float32:
            assert_close(mine, others[tensor], tensor)
        else:  # one rounding: the last bit may differ where float32 sums did
            torch.testing.assert_close(mine, others[tensor], msg=lambda text, tensor=tensor: f"{tensor}: {text}")


@pytest.mark.parametrize("name", FILES)
def test_both_programs_write_the_same_configuration_and_tokenizer(merged: dict[str, Path], name: str) -> None:
    configs, vocabularies = [], []
    for which in ("ours", "theirs"):
        config = AutoConfig.from_pretrained(merged[name] / which).to_dict()
        del config["_name_or_path"]
        configs.append(config)
        vocabularies.append(AutoTokenizer.from_pretrained(merged[name] / which).get_vocab())
    assert configs[0] == configs[1]
    assert vocabularies[0] == vocabularies[1]
