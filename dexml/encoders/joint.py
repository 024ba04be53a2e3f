"""A transformer and a bag of word pieces and bigrams side by side, for towers that sum them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from annotated_types import Ge
from torch import Tensor

from dexml.encoders.bag import BagEncoder
from dexml.encoders.base import Encoder
from dexml.encoders.transformer import TransformerEncoder
from dexml.types import Bag, Features

SPECIAL = 2  # [CLS] and [SEP], which the transformer reads and the bag does not


class JointEncoder(Encoder):
    """Dense features of a sentence-transformers model beside a bag; the options are those of the two.

    `dense_tokens` makes the transformer read less than the bag: the start of a text costs less than all of it.
    """

    gives = frozenset({"bag", "dense"})
    tunable = True

    def __init__(
        self,
        *,
        model: str = "minilm",
        revision: str | None = None,
        batch: Annotated[int, Ge(1)] = 32,
        bigrams: bool = True,
        min_df: Annotated[int, Ge(1)] = 2,
        max_bigrams: Annotated[int, Ge(0)] = 150_000,
        max_tokens: Annotated[int, Ge(1)] = 254,
        dense_tokens: Annotated[int, Ge(1)] | None = None,
        device: str = "cpu",
    ) -> None:
        self.bag = BagEncoder(bigrams=bigrams, min_df=min_df, max_bigrams=max_bigrams, max_tokens=max_tokens)
        self.dense_tokens = dense_tokens
        read = max_tokens if dense_tokens is None else min(max_tokens, dense_tokens)
        self.transformer = TransformerEncoder(
            model=model, revision=revision, batch=batch, max_tokens=read + SPECIAL, device=device
        )

    @property
    def max_tokens(self) -> int:
        """The option, or less where the transformer reads less; both parts read the same, unless `dense_tokens` is set."""
        return self.bag.limit if self.dense_tokens is not None else min(self.bag.limit, self.transformer.max_tokens - SPECIAL)

    def fit(self, texts: Sequence[str]) -> None:
        """Fit the bag; the transformer is what it is."""
        self.transformer.fit(texts)
        self.bag.limit = self.max_tokens
        self.bag.fit(texts)

    def encode(self, texts: Sequence[str]) -> Features:
        """Return dense rows (N, D) and bags; tokens are counted by the bag."""
        bag = self.bag.encode(texts)
        return Features(self.transformer.encode(texts).dense, bag.bag, bag.tokens)

    def encode_many(self, texts: Sequence[str]) -> Features:
        """Return the same, the dense rows by the transformer's fast path."""
        bag = self.bag.encode(texts)
        return Features(self.transformer.encode_many(texts).dense, bag.bag, bag.tokens)

    def network(self) -> TransformerEncoder:
        """Return the transformer."""
        return self.transformer

    def bags(self, texts: Sequence[str]) -> Bag | None:
        """Return the bags."""
        return self.bag.encode(texts).bag

    def width(self) -> int:
        """Return the number of sparse features."""
        return self.bag.width()

    def dense_width(self) -> int:
        """Return the transformer's dimension."""
        return self.transformer.width()

    def initial_rows(self, dimension: int) -> Tensor | None:
        """Return the bag's initial rows."""
        return self.bag.initial_rows(dimension)

    def save(self, folder: Path) -> None:
        """Write both parts, each into a folder of its own."""
        for name, part in (("bag", self.bag), ("transformer", self.transformer)):
            (folder / name).mkdir(exist_ok=True)
            part.save(folder / name)

    def load(self, folder: Path) -> None:
        """Read both parts."""
        self.bag.load(folder / "bag")
        self.transformer.load(folder / "transformer")
        self.bag.limit = self.max_tokens
