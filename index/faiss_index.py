"""FAISS behind our interface: any factory string, on the CPU or on a GPU by the same class."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from annotated_types import Ge
from torch import Tensor

from dexml.device import Choice, faiss_gpus, import_faiss
from dexml.errors import InputError
from dexml.types import TopK
from index.base import LabelIndex
from index.transform import Transform, learn

FILE = "index.faiss"
GPU_K = 2048  # FAISS's limit on a GPU
REFINED = re.compile(r"RFlat|Refine")
SETTINGS = {
    "nprobe": ("nprobe", re.compile("IVF")),
    "ef_search": ("efSearch", re.compile("HNSW")),
    "k_factor": ("k_factor_rf", REFINED),
}
"""What can be set anew on a structure that is there: FAISS's name, and what a factory string with it holds."""
KIND = 4  # bytes that name what a FAISS file holds


class FaissIndex(LabelIndex):
    """An inner-product index of FAISS, such as "Flat", "IVF256,Flat", "HNSW32", "SQ8".

    `nprobe`, `ef_search` and, of "…,RFlat", `k_factor` trade recall for time where the structure has them. `device` "auto"
    takes a GPU when the installed FAISS sees one, and `describe` tells the reason when it does not. `transform` "learned"
    turns and scales rows before a scalar quantizer, such as "SQ4", cuts them (`index.transform`): inner products stay.
    """

    def __init__(
        self,
        *,
        factory: str = "Flat",
        nprobe: Annotated[int, Ge(1)] = 16,
        ef_search: Annotated[int, Ge(1)] = 64,
        k_factor: Annotated[int, Ge(1)] = 1,
        device: Literal["auto", "cpu", "cuda"] = "auto",
        float16: bool = False,
        transform: Literal["none", "learned"] = "none",
    ) -> None:
        self.factory, self.float16 = factory, float16
        self.nprobe, self.ef_search, self.k_factor = nprobe, ef_search, k_factor
        self.device = faiss_gpus()
        if device == "cuda" and self.device.name == "cpu":
            raise InputError(f'index.device: "cuda" was asked for, but {self.device.reason}')
        if device == "cpu":
            self.device = Choice("cpu", "asked for")
        bits = re.search(r"SQ(\d+)", factory)
        if transform == "learned" and bits is None:
            raise InputError(f'index.transform: "learned" is for scalar quantizers ("SQ8", "IVF256,SQ4"), not for {factory!r}')
        self._bits = int(bits[1]) if bits and transform == "learned" else None
        self._transform: Transform | None = None
        self._index: Any = None
        self._size = 0

    def build(self, labels: Tensor) -> None:
        """Train and fill the structure with rows (L, D), then move it to the device."""
        faiss = import_faiss()
        if self._bits is not None:
            self._transform = learn(labels, self._bits)
            labels = labels @ self._transform.of_labels
        rows = np.ascontiguousarray(labels.numpy(), dtype=np.float32)
        try:
            index = faiss.index_factory(rows.shape[1], self.factory, faiss.METRIC_INNER_PRODUCT)
            if not index.is_trained:
                index.train(rows)
            index.add(rows)
        except RuntimeError as error:
            raise self._refusal(len(rows), error) from None
        self._take(index, len(rows))

    def check(self, labels: int, dimension: int) -> None:
        """Ask FAISS for the empty structure, and whether there are rows enough to train it."""
        faiss = import_faiss()
        try:
            index = faiss.index_factory(dimension, self.factory, faiss.METRIC_INNER_PRODUCT)
        except RuntimeError as error:
            raise self._refusal(labels, error) from None
        lists = getattr(faiss.try_extract_index_ivf(index), "nlist", 0)
        if lists > labels:
            raise InputError(f"index.factory: {self.factory!r} needs at least {lists} labels, there are {labels}")

    def search(self, queries: Tensor, k: int, temperature: float) -> TopK:
        """Return candidates, ties by ascending id, padded with −1 and −inf; FAISS gives no log_z."""
        assert self._index is not None, "build or load comes before search"
        wanted = min(k, self._size) if self.device.name == "cpu" else min(k, self._size, GPU_K)
        padded_ids = np.full((len(queries), k), -1, dtype=np.int64)
        padded_scores = np.full((len(queries), k), -np.inf, dtype=np.float32)
        if self._transform is not None:
            queries = queries @ self._transform.of_queries
        if wanted and len(queries):
            scores, ids = self._index.search(np.ascontiguousarray(queries.numpy(), dtype=np.float32), wanted)
            scores[ids < 0] = -np.inf
            order = np.lexsort((ids, -scores), axis=1)
            padded_ids[:, :wanted] = np.take_along_axis(ids, order, axis=1)
            padded_scores[:, :wanted] = np.take_along_axis(scores, order, axis=1)
        return TopK(torch.from_numpy(padded_ids), torch.from_numpy(padded_scores))

    @property
    def structure(self) -> Any:
        """FAISS's own object, for whoever measures it."""
        return self._index

    def explore(self, *, nprobe: int | None = None, ef_search: int | None = None, k_factor: int | None = None) -> None:
        """Set how much of the structure a search looks at from now on; what is None stays."""
        self.nprobe, self.ef_search = nprobe or self.nprobe, ef_search or self.ef_search
        self.k_factor = k_factor or self.k_factor
        self._set(self._index)

    @property
    def exact(self) -> bool:
        """Whether the structure compares every full row."""
        return self.factory == "Flat"

    def describe(self) -> dict[str, object]:
        """Return the structure, its search parameters and the device with the reason."""
        found: dict[str, object] = {"name": "faiss", "factory": self.factory, "device": self.device.name}
        found["reason"] = self.device.reason
        if self._bits is not None:
            found["transform"] = "learned"
        if "IVF" in self.factory:
            found["nprobe"] = self.nprobe
        if "HNSW" in self.factory:
            found["ef_search"] = self.ef_search
        if REFINED.search(self.factory):
            found["k_factor"] = self.k_factor
        return found

    def save(self, folder: Path) -> None:
        """Write the structure, except for Flat, which is the label rows over again.

        FAISS's own writer returns normally when a small file meets a full disk, so its bytes go through Python's.
        """
        if self.exact:
            return
        faiss = import_faiss()
        index = faiss.index_gpu_to_cpu(self._index) if self.device.name == "cuda" else self._index
        (folder / FILE).write_bytes(faiss.serialize_index(index).tobytes())
        if self._transform is not None:
            self._transform.save(folder)

    def load(self, folder: Path, labels: Tensor) -> None:
        """Read the structure back; the bundle's checksum has been verified by then. Rebuild where there is no file.

        FAISS's reader trusts what it reads. A checksum that an intruder wrote anew is not enough for it: the file must also be
        of the kind that `factory` makes, and no vector in it may claim to be longer than the file.
        """
        path = folder / FILE
        if not path.exists():
            self.build(labels)
            return
        faiss = import_faiss()
        content = path.read_bytes()
        try:
            expected = faiss.serialize_index(faiss.index_factory(labels.shape[1], self.factory, faiss.METRIC_INNER_PRODUCT))
        except RuntimeError as error:
            raise self._refusal(len(labels), error) from None
        if content[:KIND] != expected[:KIND].tobytes():
            raise InputError(f"{path}: not an index of the kind {self.factory!r}; FAISS is not given it")
        faiss.set_deserialization_vector_byte_limit(len(content))
        faiss.set_deserialization_loop_limit(max(len(content), 1 << 20))
        try:
            index = faiss.deserialize_index(np.frombuffer(content, dtype=np.uint8))
        except RuntimeError as error:
            raise InputError(f"{path}: FAISS cannot read it: {str(error).splitlines()[-1]}") from None
        if self._bits is not None:
            self._transform = Transform.load(folder)
        if index.ntotal != len(labels) or index.d != labels.shape[1]:
            raise InputError(f"{path}: {index.ntotal} rows of {index.d}, but there are {len(labels)} of {labels.shape[1]}")
        self._take(index, len(labels))

    def _refusal(self, labels: int, error: RuntimeError) -> InputError:
        reason = str(error).strip().splitlines()[-1].split(": ", 1)[-1]
        return InputError(f"index.factory: FAISS refuses {self.factory!r} for {labels} labels: {reason}")

    def _take(self, index: Any, size: int) -> None:
        faiss = import_faiss()
        self._set(index)
        if self.device.name == "cuda":
            options = faiss.GpuClonerOptions()
            options.useFloat16 = self.float16
            try:
                index = faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), 0, index, options)
            except RuntimeError:  # HNSW and other structures have no GPU form
                self.device = Choice("cpu", f"FAISS has no GPU form of {self.factory!r}")
        self._index, self._size = index, size

    def _set(self, index: Any) -> None:
        faiss = import_faiss()
        space = faiss.ParameterSpace() if index is not self._index or self.device.name == "cpu" else faiss.GpuParameterSpace()
        for option, (name, there) in SETTINGS.items():
            if there.search(self.factory):
                space.set_index_parameter(index, name, getattr(self, option))
