"""``tdpo plugins``: what can be trained with, and with which options."""

import inspect
import json
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import click

from ..errors import PluginError

if TYPE_CHECKING:
    from ..objective import Objective


@click.group()
def plugins() -> None:
    """List and describe objectives, built in or installed."""


@plugins.command("list")
@click.option("--json", "as_json", is_flag=True, help="for a program")
def list_plugins(as_json: bool) -> None:
    """List every objective with its paper and the distribution it came with."""
    from ..registry import objective_class, objectives

    rows = []
    for name, entry in objectives().items():
        try:
            cls = objective_class(name)
            summary, paper = _summary(cls), cls.paper
        except PluginError as error:
            # One that does not load must not hide the others.
            summary, paper = str(error), ""
        rows.append({"name": name, "summary": summary, "paper": paper, "distribution": entry.distribution})
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("objective", "what it does", "paper", "from", box=None, pad_edge=False, header_style="bold")
    for row in rows:
        table.add_row(*row.values())
    Console().print(table)


@plugins.command()
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="for a program")
def describe(name: str, as_json: bool) -> None:
    """Describe one objective: formula, options with defaults and ranges, what it needs, paper."""
    from ..registry import objective_class, objectives

    cls = objective_class(name)
    description: dict[str, Any] = {
        "name": name,
        "distribution": objectives()[name].distribution,
        "text": inspect.cleandoc(cls.__doc__ or ""),
        "formula": cls.formula,
        "paper": cls.paper,
        "needs": ["logp", "ref_logp", *sorted(cls.needs)],
        "options": _options(cls),
    }
    if as_json:
        click.echo(json.dumps(description, indent=2))
        return
    click.echo(f"{name}  ({description['distribution']}; {cls.paper or 'no paper'})\n")
    click.echo(f"{description['text']}\n\n  loss   {cls.formula}")
    click.echo(f"  needs  {', '.join(description['needs'])}\n\noptions (--set NAME=VALUE):")
    for option in description["options"]:
        allowed = f"; {option['allowed']}" if option["allowed"] else ""
        click.echo(f"  {option['name']:<18}{option['help']} [default {option['default']}{allowed}]")


def _summary(cls: "type[Objective]") -> str:
    return inspect.cleandoc(cls.__doc__ or "").split("\n")[0]


def _options(cls: "type[Objective]") -> list[dict[str, Any]]:
    options = []
    for field in fields(cls):
        bounds, choices = field.metadata.get("range"), field.metadata.get("choices")
        allowed = str(bounds) if bounds else "one of " + ", ".join(choices) if choices else ""
        options.append(
            {
                "name": field.name,
                "default": field.default,
                "allowed": allowed,
                "help": field.metadata.get("help", ""),
            }
        )
    return options
