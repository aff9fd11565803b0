"""The experiment of docs/frontier.md: run, killed and gone on with; its statistics; its page and pictures."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

import tdpo

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "examples"
sys.path.append(str(EXAMPLES))

from frontier import analyse, store, tables  # noqa: E402
from frontier.page import fill  # noqa: E402
from frontier.plan import CACHES, FULL, TINY  # noqa: E402


def command(*words, **options):
    """``python -m frontier`` as a user types it."""
    return subprocess.Popen(
        [sys.executable, "-m", "frontier", *map(str, words)],
        cwd=EXAMPLES,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        **options,
    )


def said(*words):
    process = command(*words)
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def figures(kl, reward, **more):
    """A row's figures of a policy at this KL."""
    tops = {f"kl_{kind}_{k}": 0.8 * kl for kind in ("top", "bucket") for k in (8, 16)}
    return {"reward": reward, "kl": kl, "reverse_kl": 2 * kl, **tops, "cpu_seconds": 1.0, **more}


def made_up(path, gain, kl_of=None, plan=FULL, noise=0.0):
    """Results in which a policy's gain is ``gain(series, kl)``, and its KL ``kl_of(series, beta)``."""
    rng = random.Random(3)
    kl_of = kl_of or (lambda series, beta: 2.0 / beta**0.6)
    rows = [{"plan": asdict(plan)}]
    for rate in plan.learning_rates:
        loss = 0.66 + abs(rate - 8e-4)
        pilot = {"series": "pilot", "beta": 0.1, "seed": plan.pilot_seed, "heldout_loss": loss}
        rows.append({**pilot, "learning_rate": rate, **figures(2.0, 0.1)})
    for seed in plan.seeds:
        start = {"series": "reference", "beta": 0.0, "seed": seed, **figures(0.0, 0.01 * seed)}
        rows.append({**start, "pairs": 2000 + seed, "agreement": 0.9, "nats_a_token": 1.3})
    for cell in plan.cells:
        name, beta, seed = cell.key
        kl = kl_of(name, beta) * (1 + 0.05 * seed)
        reward = 0.01 * seed + gain(name, kl) + rng.gauss(0, noise)
        curves = {"step": [10, 20], "chosen": [kl / 2, kl], "rejected": [0.6 * kl, 1.2 * kl]}
        for side in ("chosen", "rejected"):
            curves[f"{side}_sparse"] = [0.99 * x for x in curves[side]]
            curves[f"{side}_truncated"] = [0.8 * x for x in curves[side]]
        rows.append(
            {
                "series": name,
                "beta": beta,
                "seed": seed,
                **figures(kl, reward),
                "accuracy": 0.6,
                "curves": curves,
            }
        )
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


class TestStatistics:
    def test_an_interval_is_students(self):
        found = analyse.Interval.of([1.0, 2.0, 3.0, 4.0, 5.0])
        # scipy.stats.t.interval(0.95, 4, 3, 5 ** -0.5 * 1.58114)
        assert (found.low, found.high) == pytest.approx((1.03676, 4.96324), abs=1e-3)

    def test_an_interval_on_one_side_of_0_has_its_sign(self):
        assert [analyse.Interval(m, 1.0).sign for m in (2.0, -2.0, 0.5)] == [1, -1, 0]

    def test_the_area_of_a_line_over_the_root_of_the_kl(self):
        kl = [0.0, 1.0, 4.0, 9.0]
        gain = [0.1 * np.sqrt(x) for x in kl]
        # Of sqrt(kl) = d from 0 to 2, the mean of 0.1 d is 0.1.
        assert analyse.area(kl, gain, 4.0) == pytest.approx(0.1)
        assert analyse.area(kl, gain, 4.0, start=1.0) == pytest.approx(0.15)

    def test_a_budget_between_two_policies_is_interpolated(self):
        # d from 0 to 1 rises to 1, from 1 to 2 falls to 0; up to d = 1.5 the area is 0.5 + 0.375.
        assert analyse.area([0.0, 1.0, 4.0], [0.0, 1.0, 0.0], 2.25) == pytest.approx(0.875 / 1.5)

    def test_past_the_last_policy_its_gain_stays(self):
        assert analyse.area([0.0, 1.0], [0.0, 1.0], 4.0) == pytest.approx((0.5 + 1.0) / 2)

    def test_against_a_fine_sum(self):
        rng = np.random.default_rng(0)
        kl = np.concatenate([[0.0], np.sort(rng.uniform(0.1, 30, 5))])
        gain = np.concatenate([[0.0], rng.normal(0.2, 0.1, 5)])
        budget = float(kl[-1] * 0.7)
        root = np.linspace(0, np.sqrt(budget), 200_001)
        fine = np.interp(root, np.sqrt(kl), gain).mean()
        assert analyse.area(kl.tolist(), gain.tolist(), budget) == pytest.approx(fine, abs=1e-5)


