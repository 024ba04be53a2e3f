"""What `make gpu` says: a line a figure as it comes, and at the end the targets of issue 3 with a verdict each."""

from __future__ import annotations

from typing import Any

Result = dict[str, Any]
LIMIT_S = 480.0
SHARE_OF_RATE, BEYOND_GIB = 0.5, 12.0  # decoupled softmax at B=3,000, L=1,305,265, D=768
SHARE_OF_BANDWIDTH, QUERIES_UP_TO = 0.7, 32  # scans


def line(section: str, row: Result) -> str:
    """Return one measured row in words."""
    if section == "rates":
        return f"measured: {row['bfloat16_tflops']:.0f} TFLOP/s bfloat16, {row['bandwidth_gbs']:.0f} GB/s"
    if section == "decoupled_softmax_target":
        return (
            f"decoupled softmax {row['what']} by {row['backend']}: {row['ms']:.1f} ms (forward {row['forward_ms']:.1f}), "
            f"{100 * row['share_of_rate']:.0f}% of the measured bfloat16 rate, "
            f"{row['beyond_gib']:.2f} GiB beyond embeddings and gradients"
        )
    note = row.get("note", "")
    if section == "scan":
        note = f"{100 * row['share_of_bandwidth']:.0f}% of the bandwidth  {note}"
    return f"{section:8} {row['what']:44} {row['ms']:9.3f} ms  {row['ratio']:6.2f}× torch  {note}"


def targets(result: Result) -> list[Result]:
    """Return every target of issue 3 as what, value, wanted and passed; passed is None for what was not measured."""
    checks, cut = result["checks"], result["cut"]
    right = None if "checks" in cut else sum(check["passed"] for check in checks)
    found = [_target("checks that pass", right, len(checks), right == len(checks))]
    decoupled = result.get("decoupled_softmax_target") or [{}]
    share, beyond = decoupled[0].get("share_of_rate"), decoupled[0].get("beyond_gib")
    what = "decoupled softmax 3000 × 1305265 × 768"
    found.append(
        _target(f"{what}: share of the bfloat16 rate", share, f">= {SHARE_OF_RATE}", _is(share, lambda x: x >= SHARE_OF_RATE))
    )
    found.append(
        _target(
            f"{what}: GiB beyond embeddings and gradients", beyond, f"<= {BEYOND_GIB}", _is(beyond, lambda x: x <= BEYOND_GIB)
        )
    )
    few = [row for row in result.get("scan", []) if row["batch"] <= QUERIES_UP_TO]
    for row in few or [{"what": "1 to 32 queries"}]:
        share = row.get("share_of_bandwidth")
        passed = _is(share, lambda x: x >= SHARE_OF_BANDWIDTH)
        found.append(_target(f"scan {row['what']}: share of the bandwidth", share, f">= {SHARE_OF_BANDWIDTH}", passed))
        if row.get("wrong_ids"):
            found.append(_target(f"scan {row['what']}: wrong ids", row["wrong_ids"], 0, False))
    found.append(_target("seconds in all", result["seconds"], f"< {LIMIT_S:.0f}", result["seconds"] < LIMIT_S))
    return found


def _is(value: float | None, holds: Any) -> bool | None:
    return None if value is None else bool(holds(value))


def _target(what: str, value: Any, wanted: Any, passed: bool | None) -> Result:
    return {"what": what, "value": value, "wanted": str(wanted), "passed": None if value is None else passed}


def report(result: Result) -> None:
    """Print failures, what was cut, and the targets."""
    passed, gpu = sum(check["passed"] for check in result["checks"]), result["machine"]["gpu"]
    print(f"\n{passed} of {len(result['checks'])} checks passed on {gpu or 'the interpreter'}")
    for check in result["checks"]:
        if not check["passed"]:
            print(f"  WRONG  {check['check']}: {check['error']} (allowed {check['tolerance']})")
    for name, why in result["cut"].items():
        print(f"  CUT    {name}: {why}")
    if gpu and "H200" not in gpu:
        print("the targets are those of an H200")
    for target in result["targets"]:
        verdict = {True: "pass", False: "FAIL", None: "not measured"}[target["passed"]]
        value = f"{target['value']:.2f}" if isinstance(target["value"], float) else target["value"]
        print(f"  {verdict:12} {target['what']}: {value} (wanted {target['wanted']})")
