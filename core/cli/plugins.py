"""``tdpo plugins``: what can be trained with, and with which options."""

import inspect
import json
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import ConfigError, PluginError

if TYPE_CHECKING:
    from ..registry import Registered

_WIDTH = 110


@click.group()
def plugins() -> None:
    """List and describe objectives, weightings and statistics, built in or installed."""


@plugins.command("list")
@click.option("--json", "as_json", is_flag=True, help="for a program")
def list_plugins(as_json: bool) -> None:
    """List everything by family, with its paper and the distribution it came with."""
    rows = []
    for kind, entries, load in _kinds():
        for name, entry in sorted(entries.items(), key=lambda item: (item[1].family, item[0])):
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
                    "family": entry.family,
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

    headings = ("name", "kind", "family", "what it does", "paper", "from")
    table = Table(*headings, box=None, pad_edge=False, header_style="bold")
    for row in rows:
        table.add_row(*row.values())
    Console().print(table)


@plugins.command()
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="for a program")
def describe(name: str, as_json: bool) -> None:
    """Describe what goes by a name: formula or columns, options, what it needs, paper."""
    found = [
        _description(name, kind, entries[name].distribution, load(name))
        for kind, entries, load in _kinds()
        if name in entries
    ]
    if not found:
        from ..registry import objective_class

        objective_class(name)  # says which names there are
    if as_json:
        click.echo(json.dumps(found if len(found) > 1 else found[0], indent=2))
        return
    click.echo("\n\n".join(_text(one) for one in found))


@plugins.command()
@click.argument("name")
@click.option("--out", metavar="DIR", default=None, help="folder to write [default tdpo-NAME]")
def new(name: str, out: str | None) -> None:
    """Write a plugin to start from: a distribution with an objective, its tests and a README."""
    from ..scaffold.new import write_plugin

    folder = write_plugin(name, None if out is None else Path(out))
    click.echo(f"{folder}: a plugin that trains; install it and look:")
    click.echo(f"  pip install {folder}")
    click.echo(f"  tdpo plugins describe {name.lower().replace('-', '_')}")


def _kinds() -> Iterator[tuple[str, dict[str, "Registered"], Callable[[str], type[Any]]]]:
    """What there is of each kind, and how one is imported."""
    from .. import registry

    yield "objective", registry.objectives(), registry.objective_class
    yield "weighting", registry.weightings(), registry.weighting_class
    yield "statistic", registry.statistics(), registry.statistic_class


def _description(name: str, kind: str, distribution: str, cls: Any) -> dict[str, Any]:
    described: dict[str, Any] = {
        "name": name,
        "kind": kind,
        "distribution": distribution,
        "text": inspect.cleandoc(cls.__doc__ or ""),
    }
    if kind == "statistic":
        described["columns"] = {column: asdict(each) for column, each in cls.columns.items()}
    else:
        described |= {
            "formula": cls.formula,
            "paper": cls.paper,
            "needs": ["logp", "ref_logp", *_by_default(cls, "needs")],
            "watch": cls.watch,
        }
    if kind == "objective":
        described |= {"batch_level": cls.batch_level, "running": _by_default(cls, "running")}
    return {**described, "options": _options(cls)}


def _by_default(cls: Any, names: str) -> list[str]:
    """What it reads with its default options, on which that may depend."""
    try:
        return sorted(getattr(cls(), names))
    except (ConfigError, TypeError):
        return []


def _text(one: dict[str, Any]) -> str:
    about = [one["distribution"], one.get("paper") or "no paper"]
    if one["kind"] != "objective":
        about.insert(0, one["kind"])
    lines = [f"{one['name']}  ({'; '.join(about)})", "", one["text"], ""]
    if "formula" in one:
        lines.append(f"  {'loss' if one['kind'] == 'objective' else 'weight':<7}{one['formula']}")
        lines.append(f"  needs  {', '.join(one['needs'])}")
    if one.get("batch_level"):
        lines.append("  batch  a pair's loss depends on the other pairs of its batch")
    if one.get("running"):
        lines.append(f"  reads  means over the run so far: {', '.join(one['running'])}")
    if one.get("watch"):
        lines += _watch_lines(one["watch"])
    if "columns" in one:
        lines += ["columns:"]
        lines += [f"  {name:<18}{c['shape']}, {c['dtype']}: {c['doc']}" for name, c in one["columns"].items()]
    if one["options"]:
        lines += ["", "options (--set NAME=VALUE):", *map(_option_line, one["options"])]
    return "\n".join(lines)


def _watch_lines(watch: str) -> list[str]:
    return textwrap.wrap(watch, _WIDTH, initial_indent="  watch  ", subsequent_indent=" " * 9)


def _option_line(option: dict[str, Any]) -> str:
    allowed = f"; {option['allowed']}" if option["allowed"] else ""
    return f"  {option['name']:<18}{option['help']} [default {option['default']}{allowed}]"


def _summary(cls: type[Any]) -> str:
    return inspect.cleandoc(cls.__doc__ or "").split("\n")[0]


def _options(cls: type[Any]) -> list[dict[str, Any]]:
    options = []
    for field in fields(cls):
        bounds, choices = field.metadata.get("range"), field.metadata.get("choices")
        allowed = [str(bounds)] if bounds else []
        allowed += ["one of " + ", ".join(choices)] if choices else []
        options.append(
            {
                "name": field.name,
                "default": field.default,
                "allowed": " or ".join(allowed),
                "help": field.metadata.get("help", ""),
            }
        )
    return options
