"""Samples at evaluation: what the policy says alone, and training goes on as if nothing had been asked."""

import json
import random

import numpy as np
import pytest
import torch
from support import make_model, make_tokenizer, write_pairs

import tdpo
from tdpo.core.config.fit import FitConfig
from tdpo.core.generation import complete
from tdpo.core.scoring.forward import enable_scoring
from tdpo.core.training.samples import check_samples, distinct_prompts
from tdpo.core.training.sharding import Sharding

PROMPTS = [[5, 6, 7, 8, 9], [30], [41, 42, 43]]


@pytest.fixture
def tokenizer():
    return make_tokenizer()


@pytest.fixture(scope="module")
def held_out(tmp_path_factory, reference):
    """A cache of which every prompt comes twice."""
    folder = tmp_path_factory.mktemp("held-out")
    rows = write_pairs(folder / "once.jsonl", 6, seed=5).read_text().splitlines()
    twice = [row for row in rows for _ in range(2)]
    for at in range(1, len(twice), 2):
        row = json.loads(twice[at])
        twice[at] = json.dumps({**row, "chosen": row["rejected"], "rejected": row["chosen"]})
    (folder / "pairs.jsonl").write_text("\n".join(twice) + "\n")
    tdpo.build_cache(reference, folder / "pairs.jsonl", folder / "cache", quiet=True)
    return folder / "cache"


def fit(cache, output, **options):
    values = {"learning_rate": 1e-2, "logging_steps": 1, "quiet": True, **options}
    return tdpo.fit("dpo", cache, output=str(output), **values)


def lines(path):
    return [json.loads(line) for line in path.read_text().split("\n") if line]


def alone(model, prompt, tokens, end=1):
    """The likeliest tokens one after another, from full logits of one unpadded sequence, no cache."""
    ids = list(prompt)
    for _ in range(tokens):
        with torch.no_grad():
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        if ids[-1] == end:
            break
    return ids[len(prompt) :]


def gpt2(vocab_size):
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=vocab_size, n_embd=32, n_layer=2, n_head=2, n_positions=64, initializer_range=0.5,
        bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return GPT2LMHeadModel(config).eval()


def with_lora(model):
    from peft import LoraConfig, get_peft_model

    with torch.random.fork_rng():
        torch.manual_seed(0)
        return get_peft_model(model, LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False))


@pytest.mark.parametrize(
    "make", [make_model, gpt2, lambda n: with_lora(make_model(n))], ids=["llama", "gpt2", "lora"]
)
def test_padded_prompts_are_completed_as_each_alone(tokenizer, make):
    """Also by a model whose forward pass was taught to score, and by one that learns positions."""
    model = make(len(tokenizer))
    wanted = [alone(model, prompt, 12) for prompt in PROMPTS]
    assert len({tuple(ids) for ids in wanted}) == len(PROMPTS)
    enable_scoring(model)
    for batch_size in (1, 2, 3):
        found = complete(
            model, tokenizer, PROMPTS, max_tokens=12, temperature=0, seed=0, batch_size=batch_size
        )
        assert [each.ids for each in found] == wanted


def test_a_completion_ends_where_the_model_or_the_tokenizer_ends_it(tokenizer):
    model = make_model(len(tokenizer))
    whole = alone(model, PROMPTS[0], 12)
    model.generation_config.eos_token_id = [whole[3], 1]
    (found,) = complete(model, tokenizer, PROMPTS[:1], max_tokens=12, temperature=0, seed=0, batch_size=1)
    assert found.finished
    assert found.ids == whole[: whole.index(whole[3]) + 1]
    model.generation_config.eos_token_id = None
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(whole[2])
    (found,) = complete(model, tokenizer, PROMPTS[:1], max_tokens=12, temperature=0, seed=0, batch_size=1)
    assert found.finished
    assert found.ids == whole[: whole.index(whole[2]) + 1]
    (found,) = complete(model, tokenizer, PROMPTS[:1], max_tokens=2, temperature=0, seed=0, batch_size=1)
    assert not found.finished
    assert found.ids == whole[:2]


def test_no_more_positions_are_taken_than_the_model_has(tokenizer):
    model = gpt2(len(tokenizer))
    for length, room in ((60, 4), (64, 0)):
        prompt = list(range(5, 5 + length))
        (found,) = complete(model, tokenizer, [prompt], max_tokens=20, temperature=0, seed=0, batch_size=1)
        assert len(found.ids) == room
        assert not found.finished


def test_the_models_own_settings_of_sampling_do_not_apply(tokenizer):
    model = make_model(len(tokenizer))
    wanted = complete(model, tokenizer, PROMPTS, max_tokens=8, temperature=0, seed=0, batch_size=3)
    model.generation_config.update(
        do_sample=True, temperature=5.0, top_k=3, repetition_penalty=3.0, num_beams=2
    )
    model.config.use_cache = False
    assert complete(model, tokenizer, PROMPTS, max_tokens=8, temperature=0, seed=0, batch_size=3) == wanted


