"""The guide docs/your_own_data.md, followed to the letter: its files are written, its commands run, in its order."""

import re
import shlex
from importlib.util import find_spec
from pathlib import Path

import pytest

from dexml.__main__ import main

GUIDE = Path(__file__).parents[2] / "docs" / "your_own_data.md"
BLOCK = re.compile(r"^```(\w+)(?: (\S+))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def run(command: str, capsys: pytest.CaptureFixture[str]) -> str:
    program, *arguments = shlex.split(command)
    assert program == "dexml"
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    told = capsys.readouterr()
    assert ended.value.code == 0, f"{command}: {told.err}{told.out}"
    return told.out


@pytest.mark.skipif(find_spec("pyarrow") is None, reason="the guide needs pyarrow")
def test_every_command_of_the_guide_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.chdir(tmp_path)
    said: dict[str, str] = {}
    for language, file, content in BLOCK.findall(GUIDE.read_text(encoding="utf-8")):
        if file:
            Path(file).parent.mkdir(parents=True, exist_ok=True)
            Path(file).write_text(content, encoding="utf-8")
            continue
        assert language == "console", "a block without a file's name is one of commands"
        for line in content.splitlines():
            assert line.startswith("$ "), line
            said[line[2:]] = run(line[2:], capsys)
    assert len(said) == 10
    checks = [said[f"dexml data check {folder}"].partition("\n")[2] for folder in ("notes", "tickets")]
    assert checks[0] == checks[1] and "0 errors, 0 warnings" in checks[0]
    assert "usb" in said['dexml search runs/shop/bundle "a cable for my phone"']
    assert (tmp_path / "report.json").is_file() and (tmp_path / "shop" / "filter_labels_test.txt").is_file()


def test_the_guides_complaint_is_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.chdir(tmp_path)
    guide = GUIDE.read_text(encoding="utf-8")
    for _, file, content in BLOCK.findall(guide):
        if file.startswith("shop/"):
            Path(file).parent.mkdir(exist_ok=True)
            Path(file).write_text(content.replace("hdmi;usb", "hdmii;usb"), encoding="utf-8")
    with pytest.raises(SystemExit) as ended:
        main(["data", "check", "shop"])
    assert ended.value.code == 1
    complaint = "shop/train.csv, line 3, labels[0]: unknown label 'hdmii'; did you mean 'hdmi'?"
    assert complaint in capsys.readouterr().out.replace("\n", " ") and complaint in guide
