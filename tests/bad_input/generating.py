"""Samples of an evaluation.

Nothing is written before an evaluation has come to its end.
"""

from support import make_tokenizer

from .case import Case
from .sampling import reward

EVAL = "tdpo eval model --cache tdpo-cache"
SAMPLED = f"{EVAL} --limit 2 --generate 2 --max-tokens 3"
JUDGED = f"{SAMPLED} --reward scoring:good"
GOOD = "def good(prompts, completions): return [float(len(text)) for text in completions]\n"


def other_tokenizer(world):
    reward(GOOD)(world)
    world.new_model("other", tokenizer=make_tokenizer(extra=["<think>"]))


def few_positions(world):
    reward(GOOD)(world)
    world.new_model("short", max_position_embeddings=2)


def broken_weights(world):
    from support import make_model
    from torch import nan

    reward(GOOD)(world)
    world.copy_model("broken")
    model = make_model(len(make_tokenizer()))
    model.lm_head.weight.data[5] = nan
    model.save_pretrained(world.folder / "broken")


def stopped_generating(world):
    """A model whose own settings of generation are wrong."""
    reward(GOOD)(world)
    world.copy_model("stuck")
    world.edit("stuck/generation_config.json", lambda one: one.update(cache_implementation="no_such_cache"))


def no_causal_model(world):
    from transformers import DistilBertConfig, DistilBertForMaskedLM

    reward(GOOD)(world)
    config = DistilBertConfig(vocab_size=len(make_tokenizer()), dim=16, n_layers=1, n_heads=2, hidden_dim=16)
    DistilBertForMaskedLM(config).save_pretrained(world.folder / "filler")
    make_tokenizer().save_pretrained(world.folder / "filler")


CASES = (
    Case("samples of no prompt", f"{EVAL} --generate 0", "generate=0 is out of range"),
    Case(
        "several samples without chance",
        f"{SAMPLED} --samples-per-prompt 4 --temperature 0",
        "--samples-per-prompt 4: at --temperature 0 a prompt's samples are all the same",
    ),
    Case(
        "a reward where nothing is sampled",
        f"{EVAL} --reward scoring:good",
        "--reward scoring:good: is about samples; say of how many prompts, with --generate N",
    ),
    Case(
        "two rewards of samples",
        f"{JUDGED} --reward-model judge",
        "give --reward MODULE:FUNCTION or --reward-model MODEL, one of the two",
        reward(GOOD),
    ),
    Case(
        "something to win over without a reward",
        f"{SAMPLED} --against chosen",
        "--against chosen: nothing says which sample is better; give --reward",
    ),
    Case(
        "a reward of samples that raises",
        JUDGED,
        "raised KeyError.*it is given lists of prompts and completions",
        reward("def good(prompts, completions): raise KeyError('x')\n"),
    ),
    Case(
        "a reward of samples that returns too few",
        JUDGED,
        "returned 1 scores for 2 completions",
        reward("def good(prompts, completions): return [1.0]\n"),
    ),
    Case(
        "a reward of samples that returns no numbers",
        JUDGED,
        r"what it returned \(list\) holds no numbers; it is given lists of prompts and completions",
        reward("def good(prompts, completions): return completions\n"),
    ),
    Case(
        "a reward of samples that is not finite",
        JUDGED,
        "a score that is not finite",
        reward("def good(prompts, completions): return [float('nan')] * len(prompts)\n"),
    ),
    Case(
        "samples against a model that is none",
        f"{JUDGED} --against nowhere",
        "--against nowhere: no such folder here",
        reward(GOOD),
        hide=((r"\(.*\)", "(...)"),),
    ),
    Case(
        "samples against a model that does not generate",
        f"{JUDGED} --against filler",
        "--against filler: a 'distilbert' model is no causal language model",
        no_causal_model,
    ),
    Case(
        "samples against a model of another tokenizer",
        f"{JUDGED} --against other",
        "--against other: its tokenizer is not the one the cache was built with",
        other_tokenizer,
    ),
    Case(
        "samples against a model without room for them",
        f"{JUDGED} --against short",
        r"--generate 2: all \d+ prompts of .*tdpo-cache have 2 tokens or more",
        few_positions,
    ),
    Case(
        "samples against a model with broken weights",
        f"{JUDGED} --against broken",
        "broken: LlamaForCausalLM gives logits that are not finite",
        broken_weights,
    ),
    Case(
        "samples of a model that generate() does not work with",
        f"{JUDGED} --against stuck",
        "stuck",
        stopped_generating,
    ),
    Case(
        "a reference model that is none",
        f"{SAMPLED} --reference-model nowhere",
        "--reference-model nowhere: no such folder here",
        hide=((r"\(.*\)", "(...)"),),
    ),
    Case(
        "a figure of samples without a reward",
        f"{SAMPLED} --metric samples/reward",
        "--metric samples/reward: there is no such figure",
    ),
)
