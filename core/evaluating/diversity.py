"""How varied samples are: distinct n-grams, repetition inside a completion, completions that are unique."""

from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from functools import partial
from math import nan

import numpy as np

Completions = Sequence[Sequence[Hashable]]
"""Of any prompts, as tokens or words."""
Figure = Callable[[Completions], float]

# N-grams in the figure that does not depend on how much was sampled.
_RAREFIED = 1000


def distinct(completions: Completions, n: int) -> float:
    """Different n-grams over all n-grams (Li et al., 2016, arXiv 1510.03055); NaN where there are none.

    It falls with the number of samples and their length: compare equally many.
    """
    counts = _counted(completions, n)
    return len(counts) / counts.total() if counts else nan


def distinct_per(completions: Completions, n: int, size: int = _RAREFIED) -> float:
    """Different n-grams to expect among ``size`` of all, as a share; NaN where there are fewer.

    It does not depend on how many samples there are.
    """
    counts = _counted(completions, n)
    return expected_distinct(counts, size) / size if counts.total() >= size else nan


def unique(completions: Completions) -> float:
    """Different completions over all; NaN where there are none."""
    return len({tuple(one) for one in completions}) / len(completions) if completions else nan


FIGURES: Mapping[str, Figure] = {
    **{f"distinct_{n}": partial(distinct, n=n) for n in (1, 2, 3, 4)},
    **{f"distinct_{n}_per_{_RAREFIED}": partial(distinct_per, n=n) for n in (1, 2, 3, 4)},
    "unique": unique,
}
"""By name, the figures of a model's samples as a whole."""


def repetition(tokens: Sequence[Hashable], n: int = 4) -> float:
    """Share of a completion's n-grams that it held before; 0 where it is shorter than ``n``.

    seq-rep-n of Welleck et al. (2019), arXiv 1908.04319.
    """
    found = list(ngrams(tokens, n))
    return 1 - len(set(found)) / len(found) if found else 0.0


def ngrams(tokens: Sequence[Hashable], n: int) -> Iterator[tuple[Hashable, ...]]:
    """Every ``n`` tokens that follow one another."""
    return zip(*(tokens[start:] for start in range(n)), strict=False)


def expected_distinct(counts: Counter[tuple[Hashable, ...]], size: int) -> float:
    """Kinds to expect among ``size`` things drawn without replacement: rarefaction (Hurlbert, 1971).

    ``sum_i 1 - C(N - n_i, size) / C(N, size)``, for ``n_i`` things of kind i out of N.

    Args:
        counts: how many things there are of each kind.
        size: at most as many as there are.
    """
    total = counts.total()
    # log C(N - n, size) / C(N, size) as a running sum over n: the chance of missing n things.
    most = max(counts.values(), default=0)
    before = np.arange(min(most, total - size), dtype=np.float64)
    log_missed = np.concatenate([[0.0], np.log1p(-size / (total - before)).cumsum()])
    missed = np.zeros(most + 1)
    missed[: len(log_missed)] = np.exp(log_missed)
    of_kind = np.fromiter(counts.values(), dtype=np.int64, count=len(counts))
    return float((1 - missed[of_kind]).sum())


def _counted(completions: Completions, n: int) -> Counter[tuple[Hashable, ...]]:
    return Counter(gram for one in completions for gram in ngrams(one, n))
