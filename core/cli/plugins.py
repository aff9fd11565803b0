"""``tdpo plugins``: what can be trained with, and with which options."""

import inspect
import json
from dataclasses import asdict, fields
from typing import Any

import click

from ..errors import PluginError


@click.group()
def plugins() -> None:
    """List and describe objectives and statistics, built in or installed."""


@plugins.command("list")
@click.option("--json", "as_json", is_flag=True, help="for a program")
def list_plugins(as_json: bool) -> None:
    """List every objective with its paper and the distribution it came with, then the statistics."""
    from ..registry import objective_class, objectives, statistic_class, statistics

    rows = []
    for kind, entries, load in (
        ("objective", objectives(), objective_class),
        ("statistic", statistics(), statistic_class),
    ):
        for name, entry in entries.items():
            try:
                cls: Any = load(name)
                summary, paper = _summary(cls), getattr(cls, "paper", "")
            except PluginError as error:
                # One that does not load must not hide the others.
                summary, paper = str(error), ""
            rows.append(
                {
                    "name": name,
                    "kind": kind,
                    "summary": summary,
                    "paper": paper,
                    "distribution": entry.distribution,
                }
            )
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(
        "name", "kind", "what it does", "paper", "from", box=None, pad_edge=False, header_style="bold"
    )
    for row in rows:
        table.add_row(*row.values())
    Console().print(table)


@plugins.command()
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="for a program")
def describe(name: str, as_json: bool) -> None:
    """Describe an objective (formula, options, what it needs, paper) or a statistic (columns, options)."""
    from ..registry import objective_class, objectives, statistics

    if name not in objectives() and name in statistics():
        _describe_statistic(name, as_json)
        return
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
    _print_options(description["options"])


def _describe_statistic(name: str, as_json: bool) -> None:
    from ..registry import statistic_class, statistics

    cls = statistic_class(name)
    description: dict[str, Any] = {
        "name": name,
        "distribution": statistics()[name].distribution,
        "text": inspect.cleandoc(cls.__doc__ or ""),
        "columns": {column: asdict(each) for column, each in cls.columns.items()},
        "options": _options(cls),
    }
    if as_json:
        click.echo(json.dumps(description, indent=2))
        return
    click.echo(f"{name}  ({description['distribution']}; statistic)\n\n{description['text']}\n\ncolumns:")
    for column, each in cls.columns.items():
        click.echo(f"  {column:<18}{each.shape}, {each.dtype}: {each.doc}")
    if description["options"]:
        click.echo("\noptions (--set NAME=VALUE):")
        _print_options(description["options"])


def _print_options(options: list[dict[str, Any]]) -> None:
    for option in options:
        allowed = f"; {option['allowed']}" if option["allowed"] else ""
        click.echo(f"  {option['name']:<18}{option['help']} [default {option['default']}{allowed}]")


def _summary(cls: type[Any]) -> str:
    return inspect.cleandoc(cls.__doc__ or "").split("\n")[0]


def _options(cls: type[Any]) -> list[dict[str, Any]]:
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
