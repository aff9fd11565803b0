"""Which rows the pairs of a fit are put into: found from the options, the model and its device."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from ..config.fit import FitConfig
from ..errors import ModelError
from ..objective import Objective
from ..scoring.forward import check_sharing
from ..scoring.layout import lay_out_packed
from ..scoring.sharing import cannot_pack, cannot_share, choose_layout, impossible, longest_shared_row
from ..scoring.visibility import BLOCK
from .batches import Batching

# Enough tokens of a micro-batch for the matrix units; beyond them, padding costs more than another pass.
_LEAST_TOKENS = {"cpu": 512, "cuda": 8192}
_FLEX = "flex_attention"


def check_layout(config: FitConfig, model_config: Any) -> None:
    """Refuse what cannot be had, before a model is loaded.

    Args:
        config: the fit's options.
        model_config: the policy's transformers configuration.

    Raises:
        ModelError: prompts are to be shared or pairs packed, and the architecture cannot.
    """
    choose_layout(model_config, config.prompt_sharing, config.attention)
    if config.packing == "on" and (reason := cannot_share(model_config, config.attention)) is not None:
        raise _unpackable(model_config, reason)


def choose_batching(
    config: FitConfig, model: Any, objective: Objective, device: str = "cpu"
) -> tuple[Batching, str | None]:
    """How a fit's pairs become micro-batches; where that is FlexAttention, the model is set to it.

    Args:
        config: the fit's options.
        model: the policy, on the device where it is trained if it fits there whole.
        objective: the loss.
        device: the type of the device where it is trained.

    Returns:
        The collator, and a line to say to the user where ``auto`` found that prompts cannot be shared.

    Raises:
        ModelError: prompts are to be shared or pairs packed, and the model cannot.
    """
    return layout_of(config, model, device, batch_level=objective.batch_level, check=_check)


def _check(model: Any, *args: Any, **kwargs: Any) -> str | None:
    """:func:`check_sharing` as the first process finds it: another may not have its weights yet."""
    said = [check_sharing(model, *args, **kwargs)]
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.broadcast_object_list(said, src=0)
    return said[0]


def layout_of(
    config: FitConfig, model: Any, device: str, *, batch_level: bool, check: Callable[..., str | None] | None
) -> tuple[Batching, str | None]:
    """What :func:`choose_batching` says, for a fit on ``device``, ``cuda`` or ``cpu``.

    Args:
        config: the fit's options.
        model: the policy; without ``check`` one without weights will do.
        device: where it is to be trained.
        batch_level: whether the loss of a pair depends on others.
        check: says what is wrong if the model scores a few pairs otherwise where prompts are shared.

    Raises:
        ModelError: as for choose_batching.
    """
    plain = Batching(
        config.batch_tokens, least_tokens=_LEAST_TOKENS.get(device, _LEAST_TOKENS["cuda"]), whole=batch_level
    )
    if config.prompt_sharing == "off" and config.packing == "off":
        return plain, None
    attention = model.config._attn_implementation
    reason = cannot_share(model.config, attention) or (check(model) if check else None)
    if reason is not None:
        if config.prompt_sharing == "on":
            raise impossible(model.config, reason)
        if config.packing == "on":
            raise _unpackable(model.config, reason)
        note = f"{model.config.model_type}: prompts are scored once for each completion ({reason})"
        return plain, None if config.prompt_sharing == "off" else note
    share = config.prompt_sharing != "off"
    flex = config.packing != "off" and device == "cuda" and _set_flex(model, config, share=share, check=check)
    if config.packing == "on" and not flex and (reason := cannot_pack(model)) is not None:
        raise _unpackable(model.config, reason)
    return (
        Batching(
            config.batch_tokens,
            share=share,
            pack=flex or config.packing == "on",
            longest=longest_shared_row(model.config),
            least_tokens=plain.least_tokens,
            multiple=BLOCK if flex else 1,
            whole=plain.whole,
        ),
        None,
    )


def _set_flex(model: Any, config: FitConfig, *, share: bool, check: Callable[..., str | None] | None) -> bool:
    """Have the model run with FlexAttention on CUDA, where it can and no other backend was asked for."""
    if config.attention not in (None, "auto", _FLEX) or cannot_pack(model) is not None:
        return False
    before = model.config._attn_implementation
    model.set_attn_implementation(_FLEX)
    # A model that is to be sharded over several GPUs is not on any of them yet.
    on_gpu = model.get_input_embeddings().weight.is_cuda
    laid_out = partial(lay_out_packed, share=share, multiple=BLOCK)
    if check and on_gpu and check(model, laid_out, backward=True) is not None:
        model.set_attn_implementation(before)
        return False
    return True


def _unpackable(config: Any, reason: str) -> ModelError:
    return ModelError(
        f"--packing on: a {config.model_type} model cannot take several pairs in a row: {reason}; "
        "leave it at auto, or turn it off"
    )
