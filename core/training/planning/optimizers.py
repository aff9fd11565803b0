"""What an optimiser holds, and what it makes for the time of a step."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer

from .live import LiveBytes

# bitsandbytes' optimisers by transformers' names: how many numbers of state a parameter has.
# Their bits and their paging are told by the name.
_BITSANDBYTES = {
    "adamw_bnb_8bit": 2,
    "adamw_8bit": 2,
    "paged_adamw_32bit": 2,
    "paged_adamw_8bit": 2,
    "ademamix": 3,
    "ademamix_8bit": 3,
    "paged_ademamix_32bit": 3,
    "paged_ademamix_8bit": 3,
    "lion_32bit": 1,
    "lion_8bit": 1,
    "paged_lion_32bit": 1,
    "paged_lion_8bit": 1,
    "rmsprop_bnb": 1,
    "rmsprop_bnb_8bit": 1,
    "rmsprop_bnb_32bit": 1,
}
# Parameters of fewer numbers keep a state in 32 bits; of fewer still, one that is not paged.
_LEAST_8BIT, _LEAST_PAGED = 4096, 100_000
_BLOCK = 256


def state_bytes(name: str, model: Any) -> tuple[int, int] | None:
    """Bytes of a bitsandbytes optimiser's state on the device and, where it is paged, in main memory.

    None where ``name`` is none of them. transformers has the states of embeddings kept in 32 bits.
    """
    numbers = _BITSANDBYTES.get(name)
    if numbers is None:
        return None
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    here = paged = 0
    for parameter in model.parameters():
        if not parameter.requires_grad:
            continue
        count = parameter.numel()
        small = "8bit" in name and count >= _LEAST_8BIT and id(parameter) not in embeddings
        size = round(numbers * count * (1 + 4 / _BLOCK if small else 4))
        if name.startswith("paged") and count >= _LEAST_PAGED:
            paged += size
        else:
            here += size
    return here, paged


class CountedOptimizer:
    """An optimiser of fake parameters whose states and temporaries are counted.

    Args:
        arguments: transformers.TrainingArguments.
        model: whose parameters it takes.
        live: counts.
        cuda: whether the parameters would be on a GPU, where an optimiser takes them all at once.
    """

    def __init__(self, arguments: Any, model: Any, live: LiveBytes, *, cuda: bool):
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.paged = 0
        self.exact = True
        """Whether the figures are what the optimiser itself would make."""
        self._live, self._optimizer, self._state = live, None, 0
        name = str(getattr(arguments.optim, "value", arguments.optim))
        known = state_bytes(name, model)
        if known is not None:
            self._state, self.paged = known
            return
        cls, options = Trainer.get_optimizer_cls_and_kwargs(arguments, model)
        if cls.__module__.startswith(("torch.", "transformers.")):
            if not options.get("fused"):
                # Whether it does is told from the parameters' device, and these are on none.
                options = {**options, **({"foreach": cuda} if _takes_foreach(cls) else {})}
            self._optimizer = cls(self.parameters, **options)
            return
        self.exact = False
        self._state = 2 * sum(p.numel() * p.element_size() for p in self.parameters)

    def step(self) -> None:
        """One step on the gradients that the parameters have; the first makes the states."""
        if self._optimizer is not None:
            self._optimizer.step()
            self._live.mark(_tensors(self._optimizer), "optimiser")
        elif self._state:
            self._live.hold(self._state, "optimiser")
            self._state = 0


def _takes_foreach(cls: Any) -> bool:
    import inspect

    return "foreach" in inspect.signature(cls).parameters


def _tensors(optimizer: torch.optim.Optimizer) -> Sequence[Tensor]:
    return [
        value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor)
    ]
