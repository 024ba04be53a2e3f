"""The config of a training run. What is left "auto" is settled from the size of the data by `settle`, and said."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from annotated_types import Ge, Gt, Le, Lt
from pydantic import Field, model_validator

from dexml.config import Choice, Section
from dexml.encoders import ENCODERS
from dexml.errors import InputError
from dexml.losses import LOSSES
from dexml.metrics import DEFAULT_PROPENSITY
from dexml.towers import TOWERS
from index import INDEXES, default_index
from index.rerankers import RERANKERS
from training.optimizers import OPTIMIZERS

Auto = Literal["auto"]
AUTO = "auto"
SMALL = 8_000  # training rows; below, many passes in small batches pay (METHODS §3)
TEMPERATURE = 0.06  # chosen on validation rows of two sets
MARGIN = 0.2  # of the squared hinge, where the temperature is one; likewise, of one set
MAX_TOKENS = 254  # what MiniLM was trained to read
PIECES = 1.4  # word pieces of a word
AFFORDABLE = 1_500_000  # tokens that MiniLM reads in about three minutes on two cores


class DataSection(Section):
    """Where the data set is; `propensity` is (A, B) of the PSP metrics."""

    path: Path
    format: str = "auto"
    propensity: tuple[Annotated[float, Gt(0)], Annotated[float, Ge(0)]] = DEFAULT_PROPENSITY


class ValidationSection(Section):
    """Training rows held out to be watched, whole label sets at a time; 0 watches none.

    `refit` trains once more on all rows when the watched run is done: it doubles the time, and gives the rows and labels
    that were held out back to the model. "auto" refits small sets, where they are missed.
    """

    fraction: Annotated[float, Ge(0), Lt(1)] = 0.1
    max_rows: Annotated[int, Ge(1)] = 500
    refit: bool | Auto = "auto"


class TrainingSection(Section):
    """The optimisation: linear warm-up, linear decay to `final_rate` of each parameter's learning rate."""

    epochs: Annotated[int, Ge(1)] | Auto = "auto"
    batch: Annotated[int, Ge(1)] | Auto = "auto"
    rate_scale: Annotated[float, Gt(0)] | Auto = "auto"
    weight_decay: Annotated[float, Ge(0)] = 0.01
    warmup: Annotated[float, Ge(0), Le(1)] = 0.05
    final_rate: Annotated[float, Ge(0), Le(1)] = 0.02
    free_vectors: bool = True
    patience: Annotated[int, Ge(1)] | None = 3
    """Epochs without a better validation after which training stops, on the weights of the best; a refit stops there too."""
    checkpoint_seconds: Annotated[float, Gt(0)] = 120.0
    memory_gib: Annotated[float, Gt(0)] | Auto = "auto"
    """What the process may take, "auto" for what the machine has; a forecast before the first step refuses more."""
    timeout_seconds: Annotated[float, Gt(0)] = 300.0
    """How long a rank waits for another that is there and silent, such as the first while it validates or saves."""
    trackers: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] | Auto = "auto"
    """Who is told of every step; "auto" is TensorBoard where it is installed."""


class FinetuneSection(Section):
    """Training of the encoder itself, beside its tower: `train` all of it ("full"), scales and shifts ("ssf"), adapters of
    kernel features ("snnk"), or nothing.

    `rate` is its learning rate, "auto" by kind; its gradient is clipped to the norm `clip`. `chunk` tokens are encoded at a
    time, which sets the memory of a step. A step scores all labels; or those that are positives in its batch, up to
    `positives` of each query; or these and `per_query` hard negatives, drawn from each query's `depth` best wrong labels,
    which are mined anew every `mine_every` epochs; or instead, with negatives "graph", from labels that edges of the GraphML
    file `graph` join to its own (`dexml analyze labels`).
    """

    train: Literal["none", "full", "ssf", "snnk"] = "none"
    rate: Annotated[float, Gt(0)] | Auto = "auto"
    clip: Annotated[float, Gt(0)] = 1.0
    chunk: Annotated[int, Ge(1)] = 8192
    negatives: Literal["all", "in-batch", "mined", "graph"] = "all"
    graph: Path | None = None
    positives: Annotated[int, Ge(1)] = 8
    per_query: Annotated[int, Ge(1)] = 8
    depth: Annotated[int, Ge(1)] = 100
    mine_every: Annotated[int, Ge(1)] = 1
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["auto", "float32", "bfloat16"] = "auto"


