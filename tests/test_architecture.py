"""What the linters cannot hold: generic package names, file sizes, and what is imported by whom."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = ("dexml", "data", "index", "training", "serve")
SOURCES = [path for name in (*PACKAGES, "tests", "benchmarks") for path in (ROOT / name).rglob("*.py")]


def test_the_generic_packages_are_imported_by_module():
    """`import data` would take any folder of that name in the working directory; `from data.x import y` says what it means."""
    bare = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Import) and any(name.name in PACKAGES[1:] for name in node.names)
    ]
    assert bare == []


def test_no_file_is_two_files():
    long = {str(path.relative_to(ROOT)): count for path in SOURCES if (count := len(path.read_text().splitlines())) > 400}
    assert long == {}


def test_tests_have_no_packages_that_would_hide_ours():
    assert list((ROOT / "tests").rglob("__init__.py")) == []


def test_no_module_is_named_after_a_dependency():
    taken = {"faiss", "numba", "torch", "flask", "ray", "triton", "click", "rich", "numpy", "scipy"}
    assert [path for name in PACKAGES for path in (ROOT / name).rglob("*.py") if path.stem in taken] == []


def test_every_table_row_names_a_class_that_is_there():
    from data import FORMATS
    from dexml.distillation import DISTILLATIONS
    from dexml.encoders import ENCODERS
    from dexml.heads import HEADS
    from dexml.losses import LOSSES
    from dexml.towers import TOWERS
    from index import INDEXES
    from index.rerankers import RERANKERS
    from training.engines import ENGINES
    from training.exporters import EXPORTERS
    from training.optimizers import OPTIMIZERS

    tables = FORMATS, DISTILLATIONS, ENCODERS, LOSSES, HEADS, TOWERS, INDEXES, RERANKERS, EXPORTERS, ENGINES, OPTIMIZERS
    for table in tables:
        for name in table:
            assert (table[name].__doc__ or "").strip(), f"{table.kind} {name} has no docstring"
