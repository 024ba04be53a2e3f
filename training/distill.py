"""Distillation: a student's scores of shortlists are held to a teacher's, in the loop that every training goes through.

The teacher is a bundle: its model and its full-precision label rows. The student is a smaller tower, or one whose weights and
label rows have few bits, and starts from what the teacher knows where its tower can (`Tower.adopt`).
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from annotated_types import Ge
from pydantic import Field
from torch import Tensor
from torch.nn.functional import normalize

from dexml.bundle import Bundle
from dexml.config import Choice, Section
from dexml.distillation import DISTILLATIONS, Distillation, Shortlist
from dexml.errors import InputError
from dexml.kernels import choose
from dexml.losses import Loss
from dexml.model import DualEncoder
from dexml.towers import TOWERS
from dexml.towers.compact import principal_axes
from dexml.types import Int64Array, LabelTable, Positives, Split
from training.config import Config, ValidationSection, check
from training.run import Run
from training.steps import FrozenFeatures
from training.world import ALONE, World

TEACHER = "teacher"
BLOCK = 1024  # queries whose shortlists are made at a time
KEPT = 10  # tensors (pairs, M) that a distillation keeps for its gradient; measured


class DistillSection(Section):
    """Who teaches, and what of it.

    A step adds `hard` times the loss of [loss], over all labels, and `soft` times that of [distillation], on each row's
    `shortlist` of the teacher's best trained labels and the row's own. Weight matrices and label rows have `bits`, or are as
    they are. The student starts at the teacher ("teacher"), anew ("fresh"), or at the teacher where it can ("auto").
    """

    teacher: Path | None = None
    """The bundle, or the run that made it; none for a distillation that reads no teacher."""
    version: str = "auto"
    """The SHA-256 of the teacher's manifest; "auto" takes the version that is there, and any other must be it."""
    shortlist: Annotated[int, Ge(1)] = 100
    hard: Annotated[float, Ge(0)] = 1.0
    soft: Annotated[float, Ge(0)] = 1.0
    bits: Literal[2, 3, 4, 6, 8] | None = None
    start: Literal["auto", "teacher", "fresh"] = "auto"


class DistillConfig(Config):
    """A distillation: the config of a training whose encoder and tower are the teacher's by default, and who teaches."""

    name: str = "distilled"
    encoder: Choice = Choice(name=TEACHER)
    tower: Choice = Choice(name=TEACHER)
    distill: DistillSection = Field(default_factory=DistillSection)
    distillation: Choice = Choice(name="nkd")


@dataclass(frozen=True, eq=False)
class Teacher:
    """A bundle with its model, which is given the student's encoder where the two have one (`shared`)."""

    bundle: Bundle
    model: DualEncoder
    shared: bool

    def rows(self, labels: Sequence[str]) -> Tensor:
        """Return its unit rows float32 (L, D) of the labels with these ids. Raises InputError where it lacks one."""
        known = {label: number for number, label in enumerate(self.bundle.labels.ids)}
        missing = next((label for label in labels if label not in known), None)
        if missing is not None:
            raise InputError(f"distill.teacher: {self.bundle.root} has no label {missing!r}; it must have all that are trained")
        return self.bundle.embeddings[torch.tensor([known[label] for label in labels], dtype=torch.int64)]


def resolve(config: DistillConfig) -> tuple[DistillConfig, Teacher | None]:
    """Return the config with the teacher's encoder, tower and version in place of names, and the teacher.

    Raises InputError for the first setting that cannot be.
    """
    section = config.distill
    taught = DISTILLATIONS[config.distillation.name].taught
    DISTILLATIONS.options(config.distillation.name, config.distillation.options)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InputError("distill: one process trains a student, not several ranks")
    if config.finetune.train != "none":
        raise InputError("finetune.train: a distillation trains a tower on frozen features; it must be 'none'")
    if config.tower.name != TEACHER and TOWERS[config.tower.name].local:
        raise InputError(f"tower.name: {config.tower.name!r} is trained by losses of its own, and cannot be a student")
    if section.teacher is None:
        if taught or section.start == TEACHER or TEACHER in (config.encoder.name, config.tower.name):
            why = (
                f"[distillation] {config.distillation.name!r} reads its scores"
                if taught
                else "something is to be the teacher's"
            )
            raise InputError(f"distill.teacher: a bundle is needed, as {why}")
        check(config)
        return config, None
    bundle = Bundle.open(section.teacher)
    version = bundle.manifest.sha256
    if section.version not in ("auto", version):
        raise InputError(f"distill.version: {section.teacher} is now at {version}, not at {section.version}")
    model = bundle.model()
    shared = config.encoder.name == TEACHER
    chosen = {
        "distill": section.model_copy(update={"version": version}),
        "encoder": _choice("encoder", config.encoder, model.encoder_name, model.encoder_options),
        "tower": _choice("tower", config.tower, model.tower_name, model.tower_options),
    }
    if not shared and section.start == TEACHER:
        raise InputError("distill.start: only a student with the teacher's encoder starts at the teacher")
    config = config.model_copy(update={**chosen, "validation": _watched(config, bundle.manifest.training.config)})
    check(config)
    return config, Teacher(bundle, model, shared)


