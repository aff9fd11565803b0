"""A training step on shared and on packed rows is the step on separate sequences."""

import pytest
import torch
from architectures import ARCHITECTURES, SMALL, V, model_of
from test_scoring_sharing import UNSHARABLE, WINDOW, WINDOWED, assert_equal_but_for_rounding
from test_scoring_sharing import pairs as some_pairs

import tdpo
from tdpo.core.config.fit import FitConfig
from tdpo.core.errors import ModelError
from tdpo.core.objective import Completions
from tdpo.core.scoring.completions import completions
from tdpo.core.scoring.forward import check_sharing, enable_scoring
from tdpo.core.scoring.layout import lay_out_packed, lay_out_shared, shared_width
from tdpo.core.scoring.scorer import ReferenceScorer
from tdpo.core.scoring.sharing import cannot_pack, cannot_share
from tdpo.core.scoring.visibility import block_mask, dense_mask
from tdpo.core.training.batches import tokens_of
from tdpo.core.training.layout import check_layout, choose_batching

DENSE = ["llama", "qwen2", "qwen3", "mistral", "gpt_neox", "gpt2", "gemma2", "gemma3_text", "olmo2", "opt"]
MODELS = {
    **{name: ARCHITECTURES[name] for name in DENSE},
    "phi3": SMALL,
    "mixtral": {**SMALL, "num_local_experts": 4},
    "qwen2_moe": {
        **SMALL, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16,
        "shared_expert_intermediate_size": 16,
    },
}  # fmt: skip


def policy_of(name, options):
    """A model and what it said of the pairs before its weights were moved a little."""
    model = model_of(name, options)
    found = {
        one.pair.row: one for _, batch in ReferenceScorer(model, 4, 4, 0).score(some_pairs()) for one in batch
    }
    # The scorer has put it on the GPU where there is one.
    model.cpu()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    return model, [found[pair.row] for pair in some_pairs()]


def gradients_of(model):
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


def naive_step(model, records, objective):
    """Full logits of one unpadded sequence at a time."""
    model.zero_grad()
    logps, losses = {"chosen": [], "rejected": []}, []
    for record in records:
        sides = []
        for side in ("chosen", "rejected"):
            prompt, ids = record.pair.prompt_ids.tolist(), record.pair.ids(side).tolist()
            logits = model(torch.tensor([prompt + ids]), use_cache=False).logits[0, len(prompt) - 1 : -1]
            logp = logits.float().log_softmax(-1)[range(len(ids)), ids]
            ref_logp = torch.tensor(record.side(side).ref_logp)[None]
            sides.append(Completions(torch.ones(1, len(ids), dtype=torch.bool), logp[None], ref_logp))
            logps[side].append(logp.detach())
        losses.append(objective(*sides).loss.sum() / len(records))
        losses[-1].backward()
    return logps, sum(losses).detach(), gradients_of(model)


def step(model, batching, records, objective):
    """What the trainer does of one batch: collator, scored forward, completions, loss, backward."""
    model.zero_grad()
    logps, losses = {}, []
    for micro in batching(records):
        scores = model(**tokens_of(micro), score_ids=micro["score_ids"])
        sides = completions(scores, micro, head=4, vocab_size=V, estimator="fitted", kl_gradient=True)
        losses.append(objective(*sides).loss.sum() / len(records))
        losses[-1].backward()
        for side, completion in zip(("chosen", "rejected"), sides, strict=True):
            for pair_id, logp, mask in zip(micro["pair_ids"], completion.logp, completion.mask, strict=True):
                logps[bytes(pair_id.tolist()).hex(), side] = logp[mask].detach()
    by_side = {
        side: [logps[record.pair.pair_id, side] for record in records] for side in ("chosen", "rejected")
    }
    return by_side, sum(losses).detach(), gradients_of(model)


def assert_same_step(ours, theirs, tolerance=1e-5):
    for side in ("chosen", "rejected"):
        assert_equal_but_for_rounding(ours[0][side], theirs[0][side], tolerance)
    assert_equal_but_for_rounding([ours[1]], [theirs[1]], tolerance)
    assert_equal_but_for_rounding(ours[2], theirs[2], tolerance)


def chosen_batching(model, objective=None, **options):
    enable_scoring(model)
    config = FitConfig(plugin="dpo", **options)
    device = model.get_input_embeddings().weight.device.type
    return choose_batching(config, model, objective or tdpo.objective("dpo"), device)


