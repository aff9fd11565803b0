"""The model that is trained, and what is left of it when it has been."""

from pathlib import Path
from typing import Any

from ..adapters import merge
from ..config.fit import FitConfig
from ..models import ModelSource, disable_dropout, find_model, load_model
from .lora import add_lora, load_adapter
from .sharding import save_whole


def open_policy(config: FitConfig, source: ModelSource, finished: Path | None = None) -> Any:
    """The policy of a fit, loaded as its options ask, ready for the trainer.

    Args:
        config: the fit's options.
        source: what it starts from.
        finished: the last checkpoint of a run that ended before its policy was saved; its weights are taken.

    Returns:
        A transformers model, or with ``config.lora`` a peft.PeftModel around one.

    Raises:
        ModelError: it does not load, or not in that way.
        ConfigError: the LoRA's targets match nothing.
    """
    if finished is not None and config.lora is None:
        source = find_model(str(finished), option="--output")
    model = load_model(
        source, dtype=config.dtype, attention=config.attention, quantization_option="--quantization"
    )
    model = prepare_policy(model, config, source)
    if finished is not None and config.lora is not None:
        load_adapter(model, finished)
    return model


def prepare_policy(model: Any, config: FitConfig, source: ModelSource) -> Any:
    """A model, just loaded or without weights, with what the options make of it; see :func:`open_policy`."""
    if not config.dropout:
        disable_dropout(model)
    if config.lora is None:
        return model
    # After that: a dropout of the LoRA's own was asked for. peft's prepare_model_for_kbit_training is left
    # out: it would make float32 of the embeddings and the head, gigabytes that the reference had not.
    model = add_lora(model, config, source)
    if config.training.get("activation_checkpointing_kwargs"):
        # Reentrant checkpoints give no gradient where no input has one, and frozen embeddings have none.
        model.enable_input_require_grads()
    return model


def save_policy(trainer: Any, config: FitConfig) -> None:
    """Save what was trained into the run's folder: a model, a LoRA, or with ``config.merge`` both in one.

    Args:
        trainer: the transformers.Trainer that trained it.
        config: the fit's options.
    """
    if not config.merge:
        save_whole(trainer, config.output_dir)
    elif trainer.args.should_save:
        merge(trainer.accelerator.unwrap_model(trainer.model)).save_pretrained(config.output_dir)
        trainer.processing_class.save_pretrained(config.output_dir)
