"""Token lengths of a cache, and policies with fewer positions than its sequences have tokens."""

import shutil

import numpy as np
import pytest

import tdpo
from tdpo.cache.lengths import pair_lengths
from tdpo.core.checks import check_positions
from tdpo.core.config.fit import FitConfig
from tdpo.core.errors import CacheError, ModelError


def longest_row(reader):
    """Row and tokens of the longest sequence, from the pairs themselves."""
    tokens = [
        len(one.pair.prompt_ids) + max(len(one.pair.chosen_ids), len(one.pair.rejected_ids)) for one in reader
    ]
    return int(np.argmax(tokens)), max(tokens)


def test_lengths_are_those_of_the_pairs_in_the_readers_order(cache):
    reader = tdpo.open_cache(cache)
    lengths = pair_lengths(reader)
    pairs = [one.pair for one in reader]
    assert lengths.prompt.tolist() == [len(pair.prompt_ids) for pair in pairs]
    assert lengths.chosen.tolist() == [len(pair.chosen_ids) for pair in pairs]
    assert lengths.rejected.tolist() == [len(pair.rejected_ids) for pair in pairs]
    row, tokens = longest_row(reader)
    assert lengths.sequence.argmax() == row
    assert lengths.sequence.max() == tokens


def test_a_damaged_shard_is_named(tmp_path, cache):
    folder = shutil.copytree(cache, tmp_path / "cache")
    reader = tdpo.open_cache(folder)
    path = sorted(folder.glob("*.parquet"))[1]
    path.write_bytes(path.read_bytes()[:-100] + bytes(100))
    with pytest.raises(CacheError, match=path.name):
        pair_lengths(reader)


class Model:
    """A policy, as far as the check looks at it."""

    name = "policy"

    def __init__(self, max_length):
        self.max_length = max_length


def check(cache, positions, **options):
    reader = tdpo.open_cache(cache)
    config = FitConfig(plugin="dpo", cache=str(cache), **options)
    evaluations = {"": reader} if options else {}
    check_positions(config, Model(positions), reader, evaluations)


def test_a_policy_needs_a_position_for_every_token_of_the_longest_sequence(cache):
    row, tokens = longest_row(tdpo.open_cache(cache))
    check(cache, tokens)
    check(cache, None)
    with pytest.raises(ModelError, match=rf"--cache .*: row {row} is a sequence of {tokens} tokens") as error:
        check(cache, tokens - 1)
    assert f"policy takes {tokens - 1}" in str(error.value)
    assert f"--max-length {tokens - 1}" in str(error.value)


def test_rows_are_not_read_where_the_build_was_limited_to_as_much(tmp_path, cache):
    """The build's limit is the reference's 128 positions; a shard that cannot be read is not noticed."""
    folder = shutil.copytree(cache, tmp_path / "cache")
    for path in folder.glob("*.parquet"):
        path.write_bytes(bytes(path.stat().st_size))
    check(folder, 128)
    with pytest.raises(CacheError):
        check(folder, 127)
