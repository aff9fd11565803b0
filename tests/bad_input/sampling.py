"""Data out of a model: prompts and rewards."""

import json
import shutil
import sys

from support import make_judge

from .case import Case

SAMPLE = "tdpo data sample --model model --prompts prompts.jsonl --out drawn.jsonl --max-tokens 4"


def prompts(*rows):
    def prepare(world):
        world.rows("prompts.jsonl", rows or [{"prompt": "the film was"}])

    return prepare


def reward(source):
    def prepare(world):
        prompts()(world)
        # A name of its own: a module is imported once.
        world.write("scoring.py", source)
        sys.modules.pop("scoring", None)
        world.during.callback(sys.modules.pop, "scoring", None)
        world.during.callback(_forget, str(world.folder))

    return prepare


def _forget(folder):
    sys.path[:] = [place for place in sys.path if place != folder]


def judge(positions=64, outputs=1, template=None, rows=()):
    """A reward model ``judge``, beside prompts."""

    def prepare(world):
        prompts(*rows)(world)
        make_judge(world.folder / "judge", template=template, positions=positions, outputs=outputs)

    return prepare


def chatting(world):
    """Prompts that are conversations with a tool's turn, which the reward model's template refuses."""
    turns = [{"role": "user", "content": "the film"}, {"role": "tool", "content": "good"}]
    template = "{% if messages[1].role == 'tool' %}{{ raise_exception('no tools') }}{% endif %}x"
    judge(template=template, rows=[{"prompt": turns}])(world)
    folder = world.folder / "model"
    target = folder.resolve()
    folder.unlink()
    shutil.copytree(target, folder)
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    settings["chat_template"] = "{% for m in messages %}{{ m.content }} {% endfor %}"
    path.write_text(json.dumps(settings))


CASES = (
    Case("no reward", SAMPLE, "give --reward MODULE:FUNCTION or --reward-model MODEL", prompts()),
    Case(
        "a reward that is no function's name",
        f"{SAMPLE} --reward scoring",
        "expected MODULE:FUNCTION",
        prompts(),
    ),
    Case(
        "a reward that cannot be imported",
        f"{SAMPLE} --reward scoring_nowhere:good",
        "ModuleNotFoundError",
        prompts(),
    ),
    Case(
        "a reward that raises",
        f"{SAMPLE} --reward scoring:good",
        "raised KeyError.*it is given lists of prompts and completions",
        reward("def good(prompts, completions): raise KeyError('x')\n"),
        keeps=True,
    ),
    Case(
        "a reward that is not finite",
        f"{SAMPLE} --reward scoring:good",
        "a score that is not finite",
        reward("def good(prompts, completions): return [float('nan')] * len(prompts)\n"),
        keeps=True,
    ),
    Case(
        "a reward model that is none",
        f"{SAMPLE} --reward-model nowhere",
        "--reward-model nowhere: does not load",
        prompts(),
        hide=((r"\(.*\)", "(...)"),),
    ),
    Case(
        "a reward model of several numbers",
        f"{SAMPLE} --reward-model judge",
        "gives 3 numbers a text",
        judge(outputs=3),
    ),
    Case(
        "a text longer than the reward model takes",
        f"{SAMPLE} --reward-model judge",
        r"takes 3 tokens, and a prompt with its completion has \d+",
        judge(positions=3),
        hide=((r"has \d+", "has 7"),),
        keeps=True,
    ),
    Case(
        "a conversation that the reward model's template refuses",
        f"{SAMPLE} --reward-model judge",
        "its chat template does not render a prompt with its answer.*no tools",
        chatting,
        keeps=True,
    ),
    Case(
        "prompts without a prompt",
        f"{SAMPLE} --reward scoring:good",
        "row 0 has no `prompt`",
        prompts({"text": "the film"}),
    ),
    Case(
        "an embedding model that is none",
        "tdpo cache add --name embedding --statistic prompt_embedding --set model=nowhere",
        "prompt_embedding: model nowhere: does not load",
        hide=((r"\(.*\)", "(...)"),),
    ),
)
