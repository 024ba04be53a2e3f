"""A dual encoder: an encoder and a tower that turn texts into unit rows, as one folder that sentence-transformers opens."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from dexml.encoders import ENCODERS, Encoder
from dexml.encoders.transformer import TransformerEncoder
from dexml.errors import InputError
from dexml.plugin import ALIAS
from dexml.quantization import packed, unpacked
from dexml.towers import TOWERS, Tower
from dexml.towers.identity import IdentityTower
from dexml.towers.residual import ResidualTower

FILE = "dexml.json"
CHUNK = 8192  # texts embedded at a time
NOT_ROUNDED = ("base.", "features.")  # tensors of a tower that stay as they are where its own have few bits


@dataclass(frozen=True, eq=False)
class DualEncoder:
    """Texts -> unit rows. `names` and `options` say what the parts are made of, so that a folder can be read back."""

    encoder: Encoder
    tower: Tower
    encoder_name: str
    tower_name: str
    encoder_options: dict[str, Any]
    tower_options: dict[str, Any]

    @staticmethod
    def make(
        encoder_name: str,
        encoder_options: dict[str, Any],
        tower_name: str,
        tower_options: dict[str, Any],
        texts: Sequence[str],
    ) -> DualEncoder:
        """Return an untrained model, its encoder fitted on `texts`."""
        encoder_options = ENCODERS.options(encoder_name, encoder_options)
        tower_options = TOWERS.options(tower_name, tower_options)
        encoder = ENCODERS.build(encoder_name, encoder_options)
        encoder.fit(texts)
        tower = TOWERS.build(tower_name, tower_options, encoder)
        tower.start_from(encoder)
        return DualEncoder(encoder, tower, encoder_name, tower_name, encoder_options, tower_options)

    @property
    def dimension(self) -> int:
        """The width D of the rows."""
        return self.tower.dimension

    @torch.inference_mode()
    def embed_queries(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Return unit rows float32 (N, D) and the number of tokens int64 (N) of query texts."""
        self.tower.eval()
        rows, tokens = [torch.zeros(0, self.dimension)], [torch.zeros(0, dtype=torch.int64)]
        for start in range(0, len(texts), CHUNK):
            features = self.encoder.encode(texts[start : start + CHUNK])
            rows.append(self.tower.queries(features.to(self.tower.device)).cpu())
            assert features.tokens is not None
            tokens.append(features.tokens)
        return torch.cat(rows), torch.cat(tokens)

    @torch.inference_mode()
    def embed_labels(self, texts: Sequence[str]) -> Tensor:
        """Return unit rows float32 (N, D) of label texts, without free vectors: what a label added later gets."""
        return self.embed_documents(texts)[0]

    @torch.inference_mode()
    def embed_documents(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Return what `embed_labels` does, and the number of tokens int64 (N)."""
        self.tower.eval()
        rows, tokens = [torch.zeros(0, self.dimension)], [torch.zeros(0, dtype=torch.int64)]
        for start in range(0, len(texts), CHUNK):
            features = self.encoder.encode(texts[start : start + CHUNK])
            rows.append(self.tower.labels(features.to(self.tower.device), trained=False).cpu())
            assert features.tokens is not None
            tokens.append(features.tokens)
        return torch.cat(rows), torch.cat(tokens)

    def save(self, folder: Path) -> None:
        """Write the model into `folder`, so that `SentenceTransformer(folder).encode` gives `embed_queries`.

        A residual tower over a transformer becomes a Dense layer of a standard model; everything else names our module.
        """
        folder.mkdir(parents=True, exist_ok=True)
        tower_name, tower_options = self.tower_name, self.tower_options
        plain = isinstance(self.encoder, TransformerEncoder) and self.encoder.plain
        if plain and isinstance(self.tower, ResidualTower | IdentityTower):
            assert isinstance(self.encoder, TransformerEncoder)
            self.encoder.save(folder, self.tower.merged())
            tower_name, tower_options = "identity", {}
        else:
            part = _part(folder, self.encoder)
            part.mkdir(exist_ok=True)
            self.encoder.save(part)
            state = {name: value.contiguous() for name, value in self.tower.state_dict().items() if name != "free"}
            inner = {name: value for name, value in state.items() if name.startswith(NOT_ROUNDED)}
            own = packed({name: value for name, value in state.items() if name not in inner}, self.tower.bits)
            save_file({**own, **inner}, folder / "tower.safetensors")
            _describe_for_sentence_transformers(folder)
        description = {
            "encoder": {"name": self.encoder_name, **_json_options(self.encoder_options)},
            "tower": {"name": tower_name, **_json_options(tower_options)},
        }
        (folder / FILE).write_text(json.dumps(description, indent=1), encoding="utf-8")

    @staticmethod
    def load(folder: Path) -> DualEncoder:
        """Read a model back. Raises InputError when the folder holds none."""
        try:
            description = json.loads((folder / FILE).read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise InputError(f"{folder / FILE} does not exist: this is no dexml encoder folder") from None
        encoder_options, tower_options = dict(description["encoder"]), dict(description["tower"])
        encoder_name, tower_name = encoder_options.pop("name"), tower_options.pop("name")
        encoder = ENCODERS.build(encoder_name, encoder_options)
        part = _part(folder, encoder)
        encoder.load(part if part.is_dir() else folder)
        tower = TOWERS.build(tower_name, tower_options, encoder)
        if (folder / "tower.safetensors").exists():
            tower.load_state_dict(unpacked(load_file(folder / "tower.safetensors")))
        return DualEncoder(encoder, tower.eval(), encoder_name, tower_name, encoder_options, tower_options)


def _part(folder: Path, encoder: Encoder) -> Path:
    """Return where an encoder stands in the folder of a model that is no plain sentence-transformers model.

    A transformer's own folder is one, and has a modules.json itself.
    """
    return folder / "transformer" if isinstance(encoder, TransformerEncoder) else folder


def _json_options(options: dict[str, Any]) -> dict[str, Any]:
    """Return the options without what only this machine knows (a model's path)."""
    return {key: value for key, value in options.items() if key not in ("model", "revision", "device")}


def _describe_for_sentence_transformers(folder: Path) -> None:
    modules = [{"idx": 0, "name": "0", "path": "", "type": f"{ALIAS}.DualEncoderModule"}]
    (folder / "modules.json").write_text(json.dumps(modules, indent=1), encoding="utf-8")
    settings = {"model_type": "SentenceTransformer", "similarity_fn_name": "cosine", "prompts": {}}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(settings, indent=1), encoding="utf-8")
