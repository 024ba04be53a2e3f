"""One FAISS per machine, and the reason for every choice."""

from __future__ import annotations

from importlib import metadata

import pytest

from dexml import device
from dexml.errors import InputError


def pretend(monkeypatch: pytest.MonkeyPatch, *installed: str) -> None:
    """Let the package metadata name `installed`: two FAISS wheels cannot really be installed side by side."""

    def version(name: str) -> str:
        if name in installed:
            return "1"
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", version)


def test_two_faiss_wheels_stop_with_the_command_that_mends_it(monkeypatch: pytest.MonkeyPatch):
    pretend(monkeypatch, "faiss-cpu", "faiss-gpu")
    with pytest.raises(InputError, match="pip uninstall -y faiss-cpu faiss-gpu"):
        device.import_faiss()


def test_no_faiss_wheel_says_what_to_install_and_the_exact_index_is_the_default(monkeypatch: pytest.MonkeyPatch):
    from index import default_index

    pretend(monkeypatch)
    assert default_index() == "exact"
    with pytest.raises(InputError, match=r"pip install 'dexml\[cpu\]'"):
        device.import_faiss()
    pretend(monkeypatch, "faiss-cpu")
    for fast, expected in ((True, "exact"), (False, "faiss")):
        monkeypatch.setattr("dexml.kernels.instructions.has_int16_products", lambda fast=fast: fast)
        assert default_index() == expected
    pretend(monkeypatch, "faiss-gpu")
    assert device.faiss_wheel() == "faiss-gpu" and default_index() == "faiss"
