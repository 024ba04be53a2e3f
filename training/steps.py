"""What a batch does: the loss of frozen features through the tower, or of texts through an encoder that trains with it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor, nn

from dexml.encoders import kernel_adapter, scale_shift
from dexml.errors import InputError
from dexml.losses import Loss
from dexml.model import DualEncoder
from dexml.types import Bag, Features, Int64Array, Positives
from training import negatives, stability
from training.accelerator import accelerator
from training.config import Config, FinetuneSection
from training.gradient_cache import Chunk, Texts, cached_backward, rows_of
from training.optimizers import OPTIMIZERS
from training.world import World

if TYPE_CHECKING:
    from training.run import Run

RATES = {"full": 5e-5, "ssf": 2e-3, "snnk": 2e-3}  # of a fine-tuned encoder, where the config says "auto"
BLOCK = 8192  # queries embedded at a time while negatives are mined


class Step(ABC):
    """Gradients of a batch."""

    trained: dict[str, nn.Parameter]
    """Every parameter that the optimizer moves and a checkpoint keeps, by name."""
    loss: Loss
    scored: int
    """How many labels the last step scored for each query."""
    passing = 0
    """Bytes that a step makes besides the rows, their gradients and the loss's scores, for the forecast."""

    @abstractmethod
    def backward(self, rows: Int64Array) -> float:
        """Return the loss of a batch of training rows, and leave its gradient in the trained parameters."""

    def clip(self) -> None:
        """Shorten a gradient that is too long."""
        return None

    def gradient_norm(self) -> float:
        """Return the length of the gradient of all that is trained."""
        return float(nn.utils.get_total_norm([p.grad for p in self.trained.values() if p.grad is not None]))

    def gathered(self, rows: Tensor) -> Tensor:
        """Return the rows of all trained labels, given those of this process's `label_features`."""
        return rows

    def whole(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return what a checkpoint keeps of this process's parameters, moments or other state, by name."""
        return tensors

    def part(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return this process's part of what `whole` made."""
        return tensors

    @abstractmethod
    def label_features(self) -> Features:
        """Return the features of this process's trained labels, as the model has them now, in evaluation."""

    @abstractmethod
    def groups(self) -> list[dict[str, Any]]:
        """Return the optimizer's parameter groups; `full_rate` is what the schedule multiplies."""

    def collapsed(self) -> dict[str, float] | None:
        """Return the share of the last batch's positives without a gradient, by number type; None where the loss tells none."""
        return None if self.loss.pulls is None else stability.shares(stability.counted(self.loss.pulls))

    def total(self, parameter: Tensor, sums: Tensor) -> Tensor:
        """Return sums over all of a trained parameter, given those over this process's part of it."""
        return sums

    def before(self, step: int) -> None:
        """Do what is due before step number `step`, counted from 0."""
        return None

    def state(self) -> dict[str, Tensor]:
        """Return what a checkpoint keeps besides parameters and moments."""
        return {}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Put back what `state` returned."""
        return None

    @abstractmethod
    def describe(self) -> str:
        """Return what is trained, and how, in words."""

    def notes(self, run: Run) -> tuple[str, ...]:
        """Return lines that a user should read once a run is over."""
        return run.model.tower.notes()


class FrozenFeatures(Step):
    """The encoder is frozen: its features are computed once, and every step scores all labels."""

    def __init__(
        self, config: Config, model: DualEncoder, loss: Loss, texts: Sequence[str], labels: Sequence[str], positives: Positives
    ) -> None:
        self.config = config
        self.model = model
        self.loss = loss
        self.positives = positives
        self.queries = model.encoder.encode_many(texts)
        self.labels = model.encoder.encode_many(labels)
        self.trained = dict(model.tower.named_parameters())
        self.scored = len(labels)

    def backward(self, rows: Int64Array) -> float:
        """Return the loss over all labels."""
        tower = self.model.tower.train()
        queries, labels = tower(self.queries.take(torch.from_numpy(rows)), self.labels)
        loss = self.loss(queries, labels, self.positives.take(rows))
        loss.backward()  # type: ignore[no-untyped-call]
        return float(loss.detach())

    def label_features(self) -> Features:
        """Return the features that every step uses."""
        return self.labels

    def groups(self) -> list[dict[str, Any]]:
        """Return the tower's."""
        return tower_groups(self.model, self.config)

    def describe(self) -> str:
        """Return the number of features."""
        return f"{self.model.encoder.width():,} features"


class GradientCached(Step):
    """The encoder trains: texts are encoded in chunks, twice (`training.gradient_cache`), and the tower goes over all rows."""

    def __init__(
        self,
        config: Config,
        model: DualEncoder,
        loss: Loss,
        texts: Sequence[str],
        labels: Sequence[str],
        positives: Positives,
        excluded: Positives | None,
        near: sp.csr_array | None = None,
    ) -> None:
        """`near` (L, L) joins the labels that negatives are drawn from, where these are a graph's."""
        self.config = config
        self.model = model
        self.loss = loss
        self.positives = positives
        self.barred = positives if excluded is None else negatives.union(positives, excluded)  # never mined
        self.tuned: FinetuneSection = config.finetune
        self.accelerator, self.where = accelerator(self.tuned)
        self.device: torch.device = self.accelerator.device
        self.network = model.encoder.network()
        module = self.network.module
        if self.tuned.train == "ssf":
            scale_shift.attach(module)
        elif self.tuned.train == "snnk":
            kernel_adapter.attach(module)
        module.to(self.device)
        model.tower.to(self.device)
        own = {f"encoder.{name}": value for name, value in module.named_parameters() if value.requires_grad}
        self.trained = {**dict(model.tower.named_parameters()), **own}
        self.own = list(own.values())
        self.queries, self.query_bags = Texts(self.network, texts, self.tuned.chunk), model.encoder.bags(texts)
        self.labels, label_bags = Texts(self.network, labels, self.tuned.chunk), model.encoder.bags(labels)
        self.label_bags = None if label_bags is None else label_bags.to(self.device)
        self.all_labels = self.labels.chunks(np.arange(len(labels)))
        batch = config.training.batch
        assert isinstance(batch, int), "settle comes before Run"
        self.mine_each = self.tuned.mine_every * -(-len(texts) // batch)  # steps
        self.mined = np.zeros((len(texts), 0), dtype=np.int64)
        if near is not None:
            self.mined = negatives.neighbours(near, positives, self.barred, self.tuned.depth)
        self.number = 0
        self.scored = len(labels)

    def before(self, step: int) -> None:
        """Mine negatives at the start of every `mine_every`th epoch."""
        self.number = step
        if self.tuned.negatives == "mined" and step % self.mine_each == 0:
            self.mined = self.mine()

    def backward(self, rows: Int64Array) -> float:
        """Return the loss over the labels that the step scores."""
        tower = self.model.tower.train()
        self.network.module.train()
        columns = self.columns(rows)
        positives, chunks, bags, numbers = self.positives.take(rows), self.all_labels, self.label_bags, None
        if columns is not None:
            positives, chunks = negatives.within(positives, columns), self.labels.chunks(columns)
            numbers = torch.from_numpy(columns).to(self.device)
            bags = None if bags is None else bags.to(torch.device("cpu")).take(torch.from_numpy(columns)).to(self.device)
        query_bags = self._query_bags(rows)

        def head(of_queries: Tensor, of_labels: Tensor) -> Tensor:
            queries, labels = tower(Features(of_queries, query_bags), Features(of_labels, bags), numbers)
            return self.loss(queries, labels, positives)

        loss = cached_backward([self.queries.chunks(rows), chunks], self.encode, head, self.device)
        self.scored = positives.num_labels
        return float(loss)

    def clip(self) -> None:
        """Clip the encoder's gradient to the norm `clip`; the tower's is left alone."""
        nn.utils.clip_grad_norm_(self.own, self.tuned.clip)

    def encode(self, chunk: Chunk) -> Tensor:
        """Return the rows (n, M) of a chunk of texts, in the precision of training."""
        # Entered anew for every chunk: autocast keeps the weights it has cast, those without a gradient too.
        with self.accelerator.autocast():
            return self.network.rows(chunk.tokens)

    def use_chunk(self, tokens: int) -> None:
        """Encode at most `tokens` tokens at a time from now on."""
        self.queries.budget = self.labels.budget = tokens
        self.all_labels = self.labels.chunks(np.arange(len(self.labels)))

    def columns(self, rows: Int64Array) -> Int64Array | None:
        """Return the labels that this step scores, ascending, or None for all; a function of the seed and the step's number."""
        if self.tuned.negatives == "all":
            return None
        generator = np.random.default_rng((self.config.seed, self.number))
        chosen = [negatives.sample_positives(self.positives.take(rows), self.tuned.positives, generator)]
        if self.tuned.negatives != "in-batch":
            chosen.append(negatives.sample_mined(self.mined[rows], self.tuned.per_query, generator))
        return np.unique(np.concatenate(chosen))

    @torch.no_grad()
    def mine(self) -> Int64Array:
        """Return the `depth` best wrong labels of every training row (N, depth), by the model as it is now."""
        self.network.module.eval()
        tower = self.model.tower.eval()
        labels = tower.labels(Features(rows_of(self.all_labels, self.encode, self.device), self.label_bags), trained=True)

        def blocks() -> Iterator[Tensor]:
            for start in range(0, len(self.queries), BLOCK):
                rows = np.arange(start, min(start + BLOCK, len(self.queries)))
                dense = rows_of(self.queries.chunks(rows), self.encode, self.device)
                yield tower.queries(Features(dense, self._query_bags(rows)))

        return negatives.mine(blocks(), labels, self.barred, self.tuned.depth)

    @torch.no_grad()
    def label_features(self) -> Features:
        """Return the features of all labels in float32, whatever training multiplies in."""
        self.network.module.eval()
        dense = rows_of(self.all_labels, lambda chunk: self.network.rows(chunk.tokens), self.device)
        return Features(dense, self.label_bags)

    def groups(self) -> list[dict[str, Any]]:
        """Return the tower's, and the encoder's: no weight decay on biases, norms, scales and shifts."""
        training, rate = self.config.training, self.tuned.rate
        assert isinstance(training.rate_scale, float), "settle comes before Run"
        full = (RATES[self.tuned.train] if rate == "auto" else rate) * training.rate_scale
        sides = (([p for p in self.own if p.ndim > 1], training.weight_decay), ([p for p in self.own if p.ndim <= 1], 0.0))
        own = [{"params": some, "full_rate": full, "weight_decay": decay, "eps": 1e-8} for some, decay in sides if some]
        return [*tower_groups(self.model, self.config), *own]

    def state(self) -> dict[str, Tensor]:
        """Return the chunk, whose size decides what dropout draws, the mined labels, and a GPU's random state."""
        kept = {"chunk": torch.tensor(self.labels.budget)}
        if self.mined.size:
            kept["mined"] = torch.from_numpy(self.mined)
        return {**kept, "cuda": torch.cuda.get_rng_state(self.device)} if self.device.type == "cuda" else kept

    def restore(self, state: dict[str, Tensor]) -> None:
        """Put them back."""
        self.use_chunk(int(state["chunk"]))
        if "mined" in state:
            self.mined = state["mined"].numpy()
        if "cuda" in state and self.device.type == "cuda":
            torch.cuda.set_rng_state(state["cuda"], self.device)

    def describe(self) -> str:
        """Return how much of the encoder is trained, against what, where and in which precision."""
        own, whole = (sum(p.numel() for p in some) for some in (self.own, self.network.module.parameters()))
        against = {
            "all": "all labels",
            "in-batch": "the batch's positives",
            "mined": "mined and in-batch negatives",
            "graph": "a graph's neighbours and in-batch negatives",
        }
        return (
            f"fine-tuning ({self.tuned.train}) {own:,} of the encoder's {whole:,} parameters ({100 * own / whole:.3g}%) "
            f"against {against[self.tuned.negatives]}, {self.labels.budget:,} tokens at a time, {self.where}"
        )

    def _query_bags(self, rows: Int64Array) -> Bag | None:
        return None if self.query_bags is None else self.query_bags.take(torch.from_numpy(rows)).to(self.device)


def make_step(
    config: Config,
    model: DualEncoder,
    loss: Loss,
    texts: Sequence[str],
    labels: Sequence[str],
    positives: Positives,
    excluded: Positives | None,
    world: World,
    fixed: Tensor | None = None,
    near: sp.csr_array | None = None,
) -> Step:
    """Return the step that `finetune.train` asks for, over the training `texts` (N), trained `labels` (L), pairs (N, L).

    With `fixed` rows (L, D) the labels stand still; `near` (L, L) is what `finetune.graph` joins. Raises InputError where
    several ranks are asked for what one does.
    """
    if fixed is not None:
        from training.fixed import FixedLabels  # which builds on this module

        if world.size > 1:
            raise InputError(f"labels.rows: {config.labels.rows!r} is for one process, and there are {world.size}")
        return FixedLabels(config, model, loss, texts, fixed, positives)
    if model.tower.local:
        if world.size > 1 or config.finetune.train != "none":
            raise InputError(f"tower {config.tower.name!r} trains on frozen features, in one process")
        from training.local import LocalFeatures  # which builds on this module

        return LocalFeatures(config, model, loss, texts, labels, positives)
    if world.size > 1:
        from training.sharded import ShardedFeatures  # which builds on this module

        return ShardedFeatures(config, model, loss, texts, labels, positives, world)
    if config.finetune.train == "none":
        return FrozenFeatures(config, model, loss, texts, labels, positives)
    return GradientCached(config, model, loss, texts, labels, positives, excluded, near)


def tower_groups(model: DualEncoder, config: Config) -> list[dict[str, Any]]:
    """Return a parameter group for each of the tower's parameters, at the rate that the tower gives it."""
    scale, still = config.training.rate_scale, model.tower.undecayed()
    assert isinstance(scale, float), "settle comes before Run"
    return [
        {
            "params": [parameter],
            "full_rate": model.tower.rate(name) * scale,
            "weight_decay": 0.0 if name in still else config.training.weight_decay,
        }
        for name, parameter in model.tower.named_parameters()
        if parameter.requires_grad
    ]


def optimizer(step: Step, config: Config) -> torch.optim.Optimizer:
    """Return the config's optimizer of all that a step trains. Raises InputError where that is nothing."""
    groups = step.groups()
    if not groups:
        raise InputError(f"tower {config.tower.name!r} has nothing to train; set training.free_vectors = true")
    return OPTIMIZERS.build(config.optimizer.name, config.optimizer.options).make(groups, step.total)
