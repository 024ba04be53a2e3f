"""Blocks on Ray: real nodes on this machine, of which one is killed; workers that die, and blocks that kill theirs."""

from __future__ import annotations

import importlib.util
import os
import signal
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data import open_format
from dexml import metrics
from dexml.bundle import Bundle
from dexml.errors import InputError
from index.retriever import Retriever
from training.embed import Embedding
from training.engines.actors import RayEngine
from training.engines.session import session
from training.evaluate import evaluate
from training.parts import Rows

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="the extra dexml[ray] is not installed"),
    # Ray's own: sockets left to the collector, deprecations of its own.
    pytest.mark.filterwarnings("ignore"),
]


def noted(folder: Path) -> Callable[[int], tuple[int, int]]:
    """Return a function that notes the process which runs a block, and takes its time."""

    def call(block: int) -> tuple[int, int]:
        (folder / f"{block}-{os.getpid()}").touch()
        time.sleep(0.02)
        return block, os.getpid()

    return call


def cruel(folder: Path) -> Callable[[int], int]:
    """Return a function that dies of block 3, and leaves a note."""

    def call(block: int) -> int:
        if block == 3:
            (folder / str(time.monotonic_ns())).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return block

    return call


def test_every_block_comes_once_from_two_workers_and_what_a_killed_one_had_is_done_again(ray_cluster: Any, tmp_path: Path):
    node = ray_cluster.add_node(num_cpus=1)
    ray_cluster.wait_for_nodes()
    came: dict[int, int] = {}
    killed = None
    for block, process in RayEngine(workers=2).run(partial(noted, tmp_path), range(200)):
        assert block not in came
        came[block] = process
        if killed is None and len(set(came.values())) == 2:
            killed = process
            os.kill(process, signal.SIGKILL)
    assert sorted(came) == list(range(200)) and len(set(came.values())) == 3
    ray_cluster.remove_node(node)


def test_a_block_that_kills_its_worker_is_tried_three_times(ray_cluster: Any, tmp_path: Path):
    with pytest.raises(InputError, match="3 workers died with the same block"):
        list(RayEngine(workers=1).run(partial(cruel, tmp_path), range(6)))
    assert len(list(tmp_path.iterdir())) == 3


def test_what_a_worker_raises_is_raised_and_a_cluster_beyond_this_machine_needs_a_token(ray_cluster: Any, monkeypatch: Any):
    def refuse() -> Callable[[int], int]:
        raise InputError("bundle: none")

    with pytest.raises(InputError, match="bundle: none"):
        list(RayEngine(workers=1).run(refuse, range(3)))
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    with pytest.raises(InputError, match=r"10\.0\.0\.1:6379: whoever reaches a cluster without a token runs code on it"):
        with session(1, "10.0.0.1:6379"):
            raise AssertionError


def test_a_node_lost_half_way_leaves_the_same_rows(ray_cluster: Any, tiny_bundle: Path, tmp_path: Path):
    texts = [f"sorting of {number} arrays" for number in range(3000)]
    (tmp_path / "texts.txt").write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
    node = ray_cluster.add_node(num_cpus=1)
    ray_cluster.wait_for_nodes()
    made = 0
    lost: list[threading.Thread] = []

    def report(count: int, before: bool) -> bool:
        nonlocal made
        made += count
        if made >= len(texts) // 2 and not lost:
            lost.append(threading.Thread(target=ray_cluster.remove_node, args=(node, False)))
            lost[0].start()
        return True

    bundle = Bundle.open(tiny_bundle)
    job = Embedding.of(bundle, tmp_path / "texts.txt", tmp_path / "rows", "query", 20)
    done = job.go(RayEngine(workers=2), iter(texts), report)
    lost[0].join()
    assert done is not None and (done.rows, done.parts) == (3000, 150) and made == 3000
    expected = bundle.model().embed_queries(texts)[0].numpy()
    np.testing.assert_allclose(np.concatenate(list(Rows.open(tmp_path / "rows").parts(verify=True))), expected, atol=1e-6)


def test_figures_and_answers_are_those_of_one_process(ray_cluster: Any, tiny_bundle: Path, tiny_data: Path):
    retriever, split = Retriever.open(tiny_bundle), open_format(tiny_data).read("train")
    given = (retriever, retriever.labels, split, metrics.DEFAULT_PROPENSITY, lambda rows: None)
    here, there = evaluate(*given), evaluate(*given, RayEngine(workers=1))
    assert here.figures == there.figures
    assert np.array_equal(here.ranked, there.ranked) and np.array_equal(here.scores, there.scores)
    counted = evaluate(*given, keep=False)
    assert counted.figures == here.figures and counted.ranked.shape == (0, 100)