class TestComparison:
    def test_one_curve_walked_at_different_paces_shows_no_difference(self, tmp_path):
        """An objective whose first policy is far out is not worse for it."""
        paces = {"dpo": 3.0, "tdpo1": 5.0, "tdpo2-0.5": 1.0, "tdpo2-1": 0.6}
        found = analyse.Experiment.read(
            made_up(
                tmp_path / "results.jsonl",
                gain=lambda _, kl: 0.1 * kl**0.5,
                kl_of=lambda series, beta: paces.get(series, 2.0) / beta**0.6,
            )
        )
        budget = analyse.common_budget(found)
        for name in found.objectives:
            assert abs(analyse.compare(found, name, "dpo", budget).mean) < 1e-9, name
            assert abs(analyse.compare_between(found, name, "dpo").mean) < 1e-9, name

    def test_a_known_difference_is_found_and_seen(self, tmp_path):
        better = {"tdpo2-0.5": 0.12, "tdpo2-1": 0.08}
        path = made_up(tmp_path / "results.jsonl", lambda series, kl: better.get(series, 0.1) * kl**0.5)
        found = analyse.Experiment.read(path)
        budget = analyse.common_budget(found)
        # The mean of d from 0 to sqrt(budget) is half of it.
        half = budget**0.5 / 2
        assert analyse.compare(found, "tdpo2-0.5", "dpo", budget).mean == pytest.approx(0.02 * half)
        lines = tables.verdicts(found).splitlines()
        verdict = {line.split("|")[1].strip(): line.split("|")[2].strip() for line in lines}
        assert verdict["The frontier of TDPO2, α = 0.5 is above DPO's"] == "**seen**"
        assert verdict["The frontier of TDPO2, α = 1 is above DPO's"] == "**the reverse is seen**"
        assert verdict["The frontier of TDPO2, α = 0.1 is above DPO's"] == "**not told apart**"

    def test_objectives_that_never_meet_are_compared_from_the_reference_on(self, tmp_path):
        path = made_up(
            tmp_path / "results.jsonl",
            lambda series, kl: (0.2 if series == "tdpo2-1" else 0.1) * kl**0.5,
            lambda series, beta: (0.01 if series == "tdpo2-1" else 2.0) / beta,
        )
        found = analyse.Experiment.read(path)
        assert analyse.compare_between(found, "tdpo2-1", "dpo") is None
        [line] = [line for line in tables.verdicts(found).splitlines() if "TDPO2, α = 1 is above" in line]
        assert "**seen**" in line
        assert "no policies at the same KL" in line
        assert "–" in tables.areas(found)

    def test_the_common_budget_needs_no_extension(self, tmp_path):
        reach = {"tdpo2-1": 0.5}
        path = made_up(
            tmp_path / "results.jsonl", lambda _, kl: kl, lambda series, beta: reach.get(series, 2.0) / beta
        )
        # tdpo2-1 at its smallest beta, on the seed whose KL is smallest.
        assert analyse.common_budget(analyse.Experiment.read(path)) == pytest.approx(0.5 / 0.05 * 1.05)

    def test_balance_is_told_in_nats_and_in_proportion(self, tmp_path):
        found = analyse.Experiment.read(made_up(tmp_path / "results.jsonl", lambda _, kl: kl))
        balance = analyse.Balance.of(found, "dpo", 0.1)
        assert balance.gap == pytest.approx([0.2 * chosen for chosen in balance.chosen])
        assert balance.relative == pytest.approx([0.2 / 1.1] * 5)

    def test_where_policies_end_up_is_compared_beta_by_beta(self, tmp_path):
        further = {"tdpo2-0.5-truncated": 1.1}
        path = made_up(
            tmp_path / "results.jsonl",
            lambda series, kl: 0.2 + 0.03 * (series in further),
            lambda series, beta: further.get(series, 1.0) / beta,
        )
        found = analyse.moved(analyse.Experiment.read(path), "tdpo2-0.5-truncated", "tdpo2-0.5-exact")
        assert found.kl.mean == pytest.approx(np.log(1.1))
        assert found.gain.mean == pytest.approx(0.03)

    def test_estimates_are_set_against_the_exact_kl(self, tmp_path):
        found = analyse.Experiment.read(made_up(tmp_path / "results.jsonl", lambda _, kl: kl))
        assert analyse.track_pairs(found, "sparse").ratio.mean == pytest.approx(0.99)
        assert analyse.track_pairs(found, "truncated").least == pytest.approx(0.8)
        assert analyse.track_samples(found, "kl_top_8").most == pytest.approx(0.8)

    def test_only_whole_seeds_count(self, tmp_path):
        path = made_up(tmp_path / "results.jsonl", lambda _, kl: kl)
        lines = path.read_text().splitlines(keepends=True)
        path.write_text(
            "".join(line for line in lines if '"series": "tis", "beta": 1.0, "seed": 3' not in line)
        )
        assert analyse.Experiment.read(path).seeds == (1, 2, 4, 5)
        path.write_text("".join(lines[:60]))
        with pytest.raises(store.UnusableError, match="intervals take two"):
            analyse.Experiment.read(path)


