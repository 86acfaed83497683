"""Batches of a tree's tokens: which are run together, after which tokens, and what is read of their logits."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch

from fitness._lm_eval.prefix_tree import Node, Score

TRUNK = 16
"""Tokens of a trunk, at least: each is a forward of its own, and what follows attends to its keys and values."""
SAVED = 64
"""Tokens that it must save."""


@dataclass
class TokenBatch:
    """Tokens of a tree in one row, parents first: each attends to the trunk, its ancestors and itself.

    Attributes:
        inputs: [1, tokens] token ids.
        positions: [1, tokens] counted from the root.
        ends: [tokens] where in the row the last of a token's descendants is, and one more.
        rows: [rows] which tokens' logits are wanted.
        score_rows, tokens, slots: [scores] of each score its row, the token of the continuation, its slot.
        last_scores: [rows] how many scores there are up to each row's last.
        after: the batches that come after this one's tokens, which are then a trunk: their keys and values are kept.
    """

    inputs: torch.Tensor
    positions: torch.Tensor
    ends: torch.Tensor
    rows: torch.Tensor
    score_rows: torch.Tensor
    tokens: torch.Tensor
    slots: torch.Tensor
    last_scores: tuple[int, ...]
    after: list[TokenBatch] = field(default_factory=list)

    def scores_of(self, first: int, last: int) -> tuple[int, int]:
        """Where the scores of rows `first` to `last` begin and end."""
        return (self.last_scores[first - 1] if first else 0), self.last_scores[last - 1]

    def walk(self) -> Iterator[TokenBatch]:
        """The batch and all that come after it."""
        waiting = [self]
        while waiting:
            batch = waiting.pop()
            yield batch
            waiting.extend(reversed(batch.after))


def token_batches(roots: Sequence[Node], most_tokens: int, most_rows: int, device: torch.device) -> list[TokenBatch]:
    """Batches of about `most_tokens` tokens and at most `most_rows` rows of logits.

    What is too much for one batch is cut: a beginning that saves `SAVED` tokens is run once and kept, a shorter one is
    run again with each part. A long text alone is run part by part.
    """
    found, trunks = _level(roots, most_tokens, most_rows, device)
    while trunks:
        trunk, after = trunks.pop()
        trunk.after, more = _level(after, most_tokens, most_rows, device)
        trunks += more
    return found


def _level(
    nodes: Sequence[Node], most_tokens: int, most_rows: int, device: torch.device
) -> tuple[list[TokenBatch], list[tuple[TokenBatch, list[Node]]]]:
    """The batches of nodes that come after the same tokens, and what comes after those of them that are trunks."""
    batches = []
    trunks = []
    row: list[Node] = []
    tokens = rows = 0
    waiting = list(reversed(nodes))
    while waiting:
        node = waiting.pop()
        own_tokens, own_rows = node.size
        if own_rows > most_rows or own_tokens > 2 * most_tokens:
            trunk, parts = _cut(node, own_tokens, most_tokens, most_rows)
            if trunk is None:
                waiting.extend(reversed(parts))
            else:
                batches.append(_batch([trunk], device))
                trunks.append((batches[-1], parts))
            continue
        if row and (tokens + own_tokens > most_tokens or rows + own_rows > most_rows):
            batches.append(_batch(row, device))
            row, tokens, rows = [], 0, 0
        row.append(node)
        tokens, rows = tokens + own_tokens, rows + own_rows
    return ([*batches, _batch(row, device)] if row else batches), trunks


def _cut(node: Node, whole: int, most_tokens: int, most_rows: int) -> tuple[Node | None, list[Node]]:
    """What of a subtree that is too large comes first, as a trunk, if anything; and what comes after, or instead."""
    while len(node.children) == 1:
        (child,) = node.children
        node = Node(child.path, node.start, child.stop, child.children, [*node.scores, *child.scores])
    depths = sorted({score.depth for score in node.scores})
    stop = node.start + most_tokens if node.stop - node.start > 2 * most_tokens else node.stop
    if len(depths) > most_rows:
        stop = min(stop, depths[most_rows])
    if stop < node.stop:
        rest = Node(node.path, stop, node.stop, node.children, [])
        rest.scores = [score for score in node.scores if score.depth >= rest.start]
        return Node(node.path, node.start, rest.start, [], [s for s in node.scores if s.depth < rest.start]), [rest]
    own = node.stop - node.start
    if own >= TRUNK and own * (whole // most_tokens) >= SAVED:
        return Node(node.path, node.start, node.stop, [], node.scores), node.children
    parts: list[Node] = []
    tokens, rows = 0, len(depths)  # the first part reads what the beginning is asked for
    for child in node.children:
        own_tokens, own_rows = child.size
        if not parts or own + tokens + own_tokens > most_tokens or rows + own_rows > most_rows:
            parts.append(Node(node.path, node.start, node.stop, [], [] if parts else node.scores))
            tokens, rows = 0, rows if len(parts) == 1 else 0
        parts[-1].children.append(child)
        tokens, rows = tokens + own_tokens, rows + own_rows
    return None, parts


def _batch(nodes: Sequence[Node], device: torch.device) -> TokenBatch:
    inputs: list[int] = []
    positions: list[int] = []
    ends: list[int] = []
    rows: list[int] = []
    scores: list[tuple[int, Score]] = []
    for root in nodes:
        waiting: list[tuple[Node, bool]] = [(root, False)]
        begun: dict[int, int] = {}
        while waiting:
            node, done = waiting.pop()
            if done:
                first = begun.pop(id(node))
                ends[first : first + node.stop - node.start] = [len(inputs)] * (node.stop - node.start)
                continue
            offset = begun[id(node)] = len(inputs)
            inputs += node.path[node.start : node.stop].tolist()
            positions += range(node.start, node.stop)
            ends += [0] * (node.stop - node.start)
            of_depth: dict[int, int] = {}
            for score in sorted(node.scores, key=lambda score: score.depth):
                if score.depth not in of_depth:
                    of_depth[score.depth] = len(rows)
                    rows.append(offset + score.depth - node.start)
                scores.append((of_depth[score.depth], score))
            waiting.append((node, True))
            waiting.extend((child, False) for child in reversed(node.children))

    def tensor(values: Sequence[int]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.long, device=device)

    counts = [0] * len(rows)
    for row, _ in scores:
        counts[row] += 1
    return TokenBatch(
        tensor(inputs)[None],
        tensor(positions)[None],
        tensor(ends),
        tensor(rows),
        tensor([row for row, _ in scores]),
        tensor([score.token for _, score in scores]),
        tensor([score.slot for _, score in scores]),
        tuple(itertools.accumulate(counts)),
    )
