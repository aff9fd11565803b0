"""What is trained: objectives, betas and seeds, and every number that all of them share."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Series:
    """One line of the pictures: an objective with its options, trained from one kind of cache."""

    name: str
    label: str
    plugin: str
    options: dict[str, Any] = field(default_factory=dict)
    weighting: tuple[str, ...] = ()
    cache: str = "sparse"
    """Which cache of the seed it is trained from: a key of ``CACHES``."""
    compares_estimates: bool = False
    """Whether the sparse and the truncated estimate of the held-out KL are set beside the exact one."""


@dataclass(frozen=True)
class Cell:
    """One policy: trained, sampled, measured."""

    series: Series
    beta: float
    seed: int

    @property
    def key(self) -> tuple[str, float, int]:
        """What tells it from the others."""
        return self.series.name, self.beta, self.seed

    @property
    def name(self) -> str:
        """The same as a folder's name."""
        return f"{self.series.name}-{self.beta:g}-{self.seed}"


# The caches of a seed's pairs, by the options of their build. Both samples have 16 entries a token at most.
CACHES: dict[str, dict[str, Any]] = {
    "sparse": {"head": 8, "tail": 8},
    "exact": {"distribution": "exact"},
    "truncated": {"head": 16, "tail": 0, "head_mass": 1.0},
}
# Heads that the truncated KL is taken over on own samples: what of "sparse" is no draw, and "truncated".
TOP_K = (8, 16)

SERIES = (
    Series("dpo", "DPO", "dpo", compares_estimates=True),
    Series("tdpo1", "TDPO1", "tdpo1"),
    Series("tdpo2-0.1", "TDPO2, α = 0.1", "tdpo2", {"alpha": 0.1}),
    Series("tdpo2-0.5", "TDPO2, α = 0.5", "tdpo2", {"alpha": 0.5}, compares_estimates=True),
    Series("tdpo2-1", "TDPO2, α = 1", "tdpo2", {"alpha": 1.0}),
    Series("mallows", "MallowsPO", "mallows_theta", {"scale": "auto"}),
    Series("tis", "TIS-DPO", "tis_dpo", weighting=("tis",)),
    Series("tdpo2-0.5-exact", "TDPO2, α = 0.5, exact", "tdpo2", {"alpha": 0.5}, cache="exact"),
    Series("tdpo2-0.5-truncated", "TDPO2, α = 0.5, top 16", "tdpo2", {"alpha": 0.5}, cache="truncated"),
)
BY_NAME = {series.name: series for series in SERIES}


@dataclass(frozen=True)
class Plan:
    """An experiment: the same for every objective but for the objective itself."""

    series: tuple[str, ...] = tuple(BY_NAME)
    betas: tuple[float, ...] = (0.05, 0.1, 0.2, 0.5, 1.0)
    seeds: tuple[int, ...] = (1, 2, 3, 4, 5)
    pilot_seed: int = 100
    """Chooses the learning rate and is not used again."""
    pilot_beta: float = 0.1
    learning_rates: tuple[float, ...] = (2e-4, 4e-4, 8e-4, 1.6e-3)
    """Peaks that the pilot chooses from."""

    corpus: int = 14_000
    """Reviews that the reference, one for all seeds, is trained on."""
    corpus_epochs: float = 2.0
    corpus_learning_rate: float = 2e-3
    vocabulary: int = 2048
    hidden: int = 128
    layers: int = 2

    pairs: int = 2048
    """Prompts with two sampled completions each; a few per cent are dropped."""
    heldout: int = 128
    """The same, for the KL of chosen and rejected."""
    prompts: int = 384
    """On which a finished policy is sampled."""
    label_temperature: float = 0.15
    """Of the noisy labels, in units of the reward."""

    epochs: float = 1.0
    batch_size: int = 32
    warmup: float = 0.1
    """Share of all steps; a cosine comes after it."""
    save_steps: int = 12
    """Optimiser steps between the points of the KL curves."""

    @property
    def cells(self) -> list[Cell]:
        """All policies, a seed after the other, so that what is finished can be looked at."""
        return [
            Cell(BY_NAME[name], beta, seed)
            for seed in self.seeds
            for beta in self.betas
            for name in self.series
        ]


FULL = Plan()
# For the tests: says nothing about objectives.
TINY = Plan(
    series=("dpo", "tdpo2-0.5"),
    betas=(0.1, 1.0),
    seeds=(1, 2),
    learning_rates=(1e-3, 2e-3),
    corpus=600,
    corpus_learning_rate=1e-2,
    hidden=32,
    layers=1,
    pairs=24,
    heldout=8,
    prompts=8,
    batch_size=8,
    save_steps=2,
)
PLANS = {"full": FULL, "tiny": TINY}
