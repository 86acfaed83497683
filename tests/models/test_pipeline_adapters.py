"""Adapters of networks that draw images: in every form that they come in, what PEFT and diffusers make of them."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from peft import LoHaConfig, LoKrConfig, LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from tiny_pipelines import network_of, pipeline

from evomerge.errors import EvomergeWarning, PoolError
from evomerge.export.pipeline_writer import write_pipeline
from evomerge.models.opening import pool_of_recipe
from evomerge.models.pipelines.assembling import assemble
from evomerge.models.pipelines.opening import open_pipelines
from evomerge.models.pool import Pool

LINEAR = ["to_q", "to_out.0"]
CONVOLUTIONS = ["conv1", "conv_shortcut"]
PREFIX = "base_model.model."


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapters") / "base"
    pipeline("sd").save_pretrained(folder)
    return folder


def loaded(base: Path) -> Any:
    return diffusers.StableDiffusionPipeline.from_pretrained(base)


def adapted(base: Path, config: Any) -> Any:
    """The network with an adapter, of which every number counts."""
    model = get_peft_model(copy.deepcopy(loaded(base).unet), config)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, own in model.named_parameters():
            if any(kind in name for kind in ("lora_", "hada_", "lokr_")):
                own.copy_(torch.randn(own.shape, generator=generator) * 0.1)
    return model


def merged(model: Any) -> dict[str, torch.Tensor]:
    """The network's tensors with the adapter, as PEFT merges it."""
    return dict(copy.deepcopy(model).merge_and_unload().state_dict())


def opened(base: Path, adapter: Path) -> Pool:
    return open_pipelines({"base": str(base), "own": f"{base}+{adapter}"}, "base")


def check(pool: Pool, wanted: dict[str, torch.Tensor]) -> None:
    plain = {name: pool.read("base", name) for name in wanted}
    changed = {name for name, own in wanted.items() if not torch.equal(own, plain[name])}
    assert changed == set(pool.checkpoints["own"].changed)  # type: ignore[attr-defined]
    for name, own in wanted.items():
        assert torch.allclose(pool.read("own", name), own, rtol=1e-5, atol=1e-6), name


KINDS = {
    "lora": LoraConfig(r=2, lora_alpha=3, target_modules=[*LINEAR, *CONVOLUTIONS], rank_pattern={"to_q": 3}),
    "rslora": LoraConfig(r=2, lora_alpha=3, target_modules=LINEAR, use_rslora=True),
    "loha": LoHaConfig(r=2, alpha=3, target_modules=[*LINEAR, *CONVOLUTIONS]),
    "loha_tucker": LoHaConfig(r=2, alpha=3, target_modules=CONVOLUTIONS, use_effective_conv2d=True),
    "lokr": LoKrConfig(r=2, alpha=3, target_modules=[*LINEAR, *CONVOLUTIONS]),
    "lokr_both": LoKrConfig(r=1, alpha=3, target_modules=LINEAR, decompose_both=True, decompose_factor=4),
}


def often(*kinds: str) -> list[Any]:
    """All kinds; those that are not named belong to the second tier."""
    return [kind if kind in kinds else pytest.param(kind, marks=pytest.mark.slow) for kind in sorted(KINDS)]


@pytest.mark.parametrize("kind", often("lora", "loha", "lokr"))
def test_what_peft_saves_is_what_peft_merges(kind: str, base: Path, tmp_path: Path) -> None:
    model = adapted(base, KINDS[kind])
    model.save_pretrained(tmp_path / "adapter")
    check(opened(base, tmp_path / "adapter"), merged(model))


