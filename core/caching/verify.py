"""Verifying a cache: the checks that need no model and, where asked for, some pairs scored again."""

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ...cache.manifest import Manifest, read_manifest
from ...cache.pairs import SIDES, ScoredPair
from ...cache.reader import CacheReader
from ...cache.schema import CachedStatistics
from ...cache.storage.files import Folder
from ...cache.values import FLOAT16_ERROR, FLOAT16_MIN
from ...cache.verify import Fault, Faults, check_cache
from ..errors import ConfigError, ModelError
from ..models import ModelSource, find_reference, load_model
from ..progress import Progress
from ..quiet import quiet_libraries
from ..randomness import keep_random_states

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Largest difference, in nats, between two scorings of one token by the same model; float16 comes on top.
_TOLERANCE = {"float32": 1e-3, "float64": 1e-3}
_LOW_PRECISION = 0.5

_UNITS = {"ref_logp": "nats", "ref_entropy": "nats", "dist": "nats", "ref_hidden": "of its size"}

# Twice the largest relative error of a value rounded to bfloat16.
_BFLOAT16_ERROR = 2.0**-7

# Pairs read at a time: each may hold a row group of its own in memory.
_READ_PAIRS = 32


@dataclass
class Rescored:
    """What scoring some pairs again gave: the largest differences from the cache, in nats."""

    reference: str
    """The model that scored them."""
    tolerance: float
    """A larger difference is a fault; of float16 columns, what float16 cannot tell apart comes on top."""
    pairs: int = 0
    tokens: int = 0
    """Completion tokens, of both sides."""
    ref_logp: float = 0.0
    ref_entropy: float | None = None
    dist: float | None = None
    """Of the head by rank, and of the draws that both scorings have."""
    ref_hidden: float | None = None
    """Relative to the root mean square of a token's hidden state."""
    draws: int = 0
    """Draws from the tail."""
    draws_alike: int = 0
    """Those that gave the same token again. Rounding moves a draw to a neighbour: no fault by itself."""


@dataclass
class VerifyReport:
    """What :func:`verify_cache` found. ``ok`` where there is no fault; ``print(report)`` shows all of it."""

    path: str
    shards: int
    """In the ledger."""
    rows: int
    """Pairs in the ledger."""
    completion_tokens: int
    faults: list[Fault]
    """Of each file the first few."""
    more: dict[str, int]
    """File -> its faults beyond those."""
    rescore: int = 0
    """How many pairs were to be scored again."""
    rescored: Rescored | None = None
    """What that gave; None where none were, or where shards have faults."""

    @property
    def ok(self) -> bool:
        """Whether there is no fault."""
        return not self.faults

    def to_json(self) -> str:
        """The report for a program."""
        return json.dumps({"ok": self.ok, **asdict(self)}, indent=2, ensure_ascii=False)

    def __str__(self) -> str:
        lines = [str(fault) for fault in self.faults]
        lines += [f"{file}: {count:,} more faults" for file, count in self.more.items()]
        count = len(self.faults) + sum(self.more.values())
        found = f"{count:,} fault{'s' if count > 1 else ''}" if count else "no faults"
        lines.append(
            f"{self.path}: {found} in {self.rows:,} pairs, {self.completion_tokens:,} completion tokens, "
            f"{self.shards:,} shard{'' if self.shards == 1 else 's'}"
        )
        if self.rescored is not None:
            lines += _describe(self.rescored)
        elif self.rescore:
            lines.append("  rescored     no pairs: put the shards right first")
        return "\n".join(lines)


def _describe(rescored: Rescored) -> Iterator[str]:
    yield f"  rescored     {rescored.pairs:,} pairs, {rescored.tokens:,} tokens, with {rescored.reference}"
    for name, unit in _UNITS.items():
        if (value := getattr(rescored, name)) is not None:
            yield f"  {name:<13}differs by at most {value:.2g} {unit}"
    if rescored.draws:
        yield f"  draws        {rescored.draws_alike:,} of {rescored.draws:,} from the tail came out the same"


