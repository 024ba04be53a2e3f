"""A bundle's calibration, fitted on rows that neither the model nor the memory has seen; and what it is worth on any split."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from dexml.calibration import FOLDS, LEAST_ROWS, Calibration, Watched, fit, temperature_of
from dexml.errors import InputError
from dexml.manifest import MemoryFacts
from dexml.memory import Memory
from dexml.metrics import adaptive_ece_at, brier_at, ece_at, hits, log_loss_at
from dexml.metrics.calibration import BoolArray, Float64Array
from dexml.types import Int64Array, Split, TopK
from index.exact import ExactIndex
from index.live import LiveIndex
from index.recall import REFERENCE, Recall
from training.recall import Weighed, remember, weigh_run

if TYPE_CHECKING:
    from index.retriever import Retriever
    from training.run import Run

DEPTH = 100  # answers of a row that are looked at
CUTOFFS = (1, 5)  # of the figures
MOST_ROWS = 10_000  # of a split that are measured: enough for two digits of ECE


@dataclass(frozen=True, eq=False)
class Path:
    """What a bundle answers, over label rows (L, D) in memory: exact search, and training queries that lift scores."""

    live: LiveIndex
    recall: Recall | None

    @staticmethod
    def over(labels: Tensor, memory: Memory | None, facts: MemoryFacts | None, temperature: float) -> Path:
        """Return the path over unit rows `labels`; `temperature` is the bundle's τ."""
        index = ExactIndex(scan_copy="none")
        index.build(labels)
        heard = memory is not None and facts is not None and facts.weight > 0
        recall = Recall(memory, facts, temperature) if heard and memory is not None and facts is not None else None
        return Path(LiveIndex(index, labels, index.kernels), recall)

    def ask(self, queries: Tensor, temperature: float) -> TopK:
        """Return the DEPTH best labels of `queries` (N, D), and log Z over all labels at `temperature`."""
        topk = self.live.search(queries, min(max(REFERENCE, DEPTH), len(self.live)), temperature)
        log_z = topk.log_z
        if self.recall is not None:
            topk, log_z = self.recall.augment(queries, topk, self.live, temperature, log_z)
        return TopK(topk.ids, topk.scores, log_z).first(DEPTH)

    def mean_positive(self, queries: Tensor, split: Split) -> Float64Array:
        """Return the mean score (N) of each row's positives, as they are answered with; NaN for rows without."""
        truth = split.positives
        sizes = np.diff(truth.indptr)
        ids = np.full((len(truth), max(1, int(sizes.max(initial=0)))), -1, dtype=np.int64)
        ids[np.arange(ids.shape[1]) < sizes[:, None]] = truth.indices
        found = self.live.kernels.rescore(queries, self.live.prepared, torch.from_numpy(ids), 1.0)
        names, scores = found.ids.numpy(), found.scores.double().numpy()
        if self.recall is not None:
            facts = self.recall.facts
            topk = self.live.search(queries, min(REFERENCE, len(self.live)), 1.0)
            said = self.recall.evidence(queries, self.live, facts.neighbours, facts.temperature)
            scores = self.recall.lifted(scores, said.of(names), topk, facts.weight)
        sums: Float64Array = np.where(names >= 0, scores, 0.0).sum(axis=1)
        means: Float64Array = np.divide(sums, sizes, out=np.full(len(sizes), np.nan), where=sizes > 0)
        return means


def watch(path: Path, queries: Tensor, split: Split, temperature: float) -> Watched:
    """Return the answers to the unit rows `queries` (N, D) of `split`, with the temperature fitted on them.

    Rows of which the model knows no word are answered with nothing, and are left out. `temperature` is the bundle's τ. Raises
    InputError where no row has a label.
    """
    known = np.flatnonzero(queries.any(dim=1).numpy())
    queries, split = queries[torch.from_numpy(known)], split.take(known)
    if len(split.positives.indices) == 0:
        raise InputError("calibration: no validation row has a label")
    means = path.mean_positive(queries, split)
    able = torch.from_numpy(~np.isnan(means))

    def log_z(at: float) -> Float64Array:
        return _log_z(path.ask(queries[able], at))

    fitted = temperature_of(log_z, means[able.numpy()])
    found, trained = path.ask(queries, fitted), path.ask(queries, temperature)
    ids, scores = found.ids.numpy(), found.scores.double().numpy()
    gone = ids < 0
    if split.excluded is not None:
        gone |= hits(ids, split.excluded)
    return Watched(
        scores=np.where(gone, -np.inf, scores),
        hits=hits(ids, split.positives) & ~gone,
        log_z=_log_z(found),
        temperature=fitted,
        softmax=np.where(gone, np.nan, np.exp(scores / temperature - _log_z(trained)[:, None])),
        folds=_folds(split),
    )


def calibrate_run(run: Run, labels: Tensor, weighed: Weighed | None) -> Calibration | str:
    """Return the calibration on the rows that a run watches, or in words why there is none.

    `labels` are the run's unit rows (L, D); the rows that it was trained on are the memory, weighed as `weighed`.
    """
    config, watched = run.config, run.validation
    if watched is None or len(watched) < LEAST_ROWS:
        return _few(0 if watched is None else len(watched))
    memory = None
    if config.memory.queries and weighed is not None:
        memory = remember(run.train, run.query_rows(run.train.texts), config.memory, config.seed)
    facts = None if memory is None or weighed is None else weighed.facts(memory)
    temperature = config.loss.options["temperature"]
    path = Path.over(labels, memory, facts, temperature)
    try:
        return fit(watch(path, run.query_rows(watched.texts), watched, temperature))
    except InputError as error:
        return str(error)


