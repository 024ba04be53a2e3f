"""Texts as sparse rows of word pieces and word bigrams, weighted by rarity: the CPU's encoder (METHODS §3, recipe S).

A row is √tf · max(0.1, ln((N+1)/(df+1))) per feature, scaled to length 1. The vocabulary comes from the fitted texts only.
"""

from __future__ import annotations

import json
import math
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from annotated_types import Ge
from safetensors.numpy import load_file, save_file
from tokenizers import Encoding, Tokenizer
from torch import Tensor

from dexml.encoders import minilm
from dexml.encoders.base import Encoder
from dexml.errors import InputError
from dexml.types import Bag, Features

CHUNK = 4096  # texts tokenised at a time, so that memory does not grow with the data set
FLOOR = 0.1  # the least weight of a feature that stands in every text


class BagEncoder(Encoder):
    """Word pieces of MiniLM's tokenizer, and bigrams of whole words seen at least `min_df` times."""

    gives = frozenset({"bag"})

    def __init__(
        self,
        *,
        bigrams: bool = True,
        min_df: Annotated[int, Ge(1)] = 2,
        max_bigrams: Annotated[int, Ge(0)] = 150_000,
        max_tokens: Annotated[int, Ge(1)] = 512,
    ) -> None:
        self.bigrams = bigrams
        self.min_df = min_df
        self.max_bigrams = max_bigrams
        self.limit = max_tokens
        self._tokenizer_file: Path | None = None
        self._tokenizer: Tokenizer | None = None
        self._pieces: dict[int, int] = {}  # number of a word piece -> feature
        self._pairs: dict[str, int] = {}  # "first second" -> feature
        self._rarity = np.zeros(0, dtype=np.float32)  # (features)

    @property
    def max_tokens(self) -> int:
        """The option."""
        return self.limit

    def fit(self, texts: Sequence[str]) -> None:
        """Take the vocabulary and document frequencies from `texts`; the order of the texts does not matter."""
        self._open(minilm.locate() / "tokenizer.json")
        pieces: Counter[int] = Counter()
        pairs: Counter[str] = Counter()
        for encoding in self._encodings(texts):
            pieces.update(set(encoding.ids[: self.limit]))
            if self.bigrams:
                pairs.update(set(_word_pairs(encoding, self.limit)))
        kept = sorted((pair for pair, df in pairs.items() if df >= self.min_df), key=lambda pair: (-pairs[pair], pair))
        kept = kept[: self.max_bigrams]
        self._pieces = {piece: feature for feature, piece in enumerate(sorted(pieces))}
        self._pairs = {pair: len(self._pieces) + feature for feature, pair in enumerate(kept)}
        frequencies = [pieces[piece] for piece in self._pieces] + [pairs[pair] for pair in kept]
        rarity = np.log((len(texts) + 1) / (np.asarray(frequencies, dtype=np.float64) + 1))
        self._rarity = np.maximum(FLOOR, rarity).astype(np.float32)

    def encode(self, texts: Sequence[str]) -> Features:
        """Return unit bags of N texts; a text without a known feature gives an empty bag."""
        if self._tokenizer is None:
            raise RuntimeError("the encoder is neither fitted nor loaded")
        offsets, tokens = [0], []
        features: list[int] = []
        weights: list[float] = []
        for encoding in self._encodings(texts):
            counts = self._count(encoding)
            row = [math.sqrt(count) * float(self._rarity[feature]) for feature, count in counts.items()]
            length = math.sqrt(sum(weight * weight for weight in row))
            features.extend(counts)
            weights.extend(weight / length for weight in row)
            offsets.append(len(features))
            tokens.append(len(encoding.ids))
        bag = Bag(
            torch.tensor(offsets, dtype=torch.int64),
            torch.tensor(features, dtype=torch.int64),
            torch.tensor(weights, dtype=torch.float32),
        )
        return Features(bag=bag, tokens=torch.tensor(tokens, dtype=torch.int64))

    def width(self) -> int:
        """Return the number of features: pieces first, bigrams after them."""
        return len(self._rarity)

    def initial_rows(self, dimension: int) -> Tensor | None:
        """Return MiniLM's embedding of each single piece, centred over the vocabulary and of length 1; bigrams are 0."""
        known = minilm.piece_rows()
        if known.shape[1] != dimension:
            raise InputError(f"tower.dimension: word pieces start from MiniLM, so it must be {known.shape[1]}")
        rows = torch.zeros(self.width(), dimension)
        pieces = known[torch.tensor(list(self._pieces), dtype=torch.int64)]
        rows[: len(pieces)] = torch.nn.functional.normalize(pieces - pieces.mean(dim=0), dim=1)
        return rows

    def save(self, folder: Path) -> None:
        """Write tokenizer.json, vocabulary.json and rarity.safetensors."""
        assert self._tokenizer_file is not None, "fit or load comes before save"
        shutil.copyfile(self._tokenizer_file, folder / "tokenizer.json")
        vocabulary = {"pieces": list(self._pieces), "bigrams": list(self._pairs)}
        (folder / "vocabulary.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
        save_file({"rarity": self._rarity}, folder / "rarity.safetensors")

    def load(self, folder: Path) -> None:
        """Read what `save` wrote."""
        self._open(folder / "tokenizer.json")
        vocabulary = json.loads((folder / "vocabulary.json").read_text(encoding="utf-8"))
        self._pieces = {piece: feature for feature, piece in enumerate(vocabulary["pieces"])}
        self._pairs = {pair: len(self._pieces) + feature for feature, pair in enumerate(vocabulary["bigrams"])}
        self._rarity = load_file(folder / "rarity.safetensors")["rarity"]

    def _open(self, file: Path) -> None:
        self._tokenizer_file = file
        self._tokenizer = Tokenizer.from_file(str(file))
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()

    def _encodings(self, texts: Sequence[str]) -> Iterator[Encoding]:
        assert self._tokenizer is not None
        for start in range(0, len(texts), CHUNK):
            yield from self._tokenizer.encode_batch(list(texts[start : start + CHUNK]), add_special_tokens=False)

    def _count(self, encoding: Encoding) -> dict[int, int]:
        """Return feature -> count, in ascending order of features, so that sums do not depend on the word order."""
        counts: Counter[int] = Counter()
        for piece in encoding.ids[: self.limit]:
            feature = self._pieces.get(piece)
            if feature is not None:
                counts[feature] += 1
        if self._pairs:
            for pair in _word_pairs(encoding, self.limit):
                feature = self._pairs.get(pair)
                if feature is not None:
                    counts[feature] += 1
        return dict(sorted(counts.items()))


def _word_pairs(encoding: Encoding, max_tokens: int) -> list[str]:
    """Return "first second" for neighbouring words; punctuation is passed over."""
    words: list[str] = []
    last = None
    for token, word in zip(encoding.tokens[:max_tokens], encoding.word_ids[:max_tokens], strict=True):
        if word == last:
            words[-1] += token.removeprefix("##")
        else:
            words.append(token)
            last = word
    words = [word for word in words if word[0].isalnum()]
    return [f"{first} {second}" for first, second in pairwise(words)]
