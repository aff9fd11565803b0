"""Parts, added statistics and exports."""

import shutil

from .case import Case

ADD = "tdpo cache add --name more"
EXPORT = "tdpo cache export --out data"


def parts(*indices, **options):
    def prepare(world):
        for index in indices:
            world.build(f"part{index}", shard_rows=16, part=f"{index}/3", **options)

    return prepare


def twice(world):
    parts(1)(world)
    shutil.copytree(world.folder / "part1", world.folder / "copy")


def of_another_cache(world):
    parts(1)(world)
    parts(2, seed=7)(world)


def unfinished_part(world):
    parts(1)(world)
    world.unfinish("part1")


def sample_there(world):
    world.run("tdpo cache add --name more --head 12 --tail 4")


def unfinished(world):
    world.unfinish("tdpo-cache")


def exported(world):
    world.run(EXPORT)


CASES = (
    Case("nothing to merge", "tdpo cache merge --out whole", "PART"),
    Case(
        "a part that is missing",
        "tdpo cache merge part1 part3 --out whole",
        "part 2/3 is missing",
        parts(1, 3),
    ),
    Case("a part given twice", "tdpo cache merge part1 part1 --out whole", "part1 is given twice", parts(1)),
    Case("a copy of a part", "tdpo cache merge part1 copy --out whole", "are both part 1/3", twice),
    Case("a whole cache among the parts", "tdpo cache merge tdpo-cache --out whole", "holds a whole cache"),
    Case(
        "parts of two caches",
        "tdpo cache merge part1 part2 --out whole",
        "the parts are not of one cache: statistics.seed",
        of_another_cache,
    ),
    Case("a part that has not ended", "tdpo cache merge part1 --out whole", "has not ended", unfinished_part),
    Case(
        "a part as --out", "tdpo cache merge part1 --out part1", "--out part1 is one of the parts", parts(1)
    ),
    Case("nothing to add", ADD, "say what to add: --positive MODEL"),
    Case("no name for what is added", "tdpo cache add --head 16", "--name NAME must be given"),
    Case("a name that is none", "tdpo cache add --name a/b --head 16", "--name a/b: a name is of letters"),
    Case("two things at once", f"{ADD} --head 16 --statistic margin", "does not go with"),
    Case("half a contrast", f"{ADD} --positive model", "--negative MODEL must be given"),
    Case(
        "a contrast of a model with itself", f"{ADD} --positive model --negative model", "are the same model"
    ),
    Case(
        "equal prompts",
        f"{ADD} --positive-prompt 'Be kind.' --negative-prompt 'Be kind.'",
        "are the same: nothing to contrast",
    ),
    Case("the cache's own reference", f"{ADD} --ref model", "is the cache's own reference"),
    Case("a statistic that no plugin provides", f"{ADD} --statistic margin", "margin: no plugin provides it"),
    Case("adding to an unfinished cache", f"{ADD} --head 16 --tail 0", "has not ended", unfinished),
    Case(
        "another request under the same name",
        f"{ADD} --head 16 --tail 4",
        "head.*12.*16.*--overwrite",
        sample_there,
    ),
    Case("an export of no known format", f"{EXPORT} --format csv", "choose one of"),
    Case("an export into other files", "tdpo cache export --out model", "is not empty"),
    Case("an export over an export", EXPORT, "--out data holds an export.*--overwrite", exported),
    Case("an export to a file", "tdpo cache export --out pairs.jsonl", "is a file"),
    Case("an export to a URL", "tdpo cache export --out s3://bucket/data", "is a URL"),
)
