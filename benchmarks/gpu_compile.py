"""Compile every Triton kernel for Hopper (sm_90) without a GPU: most of what a GPU would refuse shows here.

usage: python benchmarks/gpu_compile.py [--first] [--only PATTERN]
Prints what each tuning configuration (with --first, the first of each kernel) takes of shared memory and whether it runs on
the tensor cores; exits with 1 when a kernel does not compile. Tuning passes over configurations that do not fit.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SHARED_BYTES = 227 << 10  # of one block on an H100 or H200

D = 768
BFLOAT16, FLOAT32, FLOAT64, INT16, INT32, INT64 = "*bf16", "*fp32", "*fp64", "*i16", "*i32", "*i64"


def variants() -> Iterator[tuple[str, Any, dict[str, str], dict[str, Any]]]:
    """Yield a name, the kernel, the types of its arguments and its constants, for every way in which it is called."""
    from dexml.kernels import triton_pairs, triton_rescore, triton_rows, triton_scan, triton_softmax

    for copy in (False, True):
        for block in (16, 32, 64):
            types = {"high": BFLOAT16, "low": BFLOAT16, "labels": INT16 if copy else FLOAT32}
            types |= dict.fromkeys(("maxima", "tops", "totals"), FLOAT32)
            types |= {"B": "i32", "L": "i32", "groups": "i32", "unit": "fp32", "scale": "fp32"}
            constants: dict[str, Any] = {"D": D, "BLOCK_B": block, "GROUP": triton_scan.GROUP, "COPY": copy}
            yield f"scan {'int16' if copy else 'float32'} B={block}", triton_scan.scan_kernel, types, constants
    ragged = {"D": 100, "BLOCK_B": 16, "GROUP": triton_scan.GROUP, "COPY": False}
    yield "scan float32 D=100", triton_scan.scan_kernel, types | {"labels": FLOAT32}, ragged
    types = {"queries": FLOAT32, "labels": FLOAT32, "ids": INT64, "scores": FLOAT64, "K": "i32"}
    yield "rescore", triton_rescore.rescore_kernel, types, {"D": D}
    types = {"scores": FLOAT32, "mantissas": FLOAT32, "exponents": FLOAT64, "N": "i32", "scale": FLOAT64}
    yield "softmax sums", triton_softmax.sum_kernel, types, {"LONG": True}
    yield "softmax quotients", triton_softmax.divide_kernel, types | {"result": FLOAT32}, {"LONG": True}
    for operand, precision in ((BFLOAT16, "tf32"), (FLOAT32, "tf32x3")):
        name = "bfloat16" if operand == BFLOAT16 else "float32"
        types = {"queries": operand, "labels": operand, "rows": INT32, "columns": INT32, "scores": FLOAT32, "count": "i32"}
        yield f"pairs {name}", triton_pairs.pair_kernel, types, {"D": D}
        types = {"source": operand, "numbers": INT64, "pulls": FLOAT32, "starts": INT64, "targets": INT64, "result": FLOAT32}
        yield f"spread {name}", triton_pairs.spread_kernel, types, {"D": D, "BLOCK_D": 1024}
        common = {"queries": operand, "labels": operand, "starts": INT32}
        common |= {"rows_of_pairs": INT32, "columns_of_pairs": INT32, "B": "i32", "strips": "i32", "scale": "fp32"}
        fixed: dict[str, Any] = {"D": D, "STRIP": triton_pairs.STRIP, "BLOCK_B": 128, "PRECISION": precision}
        types = common | {"tops": FLOAT32, "totals": FLOAT32, "L": "i32"}
        yield f"partition {name}", triton_rows.partition_kernel, types, fixed | {"EXCLUDE": True}
        types = common | {"shifts": FLOAT32, "weights": operand, "sums": FLOAT32, "slopes": FLOAT32}
        types |= {"begin": "i32", "end": "i32", "stride": "i32"}
        for kind, store in ((0, True), (0, False), (1, True), (2, True), (3, True)):
            more = {"KIND": kind, "STORE": store, "EXCLUDE": kind in (0, 3)}
            yield (
                f"weigh {name} kind {kind} {'stored' if store else 'summed'}",
                triton_rows.weigh_kernel,
                types,
                fixed | more,
            )


def compile_for_hopper(kernel: Any, types: dict[str, str], constants: dict[str, Any], first: bool) -> Iterator[tuple[str, Any]]:
    """Yield each tuning configuration in words with the compiled kernel."""
    from triton import compile as build
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    configs = getattr(kernel, "configs", [None])
    function = getattr(kernel, "fn", kernel) if configs != [None] else kernel
    for config in configs[:1] if first else configs:
        values = constants | ({} if config is None else config.kwargs)
        signature = {name: types.get(name, "constexpr") for name in function.arg_names}
        # What a launch would find out for itself: pointers and whole strides are aligned.
        aligned = {
            (place,): [["tt.divisibility", 16]]
            for place, name in enumerate(function.arg_names)
            if signature[name].startswith("*") or name in ("stride", "begin")
        }
        source = ASTSource(function, signature, {(function.arg_names.index(k),): v for k, v in values.items()}, aligned)
        options = {} if config is None else {"num_warps": config.num_warps, "num_stages": config.num_stages}
        yield str(config), build(source, target=GPUTarget("cuda", 90, 32), options=options)


def main() -> int:
    """Compile everything and return 1 if something did not."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--first", action="store_true", help="only the first configuration of each kernel")
    parser.add_argument("--only", default="", help="only kernels whose name this regular expression finds")
    chosen = parser.parse_args()
    if os.environ.get("TRITON_INTERPRET") == "1":
        parser.error("with TRITON_INTERPRET=1 there is nothing to compile")
    sys.path.insert(0, str(ROOT))
    failures = 0
    for name, kernel, types, constants in variants():
        if not re.search(chosen.only, name):
            continue
        start = time.perf_counter()
        try:
            for config, compiled in compile_for_hopper(kernel, types, constants, chosen.first):
                shared, ptx = compiled.metadata.shared, compiled.asm["ptx"]
                tensor_cores = "wgmma" if "wgmma.mma_async" in ptx else "mma" if "mma.sync" in ptx else "none"
                fits = "" if shared <= SHARED_BYTES else "  DOES NOT FIT"
                print(f"{name:32} shared {shared / 1024:5.0f} KiB  tensor cores {tensor_cores:6} {config}{fits}")
        except Exception as error:  # whatever the compiler raises is the finding
            failures += 1
            print(f"{name:32} FAILED: {type(error).__name__}: {error}")
        print(f"{name:32} {time.perf_counter() - start:.1f} s", flush=True)
    return int(failures > 0)


if __name__ == "__main__":
    sys.exit(main())
