"""Adapters that are written: PEFT on the base gives the merged model, by what is exact and by what is truncated."""

from __future__ import annotations

import json
import warnings
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import TinyModel
from transformers import AutoModelForCausalLM

import evomerge
from evomerge.cli.main import main
from evomerge.errors import RecipeError
from evomerge.export.adapter_writer import rank_bound, write_adapter
from evomerge.export.in_memory import merged_model
from evomerge.export.writer import write_model
from evomerge.merge.methods.low_rank import Bound, Factors, compressed, lost, summed, truncated
from evomerge.models.checkpoints.folded_peft import FoldedPeft
from evomerge.models.opening import open_pool
from evomerge.models.pool import Pool
from evomerge.recipes.recipe import Recipe
from evomerge.recipes.slices import Input, SliceId, SliceRecipe, parameters
from evomerge.recipes.yaml_reader import dump_recipe

TOKENS = torch.arange(3, 23)[None]
EXACT = Bound(error=1e-6)


def save_adapter(base: Path, folder: Path, seed: int, **settings: Any) -> Path:
    """A LoRA adapter of random values, saved by PEFT."""
    given = {"r": 2, "lora_alpha": 3, "target_modules": ["q_proj", "down_proj"], **settings}
    adapted = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype="auto"), peft.LoraConfig(**given))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    adapted.save_pretrained(folder)
    return folder


def adapters(base: Path, root: Path, *settings: dict[str, Any]) -> Pool:
    """The base, and the base with an adapter for each of `settings`."""
    locations = {"base": str(base)}
    for seed, own in enumerate(settings):
        locations[f"m{seed}"] = f"{base}+{save_adapter(base, root / f'adapter{seed}', seed, **own)}"
    return open_pool(locations, "base")


def recipe_of(pool: Pool, method: str, weights: dict[str, float], **shared: Any) -> Recipe:
    inputs = tuple(Input(name, None, parameters({"weight": weight})) for name, weight in weights.items())
    base = None if method == "linear" else Input("base")
    return pool.info.recipe(SliceRecipe(s, method, inputs, parameters(shared), base) for s in pool.info.slices)


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(TOKENS).logits.float()


def by_peft(pool: Pool, adapter: Path) -> Any:
    base = AutoModelForCausalLM.from_pretrained(pool.folder("base"), dtype="auto")
    return peft.PeftModel.from_pretrained(base, str(adapter))


@pytest.mark.parametrize(
    ("method", "weights", "shared"),
    [
        ("task_arithmetic", {"m0": 0.5, "m1": -0.75}, {"lambda": 1.2, "normalize": False}),
        ("linear", {"m0": 0.4, "m1": 0.0}, {"normalize": True}),
    ],
)
def test_sums_of_adapters_are_adapters_exactly(
    method: str, weights: dict[str, float], shared: dict[str, Any], tiny_model: TinyModel, tmp_path: Path
) -> None:
    settings = {"r": 3, "lora_alpha": 5, "use_rslora": True, "rank_pattern": {"layers.1.self_attn.q_proj": 1}}
    pool = adapters(tiny_model("base"), tmp_path, {}, settings)
    recipe = recipe_of(pool, method, weights, **shared)
    loss = write_adapter(recipe, pool, tmp_path / "out")
    assert loss.error < 1e-6
    assert all(own.exact for own in loss.modules.values())
    assert "exact: the factors of the sources' own adapters" in loss.sentence()
    used = [name for name, weight in weights.items() if weight]
    ranks = {"m0": (2, 2), "m1": (3, 1)}
    assert {path: own.rank for path, own in loss.modules.items()} == {
        f"model.layers.{layer}.{path}": sum(ranks[name][layer and path.endswith("q_proj")] for name in used)
        for layer in (0, 1)
        for path in ("self_attn.q_proj", "mlp.down_proj")
    }
    torch.testing.assert_close(
        logits(by_peft(pool, tmp_path / "out")), logits(merged_model(recipe, pool)), rtol=1e-5, atol=1e-5
    )


