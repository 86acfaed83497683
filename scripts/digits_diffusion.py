"""Small diffusion models of scikit-learn's digits: LCSC over checkpoints, and M2N2 of two specialists.

    python scripts/digits_diffusion.py all WORK --seed 0       # the three below, in one process
    python scripts/digits_diffusion.py train WORK --seed 0     # checkpoints, moving averages, specialists
    python scripts/digits_diffusion.py lcsc WORK --seed 0      # the search, and KID on noise that it has not seen
    python scripts/digits_diffusion.py m2n2 WORK --seed 0      # M2N2, one slerp for all, and CMA-ES over blocks

`scripts/digits_diffusion_table.py WORK` makes tables of all seeds.

The pipelines are of Stable Diffusion's kind, at 8 by 8 pixels: a U-Net with cross-attention to embeddings of prompts
such as "a 7", and an autoencoder without any reduction. What is drawn is judged by a network of `fitness.digits_drawn`,
trained on digits.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np

DIGITS = list(range(10))
EVEN, ODD = DIGITS[::2], DIGITS[1::2]
STEPS = 300
"""Of the training on all digits, at a rate that does not fall."""
RATE = 3e-3
EVERY = 10
FIRST = 110
"""The first of the checkpoints that LCSC combines."""
BASE = 200
"""Steps after which the specialists part."""
SPECIAL = 120
RATES = (0.9, 0.95, 0.98)
"""Of moving averages that are kept up at every step, as diffusers does: higher ones are never reached, since its
averages warm up."""
SEARCH_IMAGES, KID_IMAGES, JUDGED_IMAGES = 30, 400, 50
"""Of each digit: in a search for KID (a third of them where a network judges), and held out."""
LCSC_STEPS, MERGE_STEPS = 4, 2
"""Of the sampler."""


def prompts(which: list[int]) -> list[str]:
    """What is asked for."""
    return [f"a {digit}" for digit in which]


def build(seed: int) -> Any:
    """An untrained pipeline."""
    import torch
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel

    sys.path[:0] = [str(Path(__file__).parent.parent / "tests")]
    from tiny_pipelines import text_encoder, tokenizer

    torch.manual_seed(seed)
    network = UNet2DConditionModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        layers_per_block=1,
        block_out_channels=(12, 24),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=4,
        cross_attention_dim=16,
        attention_head_dim=12,
    )
    autoencoder = AutoencoderKL(
        in_channels=1,
        out_channels=1,
        latent_channels=1,
        block_out_channels=(8,),
        down_block_types=("DownEncoderBlock2D",),
        up_block_types=("UpDecoderBlock2D",),
        layers_per_block=1,
        norm_num_groups=4,
        sample_size=8,
        scaling_factor=1.0,
    )
    scheduler = DDIMScheduler(
        beta_schedule="squaredcos_cap_v2",
        clip_sample=False,
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        steps_offset=1,
    )
    parts: dict[str, Any] = {"vae": autoencoder, "text_encoder": text_encoder(), "tokenizer": tokenizer()}
    parts |= {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    return StableDiffusionPipeline(**parts, unet=network, scheduler=scheduler)


def train_autoencoder(pipeline: Any, images: Any, seed: int) -> None:
    """Let latents be the pixels, nearly: the first latent channel is fitted to them, and the decoder back."""
    import torch

    network, rng = pipeline.vae, np.random.default_rng(seed)
    optimiser = torch.optim.Adam(network.parameters(), lr=3e-3)
    for _ in range(300):
        batch = images[rng.integers(len(images), size=32)]
        latents = network.encode(batch).latent_dist.mean
        loss = ((latents - batch) ** 2).mean() + ((network.decode(batch).sample - batch) ** 2).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    print(f"autoencoder: squared error {loss.item():.5f}", flush=True)


def train(work: Path, seed: int) -> None:
    """A training on all digits with checkpoints, and two that go on with half of the digits each."""
    import torch

    from fitness.digits import load_images

    torch.set_num_threads(1)
    pixels, labels = load_images("train")
    images = torch.tensor(pixels.reshape(-1, 1, 8, 8) / 8.0 - 1.0)
    pipeline = build(seed)
    train_autoencoder(pipeline, images, seed)
    pipeline.vae.requires_grad_(False)
    with torch.no_grad():
        tokens = pipeline.tokenizer(
            prompts(DIGITS), padding="max_length", max_length=pipeline.tokenizer.model_max_length, return_tensors="pt"
        )
        texts = pipeline.text_encoder(tokens["input_ids"])[0]
    folder = work / f"seed{seed}"
    rng = np.random.default_rng([seed, 7])

    def run(
        steps: int, which: list[int], rate: float, name: str, means: dict[float, dict[str, Any]] | None = None
    ) -> list[dict[str, Any]]:
        """Train; with `means`, keep them up and save checkpoints, which are given."""
        network = pipeline.unet.train()
        optimiser = torch.optim.Adam(network.parameters(), lr=rate)
        chosen = np.flatnonzero(np.isin(labels, which))
        kept, losses = [], []
        for step in range(1, steps + 1):
            places = rng.choice(chosen, size=32)
            clean = images[places]
            noise = torch.tensor(rng.standard_normal(clean.shape), dtype=torch.float32)
            times = torch.tensor(rng.integers(1000, size=len(places)))
            noisy = pipeline.scheduler.add_noise(clean, noise, times)
            wanted = pipeline.scheduler.get_velocity(clean, noise, times)
            loss = ((network(noisy, times, texts[labels[places]]).sample - wanted) ** 2).mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            losses.append(loss.item())
            for decay, mean in (means or {}).items():
                own = min(decay, (1 + step) / (10 + step))  # diffusers' EMAModel warms up like this
                torch._foreach_lerp_(list(mean.values()), list(network.state_dict().values()), 1 - own)
            if means is not None and step % EVERY == 0:
                save(pipeline, folder / "training" / f"checkpoint-{step}")
                kept.append({key: own.detach().clone() for key, own in network.state_dict().items()})
        print(f"{name}: loss {np.mean(losses[-100:]):.4f}", flush=True)
        return kept

    means = {rate: {key: own.detach().clone() for key, own in pipeline.unet.state_dict().items()} for rate in RATES}
    kept = run(STEPS, DIGITS, RATE, "all", means)
    for rate in RATES:
        pipeline.unet.load_state_dict(means[rate])
        save(pipeline, folder / "averages" / f"ema-{rate}")
    for name, which in (("even", EVEN), ("odd", ODD)):
        pipeline.unet.load_state_dict(kept[BASE // EVERY - 1])
        run(SPECIAL, which, RATE / 2, name)
        save(pipeline, folder / name)
    pipeline.unet.load_state_dict(kept[BASE // EVERY - 1])
    save(pipeline, folder / "base")
    write_references(work)


def save(pipeline: Any, folder: Path) -> None:
    """A pipeline as a folder, quietly."""
    from evomerge.models.pipelines.libraries import quiet

    with quiet():
        pipeline.save_pretrained(folder)


def write_references(work: Path) -> None:
    """The digits of the training as images."""
    from PIL import Image

    from fitness.digits import load_images

    pixels, _ = load_images("train")
    (work / "real").mkdir(parents=True, exist_ok=True)
    for number, own in enumerate(pixels):
        grey = np.clip(np.round(own.reshape(8, 8) / 16.0 * 255), 0, 255).astype(np.uint8)
        Image.fromarray(grey).save(work / "real" / f"{number:04d}.png")


def search(*words: str) -> None:
    """A search as the command line has it, in this process; its output goes on to ours."""
    import evomerge

    evomerge.search(*words, "search.racing.first=null", "display=plain")


def drawing(work: Path, part: str, images: int, *, kid: bool) -> list[str]:
    """Overrides of a fitness: ten prompts, some images of each, few steps."""
    key = "fitness" if part == "search" else "held_out"
    seed = 0 if part == "search" else 1_000_000
    words = [f"fitness@{key}=text_to_image" if key != "fitness" else "fitness=text_to_image"]
    words += [f"{key}.prompts=[{','.join(prompts(DIGITS))}]", f"{key}.images={images}", f"{key}.seed={seed}"]
    words += [
        f"{key}.steps={LCSC_STEPS if kid else MERGE_STEPS}",
        f"{key}.guidance=1.0",
        f"{key}.size=[8,8]",
        f"{key}.batch_size=200",
    ]
    if kid:
        words += [f"{key}.metrics=kid", f"{key}.references={work}/real"]
        words += [f"{key}.features={{_target_: fitness.digits_drawn.DigitFeatures}}"]
    else:
        words += [f"{key}.metrics=scorer", f"{key}.scorer={{_target_: fitness.digits_drawn.DigitScorer}}"]
    return words


def lcsc(work: Path, seed: int) -> None:
    """LCSC over the last checkpoints by KID, and the training's own moving averages beside it, on the same noise."""
    folder = work / f"seed{seed}"
    kid = [*drawing(work, "search", SEARCH_IMAGES, kid=True), *drawing(work, "held_out", KID_IMAGES, kid=True)]
    search(
        *("pool=checkpoints", "+pool.network=auto", f"pool.checkpoints.folder={folder}/training"),
        *(f"pool.checkpoints.first={FIRST}", "search_space=checkpoints", "strategy=cma_es", f"search.seed={seed}"),
        *("search.evaluations=120", f"run_dir={work}/runs/lcsc-{seed}"),
        *kid,
    )
    averages = ", ".join(f"ema-{rate}: {folder}/averages/ema-{rate}" for rate in RATES)
    search(
        *("pool=pipelines", f"pool.models={{{averages}}}", "search_space=linear", "search_space.layer_group=all"),
        *("strategy=random", "search.evaluations=1", f"run_dir={work}/runs/averages-{seed}"),
        *kid,
    )


