"""What several processes settle between them about the micro-batches of a step."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from accelerate.utils import DistributedType

from .batches import MicroBatch

# What reduces gradients after every backward pass: kept whole until the last, they would undo the sharding.
_SHARDED = (DistributedType.FSDP, DistributedType.DEEPSPEED)


def evened(batches: Sequence[list[MicroBatch]], accelerator: Any) -> list[list[MicroBatch]]:
    """As many micro-batches in every process: idle ones first, so that the last is one that counts."""
    if accelerator.num_processes == 1 or not batches:
        return list(batches)
    counts = torch.tensor([[len(batch) for batch in batches]], device=accelerator.device)
    most = accelerator.gather(counts).amax(0).tolist()
    return [
        [idle(accelerator.device)] * (count - len(batch)) + batch
        for batch, count in zip(batches, most, strict=True)
    ]


def idle(device: torch.device) -> MicroBatch:
    """A micro-batch of no pairs, one token wide.

    A process that has fewer micro-batches than another runs some of these: where a model is sharded, the
    forward pass of one process waits for those of all.
    """
    one = torch.ones((1, 1), dtype=torch.long, device=device)
    return {
        "input_ids": torch.zeros_like(one),
        "attention_mask": one,
        "score_positions": torch.zeros_like(one[0]),
        "score_ids": torch.zeros_like(one),
        "lengths": one[0, :0],
    }


@contextmanager
def before_the_last(accelerator: Any, model: Any) -> Iterator[None]:
    """Around a micro-batch that others of its batch follow: DDP exchanges gradients, and DeepSpeed takes its
    step, after the last.
    """
    state = accelerator.gradient_state
    if not state.sync_gradients:
        # Trainer keeps those of the whole batch already.
        yield
        return
    state._set_sync_gradients(False)
    try:
        if accelerator.distributed_type in _SHARDED:
            yield
        else:
            with accelerator.no_sync(model):
                yield
    finally:
        state._set_sync_gradients(True)
