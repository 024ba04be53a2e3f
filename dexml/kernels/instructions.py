"""Vector instructions that numba does not reach by itself, written as LLVM: int16 dot products and a fused exp-and-compare.

Addresses are `array.ctypes.data`. Sixteen lanes (512 bits) is the unit; LLVM splits it where registers are narrower.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import llvmlite.binding as llvm  # type: ignore[import-untyped, unused-ignore]
from llvmlite import ir  # type: ignore[import-untyped, unused-ignore]
from numba import types
from numba.extending import intrinsic

LANES = 16
_I1, _I8, _I16, _I32, _I64 = (ir.IntType(bits) for bits in (1, 8, 16, 32, 64))
_F32 = ir.FloatType()
_VI, _VF = ir.VectorType(_I32, LANES), ir.VectorType(_F32, LANES)
# e^x = 2^n · p(t), t = x − n ln 2: the coefficients of XNNPACK's two-pass softmax (Dukhan and Ablavatski, 2020).
LOG2E, LN2_HIGH, LN2_LOW = 1.4426950216293335, 0.693147182464599609375, -1.904654323148236017e-9
EXP = (1.0, 0.99999964237213134765625, 0.49999389052391052, 0.16666504740715027, 0.04188167303800583, 0.00828929059207439)


@cache
def has_int16_products() -> bool:
    """Return whether this CPU multiplies and sums pairs of int16 in 512 bits (AVX-512 BW, better with VNNI)."""
    return bool(llvm.get_host_cpu_features().get("avx512bw"))


def _splat(builder: Any, value: Any, vector: Any) -> Any:
    one = builder.insert_element(ir.Constant(vector, ir.Undefined), value, ir.Constant(_I32, 0))
    mask = ir.Constant(ir.VectorType(_I32, LANES), [0] * LANES)
    return builder.shuffle_vector(one, ir.Constant(vector, ir.Undefined), mask)


def _load(builder: Any, address: Any, kind: Any, align: int = 4) -> Any:
    return builder.load(builder.inttoptr(address, kind.as_pointer()), align=align)


def _store(builder: Any, value: Any, address: Any, align: int = 4) -> None:
    builder.store(value, builder.inttoptr(address, value.type.as_pointer()), align=align)


def _number(value: int) -> Any:
    return ir.Constant(_I64, value)


def _same(value: Any, vector: Any = _VF) -> Any:
    return ir.Constant(vector, [value] * LANES)


def _function(builder: Any, name: str, result: Any, *arguments: Any) -> Any:
    return builder.module.declare_intrinsic(name, fnty=ir.FunctionType(result, arguments))


def _loop(builder: Any, count: Any, carried: list[Any], body: Callable[[Any, list[Any]], list[Any]]) -> list[Any]:
    """Emit `for i in range(count)` over loop-carried values and return their last values."""
    before = builder.block
    head, inside, after = (builder.append_basic_block(part) for part in ("head", "inside", "after"))
    builder.branch(head)
    builder.position_at_end(head)
    index = builder.phi(_I64)
    values = [builder.phi(value.type) for value in carried]
    builder.cbranch(builder.icmp_signed("<", index, count), inside, after)
    builder.position_at_end(inside)
    following = body(index, values)
    index.add_incoming(_number(0), before)
    index.add_incoming(builder.add(index, _number(1)), builder.block)
    for phi, first, later in zip(values, carried, following, strict=True):
        phi.add_incoming(first, before)
        phi.add_incoming(later, builder.block)
    builder.branch(head)
    builder.position_at_end(after)
    return values


def _int16_dot(builder: Any) -> Callable[[Any, Any, Any], Any]:
    """Return `sums + left · right` over pairs of int16, lane by lane, as int32."""
    if llvm.get_host_cpu_features().get("avx512vnni"):
        fused = _function(builder, "llvm.x86.avx512.vpdpwssd.512", _VI, _VI, _VI, _VI)
        return lambda sums, left, right: builder.call(fused, [sums, left, right])
    pairs = ir.VectorType(_I16, 2 * LANES)
    plain = _function(builder, "llvm.x86.avx512.pmaddw.d.512", _VI, pairs, pairs)
    return lambda sums, left, right: builder.add(
        sums, builder.call(plain, [builder.bitcast(left, pairs), builder.bitcast(right, pairs)])
    )


def _tile(labels: int, groups: int) -> Any:
    """Return the micro-kernel that multiplies `labels` rows with 16·`groups` packed queries, lanes running over queries.

    It writes float32 (labels, 16·groups): the int32 dot products times the `units` (16·groups) of their queries.
    """

    @intrinsic
    def tile(_context: Any, rows: Any, stride: Any, packed: Any, pairs: Any, units: Any, out: Any) -> Any:
        def emit(_context: Any, builder: Any, _signature: Any, given: Any) -> Any:
            rows, stride, packed, pairs, units, out = given
            dot = _int16_dot(builder)

            def step(i: Any, sums: list[Any]) -> list[Any]:
                base = builder.add(packed, builder.mul(i, _number(64 * groups)))
                columns = [_load(builder, builder.add(base, _number(64 * g)), _VI) for g in range(groups)]
                following = list(sums)
                for r in range(labels):
                    start = builder.add(rows, builder.mul(stride, _number(r)))
                    pair = _load(builder, builder.add(start, builder.mul(i, _number(4))), _I32)
                    spread = _splat(builder, pair, _VI)
                    for g in range(groups):
                        following[r * groups + g] = dot(sums[r * groups + g], spread, columns[g])
                return following

            sums = _loop(builder, pairs, [_same(0, _VI)] * (labels * groups), step)
            scales = [_load(builder, builder.add(units, _number(64 * g)), _VF) for g in range(groups)]
            for n, value in enumerate(sums):
                scores = builder.fmul(builder.sitofp(value, _VF), scales[n % groups])
                _store(builder, scores, builder.add(out, _number(64 * n)))
            return ir.Constant(_I32, 0)

        return types.int32(rows, stride, packed, pairs, units, out), emit

    return tile


def _row_product(queries: int, bits: int) -> Any:
    """Return the micro-kernel of one label row, `bits` wide, and int16 `queries` rows; lanes run along the dimension."""

    @intrinsic
    def row_product(_context: Any, row: Any, vectors: Any, pieces: Any, units: Any, out: Any, step: Any) -> Any:
        def emit(_context: Any, builder: Any, _signature: Any, given: Any) -> Any:
            row, vectors, pieces, units, out, out_step = given
            dot = _int16_dot(builder)
            stride = builder.mul(pieces, _number(64))

            def label(i: Any) -> Any:
                place = builder.add(row, builder.mul(i, _number(4 * bits)))
                if bits == 16:
                    return _load(builder, place, _VI)
                packed = _load(builder, place, ir.VectorType(_I8, 2 * LANES))
                return builder.bitcast(builder.sext(packed, ir.VectorType(_I16, 2 * LANES)), _VI)

            def body(i: Any, sums: list[Any]) -> list[Any]:
                offset, value = builder.mul(i, _number(64)), label(i)
                starts = [builder.add(vectors, builder.mul(stride, _number(q))) for q in range(queries)]
                return [
                    dot(total, value, _load(builder, builder.add(start, offset), _VI))
                    for total, start in zip(sums, starts, strict=True)
                ]

            sums = _loop(builder, pieces, [_same(0, _VI)] * queries, body)
            add = _function(builder, "llvm.vector.reduce.add.v16i32", _I32, _VI)
            for q, total in enumerate(sums):
                unit = _load(builder, builder.add(units, _number(4 * q)), _F32)
                score = builder.fmul(builder.sitofp(builder.call(add, [total]), _F32), unit)
                _store(builder, score, builder.add(out, builder.mul(out_step, _number(q))))
            return ir.Constant(_I32, 0)

        return types.int32(row, vectors, pieces, units, out, step), emit

    return row_product


tile_of_16, tile_of_32 = _tile(16, 1), _tile(8, 2)
# One row at a time: one stream runs at 35 GB/s here where eight side by side, which hide more latency, reach 21.
row_by_1, row_by_4 = _row_product(1, 16), _row_product(4, 16)
byte_row_by_1, byte_row_by_4 = _row_product(1, 8), _row_product(4, 8)


def _exp(builder: Any, x: Any) -> Any:
    """Return e^x of 16 lanes for x ≤ 88, relative error below 3e-7; 0 below −104."""
    fma = _function(builder, "llvm.fma.v16f32", _VF, _VF, _VF, _VF)
    rint = _function(builder, "llvm.rint.v16f32", _VF, _VF)
    larger = _function(builder, "llvm.maxnum.v16f32", _VF, _VF, _VF)
    x = builder.call(larger, [x, _same(-104.0)])
    n = builder.call(rint, [builder.fmul(x, _same(LOG2E))])
    t = builder.call(fma, [n, _same(-LN2_HIGH), x])
    t = builder.call(fma, [n, _same(-LN2_LOW), t])
    power = _same(EXP[-1])
    for coefficient in EXP[-2::-1]:
        power = builder.call(fma, [power, t, _same(coefficient)])
    whole = builder.add(builder.fptosi(n, _VI), _same(127, _VI))
    whole = builder.select(builder.icmp_signed(">", whole, _same(0, _VI)), whole, _same(0, _VI))
    return builder.fmul(power, builder.bitcast(builder.shl(whole, _same(23, _VI)), _VF))


@intrinsic
def absorb(_context: Any, scores: Any, count: Any, step: Any, scale: Any, work: Any, flags: Any) -> Any:
    """Over `count` vectors of 16 scores, `step` bytes apart: e = e^{scale·s − shift}, total += e, square += e²,
    moment += e·s, and flags[i] = bits of s ≥ bar.

    `work` points to 80 float32: 16 of shift, bar, total, square and moment each; `flags` to `count` uint16. Returns the union
    of all flags.
    """

    def emit(_context: Any, builder: Any, _signature: Any, given: Any) -> Any:
        scores, count, step, scale, work, flags = given
        shift, bar, *places = (builder.add(work, _number(64 * n)) for n in range(5))
        fma = _function(builder, "llvm.fma.v16f32", _VF, _VF, _VF, _VF)
        larger = _function(builder, "llvm.maxnum.v16f32", _VF, _VF, _VF)
        scales = _splat(builder, scale, _VF)
        shifts = builder.fneg(_load(builder, shift, _VF))
        bars = _load(builder, bar, _VF)

        def body(i: Any, carried: list[Any]) -> list[Any]:
            sums, squares, moments, union = carried
            s = _load(builder, builder.add(scores, builder.mul(i, step)), _VF)
            mass = _exp(builder, builder.call(fma, [s, scales, shifts]))
            sums, squares = builder.fadd(sums, mass), builder.call(fma, [mass, mass, squares])
            bits = builder.bitcast(builder.fcmp_ordered(">=", s, bars), _I16)
            _store(builder, bits, builder.add(flags, builder.mul(i, _number(2))), align=2)
            # Padding scores −∞: 0 · −∞ must not become NaN.
            moments = builder.call(fma, [mass, builder.call(larger, [s, _same(-3e38)]), moments])
            return [sums, squares, moments, builder.or_(union, bits)]

        *totals, union = _loop(builder, count, [*(_load(builder, p, _VF) for p in places), ir.Constant(_I16, 0)], body)
        for place, value in zip(places, totals, strict=True):
            _store(builder, value, place)
        return builder.zext(union, _I32)

    signature = types.int32(types.int64, types.int64, types.int64, types.float32, types.int64, types.int64)
    return signature, emit


@intrinsic
def weigh(_context: Any, scores: Any, values: Any, count: Any, scale: Any, work: Any) -> Any:
    """Over `count` consecutive vectors of 16: e = e^{scale·s − shift}, total += e, square += e², weighted += e·value.

    `work` points to 64 float32: 16 of shift, total, square and weighted each.
    """

    def emit(_context: Any, builder: Any, _signature: Any, given: Any) -> Any:
        scores, values, count, scale, work = given
        fma = _function(builder, "llvm.fma.v16f32", _VF, _VF, _VF, _VF)
        scales, shifts = _splat(builder, scale, _VF), builder.fneg(_load(builder, work, _VF))
        places = [builder.add(work, _number(64 * n)) for n in (1, 2, 3)]

        def body(i: Any, carried: list[Any]) -> list[Any]:
            total, square, weighted = carried
            offset = builder.mul(i, _number(64))
            s, value = (_load(builder, builder.add(start, offset), _VF) for start in (scores, values))
            mass = _exp(builder, builder.call(fma, [s, scales, shifts]))
            return [
                builder.fadd(total, mass),
                builder.call(fma, [mass, mass, square]),
                builder.call(fma, [mass, value, weighted]),
            ]

        for place, sums in zip(places, _loop(builder, count, [_load(builder, p, _VF) for p in places], body), strict=True):
            _store(builder, sums, place)
        return ir.Constant(_I32, 0)

    return types.int32(types.int64, types.int64, types.int64, types.float32, types.int64), emit


@intrinsic
def lane_maximum(_context: Any, scores: Any, count: Any, step: Any, best: Any) -> Any:
    """Raise the 16 float32 at `best` to the lane-wise maximum over `count` vectors of scores, `step` bytes apart."""

    def emit(_context: Any, builder: Any, _signature: Any, given: Any) -> Any:
        scores, count, step, best = given
        larger = _function(builder, "llvm.maxnum.v16f32", _VF, _VF, _VF)

        def body(i: Any, carried: list[Any]) -> list[Any]:
            return [builder.call(larger, [carried[0], _load(builder, builder.add(scores, builder.mul(i, step)), _VF)])]

        (top,) = _loop(builder, count, [_load(builder, best, _VF)], body)
        _store(builder, top, best)
        return ir.Constant(_I32, 0)

    return types.int32(types.int64, types.int64, types.int64, types.int64), emit


@intrinsic
def lowest_bit(_context: Any, bits: Any) -> Any:
    """Return the number of the lowest bit that is set in `bits`, which is not 0."""

    def emit(_context: Any, builder: Any, _signature: Any, given: Any) -> Any:
        count = _function(builder, "llvm.cttz.i32", _I32, _I32, _I1)
        return builder.call(count, [given[0], ir.Constant(_I1, 1)])

    return types.int32(types.int32), emit


@intrinsic
def prefetch(_context: Any, address: Any, lines: Any) -> Any:
    """Ask for `lines` cache lines from `address` on; any address will do."""

    def emit(_context: Any, builder: Any, _signature: Any, given: Any) -> Any:
        byte = ir.IntType(8).as_pointer()
        function = _function(builder, "llvm.prefetch.p0", ir.VoidType(), byte, _I32, _I32, _I32)
        read, keep, data = (ir.Constant(_I32, value) for value in (0, 3, 1))

        def body(i: Any, carried: list[Any]) -> list[Any]:
            line = builder.inttoptr(builder.add(given[0], builder.mul(i, _number(64))), byte)
            builder.call(function, [line, read, keep, data])
            return carried

        _loop(builder, given[1], [], body)
        return ir.Constant(_I32, 0)

    return types.int32(types.int64, types.int64), emit
