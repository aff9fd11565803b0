"""How large the demonstration is: every number that trades time for clarity."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Size:
    """The numbers of one experiment; ``SIZES`` holds the two that are used."""

    corpus: int
    """Reviews that the reference is trained on."""
    epochs: float
    """Passes of the reference over them."""
    vocabulary: int
    """Most tokens of the tokenizer."""
    reference_learning_rate: float
    """Peak learning rate of the reference."""
    hidden: int
    """Width of the reference."""
    layers: int
    """Layers of the reference."""
    pairs: int
    """Prompts with two sampled completions each, for training; a few per cent are dropped."""
    heldout: int
    """The same, for evaluation while training."""
    prompts: int
    """Held-out prompts that finished policies are sampled on; checkpoints on the first half of them."""
    label_temperature: float
    """Of the Bradley-Terry labels, in units of the reward: 0 would be labels without noise."""
    fit_epochs: float
    """Passes of a policy over the cached pairs."""
    batch_size: int
    """Pairs of an optimiser step."""
    learning_rate: float
    """Peak learning rate of the policies."""


SIZES = {
    "small": Size(
        corpus=14_000,
        epochs=2.0,
        vocabulary=2048,
        reference_learning_rate=2e-3,
        hidden=128,
        layers=4,
        pairs=2000,
        heldout=200,
        prompts=384,
        label_temperature=0.15,
        fit_epochs=2,
        batch_size=32,
        learning_rate=4e-4,
    ),
    # For the tests: says nothing about objectives.
    "tiny": Size(
        corpus=1000,
        epochs=3.0,
        vocabulary=2048,
        reference_learning_rate=1e-2,
        hidden=64,
        layers=1,
        pairs=48,
        heldout=16,
        prompts=16,
        label_temperature=0.15,
        fit_epochs=1,
        batch_size=8,
        learning_rate=1e-3,
    ),
}
