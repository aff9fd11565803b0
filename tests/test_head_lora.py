"""A head that peft has adapted: its logits and gradients are peft's own."""

import copy

import pytest
import torch
from peft import IA3Config, LoraConfig, get_peft_model
from support import make_model

from tdpo.core.errors import ModelError
from tdpo.core.scoring.forward import enable_scoring
from tdpo.core.scoring.head import Head
from tdpo.core.scoring.head_file import write_head
from tdpo.core.scoring.projection import logits
from tdpo.core.scoring.sparse import sparse_scores

V = 120


def adapted(dtype=torch.float64, *, tied=False, base=None, config=LoraConfig, **options):
    """A model with adapters whose weights are far from their start, where they would do nothing."""
    model = make_model(V, tie_word_embeddings=tied) if base is None else base
    options = {"target_modules": ["lm_head"], **options}
    model = get_peft_model(model.to(dtype), config(**options)).to(dtype)
    shake(model)
    return model


def shake(model):
    g = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name or "modules_to_save" in name:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=g).to(parameter.dtype))


def hidden_of(model, dtype=torch.float64):
    hidden = torch.randn(9, model.config.hidden_size, generator=torch.Generator().manual_seed(2), dtype=dtype)
    return hidden.requires_grad_()


def trained(model):
    module = model.get_output_embeddings()
    return [parameter for parameter in module.parameters() if parameter.requires_grad]


def compare(model, *, tolerance=1e-9, dtype=torch.float64, seed=None):
    """Log-probs, entropies and their gradients through our head and through the module itself."""
    ids = torch.randint(V, (9, 3), generator=torch.Generator().manual_seed(3))
    hidden = hidden_of(model, dtype)
    inputs = [hidden, *trained(model)]
    results = []
    for ours in (True, False):
        if seed is not None:
            torch.manual_seed(seed)
        if ours:
            got = sparse_scores(Head.of(model), hidden, ids, entropy=True, chunk=4, columns=50)
            logp, entropy = got.logp, got.entropy
        else:
            log_q = torch.log_softmax(model.get_output_embeddings()(hidden), -1)
            logp, entropy = log_q.gather(-1, ids), -(log_q.exp() * log_q).sum(-1)
        loss = (logp * torch.arange(1, 4)).sum() + entropy.square().sum()
        results.append([logp, entropy, *torch.autograd.grad(loss, inputs)])
    assert len(inputs) > 1
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    "options",
    [
        {"r": 4},
        {"r": 3, "lora_alpha": 5, "use_rslora": True},
        {"r": 4, "lora_bias": True},
    ],
    ids=lambda options: "-".join(options),
)
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 2e-4)])
def test_a_lora_gives_pefts_values_and_gradients(options, tied, dtype, tolerance):
    model = adapted(dtype, tied=tied, **options)
    compare(model, dtype=dtype, tolerance=tolerance)
    assert not Head.of(model).weight.requires_grad


def test_several_active_adapters_add_up():
    model = adapted(r=4)
    model.add_adapter("second", LoraConfig(r=2, lora_alpha=7, target_modules=["lm_head"]))
    model.double()
    shake(model)
    model.base_model.set_adapter(["default", "second"])
    assert len(Head.of(model).adapters) == 2
    compare(model)
    model.base_model.set_adapter(["second"])
    assert len(Head.of(model).adapters) == 1
    compare(model)


def test_an_adapter_of_other_layers_leaves_the_head_alone():
    model = adapted(target_modules=["q_proj"])
    assert Head.of(model).adapters == ()
    assert Head.of(model).weight is model.get_output_embeddings().weight


def test_dropout_drops_what_peft_drops_and_nothing_in_evaluation():
    model = adapted(r=4, lora_dropout=0.5)
    model.train()
    compare(model, seed=5)
    hidden = hidden_of(model)
    torch.manual_seed(0)
    dropped = logits(Head.of(model), hidden, torch.float64)
    model.eval()
    compare(model)
    assert not torch.allclose(dropped, logits(Head.of(model), hidden, torch.float64))


def test_a_copy_that_is_trained_whole_is_the_weight():
    model = adapted(target_modules=["q_proj"], modules_to_save=["lm_head"])
    head = Head.of(model)
    assert head.weight is model.get_output_embeddings().modules_to_save["default"].weight
    assert head.weight.requires_grad
    compare(model)
    with model.disable_adapter():
        assert Head.of(model).weight is model.get_output_embeddings().original_module.weight


