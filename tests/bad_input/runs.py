"""Going on with a run, and runs that cannot go on.

A run that cannot go on keeps the checkpoints that it has written.
"""

from trouble_plugin import Hooks

from tdpo.core.registry import plugin_manager

from .case import Case

RUN = "tdpo fit --plugin dpo --output mine --max-steps 1"
HASHES = ((r"[0-9a-f]{64}", "SHA256"),)


def a_run(world):
    world.run(RUN)


def another_cache(world):
    a_run(world)
    world.rows("few.jsonl", world.good_rows(20))
    world.build("few", dataset="few.jsonl")


def another_model(world):
    world.run(f"{RUN} --other-start --model model")
    world.new_model("other", seed=4)


def no_record(world):
    a_run(world)
    (world.folder / "mine" / "run.json").unlink()


def few_positions(world):
    world.new_model("short", max_position_embeddings=12)


def plugin(world):
    hooks = Hooks()
    plugin_manager().register(hooks, name="lab 1.0")
    world.during.callback(plugin_manager().unregister, hooks)


CASES = (
    Case(
        "--resume with another hyperparameter",
        f"{RUN} --resume --set beta=0.2",
        "beta: the run has 0.1",
        a_run,
    ),
    Case(
        "--resume with another plugin",
        "tdpo fit --plugin tdpo2 --output mine --max-steps 1 --resume",
        "was started with another objective",
        a_run,
    ),
    Case(
        "--resume with another cache",
        f"{RUN} --resume --cache few",
        "was started with another cache .*give the same --cache",
        another_cache,
        hide=HASHES,
    ),
    Case(
        "--resume with another model",
        f"{RUN} --other-start --model other --resume",
        "was started with another model .weights_sha256",
        another_model,
        hide=HASHES,
    ),
    Case(
        "--resume with other pairs in a step",
        f"{RUN} --resume --batch-size 4",
        "8 pairs an optimiser step, now it is 4",
        a_run,
    ),
    Case(
        "--resume of a run without its record", f"{RUN} --resume", "mine has no readable run.json", no_record
    ),
    Case(
        "--resume from checkpoints of the model alone",
        f"{RUN} --resume --set training.save_only_model=true",
        "save_only_model",
        a_run,
    ),
    Case(
        "a sequence longer than the policy's positions",
        "tdpo fit --plugin dpo --model short --other-start",
        "row .* is a sequence of .* tokens and short takes 12.*--max-length 12",
        few_positions,
    ),
    Case(
        "a loss that becomes infinite",
        "tdpo fit --plugin dpo --output run --learning-rate 1e30 --set training.logging_first_step=false",
        "step 2: the loss is NaN or infinite on . of 8 pairs: .*lower --learning-rate",
        keeps=True,
        hide=((r"\d of 8", "N of 8"), (r"[0-9a-f]{32}.*?;", "ID, ID, ...;")),
    ),
    Case(
        "weights that become infinite",
        "tdpo fit --plugin dpo --output run --learning-rate 3e37 --save-steps 1 "
        "--set training.weight_decay=9 --set training.logging_first_step=false",
        "step 1: weights of the policy became NaN or infinite",
        keeps=True,
    ),
    Case(
        "a step that takes more memory than there is",
        "tdpo fit --plugin large --output run",
        "memory does not suffice for a micro-batch of 8 pairs.*tdpo plan",
        plugin,
        keeps=True,
    ),
    Case(
        "a loss that compares the pairs of a step, in several micro-batches",
        "tdpo fit --plugin centred --gradient-accumulation 2",
        "--gradient-accumulation 2: with --plugin centred",
        plugin,
    ),
)
