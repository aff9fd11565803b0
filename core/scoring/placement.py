"""Where a model's parts are: all on one device, or spread by accelerate over several, the disk among them."""

from dataclasses import replace
from typing import Any

import torch

from .head import Head


def place(model: Any) -> torch.device:
    """Move a model to the GPU where there is one, unless it is spread or quantised: those stay as loaded.

    Returns:
        The device that its inputs go to.
    """
    if getattr(model, "hf_device_map", None) is None and not getattr(model, "is_quantized", False):
        model.to(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    return input_device(model)


def input_device(model: Any) -> torch.device:
    """The device that a model's inputs go to."""
    embedding = model.get_input_embeddings()
    # Parts on the disk run on the device that their hook names.
    hook = getattr(embedding, "_hf_hook", None)
    place = getattr(hook, "execution_device", None)
    return torch.device(embedding.weight.device if place is None else place)


def loaded_head(model: Any) -> Head:
    """The output head of a model, its weights in memory even where accelerate keeps them elsewhere."""
    from accelerate.utils import align_module_device

    head = Head.of(model)
    if not head.weight.is_meta:
        return head
    module = model.get_output_embeddings()
    device = getattr(getattr(module, "_hf_hook", None), "execution_device", None)
    with align_module_device(module, torch.device("cpu" if device is None else device)):
        head = Head.of(model)
        bias = None if head.bias is None else head.bias.detach().clone()
        return replace(head, weight=head.weight.detach().clone(), bias=bias)
