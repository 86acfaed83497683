"""Peak memory of ``evomerge merge``: it does not grow with the model."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tiny_models import write_tokenizer

from evomerge.export.shards import INDEX
from evomerge.merge.execution.streaming import PIECE, WINDOW

SHARDS = 8
MEGABYTE = 10**6
_MEASURED = """
import sys
from pathlib import Path
from evomerge.cli.main import main
from evomerge.cli.sources import open_recipe
import evomerge.cli.console, evomerge.export.writer

def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))

open_recipe(sys.argv[1])  # what is imported to read headers stays
before = peak()
assert main(["merge", sys.argv[1], sys.argv[2], "--max-shard-size", "60MB"]) == 0
print("grown", peak() - before)
"""


def write_llama(folder: Path, seed: int, hidden: int, vocabulary: int, layers: int) -> int:
    """Random float32 weights written shard by shard, so that making them takes no memory; returns their size."""
    inner = 3 * hidden
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "float32",
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_attention_heads": 8,
        "num_hidden_layers": layers,
        "num_key_value_heads": 8,
        "tie_word_embeddings": False,
        "vocab_size": vocabulary,
    }
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocabulary, hidden)}
    for layer in range(layers):
        name = f"model.layers.{layer}"
        shapes |= {f"{name}.self_attn.{part}_proj.weight": (hidden, hidden) for part in "qkvo"}
        shapes |= {f"{name}.mlp.{part}_proj.weight": (inner, hidden) for part in ("gate", "up")}
        shapes[f"{name}.mlp.down_proj.weight"] = (hidden, inner)
        shapes |= {f"{name}.{part}_layernorm.weight": (hidden,) for part in ("input", "post_attention")}
    shapes |= {"model.norm.weight": (hidden,), "lm_head.weight": (vocabulary, hidden)}
    sizes = {name: 4 * math.prod(shape) for name, shape in shapes.items()}
    total, weight_map = sum(sizes.values()), {}
    before = 0
    for name, size in sizes.items():  # a shard for each eighth of the bytes
        weight_map[name] = f"model-{1 + before * SHARDS // total:05d}.safetensors"
        before += size
    noise = np.random.default_rng(seed).standard_normal(1 << 20, dtype=np.float32) * np.float32(0.02)
    folder.mkdir()
    for shard in sorted(set(weight_map.values())):
        header, end = {}, 0
        names = [name for name, own in weight_map.items() if own == shard]
        for name in names:
            header[name] = {"dtype": "F32", "shape": shapes[name], "data_offsets": [end, end := end + sizes[name]]}
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)  # tensors that are not aligned would be copied
        with (folder / shard).open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for name in names:
                for start in range(0, sizes[name], noise.nbytes):
                    file.write(noise[: min(noise.nbytes, sizes[name] - start) // 4].tobytes())
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (folder / "config.json").write_text(json.dumps(config))
    write_tokenizer(folder)
    return total


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_peak_memory_of_a_merge(tmp_path: Path) -> None:
    # The embeddings are larger than a shard, and all sources together larger than what may be in memory.
    sizes = [write_llama(tmp_path / name, i, 512, 32_000, 24) for i, name in enumerate(("base", "a", "b"))]
    assert min(sizes) > 400 * MEGABYTE
    settings = "parameters: {weight: 0.5, density: 0.4}"
    models = "".join(f"  - model: {tmp_path / name}\n    {settings}\n" for name in ("a", "b"))
    recipe = tmp_path / "ties.yaml"
    recipe.write_text(f"merge_method: ties\nbase_model: {tmp_path / 'base'}\ndtype: float32\nmodels:\n{models}")
    command = [sys.executable, "-c", _MEASURED, str(recipe), str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    assert sum(file.stat().st_size for file in (tmp_path / "out").glob("*.safetensors")) > sizes[0]
    grown = int(done.stdout.split()[-1])
    assert grown < WINDOW + 4 * PIECE + 60 * MEGABYTE < sizes[0]  # the rest: compiled kernels and counts