def test_products_are_summed_and_not_factors() -> None:
    one = Factors(torch.tensor([[1.0], [2.0]]), torch.tensor([[3.0, 0.0]]))
    other = Factors(torch.tensor([[0.0], [1.0]]), torch.tensor([[1.0, -1.0]]))
    both = summed([(2.0, one), (-1.0, other)])
    # 2 (3 0; 6 0) - (0 0; 1 -1); the sums of factors would make (2 3)^T (2 -1) or so
    assert (both.b @ both.a).tolist() == [[6.0, 0.0], [11.0, 1.0]]


@pytest.mark.parametrize("shape", [(9, 14), (14, 9)])
@pytest.mark.parametrize("bound", [Bound(rank=4), Bound(error=0.4), Bound(rank=99)])
def test_truncation_is_the_best_there_is(shape: tuple[int, int], bound: Bound) -> None:
    values = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    u, s, v = np.linalg.svd(values.double().numpy(), full_matrices=False)
    tails = np.sqrt([(s[rank:] ** 2).sum() / (s**2).sum() for rank in range(len(s) + 1)])
    rank = min(bound.rank, 9) if bound.rank else int(np.argmax(tails <= bound.error))
    identity = Factors(values, torch.eye(shape[1]))
    for found in (truncated(values, bound), compressed(identity, bound)):
        assert found.rank == rank
        best = (u[:, :rank] * s[:rank]) @ v[:rank]
        np.testing.assert_allclose((found.b @ found.a).numpy(), best, atol=1e-5)
        error, norm = lost(values, found)
        assert error / norm == pytest.approx(tails[rank] ** 2, rel=1e-5, abs=1e-10)
        assert lost(identity, found) == pytest.approx((error, norm), rel=1e-4, abs=1e-9)


def test_what_is_made_of_adapters_is_no_sum_of_them(tiny_model: TinyModel, tmp_path: Path) -> None:
    pool = adapters(tiny_model("base"), tmp_path, {}, {})
    recipe = recipe_of(pool, "tsv_m", {"m0": 0.5, "m1": 0.7}, rank=1.0)
    loss = write_adapter(recipe, pool, tmp_path / "out", bound=EXACT)
    assert not any(own.exact for own in loss.modules.values())
    torch.testing.assert_close(
        logits(by_peft(pool, tmp_path / "out")), logits(merged_model(recipe, pool)), rtol=1e-5, atol=1e-5
    )


def lego(pool: Pool, units: float = 1.0) -> Recipe:
    return recipe_of(pool, "lora_lego", {"m0": 1.0, "m1": 0.8, "m2": 1.0}, rank=units, **{"lambda": 0.7})


def test_lego_of_adapters_is_an_adapter_of_as_many_units(tiny_model: TinyModel, tmp_path: Path) -> None:
    pool = adapters(tiny_model("base"), tmp_path, {"r": 4}, {"r": 3}, {"r": 4, "target_modules": ["q_proj"]})
    loss = write_adapter(lego(pool), pool, tmp_path / "out")
    assert loss.error < 1e-6
    # Of q_proj 11 units in 4 clusters, of down_proj 7.
    assert {(own.rank, own.exact) for own in loss.modules.values()} == {(4, True)}
    merged = logits(merged_model(lego(pool), pool))
    torch.testing.assert_close(logits(by_peft(pool, tmp_path / "out")), merged, rtol=1e-5, atol=1e-5)
    more = write_adapter(lego(pool, units=1.5), pool, tmp_path / "more")
    assert {own.rank for own in more.modules.values()} == {6}
    less = write_adapter(lego(pool, units=1.5), pool, tmp_path / "less", bound=Bound(rank=2))
    assert {own.rank for own in less.modules.values()} == {2}
    assert less.error > 0.01


def test_lego_takes_the_factors_that_are_stored(tiny_model: TinyModel, tmp_path: Path) -> None:
    pool = adapters(tiny_model("base"), tmp_path, {"r": 3}, {"r": 3})
    recipe = recipe_of(pool, "lora_lego", {"m0": 1.0, "m1": 1.0})
    first = load_file(write_model(recipe, pool, tmp_path / "one") / "model.safetensors")
    for file in (tmp_path / "adapter1").glob("*.safetensors"):  # the same adapter, split otherwise
        tensors = {name: x * (4.0 if "lora_B" in name else 0.25) for name, x in load_file(file).items()}
        save_file(tensors, file, metadata={"format": "pt"})
    again = open_pool({name: ref.address for name, ref in pool.info.refs}, "base")
    split = recipe_of(again, "lora_lego", {"m0": 1.0, "m1": 1.0})
    second = load_file(write_model(split, again, tmp_path / "two") / "model.safetensors")
    q_proj = "model.layers.0.self_attn.q_proj.weight"
    assert not torch.allclose(first[q_proj], second[q_proj], atol=1e-3)
    assert torch.equal(first["model.embed_tokens.weight"], second["model.embed_tokens.weight"])


