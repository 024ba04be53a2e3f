"""An embedding job that is killed goes on and ends where one that was left alone does; another job is refused."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from dexml.__main__ import command
from dexml.bundle import Bundle
from dexml.errors import InputError
from training import parts
from training.parts import Rows

WORDS = "how fast signal matrix random line points images sparse strings text example".split()
ROOT = Path(__file__).parents[2]


def dexml(*arguments: object) -> Result:
    return CliRunner().invoke(command, [str(argument) for argument in arguments], prog_name="dexml")


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("texts") / "texts.txt"
    path.write_text(
        "".join(f"{word} and sorting of {number} arrays\n" for number in range(350) for word in WORDS), encoding="utf-8"
    )
    return path


@pytest.fixture(scope="module")
def whole(texts: Path, tiny_bundle: Path) -> Path:
    out = texts.parent / "whole"
    done = dexml("embed", tiny_bundle, texts, out, "--rows", 64)
    assert done.exit_code == 0, done.output
    assert f"{out}: 4,200 rows of 32 in 66 parts; " in done.output
    return out


def files(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.iterdir()}


def test_the_rows_are_those_of_the_model_in_the_order_of_the_texts(whole: Path, texts: Path, tiny_bundle: Path):
    lines = texts.read_text(encoding="utf-8").splitlines()
    rows, model = Rows.open(whole), Bundle.open(tiny_bundle).model()
    assert len(rows) == len(lines) == sum(map(len, rows.parts(verify=True)))
    expected = model.embed_queries(lines)[0].numpy()
    np.testing.assert_allclose(np.concatenate(list(rows.parts())), expected, atol=1e-6)
    np.testing.assert_allclose(rows[4199], expected[4199], atol=1e-6)
    with pytest.raises(IndexError):
        rows[4200]


def test_kill_9_half_way_and_the_same_command_again_give_the_same_bytes(whole: Path, texts: Path, tiny_bundle: Path):
    out = texts.parent / "cut"
    words = [sys.executable, "-m", "dexml", "embed", tiny_bundle, texts, out, "--rows", "64"]
    child = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until = time.monotonic() + 60
    while not (out / "part-000003.json").exists() and time.monotonic() < until:
        time.sleep(0.001)
    os.kill(child.pid, signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    with pytest.raises(InputError, match="the job is not through"):
        Rows.open(out)
    (out / ".part-000099.npy.0.tmp").write_bytes(b"half")
    again = dexml("embed", tiny_bundle, texts, out, "--rows", 64)
    assert again.exit_code == 0 and "of them were there already" in again.output
    assert files(out) == files(whole)


def test_another_model_side_or_input_is_refused(whole: Path, texts: Path, tiny_bundle: Path, tmp_path: Path):
    def said(*more: str | int, given: Path = texts, out: Path = whole) -> str:
        result = dexml("embed", tiny_bundle, given, out, *more)
        assert isinstance(result.exception, InputError), result.output
        return str(result.exception)

    assert said("--rows", 64, "--side", "label").endswith(
        "was begun with --side query, and not label; give a new folder, or remove this one"
    )
    assert "was begun with --rows 64, and not 4096" in said()
    changed = tmp_path / "texts.txt"
    changed.write_text(texts.read_text(encoding="utf-8") + "one more\n", encoding="utf-8")
    assert "was begun with other texts (texts.txt as it was, SHA-256 " in said("--rows", 64, given=changed)
    job = parts.Job.model_validate_json((whole / "job.json").read_bytes())
    parts.begin(tmp_path / "other", job.model_copy(update={"encoder": "0" * 64, "model": "other@sha256:00"}))
    assert "was begun with the model other@sha256:00, and this is tiny@sha256:" in said("--rows", 64, out=tmp_path / "other")
    assert "is there already and holds no job.json" in said(out=texts.parent)
    assert "cannot be read (No such file" in said(given=tmp_path / "none.txt", out=tmp_path / "new")
    assert "--workers goes with --engine ray" in said("--workers", 2)


def test_damage_is_told_by_the_reader(whole: Path, tmp_path: Path):
    out = tmp_path / "copy"
    out.mkdir()
    for name, content in files(whole).items():
        (out / name).write_bytes(content)
    part = out / "part-000001.npy"
    changed = bytearray(part.read_bytes())
    changed[-1] ^= 1
    part.write_bytes(changed)
    assert len(Rows.open(out).part(1)) == 64
    with pytest.raises(InputError, match=r"part-000001\.npy was changed after it was written"):
        list(Rows.open(out).parts(verify=True))
    part.write_bytes(changed[:-4])
    with pytest.raises(InputError, match=r"part-000001\.npy: damaged"):
        Rows.open(out).part(1)
    (out / "job.json").write_text("{}")
    with pytest.raises(InputError, match=r"job\.json: damaged \(field required\)"):
        Rows.open(out)


def test_texts_without_a_known_word_are_counted_and_labels_are_the_towers_other_side(tiny_bundle: Path, tmp_path: Path):
    (tmp_path / "a.txt").write_text("sorting of arrays\n🂡🂢🂣\n", encoding="utf-8")
    done = dexml("embed", tiny_bundle, tmp_path / "a.txt", tmp_path / "out", "--side", "label")
    assert done.exit_code == 0 and "the model knows no word of 1 texts; their rows are 0" in done.output
    expected = Bundle.open(tiny_bundle).model().embed_labels(["sorting of arrays", "🂡🂢🂣"]).numpy()
    assert np.array_equal(Rows.open(tmp_path / "out").part(0), expected)
