"""Scores of drawn images: distances by their definitions, the pipeline's own pixels, parts, and what is refused."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.linalg import sqrtm
from tiny_pipelines import rows_of_prompts, save_clip, save_pool

from evomerge.errors import ConfigError, FitnessError
from evomerge.merge.planning.plan import make_plan
from evomerge.merge.resident.model import Resident
from evomerge.models.pipelines.opening import open_pipelines
from evomerge.models.pool import Pool
from evomerge.session.pools import check_scored
from fitness._text_to_image.distances import Real
from fitness.files import FilesFitness
from fitness.several import SeveralFitness
from fitness.text_to_image import TextToImageFitness

PROMPTS = ["a cat", "a dog", "a red owl"]
DRAW = {"steps": 2, "size": [16, 16], "batch_size": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("draw")
    save_pool(made / "sd", "sd", ("base", "one"))
    save_clip(made / "clip")
    rng = np.random.default_rng(0)
    (made / "real").mkdir()
    for number in range(4):
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(made / "real" / f"{number}.png")
    return made


@pytest.fixture(scope="module")
def pool(folder: Path) -> Pool:
    return open_pipelines({name: str(folder / "sd" / name) for name in ("base", "one")}, "base")


@pytest.fixture(scope="module")
def resident(pool: Pool) -> Resident:
    return Resident(pool)


def put(resident: Resident, pool: Pool, **weights: float) -> Any:
    resident.apply(make_plan(pool.info.linear(weights), pool))
    return resident.model


def test_kid_is_its_definition_and_the_mean_of_its_items() -> None:
    rng = np.random.default_rng(3)
    x, y = rng.standard_normal((5, 3)), rng.standard_normal((4, 3)) + 0.5

    def kernel(a: Any, b: Any) -> float:
        return float((a @ b / 3 + 1) ** 3)

    drawn = sum(kernel(x[i], x[j]) for i in range(5) for j in range(5) if i != j) / 20
    real = sum(kernel(y[i], y[j]) for i in range(4) for j in range(4) if i != j) / 12
    across = sum(kernel(a, b) for a in x for b in y) / 20
    assert Real(y).kid(x).mean() == pytest.approx(drawn + real - 2 * across, rel=1e-12)


def test_the_spread_of_kids_items_is_that_of_the_distance() -> None:
    rng = np.random.default_rng(5)
    real = Real(rng.standard_normal((300, 4)))
    one, two = [0.2, 0.0, 0.0, 0.0], [0.0, 0.3, 0.0, 0.0]
    gains, told = [], []
    for _ in range(400):  # other noise, the same of both models
        noise = rng.standard_normal((50, 4))
        difference = real.kid(noise + one) - real.kid(noise + two)
        gains.append(difference.mean())
        told.append(difference.var(ddof=1) / len(noise))
    assert np.sqrt(np.mean(told)) == pytest.approx(np.std(gains), rel=0.1)


def test_fid_is_its_definition() -> None:
    rng = np.random.default_rng(4)
    x, y = rng.standard_normal((40, 3)), rng.standard_normal((50, 3)) * [1, 2, 0.5] + 0.5
    one, other = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    wanted = np.square(x.mean(0) - y.mean(0)).sum() + np.trace(one + other - 2 * sqrtm(one @ other).real)
    assert Real(y).fid(x) == pytest.approx(float(wanted), rel=1e-9)
    assert Real(y).fid(y) == pytest.approx(0.0, abs=1e-9)


class Brightness:
    """The mean pixel, of which less is better."""

    direction = "minimize"

    def __call__(self, images: Any, prompts: list[str]) -> Any:
        assert images.dtype == np.uint8
        assert len(prompts) == len(images)
        return images.reshape(len(images), -1).mean(axis=1)


def test_pixels_are_those_of_the_pipeline_itself(folder: Path, pool: Pool, resident: Resident) -> None:
    from diffusers import StableDiffusionPipeline

    fitness = TextToImageFitness(PROMPTS, scorer=Brightness(), keep=3, thumbnail=16, **DRAW)
    fitness.check()
    fitness.prepare(put(resident, pool, base=1.0))
    model = put(resident, pool, one=1.0)
    scores = [fitness.run(model) for _ in range(2)]  # once with embeddings and noise that were kept
    pipeline = StableDiffusionPipeline.from_pretrained(str(folder / "sd" / "one"))
    pipeline.set_progress_bar_config(disable=True)
    pictures: list[Any] = []
    for start in (0, 2):
        seeds = range(start, min(start + 2, 3))
        generator = [torch.Generator().manual_seed(seed) for seed in seeds]
        prompts = PROMPTS[start : start + 2]
        pictures += pipeline(prompts, num_inference_steps=2, height=16, width=16, generator=generator).images
    means = [np.asarray(picture).mean() for picture in pictures]
    for own in scores:
        assert own.items["images/scorer"].tolist() == pytest.approx(means, rel=1e-12)
        assert own.objectives == {"score": pytest.approx(-np.mean(means))}
        for shown, picture in zip(own.responses["images"], pictures, strict=True):
            drawn = Image.open(io.BytesIO(base64.b64decode(shown.partition(",")[2])))
            assert np.array_equal(np.asarray(drawn), np.asarray(picture))
    part = fitness.run(model, {"images": [0, 1]})
    assert part.items["images/scorer"][:2].tolist() == pytest.approx(means[:2], rel=1e-12)
    assert np.isnan(part.items["images/scorer"][2])


def test_scores_of_clip_and_of_distances(folder: Path, pool: Pool, resident: Resident) -> None:
    images = [f"real/{number}.png" for number in range(3)]
    prompts = rows_of_prompts(folder / "prompts.jsonl", PROMPTS, images)
    fitness = TextToImageFitness(
        str(prompts),
        metrics=["clip", "ncs", "kid", "fid"],
        objectives={"kid": "real"},
        clip=str(folder / "clip"),
        features="pixels",
        references=str(folder / "real"),
        **DRAW,
    )
    fitness.check()
    model = put(resident, pool, one=1.0)
    fitness.check_model(pool.config, "")
    fitness.prepare(model)
    found = fitness.run(model)
    assert [own.name for own in fitness.objectives] == ["score", "real"]
    assert found.objectives["real"] == -found.metrics["images/kid"]
    shown = [
        np.asarray(Image.open(io.BytesIO(base64.b64decode(own.partition(",")[2])))) for own in found.responses["images"]
    ]
    small = np.stack([own[::8, ::8] for own in shown])  # 16 pixels are shown as 128
    real = np.stack([np.asarray(Image.open(folder / "real" / f"{n}.png")) for n in range(4)]).reshape(4, -1) / 255.0
    wanted = Real(real).kid(small.reshape(3, -1) / 255.0)
    assert found.items["images/kid"].tolist() == pytest.approx(wanted.tolist(), rel=1e-9)
    assert "images/fid" not in found.items
    from transformers import AutoTokenizer, CLIPImageProcessorPil, CLIPModel

    clip = CLIPModel.from_pretrained(folder / "clip")
    seen = CLIPImageProcessorPil.from_pretrained(folder / "clip")(images=list(small), return_tensors="pt")
    texts = AutoTokenizer.from_pretrained(folder / "clip")(PROMPTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        out = clip(**texts, **seen)
    similar = (out.image_embeds * out.text_embeds).sum(dim=-1)
    assert found.items["images/clip"].tolist() == pytest.approx(similar.tolist(), abs=1e-5)
    with torch.no_grad():
        compared = [Image.open(folder / image).convert("RGB") for image in images]
        seen = CLIPImageProcessorPil.from_pretrained(folder / "clip")(images=compared, return_tensors="pt")
        theirs = clip.get_image_features(**seen)
    theirs = getattr(theirs, "pooler_output", theirs)
    theirs = theirs / theirs.norm(dim=-1, keepdim=True)
    wanted_ncs = ((out.image_embeds * theirs).sum(dim=-1) + 1) / 2
    assert found.items["images/ncs"].tolist() == pytest.approx(wanted_ncs.tolist(), abs=1e-5)
    first = fitness.fingerprint()
    other = TextToImageFitness(PROMPTS, scorer=Brightness(), **DRAW)
    other.prepare(model)
    assert first != other.fingerprint()


@pytest.mark.parametrize(
    ("given", "kind", "said"),
    [
        ({"metrics": "clop"}, ConfigError, "metrics has 'clop'"),
        ({}, ConfigError, "clip is not set"),
        ({"metrics": "kid"}, ConfigError, "features and references are not set"),
        ({"metrics": "kid", "references": "real"}, ConfigError, "features is not set"),
        ({"metrics": "kid", "features": "pixels"}, ConfigError, "references is not set"),
        ({"metrics": "scorer"}, ConfigError, "scorer is not set"),
        ({"scorer": Brightness(), "steps": 0}, ConfigError, "steps is 0"),
        ({"scorer": Brightness(), "size": [16]}, ConfigError, "size is"),
        ({"scorer": Brightness(), "size": [16, 12]}, ConfigError, r"size is \[16, 12\]; .*multiples of 8"),
        ({"scorer": Brightness(), "objectives": {"clip": "a"}}, ConfigError, "objectives has 'clip'"),
        ({"prompts": [], "scorer": Brightness()}, ConfigError, "prompts is"),
        ({"prompts": "there/is/none.txt", "scorer": Brightness()}, FitnessError, "not there|no folder"),
        ({"metrics": "ncs", "clip": "x"}, FitnessError, "no reference image"),
    ],
)
def test_a_mistake_is_answered_before_anything_is_drawn(given: dict[str, Any], kind: Any, said: str) -> None:
    def check() -> None:
        fitness = TextToImageFitness(**{"prompts": PROMPTS, **given})
        fitness.check_files()
        fitness.check()

    with pytest.raises(kind, match=said):
        check()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"clip": "words"}, "fitness.clip: .*words is a model of kind llama; a model of images and texts"),
        ({"clip": "eyes"}, "fitness.clip: .*eyes is a model of kind vit; a model of images and texts"),
        ({"clip": "empty"}, "fitness.clip: .*empty has no config.json"),
        ({"clip": "./non"}, "fitness.clip: .*no folder"),
        (
            {"metrics": "kid", "features": "words"},
            "fitness.features: .*words is a model of kind llama; a model of images$",
        ),
        ({"metrics": "kid", "features": "eyes"}, "references: .*empty has no images"),
        (
            {"metrics": "kid", "features": "pixel"},
            "features is 'pixel', .*did you mean 'pixels'",
        ),
        (
            {"prompts": "prompts.jsonl", "clip": "eyes"},
            r'line 1 is no JSON: .*lines such as {"prompt": "a red bicycle"}',
        ),
    ],
)
def test_what_images_are_compared_with_is_checked_by_its_small_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: dict[str, Any], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, model, files in (
        ("words", "llama", ()),
        ("eyes", "vit", ("preprocessor_config.json",)),
        ("empty", "", ()),
    ):
        (tmp_path / name).mkdir()
        for file in ("config.json", *files) if model else ():
            (tmp_path / name / file).write_text(json.dumps({"model_type": model}))
    (tmp_path / "prompts.jsonl").write_text("a cat\n")
    compared = {"references": "empty"} if given.get("metrics") == "kid" else {}
    with pytest.raises(FitnessError, match=said):
        TextToImageFitness(**{"prompts": PROMPTS, **compared, **given}).check()


def test_work_is_of_images_and_of_the_samplers_steps() -> None:
    fitness = TextToImageFitness(PROMPTS, images=2, scorer=Brightness(), steps=8)
    assert fitness.work() == {"documents": 6, "texts": 6, "written": 0, "drawn": 48}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"sampler": "EulerScheduler"}, "sampler is 'EulerScheduler'"),
        ({"sampler": "FlowMatchEulerDiscreteScheduler"}, "of StableDiffusionPipeline takes noise away step by step"),
        ({"arguments": {"guidance_scal": 3}}, "guidance_scal"),
        ({"prompts": None}, "prompts is not set"),
    ],
)
def test_what_the_pipeline_does_not_take_is_answered_early(pool: Pool, given: dict[str, Any], said: str) -> None:
    fitness = TextToImageFitness(**{"prompts": PROMPTS, "scorer": Brightness(), **given})
    with pytest.raises((ConfigError, FitnessError), match=said):
        fitness.check_model(pool.config, "")


@pytest.mark.parametrize(
    ("sampler", "said"),
    [
        ("DDIMScheduler", "of FluxPipeline matches flows; FlowMatchEuler"),
        ("UniPCMultistepScheduler", "of FluxPipeline matches flows"),
        ("FlowMatchHeunDiscreteScheduler", "FluxPipeline says the noise of each step itself"),
        ("FlowMatchEulerDiscreteScheduler", ""),
        ("FlowMatchLCMScheduler", ""),
    ],
)
def test_samplers_of_flows(sampler: str, said: str, tmp_path: Path) -> None:
    flux = open_pipelines(save_pool(tmp_path, "flux", ("base", "one")), "base")
    fitness = TextToImageFitness(PROMPTS, scorer=Brightness(), sampler=sampler)
    if not said:
        fitness.check_model(flux.config, "")
        return
    with pytest.raises(ConfigError, match=said):
        fitness.check_model(flux.config, "")


def test_damaged_images_are_named_before_anything_is_drawn(folder: Path, tmp_path: Path) -> None:
    image = (folder / "real" / "0.png").read_bytes()
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "0.png").write_bytes(image)
    compared = TextToImageFitness(PROMPTS, metrics="kid", features="pixels", references=str(tmp_path / "real"))
    compared.check()
    for content in (b"none", image[:60], image[:-30] + b"x" + image[-29:]):
        (tmp_path / "real" / "1.png").write_bytes(content)
        with pytest.raises(FitnessError, match=r"1\.png is"):
            compared.check()
    prompts = rows_of_prompts(tmp_path / "prompts.jsonl", ["a cat"], [str(tmp_path / "real" / "1.png")])
    with pytest.raises(FitnessError, match=r"1\.png is no image that Pillow reads"):
        TextToImageFitness(str(prompts), metrics="ncs", clip=str(folder / "clip")).check()


def test_another_sampler_draws_otherwise(pool: Pool, resident: Resident) -> None:
    model = put(resident, pool, one=1.0)
    found = []
    for sampler in (None, "EulerDiscreteScheduler"):
        fitness = TextToImageFitness(PROMPTS[:2], scorer=Brightness(), sampler=sampler, **DRAW)
        fitness.prepare(model)
        found.append((fitness.run(model).metrics["images/scorer"], fitness.fingerprint()))
    assert found[0] != found[1]


def test_several_may_draw_each_with_a_name_of_its_own(pool: Pool, resident: Resident) -> None:
    bright = TextToImageFitness(PROMPTS[:2], scorer=Brightness(), task="bright", **DRAW)
    taste = TextToImageFitness(
        PROMPTS[:1], metrics="rating", by="pair", task="taste", objectives={"rating": "taste"}, **DRAW
    )
    fitness = SeveralFitness({"light": bright, "people": taste})
    check_scored(pool, fitness)
    fitness.check()
    model = put(resident, pool, one=1.0)
    fitness.prepare(model)
    found = fitness.run(model)
    assert fitness.items() == {"bright": 2, "taste": 1}
    assert found.objectives == {"light": bright.run(model).objectives["score"]}
    assert set(found.items) == {"bright/scorer"}
    assert len(found.responses["taste"]) == 1
    assert (fitness.rating().objective, fitness.rating().by) == ("taste", "pair")
    assert [own.name for own in fitness.objectives] == ["light", "taste"]
    with pytest.raises(FitnessError, match="both have items of 'images'"):
        SeveralFitness({name: TextToImageFitness(PROMPTS, scorer=Brightness()) for name in ("a", "b")}).check()


def test_parts_that_draw_stand_beside_no_others() -> None:
    draws = TextToImageFitness(PROMPTS, scorer=Brightness())
    with pytest.raises(ConfigError, match=r"parts.a scores pipelines that draw images, parts.b other models"):
        SeveralFitness({"a": draws, "b": FilesFitness("prompts.txt")})
    with pytest.raises(ConfigError, match="task is 'a b'"):
        TextToImageFitness(PROMPTS, scorer=Brightness(), task="a b")
