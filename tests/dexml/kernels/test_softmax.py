"""The CPU softmax: every float32 exponent, every kernel, in the cache and past it, and nothing written beyond a row."""

from __future__ import annotations

import math

import numba
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from dexml.errors import InputError
from dexml.kernels import exponentials, numba_softmax
from dexml.kernels.exponentials import REACH, has_scaling, scaled
from dexml.kernels.instructions import _VF, _load, _store
from dexml.kernels.numba_cpu import NumbaKernels
from dexml.kernels.numba_softmax import RECOMPUTED, THREE, TWO
from dexml.kernels.reference import ReferenceKernels

KERNELS = (TWO, THREE, RECOMPUTED)
LN2 = math.log(2)


def truth(scores: np.ndarray, temperature: float) -> np.ndarray:
    """Softmax in float64 by the difference to the maximum, which no input and no temperature can overflow to a NaN."""
    exact = scores.astype(np.float64)
    top = exact.max(-1, keepdims=True)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        powers = np.exp((exact - np.where(np.isinf(top), 0, top)) / temperature)
        total = powers.sum(-1, keepdims=True)
        return np.where(total > 0, powers / np.where(total > 0, total, 1), 0)


def agree(found: np.ndarray, scores: np.ndarray, temperature: float) -> None:
    expected = truth(scores, temperature)
    assert found.shape == scores.shape and found.dtype == np.float32
    # A part in 2·10^6 of a normal float32; below that, steps of 2^-149.
    assert (np.abs(found - expected) <= 1e-6 * expected + 2.0**-148).all()
    sums = found.astype(np.float64).sum(-1)
    assert (np.abs(sums - (expected.sum(-1) > 0)) <= 1e-6).all()


def computed(scores: np.ndarray, temperature: float, kernel: int | None = None, threads: int = 1) -> np.ndarray:
    out = torch.full(scores.shape, math.nan)
    numba.set_num_threads(threads)
    numba_softmax.compute(torch.from_numpy(scores), out, temperature, threads, kernel)
    return out.numpy()