def test_lego_of_whole_models_has_singular_triplets_for_units(tiny_model: TinyModel, tmp_path: Path) -> None:
    pool = open_pool({n: str(tiny_model(n, "llama", seed)) for seed, n in enumerate(("base", "m0", "m1"))}, "base")
    recipe = recipe_of(pool, "lora_lego", {"m0": 0.6, "m1": 0.5}, rank=0.25)
    loss = write_adapter(recipe, pool, tmp_path / "out")
    assert loss.error < 1e-5
    torch.testing.assert_close(
        logits(by_peft(pool, tmp_path / "out")), logits(merged_model(recipe, pool)), rtol=1e-4, atol=1e-4
    )


KINDS = ["llama_tied", "qwen2", "qwen3", "gpt2"]  # tied, biases, norms within attention, inputs x outputs


@pytest.mark.parametrize("kind", KINDS)
def test_whole_models_become_adapters_of_high_rank(kind: str, tiny_model: TinyModel, tmp_path: Path) -> None:
    names = ("base", "m0", "m1")
    pool = open_pool({n: str(tiny_model(n, kind, seed)) for seed, n in enumerate(names)}, "base")
    recipe = recipe_of(pool, "ties", {"m0": 0.6, "m1": 0.5}, **{"lambda": 0.8})
    loss = write_adapter(recipe, pool, tmp_path / "out", bound=EXACT)
    assert loss.error < 1e-6
    merged = merged_model(recipe, pool)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Model has `tie_word_embeddings=True`")
        torch.testing.assert_close(logits(by_peft(pool, tmp_path / "out")), logits(merged), rtol=1e-4, atol=1e-4)
    again = open_pool({"base": str(pool.folder("base")), "lora": f"{pool.folder('base')}+{tmp_path / 'out'}"}, "base")
    back = merged_model(again.info.linear({"lora": 1.0}), again).state_dict()
    for name, tensor in merged.state_dict().items():
        torch.testing.assert_close(back[name], tensor, rtol=1e-4, atol=1e-5)


def test_a_rank_truncates_and_says_what_is_lost(tiny_model: TinyModel, tmp_path: Path) -> None:
    pool = open_pool({n: str(tiny_model(n, seed=seed)) for seed, n in enumerate(("base", "m0"))}, "base")
    recipe = recipe_of(pool, "task_arithmetic", {"m0": 1.0})
    loss = write_adapter(recipe, pool, tmp_path / "out", bound=Bound(rank=3))
    name = "model.layers.1.mlp.up_proj"
    difference = (pool.read("m0", f"{name}.weight") - pool.read("base", f"{name}.weight")).double().numpy()
    values = np.linalg.svd(difference, compute_uv=False)
    expected = np.sqrt((values[3:] ** 2).sum() / (values**2).sum())
    assert loss.modules[name].error == pytest.approx(expected, rel=1e-5)
    assert loss.modules[loss.worst].error == max(own.error for own in loss.modules.values())
    kept = json.loads((tmp_path / "out" / "evomerge_adapter.json").read_text())
    assert kept["error"] == loss.error
    assert kept["worst"] == {"module": loss.worst, "error": loss.modules[loss.worst].error}
    assert kept["modules"][name] == {"rank": 3, "error": loss.modules[name].error, "exact": False}
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"relative error {loss.error:.2%} over all" in card
    assert 'PeftModel.from_pretrained(model, "out")' in card
    assert str(tmp_path) not in card
    assert "library_name: peft" in card


