"""A run that cannot go on well is stopped: values that are not finite, memory that does not suffice."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

import torch
from accelerate.utils.memory import should_reduce_batch_size
from torch import Tensor

from ..errors import TrainingError
from ..runs.checkpoints import last_checkpoint
from .data import decode_pair_ids

_NAMED = 5


class Guard:
    """Watches the optimiser steps of a run, and ends it before a bad one touches the weights.

    Args:
        trainer: the run's; its processes all end together.
    """

    def __init__(self, trainer: Any):
        self._trainer = trainer
        self._losses: list[Tensor] = []
        self._pair_ids: list[Tensor] = []
        self._forward: str | None = None

    def enter(self, inputs: dict[str, Tensor]) -> None:
        """Note the micro-batch whose forward pass begins, for what is said if memory runs out."""
        rows, width = inputs["input_ids"].shape
        pairs = len(inputs["lengths"]) // 2
        self._forward = f"a micro-batch of {pairs:,} pairs ({rows:,} rows of {width:,} tokens)"

    def add(self, inputs: dict[str, Tensor], losses: Tensor) -> None:
        """Take in a micro-batch of the optimiser step and the losses [B] of its pairs."""
        self._losses.append(losses.detach())
        self._pair_ids.append(inputs["pair_ids"])

    def check_step(self, grad_norm: Any) -> None:
        """Before the optimiser steps: every loss since the last call and the gradients' norm are finite.

        One exchange between the processes, and one wait for the device, an optimiser step.

        Raises:
            TrainingError: in all processes, where in one of them something is not.
        """
        losses, encoded = self._losses, self._pair_ids
        self._losses, self._pair_ids, self._forward = [], [], None
        bad = [~torch.isfinite(one).all() for one in losses]
        if not self._scaled and grad_norm is not None:
            norm = _whole(grad_norm) if isinstance(grad_norm, Tensor) else torch.tensor(grad_norm)
            bad.append(~torch.isfinite(norm))
        if self._anywhere(bad):
            self._stop(losses, encoded)

    def check_weights(self, model: Any) -> None:
        """Before a checkpoint is written: every trained weight is finite.

        Raises:
            TrainingError: as :meth:`check_step`.
        """
        trained = [_local(weight.detach()) for weight in model.parameters() if weight.requires_grad]
        # The largest, which NaN and infinity are taken for: nothing of a weight's size is made.
        largest = [torch.linalg.vector_norm(weight, torch.inf) for weight in trained if weight.numel()]
        if self._anywhere([~torch.isfinite(one) for one in largest]):
            raise TrainingError(
                f"step {self._trainer.state.global_step}: weights of the policy became NaN or infinite; "
                f"{self._advice()}"
            )

    @property
    def _scaled(self) -> bool:
        # float16: infinite gradients are how the loss scale is found, and such steps are left out.
        return getattr(self._trainer.accelerator, "scaler", None) is not None

    def _anywhere(self, bad: list[Tensor]) -> bool:
        """Whether it is so in any process: [] is no."""
        device = self._trainer.args.device
        here = (
            torch.stack([one.to(device) for one in bad]).any() if bad else torch.tensor(False, device=device)
        )
        return bool(self._trainer.accelerator.gather(here[None]).any())

    def _stop(self, losses: list[Tensor], encoded: list[Tensor]) -> NoReturn:
        pairs = [name for one in encoded for name in decode_pair_ids(one)]
        finite = [ok for one in losses for ok in torch.isfinite(one).tolist()]
        found = [name for name, ok in zip(pairs, finite, strict=True) if not ok]
        everywhere = _gathered((found, pairs))
        found, pairs = ([name for part in everywhere for name in part[i]] for i in (0, 1))
        step = self._trainer.state.global_step + 1
        if found:
            what = f"the loss is NaN or infinite on {len(found):,} of {len(pairs):,} pairs: {_listed(found)}"
        else:
            what = f"the gradients are NaN or infinite, every loss is finite, of the pairs {_listed(pairs)}"
        raise TrainingError(f"step {step}: {what}; {self._advice()}, or without these pairs")

    def _advice(self) -> str:
        good = last_checkpoint(self._trainer.args.output_dir)
        kept = f"{good} is the last good checkpoint" if good is not None else "no checkpoint was written yet"
        return (
            f"nothing of this step is kept, {kept}: train again with a lower --learning-rate or more "
            "--warmup-steps"
        )

    @contextmanager
    def telling_of_memory(self) -> Iterator[None]:
        """Say in a line what did not fit, instead of the allocator's report.

        Raises:
            TrainingError: memory ran out in the block.
        """
        try:
            yield
        except (RuntimeError, MemoryError) as error:
            lack = isinstance(error, MemoryError | torch.OutOfMemoryError) or should_reduce_batch_size(error)
            if not lack:
                raise
            step = self._trainer.state.global_step + 1
            where = "the GPU's memory" if self._trainer.args.device.type != "cpu" else "memory"
            raise TrainingError(
                f"step {step}: {where} does not suffice for {self._forward or 'the optimiser step'}: "
                "tdpo plan with the same options says what takes how much, and which options fit; less is "
                "taken with --batch-tokens, --gradient-checkpointing or --lora"
            ) from error


def _whole(norm: Tensor) -> Tensor:
    """Of a norm that is spread over processes, the whole."""
    return norm.full_tensor() if hasattr(norm, "full_tensor") else norm


def _local(weight: Tensor) -> Tensor:
    """Of a weight that is spread over processes, what is here."""
    return weight.to_local() if hasattr(weight, "to_local") else weight


def _gathered(here: Any) -> list[Any]:
    """What every process has."""
    distributed = torch.distributed
    if not (distributed.is_available() and distributed.is_initialized()):
        return [here]
    everywhere: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(everywhere, here)
    return everywhere


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED:,} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
