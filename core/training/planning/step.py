"""One optimiser step of a fit on tensors without content, and the bytes that are alive when most are.

The policy, its LoRA, autocast, gradient checkpointing, autograd and the optimiser are the real ones, on
torch's FakeTensorMode; only the chunks of the output head and layers in 8 or 4 bits have stand-ins.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from ...config.fit import FitConfig
from ...models import ModelSource, weightless
from ...scoring.chunking import head_memory
from ...scoring.forward import completion_hidden
from ...scoring.head import Head
from ..policy import prepare_policy
from .live import LiveBytes
from .optimizers import CountedOptimizer
from .standins import head_stand_in, quantise

# Backends that keep no mask and no probabilities; PyTorch's own keeps as much where it is given no mask.
MASKLESS = ("flex_attention", "flash_attention_2", "flash_attention_3", "flash_attention_4")
_INPUTS = {
    "input_ids": "input_ids",
    "attention_mask": "attention_mask",
    "score_positions": "positions",
    "position_ids": "position_ids",
    "segments": "segments",
}
_UNLIMITED = 1 << 62


@dataclass(frozen=True)
class StepMemory:
    """Bytes by what they are for, where most are alive in each phase of an optimiser step."""

    phases: dict[str, dict[str, int]]
    """``forward`` (with the head's backward), ``backward`` in two halves, and ``update``."""
    head: Callable[[int], int]
    """Bytes of the head's chunks, from those that are free."""
    paged: int
    """Of optimiser states that lie in main memory."""
    trained: int
    """Numbers of the parameters that are trained."""
    gradients: int
    """Bytes of their gradients."""
    exact: bool
    """Whether the optimiser's state is one that is known."""

    def peak(self, memory: int | None) -> dict[str, int]:
        """The phase that takes most on a device of so many bytes; the head spares what is not there."""
        phases = []
        for kinds in self.phases.values():
            if "head" in kinds and memory is not None:
                others = sum(size for kind, size in kinds.items() if kind != "head")
                kinds = {**kinds, "head": min(kinds["head"], self.head(max(0, memory - others)))}
            phases.append(kinds)
        return max(phases, key=lambda kinds: sum(kinds.values()))

    def towards(self, other: "StepMemory", share: float) -> "StepMemory":
        """What lies on the line from this to ``other``, ``share`` of the way."""

        def between(a: int, b: int) -> int:
            return round(a + (b - a) * share)

        def kinds(name: str) -> dict[str, int]:
            a, b = self.phases[name], other.phases[name]
            return {kind: between(a.get(kind, 0), b.get(kind, 0)) for kind in {**a, **b}}

        return replace(
            self,
            phases={name: kinds(name) for name in self.phases},
            paged=between(self.paged, other.paged),
            trained=between(self.trained, other.trained),
            gradients=between(self.gradients, other.gradients),
        )


def trace_step(
    config: FitConfig,
    source: ModelSource,
    arguments: Any,
    micro: Mapping[str, Tensor],
    *,
    device: str,
    attention: str | None,
    accumulates: bool,
) -> StepMemory:
    """The memory of an optimiser step of a fit that has taken one before.

    Args:
        config: the fit's options.
        source: the policy's start.
        arguments: transformers.TrainingArguments of ``config``.
        micro: the micro-batch that takes most, as a Batching makes it.
        device: ``cuda`` or ``cpu``, where it would run.
        attention: backend that the model runs with; transformers' choice when None.
        accumulates: whether gradients of other micro-batches are there while this one is computed.
    """
    model = _policy(config, source, arguments, attention)
    with FakeTensorMode(allow_non_fake_inputs=True) as fake, LiveBytes("activations") as live:
        _give_storage(model)
        live.mark([*model.parameters(), *model.buffers()], "weights")
        batch = {name: fake.from_tensor(value) for name, value in micro.items()}
        live.mark(batch.values(), "micro-batch")
        optimizer = CountedOptimizer(arguments, model, live, cuda=device == "cuda")
        trained = optimizer.parameters
        for parameter in trained:
            parameter.grad = torch.empty_like(parameter)
        gradients = [p.grad for p in trained]
        live.mark(gradients, "gradients")
        # The first step makes the optimiser's states.
        optimizer.step()
        if not accumulates:
            gradients = []
            for parameter in trained:
                parameter.grad = None

        start = live.now
        head, turn = _forward_backward(model, batch, arguments, attention, device, live)
        live.mark((p.grad for p in trained), "gradients")
        end, half = live.now, (turn + live.now) // 2
        with live.making("optimiser's step"):
            if arguments.max_grad_norm:
                torch.nn.utils.clip_grad_norm_(trained, arguments.max_grad_norm, foreach=device == "cuda")
            optimizer.step()
        return StepMemory(
            {
                "forward": live.peak(start, turn),
                "backward": live.peak(turn, half),
                "backward's end": live.peak(half, end),
                "update": live.peak(end),
            },
            head,
            optimizer.paged,
            sum(p.numel() for p in trained),
            sum(p.numel() * p.element_size() for p in trained),
            optimizer.exact,
        )


def _policy(config: FitConfig, source: ModelSource, arguments: Any, attention: str | None) -> Any:
    model = weightless(source, config.dtype, None if attention in MASKLESS else attention)
    if config.quantization is not None:
        quantise(model, config.quantization, getattr(torch, config.dtype))
    model = prepare_policy(model, config, source)
    model.train()
    if arguments.activation_checkpointing:
        options = dict(arguments.activation_checkpointing_kwargs or {})
        every = options.pop("every_n_layers", 1)
        # To where it offloads is not this device, and there may be none here.
        options.pop("offload", None)
        model.activation_checkpointing_enable(
            activation_checkpointing_kwargs=options or None, every_n_layers=every
        )
    return model


def _give_storage(model: Any) -> None:
    """Put tensors of FakeTensorMode in the place of those on the meta device; tied ones stay one."""
    made: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                if id(parameter) not in made:
                    kept = torch.empty_like(parameter, device="cpu")
                    made[id(parameter)] = nn.Parameter(kept, requires_grad=parameter.requires_grad)
                module._parameters[name] = made[id(parameter)]
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.empty_like(buffer, device="cpu")


def _forward_backward(
    model: Any,
    batch: Mapping[str, Tensor],
    arguments: Any,
    attention: str | None,
    device: str,
    live: LiveBytes,
) -> tuple[Callable[[int], int], int]:
    """Run both passes; returns the head's memory by what is free, and when its backward was done."""
    inputs: dict[str, Any] = {theirs: batch[ours] for ours, theirs in _INPUTS.items() if ours in batch}
    if attention in MASKLESS:
        inputs |= {"attention_mask": None, "segments": None}
    half = torch.float16 if arguments.fp16 else torch.bfloat16
    autocast = arguments.bf16 or arguments.fp16
    turn = [live.now]
    with torch.autocast("cpu", dtype=half, enabled=autocast):
        hidden = completion_hidden(model, **inputs)
        head, positions = Head.of(model), len(hidden)
        dtype = half if autocast else torch.promote_types(hidden.dtype, head.weight.dtype)
        at = torch.device(device)

        def memory(free: int) -> int:
            return head_memory(head, positions, device=at, dtype=dtype, free=free)

        def spend() -> None:
            live.spike(memory(_UNLIMITED), "head")
            turn[0] = live.now

        layer = model.get_output_embeddings()
        n = batch["score_ids"].shape[1]
        scores = head_stand_in(hidden, n, spend, layer.parameters())
    del hidden
    scores.sum().backward()
    return memory, turn[0]
