"""A step for towers whose parts are trained by losses of their own, without a gradient that passes from one to the next."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from dexml.kernels import choose
from dexml.metrics import precision_at
from dexml.towers.noprop import NoPropTower
from dexml.types import Int64Array
from training.steps import FrozenFeatures

if TYPE_CHECKING:
    from training.run import Run


class LocalFeatures(FrozenFeatures):
    """Frozen features; the config's loss trains base and label vectors, on the base's queries, and blocks their own."""

    def backward(self, rows: Int64Array) -> float:
        """Return the loss over all labels plus the mean of the blocks'."""
        tower = self.model.tower.train()
        assert isinstance(tower, NoPropTower)
        queries = tower.base.queries(self.queries.take(torch.from_numpy(rows)))
        labels = tower.freed(tower.raw(self.labels, query=False))
        positives = self.positives.take(rows)
        local = tower.local_losses(queries.detach(), labels.detach(), positives)
        loss = self.loss(queries, labels, positives)
        # The blocks share no parameter: the sum gives each the gradient of its own loss.
        torch.autograd.backward([local.sum(), *([loss] if loss.requires_grad else [])])
        return float(loss.detach() + local.detach().mean())

    @torch.inference_mode()
    def notes(self, run: Run) -> tuple[str, ...]:
        """Return beside what the tower says how the base alone and the first block answer the watched rows."""
        tower, watched = self.model.tower.eval(), run.validation
        assert isinstance(tower, NoPropTower)
        if watched is None:
            return tower.notes()
        kernels, features = choose(), self.model.encoder.encode_many(watched.texts)
        labels = kernels.prepare(run.embeddings(quick=True), copy="none")
        ways = {"the base alone": tower.base.queries(features), "block 1 alone": tower.denoised(features, 1)}
        said = []
        for name, rows in {**ways, f"all {len(tower.blocks)} blocks": tower.denoised(features)}.items():
            ids = kernels.scan(torch.nn.functional.normalize(rows, dim=1), labels, 5, 1.0).ids.numpy()
            figures = " ".join(f"P@{k} {precision_at(ids, watched.positives, k):.1f}" for k in (1, 3, 5))
            said.append(f"{name} {figures}")
        return *tower.notes(), f"noprop, on the watched rows: {', '.join(said)}"

    def describe(self) -> str:
        """Return the features, and how many blocks there are."""
        tower = self.model.tower
        assert isinstance(tower, NoPropTower)
        return f"{super().describe()}, {len(tower.blocks)} blocks trained each alone"
