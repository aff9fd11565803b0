"""Building a cache: what is in it equals the naive computation, whatever happens on the way."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from support import make_model, make_tokenizer, run_tdpo, write_pairs

import tdpo
from tdpo.core.scoring.distribution import Sampling
from tdpo.core.scoring.head import Head
from tdpo.core.scoring.reference import reference_scores, tail_uniforms


def content(folder):
    """Everything a cache says about its pairs, for comparison."""
    return {
        record.pair.pair_id: [
            getattr(side, name).tolist()
            for side in (record.chosen, record.rejected)
            for name in ("ref_logp", "ref_entropy", "dist_ids", "dist_logp")
        ]
        for record in tdpo.open_cache(folder)
    }


def assert_same_content(a, b, tolerance=0.0):
    a, b = content(a), content(b)
    assert a.keys() == b.keys()
    for key, columns in a.items():
        for x, y in zip(columns, b[key], strict=True):
            np.testing.assert_allclose(x, y, rtol=0, atol=tolerance)


def test_the_cache_holds_what_separate_full_logits_passes_give(cache, reference):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(reference).double().eval()
    reader = tdpo.open_cache(cache)
    assert len(reader) == 48
    for record in reader:
        for side in ("chosen", "rejected"):
            prompt, ids = record.pair.prompt_ids, getattr(record.pair, f"{side}_ids")
            with torch.no_grad():
                logits = model(torch.tensor([[*prompt, *ids]])).logits[0]
            log_p = logits[len(prompt) - 1 : -1].log_softmax(-1).numpy()
            got = getattr(record, side)
            rows = np.arange(len(ids))
            np.testing.assert_allclose(got.ref_logp, log_p[rows, ids], atol=2e-5)
            np.testing.assert_allclose(got.ref_entropy, -(np.exp(log_p) * log_p).sum(-1), atol=5e-3)
            ids, listed = got.dist_ids.astype(int), np.isfinite(got.dist_logp)
            want = np.take_along_axis(log_p, ids, 1)
            np.testing.assert_allclose(got.dist_logp[listed], want[listed], rtol=1e-3, atol=1e-3)
            for t in rows:
                head, tail = (set(ids[t, part][listed[t, part]]) for part in (slice(8), slice(8, None)))
                assert head
                assert min(log_p[t, list(head)]) >= np.sort(log_p[t])[-len(head)] - 1e-4
                assert not head & tail


def test_token_ids_are_the_tokenizers_and_the_last_one_is_eos(cache, pairs):
    tokenizer = make_tokenizer()
    rows = [json.loads(line) for line in pairs.read_text().splitlines()]
    for record in tdpo.open_cache(cache):
        row = rows[record.pair.row]
        for side in ("chosen", "rejected"):
            ids = [*record.pair.prompt_ids, *getattr(record.pair, f"{side}_ids")]
            assert ids == [*tokenizer(row["prompt"] + row[side]).input_ids, tokenizer.eos_token_id]


def test_tail_draws_follow_the_rest_of_the_distribution():
    v, k, draws = 40, 5, 40_000
    log_p = (2 * torch.randn(1, v, generator=torch.Generator().manual_seed(0))).log_softmax(-1)
    head = Head(torch.eye(v))
    uniforms = torch.from_numpy(tail_uniforms(0, "x", "chosen", 1, draws))
    scores = reference_scores(head, log_p, torch.tensor([3]), Sampling(k, draws), uniforms)
    rest = log_p[0].exp()
    rest[scores.dist_ids[0, :k]] = 0
    want = (rest / rest.sum()).numpy()
    counts = np.bincount(scores.dist_ids[0, k:], minlength=v)
    assert (counts[want == 0] == 0).all()
    chi2 = ((counts - draws * want)[want > 0] ** 2 / (draws * want[want > 0])).sum()
    assert chi2 < 70  # 34 degrees of freedom, 99.97 %


def test_tail_draws_survive_a_reference_that_is_almost_certain():
    """The rest's mass underflows float32; draws still come from it, by its relative probabilities."""
    logits = torch.tensor([[0.0, -200.0, -201.0, -300.0, -torch.inf]])
    uniforms = torch.rand(1, 2000, generator=torch.Generator().manual_seed(0))
    scores = reference_scores(
        Head(torch.eye(5), logits[0]), torch.zeros(1, 5), torch.tensor([0]), Sampling(1, 2000), uniforms
    )
    counts = np.bincount(scores.dist_ids[0, 1:], minlength=5)
    assert counts[0] == counts[3] == counts[4] == 0
    assert counts[1] / 2000 == pytest.approx(1 / (1 + np.exp(-1)), abs=0.04)
    assert scores.dist_logp.isfinite().all()


