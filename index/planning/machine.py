"""What one machine does in what time: constants that a plan is made of, measured by `dexml plan --measure`, kept as JSON."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Annotated

import numpy as np
from annotated_types import Gt
from pydantic import BaseModel, ConfigDict, ValidationError

from dexml.device import cache_folder
from dexml.errors import InputError

SHIPPED = "machine.json"

Positive = Annotated[float, Gt(0)]


class Machine(BaseModel):
    """A machine's constants. A *number* is one component of one label row: L labels of width D are L · D numbers.

    Times by batch size B are nanoseconds a number (`scan_ns`) and milliseconds a call (`call_ms`) of `kernels.scan` with
    k = 100: t(B) = numbers · scan_ns[B] + call_ms[B]; "all" with every core, "one" with one. They hold for rows of float32
    with both integer copies, 7 bytes a number (docs/adr/0005), from 2^25 numbers on.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    about: str
    """Processor, date and versions, for people; "scaled" where it was imagined."""
    cores: Annotated[int, Gt(0)]
    memory_gib: Positive
    read_gb_s: Positive
    """What all cores together read from memory: the faster of a plain sum and of our scan of int8 rows for one query."""
    batches: tuple[int, ...]
    """The batch sizes that were measured, ascending."""
    all_scan_ns: tuple[Positive, ...]
    all_call_ms: tuple[Positive, ...]
    one_scan_ns: tuple[Positive, ...]
    one_call_ms: tuple[Positive, ...]
    hop_ms: Positive
    """A small question to another process here, and its answer."""
    message_ms: Positive
    """What each further question to another process, and its answer, keeps the front."""
    copy_ns: Positive
    """What each byte of a question or an answer takes more."""
    merge_ns: Positive
    """An answer merged with the others of its query (`index.merge`)."""
    crowd_ms: Positive
    """What shards on one machine take longer once there are more of them than cores: about a turn of the scheduler."""

    def scan_ms(self, numbers: float, batch: float, together: int = 1) -> float:
        """Return how long a shard of `numbers` takes for a batch, where `together` of its size share this machine.

        They share cores and memory: all have answered when all of their work is done at the rate of the machine. Between two
        measured batch sizes it is a straight line.
        """
        if together == 1:
            return numbers * self._at(self.all_scan_ns, batch) * 1e-6 + self._at(self.all_call_ms, batch)
        busy = min(self.cores, together)  # cores at work, a shard's thread on each
        rate = max(self._at(self.one_scan_ns, batch) / busy, self._at(self.all_scan_ns, batch) if busy == self.cores else 0.0)
        call = self._at(self.one_call_ms, batch) * max(1.0, together / self.cores)
        crowd = self.crowd_ms if together > self.cores else 0.0
        return together * numbers * rate * 1e-6 + call + crowd

    def scaled(self, cores: int | None, memory_gib: float | None, read_gb_s: float | None) -> Machine:
        """Return a machine of the same cores, more or fewer, with another memory: nobody measured it.

        Scanning is divided by the cores, and cannot be faster than the copy that is read comes from memory.
        """
        if cores is memory_gib is read_gb_s is None:
            return self
        cores, read_gb_s = cores or self.cores, read_gb_s or self.read_gb_s * (cores or self.cores) / self.cores
        fastest = [copy_bytes(batch) / read_gb_s for batch in self.batches]
        scans = tuple(max(ns * self.cores / cores, least) for ns, least in zip(self.all_scan_ns, fastest, strict=True))
        memory_gib = memory_gib or self.memory_gib * cores / self.cores
        about = f"imagined: {cores} cores, {memory_gib:g} GiB, {read_gb_s:g} GB/s, scaled from {self.about}"
        changes = {"about": about, "cores": cores, "memory_gib": memory_gib, "read_gb_s": read_gb_s, "all_scan_ns": scans}
        return self.model_copy(update=changes)

    def _at(self, values: tuple[float, ...], batch: float) -> float:
        return float(np.interp(batch, self.batches, values))


def copy_bytes(batch: int) -> int:
    """Return the bytes of a number that a scan reads: of the int8 copy for up to four queries, else of the int16 one."""
    return 1 if batch <= 4 else 2


def measured() -> Path:
    """Return where the constants of this machine are kept."""
    return cache_folder() / SHIPPED


def read(path: Path | None) -> Machine:
    """Return the constants in a file: by default those measured here, else those that dexml brings, of another machine."""
    if path is None and not measured().exists():
        return Machine.model_validate_json(resources.files("index.planning").joinpath(SHIPPED).read_text(encoding="utf-8"))
    path = path or measured()
    try:
        return Machine.model_validate_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"--machine: {path} does not exist; `dexml plan --measure` writes one") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--machine: {path} cannot be read ({error})") from None
    except ValidationError as error:
        first = error.errors()[0]
        raise InputError(f"--machine: {path}: {'.'.join(map(str, first['loc'])) or 'not JSON'}: {first['msg']}") from None
