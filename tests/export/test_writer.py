"""Written models: plain transformers loads them, and their tensors are the resident model's bits."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from tiny_llama import save_llama
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from evomerge.errors import OutputError
from evomerge.export import writer
from evomerge.export.model_card import ScoreRow
from evomerge.export.output import check_output
from evomerge.export.writer import write_model
from evomerge.merge.planning.plan import make_plan
from evomerge.merge.resident.model import Resident
from evomerge.models.opening import open_pool, pool_of_recipe
from evomerge.models.pool import Pool
from evomerge.recipes.pool_info import PoolInfo
from evomerge.recipes.recipe import Recipe
from evomerge.recipes.slices import Dtype, Input, SliceId, SliceRecipe, parameters
from evomerge.recipes.yaml_reader import load_recipe

Llamas = Callable[..., dict[str, Path]]


def pool_of(folders: dict[str, Path], dtype: str = "auto") -> Pool:
    return open_pool({name: str(folder) for name, folder in folders.items()}, "base", dtype=dtype)


def ties(info: PoolInfo) -> Recipe:
    """A TIES recipe that differs by layer and component."""
    return info.recipe(
        SliceRecipe(
            slice_,
            "ties",
            tuple(
                Input(n, None, parameters({"weight": 0.3 + 0.1 * i, "density": 0.5 + 0.01 * (slice_.layer or 0)}))
                for i, n in enumerate(info.sources)
            ),
            parameters({"lambda": 0.9}),
            Input("base"),
        )
        for slice_ in info.slices
    )


def written_tensors(out: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in out.glob("*.safetensors") for name, tensor in load_file(file).items()}


def assert_same_tensors(one: Path, other: Path) -> None:
    mine, theirs = written_tensors(one), written_tensors(other)
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in mine.items())


def assert_loads_as(out: Path, recipe: Recipe, pool: Pool) -> None:
    """Loads without missing or unexpected keys, with the bits of the resident model."""
    loaded, info = AutoModelForCausalLM.from_pretrained(out, dtype="auto", output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    resident = Resident(pool)
    resident.apply(make_plan(recipe, pool))
    expected = resident.model.module.state_dict()
    state = loaded.state_dict()
    assert set(state) == set(expected)
    for name, tensor in state.items():
        assert tensor.dtype == expected[name].dtype, name
        assert torch.equal(tensor, expected[name]), name


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_written_model_is_the_resident_model(tmp_path: Path, llamas: Llamas, dtype: Dtype, tied: bool) -> None:
    pool = pool_of(llamas(dtype=torch.float32, tied=tied), dtype)
    recipe = ties(pool.info)
    out = write_model(recipe, pool, tmp_path / "deep" / "merged")
    assert out == tmp_path / "deep" / "merged"
    assert_loads_as(out, recipe, pool)
    tensors = written_tensors(out)
    assert ("lm_head.weight" in tensors) == (not tied)
    assert {tensor.dtype for tensor in tensors.values()} == {getattr(torch, dtype)}
    assert AutoConfig.from_pretrained(out).dtype == getattr(torch, dtype)
    assert sorted(file.name for file in out.iterdir()) == [
        "README.md",
        "config.json",
        "evomerge_recipe.yaml",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert [file.name for file in out.parent.iterdir()] == ["merged"]


def test_shards_hold_the_same_model(tmp_path: Path, llamas: Llamas) -> None:
    pool = pool_of(llamas())
    recipe = ties(pool.info)
    seen: list[tuple[int, int]] = []
    whole = write_model(recipe, pool, tmp_path / "whole", progress=lambda done, total: seen.append((done, total)))
    limit = 20_000
    sharded = write_model(recipe, pool, tmp_path / "sharded", max_shard_bytes=limit)
    files = sorted(sharded.glob("*.safetensors"))
    assert [file.name for file in files] == [
        f"model-{i + 1:05d}-of-{len(files):05d}.safetensors" for i in range(len(files))
    ]
    assert len(files) > 3
    tensors = written_tensors(sharded)
    total = sum(tensor.nbytes for tensor in tensors.values())
    assert all(sum(t.nbytes for t in load_file(file).values()) <= limit for file in files)
    assert json.loads((sharded / "model.safetensors.index.json").read_text())["metadata"]["total_size"] == total
    expected = written_tensors(whole)
    assert set(tensors) == set(expected)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in tensors.items())
    assert_loads_as(sharded, recipe, pool)
    assert len(seen) == len(pool.info.slices)
    assert seen[-1] == (total, total)
    assert seen == sorted(seen)


def test_sharded_sources_are_read(tmp_path: Path) -> None:
    folders = {name: save_llama(tmp_path / name, i, max_shard_size="20KB") for i, name in enumerate(("base", "a", "b"))}
    assert (folders["a"] / "model.safetensors.index.json").is_file()
    pool = pool_of(folders)
    recipe = ties(pool.info)
    assert_loads_as(write_model(recipe, pool, tmp_path / "merged"), recipe, pool)


def test_the_tokenizer_and_the_recipe_come_along(tmp_path: Path, llamas: Llamas) -> None:
    folders = llamas()
    pool = pool_of(folders)
    recipe = ties(pool.info)
    out = write_model(recipe, pool, tmp_path / "merged")
    ours, theirs = (AutoTokenizer.from_pretrained(folder) for folder in (out, folders["base"]))
    assert ours("t1 t7 unknown").input_ids == theirs("t1 t7 unknown").input_ids
    assert ours.get_vocab() == theirs.get_vocab()
    again = load_recipe((out / "evomerge_recipe.yaml").read_text())
    assert again == recipe
    assert pool_of_recipe(again).info.slices == pool.info.slices


def test_only_what_a_model_needs_is_copied(tmp_path: Path, llamas: Llamas) -> None:
    folders = {name: tmp_path / "sources" / name for name in ("base", "a")}
    for name, folder in folders.items():
        shutil.copytree(llamas()[name], folder)
    base = folders["base"]
    for name in ("chat_template.jinja", "optimizer.pt", "trainer_state.json", "modeling_own.py", "notes.md"):
        (base / name).write_text("{}")
    (base / "additional_chat_templates").mkdir()
    (base / "additional_chat_templates" / "tool.jinja").write_text("tool")
    (base / "checkpoint-1").mkdir()
    (folders["a"] / "chat_template.json").write_text("{}")
    pool = pool_of(folders)
    out = write_model(pool.info.linear({"a": 1.0}), pool, tmp_path / "merged")
    extra = {str(f.relative_to(out)) for f in out.rglob("*")} - {
        "README.md",
        "config.json",
        "evomerge_recipe.yaml",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert extra == {
        "chat_template.jinja",
        "modeling_own.py",
        "additional_chat_templates",
        "additional_chat_templates/tool.jinja",
    }


def test_the_tokenizer_may_be_another_model_s(tmp_path: Path, llamas: Llamas) -> None:
    folders = {name: tmp_path / "sources" / name for name in ("base", "a")}
    for name, folder in folders.items():
        shutil.copytree(llamas()[name], folder)
        for file in ("chat_template.jinja", "tokenization_own.py", "generation_config.json"):
            (folder / file).write_text(f'{{"of": "{name}"}}')
    (folders["base"] / "added_tokens.json").write_text("{}")
    (folders["a"] / "modeling_own.py").write_text("# of a")
    pool = pool_of(folders)
    recipe = replace(pool.info.linear({"a": 0.5, "base": 0.5}), tokenizer_from="a")
    out = write_model(recipe, pool, tmp_path / "merged")
    assert (out / "chat_template.jinja").read_text() == '{"of": "a"}'
    # Code may be of either; where both have a file, the configuration's counts.
    assert {f: (out / f).read_text() for f in ("generation_config.json", "tokenization_own.py", "modeling_own.py")} == {
        "generation_config.json": '{"of": "base"}',
        "tokenization_own.py": '{"of": "base"}',
        "modeling_own.py": "# of a",
    }
    assert not (out / "added_tokens.json").exists()
    assert "The configuration is that of base, the tokenizer that of a." in (out / "README.md").read_text()
    assert pool_of_recipe(load_recipe((out / "evomerge_recipe.yaml").read_text())).info.config_from == "base"


def test_intermediates_are_written_as_if_they_had_been_written_and_read(tmp_path: Path, llamas: Llamas) -> None:
    pool = pool_of(llamas(), "bfloat16")
    first = ties(pool.info)
    inputs = (Input("first", None, (("weight", 0.25),)), Input("c", None, (("weight", 0.75),)))
    slices = tuple(SliceRecipe(slice_, "linear", inputs, (("normalize", False),)) for slice_ in pool.info.slices)
    last = replace(first, slices=slices, intermediates=(("first", first),))
    written = write_model(last, pool, tmp_path / "last")
    between = write_model(first, pool, tmp_path / "first")
    folders = {name: str(pool.folder(name)) for name in ("base", "c")} | {"first": str(between)}
    again = open_pool(folders, "base", dtype="bfloat16")
    assert_same_tensors(
        written, write_model(replace(last, models=again.info.refs, intermediates=()), again, tmp_path / "o")
    )
    assert "3 models" not in (written / "README.md").read_text()
    assert "A merge of 4 models" in (written / "README.md").read_text()


def test_the_card_has_the_scores_and_no_paths(tmp_path: Path, llamas: Llamas) -> None:
    pool = pool_of(llamas())
    out = write_model(ties(pool.info), pool, tmp_path / "my-merge", scores=[ScoreRow("my-merge", {"task/acc": 0.75})])
    card = (out / "README.md").read_text()
    assert "# my-merge\n" in card
    assert "| my-merge | 0.7500 |" in card
    assert str(tmp_path) not in card
    assert str(pool.folder("a").parent) not in card
    assert "_name_or_path" not in (out / "config.json").read_text()


def test_another_depth_is_written_with_its_configuration(tmp_path: Path, llamas: Llamas) -> None:
    pool = pool_of(llamas())
    origins = [0, 1, 1, 0, 2]
    outer = [e for e in pool.info.linear({"a": 0.5, "b": 0.5}).slices if e.slice.layer is None]
    inner = [
        SliceRecipe(SliceId(c, i), "linear", (Input("a", at, (("weight", 0.5),)), Input("b", at, (("weight", 0.5),))))
        for i, at in enumerate(origins)
        for c in ("attn", "mlp", "norm")
    ]
    out = write_model(pool.info.recipe([*outer, *inner]), pool, tmp_path / "merged")
    loaded, info = AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    average = written_tensors(write_model(pool.info.linear({"a": 0.5, "b": 0.5}), pool, tmp_path / "average"))
    assert loaded.config.num_hidden_layers == len(loaded.model.layers) == 5
    for i, at in enumerate(origins):
        for name, tensor in loaded.model.layers[i].state_dict().items():
            assert torch.equal(tensor, average[f"model.layers.{at}.{name}"]), (i, name)


def test_an_empty_folder_is_used_and_another_is_refused(tmp_path: Path, llamas: Llamas) -> None:
    pool = pool_of(llamas())
    recipe = pool.info.linear({"a": 1.0})
    out = tmp_path / "merged"
    out.mkdir()
    write_model(recipe, pool, out)
    before = {file.name: file.stat().st_mtime_ns for file in out.iterdir()}
    with pytest.raises(OutputError, match="merged is not empty; a new or an empty folder; name another"):
        write_model(recipe, pool, out)
    assert {file.name: file.stat().st_mtime_ns for file in out.iterdir()} == before
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="file is a file"):
        check_output(tmp_path / "file")


def test_a_small_disk_is_refused_before_the_first_byte(
    tmp_path: Path, llamas: Llamas, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = pool_of(llamas())
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    monkeypatch.setattr(writer, "stream_slice", lambda *_, **__: pytest.fail("merged all the same"))
    with pytest.raises(OutputError, match=r"writing .*merged needs \d+ bytes, its disk has 1000 bytes free"):
        write_model(pool.info.linear({"a": 1.0}), pool, tmp_path / "merged")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_a_failed_merge_leaves_nothing(
    tmp_path: Path, llamas: Llamas, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    pool = pool_of(llamas())
    real, calls = writer.stream_slice, iter(range(100))

    def fails(*args: object, **options: object) -> object:
        if next(calls) == 4:
            raise error
        return real(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(writer, "stream_slice", fails)
    expected = OutputError if isinstance(error, OSError) else KeyboardInterrupt
    with pytest.raises(expected) as caught:
        write_model(pool.info.linear({"a": 1.0}), pool, tmp_path / "merged")
    assert list(tmp_path.iterdir()) == []
    if expected is OutputError:
        assert "merged cannot be written: No space left on device" in str(caught.value)
