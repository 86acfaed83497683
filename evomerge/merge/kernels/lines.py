"""Mixes in vector registers: every source is read once, the result is written once, and nothing lies in between.

Written for LLVM by hand, because what numba makes of a loop stores each step of it, and cannot write past the cache.
The operations and their order are those of `torch_mix.mix_block`, bit for bit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from evomerge.merge.kernels.lanes import FLOAT, HALF, LONG, WORD, Lanes
from evomerge.merge.kernels.triple32 import ROUNDS, WRAP

STEP = 32
"""Elements of a step; whole steps are written past the cache."""

_LANES = 8  # float32 numbers of a vector
_AHEAD = 4096  # bytes: how far ahead of its use memory is asked for
_LINE = 64  # bytes
_FEW = 3  # inputs: up to here all sums of their votes are kept in registers


@intrinsic
def mix_lines(
    typing_context: Any,
    inputs: Any,
    weights: Any,
    base: Any,
    half: Any,
    limits: Any,
    masks: Any,
    votes: Any,
    least: Any,
    divisor: Any,
    scale: Any,
    start: Any,
    out: Any,
    stream: Any,
    over: Any,
    count: Any,
) -> Any:
    """Carry a mix out on `count` elements; the highest bit of the result is set when one is not finite.

    What is ``None`` is left out of the code, which is compiled for every such combination and number of inputs.

    Args:
        inputs: address of the addresses of the first elements, int64 each.
        weights: float64, one for each input; they and the other numbers are rounded to float32.
        base: address of the base's first element, or ``None``.
        half: ``None`` where everything is float32, else everything is bfloat16.
        limits: address of the least magnitudes that stay, then the largest, float32; or ``None``.
        masks: address of, for each input, the lower and the upper word of the key and the largest random number that
            stays, uint32; or ``None``.
        votes: address of what agreeing elements add to the divisor, float32; ``None`` for no election of signs.
        least: divisors up to it count as zero, float64; ``None`` for a sum without a divisor.
        divisor: float64, or ``None``.
        scale: float64.
        start: index of the first element in its tensor, for masks.
        out: address of the result's first element.
        stream: ``None`` to write through the cache; otherwise `out` is a multiple of 32 bytes.
        over: what carries the magnitudes that are stored as infinite into the highest bit, uint32.
        count: elements.
    """
    wanted = (inputs, weights, base, half, limits, masks, votes, least, divisor, scale, start, out, stream, over, count)
    given = {name: not isinstance(kind, types.NoneType) for name, kind in zip(_NAMES, wanted, strict=True)}

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        values = dict(zip(_NAMES, arguments, strict=True))
        values["weights"] = [builder.extract_value(values["weights"], i) for i in range(len(weights))]
        return _build(builder, {name: value for name, value in values.items() if given[name]}, len(weights))

    return types.uint32(*wanted), build


_NAMES = (
    *("inputs", "weights", "base", "half", "limits", "masks", "votes", "least", "divisor", "scale", "start"),
    *("out", "stream", "over", "count"),
)


@intrinsic
def where_given(typing_context: Any, given: Any, value: Any) -> Any:
    """The value, or ``None`` where `given` is: known when the code is compiled."""
    if isinstance(given, types.NoneType):
        return types.none(given, value), lambda context, builder, signature, arguments: context.get_dummy_value()
    return value(given, value), lambda context, builder, signature, arguments: arguments[1]


def _build(builder: Any, given: dict[str, Any], count: int) -> Any:
    """Whole steps in vectors, then the rest one by one."""
    end = given["count"]
    whole = builder.and_(end, ir.Constant(LONG, -STEP))
    peak = cgutils.alloca_once_value(builder, ir.Constant(ir.VectorType(WORD, _LANES), [0] * _LANES))
    rest = cgutils.alloca_once_value(builder, ir.Constant(WORD, 0))
    for lanes, begin, stop, step, seen in ((_LANES, LONG(0), whole, STEP, peak), (1, whole, end, 1, rest)):
        code = _Code(builder, given, count, lanes)
        with cgutils.for_range_slice(builder, begin, stop, LONG(step), LONG) as (index, _):
            bits = builder.load(seen)
            for bits_of_some in code.step(index, step):
                bits = builder.or_(bits, bits_of_some)
            builder.store(bits, seen)
    result, vector = builder.load(rest), builder.load(peak)
    for lane in range(_LANES):
        result = builder.or_(result, builder.extract_element(vector, WORD(lane)))
    return result


@dataclass
class _Mask:
    """The generator of one input's mask, and the largest number that stays: words in every lane."""

    lower: Any
    upper: Any
    last: Any


