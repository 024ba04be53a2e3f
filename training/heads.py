"""Free-label heads behind a bundle that is there already: fitted on its rows of the training texts, and served as any bundle.

The encoder and its tower stay as they are. A head has a weight vector and a bias for each label with a training row, and its
options are chosen on rows held out; labels without one keep what their text says, brought to the head's scale.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dexml.bundle import Bundle, publish
from dexml.calibration import Calibration
from dexml.calibration import fit as fit_calibration
from dexml.errors import InputError
from dexml.heads import HEADS
from dexml.kernels import choose
from dexml.metrics import precision_at
from dexml.model import DualEncoder
from dexml.towers import TOWERS
from dexml.towers.kernel import KernelTower
from dexml.towers.linear import LinearTower, as_unit_rows, with_one
from dexml.types import Int64Array, Positives, Split
from index import INDEXES, canary
from training import provenance
from training.calibration import Path as Answering
from training.calibration import watch

PATIENCE = 3  # stages without a better one after which a setting is given up
SAMPLE = 2000  # rows on which texts are brought to a head's scale
Say = Callable[[str], None]
Scale = tuple[float, float]  # √2·α and √2·β: outputs of a label whose text has cosine c with a query are α·c + β


@dataclass(frozen=True, eq=False)
class Base:
    """What a head stands on: `rows` [x, 1]/√2 (N, D + 1) of the training texts, and the labels' rows `texts` (L, D)."""

    rows: Tensor
    texts: Tensor
    positives: Positives

    @staticmethod
    @torch.no_grad()
    def of(texts: Tensor, model: DualEncoder, train: Split) -> Base:
        """Return a model's rows, features read as in training; one of which it knows no word has no label. `texts` are unit."""
        rows = model.tower.eval().queries(model.encoder.encode_many(train.texts)).cpu()
        return Base(with_one(rows), texts, train.positives)

    def take(self, numbers: Int64Array) -> Base:
        """Return some of the training rows."""
        return Base(self.rows[torch.from_numpy(numbers)], self.texts, self.positives.take(numbers))

    def scale(self, weights: Tensor, seen: Int64Array) -> Scale | None:
        """Return the scale of label texts for a head with `weights` (seen, D + 1) of the labels `seen`; None without a pair.

        α·cos + β are its outputs that cosines with label texts explain best, over this base's pairs and as many random ones. On
        rows that the head was fitted to, outputs of their own labels are larger than on any others.
        """
        some = self.take(np.unique(np.linspace(0, len(self.rows) - 1, min(SAMPLE, len(self.rows))).astype(np.int64)))
        known = np.isin(some.positives.indices, seen)
        own = np.repeat(np.arange(len(some.rows)), np.diff(some.positives.indptr))[known]
        if len(own) == 0:
            return None
        others = torch.randint(len(seen), (len(own),), generator=torch.Generator().manual_seed(0)).numpy()
        queries = some.rows[torch.from_numpy(np.concatenate([own, own]))]
        numbers = torch.from_numpy(np.concatenate([np.searchsorted(seen, some.positives.indices[known]), others]))
        places = torch.from_numpy(seen)[numbers]
        cosines = 2**0.5 * (queries[:, :-1] * self.texts[places]).sum(dim=1)
        outputs = (queries * weights[numbers]).sum(dim=1)
        design = torch.stack([cosines, torch.ones_like(cosines)], dim=1).double()
        slope, offset = (2**0.5 * torch.linalg.lstsq(design, outputs.double()[:, None]).solution[:, 0]).tolist()
        return slope, offset

    def of_all(self, weights: Tensor, seen: Int64Array, scale: Scale) -> Tensor:
        """Return weights of all labels (L, D + 1), of the `seen` as given, of the others √2·[α·y, β] by their text y."""
        slope, offset = scale
        every = torch.cat([slope * self.texts, self.texts.new_full((len(self.texts), 1), offset)], dim=1)
        every[torch.from_numpy(seen)] = weights
        return every


@dataclass(frozen=True)
class Chosen:
    """The `options` of a head that answered the watched rows best, after `stage`, counted from 1; P@1, P@3, P@5 in percent.

    `scale` of label texts is that on these rows, or on the training rows where none are watched.
    """

    options: Mapping[str, Any]
    stage: int
    precision: tuple[float, ...]
    scale: Scale = (1.0, 0.0)


def fitted(base: Base, name: str, options: Mapping[str, Any], stage: int | None = None) -> Any:
    """Yield the weights (seen, D + 1) of a head on all rows of `base`, stage by stage, with the labels `seen` that have one."""
    seen = np.flatnonzero(base.positives.counts()).astype(np.int64)
    own = Positives(base.positives.indptr, np.searchsorted(seen, base.positives.indices), len(seen), base.positives.weights)
    start = torch.cat([base.texts[torch.from_numpy(seen)], torch.zeros(len(seen), 1)], dim=1)
    for weights in itertools.islice(HEADS.build(name, options).stages(base.rows, own, start), stage):
        yield weights, seen


