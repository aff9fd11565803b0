"""The built-in statistic `prompt_embedding`: by the reference, by another model, and RPO that reads it."""

import json
import shutil

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from support import make_model, make_tokenizer

import tdpo
from tdpo.core.cli import tdpo as command


@pytest.fixture
def mine(cache, tmp_path):
    return shutil.copytree(cache, tmp_path / "cache")


@pytest.fixture(scope="module")
def embedder(tmp_path_factory):
    """A small BERT that takes 16 tokens, with a tokenizer of its own: one more special token."""
    from transformers import BertConfig, BertModel

    folder = tmp_path_factory.mktemp("embedder") / "model"
    tokenizer = make_tokenizer(extra=["<cls>"])
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=24, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=16, pad_token_id=tokenizer.pad_token_id,
        initializer_range=0.3,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(3)
        BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def add(folder, **options):
    return tdpo.add_statistics(folder, "embedding", statistic="prompt_embedding", quiet=True, **options)


def first_pairs(folder, count=9):
    return [record.pair for record in tdpo.open_cache(folder)][:count]


def manifest(folder):
    return json.loads((folder / "manifest.json").read_text())["scores"]["embedding"]


def test_it_is_the_mean_of_the_references_last_hidden_states(mine, reference):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(reference).double().eval()
    values = add(mine).read(first_pairs(mine))["prompt_embedding"]
    for pair, value in zip(first_pairs(mine), values, strict=True):
        with torch.no_grad():
            states = model(torch.tensor(pair.prompt_ids[None].astype(int)), output_hidden_states=True)
        np.testing.assert_allclose(value, states.hidden_states[-1][0].mean(0).numpy(), atol=1e-5)
    assert manifest(mine)["identity"]["reference"] == tdpo.open_cache(mine).identity["reference"]
    assert manifest(mine)["columns"]["prompt_embedding"]["shape"] == "pair"


def test_another_model_embeds_the_prompts_texts(mine, embedder):
    from transformers import AutoModel, AutoTokenizer

    model = AutoModel.from_pretrained(embedder).double().eval()
    theirs, ours = AutoTokenizer.from_pretrained(embedder), make_tokenizer()
    values = add(mine, set={"model": str(embedder)}).read(first_pairs(mine))["prompt_embedding"]
    for pair, value in zip(first_pairs(mine), values, strict=True):
        ids = theirs(ours.decode(pair.prompt_ids.tolist()))["input_ids"][:16]
        with torch.no_grad():
            states = model(torch.tensor([ids])).last_hidden_state[0]
        np.testing.assert_allclose(value, states.mean(0).numpy(), atol=1e-5)


def test_the_manifest_proves_which_embedding_model_it_was(mine, embedder, tmp_path):
    add(mine, set={"model": str(embedder)})
    identity = manifest(mine)["identity"]
    assert "reference" not in identity
    before = identity["model"]["weights_sha256"]

    from safetensors.torch import load_file, save_file

    changed = shutil.copytree(embedder, tmp_path / "changed")
    weights = load_file(changed / "model.safetensors")
    save_file({k: v + 1 for k, v in weights.items()}, changed / "model.safetensors", {"format": "pt"})
    with pytest.raises(tdpo.TdpoError, match="embedding"):
        add(mine, set={"model": str(changed)})
    add(mine, set={"model": str(changed)}, overwrite=True)
    assert manifest(mine)["identity"]["model"]["weights_sha256"] != before


def test_text_that_is_longer_than_the_model_takes_is_cut_at_its_end(embedder):
    from tdpo.core.scoring.embedding import TextEncoder

    encoder = TextEncoder(str(embedder), option="model")
    text = "good bad great dull " * 20
    ids = encoder.tokenizer(text)["input_ids"]
    assert len(ids) > 16
    cut = encoder.tokenizer.decode(ids[:16])
    long, short = encoder.embed([text, cut])
    torch.testing.assert_close(long, short)
    # Neither company nor padding matters.
    alone = encoder.embed(["the film"])[0]
    torch.testing.assert_close(encoder.embed(["the film", text], batch=2)[0], alone, rtol=1e-4, atol=1e-5)


def encoder_decoder(tokenizer):
    from transformers import T5Config, T5Model

    config = T5Config(
        vocab_size=len(tokenizer), d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2,
        pad_token_id=2, decoder_start_token_id=2,
    )  # fmt: skip
    return T5Model(config)


def decoder(tokenizer):
    """Without a token to pad with."""
    tokenizer.pad_token = None
    return make_model(len(tokenizer))


@pytest.mark.parametrize("make", [encoder_decoder, decoder])
def test_models_of_other_kinds_embed(make, tmp_path):
    from transformers import AutoModel

    from tdpo.core.scoring.embedding import TextEncoder

    tokenizer = make_tokenizer()
    make(tokenizer).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    texts = ["good", "the plot was bad and dull", "a film"]
    found = TextEncoder(str(tmp_path), option="model").embed(texts)
    model = AutoModel.from_pretrained(tmp_path).double().eval()
    body = model.get_encoder() if make is encoder_decoder else model
    for text, value in zip(texts, found, strict=True):
        with torch.no_grad():
            states = body(input_ids=torch.tensor([tokenizer(text)["input_ids"]])).last_hidden_state
        torch.testing.assert_close(value.double(), states[0].mean(0), rtol=1e-4, atol=1e-5)


def test_rpo_trains_from_it(mine, tmp_path):
    """What is lacking is said with the command that makes it, and that command works."""
    fit = ["fit", "--plugin", "rpo_relative", "--cache", str(mine), "--batch-size", "8", "--max-steps", "2"]
    fit += ["--logging-steps", "1", "--output", str(tmp_path / "run")]
    refused = CliRunner().invoke(command, fit)
    said = str(refused.exception) + refused.output
    named = "--name prompt_embedding --statistic prompt_embedding"
    assert f"tdpo cache add {mine} {named}" in said
    assert CliRunner().invoke(command, ["cache", "add", str(mine), *named.split()]).exit_code == 0
    result = CliRunner().invoke(command, fit)
    assert result.exit_code == 0, (result.output, result.exception)
    events = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [event["loss"] for event in events if "loss" in event]
    # The policy begins as the reference, where every contrast is 0, whatever its weight.
    assert losses[0] == pytest.approx(np.log(2), abs=1e-5)
    assert losses[1] != losses[0]


@pytest.mark.parametrize(
    ("name", "message"),
    [("nowhere", r"prompt_embedding: model nowhere: does not load"), ("emptied", "lack .*embed")],
)
def test_a_model_that_cannot_embed_is_refused_in_a_line(name, message, mine, embedder, tmp_path):
    from safetensors.torch import load_file, save_file

    if name == "emptied":
        name = shutil.copytree(embedder, tmp_path / "emptied")
        weights = load_file(name / "model.safetensors")
        kept = {k: v for k, v in weights.items() if "word_embeddings" not in k}
        save_file(kept, name / "model.safetensors", {"format": "pt"})
    with pytest.raises(tdpo.TdpoError, match=message) as caught:
        add(mine, set={"model": str(name)})
    assert "\n" not in str(caught.value)
    assert not (mine / "scores").exists()