class _Code(Lanes):
    """The code of one step: what all steps share is made at once, outside the loop.

    Args:
        builder: of LLVM's code.
        given: arguments of `mix_lines` by name.
        count: inputs.
        lanes: elements at a time; 1 for plain numbers.
    """

    def __init__(self, builder: Any, given: dict[str, Any], count: int, lanes: int) -> None:
        super().__init__(builder, lanes)
        self.given, self.count = given, count
        self.width = 2 if "half" in given else 4
        addresses = [self.load_one(given["inputs"], i, LONG) for i in range(count)]
        self.inputs, self.base = addresses, given.get("base")
        self.weights = [self.rounded_to_single(weight) for weight in given["weights"]]
        self.limits = self.floats_at("limits", 2 * count)
        self.votes = self.floats_at("votes", count)
        self.least, self.divisor, self.scale = (
            self.rounded_to_single(given[name]) if name in given else None for name in ("least", "divisor", "scale")
        )
        self.over = self.all(given["over"])
        self.inverses = self.inverses_of_votes()
        self.masks = [self.mask(i) for i in range(count)] if "masks" in given else []
        self.numbers = self.constant(0) if lanes == 1 else ir.Constant(self.word, list(range(lanes)))

    def floats_at(self, name: str, count: int) -> list[Any]:
        """The float32 array of that name, each in every lane."""
        if name not in self.given:
            return []
        return [self.all(self.load_one(self.given[name], i, FLOAT)) for i in range(count)]

    def mask(self, index: int) -> _Mask:
        """An input's generator, for elements from `start`."""
        lower, upper, last = (self.load_one(self.given["masks"], 3 * index + i, WORD) for i in range(3))
        start = self.given["start"]
        lower = self.b.add(lower, self.b.trunc(start, WORD))
        wrapped = self.b.mul(self.b.trunc(self.b.lshr(start, LONG(32)), WORD), WORD(WRAP))
        return _Mask(self.all(lower), self.all(self.b.add(upper, wrapped)), self.all(last))

    def step(self, index: Any, elements: int) -> list[Any]:
        """Mix `elements` from `index` on; returns words whose highest bit says that a number is not finite."""
        sources = [*self.inputs, *([self.base] if self.base is not None else [])]
        offset = self.b.mul(index, LONG(self.width))
        if elements > 1:
            for source in sources:
                for line in range(0, elements * self.width, _LINE):
                    self.prefetch(self.b.add(self.b.add(source, offset), LONG(line + _AHEAD)))
        seen, results = [], []
        for first in range(0, elements, self.lanes):
            at = self.b.add(index, LONG(first))
            places = [self.b.add(self.b.add(s, offset), LONG(first * self.width)) for s in sources]
            number = self.mixed([self.load(place) for place in places], at)
            bits = self.b.bitcast(number, self.word)
            seen.append(self.b.add(self.b.and_(bits, self.constant(0x7FFFFFFF)), self.over))
            results.append(self.rounded(bits) if self.width == 2 else number)
        if self.width == 2 and self.lanes > 1:  # two vectors of bfloat16 make one of 32 bytes
            order = ir.Constant(ir.VectorType(WORD, 2 * self.lanes), list(range(2 * self.lanes)))
            pairs = zip(results[::2], results[1::2], strict=True)
            results = [self.b.shuffle_vector(one, two, order) for one, two in pairs]
        place = self.b.add(self.given["out"], offset)
        for number, value in enumerate(results):
            self.store(value, self.b.add(place, LONG(number * 4 * self.lanes)))
        return seen

    def mixed(self, values: list[Any], index: Any) -> Any:
        """The mix of one vector of each source."""
        origin = values.pop() if self.base is not None else None
        parts = []
        for number, value in enumerate(values):
            part = self.b.fsub(value, origin) if origin is not None else value
            if self.limits:
                part = self.cut(part, self.limits[number], self.limits[self.count + number])
            if self.masks:
                part = self.dropped(part, self.masks[number], index)
            parts.append(self.b.fmul(part, self.weights[number]))
        total = parts[0]
        for part in parts[1:]:
            total = self.b.fadd(total, part)
        if self.votes:
            total = self.elected(parts, total)
        elif self.divisor is not None:
            total = self.b.fdiv(total, self.divisor)
        total = self.b.fmul(total, self.scale)
        return self.b.fadd(total, origin) if origin is not None else total

    def cut(self, part: Any, low: Any, high: Any) -> Any:
        """What is neither below `low` nor above `high` in magnitude, zero elsewhere; a NaN is kept."""
        size = self.b.bitcast(self.b.and_(self.b.bitcast(part, self.word), self.constant(0x7FFFFFFF)), self.float)
        outside = self.b.or_(self.b.fcmp_ordered("<", size, low), self.b.fcmp_ordered(">", size, high))
        return self.b.select(outside, self.real(0.0), part)

    def dropped(self, part: Any, mask: _Mask, index: Any) -> Any:
        """What has a random number (see `masks`) up to the last that stays, zero elsewhere."""
        b = self.b
        x = b.add(b.add(mask.lower, self.all(b.trunc(index, WORD))), self.numbers)
        for number, (shift, factor) in enumerate(ROUNDS):
            if number == 1:
                x = b.add(x, mask.upper)
            x = b.mul(b.xor(x, b.lshr(x, self.constant(shift))), self.constant(factor))
        x = b.xor(x, b.lshr(x, self.constant(14)))
        # Both are below 2^31, where signed and unsigned order are one; processors have the signed one.
        return b.select(b.icmp_signed("<=", b.lshr(x, self.constant(1)), mask.last), part, self.real(0.0))

    def elected(self, parts: list[Any], total: Any) -> Any:
        """The sum of the parts whose sign is that of the total, positive where that is zero; over their votes."""
        b, zero = self.b, self.real(0.0)
        sign = b.bitcast(b.fadd(total, zero), self.word)  # adding zero makes -0 positive
        result, agree = zero, []
        for part in parts:
            bits = b.bitcast(part, self.word)
            # By bits, as a NaN has the sign of the sum that it makes a NaN.
            other = b.ashr(b.xor(bits, sign), self.constant(31))
            agreeing = b.bitcast(b.and_(bits, b.not_(other)), self.float)
            result = b.fadd(result, agreeing)
            agree.append(b.fcmp_unordered("!=", agreeing, zero))
        return result if self.least is None else b.fmul(result, self.inverse(agree))

    def inverse(self, agree: list[Any]) -> Any:
        """One over the votes of those that agree."""
        if self.inverses:
            values = self.inverses
            for some in reversed(agree):
                values = [
                    self.b.select(some, with_it, without)
                    for without, with_it in zip(values[::2], values[1::2], strict=True)
                ]
            return values[0]
        votes = self.real(0.0)
        for some, vote in zip(agree, self.votes, strict=True):
            votes = self.b.fadd(votes, self.b.select(some, vote, self.real(0.0)))
        return self.inverse_of(votes)

    def inverse_of(self, votes: Any) -> Any:
        """One over votes, or one where they are zero but for rounding."""
        size = self.b.bitcast(self.b.and_(self.b.bitcast(votes, self.word), self.constant(0x7FFFFFFF)), self.float)
        one = self.real(1.0)
        return self.b.fdiv(one, self.b.select(self.b.fcmp_ordered("<=", size, self.least), one, votes))

    def inverses_of_votes(self) -> list[Any]:
        """`inverse` for every choice of inputs, the last one's bit the lowest, where they are few: division is slow."""
        if self.least is None or not self.votes or self.count > _FEW:
            return []
        sums = [self.real(0.0)]
        for vote in self.votes:
            sums = [total for each in sums for total in (each, self.b.fadd(each, vote))]
        return [self.inverse_of(total) for total in sums]

    def rounded(self, bits: Any) -> Any:
        """The bfloat16 next to a float32, to even where two are."""
        even = self.b.and_(self.b.lshr(bits, self.constant(16)), self.constant(1))
        up = self.b.add(bits, self.b.add(even, self.constant(0x7FFF)))
        return self.b.trunc(self.b.lshr(up, self.constant(16)), self.many(HALF))

    def load(self, address: Any) -> Any:
        """Numbers as float32."""
        kind = self.many(HALF) if self.width == 2 else self.float
        value = self.b.load(self.b.inttoptr(address, kind.as_pointer()))
        value.align = self.width
        if self.width == 4:
            return value
        return self.b.bitcast(self.b.shl(self.b.zext(value, self.word), self.constant(16)), self.float)

    def store(self, value: Any, address: Any) -> None:
        """Write numbers, past the cache where that was asked for: the line is not read first."""
        store = self.b.store(value, self.b.inttoptr(address, value.type.as_pointer()))
        if "stream" in self.given and self.lanes > 1:
            store.align = 4 * self.lanes
            store.set_metadata("nontemporal", self.b.module.add_metadata([ir.Constant(WORD, 1)]))
        else:
            store.align = self.width
