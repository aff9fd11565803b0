"""What the tests of the stages share: pairs, a tokenizer and a model made on the spot, the command line."""

import json
import os
import random
import subprocess
import sys

TEXT = "the a film plot actor story was is good bad great dull bright very quite not and but I loved hated it"
WORDS = TEXT.split()


def sentence(rng, words):
    return " ".join(rng.choice(WORDS) for _ in range(words))


def write_pairs(path, rows, seed=0):
    """Preference pairs in explicit-prompt form."""
    rng = random.Random(seed)
    with path.open("w", encoding="utf-8") as file:
        for _ in range(rows):
            row = {
                "prompt": sentence(rng, rng.randint(2, 6)),
                "chosen": " " + sentence(rng, rng.randint(1, 9)),
                "rejected": " " + sentence(rng, rng.randint(1, 9)),
            }
            file.write(json.dumps(row) + "\n")
    return path


def make_tokenizer(extra=()):
    """A byte-level BPE trained on the words above."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    rng = random.Random(1)
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<s>", "</s>", "<pad>", *extra],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator([sentence(rng, 20) for _ in range(200)], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )


def make_model(vocab_size, seed=0, **options):
    """A two-layer Llama with weights large enough that its predictions are far from uniform."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        **{
            "vocab_size": vocab_size,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 128,
            "initializer_range": 0.3,
            "bos_token_id": 0,
            "eos_token_id": 1,
            "pad_token_id": 2,
            **options,
        }
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return LlamaForCausalLM(config).eval()


def make_judge(folder, *, template=None, positions=64, outputs=1, pad=True):
    """A tiny reward model with its tokenizer, saved: the same one every time."""
    import torch
    from transformers import LlamaConfig, LlamaForSequenceClassification

    tokenizer = make_tokenizer()
    tokenizer.chat_template = template
    if not pad:
        tokenizer.pad_token = None
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=16, num_hidden_layers=1,
        num_attention_heads=2, num_labels=outputs, pad_token_id=tokenizer.pad_token_id,
        max_position_embeddings=positions, initializer_range=0.5,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LlamaForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def run_tdpo(*args, cwd=None, env=None, check=True, timeout=300):
    """The command line in a process of its own; one thread, so that runs repeat to the last digit."""
    result = subprocess.run(
        [sys.executable, "-m", "tdpo", *map(str, args)],
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200", **(env or {})},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert not check or result.returncode == 0, result.stderr
    return result
