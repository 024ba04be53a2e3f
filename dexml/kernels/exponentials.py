"""Sweeps over a row of float32 scores for softmax, written as LLVM: largest score, sum of powers, and the quotients.

Every sweep is `name(address, [out,] count, ...)` over `count` float32, any count, any address; a rest of less than 16 is read
and written number by number. The power of a score s is 2^w = p(f)·2^n with w = (s − shift)·log₂e/τ, n = round(w) and f = w − n:

- log₂e/τ = high + low, two float32, so that f is right to 2^-26 as long as |w| ≤ REACH, whatever the size of n;
- `lowest` = −REACH·τ/log₂e stands in for every score below it, −∞ too; there n = −REACH, far below what a sum can notice;
- n is a float32, in which whole numbers are exact far beyond REACH, and 2^n is never formed: `exponent` is taken off n first,
  and p(f)·2^(n − exponent) is a float32 where `exponent` is near that of the row's sum.

A NaN among the scores makes the sum a NaN. Two passes with pairs: Dukhan and Ablavatski, 2020.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import llvmlite.binding as llvm  # type: ignore[import-untyped, unused-ignore]
from llvmlite import ir  # type: ignore[import-untyped, unused-ignore]
from numba import types
from numba.extending import intrinsic

from dexml.kernels.instructions import (
    _F32,
    _I16,
    _I32,
    _I64,
    _VF,
    _VI,
    LANES,
    _function,
    _load,
    _loop,
    _number,
    _same,
    _splat,
    _store,
)

REACH = 2.0**18  # the largest |w| whose fraction is right: s·high rounds by 2^-6 there, s·low reaches 2^-6
UNROLL = 4  # vectors side by side, each with a sum of its own: shorter chains, and a quarter of their rounding
# 2^f for |f| ≤ 1/2 to 1e-7, and to 5e-7 a 2^-5 beyond, where |w| nears REACH; a minimax fit with 2^0 = 1, so that equal scores
# divide evenly.
POWER = (1.0, 0.6931470036506653, 0.24022246897220612, 0.0555071085691452, 0.009671291336417198, 0.0013269521296024323)
_F64 = ir.DoubleType()
Values = list[Any]
# element(builder, score, sums) -> (number to write or None, new sums)
Element = Callable[[Any, Any, Values], tuple[Any, Values]]


def _sweep(builder: Any, address: Any, out: Any, count: Any, first: Values, element: Element, streaming: bool) -> list[Values]:
    """Emit `element` over `count` float32 and return UNROLL lists of what it carried, each begun as `first`."""
    size = len(first)

    def stretch(vectors: int, offset: Any) -> Callable[[Any, Values], Values]:
        """Return a loop's body over `vectors` vectors a step, `offset` bytes into the row."""

        def body(i: Any, carried: Values) -> Values:
            start = builder.add(offset, builder.mul(i, _number(64 * vectors)))
            following: Values = []
            for v in range(UNROLL):
                mine = carried[v * size : (v + 1) * size]
                if v < vectors:
                    place = builder.add(start, _number(64 * v))
                    score = _load(builder, builder.add(address, place), _VF)
                    written, mine = element(builder, score, mine)
                    if written is not None:
                        _put(builder, written, builder.add(out, place), streaming)
                following += mine
            return following

        return body

    whole, rest = builder.lshr(count, _number(4)), builder.and_(count, _number(LANES - 1))
    many, few = builder.udiv(whole, _number(UNROLL)), builder.urem(whole, _number(UNROLL))
    carried = _loop(builder, many, first * UNROLL, stretch(UNROLL, _number(0)))
    carried = _loop(builder, few, carried, stretch(1, builder.mul(many, _number(64 * UNROLL))))
    done = builder.mul(whole, _number(64))

    def last(_: Any, carried: Values) -> Values:
        score = _few_loaded(builder, builder.add(address, done), rest)
        written, mine = element(builder, score, carried[:size])
        if written is not None:
            _few_stored(builder, written, builder.add(out, done), rest)
        return mine + carried[size:]

    any_rest = builder.zext(builder.icmp_unsigned(">", rest, _number(0)), _I64)
    carried = _loop(builder, any_rest, carried, last)
    return [carried[v * size : (v + 1) * size] for v in range(UNROLL)]


