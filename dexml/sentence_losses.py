"""Our losses for sentence-transformers' own `SentenceTransformerTrainer`: several positives per query, no false negatives.

Two kinds of data sets, one rule for the column `labels`: it holds numbers. First, in the order of their columns, the numbers
of the texts that stand in the row beside the query; then the numbers of all other positives of the query. −1 fills up.

- (query, labels): the query's positives as row numbers of `label_texts`, the label set that the loss is given. Every step
  scores all labels, or the batch's positives and some labels drawn at random.
- (anchor, positive[, negative …], labels): the batch's texts are what a step scores, each once, whoever brought it;
  `with_labels` makes the column of bare pairs. Whatever is known to be positive for an anchor is its positive wherever it
  turns up in the batch, also beside another anchor, and never its negative.

Rows of different lengths need `data_collator=LabelCollator(model.preprocess)`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypedDict, Unpack

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.losses import CachedLossMixin, has_static_embedding_input
from sentence_transformers.sentence_transformer.data_collator import SentenceTransformerDataCollator
from torch import Tensor, nn
from torch.nn.functional import normalize

from dexml.errors import InputError
from dexml.losses import LOSSES
from dexml.losses.base import Products
from dexml.types import Int64Array, Positives

CITATION = """
@inproceedings{gupta2024dexml,
    title={Dual-Encoders for Extreme Multi-Label Classification},
    author={Nilesh Gupta and Devvrit Khatri and Ankit S Rawat and Srinadh Bhojanapalli and Prateek Jain and Inderjit Dhillon},
    booktitle={The Twelfth International Conference on Learning Representations},
    year={2024},
    url={https://arxiv.org/abs/2310.10636}
}
"""
NONE = -1  # fills rows of labels up to one length


@dataclass(frozen=True, eq=False)
class _Targets:
    """What the rows of a step are: `places` int64 (C), where each candidate's row is, and the positives (B, C)."""

    places: Int64Array
    positives: Positives


class Shared(TypedDict, total=False):
    """The options of every loss here: `LabelLoss` says what they do."""

    temperature: float
    products: Products
    negatives: Literal["all"] | int
    mini_batch_size: int | None
    label_prompt: str | None


class LabelLoss(CachedLossMixin, nn.Module):
    """A row of LOSSES over the cosines of a batch, divided by the temperature; the frame of the four losses below.

    `label_texts` is the label set (L) where the data set has no label texts of its own. `negatives` says what a step then
    scores: "all" labels, or the batch's positives and so many labels drawn anew at each step. Texts are encoded
    `mini_batch_size` at a time, twice (gradient caching), so that neither the batch nor L sets the memory; None encodes each
    column at once and once. `label_prompt` is set before each label text. `products` is what the scores are multiplied in.
    Under several processes each scores its own queries, against all labels or against its own batch.

    Raises InputError for a data set that does not fit, with what would.
    """

    row: ClassVar[str]

    def __init__(
        self,
        model: SentenceTransformer,
        label_texts: Sequence[str] | None = None,
        *,
        temperature: float = 0.05,
        products: Products = "auto",
        negatives: Literal["all"] | int = "all",
        mini_batch_size: int | None = 64,
        label_prompt: str | None = None,
        own: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if mini_batch_size is not None and mini_batch_size < 1:
            raise InputError(f"mini_batch_size: 1 or more, or None for no gradient caching, got {mini_batch_size}")
        if negatives != "all" and (label_texts is None or negatives < 0):
            raise InputError(f"negatives: 'all', or with label_texts a number of labels, got {negatives!r}")
        if label_texts is not None and len(label_texts) == 0:
            raise InputError("label_texts: no label is there")
        self.model = model
        self.label_texts = None if label_texts is None else tuple(label_texts)
        self.negatives = negatives
        # Features of a static embedding are one long list of tokens: they have no rows to cut, and take little memory.
        self.uses_gradient_cache = mini_batch_size is not None and not has_static_embedding_input(model)
        self.mini_batch_size = mini_batch_size or 64
        self.label_prompt = label_prompt
        self.options = {"temperature": temperature, "products": products, **(own or {})}
        self.loss = LOSSES.build(self.row, self.options)
        self._chunks: tuple[Int64Array, list[dict[str, Any]]] | None = None

    def forward(self, sentence_features: Iterable[dict[str, Tensor]], labels: Tensor | None) -> Tensor:
        """Return the scalar loss of a batch: its columns' features, and `labels` int64 (B, P) as the module says."""
        columns = list(sentence_features)
        numbers = _checked(labels)
        if self.label_texts is None:
            targets = _in_batch(numbers, len(columns) - 1)
        else:
            if len(columns) != 1:
                raise InputError(f"the loss has label_texts: one column of queries is expected, got {len(columns)} columns")
            wanted, positives = self._candidates(numbers)
            places, chunks = self._label_chunks(wanted)
            device = next(value.device for value in columns[0].values() if isinstance(value, Tensor))
            # Copies: a module may write into what it gets, and these serve again.
            columns += [{key: _copy(value, device) for key, value in chunk.items()} for chunk in chunks]
            targets = _Targets(places, positives)
        if self.uses_gradient_cache:
            loss: Tensor = self.forward_cached(columns, targets)  # type: ignore[arg-type]  # passed on as it is
            return loss
        return self.calculate_loss([[self.model(column)["sentence_embedding"]] for column in columns], targets)

    def calculate_loss(self, reps: list[list[Tensor]], labels: Any = None, *, with_backward: bool = False) -> Tensor:
        """Return the loss of rows (·, D) in the mini-batches of each column; `forward_cached` calls it."""
        targets: _Targets = labels
        places = torch.from_numpy(targets.places).to(reps[0][0].device)
        # Scores in bfloat16 are the loss's own choice (`products`), whatever the model computes in.
        with torch.autocast(places.device.type, enabled=False):
            queries = _unit(torch.cat(reps[0]))
            candidates = _unit(torch.cat([rows for column in reps[1:] for rows in column]))[places]
            loss = self.loss(queries, candidates, targets.positives)
            if with_backward:
                loss.backward()  # type: ignore[no-untyped-call]
                return loss.detach()
        return loss

    def get_config_dict(self) -> dict[str, Any]:
        """Return what the model card shows."""
        scored = {} if self.label_texts is None else {"label_texts": len(self.label_texts), "negatives": self.negatives}
        return {**self.options, **scored, "mini_batch_size": self.mini_batch_size if self.uses_gradient_cache else None}

    @property
    def temperature(self) -> float:
        """What the cosines are divided by."""
        return float(self.options["temperature"])

    @property
    def citation(self) -> str:
        """The paper, for the model card."""
        return CITATION

    def _candidates(self, numbers: Int64Array) -> tuple[Int64Array | None, Positives]:
        """Return the label numbers that a step scores, ascending, or None for all, and the positives (B, C) among them."""
        assert self.label_texts is not None
        count = len(self.label_texts)
        if numbers.size and numbers.max() >= count:
            raise InputError(f"labels: numbers must lie in [0, {count}), the rows of label_texts, got {numbers.max()}")
        if self.negatives == "all":
            return None, Positives.from_rows([row[row != NONE] for row in numbers], count)
        drawn = torch.randint(count, (self.negatives,)).numpy()  # torch's generator, which a resumed run restores
        wanted = np.union1d(numbers[numbers != NONE], drawn).astype(np.int64)
        return wanted, _among(numbers, wanted)

    def _label_chunks(self, wanted: Int64Array | None) -> tuple[Int64Array, list[dict[str, Any]]]:
        """Return where each wanted label's row is, and the labels' features in chunks of like length, the longest first."""
        assert self.label_texts is not None
        if wanted is None and self._chunks is not None:
            return self._chunks
        numbers = np.arange(len(self.label_texts)) if wanted is None else wanted
        order = np.argsort([-len(self.label_texts[number]) for number in numbers], kind="stable")
        size = self.mini_batch_size if self.uses_gradient_cache else max(1, len(numbers))
        chunks = [
            self.model.preprocess([self.label_texts[n] for n in numbers[order[start : start + size]]], prompt=self.label_prompt)
            for start in range(0, len(order), size)
        ]
        made = np.argsort(order).astype(np.int64), chunks
        if wanted is None:
            self._chunks = made
        return made


class DecoupledSoftmaxLoss(LabelLoss):
    """Each positive against the negatives alone: −(1/B) Σ_i (1/|P_i|) Σ_{p∈P_i} [s_ip − log(e^{s_ip} + Σ_{n∉P_i} e^{s_in})].

    The loss to begin with (DEXML, ICLR 2024). `positives = "one"` draws one positive per query and step, as the paper does.
    """

    row = "decoupled_softmax"

    def __init__(
        self,
        model: SentenceTransformer,
        label_texts: Sequence[str] | None = None,
        *,
        positives: Literal["all", "one"] = "all",
        **shared: Unpack[Shared],
    ) -> None:
        super().__init__(model, label_texts, own={"positives": positives}, **shared)


class SoftTopKLoss(LabelLoss):
    """Every positive above the threshold that lets k candidates through (DEXML, ICLR 2024), for precision at k."""

    row = "soft_topk"

    def __init__(
        self,
        model: SentenceTransformer,
        label_texts: Sequence[str] | None = None,
        *,
        k: int = 5,
        alpha: float = 2.0,
        **shared: Unpack[Shared],
    ) -> None:
        super().__init__(model, label_texts, own={"k": k, "alpha": alpha}, **shared)


class MultiPositiveSoftmaxLoss(LabelLoss):
    """Softmax over all candidates, positives too: −(1/B) Σ_i Σ_{p∈P_i} [s_ip − log Σ_j e^{s_ij}]. The baseline.

    With one positive per query and no false negatives it is `MultipleNegativesRankingLoss`.
    """

    row = "softmax"


class PairwiseBinaryLoss(LabelLoss):
    """Binary cross-entropy over all pairs of a query and a candidate: (1/(B·C)) [Σ_ij log(1 + e^{s_ij}) − Σ_pos s_ip]."""

    row = "bce"


@dataclass
class LabelCollator(SentenceTransformerDataCollator):
    """sentence-transformers' collator for rows of labels of different lengths: it fills them up to the batch's longest.

    Given to the trainer as `data_collator`, it takes the place of the one that the trainer makes: `prompts` go here as well.
    """

    def __call__(self, features: list[dict[str, Any]]) -> dict[str, Any]:
        """Return the batch; `label` is int64 (B, longest)."""
        column = next((name for name in self.valid_label_columns if features and name in features[0]), None)
        if column is not None:
            longest = max(1, *(len(row[column]) for row in features))
            features = [{**row, column: [*row[column], *[NONE] * (longest - len(row[column]))]} for row in features]
        batch: dict[str, Any] = super().__call__(features)
        return batch


def with_labels(dataset: Any) -> Any:
    """Return a `datasets.Dataset` of (anchor, positive[, negative …]) texts with the column `labels` that the losses need.

    Equal texts are one label, and the positives of an anchor are those of all rows in which it stands.
    """
    anchor, *others = dataset.column_names
    if not others:
        raise InputError(f"the data set has one column, {anchor!r}: anchor, positive and perhaps negatives are needed")
    numbers: dict[str, int] = {}
    own = [[numbers.setdefault(text, len(numbers)) for text in dataset[column]] for column in others]
    known: dict[str, set[int]] = {}
    for text, number in zip(dataset[anchor], own[0], strict=True):
        known.setdefault(text, set()).add(number)
    rows = zip(dataset[anchor], *own, strict=True)
    return dataset.add_column("labels", [[*texts, *sorted(known[text] - {texts[0]})] for text, *texts in rows])


def _checked(labels: Tensor | None) -> Int64Array:
    """Return the column `labels` as int64 (B, P) on the CPU."""
    what = "labels: a column of int64 rows (B, P) is needed, as dexml.sentence_losses says"
    if labels is None:
        raise InputError(f"{what}; the data set has no column 'labels' (`with_labels` makes one of pairs)")
    if labels.is_floating_point() or labels.ndim not in (1, 2):
        raise InputError(f"{what}; got {labels.dtype} {tuple(labels.shape)}")
    numbers: Int64Array = labels.reshape(len(labels), -1).cpu().numpy().astype(np.int64)
    if numbers.size and numbers.min() < NONE:
        raise InputError(f"labels: numbers from 0 on, and {NONE} to fill up, got {numbers.min()}")
    return numbers


def _in_batch(numbers: Int64Array, beside: int) -> _Targets:
    """Return the distinct texts of a batch as candidates, for rows that begin with the numbers of the `beside` texts."""
    if beside < 1:
        raise InputError("one column of texts: give the loss label_texts, or the data set (anchor, positive) columns")
    own = numbers[:, :beside]
    if own.shape[1] < beside or (own == NONE).any():
        raise InputError(f"labels: each row must begin with the numbers of the {beside} texts beside its anchor")
    candidates, first = np.unique(own.T, return_index=True)  # the rows of a step stand column by column
    positives = np.concatenate([own[:, :1], numbers[:, beside:]], axis=1)
    return _Targets(first.astype(np.int64), _among(positives, candidates))


def _among(numbers: Int64Array, candidates: Int64Array) -> Positives:
    """Return the `numbers` (B, P) that are `candidates` (C, ascending) as positives (B, C)."""
    if len(candidates) == 0:
        return Positives.from_rows([[]] * len(numbers), 0)
    places = np.searchsorted(candidates, numbers).clip(max=len(candidates) - 1)
    found = candidates[places] == numbers
    return Positives.from_rows([row[there] for row, there in zip(places, found, strict=True)], len(candidates))


def _unit(rows: Tensor) -> Tensor:
    """Return rows of length 1, float32 at least."""
    return normalize(rows if rows.dtype == torch.float64 else rows.float(), dim=1)


def _copy(value: Any, device: torch.device) -> Any:
    return value.to(device, copy=True) if isinstance(value, Tensor) else value
