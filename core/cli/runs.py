"""``tdpo runs``: what was trained, how far it came, and with what figures."""

import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from ..runs.listing import RunSummary

# Column -> what it shows of the evaluation, or else of the training.
_FIGURES = {
    "accuracy": "rewards/accuracies",
    "margin": "rewards/margins",
    "KL chosen": "kl/chosen",
    "KL rejected": "kl/rejected",
}
_IDENTITY = 8


@click.command()
@click.argument("folder", metavar="[DIR]", default="runs")
@click.option("--sort", metavar="METRIC", default="name", help="name, made, size, steps, or a logged figure")
@click.option(
    "--metric", "metrics", metavar="NAME", multiple=True, help="figure to show instead; may be repeated"
)
@click.option("--json", "as_json", is_flag=True, help="everything that is known of them, for a program")
def runs(folder: str, sort: str, metrics: tuple[str, ...], as_json: bool) -> None:
    """List the runs in a folder, and in the folders in it, with their figures.

    Figures are those of the policy that was kept, on the first evaluation cache where there is one. A figure
    is named as in metrics.jsonl, such as eval_rewards/margins; --sort puts the best first.
    """
    from ..runs.listing import check_figures, list_runs

    found = list_runs(folder, sort=sort)
    check_figures(found, metrics, "--metric")
    if as_json:
        click.echo(json.dumps([run.to_dict() for run in found], indent=2, ensure_ascii=False))
    elif sys.stdout.isatty():
        _show_table(found, metrics)
    else:
        _print_lines(found, metrics)


def _show_table(found: Sequence["RunSummary"], metrics: Sequence[str]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 1, 0, 0), collapse_padding=True)
    table.add_column("run\nobjective", overflow="fold")
    table.add_column("state\ncheckpoints", no_wrap=True)
    rows = [_table_figures(run, metrics) for run in found]
    for name in rows[0]:
        table.add_column(name, justify="right", overflow="fold")
    table.add_column("cache\nsize", no_wrap=True)
    table.add_column("made\n(UTC)", no_wrap=True)
    for run, figures in zip(found, rows, strict=True):
        table.add_row(
            _plain(f"{run.name}\n{_objective(run)}"),
            f"{_state(run)}\n{_kept(run)}",
            *figures.values(),
            f"{(run.cache or '-')[:_IDENTITY]}\n{_size(run)}",
            _moment(run).replace(" ", "\n"),
        )
    console.print(table)
    for run in found:
        if run.trouble is not None:
            console.print(_plain(f"{run.name}: {run.trouble}"), soft_wrap=True)


def _table_figures(run: "RunSummary", metrics: Sequence[str]) -> dict[str, str]:
    """Heading -> cell; the two sides' divergences stand in one."""
    shown = {name: _number(value) for name, value in _figures(run, metrics).items()}
    if metrics:
        return shown
    sides = "KL chosen", "KL rejected"
    kl = "\n".join(shown.pop(side) for side in sides)
    return {name.replace("eval ", "eval\n"): value for name, value in shown.items()} | {
        "KL chosen\nrejected": kl
    }


def _print_lines(found: Sequence["RunSummary"], metrics: Sequence[str]) -> None:
    for run in found:
        figures = {name: value for name, value in _figures(run, metrics).items() if value is not None}
        parts = [
            _objective(run),
            _state(run),
            *(f"{name} {_number(value)}" for name, value in figures.items()),
            f"cache {(run.cache or '-')[:_IDENTITY]}",
            f"made {_moment(run)}" if run.made else "",
            _size(run),
            f"checkpoints {' '.join(map(str, run.checkpoints))}" if run.checkpoints else "",
            run.trouble,
        ]
        click.echo(f"{run.name}: {', '.join(part for part in parts if part)}")


def _figures(run: "RunSummary", metrics: Sequence[str]) -> dict[str, float | None]:
    """Heading -> value: the figures asked for, or those that matter."""
    if metrics:
        return {name: run.figures.get(name) for name in metrics}
    main = {name: run.figures.get(run.prefix + figure) for name, figure in _FIGURES.items()}
    return {"loss": run.figures.get("loss"), "eval loss": _evaluated(run, "loss"), **main}


def _evaluated(run: "RunSummary", figure: str) -> float | None:
    return run.figures.get(run.prefix + figure) if run.prefix else None


def _objective(run: "RunSummary") -> str:
    return " ".join([run.objective, *(f"{name}={value}" for name, value in run.options.items())])


def _state(run: "RunSummary") -> str:
    if run.state == "unreadable":
        return run.state
    if run.state == "finished":
        return f"finished, {run.step:,} steps"
    return f"unfinished, step {run.step:,}{'' if run.steps is None else f' of {run.steps:,}'}"


def _kept(run: "RunSummary") -> str:
    return f"{len(run.checkpoints)} checkpoint{'s' * (len(run.checkpoints) != 1)}" if run.checkpoints else ""


def _size(run: "RunSummary") -> str:
    return f"{run.bytes / 1e6:,.1f} MB"


def _moment(run: "RunSummary") -> str:
    return run.made[:16].replace("T", " ")


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" if abs(value) < 100 else f"{value:.4g}"


def _plain(text: str) -> Any:
    """Text that rich shows as it is."""
    from rich.text import Text

    return Text(text)
