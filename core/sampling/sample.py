"""Drawing completions for prompts, scoring them, and writing pairs."""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from ..config.sample import SampleConfig
from ..data.chat import without_nulls
from ..data.opening import open_named
from ..errors import ConfigError, DataError
from ..models import find_model, load_model
from ..options import construct
from ..progress import Progress
from ..quiet import quiet_libraries
from ..scoring.placement import place
from ..tokenizers import load_tokenizer
from .ranking import far_apart
from .rewards import Reward, open_reward


@dataclass(frozen=True)
class SampleResult:
    """What a run left behind."""

    out: Path
    """The pairs: JSON lines with ``prompt``, ``chosen``, ``rejected`` and their scores."""
    scored: Path
    """Every completion with its score: JSON lines with ``prompt``, ``completions``, ``scores``."""
    prompts: int
    pairs: int


def sample_pairs(
    model: str | os.PathLike[str], prompts: str | os.PathLike[str], *, quiet: bool = False, **options: Any
) -> SampleResult:
    """Draw completions, score them and write pairs by threshold; what ``tdpo data sample`` does.

    The data of RS-DPO (arXiv 2402.10038), ready for ``tdpo cache build --dataset``.

    Args:
        model: to draw from.
        prompts: data with a column ``prompt``: a file, a folder, a glob or a hub name.
        quiet: show no progress.
        options: any other field of :class:`~tdpo.core.config.sample.SampleConfig`, such as ``reward``.

    Raises:
        TdpoError: what was given cannot be used.
    """
    given = {"model": os.fspath(model), "prompts": os.fspath(prompts), **options}
    return run_sample(construct(SampleConfig, given), quiet=quiet)


def run_sample(config: SampleConfig, *, quiet: bool = False) -> SampleResult:
    """Run what ``config`` describes. Raises as :func:`sample_pairs`."""
    with quiet_libraries():
        return _sampled(config, quiet)


def _sampled(config: SampleConfig, quiet: bool) -> SampleResult:
    prompts = list(_prompts(config))
    out = Path(config.out)
    scored = out.with_suffix(".scored.jsonl")
    for path in (out, scored):
        if path.exists() and not config.overwrite:
            raise ConfigError(f"{path}: is there already; choose another --out, or pass --overwrite")
    source = find_model(config.model, option="--model")
    tokenizer = load_tokenizer(source, option="--model")
    reward = open_reward(config.reward, config.reward_model)
    model = load_model(source, dtype=config.dtype)
    place(model)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with out.open("w", encoding="utf-8") as pairs, scored.open("w", encoding="utf-8") as all_scores:
            count = _run(config, prompts, model, tokenizer, reward, pairs, all_scores, quiet)
    except OSError as error:
        raise ConfigError(
            f"--out {out}: {error.strerror or error}; choose a file that can be written"
        ) from error
    return SampleResult(out, scored, len(prompts), count)


def _run(
    config: SampleConfig,
    prompts: list[Any],
    model: Any,
    tokenizer: Any,
    reward: Reward,
    pairs: TextIO,
    all_scores: TextIO,
    quiet: bool,
) -> int:
    from ..generation import complete

    count = 0
    with Progress("drawing", len(prompts), "prompts", quiet=quiet) as progress:
        for at, prompt in enumerate(prompts):
            ids, text = _rendered(prompt, tokenizer, at)
            drawn = complete(
                model,
                tokenizer,
                [ids] * config.samples,
                max_tokens=config.max_tokens,
                temperature=config.temperature,
                # Another one for each prompt, and the same whatever came before it.
                seed=config.seed + 1_000_003 * at,
                batch_size=config.batch_size,
            )
            completions = [tokenizer.decode(one.ids, skip_special_tokens=True) for one in drawn]
            turns = None if isinstance(prompt, str) else prompt
            scores = reward([text] * len(completions), completions, [turns] * len(completions))
            _write(all_scores, {"prompt": prompt, "completions": completions, "scores": scores})
            for better, worse in far_apart(
                completions,
                scores,
                tau=config.tau,
                threshold=config.threshold,
                most=config.pairs_per_prompt,
            ):
                _write(pairs, _pair(prompt, completions, scores, better, worse))
                count += 1
            progress.advance(1)
    return count


def _prompts(config: SampleConfig) -> Iterator[Any]:
    rows = open_named([config.prompts], config.split, columns=("prompt",)).rows
    found = 0
    for number, row in enumerate(rows):
        prompt = without_nulls(row.get("prompt"))
        if not _is_prompt(prompt):
            raise DataError(
                f"--prompts {config.prompts}: row {number} has no `prompt`, text or a list of messages with "
                "role and content"
            )
        yield prompt
        found += 1
        if found == config.limit:
            return
    if not found:
        raise DataError(f"--prompts {config.prompts}: holds no prompts")


def _is_prompt(prompt: Any) -> bool:
    if isinstance(prompt, list):
        return bool(prompt) and all(isinstance(m, dict) and {"role", "content"} <= m.keys() for m in prompt)
    return isinstance(prompt, str) and bool(prompt)


def _rendered(prompt: Any, tokenizer: Any, at: int) -> tuple[list[int], str]:
    """Token ids and text of a prompt, ready for its completion."""
    if isinstance(prompt, str):
        ids = tokenizer(prompt)["input_ids"]
        if ids and ids[-1] == tokenizer.eos_token_id:
            ids = ids[:-1]
        return ids, prompt
    if not tokenizer.chat_template:
        raise DataError(f"prompt {at} is a list of messages, and the model's tokenizer has no chat template")
    text = tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
    return tokenizer(text, add_special_tokens=False)["input_ids"], text


def _pair(
    prompt: Any, completions: list[str], scores: list[float], better: int, worse: int
) -> dict[str, Any]:
    sides: list[Any] = [completions[better], completions[worse]]
    if not isinstance(prompt, str):
        sides = [[{"role": "assistant", "content": text}] for text in sides]
    return {
        "prompt": prompt,
        "chosen": sides[0],
        "rejected": sides[1],
        "chosen_score": scores[better],
        "rejected_score": scores[worse],
    }


def _write(file: TextIO, row: dict[str, Any]) -> None:
    file.write(json.dumps(row, ensure_ascii=False) + "\n")
