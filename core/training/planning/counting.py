"""The step of a deep model told from those of two shallow ones, where its layers are alike."""

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from ...config.fit import FitConfig
from ...models import ModelSource, weightless
from .step import StepMemory, trace_step

_SHALLOW = (2, 4)
# From so many layers on it takes less time.
_DEEP = 9


def count_step(
    config: FitConfig,
    source: ModelSource,
    arguments: Any,
    micro: Mapping[str, Tensor],
    *,
    device: str,
    attention: str | None,
    accumulates: bool,
) -> StepMemory:
    """The memory of an optimiser step; the arguments are those of :func:`~.step.trace_step`."""
    text = source.config.get_text_config()
    layers = getattr(text, "num_hidden_layers", 0)

    def trace(one: ModelSource) -> StepMemory:
        return trace_step(
            config, one, arguments, micro, device=device, attention=attention, accumulates=accumulates
        )

    if layers < _DEEP or arguments.activation_checkpointing_kwargs or not layers_alike(source):
        return trace(source)
    few, more = _SHALLOW
    shallow, deeper = (trace(_with_layers(source, count)) for count in _SHALLOW)
    return shallow.towards(deeper, (layers - few) / (more - few))


def layers_alike(source: ModelSource) -> bool:
    """Whether all layers of a model have the same parameters and the same kind of attention."""
    text = source.config.get_text_config()
    if len(set(getattr(text, "layer_types", None) or [None])) > 1:
        return False
    layers = getattr(text, "num_hidden_layers", 0)
    lists = [m for m in weightless(source).modules() if isinstance(m, nn.ModuleList) and len(m) == layers]
    kinds = {tuple((name, p.shape) for name, p in layer.named_parameters()) for one in lists for layer in one}
    return len(lists) == 1 and len(kinds) == 1


def _with_layers(source: ModelSource, count: int) -> ModelSource:
    config = copy.deepcopy(source.config)
    text = config.get_text_config()
    text.num_hidden_layers = count
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[:count]
    return replace(source, config=config)
