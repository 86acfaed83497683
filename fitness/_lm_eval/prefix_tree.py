"""Requests as a tree of their tokens: what several begin with is one path, computed once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fitness._lm_eval.model import TokenRequest


@dataclass
class Node:
    """Tokens that come one after the other, the same for all requests that go through them.

    Attributes:
        path: [at least `stop`] the tokens from the root to here, and what one of its requests has after.
        start, stop: which of these are the node's own.
        children: what follows, in the order of their tokens.
        scores: what is read from the logits of the node's tokens.
    """

    path: NDArray[np.int64]
    start: int
    stop: int
    children: list[Node] = field(default_factory=list)
    scores: list[Score] = field(default_factory=list)
    _size: tuple[int, int] | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Tokens of the node and all below it, and those of them whose logits are read; the tree is whole by then."""
        if self._size is None:
            for node in reversed([*self.walk()]):  # children first
                below = [child._size or (0, 0) for child in node.children]
                own = node.stop - node.start, len({score.depth for score in node.scores})
                node._size = own[0] + sum(size[0] for size in below), own[1] + sum(size[1] for size in below)
        assert self._size is not None
        return self._size

    @property
    def tokens(self) -> int:
        """How many tokens the node and all below it have."""
        return self.size[0]

    def walk(self) -> Iterator[Node]:
        """The node and all below it, parents first."""
        waiting = [self]
        while waiting:
            node = waiting.pop()
            yield node
            waiting.extend(reversed(node.children))


class Score(NamedTuple):
    """The log-likelihood of one token of one continuation.

    Attributes:
        depth: of the token before it, counted from the root: where its logits are.
        slot: its place among all tokens of all continuations.
        token: itself.
    """

    depth: int
    slot: int
    token: int


def prefix_tree(requests: Sequence[TokenRequest], max_length: int) -> list[Node]:
    """The roots of the tree of what a model reads for `requests`: of each its context and continuation but the last.

    Slots count the tokens of the first request's continuation, then those of the second's, and so on.

    Args:
        requests: as lm-eval asks them, each with a continuation.
        max_length: positions of the model; longer inputs lose tokens on the left, as in lm-eval.
    """
    inputs = [np.asarray(request.read(max_length), dtype=np.int64) for request in requests]
    first = np.cumsum([0, *(len(request.continuation) for request in requests)])
    roots: list[Node] = []
    open_nodes: list[Node] = []  # from the root to where the last request ended
    last: NDArray[np.int64] = np.empty(0, dtype=np.int64)
    # Bytes with the highest first are in the order of the numbers, and a fraction of a list of them.
    for index in sorted(range(len(inputs)), key=lambda index: inputs[index].astype(">i8").tobytes()):
        tokens = inputs[index]
        shared = _common(last, tokens)
        while open_nodes and open_nodes[-1].start >= shared:
            open_nodes.pop()
        if open_nodes and open_nodes[-1].stop > shared:
            _split(open_nodes[-1], shared)
        if len(tokens) > shared:
            node = Node(tokens, shared, len(tokens))
            (open_nodes[-1].children if open_nodes else roots).append(node)
            open_nodes.append(node)
        continuation = requests[index].continuation
        begin = len(tokens) - len(continuation)
        for node in reversed(open_nodes):
            for depth in range(max(node.start, begin), node.stop):
                place = depth - begin
                node.scores.append(Score(depth, int(first[index]) + place, continuation[place]))
            if node.start <= begin:
                break
        last = tokens
    return roots


def _common(one: NDArray[np.int64], other: NDArray[np.int64]) -> int:
    length = min(len(one), len(other))
    differing = np.flatnonzero(one[:length] != other[:length])
    return int(differing[0]) if len(differing) else length


def _split(node: Node, stop: int) -> None:
    """Make what a node has from `stop` on its child."""
    rest = Node(node.path, stop, node.stop, node.children, [s for s in node.scores if s.depth >= stop])
    node.children, node.stop = [rest], stop
    node.scores = [s for s in node.scores if s.depth < stop]
