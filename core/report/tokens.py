"""Token by token as a table: what ``tdpo.token_table`` gives to whoever computes on."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ...cache.pairs import SIDES, Side
from ...cache.reader import open_cache
from ..errors import ConfigError
from ..quiet import quiet_libraries
from ..runs.folder import RunFolder
from .token_scores import ALTERNATIVES, RunTokens, TokenPair, TokenSide, score_tokens


def token_table(
    run: RunFolder | str | os.PathLike[str],
    pair_ids: Sequence[str],
    *,
    cache: str | os.PathLike[str] | None = None,
    alternatives: int = ALTERNATIVES,
) -> pa.Table:
    """Some pairs under a run's policy as a table with a row a token.

    Args:
        run: a run that ``tdpo fit`` made, or its folder.
        pair_ids: of the cache's pairs, or the first digits of them.
        cache: holds the pairs; the run's first evaluation cache, or else its training cache, when not given.
        alternatives: of each token, at most.

    Returns:
        The columns of :func:`as_table`.

    Raises:
        ConfigError: it is no run, or the cache has no such pair.
        TdpoError: the cache or the policy cannot be opened.
    """
    opened = run if isinstance(run, RunFolder) else RunFolder.open(run)
    reader = open_cache(os.fspath(cache) if cache is not None else default_cache(opened))
    rows = find_rows(reader, pair_ids)
    with quiet_libraries():
        return as_table(score_tokens(opened, reader, rows, count=alternatives))


def default_cache(run: RunFolder) -> str:
    """The cache whose pairs are shown: the run's first evaluation cache, or else its training cache."""
    return next(iter(run.eval_caches.values()), run.cache)


def find_rows(reader: Any, pair_ids: Sequence[str]) -> list[int]:
    """Rows of the pairs with these ids, or with the only ids that begin so.

    Raises:
        ConfigError: there is no such pair, or several.
    """
    known = reader.pair_ids()
    places = {pair_id: row for row, pair_id in enumerate(known)}
    rows = []
    for given in pair_ids:
        asked = given.strip().lower()
        matching = [asked] if asked in places else [one for one in places if asked and one.startswith(asked)]
        if not matching:
            raise ConfigError(
                f"--pair {given}: {reader.location} has no pair of that id; its column pair_id has them, "
                f"such as {known[0]}"
            )
        if len(matching) > 1:
            raise ConfigError(
                f"--pair {given}: {len(matching)} pairs of {reader.location} have ids that begin so, such as "
                f"{matching[0]} and {matching[1]}; give more digits"
            )
        rows.append(places[matching[0]])
    return rows


def as_table(scored: RunTokens) -> pa.Table:
    """The same as a table with a row a token.

    Returns:
        Columns ``run``, ``pair_id``, ``side``, ``position`` (from 0), ``token_id``, ``text`` (joined in order
        they are the completion), ``special``; in nats, float32, null where there is none: ``logp``,
        ``ref_logp``, ``log_ratio``, ``reward``, ``forward_kl``, ``entropy``, ``ref_entropy``,
        ``token_weight``; ``alternatives``, a list of ``token_id``, ``text`` and the probabilities ``ref_p``
        of the reference and ``p`` of the policy; and ``ref_rest`` and ``rest``, theirs of all other tokens.
    """
    tables = [_side_table(scored, one, side, one.side(side)) for one in scored.pairs for side in SIDES]
    return pa.concat_tables(tables) if tables else _SCHEMA.empty_table()


def write_tokens(path: str | os.PathLike[str], scored: Sequence[RunTokens]) -> None:
    """Write the tables of some runs, one after the other, into a Parquet file, replacing what was there.

    Raises:
        ConfigError: it cannot be written.
    """
    table, target = pa.concat_tables([_SCHEMA.empty_table(), *map(as_table, scored)]), Path(path)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("wb") as file:
            pq.write_table(table, file)
    except OSError as error:
        raise ConfigError(
            f"--tokens {target}: {error.strerror or error}; choose a file that can be written"
        ) from error


_NUMBERS = ("logp", "ref_logp", "log_ratio", "reward", "forward_kl", "entropy", "ref_entropy", "token_weight")
_ALTERNATIVE = pa.struct(
    [("token_id", pa.int32()), ("text", pa.string()), ("ref_p", pa.float32()), ("p", pa.float32())]
)
_SCHEMA = pa.schema(
    [
        ("run", pa.string()),
        ("pair_id", pa.string()),
        ("side", pa.string()),
        ("position", pa.int32()),
        ("token_id", pa.int32()),
        ("text", pa.string()),
        ("special", pa.bool_()),
        *((name, pa.float32()) for name in _NUMBERS),
        ("alternatives", pa.list_(_ALTERNATIVE)),
        ("ref_rest", pa.float32()),
        ("rest", pa.float32()),
    ]
)


def _side_table(scored: RunTokens, one: TokenPair, side: Side, tokens: TokenSide) -> pa.Table:
    count, others = len(tokens.ids), tokens.alternatives
    columns: dict[str, Any] = {
        "run": [scored.name] * count,
        "pair_id": [one.pair.pair_id] * count,
        "side": [side] * count,
        "position": range(count),
        "token_id": tokens.ids,
        "text": tokens.pieces,
        "special": [int(index) in scored.special for index in tokens.ids],
        **{name: _or_nulls(getattr(tokens, name), count) for name in _NUMBERS},
        "alternatives": [
            [
                {"token_id": index, "text": scored.names[index], "ref_p": ref_p, "p": p}
                for index, ref_p, p in zip(*at, strict=True)
                if ref_p > 0
            ]
            for at in zip(
                others.ids.tolist(), others.ref_logp.exp().tolist(), others.logp.exp().tolist(), strict=True
            )
        ],
        "ref_rest": others.ref_rest.numpy(),
        "rest": others.rest.numpy(),
    }
    return pa.table({name: pa.array(columns[name], _SCHEMA.field(name).type) for name in _SCHEMA.names})


def _or_nulls(values: np.ndarray | None, count: int) -> Any:
    return [None] * count if values is None else values
