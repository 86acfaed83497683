"""Searches over pipelines that draw images, from the front doors: every kind of space, resuming, the report, typos."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_pipelines import save_clip, save_pool

import evomerge
from evomerge.cli.main import main
from evomerge.errors import EvomergeError
from evomerge.recipes.yaml_reader import dump_recipe


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("pool")
    save_pool(made, "sd")
    save_clip(made / "clip")
    (made / "prompts.txt").write_text("a cat\nan owl\n")
    return made


def words(folder: Path, out: Path, **more: Any) -> list[str]:
    """The command line of a search."""
    models = ", ".join(f"{name}: {name}" for name in ("base", "one", "two"))
    given = {
        "pool": "pipelines",
        "pool.models": f"{{{models}}}",
        "pool.root": folder,
        "pool.base": "base",
        "fitness": "text_to_image",
        "fitness.prompts": folder / "prompts.txt",
        "fitness.clip": folder / "clip",
        "fitness.steps": 1,
        "fitness.size": "[16,16]",
        "search.evaluations": 4,
        "search.racing.first": "null",
        "display": "quiet",
        "run_dir": out,
        **more,
    }
    return [f"{key}={value}" for key, value in given.items() if value is not None]


def test_what_is_said_of_a_search_is_of_images(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["validate", *words(folder, tmp_path / "run", **{"fitness.steps": 3, "fitness.images": 5})]) == 0
    said = " ".join("".join(capsys.readouterr()).replace("│", " ").split())
    assert "10 images, 30 steps of the sampler: up to 6 forwards of 8" in said
    assert "fitness@held_out=text_to_image" in said
    assert "hidden states" not in said


@pytest.mark.slow
def test_lineages_of_m2n2_with_attention_as_a_chromosome(folder: Path, tmp_path: Path) -> None:
    run = evomerge.search(
        *words(
            folder,
            tmp_path / "run",
            **{
                "pool.base": None,
                "search_space": "lineage",
                "search_space.chromosomes": "[[attn]]",
                "strategy": "m2n2",
                "strategy.size": 3,
                "strategy.warmup": 2,
                "strategy.items": "[images/clip]",
            },
        )
    )
    ended = run.resume("search.evaluations=6")
    assert ended.status.evaluations == 6
    found = ended.best
    assert found is not None
    assert found.recipe is not None
    out = ended.merge(tmp_path / "out")
    assert (out / "model_index.json").is_file()
    page = ended.report(tmp_path / "report.html").read_text()
    assert 'src="data:image/png;base64,' in page
    kept = json.loads(next((tmp_path / "run" / "items").glob("search-0-responses.json")).read_text())
    assert len(kept["tasks"]["images"]) == 2


SPACES = {
    "blocks": ["search_space=ties", "search_space.layer_group=block", "strategy=cma_es"],
    "methods": ["search_space=layer_methods", "search_space.layer_group=section", "strategy=catcma"],
    "lines": ["search_space=linear", "search_space.components=[[attn],[time,resnet]]", "strategy=de"],
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", sorted(SPACES))
def test_every_space_takes_networks(kind: str, folder: Path, tmp_path: Path) -> None:
    run = evomerge.search(*words(folder, tmp_path / "run"), *SPACES[kind])
    assert run.best is not None


@pytest.mark.slow
def test_a_search_over_an_adapter_ends_in_a_pipeline_with_it(folder: Path, tmp_path: Path) -> None:
    target = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    flat = f"lora_unet_{target.replace('.', '_')}"
    generator = torch.Generator().manual_seed(1)
    up, down = (torch.randn(shape, generator=generator) for shape in ((16, 2), (2, 16)))
    content = {"lora_up.weight": up, "lora_down.weight": down, "alpha": torch.tensor(1.0)}
    save_file({f"{flat}.{part}": own for part, own in content.items()}, folder / "style.safetensors")
    models = {"base": "base", "style": "base+style.safetensors"}
    given = {"pool.models": f"{{base: base, style: {models['style']}}}", "search_space": "task_arithmetic"}
    run = evomerge.search(*words(folder, tmp_path / "run", **given), "search.evaluations=2")
    assert run.best is not None
    pool = evomerge.load_pool(models, "base", root=folder, network="auto")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(dump_recipe(pool.info.linear({"base": 0.25, "style": 0.75})))
    assert main(["merge", str(recipe), str(tmp_path / "out")]) == 0
    network = load_file(tmp_path / "out" / "unet" / "diffusion_pytorch_model.safetensors")
    plain = load_file(folder / "base" / "unet" / "diffusion_pytorch_model.safetensors")
    wanted = plain[f"{target}.weight"] + 0.75 * 0.5 * up @ down  # alpha 1 over rank 2
    assert torch.allclose(network[f"{target}.weight"], wanted, atol=1e-5)
    assert all(torch.equal(network[name], own) for name, own in plain.items() if name != f"{target}.weight")


@pytest.mark.parametrize("space", ["data_flow", "permutation"])
def test_paths_are_refused(space: str, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(EvomergeError, match="stay where they are"):
        evomerge.search(*words(folder, tmp_path / "run"), f"search_space={space}")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"pool.network": "unte"}, "no part 'unte'"),
        ({"pool.models": "{base: base, style: base+stlye.safetensors}"}, "stlye.safetensors"),
        ({"pool.others": "bese"}, "pool.others is 'bese'"),
        ({"pool.netwrk": "unet"}, "netwrk"),
        ({"pool.network": "null"}, "holds a pipeline that draws images"),
        ({"fitness.step": 3}, "did you mean 'fitness.steps'"),
        ({"search_space.layer_group": "blocks"}, "layer_group is 'blocks'"),
        ({"search_space.components": "[[resnets]]"}, "'resnets'"),
    ],
)
def test_a_typo_is_one_line(
    given: dict[str, Any], said: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["search", *words(folder, tmp_path / "run", **given)]) == 2
    error = capsys.readouterr().err.strip()
    assert said in error.splitlines()[-1], error
    assert not (tmp_path / "run").exists()


def test_texts_are_not_asked_of_pipelines(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = [word for word in words(folder, tmp_path / "run") if not word.startswith("fitness")]
    assert main(["search", *own, "fitness=digits"]) == 2
    assert "scores models that are no pipelines" in capsys.readouterr().err


def test_a_single_file_from_the_command_line(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pool = evomerge.load_pool({"base": "base", "one": "one"}, "base", root=folder, network="auto")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(dump_recipe(pool.info.linear({"base": 0.5, "one": 0.5})))
    assert main(["merge", str(recipe), str(tmp_path / "out.safetensors"), "--format", "single"]) == 0
    assert all(name.startswith("model.diffusion_model.") for name in load_file(tmp_path / "out.safetensors"))
    assert main(["merge", str(recipe), str(tmp_path / "out"), "--format", "single"]) == 2
    assert main(["merge", str(recipe), str(tmp_path / "out"), "--format", "lora"]) == 2


def test_a_pipeline_that_was_written_is_scored_as_its_recipe(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pool = evomerge.load_pool({"base": "base", "one": "one"}, "base", root=folder, network="auto")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(dump_recipe(pool.info.linear({"base": 0.5, "one": 0.5})))
    assert main(["merge", str(recipe), str(tmp_path / "out")]) == 0
    assert main(["merge", str(recipe), str(tmp_path / "out.safetensors"), "--format", "single"]) == 0
    clip, prompts = f"fitness.clip={folder / 'clip'}", f"fitness.prompts={folder / 'prompts.txt'}"
    asked = ["fitness=text_to_image", prompts, clip, "fitness.steps=1", "fitness.size=[16,16]", "--json"]
    found = []
    for target in (
        [str(recipe)],
        [str(tmp_path / "out")],
        [str(tmp_path / "out"), "pool.network=unet"],
        [str(tmp_path / "out"), "pool=pipelines"],
        [str(tmp_path / "out.safetensors"), f"pool.others={folder / 'base'}"],
    ):
        capsys.readouterr()
        assert main(["evaluate", *target, *asked]) == 0
        found.append(json.loads(capsys.readouterr().out))
    assert all(own == found[0] for own in found)
    assert main(["evaluate", str(tmp_path / "out.safetensors"), *asked]) == 2
    assert "set pool.others" in capsys.readouterr().err
    assert main(["evaluate", str(recipe), "pool.network=unet", *asked]) == 2
    assert "a run and a recipe say it themselves" in capsys.readouterr().err


@pytest.mark.slow
def test_the_experiment_on_sdxl_is_the_one_that_is_announced(tmp_path: Path) -> None:
    from evomerge.config.compose import compose_config
    from evomerge.session.parts import build_parts

    names = ("japanese", "sdxl", "dpo", "juggernaut")
    models = save_pool(tmp_path, "sdxl", names)
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "a bicycle", "image": "a.png"}\n')
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    prompts = tmp_path / "prompts.jsonl"
    own = [f"prompts={prompts}", f"clip={save_clip(tmp_path / 'clip')}"]
    words = [f"{split}.{word}" for split in ("fitness", "held_out") for word in own]
    config: Any = compose_config(["experiment=m2n2_sdxl", *words])
    assert set(config.pool.models) == set(names)
    config.pool.models = models
    parts = build_parts(config)
    assert parts.pool is not None
    assert parts.pool.info.network is not None
    assert (parts.pool.info.network.name, parts.pool.info.network.others) == ("unet", "japanese")
    recipe = parts.space.decode(parts.space.spec.initial)
    assert {entry.method for entry in recipe.slices} <= {"slerp", "linear"}
    assert [own.name for own in parts.space._chromosomes] == ["attn", "rest"]  # type: ignore[attr-defined]