def test_adapters_that_are_switched_off_or_merged_are_not_added():
    model = adapted(r=4)
    hidden = hidden_of(model)
    module = model.get_output_embeddings()
    want = module(hidden)
    with model.disable_adapter():
        off = logits(Head.of(model), hidden, torch.float64)
        torch.testing.assert_close(off, module(hidden), rtol=1e-9, atol=1e-9)
    module.merge()
    assert Head.of(model).adapters == ()
    torch.testing.assert_close(logits(Head.of(model), hidden, torch.float64), want, rtol=1e-9, atol=1e-9)
    with model.disable_adapter(), pytest.raises(ModelError, match="unmerge"):
        Head.of(model)


def test_adapters_in_float32_beside_a_head_in_bfloat16_keep_their_digits():
    """As QLoRA has them; judged against the same weights in float64."""
    model = get_peft_model(make_model(V).bfloat16(), LoraConfig(r=4, target_modules=["lm_head"]))
    shake(model)
    module = model.get_output_embeddings()
    assert module.lora_A["default"].weight.dtype == torch.float32
    hidden = hidden_of(model).detach().bfloat16()
    got = logits(Head.of(model), hidden, torch.bfloat16)
    theirs = module(hidden)
    truth = copy.deepcopy(module).double()(hidden.double())
    assert (got - truth).norm() < 1e-5 * truth.norm() < (theirs - truth).norm()


@pytest.mark.parametrize(
    ("config", "options", "message"),
    [
        (LoraConfig, {"use_dora": True}, "DoraLinearVariant does more than a LoRA"),
        (
            LoraConfig,
            {"target_modules": ["q_proj"], "trainable_token_indices": {"lm_head": [1, 2]}},
            r"TrainableTokensWrapper\) cannot be scored",
        ),
        (IA3Config, {"feedforward_modules": []}, "tdpo knows a LoRA there"),
    ],
)
def test_adapters_that_do_something_else_are_refused_in_a_line(config, options, message):
    model = adapted(config=config, **options)
    with pytest.raises(ModelError, match=message) as error:
        Head.of(model)
    assert "\n" not in str(error.value)


def test_the_scored_forward_of_a_peft_model_is_its_own_with_full_logits():
    model = adapted(r=4, target_modules=["q_proj", "lm_head"])
    inner = get_peft_model(
        make_model(V).double(), LoraConfig(r=4, target_modules=["q_proj", "lm_head"])
    ).double()
    inner.load_state_dict(model.state_dict())
    tokens = torch.arange(14).reshape(2, 7)
    mask, ids = torch.ones_like(tokens), torch.arange(14).reshape(14, 1)
    enable_scoring(model)
    scores = model(
        input_ids=tokens,
        attention_mask=mask,
        score_positions=torch.arange(14),
        score_ids=ids,
        score_entropy=True,
    )
    log_q = torch.log_softmax(inner(input_ids=tokens, attention_mask=mask).logits.reshape(14, V), -1)
    results = []
    for policy, logp in ((model, scores.logp), (inner, log_q.gather(-1, ids))):
        parameters = [parameter for parameter in policy.parameters() if parameter.requires_grad]
        results.append([logp, *torch.autograd.grad((logp * torch.arange(14)[:, None]).sum(), parameters)])
    assert len(results[0]) == 1 + 2 * 3
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-8)


def test_a_quantised_head_is_refused_in_a_line():
    bitsandbytes = pytest.importorskip("bitsandbytes")
    model = make_model(128)
    head = bitsandbytes.nn.Linear4bit(32, 128, bias=False, compute_dtype=torch.float32)
    head.weight = bitsandbytes.nn.Params4bit(model.lm_head.weight.detach(), requires_grad=False)
    model.lm_head = head.to("cpu")
    for given in (model, get_peft_model(copy.deepcopy(model), LoraConfig(target_modules=["q_proj"]))):
        with pytest.raises(ModelError, match="output embedding is quantised") as error:
            Head.of(given)
        assert "\n" not in str(error.value)


def test_a_head_with_an_adapter_is_not_stored_without_it(tmp_path):
    with (tmp_path / "head").open("wb") as file, pytest.raises(ModelError, match="merge"):
        write_head(Head.of(adapted(r=2)), file)
