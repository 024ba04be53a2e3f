"""The embedded demo set: nothing leaks, nothing depends on hash seeds, and a missing package is left out aloud."""

import doctest
import json
import os
import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from data import callables, open_format, pydocs
from data.callables import PublicCallable, collect
from data.cli import command
from data.jsonl import JsonLines
from dexml.errors import InputError
from dexml.types import LabelTable, Split

SOME = ["numpy.linalg", "numpy.fft", "numpy.random", "scipy.fft", "scipy.linalg", "sklearn.linear_model", "torch.linalg"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pydocs")
    pydocs.build(folder, names=SOME)
    return folder


@pytest.fixture(scope="module")
def labels(folder: Path) -> LabelTable:
    return JsonLines(folder).labels()


@pytest.fixture(scope="module")
def splits(folder: Path) -> dict[str, Split]:
    made = open_format(folder)
    return {name: made.read(name) for name in made.splits()}


def rows(split: Split) -> list[tuple[str, set[int]]]:
    return [(text, set(split.positives.row(row).tolist())) for row, text in enumerate(split.texts)]


def test_has_what_it_promises(labels: LabelTable, splits: dict[str, Split]):
    assert tuple(splits) == ("train", "test", "unseen")
    assert {"numpy.linalg.svd", "scipy.linalg.svd", "sklearn.linear_model.Ridge", "torch.linalg.svd"} <= set(labels.ids)
    assert list(labels.ids) == sorted(labels.ids)
    assert labels.texts[labels.ids.index("numpy.linalg.svd")] == "numpy linalg svd: Singular Value Decomposition."
    assert all(len(split) > 50 and split.positives.counts().any() for split in splits.values())
    assert all(positives for split in splits.values() for _, positives in rows(split))


def test_training_knows_nothing_of_unseen_callables(folder: Path, labels: LabelTable, splits: dict[str, Split]):
    trained = set(np.flatnonzero(splits["train"].positives.counts()).tolist())
    unseen = splits["unseen"]
    # Owners are positives too: a sentence of the unseen split has no owner that training has seen, and is found through no
    # label that training has seen; relatives that it has seen are no misses either.
    assert all(positives and not positives & trained for _, positives in rows(unseen))
    assert unseen.excluded is not None and set(unseen.excluded.indices.tolist()) <= trained
    assert 0.2 < (np.diff(unseen.excluded.indptr) > 0).mean() < 0.9
    assert splits["test"].excluded is None and splits["train"].excluded is None
    never = set(range(len(labels))) - trained
    assert len(never) > 10
    kept = [
        made
        for package in callables.PACKAGES
        for made in collect(package, [n for n in SOME if n in callables.modules(package)])
    ]
    summaries = {pydocs.key(pydocs.parse(made.doc).summary) for made in kept}
    assert not summaries & {pydocs.key(text) for text in splits["unseen"].texts}


def test_test_sentences_belong_to_callables_in_training(splits: dict[str, Split]):
    trained = set(np.flatnonzero(splits["train"].positives.counts()).tolist())
    assert all(positives & trained for _, positives in rows(splits["test"]))
    assert np.mean([positives <= trained for _, positives in rows(splits["test"])]) > 0.75


def test_positives_and_excluded_labels_of_unseen_sentences_are_the_callable_and_its_relatives():
    sentences = [f"Sentence {word} tells about this callable." for word in ("one", "two", "three", "four", "five", "six")]
    found = [doc(f"p.f{n}", *(f"{text[:-1]} f{n}th." for text in sentences), see="f0, f1, f2, f3, f4, f5") for n in range(40)]
    labels, splits = pydocs.assemble(found, 0)
    unseen, trained = splits["unseen"], set(np.flatnonzero(splits["train"].positives.counts()).tolist())
    assert len(unseen) and unseen.excluded is not None
    first_six = {labels.ids.index(f"p.f{n}") for n in range(6)}
    for row, (text, positives) in enumerate(rows(unseen)):
        own = labels.ids.index(f"p.{text.rpartition(' ')[2].removesuffix('th.')}")
        everything = positives | set(unseen.excluded.row(row).tolist())
        assert everything == first_six | {own} and positives == everything - trained and own in positives


def test_no_sentence_stands_in_two_splits_or_twice(splits: dict[str, Split]):
    keys = [pydocs.key(text) for split in splits.values() for text in split.texts]
    assert len(keys) == len(set(keys))


def test_own_names_are_masked(labels: LabelTable, splits: dict[str, Split]):
    for split in splits.values():
        for text, positives in rows(split):
            if len(positives) == 1:  # then it is the owner's
                own = labels.ids[min(positives)].rpartition(".")[2]
                assert not re.search(rf"(?<!\w){re.escape(own)}(?!\w)", text, re.IGNORECASE), (own, text)


def test_sentences_are_clean(splits: dict[str, Split]):
    for split in splits.values():
        for text in split.texts:
            assert not re.search(r"`|:math:|:func:|>>>|\\|\x01|http|versionadded", text), text
            assert 2 <= len(text.split()) <= 80 and text == " ".join(text.split())


def test_see_also_and_summaries(labels: LabelTable, splits: dict[str, Split]):
    found = {text: {labels.ids[label] for label in row} for text, row in rows(splits["train"])}
    # A summary has its own callables alone as positives, so that they rank before their relatives.
    assert found["Linear least squares with l2 regularization."] == {"sklearn.linear_model.Ridge"}
    relatives = {"numpy.linalg.eigh", "numpy.linalg.eigvals", "scipy.linalg.eig"}
    assert any({"numpy.linalg.eig"} | relatives <= positives for positives in found.values())


def test_hash_seeds_change_nothing(folder: Path, tmp_path: Path):
    """This process draws a seed of its own for its hashes, unless it was given one."""
    code = "import sys; from pathlib import Path; from data.pydocs import build; build(Path(sys.argv[1]), names=sys.argv[2:])"
    other = "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1"
    made = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, str(tmp_path), *SOME],
        env={**os.environ, "PYTHONHASHSEED": other, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
    )
    assert (made.returncode, made.stdout, made.stderr) == (0, "", "")
    for path in sorted(folder.iterdir()):
        assert (tmp_path / path.name).read_bytes() == path.read_bytes(), path.name


