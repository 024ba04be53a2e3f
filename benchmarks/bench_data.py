"""What reading a large training set takes: seconds, and the most memory that the process held, in the XC repository's JSON.

usage: python benchmarks/bench_data.py [--rows 2000000] [--labels 1300000] [--per-row 22] [--characters 400]
The rows are made up: random words and label numbers in the numbers of LF-AmazonTitles-1.3M, packed with gzip. Each size is read
in a process of its own, and told beside what the imports alone hold. Writes data.json.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from machine import describe, write_result
from rich.console import Console
from rich.table import Table

WORDS = 5000  # of made-up vocabulary
LIMIT_GIB = 2.0  # the goal at two million rows


def main() -> None:
    """Make the files, read them in a fresh process, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--labels", type=int, default=1_300_000)
    parser.add_argument("--per-row", type=int, default=22, help="positives of a row")
    parser.add_argument("--characters", type=int, default=400, help="of the content, beside a title of 60")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.folder:
        print(json.dumps(measure(given.folder)))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make(folder, given.rows, given.labels, given.per_row, given.characters)
        done = subprocess.run([sys.executable, __file__, "--folder", name], capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(done.stderr[-3000:])
        measured: dict[str, Any] = {"file_gib": size(folder / "trn.json.gz"), **json.loads(done.stdout.splitlines()[-1])}
    table = Table(title=f"{given.rows:,} rows of trn.json.gz, {given.per_row} of {given.labels:,} labels each")
    table.add_column("what")
    table.add_column("measured", justify="right")
    for what, value in measured.items():
        table.add_row(what, f"{value:,.2f}")
    Console().print(table)
    within = measured["peak_gib"] < LIMIT_GIB
    sizes = {"rows": given.rows, "labels": given.labels, "per_row": given.per_row, "characters": given.characters}
    print(write_result("data", {"machine": describe(), **sizes, **measured, "below_2_gib": within}))


def make(folder: Path, rows: int, labels: int, per_row: int, characters: int) -> None:
    """Write lbl.json.gz and trn.json.gz."""
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=draw.randint(3, 9))) for _ in range(WORDS)]

    def text(length: int) -> str:
        return " ".join(draw.choices(words, k=length // 7 + 1))[:length].strip()

    def row(number: int) -> dict[str, Any]:
        chosen = draw.sample(range(labels), per_row)
        content = text(characters) if characters else ""
        return {
            "uid": f"B{number:09}",
            "title": text(60),
            "content": content,
            "target_ind": chosen,
            "target_rel": [1.0] * per_row,
        }

    def write(name: str, objects: Iterator[dict[str, Any]]) -> None:
        with gzip.open(folder / name, "wt", compresslevel=1, encoding="utf-8") as stream:
            stream.writelines(f"{json.dumps(made)}\n" for made in objects)

    write("lbl.json.gz", ({"uid": f"L{number:09}", "title": text(60), "content": ""} for number in range(labels)))
    write("trn.json.gz", map(row, range(rows)))


def measure(folder: Path) -> dict[str, float]:
    """Return seconds and the peak of resident memory, in this process, of reading the labels and the training rows."""
    from data import open_format

    base = peak()
    start = time.perf_counter()
    files = open_format(folder)
    labels = files.labels()
    between = time.perf_counter()
    split = files.read("train")
    characters = sum(map(len, split.texts)) + sum(map(len, labels.texts))
    return {
        "labels_seconds": between - start,
        "rows_seconds": time.perf_counter() - between,
        "imports_gib": base,
        "texts_gib": characters / 2**30,
        "positives_gib": (split.positives.indices.nbytes + split.positives.indptr.nbytes) / 2**30,
        "peak_gib": peak(),
    }


def peak() -> float:
    """Return the most resident memory so far in GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def size(path: Path) -> float:
    """Return the size of a file in GiB."""
    return path.stat().st_size / 2**30


if __name__ == "__main__":
    main()
