"""A ten-label data set of real sentences, and a bundle trained on it in a second, for every test that needs one."""

from __future__ import annotations

import json
import os
import random
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

# `make test` runs two files at a time: threads that wait must leave the cores to the other one. Read when torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

LABELS = {
    "sorting": "sorting and ordering of arrays",
    "fft": "fast Fourier transform of a signal",
    "svd": "singular value decomposition of a matrix",
    "ode": "solving ordinary differential equations",
    "random": "drawing random numbers from a distribution",
    "regression": "fitting a line by least squares regression",
    "clustering": "clustering of points into groups",
    "images": "filtering and sharpening of images",
    "sparse": "sparse matrices with few entries",
    "strings": "splitting and joining of text strings",
}
TEMPLATES = (
    "how to do {}",
    "please explain {}",
    "{} with an example",
    "a fast way of {}",
    "my question is about {}",
    "{}",
)


def sentences() -> list[tuple[str, list[str]]]:
    ids = list(LABELS)
    rows = [(template.format(text), [label]) for label, text in LABELS.items() for template in TEMPLATES]
    pairs = [(f"{LABELS[a]} and then {LABELS[b]}", [a, b]) for a, b in zip(ids, ids[3:] + ids[:3], strict=True)]
    return rows + pairs


def listens_nobody(port: int) -> bool:
    try:
        socket.create_server(("127.0.0.1", port)).close()
    except OSError:
        return False
    return True


@pytest.fixture(scope="session")
def unused_ports() -> Iterator[int]:
    """Ports that nobody listens on, below those that the kernel deals to sockets of the tests that run beside."""
    ports = random.SystemRandom().sample(range(20_000, 30_000), 1000)
    return (port for port in ports if listens_nobody(port))


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tiny") / "data"
    root.mkdir()

    def write(name: str, rows: list[dict[str, object]]) -> None:
        (root / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")

    rows = sentences()
    write("labels.jsonl", [{"id": label, "text": text} for label, text in LABELS.items()])
    write("train.jsonl", [{"text": text, "labels": labels} for text, labels in rows if not text.startswith("my question")])
    write("test.jsonl", [{"text": text, "labels": labels} for text, labels in rows if text.startswith("my question")])
    return root


TINY = """
name = "tiny"
out = "{out}"
[data]
path = "{data}"
[tower]
name = "tokens"
dimension = 32
start = "random"
[training]
epochs = 6
batch = 16
[validation]
fraction = 0
"""


@pytest.fixture(scope="session")
def tiny_config(tmp_path_factory: pytest.TempPathFactory, tiny_data: Path) -> Path:
    root = tmp_path_factory.mktemp("tiny-run")
    config = root / "tiny.toml"
    config.write_text(TINY.format(out=root / "run", data=tiny_data), encoding="utf-8")
    return config


def dexml(*arguments: str | Path) -> Result:
    """Run the command line in this process, its errors turned into exit codes as the console script does."""
    from dexml.__main__ import command

    return CliRunner().invoke(command, [str(argument) for argument in arguments], prog_name="dexml")


@pytest.fixture(scope="session")
def tiny_bundle(tiny_config: Path) -> Path:
    result = dexml("train", tiny_config)
    assert result.exit_code == 0, result.output
    return tiny_config.parent / "run" / "bundle"
