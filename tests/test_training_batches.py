"""Micro-batches: how a batch is cut up changes memory and speed, and nothing else."""

import json
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import run_tdpo
from test_fit import assert_same_weights, metrics

import tdpo
from tdpo.cache.order import epoch_order
from tdpo.cache.pairs import Pair, ScoredPair, SideStatistics
from tdpo.core.scoring.completions import completions
from tdpo.core.scoring.forward import enable_scoring
from tdpo.core.scoring.layout import separate_width, shared_width
from tdpo.core.training.batches import Batching, pairs_in, tokens_of
from tdpo.core.training.data import collate, decode_pair_ids


def record(row, prompt, chosen, rejected):
    """A pair of so many tokens whose statistics say whose they are."""
    rng = np.random.default_rng(row)
    pair = Pair.make(row, *(rng.integers(3, 60, n) for n in (prompt, chosen, rejected)))
    sides = (
        SideStatistics(
            (-row - np.arange(n) / 1000).astype(np.float32), np.full(n, row, np.float16), None, None
        )
        for n in (chosen, rejected)
    )
    return ScoredPair(pair, *sides)


lengths = st.tuples(st.integers(1, 40), st.integers(1, 30), st.integers(1, 30))
batches = st.lists(lengths, min_size=1, max_size=12).map(
    lambda shapes: [record(row, *shape) for row, shape in enumerate(shapes)]
)
batchings = st.builds(
    Batching,
    batch_tokens=st.none() | st.integers(1, 300),
    share=st.booleans(),
    pack=st.booleans(),
    longest=st.none() | st.integers(1, 80),
    least_tokens=st.none() | st.integers(1, 300),
    multiple=st.sampled_from([1, 16]),
    whole=st.booleans(),
)


def width_of(one, batching):
    return shared_width(one.pair) if batching.share else separate_width(one.pair)


@settings(max_examples=150, deadline=None)
@given(batches, batchings)
def test_every_pair_is_in_one_micro_batch_with_its_own_statistics(records, batching):
    by_id = {one.pair.pair_id: one for one in records}
    found = []
    for micro in batching(records):
        ids = decode_pair_ids(micro["pair_ids"])
        found += ids
        positions = micro["score_positions"].split(micro["lengths"].tolist())
        logps = micro["ref_logp"].split(micro["lengths"].tolist())
        tokens = micro["input_ids"].flatten()
        for index, pair_id in enumerate(ids):
            one = by_id[pair_id]
            assert micro["tokens"][index] == 2 * len(one.pair.prompt_ids) + one.pair.completion_tokens
            for side, at in (("chosen", index), ("rejected", len(ids) + index)):
                np.testing.assert_array_equal(logps[at], one.side(side).ref_logp)
                # The last prompt token and all but the last of the completion predict the completion.
                before = [one.pair.prompt_ids[-1], *one.pair.ids(side)[:-1]]
                assert tokens[positions[at]].tolist() == before
    assert sorted(found) == sorted(by_id)


@settings(max_examples=150, deadline=None)
@given(batches, batchings)
def test_micro_batches_stay_within_their_tokens_unless_a_pair_alone_has_more(records, batching):
    cut = batching(records)
    if batching.whole:
        assert len(cut) == 1
        return
    for micro in cut:
        if batching.batch_tokens is not None and pairs_in([micro]) > 1:
            assert micro["input_ids"].numel() <= max(batching.batch_tokens, batching.multiple)
    joint = sum(pairs_in([micro]) for micro in cut if "segments" in micro)
    assert joint == sum(
        (batching.share or batching.pack)
        and (batching.longest is None or width_of(one, batching) <= batching.longest)
        for one in records
    )


@settings(max_examples=100, deadline=None)
@given(batches, st.booleans())
def test_a_cut_by_length_leaves_little_padding(records, share):
    """At most a fifth of a row, once a micro-batch has the tokens from which on it is cut."""
    for micro in Batching(share=share, least_tokens=1)(records):
        rows = 2 if not share else 1
        # Separate: the shorter side of a pair is padded to the longer, whatever the cut.
        longest_of_pairs = micro["attention_mask"].sum(-1).reshape(rows, -1).amax(0)
        assert longest_of_pairs.min() >= 0.8 * micro["input_ids"].shape[1]


@settings(max_examples=100, deadline=None)
@given(batches, st.integers(40, 200))
def test_packed_rows_are_filled_before_another_is_begun(records, limit):
    cut = Batching(limit, share=True, pack=True)(records)
    filled = sorted(int(micro["attention_mask"].sum()) for micro in cut)
    assert sum(filled) == sum(shared_width(one.pair) for one in records)
    # Two rows that fit into one would have been one.
    assert len(filled) < 2 or filled[0] + filled[1] > limit


def test_a_batch_is_one_micro_batch_unless_told_otherwise():
    records = [record(row, *shape) for row, shape in enumerate([(3, 4, 5), (30, 20, 10), (1, 1, 1)])]
    (micro,) = Batching()(records)
    whole = collate(sorted(records, key=lambda one: separate_width(one.pair), reverse=True))
    assert micro.keys() == whole.keys()
    assert all(torch.equal(micro[name], whole[name]) for name in whole)


def test_the_collator_reaches_a_workers_process():
    batching = Batching(100, share=True, pack=True, longest=64, least_tokens=10, multiple=128)
    assert pickle.loads(pickle.dumps(batching)) == batching


CUTS = [
    Batching(64),
    Batching(1),
    Batching(200, share=True),
    Batching(100, share=True, pack=True, multiple=16),
    Batching(share=True, longest=12, least_tokens=1),
]


