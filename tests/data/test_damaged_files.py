"""Two hundred ways to damage a file: each is told in one line, and none shifts a row in silence."""

import gzip
import shutil
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from data import FORMATS
from dexml.errors import InputError
from dexml.types import LabelTable, Positives, Split

RECORDS = {"jsonl", "csv", "parquet"}  # these keep excluded pairs in the rows
EVERY = pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.skipif(name == "parquet" and find_spec("pyarrow") is None, reason="needs pyarrow"))
        for name in FORMATS
    ],
)


LABELS = LabelTable(("l0", "l1", "l2", "l3"), ("first label", "second label", "third label", "fourth label"))
SPLITS = {
    "train": Split(
        ("alpha words", "betaé words", "gamma words", "delta words", "epsilon words"),
        Positives.from_rows([[0, 1], [2], [], [0, 3], [1]], 4),
        Positives.from_rows([[3], [], [0], [], []], 4),
    ),
    "test": Split(("zeta words", "eta words"), Positives.from_rows([[1], [0, 2]], 4)),
}
# The files of each format that are text, gzip or not; a damaged one of the test split is like one of train.
FILES = {
    "xmc_text": ("raw/Y.txt", "raw/trn_X.txt"),
    "jsonl": ("labels.jsonl", "train.jsonl"),
    "csv": ("labels.csv", "train.csv"),
    "parquet": (),
    "xc_json": ("lbl.json.gz", "trn.json.gz"),
    "xc_sparse": ("raw/Y.txt", "raw/trn_X.txt", "trn_X_Y.txt"),
    "xc_single": ("raw/Y.txt", "raw/trn_X.txt", "train.txt"),
    "pecos": ("output-items.txt", "train.txt"),
    "libmultilabel": ("labels.txt", "train.txt"),
    "attentionxml": ("labels.txt", "train_texts.txt", "train_labels.txt"),
}
# Files whose rows another file counts: a line more, less, or broken in two shifts the rows.
COUNTED = {
    "xmc_text": ("raw/Y.txt", "raw/trn_X.txt"),
    "xc_sparse": ("raw/Y.txt", "raw/trn_X.txt", "trn_X_Y.txt"),
    "xc_single": ("raw/Y.txt", "raw/trn_X.txt", "train.txt"),
    "attentionxml": ("train_texts.txt", "train_labels.txt"),
}
# What stands in a file, and what stands there instead.
CHANGES = {
    "jsonl": (
        ("train.jsonl", '"labels": ["l2"]', '"labels": ["l9"]'),
        ("train.jsonl", '"labels": ["l2"]', '"labels": "l2"'),
        ("train.jsonl", '"labels": ["l2"]', '"labels": [NaN]'),
        ("train.jsonl", '"labels": ["l2"]', '"labels": [2.0]'),
        ("train.jsonl", '"labels": ["l2"]', '"labels": ["l2"], "labels": ["l3"]'),
        ("train.jsonl", '"labels": ["l2"]', '"label": ["l2"]'),
        ("train.jsonl", '"text": "gamma words"', '"text": null'),
        ("train.jsonl", '"text": "gamma words"', '"text": " "'),
        ("train.jsonl", "gamma words", "gamma\nwords"),
        ("train.jsonl", "gamma words", "gamma\\ud800"),
        ("labels.jsonl", '"l3"', '"l2"'),
        ("labels.jsonl", '"id": "l3"', '"id": "l3", "id": "l4"'),
        ("labels.jsonl", '"l3"', '""'),
    ),
    "csv": (
        ("train.csv", "gamma words,", "gamma words"),
        ("train.csv", "gamma words,", "gamma words,,,"),
        ("train.csv", "gamma words,", '"gamma words,'),
        ("train.csv", "gamma words,", '"gamma" words,'),
        ("train.csv", "gamma words,", "gamma\nwords,"),
        ("train.csv", "gamma words,", "gamma\rwords,"),
        ("train.csv", "gamma words,", ","),
        ("train.csv", "betaé words,l2", "betaé words,l9"),
        ("train.csv", "betaé words,l2", "betaé words,l2;;l3"),
        ("train.csv", "betaé words,l2", 'betaé words,"[""l2"""'),
        ("train.csv", "betaé words,l2", "betaé words,[NaN]"),
        ("train.csv", "text,labels,excluded", "text,labels,labels"),
        ("train.csv", "text,labels,excluded", "text;labels;excluded"),
        ("labels.csv", "id,text", "text,title"),
        ("labels.csv", "l3,", "l2,"),
        ("labels.csv", "l3,", ","),
    ),
    "xc_json": (
        ("trn.json.gz", '"target_ind": [2]', '"target_ind": [4]'),
        ("trn.json.gz", '"target_ind": [2]', '"target_ind": [-1]'),
        ("trn.json.gz", '"target_ind": [2]', '"target_ind": [true]'),
        ("trn.json.gz", '"target_ind": [2]', '"target_ind": ["2"]'),
        ("trn.json.gz", '"target_ind": [2]', '"target_ind": 2'),
        ("trn.json.gz", '"target_ind": [2]', '"target_ind": [2], "target_ind": [1]'),
        ("trn.json.gz", '"target_ind": [2]', '"targets": [2]'),
        ("trn.json.gz", '"target_rel": [1.0]', '"target_rel": [NaN]'),
        ("trn.json.gz", '"target_rel": [1.0]', '"target_rel": [1e999]'),
        ("trn.json.gz", '"target_rel": [1.0]', '"target_rel": []'),
        ("trn.json.gz", '"target_rel": [1.0]', '"target_rel": ["1"]'),
        ("trn.json.gz", '"title": "gamma words"', '"title": ""'),
        ("trn.json.gz", '"title": "gamma words"', '"title": 3'),
        ("trn.json.gz", "gamma words", "gamma\nwords"),
        ("lbl.json.gz", '"uid": "l3"', '"uid": "l2"'),
        ("lbl.json.gz", '"uid": "l3", ', ""),
    ),
    "xc_sparse": (
        ("trn_X_Y.txt", "2:1", "4:1"),
        ("trn_X_Y.txt", "2:1", "-2:1"),
        ("trn_X_Y.txt", "2:1", "2"),
        ("trn_X_Y.txt", "2:1", "2:"),
        ("trn_X_Y.txt", "2:1", "2:nan"),
        ("trn_X_Y.txt", "2:1", "2:1e999"),
        ("trn_X_Y.txt", "2:1", "2 :1"),
        ("trn_X_Y.txt", "2:1", "²:1"),
        ("trn_X_Y.txt", "5 4", "5 5"),
        ("trn_X_Y.txt", "5 4", "6 4"),
        ("trn_X_Y.txt", "5 4", "4 4"),
        ("trn_X_Y.txt", "5 4", "5"),
        ("trn_X_Y.txt", "5 4\n", ""),
        ("trn_X_Y.txt", "2:1\n\n", "2:1\n"),
    ),
    "xc_single": (
        ("train.txt", "\n2 \n", "\n4 \n"),
        ("train.txt", "\n2 \n", "\n2:1 \n"),
        ("train.txt", "\n2 \n", "\n2,, \n"),
        ("train.txt", "\n2 \n", "\nx \n"),
        ("train.txt", "\n2 \n", "\n2 0:1\n"),
        ("train.txt", "\n2 \n", "\n2 a b\n"),
        ("train.txt", "5 0 4", "5 4"),
        ("train.txt", "5 0 4", "6 0 4"),
        ("train.txt", "5 0 4", "5 0 3"),
    ),
    "pecos": (
        ("train.txt", "2\tbeta", "4\tbeta"),
        ("train.txt", "2\tbeta", "-2\tbeta"),
        ("train.txt", "2\tbeta", "2::\tbeta"),
        ("train.txt", "2\tbeta", "2::nan\tbeta"),
        ("train.txt", "2\tbeta", "2::1,3\tbeta"),
        ("train.txt", "2\tbeta", "2;3\tbeta"),
        ("train.txt", "2\tbeta", "2 beta"),
        ("train.txt", "gamma words", "gamma\nwords"),
        ("train.txt", "gamma words", ""),
    ),
    "libmultilabel": (
        ("train.txt", "l2\tbeta", "l9\tbeta"),
        ("train.txt", "l2\tbeta", "l2 beta"),
        ("train.txt", "l2\tbeta", "1\tl2\tbeta"),
        ("train.txt", "gamma words", "gamma\nwords"),
        ("train.txt", "gamma words", "gamma\twords"),
        ("train.txt", "gamma words", " "),
        ("labels.txt", "l3\t", "l2\t"),
        ("labels.txt", "l3\t", "l 3\t"),
        ("labels.txt", "l3\t", "\t"),
    ),
    "attentionxml": (
        ("train_labels.txt", "l2", "l9"),
        ("train_labels.txt", "l2", "l2\tl3"),
        ("train_texts.txt", "gamma words", ""),
        ("labels.txt", "l3\t", "l2\t"),
    ),
    "xmc_text": (("raw/trn_X.txt", "gamma words", ""),),
}

