"""Which of several processes this one is, and its part of the machine."""

import os
from dataclasses import dataclass

from .errors import ConfigError


@dataclass(frozen=True)
class Place:
    """This process among those that a launcher started."""

    rank: int
    """0 leads."""
    size: int
    local_rank: int = 0
    on_this_machine: int = 1
    """How many of them are on this machine."""

    @classmethod
    def here(cls) -> "Place":
        """What the environment says; alone where it says nothing.

        Raises:
            ConfigError: it contradicts itself.
        """
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
        rank, size, local = (os.environ.get(name) for name in names)
        if rank is None or size is None:
            return cls(0, 1)
        try:
            here = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
            place = cls(int(rank), int(size), int(local or 0), here)
        except ValueError:
            place = cls(-1, 0)
        if not 0 <= place.rank < place.size:
            raise ConfigError(
                f"the environment says RANK={rank}, WORLD_SIZE={size}, LOCAL_RANK={local}: start all "
                "processes with torchrun or accelerate launch, or unset these"
            )
        return place


def only_this_machine() -> bool:
    """Whether the launcher started all processes here."""
    return os.environ.get("LOCAL_WORLD_SIZE") == os.environ.get("WORLD_SIZE")


def threads_each(processes: int) -> int:
    """Threads of each process where several share this machine's cores."""
    import torch

    return max(1, torch.get_num_threads() // processes)
