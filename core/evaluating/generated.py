"""``tdpo eval --generate``: what policies say to the prompts of a cache, beside the reference and others."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from ...cache.pairs import Pair
from ..checks import check_model
from ..config.eval import EvalConfig
from ..errors import ConfigError, DataError, ModelError
from ..models import ModelSource, find_reference, find_start, load_model
from ..sampling.rewards import Reward, open_reward
from ..scoring.placement import place
from ..scoring.sequences import SequenceScorer
from ..tokenizers import load_tokenizer
from ..training.samples import distinct_prompts
from .sample_figures import sample_names, sample_table
from .samples import Drawing, Samples, judge, prompt_text, sample
from .samples_file import given_rows, sample_rows
from .scorer import open_policy_for
from .table import Table

CHOSEN = "chosen"
"""The word for ``--against`` that is no model."""


@dataclass
class Ground:
    """The prompts of a cache, and what policies are compared with on them."""

    reader: Any
    pairs: list[Pair]
    """One of each prompt."""
    reference: ModelSource | None
    notes: list[str]
    """What whoever reads the figures must know."""
    reference_samples: Samples | None = None
    """Drawn when the first policy comes."""
    against: np.ndarray | None = None
    """[P, R] rewards of what the policies are to win over, likewise."""

    @property
    def prompts(self) -> list[list[int]]:
        """Their token ids."""
        return [pair.prompt_ids.tolist() for pair in self.pairs]


@dataclass
class Generating:
    """Draws and measures samples of one policy after the other. Make it with :meth:`of`.

    The reference, and whatever the policies are compared with, is sampled once for each cache: on the same
    prompts, with the same random numbers.
    """

    config: EvalConfig
    quiet: bool
    reward: Reward | None
    grounds: Mapping[str, Ground]
    """By the places of the caches."""
    _rows: list[pa.Table] = field(default_factory=list)
    _reference: tuple[ModelSource, Any] | None = None

    @classmethod
    def of(cls, config: EvalConfig, readers: Mapping[str, Any], *, quiet: bool) -> "Generating | None":
        """What ``config`` asks for, checked before any policy is loaded; None without ``--generate``.

        Args:
            config: the options.
            readers: of the caches, by their places.
            quiet: show no progress.

        Raises:
            TdpoError: options that do not go together, or a reward or a model that cannot be used.
        """
        check_options(config)
        if config.generate is None:
            return None
        wanted = config.reward is not None or config.reward_model is not None
        reward = open_reward(config.reward, config.reward_model) if wanted else None
        return cls(config, quiet, reward, {where: open_ground(config, one) for where, one in readers.items()})

    @property
    def samples(self) -> pa.Table:
        """All samples so far, see :mod:`~tdpo.core.evaluating.samples_file`."""
        return pa.concat_tables(self._rows)

    def names(self, where: str) -> list[str]:
        """Names of the figures that samples on the cache at this place may have."""
        return sample_names(
            reward=self.reward is not None,
            reference=self.grounds[where].reference is not None,
            against=self.config.against is not None,
        )

    def try_reward(self, where: str, tokenizer: Any) -> None:
        """Judge two completions of a cache, before much time goes into samples.

        Raises:
            ConfigError: the reward cannot be used.
        """
        if self.reward is not None:
            self._judge_chosen(self.grounds[where].pairs[:2], tokenizer)

    def evaluate(self, name: str, cache: str, where: str, model: Any, tokenizer: Any) -> Table:
        """Samples of a policy on the prompts of a cache: a row a sample.

        Args:
            name: of the policy.
            cache: name of the cache.
            where: its place.
            model: the policy, on its device.
            tokenizer: of the policy.

        Raises:
            TdpoError: a model cannot generate, or the reward cannot be used.
        """
        ground = self.grounds[where]
        # One model beside the policy at a time.
        if self.config.against is not None and ground.against is None:
            self._reference = None
            ground.against = self._rewards_against(ground, cache, tokenizer)
        reference = self._open_reference(ground)
        if reference is not None and ground.reference_samples is None:
            own = SequenceScorer(reference)
            ground.reference_samples = self._sample(ground, reference, tokenizer, own, cache, "reference")
        scorer = SequenceScorer(model, reference)
        found = self._sample(ground, model, tokenizer, scorer, cache, "policy", name)
        return sample_table(ground.pairs, found, reference=ground.reference_samples, against=ground.against)

    def _sample(
        self,
        ground: Ground,
        model: Any,
        tokenizer: Any,
        scorer: SequenceScorer | None,
        cache: str,
        kind: str,
        name: str | None = None,
    ) -> Samples:
        config = self.config
        drawing = Drawing(
            config.samples_per_prompt, config.max_tokens, config.temperature, config.seed, config.batch_size
        )
        who = name or f"the {kind}"
        found = sample(
            model,
            tokenizer,
            ground.prompts,
            drawing,
            scorer=scorer,
            reward=self.reward,
            name=who,
            quiet=self.quiet,
        )
        self._rows.append(sample_rows(ground.pairs, found, run=name or kind, cache=cache, drawn_from=kind))
        return found

    def _open_reference(self, ground: Ground) -> Any:
        """The reference of a cache, which stays in memory for the next policy; None where there is none."""
        if ground.reference is None:
            return None
        if self._reference is None or self._reference[0] != ground.reference:
            self._reference = None
            dtype = ground.reader.identity["reference"].get("dtype", "auto")
            model = load_model(ground.reference, dtype=dtype)
            place(model)
            self._reference = (ground.reference, model)
        return self._reference[1]

    def _rewards_against(self, ground: Ground, cache: str, tokenizer: Any) -> np.ndarray:
        against = str(self.config.against)
        if against != CHOSEN:
            model, own = open_policy_for(ground.reader, against, option="--against")
            found = self._sample(ground, model, own, None, cache, "against", against)
            assert found.rewards is not None
            return found.rewards
        prompts, texts, rewards = self._judge_chosen(ground.pairs, tokenizer)
        self._rows.append(given_rows(ground.pairs, prompts, texts, rewards, cache=cache))
        return rewards[:, None]

    def _judge_chosen(self, pairs: list[Pair], tokenizer: Any) -> tuple[list[str], list[str], np.ndarray]:
        """Texts of prompts and chosen completions, and their rewards."""
        assert self.reward is not None
        prompts = [prompt_text(tokenizer, pair.prompt_ids.tolist()) for pair in pairs]
        texts = [tokenizer.decode(pair.chosen_ids, skip_special_tokens=True) for pair in pairs]
        return prompts, texts, judge(self.reward, prompts, texts, self.config.batch_size)


def check_options(config: EvalConfig) -> None:
    """Refuse options that do not go together.

    Raises:
        ConfigError: says which.
    """
    if config.generate is None:
        for name in ("reward", "reward_model", "against", "reference_model"):
            if (value := getattr(config, name)) is not None:
                flag = "--" + name.replace("_", "-")
                raise ConfigError(
                    f"{flag} {value}: is about samples; say of how many prompts, with --generate N"
                )
    if config.reward is not None and config.reward_model is not None:
        raise ConfigError("give --reward MODULE:FUNCTION or --reward-model MODEL, one of the two")
    if config.temperature == 0 and config.samples_per_prompt > 1:
        raise ConfigError(
            f"--samples-per-prompt {config.samples_per_prompt}: at --temperature 0 a prompt's samples are "
            "all the same; draw one of each"
        )
    if config.against is not None and config.reward is None and config.reward_model is None:
        raise ConfigError(
            f"--against {config.against}: nothing says which sample is better; give --reward MODULE:FUNCTION "
            "or --reward-model MODEL"
        )


def open_ground(config: EvalConfig, reader: Any) -> Ground:
    """The first distinct prompts of a cache that all models have room for, and its reference, found.

    Raises:
        ModelError: a model that was named cannot be used.
        DataError: no prompt is left.
    """
    reference, notes = _find_reference(config, reader)
    limits = [] if reference is None else [reference.max_length]
    if config.against is not None and config.against != CHOSEN:
        limits.append(
            _checked(find_start(config.against, option="--against"), reader, "--against").max_length
        )
    limit = min((one for one in limits if one is not None), default=None)
    asked = int(config.generate or 0)
    too_long = 0
    pairs: list[Pair] = []
    for pair in distinct_prompts(reader):
        if limit is not None and len(pair.prompt_ids) >= limit:
            too_long += 1
        else:
            pairs.append(pair)
        if len(pairs) == asked:
            break
    if not pairs:
        raise DataError(
            f"--generate {asked}: all {too_long:,} prompts of {reader.location} have {limit:,} tokens or "
            "more, and leave a model no position for a sample; use models that take more, or another cache"
        )
    if too_long:
        notes.append(f"{too_long:,} prompts of {limit:,} tokens or more were left out: a model takes no more")
    if len(pairs) < asked:
        notes.append(f"samples are of {len(pairs):,} prompts, of {asked:,} asked for: there are no others")
    if config.temperature != 1:
        notes.append(
            f"samples were drawn at temperature {config.temperature:g}; their KL and entropy are those of "
            "the models at temperature 1"
        )
    return Ground(reader, pairs, reference, notes)


def _find_reference(config: EvalConfig, reader: Any) -> tuple[ModelSource | None, list[str]]:
    """The reference; None, and a note, where it was not named and is not there."""
    named = config.reference_model
    try:
        source = find_reference(reader.manifest, reader.location, option="--reference-model", name=named)
    except ModelError as error:
        if named is not None:
            raise
        return None, [f"figures of samples that take the reference are left out: {error}"]
    return (source if named is None else _checked(source, reader, "--reference-model")), []


def _checked(source: ModelSource, reader: Any, option: str) -> ModelSource:
    check_model(source, load_tokenizer(source, option=option), reader, option=option)
    return source
