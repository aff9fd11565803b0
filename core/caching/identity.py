"""What a cache is of, provably, and how it came to be: the manifest's two descriptions."""

import datetime
import platform
from typing import Any

from ..config.build import BuildConfig
from ..config.command import build_command
from ..data.source import Source
from ..data.spool import PairSpool
from ..models import ModelSource
from ..tokenizers import tokenizer_identity
from .request import Request
from .statistics import statistics_identity


def build_identity(request: Request, spool: PairSpool) -> dict[str, Any]:
    """What is scored, provably: a cache with the same identity holds the same numbers.

    ``spool`` holds the request's rows, tokenised.
    """
    config, model = request.config, request.model
    reference = reference_identity(config, model)
    return {
        "reference": reference,
        "tokenizer": tokenizer_identity(request.tokenizer),
        "data": _data_identity(request.source, spool),
        "limits": {
            "max_length": config.max_length or model.max_length,
            "truncation": config.truncation,
            "truncate": config.truncate,
        },
        "statistics": statistics_identity(config, model, reference["dtype"]),
        "layout": request.layout,
    }


def reference_identity(config: BuildConfig, model: ModelSource) -> dict[str, Any]:
    """Which model scores, provably, and how it computes."""
    return {
        **model.identity(),
        "dtype": resolved_dtype(config.ref_dtype, model.config),
        "attention": config.attention or "auto",
    }


def _data_identity(source: Source, spool: PairSpool) -> dict[str, Any]:
    """The data by content; the path it was given by is provenance, and may change.

    ``content`` proves what streams and memory held, and that a tokenizer, a template or the libraries behind
    them still make the same of it.
    """
    read = {k: v for k, v in source.identity.items() if k != "source" or "files" not in source.identity}
    return {**read, "rows": spool.source_rows, "content": spool.content}


def build_provenance(request: Request) -> dict[str, Any]:
    """Who made the cache, when and with what; two caches may differ here and hold the same."""
    from importlib.metadata import version

    packages = ("tdpo", "torch", "transformers", "tokenizers", "datasets", "pyarrow", "numpy")
    command = build_command(request.config)
    return {
        "reference": str(request.config.ref),
        **({} if request.config.ref_adapter is None else {"adapter": request.config.ref_adapter}),
        **({} if request.config.device_map is None else {"device_map": request.config.device_map}),
        "dataset": ", ".join(request.config.dataset),
        "form": request.source.form,
        **({} if command is None else {"command": command}),
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
    }


def resolved_dtype(asked: str, model_config: Any) -> str:
    """The precision that the reference runs in; ``auto`` is the one its weights are stored in."""
    if asked != "auto":
        return asked
    stored = getattr(model_config, "dtype", None)
    return str(stored).removeprefix("torch.") if stored is not None else "float32"