def _put(builder: Any, value: Any, address: Any, streaming: bool) -> None:
    """Store a vector; `streaming` past the cache, which takes an address that is a multiple of 64."""
    if not streaming:
        _store(builder, value, address)
        return
    store = builder.store(value, builder.inttoptr(address, _VF.as_pointer()), align=64)
    store.set_metadata("nontemporal", builder.module.add_metadata([ir.Constant(_I32, 1)]))


def _few_loaded(builder: Any, address: Any, count: Any) -> Any:
    """Return `count` < 16 float32 in the first lanes and −∞ in the others."""

    def body(i: Any, carried: Values) -> Values:
        number = _load(builder, builder.add(address, builder.mul(i, _number(4))), _F32)
        return [builder.insert_element(carried[0], number, i)]

    return _loop(builder, count, [_same(float("-inf"))], body)[0]


def _few_stored(builder: Any, value: Any, address: Any, count: Any) -> None:
    def body(i: Any, _: Values) -> Values:
        _store(builder, builder.extract_element(value, i), builder.add(address, builder.mul(i, _number(4))))
        return []

    _loop(builder, count, [], body)


def _larger(builder: Any, candidate: Any, best: Any) -> Any:
    """Return the larger of two vectors, `best` where `candidate` is NaN: one instruction, unlike llvm.maxnum."""
    return builder.select(builder.fcmp_ordered(">", candidate, best), candidate, best)


def has_scaling() -> bool:
    """Return whether this CPU multiplies by 2^n in one instruction (AVX-512 F)."""
    return bool(llvm.get_host_cpu_features().get("avx512f"))


def scaled(builder: Any, value: Any, power: Any, fused: bool) -> Any:
    """Return value·2^power, rounded once, for whole `power` (float32) and 1/2 < |value| < 2; ∞ far above, 0 far below."""
    if fused:
        whole = ir.IntType(16)
        function = _function(builder, "llvm.x86.avx512.mask.scalef.ps.512", _VF, _VF, _VF, _VF, whole, _I32)
        return builder.call(function, [value, power, _same(0.0), ir.Constant(_I16, -1), ir.Constant(_I32, 4)])
    # Two factors, since 2^power alone may be no float32; the first is exact, so that a small result is rounded once.
    power = _larger(builder, power, _same(-252.0))
    power = builder.select(builder.fcmp_ordered("<", power, _same(252.0)), power, _same(252.0))
    whole = builder.fptosi(power, _VI)
    half = builder.ashr(whole, _same(1, _VI))
    for part in (half, builder.sub(whole, half)):
        bits = builder.shl(builder.add(part, _same(127, _VI)), _same(23, _VI))
        value = builder.fmul(value, builder.bitcast(bits, _VF))
    return value


class _Power:
    """Scores to (p(f), n), with the row's numbers held in vectors; `factor` multiplies p by way of its coefficients."""

    def __init__(self, builder: Any, high: Any, low: Any, shift: Any, lowest: Any, factor: Any = None) -> None:
        self.high, self.low, self.shift, self.lowest = (_splat(builder, x, _VF) for x in (high, low, shift, lowest))
        self.fma = _function(builder, "llvm.fma.v16f32", _VF, _VF, _VF, _VF)
        self.rint = _function(builder, "llvm.rint.v16f32", _VF, _VF)
        self.coefficients = [_same(c) for c in POWER]
        if factor is not None:
            self.coefficients = [builder.fmul(c, _splat(builder, factor, _VF)) for c in self.coefficients]

    def __call__(self, builder: Any, score: Any) -> tuple[Any, Any]:
        s = builder.fsub(score, self.shift)
        # The other way round than _larger: a NaN must stay one.
        s = builder.select(builder.fcmp_ordered(">", self.lowest, s), self.lowest, s)
        n = builder.call(self.rint, [builder.fmul(s, self.high)])
        f = builder.call(self.fma, [s, self.high, builder.fneg(n)])
        f = builder.call(self.fma, [s, self.low, f])
        power = self.coefficients[-1]
        for coefficient in self.coefficients[-2::-1]:
            power = builder.call(self.fma, [power, f, coefficient])
        return power, n


