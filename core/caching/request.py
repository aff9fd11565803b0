"""What a build is asked for, opened and checked: data, reference and tokenizer, with no weights loaded."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..config import BuildConfig
from ..data.pairing import PairMaker
from ..data.source import Source, open_source
from ..data.spool import PairSpool, spool_pairs
from ..errors import ConfigError
from ..models import ModelSource, find_model, load_tokenizer
from ..progress import Progress


@dataclass(frozen=True)
class Request:
    """A build's options with what they name."""

    config: BuildConfig
    source: Source
    """The preference data."""
    model: ModelSource
    """The reference; its weights are not loaded yet."""
    tokenizer: Any
    maker: PairMaker
    """A row of the data to a pair of token ids."""


def open_request(config: BuildConfig, in_memory: Any = None) -> Request:
    """Open what ``config`` names; ``in_memory`` takes the place of ``config.dataset``.

    Raises:
        TdpoError: the data, the reference or the template cannot be used.
    """
    source = open_source(
        config.dataset if in_memory is None else in_memory,
        split=config.split,
        config_name=config.subset,
        revision=config.data_revision,
        column_map=config.column_map or None,
        limit=config.limit,
    )
    model = find_model(config.ref, config.revision, option="--ref")
    tokenizer = load_tokenizer(model, option="--ref")
    if config.chat_template is not None:
        tokenizer.chat_template = _read_template(config.chat_template)
    maker = PairMaker(
        tokenizer,
        source.form,
        max_length=config.max_length or model.max_length,
        truncation=config.truncation,
        truncate=config.truncate,
    )
    return Request(config, source, model, tokenizer, maker)


def tokenise(request: Request, *, quiet: bool) -> PairSpool:
    """Every row as a pair of token ids or a reason why not, in a temporary file; a context manager."""
    with Progress("tokenising", len(request.source), "rows", quiet=quiet) as progress:
        return spool_pairs(
            request.source, request.maker, window=request.config.shard_rows, progress=progress.reach
        )


def _read_template(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--chat-template {path}: cannot be read ({error}); give a text file") from error
