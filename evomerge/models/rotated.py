"""Attention that was rotated to keep a model from being merged: recognised and refused, never undone.

MergeLock multiplies a head's queries and keys, or its values and outputs, by a matrix and its inverse: ``A W_Q`` and
``A^-T W_K``, ``A W_V`` and ``W_O A^-1``. The model computes what it did, and averages with others compute nothing. Seen
from the base, such a head's factors are far away although their product is near, and each is the base's factor times
a small matrix. Training moves a factor out of the space of the base's rows, and moves the product as far as the
factors; another seed has other rows altogether.

Rotary embeddings restrict `A` to rotations and scales of pairs of rows, norms of queries and keys to what keeps
lengths, and grouped queries share one `A`: all of these are found, as nothing but the heads' dimensions is assumed.
Heads in another order are not: they are honest, whatever a merge makes of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch

from evomerge.errors import PoolError
from evomerge.models.pool import Pool, unadapted

_FAR = 0.2
"""Relative difference of both factors above which a head is looked at: fine-tuning moves weights by far less."""
_SHARE = 1 / 3
"""Of the difference of the factors: product, and what no small matrix explains, stay below it."""
_HEADS = 0.5
"""Share of the heads looked at that are rotated in a rotated model."""

_SEPARATE = (
    ("q_proj", "k_proj", "v_proj", ("o_proj", "out_proj")),
    ("q_lin", "k_lin", "v_lin", ("out_lin",)),
    ("query", "key", "value", ("output.dense",)),
)


class Head(NamedTuple):
    """A head's weights, float32: queries, keys and values of shape ``(d, width)``, outputs ``(width, d)``."""

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    output: torch.Tensor


def refuse_rotated(pool: Pool) -> None:
    """Compare a sample of the sources' attention layers with the base's, or with the first source's without a base.

    The first, the middle and the last layer are read. Not looked at are adapters on the reference's own weights, pools
    of several depths, and attention whose queries, keys, values and outputs are not told apart by name.

    Raises:
        PoolError: names the model, and how many heads are rotated.
    """
    info = pool.info
    reference = info.base or info.sources[0]
    if info.uneven or info.layers < 1:
        return
    for name in info.sources:
        if name == reference or unadapted(pool.checkpoints[name]).folder == pool.folder(reference):
            continue
        found = total = 0
        for layer in sorted({0, info.layers // 2, info.layers - 1}):
            for ours, theirs in zip(heads(pool, name, layer), heads(pool, reference, layer), strict=True):
                found += is_rotated(ours, theirs)
                total += 1
        pool.release()
        pool.unmap()
        if total and found >= _HEADS * total:
            raise PoolError(
                f"model {name!r} protects its attention from being merged: {found} of {total} heads looked at are "
                f"those of {reference!r} times a matrix that the next weight takes back (MergeLock)",
                "models whose weights correspond; its owner does not want it merged, and evomerge does not undo it",
                "leave it out of the pool",
            )


def is_rotated(own: Head, base: Head) -> bool:
    """Whether queries and keys, or values and outputs, are the base's up to a matrix between them."""
    return _pair_is_rotated(own.query, own.key, base.query, base.key) or _pair_is_rotated(
        own.value, own.output.T, base.value, base.output.T
    )


def _pair_is_rotated(
    left: torch.Tensor, right: torch.Tensor, base_left: torch.Tensor, base_right: torch.Tensor
) -> bool:
    """Whether two factors of shape ``(d, width)`` are far and their product, ``left^T right``, is near."""
    far = min(_distance(left, base_left), _distance(right, base_right))
    if not far > _FAR:
        return False
    if _outside(left, base_left) > _SHARE * far or _outside(right, base_right) > _SHARE * far:
        return False
    # |P - P_0|^2 from matrices of d x d: the product itself is width x width.
    norms = [
        float(((a @ b.T).double() * (c @ d.T).double()).sum())
        for a, b, c, d in (
            (left, left, right, right),
            (left, base_left, right, base_right),
            (base_left, base_left, base_right, base_right),
        )
    ]
    squared = max(norms[0] - 2 * norms[1] + norms[2], 0.0)
    return bool(squared <= (_SHARE * far) ** 2 * norms[2])


def _distance(own: torch.Tensor, base: torch.Tensor) -> float:
    return float((own - base).norm() / base.norm().clamp(min=1e-30))


def _outside(own: torch.Tensor, base: torch.Tensor) -> float:
    """The share of a factor that no matrix times the base's gives: what lies outside of the space of its rows."""
    basis = torch.linalg.qr(base.T.double())[0]
    wide = own.double()
    return float((wide - (wide @ basis) @ basis.T).norm() / wide.norm().clamp(min=1e-300))


def heads(pool: Pool, model: str, layer: int) -> Iterator[Head]:
    """The heads of an attention layer, one for each of the queries; none where they are not told apart by name."""
    config = pool.config.get_text_config()
    count = getattr(config, "num_attention_heads", None)
    groups = getattr(config, "num_key_value_heads", None) or count
    if not (isinstance(count, int) and isinstance(groups, int)) or count < 1 or groups < 1 or count % groups:
        return  # other numbers in every layer, say
    slices = [own for own in pool.layout.slices if own.layer == layer and own.component == "attn"]
    names = [name for own in slices for name in pool.layout.tensors[own] if name.endswith(".weight")]
    found = _parts(pool, model, names, count, groups)
    if found is None:
        return
    query, key, value, output = found
    size = query.shape[0] // count
    if query.shape[0] != count * size or key.shape[0] != groups * size or output.shape[1] != count * size:
        return  # values of another size than keys, say
    for head in range(count):
        own = slice(head * size, (head + 1) * size)
        group = head // (count // groups)
        shared = slice(group * size, (group + 1) * size)
        yield Head(query[own], key[shared], value[shared], output[:, own])


def _parts(pool: Pool, model: str, names: list[str], count: int, groups: int) -> tuple[torch.Tensor, ...] | None:
    """Queries, keys, values (rows by head) and outputs (columns by head) of a layer, float32."""

    def find(*ends: str) -> str | None:
        return next((name for name in names for end in ends if name.endswith(f".{end}.weight")), None)

    def read(name: str) -> torch.Tensor:
        return pool.read(model, name).float()

    for query, key, value, outputs in _SEPARATE:
        chosen = [find(query), find(key), find(value), find(*outputs)]
        if all(name is not None for name in chosen):
            return tuple(read(name) for name in chosen if name is not None)
    joined, out = find("qkv_proj"), find("o_proj")
    if joined is not None and out is not None:
        rows = read(joined)
        size = rows.shape[0] // (count + 2 * groups)
        if rows.shape[0] == size * (count + 2 * groups):
            return (*rows.split([count * size, groups * size, groups * size]), read(out))
    joined, out = find("query_key_value"), find("attention.dense", "self_attention.dense")
    if (
        joined is not None
        and out is not None
        and groups == count
        and (rows := read(joined)).shape[0] % (3 * count) == 0
    ):
        by_head = rows.view(count, 3, -1, rows.shape[1])  # each head's queries, keys and values lie together
        return (*(by_head[:, part].reshape(-1, rows.shape[1]) for part in range(3)), read(out))
    joined, out = find("c_attn"), find("attn.c_proj")
    if joined is not None and out is not None and (rows := read(joined)).shape[1] == 3 * rows.shape[0]:
        return (*rows.T.chunk(3), read(out).T)  # inputs x outputs
    return None
