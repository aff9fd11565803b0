"""What the demonstration needs before the first command: reference, pairs, prompts, ``tdpo.yaml``."""

import math
import random
import shutil
import statistics
from collections.abc import Callable
from typing import Any

from ..errors import ConfigError
from ..quiet import quiet_libraries
from .corpus import reviews, sentiment
from .folder import DemoFolder, write_jsonl
from .size import SIZES, Size

_VALIDATION = 400  # reviews that tell how good a language model the reference is

_CONFIG = """\
# Options of `tdpo cache build` and `tdpo fit` in this folder. A flag on the command line wins over this
# file, this file over the defaults; `tdpo cache build --help` and `tdpo fit --help` list all options.

build:
  dataset: data/train.jsonl     # prompt, chosen, rejected: two samples of the reference, labelled with noise
  head: 8                       # cached for every token: the reference's 8 likeliest next tokens ...
  tail: 8                       # ... and 8 drawn from the rest, which keep the KL estimate unbiased

fit:                            # the same for every objective, so that they can be compared
  eval_cache: tdpo-cache-heldout
  epochs: {epochs:g}
  batch_size: {batch_size}
  learning_rate: {learning_rate}         # large, because the model is small
  schedule: cosine
  warmup_steps: 0.1             # below 1: a share of all steps
  logging_steps: {logging_steps}
  eval_steps: {eval_steps}                # the curves of the picture
  save_steps: {save_steps}                # every checkpoint becomes a point of the picture
  seed: {seed}
  set:
    beta: 0.1                   # strength of the pull to the reference

training:                       # any field of transformers.TrainingArguments
  save_total_limit: 4
"""


def prepare(
    folder: Any,
    *,
    seed: int = 0,
    size: str | Size = "small",
    echo: Callable[[str], None] = print,
    quiet: bool = False,
) -> DemoFolder:
    """Make ``folder`` ready for the commands; parts that are finished already are kept.

    Args:
        folder: where; made when it is not there.
        seed: the same seed gives the same folder on the same machine.
        size: a name of ``SIZES``, or a size of your own.
        echo: takes the lines that say what was made.
        quiet: show no progress bars.

    Raises:
        ConfigError: the folder holds something else, or another demonstration.
    """
    size = SIZES[size] if isinstance(size, str) else size
    demo = DemoFolder(folder, seed, size)
    if demo.is_finished("model") and demo.is_finished("data"):
        echo(f"{demo.path}: prepared before with seed {seed}; its model and data are used again.")
    else:
        texts = _Reviews(seed, size)
        with quiet_libraries():
            if not demo.is_finished("model"):
                _make_model(demo, texts, seed, size, echo, quiet)
            if not demo.is_finished("data"):
                _make_data(demo, texts, seed, size, echo, quiet)
    if not demo.config.exists():
        demo.config.write_text(_config(seed, size), encoding="utf-8")
    return demo


class _Reviews:
    """All reviews of an experiment, drawn at once and then parted, so that no part sees another's."""

    def __init__(self, seed: int, size: Size):
        parts = (size.corpus, _VALIDATION, size.pairs, size.heldout, size.prompts)
        texts = iter(reviews(sum(parts), seed))
        self.corpus, self.validation, self.pairs, self.heldout, self.prompts = (
            [next(texts) for _ in range(count)] for count in parts
        )


def _make_model(
    demo: DemoFolder, texts: _Reviews, seed: int, size: Size, echo: Callable[[str], None], quiet: bool
) -> None:
    from .reference import mean_nats, new_model, train_model, train_tokenizer

    tokenizer = train_tokenizer(texts.corpus, size.vocabulary)
    model = new_model(tokenizer, hidden=size.hidden, layers=size.layers, seed=seed)
    echo(
        f"Training a reference from nothing: {model.num_parameters():,} parameters, {len(tokenizer):,} "
        f"tokens, {len(texts.corpus):,} reviews of a small grammar."
    )
    train_model(
        model,
        tokenizer,
        texts.corpus,
        epochs=size.epochs,
        learning_rate=size.reference_learning_rate,
        seed=seed,
        quiet=quiet,
    )
    whole = demo.path / "model.tmp"
    shutil.rmtree(whole, ignore_errors=True)
    shutil.rmtree(demo.model, ignore_errors=True)
    model.save_pretrained(whole)
    tokenizer.save_pretrained(whole)
    whole.rename(demo.model)
    demo.finish("model")
    nats = mean_nats(model, tokenizer, texts.validation)
    echo(f"The reference predicts unseen reviews with {nats:.2f} nats a token.")


def _make_data(
    demo: DemoFolder, texts: _Reviews, seed: int, size: Size, echo: Callable[[str], None], quiet: bool
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from .pairs import agreement, prompts_from, sample_pairs

    model = AutoModelForCausalLM.from_pretrained(demo.model)
    tokenizer = AutoTokenizer.from_pretrained(demo.model)
    # One generator deals out the seeds of the independent draws below.
    deal = random.Random(seed)
    for path, reviews_, what in (
        (demo.train, texts.pairs, "training pairs"),
        (demo.heldout, texts.heldout, "held-out pairs"),
    ):
        rows = sample_pairs(
            model,
            tokenizer,
            prompts_from(reviews_, deal.getrandbits(30)),
            temperature=size.label_temperature,
            seed=deal.getrandbits(30),
            what=f"sampling {what}",
            quiet=quiet,
        )
        if not rows:
            raise ConfigError(f"{demo.path}: the reference finished no usable pair; choose a larger size")
        write_jsonl(path, list(rows))
        rewards = [sentiment(row["prompt"] + row[side]) for row in rows for side in ("chosen", "rejected")]
        echo(
            f"{path.relative_to(demo.path)}: {len(rows):,} {what}, mean reward "
            f"{statistics.fmean(rewards):+.2f}, {agreement(rows):.0%} labelled as the reward says."
        )
    prompts = prompts_from(texts.prompts, deal.getrandbits(30))
    write_jsonl(demo.prompts, [{"prompt": prompt} for prompt in prompts])
    demo.finish("data")


def _config(seed: int, size: Size) -> str:
    steps = math.ceil(math.ceil(size.pairs / size.batch_size) * size.fit_epochs)
    return _CONFIG.format(
        epochs=size.fit_epochs,
        batch_size=size.batch_size,
        learning_rate=f"{size.learning_rate:.6f}".rstrip("0"),
        logging_steps=max(1, steps // 30),
        eval_steps=math.ceil(steps / 8),
        save_steps=math.ceil(steps / 4),
        seed=seed,
    )
