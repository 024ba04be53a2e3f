"""A version of a bundle, opened to answer: its files, the model that encodes for it, what reranks, and what it remembers."""

from __future__ import annotations

import threading

from dexml.bundle import Bundle
from dexml.kernels import Kernels
from dexml.model import DualEncoder
from index.recall import Recall
from index.rerankers import RERANKERS, Reranker


class Version:
    """What does not change while a version's labels live. `model` is loaded when first asked for, and shared with a version
    before that has the same: most versions differ by their labels alone.
    """

    def __init__(self, bundle: Bundle, kernels: Kernels, before: Version | None = None) -> None:
        self.bundle = bundle
        rerank = bundle.manifest.rerank
        self.reranker: Reranker = RERANKERS.build(rerank.name, rerank.options, kernels)
        self.recall = Recall.of(bundle)
        self._loading = threading.Lock()
        self._model: DualEncoder | None = (
            before._model if before is not None and before.bundle.encoder == bundle.encoder else None
        )

    @property
    def model(self) -> DualEncoder:
        """The dual encoder; the rows of this version were made by it."""
        with self._loading:
            if self._model is None:
                self._model = self.bundle.model()
            return self._model

    @property
    def name(self) -> str:
        """The version: v000002."""
        return self.bundle.root.name


__all__ = ["Version"]
