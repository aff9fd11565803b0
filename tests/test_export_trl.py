"""TRL's DPOTrainer from an exported cache: the same tokens, references and losses as with a reference of its
own. Runs where trl is installed (the `bench` environment of tox)."""

import json
import math
import shutil

import pytest
import torch
from support import make_model, make_tokenizer, sentence

pytest.importorskip("trl")

import datasets
from trl import DPOConfig, DPOTrainer

import tdpo

BETA = 0.1


@pytest.fixture(scope="module")
def export(tmp_path_factory, cache):
    folder = tmp_path_factory.mktemp("export") / "pairs"
    tdpo.export_cache(cache, folder)
    return folder


@pytest.fixture(scope="module")
def recipe(tmp_path_factory, export):
    """Names that the card's code defines, run in a copy of the folder."""
    code = (export / "README.md").read_text().split("```python\n")[1].split("```")[0]
    # TRL computes in bfloat16 unless told otherwise, and refuses to on a CPU.
    code = code.replace("max_length=None", f"max_length=None, bf16={torch.cuda.is_available()}")
    folder = shutil.copytree(export, tmp_path_factory.mktemp("recipe") / "pairs")
    names = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", folder / "hf")
        exec(compile(code, "README.md", "exec"), names)
    return names


@pytest.fixture(scope="module")
def exported(tmp_path_factory, export):
    cache_dir = str(tmp_path_factory.mktemp("hf"))
    return datasets.load_dataset(str(export), split="train", cache_dir=cache_dir)


@pytest.fixture
def raw(pairs):
    return datasets.Dataset.from_list([json.loads(line) for line in pairs.read_text().splitlines()])


def policy(vocab_size):
    """Not the reference: taking the policy for its own reference would give a first loss of ln 2."""
    return make_model(vocab_size, seed=7)


def arguments(folder, **options):
    return DPOConfig(
        str(folder),
        **{
            "precompute_ref_log_probs": True,
            "max_length": None,
            "beta": BETA,
            "learning_rate": 1e-3,
            "lr_scheduler_type": "constant",
            "max_steps": 3,
            "per_device_train_batch_size": 16,
            "train_sampling_strategy": "sequential",
            "logging_steps": 1,
            "bf16": False,
            "gradient_checkpointing": False,
            "use_cpu": True,
            "save_strategy": "no",
            "report_to": "none",
            "disable_tqdm": True,
            "seed": 0,
            **options,
        },
    )


def from_cache(recipe, exported, folder, **options):
    tokenizer = make_tokenizer()
    return recipe["FromCache"](
        policy(len(tokenizer)),
        args=arguments(folder, **options),
        train_dataset=exported,
        processing_class=tokenizer,
    )


def from_raw(raw, folder, **options):
    tokenizer = make_tokenizer()
    return DPOTrainer(
        policy(len(tokenizer)),
        ref_model=make_model(len(tokenizer)),
        args=arguments(folder, **options),
        train_dataset=raw,
        processing_class=tokenizer,
    )


def losses(trainer):
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def test_the_code_of_the_card_trains_as_written(recipe):
    trainer = recipe["trainer"]
    assert trainer.ref_model is None
    assert trainer.state.global_step == trainer.state.max_steps > 0
    assert math.isfinite(trainer.state.log_history[0]["loss"])


def test_trl_tokenises_the_raw_data_as_the_cache_did(raw, exported, tmp_path):
    theirs = from_raw(raw, tmp_path).train_dataset
    for column in ("prompt_ids", "chosen_ids", "rejected_ids"):
        assert list(theirs[column]) == list(exported[column])


def test_the_sums_are_those_that_trl_computes(raw, exported, tmp_path):
    theirs = from_raw(raw, tmp_path).train_dataset
    for column in ("ref_chosen_logps", "ref_rejected_logps"):
        assert list(exported[column]) == pytest.approx(list(theirs[column]), rel=1e-6, abs=1e-4)


