"""The query side of a dual encoder as an ONNX graph: all that is computed between a text's tokens and its unit row.

Reading a text stays outside: a tokenizer for a transformer, our features for a bag; `feed` does both. Inputs: `input_ids`,
`attention_mask` and, where the model reads them, `token_type_ids`, int64 (N, tokens); `features` int64 and `weights` float32
(N, features), a bag's rows filled up with weight 0. Outputs: `sentence_embedding` float32 (N, D), unit rows, and of a
transformer also `last_hidden_state` (N, tokens, ·), the one that sentence-transformers' ONNX backend asks for.
"""

from __future__ import annotations

import importlib.util
import logging
import shutil
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from dexml.errors import InputError
from dexml.model import DualEncoder
from dexml.types import Bag, Features

NEEDED = ("onnx", "onnxscript", "onnxruntime")
TOLERANCE = 1e-4  # of any number of a unit row
TOKENS = ("input_ids", "attention_mask", "token_type_ids")
BAG = ("features", "weights")
EXTERNAL = 2**30  # bytes of weights beyond which they stand beside the graph: a file of protobuf holds 2 GiB
BATCH = 8  # texts compared at a time


class _Graph(nn.Module):
    """Named inputs -> last_hidden_state (of a transformer) and sentence_embedding."""

    def __init__(self, model: DualEncoder, names: Sequence[str]) -> None:
        super().__init__()
        self.names = tuple(names)
        self.tower = model.tower
        self.network: Any = model.encoder.network().module if "dense" in model.encoder.gives else None

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        given = dict(zip(self.names, inputs, strict=True))
        bag, dense = None, None
        hidden: tuple[Tensor, ...] = ()
        if self.network is not None:
            made = self.network({name: given[name] for name in TOKENS if name in given})
            rows = made["sentence_embedding"][:, : self.network.truncate_dim]
            dense, hidden = normalize(rows, dim=1), (made["token_embeddings"],)
        if "features" in given:
            texts, width = given["features"].shape
            bag = Bag(torch.arange(texts + 1) * width, given["features"].flatten(), given["weights"].flatten())
        return *hidden, self.tower.queries(Features(dense, bag))


def feed(model: DualEncoder, texts: Sequence[str]) -> dict[str, npt.NDArray[Any]]:
    """Return the inputs of the graph for N texts, by name, as `onnxruntime.InferenceSession.run` takes them.

    Raises InputError for a model whose first layer reads other tensors than tokens and their masks.
    """
    inputs: dict[str, npt.NDArray[Any]] = {}
    if "dense" in model.encoder.gives:
        tokens = model.encoder.network().tokenize(texts)
        tensors = {name: value for name, value in tokens.items() if isinstance(value, Tensor)}
        if strange := sorted(set(tensors) - set(TOKENS)):
            raise InputError(f"onnx: this model reads {strange[0]!r} besides tokens and masks, which no export here knows")
        inputs |= {name: tensors[name].cpu().numpy() for name in TOKENS if name in tensors}
    if "bag" in model.encoder.gives:
        bag = model.encoder.bags(texts)
        assert bag is not None
        inputs |= dict(zip(BAG, _padded(bag), strict=True))
    return inputs


def export(model: DualEncoder, folder: Path, texts: Sequence[str]) -> float:
    """Write FOLDER/model.onnx, what was in the folder before gone; return the largest difference on `texts` from torch.

    The difference is that of any number of an embedding, onnxruntime's against `embed_queries`, in batches of several sizes.
    Raises InputError when a package is missing, when the model cannot be exported, or when it differs by more than 1e-4.
    """
    check()
    sample = feed(model, texts[:2] if len(texts) > 1 else [*texts, "a text"])
    graph = _Graph(model, tuple(sample)).eval()
    outputs = [*(["last_hidden_state"] if graph.network is not None else []), "sentence_embedding"]
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    weights = sum(value.numel() * value.element_size() for value in graph.state_dict().values())
    with _quiet():
        try:
            torch.onnx.export(
                graph,
                tuple(torch.from_numpy(value) for value in sample.values()),
                str(folder / "model.onnx"),
                input_names=list(sample),
                output_names=outputs,
                dynamic_shapes=(_open_axes(tuple(sample)),),
                dynamo=True,
                external_data=weights > EXTERNAL,
                verbose=False,
            )
        except torch.onnx.errors.OnnxExporterError as error:
            raise InputError(f"onnx: torch cannot export this model: {str(error).strip().splitlines()[-1]}") from None
    difference = compare(model, folder, texts)
    if not difference <= TOLERANCE:
        raise InputError(f"onnx: the exported embeddings differ from torch's by {difference:.1e}, more than {TOLERANCE:.0e}")
    return difference


def compare(model: DualEncoder, folder: Path, texts: Sequence[str]) -> float:
    """Return the largest difference of any number between FOLDER/model.onnx's rows of `texts` and `embed_queries`."""
    import onnxruntime

    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    # torch fixes the length of an axis, in silence, where a model's code asks for it as a number.
    if fixed := [given.name for given in session.get_inputs() if not all(isinstance(axis, str) for axis in given.shape)]:
        raise InputError(f"onnx: this model's code fixes a length of {fixed[0]}; the graph would take no other")
    largest = 0.0
    for start, end in _batches(len(texts)):
        rows = session.run(["sentence_embedding"], feed(model, texts[start:end]))[0]
        expected = model.embed_queries(texts[start:end])[0].numpy()
        largest = max(largest, float(np.abs(rows - expected).max()))
    return largest


def check() -> None:
    """Raise InputError when a package that an export needs is missing."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(f"onnx: {', '.join(missing)} missing; pip install 'dexml[onnx]'")


def _batches(count: int) -> Iterator[tuple[int, int]]:
    """Yield ranges of one text, of BATCH texts, and what is left."""
    start = 0
    while start < count:
        end = min(count, start + (1 if start == 0 else BATCH))
        yield start, end
        start = end


def _padded(bag: Bag) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """Return the features int64 and weights float32 (N, longest, at least 1) of a bag, filled up with 0."""
    counts = bag.offsets.diff().numpy()
    width = max(1, int(counts.max(initial=0)))
    there = np.arange(width) < counts[:, None]
    features, weights = np.zeros(there.shape, dtype=np.int64), np.zeros(there.shape, dtype=np.float32)
    features[there], weights[there] = bag.features.numpy(), bag.weights.numpy()
    return features, weights


def _open_axes(names: Sequence[str]) -> tuple[dict[int, str], ...]:
    """Return the names of the axes of each input that may have any length."""
    return tuple({0: "texts", 1: "features" if name in BAG else "tokens"} for name in names)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's remarks on its own workings, and on packages that nobody here uses, from the user."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
