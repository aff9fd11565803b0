"""What the policy says: completions of a few held-out prompts, written at each evaluation."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from transformers import TrainerCallback

from ...cache.pairs import Pair
from ...cache.reader import CacheReader
from ..config.evaluation import eval_caches, figure_prefix
from ..config.fit import FitConfig
from ..errors import ConfigError
from ..generation import complete
from ..runs.lines import StepLines
from .log import ConsoleLog
from .sharding import Sharding

SAMPLES_FILE = "samples.jsonl"

# Rows decoded at a time in the search for prompts.
_READ_ROWS = 64


def check_samples(config: FitConfig, sharding: Sharding) -> None:
    """Refuse ``--samples`` where no process will hold the whole policy.

    Raises:
        ConfigError: FSDP or DeepSpeed is asked for.
    """
    if config.samples and (sharding.fsdp or sharding.deepspeed):
        raise ConfigError(
            f"--samples {config.samples}: with {'FSDP' if sharding.fsdp else 'DeepSpeed'} no process holds "
            "the whole policy to sample from; leave it out, or train without sharding"
        )


class Samples(TrainerCallback):
    """Completes the first prompts of an evaluation cache at each evaluation, into ``samples.jsonl``.

    One line a prompt: ``step``, ``pair_id``, the texts ``prompt``, ``completion`` and ``chosen``, and
    ``finished``, whether the completion ended by itself. Training goes on as if nothing had been sampled.
    """

    def __init__(self, config: FitConfig, reader: CacheReader, tokenizer: Any, console: ConsoleLog):
        self.config, self.reader, self.tokenizer, self.console = config, reader, tokenizer, console
        self.lines = StepLines(Path(config.output_dir) / SAMPLES_FILE)
        self._first = figure_prefix(next(iter(eval_caches(config.eval_cache))))
        self._pairs: list[Pair] | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Drop what a cut-off run sampled after the checkpoint that this one goes on from."""
        if state.is_world_process_zero:
            self.lines.cut(state.global_step)

    def on_evaluate(
        self, args: Any, state: Any, control: Any, metrics: dict[str, float] | None = None, **kwargs: Any
    ) -> None:
        """Sample when the first cache has been evaluated: in the first process, the others wait."""
        if f"{self._first}loss" not in (metrics or {}):
            return
        if state.is_world_process_zero:
            self._sample(kwargs["model"], args, state.global_step)
        PartialState().wait_for_everyone()

    def _sample(self, model: Any, args: Any, step: int) -> None:
        if self._pairs is None:
            self._pairs = list(islice(distinct_prompts(self.reader), self.config.samples))
        precision = torch.bfloat16 if args.bf16 else torch.float16
        with torch.autocast(args.device.type, precision, enabled=args.bf16 or args.fp16):
            completions = complete(
                model,
                self.tokenizer,
                [pair.prompt_ids.tolist() for pair in self._pairs],
                max_tokens=self.config.sample_tokens,
                temperature=self.config.sample_temperature,
                seed=self.config.seed,
                batch_size=self.config.batch_size,
            )
        for pair, completion in zip(self._pairs, completions, strict=True):
            values = {
                "pair_id": pair.pair_id,
                "prompt": self.tokenizer.decode(pair.prompt_ids),
                "completion": self.tokenizer.decode(completion.ids, skip_special_tokens=True),
                "chosen": self.tokenizer.decode(pair.chosen_ids, skip_special_tokens=True),
                "finished": completion.finished,
            }
            self.lines.append(step, values)
        # Only how many: what a model says may offend.
        self.console.note(f"{'':>5} {step:>5}  {len(completions)} samples in {self.lines.path}")


def distinct_prompts(reader: CacheReader) -> Iterator[Pair]:
    """The cache's pairs in order, of each prompt the first only."""
    seen = set()
    for start in range(0, len(reader), _READ_ROWS):
        rows = range(start, min(start + _READ_ROWS, len(reader)))
        for record in reader.read(rows, statistics=frozenset({"ref_logp"})):
            prompt = record.pair.prompt_ids.tobytes()
            if prompt not in seen:
                seen.add(prompt)
                yield record.pair