WAYS = {
    "m2n2": ["search_space=lineage", "search_space.chromosomes=[[attn]]", "strategy=m2n2", "strategy.warmup=20"],
    "slerp": [
        "search_space=slerp",
        "search_space.layer_group=all",
        "search_space.components=[[attn,mlp,norm,resnet,time,embed,time_embed,final_norm,head]]",
        "strategy=cma_es",
    ],
    "cma_es": [
        "search_space=slerp",
        "search_space.layer_group=layer",
        "search_space.components=all",
        "strategy=cma_es",
    ],
}


def m2n2(work: Path, seed: int) -> None:
    """The two specialists merged by M2N2, by one slerp for the whole network, and by CMA-ES over blocks."""
    folder = work / f"seed{seed}"
    for name, words in WAYS.items():
        search(
            *("pool=pipelines", f"pool.models={{base: {folder}/base, even: {folder}/even, odd: {folder}/odd}}"),
            "pool.base=base",
            *words,
            *(f"search.seed={seed}", f"search.evaluations={30 if name == 'slerp' else 120}"),
            f"run_dir={work}/runs/{name}-{seed}",
            *drawing(work, "search", SEARCH_IMAGES // 3, kid=False),
            *drawing(work, "held_out", JUDGED_IMAGES, kid=False),
        )


def main() -> None:
    """What the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verb", choices=("all", "train", "lcsc", "m2n2"))
    parser.add_argument("work", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    work = options.work.absolute()
    parts = {"train": train, "lcsc": lcsc, "m2n2": m2n2}
    for name in parts if options.verb == "all" else [options.verb]:
        parts[name](work, options.seed)


if __name__ == "__main__":
    main()
