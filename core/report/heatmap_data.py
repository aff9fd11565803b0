"""The numbers behind token heatmaps, small enough to travel inside a page: what heatmap.js reads."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...cache.pairs import SIDES
from .colours import DIVERGING_STEPS, SEQUENTIAL_STEPS
from .token_scores import RunTokens, TokenSide

MOST_TOKENS = 4000
"""Tokens of a completion that are shown, at most."""
QUANTILE = 0.98
"""Colours go up to this quantile of the tokens' values, so that a few tokens do not take all of them."""

# (alternatives a token, tokens of a completion): the first that fit a budget are taken.
_SIZES = (
    (8, MOST_TOKENS),
    (5, MOST_TOKENS),
    (3, MOST_TOKENS),
    (3, 2000),
    (3, 1000),
    (2, 500),
    (1, 250),
    (0, 100),
)
# An alternative that is less likely than that to the reference says nothing.
_LEAST = 1e-3
# The least end of a scale: below it all is the same, as where the policy equals the reference.
_FLOOR = 1e-3


@dataclass(frozen=True)
class Quantity:
    """What tokens may be coloured by."""

    key: str
    """A field of :class:`~tdpo.core.report.token_scores.TokenSide`."""
    label: str
    note: str
    """Its formula."""
    unit: str = "nats"
    sums: bool = True
    """Whether its sum over a completion means something."""
    signed: bool = False
    """Whether a value below zero is as good as one above. An estimate of the KL may be a little below."""


QUANTITIES = (
    Quantity("reward", "implicit reward", "\u03b2 \u00b7 (log \u03c0 \u2212 log ref)", signed=True),
    Quantity("log_ratio", "log-ratio", "log \u03c0 \u2212 log ref", signed=True),
    Quantity("forward_kl", "forward KL", "KL(ref \u2016 \u03c0)"),
    Quantity("ref_entropy", "reference entropy", "H(ref)", sums=False),
    Quantity("entropy", "policy entropy", "H(\u03c0)", sums=False),
    Quantity("token_weight", "token weight", "w", unit="", sums=False),
)


@dataclass(frozen=True)
class Shown:
    """A pair to show, and why."""

    row: int
    """In the cache."""
    pair_id: str
    why: str
    """In a word or two, such as ``hardest``."""


@dataclass(frozen=True)
class HeatmapData:
    """What a page is given, and how much of it."""

    content: dict[str, Any]
    """JSON."""
    alternatives: int
    """Of a token, at most."""


def heatmap_data(shown: Sequence[Shown], runs: Sequence[RunTokens], budget: int) -> HeatmapData:
    """The numbers of some pairs under some runs.

    Args:
        shown: the pairs.
        runs: each has scored just these pairs, in this order.
        budget: bytes; alternatives, and then tokens, are left out until it is met, or next to none are left.
    """
    for alternatives, tokens in _SIZES:
        content = _Packing(runs, alternatives, tokens).content(shown)
        if len(json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()) <= budget:
            break
    return HeatmapData(content, alternatives)