@pytest.fixture(scope="module")
def models():
    """Two models of random weights, and their tokenizer."""
    from tdpo.core.demo.corpus import reviews
    from tdpo.core.demo.reference import new_model, train_tokenizer

    tokenizer = train_tokenizer(reviews(200, seed=5), 400)
    return *(new_model(tokenizer, hidden=32, layers=1, seed=seed).eval() for seed in (0, 1)), tokenizer


class TestMeasuring:
    def test_figures_of_own_samples_are_those_of_the_demonstration(self, models):
        from frontier.measure import measure_samples

        from tdpo.core.demo.measure import measure

        policy, reference, tokenizer = models
        prompts = ["The plot is", "I watched this", "A superb"]
        found = measure_samples(policy, reference, tokenizer, prompts, seed=3, top_k=(8,))
        known = measure(policy, reference, tokenizer, prompts, seed=3, quiet=True)
        assert found["reward"] == known.reward.mean
        assert found["kl"] == pytest.approx(known.forward_kl.mean, rel=1e-5)
        assert found["kl_error"] == pytest.approx(known.forward_kl.error, rel=1e-4)
        assert found["reverse_kl"] == pytest.approx(known.reverse_kl.mean, rel=1e-5)
        assert found["tokens"] == known.tokens

    def test_truncated_sums_are_those_of_numpy(self, models):
        import torch
        from frontier.measure import measure_samples

        from tdpo.core.demo.sampling import sample

        policy, reference, tokenizer = models
        [drawn] = sample(policy, tokenizer, ["The music is"], seed=9, quiet=True)
        found = measure_samples(policy, reference, tokenizer, ["The music is"], seed=9, top_k=(8, 16))
        ids = torch.tensor([drawn.prompt_ids + drawn.completion_ids])
        start = len(drawn.prompt_ids) - 1
        with torch.no_grad():
            logits = [model(input_ids=ids).logits[0, start:-1].double() for model in (reference, policy)]
        p, q = (np.exp(z.numpy()) / np.exp(z.numpy()).sum(-1, keepdims=True) for z in logits)
        for k in (8, 16):
            top = np.argsort(-p, axis=-1)[:, :k]
            tp, tq = np.take_along_axis(p, top, -1), np.take_along_axis(q, top, -1)
            alone = (tp * np.log(tp / tq)).sum()
            rest = 1 - tp.sum(-1), 1 - tq.sum(-1)
            assert found[f"kl_top_{k}"] == pytest.approx(alone, rel=1e-4, abs=1e-5)
            bucket = alone + (rest[0] * np.log(rest[0] / rest[1])).sum()
            assert found[f"kl_bucket_{k}"] == pytest.approx(bucket, rel=1e-3, abs=1e-4)
        assert found["kl"] == pytest.approx((p * np.log(p / q)).sum(), rel=1e-4)


class TestStore:
    def test_a_line_that_was_being_written_is_cut_off(self, tmp_path):
        path = tmp_path / "results.jsonl"
        store.Results(path, TINY).add({"series": "dpo", "beta": 0.1, "seed": 1, "kl": 1.23456789})
        with path.open("a") as file:
            file.write('{"series": "dpo", "beta": 1.0, "se')
        again = store.Results(path, TINY)
        assert again.finished == {("dpo", 0.1, 1)}
        again.add({"series": "dpo", "beta": 1.0, "seed": 1, "kl": 2.0})
        assert [row.get("kl") for row in store.read_lines(path)] == [None, 1.2346, 2.0]

    def test_another_plan_is_refused(self, tmp_path):
        store.Results(tmp_path / "results.jsonl", TINY)
        with pytest.raises(store.UnusableError, match="of another plan"):
            store.Results(tmp_path / "results.jsonl", replace(TINY, seeds=(7,)))

    def test_two_runs_do_not_share_a_folder(self, tmp_path):
        with store.held(tmp_path):
            status, _, err = said("run", tmp_path, "--plan", "tiny")
        assert status == 2
        assert "another run is at work" in err


