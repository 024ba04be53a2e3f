"""From what a retriever found to what a client reads."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from index.diversity import Diversity
from index.retriever import Found
from serve.calibrated import check_available, least_probable
from serve.errors import Fault, Problem
from serve.schemas import SearchRequest
from serve.settings import Settings
from serve.tickets import Ask, Serving


def ask_of(request: SearchRequest, serving: Serving, settings: Settings) -> Ask:
    """Return the work of a valid request. Raises Problem for what only the loaded model can tell."""
    served = serving.store.name
    if request.index_version not in (None, served, served.partition("+")[0]):
        raise Problem("not_found", f"the version being served is {served}")
    if request.exact and not serving.exact:
        raise Problem("exact_unavailable", faults=[Fault("/exact", "exact_unavailable", "must be false for this index")])
    why = "why" in request.include
    if why and not serving.retriever.remembered:
        message = 'must not hold "why": this bundle keeps no training queries that may be shown'
        raise Problem("why_unavailable", faults=[Fault("/include", "why_unavailable", message)])
    if request.allow_partial and (request.normalize == "calibrated" or not serving.retriever.divisible):
        message = "must be false where probabilities are calibrated or training queries are heard: both depend on all labels"
        raise Problem("partial_unavailable", faults=[Fault("/allow_partial", "partial_unavailable", message)])
    check_available(request.normalize, request.min_precision, serving.retriever.calibration)
    limit = request.candidates or settings.max_candidates
    k = min(request.top_k + len(set(request.exclude_ids)), limit, len(serving.store.live.labels))
    return Ask(
        max(k, 1),
        tuple(request.queries or ()),
        None if request.embeddings is None else unit_rows(request.embeddings, serving.dimension),
        request.candidates,
        request.temperature,
        request.normalize,
        diversity_of(request),
        why,
        request.allow_partial,
    )


def diversity_of(request: SearchRequest) -> Diversity | None:
    """Return what is diversified by: labels that a client is not to see must push none away that it sees."""
    if request.diversity is None:
        return None
    return Diversity(request.diversity, frozenset(request.exclude_ids), floor_of(request))


def floor_of(request: SearchRequest) -> float:
    """Return the least score of an answer."""
    return -math.inf if request.min_score is None else request.min_score


def unit_rows(rows: Sequence[Sequence[float]], dimension: int) -> Tensor:
    """Return foreign vectors as float32 unit rows (B, D), the form every tower gives. Raises Problem for other widths and 0."""
    for number, row in enumerate(rows):
        if len(row) != dimension:
            message = f"must have {dimension} numbers, got {len(row)}"
            raise Problem("dimension_mismatch", faults=[Fault(f"/embeddings/{number}", "dimension_mismatch", message)])
    dense = torch.tensor(rows, dtype=torch.float64)  # (B, D)
    largest = dense.abs().amax(dim=1, keepdim=True)
    for number in torch.nonzero(largest[:, 0] == 0)[:, 0].tolist():
        raise Problem("zero_vector", faults=[Fault(f"/embeddings/{number}", "zero_vector", "must not be all zeros")])
    dense = dense / largest  # squares of 1e200 would overflow
    unit: Tensor = dense / torch.linalg.vector_norm(dense, dim=1, keepdim=True)
    return unit.float()


def results_of(request: SearchRequest, found: Found) -> list[dict[str, Any]]:
    """Return the `results` of the response (SERVING §1.2): no missing labels, no number that is not finite."""
    if not request.truncate:
        for number, cut in enumerate(found.truncated):
            if cut:
                message = f"has {found.tokens[number]} tokens, more than the model reads"
                raise Problem("too_many_tokens", faults=[Fault(f"/queries/{number}", "too_many_tokens", message)])
    wants_text, wants_chance = "text" in request.include, "probability" in request.include
    least = least_probable(found.calibration, request.min_precision)
    probabilities = found.probabilities() if least > 0 or wants_chance else None
    chances = None if probabilities is None else probabilities.tolist()
    ids, scores = found.topk.ids.tolist(), found.topk.scores.tolist()
    excluded = set(request.exclude_ids)
    ranks = None if found.ranks is None else found.ranks.tolist()
    floor = floor_of(request)
    names, texts = found.labels.ids, found.labels.texts
    results = []
    for row, (numbers, values) in enumerate(zip(ids, scores, strict=True)):
        labels: list[dict[str, Any]] = []
        for place, (number, score) in enumerate(zip(numbers, values, strict=True)):
            if number < 0 or not math.isfinite(score) or score < floor or names[number] in excluded:
                continue
            if least > 0 and chances is not None and chances[row][place] < least:
                continue
            if len(labels) == request.top_k:
                break
            labels.append(
                {
                    "id": names[number],
                    "score": round(score, 7),
                    "rank_score": None if ranks is None else finite(ranks[row][place]),
                    "probability": finite(chances[row][place]) if chances is not None and wants_chance else None,
                    "text": texts[number] if wants_text else None,
                    "why": reasons_of(found, row, place),
                }
            )
        results.append(
            {
                "query_index": row,
                "returned": len(labels),
                "truncated": bool(found.truncated[row]) if found.truncated else False,
                "known": is_known(found, row),
                "exact": found.exact,
                "normalizer": normalizer_of(found, row),
                "labels": labels,
            }
        )
    return results


def reasons_of(found: Found, row: int, place: int) -> list[dict[str, Any]] | None:
    """Return the training queries that speak for a label, the nearest first; None where they were not asked for."""
    if not found.why:
        return None
    return [{"text": text, "similarity": round(cosine, 7)} for text, cosine in found.why[row][place]]


def normalizer_of(found: Found, row: int) -> dict[str, Any]:
    """Return what the probabilities of one row sum to one over; over nothing where the text is not known."""
    kind = found.normalizer
    if kind in ("none", "sigmoid", "calibrated") or (kind == "all" and found.missing) or not is_known(found, row):
        return {"kind": kind, "log_z": None, "labels": None}
    if found.topk.log_z is None:
        return {"kind": kind, "log_z": None, "labels": None}
    count = found.rescored[row] if kind == "topk" else found.size
    return {"kind": kind, "log_z": finite(float(found.topk.log_z[row])), "labels": count}


def is_known(found: Found, row: int) -> bool:
    """Return whether the model knows any word of the text of a row."""
    return found.known[row] if found.known else True


def finite(value: float) -> float | None:
    """Return the number as JSON may carry it, seven digits long; None for what JSON has no word for."""
    return float(f"{value:.7g}") if math.isfinite(value) else None