def test_a_rank_below_the_sum_truncates_it(tiny_model: TinyModel, tmp_path: Path) -> None:
    pool = adapters(tiny_model("base"), tmp_path, {}, {})
    recipe = recipe_of(pool, "task_arithmetic", {"m0": 1.0, "m1": 1.0})
    loss = write_adapter(recipe, pool, tmp_path / "out", bound=Bound(rank=3))
    name = "model.layers.0.mlp.down_proj"
    task = sum(pool.read(m, f"{name}.weight") - pool.read("base", f"{name}.weight") for m in ("m0", "m1"))
    values = np.linalg.svd(task.double().numpy(), compute_uv=False)  # type: ignore[union-attr]
    assert loss.modules[name].error == pytest.approx(np.sqrt(values[3] ** 2 / (values**2).sum()), rel=1e-4)
    assert not loss.modules[name].exact


def test_adapters_of_a_base_in_bfloat16_are_not_rounded_with_it(tiny_model: TinyModel, tmp_path: Path) -> None:
    base = tiny_model("base", dtype="bfloat16")
    pool = adapters(base, tmp_path, {"init_lora_weights": False, "lora_alpha": 0.02}, {"lora_alpha": 0.02})
    recipe = recipe_of(pool, "ties", {"m0": 1.0, "m1": 0.5})
    loss = write_adapter(recipe, pool, tmp_path / "out", bound=Bound(rank=16))
    # TIES is no sum, yet the adapters enter it unrounded: rounding to bfloat16 is larger than these differences.
    name = "model.layers.0.self_attn.q_proj"
    scale = 0.02 / 2
    tasks = []
    for own, weight in (("adapter0", 1.0), ("adapter1", 0.5)):
        saved = load_file(tmp_path / own / "adapter_model.safetensors")
        prefix = f"base_model.model.{name}.lora_"
        tasks.append(weight * scale * (saved[f"{prefix}B.weight"].float() @ saved[f"{prefix}A.weight"].float()))
    total = tasks[0] + tasks[1]
    agree = [(task.sign() == torch.where(total < 0, -1.0, 1.0)) for task in tasks]
    mass = agree[0] * 1.0 + agree[1] * 0.5
    expected = (tasks[0] * agree[0] + tasks[1] * agree[1]) / mass.clamp(min=1e-9)
    out = load_file(tmp_path / "out" / "adapter_model.safetensors")
    found = out[f"base_model.model.{name}.lora_B.weight"] @ out[f"base_model.model.{name}.lora_A.weight"]
    assert loss.modules[name].rank == 16
    torch.testing.assert_close(found, expected, rtol=1e-2, atol=float(expected.abs().max()) * 1e-2)