class TestPage:
    def test_blocks_are_replaced_and_the_rest_stays(self):
        page = "before\n<!-- a -->\nold\n<!-- /a -->\nafter\n"
        once = fill(page, {"a": r"new \1"})
        assert once == "before\n<!-- a -->\n\nnew \\1\n\n<!-- /a -->\nafter\n"
        assert fill(once, {"a": r"new \1"}) == once

    def test_a_missing_marker_is_told(self):
        with pytest.raises(store.UnusableError, match="0 places <!-- a -->"):
            fill("nothing", {"a": "new"})

    def test_the_documentation_has_every_marker_and_its_pictures(self, tmp_path):
        page = (ROOT / "docs" / "frontier.md").read_text(encoding="utf-8")
        (tmp_path / "frontier.md").write_text(page, encoding="utf-8")
        results = made_up(tmp_path / "results.jsonl", lambda _, kl: 0.1 * kl**0.5, noise=0.01)

        from frontier.report import report

        pytest.importorskip("vl_convert")
        written = report(results, tmp_path)
        filled = (tmp_path / "frontier.md").read_text(encoding="utf-8")
        assert "5 of 5 seeds finished" in filled
        assert "**0.0008**" in filled
        assert "| TIS-DPO |" in filled
        # What is not generated is as it was.
        prose = re.compile(r"(<!-- (\w+) -->\n).*?(<!-- /\2 -->)", re.DOTALL)
        assert prose.sub(r"\1\3", filled) == prose.sub(r"\1\3", page)
        pictures = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", page)
        assert sorted(pictures) == sorted(place.name for place in written if place.suffix == ".png")
        for picture in pictures:
            assert (tmp_path / picture).read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
            assert (tmp_path / picture).stat().st_size > 20_000


@pytest.mark.slow
def test_a_killed_run_goes_on_with_what_is_finished(tmp_path):
    """Ctrl-C after the second policy; the same command makes the rest, and the first lines stay."""
    path = tmp_path / "results.jsonl"
    run = command("run", tmp_path, "--plan", "tiny", "--workers", 1, start_new_session=True)
    seen = []
    for line in run.stdout:
        seen.append(line)
        if re.match(r" +2/8 +tdpo2", line):
            break
    os.killpg(run.pid, signal.SIGINT)
    _, err = run.communicate(timeout=60)
    assert run.returncode == 130, (seen, err)
    assert "stopped" in err
    assert "Traceback" not in err
    before = path.read_bytes()
    with path.open("a") as file:
        file.write('{"series": "half')

    status, out, err = said("run", tmp_path, "--plan", "tiny")
    assert status == 0, err
    assert re.search(r"^[2-4] of 8 policies are finished", out, re.MULTILINE)
    assert "preparing" not in out
    assert path.read_bytes().startswith(before)
    header, *rows = store.read_lines(path)
    assert header["plan"]["betas"] == [0.1, 1.0]
    assert {(r["series"], r["beta"], r["seed"]) for r in rows} >= {cell.key for cell in TINY.cells}
    assert len({(r["series"], r["beta"], r["seed"], r.get("learning_rate")) for r in rows}) == len(rows) == 12
    policies = [row for row in rows if row["series"] in TINY.series]
    assert all(row["kl"] > 0 and row["curves"]["step"] for row in policies)
    # DPO's held-out KL is exact, and the bucket of a truncated head never above it.
    for row in policies:
        for side in ("chosen", "rejected"):
            exact, truncated = row["curves"][side], row["curves"][f"{side}_truncated"]
            assert all(t <= e * (1 + 1e-4) for e, t in zip(exact, truncated, strict=True))
    assert not list((tmp_path / "policies").iterdir())

    # Whatever is cached of the reference, the pairs lie in the same order and groups.
    from frontier import prepare

    seed = prepare.seed_folder(tmp_path, 1)
    caches = {}
    for kind in CACHES:
        prepare.build(tmp_path, seed, "train", kind, 1)
        caches[kind] = tdpo.open_cache(seed / f"train-{kind}")
    orders = [(cache.group_sizes, cache.pair_ids()) for cache in caches.values()]
    assert orders[0] == orders[1] == orders[2]

    found = analyse.Experiment.read(path)
    assert found.seeds == (1, 2)
    assert analyse.common_budget(found) > 0


@pytest.mark.slow
def test_no_worker_outlives_a_run_that_is_killed_outright(tmp_path):
    run = command("run", tmp_path, "--plan", "tiny", "--workers", 1)
    assert "preparing" in run.stdout.readline()
    deadline = time.monotonic() + 60
    while not (workers := children(run.pid)) and time.monotonic() < deadline:
        time.sleep(0.1)
    run.kill()
    run.communicate(timeout=60)
    while any(Path(f"/proc/{pid}").exists() for pid in workers) and time.monotonic() < deadline + 60:
        time.sleep(0.1)
    assert workers
    assert not any(Path(f"/proc/{pid}").exists() for pid in workers)


def children(pid):
    """Process ids of the workers of ``pid``."""
    tasks = Path(f"/proc/{pid}/task/{pid}/children")
    if not tasks.exists():
        pytest.skip("needs /proc")
    return [int(word) for word in tasks.read_text().split()]
