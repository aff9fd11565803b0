"""A cache read by somebody who has docs/cache-format.md and no tdpo: losses from what they find."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

import tdpo
from tdpo.core.divergence import forward_kl

BETA = 0.1
SIDES = ("chosen", "rejected")


@pytest.fixture(scope="module")
def policy(reference):
    """A policy some way off the reference."""
    model = AutoModelForCausalLM.from_pretrained(reference)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.03 * torch.randn(weight.shape, generator=generator)
    return model.eval()


def read_with_duckdb(cache):
    duckdb = pytest.importorskip("duckdb")
    found = duckdb.sql(f"select * from '{cache}/pairs-*.parquet' order by row")
    return [dict(zip(found.columns, row, strict=True)) for row in found.fetchall()]


def read_with_polars(cache):
    polars = pytest.importorskip("polars")
    return polars.read_parquet(f"{cache}/pairs-*.parquet").sort("row").to_dicts()


def read_with_datasets(cache, folder):
    import datasets

    files = str(cache / "pairs-*.parquet")
    return list(datasets.load_dataset("parquet", data_files=files, split="train", cache_dir=str(folder)))


@pytest.fixture(params=["duckdb", "polars", "datasets"])
def rows(request, cache, tmp_path):
    """The cache's rows, by a reader that knows nothing of tdpo."""
    if request.param == "datasets":
        return read_with_datasets(cache, tmp_path)
    return {"duckdb": read_with_duckdb, "polars": read_with_polars}[request.param](cache)


@torch.no_grad()
def log_probs(model, row, side):
    """Log-probabilities [T, V] at the places of a completion's tokens, from full logits."""
    prompt, ids = row["prompt_ids"], row[f"{side}_ids"]
    logits = model(torch.tensor([[*prompt, *ids]])).logits[0].double()
    return logits[len(prompt) - 1 : -1].log_softmax(-1)


def at(log_p, ids):
    return log_p[range(len(ids)), list(ids)]


def dpo(chosen, rejected):
    return float(-torch.nn.functional.logsigmoid(torch.tensor(BETA * (chosen - rejected))))


def test_a_dpo_loss_from_what_a_stranger_reads_is_that_of_two_models(rows, reference, policy):
    truth = AutoModelForCausalLM.from_pretrained(reference).eval()
    assert len(rows) == 48
    for row in rows[:12]:
        ours, theirs = {}, {}
        for side in SIDES:
            ids = row[f"{side}_ids"]
            logp = float(at(log_probs(policy, row, side), ids).sum())
            ours[side] = logp - sum(row[f"{side}_ref_logp"])
            theirs[side] = logp - float(at(log_probs(truth, row, side), ids).sum())
        assert abs(theirs["chosen"] - theirs["rejected"]) > 0.01  # the policy is not the reference
        assert dpo(ours["chosen"], ours["rejected"]) == pytest.approx(
            dpo(theirs["chosen"], theirs["rejected"]), abs=1e-6
        )


def kl_by_the_page(row, side, log_q):
    """The forward KL [T] estimated as docs/cache-format.md says, entry by entry."""
    kl, at_entry = [], 0
    for t, (k, m) in enumerate(zip(row[f"{side}_dist_head"], row[f"{side}_dist_tail"], strict=True)):
        ids, logp = (row[f"{side}_dist_{name}"][at_entry : at_entry + k + m] for name in ("ids", "logp"))
        at_entry += k + m
        apart = [a - float(log_q[t, v]) for a, v in zip(logp, ids, strict=True)]
        head = sum(np.exp(a) * d for a, d in zip(logp[:k], apart[:k], strict=True))
        left = 1 - sum(np.exp(a) for a in logp[:k])
        kl.append(head + left * sum(apart[k:]) / m)
    assert at_entry == len(row[f"{side}_dist_ids"])
    return np.array(kl)


@pytest.fixture(scope="module")
def sparing(tmp_path_factory, reference, pairs):
    """A cache whose tokens have heads of many sizes and few or many draws."""
    folder = tmp_path_factory.mktemp("sparing") / "cache"
    options = {"head": 64, "tail": 8, "head_mass": 0.5, "tail_mass": 0.9, "shard_rows": 20}
    tdpo.build_cache(reference, pairs, folder, quiet=True, **options)
    return folder


@pytest.mark.parametrize("read", [read_with_duckdb, read_with_polars])
def test_a_kl_from_what_a_stranger_reads_is_the_one_that_training_sees(sparing, policy, read):
    cache = tdpo.open_cache(sparing)
    sizes = set()
    for row, one in zip(read(sparing)[:8], cache, strict=False):
        for side in SIDES:
            log_q, ours = log_probs(policy, row, side), one.side(side)
            sizes |= set(zip(row[f"{side}_dist_head"], row[f"{side}_dist_tail"], strict=True))
            want = forward_kl(
                torch.from_numpy(ours.dist_logp.astype(np.float64))[None],
                log_q.gather(1, torch.from_numpy(ours.dist_ids.astype(np.int64)))[None],
                cache.head,
                torch.ones(1, len(ours.ref_logp), dtype=torch.bool),
                estimator="log_ratio",
                vocab_size=cache.vocab_size,
            )[0]
            np.testing.assert_allclose(kl_by_the_page(row, side, log_q), want.numpy(), rtol=1e-9, atol=1e-12)
    assert len(sizes) > 5