def test_what_diffusers_saves_draws_the_same(base: Path, tmp_path: Path) -> None:
    made = loaded(base)
    made.unet.add_adapter(LoraConfig(r=2, lora_alpha=5, target_modules=LINEAR, init_lora_weights="gaussian"))
    with torch.no_grad():
        for name, own in made.unet.named_parameters():
            if "lora_B" in name:
                own.normal_(std=0.1)
    from peft.utils import get_peft_model_state_dict

    made.save_lora_weights(
        tmp_path / "lora",
        get_peft_model_state_dict(made.unet),
        unet_lora_adapter_metadata=made.unet.peft_config["default"].to_dict(),
    )
    other = loaded(base)
    other.load_lora_weights(str(tmp_path / "lora"))
    other.fuse_lora()
    other.unload_lora_weights()
    pool = opened(base, tmp_path / "lora" / "pytorch_lora_weights.safetensors")
    check(pool, dict(other.unet.state_dict()))
    recipe = pool.info.linear({"base": 0.5, "own": 0.5})
    again = pool_of_recipe(recipe)
    name = next(iter(pool.checkpoints["own"].changed))  # type: ignore[attr-defined]
    assert torch.equal(again.read("own", name), pool.read("own", name))


@pytest.mark.parametrize("names", [pytest.param("diffusers", marks=pytest.mark.slow), "original"])
@pytest.mark.parametrize("kind", ["lora", "loha", pytest.param("lokr_both", marks=pytest.mark.slow)])
def test_files_of_kohyas_scripts_and_of_lycoris(kind: str, names: str, base: Path, tmp_path: Path) -> None:
    config = copy.deepcopy(KINDS[kind])
    config.target_modules = ["down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"]
    model = adapted(base, config)
    model.save_pretrained(tmp_path / "peft")
    content = {}
    for name, own in load_file(tmp_path / "peft" / "adapter_model.safetensors").items():
        module, _, part = name.removeprefix(PREFIX).partition(".to_q.")
        if names == "original":
            module = module.replace("down_blocks.0.attentions.0", "input_blocks.1.1")
        flat = f"lora_unet_{module.replace('.', '_')}_to_q"
        part = part.replace("lora_A", "lora_down").replace("lora_B", "lora_up")
        content[f"{flat}.{part}"] = own.contiguous()
        content[f"{flat}.alpha"] = torch.tensor(3.0)
    content["lora_te_text_model_encoder_layers_0_mlp_fc1.lora_down.weight"] = torch.zeros(2, 16)
    file = tmp_path / "own.safetensors"
    save_file(content, file)
    with pytest.warns(EvomergeWarning, match="1 tensors of .* are of text encoders.*pool.others"):
        pool = opened(base, file)
    check(pool, merged(model))


TEXTS = {"sd": ["text_encoder"], "sdxl": ["text_encoder", "text_encoder_2"]}


def adapters_of_all(folder: Path, kind: str, out: Path) -> Path:
    """Of the network and of the text encoders in one file, as diffusers saves them."""
    from peft.utils import get_peft_model_state_dict

    made = diffusers.DiffusionPipeline.from_pretrained(folder)
    given = {}
    for part in ("unet", *TEXTS[kind]):
        own = getattr(made, part)
        targets = LINEAR if part == "unet" else ["q_proj", "fc1"]
        own.add_adapter(LoraConfig(r=2, lora_alpha=5, target_modules=targets, init_lora_weights=False))
        given[f"{part}_lora_layers"] = get_peft_model_state_dict(own)
        given[f"{part}_lora_adapter_metadata"] = own.peft_config["default"].to_dict()
    made.save_lora_weights(out, **given)
    return out / "pytorch_lora_weights.safetensors"


def in_kohyas_form(file: Path, kind: str, out: Path) -> Path:
    content = {}
    texts = dict(zip(TEXTS[kind], ["lora_te"] if kind == "sd" else ["lora_te1", "lora_te2"], strict=True))
    for name, own in load_file(file).items():
        part, _, rest = name.partition(".")
        module, _, last = rest.replace(".lora.", ".lora_").partition(".lora_")
        side = "down" if last.startswith(("A", "down", "linear_layer.down")) else "up"
        flat = f"{texts.get(part, 'lora_unet')}_{module.replace('.', '_')}"
        content[f"{flat}.lora_{side}.weight"] = own
        content[f"{flat}.alpha"] = torch.tensor(5.0)
    save_file(content, out)
    return out


