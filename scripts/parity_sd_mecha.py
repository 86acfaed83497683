"""Per-block weighted sums beside sd-mecha's, tensor by tensor; sd-mecha has an environment of its own.

    python scripts/parity_sd_mecha.py make WORK        # with evomerge: two tiny U-Nets as single files, and our merge
    python scripts/parity_sd_mecha.py theirs WORK      # with sd-mecha 1.1.8
    python scripts/parity_sd_mecha.py compare WORK     # with evomerge: the largest difference of any tensor

The networks are of SD 1.5's depth and names, with few channels. Each block has a weight of its own; both tools compute
``(1 - w) a + w b`` in float32.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

BLOCKS = 25
"""IN00 to IN11, M00, OUT00 to OUT11."""


def weight(block: int) -> float:
    """The weight of a block, in sd-mecha's order."""
    return round(0.02 + 0.038 * block, 4)


def block_of(name: str) -> int | None:
    """The block of a tensor by its name in a single file; ``None`` for the time's embedding and the end."""
    parts = name.removeprefix("model.diffusion_model.").split(".")
    if parts[0] == "input_blocks":
        return int(parts[1])
    if parts[0] == "middle_block":
        return 12
    return 13 + int(parts[1]) if parts[0] == "output_blocks" else None


def make(work: Path) -> None:
    """Two networks, their single files, and our merge of them block by block."""
    import torch
    from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from safetensors.torch import load_file, save_file

    sys.path[:0] = [str(Path(__file__).parent.parent / "tests")]
    from tiny_pipelines import autoencoder, text_encoder, tokenizer

    from evomerge.export.single_file_writer import write_single_file
    from evomerge.models.pipelines.opening import open_pipelines
    from evomerge.models.pipelines.original_names import original_names
    from evomerge.recipes.slices import Input, SliceRecipe

    torch.manual_seed(0)
    places = {}
    for name in ("a", "b"):
        network = UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(8, 16, 16, 16),
            norm_num_groups=4,
            cross_attention_dim=16,
            attention_head_dim=4,
        )
        parts: dict[str, Any] = {"vae": autoencoder(), "text_encoder": text_encoder(), "tokenizer": tokenizer()}
        parts |= {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
        StableDiffusionPipeline(**parts, unet=network, scheduler=DDIMScheduler()).save_pretrained(work / name)
        names = original_names(dict(network.config) | {"_class_name": "UNet2DConditionModel"}, network.state_dict())
        state = {names[key]: tensor.contiguous() for key, tensor in network.state_dict().items()}
        save_file(state, work / f"{name}.safetensors")
        places[name] = str(work / f"{name}.safetensors")
    pool = open_pipelines(places, dtype="float32", others=str(work / "a"))
    original = {name: runs[0][0] for name, runs in pool.checkpoints["a"].runs.items()}  # type: ignore[attr-defined]
    slices = []
    for slice_, tensors in pool.layout.tensors.items():
        blocks = {block_of(original[name]) for name in tensors}
        assert len(blocks) == 1 or slice_.layer is None, (slice_, blocks)
        own = {0.0 if block is None else weight(block) for block in blocks}
        if len(own) > 1:  # conv_in beside nothing else
            raise SystemExit(f"{slice_} holds tensors of several blocks: {sorted(own)}")
        value = own.pop()
        inputs = tuple(Input(model, None, (("weight", w),)) for model, w in (("a", 1 - value), ("b", value)))
        slices.append(SliceRecipe(slice_, "linear", inputs, (("normalize", False),)))
    out = work / "ours.safetensors"
    out.unlink(missing_ok=True)
    write_single_file(pool.info.recipe(slices), pool, out)
    print(f"wrote {out}: {len(load_file(out))} tensors")


def theirs(work: Path) -> None:
    """sd-mecha's merge of the same files, block by block."""
    import sd_mecha
    from safetensors.torch import load_file, save_file

    files = {name: load_file(work / f"{name}.safetensors") for name in ("a", "b")}
    merge: Any = sd_mecha.weighted_sum
    operation = getattr(merge, "__wrapped__", None)
    print(f"sd-mecha {getattr(sd_mecha, '__version__', '1.1.8')}, {merge!r}, {operation!r}")
    out = {}
    for name, a in files["a"].items():
        block = block_of(name)
        alpha = 0.0 if block is None else weight(block)
        recipe = sd_mecha.weighted_sum(
            sd_mecha.literal({name: a}), sd_mecha.literal({name: files["b"][name]}), alpha=sd_mecha.literal(alpha)
        )
        merged = sd_mecha.merge(recipe, merge_dtype=a.dtype, output_dtype=a.dtype, strict_weight_space=False)
        out[name] = merged[name].contiguous()
    save_file(out, work / "theirs.safetensors")


def compare(work: Path) -> None:
    """The largest difference, relative to each tensor's own size."""
    from safetensors.torch import load_file

    ours, other = load_file(work / "ours.safetensors"), load_file(work / "theirs.safetensors")
    assert ours.keys() == other.keys(), ours.keys() ^ other.keys()
    worst = max(
        (float((ours[name] - other[name]).abs().max() / other[name].abs().max().clamp(min=1e-12)), name)
        for name in ours
    )
    same = sum(bool((ours[name] == other[name]).all()) for name in ours)
    print(json.dumps({"tensors": len(ours), "equal": same, "largest relative difference": worst[0], "of": worst[1]}))


def main() -> None:
    """What the command line asks for."""
    verb, work = sys.argv[1], Path(sys.argv[2])
    work.mkdir(parents=True, exist_ok=True)
    {"make": make, "theirs": theirs, "compare": compare}[verb](work)


if __name__ == "__main__":
    main()
