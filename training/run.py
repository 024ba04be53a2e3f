"""One training run: steps over minibatches (`training.steps`); it can be interrupted and resumed at any step."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import Tensor

from data.batches import Batches
from data.validation import split_by_labels
from dexml.calibration import Calibration
from dexml.errors import InputError
from dexml.kernels import choose
from dexml.losses import LOSSES, Loss
from dexml.metrics import precision_at
from dexml.model import DualEncoder
from dexml.types import Features, Int64Array, LabelTable, Positives, Split
from training import checkpoint
from training.config import Config
from training.early_stopping import BEST, Best
from training.faults import not_finite
from training.fixed import fixed_rows, tuned_model
from training.identity import describe, difference, fingerprint
from training.negatives import within
from training.recall import Weighed
from training.steps import Step, make_step, optimizer
from training.world import ALONE, World


@dataclass(frozen=True)
class Progress:
    """What a run says after a step: where it is, what the step was, and the last validation's P@k in percent."""

    phase: int
    step: int
    steps: int
    epoch: int
    epochs: int
    loss: float
    rate: float
    """The learning rate of the parameters that learn fastest."""
    gradient_norm: float
    """The length of the gradient of all parameters, before the optimizer takes it."""
    queries: int
    scores: int
    """How many pairs of a query and a label the step scored."""
    step_seconds: float
    validation_seconds: float | None
    """What the validation after this step took; None where there was none."""
    precision_1: float | None
    precision_3: float | None
    precision_5: float | None
    seconds: float
    """Since the run was started or resumed."""
    collapsed: Mapping[str, float] | None = None
    """The share of the step's positives that have no gradient in a number type (`training.stability`); None where untold."""


def hold_out(config: Config, train: Split) -> tuple[Split, Split | None]:
    """Return the rows to train on and the rows to watch; None where the config, or the set, leaves none."""
    rows, watched = hold_out_rows(config, train)
    return (train.take(rows), train.take(watched)) if len(watched) else (train, None)


def hold_out_rows(config: Config, train: Split) -> tuple[Int64Array, Int64Array]:
    """Return the numbers of the rows to train on and of those to watch, ascending."""
    return split_by_labels(train.positives, config.validation.fraction, config.seed, config.validation.max_rows)


