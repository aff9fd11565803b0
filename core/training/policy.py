"""The model that is trained."""

from typing import Any

from ..config.fit import FitConfig
from ..models import ModelSource, disable_dropout, load_model


def open_policy(config: FitConfig, source: ModelSource) -> Any:
    """The policy of a fit, loaded as its options ask, ready for the trainer.

    Raises:
        ModelError: it does not load, or not in that way.
    """
    model = load_model(source, dtype=config.dtype, attention=config.attention)
    disable_dropout(model)
    return model