@pytest.mark.parametrize("name", MODELS)
def test_a_step_on_shared_and_on_packed_rows_is_the_step_on_separate_sequences(name):
    model, records = policy_of(name, MODELS[name])
    expected = naive_step(model, records, tdpo.objective("dpo"))
    batching, note = chosen_batching(model)
    assert (batching.share, batching.pack, note) == (True, False, None)
    assert_same_step(step(model, batching, records, tdpo.objective("dpo")), expected)
    if cannot_pack(model) is not None:
        assert name == "gpt2"
        return
    for share in ("on", "off"):
        batching, _ = chosen_batching(model, packing="on", prompt_sharing=share)
        (micro,) = batching(records)
        assert len(micro["input_ids"]) == 1
        assert_same_step(step(model, batching, records, tdpo.objective("dpo")), expected)


def test_a_lora_is_trained_on_shared_rows():
    from peft import LoraConfig, get_peft_model

    model, records = policy_of("llama", SMALL)
    model = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))
    expected = naive_step(model, records, tdpo.objective("dpo"))
    batching, note = chosen_batching(model)
    assert (batching.share, note) == (True, None)
    assert_same_step(step(model, batching, records, tdpo.objective("dpo")), expected)


@pytest.mark.parametrize("options", [{}, {"packing": "on"}, {"prompt_sharing": "off"}], ids=str)
def test_gradient_checkpointing_changes_nothing(options):
    model, records = policy_of("llama", SMALL)
    batching, _ = chosen_batching(model, **options)
    expected = step(model, batching, records, tdpo.objective("tdpo2"))
    model.gradient_checkpointing_enable()
    model.train()
    assert_same_step(step(model, batching, records, tdpo.objective("tdpo2")), expected, 1e-6)


@pytest.mark.parametrize("packing", ["off", "on"])
@pytest.mark.parametrize("name", ["mistral", "gemma3_text", "gpt_neo"])
def test_pairs_longer_than_an_attention_window_get_rows_of_their_own(name, packing):
    if packing == "on" and name == "gpt_neo":
        pytest.skip("transformers gives it no FlexAttention, so it is not packed")
    model, records = policy_of(name, WINDOWED[name])
    expected = naive_step(model, records, tdpo.objective("dpo"))
    batching, note = chosen_batching(model, packing=packing)
    joint = [micro for micro in batching(records) if "segments" in micro]
    assert note is None
    assert sum(len(micro["lengths"]) // 2 for micro in joint) == sum(
        shared_width(record.pair) <= WINDOW for record in records
    )
    assert 0 < len(joint) < len(batching(records))
    assert_same_step(step(model, batching, records, tdpo.objective("dpo")), expected)


@pytest.mark.parametrize("name", ["mamba", "recurrent_gemma", "jamba", "bloom"])
def test_a_model_that_cannot_falls_back_to_separate_sequences_and_says_why(name):
    options, why = UNSHARABLE[name]
    model, records = policy_of(name, options)
    expected = naive_step(model, records, tdpo.objective("dpo"))
    batching, note = chosen_batching(model)
    assert why in note
    assert "\n" not in note
    assert not batching.share
    assert not batching.pack
    assert_same_step(step(model, batching, records, tdpo.objective("dpo")), expected)
    for option in ("prompt_sharing", "packing"):
        insisting = FitConfig(plugin="dpo", **{option: "on"})
        with pytest.raises(ModelError, match=rf"--{option.replace('_', '-')} on: a {name} model.*{why}"):
            check_layout(insisting, model.config)
        with pytest.raises(ModelError, match=why):
            choose_batching(insisting, model, tdpo.objective("dpo"))
    assert chosen_batching(model, prompt_sharing="off")[1] is None


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_rows_are_tried_backward_too(name):
    model = model_of(name)
    assert check_sharing(model, lay_out_packed, backward=True) is None
    assert all(parameter.grad is None for parameter in model.parameters())

    def no_gradient(*args, **kwargs):
        raise NotImplementedError

    block = model.base_model.get_submodule("layers.1" if name == "llama" else "h.1")
    block.register_full_backward_pre_hook(no_gradient)
    assert check_sharing(model, lay_out_packed) is None
    assert "NotImplementedError" in check_sharing(model, lay_out_packed, backward=True)


def test_packing_is_refused_where_transformers_has_no_flex_attention():
    model = model_of("gpt2")
    assert cannot_pack(model) is not None
    with pytest.raises(ModelError, match=r"--packing on: a gpt2 model.*masks of any kind"):
        chosen_batching(model, packing="on")


