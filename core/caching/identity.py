"""What a cache is of, provably, and how it came to be: the manifest's two descriptions."""

import datetime
import platform
from typing import Any

from ..data.source import Source
from ..models import tokenizer_identity
from .request import Request


def build_identity(request: Request) -> dict[str, Any]:
    """What is scored, provably: a cache with the same identity holds the same numbers."""
    config, model = request.config, request.model
    vocab_size = model.config.get_text_config().vocab_size
    head = min(config.head, vocab_size)
    return {
        "reference": {
            **model.identity(),
            "dtype": _resolved_dtype(config.ref_dtype, model.config),
            "attention": config.attention or "auto",
        },
        "tokenizer": tokenizer_identity(request.tokenizer),
        "data": _data_identity(request.source),
        "limits": {
            "max_length": config.max_length or model.max_length,
            "truncation": config.truncation,
            "truncate": config.truncate,
        },
        "statistics": {
            "entropy": True,
            "head": head,
            # With the whole vocabulary in the head there is no rest to draw from.
            "tail": 0 if head == vocab_size else config.tail,
            "seed": config.seed,
            "vocab_size": vocab_size,
        },
        "layout": "separate",
    }


def _data_identity(source: Source) -> dict[str, Any]:
    """The data by content; the path it was given by is provenance, and may change."""
    return {k: v for k, v in source.identity.items() if k != "source" or "files" not in source.identity}


def build_provenance(request: Request) -> dict[str, Any]:
    """Who made the cache, when and with what; two caches may differ here and hold the same."""
    from importlib.metadata import version

    packages = ("tdpo", "torch", "transformers", "tokenizers", "datasets", "pyarrow", "numpy")
    return {
        "reference": str(request.config.ref),
        "dataset": str(request.config.dataset),
        "form": request.source.form,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
    }


def _resolved_dtype(asked: str, model_config: Any) -> str:
    if asked != "auto":
        return asked
    stored = getattr(model_config, "dtype", None)
    return str(stored).removeprefix("torch.") if stored is not None else "float32"
