from __future__ import annotations

import numpy as np
import pytest
import torch

from evomerge.merge.cache.memory_cache import MemoryCache
from evomerge.merge.cache.merged_slice import ALIGNMENT, Merged, Shapes, allocate

CPU = torch.device("cpu")


def slice_of(size: int, cost: float, owned: bool = True) -> Merged:
    return Merged((torch.zeros(size, dtype=torch.uint8),), cost, owned)


def test_what_is_put_can_be_taken_once() -> None:
    cache, one = MemoryCache(100), slice_of(60, 1.0)
    cache.put("a", one)
    assert (cache.used, len(cache)) == (60, 1)
    assert cache.take("b") is None
    assert cache.take("a") is one  # handed over, not copied
    assert cache.take("a") is None
    assert (cache.used, len(cache)) == (0, 0)


def test_evicts_what_costs_least_per_byte() -> None:
    cache = MemoryCache(100)
    cache.put("cheap", slice_of(50, 1.0))
    cache.put("dear", slice_of(10, 1.0))
    cache.put("middling", slice_of(40, 2.0))
    cache.put("new", slice_of(30, 0.3))  # costs less still, and yet is the newest
    assert cache.take("cheap") is None
    assert all(cache.take(key) is not None for key in ("dear", "middling", "new"))


def test_what_was_evicted_ages_the_rest() -> None:
    # Costs per byte: a 3, b 1, c 1. Evicting b raises the age to 1, so that c comes in with 2 and d, later, with 3.
    cache = MemoryCache(20)
    cache.put("a", slice_of(10, 30.0))
    cache.put("b", slice_of(10, 10.0))
    cache.put("c", slice_of(10, 10.0))
    cache.put("d", slice_of(10, 15.0))  # 2.5 for the one evicted, c: 2 < 3 of a
    assert cache.take("c") is None
    cache.put("e", slice_of(10, 20.0))  # a's 3 is now less than d's 2 + 1.5
    assert cache.take("a") is None
    assert cache.take("d") is not None
    assert cache.take("e") is not None


def test_a_slice_used_again_is_as_young_as_a_new_one() -> None:
    cache = MemoryCache(20)
    cache.put("old", slice_of(10, 10.0))
    cache.put("b", slice_of(10, 10.0))
    for round_ in range(5):  # each eviction ages what stays
        used = cache.take("old")
        assert used is not None
        cache.put("old", used)
        cache.put(f"new {round_}", slice_of(10, 9.5))
        assert len(cache) == 2


@pytest.mark.parametrize(
    "merged", [slice_of(101, 9.0), slice_of(10, 0.0), slice_of(10, 1.0, owned=False)], ids=["large", "free", "mapped"]
)
def test_what_is_not_kept(merged: Merged) -> None:
    cache = MemoryCache(100)
    cache.put("a", slice_of(100, 1.0))
    cache.put("b", merged)
    assert cache.take("b") is None
    assert cache.take("a") is not None  # and nothing was evicted for it


def test_a_second_slice_of_a_key_is_not_counted_twice() -> None:
    cache, first = MemoryCache(100), slice_of(40, 1.0)
    cache.put("a", first)
    cache.put("a", slice_of(40, 1.0))
    assert (cache.used, len(cache)) == (40, 1)
    assert cache.take("a") is first
    assert cache.used == 0


def test_no_budget_is_ever_exceeded() -> None:
    rng = np.random.default_rng(0)
    cache, held = MemoryCache(1000), dict[str, Merged]()
    for _ in range(5000):
        key = str(rng.integers(40))
        if rng.random() < 0.4:
            found = cache.take(key)
            if found is not None:
                assert found is held[key]
        else:
            merged = slice_of(int(rng.integers(0, 400)), float(rng.choice([0.0, rng.random(), 1.0])))
            if key not in cache._held:
                held[key] = merged
            cache.put(key, merged)
        assert 0 <= cache.used <= 1000
        assert cache.used == sum(m.nbytes for _, m in cache._held.values())
        assert all(held[k] is m for k, (_, m) in cache._held.items())


