"""Per-block weighted sums beside sd-mecha's, tensor by tensor; sd-mecha has an environment of its own.

    python scripts/parity_sd_mecha.py make WORK        # with evomerge: two tiny U-Nets as single files, and our merge
    python scripts/sd_mecha_side.py WORK               # with sd-mecha 1.1.8
    python scripts/parity_sd_mecha.py compare WORK     # with evomerge: the largest difference of any tensor

The networks are of SD 1.5's depth and names, with few channels. Each block has a weight of its own; both tools compute
``(1 - w) a + w b`` in float32.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

OUTER = {"embed": "IN00", "time_embed": "BASE", "final_norm": "OUT11", "head": "OUT11"}


def make(work: Path) -> None:
    """Two networks, their single files, and our merge of them block by block."""
    import torch
    from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from safetensors.torch import load_file, save_file

    sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent / "tests")]
    from sd_mecha_side import BLOCKS, WEIGHTS
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
    slices = []
    for slice_ in pool.layout.slices:
        # Layer 0 is IN01: IN00 is the convolution before all layers.
        value = WEIGHTS[OUTER[slice_.component] if slice_.layer is None else BLOCKS[slice_.layer + 2]]
        inputs = tuple(Input(model, None, (("weight", w),)) for model, w in (("a", 1 - value), ("b", value)))
        slices.append(SliceRecipe(slice_, "linear", inputs, (("normalize", False),)))
    out = work / "ours.safetensors"
    out.unlink(missing_ok=True)
    write_single_file(pool.info.recipe(slices), pool, out)
    print(f"wrote {out}: {len(load_file(out))} tensors")


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
    {"make": make, "compare": compare}[verb](work)


if __name__ == "__main__":
    main()
