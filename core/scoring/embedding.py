"""Texts as vectors: the mean of an embedding model's last hidden states."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from ..errors import ModelError, first_line
from ..models import ModelSource
from .placement import place


class TextEncoder:
    """A transformers model whose last hidden states, averaged over a text's tokens, embed the text."""

    def __init__(self, name: str, *, option: str):
        """Open it, on the GPU where there is one.

        Args:
            name: a folder or a hub name.
            option: where it was named, for messages.

        Raises:
            ModelError: it cannot be opened, or its weights do not fill it.
        """
        from transformers import AutoModel, AutoTokenizer

        try:
            found: Any = AutoModel.from_pretrained(name, output_loading_info=True)
            model, loaded = found
            self.tokenizer: Any = AutoTokenizer.from_pretrained(name)
        except Exception as error:
            raise ModelError(
                f"{option} {name}: does not load ({type(error).__name__}: {first_line(error)}); give a "
                "folder or a hub name that AutoModel and AutoTokenizer open"
            ) from error
        # A pooler's weights are not read here, and models for other tasks are saved without.
        lacking = sorted(key for key in loaded["missing_keys"] if "pooler" not in key)
        if lacking:
            raise ModelError(
                f"{option} {name}: its weights lack {lacking[0]}, which its config.json asks for; fetch or "
                "save the model again"
            )
        self.config: Any = model.config
        self.model: Any = (model.get_encoder() if model.config.is_encoder_decoder else model).eval()
        self._device = place(self.model)
        positions = getattr(self.config, "max_position_embeddings", None)
        # A tokenizer that knows of no limit says 10^30.
        limits = [limit for limit in (positions, self.tokenizer.model_max_length) if limit and limit < 1e9]
        self.limit: int | None = min(limits, default=None)

    def identity(self, name: str) -> dict[str, Any]:
        """What proves which weights these are, as of a reference."""
        return ModelSource(name, None, self.config).identity()

    @torch.inference_mode()
    def embed(self, texts: Sequence[str], batch: int = 32) -> list[Tensor]:
        """Mean last hidden states [d] float32 of each text; what is beyond the model's length is cut off."""
        if self.tokenizer.pad_token_id is None:
            batch = 1
        found: list[Tensor] = []
        for start in range(0, len(texts), batch):
            inputs = self.tokenizer(
                list(texts[start : start + batch]),
                return_tensors="pt",
                padding=batch > 1,
                truncation=self.limit is not None,
                max_length=self.limit,
            ).to(self._device)
            inputs.pop("token_type_ids", None)
            states = self.model(**inputs).last_hidden_state.float()
            mask = inputs["attention_mask"].unsqueeze(-1)
            found += ((states * mask).sum(1) / mask.sum(1).clamp(min=1)).unbind()
        return found


@lru_cache(maxsize=1)
def text_encoder(name: str, option: str) -> TextEncoder:
    """The encoder ``name``, opened once. Raises as :class:`TextEncoder`."""
    return TextEncoder(name, option=option)
