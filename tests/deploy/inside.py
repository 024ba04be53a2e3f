"""Runs where the image's process would: a read-only root, no network but loopback, no capabilities. `inside.py PLAN`, JSON.

PLAN has `serve` and `health`, the image's commands; `key` and `frozen`, folders that must not be writable. Prints JSON.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from urllib.error import HTTPError

plan = json.loads(sys.argv[1])


def ask(path: str, body: object, key: str | None = None) -> int:
    headers = {"Content-Type": "application/json", **({"X-API-Key": key} if key else {})}
    request = urllib.request.Request(f"http://127.0.0.1:8080{path}", json.dumps(body).encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=10) as reply:
            return reply.status
    except HTTPError as error:
        return error.code


def healthy() -> bool:
    return subprocess.run(plan["health"], capture_output=True, timeout=10).returncode == 0


def refusal(folder: str) -> str:
    try:
        Path(folder, "written").write_text("")
    except OSError as error:
        return errno.errorcode[error.errno]
    return "written"


found: dict[str, object] = {"uid": os.getuid(), "frozen": {folder: refusal(folder) for folder in plan["frozen"]}}
status = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
found["capabilities"] = [int(line.split()[1], 16) for line in status if line.startswith(("CapEff", "CapPrm", "CapBnd"))]
process = subprocess.Popen(plan["serve"], stdout=subprocess.PIPE, text=True)
try:
    found["healthy at first"] = healthy()
    found["line"] = process.stdout.readline()
    deadline = time.monotonic() + 10
    while not healthy() and time.monotonic() < deadline:
        time.sleep(0.1)
    found["healthy"] = healthy()
    query = {"queries": ["sort an array"]}
    found["search"] = [ask("/v1/search", query), ask("/v1/search", query, plan["key"])]
    found["write"] = ask("/v1/labels", {"labels": [{"id": "new", "text": "a new label"}]}, plan["key"])
finally:
    process.send_signal(signal.SIGTERM)
    found["exit"] = process.wait(40)
device = os.stat("/tmp").st_dev  # what else is mounted below is the test's own
found["tmp"] = [entry.name for entry in os.scandir("/tmp") if entry.stat().st_dev == device and any(Path(entry).rglob("*"))]
print(json.dumps(found))
