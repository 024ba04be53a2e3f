"""What a run will need at its peak and what the machine has for it, told before the first step instead of running out.

What the process holds already is measured; what is to come is counted: gradients and AdamW's moments from the parameters, the
scores from the loss's backend, and the activations from what autograd keeps of a few rows, scaled up.
"""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from dexml.errors import InputError
from dexml.kernels.numba_slabs import SLAB_BYTES
from dexml.losses.base import ScoreLoss
from dexml.losses.sharded import ShardedLoss
from dexml.types import Bag, Features, Int64Array
from training.fixed import FixedLabels
from training.steps import FrozenFeatures, GradientCached

if TYPE_CHECKING:
    from training.run import Run

GIB = 2**30
COMPILED = 100 << 20  # of machine code and arenas, once numba has compiled a step; measured
PASSING = 4  # rows of D numbers per label that a backward pass makes besides what autograd keeps; measured
AFTER = 3  # copies of all label embeddings when a run is measured and exported: rows, what made them, the index's own
KEPT = 2  # copies of the rows of training queries that a bundle keeps: all, and those among them that are kept
LEAST_CHUNK = 128  # tokens
SAMPLE = 32  # rows whose activations are weighed
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Part:
    """Something that will be held at the peak: `size` in bytes, and the `option` that makes it smaller."""

    name: str
    size: int
    option: str


