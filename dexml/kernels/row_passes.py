"""Passes over a row of scores, float32 or bfloat16, that read it once, sum in float32 lanes and may overwrite it in place.

Each is `name(address, vectors, scale, offset, sums)`: `vectors` of 16 scores from `address` on, z = scale·s + offset, and 32
float32 at `sums` to add to. They are made for rows that stay in a core's own cache, so that several passes cost one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir  # type: ignore[import-untyped, unused-ignore]
from numba import types
from numba.extending import intrinsic

from dexml.kernels.instructions import (
    _I16,
    _I32,
    _VF,
    _VI,
    LANES,
    _exp,
    _function,
    _load,
    _loop,
    _number,
    _same,
    _splat,
    _store,
)

Element = Callable[[Any, Any, list[Any]], tuple[Any, list[Any]]]
_VH = ir.VectorType(_I16, LANES)


def _widen(builder: Any, half: Any) -> Any:
    return builder.bitcast(builder.shl(builder.zext(half, _VI), _same(16, _VI)), _VF)


def _round(builder: Any, value: Any) -> Any:
    """Return bfloat16 bits, rounded to nearest even."""
    bits = builder.bitcast(value, _VI)
    odd = builder.and_(builder.lshr(bits, _same(16, _VI)), _same(1, _VI))
    return builder.trunc(builder.lshr(builder.add(builder.add(bits, odd), _same(0x7FFF, _VI)), _same(16, _VI)), _VH)


def _row_pass(element: Element, half: bool) -> Any:
    """Return the pass that maps `element(builder, z, sums) -> (new score or None, new sums)` over a row."""
    size, kind = (2, _VH) if half else (4, _VF)

    @intrinsic
    def row_pass(_context: Any, address: Any, vectors: Any, scale: Any, offset: Any, sums: Any) -> Any:
        def emit(_context: Any, builder: Any, _signature: Any, given: Any) -> Any:
            address, vectors, scale, offset, sums = given
            fma = _function(builder, "llvm.fma.v16f32", _VF, _VF, _VF, _VF)
            scales, offsets = _splat(builder, scale, _VF), _splat(builder, offset, _VF)

            def body(i: Any, carried: list[Any]) -> list[Any]:
                place = builder.add(address, builder.mul(i, _number(LANES * size)))
                score = _load(builder, place, kind, align=size)
                score = _widen(builder, score) if half else score
                written, following = element(builder, builder.call(fma, [score, scales, offsets]), carried)
                if written is not None:
                    _store(builder, _round(builder, written) if half else written, place, align=size)
                return following

            second = builder.add(sums, _number(64))
            before = [_load(builder, sums, _VF), _load(builder, second, _VF)]
            first, last = _loop(builder, vectors, before, body)
            _store(builder, first, sums)
            _store(builder, last, second)
            return ir.Constant(_I32, 0)

        return types.int32(types.int64, types.int64, types.float32, types.float32, types.int64), emit

    return row_pass


def _maximum(builder: Any, z: Any, sums: list[Any]) -> tuple[Any, list[Any]]:
    """Keep the maximum, and in the second sum a NaN that came by: `_exp` would make 0 of it, and nobody would see it."""
    larger = _function(builder, "llvm.maxnum.v16f32", _VF, _VF, _VF)
    missing = builder.fcmp_unordered("uno", z, z)
    return None, [builder.call(larger, [sums[0], z]), builder.select(missing, z, sums[1])]


def _exponentials(write: bool) -> Element:
    """Return the element e^z, z ≤ 88, summed, and written where asked for."""

    def element(builder: Any, z: Any, sums: list[Any]) -> tuple[Any, list[Any]]:
        value = _exp(builder, z)
        return value if write else None, [builder.fadd(sums[0], value), sums[1]]

    return element


def _sigmoid(builder: Any, z: Any) -> tuple[Any, Any, Any]:
    """Return e^{−|z|}, σ(z) and σ(−z), neither of them by a difference."""
    size = _function(builder, "llvm.fabs.v16f32", _VF, _VF)
    small = _exp(builder, builder.fneg(builder.call(size, [z])))
    large = builder.fdiv(_same(1.0), builder.fadd(_same(1.0), small))
    tail = builder.fmul(small, large)
    positive = builder.fcmp_ordered(">=", z, _same(0.0))
    return small, builder.select(positive, large, tail), builder.select(positive, tail, large)


def _slopes(write: bool) -> Element:
    """Return the element σ(z)σ(−z), written where asked for; the sums are Σσ(z) and Σσ(z)σ(−z)."""

    def element(builder: Any, z: Any, sums: list[Any]) -> tuple[Any, list[Any]]:
        _, up, down = _sigmoid(builder, z)
        slope = builder.fmul(up, down)
        return slope if write else None, [builder.fadd(sums[0], up), builder.fadd(sums[1], slope)]

    return element


def _softplus(builder: Any, z: Any, sums: list[Any]) -> tuple[Any, list[Any]]:
    """Write σ(z) and sum log(1 + e^z) = max(z, 0) + 2 artanh(u/(2 + u)), u = e^{−|z|}; NaN stays NaN."""
    fma = _function(builder, "llvm.fma.v16f32", _VF, _VF, _VF, _VF)
    small, up, _ = _sigmoid(builder, z)
    positive = builder.select(builder.fcmp_ordered("<=", z, _same(0.0)), _same(0.0), z)
    w = builder.fdiv(small, builder.fadd(_same(2.0), small))
    square = builder.fmul(w, w)
    series = _same(2 / 13)
    for odd in (11, 9, 7, 5, 3, 1):
        series = builder.call(fma, [series, square, _same(2 / odd)])
    value = builder.call(fma, [w, series, positive])
    return up, [builder.fadd(sums[0], value), sums[1]]


def _hinge(builder: Any, z: Any, sums: list[Any]) -> tuple[Any, list[Any]]:
    """Write max(0, z) and sum its square; NaN stays NaN."""
    value = builder.select(builder.fcmp_ordered("<=", z, _same(0.0)), _same(0.0), z)
    return value, [builder.fadd(sums[0], builder.fmul(value, value)), sums[1]]


maximum_32, maximum_16 = _row_pass(_maximum, False), _row_pass(_maximum, True)
exp_32, exp_16 = _row_pass(_exponentials(True), False), _row_pass(_exponentials(True), True)
exp_sum_32, exp_sum_16 = _row_pass(_exponentials(False), False), _row_pass(_exponentials(False), True)
slope_32, slope_16 = _row_pass(_slopes(True), False), _row_pass(_slopes(True), True)
slope_sum_32, slope_sum_16 = _row_pass(_slopes(False), False), _row_pass(_slopes(False), True)
softplus_32, softplus_16 = _row_pass(_softplus, False), _row_pass(_softplus, True)
hinge_32, hinge_16 = _row_pass(_hinge, False), _row_pass(_hinge, True)
