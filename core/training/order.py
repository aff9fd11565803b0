"""Which epoch's order the data comes in."""

from typing import Any

from transformers import TrainerCallback

from .data import EpochSampler


class EpochOrder(TrainerCallback):
    """Tells the sampler the epoch, also when a resumed run enters one in the middle."""

    def __init__(self, sampler: EpochSampler):
        self.sampler = sampler

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The epoch that is about to be read."""
        self.sampler.set_epoch(int(state.epoch or 0))