def test_modules_that_adapters_hold_whole_are_held_whole(tiny_model: TinyModel, tmp_path: Path) -> None:
    settings = {"modules_to_save": ["norm", "lm_head"]}
    pool = adapters(tiny_model("base"), tmp_path, settings, settings)
    recipe = recipe_of(pool, "task_arithmetic", {"m0": 0.5, "m1": 0.5})
    loss = write_adapter(recipe, pool, tmp_path / "out")
    norms = [f"model.layers.{n}.{kind}_layernorm" for n in (0, 1) for kind in ("input", "post_attention")]
    assert sorted(loss.whole) == sorted([*norms, "model.norm", "lm_head"])
    torch.testing.assert_close(
        logits(by_peft(pool, tmp_path / "out")), logits(merged_model(recipe, pool)), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("method", ["task_arithmetic", "ties"])
def test_no_more_than_a_slice_is_folded_at_a_time(
    method: str, tiny_model: TinyModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = adapters(tiny_model("base"), tmp_path, {}, {})
    folded: list[weakref.ref[torch.Tensor]] = []
    alive = []
    fold = FoldedPeft._fold

    def watched(self: FoldedPeft, name: str) -> torch.Tensor:
        tensor = fold(self, name)
        folded.append(weakref.ref(tensor))
        alive.append(sum(own() is not None for own in folded))
        return tensor

    monkeypatch.setattr(FoldedPeft, "_fold", watched)
    write_adapter(recipe_of(pool, method, {"m0": 1.0, "m1": 1.0}), pool, tmp_path / "out", bound=Bound(rank=2))
    assert len(folded) == 2 * 2 * 2  # two matrices of two layers, of two adapters, each once
    assert max(alive) == 2


def test_adapters_without_a_base_in_the_pool_and_of_embeddings(tiny_model: TinyModel, tmp_path: Path) -> None:
    base = tiny_model("base")
    whole = adapters(base, tmp_path, {"target_modules": ["embed_tokens", "v_proj"]}, {})
    refs = {name: ref for name, ref in whole.info.refs if name != "base"}
    pool = open_pool(refs)
    assert pool.info.base is None
    recipe = recipe_of(pool, "linear", {"m0": 1.0, "m1": 1.0}, normalize=True)
    loss = write_adapter(recipe, pool, tmp_path / "out")
    assert loss.modules["model.embed_tokens"].exact
    torch.testing.assert_close(
        logits(by_peft(whole, tmp_path / "out")), logits(merged_model(recipe, pool)), rtol=1e-5, atol=1e-5
    )


def test_only_norms_that_differ(tiny_model: TinyModel, tmp_path: Path) -> None:
    pool = open_pool({n: str(tiny_model(n, seed=seed)) for seed, n in enumerate(("base", "m0"))}, "base")
    norm = SliceId("final_norm")
    recipe = pool.info.recipe(
        SliceRecipe(s, "passthrough", (Input("m0" if s == norm else "base"),)) for s in pool.info.slices
    )
    loss = write_adapter(recipe, pool, tmp_path / "out")
    assert loss.whole == ("model.norm",)
    torch.testing.assert_close(
        logits(by_peft(pool, tmp_path / "out")), logits(merged_model(recipe, pool)), rtol=1e-5, atol=1e-5
    )


def test_what_no_adapter_is_refused(tiny_model: TinyModel, tmp_path: Path) -> None:
    pool = open_pool({n: str(tiny_model(n, seed=seed)) for seed, n in enumerate(("base", "m0"))}, "base")
    with pytest.raises(RecipeError, match="is its base 'base': no weight differs"):
        write_adapter(pool.info.linear({"base": 1.0}), pool, tmp_path / "out")
    slices = [s for s in pool.info.slices if s.layer != 1]
    short = pool.info.recipe(SliceRecipe(s, "passthrough", (Input("m0"),)) for s in slices)
    with pytest.raises(RecipeError, match="the result has 1 layers, its base 'base' has 2"):
        write_adapter(short, pool, tmp_path / "out")
    several = pool.info.recipe(
        SliceRecipe(s, "task_arithmetic", (Input("m0"),), (), Input("base" if s.layer == 1 else "m0"))
        for s in pool.info.slices
    )
    with pytest.raises(RecipeError, match="slices have the bases base, m0; an adapter is added to one model"):
        write_adapter(several, pool, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("rank", "error", "message"),
    [
        ("0", None, "--rank is 0; a whole number from 1"),
        ("x", None, "--rank is 'x'; a whole number"),
        ("4", 0.1, "--rank 4 and --max-error; one of them"),
        (None, 1.5, "--max-error is 1.5; a share"),
        ("auto", float("nan"), "--max-error is nan; a share"),
    ],
)
def test_bounds_that_mean_nothing(rank: str | None, error: float | None, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        rank_bound(rank, error)


def test_the_command_line_writes_adapters(
    tiny_model: TinyModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pool = adapters(tiny_model("base"), tmp_path, {}, {})
    recipe = recipe_of(pool, "task_arithmetic", {"m0": 0.5, "m1": 0.5})
    file = tmp_path / "recipe.yaml"
    file.write_text(dump_recipe(recipe))
    assert main(["merge", str(file), str(tmp_path / "out"), "--format", "lora"]) == 0
    assert "4 modules of rank 4; exact: the factors of the sources' own adapters" in capsys.readouterr().out
    write_model(recipe, pool, tmp_path / "model")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    auto = peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path / "out")
    torch.testing.assert_close(logits(auto), logits(model), rtol=1e-5, atol=1e-5)
    assert main(["merge", str(file), str(tmp_path / "low"), "--format", "lora", "--rank", "1"]) == 0
    assert "4 modules of rank 1; relative error" in capsys.readouterr().out
    loss = evomerge.load_recipe(file).save_adapter(tmp_path / "python", rank=1)
    assert {own.rank for own in loss.modules.values()} == {1}
    for name, tensor in load_file(tmp_path / "low" / "adapter_model.safetensors").items():
        assert torch.equal(load_file(tmp_path / "python" / "adapter_model.safetensors")[name], tensor)
    assert main(["merge", str(file), str(tmp_path / "no"), "--rank", "1"]) == 2
    assert "--rank is of adapters; --format lora" in capsys.readouterr().err