def test_draws_do_not_depend_on_the_batch_and_leave_global_randomness_alone(
    tmp_path, cache, reference, pairs
):
    torch.manual_seed(5)
    np.random.seed(5)  # noqa: NPY002
    before = torch.rand(1), np.random.rand()  # noqa: NPY002
    torch.manual_seed(5)
    np.random.seed(5)  # noqa: NPY002
    tdpo.build_cache(reference, pairs, tmp_path / "c", shard_rows=20, batch_tokens=40, quiet=True)
    assert (torch.rand(1), np.random.rand()) == before  # noqa: NPY002
    a, b = content(cache), content(tmp_path / "c")
    assert a.keys() == b.keys()
    same = [a[key][2] == b[key][2] and a[key][6] == b[key][6] for key in a]
    # Rounding may move a draw that falls on a boundary of the distribution, no more.
    assert sum(same) >= len(same) - 1
    for key in a:
        np.testing.assert_allclose(a[key][0], b[key][0], atol=1e-5)


def test_running_out_of_memory_halves_the_batch(tmp_path, cache, reference, pairs, monkeypatch):
    from tdpo.core.scoring.scorer import ReferenceScorer

    score_batch, sizes = ReferenceScorer._score_batch, []

    def limited(self, batch):
        sizes.append(len(batch))
        if len(batch) > 3:
            raise torch.OutOfMemoryError
        return score_batch(self, batch)

    monkeypatch.setattr(ReferenceScorer, "_score_batch", limited)
    tdpo.build_cache(reference, pairs, tmp_path / "c", shard_rows=20, quiet=True)
    assert max(sizes) > 3
    assert_same_content(cache, tmp_path / "c", tolerance=1e-2)


