"""`tdpo cache plan`: what it says of a build that has not begun is what the build then shows."""

import json

import pytest
from bad_input.provoke import run_command
from click.testing import CliRunner
from support import make_model, make_tokenizer, write_pairs

import tdpo
from tdpo.core.caching.planning.cost import ModelCost
from tdpo.core.cli import tdpo as command_line
from tdpo.core.errors import ConfigError
from tdpo.core.models import find_model

# Every position keeps all its entries: how sure the reference is does not matter.
FIXED = {"head_mass": 1.0, "tail_mass": 0.0}


def plan(reference, pairs, **options):
    return tdpo.plan_cache(reference, pairs, quiet=True, tokens_per_second=1000.0, **options)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """300 pairs, some rows among them that cannot be used."""
    path = write_pairs(tmp_path_factory.mktemp("mixed") / "mixed.jsonl", 300, seed=5)
    with path.open("a") as file:
        for row in ({"prompt": "a", "chosen": "", "rejected": " b"}, {"prompt": "a", "rejected": " b"}):
            file.write(json.dumps(row) + "\n")
    return path


def test_counts_are_those_of_the_build(tmp_path, reference, mixed):
    said = plan(reference, mixed, shard_rows=64)
    built = tdpo.build_cache(reference, mixed, tmp_path / "c", shard_rows=64, quiet=True).manifest
    assert (said.pairs, said.prompt_tokens, said.completion_tokens) == (
        built.rows,
        built.prompt_tokens,
        built.completion_tokens,
    )
    assert said.shards == built.shard_count == 5
    assert said.skipped == {reason: found.count for reason, found in built.skipped.items()} != {}
    assert not said.refused
    assert said.longest == max(
        len(one.pair.prompt_ids) + max(len(one.pair.chosen_ids), len(one.pair.rejected_ids))
        for one in tdpo.open_cache(tmp_path / "c")
    )


@pytest.mark.parametrize(
    "options",
    [
        {**FIXED},
        {**FIXED, "shard_rows": 16},
        {**FIXED, "shard_rows": 7, "head": 2, "tail": 1},
        {**FIXED, "head": 40, "tail": 0},
        {"distribution": "none"},
        {"distribution": "exact"},
        {"distribution": "exact", "hidden_dtype": "bfloat16", **FIXED, "head": 4, "tail": 4},
        {"distribution": "full"},
    ],
    ids=lambda options: " ".join(f"{name}={value}" for name, value in options.items()),
)
def test_bytes_are_within_15_percent(tmp_path, reference, mixed, options):
    said = plan(reference, mixed, **options)
    built = tdpo.build_cache(reference, mixed, tmp_path / "c", quiet=True, **options).manifest
    assert said.bytes == pytest.approx(built.bytes, rel=0.15)
    assert said.bytes_at_most == pytest.approx(said.bytes, rel=0.01)
    head = tmp_path / "c" / "reference_head.safetensors"
    assert said.head_bytes == pytest.approx(head.stat().st_size if head.exists() else 0, rel=0.02)


def test_bytes_of_an_adaptive_sample_are_bounded_and_near_for_a_reference_that_is_sure(tmp_path, mixed):
    tokenizer = make_tokenizer()
    for name, spread, near in (("sure", 0.8, True), ("unsure", 0.1, False)):
        folder = tmp_path / name
        make_model(len(tokenizer), initializer_range=spread).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        said = plan(folder, mixed)
        built = tdpo.build_cache(folder, mixed, tmp_path / f"{name}-cache", quiet=True).manifest
        assert said.bytes <= said.bytes_at_most
        assert built.bytes <= 1.05 * said.bytes_at_most
        if near:
            assert said.bytes == pytest.approx(built.bytes, rel=0.15)


