"""What a build is asked for, opened and checked: data, reference and tokenizer, with no weights loaded."""

import datetime
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..config.build import BuildConfig
from ..config.file import build_config
from ..data.pairing import PairMaker
from ..data.source import Source, is_named, open_source
from ..data.spool import PairSpool, spool_pairs
from ..errors import ConfigError
from ..models import ModelSource
from ..progress import Progress
from ..scoring.sharing import choose_layout
from ..tokenizers import load_tokenizer
from .reference import find_ref
from .statistics import shard_rows


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
    layout: str
    """How pairs are laid out for the reference: ``shared`` or ``separate``."""

    @property
    def shard_rows(self) -> int:
        """Source rows of a shard."""
        return shard_rows(self.config, self.model)


def resolve_options(
    given: Mapping[str, Any], config: str | os.PathLike[str] | None
) -> tuple[BuildConfig, Any]:
    """A build's options from Python arguments, and the data itself where that was given instead of its name.

    Args:
        given: options by name; ``ref``, ``dataset`` and ``out`` are not given where they are None.
        config: a ``tdpo.yaml`` with further options.

    Raises:
        ConfigError: an unknown or unusable option.
    """
    named = ("ref", "dataset", "out")
    values = {name: value for name, value in given.items() if value is not None or name not in named}
    in_memory = values.get("dataset")
    if in_memory is None or is_named(in_memory):
        in_memory = None
    else:
        values["dataset"] = "in memory"
    return build_config(values, config), in_memory


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
        shuffle_seed=config.shuffle_seed,
        streaming=config.streaming,
    )
    model = find_ref(config)
    layout = choose_layout(model.config, config.prompt_sharing, config.attention)
    tokenizer = load_tokenizer(model, option="--ref")
    if config.chat_template is not None:
        tokenizer.chat_template = _read_template(config.chat_template)
    maker = PairMaker(
        tokenizer,
        source.form,
        max_length=config.max_length or model.max_length,
        truncation=config.truncation,
        truncate=config.truncate,
        vocab_size=model.config.get_text_config().vocab_size,
        today=_read_date(config.template_date),
    )
    return Request(config, source, model, tokenizer, maker, layout)


def tokenise(request: Request, *, quiet: bool) -> PairSpool:
    """Every row as a pair of token ids or a reason why not, in a temporary file; a context manager."""
    with Progress("tokenising", request.source.length, "rows", quiet=quiet) as progress:
        return spool_pairs(request.source, request.maker, window=request.shard_rows, progress=progress.reach)


def _read_date(text: str | None) -> datetime.date | None:
    try:
        return None if text is None else datetime.date.fromisoformat(text)
    except ValueError:
        raise ConfigError(f"--template-date {text}: not a day; write it as 2025-01-31") from None


def _read_template(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--chat-template {path}: cannot be read ({error}); give a text file") from error