def test_a_killed_build_goes_on_to_the_same_cache(tmp_path, reference):
    data = write_pairs(tmp_path / "pairs.jsonl", 150, seed=3)
    arguments = ["cache", "build", "--ref", reference, "--dataset", data, "--shard-rows", "10"]
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "tdpo",
            *map(str, arguments),
            "--batch-tokens",
            "60",
            "--out",
            tmp_path / "cut",
        ],
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    deadline = time.monotonic() + 120
    while len(list((tmp_path / "cut").glob("pairs-*.parquet"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    finished = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "cut").glob("pairs-*.parquet")}
    assert 2 <= len(finished) < 15
    with pytest.raises(tdpo.CacheError, match="same"):
        tdpo.open_cache(tmp_path / "cut")
    kept = len(json.loads((tmp_path / "cut" / "manifest.json").read_text())["shards"])
    run_tdpo(*arguments, "--batch-tokens", "60", "--out", tmp_path / "cut")
    run_tdpo(*arguments, "--batch-tokens", "60", "--out", tmp_path / "whole")
    assert_same_content(tmp_path / "cut", tmp_path / "whole")
    untouched = [name for name, t in finished.items() if (tmp_path / "cut" / name).stat().st_mtime_ns == t]
    assert len(untouched) >= kept


def test_a_finished_build_is_not_run_again(cache, reference, pairs, monkeypatch):
    monkeypatch.setattr(
        "tdpo.core.caching.reference.load_model", lambda *_, **__: pytest.fail("a model was loaded")
    )
    assert len(tdpo.build_cache(reference, pairs, cache, shard_rows=20, quiet=True)) == 48


def test_another_request_on_an_existing_cache_names_the_differences(cache, reference, pairs):
    with pytest.raises(tdpo.CacheError, match=r"statistics\.head.* 8, .* 4.*--overwrite"):
        tdpo.build_cache(reference, pairs, cache, shard_rows=20, head=4, quiet=True)


def test_identity_holds_no_paths_and_no_training_settings(cache, reference, pairs):
    identity = json.dumps(tdpo.open_cache(cache).identity)
    for word in (str(reference), str(pairs.parent), "learning_rate", "output", "plugin"):
        assert word not in identity


def test_skipped_rows_are_counted_by_reason_and_reported(tmp_path, reference):
    data = write_pairs(tmp_path / "pairs.jsonl", 30)
    lines = data.read_text().splitlines()
    lines[4] = json.dumps({"prompt": "the film", "chosen": " ", "rejected": " bad"})
    data.write_text("\n".join(lines) + "\n")
    result = run_tdpo("cache", "build", "--ref", reference, "--dataset", data, "--out", tmp_path / "c")
    assert "1 empty chosen (rows 4)" in result.stdout
    assert tdpo.open_cache(tmp_path / "c").manifest.skipped["empty chosen"].first_rows == (4,)
    lines[5:8] = lines[4:5] * 3
    data.write_text("\n".join(lines) + "\n")
    result = run_tdpo(
        "cache", "build", "--ref", reference, "--dataset", data, "--out", tmp_path / "d", check=False
    )
    assert result.returncode == 2
    assert "--max-skipped" in result.stderr
    assert not (tmp_path / "d").exists()


def test_whole_vocabulary_in_the_head_has_no_tail(tmp_path, reference, pairs):
    reader = tdpo.build_cache(reference, pairs, tmp_path / "c", head=10_000, limit=4, quiet=True)
    assert (reader.head, reader.tail) == (reader.vocab_size, 0)
    probabilities = np.exp(reader[0].chosen.dist_logp.astype(np.float64)).sum(-1)
    np.testing.assert_allclose(probabilities, 1, atol=2e-3)


def test_without_head_and_tail_there_are_no_distributions(tmp_path, reference, pairs):
    reader = tdpo.build_cache(reference, pairs, tmp_path / "c", head=0, tail=0, limit=4, quiet=True)
    assert reader.statistics == {"ref_logp", "ref_entropy"}
    assert reader[0].chosen.dist_ids is None


@pytest.mark.parametrize("form", ["csv", "parquet", "json", "hh", "conversational", "implicit"])
def test_every_form_of_data_builds(tmp_path, form):
    import pandas

    rows = [
        {"prompt": f"the film {i}", "chosen": f" was good {i}", "rejected": f" was bad {i}"} for i in range(6)
    ]
    tokenizer = make_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}</s>{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    make_model(len(tokenizer)).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    path = tmp_path / ("data." + (form if form in ("csv", "parquet") else "json"))
    if form == "csv":
        pandas.DataFrame(rows).to_csv(path, index=False)
    elif form == "parquet":
        pandas.DataFrame(rows).to_parquet(path)
    else:
        path.write_text(json.dumps([reshape(row, form) for row in rows]))
    reader = tdpo.build_cache(tmp_path / "model", path, tmp_path / "tdpo-cache", quiet=True)
    assert len(reader) == 6
    text = tokenizer.decode(reader[2].pair.prompt_ids), tokenizer.decode(reader[2].pair.chosen_ids)
    assert text == {
        "hh": ("\n\nHuman: the film 2\n\nAssistant:", " was good 2</s>"),
        "conversational": ("<user>the film 2</s><assistant>", " was good 2</s>"),
        "implicit": ("the film 2 was", " good 2</s>"),
    }.get(form, ("the film 2", " was good 2</s>"))


def reshape(row, form):
    if form == "hh":
        start = f"\n\nHuman: {row['prompt']}\n\nAssistant:"
        return {side: start + row[side] for side in ("chosen", "rejected")}
    if form == "implicit":
        return {side: row["prompt"] + row[side] for side in ("chosen", "rejected")}
    if form == "conversational":
        user = {"role": "user", "content": row["prompt"]}
        return {side: [user, {"role": "assistant", "content": row[side]}] for side in ("chosen", "rejected")}
    return row