def _turned(lanes: int) -> Any:
    """Return the shuffle that turns a vector by `lanes`."""
    return ir.Constant(_VI, [(lane + lanes) % LANES for lane in range(LANES)])


def _total(builder: Any, sums: Values) -> Any:
    """Return the sum of four vectors as a float64."""
    pairs = builder.fadd(builder.fadd(sums[0], sums[1]), builder.fadd(sums[2], sums[3]))
    wide = builder.fpext(pairs, ir.VectorType(_F64, LANES))
    for half in (8, 4, 2, 1):
        wide = builder.fadd(wide, builder.shuffle_vector(wide, wide, _turned(half)))
    return builder.extract_element(wide, ir.Constant(_I32, 0))


def _top(builder: Any, tops: Values) -> Any:
    """Return the largest of the lanes of several vectors."""
    best = tops[0]
    for other in tops[1:]:
        best = _larger(builder, other, best)
    for half in (8, 4, 2, 1):
        best = _larger(builder, builder.shuffle_vector(best, best, _turned(half)), best)
    return builder.extract_element(best, ir.Constant(_I32, 0))


@intrinsic
def largest(_context: Any, address: Any, count: Any) -> Any:
    """Return the largest of `count` float32, NaNs left out; −∞ where there is none."""

    def emit(_context: Any, builder: Any, _signature: Any, given: Any) -> Any:
        def element(builder: Any, score: Any, best: Values) -> tuple[Any, Values]:
            return None, [_larger(builder, score, best[0])]

        address, count = given
        ends = _sweep(builder, address, address, count, [_same(float("-inf"))], element, False)
        return _top(builder, [end[0] for end in ends])

    return types.float32(types.int64, types.int64), emit


@intrinsic
def power_sum(_context: Any, address: Any, count: Any, high: Any, low: Any, shift: Any, lowest: Any, exponent: Any) -> Any:
    """Return Σ 2^(w − exponent), float64, of at most a few thousand scores: lanes are summed in float32."""

    def emit(_context: Any, builder: Any, _signature: Any, given: Any) -> Any:
        address, count, high, low, shift, lowest, exponent = given
        power, base = _Power(builder, high, low, shift, lowest), _splat(builder, exponent, _VF)

        def element(builder: Any, score: Any, sums: Values) -> tuple[Any, Values]:
            mantissa, n = power(builder, score)
            value = scaled(builder, mantissa, builder.fsub(n, base), has_scaling())
            return None, [builder.fadd(sums[0], value)]

        ends = _sweep(builder, address, address, count, [_same(0.0)], element, False)
        return _total(builder, [end[0] for end in ends])

    return types.float64(types.int64, types.int64, *[types.float32] * 5), emit


