"""Training against label rows that stand still: codes of labels without text, or the index of a bundle whose queries are tuned.

All labels take part in every step, those without a training row too: they are there to be found. Z-loss takes D² for a query
then, whatever their number: its gradient is that over the whole index, from the index's mean and covariance alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dexml.bundle import Bundle
from dexml.config import Choice
from dexml.errors import InputError
from dexml.heads.equiangular import code_book
from dexml.losses import Loss
from dexml.losses.z_loss import Moments, ZLoss
from dexml.model import DualEncoder
from dexml.towers.adapted import AdaptedTower
from dexml.types import Features, Int64Array, LabelTable, Positives
from training.config import Config
from training.steps import Step, tower_groups


class FixedLabels(Step):
    """The loss of frozen query features through the tower, against fixed unit rows of all labels (L, D)."""

    def __init__(
        self, config: Config, model: DualEncoder, loss: Loss, texts: Sequence[str], rows: Tensor, positives: Positives
    ) -> None:
        self.config, self.model, self.loss, self.rows, self.positives = config, model, loss, rows, positives
        self.queries = model.encoder.encode_many(texts)
        self.trained = {name: value for name, value in model.tower.named_parameters() if value.requires_grad}
        self.scored = len(rows)
        self.moments = Moments.of(rows) if isinstance(loss, ZLoss) else None

    def backward(self, rows: Int64Array) -> float:
        """Return the loss over all labels."""
        queries = self.model.tower.train().queries(self.queries.take(torch.from_numpy(rows)))
        positives = self.positives.take(rows)
        if self.moments is not None:
            assert isinstance(self.loss, ZLoss)
            loss = self.loss.by_moments(queries, self.rows, positives, self.moments)
        else:
            loss = self.loss(queries, self.rows, positives)
        loss.backward()  # type: ignore[no-untyped-call]
        return float(loss.detach())

    def label_features(self) -> Features:
        """Return the labels' rows as they are: no tower goes over them."""
        return Features(self.rows, None)

    def groups(self) -> list[dict[str, Any]]:
        """Return the tower's."""
        return tower_groups(self.model, self.config)

    def describe(self) -> str:
        """Return what is trained."""
        of = "codes" if self.config.labels.rows == "codes" else f"the rows of {self.config.labels.bundle}"
        return f"queries alone, {sum(p.numel() for p in self.trained.values()):,} numbers, against {of}"


def tuned_model(config: Config) -> DualEncoder:
    """Return the model of the bundle `labels.bundle`, with a linear map behind its queries that is yet to be trained."""
    assert config.labels.bundle is not None
    model = Bundle.open(config.labels.bundle).model()
    given = config.tower.options if config.tower.name == "adapted" else {}
    options = {**given, "base": model.tower_name, "base_options": model.tower_options}
    tower = AdaptedTower(model.encoder, **options)
    tower.base.load_state_dict(model.tower.state_dict())
    return DualEncoder(model.encoder, tower, model.encoder_name, "adapted", model.encoder_options, options)


def settle_model(config: Config) -> tuple[Config, list[str]]:
    """Return the config with the encoder and tower of the bundle whose queries are tuned, and what there is to say of that."""
    if config.labels.rows != "bundle":
        return config, []
    assert config.labels.bundle is not None
    model = Bundle.open(config.labels.bundle).model()
    base = {"base": model.tower_name, "base_options": model.tower_options}
    tower = config.tower if config.tower.name == "adapted" else Choice(name="adapted")
    encoder = Choice(name=model.encoder_name).with_options(**model.encoder_options)
    changed = {"encoder": encoder, "tower": tower.with_options(**base)}
    return config.model_copy(update=changed), [f"encoder and tower of {config.labels.bundle}"]


def fixed_rows(config: Config, labels: LabelTable, dimension: int) -> Tensor | None:
    """Return fixed unit rows float32 (L, D) of all labels, or None where they are trained.

    Raises InputError where the bundle that they come from has other labels, or rows of another dimension.
    """
    asked = config.labels
    if asked.rows == "trained":
        return None
    if asked.bundle is None:
        return code_book(len(labels), dimension, seed=config.seed)
    opened = Bundle.open(asked.bundle)
    if opened.manifest.dimension != dimension:
        raise InputError(f"labels.bundle: rows of {opened.manifest.dimension} dimensions, and queries of {dimension}")
    numbers = {label: number for number, label in enumerate(opened.labels.ids)}
    places = np.array([numbers.get(label, -1) for label in labels.ids])
    known = np.flatnonzero(places >= 0)
    kept = opened.embeddings[torch.from_numpy(places[known])]
    if asked.rows == "codes":
        rows = torch.empty(len(labels), dimension)
        book = code_book(len(labels), dimension, seed=config.seed, kept=kept)
        rows[torch.from_numpy(known)] = book[: len(known)]
        rows[torch.from_numpy(np.flatnonzero(places < 0))] = book[len(known) :]
        return rows
    if len(known) < len(labels) or len(labels) < len(numbers):
        missing = next((label for label in labels.ids if label not in numbers), None)
        extra = next((label for label in numbers if label not in set(labels.ids)), None) if missing is None else None
        said = f"has no label {missing!r}" if missing is not None else f"has a label {extra!r} that the data set has not"
        raise InputError(f"labels.bundle: {asked.bundle} {said}; both need the same labels")
    return kept


__all__ = ["FixedLabels", "fixed_rows", "settle_model", "tuned_model"]