@pytest.fixture(params=[False, True], ids=["cached", "streamed"])
def streamed(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    monkeypatch.setattr(numba_softmax, "STREAMING", 0 if request.param else 1 << 60)
    return request.param


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """One thread, or two that share every row they can."""
    monkeypatch.setattr(numba_softmax, "ALONE", 1)
    if request.param > numba.config.NUMBA_NUM_THREADS:
        pytest.skip("one core")
    return request.param


def floats(exponent: int, mantissas: np.ndarray, negative: np.ndarray | bool) -> np.ndarray:
    bits = np.asarray(negative).astype(np.uint32) << 31 | np.uint32(exponent) << 23 | mantissas.astype(np.uint32)
    return bits.view(np.float32)


@pytest.mark.parametrize("kernel", KERNELS)
def test_every_float32_exponent_at_temperatures_that_suit_it_and_that_do_not(kernel):
    random = np.random.default_rng(0)
    for exponent in range(255):
        mantissas = random.integers(0, 1 << 23, (4, 37), dtype=np.uint32)
        scores = floats(exponent, mantissas, random.random((4, 1)) < [[1.0], [0.0], [0.5], [0.5]])
        # Scores of a few, of hundreds, of millions of temperatures.
        for scale in (1e-3, 0.2, 8.0, 1e3, 3e6, 1e12):
            temperature = 2.0 ** (max(exponent, 1) - 127) / scale
            if numba_softmax.TEMPERATURES[0] <= temperature <= numba_softmax.TEMPERATURES[1]:
                agree(computed(scores, temperature, kernel), scores, temperature)
        agree(NumbaKernels().softmax(torch.from_numpy(scores), 1.0).numpy(), scores, 1.0)


anything = st.integers(0, 2**32 - 1).filter(lambda bits: bits >> 23 & 255 < 255)
near = st.builds(lambda e, m, s: s << 31 | e << 23 | m, st.integers(120, 136), st.integers(0, 2**23 - 1), st.integers(0, 1))
MINUS_INFINITY = 0xFF800000


@settings(max_examples=150, deadline=None)
@given(
    bits=st.lists(st.one_of(anything, near, st.just(MINUS_INFINITY)), min_size=1, max_size=90),
    repeats=st.sampled_from([1, 1, 3, 70]),
    temperature=st.one_of(st.floats(0.01, 100), st.floats(-45, 45).map(lambda power: 10.0**power)),
    kernel=st.sampled_from(KERNELS),
    streaming=st.sampled_from([0, 1 << 60]),
)
def test_any_bits_at_any_temperature(bits, repeats, temperature, kernel, streaming):
    scores = np.tile(np.array(bits, np.uint32).view(np.float32), repeats)[None]
    agree(NumbaKernels().softmax(torch.from_numpy(scores), temperature).numpy(), scores, temperature)
    if numba_softmax.TEMPERATURES[0] <= temperature <= numba_softmax.TEMPERATURES[1]:
        before, numba_softmax.STREAMING = numba_softmax.STREAMING, streaming
        try:
            agree(computed(scores, temperature, kernel), scores, temperature)
        finally:
            numba_softmax.STREAMING = before


@pytest.mark.parametrize("kernel", KERNELS)
def test_exponents_around_the_end_of_their_reach(kernel, threads):
    steps = np.linspace(-40, 40, 401)
    for end in (-REACH, 200 - REACH, -REACH / 2, REACH / 2, REACH - 200, REACH, 2 * REACH):
        for temperature in (1.0, 0.05, 77.0):
            scores = ((end + steps[None]) * LN2 * temperature).astype(np.float32).repeat(3, 0)
            agree(computed(scores, temperature, kernel, threads), scores, temperature)


@pytest.mark.parametrize("kernel", KERNELS)
def test_rows_that_rise_and_fall_by_more_than_a_float32_holds(kernel, threads, streamed):
    random = np.random.default_rng(1)
    ramp = np.repeat(np.arange(12) * 90.0, 1000) + random.normal(size=12_000)
    scores = np.stack([ramp, ramp[::-1], np.abs(ramp - 400), -np.abs(ramp - 400), 1e4 * ramp]).astype(np.float32)
    agree(computed(scores, 1.0, kernel, threads), scores, 1.0)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("width", [1, 2, 15, 16, 17, 63, 64, 65, 200, 2047, 2049, 16_400, 40_001])
def test_nothing_beyond_the_rows_is_read_or_written(kernel, width, threads, streamed):
    random = np.random.default_rng(width)
    for offset in (0, 3):
        room = np.full(3 * width + 96, 3e38, np.float32)  # a neighbour that would win every row
        scores = room[48 + offset :][: 3 * width].reshape(3, width)
        scores[:] = 5 * random.normal(size=scores.shape)
        target = torch.full((3 * width + 96,), -7.0)
        out = target[32 + offset :][: 3 * width].view(3, width)
        numba.set_num_threads(threads)
        numba_softmax.compute(torch.from_numpy(scores), out, 1.0, threads, kernel)
        agree(out.numpy(), scores, 1.0)
        assert (target[: 32 + offset] == -7).all() and (target[32 + offset + 3 * width :] == -7).all()


@pytest.mark.parametrize("kernel", KERNELS)
def test_infinities_and_nan(kernel, threads, streamed):
    scores = np.random.default_rng(2).normal(size=(9, 5003)).astype(np.float32)
    scores[0] = -np.inf
    scores[1, 100:] = -np.inf  # a part of the row, for a thread, is nothing but −∞
    scores[2, :4990] = -np.inf
    scores[3] = -np.inf
    scores[3, 4321] = -3e38
    scores[4, 77] = np.inf
    scores[5, 5002] = np.nan
    scores[6] = -np.inf
    scores[6, 9] = np.nan
    scores[7, 3] = 3e38
    scores[7, 4] = np.nan
    found = computed(scores, 0.3, kernel, threads)
    finite = [0, 1, 2, 3, 8]
    agree(found[finite], scores[finite], 0.3)
    assert (found[0] == 0).all() and found[3, 4321] == 1
    assert np.isnan(found[[4, 5, 6, 7]]).all()
    assert torch.isnan(torch.softmax(torch.from_numpy(scores), 1)[[4, 5, 6, 7]]).all()


@pytest.mark.parametrize("kernel", KERNELS)
def test_equal_scores_divide_evenly_and_a_shift_changes_nothing(kernel):
    for value in (0.0, -3e38, 3e38, 1e-45, 12345.678):
        assert (computed(np.full((1, 4096), value, np.float32), 0.7, kernel) == np.float32(1 / 4096)).all()
    scores = (np.random.default_rng(3).integers(-400, 400, (1, 3000)) / 16).astype(np.float32)
    plain = computed(scores, 1.0, kernel)
    for shift in (-1e5, -64.0, 3.0, 5e4):  # sums that float32 holds exactly
        assert (scores.astype(np.float64) + shift == scores + np.float32(shift)).all()
        assert np.allclose(computed(scores + np.float32(shift), 1.0, kernel), plain, rtol=1e-6, atol=0)


def test_the_kernel_is_picked_by_what_fits_the_cache_and_the_way_by_the_rows(monkeypatch):
    called = []
    monkeypatch.setattr(numba_softmax, "ALONE", 1000)
    monkeypatch.setattr(numba_softmax, "SHORT", 100)
    monkeypatch.setattr(numba_softmax, "CROSSOVER", 5000)
    monkeypatch.setattr(numba_softmax, "rows", lambda kernel, *_: called.append(("alone", kernel)))
    monkeypatch.setattr(numba_softmax, "rows_in_parallel", lambda kernel, *_: called.append(("rows", kernel)))
    monkeypatch.setattr(numba_softmax, "split_row", lambda kernel, *_: called.append(("split", kernel)))

    def call(count, width, threads):
        called.clear()
        numba_softmax.compute(torch.zeros(count, width), torch.zeros(count, width), 1.0, threads)
        return called

    assert call(9, 111, 2) == [("alone", THREE)]
    assert call(10, 499, 2) == [("rows", THREE)]
    assert call(10, 500, 2) == [("rows", TWO)]
    assert call(100, 99, 2) == [("rows", THREE)]
    assert call(1, 4999, 2) == [("split", THREE)]
    assert call(1, 5000, 2) == [("split", TWO)]
    assert call(5, 2000, 2) == [("rows", TWO), ("split", TWO)]
    assert call(5, 999, 2) == [("rows", THREE)]
    assert call(5, 2000, 1) == [("alone", TWO)]


@pytest.mark.parametrize("crossover", [1, 1 << 60])
def test_both_sides_of_the_crossover_agree(monkeypatch, crossover):
    monkeypatch.setattr(numba_softmax, "CROSSOVER", crossover)
    scores = 4 * torch.randn(3, 30_011, generator=torch.Generator().manual_seed(8))
    agree(NumbaKernels().softmax(scores, 0.4).numpy(), scores.numpy(), 0.4)


def test_the_crossovers_come_from_the_caches_unless_they_are_set(monkeypatch):
    assert numba_softmax.crossover() > 1024 and numba_softmax.streaming() > 1024
    monkeypatch.setattr(numba_softmax, "CROSSOVER", 5)
    monkeypatch.setattr(numba_softmax, "STREAMING", 6)
    assert (numba_softmax.crossover(), numba_softmax.streaming()) == (5, 6)


def test_shapes_types_and_strides():
    kernels = NumbaKernels()
    base = 5 * torch.randn(6, 10, 30, generator=torch.Generator().manual_seed(4))
    for scores in (base, base.transpose(0, 2), base[:, ::2], base[..., ::3], base[0, 0], base[:1, :1].expand(6, 9, 30)):
        before = scores.clone()
        agree(kernels.softmax(scores, 0.5).numpy(), scores.numpy(), 0.5)
        assert torch.equal(scores, before)
    for kind in (torch.float16, torch.bfloat16, torch.int32):
        agree(kernels.softmax(base.to(kind)).numpy(), base.to(kind).float().numpy(), 1.0)
    for shape in ((0, 4), (4, 0), (0,), (2, 0, 3)):
        assert kernels.softmax(torch.empty(shape)).shape == shape
    assert kernels.softmax(torch.tensor(3.0)).item() == 1 and kernels.softmax(torch.tensor(-math.inf)).item() == 0
    large = torch.randn(3, 1 << 19, generator=torch.Generator().manual_seed(5))  # its result on huge pages
    found = kernels.softmax(large)
    agree(found.numpy(), large.numpy(), 1.0)
    assert found.data_ptr() % 64 == 0 and found.is_contiguous()


def test_float64_and_gradients_are_the_reference_s():
    scores = torch.randn(2, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(6))
    assert torch.equal(NumbaKernels().softmax(scores, 0.1), ReferenceKernels().softmax(scores, 0.1))
    assert torch.autograd.gradcheck(lambda s: NumbaKernels().softmax(s, 0.1), scores.requires_grad_())
    single = scores.detach().float().requires_grad_()
    assert NumbaKernels().softmax(single).requires_grad
    with torch.no_grad():
        assert not NumbaKernels().softmax(single).requires_grad


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan, math.inf])
def test_a_temperature_that_is_none_is_refused(temperature):
    with pytest.raises(InputError, match="temperature must be a finite number above 0"):
        NumbaKernels().softmax(torch.zeros(2, 3), temperature)


