"""The tables and verdicts of docs/frontier.md, in Markdown, from the figures alone."""

from collections.abc import Callable, Iterable, Sequence

from . import analyse
from .analyse import BASE, TWIN, Balance, Experiment, Interval, Tracking
from .plan import BY_NAME

CURVE_BETA = 0.1  # of the KL curves: the default of the objectives, and the paper's
_CLOSE = 0.05  # what counts as no bias of an estimate
VARIANTS = {TWIN: "sparse, 8 + 8 draws", f"{TWIN}-exact": "exact", f"{TWIN}-truncated": "truncated, top 16"}


def blocks(experiment: Experiment) -> dict[str, str]:
    """Every generated part of the page by its marker's name."""
    makers: dict[str, Callable[[Experiment], str]] = {
        "runs": runs,
        "pilot": pilot,
        "verdicts": verdicts,
        "areas": areas,
        "balance": balance,
        "estimates": estimates,
        "variants": variants,
        "points": points,
    }
    return {name: make(experiment) for name, make in makers.items()}


def table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table, all but the first column to the right."""
    lines = [headings, ["---", *["---:"] * (len(headings) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def signed(value: Interval, digits: int = 3) -> str:
    """A difference with its interval."""
    return f"{value.mean:+.{digits}f} ± {value.half:.{digits}f}"


def plain(value: Interval, digits: int = 2) -> str:
    """A size with its interval."""
    return f"{value.mean:.{digits}f} ± {value.half:.{digits}f}"


def runs(experiment: Experiment) -> str:
    """What was run, in a sentence or two."""
    plan, seeds = experiment.plan, experiment.seeds
    references = [experiment.rows["reference", 0.0, seed] for seed in seeds]
    policies = [row for row in experiment.rows.values() if "cpu_seconds" in row and row["seed"] in seeds]
    pairs = sorted(row["pairs"] for row in references)
    agreement = sum(row["agreement"] for row in references) / len(seeds)
    hours = sum(row["cpu_seconds"] for row in policies) / 3600
    return (
        f"{len(policies)} policies: {len(plan.series)} objectives and variants, {len(plan.betas)} betas, "
        f"{len(seeds)} of {len(plan.seeds)} seeds finished. A seed has {pairs[0]:,} to {pairs[-1]:,} "
        f"training pairs, {agreement:.0%} of them labelled as the reward says; the reference predicts unseen "
        f"reviews with {references[0]['nats_a_token']:.2f} nats a token. All policies took {hours:.1f} hours "
        "of one core."
    )


def pilot(experiment: Experiment) -> str:
    """The pilots, and which rate the rule took."""
    best = min(experiment.pilots, key=lambda row: row["heldout_loss"])
    rows = [
        (
            f"**{row['learning_rate']:g}**" if row is best else f"{row['learning_rate']:g}",
            f"{row['heldout_loss']:.4f}",
            f"{row['reward']:+.3f}",
            f"{row['kl']:.2f}",
        )
        for row in sorted(experiment.pilots, key=lambda row: row["learning_rate"])
    ]
    return table(("learning rate", "held-out loss of DPO", "reward", "KL, nats"), rows)


def _label(series: str) -> str:
    return BY_NAME[series].label


def areas(experiment: Experiment) -> str:
    """Area under the frontier of every objective, and its difference from DPO's."""
    common, base = analyse.common_budget(experiment), analyse.base_budget(experiment)
    reverse = analyse.common_budget(experiment, "reverse_kl")
    rows = []
    for name in experiment.objectives:
        row = [_label(name), signed(Interval.of(analyse.areas(experiment, name, common)))]
        if name != BASE:
            row += [
                _marked(analyse.compare(experiment, name, BASE, common)),
                _marked(analyse.compare_between(experiment, name, BASE)),
                _marked(analyse.compare(experiment, name, BASE, base)),
                _marked(analyse.compare(experiment, name, BASE, reverse, "reverse_kl")),
            ]
        rows.append([*row, *[""] * (6 - len(row))])
    headings = (
        "objective",
        f"mean gain up to {common:.2f} nats",
        "less DPO's",
        "where both have policies, less DPO's",
        f"up to {base:.2f} nats, less DPO's",
        f"by reverse KL up to {reverse:.2f} nats, less DPO's",
    )
    return table(headings, rows)


def _marked(value: Interval | None) -> str:
    """A difference, in bold where its interval leaves 0 out; a dash where there is none."""
    if value is None:
        return "–"
    return f"**{signed(value)}**" if value.sign else signed(value)


def balance(experiment: Experiment) -> str:
    """The KL of chosen and rejected at the end of training."""
    base = Balance.of(experiment, BASE, CURVE_BETA)
    rows = []
    for name in experiment.objectives:
        found = Balance.of(experiment, name, CURVE_BETA)
        sizes = analyse.difference([abs(x) for x in found.gap], [abs(x) for x in base.gap])
        shares = analyse.difference(found.imbalance, base.imbalance)
        rows.append(
            (
                _label(name),
                plain(Interval.of(found.chosen)),
                plain(Interval.of(found.rejected)),
                _marked(Interval.of(found.gap)),
                _marked(Interval.of(found.relative)),
                "" if name == BASE else _marked(sizes),
                "" if name == BASE else _marked(shares),
            )
        )
    return table(
        (
            "objective",
            "KL chosen, nats",
            "KL rejected, nats",
            "rejected − chosen",
            "over their mean",
            "size of the gap, less DPO's",
            "size over the mean, less DPO's",
        ),
        rows,
    )