Damage = Callable[[Path], None]


def edited(edit: Callable[[bytes], bytes]) -> Damage:
    def damage(path: Path) -> None:
        content = path.read_bytes()
        packed = path.suffix == ".gz"
        changed = edit(gzip.decompress(content) if packed else content)
        path.write_bytes(gzip.compress(changed) if packed else changed)

    return damage


def replaced(old: str, new: str) -> Damage:
    def edit(content: bytes) -> bytes:
        assert content.count(old.encode()) >= 1, (old, content)
        return content.replace(old.encode(), new.encode(), 1)

    return edited(edit)


def into_the_longest_line(inserted: bytes) -> Damage:
    def edit(content: bytes) -> bytes:
        line = max(content.split(b"\n"), key=len)
        return content.replace(line, line[: len(line) // 2] + inserted + line[len(line) // 2 :], 1)

    return edited(edit)


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


EVERYWHERE: dict[str, Damage] = {
    "a byte that is not UTF-8": into_the_longest_line(b"\xff"),
    "half a character": into_the_longest_line(b"\xc3"),
    "U+0000": into_the_longest_line(b"\0"),
    "UTF-16": edited(lambda content: content.decode().encode("utf-16")),
    "Latin-1 at the end": edited(lambda content: content + b"caf\xe9\n"),
    "missing": Path.unlink,
    "a folder": a_folder,
}
ROWS: dict[str, Damage] = {
    "a line more": edited(lambda content: content + b"more\n"),
    "a line less": edited(lambda content: content.rstrip(b"\n").rpartition(b"\n")[0] + b"\n"),
    "a line twice": edited(lambda content: content.rstrip(b"\n") + b"\n" + content.rstrip(b"\n").rpartition(b"\n")[2] + b"\n"),
    "a line broken in two": into_the_longest_line(b"\n"),
}
GZIP: dict[str, Damage] = {
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-9]) and None,
    "cut early": lambda path: path.write_bytes(path.read_bytes()[:15]) and None,
    "another checksum": lambda path: path.write_bytes(path.read_bytes()[:-8] + b"\0\0\0\0" + path.read_bytes()[-4:]) and None,
    "not packed": lambda path: path.write_bytes(gzip.decompress(path.read_bytes())) and None,
}
FILTER: dict[str, Damage] = {
    "a row too many": lambda path: path.write_text("5 0\n") and None,
    "no number": lambda path: path.write_text("0 one\n") and None,
}