@dataclass(frozen=True)
class Forecast:
    """`held` bytes now, `parts` to come, `room` in bytes for all of it; `where` is the CPU's memory or a GPU's."""

    held: int
    parts: tuple[Part, ...]
    room: int
    where: str

    @property
    def needs(self) -> int:
        """The bytes held at the peak."""
        return self.held + sum(part.size for part in self.parts)

    @property
    def fits(self) -> bool:
        """Whether there is room."""
        return self.needs <= self.room

    def __str__(self) -> str:
        """Return "needs 1.4 GiB (0.5 held, 0.6 optimizer, …), has 7.8"."""
        shown = "".join(f", {gib(part.size)} {part.name}" for part in self.parts if part.size >= GIB // 100)
        return f"needs {gib(self.needs)} GiB {self.where} ({gib(self.held)} held now{shown}), has {gib(self.room)}"


def gib(size: int) -> str:
    """Return bytes as GiB with a digit or two."""
    return f"{size / GIB:.1f}" if size >= GIB // 10 else f"{size / GIB:.2f}"


def forecast(run: Run, chunk: int | None = None) -> Forecast:
    """Return what `run` needs at its peak, with `chunk` tokens encoded at a time where it trains its encoder."""
    method, config = run.method, run.config
    device = method.device if isinstance(method, GradientCached) else torch.device("cpu")
    batch, dimension = run.batches.size, run.model.dimension
    labels = len(method.labels) if isinstance(method, FrozenFeatures) else len(run.seen)  # a rank has its own
    row = 4 * dimension
    scored = _most_scored(method, batch) if isinstance(method, GradientCached) else labels
    parts = _of_parameters(run)
    parts.append(Part("training queries kept", KEPT * row * _kept(run), "memory.queries"))
    if run.validation is not None:
        best = sum(parameter.numel() * parameter.element_size() for parameter in method.trained.values())
        parts.append(Part("best weights so far", best if device.type == "cpu" else 0, "validation.fraction to 0"))
    of_step = _tower_bytes(run, batch, scored) + PASSING * row * (batch + scored)
    parts.append(Part("label rows", max(of_step, AFTER * row * len(run.labels)), "tower.dimension"))
    if isinstance(method.loss, ScoreLoss):
        backend = method.loss.serving(*(torch.zeros(1, device=device).expand(count, dimension) for count in (batch, scored)))
        sizes = {"numba": COMPILED + SLAB_BYTES, "reference": 3 * 4 * batch * scored}
        parts.append(Part("scores", sizes.get(backend, 0), "training.batch"))
    parts.append(Part("shortlists", method.passing, "distill.shortlist"))
    if isinstance(method.loss, ShardedLoss):
        block = min(method.loss.block_bytes, 4 * batch * labels)
        parts.append(Part("scores", 3 * block, "training.batch"))
    if isinstance(method, GradientCached):
        width = 4 * run.model.encoder.dense_width()
        parts.append(Part("rows and their gradient", 2 * width * (batch + scored), "finetune.negatives"))
        tokens = min(_most_tokens(method, batch, scored), method.labels.budget if chunk is None else chunk)
        parts.append(Part("activations of a chunk", int(_token_bytes(method) * tokens), "finetune.chunk"))
    held, free = _on_gpu(device) if device.type == "cuda" else (resident(), available())
    asked = config.training.memory_gib
    free //= run.world.local  # the ranks on this machine share it
    room = held + free if asked == "auto" else int(asked * GIB)
    return Forecast(held, tuple(parts), room, "on the GPU" if device.type == "cuda" else "of memory")


def settle(run: Run) -> tuple[Forecast, str]:
    """Return the forecast of a run and what it says, its chunk of tokens halved until it fits.

    Raises InputError where it does not fit and nothing that leaves the result alone can be made smaller.
    """
    first = forecast(run)
    if first.fits:
        return first, str(first)
    now, chunk = first, None
    if isinstance(run.method, GradientCached):
        chunk = asked = run.method.labels.budget
        while not now.fits and chunk > LEAST_CHUNK:
            chunk = max(LEAST_CHUNK, chunk // 2)
            now = forecast(run, chunk)
        if now.fits:
            run.method.use_chunk(chunk)
            return now, f"{first}: finetune.chunk {asked:,} → {chunk:,}, {now}"
    largest = max(now.parts, key=lambda part: part.size)
    raise InputError(
        f"memory: training {now}; lower {largest.option} ({gib(largest.size)} GiB is {largest.name}), or set "
        "training.memory_gib to what it may take"
    )


def _kept(run: Run) -> int:
    """Return how many training queries the bundle keeps at most."""
    rows, asked = len(run.train) + len(run.validation or ()), run.config.memory.queries
    return rows if asked == "all" else min(rows, asked)


def _of_parameters(run: Run) -> list[Part]:
    """Return gradients and AdamW's two moments of all that is trained, by the option that makes it smaller."""
    options = {"table": "encoder.max_bigrams", "free": "training.free_vectors to false"}
    sizes: dict[str, int] = {}
    for name, parameter in run.method.trained.items():
        option = "finetune.train to 'ssf'" if name.startswith("encoder.") else options.get(name, "tower.dimension")
        size = 3 * parameter.numel() * parameter.element_size()
        if name == "free" and parameter.device.type == "cpu":
            size += size // 3  # zeros that no page holds before the first step
        sizes[option] = sizes.get(option, 0) + size
    names = {"encoder.max_bigrams": "learning the feature table", "training.free_vectors to false": "free label vectors"}
    return [Part(names.get(option, "gradients and moments"), size, option) for option, size in sizes.items()]


def _most_scored(method: GradientCached, batch: int) -> int:
    """Return the most labels that a step scores."""
    tuned, labels = method.tuned, len(method.labels)
    if tuned.negatives == "all":
        return labels
    return min(labels, batch * (tuned.positives + (tuned.per_query if tuned.negatives in ("mined", "graph") else 0)))


def _tower_bytes(run: Run, batch: int, labels: int) -> int:
    """Return what autograd keeps of the tower's rows of a batch and of all labels that it scores."""
    method, tower = run.method, run.model.tower.train()
    if isinstance(method, FixedLabels):
        asked = method.queries.take(torch.from_numpy(_spread(len(method.queries), min(SAMPLE, batch))))
        return kept_by_autograd(lambda: tower.queries(asked), method.trained) * batch // max(1, len(asked))
    if isinstance(method, FrozenFeatures):
        of_queries, of_labels = method.queries, method.labels
    else:
        assert isinstance(method, GradientCached)
        width = run.model.encoder.dense_width()

        def some(bags: Bag | None, count: int) -> Features:
            dense = torch.zeros(count, width, device=method.device, requires_grad=True)
            return Features(dense, None if bags is None else bags.to(CPU).take(torch.arange(count)).to(method.device))

        of_queries = some(method.query_bags, min(SAMPLE, len(run.train)))
        of_labels = some(method.label_bags, min(SAMPLE, len(run.seen)))

    def kept(queries: int, labels: int) -> int:
        chosen = torch.from_numpy(_spread(len(of_labels), labels))
        asked = of_queries.take(torch.from_numpy(_spread(len(of_queries), queries)))
        return kept_by_autograd(lambda: tower(asked, of_labels.take(chosen), chosen.to(tower.device)), method.trained)

    one = kept(1, 1)
    many = min(SAMPLE, len(of_queries)), min(SAMPLE, len(of_labels))
    per_query = (kept(many[0], 1) - one) / max(1, many[0] - 1)
    per_label = (kept(1, many[1]) - one) / max(1, many[1] - 1)
    return int(per_query * batch + per_label * labels)


def _most_tokens(method: GradientCached, batch: int, scored: int) -> int:
    """Return the most tokens that one side of a step has, so that no chunk is larger."""
    sides = (method.queries.lengths, batch), (method.labels.lengths, scored)
    return max(int(np.sort(lengths)[-count:].sum()) for lengths, count in sides)


def _token_bytes(method: GradientCached) -> float:
    """Return what autograd keeps of a token of the longest texts, while the encoder trains."""
    sizes = []
    method.network.module.train()
    texts = max((method.queries, method.labels), key=lambda side: int(side.lengths.max()))
    for count in (1, 3):
        longest = np.argsort(-texts.lengths, kind="stable")[:count]
        chunk = texts.chunks(longest)[0].to(method.device)
        tokens = max(value.shape[0] * value.shape[1] for value in chunk.tokens.values() if isinstance(value, Tensor))
        sizes.append((tokens, kept_by_autograd(partial(method.encode, chunk), method.trained)))
    (few, less), (many, more) = sizes
    return (more - less) / (many - few) if many > few else less / max(1, few)


def kept_by_autograd(compute: Callable[[], Any], parameters: Mapping[str, Tensor]) -> int:
    """Return the bytes that autograd keeps for the backward pass of `compute` besides `parameters`; the random state stays."""
    known = {value.untyped_storage().data_ptr() for value in parameters.values()}
    kept: dict[int, Tensor] = {}  # alive until they are counted, so that no address is given twice

    def pack(tensor: Tensor) -> Tensor:
        if (place := tensor.untyped_storage().data_ptr()) not in known:
            kept[place] = tensor
        return tensor

    with torch.random.fork_rng(), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = compute()
    size = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    del result
    return size


def _spread(rows: int, count: int) -> Int64Array:
    """Return `count` row numbers of `rows`, evenly spread."""
    return np.unique(np.linspace(0, rows - 1, count).astype(np.int64))


def resident() -> int:
    """Return how many bytes of this process are in memory, what it freed and the allocator kept left out."""
    with suppress(OSError, AttributeError):  # glibc alone has it
        ctypes.CDLL(None).malloc_trim(0)
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def available(root: Path = Path("/")) -> int:
    """Return how many more bytes this process can have: what the machine has left, and what its control groups allow.

    `root` is where /proc and /sys are.
    """
    found = re.search(r"^MemAvailable:\s+(\d+) kB", (root / "proc/meminfo").read_text(), re.MULTILINE)
    left = int(found[1]) * 1024 if found else os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min([left, *_groups(root)])


def _groups(root: Path) -> list[int]:
    """Return what each control group above this process, version 2 or 1, still allows; caches that can go count as free."""
    left = []
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            top, limit, usage = root / "sys/fs/cgroup", "memory.max", "memory.current"
        elif "memory" in controllers.split(","):
            top, limit, usage = root / "sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
        else:
            continue
        place = top / path.strip("/")
        while True:
            try:
                dropped = re.search(r"^(?:total_)?inactive_file (\d+)", (place / "memory.stat").read_text(), re.MULTILINE)
                used = int((place / usage).read_text()) - (int(dropped[1]) if dropped else 0)
                left.append(int((place / limit).read_text()) - used)
            except (OSError, ValueError):  # "max", or a group that a container does not see
                pass
            if place == top or top not in place.parents:
                break
            place = place.parent
    return left


def _on_gpu(device: torch.device) -> tuple[int, int]:
    """Return what this process holds on a GPU, and what it can still have."""
    free, _ = torch.cuda.mem_get_info(device)
    held = torch.cuda.memory_allocated(device)
    return held, free + torch.cuda.memory_reserved(device) - held