def _choice(what: str, choice: Choice, name: str, options: dict[str, object]) -> Choice:
    if choice.name != TEACHER:
        return choice
    if choice.options:
        raise InputError(
            f"{what}.{next(iter(choice.options))}: the teacher's {what} is taken as it is; name one to set options"
        )
    return Choice(name=name).with_options(**options)


def _watched(config: DistillConfig, made: Mapping[str, Any]) -> ValidationSection:
    """Return which rows to watch: those that the teacher, `made` by this config, held out and never saw, or none.

    On rows that the teacher was trained on its students look better than they are. Raises InputError where some are asked for.
    """
    own = config.validation
    if "validation" not in made or own.fraction == 0:  # an imported model was not trained on any
        return own
    held = ValidationSection.model_validate(made["validation"])
    alike = made["seed"] == config.seed and Path(made["data"]["path"]).resolve() == config.data.path.resolve()
    asked = {key for key in ("fraction", "max_rows") if key in own.model_fields_set}
    if alike and held.fraction > 0 and held.refit is False and all(getattr(own, key) == getattr(held, key) for key in asked):
        return own.model_copy(update={"fraction": held.fraction, "max_rows": held.max_rows})
    if asked:
        raise InputError(
            "validation: the teacher was trained on rows that would be watched; train it with validation.refit = false and the "
            "same seed, data, fraction and max_rows, or leave validation out"
        )
    return own.model_copy(update={"fraction": 0.0})


class TaughtFeatures(FrozenFeatures):
    """Frozen features, a loss over all labels, and beside it a distillation on each row's shortlist."""

    def __init__(
        self,
        config: DistillConfig,
        model: DualEncoder,
        loss: Loss,
        texts: Sequence[str],
        labels: Sequence[str],
        positives: Positives,
        distillation: Distillation,
    ) -> None:
        super().__init__(config, model, loss, texts, labels, positives)
        self.section = config.distill
        self.distillation = distillation
        self.temperature: float = config.loss.options["temperature"]
        self.ids = np.zeros((len(texts), 0), dtype=np.int32)  # of the shortlists, −1 where there is none (N, M)
        self.teacher: Tensor | None = None  # logits (N, M)
        batch, most = config.training.batch, int(np.diff(positives.indptr).max(initial=0))
        assert isinstance(batch, int), "settle comes before Run"
        pairs = batch * max(1.0, len(positives.indices) / max(1, len(positives)))
        self.passing = int(4 * KEPT * pairs * (self.section.shortlist + most)) + 4 * batch * len(labels)

    def learn_from(self, queries: Tensor, labels: Tensor, temperature: float) -> None:
        """Take the teacher's unit rows of the training queries (N, D) and of the trained labels (L, D)."""
        kernels = choose()
        prepared = kernels.prepare(labels)
        found = []
        for block in torch.split(queries, BLOCK):
            found.append(kernels.scan(block, prepared, min(self.section.shortlist, len(labels)), 1.0).ids.numpy())
        self.ids = with_positives(np.concatenate(found), self.positives).astype(np.int32)
        self.teacher = torch.empty(self.ids.shape, dtype=torch.float32)
        for rows in torch.split(torch.arange(len(queries)), 64):
            ids = torch.from_numpy(self.ids[rows.numpy()]).long().clamp(min=0)
            self.teacher[rows] = torch.bmm(labels[ids], queries[rows, :, None])[:, :, 0] / temperature

    def backward(self, rows: Int64Array) -> float:
        """Return the two losses' sum, each by its weight."""
        tower = self.model.tower.train()
        queries, labels = tower(self.queries.take(torch.from_numpy(rows)), self.labels)
        positives = self.positives.take(rows)
        if self.teacher is None:  # a student alone looks at what it ranks first itself
            with torch.no_grad():
                best = (queries @ labels.T).topk(min(self.section.shortlist, len(labels)), dim=1).indices.numpy()
            ids = with_positives(best, positives)
        else:
            ids = self.ids[rows].astype(np.int64)
        columns, places = torch.unique(torch.from_numpy(ids).clamp(min=0), return_inverse=True)

        def of_shortlists(of_columns: Tensor) -> Tensor:
            scores: Tensor = (queries @ of_columns.T).gather(1, places) / self.temperature
            return scores

        weak = None
        if self.distillation.weak:  # what a label's text alone would score
            weak = of_shortlists(normalize(tower.raw(self.labels.take(columns), query=False), dim=1))
        known = Shortlist(
            torch.from_numpy(is_positive(ids, positives)),
            torch.from_numpy(ids >= 0),
            None if self.teacher is None else self.teacher[torch.from_numpy(rows)],
            weak,
        )
        loss = self.section.soft * self.distillation(of_shortlists(labels[columns]), known)
        if self.section.hard > 0:
            loss = loss + self.section.hard * self.loss(queries, labels, positives)
        loss.backward()  # type: ignore[no-untyped-call]
        return float(loss.detach())

    def describe(self) -> str:
        """Return the features, and what is learned of whom."""
        who = "itself" if self.teacher is None else "a teacher"
        size = "" if self.section.bits is None else f", {self.section.bits} bits a number"
        return f"{super().describe()}, shortlists of {self.section.shortlist} labels from {who}{size}"


