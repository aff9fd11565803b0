"""Scoring real architectures: equal to their own full logits on separate, unpadded sequences."""

import numpy as np
import pytest
import torch
from architectures import ARCHITECTURES, V, model_of

from tdpo.cache.pairs import Pair
from tdpo.core.errors import ModelError
from tdpo.core.scoring.forward import check_head, enable_scoring
from tdpo.core.scoring.layout import completion_mask, lay_out, to_padded


def pairs():
    rng = np.random.default_rng(0)

    def ids(n):
        return rng.integers(3, V, n).astype(np.int32)

    return [
        Pair.make(row, ids(p), ids(c), ids(r))
        for row, (p, c, r) in enumerate([(3, 5, 1), (1, 2, 7), (6, 4, 4)])
    ]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_log_probs_and_gradients_equal_separate_full_forward_passes(name):
    ours, naive = model_of(name), model_of(name)
    enable_scoring(ours)
    layout = lay_out(pairs())
    scores = ours(
        input_ids=layout.input_ids,
        attention_mask=layout.attention_mask,
        score_positions=layout.positions,
        score_ids=layout.labels[:, None],
        score_entropy=True,
    )
    logp, entropy = [], []
    for side in ("chosen", "rejected"):
        for pair in pairs():
            completion = getattr(pair, f"{side}_ids").tolist()
            logits = naive(torch.tensor([[*pair.prompt_ids.tolist(), *completion]])).logits[0].float()
            log_q = logits[len(pair.prompt_ids) - 1 : -1].log_softmax(-1)
            logp.append(log_q[range(len(completion)), completion])
            entropy.append(-(log_q.exp() * log_q).sum(-1))
    torch.testing.assert_close(scores.logp[:, 0], torch.cat(logp), rtol=1e-5, atol=2e-5)
    torch.testing.assert_close(scores.entropy, torch.cat(entropy), rtol=1e-5, atol=2e-5)
    weight = torch.randn(len(layout.labels), generator=torch.Generator().manual_seed(1))
    (scores.logp[:, 0] * weight).sum().backward()
    (torch.cat(logp) * weight).sum().backward()
    for (label, a), b in zip(ours.named_parameters(), naive.parameters(), strict=True):
        if b.grad is not None:
            scale = max(1.0, float(b.grad.abs().max()))
            torch.testing.assert_close(
                a.grad, b.grad, rtol=1e-4, atol=1e-5 * scale, msg=lambda m, n=label: f"{n}: {m}"
            )


def test_the_scored_forward_leaves_ordinary_calls_and_generation_alone():
    plain, scored = model_of("llama"), model_of("llama")
    enable_scoring(scored)
    ids = torch.tensor([[5, 6, 7]])
    torch.testing.assert_close(scored(input_ids=ids).logits, plain(input_ids=ids).logits)
    torch.testing.assert_close(
        scored.generate(ids, max_new_tokens=5, do_sample=False),
        plain.generate(ids, max_new_tokens=5, do_sample=False),
    )


def test_scoring_stays_inside_wrappers_around_the_forward():
    """What accelerate does for autocast: it replaces the instance's forward by a wrapped one."""
    model, seen = model_of("llama"), []
    enable_scoring(model)
    inner = model.forward
    model.forward = lambda *a, **k: (seen.append(sorted(k)), inner(*a, **k))[1]
    layout = lay_out(pairs())
    model(
        input_ids=layout.input_ids,
        attention_mask=layout.attention_mask,
        score_positions=layout.positions,
        score_ids=layout.labels[:, None],
    )
    assert "score_ids" in seen[0]


def test_a_head_that_is_more_than_a_linear_layer_is_refused():
    model = model_of("llama")
    plain = model.forward

    def forward(*args, **kwargs):
        output = plain(*args, **kwargs)
        output.logits = output.logits * 1.7
        return output

    model.forward = forward
    with pytest.raises(ModelError, match="not supported"):
        check_head(model)


def test_the_first_completion_token_is_predicted_by_the_last_prompt_token():
    layout = lay_out(pairs()[:1])
    width = layout.input_ids.shape[1]
    assert layout.positions.tolist() == [2, 3, 4, 5, 6, width + 2]
    assert layout.labels.tolist() == [*pairs()[0].chosen_ids.tolist(), *pairs()[0].rejected_ids.tolist()]
    assert layout.attention_mask.sum().item() == 8 + 4


def test_flat_rows_become_padded_completions_and_gradients_find_back():
    lengths = torch.tensor([2, 3, 1])
    flat = torch.arange(12.0).reshape(6, 2).requires_grad_()
    padded = to_padded(flat, completion_mask(lengths))
    assert padded[:, :, 0].tolist() == [[0, 2, 0], [4, 6, 8], [10, 0, 0]]
    (padded * torch.arange(18.0).reshape(3, 3, 2)).sum().backward()
    assert flat.grad[:, 0].tolist() == [0, 2, 6, 8, 10, 12]