@keep_random_states()
def verify_cache(
    path: str | os.PathLike[str],
    rescore: int = 0,
    ref: str | os.PathLike[str] | None = None,
    *,
    quiet: bool = False,
) -> VerifyReport:
    """Check a cache against its own ledger and format; what ``tdpo cache verify`` does.

    Args:
        path: the cache's folder.
        rescore: how many pairs, drawn at random, the reference scores again; none where a shard has a fault.
        ref: the reference to do so: a folder or a hub name; the one that the manifest names when not given.
        quiet: show no progress.

    Raises:
        TdpoError: there is no cache, its manifest cannot be read, or the model cannot be used.
    """
    folder = Folder.at(path)
    manifest = read_manifest(folder)
    if rescore < 0:
        raise ConfigError(f"--rescore {rescore}: give the number of pairs to score again, 0 for none")
    if ref is not None and not rescore:
        raise ConfigError("--ref is the model to score again with: give --rescore N with it")
    model = _find_reference(manifest, folder.location, ref) if rescore else None
    with Progress("verifying", manifest.rows, "pairs", quiet=quiet) as progress:
        faults = check_cache(folder, manifest, progress.reach)
    rescored = None
    if model is not None and not faults.counts.keys() & {shard.file for shard in manifest.shards}:
        rescored = _rescore(
            CacheReader(path, cached_groups=1, allow_incomplete=True), model, rescore, faults, quiet
        )
    return VerifyReport(
        folder.location,
        len(manifest.shards),
        manifest.rows,
        manifest.completion_tokens,
        faults.shown,
        faults.more,
        rescore,
        rescored,
    )


def _find_reference(manifest: Manifest, folder: str, ref: str | os.PathLike[str] | None) -> ModelSource:
    name = None if ref is None else os.fspath(ref)
    source = find_reference(manifest, folder, option="--ref", name=name)
    theirs = source.config.get_text_config().vocab_size
    ours = CachedStatistics.of(manifest.identity).vocab_size
    if theirs != ours:
        raise ModelError(
            f"--ref {source.name}: has {theirs} logits where the cache's reference has {ours}; give the "
            "model that the cache was built with"
        )
    return source


def _reference(manifest: Manifest) -> dict[str, Any]:
    found = manifest.identity.get("reference")
    return found if isinstance(found, dict) else {}


def _rescore(reader: CacheReader, source: ModelSource, count: int, faults: Faults, quiet: bool) -> Rescored:
    """Score pairs again, add what differs to ``faults``, and return the largest differences."""
    from ..scoring.scorer import ReferenceScorer

    made = _reference(reader.manifest)
    dtype, attention = made.get("dtype", "auto"), made.get("attention")
    rows = np.sort(np.random.default_rng().choice(len(reader), min(count, len(reader)), replace=False))
    # Quantised layers round their inputs together with those of the batch.
    tolerance = _LOW_PRECISION if source.quantization else _TOLERANCE.get(dtype, _LOW_PRECISION)
    comparison = _Comparison(reader, Rescored(source.name, tolerance), faults)
    with quiet_libraries(), Progress("rescoring", len(rows), "pairs", quiet=quiet) as progress:
        model = load_model(source, dtype=dtype, attention=None if attention == "auto" else attention)
        sharing = "auto" if reader.manifest.identity.get("layout") == "shared" else "off"
        held = reader.cached
        scorer = ReferenceScorer(
            model,
            held.head,
            held.tail,
            held.seed,
            hidden=held.hidden,
            head_mass=held.head_mass,
            tail_mass=held.tail_mass,
            prompt_sharing=sharing,
        )
        for start in range(0, len(rows), _READ_PAIRS):
            cached = {one.pair.row: one for one in reader.read(rows[start : start + _READ_PAIRS])}
            _check_lengths(source, cached.values())
            for _, scored in scorer.score([one.pair for one in cached.values()]):
                for again in scored:
                    comparison.add(cached[again.pair.row], again)
                progress.advance(len(scored))
    reader.close()
    return comparison.result


def _check_lengths(source: ModelSource, cached: Iterable[ScoredPair]) -> None:
    for pair in (one.pair for one in cached):
        length = len(pair.prompt_ids) + max(len(pair.chosen_ids), len(pair.rejected_ids))
        if source.max_length is not None and length > source.max_length:
            raise ModelError(
                f"--ref {source.name}: takes {source.max_length} tokens, row {pair.row} of the cache has "
                f"{length}; give the model that the cache was built with"
            )