def test_draws_come_from_the_seed_and_leave_everything_as_it_was(tokenizer):
    model = make_model(len(tokenizer))
    model.train()
    model.lm_head.eval()
    modes = [module.training for module in model.modules()]
    settings = model.generation_config.to_dict(), model.config.to_dict()
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()  # noqa: NPY002

    def draw(seed):
        return complete(model, tokenizer, PROMPTS, max_tokens=12, temperature=1.0, seed=seed, batch_size=3)

    assert draw(1) == draw(1) != draw(2)
    assert draw(1) != complete(model, tokenizer, PROMPTS, max_tokens=12, temperature=0, seed=1, batch_size=3)
    assert [module.training for module in model.modules()] == modes
    assert (model.generation_config.to_dict(), model.config.to_dict()) == settings
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert (np.random.get_state()[1] == states[2]).all()  # noqa: NPY002


def test_the_first_prompts_of_a_cache_each_once(held_out):
    reader = tdpo.open_cache(held_out)
    pairs = list(distinct_prompts(reader))
    assert [pair.row for pair in pairs] == [0, 2, 4, 6, 8, 10]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"sample_temperature": 1.0, "gradient_checkpointing": True},
        {"sample_temperature": 1.0, "lora": 2, "lora_dropout": 0.1, "bf16": True, "other_start": True},
    ],
    ids=["greedy", "sampled", "lora"],
)
def test_training_is_the_same_with_samples_and_without(tmp_path, cache, held_out, options):
    from transformers import AutoTokenizer

    common = {"eval_cache": [f"dev={held_out}", f"again={held_out}"], "max_steps": 2, **options}
    common |= {"eval_steps": 1, "batch_size": 4}
    sampling = {name: common.pop(name) for name in ("sample_temperature",) if name in common}
    fit(cache, tmp_path / "without", **common)
    runs = [tmp_path / name for name in ("with", "again")]
    for run in runs:
        fit(cache, run, samples=3, sample_tokens=24, **common, **sampling)
    logged = [
        [{k: v for k, v in each.items() if "second" not in k and "runtime" not in k and "memory" not in k}
         for each in lines(run / "metrics.jsonl")]
        for run in (tmp_path / "without", *runs)
    ]  # fmt: skip
    assert logged[0] == logged[1] == logged[2]
    samples = lines(runs[0] / "samples.jsonl")
    assert samples == lines(runs[1] / "samples.jsonl")
    assert [sample["step"] for sample in samples] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    records = tdpo.open_cache(held_out).read([0, 2, 4])
    tokenizer = AutoTokenizer.from_pretrained(runs[0])
    for sample, record in zip(samples, 3 * records, strict=True):
        assert sample["pair_id"] == record.pair.pair_id
        assert sample["prompt"] == tokenizer.decode(record.pair.prompt_ids)
        assert sample["chosen"] == tokenizer.decode(record.pair.chosen_ids, skip_special_tokens=True)
    first, last = ([sample["completion"] for sample in samples[at : at + 3]] for at in (0, 6))
    assert first != last


def test_the_last_samples_are_the_saved_policys(tmp_path, cache, held_out):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    fit(cache, tmp_path / "run", eval_cache=str(held_out), max_steps=3, samples=6, sample_tokens=7)
    policy = AutoModelForCausalLM.from_pretrained(tmp_path / "run").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "run")
    last = [sample for sample in lines(tmp_path / "run" / "samples.jsonl") if sample["step"] == 3]
    pairs = list(distinct_prompts(tdpo.open_cache(held_out)))
    assert len(last) == len(pairs) == 6
    for sample, pair in zip(last, pairs, strict=True):
        ids = alone(policy, pair.prompt_ids.tolist(), 7, tokenizer.eos_token_id)
        assert sample["completion"] == tokenizer.decode(ids, skip_special_tokens=True)


def test_a_resumed_run_does_not_repeat_samples(tmp_path, cache, held_out):
    import shutil

    options = {
        "eval_cache": str(held_out), "eval_steps": 2, "save_steps": 2, "max_steps": 4, "samples": 2,
        "sample_tokens": 4,
    }  # fmt: skip
    fit(cache, tmp_path / "run", **options)
    whole = (tmp_path / "run" / "samples.jsonl").read_text()
    shutil.rmtree(tmp_path / "run" / "checkpoint-4")
    with (tmp_path / "run" / "samples.jsonl").open("a") as file:
        file.write('{"step": 4, "pair_')  # cut off by a kill
    fit(cache, tmp_path / "run", resume=True, **options)
    assert (tmp_path / "run" / "samples.jsonl").read_text() == whole


def test_the_console_gets_no_text(tmp_path, cache, held_out, capfd):
    fit(
        cache,
        tmp_path / "run",
        eval_cache=str(held_out),
        max_steps=1,
        samples=2,
        sample_tokens=4,
        quiet=False,
    )
    said = capfd.readouterr().err
    assert said.count("2 samples in") == 2
    assert "samples.jsonl" in said
    for sample in lines(tmp_path / "run" / "samples.jsonl"):
        assert sample["prompt"] not in said


@pytest.mark.parametrize("kind", ["fsdp", "deepspeed"])
def test_a_sharded_policy_cannot_be_sampled_from(kind):
    sharding = Sharding(2, **{kind: True})
    check_samples(FitConfig("dpo"), sharding)
    check_samples(FitConfig("dpo", samples=2), Sharding(2))
    with pytest.raises(tdpo.TdpoError, match=r"--samples 2: .* no process holds the whole policy"):
        check_samples(FitConfig("dpo", samples=2), sharding)
