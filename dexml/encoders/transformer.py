"""Any sentence-transformers model as an encoder, frozen or tuned. This module alone knows sentence-transformers' model class.

Importing sentence-transformers takes seconds; it happens when a model is opened, not before.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import torch
from annotated_types import Ge
from torch import Tensor

from dexml.device import fast_bfloat16
from dexml.encoders import feature_cache, kernel_adapter, minilm, scale_shift
from dexml.encoders.base import Encoder, Network
from dexml.errors import InputError
from dexml.types import Features, Int64Array

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer


class TransformerEncoder(Encoder, Network):
    """Embeddings of a sentence-transformers model: `model` is "minilm", a folder or a hub name.

    `pooling` "auto" is the model's own, and the mean for a folder of transformers' that names none; "last" is what causal
    language models take, the last token having read all others. A hub name needs a `revision`; code from a model folder is
    never run. Computed once and cached by `encode_many` for a
    frozen model; `tokenize` and `rows` are what a fine-tune trains through.
    """

    gives = frozenset({"dense"})
    tunable = True

    def __init__(
        self,
        *,
        model: str = "minilm",
        revision: str | None = None,
        batch: Annotated[int, Ge(1)] = 64,
        max_tokens: Annotated[int, Ge(1)] = 256,
        device: str = "cpu",
        pooling: Literal["auto", "last", "mean", "cls"] = "auto",
    ) -> None:
        self.model_name = model
        self.revision = revision
        self.batch = batch
        self.wanted_tokens = max_tokens
        self.device = device
        self.pooling = pooling
        self._model: SentenceTransformer | None = None

    @property
    def model(self) -> SentenceTransformer:
        """The opened model."""
        if self._model is None:
            self._model = self._open()
        return self._model

    @property
    def module(self) -> SentenceTransformer:
        """The same, as what a fine-tune trains."""
        return self.model

    @property
    def max_tokens(self) -> int:
        """The option, or less where the model reads less; [CLS] and [SEP] count."""
        return min(self.wanted_tokens, self.model.max_seq_length or self.wanted_tokens)

    def fit(self, texts: Sequence[str]) -> None:
        """Open the model; there is nothing to learn."""
        self.model  # noqa: B018 — opening it now puts a missing model before the work that follows

    @torch.inference_mode()
    def encode(self, texts: Sequence[str]) -> Features:
        """Return dense rows float32 (N, D); sentence-transformers sorts by length and batches."""
        if not texts:
            return Features(torch.zeros(0, self.width()), tokens=torch.zeros(0, dtype=torch.int64))
        lengths = self.model.tokenizer(list(texts), add_special_tokens=True, truncation=False, verbose=False)
        tokens = torch.tensor([len(ids) for ids in lengths["input_ids"]], dtype=torch.int64)
        return Features(self._rows(texts), tokens=tokens)

    def network(self) -> TransformerEncoder:
        """Return itself."""
        return self

    def bags(self, texts: Sequence[str]) -> None:
        """Return None: there are no sparse features."""
        return None

    def lengths(self, texts: Sequence[str]) -> Int64Array:
        """Return how many tokens of each text are read (N)."""
        if not texts:
            return np.zeros(0, dtype=np.int64)
        read = self.model.tokenizer(list(texts), add_special_tokens=True, truncation=False, verbose=False)
        return np.minimum([len(ids) for ids in read["input_ids"]], self.max_tokens).astype(np.int64)

    def tokenize(self, texts: Sequence[str]) -> dict[str, Any]:
        """Return what the model's first layer reads of N texts, behind the prompt that the model sets before them."""
        tokens: dict[str, Any] = self.model.preprocess(list(texts), prompt=self._prompt() or None)
        return tokens

    def rows(self, tokens: dict[str, Any]) -> Tensor:
        """Return unit rows (N, D) of `tokenize`d texts, float32 or the model's float64, differentiable in its parameters."""
        rows: Tensor = self.model(dict(tokens))["sentence_embedding"]  # a copy: the layers add their outputs to what they get
        rows = rows[:, : self.model.truncate_dim]
        return torch.nn.functional.normalize(rows if rows.dtype == torch.float64 else rows.float(), dim=1)

    def encode_many(self, texts: Sequence[str]) -> Features:
        """Return dense rows (N, D) from the feature cache, or computed with bfloat16 weights and put there.

        Where the CPU multiplies bfloat16 fast, that is two to four times faster; rows keep a cosine of 0.9998 and more.
        """
        return Features(feature_cache.rows(self._key(texts), lambda: self._rows_fast(texts)))

    @torch.inference_mode()
    def _rows(self, texts: Sequence[str]) -> Tensor:
        rows = self.model.encode(list(texts), batch_size=self.batch, convert_to_tensor=True, show_progress_bar=False)
        # Towers sum and turn unit rows, and not every model ends with a Normalize layer.
        return torch.nn.functional.normalize(rows.float().cpu(), dim=1)

    def _rows_fast(self, texts: Sequence[str]) -> Tensor:
        if not fast_bfloat16():
            return self._rows(texts)
        whole = self.model
        self._model = self._open().bfloat16()
        try:
            return self._rows(texts)
        finally:
            self._model = whole

    def _key(self, texts: Sequence[str]) -> str:
        """Return a digest of the weights, the layers' settings, the tokenizer, the prompt and the texts."""
        digest = hashlib.sha256()
        for name, value in sorted(self.model.state_dict().items()):
            digest.update(name.encode())
            digest.update(value.detach().float().cpu().contiguous().numpy().tobytes())
        digest.update(f"{self.model!r} {self._prompt()!r} {self.max_tokens} {fast_bfloat16()} {len(texts)}".encode())
        digest.update(self.model.tokenizer.backend_tokenizer.to_str().encode())
        for text in texts:
            digest.update(text.encode() + b"\0")
        return digest.hexdigest()

    def _prompt(self) -> str:
        return self.model.prompts.get(self.model.default_prompt_name or "") or ""

    def width(self) -> int:
        """Return the model's dimension."""
        width = self.model.get_embedding_dimension()
        if width is None:
            raise InputError(f"encoder.model: {self.model_name} does not say its embedding dimension")
        return int(width)

    def save(self, folder: Path, linear: tuple[Tensor, Tensor] | None = None) -> None:
        """Write the model as a plain sentence-transformers folder that ends with unit rows, any scale and shift folded in.

        Adapters of kernel features, which a plain model cannot have, are written beside it.
        `linear`, a weight (D, D) and a bias (D) that a tower applies to the unit rows, becomes a Dense layer.
        """
        from sentence_transformers import SentenceTransformer
        from sentence_transformers.sentence_transformer.modules import Dense, Normalize

        layers: list[torch.nn.Module] = list(self.model.children())
        if not isinstance(layers[-1], Normalize):
            layers.append(Normalize())
        if linear is not None:
            weight, bias = linear
            dense = Dense(weight.shape[1], weight.shape[0], activation_function=torch.nn.Identity())
            with torch.no_grad():
                dense.linear.weight.copy_(weight)
                dense.linear.bias.copy_(bias)
            layers += [dense, Normalize()]
        # A model of its own around the same layers: the one in use must not grow by being saved.
        prompts = {name: prompt for name, prompt in self.model.prompts.items() if prompt is not None}
        saved = SentenceTransformer(
            modules=layers,
            device=str(self.model.device),  # where they are: any other would move the ones in use
            prompts=prompts,
            default_prompt_name=self.model.default_prompt_name,
        )
        with scale_shift.merged(self.model), kernel_adapter.taken_off(self.model):
            saved.save(str(folder), create_model_card=False)
        kernel_adapter.save(self.model, folder)

    @property
    def plain(self) -> bool:
        """Whether the saved folder, read by sentence-transformers alone, is all of the model."""
        return not kernel_adapter.adapters(self.model)

    def load(self, folder: Path) -> None:
        """Open the model in `folder`, which names its pooling."""
        self.model_name, self.pooling = str(folder), "auto"
        self._model = None

    def _open(self) -> SentenceTransformer:
        name = str(minilm.locate()) if self.model_name == "minilm" else self.model_name
        local = Path(name).is_dir()
        if not local and self.revision is None:
            raise InputError(
                f"encoder.model: {name!r} is no folder; a hub model needs encoder.revision, so that a run can be repeated"
            )
        from sentence_transformers import SentenceTransformer
        from transformers.utils import logging as transformers_logging

        transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        how: dict[str, Any] = {"revision": self.revision, "trust_remote_code": False, "local_files_only": local}
        try:
            model = SentenceTransformer(
                name if self.pooling == "auto" else None, modules=self._layers(name, how), device=self.device, **how
            )
        except (OSError, ValueError) as error:
            raise InputError(f"encoder.model: {name} cannot be opened: {str(error).splitlines()[0]}") from None
        if model.tokenizer.pad_token is None:  # as causal models come: what is padded is masked all the same
            model.tokenizer.pad_token = model.tokenizer.eos_token or model.tokenizer.unk_token
        if local:
            kernel_adapter.load(model, Path(name))
        model.max_seq_length = min(self.wanted_tokens, model.max_seq_length or self.wanted_tokens)
        return model.eval()

    def _layers(self, name: str, how: dict[str, Any]) -> list[torch.nn.Module] | None:
        """Return a transformer and the pooling that was asked for; None where the model's own layers are to be read."""
        if self.pooling == "auto":
            return None
        from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

        read = Transformer(name, model_kwargs=how, processor_kwargs=how, config_kwargs=how)
        return [read, Pooling(read.get_embedding_dimension(), "lasttoken" if self.pooling == "last" else self.pooling)]
