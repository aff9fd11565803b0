"""One prompt scored once: a row of prompt, chosen and rejected says what two sequences say."""

import random

import numpy as np
import pytest
import torch
from architectures import ARCHITECTURES, SMALL, V, model_of
from support import make_model

import tdpo
from tdpo.cache.pairs import Pair
from tdpo.core.errors import ModelError
from tdpo.core.scoring.forward import check_sharing, completion_hidden, enable_scoring
from tdpo.core.scoring.layout import lay_out, lay_out_shared, shared_width
from tdpo.core.scoring.scorer import ReferenceScorer
from tdpo.core.scoring.sharing import cannot_share, longest_shared_row
from tdpo.core.scoring.visibility import dense_mask

MOE = {**SMALL, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
SHARING = {
    **{name: options for name, options in ARCHITECTURES.items() if name != "mamba"},
    "phi3": SMALL,
    "starcoder2": SMALL,
    "mixtral": {**SMALL, "num_local_experts": 4},
    "qwen3_moe": MOE,
}
WINDOW = 12
WINDOWED = {
    "mistral": {**SMALL, "sliding_window": WINDOW},
    "gemma2": {**SMALL, "sliding_window": WINDOW},
    "gemma3_text": {**SMALL, "sliding_window": WINDOW},
    "gpt_oss": {**SMALL, "sliding_window": WINDOW, "num_local_experts": 4},
    "gpt_neo": {
        "vocab_size": V, "hidden_size": 32, "num_layers": 2, "num_heads": 4, "window_size": WINDOW,
        "attention_types": [[["global", "local"], 1]], "max_position_embeddings": 64, "bos_token_id": 0,
        "eos_token_id": 1,
    },
}  # fmt: skip
UNSHARABLE = {
    "mamba": (ARCHITECTURES["mamba"], "linear_attention"),
    "rwkv": (
        {"vocab_size": V, "hidden_size": 32, "num_hidden_layers": 2, "attention_hidden_size": 32},
        "recurrent",
    ),
    "recurrent_gemma": (
        {**SMALL, "num_hidden_layers": 3, "lru_width": 32, "attention_window_size": WINDOW},
        "linear_attention",
    ),
    "jamba": (
        {**SMALL, "num_experts": 2, "mamba_d_state": 4, "attn_layer_period": 2, "attn_layer_offset": 1,
         "use_mamba_kernels": False},
        "linear_attention",
    ),
    "lfm2": ({**SMALL, "layer_types": ["conv", "full_attention"], "block_dim": 32}, "conv"),
    "bloom": ({"vocab_size": V, "hidden_size": 32, "n_layer": 2, "n_head": 4}, "positions"),
    "mpt": ({"vocab_size": V, "d_model": 32, "n_layers": 2, "n_heads": 4}, "positions"),
}  # fmt: skip
# Prompt, chosen, rejected: one token alone, very unequal sides, and, at 10, a row longer than WINDOW.
SHAPES = [(3, 5, 1), (1, 2, 7), (6, 4, 4), (1, 1, 1), (4, 1, 30), (2, 25, 2), (10, 3, 4)]
# What computes in the precision of its weights throughout: no norm and no softmax that is always in float32.
WIDE = ["gpt2", "gpt_neox", "opt", "phi", "starcoder2"]


def pairs(shapes=SHAPES, seed=0):
    rng = np.random.default_rng(seed)
    return [Pair.make(row, *(rng.integers(3, V, n) for n in shape)) for row, shape in enumerate(shapes)]


def hidden_and_gradients(model, layout):
    model.zero_grad()
    hidden = completion_hidden(model, **layout.model_inputs(torch.device("cpu")))
    weight = torch.randn(hidden.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    (hidden * weight.to(hidden.dtype)).sum().backward()
    return hidden.detach(), [p.grad.clone() for p in model.parameters() if p.grad is not None]


def assert_equal_but_for_rounding(ours, theirs, tolerance):
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        scale = max(1.0, float(b.abs().max()))
        torch.testing.assert_close(a, b, rtol=0, atol=tolerance * scale)


@pytest.mark.parametrize(
    ("name", "dtype", "tolerance"),
    [(name, torch.float32, 1e-5) for name in SHARING] + [(name, torch.float64, 1e-10) for name in WIDE],
    ids=str,
)
def test_hidden_states_and_gradients_equal_those_of_separate_sequences(name, dtype, tolerance):
    model = model_of(name, SHARING[name]).to(dtype)
    assert cannot_share(model.config) is None
    assert check_sharing(model) is None
    shared, gradients = hidden_and_gradients(model, lay_out_shared(pairs()))
    separate, expected = hidden_and_gradients(model, lay_out(pairs()))
    assert_equal_but_for_rounding([shared, *gradients], [separate, *expected], tolerance)


@pytest.mark.parametrize("name", SHARING)
def test_half_precision_is_no_reason_not_to_share(name):
    assert check_sharing(model_of(name, SHARING[name]).bfloat16()) is None


def scored(model, some, **options):
    scorer = ReferenceScorer(model, 4, 4, 0, **options)
    found = {one.pair.row: one for _, result in scorer.score(some) for one in result}
    assert sorted(found) == [pair.row for pair in some]
    return [found[pair.row] for pair in some], scorer


def assert_same_statistics(ours, theirs):
    draws, alike = 0, 0
    for one, other in zip(ours, theirs, strict=True):
        for side in ("chosen", "rejected"):
            a, b = one.side(side), other.side(side)
            assert len(a.ref_logp) == len(one.pair.ids(side))
            np.testing.assert_allclose(a.ref_logp, b.ref_logp, rtol=1e-5, atol=1e-5)
            np.testing.assert_allclose(a.ref_entropy, b.ref_entropy, rtol=2e-3, atol=1e-5)
            a_ids, b_ids = (np.reshape(x.dist_ids, (-1, 8)) for x in (a, b))
            assert (a_ids[:, :4] == b_ids[:, :4]).all()
            draws += a_ids[:, 4:].size
            alike += (a_ids[:, 4:] == b_ids[:, 4:]).sum()
    # Rounding may move a draw that falls on a boundary of the distribution, no more.
    assert alike >= draws - 2


@pytest.mark.parametrize("name", SHARING)
def test_statistics_equal_those_of_separate_sequences(name):
    model = model_of(name, SHARING[name])
    ours, scorer = scored(model, pairs(), prompt_sharing="on")
    theirs, _ = scored(model, pairs(), prompt_sharing="off")
    assert scorer.sharing
    assert scorer.note is None
    assert_same_statistics(ours, theirs)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_either_attention_backend_shares(attention):
    model = model_of("llama")
    model.set_attn_implementation(attention)
    ours, scorer = scored(model, pairs(), batch_tokens=64)
    assert scorer.sharing
    assert_same_statistics(ours, scored(model, pairs(), prompt_sharing="off")[0])


@pytest.mark.parametrize("name", WINDOWED)
def test_rows_longer_than_an_attention_window_are_scored_apart(name, monkeypatch):
    model = model_of(name, WINDOWED[name])
    shared = []
    monkeypatch.setattr(
        "tdpo.core.scoring.scorer.lay_out_shared",
        lambda some: shared.extend(pair.row for pair in some) or lay_out_shared(some),
    )
    ours, scorer = scored(model, pairs())
    assert longest_shared_row(model.config) == WINDOW
    assert scorer.sharing
    assert sorted(shared) == [pair.row for pair in pairs() if shared_width(pair) <= WINDOW]
    assert 0 < len(shared) < len(SHAPES)
    assert_equals_full_logits(model, ours)


@pytest.mark.parametrize("name", UNSHARABLE)
def test_a_model_that_cannot_share_falls_back_and_says_why(name):
    options, why = UNSHARABLE[name]
    model = model_of(name, options)
    ours, scorer = scored(model, pairs())
    assert not scorer.sharing
    assert why in scorer.note
    assert "\n" not in scorer.note
    assert_equals_full_logits(model, ours)
    with pytest.raises(ModelError, match=f"--prompt-sharing on.*{name}.*{why}"):
        ReferenceScorer(model, 4, 4, 0, prompt_sharing="on")


def assert_equals_full_logits(model, ours):
    """Against the model's own logits on one unpadded sequence at a time."""
    for one in ours:
        for side in ("chosen", "rejected"):
            prompt, completion = one.pair.prompt_ids.tolist(), one.pair.ids(side).tolist()
            with torch.inference_mode():
                logits = model(torch.tensor([prompt + completion]), use_cache=False).logits[0].double()
            expected = logits[len(prompt) - 1 : -1].log_softmax(-1)[range(len(completion)), completion]
            np.testing.assert_allclose(one.side(side).ref_logp, expected, rtol=1e-5, atol=5e-5)


def test_a_model_that_ignores_what_it_is_told_is_found_out():
    """Its configuration promises sharing, but its body takes no positions."""
    model = model_of("llama")
    body = model.model.forward
    model.model.forward = lambda *args, position_ids=None, **rest: body(*args, **rest)
    assert cannot_share(model.config) is None
    ours, scorer = scored(model, pairs())
    assert not scorer.sharing
    assert "score differently" in scorer.note
    assert_equals_full_logits(model, ours)
    with pytest.raises(ModelError, match="score differently"):
        ReferenceScorer(model, 4, 4, 0, prompt_sharing="on")


def test_a_policy_is_scored_in_shared_rows_by_the_same_call():
    ours, theirs = model_of("llama"), model_of("llama")
    found = []
    for model, layout in ((ours, lay_out_shared(pairs())), (theirs, lay_out(pairs()))):
        enable_scoring(model)
        inputs = layout.model_inputs(torch.device("cpu"))
        scores = model(score_positions=inputs.pop("positions"), score_ids=layout.labels[:, None], **inputs)
        scores.logp.sum().backward()
        found.append([scores.logp.detach(), *(p.grad for p in model.parameters())])
    assert_equal_but_for_rounding(*found, 1e-5)


@pytest.mark.parametrize("change", ["flash_attention_2", "flex_attention", "kernels-community/flash-attn3"])
def test_an_attention_backend_without_such_masks_is_not_shared(change):
    assert change in cannot_share(model_of("llama").config, change)


def test_positions_past_the_models_limit_are_not_asked_for():
    """The row has 80 tokens, no sequence more than the 64 that the model knows."""
    model = model_of("gpt2")
    some = pairs([(30, 25, 27)])
    assert shared_width(some[0]) > model.config.n_positions
    assert_same_statistics(scored(model, some, prompt_sharing="on")[0], scored(model, some)[0])
    assert_equals_full_logits(model, scored(model, some)[0])


def test_a_shared_row_holds_the_prompt_once_and_the_completions_but_for_their_last_tokens():
    pair = Pair.make(0, [10, 11, 12], [20, 21, 22], [30, 31])
    layout = lay_out_shared([pair, Pair.make(1, [10], [20], [30])])
    assert layout.input_ids.tolist() == [[10, 11, 12, 20, 21, 30], [10, 0, 0, 0, 0, 0]]
    assert layout.attention_mask.sum(-1).tolist() == [6, 1]
    assert layout.position_ids.tolist()[0] == [0, 1, 2, 3, 4, 3]
    assert layout.segments.tolist() == [[0, 0, 0, 1, 1, 2], [0, 4, 4, 4, 4, 4]]
    assert layout.positions.tolist() == [2, 3, 4, 6, 2, 5, 6]
    assert layout.labels.tolist() == [20, 21, 22, 20, 30, 31, 30]
    assert layout.lengths.tolist() == [3, 1, 2, 1]


def test_the_mask_hides_the_future_and_the_chosen_from_the_rejected():
    seen = dense_mask(torch.tensor([[0, 0, 1, 1, 2, 2]]), torch.float32)[0, 0] == 0
    assert seen.int().tolist() == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 0, 0],
        [1, 1, 0, 0, 1, 0],
        [1, 1, 0, 0, 1, 1],
    ]


