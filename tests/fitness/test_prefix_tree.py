"""The tree of requests' tokens and the batches that it is cut into."""

from __future__ import annotations

import random

import pytest
import torch

from fitness._lm_eval import token_batches as cutting
from fitness._lm_eval.model import TokenRequest
from fitness._lm_eval.prefix_tree import Node, prefix_tree
from fitness._lm_eval.token_batches import TokenBatch, token_batches


def drawn(seed: int, count: int = 40, most: int = 14, words: int = 4) -> list[TokenRequest]:
    """Requests of few words, so that they begin alike at many lengths; some are equal, some begin another."""
    rng = random.Random(seed)
    found = []
    for _ in range(count):
        tokens = [rng.randrange(words) for _ in range(rng.randint(2, most))]
        cut = rng.randint(0, len(tokens) - 1)
        found.append(TokenRequest(None, tokens[:cut], tokens[cut:]))
    return found + found[:3]


def inputs(requests: list[TokenRequest], limit: int) -> list[tuple[int, ...]]:
    return [tuple((r.context + r.continuation)[-(limit + 1) :][:-1]) for r in requests]


def paths(roots: list[Node]) -> dict[int, tuple[int, ...]]:
    """What a model has read when it is asked for a slot."""
    found = {}
    for root in roots:
        for node in root.walk():
            for score in node.scores:
                assert node.start <= score.depth < node.stop
                assert score.slot not in found
                found[score.slot] = tuple(node.path[: score.depth + 1].tolist())
    return found


@pytest.mark.parametrize("limit", [64, 6])
@pytest.mark.parametrize("seed", range(20))
def test_every_distinct_beginning_is_there_once(seed: int, limit: int) -> None:
    requests = [r for r in drawn(seed) if len(r.continuation) <= limit and len(r.context + r.continuation) > 1]
    requests = [r for r in requests if len(r.continuation) <= len(inputs([r], limit)[0])]
    roots = prefix_tree(requests, limit)
    distinct = {tokens[: i + 1] for tokens in inputs(requests, limit) for i in range(len(tokens))}
    assert sum(root.tokens for root in roots) == len(distinct)
    found = paths(roots)
    slot = 0
    for request, tokens in zip(requests, inputs(requests, limit), strict=True):
        for place in range(len(request.continuation)):
            read = tokens[: len(tokens) - len(request.continuation) + place + 1]
            assert found[slot] == read
            slot += 1
    assert len(found) == slot


def seen(batch: TokenBatch, place: int, trunk: list[int]) -> tuple[int, ...]:
    """The tokens that one of a batch attends to, in order, itself last."""
    line, place = divmod(place, batch.inputs.shape[1])
    tokens, ends = batch.inputs[line].tolist(), batch.ends[line].tolist()
    return (*trunk, *(token for other, token in enumerate(tokens[: place + 1]) if place < ends[other]))


def read(batches: list[TokenBatch], trunk: list[int], found: dict[int, tuple[int, ...]]) -> int:
    """What each slot's row has seen; the tokens that are run."""
    total = 0
    for batch in batches:
        total += batch.count
        rows = batch.rows.tolist()
        assert rows == sorted(rows)
        assert batch.score_rows.tolist() == sorted(batch.score_rows.tolist())
        for row, slot in zip(batch.score_rows.tolist(), batch.slots.tolist(), strict=True):
            assert slot not in found
            found[slot] = seen(batch, rows[row], trunk)
            assert batch.positions.flatten()[rows[row]] == len(found[slot]) - 1
        for row in range(len(rows)):
            first, last = batch.scores_of(row, row + 1)
            assert set(batch.score_rows[first:last].tolist()) == {row}
        if batch.after:
            assert batch.ends.tolist() == [[batch.inputs.numel()] * batch.inputs.numel()]  # a path
            total += read(batch.after, trunk + batch.inputs[0].tolist(), found)
    return total


@pytest.mark.parametrize("line", [None, 1, 8, 30])
@pytest.mark.parametrize("trunk", [1, 3, 64])
@pytest.mark.parametrize(("most_tokens", "most_rows"), [(1000, 1000), (20, 1000), (8, 6), (1, 1)])
@pytest.mark.parametrize("seed", range(5))
def test_batches_read_what_the_requests_do(
    seed: int, most_tokens: int, most_rows: int, trunk: int, line: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cutting, "TRUNK", trunk)
    monkeypatch.setattr(cutting, "SAVED", trunk)
    requests = [r for r in drawn(seed) if r.context]
    roots = prefix_tree(requests, 64)
    expected, distinct = paths(roots), sum(root.tokens for root in roots)
    batches = token_batches(roots, most_tokens, most_rows, torch.device("cpu"), line=line)
    found: dict[int, tuple[int, ...]] = {}
    total = read(batches, [], found)
    assert found == expected
    assert total >= distinct
    if most_tokens == 1000:
        assert total == distinct if line is None else total <= (1 + cutting.REPEATED) ** 3 * distinct
        assert line is None or line > 8 or any(len(batch.inputs) > 1 for batch in batches)
    for batch in (b for root in batches for b in root.walk()):
        assert len(batch.rows) <= most_rows


def test_a_preamble_is_run_once() -> None:
    rng = random.Random(0)
    preamble = [rng.randrange(90) for _ in range(300)]
    requests = []
    for _ in range(50):
        question = [rng.randrange(90) for _ in range(20)]
        requests += [TokenRequest(None, preamble + question, [rng.randrange(90), 1]) for _ in range(4)]
    roots = prefix_tree(requests, 1000)
    (first,) = token_batches(roots, 256, 256, torch.device("cpu"))
    assert first.inputs.numel() == 300
    assert first.after
    total = sum(batch.inputs.numel() for batch in first.walk())
    assert total == sum(root.tokens for root in roots)
    assert all(batch.inputs.numel() <= 256 for batch in first.after)


@pytest.mark.parametrize("continuation", [[7], [7, 8]])  # a chain; a comb
def test_beginnings_of_beginnings_are_no_deep_recursion(continuation: list[int]) -> None:
    tokens = list(range(10, 2010))
    requests = [TokenRequest(None, tokens[:length], continuation) for length in range(1, 2000)]
    batches = token_batches(prefix_tree(requests, 5000), 64, 64, torch.device("cpu"))
    found: dict[int, tuple[int, ...]] = {}
    read(batches, [], found)
    assert len(found) == 1999 * len(continuation)


def test_lines_are_as_long_as_the_longest_of_a_batch_and_have_few_gaps() -> None:
    rng = random.Random(0)
    requests = [TokenRequest(None, [number, *range(rng.randint(3, 30))], [1]) for number in range(200)]
    batches = token_batches(prefix_tree(requests, 64), 256, 256, torch.device("cpu"), line=40)
    lengths = [batch.inputs.shape[1] for batch in batches]
    assert lengths == sorted(lengths, reverse=True)
    assert max(lengths) <= 40
    assert all(batch.inputs.numel() <= 256 for batch in batches)
    assert sum(batch.inputs.numel() for batch in batches) < 1.05 * sum(batch.count for batch in batches)


def test_a_subtree_is_cut_into_lines_where_little_is_run_again() -> None:
    few, many = [1, 2], [*range(1, 20)]
    for beginning, lines in ((few, 5), (many, 1)):
        requests = [TokenRequest(None, [*beginning, 30 + branch, *range(8)], [1]) for branch in range(10)]
        (batch,) = token_batches(prefix_tree(requests, 64), 1000, 1000, torch.device("cpu"), line=24)
        assert len(batch.inputs) == lines
        assert batch.count == 10 * 9 + len(beginning) * lines
