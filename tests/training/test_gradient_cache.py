"""Gradient caching is the plain gradient, dropout and all, whatever the chunk; and nothing it draws is drawn twice."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from dexml.encoders.transformer import TransformerEncoder
from dexml.losses import LOSSES
from dexml.types import Positives
from training.gradient_cache import Chunk, Texts, cached_backward, rows_of

CPU = torch.device("cpu")
QUERIES = [
    "how to do sorting",
    "fast fourier transform of a signal",
    "a",
    "matrices with few entries and then strings",
    "images",
]
LABELS = ["sorting and ordering arrays", "signal", "value decomposition", "text", "regression by least squares", "clustering"]
POSITIVES = Positives.from_rows([[0], [1, 4], [2], [0, 3, 5], []], 6)


@pytest.fixture
def encoder(tiny_transformer: Path) -> TransformerEncoder:
    built = TransformerEncoder(model=str(tiny_transformer))
    built.module.double().train()
    return built


def sides(encoder: TransformerEncoder, budget: int) -> list[list[Chunk]]:
    return [Texts(encoder, texts, budget).chunks(np.arange(len(texts))) for texts in (QUERIES, LABELS)]


def encode(encoder: TransformerEncoder) -> Callable[[Chunk], Tensor]:
    return lambda chunk: encoder.rows(chunk.tokens)


def head(queries: Tensor, labels: Tensor) -> Tensor:
    loss = LOSSES.build("decoupled_softmax", {"positives": "one"})  # draws random numbers of its own
    return loss(queries, labels, POSITIVES)


def gradients(encoder: TransformerEncoder) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in encoder.module.named_parameters() if p.grad is not None}


def plain_backward(encoder: TransformerEncoder, chunked: list[list[Chunk]]) -> Tensor:
    """Return the loss with the whole graph kept."""
    rows = []
    for chunks in chunked:
        places = torch.cat([chunk.places for chunk in chunks])
        rows.append(torch.cat([encoder.rows(chunk.tokens) for chunk in chunks])[torch.argsort(places)])
    loss = head(*rows)
    loss.backward()
    return loss.detach()


@pytest.mark.parametrize("budget", [1, 12, 1000])
def test_the_gradient_is_the_plain_one_with_dropout_on(encoder: TransformerEncoder, budget: int):
    chunked = sides(encoder, budget)
    torch.manual_seed(3)
    expected = plain_backward(encoder, chunked)
    of_plain, after_plain = gradients(encoder), torch.rand(3)
    encoder.module.zero_grad(set_to_none=True)

    torch.manual_seed(3)
    loss = cached_backward(chunked, encode(encoder), head, CPU)
    of_cached = gradients(encoder)
    assert torch.equal(torch.rand(3), after_plain), "the generator stands where the plain step leaves it"
    assert loss.dtype == torch.float64
    assert float(loss) == pytest.approx(float(expected), abs=1e-12)
    assert of_cached.keys() == of_plain.keys()
    for name, value in of_plain.items():
        assert torch.allclose(of_cached[name], value, rtol=0, atol=1e-10), name
    assert max(value.abs().max() for value in of_plain.values()) > 1e-3, "there is a gradient to be equal"

    torch.manual_seed(4)
    assert float(cached_backward(chunked, encode(encoder), head, CPU)) != float(loss), "dropout is on"


def test_without_dropout_the_chunk_changes_nothing(encoder: TransformerEncoder):
    encoder.module.eval()
    found = []
    for budget in (1, 7, 20, 1000):
        encoder.module.zero_grad(set_to_none=True)
        torch.manual_seed(5)
        loss = cached_backward(sides(encoder, budget), encode(encoder), head, CPU)
        found.append((float(loss), gradients(encoder)))
    for loss, of_chunked in found[1:]:
        assert loss == pytest.approx(found[0][0], abs=1e-12)
        for name, value in found[0][1].items():
            assert torch.allclose(of_chunked[name], value, rtol=0, atol=1e-10), name


def test_chunks_hold_every_text_once_and_keep_to_the_budget(encoder: TransformerEncoder):
    texts = Texts(encoder, QUERIES * 4, 24)
    numbers = np.array([3, 3, 0, 19, 7, 11, 2])
    chunks = texts.chunks(numbers)
    assert sorted(int(place) for chunk in chunks for place in chunk.places) == list(range(len(numbers)))
    assert len(chunks) > 1
    widths = [chunk.tokens["input_ids"].shape[1] for chunk in chunks]
    assert widths == sorted(widths, reverse=True)
    for chunk in chunks:
        assert chunk.tokens["input_ids"].numel() <= 24
    alone = Texts(encoder, QUERIES, 1).chunks(np.arange(5))
    assert [len(chunk.places) for chunk in alone] == [1] * 5, "a text longer than the budget is a chunk of its own"


def test_rows_stand_in_their_places(encoder: TransformerEncoder):
    encoder.module.eval()
    rows = rows_of(Texts(encoder, QUERIES, 12).chunks(np.array([4, 0, 3])), encode(encoder), CPU)
    expected = torch.cat([encoder.rows(encoder.tokenize([QUERIES[number]])) for number in (4, 0, 3)])
    assert torch.allclose(rows, expected, atol=1e-12)


def test_lengths_are_what_the_network_reads(encoder: TransformerEncoder):
    long = "sorting " * 100
    lengths = encoder.lengths(["sorting", "sorting arrays", long])
    assert lengths.tolist() == [3, 4, 32]
    assert [encoder.tokenize([text])["input_ids"].shape[1] for text in ("sorting", "sorting arrays", long)] == lengths.tolist()
