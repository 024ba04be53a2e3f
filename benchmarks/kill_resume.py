"""Kill a training with SIGKILL at random steps, resume it each time, and compare the end with a run that was left alone.

python benchmarks/kill_resume.py [--kills 20] [--seed 0] [--folder DIR]: writes benchmarks/results/kill_resume.json, exits with
1 unless every byte of the model is the same. The processes are real, forked from one that has imported all; checkpoints are
taken so often that kills fall into their writing as well.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from machine import describe, write_result

from dexml import versions

CONFIG = """
name = "kill-resume"
out = "{out}"
[data]
path = "{data}"
[tower]
name = "tokens"
dimension = 32
start = "random"
[training]
epochs = {epochs}
batch = 32
checkpoint_seconds = 0.03
patience = 15
trackers = []
[validation]
fraction = 0.2
refit = true
"""
LABELS, ROWS = 60, 640
COMPARED = ("encoder/tower.safetensors", "encoder/vocabulary.json", "encoder/rarity.safetensors", "embeddings.safetensors")
IMPORTED = (
    "training.cli",
    "training.run",
    "training.export",
    "training.record",
    "training.memory",
    "training.report",
    "rich.progress",
)


def _version(out: Path, name: str) -> Path:
    """Return a file of a run's bundle as it was last published."""
    return versions.current(out / "bundle")[0] / name


def main() -> None:
    """Run the experiment and print what came out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="where to work; default: a temporary folder")
    parser.add_argument("--no-result", action="store_true", help="print the result and write no file")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        result = experiment(given.folder or Path(scratch), given.kills, given.epochs, given.seed)
    if not given.no_result:
        write_result("kill_resume", {"machine": describe(), **result})
    print(json.dumps(result))
    sys.exit(0 if result["same"] else 1)


def experiment(folder: Path, kills: int, epochs: int, seed: int) -> dict[str, Any]:
    """Train once undisturbed and once killed `kills` times; return where it was killed, and what differs at the end."""
    write_data(folder / "data", random.Random(seed))
    config = folder / "config.toml"
    whole, cut = folder / "whole", folder / "cut"
    config.write_text(CONFIG.format(out=whole, data=folder / "data", epochs=epochs), encoding="utf-8")
    for name in IMPORTED:
        importlib.import_module(name)
    began = time.monotonic()
    assert wait(start(config, whole, folder / "log", [])) == 0, (folder / "log").read_text()
    undisturbed = time.monotonic() - began
    steps = history(whole)
    draw = random.Random(seed + 1)
    # The last step of all is left out: a run that is through cannot be killed.
    places = sorted(draw.sample(range(len(steps) - 1), kills))
    killed = []
    for place in places:
        phase, step = steps[place]["phase"], steps[place]["step"]
        child = start(config, cut, folder / "log", ["--resume"] if (cut / "checkpoints").exists() else [])
        ended = reach(cut, (phase, step), child, draw.random() * 0.02)
        at = history(cut)[-1]
        killed.append({"asked": [phase, step], "at": [at["phase"], at["step"]], "died": ended})
    assert wait(start(config, cut, folder / "log", ["--resume"])) == 0, (folder / "log").read_text()
    differing = [name for name in COMPARED if _version(whole, name).read_bytes() != _version(cut, name).read_bytes()]
    learned = [{key: value for key, value in line.items() if key != "seconds"} for line in steps]
    again = [{key: value for key, value in line.items() if key != "seconds"} for line in history(cut)]
    return {
        "kills": sum(entry["died"] for entry in killed),
        "steps": len(steps),
        "same": not differing and learned == again,
        "differing": differing,
        "history_same": learned == again,
        "killed": killed,
        "seconds_undisturbed": round(undisturbed, 2),
        "seconds": round(time.monotonic() - began, 2),
    }


def write_data(folder: Path, draw: random.Random) -> None:
    """Write a small data set of made-up words."""
    folder.mkdir(parents=True)
    words = ["".join(draw.choice(("ba", "de", "fi", "go", "ku", "la", "me", "ni")) for _ in range(3)) for _ in range(200)]
    texts = [" ".join(draw.sample(words, 3)) for _ in range(LABELS)]
    labels = [{"id": str(number), "text": text} for number, text in enumerate(texts)]
    rows = []
    for number in range(ROWS):
        own = sorted({number % LABELS, draw.randrange(LABELS)})
        rows.append(
            {"text": " ".join([*(texts[label] for label in own), draw.choice(words)]), "labels": [str(label) for label in own]}
        )
    for name, lines in (("labels", labels), ("train", rows), ("test", rows[:20])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def start(config: Path, out: Path, log: Path, more: list[str]) -> int:
    """Start `dexml train` in a process of its own and return its number."""
    child = os.fork()
    if child:
        return child
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    code = 1
    try:
        from dexml.__main__ import main as dexml

        dexml(["train", str(config), "--set", f"out={out}", *more])
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def wait(child: int) -> int:
    """Return the exit code of a process."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def reach(out: Path, place: tuple[int, int], child: int, more: float) -> bool:
    """Kill a process `more` seconds after its history has come to (phase, step); return whether it died of that."""
    path = out / "history.jsonl"
    began = path.stat().st_mtime_ns if path.exists() else 0
    while os.waitpid(child, os.WNOHANG) == (0, 0):
        # What an earlier process left there is no sign of this one, which first cuts the file to its checkpoint.
        if path.exists() and path.stat().st_mtime_ns != began and (lines := history(out, last=True)):
            if (lines[-1]["phase"], lines[-1]["step"]) >= place:
                time.sleep(more)
                os.kill(child, signal.SIGKILL)
                return wait(child) == -signal.SIGKILL
        time.sleep(0.001)
    return False


def history(out: Path, *, last: bool = False) -> list[dict[str, Any]]:
    """Return the whole lines of a history; of the last few kilobytes alone where `last`."""
    with (out / "history.jsonl").open("rb") as file:
        if last:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 4096))
        lines = file.read().split(b"\n")[1 if last else 0 : -1]
    return [json.loads(line) for line in lines]


if __name__ == "__main__":
    main()
