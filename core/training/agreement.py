"""Agreement is checked, not hoped for: at the start the policy must say what the cached reference said."""

from typing import Any

import torch

from ..errors import ModelError
from ..models import quantization_of
from ..objective import Completions

# Largest mean |log pi - log ref| of a token, in nats, at which the two count as the same model.
_TOLERANCE = {"float32": 1e-4, "float64": 1e-4}
_LOW_PRECISION = 5e-2
# 8-bit layers find the outliers of their inputs in the batch as a whole: other batches, other log-probs.
_8BIT = 0.25

_QUANTIZATIONS = {"4bit": "is_loaded_in_4bit", "8bit": "is_loaded_in_8bit"}


def quantization_in(model: Any) -> str | None:
    """``4bit`` or ``8bit`` where bitsandbytes keeps the model's weights so, else None."""
    return next((name for name, mark in _QUANTIZATIONS.items() if getattr(model, mark, False)), None)


@torch.no_grad()
def check_agreement(
    chosen: Completions,
    rejected: Completions,
    reference: dict[str, Any],
    policy_dtype: str,
    policy_quantization: str | None = None,
) -> float:
    """The mean |log-ratio| of the first batch's tokens, in nats.

    Args:
        chosen, rejected: the first batch, scored by the untrained policy.
        reference: ``identity["reference"]`` of the cache, with its ``dtype`` and perhaps ``quantization``.
        policy_dtype: the precision the policy computes in.
        policy_quantization: ``4bit`` or ``8bit``, how its frozen weights are kept.

    Raises:
        ModelError: it is above the tolerance of the two dtypes.
    """
    tokens = chosen.length.sum() + rejected.length.sum()
    apart = sum(side.sum((side.logp - side.ref_logp).abs()).sum() for side in (chosen, rejected))
    mean = float(apart / tokens)
    dtypes = (reference["dtype"], policy_dtype)
    tolerance = max(_TOLERANCE.get(dtype, _LOW_PRECISION) for dtype in dtypes)
    if policy_quantization == "8bit":
        tolerance = _8BIT if quantization_of(reference) == "8bit" else _LOW_PRECISION
    # `not <=` also catches NaN.
    if not mean <= tolerance:
        raise ModelError(
            f"the policy does not start at the cached reference: their log-probs differ by {mean:.3g} nats a "
            f"token on the first batch (tolerance {tolerance:g} for {' and '.join(dtypes)}); "
            + _advice(quantization_of(reference), policy_quantization)
        )
    return mean


def _advice(reference: str | None, policy: str | None) -> str:
    if policy is not None and reference != policy:
        return (
            f"the policy's frozen weights are in {policy} and the reference's in {reference or 'full'}: "
            f"build the cache with --ref-quantization {policy}, or pass --other-start if the policy is meant "
            "to differ"
        )
    return (
        "commonly another dtype, attention backend, adapter, chat template or model revision. Start from the "
        "reference the cache was built with, or pass --other-start if the policy is meant to differ"
    )