def scaler(fused):
    @intrinsic
    def scale(_context, value, power, out):
        def emit(_context, builder, _signature, given):
            value, power, out = given
            _store(builder, scaled(builder, _load(builder, value, _VF), _load(builder, power, _VF), fused), out)
            return ir.Constant(ir.IntType(32), 0)

        return types.int32(types.int64, types.int64, types.int64), emit

    @numba.njit
    def run(value, power, out):
        for start in range(0, len(value), 16):
            scale(value[start:].ctypes.data, power[start:].ctypes.data, out[start:].ctypes.data)

    return run


@pytest.mark.parametrize("fused", [False, True])
def test_multiplying_by_a_power_of_two_with_and_without_the_instruction(fused):
    if fused and not has_scaling():
        pytest.skip("this CPU has no AVX-512 F")
    power = np.concatenate([np.arange(-200.0, 140.0), [-1e6, -REACH, REACH, 1e6] * 3]).astype(np.float32)
    value = np.random.default_rng(7).uniform(0.5, 2, len(power)).astype(np.float32)
    value[-4:] = np.nan
    found = np.empty_like(value)
    scaler(fused)(value, power, found)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        expected = (value.astype(np.float64) * 2.0 ** power.astype(np.float64).clip(-300, 300)).astype(np.float32)
    assert np.array_equal(found, expected, equal_nan=True)


def test_the_polynomial_is_as_good_as_it_says():
    for half, error in ((0.5, 1e-7), (0.5 + 2**-5, 5e-7)):
        f = np.linspace(-half, half, 10_001)
        power = np.polynomial.polynomial.polyval(f, exponentials.POWER)
        assert np.abs(power / 2**f - 1).max() <= error
