"""The command line from data to answers, and every kind of bad input: one line that names what is wrong, exit code 2."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from dexml import versions
from dexml.__main__ import COMMANDS, main
from index.retriever import Retriever

DEXML = [sys.executable, "-m", "dexml"]


def run(*arguments: str | Path, **options) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*DEXML, *map(str, arguments)], capture_output=True, text=True, timeout=120, **options)


def main_ok(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 0


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


def test_search_evaluate_and_info(tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    found = json.loads(run("search", tiny_bundle, "singular value decomposition", "-k", "3", "--json").stdout)
    assert found[0]["id"] == "svd"
    assert [answer["score"] for answer in found] == sorted((answer["score"] for answer in found), reverse=True)
    main_ok(["search", str(tiny_bundle), "singular value decomposition", "-k", "3"])
    table = capsys.readouterr().out
    assert "svd" in table and "%" in table
    main_ok(["evaluate", str(tiny_bundle), "--json", str(tmp_path / "figures.json")])
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert {"P@1", "P@3", "P@5", "nDCG@5", "R@100", "PSP@1", "PSP@5", "seconds", "sizes"} == set(figures)
    assert figures["P@1"] == 100 and figures["R@100"] == 100
    assert figures["sizes"]["labels"] == 10 and figures["seconds"]["total"] > 0
    capsys.readouterr()
    main_ok(["info", str(tiny_bundle)])
    described = json.loads(capsys.readouterr().out)
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
    assert done.stdout.count("Usage:") == 1 + len(COMMANDS)


def test_bad_bundles_and_numbers(refused, tiny_bundle: Path, tmp_path: Path):
    assert "does not exist" in refused("search", tmp_path / "nowhere", "text")
    assert "k must be at least 1, got 0" in refused("search", tiny_bundle, "text", "-k", "0")
    assert "text is empty" in refused("search", tiny_bundle, "  ")
    assert "did you mean 'exact'" in refused("search", tiny_bundle, "text", "--index", "exat")
    copy = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    rows = versions.current(copy)[0] / "embeddings.safetensors"
    content = bytearray(rows.read_bytes())
    content[-1] ^= 1
    rows.chmod(0o644)
    rows.write_bytes(content)
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
        ("encoder.name=transformer", "towers that can: residual, identity"),
        ("loss.temperature=inf", "finite"),
        ("data.propensity=[0.5, -3]", "greater than or equal to 0"),
        ("seed=99999999999999999999", "seed"),
        ("out=/proc/x", "out"),
        ("oops", "expected section.key=value"),
    ],
)
def test_bad_settings(refused, tiny_config: Path, tmp_path: Path, setting: str, message: str):
    arguments = ["train", tiny_config, "--set", f"out={tmp_path}", "--set", setting]
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


def interrupted(config: Path, out: Path, *settings: str) -> subprocess.CompletedProcess[str]:
    """Train, press Ctrl-C once the second epoch is reported, and return what is left of the process."""
    command = [*DEXML, "train", str(config), "--set", f"out={out}", *settings]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stderr is not None
    said = ""
    while "epoch 2/" not in said:
        said += process.stderr.readline()
        assert process.poll() is None, said
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=60)
    return subprocess.CompletedProcess(command, process.returncode, output, said + errors)


@pytest.mark.parametrize("phases", [1, 2])
def test_ctrl_c_leaves_a_bundle_that_answers_and_a_run_that_goes_on(
    tiny_config: Path, tmp_path: Path, phases: int, capsys: pytest.CaptureFixture[str]
):
    settings = ["--set", "training.epochs=80", "--set", "training.patience=1000"]
    if phases == 2:  # a watched run, and then a refit on all rows
        settings += ["--set", "validation.fraction=0.3", "--set", "validation.refit=true"]
    stopped = interrupted(tiny_config, tmp_path / "cut", *settings)
    assert stopped.returncode == 130, stopped.stderr
    assert "Traceback" not in stopped.stderr and "--resume" in stopped.stderr
    assert not versions.current(tmp_path / "cut" / "bundle")[1].training.finished
    assert Retriever.open(tmp_path / "cut").search(["sort an array"], 1).topk.ids.shape == (1, 1)
    assert len(list((tmp_path / "cut" / "checkpoints").iterdir())) == 1
    again = ["train", str(tiny_config), "--set", f"out={tmp_path / 'cut'}"]
    with pytest.raises(SystemExit) as ended:
        main([*again, "--set", "training.epochs=5", "--resume"])
    assert ended.value.code == 2 and "another config" in capsys.readouterr().err

    main_ok([*again, *settings, "--resume"])
    assert "resumed at step" in capsys.readouterr().err
    main_ok(["train", str(tiny_config), "--set", f"out={tmp_path / 'whole'}", *settings])
    assert capsys.readouterr().err.count("epoch 80/80") == phases
    for name in ("encoder/tower.safetensors", "embeddings.safetensors"):
        cut, never = (versions.current(tmp_path / run / "bundle")[0] for run in ("cut", "whole"))
        assert (cut / name).read_bytes() == (never / name).read_bytes(), name
    assert not (tmp_path / "cut" / "checkpoints").exists()


def test_a_finished_run_is_not_made_again_if_not_needed(tiny_config: Path, tiny_data: Path, tmp_path: Path, capsys):
    def train(*settings: str) -> str:
        main_ok(["train", str(tiny_config), "--set", f"out={tmp_path / 'run'}", "--if-needed", *settings])
        return capsys.readouterr().err

    assert "done in" in train()
    assert "up to date" in train()
    assert "done in" in train("--set", "seed=1")
    assert "done in" in train("--set", "seed=1", "--set", "index.name=faiss")
    assert "up to date" in train("--set", "seed=1", "--set", "index.name=faiss")
    labels = versions.current(tmp_path / "run" / "bundle")[0] / "labels.jsonl"
    labels.chmod(0o644)
    labels.write_text("damaged")
    assert "done in" in train("--set", "seed=1", "--set", "index.name=exact")


def test_a_failing_export_loses_no_training(tiny_config: Path, tmp_path: Path):
    out = tmp_path / "run"
    (out / "bundle").mkdir(parents=True)
    (out / "bundle" / "v000001.tmp").write_text("a file where the new version is to be filled")
    done = run("train", tiny_config, "--set", f"out={out}")
    assert done.returncode == 2 and "cannot be written" in done.stderr and "Traceback" not in done.stderr
    (out / "bundle" / "v000001.tmp").unlink()
    main_ok(["train", str(tiny_config), "--set", f"out={out}", "--resume"])
    assert versions.current(out / "bundle")[1].training.finished


def test_brackets_in_texts_and_paths_are_no_markup(tiny_config: Path, tiny_data: Path, tmp_path: Path, capsys):
    data = Path(shutil.copytree(tiny_data, tmp_path / "[bold]data"))
    labels = (data / "labels.jsonl").read_text().replace("sorting and ordering of arrays", "sorting [/x] a[i] of arrays")
    (data / "labels.jsonl").write_text(labels)
    out = tmp_path / "[red]run"
    main_ok(["train", str(tiny_config), "--set", f"data.path={data}", "--set", f"out={out}"])
    assert "[bold]data" in capsys.readouterr().err
    main_ok(["search", str(out), "sorting arrays", "-k", "1"])
    assert "[/x] a[i]" in capsys.readouterr().out
    main_ok(["evaluate", str(out), "--split", "test"])


def test_a_text_of_unknown_words_has_no_answers(tiny_bundle: Path, capsys):
    main_ok(["search", str(tiny_bundle), "日本語", "--json"])
    output, errors = capsys.readouterr()
    assert json.loads(output) == [] and "no word of this text is known" in errors


def test_more_labels_than_there_are_is_no_problem(tiny_bundle: Path, capsys):
    main_ok(["search", str(tiny_bundle), "sorting arrays", "-k", "1000000000000", "--json"])
    assert len(json.loads(capsys.readouterr().out)) == 10


def test_where_figures_cannot_go_is_told_before_the_work(refused, tiny_bundle: Path, tmp_path: Path):
    assert "is a folder" in refused("evaluate", tiny_bundle, "--json", tmp_path)
    assert "does not exist" in refused("evaluate", tiny_bundle, "--json", tmp_path / "nowhere" / "x.json")
    os.mkfifo(tmp_path / "pipe")
    reader = subprocess.Popen(["cat", str(tmp_path / "pipe")], stdout=subprocess.PIPE, text=True)
    main_ok(["evaluate", str(tiny_bundle), "--json", str(tmp_path / "pipe")])
    assert json.loads(reader.communicate(timeout=20)[0])["P@1"] == 100
    assert (tmp_path / "pipe").is_fifo()


@pytest.mark.parametrize("factory", ["Nonsense", "IVF64,Flat"])
def test_an_index_that_cannot_be_built_is_refused_before_training(
    tiny_config: Path, tmp_path: Path, factory: str, capsys: pytest.CaptureFixture[str]
):
    settings = ["--set", f"out={tmp_path}", "--set", "index.name=faiss", "--set", f"index.factory={factory}"]
    with pytest.raises(SystemExit) as ended:
        main(["train", str(tiny_config), *settings])
    said = capsys.readouterr().err
    assert ended.value.code == 2 and "index.factory" in said and "epoch 1/" not in said


def test_sentence_transformers_opens_the_encoder_without_trusting_it(tiny_bundle: Path):
    encoder = versions.current(tiny_bundle)[0] / "encoder"
    probe = (
        "import sys, json; from sentence_transformers import SentenceTransformer\n"
        "model = SentenceTransformer(sys.argv[1], device='cpu')\n"
        "print(json.dumps(model.encode(['sort an array', 'fast Fourier transform']).tolist()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", probe, str(encoder)],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr
    from dexml.model import DualEncoder

    rows, _ = DualEncoder.load(encoder).embed_queries(["sort an array", "fast Fourier transform"])
    assert json.loads(done.stdout.splitlines()[-1]) == [pytest.approx(row, abs=1e-6) for row in rows.tolist()]