class _Packing:
    """The content with so many alternatives a token and so many tokens a completion."""

    def __init__(self, runs: Sequence[RunTokens], alternatives: int, tokens: int):
        self.runs, self.alternatives, self.tokens = runs, alternatives, tokens
        self.quantities = list(_quantities(runs))
        self.keys = [str(one["key"]) for one in self.quantities]
        self.names = {index: name for run in runs for index, name in run.names.items()}
        self.references = _references(runs)
        self.texts: list[str] = []
        self._places: dict[int, int] = {}

    def content(self, shown: Sequence[Shown]) -> dict[str, Any]:
        """All of it."""
        pairs = []
        for number, one in enumerate(shown):
            scored = [run.pairs[number] for run in self.runs]
            about = {"id": one.pair_id, "row": one.row, "why": one.why, "prompt": scored[0].prompt}
            about["prompt_tokens"] = len(scored[0].pair.prompt_ids)
            pairs.append(about | {side: self._side([pair.side(side) for pair in scored]) for side in SIDES})
        return {
            "pairs": pairs,
            "runs": [
                {"name": run.name, "beta": run.beta, "reference": reference}
                for run, reference in zip(self.runs, self.references, strict=True)
            ],
            "quantities": self.quantities,
            "steps": [DIVERGING_STEPS, SEQUENTIAL_STEPS],
            "texts": self.texts,
        }

    def _side(self, scored: Sequence[TokenSide]) -> dict[str, Any]:
        """One completion under all runs."""
        first = scored[0]
        names = [self._text(index) for index in first.ids[: self.tokens].tolist()]
        pieces = zip(names, first.pieces[: self.tokens], strict=True)
        others = {str(at): piece for at, (name, piece) in enumerate(pieces) if piece != self.texts[name]}
        special = self.runs[0].special
        distinct = [self.references.index(number) for number in dict.fromkeys(self.references)]
        return {
            "tokens": len(first.ids),
            "names": names,
            "other": others,
            "special": [at for at, index in enumerate(first.ids[: self.tokens].tolist()) if index in special],
            "references": [self._reference(scored[number]) for number in distinct],
            "runs": [self._own(one) for one in scored],
        }

    def _reference(self, one: TokenSide) -> dict[str, Any]:
        """What a reference says of a completion."""
        ids = one.alternatives.ids[: self.tokens, : self.alternatives].numpy()
        ref_p, kept = self._kept(one)
        return {
            "logp": _short(one.ref_logp[: self.tokens]),
            "entropy": None if one.ref_entropy is None else _short(one.ref_entropy[: self.tokens]),
            "alternatives": [[self._text(index) for index in row] for row in _rows(ids, kept)],
            "p": _rows(_cut(ref_p), kept),
        }

    def _own(self, one: TokenSide) -> dict[str, Any]:
        """What one run's policy says of a completion."""
        values = {key: x for key in self.keys if (x := getattr(one, key)) is not None}
        _, kept = self._kept(one)
        p = one.alternatives.logp[: self.tokens, : self.alternatives].exp().numpy()
        # The reward follows from the log-ratio, and what the reference says is said once.
        own = {
            key: _short(x[: self.tokens]) for key, x in values.items() if key not in ("reward", "ref_entropy")
        }
        sums = {key: float(f"{x.sum(dtype=np.float64):.6g}") for key, x in values.items()}
        return {**own, "p": _rows(_cut(p), kept), "sums": sums}

    def _kept(self, one: TokenSide) -> tuple[np.ndarray, np.ndarray]:
        """Probabilities of the reference's alternatives [T, n], and which are shown."""
        ref_p = one.alternatives.ref_logp[: self.tokens, : self.alternatives].exp().numpy()
        return ref_p, ref_p >= _LEAST

    def _text(self, index: int) -> int:
        """The place of a token's text among the texts."""
        if index not in self._places:
            self._places[index] = len(self.texts)
            self.texts.append(self.names[index])
        return self._places[index]


def _references(runs: Sequence[RunTokens]) -> list[int]:
    """The number of each run's reference; those that said the same have one number."""
    found: list[list[np.ndarray]] = []
    numbers = []
    for run in runs:
        said = [pair.side(side).ref_logp for pair in run.pairs for side in SIDES]
        same = (all(map(np.array_equal, said, other)) for other in found)
        number = next((at for at, equal in enumerate(same) if equal), len(found))
        if number == len(found):
            found.append(said)
        numbers.append(number)
    return numbers


def _quantities(runs: Sequence[RunTokens]) -> Iterator[dict[str, Any]]:
    """Those that any run has, with the range of the colours under each run."""
    for one in QUANTITIES:
        every = _values(runs, one.key)
        if not len(every):
            continue
        # Rewards grow with beta: only those of one beta are to be compared.
        alike = [[other for other in runs if one.key != "reward" or other.beta == run.beta] for run in runs]
        estimated = one.key == "forward_kl" and not all(run.exact for run in runs)
        yield {
            "key": one.key,
            "label": one.label,
            "note": one.note + ", an estimate" * estimated,
            "unit": one.unit,
            "sums": one.sums,
            "signed": one.signed or (one.key == "token_weight" and bool((every < 0).any())),
            "limits": [_limit(_values(group, one.key)) for group in alike],
        }


def _values(runs: Sequence[RunTokens], key: str) -> np.ndarray:
    """A quantity at all tokens of some runs, where it is finite."""
    sides = [pair.side(side) for run in runs for pair in run.pairs for side in SIDES]
    every = np.concatenate([np.empty(0), *(x for side in sides if (x := getattr(side, key)) is not None)])
    return every[np.isfinite(every)]


def _limit(values: np.ndarray) -> float:
    return _round_up(float(np.quantile(np.abs(values), QUANTILE)) if len(values) else 0.0)


def _round_up(value: float) -> float:
    """Up to two significant digits."""
    value = max(value, _FLOOR)
    unit = 10.0 ** (np.floor(np.log10(value)) - 1)
    return float(f"{np.ceil(value / unit - 1e-9) * unit:.2g}")


def _rows(values: np.ndarray, kept: np.ndarray) -> list[list[Any]]:
    return [row[there].tolist() for row, there in zip(values, kept, strict=True)]


def _cut(values: np.ndarray) -> np.ndarray:
    """Numbers with three significant digits, none finer than 0.0001, float64."""
    wide = np.round(values.astype(np.float64), 4)
    size = np.floor(np.log10(np.maximum(np.abs(wide), 1e-4)))
    factor = 10.0 ** np.clip(2 - size, 0, 6)
    found: np.ndarray = np.round(wide * factor) / factor
    return found


def _short(values: np.ndarray) -> list[Any]:
    """The same for JSON: whole numbers without a point, None for what is not finite."""
    return [None if not np.isfinite(x) else int(x) if x == int(x) else x for x in _cut(values).tolist()]