def test_loss_and_gradients_are_those_of_the_batch_as_one(cache, reference):
    from transformers import AutoModelForCausalLM

    reader = tdpo.open_cache(cache)
    records = reader.read(range(12))
    model = AutoModelForCausalLM.from_pretrained(reference)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.02 * torch.randn(parameter.shape, generator=generator)
    enable_scoring(model)
    found = []
    for batching in (Batching(), *CUTS):
        model.zero_grad()
        total = 0.0
        cut = batching(records)
        for micro in cut:
            scores = model(**tokens_of(micro), score_ids=micro["score_ids"])
            sides = completions(
                scores, micro, head=reader.head, vocab_size=reader.vocab_size, estimator="fitted",
                kl_gradient=True,
            )  # fmt: skip
            loss = tdpo.objective("tdpo2")(*sides).loss.sum() / len(records)
            loss.backward()
            total += float(loss.detach())
        found.append((len(cut), total, [p.grad.clone() for p in model.parameters()]))
    assert [count for count, _, _ in found][:3] == [1, found[1][0], 12]
    for _, loss, gradients in found[1:]:
        assert loss == pytest.approx(found[0][1], abs=1e-6)
        for ours, theirs in zip(gradients, found[0][2], strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


def short_fit(cache, output, **options):
    return tdpo.fit(
        "tdpo2", cache, output=output, max_steps=4, batch_size=6, learning_rate=1e-3, logging_steps=1,
        eval_cache=cache, eval_steps=2, quiet=True, **options,
    )  # fmt: skip


@pytest.fixture(scope="module")
def uncut(tmp_path_factory, cache):
    folder = tmp_path_factory.mktemp("uncut") / "policy"
    short_fit(cache, folder, prompt_sharing="off", training={"gradient_accumulation_steps": 2})
    return folder


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"batch_tokens": 60},
        {"batch_tokens": 1, "prompt_sharing": "off"},
        {"batch_tokens": 100, "packing": "on", "prompt_sharing": "on", "gradient_checkpointing": True},
        {"packing": "on", "prompt_sharing": "off"},
    ],
    ids=str,
)
def test_a_run_is_the_same_however_its_batches_are_cut(tmp_path, cache, uncut, options):
    short_fit(cache, tmp_path / "policy", training={"gradient_accumulation_steps": 2}, **options)
    assert_same_weights(tmp_path / "policy", uncut, 2e-5)
    events = [
        [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        for folder in (tmp_path / "policy", uncut)
    ]
    assert len(events[0]) == len(events[1])
    for ours, theirs in zip(*events, strict=True):
        for name in (
            "loss",
            "eval_loss",
            "rewards/margins",
            "eval_rewards/margins",
            "kl/chosen",
            "grad_norm",
        ):
            assert (name in ours) == (name in theirs)
            assert ours.get(name, 0) == pytest.approx(theirs.get(name, 0), rel=1e-3, abs=2e-5)


def test_tokens_seen_and_operations_are_counted_over_all_micro_batches(tmp_path, cache):
    counted = {"include_num_input_tokens_seen": "non_padding"}
    for name, tokens in (("one", None), ("many", 1)):
        short_fit(
            cache, tmp_path / name, batch_tokens=tokens, prompt_sharing="off", training=counted, save_steps=2
        )
    states = [
        json.loads((tmp_path / name / "checkpoint-4" / "trainer_state.json").read_text())
        for name in ("one", "many")
    ]
    assert states[0]["num_input_tokens_seen"] == states[1]["num_input_tokens_seen"] > 0
    # A pair alone has no padding but of its shorter side.
    assert 0 < states[1]["total_flos"] < states[0]["total_flos"]


def test_a_run_resumes_with_its_batches_cut_otherwise(tmp_path, cache, uncut):
    options = {"training": {"gradient_accumulation_steps": 2}, "save_steps": 2}
    short_fit(cache, tmp_path / "policy", **options)
    for path in (tmp_path / "policy" / "checkpoint-4").iterdir():
        path.unlink()
    (tmp_path / "policy" / "checkpoint-4").rmdir()
    short_fit(cache, tmp_path / "policy", resume=True, batch_tokens=40, packing="on", **options)
    assert_same_weights(tmp_path / "policy", uncut, 2e-5)


@pytest.mark.slow
def test_processes_with_different_numbers_of_micro_batches_wait_for_one_another(tmp_path, cache):
    """Those with fewer run idle ones; losses and weights are those of one process."""
    reader = tdpo.open_cache(cache)
    order = epoch_order(reader.group_sizes, 0, 0)
    batching = Batching(60, share=True, least_tokens=512)
    counts = [len(batching(reader.read(order[start : start + 6]))) for start in range(0, 48, 6)]
    assert any(first != second for first, second in zip(counts[::2], counts[1::2], strict=True))
    common = ["fit", "--plugin", "tdpo2", "--cache", cache, "--max-steps", 4, "--logging-steps", 1]
    common += ["--learning-rate", "1e-3", "--eval-cache", cache, "--batch-tokens", 60]
    run_tdpo(*common, "--batch-size", 12, "--output", tmp_path / "one")
    run_tdpo(*common, "--batch-size", 6, "--output", tmp_path / "two", "--num-processes", 2)
    assert_same_weights(tmp_path / "one", tmp_path / "two", 2e-5)
    for ours, theirs in zip(metrics(tmp_path / "one"), metrics(tmp_path / "two"), strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], abs=1e-5)
