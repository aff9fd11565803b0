"""What a fit takes of a device's memory and of main memory, in rows that add up."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ...sizes import size_text

# What a GPU holds beside tensors: its context, the libraries' kernels and workspaces.
_CONTEXT = 600_000_000
# Freed blocks that do not fit what is asked for next, as a share of what comes and goes in a step. The C
# library keeps more of them than PyTorch's allocator for GPUs.
_FRAGMENTED = {"cuda": 0.1, "cpu": 0.5}
_MOVING = ("activations", "head", "micro-batch", "optimiser's step")


@dataclass(frozen=True)
class Budget:
    """Bytes of one process. ``str()`` is for people, :meth:`to_dict` for programs."""

    options: dict[str, Any]
    """Options of the fit that are not as asked for, by name; empty for the fit as asked."""
    rows: dict[str, int]
    """At the moment of the step when most is held, by what it is for; on a CPU, reading included."""
    main_memory: dict[str, int]
    """In main memory, where the fit runs on a GPU."""
    headroom: int
    """For what lies between tensors: fragments, and a GPU's context and libraries."""
    micro_batch: dict[str, int]
    """Of the heaviest: ``rows``, their ``width`` in tokens, and the ``completion_tokens`` it scores."""
    trained: int
    """Numbers of the parameters that are trained."""
    remarks: dict[str, str] = field(default_factory=dict)
    """What a row is made of, by its name."""

    @property
    def total(self) -> int:
        """Bytes of tensors at the peak."""
        return sum(self.rows.values())

    @property
    def needed(self) -> int:
        """The total and the headroom."""
        return self.total + self.headroom

    @property
    def flags(self) -> str:
        """The options as they are typed behind ``tdpo fit``."""
        return as_flags(self.options)

    def fits(self, memory: int | None) -> bool:
        """Whether a device of so many bytes holds it; anything fits one whose limit is not known."""
        return memory is None or self.needed <= memory

    def to_dict(self) -> dict[str, Any]:
        """All figures, as JSON takes them."""
        return {
            "options": self.options,
            "flags": self.flags,
            "rows": self.rows,
            "total": self.total,
            "headroom": self.headroom,
            "needed": self.needed,
            "main_memory": self.main_memory,
            "micro_batch": self.micro_batch,
            "trained_parameters": self.trained,
        }

    def __str__(self) -> str:
        rows = {**self.rows, "total": self.total, "headroom": self.headroom}
        lines = [
            f"  {name:<16} {size_text(size):>8}  {self.remarks.get(name, '')}".rstrip()
            for name, size in rows.items()
        ]
        if self.main_memory:
            parts = ", ".join(f"{size_text(size)} {name}" for name, size in self.main_memory.items())
            lines.append(f"  {'main memory':<16} {parts}")
        return "\n".join(lines)


def headroom(rows: Mapping[str, int], device: str) -> int:
    """What to leave free beside tensors of these sizes."""
    moving = sum(rows.get(name, 0) for name in _MOVING)
    return round(_FRAGMENTED[device] * moving) + (_CONTEXT if device == "cuda" else 0)


def as_flags(options: Mapping[str, Any]) -> str:
    """Options as they are typed: ``--batch-tokens 2048 --gradient-checkpointing``."""
    words = []
    for name, value in options.items():
        flag = "--" + name.replace("_", "-")
        if isinstance(value, bool):
            words.append(flag if value else f"--no-{flag[2:]}")
        else:
            words.append(f"{flag} {value}")
    return " ".join(words)