def test_a_long_run_of_hits_leaves_nothing_behind() -> None:
    cache = MemoryCache(1000)
    merged = [slice_of(100, 1.0) for _ in range(5)]
    for _ in range(2000):
        for i, one in enumerate(merged):
            cache.put(str(i), one)
        for i in range(5):
            assert cache.take(str(i)) is merged[i]
    assert len(cache._queue) < 2000
    for i, one in enumerate(merged):
        cache.put(str(i), one)
    cache.put("large", slice_of(1000, 1.0))  # the queue still knows all that is to be evicted
    assert len(cache) == 1


def test_room_grows_with_what_comes_back() -> None:
    cache = MemoryCache(1000, start=100)
    for number in range(200):
        cache.put(str(number), slice_of(50, 1.0))  # none comes back
        assert cache.used <= 100
    for number in range(2000):
        key = str(number % 15)
        cache.take(key)
        cache.put(key, slice_of(50, 1.0))
        assert cache.used <= cache.allowed <= 1000
    assert cache.allowed >= 15 * 50
    assert all(cache.take(str(number)) is not None for number in range(15))


SHAPES: tuple[Shapes, ...] = (
    (((3, 5), torch.float32), ((7,), torch.bfloat16)),
    (((7,), torch.bfloat16), ((3, 5), torch.float32)),
    (((), torch.float32), ((0, 4), torch.float16), ((1,), torch.int64)),
)


@pytest.mark.parametrize("shapes", SHAPES)
def test_memory_is_aligned_and_apart(shapes: Shapes) -> None:
    tensors = MemoryCache(0).empty(shapes, CPU)
    assert Merged(tensors).shapes == shapes
    for number, tensor in enumerate(tensors):
        assert tensor.data_ptr() % ALIGNMENT == 0 or not tensor.numel()
        assert tensor.is_contiguous()
        tensor.fill_(number + 1)
    assert all(bool((tensor == number + 1).all()) for number, tensor in enumerate(tensors))


def test_memory_of_evicted_slices_is_used_again() -> None:
    cache = MemoryCache(100)
    first = Merged(allocate(SHAPES[0], CPU), 1.0)
    cache.put("a", first)
    cache.put("b", slice_of(100, 9.0))
    again = cache.empty(SHAPES[0], CPU)
    assert again[0].data_ptr() == first.tensors[0].data_ptr()
    other = cache.empty(SHAPES[0], CPU)
    assert other[0].data_ptr() != first.tensors[0].data_ptr()


def test_memory_that_is_in_use_is_never_handed_out() -> None:
    """Slices in a model, in the cache and spare ones: what is in use keeps the number that was written into it."""
    rng = np.random.default_rng(1)
    cache = MemoryCache(600)
    model: dict[int, tuple[str, Merged, int]] = {}
    written: dict[str, int] = {}
    for step in range(1, 3000):
        place, key = int(rng.integers(4)), str(rng.integers(12))
        shapes = SHAPES[place % 2]
        key = f"{place % 2} {key}"  # keys of equal slices, which several places may hold
        found = cache.take(key)
        if found is None:
            memory = cache.empty(shapes, CPU)
            for tensor in memory:
                tensor.fill_(step % 251)
            if rng.random() < 0.1:  # the merge fails
                cache.recycle(Merged(memory))
                continue
            found = Merged(memory, float(rng.random()), owned=bool(rng.random() < 0.9))
            number = step % 251
        else:
            number = written[key]
        assert all(bool((tensor == number).all()) for tensor in found.tensors)
        if place in model:
            old_key, old, old_number = model[place]
            if old_key not in cache._held:
                written[old_key] = old_number
            cache.put(old_key, old)
        model[place] = key, found, number
        for _, held, expected in model.values():
            assert all(bool((tensor == expected).all()) for tensor in held.tensors), step
        for held_key, (_, held) in cache._held.items():
            assert all(bool((tensor == written[held_key]).all()) for tensor in held.tensors), step
