"""Diversity and win rates, against counting by hand, exact fractions and simulation."""

import math
import random
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tdpo.core.evaluating.diversity import (
    FIGURES,
    distinct,
    distinct_per,
    expected_distinct,
    ngrams,
    repetition,
    unique,
)
from tdpo.core.evaluating.winrate import wins


def test_distinct_counts_kinds_over_all():
    said = [[1, 2, 1, 2, 1], [1, 2, 3], [7]]
    assert distinct(said, 1) == 4 / 9
    assert distinct(said, 2) == 3 / 6  # 12, 21, 23 of 12 21 12 21 12 23
    assert distinct(said, 3) == 3 / 4
    assert distinct(said, 4) == 2 / 2


def test_ngrams_do_not_cross_completions_and_short_ones_have_none():
    assert list(ngrams([1, 2, 3], 2)) == [(1, 2), (2, 3)]
    assert list(ngrams([1], 2)) == []
    assert distinct([[1], [2]], 1) == 1
    assert math.isnan(distinct([[1], [2]], 2))


def test_what_cannot_be_said_of_so_few_is_no_number():
    assert {name for name, figure in FIGURES.items() if math.isnan(figure([]))} == FIGURES.keys()
    known = {name for name, figure in FIGURES.items() if not math.isnan(figure([[1, 2, 3, 4]]))}
    assert known == {"distinct_1", "distinct_2", "distinct_3", "distinct_4", "unique"}


def test_equal_completions_are_not_unique():
    assert unique([[1, 2], [1, 2], [1, 2], [3]]) == 0.5
    assert unique([[], []]) == 0.5


def test_repetition_is_the_share_of_ngrams_seen_before():
    assert repetition([1, 2, 3, 4, 5]) == 0
    assert repetition([1, 2, 3]) == 0
    assert repetition([1] * 13) == pytest.approx(9 / 10)
    assert repetition([1, 2, 1, 2], n=2) == pytest.approx(1 / 3)


@given(st.lists(st.integers(1, 30), min_size=1, max_size=20), st.data())
def test_expected_distinct_equals_the_hypergeometric_expectation(values, data):
    counts = Counter({(kind,): count for kind, count in enumerate(values)})
    total = sum(values)
    size = data.draw(st.integers(1, total))
    exact = sum(1 - Fraction(math.comb(total - n, size), math.comb(total, size)) for n in values)
    assert expected_distinct(counts, size) == pytest.approx(float(exact), rel=1e-9)


def test_the_rarefied_figure_does_not_fall_with_the_number_of_samples():
    rng = random.Random(0)
    weights = [1 / (rank + 1) for rank in range(500)]

    def samples(count):
        return [rng.choices(range(500), weights, k=20) for _ in range(count)]

    few, many = samples(100), samples(4000)
    assert distinct(many, 1) < distinct(few, 1) / 5
    assert distinct_per(many, 1) == pytest.approx(distinct_per(few, 1), rel=0.05)


def test_win_rate_counts_every_meeting_and_ties_half():
    ours = np.array([[1.0, 2.0], [0.0, 0.0], [5.0, 5.0]])
    theirs = np.array([[1.0, 3.0], [0.0, 0.0], [1.0, 2.0]])
    np.testing.assert_array_equal(wins(ours, theirs), [[0.25, 0.5], [0.5, 0.5], [1.0, 1.0]])
    np.testing.assert_array_equal(wins(ours, theirs[:, :1]), [[0.5, 1.0], [0.5, 0.5], [1.0, 1.0]])


@given(st.integers(0, 2**32 - 1))
def test_win_rates_of_both_sides_add_up_to_one(seed):
    generator = np.random.default_rng(seed)
    ours, theirs = generator.integers(0, 4, (2, 5, 3)).astype(float)
    np.testing.assert_allclose(wins(ours, theirs).mean(1) + wins(theirs, ours).mean(1), 1)