def test_training_from_the_export_repeats_trls_own_training_with_its_reference(
    recipe, raw, exported, tmp_path
):
    mine, theirs = from_cache(recipe, exported, tmp_path / "a"), from_raw(raw, tmp_path / "b")
    assert mine.ref_model is None
    ours = losses(mine)
    assert len(ours) == 3
    assert ours == pytest.approx(losses(theirs), abs=1e-5)
    assert abs(ours[0] - math.log(2)) > 0.01
    for a, b in zip(mine.model.parameters(), theirs.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-4)


def test_the_first_loss_is_that_of_our_objective_on_the_cache(recipe, exported, cache, tmp_path):
    from tdpo.core.objective import Completions
    from tdpo.core.scoring.layout import completion_mask, lay_out, to_padded

    records = tdpo.open_cache(cache).read(range(16))
    layout = lay_out([record.pair for record in records])
    model = policy(len(make_tokenizer()))
    with torch.no_grad():
        z = model(layout.input_ids, attention_mask=layout.attention_mask).logits.flatten(0, 1)
    logp = z[layout.positions].log_softmax(-1).gather(1, layout.labels[:, None])[:, 0]
    flat = torch.cat(
        [
            torch.tensor(side.ref_logp)
            for side in (*[r.chosen for r in records], *[r.rejected for r in records])
        ]
    )
    mask = completion_mask(layout.lengths)
    sides = [
        Completions(mask=mask[rows], logp=to_padded(logp, mask)[rows], ref_logp=to_padded(flat, mask)[rows])
        for rows in (slice(16), slice(16, None))
    ]
    expected = tdpo.objective("dpo", beta=BETA)(*sides).loss.mean().item()
    assert losses(from_cache(recipe, exported, tmp_path))[0] == pytest.approx(expected, abs=1e-5)


def test_training_from_the_export_repeats_tdpo_fit_from_the_cache(recipe, exported, cache, tmp_path):
    """With all pairs in every step the order of the data does not matter."""
    tokenizer = make_tokenizer()
    policy(len(tokenizer)).save_pretrained(tmp_path / "policy")
    tokenizer.save_pretrained(tmp_path / "policy")
    tdpo.fit(
        plugin="dpo",
        cache=str(cache),
        model=str(tmp_path / "policy"),
        output=str(tmp_path / "run"),
        set={"beta": BETA},
        learning_rate=1e-3,
        schedule="constant",
        batch_size=len(exported),
        max_steps=3,
        logging_steps=1,
        other_start=True,
    )
    events = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    ours = [event["loss"] for event in events if "loss" in event]
    theirs = losses(from_cache(recipe, exported, tmp_path / "trl", per_device_train_batch_size=len(exported)))
    assert theirs == pytest.approx(ours, abs=1e-5)


def test_a_conversation_through_a_chat_template_has_trls_tokens(tmp_path, reference):
    """The other form that TRL tokenises by itself: lists of messages, whose completions it does not end."""
    import random

    rng = random.Random(3)
    template = (
        "{% for m in messages %}<s>{{ m.role }} {{ m.content }}</s>{% endfor %}"
        "{% if add_generation_prompt %}<s>assistant {% endif %}"
    )
    model = shutil.copytree(reference, tmp_path / "model")
    tokenizer = make_tokenizer()
    tokenizer.chat_template = template
    tokenizer.save_pretrained(model)

    def said(role):
        return [{"role": role, "content": sentence(rng, rng.randint(2, 6))}]

    rows = [
        {"prompt": said("user"), "chosen": said("assistant"), "rejected": said("assistant")} for _ in range(8)
    ]
    file = tmp_path / "chat.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    tdpo.build_cache(model, file, tmp_path / "cache", quiet=True)
    tdpo.export_cache(tmp_path / "cache", tmp_path / "export", format="arrow")
    exported = datasets.load_from_disk(str(tmp_path / "export"))
    trainer = DPOTrainer(
        make_model(len(tokenizer)),
        args=arguments(tmp_path),
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=tokenizer,
    )
    for column in ("prompt_ids", "chosen_ids", "rejected_ids"):
        assert list(trainer.train_dataset[column]) == list(exported[column])
    for column in ("ref_chosen_logps", "ref_rejected_logps"):
        assert list(exported[column]) == pytest.approx(list(trainer.train_dataset[column]), abs=1e-4)
