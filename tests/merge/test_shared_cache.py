from __future__ import annotations

import errno
import json
import multiprocessing
import os
import resource
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from merge.cache_users import die, is_right, key_of, slice_of, stored, use

from evomerge.merge.cache import shared_cache
from evomerge.merge.cache.merged_slice import Merged
from evomerge.merge.cache.shared_cache import SharedCache, remove_if_unused

LARGE = 10**9


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "shared" / "cache"


def publish(cache: SharedCache, key: str, merged: Merged) -> None:
    assert cache.offer(key, merged) or cache.offer(key, merged)


def plain(size: int, cost: float) -> Merged:
    return Merged((torch.zeros(size, dtype=torch.uint8),), cost)


def test_published_at_the_second_computation_by_anyone(folder: Path) -> None:
    one, other = SharedCache(folder, LARGE), SharedCache(folder, LARGE)
    assert not one.offer(key_of(1), slice_of(key_of(1)))
    assert one.get(key_of(1)) is None
    assert other.offer(key_of(1), slice_of(key_of(1)))
    assert not other.offer(key_of(2), slice_of(key_of(2)))
    for cache in (one, other):
        found = cache.get(key_of(1))
        assert found is not None
        assert is_right(key_of(1), found)
        assert (found.cost, found.owned) == (1e-9, False)
        assert cache.get(key_of(2)) is None
    assert sorted(path.name for path in folder.glob("*.*")) == [f"{key_of(1)}.safetensors"]


def test_what_was_read_is_the_readers_own(folder: Path) -> None:
    cache = SharedCache(folder, LARGE)
    publish(cache, key_of(1), slice_of(key_of(1)))
    first = cache.get(key_of(1))
    assert first is not None
    for tensor in first.tensors:
        tensor.fill_(7)
    again = cache.get(key_of(1))
    assert again is not None
    assert is_right(key_of(1), again)


def test_evicted_files_stay_readable(folder: Path) -> None:
    cache = SharedCache(folder, 300_000)
    publish(cache, key_of(1), slice_of(key_of(1)))
    found = cache.get(key_of(1))
    for number in range(2, 40):
        cache.offer(key_of(number), slice_of(key_of(number), 1.0))
        cache.offer(key_of(number), slice_of(key_of(number), 1.0))
        assert stored(folder) <= 300_000
    assert cache.get(key_of(1)) is None
    assert found is not None
    assert is_right(key_of(1), found)


def test_evicts_by_cost_and_use(folder: Path) -> None:
    cache = SharedCache(folder, 100_000)  # four files of 20 kB, and the room that is left to others

    def there() -> str:
        return "".join(name for name, key in keys.items() if (folder / f"{key}.safetensors").exists())

    keys = {name: key_of(number) for number, name in enumerate("abcdefg")}
    for name, cost in (("a", 1.0), ("b", 3.0), ("c", 2.2), ("d", 4.0)):
        publish(cache, keys[name], plain(20_000, cost))
    assert there() == "abcd"
    publish(cache, keys["e"], plain(20_000, 2.5))  # a goes, everything new and used is one older from now on
    assert there() == "bcde"
    assert cache.get(keys["c"]) is not None  # 3.2
    publish(cache, keys["f"], plain(20_000, 0.7))  # b goes: 3
    assert there() == "cdef"
    publish(cache, keys["g"], plain(20_000, 0.8))  # c goes: 3.2
    assert there() == "defg"
    assert cache.get(keys["c"]) is None


def test_a_slice_larger_than_a_quarter_is_not_published(folder: Path) -> None:
    cache = SharedCache(folder, 100_000)
    for _ in range(3):
        assert not cache.offer(key_of(1), plain(25_001, 1.0))
    publish(cache, key_of(2), plain(25_000, 1.0))


