"""Expected reward and exact sequential KL of small models."""

import copy
import math

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tdpo.core.demo.measure import Estimate, measure, sequential_kl
from tdpo.core.demo.reference import mean_nats, new_model, train_model, train_tokenizer
from tdpo.core.demo.sampling import Sample

VOCABULARY = 40


def _model(seed: int) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
        )
    ).eval()


def _perturbed(model: LlamaForCausalLM) -> LlamaForCausalLM:
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return other


def _samples(count: int) -> list[Sample]:
    generator = torch.Generator().manual_seed(0)

    def ids(length: int) -> list[int]:
        return torch.randint(VOCABULARY, (length,), generator=generator).tolist()

    return [Sample(ids(2 + i % 4), ids(1 + i % 7), text="", finished=True) for i in range(count)]


def test_reference_is_at_no_distance_from_itself():
    model = _model(0)
    forward, reverse = sequential_kl(model, model, _samples(9))
    assert forward == reverse == [0.0] * 9


def test_sequential_kl_equals_a_sum_token_by_token():
    reference = _model(0)
    policy = _perturbed(reference)
    samples = _samples(70)  # more than a batch, of mixed lengths
    forward, reverse = sequential_kl(policy, reference, samples)
    assert min(*forward, *reverse) > 0
    for sample, there, back in zip(samples, forward, reverse, strict=True):
        naive_there = naive_back = 0.0
        for t in range(len(sample.completion_ids)):
            state = torch.tensor([sample.prompt_ids + sample.completion_ids[:t]])
            with torch.no_grad():
                pi, ref = (m(state).logits[0, -1].double().softmax(-1) for m in (policy, reference))
            naive_there += sum(p * math.log(p / q) for p, q in zip(ref.tolist(), pi.tolist(), strict=True))
            naive_back += sum(p * math.log(p / q) for p, q in zip(pi.tolist(), ref.tolist(), strict=True))
        assert there == pytest.approx(naive_there, abs=1e-5)
        assert back == pytest.approx(naive_back, abs=1e-5)


def test_estimate_has_the_error_of_a_mean():
    estimate = Estimate.of([1.0, 2.0, 3.0, 4.0])
    assert estimate.mean == 2.5
    assert estimate.error == pytest.approx(math.sqrt(5 / 3) / 2)
    assert estimate.interval == pytest.approx(1.96 * estimate.error)
    assert Estimate.of([1.0]).error == 0


def test_measure_is_the_same_for_a_seed_and_knows_the_reference():
    texts = ["The plot is superb.", "The plot is awful.", "The music is good."] * 20
    tokenizer = train_tokenizer(texts, 300)
    reference = new_model(tokenizer, hidden=32, layers=1, seed=0)
    before = mean_nats(reference, tokenizer, texts)
    train_model(reference, tokenizer, texts, epochs=20, learning_rate=1e-2, seed=0, quiet=True)
    assert mean_nats(reference, tokenizer, texts) < before / 2
    first, again = (
        measure(reference, reference, tokenizer, ["The plot"] * 8, seed=4, quiet=True) for _ in range(2)
    )
    assert first == again
    assert first.forward_kl == first.reverse_kl == Estimate(0.0, 0.0)
    moved = measure(_perturbed(reference), reference, tokenizer, ["The plot"] * 8, seed=4, quiet=True)
    assert moved.forward_kl.mean > 0
    assert set(moved.as_dict()) == {"reward", "forward_kl", "reverse_kl", "tokens"}