@pytest.mark.parametrize("kind", ["sd", pytest.param("sdxl", marks=pytest.mark.slow)])
@pytest.mark.parametrize("form", ["diffusers", "kohya"])
def test_text_encoders_have_the_adapter_of_the_model_that_gives_them(form: str, kind: str, tmp_path: Path) -> None:
    folder = tmp_path / "base"
    pipeline(kind).save_pretrained(folder)
    file = adapters_of_all(folder, kind, tmp_path / "lora")
    plain, other = (diffusers.DiffusionPipeline.from_pretrained(folder) for _ in range(2))
    other.load_lora_weights(str(file.parent))
    other.fuse_lora()
    other.unload_lora_weights()
    file = in_kohyas_form(file, kind, tmp_path / "kohya.safetensors") if form == "kohya" else file
    models = {"base": str(folder), "own": f"{folder}+{file}"}
    with warnings.catch_warnings():
        warnings.simplefilter("error", EvomergeWarning)
        pool = open_pipelines(models, "base", others="own")
    check(pool, dict(other.unet.state_dict()))
    recipe = pool.info.linear({"own": 1.0})
    written = diffusers.DiffusionPipeline.from_pretrained(write_pipeline(recipe, pool, tmp_path / "out"))
    held = assemble(plain.unet, pool.config.rest, torch.float32, torch.device("cpu"))
    for part in TEXTS[kind]:
        wanted = dict(getattr(other, part).named_parameters())
        before = dict(getattr(plain, part).named_parameters())
        assert sum(not torch.equal(own, before[name]) for name, own in wanted.items()) == 2
        for made in (held, written):
            own = dict(getattr(made, part).named_parameters())
            assert own.keys() == wanted.keys()
            assert all(torch.allclose(own[name], each, rtol=1e-5, atol=1e-6) for name, each in wanted.items())
    assert pool_of_recipe(recipe).config.rest == pool.config.rest
    with pytest.warns(EvomergeWarning, match="are of text encoders"):
        assert open_pipelines(models, "base").config.rest.adapter is None


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"lora_unet_mid_block_attentions_0_proj_ni.lora_up.weight": torch.zeros(16, 2)}, "no adapter|lacks|changes"),
        ({"lora_unet_mid_block_attentions_0_proj_in.lora_up.weight": torch.zeros(16, 2)}, "do not make a tensor"),
        ({"lora_unet_mid_block_attentions_0_proj_in.dora_scale": torch.zeros(16)}, "DoRA also scales"),
        ({"unet.mid_block.attentions.0.proj_in.lora_magnitude_vector": torch.zeros(16)}, "DoRA also scales"),
        ({"lora_te_text_model_encoder_layers_0_mlp_fc1.lora_down.weight": torch.zeros(2, 16)}, "nothing for the unet"),
        ({"something": torch.zeros(2)}, "no adapter|changes|nothing"),
    ],
)
def test_what_is_no_adapter_of_the_network_is_refused(
    content: dict[str, torch.Tensor], said: str, base: Path, tmp_path: Path
) -> None:
    save_file(content, tmp_path / "own.safetensors")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of text encoders
        with pytest.raises(PoolError, match=said):
            opened(base, tmp_path / "own.safetensors")


@pytest.mark.slow
def test_an_adapter_of_flux_is_read_through_diffusers(tmp_path: Path) -> None:
    pipeline("flux").save_pretrained(tmp_path / "flux")
    made = diffusers.FluxPipeline.from_pretrained(tmp_path / "flux")
    network = network_of(made)
    network.add_adapter(LoraConfig(r=2, lora_alpha=2, target_modules=["to_q"], init_lora_weights=False))
    from peft.utils import get_peft_model_state_dict

    made.save_lora_weights(tmp_path / "lora", get_peft_model_state_dict(network))
    other = diffusers.FluxPipeline.from_pretrained(tmp_path / "flux")
    other.load_lora_weights(str(tmp_path / "lora"))
    other.fuse_lora()
    other.unload_lora_weights()
    check(opened(tmp_path / "flux", tmp_path / "lora"), dict(network_of(other).state_dict()))