class DistilledRun(Run):
    """A run whose model is the teacher's student, or its own."""

    config: DistillConfig

    def __init__(
        self,
        config: DistillConfig,
        labels: LabelTable,
        train: Split,
        validation: Split | None,
        phase: int = 1,
        numbers: Int64Array | None = None,
        world: World = ALONE,
        *,
        teacher: Teacher | None = None,
    ) -> None:
        self.teacher = teacher
        super().__init__(config, labels, train, validation, phase, numbers, world)

    def _model(self, texts: Sequence[str]) -> DualEncoder:
        if self.teacher is None or not self.teacher.shared:
            model = super()._model(texts)
        else:
            name, options, of = self.config.tower.name, self.config.tower.options, self.teacher.model
            options = TOWERS.options(name, options)
            tower = TOWERS.build(name, options, of.encoder)
            model = DualEncoder(of.encoder, tower, of.encoder_name, name, of.encoder_options, options)
        model.tower.bits = self.config.distill.bits
        return model

    def _method(self, loss: Loss, labels: Sequence[str], excluded: Positives | None) -> TaughtFeatures:
        built = DISTILLATIONS.build(self.config.distillation.name, self.config.distillation.options)
        step = TaughtFeatures(self.config, self.model, loss, self.train.texts, labels, self.positives, built)
        if self.teacher is None:
            return step
        of_labels = self.teacher.rows([self.labels.ids[number] for number in self.seen])
        with torch.no_grad():
            encoder, tower = self.teacher.model.encoder, self.teacher.model.tower.eval()
            queries = tower.queries(step.queries if self.teacher.shared else encoder.encode_many(self.train.texts))
        step.learn_from(queries, of_labels, self.teacher.bundle.manifest.temperature)
        self._start(step, of_labels)
        return step

    @torch.no_grad()
    def _start(self, step: TaughtFeatures, of_labels: Tensor) -> None:
        """Start at the teacher, where that is asked for or can be: its parameters, and its rows of the trained labels."""
        assert self.teacher is not None
        tower, start = self.model.tower.eval(), self.config.distill.start
        if not self.teacher.shared:
            return
        if start == "fresh":
            tower.start_from(self.model.encoder)
            return
        own = tower.dimension
        axes = torch.eye(own) if own == of_labels.shape[1] else principal_axes(of_labels, own)
        if not tower.adopt(self.teacher.model.tower, axes):
            if start == TEACHER:
                raise InputError(
                    f"distill.start: the tower {self.config.tower.name!r} cannot start at the teacher's "
                    f"{self.teacher.model.tower_name!r}"
                )
            tower.start_from(self.model.encoder)
            return
        if tower.free is not None:
            raw = tower.raw(step.labels, query=False)
            tower.free.copy_(normalize(of_labels @ axes, dim=1) * raw.norm(dim=1, keepdim=True) - raw)


def is_positive(ids: Int64Array, positives: Positives) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
    """Return which of `ids` (B, M; −1 = none) are positives of their row, bool (B, M)."""
    rows = np.arange(len(ids))[:, None]
    return np.isin(np.where(ids < 0, -1, rows * positives.num_labels + ids), _keys(positives))


def with_positives(ids: Int64Array, positives: Positives) -> Int64Array:
    """Return `ids` int64 (B, M) with each row's positives that it lacks behind them, padded with −1."""
    rows = np.arange(len(ids))[:, None]
    missing = ~np.isin(_keys(positives), (rows * positives.num_labels + ids)[ids >= 0])
    of_rows = np.repeat(np.arange(len(positives)), np.diff(positives.indptr))[missing]
    counts = np.bincount(of_rows, minlength=len(positives))
    wide = np.full((len(ids), ids.shape[1] + int(counts.max(initial=0))), -1, dtype=np.int64)
    wide[:, : ids.shape[1]] = ids
    places = np.arange(len(of_rows)) - np.repeat(np.cumsum(counts) - counts, counts)
    wide[of_rows, ids.shape[1] + places] = positives.indices[missing]
    return wide


def _keys(positives: Positives) -> Int64Array:
    """Return row · L + label of every positive (nnz)."""
    keys: Int64Array = (
        np.repeat(np.arange(len(positives)), np.diff(positives.indptr)) * positives.num_labels + positives.indices
    )
    return keys
