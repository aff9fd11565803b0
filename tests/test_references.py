"""References that do not fit: adapters on a base, fewer bits, models spread over several places."""

import json

import numpy as np
import pytest
import torch
from support import make_model, make_tokenizer
from transformers import AutoModelForCausalLM

import tdpo
from tdpo.cache.pairs import SIDES
from tdpo.core.adapters import find_adapter
from tdpo.core.errors import CacheError, ModelError
from tdpo.core.models import find_model, load_model
from tdpo.core.scoring.scorer import ReferenceScorer

ROWS = {"limit": 10, "quiet": True}


def save(model, folder):
    model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save(make_model(320, hidden_size=64), tmp_path_factory.mktemp("base") / "model")


def make_adapter(base, folder, seed=0, **options):
    """A LoRA whose changes are large enough to be seen, as peft saves it."""
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(**{"r": 4, "target_modules": ["q_proj", "down_proj"], **options})
    model = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name or "modules_to_save" in name:
                parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    model.save_pretrained(folder)
    return folder


ADAPTERS = {
    "of the body": {},
    "of body and head": {"target_modules": ["q_proj", "lm_head"]},
    "with a head of its own": {"modules_to_save": ["lm_head"]},
}


@pytest.fixture(scope="module")
def adapter(base, tmp_path_factory):
    return make_adapter(base, tmp_path_factory.mktemp("adapter") / "lora")


@pytest.fixture(scope="module")
def adapted(base, adapter, pairs, tmp_path_factory):
    """A cache of the base with the adapter. Treat as read-only."""
    folder = tmp_path_factory.mktemp("adapted") / "cache"
    return tdpo.build_cache(base, pairs, folder, ref_adapter=str(adapter), **ROWS)


def assert_alike(ours, theirs, within=1e-4):
    for a, b in zip(ours, theirs, strict=True):
        for side in SIDES:
            np.testing.assert_allclose(a.side(side).ref_logp, b.side(side).ref_logp, atol=within)


def distance(ours, theirs):
    return np.mean(
        [
            np.abs(a.side(s).ref_logp - b.side(s).ref_logp).mean()
            for a, b in zip(ours, theirs, strict=True)
            for s in SIDES
        ]
    )


@pytest.mark.parametrize("kind", ADAPTERS)
def test_an_adapter_scores_as_the_model_it_is_merged_into(base, pairs, tmp_path, kind):
    import peft

    folder = make_adapter(base, tmp_path / "lora", **ADAPTERS[kind])
    cache = tdpo.build_cache(base, pairs, tmp_path / "cache", ref_adapter=str(folder), **ROWS)
    merged = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), folder)
    save(merged.merge_and_unload(), tmp_path / "merged")
    assert_alike(cache, tdpo.build_cache(tmp_path / "merged", pairs, tmp_path / "other", **ROWS))
    plain = tdpo.build_cache(base, pairs, tmp_path / "plain", **ROWS)
    assert distance(cache, plain) > 0.05


def test_the_manifest_tells_which_adapter(adapted, base, adapter, tmp_path):
    recorded = adapted.identity["reference"]
    assert recorded["adapter"] == find_adapter(str(adapter)).identity()
    assert adapted.manifest.provenance["adapter"] == str(adapter)
    other = make_adapter(base, tmp_path / "other", seed=1)
    assert find_adapter(str(other)).identity() != recorded["adapter"]


