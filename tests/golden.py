"""The golden cases of the objectives, as what an objective is given."""

import json
from functools import cache
from pathlib import Path

import torch

import tdpo

SIDES = ("chosen", "rejected")
# Name of a statistic in the golden vectors -> name in Completions.
FIELDS = {
    "logp": "logp",
    "ref_logp": "ref_logp",
    "kl_fwd": "forward_kl",
    "kl_rev": "reverse_kl",
    "ref_entropy": "ref_entropy",
    "collision": "log_collision",
}
# Name of a token's further figure in the golden vectors -> name of an added statistic.
EXTRA = {
    "pos_logp": "positive_logp",
    "neg_logp": "negative_logp",
    "ref2_logp": "second.ref_logp",
    "diff_mask": "diff_mask",
}


@cache
def vectors():
    return json.loads((Path(__file__).parent / "data" / "objective_vectors.json").read_text())


def padded(rows):
    """Rows of unequal length as [B, T], with NaN where no one may look."""
    width = max(len(row) for row in rows) + 1
    return torch.tensor([row + [float("nan")] * (width - len(row)) for row in rows], dtype=torch.float64)


def sides(batch, weights=None):
    """Both sides of a golden batch as Completions whose statistics are leaves, moved independently."""
    pairs = vectors()["batches"][batch]["pairs"]
    made = []
    for side in SIDES:
        stats = {
            FIELDS[name]: padded([p[side]["stats"][name] for p in pairs]).requires_grad_() for name in FIELDS
        }
        extra = {EXTRA[name]: padded([p[side]["extra"][name] for p in pairs]) for name in EXTRA}
        extra["advantage"] = torch.tensor([p[side]["extra"]["advantage"] for p in pairs], dtype=torch.float64)
        extra["prompt_embedding"] = torch.tensor(
            [p["extra"]["prompt_emb"] for p in pairs], dtype=torch.float64
        )
        seeds = [drawing(len(p[side]["ids"]), tuple(p[side]["extra"]["sample_idx"])) for p in pairs]
        stats["draw_seed"] = torch.tensor(seeds)
        if weights is not None:
            stats["token_weight"] = padded([each[side] for each in weights]).nan_to_num()
        made.append(tdpo.Completions(mask=~stats["logp"].isnan(), extra=extra, **stats))
    return made


@cache
def drawing(length, places):
    """A seed of which ``sampo`` draws just these places of a completion, to be found among the first few."""
    seeds = torch.arange(20_000)
    unused = torch.zeros(len(seeds), length)
    side = tdpo.Completions(mask=unused == 0, logp=unused, ref_logp=unused, draw_seed=seeds)
    drawn = side.uniform("sampo").argsort(-1)[:, : len(places)].sort().values
    return int((drawn == torch.tensor(sorted(places))).all(-1).nonzero()[0])


def inputs(case):
    """Both sides of a golden case, with its token weights where it has some."""
    weights = [
        each["weights"]
        for each in vectors()["tis_weights"]
        if (each["batch"], each["kind"]) == (case["batch"], case.get("tis_weights"))
    ]
    return sides(case["batch"], *weights)


def golden(case):
    """The objective of a golden case; the vocabulary is its batch's, where it matters."""
    # KTO's other estimate is not built in: the batch's is no option.
    options = {name: value for name, value in case["hparams"].items() if name != "estimator"}
    if case["objective"].startswith("mallows"):
        options["vocab_size"] = vectors()["batches"][case["batch"]]["vocab"]
    return tdpo.objective(case["objective"], **options)
