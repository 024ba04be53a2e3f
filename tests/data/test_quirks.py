"""What real files of each format look like, beyond what we write ourselves."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp

from data import open_format, tell_format
from dexml.errors import InputError


def write(root: Path, **files: str) -> Path:
    """Write files whose names have "__" for "/" and "_dot_" for "."."""
    for name, content in files.items():
        path = root / name.replace("__", "/").replace("_dot_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")
    return root


def rows(root: Path, split: str = "train") -> list[list[int]]:
    read = open_format(root).read(split)
    return [read.positives.row(row).tolist() for row in range(len(read))]


def test_repository_json_with_titles_contents_and_empty_targets(tmp_path: Path):
    labels = [{"uid": "B00", "title": "A lamp", "content": ""}, {"uid": 7, "title": "", "content": "only\ncontent"}]
    train = [
        {"uid": "Q1", "title": "Both", "content": "parts of it", "target_ind": [1, 0, 1], "target_rel": [1.0, 0.5, 1]},
        {"uid": "Q2", "title": "None", "content": "", "target_ind": [], "target_rel": []},
        {"uid": "Q3", "title": "No content, no relevance", "target_ind": [0]},
        {"uid": "Q4", "title": "A zero", "content": "", "target_ind": [0, 1], "target_rel": [0.0, 1.0]},
    ]
    for name, objects in (("lbl.raw.json.gz", labels), ("trn.raw.json.gz", train)):
        (tmp_path / name).write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in objects).encode()))
    made = open_format(tmp_path)
    assert made.splits() == ("train",)
    assert made.labels().ids == ("B00", "7") and made.labels().texts == ("A lamp", "only\ncontent")
    assert made.read("train").texts == ("Both parts of it", "None", "No content, no relevance", "A zero")
    assert rows(tmp_path) == [[0, 1], [], [0], [1]]


def test_repository_json_beside_the_sparse_files_of_the_same_download(tmp_path: Path):
    label, row = '{"uid": "a", "title": "x"}', '{"uid": "b", "title": "y", "target_ind": [0]}'
    write(tmp_path, lbl_dot_json=label, trn_dot_json=row, trn_X_Y_dot_txt="1 1\n0:1\n", filter_labels_train_dot_txt="0 0\n")
    assert tell_format(tmp_path) == "xc_json"
    excluded = open_format(tmp_path).read("train").excluded
    assert excluded is not None and excluded.row(0).tolist() == [0]
    (tmp_path / "trn.json.gz").write_bytes(gzip.compress(b""))
    with pytest.raises(InputError, match=r"trn\.json\.gz: trn\.json is there too; keep one of them"):
        open_format(tmp_path).read("train")


def test_sparse_text_with_blank_rows_values_zeros_and_features(tmp_path: Path):
    matrix = "4 3\n2:0.50000 0:1e-3\n\n1:0 2:1\n \n"
    write(tmp_path, trn_X_Y_dot_txt=matrix, trn_X_dot_txt="a\nb\nc\nd\n", Y_dot_txt="x\ny\nz\n", trn_X_Xf_dot_txt="4 9\n")
    assert tell_format(tmp_path) == "xc_sparse"
    assert rows(tmp_path) == [[0, 2], [], [2], []]
    write(tmp_path, trn_X_Xf_dot_txt="5 9\n")
    with pytest.raises(InputError, match=r"trn_X_Xf\.txt, line 1: 5 rows, but trn_X_Y\.txt has 4"):
        rows(tmp_path)


def test_filter_files_by_their_other_name(tmp_path: Path):
    write(tmp_path, trn_X_Y_dot_txt="1 2\n0:1\n", trn_X_dot_txt="a\n", Y_dot_txt="x\ny\n", trn_filter_labels_dot_txt="0 1\n")
    excluded = open_format(tmp_path).read("train").excluded
    assert excluded is not None and excluded.row(0).tolist() == [1]
    write(tmp_path, filter_labels_train_dot_txt="")
    with pytest.raises(InputError, match=r"filter_labels_train\.txt: trn_filter_labels\.txt is there too"):
        open_format(tmp_path).read("train")


def test_the_old_single_file(tmp_path: Path):
    lines = "4 5 3\n2,0 0:0.5 4:-1.25e-2\n 1:1\n1 \n1,2 0:0\n"
    write(tmp_path, train_dot_txt=lines, raw__trn_X_dot_txt="a\nb\nc\nd\n", raw__Y_dot_txt="x\ny\nz\n")
    assert tell_format(tmp_path) == "xc_single"
    assert rows(tmp_path) == [[0, 2], [], [1], [1, 2]]
    write(tmp_path, train_dot_txt=lines.replace("4:-", "5:-"))
    with pytest.raises(InputError, match=r"train\.txt, line 2: feature 5 is out of range; features 0 to 4 are allowed"):
        rows(tmp_path)


def test_pecos_relevances_tabs_and_older_names(tmp_path: Path):
    lines = "0,1,2\ta text\n0::0.5,2::0\tanother\twith tabs\n\tno labels\n"
    write(tmp_path, **{"training-data_dot_txt": lines, "output-labels_dot_txt": "x\ny\nz\n"})
    assert tell_format(tmp_path) == "pecos"
    assert rows(tmp_path) == [[0, 1, 2], [0], []]
    assert open_format(tmp_path).read("train").texts[1] == "another\twith tabs"


def test_pecos_texts_beside_a_matrix_are_the_matrix_format(tmp_path: Path):
    write(tmp_path, X_dot_trn_dot_txt="a\nb\n", **{"output-items_dot_txt": "x\ny\nz\n"})
    sp.save_npz(tmp_path / "Y.trn.npz", sp.csr_matrix(np.array([[0, 0, 2.0], [1, 0, 0]])))
    assert tell_format(tmp_path) == "xmc_text" and rows(tmp_path) == [[2], [0]]


def test_libmultilabel_with_ids_and_names_alone(tmp_path: Path):
    write(tmp_path, train_dot_txt="7\tb a\tfirst text\n8\t\tno labels\n", test_dot_txt="c\tother columns here\n")
    made = open_format(tmp_path)
    assert tell_format(tmp_path) == "libmultilabel" and made.splits() == ("train", "test")
    assert made.labels().ids == made.labels().texts == ("a", "b", "c")
    assert made.read("train").texts == ("first text", "no labels") and rows(tmp_path) == [[0, 1], []]


def test_names_without_a_list_leave_a_filter_file_nothing_to_count_by(tmp_path: Path):
    write(tmp_path, train_texts_dot_txt="one\n", train_labels_dot_txt="b a\n", filter_labels_train_dot_txt="0 1\n")
    with pytest.raises(InputError, match=r"filter_labels_train\.txt: numbers labels, but labels\.txt is not there"):
        open_format(tmp_path).read("train")
    write(tmp_path, labels_dot_txt="b\ta longer name\na\n")
    assert open_format(tmp_path).labels().texts == ("a longer name", "a")
    assert rows(tmp_path) == [[0, 1]]


def test_attentionxml_raw_texts_and_blank_labels(tmp_path: Path):
    write(tmp_path, train_raw_texts_dot_txt="one\ntwo\nthree\n", train_labels_dot_txt="b  a\n\na\n")
    assert tell_format(tmp_path) == "attentionxml" and rows(tmp_path) == [[0, 1], [], [0]]
    write(tmp_path, train_labels_dot_txt="b a\na\n")
    with pytest.raises(InputError, match=r"train_labels\.txt: 2 lines, but train_raw_texts\.txt has more"):
        rows(tmp_path)


def test_csv_of_a_spreadsheet(tmp_path: Path):
    labels = '\ufeffid,text,price\r\n1,"a, b",3\r\n"2","say ""x""",\r\n\r\n[3,c;d,\r\n'
    train = 'uid,labels,text\r\n0,1; 2 ,"two\r\nlines"\r\n1,,none\r\n2,"[""[3"", ""a, b""]",x\r\n3,"say ""x""",y\r\n'
    for name, content in (("labels", labels), ("train", train)):
        (tmp_path / f"{name}.csv.gz").write_bytes(gzip.compress(content.encode()))
    made = open_format(tmp_path)
    assert made.labels().ids == ("1", "2", "[3") and made.labels().texts == ("a, b", 'say "x"', "c;d")
    assert made.read("train").texts == ("two\r\nlines", "none", "x", "y")
    assert rows(tmp_path) == [[0, 1], [], [0, 2], [1]]


def test_csv_faults_name_the_line_where_the_row_begins(tmp_path: Path):
    write(tmp_path, labels_dot_csv="id,text\na,x\n", train_dot_csv='text,labels\n"one\ntwo",a\nthree,b\n')
    with pytest.raises(InputError, match=r"train\.csv, line 4, labels\[0\]: unknown label 'b' \(labels\.csv has 1 labels\)"):
        rows(tmp_path)


def test_parquet_of_pandas_and_others(tmp_path: Path):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    pq.write_table(pa.table({"id": [1, 2], "text": pa.array(["x", "y"]).dictionary_encode()}), tmp_path / "labels.parquet")
    lists = pa.array([["y"], ["1", "2"]], pa.large_list(pa.large_string()))
    pq.write_table(pa.table({"more": [{"a": 1}, None], "labels": lists, "text": ["p", "q"]}), tmp_path / "train.parquet")
    pq.write_table(pa.table({"text": ["r"], "labels": [[2]]}), tmp_path / "dev.parquet")
    assert rows(tmp_path) == [[1], [0, 1]] and rows(tmp_path, "dev") == [[1]]


def test_two_formats_in_one_folder(tmp_path: Path):
    write(tmp_path, labels_dot_csv="id,text\na,x\n", train_dot_csv="text,labels\nt,a\n", labels_dot_jsonl="")
    with pytest.raises(InputError, match="holds the files of jsonl and csv; say which format is meant"):
        open_format(tmp_path)
    assert len(open_format(tmp_path, "csv").read("train")) == 1


def test_rows_that_say_what_is_excluded_beside_a_filter_file(tmp_path: Path):
    row = '{"text": "t", "labels": ["a"], "excluded": ["a"]}\n'
    write(tmp_path, labels_dot_jsonl='{"id": "a", "text": "x"}\n', train_dot_jsonl=row, filter_labels_train_dot_txt="0 0\n")
    with pytest.raises(InputError, match="the rows of 'train' say what is excluded already"):
        open_format(tmp_path).read("train")
