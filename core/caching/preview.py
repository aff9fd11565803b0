"""A dry run: what a build would score, as tokens, and what it would leave out. Nothing is built."""

import itertools
import json
import os
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ...cache.pairs import Pair
from ..config.build import BuildConfig
from ..data.spool import PairSpool, check_skipped, skipped_text
from ..errors import DataError
from .request import Request, open_request, resolve_options, tokenise

_AROUND_BOUNDARY = 60
_FROM_START = 12
_VISIBLE = {" ": "·", "\n": "↵", "\t": "⇥", "\r": "␍"}


@dataclass(frozen=True)
class PreviewPair:
    """One pair as tokens: ids and, token by token, the text that each adds to what stands before it."""

    row: int
    pair_id: str
    prompt_ids: list[int]
    chosen_ids: list[int]
    rejected_ids: list[int]
    prompt_tokens: list[str]
    chosen_tokens: list[str]
    rejected_tokens: list[str]


@dataclass(frozen=True)
class Preview:
    """What a build would score.

    Attributes:
        form: the data's form.
        rows: rows of the data.
        kept: rows that give a pair.
        prompt_tokens: tokens of all prompts, each counted once.
        completion_tokens: tokens of all completions, both sides.
        longest: most tokens of a prompt and its longer completion.
        max_length: the limit that applied, if any.
        skipped: reason -> count, the first rows and, where it helps, what was said about the first of them.
        refusal: why the build would stop for the rows it cannot use, or None.
        pairs: the first pairs.
    """

    form: str
    rows: int
    kept: int
    prompt_tokens: int
    completion_tokens: int
    longest: int
    max_length: int | None
    skipped: dict[str, dict[str, Any]]
    refusal: str | None
    pairs: list[PreviewPair]

    def to_json(self) -> str:
        """Everything, for a program."""
        return json.dumps(asdict(self), indent=2, ensure_ascii=False)

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        for pair in self.pairs:
            yield f"row {pair.row}"
            prompt = visible(pair.prompt_tokens)
            if len(prompt) > _FROM_START + _AROUND_BOUNDARY:
                left_out = len(prompt) - _FROM_START - _AROUND_BOUNDARY
                prompt[_FROM_START:-_AROUND_BOUNDARY] = [f"... {left_out:,} more tokens ..."]
            yield f"  prompt    {'|'.join(prompt)} ‖"
            for name, tokens in (("chosen", pair.chosen_tokens), ("rejected", pair.rejected_tokens)):
                shown = visible(tokens[:_AROUND_BOUNDARY])
                if len(tokens) > _AROUND_BOUNDARY:
                    shown.append(f"... {len(tokens) - _AROUND_BOUNDARY:,} more tokens")
                yield f"  {name:<8}  ‖ {'|'.join(shown)}"
        yield f"{self.kept:,} pairs from {self.rows:,} rows ({self.form})"
        yield f"  tokens    {self.prompt_tokens:,} of prompts, {self.completion_tokens:,} of completions"
        limit = f", of at most {self.max_length:,}" if self.max_length else ""
        yield f"  longest   {self.longest:,} tokens{limit}"
        for reason, entry in self.skipped.items() or [("none", None)]:
            yield f"  skipped   {skipped_text(reason, entry, entry['detail']) if entry else reason}"


def preview_build(
    ref: str | os.PathLike[str] | None = None,
    dataset: Any = None,
    *,
    config: str | os.PathLike[str] | None = None,
    pairs: int = 3,
    quiet: bool = False,
    **options: Any,
) -> Preview:
    """Tokenise the data as a build would, and say what comes out; what ``--dry-run`` does.

    Opens the data, the reference's configuration and its tokenizer; loads no weights and leaves nothing.

    Args:
        ref, dataset, config, options: as of :func:`~tdpo.core.caching.build.build_cache`.
        pairs: how many of the first pairs to show.
        quiet: show no progress.

    Raises:
        TdpoError: the data, the reference or the template cannot be used.
    """
    resolved, in_memory = resolve_options({"ref": ref, "dataset": dataset, **options}, config)
    return run_preview(resolved, in_memory, pairs=pairs, quiet=quiet)


def run_preview(
    config: BuildConfig, in_memory: Any = None, *, pairs: int = 3, quiet: bool = False
) -> Preview:
    """Preview the build that ``config`` describes. Raises as :func:`preview_build`."""
    request = open_request(config, in_memory)
    with tokenise(request, quiet=quiet) as spool:
        shown = [_shown(request, pair) for pair in itertools.islice(_pairs(spool), pairs)]
        refusal = None
        try:
            check_skipped(spool, config.max_skipped)
        except DataError as error:
            refusal = str(error)
        return Preview(
            form=request.source.form,
            rows=spool.source_rows,
            kept=spool.kept,
            prompt_tokens=spool.tokens[0],
            completion_tokens=spool.tokens[1],
            longest=spool.longest,
            max_length=request.maker.max_length,
            skipped={
                reason: {**entry, "detail": spool.details.get(reason)}
                for reason, entry in sorted(spool.skipped.items(), key=lambda item: -item[1]["count"])
            },
            refusal=refusal,
            pairs=shown,
        )


def _pairs(spool: PairSpool) -> Iterator[Pair]:
    for window in range(len(spool)):
        yield from spool.window(window)[0]


def _shown(request: Request, pair: Pair) -> PreviewPair:
    prompt, chosen, rejected = (ids.tolist() for ids in (pair.prompt_ids, pair.chosen_ids, pair.rejected_ids))
    tokenizer = request.tokenizer
    return PreviewPair(
        pair.row,
        pair.pair_id,
        prompt,
        chosen,
        rejected,
        pieces(tokenizer, prompt),
        pieces(tokenizer, chosen, prompt),
        pieces(tokenizer, rejected, prompt),
    )


def pieces(tokenizer: Any, ids: Sequence[int], before: Sequence[int] = ()) -> list[str]:
    """The text that each token adds to what stands before it; together they are the text.

    A character that several tokens make up stands with the last of them.
    """
    context = list(before[-16:])
    while context and "\ufffd" in _decoded(tokenizer, context):
        del context[0]
    whole, waiting, found = [context], list[int](), list[str]()
    given = _decoded(tokenizer, context)
    for token in ids:
        waiting.append(token)
        held = list(itertools.chain(*whole, waiting))
        text = _decoded(tokenizer, held)
        # An unfinished character decodes to a replacement character: it waits for its other bytes.
        if text.endswith("\ufffd") and len(waiting) < 8 and len(found) < len(ids) - 1:
            found.append("")
            continue
        found.append(text[len(given) :] if text.startswith(given) else _decoded(tokenizer, waiting))
        whole, waiting = [*whole[-6:], waiting], []
        given = _decoded(tokenizer, list(itertools.chain(*whole)))
    return found


def _decoded(tokenizer: Any, ids: list[int]) -> str:
    text: str = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return text


def visible(tokens: Sequence[str]) -> list[str]:
    """Tokens for a terminal: white space as marks, control and formatting characters as escapes."""
    return ["".join(_mark(letter) for letter in token) or "◌" for token in tokens]


def _mark(letter: str) -> str:
    if letter in _VISIBLE:
        return _VISIBLE[letter]
    hidden = unicodedata.category(letter) in ("Cc", "Cf", "Cs", "Zl", "Zp", "Zs")
    return letter.encode("unicode_escape").decode() if hidden else letter
