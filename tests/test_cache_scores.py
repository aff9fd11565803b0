"""Score sets as files: what goes in comes out, whatever its shape, and other writers are refused."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_cache_roundtrip import build, random_pairs

from tdpo.cache.errors import CacheError
from tdpo.cache.manifest import read_manifest
from tdpo.cache.pairs import SIDES
from tdpo.cache.scores.reader import open_scores
from tdpo.cache.scores.sets import SHAPES, STORED, ScoreColumn, ScoreSet
from tdpo.cache.scores.verify import check_scores
from tdpo.cache.scores.writer import ScoreWriter
from tdpo.cache.storage.files import Folder

COLUMNS = st.builds(
    ScoreColumn, shape=st.sampled_from(SHAPES), dtype=st.sampled_from(sorted(STORED)), width=st.integers(1, 4)
)


def value(rng, column, tokens):
    """Numbers that the column's type holds, in the column's shape."""
    shape = {"token": (tokens,), "entries": (tokens, column.width)}.get(column.shape, (column.width,))
    if column.dtype.endswith("int32"):
        return rng.integers(0 if column.dtype[0] == "u" else -5, 2**31 - 1, shape).astype(column.dtype)
    return rng.normal(size=shape).astype(column.dtype)


def values_of(rng, columns, pairs):
    return {
        each: [
            value(rng, c, len(pair.ids("rejected" if each.startswith("rej") else "chosen"))) for pair in pairs
        ]
        for name, c in columns.items()
        for each in c.files_columns(name)
    }


def write(path, columns, scored, rng, shard_rows, row_group_rows):
    written = {}
    asked = ScoreSet("statistic", {"statistic": "x"}, {}, columns)
    with ScoreWriter(path, "set", asked, row_group_rows=row_group_rows) as writer:
        for index in writer.waiting:
            pairs = [one.pair for one in scored if one.pair.row // shard_rows == index]
            values = values_of(rng, columns, pairs)
            writer.write_shard(index, pairs, values)
            for at, pair in enumerate(pairs):
                written[pair.pair_id] = {name: each[at] for name, each in values.items()}
        writer.finish()
    return written


@settings(max_examples=20, deadline=None)
@given(
    count=st.integers(1, 20),
    columns=st.dictionaries(
        st.from_regex(r"[a-d][a-z0-9]{0,3}", fullmatch=True), COLUMNS, min_size=1, max_size=3
    ),
    shard_rows=st.integers(1, 25),
    row_group_rows=st.integers(1, 8),
    seed=st.integers(0, 1000),
)
def test_values_come_back_by_pair(tmp_path_factory, count, columns, shard_rows, row_group_rows, seed):
    path, rng = tmp_path_factory.mktemp("scores") / "cache", np.random.default_rng(seed)
    # Some rows of the source data are skipped, and with them perhaps a whole shard.
    rows = sorted(rng.choice(2 * count, count, replace=False).tolist())
    scored = random_pairs(rows, seed=seed)
    build(path, scored, shard_rows=shard_rows, source_rows=2 * count)
    written = write(path, columns, scored, rng, shard_rows, row_group_rows)
    order = rng.permutation(count)
    pairs = [scored[at].pair for at in order]
    found = open_scores(path, "set", cached_groups=2).read(pairs)
    for name, values in found.items():
        for pair, got in zip(pairs, values, strict=True):
            want = written[pair.pair_id][name]
            assert (got.dtype, got.shape) == (want.dtype, want.shape)
            np.testing.assert_array_equal(got, want)
            assert not got.flags.writeable
    folder = Folder.at(path)
    assert list(check_scores(folder, read_manifest(folder))) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v["chosen_a"].__setitem__(0, [float("inf")] * len(v["chosen_a"][0])), "not finite"),
        (lambda v: v["chosen_a"].__setitem__(0, [0.0] * 40), "has values for 40 of"),
        (lambda v: v["chosen_a"].__setitem__(0, [[0.0]]), "cannot be an array of shape"),
        (lambda v: v["b"].__setitem__(1, [1, 2, 3]), "has 3 values where others have 2"),
        (lambda v: v["b"].__setitem__(0, [1.5, 2]), "not int32"),
        (lambda v: v.pop("b"), "one value a pair is due for each of chosen_a, rejected_a, b"),
        (lambda v: v["b"].pop(), "one value a pair is due"),
        (lambda v: v.update(c=v["b"]), "one value a pair is due"),
    ],
)
def test_what_does_not_fit_is_refused_and_what_was_written_stays(tmp_path, change, message):
    scored = random_pairs(range(10))
    build(tmp_path / "cache", scored, shard_rows=5)
    columns = {"a": ScoreColumn("token"), "b": ScoreColumn("pair", "int32")}
    rng = np.random.default_rng(0)
    with ScoreWriter(tmp_path / "cache", "set", ScoreSet("statistic", {}, {}, columns)) as writer:
        shards = [[one.pair for one in scored[start : start + 5]] for start in (0, 5)]
        with_width = {**columns, "b": ScoreColumn("pair", "int32", width=2)}
        writer.write_shard(0, shards[0], values_of(rng, with_width, shards[0]))
        values = values_of(rng, with_width, shards[1])
        change(values)
        with pytest.raises(CacheError, match=message) as caught:
            writer.write_shard(1, shards[1], values)
        assert "\n" not in str(caught.value)
        assert writer.waiting == [1]
        with pytest.raises(CacheError, match="lack 1 of 2 shards"):
            writer.finish()
    assert [path.name for path in (tmp_path / "cache" / "scores").iterdir()] == ["set-00000.parquet"]
    with pytest.raises(CacheError, match="cover 5 of 10 pairs"):
        open_scores(tmp_path / "cache", "set")


@pytest.mark.parametrize(
    "columns",
    [
        {},
        {"A": ScoreColumn("token")},
        {"a-b": ScoreColumn("token")},
        {"row": ScoreColumn("pair")},
        {"a": ScoreColumn("token"), "chosen_a": ScoreColumn("pair")},
    ],
)
def test_columns_that_no_file_could_hold(tmp_path, columns):
    build(tmp_path / "cache", random_pairs(range(3)))
    with pytest.raises(ValueError, match="column"):
        ScoreWriter(tmp_path / "cache", "set", ScoreSet("statistic", {}, {}, columns))


def test_shapes_and_types_are_the_known_ones():
    with pytest.raises(ValueError, match="shape 'matrix'"):
        ScoreColumn("matrix")
    with pytest.raises(ValueError, match="dtype 'float64'"):
        ScoreColumn("token", "float64")
    assert ScoreColumn("pair").files_columns("x") == ("x",)
    assert ScoreColumn("entries").files_columns("x") == tuple(f"{side}_x" for side in SIDES)