def test_batches_stay_within_the_budget_and_out_of_memory_halves_it():
    model = model_of("llama")
    some = pairs([(8, 4, 4)] * 12)
    whole, scorer = scored(model, some, batch_tokens=100)
    sizes = []
    score_batch = scorer._score_batch

    def limited(batch):
        sizes.append(len(batch))
        if len(batch) > 2:
            raise torch.OutOfMemoryError
        return score_batch(batch)

    scorer._score_batch = limited
    found = {one.pair.row: one for _, result in scorer.score(some) for one in result}
    assert_same_statistics([found[row] for row in range(12)], whole)
    assert 2 < sizes[0] <= 100 // 14
    assert sizes[-1] <= 2
    again = len(sizes)
    list(scorer.score(some))
    assert max(sizes[again:]) <= 2


def test_a_build_shares_by_itself_and_says_so_in_its_identity(tmp_path, reference, pairs):
    shared = tdpo.build_cache(reference, pairs, tmp_path / "shared", limit=20, quiet=True)
    off = tdpo.build_cache(reference, pairs, tmp_path / "off", limit=20, prompt_sharing="off", quiet=True)
    assert (shared.identity["layout"], off.identity["layout"]) == ("shared", "separate")
    for row in range(20):
        for side in ("chosen", "rejected"):
            a, b = shared[row].side(side), off[row].side(side)
            np.testing.assert_allclose(a.ref_logp, b.ref_logp, rtol=0, atol=1e-5)
    assert tdpo.verify_cache(tmp_path / "shared", rescore=5, quiet=True).ok
    assert tdpo.verify_cache(tmp_path / "off", rescore=5, quiet=True).ok
    with pytest.raises(tdpo.CacheError, match=r"layout.*separate.*shared"):
        tdpo.build_cache(reference, pairs, tmp_path / "off", limit=20, quiet=True)


