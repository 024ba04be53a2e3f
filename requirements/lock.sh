#!/usr/bin/env bash
# Writes requirements/cpu.lock and gpu.lock from pyproject.toml: exact versions and hashes for Python 3.11 and newer.
# torch is left out with everything that only its CUDA build needs: install.sh chooses the build by the machine.
set -euo pipefail
cd "$(dirname "$0")/.."
torch=$(cat requirements/torch.txt)
owned=(torch triton cuda-bindings cuda-pathfinder cuda-toolkit nvidia-cublas nvidia-cuda-cupti nvidia-cuda-nvrtc
  nvidia-cuda-runtime nvidia-cudnn-cu13 nvidia-cufft nvidia-cufile nvidia-curand nvidia-cusolver nvidia-cusparse
  nvidia-cusparselt-cu13 nvidia-nccl-cu13 nvidia-nvjitlink nvidia-nvshmem-cu13 nvidia-nvtx)
for kind in cpu gpu; do
  uv pip compile pyproject.toml --extra "$kind" --extra test --universal --python-version 3.11 --generate-hashes --quiet \
    --no-header --no-annotate --constraint <(echo "$torch") "${owned[@]/#/--no-emit-package=}" --output-file "requirements/$kind.lock"
done