@dataclass(frozen=True)
class Judged:
    """What a run's watched rows say of its answers: what training queries weigh, and the calibration or why there is none.

    Both are None where nobody has asked yet.
    """

    weighed: Weighed | None = None
    calibration: Calibration | str | None = "no rows were held out"

    def __str__(self) -> str:
        if not isinstance(self.calibration, Calibration):
            return f"not calibrated: {self.calibration}"
        before, after = self.calibration.ece
        return f"calibrated on {self.calibration.rows} rows held out: ECE@5 {before:.3f} → {after:.3f} there"


def judge(run: Run, labels: Tensor | None = None) -> Judged:
    """Return both, on the rows that `run` watches; `labels` are its unit rows (L, D), where they are there already.

    All ranks call it; the first gets them.
    """
    if run.validation is None:
        return Judged()
    if len(run.validation) < LEAST_ROWS and run.config.memory.queries == 0:
        return Judged(None, _few(len(run.validation)))
    labels = run.embeddings(quick=True) if labels is None else labels
    if not run.world.first:
        return Judged()
    weighed = weigh_run(run, labels)
    return Judged(weighed, calibrate_run(run, labels, weighed))


@dataclass(frozen=True, eq=False)
class Measured:
    """Probabilities of a split's answers by way, float64 (N, K), NaN where there is none, and which are right, bool (N, K)."""

    probabilities: dict[str, Float64Array]
    hits: BoolArray

    def figures(self) -> dict[str, dict[str, float]]:
        """Return ECE in both kinds, Brier score and log loss @1 and @5 of each way."""
        kinds = (("ECE", ece_at), ("adaptive ECE", adaptive_ece_at), ("Brier", brier_at), ("log loss", log_loss_at))
        return {
            way: {f"{name}@{k}": figure(k, given, self.hits) for k in CUTOFFS for name, figure in kinds}
            for way, given in self.probabilities.items()
        }


def measure(retriever: Retriever, split: Split, numbers: Int64Array) -> Measured:
    """Return the probabilities that the retriever's answers to `split` come with.

    They are the softmax over all labels as trained, the same at the fitted temperature, and the calibrated ones.

    At most MOST_ROWS rows, evenly spread. `numbers` are the data set's numbers of the retriever's labels, −1 for those that it
    does not have. Excluded pairs are no answers. Where the bundle has no calibration, there is only the softmax.
    """
    rows = np.unique(np.linspace(0, len(split) - 1, min(len(split), MOST_ROWS)).astype(np.int64))
    split = split.take(rows)
    ids: list[Int64Array] = []
    ways: dict[str, dict[str, Any]] = {"softmax": {"normalize": "all"}}
    if (fitted := retriever.bundle.calibration) is not None:
        ways["temperature"] = {"normalize": "all", "temperature": fitted.temperature}
        ways["calibrated"] = {"normalize": "calibrated"}
    given: dict[str, list[Float64Array]] = {way: [] for way in ways}
    for first in range(0, len(split), 256):
        queries, _ = retriever.model.embed_queries(split.texts[first : first + 256])
        answers = {way: retriever.search_embeddings(queries, DEPTH, **how) for way, how in ways.items()}
        names = answers["softmax"].topk.ids.numpy()
        ids.append(np.where(names < 0, -1, numbers[names]))
        for way, found in answers.items():
            probabilities = found.probabilities()
            assert probabilities is not None
            given[way].append(np.where(found.topk.ids.numpy() < 0, np.nan, probabilities.double().numpy()))
    ranked = np.concatenate(ids)
    right = hits(ranked, split.positives)
    of_ways = {way: np.concatenate(parts) for way, parts in given.items()}
    if split.excluded is not None:
        gone = hits(ranked, split.excluded)
        order = np.argsort(gone, axis=1, kind="stable")  # out of the way, so that the first k are the first k
        right = np.take_along_axis(right & ~gone, order, axis=1)
        of_ways = {way: np.take_along_axis(np.where(gone, np.nan, part), order, axis=1) for way, part in of_ways.items()}
    return Measured(of_ways, right)


def _few(rows: int) -> str:
    return f"{rows} rows were held out, {LEAST_ROWS} are needed"


def _log_z(topk: TopK) -> Float64Array:
    assert topk.log_z is not None, "an exact scan sees all labels"
    log_z: Float64Array = topk.log_z.double().numpy()
    return log_z


def _folds(split: Split) -> Int64Array:
    """Return FOLDS numbers by lot (N): rows with the same labels, such as titles of one occupation, share theirs."""
    groups: dict[bytes, int] = {}
    of_row = [groups.setdefault(split.positives.row(row).tobytes(), len(groups)) for row in range(len(split))]
    lots = np.random.default_rng(0).permutation(len(groups)) % FOLDS
    folds: Int64Array = lots[np.array(of_row, dtype=np.int64)].astype(np.int64)
    return folds


__all__ = ["Calibration", "Judged", "Measured", "Path", "calibrate_run", "judge", "measure", "watch"]