def test_every_dtype_of_a_module(folder: Path) -> None:
    cache = SharedCache(folder, LARGE)
    dtypes = (torch.float64, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool)
    merged = Merged((*(torch.tensor([[1, 0, 1]], dtype=dtype) for dtype in dtypes), torch.zeros(0, 3)), 0.5)
    publish(cache, key_of(1), merged)
    found = cache.get(key_of(1))
    assert found is not None
    assert found.shapes == merged.shapes
    assert all(torch.equal(a, b) for a, b in zip(found.tensors, merged.tensors, strict=True))
    odd = Merged((torch.zeros(3, dtype=torch.complex64),), 0.5)
    assert not any(cache.offer(key_of(2), odd) for _ in range(3))


def _header(content: dict[str, Any], data: bytes = b"") -> bytes:
    text = json.dumps(content).encode()
    return len(text).to_bytes(8, "little") + text + data


@pytest.mark.parametrize(
    "spoil",
    [
        lambda good: b"",
        lambda good: b"\x00",
        lambda good: os.urandom(1000),
        lambda good: good[:-1],
        lambda good: good[: len(good) // 2],
        lambda good: good[:20],
        lambda good: (2**63).to_bytes(8, "little") + good[8:],
        lambda good: good + b"more",
        lambda good: _header({}),
        lambda good: _header({"0": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, b"1234"),
        lambda good: _header({"__metadata__": {}}),
        lambda good: _header({"__metadata__": {"cost": "much"}}),
        lambda good: _header(
            {"__metadata__": {"cost": "1"}, "x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, b"1234"
        ),
    ],
)
def test_files_that_are_none_of_ours_are_removed(folder: Path, spoil: Callable[[bytes], bytes]) -> None:
    cache = SharedCache(folder, LARGE)
    publish(cache, key_of(1), slice_of(key_of(1)))
    path = folder / f"{key_of(1)}.safetensors"
    content = spoil(path.read_bytes())
    path.unlink()
    path.write_bytes(content)
    assert cache.get(key_of(1)) is None
    assert not path.exists()
    assert cache.offer(key_of(1), slice_of(key_of(1)))  # seen before, so published at once
    found = cache.get(key_of(1))
    assert found is not None
    assert is_right(key_of(1), found)


def test_a_folder_in_the_place_of_a_file(folder: Path) -> None:
    cache = SharedCache(folder, LARGE)
    (folder / f"{key_of(1)}.safetensors").mkdir()
    assert cache.get(key_of(1)) is None
    assert not cache.offer(key_of(1), slice_of(key_of(1)))
    assert not cache.offer(key_of(1), slice_of(key_of(1)))


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """No file may grow beyond this size."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_survived(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = SharedCache(folder, LARGE)
    cache.offer(key_of(1), slice_of(key_of(1)))

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with largest_file(5000):
        assert not cache.offer(key_of(1), slice_of(key_of(1)))
    for name in ("replace", "utime"):
        with monkeypatch.context() as patch:
            patch.setattr(shared_cache.os, name, full)
            assert not cache.offer(key_of(1), slice_of(key_of(1)))
    assert list(folder.glob("*.*")) == []
    assert cache.offer(key_of(1), slice_of(key_of(1)))
    with largest_file(5000), pytest.raises(OSError, match=r"\[Errno"):  # no room for the table of keys
        SharedCache(folder.with_name("other"), LARGE)


def test_a_folder_that_is_gone(folder: Path) -> None:
    cache = SharedCache(folder, LARGE)
    publish(cache, key_of(1), slice_of(key_of(1)))
    mapped = cache.get(key_of(1))
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    assert cache.get(key_of(1)) is None
    assert not cache.offer(key_of(2), slice_of(key_of(2)))
    assert not cache.offer(key_of(2), slice_of(key_of(2)))
    assert mapped is not None
    assert is_right(key_of(1), mapped)
    cache.close()


def test_a_file_that_goes_while_files_are_counted(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = SharedCache(folder, 100_000)
    for number in range(3):
        publish(cache, key_of(number), plain(20_000, 1.0))
    own = cache._files

    def racing() -> tuple[list[tuple[int, int, str]], int]:
        files = own()
        for path in folder.glob("*.safetensors"):
            path.unlink()
        return files

    monkeypatch.setattr(cache, "_files", racing)
    cache.offer(key_of(4), plain(20_000, 1.0))
    cache.offer(key_of(4), plain(20_000, 1.0))
    assert [path.stem for path in folder.glob("*.safetensors")] == [key_of(4)]
    monkeypatch.setattr(cache, "_files", lambda: (_ for _ in ()).throw(FileNotFoundError("gone")))
    assert not cache.offer(key_of(5), plain(20_000, 1.0))
    assert not cache.offer(key_of(5), plain(20_000, 1.0))


def test_a_file_in_the_place_of_the_folder(folder: Path) -> None:
    folder.parent.mkdir()
    folder.write_text("mine")
    with pytest.raises(FileExistsError):
        SharedCache(folder, LARGE)
    assert folder.read_text() == "mine"


def test_only_its_owner_may_look(folder: Path) -> None:
    before = os.umask(0)
    try:
        SharedCache(folder, LARGE)
    finally:
        os.umask(before)
    assert folder.stat().st_mode & 0o777 == 0o700


def test_the_last_user_removes_a_temporary_folder(folder: Path) -> None:
    one, other = SharedCache(folder, LARGE), SharedCache(folder, LARGE)
    publish(one, key_of(1), slice_of(key_of(1)))
    remove_if_unused(folder)
    one.close()
    one.close()
    assert other.get(key_of(1)) is not None
    other.close()
    assert list(folder.parent.iterdir()) == []
    remove_if_unused(folder)
    stays = SharedCache(folder, LARGE, temporary=False)
    stays.close()
    assert folder.exists()
    remove_if_unused(folder)
    assert list(folder.parent.iterdir()) == []


def test_coming_and_going_at_once(folder: Path) -> None:
    errors: list[Exception] = []
    published: list[bool] = []

    def come_and_go() -> None:
        try:
            for number in range(60):
                cache = SharedCache(folder, LARGE)
                cache.offer(key_of(number), plain(10, 1.0))
                published.append(cache.offer(key_of(number), plain(10, 1.0)))  # unless another counts files just then
                cache.close()
        except Exception as error:
            errors.append(error)

    users = [threading.Thread(target=come_and_go) for _ in range(3)]
    for user in users:
        user.start()
    for user in users:
        user.join()
    assert errors == []
    assert sum(published) > 30
    assert list(folder.parent.iterdir()) == []


@pytest.mark.slow
def test_processes_never_see_a_file_that_is_not_whole(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    budget = 300_000  # some ten of forty files
    context = multiprocessing.get_context("spawn")
    dying = context.Process(target=die, args=(str(folder), budget, f"{key_of(1)}.12345678"))
    with context.Pool(3) as pool:
        asked = pool.starmap_async(use, [(str(folder), budget, seed, 4.0) for seed in range(3)])
        dying.start()
        results = asked.get(120)
    dying.join()
    assert dying.exitcode == 9
    for counts in results:
        assert (counts["wrong"], counts["torn"]) == (0, 0)
        assert counts["hits"] > 20
        assert counts["most"] <= 1.25 * budget  # files come and go while they are added up
    assert sum(counts["published"] for counts in results) > 50
    remove_if_unused(folder)  # if the one that died came last
    assert not folder.exists()


def test_half_files_of_the_dead_are_removed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = SharedCache(folder, 100_000)
    (folder / f"{key_of(1)}.12345678").write_bytes(bytes(80_000))
    publish_twice = [cache.offer(key_of(2), plain(20_000, 1.0)) for _ in range(2)]
    assert publish_twice == [False, False]  # it may be written yet
    time.sleep(0.5)
    monkeypatch.setattr(shared_cache, "_UNFINISHED", 0.4)
    assert cache.offer(key_of(2), plain(20_000, 1.0))
    assert [path.name for path in folder.glob("*.*")] == [f"{key_of(2)}.safetensors"]
