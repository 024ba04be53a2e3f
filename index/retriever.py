"""THE query path: encode → search → rerank. The service and the evaluation both go through it and through nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from dexml.types import LabelTable, TopK


@dataclass(frozen=True, eq=False)
class Found:
    """Answers for B queries: `topk` (B, K), `probabilities` float32 (B, K) nested lists come from the service.

    `normalizer` names what the probabilities sum to one over: "topk" (the candidates) or "all" (every label).
    `seconds` has the keys encode, retrieve, rescore; `tokens` (B) counts what the encoder read, `truncated` (B) says
    whether it had to stop early.
    """

    topk: TopK
    normalizer: str
    temperature: float
    seconds: dict[str, float] = field(default_factory=dict)
    tokens: tuple[int, ...] = ()
    truncated: tuple[bool, ...] = ()
