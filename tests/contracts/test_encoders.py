"""Every row of ENCODERS: the same text gives the same features in any batch; what was saved reads back the same."""

from __future__ import annotations

import os
from importlib import metadata

import pytest
import torch

from dexml.encoders import ENCODERS, Encoder
from dexml.encoders.minilm import PACKAGE
from dexml.errors import InputError
from dexml.types import Features

TEXTS = ["Sorting arrays quickly.", "the fast Fourier transform", "Sorting, sorting and arrays!", "naïve café — ünïcode ☃", "a"]


def has_minilm() -> bool:
    try:
        metadata.version(PACKAGE)
    except metadata.PackageNotFoundError:
        return False
    return True


# CI installs it: there, a missing package must fail and not vanish.
pytestmark = pytest.mark.skipif(
    not has_minilm() and "CI" not in os.environ, reason=f"{PACKAGE} is not installed, and tests use no network"
)


@pytest.fixture(scope="module", params=list(ENCODERS))
def encoder(request: pytest.FixtureRequest) -> Encoder:
    built = ENCODERS.build(request.param)
    built.fit([*TEXTS, "sorting arrays and matrices"])
    return built


def same(one: Features, other: Features) -> bool:
    if (one.bag is None) != (other.bag is None) or (one.dense is None) != (other.dense is None):
        return False
    if one.bag is not None and other.bag is not None:
        pairs = [
            (one.bag.offsets, other.bag.offsets),
            (one.bag.features, other.bag.features),
            (one.bag.weights, other.bag.weights),
        ]
        if not all(torch.equal(a, b) for a, b in pairs):
            return False
    return one.dense is None or torch.allclose(one.dense, other.dense, atol=1e-6)


def test_a_text_has_the_same_features_alone_and_in_a_batch(encoder: Encoder):
    together = encoder.encode(TEXTS)
    for number, text in enumerate(TEXTS):
        assert same(encoder.encode([text]), together.take(torch.tensor([number])))


def test_no_texts_and_a_very_long_text_are_fine(encoder: Encoder):
    assert len(encoder.encode([])) == 0
    features = encoder.encode(["arrays " * 5000])
    assert features.tokens is not None
    assert features.tokens[0] >= 5000
    assert encoder.max_tokens < 5000


def test_tokens_past_the_limit_change_nothing(encoder: Encoder):
    kept = " ".join(["arrays"] * encoder.max_tokens)
    assert same(encoder.encode([f"{kept} sorting transform"]), encoder.encode([f"{kept} matrices fast"]))


def test_save_and_load(encoder: Encoder, tmp_path):
    encoder.save(tmp_path)
    name = next(name for name in ENCODERS if ENCODERS[name] is type(encoder))
    again = ENCODERS.build(name)
    again.load(tmp_path)
    assert again.width() == encoder.width()
    assert same(again.encode(TEXTS), encoder.encode(TEXTS))


def test_bag_rows_have_length_one_and_the_weights_of_the_formula():
    import math

    bag = ENCODERS.build("bag")
    texts = ["red red blue", "red green", "green tea leaves", "green tea leaves"]
    bag.fit(texts)
    features = bag.encode(["red red blue"]).bag
    assert features is not None
    assert features.weights.square().sum().item() == pytest.approx(1)
    red, blue = math.sqrt(2) * math.log(5 / 3), math.log(5 / 2)
    expected = sorted([red / math.hypot(red, blue), blue / math.hypot(red, blue)])
    assert sorted(features.weights.tolist()) == pytest.approx(expected), "'red red' occurs in one text: no bigram yet"
    assert len(bag.encode(["green tea leaves"]).bag.features) == 5, "three words and two bigrams seen twice"


def test_a_hub_model_without_a_revision_is_refused():
    with pytest.raises(InputError, match=r"needs encoder\.revision"):
        ENCODERS.build("transformer", {"model": "sentence-transformers/no-such-model"}).fit([])
