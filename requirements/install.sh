#!/usr/bin/env bash
# Makes the virtual environment FOLDER with everything dexml needs, from the lock: cpu, or gpu where there is an NVIDIA GPU.
# usage: requirements/install.sh FOLDER [cpu|gpu]
set -euo pipefail
cd "$(dirname "$0")/.."
venv=$1
python=${PYTHON:-python3}
kind=${2:-}
if [ -z "$kind" ]; then
  kind=cpu
  if command -v nvidia-smi >/dev/null && nvidia-smi -L 2>/dev/null | grep -q GPU; then kind=gpu; fi
fi
case "$kind" in cpu | gpu) ;; *) echo "setup: KIND must be cpu or gpu, got '$kind'" >&2; exit 2 ;; esac

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
  { echo "setup: dexml needs Python 3.11 or newer, $python is $("$python" -V 2>&1); try make setup PYTHON=python3.11" >&2; exit 2; }

# Quick and quiet when nothing has changed since the last time: what is installed follows from these files and this place.
stamp="$venv/installed-$("$python" - "$kind" <<'PY'
import hashlib, os, pathlib, sys
if sys.version_info >= (3, 11):
    import tomllib
    project = tomllib.loads(pathlib.Path("pyproject.toml").read_text())
    kept = [os.getcwd(), project["project"], project["build-system"], project["tool"]["hatch"]]
    for name in ("torch.txt", sys.argv[1] + ".lock", "install.sh"):
        kept.append(pathlib.Path("requirements", name).read_text())
    print(hashlib.sha256(repr(kept).encode()).hexdigest()[:16])
PY
)"
if [ -f "$stamp" ]; then exit 0; fi
if [ -e "$venv" ] && [ ! -f "$venv/pyvenv.cfg" ] && [ -n "$(ls -A "$venv")" ]; then
  echo "setup: $venv is there and is no virtual environment; it is left alone" >&2; exit 2
fi

echo "setup: making $venv for $kind with $("$python" -V)"
"$python" -m venv --clear "$venv" ||
  { echo "setup: $python cannot make virtual environments; on Debian: apt-get install python3-venv" >&2; exit 2; }
pip="$venv/bin/python -m pip --disable-pip-version-check"
# pip's pages of output as one line that moves; errors still go to standard error.
counted() { awk '/^ *(Collecting|Processing) / {n++; name=$2; sub(/.*\//, "", name); printf "\r\033[Ksetup: %d packages · %s", n, name; fflush()}
  /^Installing/ {printf "\r\033[Ksetup: %d packages · unpacking", n; fflush()} END {printf "\r\033[Ksetup: %d packages\n", n}'; }

torch=$(cat requirements/torch.txt)
if [ "$kind" = gpu ]; then
  $pip install "$torch" | counted
else
  # The CPU build, not gigabytes of CUDA: from a wheel folder that pip is configured with, else from PyTorch's own index,
  # and only then whatever the default index has (on macOS and Windows that is a CPU build too).
  echo "setup: $torch, CPU build"
  $pip install --quiet --no-index --no-deps "$torch" 2>/dev/null ||
    $pip install --retries 0 --timeout 10 --no-deps --index-url https://download.pytorch.org/whl/cpu "$torch" 2>/dev/null ||
    { echo "setup: no CPU build of $torch was found; taking the default one" >&2; $pip install "$torch" | counted; }
fi
$pip install --require-hashes --no-deps --requirement "requirements/$kind.lock" | counted
$pip install --quiet --no-deps --editable .
touch "$stamp"
echo "setup: done; $venv/bin/dexml --help"
