"""Batches of a tree's tokens: which are run together, after which tokens, and what is read of their logits."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch

from fitness._lm_eval.prefix_tree import Node, Score

TRUNK = 16
"""Tokens of a trunk, at least: each is a forward of its own, and what follows attends to its keys and values."""
SAVED = 64
"""Tokens that it must save."""
REPEATED = 0.2
"""Of a subtree's tokens, those that may be run again so that its parts lie in shorter lines."""


@dataclass
class TokenBatch:
    """Tokens of a tree, parents first: each attends to the trunk, its ancestors in its line and itself.

    Attributes:
        inputs: [lines, length] token ids; a line alone after a trunk, and where it is one.
        positions: [lines, length] counted from the root.
        ends: [lines, length] where in the line the last of a token's descendants is, and one more; padding has none.
        count: tokens without the padding at the end of lines.
        rows: [rows] which tokens' logits are wanted, in the flattened [lines * length], ascending.
        score_rows, tokens, slots: [scores] of each score its row, the token of the continuation, its slot.
        last_scores: [rows] how many scores there are up to each row's last.
        after: the batches that come after this one's tokens, which are then a trunk: their keys and values are kept.
    """

    inputs: torch.Tensor
    positions: torch.Tensor
    ends: torch.Tensor
    count: int
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


def token_batches(
    roots: Sequence[Node], most_tokens: int, most_rows: int, device: torch.device, *, line: int | None = None
) -> list[TokenBatch]:
    """Batches of about `most_tokens` tokens and at most `most_rows` rows of logits.

    What is too much for one batch is cut: a beginning that saves `SAVED` tokens is run once and kept, a shorter one is
    run again with each part. A long text alone is run part by part.

    Args:
        roots: of the tree.
        most_tokens, most_rows: of a batch.
        device: where the batches are kept.
        line: of subtrees that come after no trunk, tokens from which on they are cut into parts where that repeats few;
            these lie in several lines. ``None`` for one line.
    """
    found, trunks = _level(roots, most_tokens, most_rows, device, line)
    while trunks:
        trunk, after = trunks.pop()
        trunk.after, more = _level(after, most_tokens, most_rows, device, None)
        trunks += more
    return found


def _level(
    nodes: Sequence[Node], most_tokens: int, most_rows: int, device: torch.device, line: int | None
) -> tuple[list[TokenBatch], list[tuple[TokenBatch, list[Node]]]]:
    """The batches of nodes that come after the same tokens, and what comes after those of them that are trunks."""
    batches = []
    trunks = []
    small: list[Node] = []
    waiting = list(reversed(nodes))
    while waiting:
        node = waiting.pop()
        own_tokens, own_rows = node.size
        if own_rows > most_rows or own_tokens > 2 * most_tokens:
            trunk, parts = _cut(node, own_tokens, most_tokens, most_rows)
            if trunk is None:
                waiting.extend(reversed(parts))
            else:
                batches.append(_batch([[trunk]], device))
                trunks.append((batches[-1], parts))
            continue
        small.append(node)
    packed = (
        _in_one_line(small, most_tokens, most_rows)
        if line is None
        else _in_lines([*_short(small, line)], most_tokens, most_rows)
    )
    return [*batches, *(_batch(found, device) for found in packed)], trunks


def _in_one_line(nodes: Sequence[Node], most_tokens: int, most_rows: int) -> Iterator[list[list[Node]]]:
    """Subtrees in their order, a line for each batch."""
    line: list[Node] = []
    tokens = rows = 0
    for node in nodes:
        own_tokens, own_rows = node.size
        if line and (tokens + own_tokens > most_tokens or rows + own_rows > most_rows):
            yield [line]
            line, tokens, rows = [], 0, 0
        line.append(node)
        tokens, rows = tokens + own_tokens, rows + own_rows
    if line:
        yield [line]


