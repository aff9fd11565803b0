"""Figures of a policy's samples, a row a sample, as the rest of an evaluation takes them."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ...cache.pairs import Pair
from . import diversity
from .figures import prompt_id
from .samples import Samples
from .table import Derived, Table
from .winrate import wins

PREFIX = "samples/"


def sample_table(
    pairs: Sequence[Pair],
    policy: Samples,
    *,
    reference: Samples | None = None,
    against: np.ndarray | None = None,
) -> Table:
    """The table of ``S`` samples of ``P`` prompts; ``docs/evaluation.md`` says what each figure is.

    Figures are named ``samples/...``; those of the reference's samples end in ``/reference``. A row is known
    by the pair that its prompt is of, and counts among the others of that prompt.

    Args:
        pairs: P, one of each prompt.
        policy: its samples, scored.
        reference: as many samples of the reference.
        against: [P, R] rewards of another model's samples, or of given completions.
    """
    times = policy.per_prompt
    figures = _rewards(policy, reference, against)
    if policy.has_reference:
        figures["kl"] = policy.sums("forward_kl")
        figures["reverse_kl"] = policy.sums("reverse_kl")
        figures["log_ratio"] = policy.sums("logp") - policy.sums("ref_logp")
    own, weights = _of_samples(policy, "")
    rows = {(pair.pair_id, at): place * times + at for place, pair in enumerate(pairs) for at in range(times)}
    derived = _diversity(policy, rows, "")
    if reference is not None:
        theirs, more = _of_samples(reference, "/reference")
        own |= theirs
        weights |= more
        derived |= _diversity(reference, rows, "/reference")
    return Table(
        np.repeat([pair.pair_id for pair in pairs], times),
        np.repeat([prompt_id(pair) for pair in pairs], times),
        _named(figures | own),
        _named(weights),
        _named(derived),
        {
            "row": np.repeat(np.array([pair.row for pair in pairs], np.int64), times),
            "prompt_tokens": np.repeat(np.array([len(p.prompt_ids) for p in pairs], np.int64), times),
            "sample": np.tile(np.arange(times), len(pairs)),
        },
        # Samples that a resample holds twice would look less varied than they are.
        no_interval=frozenset(_named(derived)),
    )


def sample_names(*, reward: bool, reference: bool, against: bool) -> list[str]:
    """Names of all figures that a sample table may have, with a reward, a reference, another's samples."""
    endings = ["", "/reference"] if reference else [""]
    others = [name for name, there in (("reference", reference), ("against", against)) if there]
    names = ["reward"] if reward else []
    names += [f"{kind}/{other}" for other in others for kind in _BESIDE] if reward else []
    names += ["kl", "reverse_kl", "log_ratio"] if reference else []
    names += [name + ending for ending in endings for name in (*_OF_SAMPLES, *diversity.FIGURES)]
    return [PREFIX + name for name in names]


_BESIDE = ("reward", "reward_difference", "win_rate")
_OF_SAMPLES = ("entropy", "tokens", "finished", "repetition")


def _rewards(policy: Samples, reference: Samples | None, against: np.ndarray | None) -> dict[str, np.ndarray]:
    """Rewards of each sample beside the mean of the others' on its prompt, and how often it is above them."""
    ours = policy.rewards
    if ours is None:
        return {}
    figures = {"reward": ours}
    theirs = {"reference": None if reference is None else reference.rewards, "against": against}
    for name, rewards in theirs.items():
        if rewards is not None:
            mean = np.broadcast_to(rewards.mean(1, keepdims=True), ours.shape)
            figures |= {f"reward/{name}": mean, f"reward_difference/{name}": ours - mean}
            figures[f"win_rate/{name}"] = wins(ours, rewards)
    return {name: values.ravel() for name, values in figures.items()}


def _of_samples(samples: Samples, ending: str) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Figures of single samples, and the weights of those whose mean is over tokens."""
    tokens = samples.tokens.astype(np.float64)
    figures, weights = {}, {}
    if samples.scores:
        figures[f"entropy{ending}"] = samples.sums("entropy") / tokens
        weights[f"entropy{ending}"] = tokens
    figures[f"tokens{ending}"] = tokens
    figures[f"finished{ending}"] = samples.finished.astype(np.float64)
    figures[f"repetition{ending}"] = np.array([diversity.repetition(one) for one in samples.said])
    return figures, weights


def _diversity(samples: Samples, rows: Mapping[tuple[str, int], int], ending: str) -> dict[str, Derived]:
    """Figures of all samples together; those that cannot be said of so few are left out.

    ``rows`` says where a pair's n-th sample is.
    """
    said = samples.said

    def of_all(figure: diversity.Figure) -> Derived:
        def found(table: Table, weights: np.ndarray) -> np.ndarray:
            keys = zip(table.ids.tolist(), table.columns["sample"].tolist(), strict=True)
            value = figure([said[rows[key]] for key in keys])
            return np.full(len(weights), value)

        return found

    return {
        f"{name}{ending}": of_all(figure)
        for name, figure in diversity.FIGURES.items()
        if not np.isnan(figure(said))
    }


def _named(figures: Mapping[str, Any]) -> dict[str, Any]:
    return {PREFIX + name: values for name, values in figures.items()}