def test_what_does_not_change_an_adapter_does_not_change_its_identity(adapter, tmp_path):
    import shutil

    copied = shutil.copytree(adapter, tmp_path / "copied")
    config = json.loads((copied / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = "elsewhere"
    (copied / "adapter_config.json").write_text(json.dumps(config))
    assert find_adapter(str(copied)).identity() == find_adapter(str(adapter)).identity()
    config["lora_alpha"] += 1
    (copied / "adapter_config.json").write_text(json.dumps(config))
    assert find_adapter(str(copied)).identity() != find_adapter(str(adapter)).identity()


def test_another_adapter_is_another_cache(adapted, base, pairs, tmp_path):
    other = make_adapter(base, tmp_path / "other", seed=1)
    with pytest.raises(CacheError, match=r"reference\.adapter\.weights_sha256"):
        tdpo.build_cache(base, pairs, adapted.location, ref_adapter=str(other), **ROWS)


def test_rescoring_and_fitting_use_the_adapter(adapted, tmp_path):
    assert tdpo.verify_cache(adapted.location, rescore=5, quiet=True).ok
    # The agreement check passes: the policy is the base with the adapter merged, not the base.
    result = tdpo.fit("tdpo2", adapted.location, output=str(tmp_path / "run"), max_steps=1, quiet=True)
    assert result.metrics["loss"] == pytest.approx(np.log(2), abs=1e-5)
    AutoModelForCausalLM.from_pretrained(result.output)


def test_a_merged_model_may_be_named_for_rescoring(adapted, base, adapter, tmp_path):
    import peft

    merged = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter)
    save(merged.merge_and_unload(), tmp_path / "merged")
    assert tdpo.verify_cache(adapted.location, rescore=5, ref=tmp_path / "merged", quiet=True).ok
    assert tdpo.verify_cache(adapted.location, rescore=5, ref=base, quiet=True).ok


def test_the_base_alone_is_refused_as_a_policy(adapted, base, tmp_path):
    with pytest.raises(ModelError, match="does not start at the cached reference"):
        tdpo.fit(
            "dpo", adapted.location, model=str(base), output=str(tmp_path / "run"), max_steps=1, quiet=True
        )


def test_an_exact_cache_of_an_adapted_head_holds_that_head(base, pairs, tmp_path):
    folder = make_adapter(base, tmp_path / "lora", target_modules=["lm_head"])
    cache = tdpo.build_cache(
        base, pairs, tmp_path / "cache", ref_adapter=str(folder), distribution="exact", **ROWS
    )
    result = tdpo.fit("tdpo2", cache.location, output=str(tmp_path / "run"), max_steps=1, quiet=True)
    assert abs(result.metrics["kl/chosen"]) < 1e-5


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: folder.mkdir(), "holds no adapter"),
        (lambda folder: folder.write_text(""), "is a file; give the folder"),
        (lambda folder: None, "no such folder here"),
        (
            lambda folder: (folder.mkdir(), (folder / "adapter_config.json").write_text("{}")),
            "holds no weights",
        ),
    ],
)
def test_what_is_no_adapter_is_told_in_a_line(base, pairs, tmp_path, make, message):
    make(tmp_path / "lora")
    with pytest.raises(ModelError, match=message) as caught:
        tdpo.build_cache(base, pairs, tmp_path / "cache", ref_adapter=str(tmp_path / "lora"), **ROWS)
    assert "\n" not in str(caught.value)


def test_an_adapter_of_another_base_is_told_in_a_line(adapter, pairs, tmp_path):
    other = save(make_model(320, hidden_size=32), tmp_path / "other")
    with pytest.raises(ModelError, match=r"does not fit the model .* give the base") as caught:
        tdpo.build_cache(other, pairs, tmp_path / "cache", ref_adapter=str(adapter), **ROWS)
    assert "\n" not in str(caught.value)


def test_an_adapter_given_as_the_model_is_answered_with_the_options_to_use(adapter, base, pairs, tmp_path):
    with pytest.raises(ModelError, match=f"--ref {base} --ref-adapter {adapter}"):
        tdpo.build_cache(adapter, pairs, tmp_path / "cache", **ROWS)


@pytest.mark.parametrize(
    ("options", "extra"),
    [({"ref_quantization": "4bit"}, "quantization"), ({"ref_adapter": "lora"}, "peft")],
)
def test_a_package_that_is_not_installed_is_named_with_its_extra(
    base, pairs, tmp_path, monkeypatch, options, extra
):
    monkeypatch.setattr("tdpo.core.adapters.find_spec", lambda name: None)
    with pytest.raises(ModelError, match=rf'not installed: pip install "tdpo\[{extra}\]"'):
        tdpo.build_cache(base, pairs, tmp_path / "cache", **options, **ROWS)


@pytest.fixture(scope="module", params=["4bit", "8bit"])
def quantised(request, base, pairs, tmp_path_factory):
    pytest.importorskip("bitsandbytes")
    folder = tmp_path_factory.mktemp("quantised") / "cache"
    return request.param, tdpo.build_cache(base, pairs, folder, ref_quantization=request.param, **ROWS)


