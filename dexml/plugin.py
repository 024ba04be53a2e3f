"""Lets `SentenceTransformer(path)` open our encoder folders without `trust_remote_code` (docs/adr/0003).

sentence-transformers loads module classes from its own namespace only, unless it may run code found in the model folder.
Our class is installed code, so it is offered under a name in that namespace, `sentence_transformers.dexml`, by an import
hook. torch calls `register` when it is imported (entry point group "torch.backends"), so dexml need only be installed.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

ALIAS = "sentence_transformers.dexml"


class _Alias(MetaPathFinder, Loader):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return ModuleSpec(fullname, self) if fullname == ALIAS else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = ModuleType(spec.name)
        module.DualEncoderModule = importlib.import_module(  # type: ignore[attr-defined]
            "dexml.sentence_module"
        ).DualEncoderModule
        return module

    def exec_module(self, module: ModuleType) -> None:
        return None


def register() -> None:
    """Install the import hook, once."""
    if not any(isinstance(finder, _Alias) for finder in sys.meta_path):
        sys.meta_path.append(_Alias())
