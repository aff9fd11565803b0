"""What is made of figures of single pairs: intervals, calibration, correlations, slices, differences.

Each number is compared with a naive form in plain Python or float64, and intervals with the truth that
made-up data have.
"""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest

from tdpo.core.errors import ConfigError
from tdpo.core.evaluating import calibration, correlation
from tdpo.core.evaluating.compare import differences
from tdpo.core.evaluating.conditions import parse_conditions
from tdpo.core.evaluating.intervals import Bootstrap, point_values
from tdpo.core.evaluating.slices import Slicing, cut, parse_slices
from tdpo.core.evaluating.table import Table, chosen_names, common_rows


def table(figures, groups=None, columns=None, derived=None, **more):
    """A table of made-up rows, each of a prompt of its own unless said otherwise."""
    rows = len(next(iter(figures.values())))
    ids = np.array([f"pair-{at}" for at in range(rows)])
    groups = ids if groups is None else np.array([f"prompt-{one}" for one in groups])
    figures = {name: np.asarray(values, np.float64) for name, values in figures.items()}
    return Table(ids, groups, figures, derived=derived or {}, columns=columns or {}, **more)


def of_rewards(rng, rows, groups=None):
    """A table with rewards, margins and lengths, as an evaluation makes it."""
    chosen, rejected = rng.normal(0.3, 1, rows), rng.normal(0, 1, rows)
    lengths = rng.integers(1, 9, (2, rows))
    return table(
        {"rewards/chosen": chosen, "rewards/rejected": rejected, "rewards/margins": chosen - rejected},
        groups,
        {
            "chosen_tokens": lengths[0],
            "rejected_tokens": lengths[1],
            "length_difference": lengths[0] - lengths[1],
        },
        calibration.derived_figures(5) | correlation.derived_figures(),
        no_interval=calibration.NO_INTERVAL,
    )


def ranks(values):
    """Ranks from 1, ties sharing the mean of theirs; by comparing all with all."""
    values = np.asarray(values)
    return np.array([(values < v).sum() + ((values == v).sum() + 1) / 2 for v in values])


# Intervals.


def test_a_mean_is_over_pairs_or_over_tokens():
    made = table({"x": [1, 2, 6], "y": [1, 2, 6]}, weights={"y": np.array([1.0, 1.0, 8.0])})
    assert point_values(made, ["x", "y"]).tolist() == [3.0, 5.1]


def test_rows_without_a_figure_count_for_nothing():
    made = table({"x": [1, np.nan, 3, 5]}, groups=[0, 0, 1, 2])
    estimate = Bootstrap(200).estimates(made, ["x"])["x"]
    assert (estimate.value, estimate.rows, estimate.prompts) == (3, 3, 3)


def test_resamples_are_those_of_the_naive_bootstrap():
    """Every row as often as its prompt was drawn, all figures with the same draws."""
    rng = np.random.default_rng(3)
    made = of_rewards(rng, 40, groups=rng.integers(0, 12, 40))
    names = ["rewards/margins", "length/reward_pearson", "length/reward_spearman", "length/margin_spearman"]
    bootstrap = Bootstrap(50, seed=5)
    found = bootstrap.replicates(made, names)
    groups = np.unique(made.groups, return_inverse=True)[1]
    drawn = np.concatenate(list(bootstrap._drawn(groups.max() + 1, len(made))))
    assert drawn.shape == (50, groups.max() + 1)
    assert (drawn.sum(1) == groups.max() + 1).all()
    for counts, replicate in zip(drawn[:, groups].astype(int), found, strict=True):
        rows = np.repeat(np.arange(len(made)), counts)
        sample = made.take(rows)
        rewards = np.concatenate([sample.figures["rewards/chosen"], sample.figures["rewards/rejected"]])
        lengths = np.concatenate([sample.columns["chosen_tokens"], sample.columns["rejected_tokens"]])
        margins, apart = sample.figures["rewards/margins"], sample.columns["length_difference"]
        expected = [
            math.fsum(margins) / len(margins),
            np.corrcoef(rewards, lengths)[0, 1],
            np.corrcoef(ranks(rewards), ranks(lengths))[0, 1],
            np.corrcoef(ranks(margins), ranks(apart))[0, 1],
        ]
        np.testing.assert_allclose(replicate, expected, rtol=1e-9)


