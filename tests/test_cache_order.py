"""An epoch visits every row once, in an order that only the seed and the epoch decide."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tdpo.cache.order import epoch_order

sizes = st.lists(st.integers(0, 9), max_size=30)


@given(sizes, st.integers(-5, 2**40), st.integers(0, 100), st.integers(1, 40))
def test_an_epoch_is_a_permutation_and_repeats_itself(group_sizes, seed, epoch, pool_groups):
    order = epoch_order(group_sizes, seed, epoch, pool_groups)
    assert order.dtype == np.int64
    np.testing.assert_array_equal(np.sort(order), np.arange(sum(group_sizes)))
    np.testing.assert_array_equal(order, epoch_order(group_sizes, seed, epoch, pool_groups))


@given(st.integers(1, 12), st.integers(0, 50))
def test_each_pool_of_groups_is_read_before_the_next(pool_groups, seed):
    order = epoch_order([4] * 30, seed, 0, pool_groups)
    for first in range(0, len(order), 4 * pool_groups):
        part = order[first : first + 4 * pool_groups]
        assert len(set(part // 4)) * 4 == len(part)


def test_epochs_and_seeds_differ_and_the_global_generator_is_left_alone():
    np.random.seed(7)  # noqa: NPY002
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    orders = [tuple(epoch_order([8] * 8, seed, epoch)) for seed in range(3) for epoch in range(3)]
    assert len(set(orders)) == 9
    np.testing.assert_array_equal(before, np.random.get_state()[1])  # noqa: NPY002


def test_the_order_never_changes_between_versions():
    assert epoch_order([2, 3, 1], seed=1, epoch=2, pool_groups=2).tolist() == [3, 4, 5, 2, 1, 0]


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="pool_groups"):
        epoch_order([1], 0, 0, 0)
    with pytest.raises(ValueError, match="negative"):
        epoch_order([-1], 0, 0)
