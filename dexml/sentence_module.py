"""Our dual encoder as a sentence-transformers input module; `dexml.plugin` offers it under sentence-transformers' own name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sentence_transformers.base.modules.input_module import InputModule
from torch import Tensor

from dexml.model import DualEncoder
from dexml.plugin import ALIAS
from dexml.types import Bag, Features


class DualEncoderModule(InputModule):
    """Texts -> `sentence_embedding` (N, D), the query side of a DualEncoder."""

    save_in_root = True

    def __init__(self, model: DualEncoder) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.model = model
        self.tower = model.tower

    def preprocess(self, inputs: Sequence[Any], prompt: str | None = None, **kwargs: Any) -> dict[str, Tensor | Any]:
        """Return the features of N texts as tensors that sentence-transformers may move to a device."""
        texts = [f"{prompt}{text}" for text in inputs] if prompt else list(inputs)
        features = self.model.encoder.encode(texts)
        tensors: dict[str, Tensor | Any] = {} if features.dense is None else {"dense": features.dense}
        if features.bag is not None:
            bag = features.bag
            tensors |= {"offsets": bag.offsets, "features": bag.features, "weights": bag.weights}
        return tensors

    def forward(self, features: dict[str, Tensor | Any], **kwargs: Any) -> dict[str, Tensor | Any]:
        """Return the features with their unit rows."""
        bag = Bag(features["offsets"], features["features"], features["weights"]) if "offsets" in features else None
        features["sentence_embedding"] = self.tower.queries(Features(features.get("dense"), bag))
        return features

    def get_embedding_dimension(self) -> int:
        """Return the width D."""
        return self.model.dimension

    @property
    def max_seq_length(self) -> int:
        """The number of tokens read."""
        return self.model.encoder.max_tokens

    def save(self, output_path: str, *args: Any, safe_serialization: bool = True, **kwargs: Any) -> None:
        """Write the folder that `load` reads; the weights are always safetensors."""
        self.model.save(Path(output_path))

    @classmethod
    def load(  # type: ignore[override]
        cls, model_name_or_path: str, subfolder: str = "", **kwargs: Any
    ) -> DualEncoderModule:
        """Read a local folder."""
        return cls(DualEncoder.load(Path(model_name_or_path) / subfolder))


# sentence-transformers writes a module's class into the folders it saves: under the name by which it may open it again.
DualEncoderModule.__module__ = ALIAS
