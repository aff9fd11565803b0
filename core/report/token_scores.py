"""What a run did to each token of some pairs: its policy's scores beside the cached reference's."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from torch import Tensor

from ...cache.pairs import SIDES, Pair, Side
from ..checks import check_needs
from ..composing import compose, prepare
from ..composition import Composition
from ..errors import CacheError, ConfigError
from ..evaluating.scorer import PairScorer, ScoredBatch, open_policy_for
from ..join_plan import plan_join
from ..joining import joined_reader
from ..objective import Completions, Objective
from ..runs.folder import RunFolder
from ..weighting import Weighting
from .alternatives import Alternatives, likeliest_tokens
from .pieces import decode, special_ids, token_name, token_pieces

ALTERNATIVES = 8


@dataclass(frozen=True)
class TokenSide:
    """One completion of T tokens under one run's policy; numbers are float32 [T], in nats."""

    ids: np.ndarray
    """[T] int32."""
    pieces: list[str]
    """[T]: the text that each token adds."""
    logp: np.ndarray
    ref_logp: np.ndarray
    log_ratio: np.ndarray
    """``logp - ref_logp``, without weights."""
    reward: np.ndarray | None
    """The token's share of the implicit reward, ``beta * token_weight * log_ratio``; None without a beta."""
    forward_kl: np.ndarray | None
    """KL(reference || policy); None where the cache has nothing of the reference's distributions."""
    entropy: np.ndarray
    """The policy's."""
    ref_entropy: np.ndarray | None
    token_weight: np.ndarray | None
    """None where no weighting weighs tokens."""
    alternatives: Alternatives


@dataclass(frozen=True)
class TokenPair:
    """A pair, both sides token by token."""

    pair: Pair
    prompt: str
    chosen: TokenSide
    rejected: TokenSide

    def side(self, side: Side) -> TokenSide:
        """One of the sides."""
        return self.chosen if side == "chosen" else self.rejected


@dataclass(frozen=True)
class RunTokens:
    """Some pairs under the policy of one run."""

    name: str
    beta: float | None
    """Of the run's objective; None where it has none."""
    exact: bool
    """Whether the divergences are those of whole distributions, not estimates from the cached sample."""
    pairs: list[TokenPair]
    """In the order asked for."""
    names: dict[int, str]
    """Token id -> text, of all tokens and alternatives."""
    special: frozenset[int]
    """Ids of the tokens that mean something else than their text."""
    notes: list[str] = field(default_factory=list)
    """What could not be had, in sentences."""


def score_tokens(
    run: RunFolder,
    reader: Any,
    rows: Sequence[int],
    *,
    count: int = ALTERNATIVES,
    batch_tokens: int = 8192,
    dtype: str = "auto",
) -> RunTokens:
    """Score pairs of a cache with a run's policy.

    The sides are the cache's own, also of a run that was trained with its labels exchanged.

    Args:
        run: must hold its policy.
        reader: of the cache.
        rows: row numbers of the pairs.
        count: alternatives a token at most.
        batch_tokens: tokens of a forward pass at most, padding included.
        dtype: of the policy's parameters, by torch's name; as saved by default.

    Raises:
        ModelError: the policy cannot be opened, or its tokenizer is not the cache's.
        TdpoError: what the run was made with is not to be had any more, such as a plugin.
    """
    objective = compose(run.config.plugin, run.config.weighting, run.config.set)
    joined, weigher, notes = _with_scores(run, objective, reader)
    model, tokenizer = open_policy_for(joined, run.path, option="RUN", dtype=dtype)
    scorer = PairScorer(
        model,
        joined,
        needs=weigher.needs if weigher is not None else frozenset(),
        estimator=run.config.kl_estimator,
        batch_tokens=batch_tokens,
    )
    beta = _beta(objective)
    others = {key: sides for key, *sides in likeliest_tokens(scorer, rows, count)}
    found: dict[str, TokenPair] = {}
    for batch in scorer.score(rows):
        sides = _weighed(batch, weigher, swap=run.config.swap)
        for at, pair in enumerate(batch.pairs):
            chosen, rejected = (
                _side(tokenizer, pair, side, _Row(one, at), beta, other)
                for side, one, other in zip(SIDES, sides, others[pair.pair_id], strict=True)
            )
            found[pair.pair_id] = TokenPair(pair, decode(tokenizer, pair.prompt_ids), chosen, rejected)
    pairs = [found[record.pair.pair_id] for record in reader.read(list(rows))]
    names = {index: token_name(tokenizer, index) for index in sorted(set(_shown_ids(pairs)))}
    return RunTokens(run.name, beta, joined.cached.whole, pairs, names, special_ids(tokenizer), notes)


