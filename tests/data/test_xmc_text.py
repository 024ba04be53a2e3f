"""The DEXML layout: what real files hold, and every way in which they can be wrong."""

import zipfile
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from data.xmc_text import XmcText
from dexml.errors import InputError
from dexml.text import text_fault
from dexml.types import LabelTable, Positives, Split


def save(path: Path, **arrays: object) -> None:
    """Write a raw npz, so that it may hold what scipy would refuse to make."""
    with path.open("wb") as stream:
        np.savez(stream, allow_pickle=True, **{key: np.asarray(value) for key, value in arrays.items()})


def csr(path: Path, data: object, indices: object, indptr: object, shape: tuple[int, int]) -> None:
    save(path, format=b"csr", shape=shape, data=data, indices=indices, indptr=indptr)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Three rows over four labels, in the way the reference implementation writes them."""
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw/trn_X.txt").write_bytes("one\ntwo\r\nthr\u2028ee \x0b\x85 x\n".encode())
    (tmp_path / "raw/tst_X.txt").write_bytes(b"\xef\xbb\xbffour\nfive")  # a byte order mark, no last line feed
    (tmp_path / "raw/Y.txt").write_text("a\nb\nc\nd\n")
    # unsorted and doubled indices, values other than 1, and a stored zero at (0, 3)
    csr(tmp_path / "Y.trn.npz", [2.5, 0.0, 0.1, 1.0, 1.0], [2, 3, 0, 1, 1], [0, 3, 3, 5], (3, 4))
    csr(tmp_path / "Y.tst.npz", [1, 1], [3, 0], [0, 1, 2], (2, 4))
    return tmp_path


def complaint(root: Path, split: str = "train") -> str:
    with pytest.raises(InputError) as caught:
        XmcText(root).read(split)
    message = str(caught.value)
    assert "\n" not in message
    return message.replace(str(root), "ROOT")


def test_reads_matrices_as_they_come(root: Path):
    made = XmcText(root)
    train = made.read("train")
    assert made.labels() == LabelTable(("0", "1", "2", "3"), ("a", "b", "c", "d"))
    assert train.texts == ("one", "two", "thr\u2028ee \x0b\x85 x")
    assert [train.positives.row(row).tolist() for row in range(3)] == [[0, 2], [], [1]]
    assert train.positives.weights is None and train.excluded is None
    assert made.read("test").texts == ("four", "five")


def test_the_raw_folder_will_do_as_root(root: Path):
    assert XmcText.found(root / "raw")
    assert XmcText(root / "raw").read("train").texts == XmcText(root).read("train").texts


def test_a_set_without_a_test_split(root: Path):
    (root / "raw/tst_X.txt").unlink()
    (root / "Y.tst.npz").unlink()
    assert XmcText(root).splits() == ("train",)
    assert complaint(root, "test") == "ROOT/Y.tst.npz: the file does not exist"


def test_filter_files(root: Path):
    (root / "filter_labels_train.txt").write_text("2 1\n0 3\n\n0 1\n")
    (root / "filter_labels_test.txt").write_text("")
    excluded, none = XmcText(root).read("train").excluded, XmcText(root).read("test").excluded
    assert excluded is not None and none is not None
    assert [excluded.row(row).tolist() for row in range(3)] == [[1, 3], [], [1]]
    assert len(none) == 2 and len(none.indices) == 0


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("0", "line 2: two numbers, 'row label', are needed, got '0'"),
        ("0 1 2", "line 2: two numbers, 'row label', are needed, got '0 1 2'"),
        ("0 -1", "line 2: two numbers, 'row label', are needed, got '0 -1'"),
        ("0 1_0", "line 2: two numbers, 'row label', are needed, got '0 1_0'"),
        ("0 ²", "line 2: two numbers, 'row label', are needed, got '0 ²'"),
        ("3 0", "line 2: row 3 is out of range; 3 rows are there"),
        ("0 4", "line 2: label 4 is out of range; 4 labels are there"),
        (f"0 {10**30}", f"line 2: label {10**30} is out of range; 4 labels are there"),
    ],
)
def test_bad_filter_lines(root: Path, line: str, expected: str):
    (root / "filter_labels_train.txt").write_text(f"0 0\n{line}\n", encoding="utf-8")
    assert complaint(root) == f"ROOT/filter_labels_train.txt, {expected}"


@pytest.mark.parametrize("name", ["raw/trn_X.txt", "raw/Y.txt", "Y.trn.npz"])
def test_missing_file(root: Path, name: str):
    (root / name).unlink()
    assert complaint(root) == f"ROOT/{name}: the file does not exist"


def test_a_folder_in_the_place_of_a_file(root: Path):
    (root / "raw/trn_X.txt").unlink()
    (root / "raw/trn_X.txt").mkdir()
    assert complaint(root) == "ROOT/raw/trn_X.txt: cannot be read (Is a directory)"


def test_a_line_break_inside_a_text_is_caught_by_the_counts(root: Path):
    (root / "raw/trn_X.txt").write_text("one\ntw\no\nthree\n")
    assert complaint(root) == "ROOT/raw/trn_X.txt: 4 lines, but Y.trn.npz has 3 rows; each line is a row"


def test_too_few_labels(root: Path):
    (root / "raw/Y.txt").write_text("a\nb\nc\n")
    assert complaint(root) == "ROOT/Y.trn.npz: 4 columns, but raw/Y.txt has 3 lines, one per label"


@pytest.mark.parametrize("label", [4, -1])
def test_label_out_of_range(root: Path, label: int):
    csr(root / "Y.trn.npz", [1, 1], [0, label], [0, 1, 1, 2], (3, 4))
    assert complaint(root) == f"ROOT/Y.trn.npz: row 2 (from 0) has label {label}; labels 0 to 3 are allowed"


@pytest.mark.parametrize(("name", "shown"), [("raw/trn_X.txt", "trn_X.txt"), ("raw/Y.txt", "Y.txt")])
def test_bytes_that_are_not_utf8(root: Path, name: str, shown: str):
    (root / name).write_bytes("é\n".encode() + b"caf\xe9 au lait\n")
    assert complaint(root) == f"ROOT/raw/{shown}, line 2: byte 0xe9 at offset 6 is not UTF-8"


@pytest.mark.parametrize("blank", [b"", b"  ", b"\r", b"\t\r", "\u3000".encode()])
def test_an_empty_text(root: Path, blank: bytes):
    (root / "raw/trn_X.txt").write_bytes(b"one\n" + blank + b"\nthree\n")
    assert complaint(root) == "ROOT/raw/trn_X.txt, line 2: the text is empty"


@pytest.mark.parametrize(("name", "shown"), [("raw/trn_X.txt", "trn_X.txt"), ("raw/Y.txt", "Y.txt")])
def test_a_null_character(root: Path, name: str, shown: str):
    lines = (root / name).read_bytes().split(b"\n")
    (root / name).write_bytes(b"\n".join([lines[0], b"a\0b", *lines[2:]]))
    assert complaint(root) == f"ROOT/raw/{shown}, line 2: the text 'a\\x00b' holds the character U+0000"


@pytest.mark.parametrize(("value", "shown"), [(np.nan, "nan"), (np.inf, "inf"), (-np.inf, "-inf")])
def test_values_that_are_no_numbers(root: Path, value: float, shown: str):
    csr(root / "Y.trn.npz", [1.0, 1.0, value], [0, 1, 3], [0, 1, 1, 3], (3, 4))
    assert complaint(root) == f"ROOT/Y.trn.npz: row 2, label 3: the value is {shown}"


def test_values_of_another_type(root: Path):
    csr(root / "Y.trn.npz", [1j, 1j, 1j], [0, 1, 2], [0, 1, 2, 3], (3, 4))
    assert complaint(root) == "ROOT/Y.trn.npz: values of type complex128; numbers are needed"


def test_a_pickle_inside_is_never_opened(root: Path, monkeypatch: pytest.MonkeyPatch):
    class Trap:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (pytest.fail, ("the pickle was opened",))

    hidden = np.empty(3, dtype=object)
    hidden[:] = [Trap(), Trap(), Trap()]
    csr(root / "Y.trn.npz", hidden, [0, 1, 2], [0, 1, 2, 3], (3, 4))
    assert "not a scipy sparse matrix in npz ('Object arrays cannot be loaded" in complaint(root)


@pytest.mark.parametrize(
    "content", [b"", b"\x00", b"not a zip archive", b"PK\x03\x04 cut", b"\x93NUMPY\x01\x00", b"\x80\x04K\x01."]
)
def test_a_damaged_matrix(root: Path, content: bytes):
    (root / "Y.trn.npz").write_bytes(content)
    assert complaint(root).startswith("ROOT/Y.trn.npz: not a scipy sparse matrix in npz (")


def test_an_array_that_is_no_matrix(root: Path):
    with (root / "Y.trn.npz").open("wb") as stream:
        np.save(stream, np.eye(3))
    assert complaint(root).startswith("ROOT/Y.trn.npz: not a scipy sparse matrix in npz (")


@pytest.mark.parametrize("indptr", [[0, 1, 2], [0, 2, 1, 3], [1, 1, 2, 3], [0, 1, 2, 9], [0, -5, 2, 3]])
def test_row_pointers_that_point_nowhere(root: Path, indptr: list[int]):
    csr(root / "Y.trn.npz", [1, 1, 1], [0, 1, 2], indptr, (3, 4))
    assert complaint(root).startswith("ROOT/Y.trn.npz: not a scipy sparse matrix in npz (")


@pytest.mark.parametrize("kind", ["csc", "coo", "dia"])
def test_another_sparse_format(root: Path, kind: str):
    sp.save_npz(root / "Y.trn.npz", sp.coo_array(np.eye(3, 4)).asformat(kind))
    assert complaint(root) == f"ROOT/Y.trn.npz: a sparse matrix in {kind} format; csr is needed"


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_changed_byte_reads_or_complains_but_never_breaks(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject):
    path = tmp_path_factory.mktemp("fuzz")
    XmcText.write(path, LabelTable(("0", "1"), ("a", "b")), {"train": Split(("x", "y"), Positives.from_rows([[0], [1]], 2))})
    content = bytearray((path / "Y.trn.npz").read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    (path / "Y.trn.npz").write_bytes(content[: data.draw(st.integers(1, len(content)))])
    try:
        assert len(XmcText(path).read("train")) == 2
    except InputError as error:
        assert "\n" not in str(error)


LINES = st.text(min_size=1).filter(
    lambda text: text_fault(text) is None and "\n" not in text and not text.endswith("\r") and not text.startswith("\ufeff")
)


@settings(max_examples=60, deadline=None)
@given(texts=st.lists(LINES, min_size=1, max_size=5), data=st.data())
def test_any_text_of_one_line_comes_back(tmp_path_factory: pytest.TempPathFactory, texts: list[str], data: st.DataObject):
    root = tmp_path_factory.mktemp("lines")
    rows = data.draw(st.lists(st.sets(st.integers(0, len(texts) - 1)), min_size=len(texts), max_size=len(texts)))
    positives = Positives.from_rows([sorted(row) for row in rows], len(texts))
    XmcText.write(root, LabelTable(tuple(map(str, range(len(texts)))), tuple(texts)), {"test": Split(tuple(texts), positives)})
    read = XmcText(root)
    assert read.labels().texts == tuple(texts) == read.read("test").texts
    assert (read.read("test").positives.matrix() != positives.matrix()).nnz == 0


@pytest.mark.parametrize("text", ["two\nlines", "ends in\r", "\ufeffmark"])
def test_refuses_texts_that_no_line_holds(tmp_path: Path, text: str):
    with pytest.raises(InputError, match=r"train, row 0: the text .* does not fit one line; write it as jsonl"):
        XmcText.write(tmp_path, LabelTable(("0",), ("a",)), {"train": Split((text,), Positives.from_rows([[0]], 1))})
    assert not list(tmp_path.rglob("*.*"))


def test_refuses_other_split_names(tmp_path: Path):
    with pytest.raises(InputError, match="unknown split 'unseen'"):
        XmcText.write(tmp_path, LabelTable(("0",), ("a",)), {"unseen": Split(("x",), Positives.from_rows([[0]], 1))})


def test_scipy_itself_reads_what_is_written(tmp_path: Path):
    XmcText.write(tmp_path, LabelTable(("0",), ("a",)), {"train": Split(("x",), Positives.from_rows([[0]], 1))})
    matrix = sp.load_npz(tmp_path / "Y.trn.npz")
    assert matrix.format == "csr" and matrix.shape == (1, 1)
    with zipfile.ZipFile(tmp_path / "Y.trn.npz") as archive:
        assert {"data.npy", "indices.npy", "indptr.npy"} <= set(archive.namelist())
