"""Evaluating runs.

Nothing is written before an evaluation has come to its end.
"""

import json
import shutil

import numpy as np
from support import make_tokenizer

from .case import Case

MINE = "tdpo eval mine"
GIVEN = "tdpo eval model --cache tdpo-cache"


def a_run(world, **options):
    """A run that was evaluated on the cache while training: as tdpo fit leaves it, but untrained."""
    world.copy_model("mine")
    fit = {"plugin": "dpo", "cache": "tdpo-cache", "eval_cache": "tdpo-cache", **options}
    world.write("mine/tdpo.yaml", json.dumps({"fit": fit}))


def unevaluated(world):
    a_run(world, eval_cache=[])


def unfinished(world):
    a_run(world)
    world.write("mine/metrics.jsonl", json.dumps({"step": 40, "loss": 0.5}))
    world.path("mine/checkpoint-40/config.json").write_bytes((world.folder / "mine/config.json").read_bytes())
    (world.folder / "mine" / "config.json").unlink()


def another_cache(world):
    a_run(world)
    record = {"evaluation": {"": {"base": {**world.manifest["identity"], "dataset": "other"}}}}
    world.write("mine/run.json", json.dumps(record))


def other_plugin(world):
    a_run(world, plugin="my-own")


def no_sample(world):
    a_run(world, plugin="tdpo2", eval_cache="plain")
    world.rows("few.jsonl", world.good_rows(4))
    world.build("plain", dataset="few.jsonl", distribution="none")


def other_tokenizer(world):
    world.new_model("other", tokenizer=make_tokenizer(extra=["<think>"]))


def few_positions(world):
    world.new_model("short", max_position_embeddings=12)


def broken_weights(world):
    from safetensors.numpy import load_file, save_file

    shutil.copytree(world.materials.reference, world.folder / "broken")
    weights = load_file(world.folder / "broken" / "model.safetensors")
    weights["model.embed_tokens.weight"][20:] = np.nan
    save_file(weights, world.folder / "broken" / "model.safetensors", metadata={"format": "pt"})


def columns(world):
    rows = world.good_rows(48)
    world.rows("all.jsonl", [{"topic": f"topic {at}", "loss": 1} for at in range(len(rows))])
    world.rows("words.jsonl", [{"row": at, "topic": "ab"[at % 2], "pages": [1]} for at in range(48)])
    world.rows("more.jsonl", [{"row": at, "topic": "a"} for at in range(60)])
    world.rows("few.jsonl", [{"topic": "a"}] * 3)
    world.rows("twice.jsonl", [{"row": 1, "topic": "a"}, {"row": 1, "topic": "b"}])
    world.rows("others.jsonl", [{"pair_id": "0" * 32, "topic": "a"}])


def a_file(world):
    world.write("taken", "something else")


