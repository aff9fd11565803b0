"""The reference model: a tokenizer and a small Llama, both trained from nothing on the reviews."""

import tempfile
from collections.abc import Sequence
from typing import Any

import torch
from transformers import (
    DataCollatorForLanguageModeling,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from ..progress import Progress

_PAD, _BOS, _EOS = "<pad>", "<s>", "</s>"
_HEAD_WIDTH = 32  # of one attention head
_BATCH_SIZE = 32  # reviews of a training step


def train_tokenizer(texts: Sequence[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE of at most ``vocabulary`` tokens that puts BOS before a text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[_PAD, _BOS, _EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    bpe.post_processor = processors.TemplateProcessing(
        single=f"{_BOS} $A", special_tokens=[(_BOS, bpe.token_to_id(_BOS))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        pad_token=_PAD,
        bos_token=_BOS,
        eos_token=_EOS,
        model_input_names=["input_ids", "attention_mask"],
    )


def new_model(tokenizer: PreTrainedTokenizerFast, *, hidden: int, layers: int, seed: int) -> LlamaForCausalLM:
    """A Llama of random weights, in float32, whose default generation is plain sampling."""
    special = {
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=hidden * 8 // 3 // 16 * 16,
        num_hidden_layers=layers,
        num_attention_heads=max(1, hidden // _HEAD_WIDTH),
        num_key_value_heads=max(1, hidden // _HEAD_WIDTH),
        max_position_embeddings=256,
        tie_word_embeddings=True,
        **special,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(do_sample=True, temperature=1.0, top_k=0, **special)
    return model


def train_model(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    texts: Sequence[str],
    *,
    epochs: float,
    learning_rate: float,
    seed: int,
    quiet: bool = False,
) -> None:
    """Train ``model`` in place to continue ``texts``, each between BOS and EOS, with transformers.Trainer."""
    rows = [{"input_ids": [*ids, tokenizer.eos_token_id]} for ids in tokenizer(list(texts))["input_ids"]]
    with tempfile.TemporaryDirectory() as scratch:
        arguments = TrainingArguments(
            output_dir=scratch,
            per_device_train_batch_size=_BATCH_SIZE,
            num_train_epochs=epochs,
            learning_rate=learning_rate,
            lr_scheduler_type="cosine",
            warmup_steps=0.05,
            weight_decay=0.01,
            train_sampling_strategy="group_by_length",
            seed=seed,
            # The commands of the demonstration use what accelerator there is; its data must not depend on it.
            use_cpu=True,
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        trainer = Trainer(
            model=model,
            args=arguments,
            train_dataset=rows,
            data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
            callbacks=[_ShowProgress(quiet)],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    model.eval()


@torch.no_grad()
def mean_nats(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]) -> float:
    """The model's cross-entropy on ``texts``, in nats a token, EOS included."""
    collate = DataCollatorForLanguageModeling(tokenizer, mlm=False)
    total, count = 0.0, 0
    ids = [[*row, tokenizer.eos_token_id] for row in tokenizer(list(texts))["input_ids"]]
    for start in range(0, len(ids), 128):
        batch = collate([{"input_ids": row} for row in ids[start : start + 128]])
        tokens = int((batch["labels"][:, 1:] != -100).sum())
        total += float(model(**batch).loss) * tokens
        count += tokens
    return total / count


class _ShowProgress(TrainerCallback):
    def __init__(self, quiet: bool):
        self.quiet = quiet
        self.progress: Progress | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.progress = Progress("training the reference", state.max_steps, "steps", quiet=self.quiet)
        self.progress.__enter__()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.progress is not None:
            self.progress.reach(state.global_step)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.progress is not None:
            self.progress.__exit__(None, None, None)
