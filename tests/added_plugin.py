"""A third party's plugin: statistics to add to a cache, and objectives that read them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F

from tdpo import (
    Column,
    MarginObjective,
    Statistic,
    TokenStatistic,
    hidden_states,
    hookimpl,
    hyperparameter,
)


@dataclass(frozen=True)
class PromptEmbedding(Statistic):
    """Mean of the reference's last hidden states over the prompt, as RPO asks for."""

    columns: ClassVar[Mapping[str, Column]] = {
        "prompt_embedding": Column("pair", doc="[d] mean last hidden state of the prompt")
    }

    last: int = hyperparameter(1000, "tokens at the prompt's end to take the mean over", gt=0)

    def compute(self, model, tokenizer, pairs):
        states = hidden_states(model, [pair.prompt_ids for pair in pairs])
        return {"prompt_embedding": [each[-self.last :].mean(0) for each in states]}


@dataclass(frozen=True)
class Surprisal(TokenStatistic):
    """What each token weighs, in bits, and the rank it has."""

    columns: ClassVar[Mapping[str, Column]] = {
        "surprisal": Column("token", doc="[T] -log2 p of each token"),
        "rank": Column("token", "int32", "[T] how many tokens are likelier"),
    }

    def values(self, tokens):
        bits, rank = torch.empty(len(tokens.labels)), torch.empty(len(tokens.labels), dtype=torch.int32)
        for rows, log_probs in tokens.log_probs():
            own = log_probs.gather(-1, tokens.labels[rows, None])
            bits[rows] = -own[:, 0] / torch.log(torch.tensor(2.0))
            rank[rows] = (log_probs > own).sum(-1, dtype=torch.int32)
        return {"surprisal": bits, "rank": rank}


@dataclass(frozen=True)
class Lengths(Statistic):
    """What the token ids alone say."""

    needs_model = False
    columns: ClassVar[Mapping[str, Column]] = {
        "characters": Column("completion", "int32"),
        "first": Column("entries", "uint32", width=2),
    }

    def compute(self, model, tokenizer, pairs):
        assert model is None
        found = {}
        for side in ("chosen", "rejected"):
            found[f"{side}_characters"] = [len(pair.ids(side)) * 3 for pair in pairs]
            found[f"{side}_first"] = [[[i, 2 * i] for i in range(len(pair.ids(side)))] for pair in pairs]
        return found


@dataclass(frozen=True)
class Wrong(Statistic):
    """Gives one value too few for each completion."""

    needs_model = False
    columns: ClassVar[Mapping[str, Column]] = {"wrong": Column("token")}

    def compute(self, model, tokenizer, pairs):
        return {
            f"{side}_wrong": [[0.0] * (len(p.ids(side)) - 1) for p in pairs]
            for side in ("chosen", "rejected")
        }


@dataclass(frozen=True)
class Contrast(MarginObjective):
    """DPO with each token weighed by exp of the clipped contrast of the two views."""

    needs: ClassVar[frozenset[str]] = frozenset({"positive_logp", "negative_logp"})

    def margin(self, chosen, rejected):
        margins = []
        for side, sign in ((chosen, 1), (rejected, -1)):
            contrast = side.added("positive_logp") - side.added("negative_logp")
            weight = torch.exp(sign * contrast.clamp(-0.5, 1.5))
            margins.append(sign * side.sum(weight * side.log_ratio))
        return self.beta * sum(margins)


@dataclass(frozen=True)
class TwoReferences(MarginObjective):
    """DPO against the mean of two references, and a pull towards prompts that lie close together."""

    needs: ClassVar[frozenset[str]] = frozenset({"second.ref_logp", "prompt_embedding"})

    def margin(self, chosen, rejected):
        ratio = [s.sum(s.logp - (s.ref_logp + s.added("second.ref_logp")) / 2) for s in (chosen, rejected)]
        embedding = F.normalize(chosen.added("prompt_embedding"), dim=-1)
        return self.beta * (ratio[0] - ratio[1]) * (embedding @ embedding.T).mean(-1)


class Hooks:
    """What the plugin's module would hold."""

    @staticmethod
    @hookimpl
    def tdpo_statistics():
        return {
            "prompt-embedding": "added_plugin:PromptEmbedding",
            "surprisal": "added_plugin:Surprisal",
            "lengths": "added_plugin:Lengths",
            "wrong": "added_plugin:Wrong",
            "nothing": "added_plugin:Hooks",
        }

    @staticmethod
    @hookimpl
    def tdpo_objectives():
        return {"contrast": "added_plugin:Contrast", "two": "added_plugin:TwoReferences"}
