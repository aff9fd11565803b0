"""What goes into a cache comes out of it, whatever its shape, and through other people's readers too."""

import pickle
import threading

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tdpo.cache.errors import CacheError
from tdpo.cache.order import epoch_order
from tdpo.cache.pairs import SIDES, Pair, ScoredPair, SideStatistics, pair_id
from tdpo.cache.reader import open_cache
from tdpo.cache.writer import CacheWriter

VOCAB = 128_000


def identity(entropy=True, head=3, tail=2):
    return {
        "reference": {"name": "model", "dtype": "float32"},
        "statistics": {"entropy": entropy, "head": head, "tail": tail, "seed": 0, "vocab_size": VOCAB},
    }


def random_side(rng, tokens, entropy, entries):
    return SideStatistics(
        ref_logp=-rng.exponential(2, tokens).astype(np.float32),
        ref_entropy=rng.exponential(2, tokens).astype(np.float16) if entropy else None,
        dist_ids=rng.integers(0, VOCAB, (tokens, entries)).astype(np.uint32) if entries else None,
        dist_logp=-rng.exponential(5, (tokens, entries)).astype(np.float16) if entries else None,
    )


def random_pairs(rows, *, seed=0, longest=9, entropy=True, entries=5):
    rng = np.random.default_rng(seed)
    scored = []
    for row in rows:
        prompt, chosen, rejected = (rng.integers(0, VOCAB, rng.integers(1, longest + 1)) for _ in range(3))
        sides = [random_side(rng, len(ids), entropy, entries) for ids in (chosen, rejected)]
        scored.append(ScoredPair(Pair.make(row, prompt, chosen, rejected), *sides))
    return scored


def build(path, scored, *, what=None, shard_rows=7, row_group_rows=3, source_rows=None):
    source_rows = len(scored) if source_rows is None else source_rows
    kept = {one.pair.row: one for one in scored}
    with CacheWriter(
        path,
        what or identity(),
        {},
        source_rows=source_rows,
        shard_rows=shard_rows,
        row_group_rows=row_group_rows,
    ) as writer:
        for index in range(writer.shards):
            rows = writer.source_rows(index)
            skipped = [row for row in rows if row not in kept]
            writer.write_shard(index, [kept[row] for row in rows if row in kept], {"empty": skipped})
        writer.finish()


def assert_same(a: ScoredPair, b: ScoredPair):
    assert a.pair == b.pair
    for name in ("prompt_ids", "chosen_ids", "rejected_ids"):
        assert getattr(b.pair, name).dtype == np.int32
        np.testing.assert_array_equal(getattr(a.pair, name), getattr(b.pair, name))
    for side in SIDES:
        for name in ("ref_logp", "ref_entropy", "dist_ids", "dist_logp"):
            x, y = getattr(a.side(side), name), getattr(b.side(side), name)
            assert (x is None) == (y is None), name
            if x is not None:
                assert (x.dtype, x.shape) == (y.dtype, y.shape)
                np.testing.assert_array_equal(x, y)


@settings(max_examples=25, deadline=None)
@given(
    count=st.integers(1, 20),
    longest=st.integers(1, 12),
    entropy=st.booleans(),
    head=st.integers(0, 3),
    tail=st.integers(0, 3),
    shard_rows=st.integers(1, 25),
    row_group_rows=st.integers(1, 8),
    seed=st.integers(0, 1000),
)
def test_pairs_come_back_as_written(
    tmp_path_factory, count, longest, entropy, head, tail, shard_rows, row_group_rows, seed
):
    path = tmp_path_factory.mktemp("cache") / "c"
    scored = random_pairs(range(count), seed=seed, longest=longest, entropy=entropy, entries=head + tail)
    build(
        path, scored, what=identity(entropy, head, tail), shard_rows=shard_rows, row_group_rows=row_group_rows
    )
    reader = open_cache(path, cached_groups=2)
    assert len(reader) == count
    assert sum(reader.group_sizes) == count
    assert reader.completion_tokens == sum(one.pair.completion_tokens for one in scored)
    for one, back in zip(scored, reader, strict=True):
        assert_same(one, back)
    shuffled = np.random.default_rng(seed).permutation(count)
    for row, back in zip(shuffled, reader.read(shuffled), strict=True):
        assert_same(scored[row], back)


def test_rows_are_kept_in_source_order_and_skips_are_counted(tmp_path):
    scored = random_pairs([9, 1, 4, 12, 5, 0])
    build(tmp_path / "c", scored, source_rows=30)
    reader = open_cache(tmp_path / "c")
    assert [one.pair.row for one in reader] == [0, 1, 4, 5, 9, 12]
    manifest = reader.manifest
    assert manifest.skipped["empty"].count == 24
    assert manifest.skipped["empty"].first_rows == (2, 3, 6, 7, 8, 10, 11, 13, 14, 15)
    assert [shard.rows for shard in manifest.shards] == [4, 2, 0, 0, 0]
    assert manifest.shards[4].file is None


def test_a_cache_of_nothing_but_skips_is_empty(tmp_path):
    build(tmp_path / "c", [], source_rows=3)
    reader = open_cache(tmp_path / "c")
    assert (len(reader), list(reader), reader.group_sizes, reader.read([])) == (0, [], [], [])


def test_only_the_statistics_asked_for_are_read(tmp_path):
    scored = random_pairs(range(5))
    build(tmp_path / "c", scored)
    one = open_cache(tmp_path / "c", statistics={"ref_entropy"})[2]
    assert one.chosen.dist_ids is None
    np.testing.assert_array_equal(one.chosen.ref_logp, scored[2].chosen.ref_logp)
    np.testing.assert_array_equal(one.chosen.ref_entropy, scored[2].chosen.ref_entropy)
    assert open_cache(tmp_path / "c").read([2], statistics=["ref_logp"])[0].rejected.ref_entropy is None