def _tracked(experiment: Experiment) -> list[tuple[str, str, Tracking]]:
    return [
        ("8 likeliest + 8 draws, the cache", "held-out pairs", analyse.track_pairs(experiment, "sparse")),
        ("16 likeliest + a bucket, a cache", "held-out pairs", analyse.track_pairs(experiment, "truncated")),
        ("16 likeliest + a bucket", "own samples", analyse.track_samples(experiment, "kl_bucket_16")),
        ("16 likeliest alone", "own samples", analyse.track_samples(experiment, "kl_top_16")),
        ("8 likeliest + a bucket", "own samples", analyse.track_samples(experiment, "kl_bucket_8")),
        ("8 likeliest alone", "own samples", analyse.track_samples(experiment, "kl_top_8")),
    ]


def estimates(experiment: Experiment) -> str:
    """Estimates of the KL over the exact KL."""
    rows = [
        (entries, where, plain(found.ratio, 3), f"{found.least:.2f} to {found.most:.2f}")
        for entries, where, found in _tracked(experiment)
    ]
    return table(("entries a token", "over", "estimate / exact", "range"), rows)


def variants(experiment: Experiment) -> str:
    """TDPO2 trained from the sparse, the exact and the truncated cache."""
    common = analyse.common_budget(experiment)
    exact = f"{TWIN}-exact"
    rows = []
    for name, title in VARIANTS.items():
        row = [title, signed(Interval.of(analyse.areas(experiment, name, common)))]
        if name != exact:
            moved = analyse.moved(experiment, name, exact)
            row += [
                _marked(analyse.compare(experiment, name, exact, common)),
                _marked(moved.gain),
                _marked(moved.kl),
            ]
        rows.append([*row, *[""] * (5 - len(row))])
    headings = (
        "trained from",
        f"mean gain up to {common:.2f} nats",
        "less exact",
        "gain at the same β, less exact",
        "log of its KL, less exact",
    )
    return table(headings, rows)


def points(experiment: Experiment) -> str:
    """Every objective and beta."""
    rows = []
    for name in experiment.plan.series:
        row = [_label(name)]
        for beta in experiment.plan.betas:
            gain = Interval.of(experiment.gains(name, beta))
            row.append(f"{signed(gain)} at {plain(Interval.of(experiment.over_seeds(name, beta, 'kl')))}")
        rows.append(row)
    return table(("objective", *(f"β = {beta:g}" for beta in experiment.plan.betas)), rows)


def verdicts(experiment: Experiment) -> str:
    """What is claimed, and what of it the intervals show: by their signs alone."""
    common = analyse.common_budget(experiment)
    lines = []
    for name in experiment.objectives:
        if BY_NAME[name].plugin != "tdpo2":
            continue
        found = analyse.compare(experiment, name, BASE, common)
        between = analyse.compare_between(experiment, name, BASE)
        # Both ways of asking must say the same, where there are both.
        sign = found.sign if between is None or between.sign == found.sign else 0
        there = (
            "no policies at the same KL" if between is None else f"{signed(between)} where both have policies"
        )
        said = f"{signed(found)} from 0 on, {there}"
        lines.append((f"The frontier of {_label(name)} is above DPO's", _verdict(sign), said))
    base = Balance.of(experiment, BASE, CURVE_BETA)
    gap = Interval.of(base.relative)
    lines.append(
        (
            "Under DPO the KL of rejected completions grows faster than that of chosen ones",
            _verdict(gap.sign),
            f"gap over mean {signed(gap)}",
        )
    )
    for name in experiment.objectives:
        if BY_NAME[name].plugin != "tdpo2":
            continue
        twin = Balance.of(experiment, name, CURVE_BETA)
        lower = analyse.difference(twin.rejected, base.rejected)
        shares = analyse.difference(twin.imbalance, base.imbalance)
        lines += [
            (
                f"{_label(name)} keeps the KL of rejected completions lower than DPO",
                _verdict(-lower.sign),
                f"{signed(lower, 2)} nats",
            ),
            (
                f"{_label(name)} balances chosen and rejected better than DPO, in proportion to their KL",
                _verdict(-shares.sign),
                f"size of the gap over mean {signed(shares)}",
            ),
        ]
    lines += _cache_verdicts(experiment, common)
    return table(("claim", "here", "difference, 95 % interval"), lines)


def _cache_verdicts(experiment: Experiment, common: float) -> list[tuple[str, str, str]]:
    exact = f"{TWIN}-exact"
    lines = []
    for name, what in ((TWIN, "the sparse cache"), (f"{TWIN}-truncated", "top 16 alone")):
        found = analyse.compare(experiment, name, exact, common)
        verdict = "**differs**" if found.sign else "**seen** (no difference found)"
        lines.append(
            (f"Training from {what} gives the frontier of exact distributions", verdict, signed(found))
        )
    for kind, what in (("sparse", "8 likeliest and 8 draws"), ("truncated", "16 likeliest")):
        ratio = analyse.track_pairs(experiment, kind).ratio
        bias = Interval(ratio.mean - 1, ratio.half)
        within = bias.low > -_CLOSE and bias.high < _CLOSE
        outside = bias.low > _CLOSE or bias.high < -_CLOSE
        verdict = "**seen**" if within else "**not so**" if outside else "**undecided**"
        claim = f"The KL estimated from the {what} is within {_CLOSE:.0%} of the exact one on average"
        lines.append((claim, verdict, f"{bias.mean:+.1%} ± {bias.half:.1%}"))
    return lines


def _verdict(sign: int) -> str:
    return {1: "**seen**", 0: "**not told apart**", -1: "**the reverse is seen**"}[sign]