class _Comparison:
    """Takes in pairs as cached and as scored again; keeps the largest differences and collects the faults."""

    def __init__(self, reader: CacheReader, result: Rescored, faults: Faults):
        self.result, self.faults = result, faults
        self.head = reader.head
        # What the columns' types cannot tell apart, relative to the value.
        self.rounding = {"ref_entropy": FLOAT16_ERROR, "dist": FLOAT16_ERROR}
        if reader.cached.hidden == "bfloat16":
            self.rounding["ref_hidden"] = _BFLOAT16_ERROR
        self.shard_rows = reader.manifest.shard_rows
        self.files = {shard.index: shard.file for shard in reader.manifest.shards}

    def add(self, cached: ScoredPair, again: ScoredPair) -> None:
        """Compare one pair's statistics."""
        self.result.pairs += 1
        self.result.tokens += cached.pair.completion_tokens
        row, k = cached.pair.row, self.head
        for side in SIDES:
            ours, theirs = cached.side(side), again.side(side)
            self._compare(row, f"{side}_ref_logp", "ref_logp", ours.ref_logp, theirs.ref_logp)
            if ours.ref_entropy is not None:
                self._compare(row, f"{side}_ref_entropy", "ref_entropy", ours.ref_entropy, theirs.ref_entropy)
            if ours.ref_hidden is not None:
                states = _floats(ours.ref_hidden)
                size = np.sqrt(np.square(states).mean(1, keepdims=True)).clip(min=1e-30)
                again_states = _floats(theirs.ref_hidden) / size
                self._compare(row, f"{side}_ref_hidden", "ref_hidden", states / size, again_states)
            if ours.dist_ids is None or theirs.dist_ids is None:
                continue
            logp, now = _floats(ours.dist_logp), _floats(theirs.dist_logp)
            # The head by rank and the entries by id: where two tokens are as likely, either may come first.
            self._compare(row, f"{side}_dist_logp", "dist", logp[:, :k], now[:, :k])
            at_ids = _at_ids(ours.dist_ids, logp, theirs.dist_ids, now, k)
            self._compare(row, f"{side}_dist_logp", "dist", logp, at_ids)
            drawn = logp[:, k:] > -np.inf
            self.result.draws += int(drawn.sum())
            self.result.draws_alike += int((drawn & (ours.dist_ids[:, k:] == theirs.dist_ids[:, k:])).sum())

    def _compare(self, row: int, column: str, name: str, cached: Any, again: Any) -> None:
        cached, again = (_floats(values).reshape(len(values), -1) for values in (cached, again))
        # What is not finite differs by as much as the format can say, but for entries that one of the two
        # does not have: rounding moves a head's end.
        with np.errstate(invalid="ignore"):
            apart = np.nan_to_num(np.abs(cached - again), nan=-FLOAT16_MIN, posinf=-FLOAT16_MIN)
        if name == "dist":
            apart[(cached == -np.inf) | (again == -np.inf)] = 0
        if not apart.size:
            return
        setattr(self.result, name, max(getattr(self.result, name) or 0.0, float(apart.max())))
        bad = apart > self.result.tolerance + self.rounding.get(name, 0) * np.abs(cached)
        if bad.any():
            token, entry = np.unravel_index(np.where(bad, apart, -1).argmax(), apart.shape)
            file = str(self.files[row // self.shard_rows])
            place = f"token {token}" + (f", entry {entry}" if name in ("dist", "ref_hidden") else "")
            what = (
                f"{place} differs by {apart[token, entry]:.3g} {_UNITS[name]}: {cached[token, entry]:.6g} in "
                f"the cache, {again[token, entry]:.6g} scored again (tolerance {self.result.tolerance:g})"
            )
            self.faults.add(file, row, column, what)


def _floats(values: Any) -> "NDArray[np.float64]":
    return np.asarray(values, dtype=np.float64)


def _at_ids(
    ids: "NDArray[Any]", logp: "NDArray[Any]", again_ids: "NDArray[Any]", again: "NDArray[Any]", head: int
) -> "NDArray[np.float64]":
    """What the second scoring says of the cached entries, [T, n].

    Of an entry that it does not list it says only that it is no likelier than the last of its head; as far as
    the cache agrees with that, the cached value is returned.
    """
    absent = int(max(ids.max(initial=0), again_ids.max(initial=0))) + 1
    width = absent + 1
    ids, again_ids = (
        np.where(values > -np.inf, some.astype(np.int64), absent)
        for some, values in ((ids, logp), (again_ids, again))
    )
    tokens = np.arange(len(ids))[:, None] * width
    keys, listed = (tokens + ids).ravel(), (tokens + again_ids).ravel()
    order = np.argsort(listed)
    places = order[np.searchsorted(listed, keys, sorter=order).clip(max=len(order) - 1)]
    last = np.where(again[:, :head] > -np.inf, again[:, :head], np.inf).min(1, initial=np.inf, keepdims=True)
    bound = np.minimum(logp, last)
    return np.where(listed[places] == keys, again.ravel()[places], bound.ravel()).reshape(ids.shape)
