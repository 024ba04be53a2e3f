"""The processes of one training, as `torchrun` or `accelerate launch` starts them; one process alone is a world of its own."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from dexml.errors import InputError


class RankLost(InputError):
    """Another rank is gone, or silent for too long: nothing that the user gave is wrong."""


class World:
    """`rank` of `size` processes, `local` of which are on this machine. Each call must be made by all, in the same order.

    Raises RankLost where another rank is gone, or keeps the others waiting longer than the timeout: no rank goes on alone,
    and none hangs.
    """

    def __init__(self, rank: int = 0, size: int = 1, local: int = 1) -> None:
        self.rank, self.size, self.local = rank, size, local

    @property
    def first(self) -> bool:
        """Whether this is rank 0: the one that writes and speaks."""
        return self.rank == 0

    def share(self, count: int, rank: int | None = None) -> slice:
        """Return which of `count` things are this rank's, or another's: contiguous, in the order of the ranks, ±1 the same."""
        rank = self.rank if rank is None else rank
        return slice(count * rank // self.size, count * (rank + 1) // self.size)

    def sum(self, tensor: Tensor) -> Tensor:
        """Return the sum of a tensor over all ranks, bitwise the same on each; the tensor itself is overwritten."""
        return self._reduced(tensor, dist.ReduceOp.SUM)

    def max(self, tensor: Tensor) -> Tensor:
        """Return the largest of each entry over all ranks, likewise."""
        return self._reduced(tensor, dist.ReduceOp.MAX)

    def any(self, *asked: bool) -> tuple[bool, ...]:
        """Return which of the questions are true on any rank."""
        if self.size == 1:
            return asked
        return tuple(value > 0 for value in self.max(torch.tensor(asked, dtype=torch.int32)).tolist())

    def from_first(self, number: float) -> float:
        """Return the number that rank 0 has."""
        if self.size == 1:
            return number
        told = torch.tensor(number, dtype=torch.float64)
        self._together(lambda: dist.broadcast(told, 0))
        return float(told)

    def agrees(self, number: int) -> bool:
        """Return whether all ranks have the same number."""
        largest, least = self.max(torch.tensor([number, -number])).tolist()
        return bool(largest == -least)

    def gather(self, rows: Tensor, count: int) -> Tensor:
        """Return all ranks' rows (count, …) on rank 0, each rank's `share` of them given; no rows (0, …) on the others."""
        if self.size == 1:
            return rows
        rows = rows.contiguous()
        if not self.first:
            self._together(lambda: dist.send(rows, 0))
            return rows[:0]
        whole = rows.new_empty(count, *rows.shape[1:])
        whole[self.share(count)] = rows
        for rank in range(1, self.size):
            self._together(lambda rank=rank: dist.recv(whole[self.share(count, rank)], rank))  # type: ignore[misc]
        return whole

    def close(self) -> None:
        """Leave the group; what is called afterwards is for this rank alone."""
        if self.size > 1 and dist.is_initialized():
            dist.destroy_process_group()

    def _reduced(self, tensor: Tensor, how: dist.ReduceOp.RedOpType) -> Tensor:
        if self.size > 1:
            self._together(lambda: dist.all_reduce(tensor, how))
        return tensor

    def _together(self, call: Callable[[], object]) -> None:
        try:
            call()
        except RuntimeError as error:  # a closed connection, or the timeout
            said = str(error).strip().splitlines() or [type(error).__name__]
            raise RankLost(
                f"rank {self.rank} of {self.size}: another rank is gone, or was waited for longer than "
                f"training.timeout_seconds ({said[0]})"
            ) from None


ALONE = World()


def backend() -> str:
    """Return what tensors go by: gloo, and NCCL from NVIDIA GPU to GPU."""
    return "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"


def join(timeout_seconds: float, environment: Mapping[str, str] = os.environ) -> World:
    """Return the world that RANK and WORLD_SIZE in the environment name, joined; ALONE without them, or with one rank.

    Where Ray Train started the ranks they have met already, and it is their group that is used.
    Tensors on a CPU go by gloo, on an NVIDIA GPU by NCCL. A rank is missed after `timeout_seconds` at the latest. Raises
    InputError where the others cannot be met.
    """
    size = int(environment.get("WORLD_SIZE", "1"))
    if size == 1:
        return ALONE
    if missing := [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in environment]:
        raise InputError(f"WORLD_SIZE is {size}, but {missing[0]} is not set: start with torchrun or accelerate launch")
    rank = int(environment["RANK"])
    if dist.is_initialized():
        return World(rank, size, int(environment.get("LOCAL_WORLD_SIZE", size)))
    try:
        dist.init_process_group(backend(), rank=rank, world_size=size, timeout=timedelta(seconds=timeout_seconds))
    except (RuntimeError, ValueError) as error:
        raise InputError(f"rank {rank} of {size}: the other ranks cannot be met ({error})") from None
    return World(rank, size, int(environment.get("LOCAL_WORLD_SIZE", size)))