class Run:
    """A model in training on one split, watched on another.

    Only labels with a training positive take part in the softmax: the others keep the embedding of their text, so that
    they are not pushed away from every query, and a label that comes later is their equal.
    """

    def __init__(
        self,
        config: Config,
        labels: LabelTable,
        train: Split,
        validation: Split | None,
        phase: int = 1,
        numbers: Int64Array | None = None,
        world: World = ALONE,
    ) -> None:
        """`numbers` (N) are the rows of `train` in the split they were taken from, for messages; counted from 0 by default.

        In a `world` of several ranks all of them make the same run and the same calls.
        """
        torch.manual_seed(config.seed)
        self.config = config
        self.world = world
        self.phase = phase
        self.labels = labels
        self.validation = validation
        self.train = train
        self.numbers = np.arange(len(train), dtype=np.int64) if numbers is None else numbers
        if len(self.train.positives.indices) == 0:
            raise InputError("data: no training row has a label")
        self.seen = np.flatnonzero(self.train.positives.counts()).astype(np.int64)  # label numbers that are trained
        if config.labels.rows != "trained":
            self.seen = np.arange(len(labels), dtype=np.int64)  # all are there to be found, and none is moved
        self.positives = _renumbered(self.train.positives, self.seen)
        seen_texts = [labels.texts[number] for number in self.seen]
        self.model = self._model([*self.train.texts, *seen_texts])
        self.fixed = None if config.labels.rows == "trained" else fixed_rows(config, labels, self.model.dimension)
        if config.training.free_vectors and self.fixed is None:
            self.model.tower.free_vectors(len(self.seen[world.share(len(self.seen))]))
        excluded = None if self.train.excluded is None else within(self.train.excluded, self.seen)
        loss = LOSSES.build(config.loss.name, config.loss.options)
        if config.finetune.train == "none" or config.finetune.negatives == "all":
            loss.check(len(self.seen))
        self.method = self._method(loss, seen_texts, excluded)
        epochs, batch = config.training.epochs, config.training.batch
        assert isinstance(epochs, int) and isinstance(batch, int), "settle comes before Run"
        self.epochs = epochs
        self.batches = Batches(len(self.train), batch, config.seed)
        self.steps = epochs * len(self.batches)
        self.step = 0
        self.optimizer = optimizer(self.method, config)
        self._precision: tuple[float, float, float] | None = None
        self.stop_after: int | None = None  # the epoch after which a refit ends, where the watched run stopped early
        self.weighed: Weighed | None = None  # what the watched run found the training queries to be worth, for a refit
        self.calibration: Calibration | str | None = None  # likewise, or why there is none; None until that was asked
        self._best = Best()
        self._features: dict[str, Features] = {}
        self.fingerprint = fingerprint(config, labels, train, validation)
        self.about = {**describe(config, labels, train, validation), "ranks": world.size}

    def _model(self, texts: Sequence[str]) -> DualEncoder:
        """Return the model to train, its encoder fitted on `texts`, of training rows and labels."""
        config = self.config
        if config.labels.rows == "bundle":
            return tuned_model(config)
        return DualEncoder.make(config.encoder.name, config.encoder.options, config.tower.name, config.tower.options, texts)

    def _method(self, loss: Loss, labels: Sequence[str], excluded: Positives | None) -> Step:
        """Return what a batch does; `labels` are the texts of those trained (L), `excluded` pairs (N, L)."""
        near = None
        if self.config.finetune.graph is not None:
            from training.analysis.graphml import neighbours

            near = neighbours(self.config.finetune.graph, self.labels.ids)[self.seen][:, self.seen]
        given = self.train.texts, labels, self.positives, excluded, self.world, self.fixed, near
        return make_step(self.config, self.model, loss, *given)

    def go(self, report: Callable[[Progress], None], interrupted: Callable[[], bool] = lambda: False) -> bool:
        """Train to the end and return True; or finish the step during which `interrupted` turned true, leave a checkpoint
        and return False.
        """
        start = saved = time.monotonic()
        after = self.world.from_first(-1 if self.stop_after is None else self.stop_after)
        self.stop_after = None if after < 0 else int(after)
        if self.step == 0:
            torch.manual_seed(self.config.seed)  # dropout draws from torch's one generator, whoever used it meanwhile
        while self.step < self.steps and not self._over():
            for rows in self.batches:
                began = time.monotonic()
                loss, gradient_norm = self._step(rows)
                collapsed = self.method.collapsed()
                self.step += 1
                stepped, validated = time.monotonic(), None
                end_of_epoch = self.step % len(self.batches) == 0
                if end_of_epoch and self.validation is not None:
                    self._precision = self._validate()
                    self._best.see(sum(self._precision), self.step // len(self.batches), self.method.trained)
                    validated = time.monotonic() - stepped
                first, third, fifth = self._precision or (None, None, None)
                progress = Progress(
                    phase=self.phase,
                    step=self.step,
                    steps=self.steps,
                    epoch=(self.step - 1) // len(self.batches) + 1,
                    epochs=self.epochs,
                    loss=loss,
                    rate=max(float(group["lr"]) for group in self.optimizer.param_groups),
                    gradient_norm=gradient_norm,
                    queries=len(rows),
                    scores=len(rows) * self.method.scored,
                    step_seconds=stepped - began,
                    validation_seconds=validated,
                    precision_1=first,
                    precision_3=third,
                    precision_5=fifth,
                    seconds=time.monotonic() - start,
                    collapsed=collapsed,
                )
                report(progress)
                due = time.monotonic() - saved > self.config.training.checkpoint_seconds
                stop, due = self.world.any(interrupted(), due)
                if stop and self.step < self.steps:
                    self.save()
                    return False
                if due:
                    self.save()
                    saved = time.monotonic()
        if self.stopped_early:
            self._best.restore(self.method.trained)
        return True

    @property
    def stopped_early(self) -> bool:
        """Whether the watched rows gained nothing for `training.patience` epochs; the weights end as `best_epoch` had them."""
        patience = self.config.training.patience
        epoch = self.step // len(self.batches)
        return patience is not None and self._best.epoch > 0 and epoch < self.epochs and epoch - self._best.epoch >= patience

    @property
    def best_epoch(self) -> int:
        """The epoch, counted from 1, after which the watched rows were answered best; 0 where none was watched."""
        return self._best.epoch

    def _over(self) -> bool:
        return self.stopped_early or (self.stop_after is not None and self.step >= self.stop_after * len(self.batches))

    def save(self) -> None:
        """Write a checkpoint: the same of any number of ranks, by the first."""
        trained, whole = self.method.trained, self.method.whole
        state = checkpoint.Checkpoint(
            whole({name: value.detach().cpu() for name, value in trained.items()}),
            whole(checkpoint.optimizer_tensors(self.optimizer, trained)),
            torch.get_rng_state(),
            {
                "phase": self.phase,
                "step": self.step,
                "batches": self.batches.state_dict(),
                "precision": self._precision,
                "best": [self._best.value, self._best.epoch],
                "stop_after": self.stop_after,
                "weighed": None if self.weighed is None else asdict(self.weighed),
                "calibration": self.calibration.model_dump() if isinstance(self.calibration, Calibration) else self.calibration,
                "fingerprint": self.fingerprint,
                "about": self.about,
            },
            whole({**self.method.state(), **self._best.state()}),
        )
        if self.world.first:
            checkpoint.save(self.config.out, state, self.phase, self.step)

    def knows(self, state: checkpoint.Checkpoint) -> bool:
        """Return whether a checkpoint was made by this very run: the same config, data and rows."""
        made = state.facts.get("about", {})
        # Bitwise the same takes as many threads; over several ranks sums are taken in another order anyway.
        threads = made.get("threads") == self.about["threads"] or not made.get("ranks", 1) == self.world.size == 1
        return bool(state.facts["fingerprint"] == self.fingerprint) and threads

    def difference(self, state: checkpoint.Checkpoint) -> str:
        """Return in words what tells a checkpoint that is not known from this run."""
        return difference(state.facts.get("about", {}), self.about)

    def resume(self, state: checkpoint.Checkpoint) -> None:
        """Go on where a checkpoint was taken. Raises InputError where ranks were given different ones."""
        if not self.world.agrees(state.facts["step"]):
            raise InputError("--resume: the ranks see different checkpoints; `out` must be one folder for all of them")
        part = self.method.part
        checkpoint.restore_parameters(self.method.trained, part(state.parameters))
        checkpoint.restore_optimizer(self.optimizer, self.method.trained, part(state.optimizer))
        self.method.restore({name: value for name, value in state.extra.items() if not name.startswith(BEST)})
        torch.set_rng_state(state.random)
        self.step = state.facts["step"]
        self.batches.load_state_dict(state.facts["batches"])
        self._precision = tuple(state.facts["precision"]) if state.facts["precision"] else None
        self.stop_after = state.facts["stop_after"]
        weighed = state.facts.get("weighed")
        self.weighed = None if weighed is None else Weighed(**weighed)
        fitted = state.facts.get("calibration")
        self.calibration = Calibration.model_validate(fitted) if isinstance(fitted, dict) else fitted
        value, epoch = state.facts["best"]
        self._best = Best(value, epoch, Best.weights_in(part(state.extra)))

    @torch.inference_mode()
    def embeddings(self, quick: bool = False) -> Tensor:
        """Return unit rows float32 (L, D) of all labels: trained ones with their free vectors, the rest from their text.

        `quick` reads the texts of the rest once for all validations, at the precision of training. Of several ranks the first
        gets the rows, and the others none (0, D).
        """
        if self.fixed is not None:
            return self.fixed.clone()
        tower = self.model.tower.eval()
        trained = self.method.gathered(tower.labels(self.method.label_features(), trained=True).cpu())
        if not self.world.first:
            return trained
        rows = torch.zeros(len(self.labels), self.model.dimension)
        rows[torch.from_numpy(self.seen)] = trained
        unseen = np.setdiff1d(np.arange(len(self.labels)), self.seen)
        texts = [self.labels.texts[number] for number in unseen]
        rows[torch.from_numpy(unseen)] = self._embedded("unseen", texts) if quick else self.model.embed_labels(texts)
        return rows

    @torch.inference_mode()
    def query_rows(self, texts: Sequence[str]) -> Tensor:
        """Return unit rows float32 (N, D) of many queries: features of a frozen encoder are read as those trained on were."""
        if self.config.finetune.train != "none":
            return self.model.embed_queries(texts)[0]
        return self.model.tower.eval().queries(self.model.encoder.encode_many(texts)).cpu()

    def _embedded(self, what: str, texts: Sequence[str]) -> Tensor:
        """Return rows of "watched" queries or "unseen" labels for a validation: features of a frozen encoder are read once."""
        watched = what == "watched"
        if self.config.finetune.train != "none":
            return self.model.embed_queries(texts)[0] if watched else self.model.embed_labels(texts)
        if what not in self._features:
            self._features[what] = self.model.encoder.encode_many(texts)
        tower, features = self.model.tower.eval(), self._features[what]
        return tower.queries(features) if watched else tower.labels(features, trained=False)

    def _step(self, rows: Int64Array) -> tuple[float, float]:
        """Take one step; return its loss and the norm of its gradient before any clipping."""
        self.method.before(self.step)
        self.optimizer.zero_grad(set_to_none=True)
        value = self.method.backward(rows)
        if not np.isfinite(value):
            raise self._not_finite("loss", value, rows)
        norm = self.method.gradient_norm()
        if not np.isfinite(norm):
            raise self._not_finite("gradient norm", norm, rows)
        self.method.clip()
        factor = rate_factor(self.step, self.steps, self.config)
        for group in self.optimizer.param_groups:
            group["lr"] = group["full_rate"] * factor
        self.optimizer.step()
        return value, norm

    def _not_finite(self, what: str, value: float, rows: Int64Array) -> InputError:
        texts = [self.train.texts[row] for row in rows]
        return not_finite(what, value, self.step + 1, self.numbers[rows], texts, self.config.out)

    @torch.inference_mode()
    def _validate(self) -> tuple[float, float, float]:
        assert self.validation is not None
        rows, found = self.embeddings(quick=True), [0.0, 0.0, 0.0]
        if self.world.first:
            queries = self._embedded("watched", self.validation.texts)
            kernels = choose()
            ranked = kernels.scan(queries, kernels.prepare(rows, copy="none"), 5, 1.0).ids.numpy()
            found = [precision_at(ranked, self.validation.positives, k) for k in (1, 3, 5)]
        first, third, fifth = (self.world.from_first(value) for value in found)
        return first, third, fifth


def _renumbered(positives: Positives, seen: Int64Array) -> Positives:
    """Return positives whose label numbers count through `seen` (sorted, a superset of the labels used)."""
    return Positives(positives.indptr, np.searchsorted(seen, positives.indices), len(seen), positives.weights)


def rate_factor(step: int, steps: int, config: Config) -> float:
    """Return the share of the full learning rate at `step` of `steps`: linear warm-up, then linear decay to `final_rate`.

    A function of the step alone, so that a resumed run has nothing to restore.
    """
    warm = max(1, round(config.training.warmup * steps))
    if step < warm:
        return (step + 1) / warm
    final = config.training.final_rate
    return final + (1 - final) * max(0.0, (steps - step) / max(1, steps - warm))