def npz(**changed: object) -> Damage:
    """Write another matrix than the five rows over four labels."""
    arrays = {
        "indices": [0, 1, 2, 0, 3, 1],
        "indptr": [0, 2, 3, 3, 5, 6],
        "data": np.ones(6),
        "shape": (5, 4),
        "format": b"csr",
    }

    def damage(path: Path) -> None:
        with path.open("wb") as stream:
            np.savez(stream, allow_pickle=True, **{key: np.asarray(value) for key, value in {**arrays, **changed}.items()})

    return damage


def an_array(path: Path) -> None:
    with path.open("wb") as stream:
        np.save(stream, np.eye(5, 4))


MATRIX: dict[str, Damage] = {
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-30]) and None,
    "empty": lambda path: path.write_bytes(b"") and None,
    "a pickle": lambda path: path.write_bytes(b"\x80\x04K\x01.") and None,
    "an array alone": an_array,
    "objects": npz(data=np.array([1, 2, 3, 4, 5, 6], dtype=object)),
    "objects as numbers of labels": npz(indices=np.array([0, 1, 2, 0, 3, 1], dtype=object)),
    "words": npz(data=np.array(["a"] * 6)),
    "complex": npz(data=np.ones(6) * 1j),
    "nan": npz(data=[1, 1, np.nan, 1, 1, 1]),
    "infinite": npz(data=[1, 1, np.inf, 1, 1, 1]),
    "a label too high": npz(indices=[0, 1, 4, 0, 3, 1]),
    "a label below 0": npz(indices=[0, 1, -1, 0, 3, 1]),
    "halves of labels": npz(indices=[0.0, 1.5, 2, 0, 3, 1]),
    "a column more": npz(shape=(5, 5)),
    "a row less": npz(shape=(4, 4), indptr=[0, 2, 3, 3, 6]),
    "row starts that fall": npz(indptr=[0, 3, 2, 3, 5, 6]),
    "row starts past the end": npz(indptr=[0, 2, 3, 3, 5, 9]),
    "no shape": npz(shape=[]),
    "columns first": lambda path: sp.save_npz(path, sp.csc_array(np.eye(5, 4))),
    "missing": Path.unlink,
}
TABLE: dict[str, Damage] = {
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-20]) and None,
    "empty": lambda path: path.write_bytes(b"") and None,
    "not Parquet": lambda path: path.write_bytes(b"PAR1 nothing PAR1") and None,
    "missing": Path.unlink,
    "a folder": a_folder,
}


