"""Large files are read row by row: what is held while reading is hardly more than what comes out."""

import gzip
import json
import random
import sys
import tracemalloc
from pathlib import Path

from data import open_format

ROWS, PER_ROW, LABELS = 30_000, 20, 5_000


def test_reading_holds_little_more_than_what_it_returns(tmp_path: Path):
    draw = random.Random(0)
    labels = [{"uid": str(number), "title": f"label {number}", "content": ""} for number in range(LABELS)]
    rows = [
        {"uid": str(n), "title": f"text number {n} " * 5, "content": "", "target_ind": draw.sample(range(LABELS), PER_ROW)}
        for n in range(ROWS)
    ]
    for name, objects in (("lbl.json.gz", labels), ("trn.json.gz", rows)):
        (tmp_path / name).write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in objects).encode(), 1))
    del labels, rows
    files = open_format(tmp_path)
    files.labels()
    shares: list[float] = []
    files.tell = lambda path, share: shares.append(share)
    tracemalloc.start()
    try:
        split = files.read("train")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(split.positives.indices) == ROWS * PER_ROW
    kept = sum(map(sys.getsizeof, split.texts)) + split.positives.indices.nbytes + split.positives.indptr.nbytes
    # The list of texts and the tuple made of it, a byte a label for the check, a sixteenth that arrays grow ahead.
    assert peak < kept + 2 * 8 * ROWS + 0.2 * split.positives.indices.nbytes + 2**20
    assert shares == sorted(shares) and 0.5 < shares[-1] <= 1
