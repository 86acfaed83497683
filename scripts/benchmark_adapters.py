"""What memory candidates of many adapters take: `python scripts/benchmark_adapters.py [--adapters 4,16,64]`.

A random Llama of about 100 million parameters in bfloat16, and LoRA adapters of all of its linear layers. For every
number of adapters a process of its own opens the pool, merges a few candidates of `task_arithmetic` with a weight for
every adapter into the resident model, and runs it on a batch of tokens each time. Nothing is kept to save time: no
cache of merged slices, no folded tensors. The table has the process's peak, with the base's and the adapters' files
that are mapped, and what it is beyond that of merging the base with itself.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from safetensors.torch import save_file

MB = 1 << 20
SIZES = {"hidden_size": 640, "intermediate_size": 1728, "num_hidden_layers": 16, "num_attention_heads": 10}
LINEAR = [f"self_attn.{name}_proj" for name in "qkvo"] + [f"mlp.{name}_proj" for name in ("gate", "up", "down")]


def make_base(folder: Path) -> None:
    """Write the base."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(**SIZES, vocab_size=32000, tie_word_embeddings=True, dtype="bfloat16")
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)


def make_adapter(folder: Path, base: Path, seed: int, rank: int) -> None:
    """Write an adapter of random factors, as PEFT would."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    shapes = {"q_proj": (640, 640), "k_proj": (640, 640), "v_proj": (640, 640), "o_proj": (640, 640)}
    shapes |= {"gate_proj": (1728, 640), "up_proj": (1728, 640), "down_proj": (640, 1728)}
    for layer in range(SIZES["num_hidden_layers"]):
        for path in LINEAR:
            rows, columns = shapes[path.split(".")[1]]
            name = f"base_model.model.model.layers.{layer}.{path}"
            tensors[f"{name}.lora_A.weight"] = 0.02 * torch.randn(rank, columns, generator=generator)
            tensors[f"{name}.lora_B.weight"] = 0.02 * torch.randn(rows, rank, generator=generator)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    targets = sorted(path.split(".")[1] for path in LINEAR)
    settings = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "target_modules": targets}
    (folder / "adapter_config.json").write_text(json.dumps({**settings, "base_model_name_or_path": str(base)}))


def peak() -> int:
    """Bytes of the process's largest resident set so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure(folder: Path, count: int, candidates: int) -> int:
    """The process's peak after candidates of so many adapters, of the base with itself for none."""
    from evomerge.merge.execution.sources import Placement
    from evomerge.merge.planning.plan import make_plan
    from evomerge.merge.resident.model import Resident
    from evomerge.models.checkpoints.folding import FoldedCheckpoint
    from evomerge.models.opening import open_pool
    from evomerge.recipes.slices import Input, SliceRecipe, parameters

    names = [f"adapter{number}" for number in range(count)]
    places = {"base": str(folder / "base")} | {name: f"{folder / 'base'}+{folder / name}" for name in names}
    pool = open_pool(places if count else places | {"alone": str(folder / "base")}, "base")
    for checkpoint in pool.checkpoints.values():
        if isinstance(checkpoint, FoldedCheckpoint):
            checkpoint.room.limit = 0
    resident = Resident(pool, "cpu", placement=Placement(0, 0, 0), cache=0)
    rng = torch.Generator().manual_seed(1)
    for _ in range(candidates):
        each = (torch.rand(count, generator=rng) / count).tolist()
        weighted = [parameters({"weight": weight}) for weight in each]
        inputs = tuple(Input(name, None, own) for name, own in zip(names, weighted, strict=True))
        slices = (SliceRecipe(own, "task_arithmetic", inputs, (), Input("base")) for own in pool.info.slices)
        recipe = pool.info.recipe(slices) if count else pool.info.linear({"base": 0.5, "alone": 0.5})
        resident.apply(make_plan(recipe, pool))
        with torch.no_grad():
            resident.model.module(torch.arange(64).view(2, 32))
    return peak()


def main(arguments: list[str] | None = None) -> int:
    """Make the models, measure each number of adapters and print the table; returns the exit status."""
    parser = argparse.ArgumentParser(description="Peak memory of candidates of many adapters.")
    parser.add_argument("--adapters", default="4,16,64", help="numbers of adapters (default: 4,16,64)")
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--candidates", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="keep the models there")
    parser.add_argument("--measure", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    if options.measure is not None:
        print(measure(options.folder, options.measure, options.candidates))
        return 0
    counts = [int(word) for word in options.adapters.split(",")]
    with TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        if not (folder / "base").is_dir():
            make_base(folder / "base")
        for number in range(max(counts)):
            if not (folder / f"adapter{number}").is_dir():
                make_adapter(folder / f"adapter{number}", folder / "base", number, options.rank)
        model = (folder / "base" / "model.safetensors").stat().st_size
        own = (folder / "adapter0" / "adapter_model.safetensors").stat().st_size
        print(f"base {model / MB:.0f} MB, an adapter {own / MB:.1f} MB\n")
        print("| adapters | their files, MB | peak, MB | beyond no adapter, MB |")
        print("| ---: | ---: | ---: | ---: |")
        alone = 0
        for count in (0, *counts):
            command = [sys.executable, __file__, "--measure", str(count), "--folder", str(folder)]
            command += ["--candidates", str(options.candidates)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            found = int(done.stdout.splitlines()[-1])
            alone = alone or found
            more = f"{count * own / MB:.0f} | {found / MB:.0f} | {(found - alone) / MB:.0f}"
            print(f"| {count} | {more} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
