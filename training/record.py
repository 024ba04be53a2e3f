"""What a run leaves in its folder besides the bundle: run.json, history.jsonl, trackers' files, evaluations, report.html."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dexml.errors import InputError
from training import provenance
from training.faults import FILE as FAULT
from training.history import History
from training.stability import Watch
from training.trackers import FOLDER, Trackers

if TYPE_CHECKING:
    from training.config import Config
    from training.run import Progress, Run

FILE = "run.json"
EVALUATIONS = "evaluations"


class Record:
    """The run in OUT, as one starts it, or goes on with it `after` the (phase, step) of a checkpoint.

    `data` says what was read. run.json is written anew at every turn, so that it tells of a run that was killed as well.
    """

    def __init__(
        self, config: Config, trackers: tuple[str, ...], data: Mapping[str, Any], after: tuple[int, int] | None = None
    ) -> None:
        self.config = config
        self.trackers = trackers
        self.after = after
        self._began = time.monotonic()
        before = {} if after is None else read(config.out) or {}
        if after is None:
            clear(config.out)
        self.session: dict[str, Any] = {"started": _now(), "after": after, "commit": provenance.commit(), "seconds": {}}
        self.facts: dict[str, Any] = {
            "name": config.name,
            "created": before.get("created", _now()),
            "finished": False,
            "seed": config.seed,
            "config": config.model_dump(mode="json"),
            **provenance.facts(),
            "machine": provenance.machine(),
            "data": dict(data),
            "phases": before.get("phases", {}),
            "sessions": [*before.get("sessions", []), self.session],
        }
        self._write()

    def spent(self, what: str, seconds: float) -> None:
        """Count seconds as spent on `what`."""
        spent = self.session["seconds"]
        spent[what] = spent.get(what, 0.0) + seconds

    @contextmanager
    def timed(self, what: str) -> Iterator[None]:
        """Count the seconds of what is done inside as `what`."""
        began = time.monotonic()
        yield
        self.spent(what, time.monotonic() - began)

    @contextmanager
    def told(self, run: Run, memory: str, warn: Callable[[str], None]) -> Iterator[Callable[[Progress], None]]:
        """Write down what a phase is about to do; what is yielded takes its progress to the history and the trackers."""
        self.facts["phases"][str(run.phase)] = {
            "what": run.method.describe(),
            "memory": memory,
            "training rows": len(run.train),
            "watched rows": 0 if run.validation is None else len(run.validation),
            "trained labels": len(run.seen),
            "trained parameters": sum(parameter.numel() for parameter in run.method.trained.values()),
            "dimension": run.model.dimension,
            "steps": run.steps,
        }
        self._write()
        after = None if self.after is None and run.phase == 1 else (run.phase, run.step)
        history = History(self.config.out, after)
        watch = Watch(self.config, warn)
        trackers = Trackers(self.trackers, self.config.out, self.config.name, run.phase, run.about, run.step, warn)

        def report(now: Progress) -> None:
            history.write(now)
            trackers.write(now)
            watch(now)
            self.spent("training", now.step_seconds)
            self.spent("validation", now.validation_seconds or 0.0)

        try:
            yield report
            if run.validation is not None:
                self.facts["phases"][str(run.phase)]["best epoch"] = run.best_epoch
            if notes := run.method.notes(run):
                self.facts["phases"][str(run.phase)]["tower"] = "; ".join(notes)
                for note in notes:
                    warn(note)
        finally:
            history.close()
            trackers.close()
            with suppress(InputError):  # a full disk has been told by whoever met it first
                self._write()

    def finish(self, finished: bool, fingerprint: str) -> None:
        """Write down how it ended, and of which run the bundle is."""
        self.facts.update(finished=finished, fingerprint=fingerprint)
        self._write()

    def _write(self) -> None:
        self.session["seconds"]["total"] = time.monotonic() - self._began
        write_json(self.config.out / FILE, self.facts)


def clear(out: Path) -> None:
    """Remove what an earlier run left that a new one would be mistaken for; its bundle stays until there is a new one."""
    for name in (EVALUATIONS, FOLDER):
        shutil.rmtree(out / name, ignore_errors=True)
    for name in (FAULT, "report.html"):
        (out / name).unlink(missing_ok=True)


def read(out: Path) -> dict[str, Any] | None:
    """Return what run.json says, or None where there is none. Raises InputError when it is damaged."""
    path = out / FILE
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"{path}: damaged ({error})") from None
    if not isinstance(facts, dict):
        raise InputError(f"{path}: damaged (an object is needed)")
    return facts


def evaluated(bundle: Path, fingerprint: str, split: str, document: Mapping[str, Any]) -> Path | None:
    """Keep the figures of a split beside the bundle of the run that made it; return the run's folder, or None without one."""
    out = bundle.parent
    facts = read(out)
    if facts is None or facts.get("fingerprint") != fingerprint:
        return None
    write_json(out / EVALUATIONS / f"{split}.json", {"created": _now(), **document})
    return out


def answers_of(out: Path, split: str) -> Path:
    """Return where a run's answers to a split are kept beside its figures, as `dexml evaluate --scores-out` writes them."""
    return out / EVALUATIONS / f"{split}.npz"


def evaluations(out: Path) -> dict[str, dict[str, Any]]:
    """Return the figures of each split that was measured, "test" first."""
    found = {}
    for path in sorted((out / EVALUATIONS).glob("*.json"), key=lambda path: (path.stem != "test", path.stem)):
        try:
            found[path.stem] = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
            raise InputError(f"{path}: damaged ({error})") from None
    return found


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write JSON whole, or not at all. Raises InputError when it cannot be written."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a file whole, or not at all. Raises InputError when it cannot be written."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch.write_text(text, encoding="utf-8")
        os.replace(scratch, path)
    except OSError as error:
        scratch.unlink(missing_ok=True)
        raise InputError(f"{path} cannot be written: {error.strerror or error}") from None


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
