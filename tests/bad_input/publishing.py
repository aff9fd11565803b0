"""Runs listed and pushed, and pages of caches.

The hub is told to be out of reach.
"""

from .case import Case

FIT = "tdpo fit --plugin dpo --output runs/mine --max-steps 1"
PAGE = "tdpo cache info --html page.html"


def a_run(world):
    world.run(FIT)


def unfinished(world):
    a_run(world)
    for name in ("model.safetensors", "config.json"):
        (world.folder / "runs" / "mine" / name).unlink()


def cut_checkpoint(world):
    unfinished(world)
    world.cut("runs/mine/checkpoint-1/model.safetensors")


def pushed(world):
    a_run(world)
    world.run("tdpo push runs/mine there")


def something_else(world):
    a_run(world)
    world.write("there/photo.jpg", "mine")


def a_file_in_the_way(world):
    a_run(world)
    world.write("there", "mine")


def no_folder_to_write_into(world):
    a_run(world)
    world.write("taken", "")


def a_folder_here(world):
    a_run(world)
    (world.folder / "me").mkdir()


def no_hub(world):
    a_run(world)
    world.env(HF_HUB_OFFLINE="1")


def spoilt_card(world):
    """With an evaluation, which goes into the card's metadata."""
    a_run(world)
    world.run("tdpo eval runs/mine --cache tdpo-cache --limit 2 --bootstrap 0")
    world.write("runs/mine/README.md", "---\nmodel-index: 3\n---\n")


def no_charts(world):
    world.without("vl_convert")


def taken(world):
    world.write("taken", "")


CASES = (
    Case("runs of no folder", "tdpo runs", "runs: no such folder; give the folder that holds the runs"),
    Case("a folder without runs", "tdpo runs model", "model: holds no run of tdpo fit"),
    Case(
        "runs sorted by an unknown figure",
        "tdpo runs --sort rewards/margin",
        "--sort rewards/margin: none of these runs logged it; did you mean 'rewards/margins'",
        a_run,
    ),
    Case(
        "an unknown figure of runs",
        "tdpo runs --metric accuracy",
        "--metric accuracy: none of these runs logged it",
        a_run,
    ),
    Case("a push of no run", "tdpo push model there", "model: is no run of tdpo fit"),
    Case("a push of a cache", "tdpo push tdpo-cache there", "it is a cache: see tdpo cache info"),
    Case(
        "a push of an unfinished run",
        "tdpo push runs/mine there",
        "runs/mine: has not come to its end .*--resume, or push one of its checkpoints with --checkpoint N",
        unfinished,
    ),
    Case(
        "a push of a checkpoint that is not there",
        "tdpo push runs/mine there --checkpoint 7",
        "--checkpoint 7: runs/mine has no checkpoint of that step; there are 1",
        unfinished,
    ),
    Case(
        "a push of a checkpoint that was cut short",
        "tdpo push runs/mine there --checkpoint 1",
        "holds no whole model",
        cut_checkpoint,
    ),
    Case(
        "a push over a model",
        "tdpo push runs/mine there",
        "there: holds a model already.*--overwrite",
        pushed,
    ),
    Case(
        "a push over something else",
        "tdpo push runs/mine there --overwrite",
        "there: holds photo.jpg, which no push has written",
        something_else,
    ),
    Case("a push into a file's place", "tdpo push runs/mine there", "there: is a file", a_file_in_the_way),
    Case(
        "a push into the run's own folder",
        "tdpo push runs/mine runs/mine/out",
        "is the run's own folder",
        a_run,
    ),
    Case(
        "a push that cannot be written",
        "tdpo push runs/mine ./taken/there",
        "TARGET ./taken/there: .*choose a folder that can be written",
        no_folder_to_write_into,
    ),
    Case(
        "a push to what may be a folder or a repository",
        "tdpo push runs/mine me/dpo",
        "Write hf://me/dpo for the one, ./me/dpo for the other",
        a_folder_here,
    ),
    Case("a push to no repository", "tdpo push runs/mine hf://dpo", "is named USER/NAME", a_run),
    Case(
        "a private folder",
        "tdpo push runs/mine there --private",
        "--private: .*no repository on the hub",
        a_run,
    ),
    Case(
        "a push to a hub that is out of reach",
        "tdpo push runs/mine me/dpo",
        "cannot push to me/dpo on the hub: the hub is switched off",
        no_hub,
    ),
    Case(
        "a push with a card whose metadata are spoilt",
        "tdpo push runs/mine there",
        "README.md: its metadata cannot be read",
        spoilt_card,
    ),
    Case("a page of no cache", f"{PAGE} model", "is not a cache"),
    Case(
        "a page of a cache without the library of its charts",
        PAGE,
        r"pip install 'tdpo\[report\]'",
        no_charts,
    ),
    Case(
        "a page of a cache that cannot be written",
        "tdpo cache info --html taken/page.html",
        "--html taken/page.html: .*choose a file that can be written",
        taken,
    ),
    Case(
        "pictures of a cache in a file's place",
        f"{PAGE} --png taken",
        "--png taken: .*choose a folder that can be written",
        taken,
        keeps=True,
    ),
    Case("--no-text without a page", "tdpo cache info --no-text", "--no-text: is for the page"),
)