@intrinsic
def pair_sum(_context: Any, address: Any, count: Any, high: Any, low: Any, shift: Any, lowest: Any, exponent: Any) -> Any:
    """Return (Σ 2^(w − exponent), the largest n − exponent): power_sum, and by how much its exponent is too low."""

    def emit(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        address, count, high, low, shift, lowest, exponent = given
        power, base = _Power(builder, high, low, shift, lowest), _splat(builder, exponent, _VF)

        def element(builder: Any, score: Any, carried: Values) -> tuple[Any, Values]:
            mantissa, n = power(builder, score)
            rise = builder.fsub(n, base)
            value = scaled(builder, mantissa, rise, has_scaling())
            return None, [builder.fadd(carried[0], value), _larger(builder, rise, carried[1])]

        ends = _sweep(builder, address, address, count, [_same(0.0), _same(float("-inf"))], element, False)
        total, rise = _total(builder, [end[0] for end in ends]), _top(builder, [end[1] for end in ends])
        return context.make_tuple(builder, signature.return_type, [total, rise])

    result = types.Tuple((types.float64, types.float32))
    return result(types.int64, types.int64, *[types.float32] * 5), emit


@intrinsic
def powers(
    _context: Any, address: Any, out: Any, count: Any, high: Any, low: Any, shift: Any, lowest: Any, exponent: Any
) -> Any:
    """Write 2^(w − exponent) to `out` and return their sum, as power_sum does."""

    def emit(_context: Any, builder: Any, _signature: Any, given: Any) -> Any:
        address, out, count, high, low, shift, lowest, exponent = given
        power, base = _Power(builder, high, low, shift, lowest), _splat(builder, exponent, _VF)

        def element(builder: Any, score: Any, sums: Values) -> tuple[Any, Values]:
            mantissa, n = power(builder, score)
            value = scaled(builder, mantissa, builder.fsub(n, base), has_scaling())
            return value, [builder.fadd(sums[0], value)]

        ends = _sweep(builder, address, out, count, [_same(0.0)], element, False)
        return _total(builder, [end[0] for end in ends])

    return types.float64(types.int64, types.int64, types.int64, *[types.float32] * 5), emit


def _quotients(streaming: bool) -> Any:
    @intrinsic
    def quotients(
        _context: Any,
        address: Any,
        out: Any,
        count: Any,
        high: Any,
        low: Any,
        shift: Any,
        lowest: Any,
        exponent: Any,
        factor: Any,
    ) -> Any:
        """Write factor·2^(w − exponent) to `out`, 1/2 ≤ factor ≤ 1."""

        def emit(_context: Any, builder: Any, _signature: Any, given: Any) -> Any:
            address, out, count, high, low, shift, lowest, exponent, factor = given
            power, base = _Power(builder, high, low, shift, lowest, factor), _splat(builder, exponent, _VF)

            def element(builder: Any, score: Any, _: Values) -> tuple[Any, Values]:
                mantissa, n = power(builder, score)
                return scaled(builder, mantissa, builder.fsub(n, base), has_scaling()), []

            _sweep(builder, address, out, count, [], element, streaming)
            return ir.Constant(_I32, 0)

        return types.int32(types.int64, types.int64, types.int64, *[types.float32] * 6), emit

    return quotients


def _multiples(streaming: bool) -> Any:
    @intrinsic
    def multiples(_context: Any, address: Any, out: Any, count: Any, factor: Any) -> Any:
        """Write factor·x to `out`."""

        def emit(_context: Any, builder: Any, _signature: Any, given: Any) -> Any:
            address, out, count, factor = given
            factors = _splat(builder, factor, _VF)

            def element(builder: Any, score: Any, _: Values) -> tuple[Any, Values]:
                return builder.fmul(score, factors), []

            _sweep(builder, address, out, count, [], element, streaming)
            return ir.Constant(_I32, 0)

        return types.int32(types.int64, types.int64, types.int64, types.float32), emit

    return multiples


quotients, quotients_streamed = _quotients(False), _quotients(True)
multiples, multiples_streamed = _multiples(False), _multiples(True)


@intrinsic
def streams_done(_context: Any) -> Any:
    """Make streamed stores visible to other cores before anything that is stored after."""

    def emit(_context: Any, builder: Any, _signature: Any, _given: Any) -> Any:
        if llvm.get_host_cpu_features().get("sse"):  # elsewhere the barrier that ends a parallel loop orders them too
            builder.call(_function(builder, "llvm.x86.sse.sfence", ir.VoidType()), [])
        return ir.Constant(_I32, 0)

    return types.int32(), emit
