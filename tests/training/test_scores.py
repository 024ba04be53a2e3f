"""`dexml evaluate --scores`: a bundle's saved answers give its own figures, without the bundle; misuse is told."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from dexml.__main__ import main


def run(*arguments: str | Path) -> int:
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    return int(ended.value.code or 0)


def test_saved_answers_give_the_figures_of_the_bundle(tiny_bundle: Path, tiny_data: Path, tmp_path: Path, capsys):
    out = Path(shutil.copytree(tiny_bundle.parent, tmp_path / "run"))
    answers = tmp_path / "answers.npz"
    assert run("evaluate", out, "--json", tmp_path / "bundle.json", "--scores-out", answers) == 0
    assert (out / "evaluations/test.npz").read_bytes(), "a run keeps the answers beside its figures"
    assert run("evaluate", "--scores", answers, "--data", tiny_data, "--json", tmp_path / "scores.json") == 0
    printed = capsys.readouterr().out
    assert "PSnDCG" in printed and "macroF1" in printed and "tail" in printed
    of_bundle, of_scores = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("bundle", "scores"))
    names = [name for name in of_bundle if "@" in name]
    assert len(names) == 7
    assert {name: of_scores[name] for name in names} == pytest.approx({name: of_bundle[name] for name in names}, abs=1e-6)
    assert [group["name"] for group in of_scores["bands"]] == ["head", "torso", "tail"]
    assert sum(group["labels"] for group in of_scores["deciles"]) == of_scores["sizes"]["labels"] == 10


def test_a_trec_run_by_label_ids(tiny_data: Path, tmp_path: Path):
    lines = (tiny_data / "test.jsonl").read_text().splitlines()
    true = [json.loads(line)["labels"] for line in lines]
    run_file = tmp_path / "perfect.trec"
    run_file.write_text("".join(f"{row} Q0 {label} 1 1.0 t\n" for row, labels in enumerate(true) for label in labels))
    assert run("evaluate", "--scores", run_file, "--data", tiny_data, "--json", tmp_path / "out.json") == 0
    figures = json.loads((tmp_path / "out.json").read_text())
    assert {figures[f"{name}@10"] for name in ("R", "nDCG", "MRR", "MAP", "PSP", "PSR", "hits", "coverage")} == {100.0}


def test_a_data_set_without_training_rows_has_no_propensities(tiny_data: Path, tmp_path: Path, capsys):
    data = Path(shutil.copytree(tiny_data, tmp_path / "data"))
    (data / "train.jsonl").unlink()
    (tmp_path / "run.trec").write_text("0 Q0 fft 1 1.0 t\n")
    assert run("evaluate", "--scores", tmp_path / "run.trec", "--data", data, "--json", tmp_path / "out.json") == 0
    assert "no training rows" in capsys.readouterr().err
    figures = json.loads((tmp_path / "out.json").read_text())
    assert "P@1" in figures and not any(name.startswith("PS") for name in figures) and "deciles" not in figures


def test_propensity_is_two_numbers_or_an_exact_name(tiny_data: Path, tmp_path: Path, capsys):
    (tmp_path / "run.trec").write_text("0 Q0 fft 1 1.0 t\n1 Q0 fft 1 1.0 t\n")
    call = ("evaluate", "--scores", tmp_path / "run.trec", "--data", tiny_data, "--json", tmp_path / "out.json")
    made = []
    for given in ("0.6,2.6", "LF-Amazon-131K"):
        assert run(*call, "--propensity", given) == 0
        made.append(json.loads((tmp_path / "out.json").read_text()))
    assert made[0] == made[1] and made[0]["propensity"] == [0.6, 2.6]
    for given, said in (("Amazon", "unknown data set"), ("1,2,3", "A,B"), ("a,b", "A,B"), ("0.5,-1", "A,B")):
        assert run(*call, "--propensity", given) == 2
        assert said in capsys.readouterr().err


def test_what_does_not_go_together_is_told(tiny_bundle: Path, tiny_data: Path, tmp_path: Path):
    (tmp_path / "run.trec").write_text("0 Q0 fft 1 1.0 t\n")
    assert run("evaluate") == 2
    assert run("evaluate", "--scores", tmp_path / "run.trec") == 2
    assert run("evaluate", tiny_bundle, "--scores", tmp_path / "run.trec", "--data", tiny_data) == 2
    assert run("evaluate", tiny_bundle, "--propensity", "1,1") == 2
    assert run("evaluate", tiny_bundle, "--scores-out", tmp_path / "nowhere/answers.npz") == 2