def test_an_objective_over_the_batch_gets_the_batch_whole():
    model, records = policy_of("mistral", WINDOWED["mistral"])
    whole = type("Whole", (type(tdpo.objective("dpo")),), {"batch_level": True})()
    batching, _ = chosen_batching(model, whole)
    (micro,) = batching(records)
    assert len(micro["lengths"]) == 2 * len(records)
    assert_same_step(step(model, batching, records, whole), naive_step(model, records, tdpo.objective("dpo")))


LONG = [(3, 5, 1), (200, 100, 300), (1, 2, 7), (130, 140, 150), (6, 4, 4), (300, 1, 1), (1, 1, 1)]


@pytest.mark.parametrize("multiple", [1, 128])
@pytest.mark.parametrize("layout", ["packed", "packed apart", "shared"])
def test_the_block_mask_is_the_dense_mask(layout, multiple):
    """FlexAttention is told what the dense mask says, in the blocks that torch would find for itself."""
    from torch.nn.attention.flex_attention import create_block_mask, create_mask, flex_attention

    some = some_pairs(LONG)
    if layout == "shared":
        segments = lay_out_shared(some).segments
    else:
        segments = lay_out_packed(some, share=layout == "packed", multiple=multiple).segments
    rows, width = segments.shape
    dense = dense_mask(segments, torch.float32) == 0
    mask = block_mask(segments)
    shape = {"B": rows, "H": None, "Q_LEN": width, "KV_LEN": width, "device": "cpu"}
    assert torch.equal(create_mask(mask.mask_mod, rows, 1, width, width, device="cpu"), dense)
    found = create_block_mask(mask.mask_mod, **shape)
    assert torch.equal(mask.to_dense(), found.to_dense())
    assert torch.equal(mask.full_kv_num_blocks, found.full_kv_num_blocks)
    query, key, value = torch.randn(3, rows, 2, width, 16, generator=torch.Generator().manual_seed(0))
    expected = torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=dense)
    with torch.no_grad():
        torch.testing.assert_close(flex_attention(query, key, value, block_mask=mask), expected)


@pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA trains with it")
def test_flex_attention_is_no_backend_to_train_with_without_cuda():
    assert "CUDA" in cannot_share(model_of("llama").config, "flex_attention")


@pytest.mark.gpu
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", ["llama", "qwen2", "gemma2", "mistral", "mixtral"])
def test_on_cuda_pairs_are_packed_with_flex_attention(name, checkpointing):
    wide = {**SMALL, "hidden_size": 128, "head_dim": 32, "sliding_window": 512, "num_local_experts": 4}
    options = {key: value for key, value in wide.items() if key != "num_local_experts" or name == "mixtral"}
    model, records = policy_of(name, options)
    model = model.cuda()
    torch.backends.cuda.matmul.allow_tf32 = False

    def on_gpu(batching):
        return lambda some: [{k: v.cuda() for k, v in micro.items()} for micro in batching(some)]

    separate, _ = chosen_batching(model, packing="off", prompt_sharing="off")
    expected = step(model, on_gpu(separate), records, tdpo.objective("tdpo2"))
    batching, note = chosen_batching(model)
    assert (note, batching.share, batching.pack) == (None, True, True)
    assert model.config._attn_implementation == "flex_attention"
    assert check_sharing(model, lay_out_packed) is None
    if checkpointing:
        model.gradient_checkpointing_enable()
    model.train()
    got = step(model, on_gpu(batching), records, tdpo.objective("tdpo2"))
    assert len(batching(records)) == 1
    assert_same_step(got, expected, 1e-3)


def test_a_fit_says_once_why_prompts_are_not_shared(tmp_path, reference, pairs, capsys):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(reference)
    options = {"vocab_size": len(tokenizer), "hidden_size": 32, "n_layer": 2, "n_head": 4}
    model_of("bloom", options).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    tdpo.build_cache(tmp_path / "model", pairs, tmp_path / "cache", limit=20, quiet=True)
    common = {"cache": tmp_path / "cache", "max_steps": 3, "batch_size": 4}
    why = "bloom: prompts are scored once for each completion (its positions cannot be set)"
    tdpo.fit("dpo", output=tmp_path / "auto", **common)
    assert capsys.readouterr().err.count(why) == 1
    tdpo.fit("dpo", output=tmp_path / "off", prompt_sharing="off", **common)
    assert why not in capsys.readouterr().err
    with pytest.raises(ModelError, match=r"--prompt-sharing on.*bloom.*positions cannot be set"):
        tdpo.fit("dpo", output=tmp_path / "on", prompt_sharing="on", **common)
    assert not (tmp_path / "on").exists()