def _in_lines(nodes: Sequence[Node], most_tokens: int, most_rows: int) -> Iterator[list[list[Node]]]:
    """Subtrees in lines as long as the largest of a batch, the largest first: gaps take the largest that fits."""
    waiting = sorted(nodes, key=lambda node: node.tokens)
    sizes = [node.tokens for node in waiting]
    while waiting:
        length = sizes[-1]
        lines: list[list[Node]] = []
        rows = 0
        for _ in range(max(1, most_tokens // length)):
            line: list[Node] = []
            room = length
            while (place := bisect.bisect_right(sizes, room) - 1) >= 0:
                own_tokens, own_rows = waiting[place].size
                if (line or lines) and rows + own_rows > most_rows:
                    break
                line.append(waiting.pop(place))
                sizes.pop(place)
                room, rows = room - own_tokens, rows + own_rows
            if not line:
                break
            lines.append(line)
        yield lines


def _cut(node: Node, whole: int, most_tokens: int, most_rows: int) -> tuple[Node | None, list[Node]]:
    """What of a subtree that is too large comes first, as a trunk, if anything; and what comes after, or instead."""
    node = chained(node)
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
    return None, _parts(node, most_tokens, most_rows)


def _parts(node: Node, most_tokens: int, most_rows: int) -> list[Node]:
    """A subtree's children as several, each after the node's own tokens; the first reads what those are asked for."""
    own = node.stop - node.start
    parts: list[Node] = []
    tokens, rows = 0, len({score.depth for score in node.scores})
    for child in node.children:
        own_tokens, own_rows = child.size
        if not parts or own + tokens + own_tokens > most_tokens or rows + own_rows > most_rows:
            parts.append(Node(node.path, node.start, node.stop, [], [] if parts else node.scores))
            tokens, rows = 0, rows if len(parts) == 1 else 0
        parts[-1].children.append(child)
        tokens, rows = tokens + own_tokens, rows + own_rows
    return parts


def _short(nodes: Sequence[Node], line: int) -> Iterator[Node]:
    """Subtrees, those of more than `line` tokens as several where few tokens are repeated."""
    waiting = list(reversed(nodes))
    while waiting:
        node = waiting.pop()
        if node.tokens > line:
            node = chained(node)
            parts = _parts(node, line, node.size[1])
            if len(parts) > 1 and (node.stop - node.start) * (len(parts) - 1) <= REPEATED * node.tokens:
                waiting.extend(reversed(parts))
                continue
        yield node


def chained(node: Node) -> Node:
    """A node with the only children that come after it."""
    while len(node.children) == 1:
        (child,) = node.children
        node = Node(child.path, node.start, child.stop, child.children, [*node.scores, *child.scores])
    return node


def _batch(lines: Sequence[Sequence[Node]], device: torch.device) -> TokenBatch:
    length = max(sum(node.tokens for node in line) for line in lines)
    inputs: list[int] = []
    positions: list[int] = []
    ends: list[int] = []
    rows: list[int] = []
    scores: list[tuple[int, Score]] = []
    count = 0
    for number, line in enumerate(lines):
        begin = number * length
        for root in line:
            _lay(root, begin, inputs, positions, ends, rows, scores)
        used = len(inputs) - begin
        count += used
        inputs += [0] * (length - used)
        positions += [0] * (length - used)
        ends += range(used + 1, length + 1)  # each attends to itself, and nothing to it

    def tensor(values: Sequence[int]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.long, device=device)

    counts = [0] * len(rows)
    for row, _ in scores:
        counts[row] += 1
    return TokenBatch(
        tensor(inputs).view(len(lines), length),
        tensor(positions).view(len(lines), length),
        tensor(ends).view(len(lines), length),
        count,
        tensor(rows),
        tensor([row for row, _ in scores]),
        tensor([score.token for _, score in scores]),
        tensor([score.slot for _, score in scores]),
        tuple(itertools.accumulate(counts)),
    )


def _lay(
    root: Node,
    begin: int,
    inputs: list[int],
    positions: list[int],
    ends: list[int],
    rows: list[int],
    scores: list[tuple[int, Score]],
) -> None:
    """Put a subtree at the end of a line, which begins at `begin`."""
    waiting: list[tuple[Node, bool]] = [(root, False)]
    begun: dict[int, int] = {}
    while waiting:
        node, done = waiting.pop()
        if done:
            first = begun.pop(id(node))
            ends[first : first + node.stop - node.start] = [len(inputs) - begin] * (node.stop - node.start)
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
