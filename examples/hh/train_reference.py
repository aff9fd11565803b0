"""Train a small reference on the chosen texts of HH-format data: a byte-level BPE and a Llama of four layers.

Only so that the example can run where nothing can be downloaded: with a model at hand, use that one.
"""

import argparse
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transformers.utils import logging

END, PAD = "<|endoftext|>", "<|pad|>"


def main() -> None:
    """Train and save a tokenizer and a model in one folder."""
    options = parse_arguments()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    texts = list(chosen_texts(options.path))
    tokenizer = train_tokenizer(texts, options.vocab_size, options.context)
    encoded = [encode(tokenizer, text, options.context) for text in texts]
    # The last rows tell when the model has begun to memorise the others.
    kept_back = max(1, len(encoded) // 20)
    model = make_model(tokenizer, options)
    figures = train(model, tokenizer, encoded[:-kept_back], encoded[-kept_back:], options)
    model.save_pretrained(options.out)
    tokenizer.save_pretrained(options.out)
    figures |= {"texts": len(encoded), "tokens": sum(map(len, encoded)), "vocabulary": len(tokenizer)}
    figures["parameters"] = model.num_parameters()
    (options.out / "training.json").write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(figures))


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("path", type=Path, help="JSON lines with a dialogue in `chosen`")
    parser.add_argument("--out", type=Path, required=True, help="folder of the model and its tokenizer")
    parser.add_argument("--vocab-size", type=int, default=4096, help="tokens of the BPE")
    parser.add_argument("--context", type=int, default=1280, help="longest text, in tokens; more is cut")
    parser.add_argument("--layers", type=int, default=4, help="Llama layers")
    parser.add_argument("--width", type=int, default=256, help="hidden size")
    parser.add_argument("--steps", type=int, default=400, help="optimiser steps")
    parser.add_argument("--batch-size", type=int, default=8, help="texts of a step")
    parser.add_argument("--learning-rate", type=float, default=1e-3, help="peak learning rate")
    parser.add_argument("--seed", type=int, default=0, help="of weights and data order")
    return parser.parse_args()


def chosen_texts(path: Path) -> Iterator[str]:
    """The chosen dialogues, those without a text left out."""
    with path.open(encoding="utf-8") as file:
        for line in file:
            if line.strip() and (text := json.loads(line)["chosen"]).strip():
                yield text


def train_tokenizer(texts: list[str], vocab_size: int, context: int) -> Any:
    """A byte-level BPE with an end and a padding token, as transformers has it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token=END, pad_token=PAD, model_max_length=context
    )


def encode(tokenizer: Any, text: str, context: int) -> list[int]:
    """Token ids of a whole dialogue and its end, at most ``context`` of them."""
    ids = tokenizer(text, verbose=False)["input_ids"] + [tokenizer.eos_token_id]
    return ids[:context]


def make_model(tokenizer: Any, options: argparse.Namespace) -> Any:
    """A Llama with tied embeddings and random weights."""
    from transformers import LlamaConfig, LlamaForCausalLM, set_seed

    set_seed(options.seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=options.width,
            intermediate_size=3 * options.width,
            num_hidden_layers=options.layers,
            num_attention_heads=options.width // 64,
            num_key_value_heads=options.width // 64,
            max_position_embeddings=options.context,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def train(
    model: Any,
    tokenizer: Any,
    train_ids: list[list[int]],
    eval_ids: list[list[int]],
    options: argparse.Namespace,
) -> dict[str, float]:
    """Train in place, end with the weights that did best on ``eval_ids``; its loss is in nats a token."""
    import torch
    from transformers import DataCollatorForLanguageModeling, Trainer, TrainingArguments

    every = max(1, options.steps // 8)
    arguments = TrainingArguments(
        output_dir=str(options.out / "checkpoints"),
        max_steps=options.steps,
        per_device_train_batch_size=options.batch_size,
        per_device_eval_batch_size=options.batch_size,
        learning_rate=options.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=0.05,
        weight_decay=0.1,
        train_sampling_strategy="group_by_length",
        eval_strategy="steps",
        eval_steps=every,
        save_steps=every,
        save_total_limit=1,
        load_best_model_at_end=True,
        logging_steps=every,
        seed=options.seed,
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=torch.cuda.is_available(),
    )
    trainer = Trainer(
        model,
        arguments,
        train_dataset=[{"input_ids": ids} for ids in train_ids],
        eval_dataset=[{"input_ids": ids} for ids in eval_ids],
        data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
    )
    result = trainer.train()
    shutil.rmtree(arguments.output_dir)
    losses = [event["loss"] for event in trainer.state.log_history if "loss" in event]
    return {
        "steps": result.global_step,
        "seconds": round(result.metrics["train_runtime"], 1),
        "last_training_loss": losses[-1],
        "best_step": trainer.state.best_global_step,
        "best_held_out_loss": trainer.state.best_metric,
    }


if __name__ == "__main__":
    main()