def test_another_seed_holds_out_other_sentences(splits: dict[str, Split], tmp_path: Path):
    pydocs.build(tmp_path, seed=1, names=SOME)
    assert set(JsonLines(tmp_path).read("test").texts) != set(splits["test"].texts)


def test_examples_in_the_docstrings():
    assert doctest.testmod(pydocs).failed == 0


@pytest.mark.parametrize(
    ("text", "name", "expected"),
    [
        ("Sort sorts; np.sort(a) too.", "numpy.sort", "… sorts; …(a) too."),
        ("argsort, sort_complex and sort2", "numpy.sort", "argsort, sort_complex and sort2"),
        ("norm.pdf(x) of norm", "scipy.stats.norm", "….pdf(x) of …"),
        ("a linear regression, LinearRegression", "sklearn.linear_model.LinearRegression", "a linear regression, …"),
    ],
)
def test_mask(text: str, name: str, expected: str):
    assert pydocs.mask(text, name) == expected


def doc(name: str, *sentences: str, see: str = "") -> PublicCallable:
    text = f"Summary about {name} in short.\n\n{' '.join(sentences)}\n"
    return PublicCallable(name, text + (f"\nSee Also\n--------\n{see}\n" if see else ""), (name,))


def test_shared_sentences_have_all_their_callables_and_boilerplate_goes():
    shared, plate = "This sentence stands in exactly two of them.", "This one is simply written everywhere you look."
    template = "The {} function is described with these words."
    found = [doc(f"p.f{n}", plate, template.format(f"f{n}"), *([shared] if n < 2 else []), see="f9") for n in range(10)]
    labels, splits = pydocs.assemble(found, 3)
    positives = {text: {labels.ids[label] for label in row} for split in splits.values() for text, row in rows(split)}
    assert positives[shared] >= {"p.f0", "p.f1"}
    assert plate not in positives and template.format("…") not in positives


def test_a_sentence_with_the_names_of_two_callables_is_one_query():
    both = "Here alpha comes long before beta in the text."
    _, splits = pydocs.assemble(
        [doc("p.alpha", both), doc("p.beta", both), doc("p.gamma", "Filler that says nothing at all.")], 0
    )
    texts = [text for split in splits.values() for text in split.texts]
    assert "Here … comes long before … in the text." in texts
    assert not any("alpha" in text or "beta" in text for text in texts)


