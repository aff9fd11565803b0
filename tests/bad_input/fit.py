"""Training."""

from .case import Case

FIT = "tdpo fit --plugin tdpo2"


def plain(world):
    world.build("plain", head=0, tail=0)


def other_reference(world):
    world.new_model("other", seed=4)
    world.build("heldout", ref="other")


def a_run(world):
    world.run("tdpo fit --plugin dpo --output mine --max-steps 1")


def moved(world):
    world.edit(
        "tdpo-cache/manifest.json", lambda document: document["provenance"].update(reference="elsewhere")
    )


def other_policy(world):
    world.new_model("other", seed=4)


CASES = (
    Case(
        "a cache without what the objective needs",
        f"{FIT} --cache plain",
        "--cache plain holds no sample of the reference's distributions.*tdpo cache build",
        plain,
    ),
    Case("no evaluation cache", f"{FIT} --eval-cache nowhere", "--eval-cache: no cache at nowhere"),
    Case(
        "an evaluation cache of another reference",
        f"{FIT} --eval-cache heldout",
        "was built otherwise than --cache tdpo-cache .reference",
        other_reference,
    ),
    Case(
        "a reference that is no longer where it was",
        FIT,
        "elsewhere, cannot be opened; give its place with --model",
        moved,
    ),
    Case(
        "a policy far from the reference",
        f"{FIT} --model other --output run",
        "--other-start",
        other_policy,
        keeps=True,
        hide=((r"\d+\.\d+(e-?\d+)?", "N"),),
    ),
    Case(
        "prompts to be shared by an attention backend without masks",
        f"{FIT} --attention flash_attention_2 --prompt-sharing on",
        "--prompt-sharing on: a llama model cannot share prompts: attention backend flash_attention_2",
    ),
    Case(
        "pairs to be packed by an attention backend without masks",
        f"{FIT} --attention flash_attention_2 --packing on",
        "--packing on: a llama model cannot take several pairs in a row: attention backend flash_attention_2",
    ),
    Case("micro-batches of no tokens", f"{FIT} --batch-tokens 0", "batch_tokens=0 is out of range"),
    Case("scores that the cache has not", f"{FIT} --scores judge", "has no scores 'judge'.*tdpo cache add"),
    Case("another reference that was not added", f"{FIT} --reference judge", "has no scores 'judge'"),
    Case("--output is a file", f"{FIT} --output pairs.jsonl", "is a file"),
    Case("--output holds something else", f"{FIT} --output model --overwrite", "holds no run"),
    Case(
        "--output holds another run",
        "tdpo fit --plugin dpo --output mine",
        "--resume, or replace it by --overwrite",
        a_run,
    ),
    Case(
        "--resume with other options",
        "tdpo fit --plugin dpo --output mine --max-steps 1 --learning-rate 1 --resume",
        "was started with learning_rate=1e-06, now it is 1.0",
        a_run,
    ),
)
