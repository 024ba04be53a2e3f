"""The command line from data to answers, and every kind of bad input: one line that names what is wrong, exit code 2."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dexml.__main__ import main

DEXML = [sys.executable, "-m", "dexml"]


def run(*arguments: str | Path, **options) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*DEXML, *map(str, arguments)], capture_output=True, text=True, timeout=120, **options)


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]):
    """Call the front door in this process, and return the one line that a wrong call leaves behind."""

    def call(*arguments: str | Path) -> str:
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        output, errors = capsys.readouterr()
        assert ended.value.code == 2 and output == ""
        lines = errors.strip().splitlines()
        assert len(lines) == 1 and lines[0].startswith("dexml: "), errors
        return lines[0]

    return call


def test_a_wrong_call_of_the_real_process_ends_with_two_and_no_traceback(tmp_path: Path):
    done = run("search", tmp_path / "nowhere", "text")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"dexml: bundle: the folder {tmp_path / 'nowhere'} does not exist\n"


def test_search_evaluate_and_info(tiny_bundle: Path, tmp_path: Path):
    found = json.loads(run("search", tiny_bundle, "singular value decomposition", "-k", "3", "--json").stdout)
    assert found[0]["id"] == "svd"
    assert [answer["score"] for answer in found] == sorted((answer["score"] for answer in found), reverse=True)
    table = run("search", tiny_bundle, "singular value decomposition", "-k", "3").stdout
    assert "svd" in table and "%" in table
    done = run("evaluate", tiny_bundle, "--json", tmp_path / "figures.json")
    assert done.returncode == 0, done.stderr
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert {"P@1", "P@3", "P@5", "nDCG@5", "R@100", "PSP@1", "PSP@5", "seconds", "sizes"} == set(figures)
    assert figures["P@1"] == 100 and figures["R@100"] == 100
    assert figures["sizes"]["labels"] == 10 and figures["seconds"]["total"] > 0
    described = json.loads(run("info", tiny_bundle).stdout)
    assert described["labels"] == 10 and described["training"]["config"]["seed"] == 0


def test_help_of_every_command_needs_nothing_installed_but_click():
    probe = (
        "import sys; from dexml.__main__ import COMMANDS, command\n"
        "for name in ['', *COMMANDS]:\n"
        "    try: command.main([*([name] if name else []), '--help'], standalone_mode=False)\n"
        "    except SystemExit: pass\n"
        "heavy = {'torch', 'faiss', 'numba', 'flask', 'transformers', 'sklearn', 'sentence_transformers'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Usage:") == 7


def test_bad_bundles_and_numbers(refused, tiny_bundle: Path, tmp_path: Path):
    assert "does not exist" in refused("search", tmp_path / "nowhere", "text")
    assert "k must be at least 1, got 0" in refused("search", tiny_bundle, "text", "-k", "0")
    assert "text is empty" in refused("search", tiny_bundle, "  ")
    assert "did you mean 'exact'" in refused("search", tiny_bundle, "text", "--index", "exat")
    copy = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    content = bytearray((copy / "embeddings.safetensors").read_bytes())
    content[-1] ^= 1
    (copy / "embeddings.safetensors").write_bytes(content)
    assert "embeddings.safetensors was changed" in refused("evaluate", copy)
    assert "nowhere" in refused("evaluate", tiny_bundle, "--split", "nowhere")


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("training.epoch=3", "did you mean 'epochs'"),
        ("trainin.epochs=3", "did you mean 'training'"),
        ("loss.name=decoupled", "did you mean 'decoupled_softmax'"),
        ("loss.temprature=0.1", "did you mean 'temperature'"),
        ("tower.dropout=2", "less than or equal to 0.9"),
        ("training.batch=0", "greater than or equal to 1"),
        ("seed=x", "seed"),
        ("data.path=/nowhere", "/nowhere does not exist"),
        ("index.factory=Nonsense", "FAISS refuses 'Nonsense'"),
        ("oops", "expected section.key=value"),
    ],
)
def test_bad_settings(refused, tiny_config: Path, tmp_path: Path, setting: str, message: str):
    arguments = ["train", tiny_config, "--set", f"out={tmp_path}", "--set", setting]
    if "factory" in setting:
        done = run(*arguments, "--set", "index.name=faiss")
        assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr
        return
    assert message in refused(*arguments)


def test_bad_config_files(refused, tmp_path: Path):
    assert "does not exist" in refused("train", tmp_path / "nothing.toml")
    (tmp_path / "bad.toml").write_text("seed = = 1")
    assert "bad.toml" in refused("train", tmp_path / "bad.toml")
    (tmp_path / "short.toml").write_text("seed = 1")
    assert "a value is needed" in refused("train", tmp_path / "short.toml")


def test_bad_data(refused, tiny_config: Path, tiny_data: Path, tmp_path: Path):
    root = Path(shutil.copytree(tiny_data, tmp_path / "data"))
    good = (root / "train.jsonl").read_text()

    def told(content: bytes) -> str:
        (root / "train.jsonl").write_bytes(content)
        return refused("train", tiny_config, "--set", f"data.path={root}", "--set", f"out={tmp_path / 'run'}")

    assert "train.jsonl" in told(good.encode() + b'{"text": "\xff", "labels": []}\n')
    assert "train.jsonl" in told(good.encode() + b'{"text": "", "labels": ["svd"]}\n')
    assert "'svdd'" in told(good.encode() + b'{"text": "x", "labels": ["svdd"]}\n')
    assert not (tmp_path / "run").exists(), "nothing is written before the data is read"


SLOW = ["--set", "training.epochs=4000", "--set", "validation.fraction=0"]


def interrupted(config: Path, out: Path) -> subprocess.CompletedProcess[str]:
    """Train for a long time, press Ctrl-C once it runs, and return what is left of the process."""
    command = [*DEXML, "train", str(config), "--set", f"out={out}", *SLOW]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stderr is not None
    said = ""
    while "epoch 2/" not in said:
        said += process.stderr.readline()
        assert process.poll() is None, said
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=60)
    return subprocess.CompletedProcess(command, process.returncode, output, said + errors)


def test_ctrl_c_leaves_a_bundle_that_answers_and_a_run_that_goes_on(tiny_config: Path, tmp_path: Path):
    stopped = interrupted(tiny_config, tmp_path)
    assert stopped.returncode == 130, stopped.stderr
    assert "Traceback" not in stopped.stderr and "--resume" in stopped.stderr
    assert json.loads(run("search", tmp_path, "sort an array", "--json").stdout)
    assert json.loads(run("info", tmp_path).stdout)["training"]["finished"] is False
    checkpoints = sorted((tmp_path / "checkpoints").iterdir())
    assert len(checkpoints) == 1
    other = run("train", tiny_config, "--set", f"out={tmp_path}", "--set", "training.epochs=5", "--resume")
    assert other.returncode == 2 and "another config" in other.stderr
    assert run("train", tiny_config, "--set", f"out={tmp_path / 'empty'}", "--resume").returncode == 2


def test_sentence_transformers_opens_the_encoder_without_trusting_it(tiny_bundle: Path):
    probe = (
        "import sys, json; from sentence_transformers import SentenceTransformer\n"
        "model = SentenceTransformer(sys.argv[1], device='cpu')\n"
        "print(json.dumps(model.encode(['sort an array', 'fast Fourier transform']).tolist()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", probe, str(tiny_bundle / "encoder")],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr
    from dexml.model import DualEncoder

    rows, _ = DualEncoder.load(tiny_bundle / "encoder").embed_queries(["sort an array", "fast Fourier transform"])
    assert json.loads(done.stdout.splitlines()[-1]) == [pytest.approx(row, abs=1e-6) for row in rows.tolist()]
