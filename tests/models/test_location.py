from __future__ import annotations

from pathlib import Path

import pytest

from evomerge.errors import PoolError
from evomerge.models.checkpoints.location import Located, locate, resolve
from evomerge.recipes.slices import ModelRef

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hub cache on disk with one model at one commit, and no network."""
    from huggingface_hub import constants

    cache = tmp_path / "hub"
    repo = cache / "models--org--tiny"
    snapshot = repo / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(COMMIT)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return snapshot


def test_absolute_and_relative_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "models" / "math").mkdir(parents=True)
    expected = (tmp_path / "models" / "math").resolve()
    reference = ModelRef(str(expected))
    assert resolve(str(expected)) == (expected, reference)
    assert resolve("math", root=tmp_path / "models") == (expected, reference)
    monkeypatch.chdir(tmp_path / "models")
    assert resolve("math") == (expected, reference)
    assert resolve("./math", root=tmp_path) == (expected, reference)


def test_root_comes_before_the_current_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for parent in ("a", "b"):
        (tmp_path / parent / "math").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "a")
    assert resolve("math", root=tmp_path / "b")[0] == (tmp_path / "b" / "math").resolve()


def test_missing_folder_names_its_nearest_siblings(tmp_path: Path) -> None:
    for name in ("maths", "language", ".hidden"):
        (tmp_path / name).mkdir()
    with pytest.raises(PoolError) as caught:
        resolve("./math", root=tmp_path)
    assert "no folder ./math" in caught.value.given
    assert "did you mean 'maths'" in caught.value.allowed
    assert "hidden" not in str(caught.value)
    assert "hub id" in caught.value.do


def test_absolute_folder_is_never_taken_for_a_hub_id(tmp_path: Path) -> None:
    with pytest.raises(PoolError, match=f"no folder {tmp_path}/org/name"):
        resolve(f"{tmp_path}/org/name")


def test_file_and_empty_location_are_refused(tmp_path: Path) -> None:
    (tmp_path / "weights").write_text("")
    with pytest.raises(PoolError, match="is a file"):
        resolve("weights", root=tmp_path)
    with pytest.raises(PoolError, match="location is empty"):
        resolve("")


@pytest.mark.parametrize("location", ["org/tiny", "org/tiny@main", f"org/tiny@{COMMIT}"])
def test_hub_id_is_pinned_to_the_commit(hub: Path, location: str) -> None:
    folder, reference = resolve(location)
    assert folder == hub
    assert reference == ModelRef("org/tiny", revision=COMMIT)
    assert reference.identity == f"org/tiny@{COMMIT}"


def test_revision_argument_wins(hub: Path) -> None:
    assert resolve("org/tiny@other", revision="main")[1].revision == COMMIT


def test_a_local_folder_comes_before_the_hub(hub: Path, tmp_path: Path) -> None:
    (tmp_path / "org" / "tiny").mkdir(parents=True)
    assert resolve("org/tiny", root=tmp_path)[0] == (tmp_path / "org" / "tiny").resolve()


@pytest.mark.parametrize("location", ["org/unknown", "org/tiny@nowhere"])
def test_hub_id_that_cannot_be_found_offline(hub: Path, location: str, tmp_path: Path) -> None:
    with pytest.raises(PoolError) as caught:
        resolve(location, root=tmp_path)
    message = str(caught.value)
    assert f"{location} was taken as a hub id" in message
    assert f"no folder {tmp_path / location}" in message
    assert "\n" not in message


@pytest.fixture
def places(tmp_path: Path) -> Path:
    for name in ("base", "lora", "c++/base", "c++/lo+ra", "base+lora2"):
        (tmp_path / name).mkdir(parents=True)
    return tmp_path.resolve()


@pytest.mark.parametrize(
    ("location", "model", "adapter"),
    [
        ("base", "base", None),
        ("base+lora", "base", "lora"),
        ("./base+./lora", "base", "lora"),
        ("base+lora2", "base+lora2", None),
        ("c++/base", "c++/base", None),
        ("c++/base+lora", "c++/base", "lora"),
        ("c++/base+c++/lo+ra", "c++/base", "c++/lo+ra"),
        ("base+c++/lo+ra", "base", "c++/lo+ra"),
        ("base+lora2+lora", "base+lora2", "lora"),
    ],
)
def test_model_and_adapter(places: Path, location: str, model: str, adapter: str | None) -> None:
    found = locate(location, places)
    parts = ModelRef(str(places / model)), None if adapter is None else ModelRef(str(places / adapter))
    reference = ModelRef(parts[0].location, adapter=parts[1])
    assert found == Located(places / model, None if adapter is None else places / adapter, reference)
    assert locate(reference) == found
    assert locate(reference.address) == found


@pytest.mark.parametrize(
    ("location", "reference"),
    [
        ("org/tiny+lora", ModelRef("org/tiny", COMMIT, adapter=ModelRef("{}/lora"))),
        ("base+org/tiny@main", ModelRef("{}/base", adapter=ModelRef("org/tiny", COMMIT))),
        ("org/tiny+org/tiny@main", ModelRef("org/tiny", COMMIT, adapter=ModelRef("org/tiny", COMMIT))),
        (f"org/tiny@{COMMIT}+org/tiny", ModelRef("org/tiny", COMMIT, adapter=ModelRef("org/tiny", COMMIT))),
    ],
)
def test_model_and_adapter_are_pinned_each(hub: Path, places: Path, location: str, reference: ModelRef) -> None:
    found = locate(location, places).ref
    assert found.address.replace(str(places), "{}") == reference.address
    assert locate(found).ref == found
    assert found.adapter is not None
    assert (found.revision, found.adapter.revision) == (
        reference.revision,
        reference.adapter.revision if reference.adapter else None,
    )


@pytest.mark.parametrize(
    ("location", "message"),
    [
        ("base+lara", "no folder lara .*did you mean 'lora'"),
        ("bose+lora", "no folder bose .*did you mean 'base'"),
        ("base+", "an adapter's location is empty"),
        ("+lora", "a model's location is empty"),
        ("base+org/none", "so org/none was taken as a hub id"),
    ],
)
def test_a_part_that_is_not_found_is_named(hub: Path, places: Path, location: str, message: str) -> None:
    with pytest.raises(PoolError, match=message):
        locate(location, places)
