"""Rows as NumPy's own file, for whatever reads arrays; `dexml import --embeddings` reads them back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field

from training.exporters.base import Exporter, Source
from training.exporters.folder import ABOUT, labels_written, whole

ROWS = "embeddings.npy"


class NumpyFolder(Exporter):
    """A folder of embeddings.npy float32 (L, D), labels.jsonl in the same order, and about.json."""

    def __init__(self, *, out: Annotated[Path, Field(description="The folder to make.")]) -> None:
        self.out = out

    def export(self, source: Source) -> str:
        """Write the folder; its rows go to the disk batch by batch."""
        shape = len(source), source.dimension
        with whole(self.out) as folder:
            header = {"descr": np.lib.format.dtype_to_descr(np.dtype("<f4")), "fortran_order": False, "shape": shape}
            with (folder / ROWS).open("wb") as file:
                np.lib.format.write_array_header_1_0(file, header)
                for batch in labels_written(folder, source):
                    file.write(batch.rows.astype("<f4", copy=False).tobytes())
            (folder / ABOUT).write_text(json.dumps(source.about, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        return f"{self.out}: {ROWS} float32 {shape}, labels.jsonl, {ABOUT}"