class MemorySection(Section):
    """Training queries that the bundle keeps: none, `queries` of them, or "all"; with their `texts` where these may be shown.

    0 by default, and no texts: they may be private, and whoever may search would see them. Labels of the `neighbours` queries
    nearest to a query are lifted in its answer (`index.recall`): λ is `weight`, the softmax of their cosines at `temperature`.
    What is "auto" is chosen on validation rows.
    """

    queries: Annotated[int, Ge(0)] | Literal["all"] = 0
    texts: bool = False
    weight: Annotated[float, Ge(0)] | Auto = "auto"
    temperature: Annotated[float, Gt(0)] | Auto = "auto"
    neighbours: Annotated[int, Ge(1)] | Auto = "auto"


class LabelsSection(Section):
    """What stands for a label: its text's row and a free vector, both trained; or a row that stands still.

    "codes" are fixed vectors far from each other, for labels that have no text; with a `bundle`, labels that it has keep their
    rows there, and others get one more vector each. "bundle" keeps model and index of `bundle`, and tunes its queries alone.
    """

    rows: Literal["trained", "codes", "bundle"] = "trained"
    bundle: Path | None = None


class Config(Section):
    """One experiment."""

    name: str = "dexml"
    out: Path
    seed: Annotated[int, Ge(0), Le(2**63 - 1)] = 0
    examples: tuple[str, ...] = ()
    data: DataSection
    encoder: Choice = Choice(name="bag")
    tower: Choice = Choice(name="tokens")
    loss: Choice = Choice(name="decoupled_softmax")
    optimizer: Choice = Choice(name="adamw")
    labels: LabelsSection = Field(default_factory=LabelsSection)
    training: TrainingSection = Field(default_factory=TrainingSection)
    finetune: FinetuneSection = Field(default_factory=FinetuneSection)
    validation: ValidationSection = Field(default_factory=ValidationSection)
    index: Choice = Choice(name="auto")
    rerank: Choice = Choice(name="softmax")
    memory: MemorySection = Field(default_factory=MemorySection)

    @model_validator(mode="before")
    @classmethod
    def _default_names(cls, values: Any) -> Any:
        """Let a section set an option of the default row without naming the row."""
        if not isinstance(values, dict):
            return values
        for key, field in cls.model_fields.items():
            if isinstance(field.default, Choice) and isinstance(values.get(key), dict):
                values = {**values, key: {"name": field.default.name, **values[key]}}
        return values


def check(config: Config) -> None:
    """Look every name and option up in its table, before the work starts. Raises InputError for the first wrong one."""
    _check_labels(config)
    if config.encoder.name == AUTO or config.tower.name == AUTO:
        _check_auto(config)
        _check_rest(config)
        return
    ENCODERS.options(config.encoder.name, config.encoder.options)
    key, reader = _reader(config.tower)
    gives = ENCODERS[config.encoder.name].gives
    if not TOWERS[reader].reads <= gives:
        fitting = [name for name in TOWERS if TOWERS[name].reads <= gives]
        raise InputError(
            f"{key}: {reader!r} cannot read what the encoder {config.encoder.name!r} gives; "
            f"towers that can: {', '.join(fitting)}"
        )
    _check_finetune(config)
    _check_rest(config)


def _check_labels(config: Config) -> None:
    asked = config.labels
    if (asked.rows == "bundle") > (asked.bundle is not None) or (asked.rows == "trained" and asked.bundle is not None):
        needs = "a bundle is needed" if asked.bundle is None else "has no effect while labels.rows is 'trained'"
        raise InputError(f"labels.bundle: {needs}")
    if asked.rows != "trained" and config.finetune.train != "none":
        raise InputError(f"finetune.train: 'none' is needed with labels.rows = {asked.rows!r}: the encoder stays as it is")


def _reader(tower: Choice) -> tuple[str, str]:
    """Return the key and the name of the tower that reads the features: the one chosen, or the base behind it.

    Raises InputError for a wrong name or option of either.
    """
    key, name, options = "tower.name", tower.name, TOWERS.options(tower.name, tower.options)
    while "base" in options:
        key, name, options = "tower.base", options["base"], TOWERS.options(options["base"], options["base_options"] or {})
    return key, name


def _check_auto(config: Config) -> None:
    """Encoder and tower are settled together, by the size of the data; what is set by hand is set for one by name."""
    for key, choice in (("encoder", config.encoder), ("tower", config.tower)):
        if choice.name != AUTO or choice.options:
            raise InputError(f"{key}: with 'auto', encoder and tower are both 'auto' and have no other option")
    if config.finetune.train != "none":
        raise InputError("finetune.train: name the encoder and the tower to train; 'auto' is for frozen ones")


