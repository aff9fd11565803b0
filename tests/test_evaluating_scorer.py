"""A finished policy's scores of cached pairs."""

import pytest
import torch

import tdpo
from tdpo.core.errors import CacheError, ConfigError
from tdpo.core.evaluating.scorer import PairScorer, open_policy_for
from tdpo.core.runs.folder import RunFolder, find_runs


@pytest.fixture(scope="module")
def run(tmp_path_factory, cache):
    """A run of a few steps, evaluated on its own training cache."""
    output = tmp_path_factory.mktemp("runs") / "runs" / "dpo"
    tdpo.fit(
        "dpo", cache, output=str(output), max_steps=4, learning_rate=1e-3, eval_cache=[str(cache)],
        logging_steps=1, quiet=True,
    )  # fmt: skip
    return RunFolder.open(output)


def test_the_reference_itself_has_no_log_ratio_and_no_divergence(cache, reference):
    reader = tdpo.open_cache(cache)
    model, _ = open_policy_for(reader, reference, option="MODEL")
    for batch in PairScorer(model, reader, batch_tokens=200).score(range(len(reader))):
        for side in (batch.chosen, batch.rejected):
            assert side.sum(side.log_ratio).abs().max() < 1e-3  # what float16 in the cache rounds off
            assert side.sum(side.forward_kl).abs().max() < 1e-3
            torch.testing.assert_close(
                side.mean(side.entropy), side.mean(side.ref_entropy), atol=2e-3, rtol=0
            )


def test_a_policy_scores_as_its_own_forward_says(cache, run):
    reader = tdpo.open_cache(run.cache)
    model, _ = open_policy_for(reader, run.path, option="RUN")
    plain, _ = open_policy_for(reader, run.path, option="RUN")
    seen = []
    for batch in PairScorer(model, reader, batch_tokens=150).score(range(0, len(reader), 5)):
        for place, pair in enumerate(batch.pairs):
            seen.append(pair.pair_id)
            for side, ids in ((batch.chosen, pair.chosen_ids), (batch.rejected, pair.rejected_ids)):
                row = torch.tensor([[*pair.prompt_ids, *ids]])
                logp = plain(row).logits[0, len(pair.prompt_ids) - 1 : -1].log_softmax(-1)
                expected = logp.gather(-1, torch.tensor(ids.astype("int64"))[:, None])[:, 0]
                torch.testing.assert_close(side.logp[place][side.mask[place]], expected, atol=2e-5, rtol=1e-5)
    assert sorted(seen) == sorted(reader[n].pair.pair_id for n in range(0, len(reader), 5))


def test_a_run_tells_its_options_figures_and_caches(run, cache):
    assert (run.name, run.config.objective_name, run.steps, run.has_model) == ("dpo", "dpo", 4, True)
    assert [step for step, _ in run.curve("loss")] == [1, 2, 3, 4]
    assert run.curve("eval_loss")[0][0] == 0
    assert "rewards/margins" in run.figures
    assert run.eval_caches == {"": str(cache)}
    run.check_cache(tdpo.open_cache(cache))
    assert [one.name for one in find_runs(run.path.parent)] == ["dpo"]


def test_another_cache_than_the_run_was_made_from_is_refused(run, tmp_path, reference, pairs):
    other = tmp_path / "other"
    tdpo.build_cache(reference, pairs, other, head=4, tail=4, quiet=True)
    with pytest.raises(CacheError, match="is not the cache that"):
        run.check_cache(tdpo.open_cache(other))


def test_metrics_cut_short_are_read_as_far_as_they_go(run, tmp_path):
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in ("tdpo.yaml", "run.json"):
        (copy / name).write_bytes((run.path / name).read_bytes())
    text = (run.path / "metrics.jsonl").read_text()
    (copy / "metrics.jsonl").write_text(text[:-20])
    opened = RunFolder.open(copy)
    assert "is cut short: its last line" in opened.cut
    assert opened.events == run.events[:-1]
    assert not opened.has_model


def test_a_folder_that_is_no_run_is_named(tmp_path, run, cache):
    with pytest.raises(ConfigError, match="no such folder"):
        RunFolder.open(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match=r"is no run of tdpo fit.*there are some in it: .*dpo"):
        RunFolder.open(run.path.parent)
    with pytest.raises(ConfigError, match="is a cache"):
        RunFolder.open(cache)