def _with_scores(
    run: RunFolder, objective: Objective, reader: Any
) -> tuple[Any, Composition | None, list[str]]:
    """The cache with what the run reads beside it, and the run's weightings of tokens; what is lacking."""
    givers = tuple(
        (name, one)
        for name, one in getattr(objective, "weightings", ())
        if type(one).token_weights is not Weighting.token_weights
    )
    try:
        joined = joined_reader(reader, plan_join(run.config, objective, reader, "--cache"))
        check_needs(replace(run.config, cache=reader.location), objective, joined)
    except (CacheError, ConfigError) as error:
        lost = [f"{run.name}: its token weights are not shown ({error})"] if givers else []
        return reader, None, lost
    weigher = prepare(Composition(weightings=givers), joined) if givers else None
    assert weigher is None or isinstance(weigher, Composition)
    return joined, weigher, []


def _weighed(
    batch: ScoredBatch, weigher: Composition | None, *, swap: bool
) -> tuple[Completions, Completions]:
    if weigher is None:
        return batch.chosen, batch.rejected
    if swap:
        rejected, chosen = weigher.weigh_tokens(batch.rejected, batch.chosen)
        return chosen, rejected
    return weigher.weigh_tokens(batch.chosen, batch.rejected)


def _beta(objective: Objective) -> float | None:
    """The ``beta`` of an objective, or of the first of a sum, whose rewards are the run's."""
    if isinstance(objective, Composition):
        objective = objective.parts[0].objective
    beta = getattr(objective, "beta", None)
    return float(beta) if isinstance(beta, int | float) else None


@dataclass(frozen=True)
class _Row:
    """One completion of a batch's side."""

    side: Completions
    at: int

    def __call__(self, values: Tensor | None) -> np.ndarray | None:
        """Its values [T] out of those of the batch [B, T]."""
        if values is None:
            return None
        found: np.ndarray = values[self.at][self.side.mask[self.at]].float().numpy()
        return found


def _side(
    tokenizer: Any, pair: Pair, side: Side, row: _Row, beta: float | None, others: Alternatives
) -> TokenSide:
    ids, one = pair.ids(side), row.side
    logp, ref_logp, weight = row(one.logp), row(one.ref_logp), row(one.token_weight)
    entropy = row(one.entropy)
    assert logp is not None
    assert ref_logp is not None
    assert entropy is not None
    log_ratio = logp - ref_logp
    return TokenSide(
        ids=ids,
        pieces=token_pieces(tokenizer, ids.tolist(), pair.prompt_ids.tolist()),
        logp=logp,
        ref_logp=ref_logp,
        log_ratio=log_ratio,
        reward=None if beta is None else np.float32(beta) * (1 if weight is None else weight) * log_ratio,
        forward_kl=row(one.forward_kl),
        entropy=entropy,
        ref_entropy=row(one.ref_entropy),
        token_weight=weight,
        alternatives=others,
    )


def _shown_ids(pairs: Sequence[TokenPair]) -> Iterator[int]:
    for one in pairs:
        for side in (one.chosen, one.rejected):
            yield from side.ids.tolist()
            yield from side.alternatives.ids.flatten().tolist()