def parquet(**columns: object) -> Damage:
    def damage(path: Path) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.table(columns), path)

    return damage


TABLE_ROWS: dict[str, Damage] = {
    "no labels": parquet(text=["a"]),
    "a label nobody knows": parquet(text=["a"], labels=[["l9"]]),
    "labels in a string": parquet(text=["a"], labels=["l1"]),
    "fractions": parquet(text=["a"], labels=[[1.5]]),
    "no list": parquet(text=["a"], labels=[None]),
    "no label in a list": parquet(text=["a"], labels=[[None]]),
    "no text": parquet(text=[None], labels=[["l1"]]),
    "a number": parquet(text=[3], labels=[["l1"]]),
    "bytes": parquet(text=[b"\xff"], labels=[["l1"]]),
    "an empty text": parquet(text=[" "], labels=[["l1"]]),
}


def cases() -> list[tuple[str, str, str, Damage]]:
    found: list[tuple[str, str, str, Damage]] = []
    for name, files in FILES.items():
        found += [(name, file, what, damage) for file in files for what, damage in EVERYWHERE.items()]
        found += [(name, file, what, damage) for file in COUNTED.get(name, ()) for what, damage in ROWS.items()]
        found += [(name, file, what, damage) for file in files if file.endswith(".gz") for what, damage in GZIP.items()]
        found += [(name, file, f"{old!r} to {new!r}", replaced(old, new)) for file, old, new in CHANGES.get(name, ())]
        if name not in RECORDS:
            found += [(name, "filter_labels_train.txt", what, damage) for what, damage in FILTER.items()]
    found += [("xmc_text", "Y.trn.npz", what, damage) for what, damage in MATRIX.items()]
    found += [("parquet", file, what, damage) for file in ("labels.parquet", "train.parquet") for what, damage in TABLE.items()]
    return found + [("parquet", "train.parquet", what, damage) for what, damage in TABLE_ROWS.items()]


def test_there_are_two_hundred_ways():
    assert len(cases()) >= 200
    assert set(FILES) == set(FORMATS)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    folder, done = tmp_path_factory.mktemp("whole"), set()

    def write(name: str) -> Path:
        if name not in done:
            FORMATS[name].write(folder / name, LABELS, SPLITS)
            done.add(name)
        return folder / name

    return write


@pytest.mark.parametrize(("name", "file", "what", "damage"), cases(), ids=lambda part: part if isinstance(part, str) else "")
def test_a_damaged_file_is_told(
    written: Callable[[str], Path], tmp_path: Path, name: str, file: str, what: str, damage: Damage
):
    if name == "parquet":
        pytest.importorskip("pyarrow")
    root = tmp_path / "set"
    shutil.copytree(written(name), root)
    assert len(FORMATS.build(name, {}, root).read("train")) == 5
    damage(root / file)
    with pytest.raises(InputError) as caught:
        FORMATS.build(name, {}, root).read("train")
    message = str(caught.value)
    assert str(root) in message and "\n" not in message and len(message) < 500 + len(str(root))


@EVERY
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_any_changed_byte_reads_or_complains(
    name: str, written: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
):
    root = tmp_path_factory.mktemp("fuzz") / "set"
    shutil.copytree(written(name), root)
    path = data.draw(st.sampled_from(sorted(path for path in root.rglob("*") if path.is_file())))
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    for split in ("train", "test"):
        try:
            read = FORMATS.build(name, {}, root).read(split)
        except InputError as error:
            assert "\n" not in str(error)
        else:
            assert len(read.texts) == len(read.positives)