def select(base: Base, watched: Base, name: str, options: Mapping[str, Any], say: Say) -> Chosen:
    """Return the options that answer `watched` best, those of `options` given, those of the head's grid tried."""
    kernels, best = choose(), Chosen({}, 0, (-1.0,))
    tried = {key: values for key, values in HEADS[name].grid.items() if key not in options}
    for values in itertools.product(*tried.values()):
        setting, top, since = {**options, **dict(zip(tried, values, strict=True))}, Chosen({}, 0, (-1.0,)), 0
        for stage, (weights, seen) in enumerate(fitted(base, name, setting), 1):
            scale = watched.scale(weights, seen) or base.scale(weights, seen) or (1.0, 0.0)
            rows = base.of_all(weights, seen, scale)
            ids = kernels.scan(watched.rows, kernels.prepare(rows, copy="none"), 5, 1.0).ids.numpy()
            found = Chosen(setting, stage, tuple(precision_at(ids, watched.positives, k) for k in (1, 3, 5)), scale)
            top, since = (found, 0) if sum(found.precision) > sum(top.precision) else (top, since + 1)
            if since >= PATIENCE:
                break
        said = ", ".join(f"{key} {value:g}" for key, value in setting.items())
        say(f"{said}: P@1 {top.precision[0]:.2f}, P@3 {top.precision[1]:.2f}, P@5 {top.precision[2]:.2f}")
        best = top if sum(top.precision) > sum(best.precision) else best
    return best


def publish_head(
    out: Path, source: Bundle, model: DualEncoder, base: Base, watched: Int64Array, train: Split, name: str, chosen: Chosen
) -> tuple[Path, str]:
    """Fit the chosen head on all rows and publish it as a bundle; return it, and in words what its scores mean.

    Temperature and calibration are those of the head without the `watched` rows, on these.
    """
    rest = np.setdiff1d(np.arange(len(train), dtype=np.int64), watched)
    temperature, said = 1.0, "no calibration: no rows were held out"
    calibration: Calibration | None = None
    if len(watched):
        rows, _ = _rows_of(base.take(rest), name, chosen)
        held = train.take(watched)
        queries = torch.cat([base.rows[torch.from_numpy(watched)], torch.zeros(len(watched), 1)], dim=1)
        seen = watch(Answering.over(rows, None, None, 0.05), queries, held, 0.05)
        temperature = seen.temperature
        try:
            calibration = fit_calibration(seen)
            said = f"calibrated on {calibration.rows} rows held out, temperature {temperature:.4g}"
        except InputError as error:  # too few rows: no reason to have no head
            said = str(error)
    embeddings, most = _rows_of(base, name, chosen)
    headed = _headed(model, *(value / most for value in chosen.scale))
    index = INDEXES.build(source.manifest.index.name, source.manifest.index.model_extra or {})
    index.build(embeddings)
    facts: dict[str, Any] = {
        "name": source.manifest.name,
        "temperature": temperature,
        "index": source.manifest.index.model_dump(),
        "rerank": source.manifest.rerank.model_dump(),
        "examples": source.manifest.examples,
        "data": source.manifest.data.model_dump(),
        "training": {
            "finished": True,
            "step": max(1, source.manifest.training.step),
            "steps": max(1, source.manifest.training.steps),
            "fingerprint": "",
            "config": {
                "head": {"name": name, **chosen.options, "stage": chosen.stage, "bundle": source.name},
                "base": source.manifest.training.config,
            },
            **provenance.facts(),
        },
    }

    def add(folder: Path) -> None:
        canary.write(folder, headed, facts["examples"], source.labels.ids, embeddings)
        if calibration is not None:
            calibration.write(folder)

    counts = base.positives.counts()
    return publish(out, headed, source.labels, counts, embeddings, facts, index.save, add=add), said


def with_features(model: DualEncoder, texts: Tensor, count: int) -> tuple[DualEncoder, Tensor]:
    """Return the model with `count` kernel features behind its tower, and those of label rows `texts` (L, D), unit rows too."""
    asked: dict[str, Any] = {"base": model.tower_name, "base_options": model.tower_options, "features": count}
    options = TOWERS.options("kernel", asked)
    tower = KernelTower(model.encoder, **options)
    tower.base.load_state_dict({key: value for key, value in model.tower.state_dict().items() if key != "free"})
    headed = DualEncoder(model.encoder, tower.eval(), model.encoder_name, "kernel", model.encoder_options, options)
    return headed, tower.of_labels(texts)


def _rows_of(base: Base, name: str, chosen: Chosen) -> tuple[Tensor, float]:
    """Return the unit rows (L, D + 2) of the chosen head, and what weights were divided by."""
    for weights, seen in fitted(base, name, chosen.options, chosen.stage):
        last = weights, seen
    # Room for a label that comes later, whose text has length one.
    return as_unit_rows(base.of_all(*last, chosen.scale), least=float(np.hypot(*chosen.scale)))


def _headed(model: DualEncoder, slope: float, offset: float) -> DualEncoder:
    """Return the model with its tower behind a head's."""
    options: dict[str, Any] = {"base": model.tower_name, "base_options": model.tower_options}
    tower = LinearTower(model.encoder, **options)
    tower.base.load_state_dict({key: value for key, value in model.tower.state_dict().items() if key != "free"})
    tower.slope.fill_(slope)
    tower.offset.fill_(offset)
    return DualEncoder(model.encoder, tower.eval(), model.encoder_name, "linear", model.encoder_options, options)
