"""Agreement is checked, not hoped for: at the start the policy must say what the cached reference said."""

import torch

from ..errors import ModelError
from ..objective import Completions

# Largest mean |log pi - log ref| of a token, in nats, at which the two count as the same model.
_TOLERANCE = {"float32": 1e-4, "float64": 1e-4}
_LOW_PRECISION = 5e-2


@torch.no_grad()
def check_agreement(
    chosen: Completions, rejected: Completions, reference_dtype: str, policy_dtype: str
) -> float:
    """The mean |log-ratio| of the first batch's tokens, in nats.

    Args:
        chosen, rejected: the first batch, scored by the untrained policy.
        reference_dtype: the precision the cache was built in, such as ``"float32"``.
        policy_dtype: the precision the policy computes in.

    Raises:
        ModelError: it is above the tolerance of the two dtypes.
    """
    tokens = chosen.length.sum() + rejected.length.sum()
    apart = sum(side.sum((side.logp - side.ref_logp).abs()).sum() for side in (chosen, rejected))
    mean = float(apart / tokens)
    tolerance = max(_TOLERANCE.get(dtype, _LOW_PRECISION) for dtype in (reference_dtype, policy_dtype))
    # `not <=` also catches NaN.
    if not mean <= tolerance:
        raise ModelError(
            f"the policy does not start at the cached reference: their log-probs differ by {mean:.3g} nats a "
            f"token on the first batch (tolerance {tolerance:g} for {reference_dtype} and {policy_dtype}); "
            "commonly another dtype, attention backend, adapter, chat template or model revision. Start from "
            "the reference the cache was built with, or pass --other-start if the policy is meant to differ"
        )
    return mean