@pytest.mark.parametrize("options", [{}, {"tie_word_embeddings": True}], ids=["untied", "tied"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_weights_take_what_the_loaded_model_takes(tmp_path, options, dtype):
    import torch

    model = make_model(200, **options)
    model.save_pretrained(tmp_path)
    cost = ModelCost.of(find_model(str(tmp_path), option="--ref"), dtype)
    loaded = type(model).from_pretrained(tmp_path, dtype=getattr(torch, dtype))
    assert cost.weights == sum(p.numel() * p.element_size() for p in loaded.parameters())


def test_arithmetic_is_what_pytorch_counts(tmp_path):
    """The count of a forward pass over one sequence, logits of every token included."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    length = 64
    model = make_model(200, hidden_size=64, intermediate_size=128)
    model.set_attn_implementation("eager")  # the others' kernels are not counted
    model.save_pretrained(tmp_path)
    cost = ModelCost.of(find_model(str(tmp_path), option="--ref"), "float32")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(input_ids=torch.zeros(1, length, dtype=torch.long))
    # PyTorch counts all of the attention's square, of which a causal one needs half.
    square = cost.attention_flops * length * length / 2
    assert cost.flops(length, length, length) + square == pytest.approx(counter.get_total_flops(), rel=0.02)


def test_no_weights_are_opened_and_nothing_is_written(tmp_path, reference, pairs):
    for path in reference.iterdir():
        text = b"not weights" if path.suffix == ".safetensors" else path.read_bytes()
        (tmp_path / path.name).write_bytes(text)
    before = sorted(path.name for path in tmp_path.iterdir())
    said = plan(tmp_path, pairs, out=tmp_path / "cache")
    assert said.pairs == 48
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_a_sample_is_extrapolated_and_says_so(reference, mixed):
    whole, part = plan(reference, mixed), plan(reference, mixed, sample=150)
    assert not whole.sampled
    assert part.sampled
    assert (part.rows, part.rows_read, part.pairs) == (302, 150, 302)
    for name in ("completion_tokens", "prompt_tokens", "bytes", "seconds"):
        assert getattr(part, name) == pytest.approx(getattr(whole, name), rel=0.1)
    assert "about" in str(part).splitlines()[0]
    assert "from       the first 150 of 302 rows" in str(part)
    assert plan(reference, mixed, sample=10_000).sampled is False


def test_time_is_tokens_over_the_rate_given(reference, pairs):
    said = plan(reference, pairs)
    assert said.seconds == said.scored_tokens / 1000
    assert said.flops_per_second is None
    twice = plan(reference, pairs, prompt_sharing="off")
    assert twice.scored_tokens == 2 * twice.prompt_tokens + twice.completion_tokens
    assert said.scored_tokens == said.prompt_tokens + said.completion_tokens - 2 * said.pairs


def test_time_is_told_from_this_machine_otherwise(reference, pairs):
    said = tdpo.plan_cache(reference, pairs, quiet=True)
    assert said.flops_per_second > 0
    assert said.seconds == pytest.approx(said.flops / said.flops_per_second)
    assert "if it runs like a matrix product does here" in str(said)


def test_rows_in_memory_and_what_the_build_would_refuse(reference):
    good = {"prompt": "the film", "chosen": " was great", "rejected": " was bad"}
    said = plan(reference, [good, {**good, "chosen": None}])
    assert (said.rows, said.pairs, said.refused) == (2, 1, True)
    assert "more than --max-skipped allows" in str(said)
    with pytest.raises(ConfigError, match="--sample"):
        plan(reference, [good], sample=0)


def test_the_command(reference, pairs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["cache", "plan", "--ref", str(reference), "--dataset", str(pairs), "--tokens-per-second", "50"]
    printed = CliRunner().invoke(command_line, words)
    assert "48 pairs in one shard (an estimate; nothing is loaded yet)" in printed.output
    assert "at 50 tokens/s as given" in printed.output
    document = json.loads(CliRunner().invoke(command_line, [*words, "--json"]).stdout)
    assert document["pairs"] == 48
    assert document["estimate"] is True
    assert document["memory"]["weights"] > 0
    of_part = CliRunner().invoke(command_line, [*words, "--part", "1/4"]).output
    assert "of the whole cache; part 1/4 takes its share of it" in of_part
    assert run_command("tdpo cache plan --ref nowhere --dataset pairs.jsonl").code == 2
