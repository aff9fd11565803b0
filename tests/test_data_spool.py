"""All rows are tokenised once, into a temporary file that is read back window by window."""

import hashlib
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tdpo.cache.pairs import Pair
from tdpo.core.data.pairing import Skip
from tdpo.core.data.source import open_source
from tdpo.core.data.spool import check_skipped, spool_pairs
from tdpo.core.errors import DataError
from tdpo.core.progress import Progress


def letters(row_number: int, row: dict) -> Pair | Skip:
    """One token a letter; rows are skipped by what their chosen text says."""
    if row["chosen"].startswith("skip"):
        return Skip("not text")
    if row["chosen"].startswith("refuse"):
        return Skip("refused by the chat template", "no system role")
    return Pair.make(
        row_number, *([ord(letter) for letter in row[name]] for name in ("prompt", "chosen", "rejected"))
    )


def rows_of(chosen: list[str]) -> list[dict]:
    return [{"prompt": f"p{at}", "chosen": text, "rejected": "no"} for at, text in enumerate(chosen)]


def spooled(chosen: list[str], window: int, tmp_path, **options):
    return spool_pairs(open_source(rows_of(chosen)), letters, window=window, directory=tmp_path, **options)


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.sampled_from(["a", "yes it is", "skip", "refuse"]), min_size=1, max_size=30),
    st.integers(1, 12),
)
def test_what_is_read_back_is_what_the_maker_made(tmp_path_factory, chosen, window):
    rows = rows_of(chosen)
    made = [letters(at, row) for at, row in enumerate(rows)]
    with spooled(chosen, window, tmp_path_factory.mktemp("spool")) as spool:
        assert len(spool) == -(-len(chosen) // window)
        for at in range(len(spool)):
            pairs, skipped = spool.window(at)
            expected = made[at * window : (at + 1) * window]
            assert pairs == [each for each in expected if isinstance(each, Pair)]
            for pair, want in zip(pairs, (each for each in expected if isinstance(each, Pair)), strict=True):
                for name in ("prompt_ids", "chosen_ids", "rejected_ids"):
                    ids = getattr(pair, name)
                    assert np.array_equal(ids, getattr(want, name))
                    assert ids.dtype == np.int32
                    assert ids.flags.writeable
            numbers = {
                at * window + i: each.reason for i, each in enumerate(expected) if isinstance(each, Skip)
            }
            assert {row: reason for reason, found in skipped.items() for row in found} == numbers
        kept = [each for each in made if isinstance(each, Pair)]
        assert (spool.source_rows, spool.kept) == (len(made), len(kept))
        assert spool.tokens == (sum(len(p.prompt_ids) for p in kept), sum(p.completion_tokens for p in kept))
        longest = [len(p.prompt_ids) + max(len(p.chosen_ids), len(p.rejected_ids)) for p in kept]
        assert spool.longest == max(longest, default=0)


def test_skipped_rows_are_counted_with_the_first_of_them(tmp_path):
    with spooled(["skip"] * 7 + ["yes"], 3, tmp_path) as spool:
        assert spool.skipped == {"not text": {"count": 7, "first_rows": [0, 1, 2, 3, 4]}}
        assert spool.window(2) == (
            [Pair.make(7, *map(list, map(str.encode, ("p7", "yes", "no"))))],
            {"not text": [6]},
        )


def test_windows_are_read_in_any_order(tmp_path):
    with spooled(["yes"] * 10, 4, tmp_path) as spool:
        assert [[pair.row for pair in spool.window(at)[0]] for at in (2, 0, 1)] == [
            [8, 9],
            [0, 1, 2, 3],
            [4, 5, 6, 7],
        ]
        with pytest.raises(IndexError):
            spool.window(3)


def test_the_content_hash_is_of_what_was_made_in_order(tmp_path):
    with spooled(["yes", "skip", "no"], 2, tmp_path) as spool:
        pairs = [pair.pair_id for at in range(2) for pair in spool.window(at)[0]]
        made = f"{pairs[0]}\nnot text\n{pairs[1]}\n"
        assert spool.content == hashlib.blake2b(made.encode(), digest_size=16).hexdigest()
    contents = set()
    for chosen in (["yes", "skip", "no"], ["yes", "no", "skip"], ["yes", "refuse", "no"], ["yes", "no"]):
        for window in (1, 5):
            with spooled(chosen, window, tmp_path) as spool:
                contents.add(spool.content)
    assert len(contents) == 4


def test_a_stream_of_unknown_length_shows_what_is_done(capsys):
    with Progress("tokenising", None, "rows") as progress:
        progress.reach(700)
    assert re.fullmatch(r"tokenising: 700 rows, [\d,.]+ rows/s\n", capsys.readouterr().err)


def test_progress_tells_the_rows_done(tmp_path):
    told: list[int] = []
    with spooled(["yes"] * 700, 300, tmp_path, progress=told.append):
        assert told == sorted(told)
        assert told[-1] == 700


def test_the_file_goes_away_and_pairs_stay(tmp_path):
    spool = spooled(["yes"], 1, tmp_path)
    (pair,) = spool.window(0)[0]
    spool.close()
    spool.close()
    assert list(tmp_path.iterdir()) == []
    assert bytes(pair.chosen_ids.tolist()) == b"yes"
    with pytest.raises(ValueError, match="closed"):
        spool.window(0)


def test_a_forgotten_spool_takes_its_file_with_it(tmp_path):
    spooled(["yes"], 1, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_file_goes_away_when_the_maker_raises(tmp_path):
    def fails(row_number: int, row: dict) -> Pair:
        raise DataError(f"row {row_number}: too long")

    with pytest.raises(DataError, match="row 0: too long"):
        spool_pairs(open_source(rows_of(["yes"])), fails, window=1, directory=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    with pytest.raises(DataError, match="nowhere: cannot write the tokenised rows there"):
        spooled(["yes"], 1, tmp_path / "nowhere")


# The share of skipped rows


def test_a_few_skipped_rows_are_let_pass(tmp_path):
    with spooled(["skip", *["yes"] * 19], 50, tmp_path) as spool:
        check_skipped(spool, 0.05)
        with pytest.raises(DataError):
            check_skipped(spool, 0.04)


def test_too_many_skipped_rows_are_told_by_reason(tmp_path):
    texts = ["skip"] * 6 + ["refuse"] + ["yes"] * 13
    with spooled(texts, 50, tmp_path) as spool, pytest.raises(DataError) as caught:
        check_skipped(spool, 0.05)
    assert str(caught.value) == (
        "7 of 20 rows (35.0 %) cannot be used: 6 not text (rows 0, 1, 2, 3, 4, ...); "
        "1 refused by the chat template (row 6: no system role); "
        "mend the data, or raise --max-skipped (now 0.05)"
    )


def test_no_row_left_is_refused_whatever_the_share(tmp_path):
    with (
        spooled(["skip"], 1, tmp_path) as spool,
        pytest.raises(DataError, match=r"1 of 1 rows .* mend the data$"),
    ):
        check_skipped(spool, 1.0)
