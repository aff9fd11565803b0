"""Draws that are a prompt's own: whatever the batch, the order and the other prompts."""

import random
from collections import Counter

import numpy as np
import pytest
import torch
from support import make_model, make_tokenizer

from tdpo.core.errors import ModelError
from tdpo.core.generation import complete


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer()


@pytest.fixture(scope="module")
def model(tokenizer):
    return make_model(len(tokenizer))


def prompts(count, seed=0):
    rng = random.Random(seed)
    return [[rng.randrange(5, 250) for _ in range(rng.randint(1, 9))] for _ in range(count)]


def draw(model, tokenizer, asked, **options):
    values = {"max_tokens": 10, "temperature": 1.0, "seed": 3, "batch_size": 4, **options}
    return complete(model, tokenizer, asked, **values)


def test_a_prompts_draws_depend_neither_on_the_batch_nor_on_the_others(model, tokenizer):
    asked = prompts(11)
    wanted = draw(model, tokenizer, asked, batch_size=1)
    assert len({tuple(one.ids) for one in wanted}) == 11
    for batch_size in (2, 4, 64):
        assert draw(model, tokenizer, asked, batch_size=batch_size) == wanted
    order = random.Random(1).sample(range(11), 11)
    assert draw(model, tokenizer, [asked[at] for at in order]) == [wanted[at] for at in order]
    assert draw(model, tokenizer, asked[4:6]) == wanted[4:6]


def test_a_shorter_limit_gives_the_beginning(model, tokenizer):
    long = draw(model, tokenizer, prompts(6), max_tokens=12)
    for short, whole in zip(draw(model, tokenizer, prompts(6), max_tokens=5), long, strict=True):
        assert short.ids == whole.ids[:5]


def test_a_prompt_that_comes_again_gets_another_completion(model, tokenizer):
    once, again = prompts(2)
    drawn = draw(model, tokenizer, [once, again, once, once])
    assert len({tuple(one.ids) for one in (drawn[0], drawn[2], drawn[3])}) == 3
    assert draw(model, tokenizer, [once, once, once]) == [drawn[0], drawn[2], drawn[3]]


def test_models_near_each_other_mostly_choose_the_same_tokens(model, tokenizer):
    near = make_model(len(tokenizer))
    with torch.no_grad():
        near.lm_head.weight.mul_(1.01)
    pairs = zip(draw(model, tokenizer, prompts(40)), draw(near, tokenizer, prompts(40)), strict=True)
    assert sum(a.ids[0] == b.ids[0] for a, b in pairs) >= 36


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_draws_have_the_models_distribution(model, tokenizer, temperature):
    prompt, count = prompts(1)[0], 3000
    drawn = draw(model, tokenizer, [prompt] * count, max_tokens=1, temperature=temperature, batch_size=1000)
    with torch.no_grad():
        logits = model(torch.tensor([prompt])).logits[0, -1].double()
    expected = (logits / temperature).softmax(-1).numpy() * count
    found = Counter(one.ids[0] for one in drawn)
    often = np.flatnonzero(expected >= 8)
    assert len(often) > 20
    observed = np.array([found[token] for token in often])
    squares = ((observed - expected[often]) ** 2 / expected[often]).sum()
    # Pearson's statistic has about this mean and this spread.
    assert abs(squares - len(often)) < 4 * (2 * len(often)) ** 0.5


def test_a_prompt_at_the_models_end_goes_as_far_as_it_would_alone(tokenizer):
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=len(tokenizer), n_embd=16, n_layer=1, n_head=2, n_positions=24)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = GPT2LMHeadModel(config).eval()
    model.generation_config.eos_token_id = None
    tokenizer = make_tokenizer()
    tokenizer.eos_token = None
    asked = [list(range(5, 5 + length)) for length in (20, 3, 22, 24, 18, 20)]
    found = draw(model, tokenizer, asked)
    assert [len(one.ids) for one in found] == [4, 10, 2, 0, 6, 4]
    for prompt, one in zip(asked[:5], found, strict=False):
        assert draw(model, tokenizer, [prompt]) == [one]


def test_the_models_own_settings_of_sampling_do_not_change_the_draws(model, tokenizer):
    wanted = draw(model, tokenizer, prompts(5))
    other = make_model(len(tokenizer))
    other.generation_config.update(do_sample=True, temperature=5.0, top_k=2, top_p=0.1)
    assert draw(other, tokenizer, prompts(5)) == wanted


def test_progress_is_told(model, tokenizer):
    told = []
    draw(model, tokenizer, prompts(7), advance=told.append)
    assert sum(told) == 7


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_not_finite_are_an_error(tokenizer, temperature):
    broken = make_model(len(tokenizer))
    with torch.no_grad():
        broken.lm_head.weight[7] = torch.nan
    with pytest.raises(ModelError, match="logits that are not finite"):
        draw(broken, tokenizer, prompts(2), temperature=temperature)