def test_how_many_resamples_are_held_at_a_time_changes_nothing(monkeypatch):
    made = of_rewards(np.random.default_rng(0), 30)
    whole = Bootstrap(64).replicates(made, made.names)
    monkeypatch.setattr("tdpo.core.evaluating.intervals._HELD", 30 * 7)
    np.testing.assert_allclose(Bootstrap(64).replicates(made, made.names), whole, rtol=1e-12)


def test_the_seed_and_nothing_else_decides_an_interval():
    made = of_rewards(np.random.default_rng(1), 50)
    np.random.seed(1)  # noqa: NPY002 (the global state must not matter)
    first = Bootstrap(100, seed=2).estimates(made, made.names)
    assert Bootstrap(100, seed=2).estimates(made, made.names) == first
    assert Bootstrap(100, seed=3).estimates(made, made.names) != first


@pytest.mark.parametrize("confidence", [0.8, 0.95])
def test_intervals_of_independent_pairs_hold_the_truth_as_often_as_they_say(confidence):
    rng = np.random.default_rng(11)
    times, inside = 400, 0
    for _ in range(times):
        made = table({"x": rng.exponential(2.0, 60)})
        estimate = Bootstrap(300, confidence, seed=int(rng.integers(1e9))).estimates(made, ["x"])["x"]
        inside += estimate.low <= 2.0 <= estimate.high
    # Three standard errors of so many trials, and what the percentile interval of a skewed mean lacks.
    spread = 3 * math.sqrt(confidence * (1 - confidence) / times)
    assert confidence - spread - 0.03 < inside / times < confidence + spread


def test_pairs_of_one_prompt_are_not_taken_for_independent():
    """Prompts whose pairs agree: the interval over prompts holds the truth, one over pairs would not."""
    rng = np.random.default_rng(12)
    times, clustered, naive = 300, 0, 0
    for _ in range(times):
        values = np.repeat(rng.normal(0, 1, 40), 8) + 0.2 * rng.normal(0, 1, 320)
        seed = int(rng.integers(1e9))
        by_prompt = Bootstrap(200, seed=seed).estimates(table({"x": values}, np.repeat(range(40), 8)), ["x"])
        by_pair = Bootstrap(200, seed=seed).estimates(table({"x": values}), ["x"])
        clustered += by_prompt["x"].low <= 0 <= by_prompt["x"].high
        naive += by_pair["x"].low <= 0 <= by_pair["x"].high
    assert clustered / times > 0.88
    assert naive / times < 0.7


def test_rows_of_a_single_prompt_have_no_interval():
    estimate = Bootstrap(100).estimates(table({"x": [1, 2, 3]}, groups=[0, 0, 0]), ["x"])["x"]
    assert (estimate.value, estimate.low, estimate.high) == (2, None, None)
    assert Bootstrap(0).estimates(table({"x": [1, 2, 3]}), ["x"])["x"].low is None


# Calibration.


def test_proper_scores_are_those_of_sigmoid_of_the_margin():
    margins = np.array([-3.0, 0.0, 0.4, 800.0, -800.0])
    found = calibration.pair_figures(margins)
    for at, margin in enumerate(margins[:3]):
        p = 1 / (1 + math.exp(-margin))
        assert found["calibration/brier"][at] == pytest.approx((1 - p) ** 2, rel=1e-12)
        assert found["calibration/log_loss"][at] == pytest.approx(-math.log(p), rel=1e-12)
    assert found["calibration/brier"][3:].tolist() == [0, 1]
    assert found["calibration/log_loss"][3:].tolist() == [0, 800]


def test_the_reliability_table_is_of_the_side_that_the_policy_prefers():
    margins = np.array([0.0, 0.1, -0.1, 0.9, 0.9, -0.9, 5.0])
    bins = calibration.reliability(table({"rewards/margins": margins}), 5)
    assert [(one["low"], one["high"]) for one in bins] == [
        pytest.approx((0.5 + at / 10, 0.6 + at / 10)) for at in range(5)
    ]
    assert [one["pairs"] for one in bins] == [3, 0, 3, 0, 1]
    assert [one["observed"] for one in bins] == [0.5, None, pytest.approx(2 / 3), None, 1.0]
    claimed = 1 / (1 + math.exp(-0.9))
    assert bins[2]["predicted"] == pytest.approx(claimed)
    found = point_values(of_margins(margins), ["calibration/ece", "calibration/ece_by_chance"])
    gap_first = abs(np.mean([0.5, 1 / (1 + math.exp(-0.1)), 1 / (1 + math.exp(-0.1))]) - 0.5)
    gap_last = abs(1 / (1 + math.exp(-5)) - 1)
    assert found[0] == pytest.approx((3 * gap_first + 3 * abs(claimed - 2 / 3) + gap_last) / 7)


