"""Writes docs/objectives.md: every built-in objective and weighting, as `tdpo plugins describe` tells it."""

import inspect
from dataclasses import fields
from pathlib import Path

from tdpo.core.registry import objective_class, weighting_class
from tdpo.plugins import tdpo_objectives, tdpo_weightings

PAGE = Path(__file__).resolve().parent.parent / "docs" / "objectives.md"

INTRO = """# Objectives and weightings

Made by `python tests/objectives_page.py` from what the plugins say of themselves; `tdpo plugins describe
NAME` shows the same. [recipes.md](recipes.md) has runs of more than one command, [plugins](plugins/index.md)
says how to write one of your own.

    tdpo fit --plugin NAME --set OPTION=VALUE
    tdpo fit --plugin tdpo2 --plugin sft=0.1 --weighting mallows --set alpha=0.5 --set scale=auto

`D` is the chosen completion's log-ratio to the reference less the rejected one's, `R` a completion's, summed
over its tokens; all in nats. Every objective reads the policy's and the reference's log-probabilities; what
it needs besides is said, and checked against the cache before a model is loaded.
"""


def page() -> str:
    """The whole page."""
    parts = [INTRO]
    for title, targets, load in (
        ("Objectives", tdpo_objectives(), objective_class),
        ("Weightings", tdpo_weightings(), weighting_class),
    ):
        parts.append(f"## {title}\n")
        parts += [entry(name, load(name)) for name in targets]
    return "\n".join(parts)


def entry(name: str, cls: type) -> str:
    """One objective or weighting."""
    summary, _, more = inspect.cleandoc(cls.__doc__).partition("\n\n")
    needs = sorted(cls().needs)
    lines = [f"### `{name}`", "", " ".join(summary.split()), "", f"    {cls.formula}", ""]
    if more:
        lines += [" ".join(more.replace("``", "`").split()), ""]
    if cls.watch:
        lines += ["*Watch:* " + cls.watch.replace("``", "`"), ""]
    facts = [cls.paper] if cls.paper else []
    facts += ["needs " + ", ".join(f"`{need}`" for need in needs)] if needs else []
    facts += ["a pair's loss depends on its batch"] if getattr(cls, "batch_level", False) else []
    lines += ["; ".join(facts) + ".", ""] if facts else []
    if fields(cls):
        lines += ["| option | default | allowed | |", "| --- | --- | --- | --- |"]
        lines += [option(field) for field in fields(cls)]
        lines.append("")
    return "\n".join(lines)


def option(field: object) -> str:
    """A row of an entry's table."""
    bounds, choices = field.metadata.get("range"), field.metadata.get("choices")
    allowed = [str(bounds)] if bounds else []
    allowed += [", ".join(choices)] if choices else []
    words = field.metadata["help"].replace("|", "\\|")
    return f"| `{field.name}` | {field.default} | {' or '.join(allowed)} | {words} |"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
