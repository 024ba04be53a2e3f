"""A folder as a model hub holds one: the encoder, the labels with their rows, and a model card."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Annotated

from pydantic import Field

from dexml.plugin import ALIAS
from training.exporters.base import Exporter, Source
from training.exporters.folder import ABOUT, LABELS, labels_written, whole

ROWS = "embeddings.safetensors"
CARD = """---
library_name: sentence-transformers
pipeline_tag: sentence-similarity
tags:
- sentence-transformers
- dexml
- extreme-multi-label-classification
---

# {name}

A dual encoder with {labels:,} labels: a text's embedding and a label's are unit rows of {dimension} numbers, and the labels of
a text are those of the largest inner products. Exported by dexml {dexml}: model `{model}`, version `{version}`.

| file | what |
| --- | --- |
| `labels.jsonl` | `{{"id", "text"}}` per label, in row order |
| `embeddings.safetensors` | `embeddings`: float32 ({labels}, {dimension}), a unit row per label |
| the others | the encoder, as sentence-transformers reads it |

## Usage
{before}
```python
import json

from safetensors.numpy import load_file
from sentence_transformers import SentenceTransformer

folder = "."  # where this file is
model = SentenceTransformer(folder)
with open(f"{{folder}}/labels.jsonl", encoding="utf-8") as lines:
    labels = [json.loads(line) for line in lines]
rows = load_file(f"{{folder}}/embeddings.safetensors")["embeddings"]

scores = rows @ model.encode("a text")
for number in scores.argsort()[::-1][:10]:
    print(labels[number]["id"], scores[number], labels[number]["text"])
```

Probabilities over all labels are `softmax(scores / {temperature})`. Rows of labels that were trained may hold more than their
texts say: take them from the file and do not encode the texts anew.
"""
BEFORE = """
The encoder is dexml's own: sentence-transformers opens it where dexml is installed. No code from this folder is run.
"""


class HubFolder(Exporter):
    """A folder that `SentenceTransformer(OUT)` opens, with labels.jsonl, embeddings.safetensors, about.json and README.md."""

    def __init__(self, *, out: Annotated[Path, Field(description="The folder to make.")]) -> None:
        self.out = out

    def export(self, source: Source) -> str:
        """Write the folder; the rows are held in memory once."""
        import numpy as np
        from safetensors.numpy import save_file

        with whole(self.out) as folder:
            # Contents alone: a version's files are read-only, and what is exported belongs to whoever exported it.
            shutil.copytree(source.encoder, folder, copy_function=shutil.copyfile, dirs_exist_ok=True)
            folder.chmod(0o755)
            rows = np.empty((len(source), source.dimension), dtype=np.float32)
            done = 0
            for batch in labels_written(folder, source):
                rows[done : done + len(batch.ids)] = batch.rows
                done += len(batch.ids)
            save_file({"embeddings": rows}, folder / ROWS)
            (folder / ROWS).chmod((folder / LABELS).stat().st_mode)  # safetensors makes files for their owner alone
            (folder / ABOUT).write_text(json.dumps(source.about, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
            own = ALIAS in (folder / "modules.json").read_text(encoding="utf-8")
            name = source.about["model"].partition("@")[0]
            card = CARD.format(name=name, before=BEFORE if own else "", **source.about)
            (folder / "README.md").write_text(card, encoding="utf-8")
        return f"{self.out}: SentenceTransformer opens it; labels.jsonl, {ROWS}, README.md"
