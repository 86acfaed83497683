"""Models, adapters and tasks of strangers: files are data, whatever they say."""

from __future__ import annotations

import itertools
import json
import os
import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from evomerge.errors import PoolError
from evomerge.export.model_card import card_license
from evomerge.export.writer import write_model
from evomerge.models.architecture.patterns import slow_pattern
from evomerge.models.checkpoints.headers import read_header, read_json
from evomerge.models.opening import open_pool


@pytest.fixture
def pair(llamas: Callable[..., dict[str, Path]], tmp_path: Path) -> dict[str, Path]:
    """Two models whose folders may be changed."""
    import shutil

    made = llamas()
    return {name: Path(shutil.copytree(made[name], tmp_path / name)) for name in ("base", "a")}


def change(folder: Path, **settings: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))


@pytest.mark.parametrize(
    ("pattern", "reason"),
    [
        ("q_proj", ""),
        (r"model\.layers\.\d+\.mlp", ""),
        (r"(.*\.)?self_attn\.[qkv]_proj", ""),
        ("(a+)+$", "no repetition within a repetition"),
        ("(?:(?:a|b)*c)*", "no repetition within a repetition"),
        ("(?=(a*)*)", "no repetition within a repetition"),
        (r"(?P<x>a*){3}", "no repetition within a repetition"),
        ("a*" * 5, "at most 4 repetitions"),
        ("a" * 1001, "at most 1000 characters"),
    ],
)
def test_patterns_that_may_take_for_ever_are_refused(pattern: str, reason: str) -> None:
    assert slow_pattern(pattern) == reason


def test_what_the_refused_patterns_would_take() -> None:
    start = time.perf_counter()
    assert re.match(r"(.*\.)?((a+)+)$", "a" * 20 + "!") is None
    assert time.perf_counter() - start > 1e-3  # and twice as long with every letter more


@pytest.mark.parametrize(
    "settings", [{"num_hidden_layers": 10**9}, {"num_hidden_layers": 1025}], ids=["a billion layers", "a few too many"]
)
def test_a_configuration_of_endless_layers_is_refused_before_they_are_built(
    settings: dict[str, int], pair: dict[str, Path]
) -> None:
    change(pair["a"], **settings)
    start = time.perf_counter()
    with pytest.raises(PoolError, match=r"model 'a': config\.json has num_hidden_layers 1,.* at most 1,024"):
        open_pool({name: str(folder) for name, folder in pair.items()}, "base")
    assert time.perf_counter() - start < 20


def test_only_models_are_built_from_a_configuration_s_names(pair: dict[str, Path]) -> None:
    for name in ("Trainer", "pipeline", "AutoTokenizer", "os"):
        for folder in pair.values():
            change(folder, architectures=[name])
        pool = open_pool({name: str(folder) for name, folder in pair.items()}, "base", fingerprints=False)
        assert pool.layout.layers == 3
    change(pair["a"], architectures=[3])
    with pytest.raises(PoolError, match=r"model 'a': .*has architectures list .*3.*a list of class names"):
        open_pool({name: str(folder) for name, folder in pair.items()}, "base", fingerprints=False)


def test_code_that_a_checkpoint_brings_along_is_not_run(pair: dict[str, Path], marker: Path) -> None:
    for folder in pair.values():
        (folder / "stranger_code.py").write_text((marker.parent / "stranger_code.py").read_text())
        change(folder, auto_map={"AutoConfig": "stranger_code.Part", "AutoModelForCausalLM": "stranger_code.Part"})
    open_pool({name: str(folder) for name, folder in pair.items()}, "base", fingerprints=False)
    change(pair["a"], model_type="strange")
    with pytest.raises(PoolError, match=r"model 'a': .* brings code of its own"):
        open_pool({name: str(folder) for name, folder in pair.items()}, "base", fingerprints=False)
    assert not marker.exists()


def test_a_link_out_of_a_model_s_folder_is_not_published(pair: dict[str, Path], tmp_path: Path) -> None:
    secret = tmp_path / "id_rsa"
    secret.write_text("secret")
    pool = open_pool({name: str(folder) for name, folder in pair.items()}, "base", fingerprints=False)
    (pair["base"] / "vocab.extra").symlink_to(secret)
    with pytest.raises(PoolError, match=r"vocab\.extra is a link to .*id_rsa"):
        open_pool({name: str(folder) for name, folder in pair.items()}, "base", fingerprints=False)
    recipe = pool.info.linear({"base": 0.5, "a": 0.5})
    with pytest.raises(PoolError, match=r"vocab\.extra is a link to .*id_rsa"):
        write_model(recipe, pool, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_files_of_the_hub_s_cache_are_links_and_are_copied(pair: dict[str, Path], tmp_path: Path) -> None:
    commit = tmp_path / "models--org--base" / "snapshots" / ("0" * 40)
    blobs = tmp_path / "models--org--base" / "blobs"
    commit.mkdir(parents=True)
    blobs.mkdir()
    for number, file in enumerate(pair["base"].iterdir()):
        file.rename(blobs / str(number))
        (commit / file.name).symlink_to(Path("..") / ".." / "blobs" / str(number))
    pool = open_pool({"base": str(commit), "a": str(pair["a"])}, "base", fingerprints=False)
    write_model(pool.info.linear({"base": 0.5, "a": 0.5}), pool, tmp_path / "out")
    copied = (tmp_path / "out" / "generation_config.json").read_bytes()
    assert copied == (commit / "generation_config.json").read_bytes()


def test_pipes_and_devices_are_no_files_of_a_model(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "model.safetensors")
    (tmp_path / "config.json").symlink_to("/dev/zero")
    with pytest.raises(PoolError, match="is not a regular file"):
        read_header(tmp_path / "model.safetensors")
    with pytest.raises(PoolError, match="not a regular file"):
        read_json(tmp_path / "config.json", "the model's configuration")


def test_a_card_cannot_make_a_licence_of_a_billion_letters(tmp_path: Path) -> None:
    laughs = "a: &a [ha, ha]\n" + "".join(f"{b}: &{b} [*{a}, *{a}]\n" for a, b in itertools.pairwise("abcd"))
    (tmp_path / "README.md").write_text(f"---\n{laughs}license: *d\n---\n")
    assert card_license(tmp_path) == {}
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n")
    assert card_license(tmp_path) == {"license": "mit"}