def _check_rest(config: Config) -> None:
    LOSSES.options(config.loss.name, config.loss.options)
    OPTIMIZERS.options(config.optimizer.name, config.optimizer.options)
    if config.index.name != "auto":
        INDEXES.options(config.index.name, config.index.options)
    RERANKERS.options(config.rerank.name, config.rerank.options)


def _check_finetune(config: Config) -> None:
    tuned = config.finetune
    if tuned.train == "none":
        if set_though_idle := sorted(tuned.model_fields_set - {"train"}):
            raise InputError(f"finetune.{set_though_idle[0]}: has no effect while finetune.train is 'none'")
        return
    if not ENCODERS[config.encoder.name].tunable:
        tunable = [name for name in ENCODERS if ENCODERS[name].tunable]
        raise InputError(
            f"finetune.train: the encoder {config.encoder.name!r} has no network to train; encoders that have one: "
            f"{', '.join(tunable)}"
        )
    if "dense" not in TOWERS[_reader(config.tower)[1]].reads:
        raise InputError(f"finetune.train: the tower {config.tower.name!r} does not read what the encoder's network makes")
    if (tuned.graph is not None) != (tuned.negatives == "graph"):
        raise InputError("finetune.graph: goes with finetune.negatives = 'graph', and that with a file")
    if tuned.depth < tuned.per_query:
        raise InputError(f"finetune.depth: {tuned.depth} labels mined are fewer than finetune.per_query, {tuned.per_query}")


def settle(config: Config, rows: int, texts: Iterable[str] = ()) -> tuple[Config, str]:
    """Return the config with every "auto" decided for `rows` training rows, and a line that says what was decided.

    `texts` are those that will be encoded, of training rows and labels: they decide about the encoder "auto".
    """
    if config.labels.rows == "bundle":
        from training.fixed import settle_model  # which builds on this module

        config, encoding = settle_model(config)
    else:
        config, encoding = _settle_encoder(config, texts)
    small = rows < SMALL
    decided = {
        "epochs": 12 if small else 3,
        "batch": min(256 if small else 512, rows),
        "rate_scale": 1.0 if small else 0.5,
    }
    training = config.training
    chosen = {key: value for key, value in decided.items() if getattr(training, key) == "auto"}
    training = training.model_copy(update=chosen)
    validation = config.validation
    if validation.refit == "auto":
        validation = validation.model_copy(update={"refit": small})
    loss = config.loss
    if "temperature" not in loss.options:
        loss = loss.with_options(temperature=MARGIN if loss.name == "squared_hinge" else TEMPERATURE)
    index = config.index
    if index.name == "auto":
        index = Choice(name=default_index()).with_options(**index.options)
    settled = config.model_copy(update={"training": training, "validation": validation, "loss": loss, "index": index})
    said = ", ".join(
        [*encoding]
        + [f"{key} {getattr(training, key)}" for key in decided]
        + [f"refit {str(validation.refit).lower()}", f"temperature {loss.options['temperature']}", f"index {index.name}"]
    )
    return settled, f"{said} (for {rows:,} training rows)"


def _settle_encoder(config: Config, texts: Iterable[str]) -> tuple[Config, list[str]]:
    """Decide about an encoder "auto": transformer and bag, where reading the texts' starts takes minutes, else the bag alone.

    Word pieces are guessed from words, so that nothing need be loaded.
    """
    if config.encoder.name != AUTO:
        return config, []
    lengths = np.array([1 + PIECES * len(text.split()) for text in texts])
    whole = _total(lengths, MAX_TOKENS)
    read = next((tokens for tokens in (MAX_TOKENS, 128, 96, 64, 48, 32, 24, 16) if _total(lengths, tokens) <= AFFORDABLE), None)
    if read is None:
        pair = {"encoder": Choice(name="bag"), "tower": Choice(name="tokens")}
        said = [f"encoder bag ({whole:,.0f} tokens are too many for a transformer on a CPU)"]
    else:
        encoder = Choice(name="joint")
        pair = {
            "encoder": encoder.with_options(dense_tokens=read) if read < MAX_TOKENS else encoder,
            "tower": Choice(name="summed"),
        }
        said = [f"encoder joint, whose transformer reads the first {read} tokens of a text"]
    return config.model_copy(update=pair), said


def _total(lengths: Any, tokens: int) -> float:
    return float(np.minimum(lengths, tokens).sum() + 2 * len(lengths))