def of_margins(margins, bins=5):
    """A table whose rewards have these margins."""
    return table(
        {"rewards/margins": margins},
        derived=calibration.derived_figures(bins),
        no_interval=calibration.NO_INTERVAL,
    )


def test_a_calibrated_policy_errs_by_chance_alone_and_a_boastful_one_by_more():
    rng = np.random.default_rng(4)
    claims = rng.exponential(1.0, (200, 500))
    right = rng.random((200, 500)) < calibration.sigmoid(claims)
    names = ["calibration/ece", "calibration/ece_by_chance"]
    honest = [point_values(of_margins(np.where(r, c, -c)), names) for c, r in zip(claims, right, strict=True)]
    found, expected = np.mean(honest, axis=0)
    assert found == pytest.approx(expected, rel=0.1)
    boastful = point_values(of_margins(3 * np.where(right[0], claims[0], -claims[0])), names)
    assert boastful[0] > 2 * boastful[1]


def test_the_calibration_error_has_no_interval():
    """It is above zero by chance; a resample's is more so, and its interval need not hold the value."""
    made = of_margins(np.random.default_rng(0).normal(0, 1, 80))
    assert Bootstrap(50).estimates(made, ["calibration/ece"])["calibration/ece"].low is None


# Correlations.


def test_correlations_are_those_of_their_definitions():
    rng = np.random.default_rng(5)
    x, y = rng.normal(size=30), rng.integers(0, 5, 30).astype(float)
    once = np.ones((1, 30))
    np.testing.assert_allclose(correlation.pearson(x, y, once), np.corrcoef(x, y)[0, 1], rtol=1e-12)
    np.testing.assert_allclose(
        correlation.spearman(x, y, once), np.corrcoef(ranks(x), ranks(y))[0, 1], rtol=1e-12
    )
    # A monotone map changes Pearson's and not Spearman's; a far-off origin neither.
    assert correlation.spearman(np.exp(x), y, once) == pytest.approx(correlation.spearman(x, y, once))
    np.testing.assert_allclose(
        correlation.pearson(x + 1e8, y, once), correlation.pearson(x, y, once), rtol=1e-6
    )


def test_what_does_not_vary_has_no_correlation():
    x = np.arange(5.0)
    assert np.isnan(correlation.pearson(x, np.full(5, 3.3), np.ones((1, 5))))
    assert np.isnan(correlation.spearman(np.full(5, 0.1), x, np.ones((1, 5))))


# Differences.


def test_rows_are_joined_by_id_and_never_by_position():
    a = table({"x": [1, 2, 3, 4]})
    b = replace(table({"x": [40, 20, 10]}), ids=np.array(["pair-3", "pair-1", "pair-0"]))
    in_a, in_b = common_rows(a, b)
    assert [(a.ids[i], b.figures["x"][j]) for i, j in zip(in_a, in_b, strict=True)] == [
        ("pair-0", 10),
        ("pair-1", 20),
        ("pair-3", 40),
    ]
    twice = replace(a, ids=np.array(["same", "same", "same", "other"]))
    assert [one.tolist() for one in common_rows(twice, twice)] == [[0, 1, 2, 3]] * 2


def test_paired_intervals_see_what_those_of_each_policy_hide():
    rng = np.random.default_rng(6)
    hard = rng.normal(0, 5, 200)
    a, b = table({"x": hard}), table({"x": hard + 0.2 + 0.3 * rng.normal(0, 1, 200)})
    found = differences(a, b, ["x"], Bootstrap(500))["x"]
    assert 0 < found.low < found.value < found.high
    assert found.value == pytest.approx(found.b - found.a)
    assert found.p < 0.001
    alone = Bootstrap(500)
    assert alone.estimates(a, ["x"])["x"].high > alone.estimates(b, ["x"])["x"].low


def test_the_p_value_is_that_of_all_sign_flips():
    rng = np.random.default_rng(7)
    apart, groups = rng.normal(0.4, 1, 18), np.repeat(range(9), 2)
    found = differences(table({"x": np.zeros(18)}, groups), table({"x": apart}, groups), ["x"], Bootstrap(50))
    sums = apart.reshape(9, 2).sum(1)
    every = [abs(np.dot(signs, sums)) for signs in itertools.product((-1, 1), repeat=9)]
    exact = np.mean([one >= abs(sums.sum()) - 1e-12 for one in every])
    assert found["x"].p == pytest.approx(exact, abs=4 * math.sqrt(exact * (1 - exact) / 9999))