def test_a_quantised_reference_is_scored_as_it_computes(quantised, base):
    from transformers import BitsAndBytesConfig

    kind, cache = quantised
    assert cache.identity["reference"]["quantization"][f"load_in_{kind}"] is True
    config = BitsAndBytesConfig(**cache.identity["reference"]["quantization"])
    if kind == "4bit":
        config.bnb_4bit_compute_dtype = torch.float32
    model = AutoModelForCausalLM.from_pretrained(base, quantization_config=config)
    one = cache[0]
    ids = torch.tensor([[*one.pair.prompt_ids, *one.pair.chosen_ids]])
    with torch.no_grad():
        log_p = torch.log_softmax(model(ids).logits[0].float(), -1)
    start = len(one.pair.prompt_ids) - 1
    want = log_p[start : start + len(one.pair.chosen_ids)].gather(-1, ids[0, start + 1 :, None])[:, 0]
    # 8-bit layers find the outliers of their inputs in the batch as a whole.
    np.testing.assert_allclose(one.chosen.ref_logp, want, atol=1e-3 if kind == "4bit" else 0.5)


def test_a_quantised_reference_is_loaded_so_again_for_rescoring(quantised, base, pairs, tmp_path):
    kind, cache = quantised
    report = tdpo.verify_cache(cache.location, rescore=4, quiet=True)
    assert report.ok, report
    if kind == "4bit":
        plain = tdpo.build_cache(base, pairs, tmp_path / "plain", **ROWS)
        assert report.rescored.ref_logp < 1e-3 < 0.5 < distance(cache, plain)


def test_a_fit_from_a_quantised_reference_says_that_the_policy_starts_elsewhere(quantised, tmp_path):
    _, cache = quantised
    with pytest.raises(ModelError, match="--other-start"):
        tdpo.fit("dpo", cache.location, output=str(tmp_path / "run"), max_steps=1, quiet=True)
    result = tdpo.fit(
        "dpo", cache.location, output=str(tmp_path / "run"), max_steps=1, other_start=True, quiet=True
    )
    assert AutoModelForCausalLM.from_pretrained(result.output).dtype == torch.float32


@pytest.mark.parametrize("kind", ADAPTERS)
def test_an_adapter_on_a_quantised_base_is_computed_beside_it(base, pairs, tmp_path, kind):
    pytest.importorskip("bitsandbytes")
    import peft
    from transformers import BitsAndBytesConfig

    folder = make_adapter(base, tmp_path / "lora", **ADAPTERS[kind])
    cache = tdpo.build_cache(
        base, pairs, tmp_path / "cache", ref_adapter=str(folder), ref_quantization="4bit", **ROWS
    )
    config = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_pretrained(base, quantization_config=config)
    model = peft.PeftModel.from_pretrained(model, folder)
    one = cache[3]
    ids = torch.tensor([[*one.pair.prompt_ids, *one.pair.rejected_ids]])
    with torch.no_grad():
        log_p = torch.log_softmax(model(ids).logits[0].float(), -1)
    start = len(one.pair.prompt_ids) - 1
    want = log_p[start : start + len(one.pair.rejected_ids)].gather(-1, ids[0, start + 1 :, None])[:, 0]
    np.testing.assert_allclose(one.rejected.ref_logp, want, atol=1e-3)


def test_a_device_map_gives_the_same_cache(base, pairs, tmp_path):
    spread = tdpo.build_cache(base, pairs, tmp_path / "spread", device_map="auto", **ROWS)
    assert_alike(spread, tdpo.build_cache(base, pairs, tmp_path / "plain", **ROWS), within=1e-5)
    assert spread.manifest.provenance["device_map"] == "auto"
    assert "device_map" not in json.dumps(spread.identity)


@pytest.mark.parametrize("tied", [False, True])
def test_parts_that_lie_on_the_disk_score_as_in_memory(pairs, tmp_path, tied):
    folder = save(make_model(320, tie_word_embeddings=tied), tmp_path / "model")
    cache = tdpo.build_cache(folder, pairs, tmp_path / "cache", **ROWS)
    places = {"model.embed_tokens": "disk", "model.layers.0": "cpu", "model.layers.1": "disk"}
    model = AutoModelForCausalLM.from_pretrained(
        folder,
        device_map={**places, "model.norm": "disk", "model.rotary_emb": "cpu", "lm_head": "disk"},
        offload_folder=tmp_path / "offload",
    )
    assert model.get_output_embeddings().weight.is_meta
    scorer = ReferenceScorer(model.eval(), 8, 8, 0)
    scored = {one.pair.row: one for _, some in scorer.score([c.pair for c in cache]) for one in some}
    assert_alike(cache, [scored[one.pair.row] for one in cache], within=1e-5)


def test_a_spread_model_stays_where_it_is(base):
    model = load_model(find_model(str(base), option="--ref"), dtype="float32")
    assert ReferenceScorer(model, 0, 0, 0).device.type == ("cuda" if torch.cuda.is_available() else "cpu")
