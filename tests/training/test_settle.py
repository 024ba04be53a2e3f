"""What "auto" becomes: by the size of the data, and said."""

from __future__ import annotations

from pathlib import Path

import pytest

from dexml.config import load
from dexml.errors import InputError
from training.config import Config, check, settle

CPU = Path(__file__).parents[2] / "training" / "configs" / "cpu.toml"


def read(*settings: str) -> Config:
    return load(Config, CPU, ["data.path=x", *settings])


def test_short_texts_are_read_whole_by_the_transformer():
    config, said = settle(read(), 1000, ["a few words"] * 5000)
    assert (config.encoder.name, config.encoder.options, config.tower.name) == ("joint", {}, "summed")
    assert "first 254 tokens" in said
    check(config)


def test_of_many_long_texts_the_transformer_reads_the_start():
    config, said = settle(read(), 70_000, [" ".join(["word"] * 100)] * 40_000)
    assert config.encoder.name == "joint"
    assert config.encoder.options == {"dense_tokens": 32}
    assert "first 32 tokens" in said
    check(config)


def test_too_many_texts_are_left_to_the_bag():
    config, said = settle(read(), 10**6, [" ".join(["word"] * 20)] * 200_000)
    assert (config.encoder.name, config.tower.name) == ("bag", "tokens")
    assert "too many for a transformer" in said
    check(config)


def test_the_choice_does_not_depend_on_the_order_of_the_texts():
    texts = ["one", " ".join(["word"] * 300)] * 6000
    assert settle(read(), 10, texts)[0] == settle(read(), 10, texts[::-1])[0]


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("encoder.name=bag", "encoder and tower are both 'auto'"),
        ("tower.name=summed", "encoder and tower are both 'auto'"),
        ("encoder.bigrams=false", "no other option"),
        ("finetune.train=full", "name the encoder and the tower to train"),
        ("loss.name=sofmax", "softmax"),
        ("training.patience=0", "patience"),
    ],
)
def test_what_does_not_go_with_auto_is_refused(setting, message):
    with pytest.raises(InputError, match=message):
        check(read(setting))


def test_what_is_set_stays():
    config, _ = settle(read("training.epochs=5", "training.batch=7", "loss.temperature=0.1"), 100, ["text"])
    assert (config.training.epochs, config.training.batch, config.loss.options["temperature"]) == (5, 7, 0.1)
