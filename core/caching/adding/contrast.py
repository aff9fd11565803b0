"""Contrastive token scores: what a positive and a negative view say of each completion token.

Cached are the two log-probabilities, never a weight: how they become weights is a matter of training.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ....cache.pairs import SIDES, Pair
from ....cache.reader import CacheReader
from ....cache.scores.reader import ScoreReader
from ....cache.scores.sets import PASS_SUFFIX, ScoreColumn, ScoreSet
from ....cache.scores.writer import ScoreWriter
from ...config.build import AddConfig
from ...errors import ConfigError, DataError, ModelError
from ...tokenizers import load_tokenizer
from .models import own_reference, scoring_model
from .place import PromptPlacer
from .shards import Values, all_pairs, fill, score_in_order, side_values

if TYPE_CHECKING:
    from ...scoring.scorer import ReferenceScorer

_VIEWS = ("positive", "negative")
_SHOWN_ROWS = 5


def _columns(what: Mapping[str, str]) -> dict[str, ScoreColumn]:
    return {
        f"{view}_logp": ScoreColumn(
            "token", doc=f"[T] log-probability of each completion token, in nats, under {what[view]}"
        )
        for view in what
    }


class ContrastOfModels:
    """Two models over the same pairs, one after the other, so that one is in memory at a time."""

    def __init__(self, config: AddConfig, reader: CacheReader):
        names = {"positive": config.positive, "negative": config.negative}
        for view, name in names.items():
            if name is None:
                raise ConfigError(f"--{view} MODEL must be given: a contrast takes both models")
        self._config, self._reader = config, reader
        self.models = {
            view: scoring_model(config, str(name), f"--{view}", reader) for view, name in names.items()
        }
        identities = {view: model.identity for view, model in self.models.items()}
        if identities["positive"] == identities["negative"]:
            raise ModelError(
                f"--positive {config.positive} and --negative {config.negative} are the same model: there is "
                "nothing to contrast"
            )
        self.asked = ScoreSet(
            "contrast",
            identities,
            {view: model.name for view, model in self.models.items()},
            _columns({view: f"the {view} model" for view in _VIEWS}),
        )

    def check(self) -> None:
        """Refuse what shows before a model is loaded. Raises ModelError."""
        for model in self.models.values():
            model.check_lengths(all_pairs(self._reader))

    def run(self, provenance: dict[str, Any], quiet: bool) -> None:
        """Score and write; what a pass over the positive model leaves is removed at the end."""
        config, path = self._config, self._config.cache
        self.asked.provenance |= provenance
        with ScoreWriter(path, config.name, self.asked, overwrite=config.overwrite) as writer:
            waiting = writer.waiting
            if not waiting:
                writer.finish()
                return
        passed = config.name + PASS_SUFFIX
        with ScoreWriter(path, passed, self._pass(), overwrite=config.overwrite) as writer:
            missing = [index for index in waiting if index in writer.waiting]
            if missing:
                scorer = self.models["positive"].open()
                fill(writer, self._reader, missing, _scores(scorer, "positive"), "positive model", quiet)
                del scorer
        scorer = self.models["negative"].open()
        score = _scores(scorer, "negative")
        positive = ScoreReader(path, passed, allow_incomplete=True)

        def both(pairs: Sequence[Pair], advance: Callable[[int], None]) -> Values:
            return positive.read(pairs) | score(pairs, advance)

        with ScoreWriter(path, config.name, self.asked) as writer:
            fill(writer, self._reader, waiting, both, "negative model", quiet)
            positive.close()
            writer.finish(drop=passed)

    def _pass(self) -> ScoreSet:
        columns = {"positive_logp": self.asked.columns["positive_logp"]}
        identity = {"positive": self.asked.identity["positive"]}
        return ScoreSet("pass", identity, self.asked.provenance, columns)


class ContrastOfPrompts:
    """One model over the same completions after a positive and after a negative system prompt."""

    def __init__(self, config: AddConfig, reader: CacheReader):
        texts = {"positive": config.positive_prompt, "negative": config.negative_prompt}
        for view, text in texts.items():
            if text is None or not text.strip():
                raise ConfigError(f"--{view}-prompt TEXT must be given: a contrast takes both prompts")
        if texts["positive"] == texts["negative"]:
            raise ConfigError("--positive-prompt and --negative-prompt are the same: nothing to contrast")
        self._config, self._reader = config, reader
        self.model = (
            own_reference(config, reader)
            if config.ref is None
            else scoring_model(config, config.ref, "--ref", reader)
        )
        tokenizer = load_tokenizer(self.model.source, option="--ref")
        conversational = reader.manifest.provenance.get("form") == "conversational"
        if conversational:
            _use_template(tokenizer, config, reader)
        self.placers = {
            view: PromptPlacer(tokenizer, str(text), conversational=conversational)
            for view, text in texts.items()
        }
        self.asked = ScoreSet(
            "contrast",
            {
                "reference": self.model.identity,
                **{f"{view}_prompt": text for view, text in texts.items()},
            },
            {"reference": self.model.name},
            _columns({view: f"the reference after the {view} prompt" for view in _VIEWS}),
        )

    def check(self) -> None:
        """Refuse pairs whose prompt takes no system prompt, or that grow past what the model takes.

        Raises:
            DataError: says how many, and which first.
        """
        misplaced: list[int] = []
        over: list[tuple[int, int]] = []
        limit = self.model.source.max_length
        for pair in all_pairs(self._reader):
            placed = [placer(pair.prompt_ids) for placer in self.placers.values()]
            prompts = [ids for ids in placed if ids is not None]
            if len(prompts) < len(placed):
                misplaced.append(pair.row)
                continue
            length = max(map(len, prompts)) + max(len(pair.chosen_ids), len(pair.rejected_ids))
            if limit is not None and length > limit:
                over.append((length, pair.row))
        total = len(self._reader)
        if misplaced:
            rows = ", ".join(map(str, misplaced[:_SHOWN_ROWS]))
            more = ", ..." if misplaced[_SHOWN_ROWS:] else ""
            raise DataError(
                f"{len(misplaced):,} of {total:,} prompts do not begin as the chat template has it (rows "
                f"{rows}{more}), so that a system prompt has no place in them: build the cache without "
                "--truncation keep_end, or contrast two models instead"
            )
        if over:
            longest, row = max(over)
            room = None if limit is None else limit - max(p.added for p in self.placers.values())
            raise DataError(
                f"with the prompts, {len(over):,} of {total:,} pairs are longer than the model's {limit} "
                f"tokens (row {row}: {longest}): give shorter prompts, or build the cache with "
                f"--max-length {room}"
            )

    def run(self, provenance: dict[str, Any], quiet: bool) -> None:
        """Score and write both views, shard by shard."""
        config = self._config
        self.asked.provenance |= provenance
        with ScoreWriter(config.cache, config.name, self.asked, overwrite=config.overwrite) as writer:
            if writer.waiting:
                scorer = self.model.open()
                views = {
                    view: _scores(scorer, view, placer=placer, weight=weight)
                    for (view, placer), weight in zip(self.placers.items(), (0, 1), strict=True)
                }

                def both(pairs: Sequence[Pair], advance: Callable[[int], None]) -> Values:
                    found: Values = {}
                    for score in views.values():
                        found |= score(pairs, advance)
                    return found

                fill(writer, self._reader, writer.waiting, both, "scoring", quiet)
            writer.finish()


def _scores(
    scorer: "ReferenceScorer", view: str, *, placer: PromptPlacer | None = None, weight: int = 1
) -> Callable[[Sequence[Pair], Callable[[int], None]], Values]:
    """A function from pairs to the log-probs of one view; ``weight`` 0 keeps it from counting as progress."""

    def compute(pairs: Sequence[Pair], advance: Callable[[int], None]) -> Values:
        placed = [pair if placer is None else _with_prompt(pair, placer(pair.prompt_ids)) for pair in pairs]
        scored = score_in_order(scorer, placed, lambda tokens: advance(weight * tokens))
        return side_values(scored, {f"{view}_logp": "ref_logp"})

    return compute


def _with_prompt(pair: Pair, prompt: NDArray[np.int32] | None) -> Pair:
    """``pair`` after another prompt, under its own id."""
    if prompt is None:
        raise ValueError(f"row {pair.row}: the prompt was not checked")
    return Pair(pair.pair_id, pair.row, prompt, *(pair.ids(side) for side in SIDES))


def _use_template(tokenizer: Any, config: AddConfig, reader: CacheReader) -> None:
    """Give the tokenizer the template that the cache's prompts were rendered by."""
    from ...tokenizers import tokenizer_identity

    if config.chat_template is not None:
        try:
            tokenizer.chat_template = Path(config.chat_template).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(
                f"--chat-template {config.chat_template}: cannot be read ({error}); give a text file"
            ) from error
    ours = tokenizer_identity(tokenizer)["chat_template_sha256"]
    if ours != reader.identity["tokenizer"].get("chat_template_sha256"):
        raise DataError(
            "the chat template is not the one the cache was built with: give the file that it was built with "
            "(--chat-template FILE)"
        )