def test_aliases_are_one_callable_under_the_shortest_path():
    made = {found.name: found for found in collect("numpy", ["numpy", "numpy.linalg"])}
    assert "numpy.absolute" in made and "numpy.abs" in made["numpy.absolute"].paths and "numpy.abs" not in made
    assert "numpy.linalg.svd" in made and "numpy.linalg.LinAlgError" not in made


def test_a_missing_package_is_left_out_and_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def version(name: str) -> str:
        if name == "scikit-learn":
            raise PackageNotFoundError(name)
        return "9.9"

    monkeypatch.setattr(pydocs, "version", version)
    summary = pydocs.build(tmp_path, packages=["numpy", "sklearn"], names=["numpy.linalg", "sklearn.svm"])
    assert summary["missing"] == ["sklearn"] and summary["packages"] == {"numpy": "9.9"}
    assert {name.partition(".")[0] for name in JsonLines(tmp_path).labels().ids} == {"numpy"}
    with pytest.raises(InputError, match="none of the packages sklearn is installed"):
        pydocs.build(tmp_path, packages=["sklearn"])


def test_a_module_that_another_release_lacks_is_passed_over(monkeypatch: pytest.MonkeyPatch):
    assert collect("numpy", ["numpy.linalg", "numpy.not_there"]) == collect("numpy", ["numpy.linalg"])
    with pytest.raises(ModuleNotFoundError):
        collect("not_there", ["not_there"])


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pydocs, "PACKAGES", {"numpy": ""})
    monkeypatch.setattr(pydocs, "modules", lambda package: ["numpy.linalg", "numpy.fft"])


@pytest.mark.usefixtures("small")
class TestCommand:
    def call(self, *arguments: object) -> str:
        made = CliRunner().invoke(command, ["pydocs", *map(str, arguments)], catch_exceptions=False)
        assert made.exit_code == 0
        return made.stdout

    def test_says_what_it_made_and_is_quick_the_second_time(self, tmp_path: Path):
        first = self.call(tmp_path / "new" / "set")
        assert re.fullmatch(r".*set: \d+ labels, \d+ train, \d+ test, \d+ unseen \(numpy [\d.]+\)\n", first)
        stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "new/set").iterdir()}
        assert "is up to date" in self.call(tmp_path / "new" / "set")
        assert {path: path.stat().st_mtime_ns for path in (tmp_path / "new/set").iterdir()} == stamps

    def test_builds_again_for_another_seed_or_version_or_a_lost_file(self, tmp_path: Path):
        self.call(tmp_path)
        assert "up to date" not in self.call(tmp_path, "--seed", 5)
        assert "up to date" in self.call(tmp_path, "--seed", 5)
        assert "up to date" not in self.call(tmp_path, "--seed", 5, "--force")
        (tmp_path / "test.jsonl").unlink()
        assert "up to date" not in self.call(tmp_path, "--seed", 5)
        record = json.loads((tmp_path / "pydocs.json").read_text())
        for changed in ({**record, "packages": {"numpy": "1.0"}}, {**record, "recipe": 1}):
            (tmp_path / "pydocs.json").write_text(json.dumps(changed))
            assert "up to date" not in self.call(tmp_path, "--seed", 5)

    def test_leaves_a_folder_of_something_else_alone(self, tmp_path: Path):
        (tmp_path / "labels.jsonl").write_text("mine")
        with pytest.raises(InputError, match="the folder is not empty and no earlier pydocs set"):
            self.call(tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == ["labels.jsonl"]
        assert "labels" in self.call(tmp_path, "--force")

    def test_a_broken_off_build_may_be_taken_up(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        with monkeypatch.context() as broken:
            broken.setattr(JsonLines, "write", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                pydocs.build(tmp_path)
        assert pydocs.up_to_date(tmp_path) is None
        assert "labels" in self.call(tmp_path)

    def test_a_place_that_cannot_be_written(self, tmp_path: Path):
        (tmp_path / "file").write_text("")
        with pytest.raises(InputError, match=r"file.*: cannot be written \(Not a directory\)"):
            self.call(tmp_path / "file" / "below")


def test_the_command_line_imports_nothing_heavy():
    code = "import sys, importlib; import data; before = set(sys.modules); import data.cli; print(*set(sys.modules) - before)"
    made = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
    )
    added = {name.partition(".")[0] for name in made.stdout.split()}
    assert not added & {"rich", "sklearn", "pandas"}, made.stderr
    assert "data.pydocs" not in made.stdout.split() and "data.cli" in made.stdout.split()
