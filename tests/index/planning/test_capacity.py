"""What a plan says of constants that are known by heart: sums that can be done by hand, and asks that cannot be met."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from dexml.__main__ import command
from dexml.errors import InputError
from index.planning import machine as machines
from index.planning.capacity import Ask, bandwidth_bound_ms, batch_ms, least_shards, plan
from index.planning.machine import Machine

ROUND = Machine(
    about="made up",
    cores=4,
    memory_gib=100,
    read_gb_s=20,
    batches=(1, 64),
    all_scan_ns=(0.05, 0.68),
    all_call_ms=(1, 1),
    one_scan_ns=(0.2, 2.4),
    one_call_ms=(2, 2),
    hop_ms=0.2,
    message_ms=0.01,
    copy_ns=0.5,
    merge_ns=100,
    crowd_ms=2,
)
ASK = Ask(labels=1e9, dim=100, qps=1000, p99_ms=100, k=10, encode_ms=0.25, network_gbit=8, rtt_ms=0.3)


def dexml(*arguments: object) -> Result:
    return CliRunner().invoke(command, [str(argument) for argument in ("plan", *arguments)], prog_name="dexml")


def test_the_time_of_a_batch_is_the_sum_of_its_parts():
    found = batch_ms(ASK, ROUND, 100, 2)  # rows of 100 numbers are 128 in a copy: 1.28e9 numbers a shard
    assert found.encode == pytest.approx(0.5)
    assert found.scatter == pytest.approx(0.2 + 0.3 + 100 * 0.01 + 100 * 2 * 400 * (0.5e-6 + 1e-6))
    assert found.scan == pytest.approx(1.28e9 * (0.05 + 0.63 / 63) * 1e-6 + 1)
    assert found.merge == pytest.approx(100 * 2 * 136 * 1.5e-6 + 100 * 2 * 10 * 1e-4)
    assert found.total == found.encode + found.scatter + found.scan + found.merge
    assert bandwidth_bound_ms(ASK, ROUND, 100, 1) == pytest.approx(1.28e9 / 20e9 * 1e3)
    assert least_shards(ASK, ROUND) == 14  # 1e9 · (7 · 128 + 300) bytes are 1,114 GiB, and 80 a machine


def test_shards_of_one_machine_share_its_cores_and_its_memory():
    assert ROUND.scan_ms(1e8, 1) == pytest.approx(1e8 * 0.05e-6 + 1)
    assert ROUND.scan_ms(1e8, 1, together=2) == pytest.approx(2 * 1e8 * 0.1e-6 + 2)  # two cores of four
    assert ROUND.scan_ms(1e8, 64, together=4) == pytest.approx(4 * 1e8 * 0.68e-6 + 2)  # 2.4 / 4 cores, but 0.68 by memory
    assert ROUND.scan_ms(1e8, 1, together=8) == pytest.approx(8 * 1e8 * 0.05e-6 + 4 + 2)  # calls take turns, and shards


def test_an_imagined_machine_is_as_fast_as_its_cores_and_its_memory_allow():
    more = ROUND.scaled(16, None, None)
    assert (more.cores, more.memory_gib, more.read_gb_s) == (16, 400, 80)
    assert more.all_scan_ns == pytest.approx((0.0125, 0.17)) and more.about.startswith("imagined: 16 cores")
    slow = ROUND.scaled(16, 64, 20)
    assert slow.memory_gib == 64 and slow.all_scan_ns == pytest.approx((0.05, 0.17))  # a byte at 20 GB/s; two at 64
    assert ROUND.scaled(None, None, None) is ROUND


def test_a_plan_has_the_fewest_machines_that_meet_the_ask_in_the_simulation():
    made = plan(ASK, ROUND)
    assert made.simulated.percentile(99) <= 0.1 and made.shards >= made.least
    assert made.slowed.percentile(99) > made.simulated.percentile(99)
    looser = plan(replace(ASK, p99_ms=200), ROUND)
    assert looser.shards * looser.rows < made.shards * made.rows
    assert looser.shards < made.shards or looser.rows < made.rows
    more = plan(replace(ASK, qps=8000), ROUND)
    assert more.rows > 1 and more.hedged is not None and more.shards * more.rows > made.shards * made.rows
    small = plan(replace(ASK, labels=1e5, qps=10), ROUND)
    assert (small.shards, small.rows, small.least) == (1, 1, 1)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"p99_ms": 1.0}, r"impossible within 1 ms: .* machines hold the labels, and with .* takes .* what would help: "),
        ({"encode_ms": 200.0}, "a faster encoder"),
        ({"k": 2000, "p99_ms": 20.0}, r"fewer answers \(--k\)"),
        ({"qps": 1e7}, r"impossible within 100 ms at 1e\+07 queries a second: .* and 256 rows of them are not enough"),
    ],
)
def test_what_cannot_be_is_refused_with_the_part_that_keeps_it(change: dict[str, float], said: str):
    with pytest.raises(InputError, match=said):
        plan(replace(ASK, **change), ROUND)  # type: ignore[arg-type]


def test_the_command_prints_the_plan_and_tells_what_it_lacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file = tmp_path / "machine.json"
    file.write_text(ROUND.model_dump_json(), encoding="utf-8")
    asked = ("--labels", 1e9, "--dim", 100, "--qps", 1000, "--p99-ms", 100, "--machine", file)
    printed = dexml(*asked)
    assert printed.exit_code == 0, printed.output
    made = json.loads(dexml(*asked, "--json").output)
    assert f"{made['shards']:,} shards × {made['rows']} rows = {made['machines']:,} machines" in printed.output
    assert f"p99 {made['latency_ms']['as measured']['p99']:.3g} ms" in printed.output
    assert made["latency_ms"]["as measured"]["p99"] <= 100 < made["latency_ms"]["stragglers"]["p99"] * 4

    def refused(*arguments: object) -> str:
        error = dexml(*arguments).exception
        assert isinstance(error, InputError)
        return str(error)

    assert refused("--labels", 10, "--dim", 8, "--qps", 1) == "plan: --p99-ms is needed (or --measure)"
    assert "none.json does not exist; `dexml plan --measure` writes one" in refused(*asked[:-1], tmp_path / "none.json")
    file.write_text(ROUND.model_dump_json().replace('"cores":4', '"cores":0'), encoding="utf-8")
    assert "machine.json: cores: Input should be greater than 0" in refused(*asked)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert machines.read(None).about.startswith("AMD EPYC")  # what dexml brings
    (tmp_path / "cache" / "dexml").mkdir(parents=True)
    machines.measured().write_text(ROUND.model_dump_json(), encoding="utf-8")
    assert machines.read(None) == ROUND
