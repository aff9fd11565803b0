"""The reference of a build, loaded and ready to score."""

from typing import TYPE_CHECKING, Any

from ..errors import ModelError
from ..models import load_model
from .request import Request

if TYPE_CHECKING:
    from ..scoring.scorer import ReferenceScorer


def open_scorer(request: Request, identity: dict[str, Any]) -> "ReferenceScorer":
    """Load the reference in the precision that ``identity`` names.

    Raises:
        ModelError: it does not load, or its logits are not what its configuration says.
    """
    from ..scoring.scorer import ReferenceScorer

    config, statistics = request.config, identity["statistics"]
    model = load_model(request.model, dtype=identity["reference"]["dtype"], attention=config.attention)
    scorer = ReferenceScorer(
        model, statistics["head"], statistics["tail"], statistics["seed"], config.batch_tokens
    )
    if scorer.vocab_size != statistics["vocab_size"]:
        raise ModelError(
            f"--ref {config.ref}: its output embedding has {scorer.vocab_size} rows but config.json says "
            f"vocab_size={statistics['vocab_size']}; save the model again with the right configuration"
        )
    return scorer