def test_a_statistic_that_is_not_there_is_named(tmp_path):
    build(tmp_path / "c", random_pairs(range(2), entries=0), what=identity(head=0, tail=0))
    assert open_cache(tmp_path / "c").statistics == {"ref_logp", "ref_entropy"}
    with pytest.raises(CacheError, match="built without dist"):
        open_cache(tmp_path / "c", statistics=["dist"])
    with pytest.raises(ValueError, match="logp_ref"):
        open_cache(tmp_path / "c", statistics=["logp_ref"])


def test_indices_count_from_the_end_and_have_bounds(tmp_path):
    build(tmp_path / "c", random_pairs(range(5)))
    reader = open_cache(tmp_path / "c")
    assert reader[-1].pair.row == 4
    assert reader[np.int64(3)].pair.row == 3
    assert [one.pair.row for one in reader.read([3, 3, 0])] == [3, 3, 0]
    for row in (5, -6):
        with pytest.raises(IndexError, match=str(row)):
            reader[row]


def test_arrays_of_a_pair_cannot_be_changed(tmp_path):
    build(tmp_path / "c", random_pairs(range(2)))
    with pytest.raises(ValueError, match="read-only"):
        open_cache(tmp_path / "c")[0].chosen.ref_logp[0] = 0


def test_a_pickled_reader_reads_on(tmp_path):
    scored = random_pairs(range(10))
    build(tmp_path / "c", scored)
    reader = open_cache(tmp_path / "c", statistics=["ref_logp"])
    reader.read(range(10))
    text = pickle.dumps(reader)
    assert len(text) < 10_000
    again = pickle.loads(text)
    assert again[7].pair == scored[7].pair
    assert again[7].chosen.dist_ids is None
    assert again.group_sizes == reader.group_sizes


def test_threads_may_share_a_reader(tmp_path):
    scored = random_pairs(range(60))
    build(tmp_path / "c", scored, shard_rows=2)
    reader = open_cache(tmp_path / "c", cached_groups=3)
    wrong = []

    def work(seed):
        rows = np.random.default_rng(seed).integers(0, 60, 200)
        wrong.extend(row for row in rows if reader[row].pair != scored[row].pair)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_an_epoch_decodes_each_row_group_once_and_holds_few(tmp_path, monkeypatch):
    build(tmp_path / "c", random_pairs(range(90)), shard_rows=30)
    reader = open_cache(tmp_path / "c", cached_groups=5)
    loads = []
    load = reader._load
    monkeypatch.setattr(reader, "_load", lambda group, wanted: loads.append(group) or load(group, wanted))
    order = epoch_order(reader.group_sizes, seed=1, epoch=0, pool_groups=5)
    seen = []
    for start in range(0, 90, 5):
        seen += [one.pair.row for one in reader.read(order[start : start + 5])]
        assert len(reader._decoded) <= 5
    assert sorted(seen) == list(range(90))
    assert sorted(loads) == list(range(len(reader.group_sizes)))


def test_pair_id_is_the_documented_hash():
    # BLAKE2b of struct.pack("<3Q2i1i2i", 2, 1, 2, 1, 2, 3, 4, 5), which must never change.
    assert pair_id([1, 2], [3], [4, 5]) == "2e064de5dda03110838e8c71a7743319"
    assert pair_id([1, 2], [3], []) != pair_id([1], [2, 3], [])


@pytest.mark.parametrize("bad", [[-1], [2**31], [[1]], [0.5]])
def test_token_ids_must_fit_int32(bad):
    with pytest.raises(ValueError, match="token ids must"):
        pair_id(bad, [1], [2])


@pytest.fixture
def shard(tmp_path):
    scored = random_pairs(range(6))
    build(tmp_path / "c", scored)
    return scored, str(tmp_path / "c" / "pairs-00000.parquet")


def assert_shard_values(one, values):
    assert values["pair_id"] == one.pair.pair_id
    np.testing.assert_array_equal(np.array(values["rejected_ids"], np.int32), one.pair.rejected_ids)
    for name in ("ref_logp", "ref_entropy", "dist_ids", "dist_logp"):
        truth = np.ravel(getattr(one.chosen, name))
        np.testing.assert_array_equal(np.array(values[f"chosen_{name}"], truth.dtype), truth)


def test_pyarrow_reads_a_shard_as_it_lies(shard):
    scored, path = shard
    for one, values in zip(scored, pq.read_table(path).to_pylist(), strict=True):
        assert_shard_values(one, values)


def test_duckdb_reads_a_shard_as_it_lies(shard):
    duckdb = pytest.importorskip("duckdb")
    scored, path = shard
    found = duckdb.sql(f"select * from '{path}' order by row")
    for one, values in zip(scored, found.fetchall(), strict=True):
        assert_shard_values(one, dict(zip(found.columns, values, strict=True)))


def test_polars_reads_a_shard_as_it_lies(shard):
    polars = pytest.importorskip("polars")
    scored, path = shard
    for one, values in zip(scored, polars.read_parquet(path).to_dicts(), strict=True):
        assert_shard_values(one, values)


def test_datasets_reads_the_folder_by_its_card(shard, tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    scored, path = shard
    for source in ({"path": "parquet", "data_files": path}, {"path": str(tmp_path / "c")}):
        loaded = datasets.load_dataset(**source, split="train", cache_dir=str(tmp_path / "hf"))
        for one, values in zip(scored, loaded, strict=True):
            assert_shard_values(one, values)
