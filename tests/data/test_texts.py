"""The texts of one file, whatever it is written in."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from data.texts import stream_texts
from dexml.errors import InputError

TEXTS = ["eins", "zwei, drei", 'vier "fünf"']


def test_every_kind_of_file_gives_the_same_texts(tmp_path: Path):
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")

    objects = "".join(json.dumps({"id": number, "text": text}) + "\n" for number, text in enumerate(TEXTS))
    lines = "".join(f"{text}\n" for text in TEXTS)
    (tmp_path / "a.jsonl").write_text(objects, encoding="utf-8")
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(objects.encode()))
    (tmp_path / "a.txt").write_text(lines, encoding="utf-8")
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(lines.encode()))
    (tmp_path / "a.csv").write_text('id,text\n1,eins\n2,"zwei, drei"\n3,"vier ""fünf"""\n', encoding="utf-8")
    pq.write_table(pa.table({"id": [1, 2, 3], "text": TEXTS}), tmp_path / "a.parquet")
    for path in sorted(tmp_path.iterdir()):
        assert list(stream_texts(path)) == TEXTS, path.name


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.json", "[]", r"a\.json: the name must end in one of \.txt, \.txt\.gz, \.jsonl"),
        ("a.txt", "eins\n\nzwei\n", r"a\.txt, line 2: the text is empty"),
        ("a.jsonl", '{"text": "eins"}\n{"txt": "zwei"}\n', r"line 2: the field 'text' is missing \(there: 'txt'\)"),
        ("a.csv", "titel\neins\n", r"line 1: the column 'text' is missing"),
    ],
)
def test_what_is_no_text_is_told_with_its_place(tmp_path: Path, name: str, content: str, said: str):
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match=said):
        list(stream_texts(tmp_path / name))
