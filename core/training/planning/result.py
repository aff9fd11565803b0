"""What a plan says of a fit: its memory, whether that fits, and which options would."""

from dataclasses import dataclass
from typing import Any

from ...sizes import size_text
from .budget import Budget


@dataclass(frozen=True)
class FitPlan:
    """Estimates of a fit. ``str()`` is for people, :meth:`to_dict` for programs."""

    model: str
    parameters: int
    """Numbers of the model's parameters."""
    device: str
    """``cuda`` or ``cpu``, where it would run."""
    memory: int | None
    """Bytes of the device; None where no limit is known."""
    asked: Budget
    """The fit with the options as asked for."""
    advice: Budget | None
    """With the cheapest options that fit: ``asked`` where that does; None where nothing does."""
    least: Budget
    """With the least that was found, where nothing fits; else what fits."""
    notes: tuple[str, ...] = ()

    @property
    def fits(self) -> bool:
        """Whether the fit does as asked for."""
        return self.asked.fits(self.memory)

    def to_dict(self) -> dict[str, Any]:
        """All figures, as JSON takes them; sizes in bytes."""
        return {
            "model": self.model,
            "parameters": self.parameters,
            "device": self.device,
            "memory": self.memory,
            "fits": self.fits,
            "asked": self.asked.to_dict(),
            "advice": None if self.advice is None else self.advice.to_dict(),
            "least": self.least.to_dict(),
            "notes": list(self.notes),
            "estimate": True,
        }

    def __str__(self) -> str:
        where = "a GPU" if self.device == "cuda" else "the CPU"
        where += "" if self.memory is None else f" with {size_text(self.memory)}"
        lines = [
            f"{self.model}: {self.parameters:,} parameters, {self.asked.trained:,} trained, on {where} "
            "(an estimate; nothing is loaded yet)",
            str(self.asked),
            *self._verdict(),
            *(f"note: {note}" for note in self.notes),
        ]
        return "\n".join(lines)

    def _verdict(self) -> list[str]:
        if self.memory is None:
            return []
        limit = size_text(self.memory)
        if self.fits:
            return [f"fits: {size_text(self.asked.needed)} of {limit}"]
        lines = [f"does not fit: {size_text(self.asked.needed)} of {limit}"]
        if self.advice is None:
            least = f"{size_text(self.least.needed)}, with {self.least.flags or 'the options as given'}"
            return [
                *lines,
                f"nothing tried fits; the least is {least}: take a larger GPU, several of them with --set "
                "training.fsdp=true, shorter pairs or a smaller model",
            ]
        return [*lines, f"fits with {self.advice.flags}: {size_text(self.advice.needed)}", str(self.advice)]