def test_a_build_says_once_why_prompts_are_not_shared(tmp_path, reference, pairs, capsys):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(reference)
    options = {"vocab_size": len(tokenizer), "hidden_size": 32, "n_layer": 2, "n_head": 4}
    model_of("bloom", options).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    reader = tdpo.build_cache(tmp_path / "model", pairs, tmp_path / "c", limit=20, shard_rows=8)
    said = capsys.readouterr().err
    assert said.count("bloom: prompts are scored once for each completion (its positions cannot be set)") == 1
    assert reader.identity["layout"] == "separate"
    with pytest.raises(ModelError, match=r"--prompt-sharing on.*bloom.*positions cannot be set"):
        tdpo.build_cache(tmp_path / "model", pairs, tmp_path / "on", prompt_sharing="on")
    assert "tokenising" not in capsys.readouterr().err
    assert not (tmp_path / "on").exists()


@pytest.mark.parametrize("prompt_sharing", ["auto", "off"])
def test_a_build_leaves_every_random_state_as_it_found_it(tmp_path, reference, pairs, prompt_sharing):
    make_model(8)  # torch is imported, and its generators have been used
    random.seed(3)
    np.random.seed(3)  # noqa: NPY002
    torch.manual_seed(3)
    torch.rand(5)
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()  # noqa: NPY002
    tdpo.build_cache(reference, pairs, tmp_path / "c", limit=12, prompt_sharing=prompt_sharing, quiet=True)
    tdpo.verify_cache(tmp_path / "c", rescore=4, quiet=True)
    assert random.getstate() == before[0]
    assert np.random.get_state()[1].tolist() == before[1]  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), before[2])


def test_random_states_come_back_though_something_draws():
    from tdpo.core.randomness import keep_random_states

    torch.manual_seed(4)
    expected = torch.rand(3)
    torch.manual_seed(4)
    drawn = random.getstate()
    with keep_random_states():
        torch.rand(7), random.random(), np.random.rand()  # noqa: NPY002
    assert torch.equal(torch.rand(3), expected)
    assert random.getstate() == drawn
