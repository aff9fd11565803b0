"""What `tdpo plan` is given."""

from .case import Case

PLAN = "tdpo plan --gpu-memory 24GB"


def other_vocabulary(world):
    world.copy_model("wider")
    world.edit("wider/config.json", lambda document: document.update(vocab_size=9_999))


CASES = (
    Case(
        "a GPU of a size that is none",
        "tdpo plan --gpu-memory '24 potatoes'",
        "--gpu-memory 24 potatoes: is no size; give a number with its unit, such as 24GB",
    ),
    Case("a plan for no cache", f"{PLAN} --cache nowhere", "no cache at nowhere"),
    Case("a plan for no model", f"{PLAN} --model nowhere", "--model nowhere: no such folder here"),
    Case(
        "a plan for a model that is not the cache's",
        f"{PLAN} --model wider",
        "has 9999 logits where the cache's reference has",
        other_vocabulary,
    ),
    Case(
        "a plan of quantised weights that would be trained themselves",
        f"{PLAN} --quantization 4bit",
        "cannot be trained itself; add --lora RANK",
    ),
)