def test_p_values_of_equal_policies_are_uniform():
    rng = np.random.default_rng(8)
    values = []
    for _ in range(150):
        a, b = table({"x": rng.normal(size=25)}), table({"x": rng.normal(size=25)})
        values.append(differences(a, b, ["x"], Bootstrap(0, seed=int(rng.integers(1e9))))["x"].p)
    for level in (0.1, 0.5):
        assert np.mean(np.array(values) <= level) == pytest.approx(level, abs=0.12)


def test_the_same_policy_twice_has_no_difference():
    made = of_rewards(np.random.default_rng(9), 40)
    found = differences(made, made, made.names, Bootstrap(50))
    assert {one.value for one in found.values()} == {0.0}
    assert found["rewards/margins"].p == 1.0
    assert found["length/reward_spearman"].p is None


# Slices.


def labels(values, bins=None):
    made = table({"x": np.zeros(len(values))}, columns={"column": np.asarray(values)})
    return [(one.label, np.flatnonzero(one.rows).tolist()) for one in cut(made, Slicing("column", bins))]


def test_numbers_are_cut_into_equally_filled_bins():
    values = np.random.default_rng(10).permutation(100)
    parts = labels(values, 4)
    assert [label for label, _ in parts] == ["0 to 24", "25 to 49", "50 to 74", "75 to 99"]
    assert sorted(row for _, rows in parts for row in rows) == list(range(100))


def test_ties_are_never_cut_apart():
    parts = labels([1] * 50 + [2] * 3 + [3] * 47, 4)
    assert [(label, len(rows)) for label, rows in parts] == [("1", 50), ("2", 3), ("3", 47)]


def test_few_values_and_words_have_a_slice_each_and_what_lacks_one_comes_last():
    assert labels([3, 1, 3, 2]) == [("1", [1]), ("2", [3]), ("3", [0, 2])]
    assert labels([2.5, np.nan, 1.0], 1) == [("1 to 2.5", [0, 2]), ("(none)", [1])]
    words = np.array(["b", None, "a", "b"], object)
    assert labels(words) == [("a", [2]), ("b", [0, 3]), ("(none)", [1])]
    with pytest.raises(ConfigError, match="holds no numbers to put into bins"):
        labels(words, 3)


def test_of_many_words_the_most_frequent_have_a_slice_each():
    words = np.array([f"{at:02}" for at in range(60)] + ["59"] * 3 + ["07"], object)
    parts = labels(words)
    assert len(parts) == 21
    assert parts[-1][0] == "(40 others)"
    assert ("59", [59, 60, 61, 62]) in parts
    assert sorted(row for _, rows in parts for row in rows) == list(range(64))


def test_slices_are_read_from_their_form():
    assert parse_slices(["chosen_tokens", "ref_entropy=3"]) == [
        Slicing("chosen_tokens", None),
        Slicing("ref_entropy", 3),
    ]
    for wrong in ("row=0", "row=-1", "row=two", "row=", "=3"):
        with pytest.raises(ConfigError, match="at least 1 bin"):
            parse_slices([wrong])


# Names and conditions.


def test_figures_are_named_whole_or_by_pattern():
    known = ["rewards/chosen", "rewards/margins", "loss"]
    assert chosen_names([], known) == known
    assert chosen_names(["loss", "rewards/m*"], known) == ["rewards/margins", "loss"]


@pytest.mark.parametrize(
    ("text", "passes"),
    [
        ("loss<0.7", True),
        ("loss <= 0.5", True),
        ("loss>5e-1", False),
        ("loss.low>=0.4", True),
        ("loss.high<0.55", False),
    ],
)
def test_conditions_hold_or_do_not(text, passes):
    (condition,) = parse_conditions([text], intervals=True)
    figures = {"loss": {"value": 0.5, "low": 0.4, "high": 0.6}}
    assert condition.check(figures)["passed"] is passes
    assert condition.check({})["passed"] is False


def test_a_condition_that_is_none_is_refused():
    for wrong in ("loss", "loss=0.5", ">=0.5", "loss>=much"):
        with pytest.raises(ConfigError, match="expected FIGURE>=NUMBER"):
            parse_conditions([wrong], intervals=True)
    with pytest.raises(ConfigError, match="no intervals with --bootstrap 0"):
        parse_conditions(["loss.low>0"], intervals=False)