CASES = (
    Case(
        "no such run", "tdpo eval runs/dpo", "runs/dpo: no such folder; give the folder that tdpo fit wrote"
    ),
    Case("a cache in a run's place", "tdpo eval tdpo-cache", "is no run of tdpo fit.*it is a cache"),
    Case(
        "a model and no cache",
        "tdpo eval model",
        "is a model and no run of tdpo fit: say on what with --cache",
    ),
    Case(
        "neither a folder nor a model on the hub",
        "tdpo eval modle --cache tdpo-cache",
        "RUN modle: no such folder here, and no model of that name",
    ),
    Case(
        "a run that was not evaluated while training",
        MINE,
        "was not evaluated on a cache while training: say on what with --cache DIR",
        unevaluated,
    ),
    Case("no such cache", "tdpo eval model --cache nowhere", "nowhere"),
    Case(
        "two caches of one name",
        "tdpo eval model --cache dev=tdpo-cache --cache dev=tdpo-cache",
        "--cache dev=tdpo-cache: another one is named 'dev'",
    ),
    Case(
        "an evaluation cache that was built anew",
        MINE,
        "is not the cache that mine was made from .dataset.*give the one that was with --cache",
        another_cache,
        hide=((r'"[0-9a-f]{64}"', "SHA256"), (r"\{.*?\}", "...")),
    ),
    Case(
        "a run that has not come to its end",
        MINE,
        "has no saved model.*evaluate mine/checkpoint-40 with --model, or go on with tdpo fit --resume",
        unfinished,
    ),
    Case("a run whose plugin is not installed any more", MINE, "my-own", other_plugin),
    Case(
        "an evaluation on a cache without what the objective needs",
        MINE,
        "plain holds no sample of the reference's distributions, which --plugin tdpo2 needs",
        no_sample,
    ),
    Case(
        "a model with another tokenizer",
        "tdpo eval other --cache tdpo-cache",
        "RUN other: its tokenizer is not the one the cache was built with",
        other_tokenizer,
    ),
    Case(
        "a model with fewer positions than the cache's sequences",
        "tdpo eval short --cache tdpo-cache",
        "row .* is a sequence of .* tokens and short takes 12",
        few_positions,
    ),
    Case(
        "a policy whose weights are NaN",
        "tdpo eval broken --cache tdpo-cache",
        "broken: its logps/chosen of pair [0-9a-f]{32} is nan",
        broken_weights,
        hide=((r"[0-9a-f]{32}", "ID"),),
    ),
    Case(
        "no figure of that name",
        f"{GIVEN} --metric rewards/accuracy",
        "--metric rewards/accuracy: there is no such figure; did you mean 'rewards/accuracies'",
    ),
    Case(
        "a condition on no figure",
        f"{GIVEN} --require 'kl/chosn<1'",
        "there is no figure 'kl/chosn'; did you mean 'kl/chosen'",
    ),
    Case(
        "a condition that is none",
        f"{GIVEN} --require rewards/accuracies=0.6",
        "--require rewards/accuracies=0.6: expected FIGURE>=NUMBER",
    ),
    Case(
        "a condition on an interval that there is not",
        f"{GIVEN} --require 'loss.high<1' --bootstrap 0",
        "there are no intervals with --bootstrap 0",
    ),
    Case(
        "slices by no column",
        f"{GIVEN} --slice prompt_length",
        "--slice prompt_length: there is no such column.*--columns FILE",
    ),
    Case(
        "no bins", f"{GIVEN} --slice row=0", "--slice row=0: expected COLUMN, or COLUMN=BINS with at least 1"
    ),
    Case(
        "words in bins",
        f"{GIVEN} --columns words.jsonl --slice topic=3",
        "--slice topic=3: topic holds no numbers to put into bins",
        columns,
    ),
    Case("columns of no file", f"{GIVEN} --columns none.jsonl", "--columns none.jsonl: no such file"),
    Case(
        "columns in the order of other data",
        f"{GIVEN} --columns few.jsonl",
        "has 3 rows and neither a column pair_id nor row, and tdpo-cache was built from 48 rows",
        columns,
    ),
    Case(
        "columns of other pairs",
        f"{GIVEN} --columns others.jsonl",
        "its column pair_id has none of the pairs of tdpo-cache",
        columns,
    ),
    Case("columns with a pair twice", f"{GIVEN} --columns twice.jsonl", "row 1 comes twice", columns),
    Case(
        "columns whose name is taken",
        f"{GIVEN} --columns words.jsonl --columns more.jsonl",
        "its column 'topic' is also one of words.jsonl; rename it",
        columns,
    ),
    Case(
        "columns named as a figure is",
        f"{GIVEN} --columns all.jsonl",
        "its column 'loss' is also one of the evaluation",
        columns,
    ),
    Case("a run given twice", "tdpo eval model model --cache tdpo-cache", "RUN model: is given twice"),
    Case(
        "one policy for two runs",
        "tdpo eval model mine --cache tdpo-cache --model model",
        "--model model: takes the place of the policy of one RUN",
        a_run,
    ),
    Case(
        "options for the run's own objective",
        f"{MINE} --set beta=0.2",
        "--set beta: the run has its own options.*--plugin NAME",
        a_run,
    ),
    Case(
        "a weighting of no objective",
        f"{GIVEN} --weighting mallows",
        "--weighting mallows: say of which objective, with --plugin NAME",
    ),
    Case("a confidence above 1", f"{GIVEN} --confidence 95", "--confidence=95.0 is out of range"),
    Case("results where a file is", f"{GIVEN} --out taken", "--out taken: is a file; choose another", a_file),
)
