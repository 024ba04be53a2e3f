"""`dexml search` and `dexml info`."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import click

from dexml.errors import InputError


@click.command()
@click.argument("bundle")
@click.argument("text")
@click.option("-k", "k", type=int, default=5, show_default=True, help="How many labels.")
@click.option("--index", help="Another index than the bundle's own: faiss or exact.")
@click.option("--why", is_flag=True, help="With the training queries that speak for each label, where the bundle keeps them.")
@click.option(
    "--calibrated", is_flag=True, help="Probability: how often labels with such a score are right (`dexml calibrate`)."
)
@click.option(
    "--min-precision", type=click.FloatRange(0, 1), help="Only labels so probable that this share is right; calibrated."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def search(
    bundle: str,
    text: str,
    k: int,
    index: str | None,
    why: bool,
    calibrated: bool,
    min_precision: float | None,
    as_json: bool,
) -> None:
    """Print the labels of BUNDLE that fit TEXT best, with score and probability over all labels.

    BUNDLE is a folder, or the address of a service, as http://127.0.0.1:8080; its key is read from DEXML_API_KEY.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    if bundle.startswith(("http://", "https://")):
        if index is not None:
            raise click.UsageError("--index goes with a folder; a service has its own")
        known, answers = _ask_service(bundle, text, k, why, calibrated, min_precision)
    else:
        known, answers = _ask_folder(Path(bundle), text, k, index, why, calibrated, min_precision)
    if not known:
        click.echo("no word of this text is known to the model", err=True)
    if as_json:
        click.echo(json.dumps(answers, ensure_ascii=False, indent=1))
        return
    table = Table(box=None, pad_edge=False)
    table.add_column("score", justify="right")
    table.add_column("probability", justify="right")
    table.add_column("id", style="bold")
    table.add_column("text", style="dim")
    for answer in answers:
        table.add_row(
            f"{answer['score']:.3f}", f"{answer['probability']:.1%}", Text(str(answer["id"])), Text(str(answer["text"]))
        )
        for reason in answer.get("why", []):
            table.add_row("", f"{reason['similarity']:.3f}", "", Text(f"← {reason['text']}"))
    Console(highlight=False).print(table)


def _ask_folder(
    bundle: Path, text: str, k: int, index: str | None, why: bool, calibrated: bool, min_precision: float | None
) -> tuple[bool, list[dict[str, Any]]]:
    """Return whether the text is known to the model, and the answers in JSON's terms."""
    from index.retriever import Retriever

    retriever = Retriever.open(bundle, index)
    asked = calibrated or min_precision is not None
    found = retriever.search([text], k, normalize="calibrated" if asked else "all", why=why)
    least = 0.0
    if min_precision is not None and (kept := found.calibration) is not None:
        if (threshold := kept.threshold(min_precision)) is None:
            raise InputError(f"--min-precision: at most {kept.highest:g} can be promised, got {min_precision:g}")
        least = threshold
    probabilities = found.probabilities()
    assert probabilities is not None
    return found.known[0], [
        {
            "id": found.labels.ids[number],
            "score": round(float(found.topk.scores[0, place]), 6),
            "probability": round(float(probabilities[0, place]), 6),
            "text": found.labels.texts[number],
            **({"why": [reason._asdict() for reason in found.why[0][place]]} if why else {}),
        }
        for place, number in enumerate(found.topk.ids[0].tolist())
        if number >= 0 and probabilities[0, place] >= least
    ]


def _ask_service(
    url: str, text: str, k: int, why: bool, calibrated: bool, min_precision: float | None
) -> tuple[bool, list[dict[str, Any]]]:
    """Return the same of a running service."""
    try:
        from dexml.client import Client, DexmlError
        from dexml.client.calls import SearchOptions
    except ModuleNotFoundError as error:
        raise InputError(str(error)) from None
    try:
        with Client(url) as client:
            include: list[Literal["text", "probability", "why"]] = ["text", "probability"]
            include += ["why"] if why else []
            options: SearchOptions = {"top_k": k, "include": include, "normalize": "calibrated" if calibrated else "all"}
            if min_precision is not None:
                options |= {"normalize": "calibrated", "min_precision": min_precision}
            result = client.search(text, **options)[0]
    except (DexmlError, ValueError) as error:
        raise InputError(f"{url}: {error}") from None
    return result.known, [
        {
            "id": label.id,
            "score": round(label.score, 6),
            "probability": None if label.probability is None else round(label.probability, 6),
            "text": label.text,
            **({"why": [asdict(reason) for reason in label.why or ()]} if why else {}),
        }
        for label in result.labels
    ]


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path), required=False)
@click.option("--kernels", is_flag=True, help="Say which kernel backends serve this machine, and their measured crossovers.")
@click.option("--measure", is_flag=True, help="With --kernels: measure the crossovers anew.")
def info(bundle: Path | None, kernels: bool, measure: bool) -> None:
    """Say what is in BUNDLE and what this machine runs it with, as JSON; checks every file on the way."""
    if measure and not kernels:
        raise click.UsageError("--measure goes with --kernels")
    if (bundle is None) != kernels:
        raise click.UsageError("name a bundle, or ask for --kernels")
    if kernels:
        click.echo(json.dumps(_kernels(measure), indent=1))
        return
    from index.retriever import Retriever

    assert bundle is not None
    retriever = Retriever.open(bundle)
    tower = {"name": retriever.model.tower_name, "notes": retriever.model.tower.notes()}
    made = retriever.bundle.manifest.training.model_dump(mode="json")
    click.echo(json.dumps({**retriever.describe(), "tower": tower, "training": made}, indent=1))


def _kernels(measure: bool) -> dict[str, object]:
    from dexml.kernels import KERNELS, calibration
    from dexml.types import Problem

    problems = {device: Problem(device=device) for device in ("cpu", "cuda")}
    backends = {
        name: {device: KERNELS[name].unsupported(problem) or "ready" for device, problem in problems.items()}
        for name in KERNELS
    }
    crossovers = calibration.measure() if measure else calibration.crossovers()
    return {"backends": backends, "crossovers": crossovers.model_dump(), "kept_in": str(calibration.path())}
