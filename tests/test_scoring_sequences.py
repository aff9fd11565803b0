"""Exact statistics of completions under two models, against the full float64 logits of each alone."""

import numpy as np
import pytest
import torch
from support import make_model

from tdpo.core.errors import ModelError
from tdpo.core.scoring.sequences import SequenceScorer

V = 60


def sequences(count, seed=0, longest=9):
    generator = np.random.default_rng(seed)
    return [
        (
            generator.integers(V, size=generator.integers(1, 7)),
            generator.integers(V, size=generator.integers(1, longest)),
        )
        for _ in range(count)
    ]


def log_probs(model, prompt, completion):
    """[T, V] in float64, of the sequence alone."""
    with torch.no_grad():
        z = model(input_ids=torch.tensor([[*prompt, *completion]])).logits[0].double()
    return z.log_softmax(-1).numpy()[len(prompt) - 1 : -1]


@pytest.mark.parametrize("batch_tokens", [1, 40, 4096])
def test_statistics_equal_those_of_full_logits_one_by_one(batch_tokens):
    policy, reference = make_model(V, seed=0), make_model(V, seed=1)
    asked = sequences(13)
    done = []
    found = SequenceScorer(policy, reference, batch_tokens=batch_tokens).score(asked, done.append)
    assert sum(done) == len(found) == 13
    for (prompt, completion), one in zip(asked, found, strict=True):
        log_q, log_p = (log_probs(model, prompt, completion) for model in (policy, reference))
        q, p, at = np.exp(log_q), np.exp(log_p), (range(len(completion)), completion)
        wanted = {
            "logp": log_q[at],
            "ref_logp": log_p[at],
            "entropy": -(q * log_q).sum(-1),
            "forward_kl": (p * (log_p - log_q)).sum(-1),
            "reverse_kl": (q * (log_q - log_p)).sum(-1),
        }
        for name, value in wanted.items():
            got = getattr(one, name)
            assert got.dtype == np.float32
            np.testing.assert_allclose(got, value, atol=3e-5, err_msg=name)


def test_a_model_is_at_no_distance_from_itself_and_from_its_copy():
    model = make_model(V)
    for other in (model, make_model(V)):
        for one in SequenceScorer(model, other).score(sequences(9)):
            assert not one.forward_kl.any()
            assert not one.reverse_kl.any()
            np.testing.assert_array_equal(one.logp, one.ref_logp)


def test_without_a_reference_there_is_what_the_policy_says():
    policy, reference = make_model(V, seed=0), make_model(V, seed=1)
    alone = SequenceScorer(policy).score(sequences(5))
    for a, b in zip(alone, SequenceScorer(policy, reference).score(sequences(5)), strict=True):
        np.testing.assert_array_equal(a.logp, b.logp)
        np.testing.assert_allclose(a.entropy, b.entropy, atol=1e-6)
        assert (a.ref_logp, a.forward_kl, a.reverse_kl) == (None, None, None)


def test_a_lora_on_the_head_counts():
    from peft import LoraConfig, get_peft_model

    base = make_model(V)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = LoraConfig(r=2, target_modules=["q_proj", "lm_head"], init_lora_weights=False)
        policy = get_peft_model(make_model(V), config).eval()
    (prompt, completion), *_ = asked = sequences(4)
    found = SequenceScorer(policy, base).score(asked)[0]
    log_q = log_probs(policy, prompt, completion)
    np.testing.assert_allclose(found.logp, log_q[range(len(completion)), completion], atol=3e-5)
    assert found.reverse_kl.min() > 0


def test_models_keep_their_mode():
    policy, reference = make_model(V, seed=0).train(), make_model(V, seed=1)
    SequenceScorer(policy, reference).score(sequences(3))
    assert (policy.training, reference.training) == (True, False)


def test_vocabularies_of_different_sizes_are_refused():
    with pytest.raises(ModelError, match="60 logits and the reference 64"):
        SequenceScorer(make_model(V), make_model(64))


def test_out_of_memory_halves_the_batch_until_it_fits():
    asked = sequences(20)
    whole = SequenceScorer(make_model(V)).score(asked)
    model, most, sizes = make_model(V), 3, []

    def limited(module, args, kwargs):
        sizes.append(len(kwargs["input_ids"]))
        if sizes[-1] > most:
            raise torch.OutOfMemoryError

    model.model.register_forward_pre_hook(limited, with_kwargs=True)
    scorer = SequenceScorer(model, batch_tokens=100)
    for one, wanted in zip(scorer.score(asked), whole, strict=True):
        np.testing.assert_allclose(one.logp, wanted.logp, atol=1e-5)
    assert max(sizes) > 3
    most = 0
    with pytest.raises(ModelError, match="do not fit into memory beside the models; lower --max-tokens"):
        scorer.score(asked)
