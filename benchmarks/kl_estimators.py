"""Error of the sampled forward KL, and of the TDPO2 gradient it gives, against the exact one.

    python benchmarks/kl_estimators.py --ref model --policy runs/tdpo2 --cache tdpo-cache [--json out.json]

Takes pairs from a cache, rebuilds both models' full distributions, draws the sample anew many times and
compares. Errors are of a completion's summed KL, over its mean; the cosine is between the gradient of the
TDPO2 loss with respect to the policy's last hidden states, estimated and exact.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

import tdpo
from tdpo.core.divergence import ESTIMATORS, forward_kl
from tdpo.core.objective import Completions
from tdpo.core.scoring.distribution import Sampling, describe
from tdpo.core.scoring.forward import completion_hidden
from tdpo.core.scoring.head import Head
from tdpo.core.scoring.layout import completion_mask, lay_out, to_padded

SPLITS = (
    Sampling(16, 0),
    Sampling(8, 8),
    Sampling(8, 8, head_mass=0.99),
    Sampling(8, 8, head_mass=0.99, tail_mass=0.3),
    Sampling(4, 12),
    Sampling(1, 15),
    Sampling(0, 16),
    Sampling(16, 16),
    Sampling(16, 16, head_mass=0.99, tail_mass=0.3),
)


def main() -> None:
    """Measure every split and estimator and print a table."""
    options = arguments()
    torch.manual_seed(options.seed)
    records = tdpo.open_cache(options.cache).read(range(options.pairs))
    layout = lay_out([record.pair for record in records])
    reference, policy = (
        AutoModelForCausalLM.from_pretrained(m).eval() for m in (options.ref, options.policy)
    )
    with torch.no_grad():
        inputs = (layout.input_ids, layout.attention_mask, layout.positions)
        log_p = logits(Head.of(reference), completion_hidden(reference, *inputs)).log_softmax(-1)
        hidden = completion_hidden(policy, *inputs)
    case = Case(log_p, hidden, Head.of(policy), layout)
    rows = [
        case.measure(split, estimator, options.repeats) for split in SPLITS for estimator in of_split(split)
    ]
    print(f"{len(records)} pairs, {len(log_p):,} completion tokens, V = {log_p.shape[1]:,}, "
          f"exact KL {case.exact_kl.sum() / len(log_p):.4f} nats a token")  # fmt: skip
    print(
        f"{'head':>4} {'to':>5} {'tail':>4} {'from':>5} {'entries':>7}  {'estimator':<12} "
        f"{'bias':>8} {'rms':>8} {'cosine':>8}"
    )
    for row in rows:
        print(
            f"{row['head']:>4} {row['head_mass']:>5} {row['tail']:>4} {row['tail_mass']:>5} "
            f"{row['entries']:>7.1f}  {row['estimator']:<12} "
            f"{row['bias']:>+8.2%} {row['rms']:>8.2%} {row['cosine']:>8.5f}"
        )
    if options.json:
        Path(options.json).write_text(json.dumps(rows, indent=1) + "\n")


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    for name in ("ref", "policy", "cache"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--pairs", type=int, default=12)
    parser.add_argument("--repeats", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json")
    return parser.parse_args()


def of_split(split: Sampling) -> tuple[str, ...]:
    """The estimators that differ on this split; without draws there is only the bucket."""
    return ESTIMATORS if split.tail else ("bucket",)


def logits(head: Head, hidden: Tensor) -> Tensor:
    """Full logits [N, V]; what training never forms, and a truth must."""
    z = hidden @ head.weight.T
    return z if head.bias is None else z + head.bias


class Case:
    """One reference, one policy, some pairs, and the exact answers."""

    def __init__(self, log_p: Tensor, hidden: Tensor, head: Head, layout: Any):
        self.log_p, self.hidden, self.head = log_p, hidden, head
        self.labels, self.mask = layout.labels, completion_mask(layout.lengths)
        self.objective = tdpo.objective("tdpo2", beta=0.1, alpha=0.5)
        self.exact_gradient, kl = self.gradient(lambda log_q: (log_p.exp() * (log_p - log_q)).sum(-1))
        self.exact_kl = to_padded(kl, self.mask).sum(-1)

    def gradient(self, kl_of: Any) -> tuple[Tensor, Tensor]:
        """Gradient of the TDPO2 loss [N, d] and the KL [N] that ``kl_of(log_q [N, V])`` gives."""
        hidden = self.hidden.clone().requires_grad_()
        log_q = logits(self.head, hidden).log_softmax(-1)
        kl = kl_of(log_q)
        side = Completions(
            mask=self.mask,
            logp=to_padded(log_q.gather(1, self.labels[:, None])[:, 0], self.mask),
            ref_logp=to_padded(self.log_p.gather(1, self.labels[:, None])[:, 0], self.mask),
            forward_kl=to_padded(kl, self.mask),
        )
        half = len(self.mask) // 2
        chosen, rejected = (
            Completions(
                **{name: getattr(side, name)[rows] for name in ("mask", "logp", "ref_logp", "forward_kl")}
            )
            for rows in (slice(half), slice(half, None))
        )
        loss = self.objective(chosen, rejected).loss.mean()
        return torch.autograd.grad(loss, hidden)[0], kl.detach()

    def measure(self, split: Sampling, estimator: str, repeats: int) -> dict[str, Any]:
        """Bias and root-mean-square error of a completion's KL, and the gradient's mean cosine."""
        errors, cosines, entries = [], [], 0.0
        for _ in range(repeats if split.tail else 1):
            ids, logp = self.draw(split)
            entries = float((logp > -torch.inf).sum(-1).double().mean())
            gradient, kl = self.gradient(
                lambda log_q, ids=ids, logp=logp: self.estimate(log_q, ids, logp, split.head, estimator)
            )
            errors.append(to_padded(kl, self.mask).sum(-1) - self.exact_kl)
            cosines.append(torch.cosine_similarity(gradient.flatten(), self.exact_gradient.flatten(), 0))
        error, scale = torch.stack(errors), float(self.exact_kl.mean())
        return {
            **split._asdict(),
            "entries": entries,
            "estimator": estimator,
            "bias": float(error.mean()) / scale,
            "rms": float(error.square().mean().sqrt()) / scale,
            "cosine": float(torch.stack(cosines).mean()),
        }

    def draw(self, split: Sampling) -> tuple[Tensor, Tensor]:
        """Ids and log-probs [N, k + m] of a fresh sample of the reference's distributions, as cached."""
        uniforms = torch.rand(len(self.log_p), split.tail)
        said = describe(self.log_p.clone(), self.labels, split, uniforms)
        return said.ids, said.dist_logp.half().float()

    def estimate(self, log_q: Tensor, ids: Tensor, logp: Tensor, k: int, estimator: str) -> Tensor:
        """The KL [N] estimated from a sample."""
        kl = forward_kl(
            to_padded(logp, self.mask),
            to_padded(log_q.gather(1, ids), self.mask),
            k,
            self.mask,
            estimator="fitted" if estimator == "bucket" else estimator,
            vocab_size=self.log_p.shape[1],
        )
        return kl[self.mask]


if __name__ == "__main__":
    main()
