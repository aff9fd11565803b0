"""``tdpo push``: publish the policy of a run."""

import json
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from ..publishing.push import Push


@click.command()
@click.argument("run", metavar="RUN")
@click.argument("target", metavar="TARGET")
@click.option(
    "--checkpoint", type=int, metavar="N", help="the policy of step N, in place of the one the run kept"
)
@click.option("--with-samples", is_flag=True, help="also completions, and evaluations pair by pair: texts")
@click.option("--report", is_flag=True, help="also report.html, made where there is none; it shows texts")
@click.option("--private", is_flag=True, help="make the repository private, where it is made")
@click.option("--revision", metavar="BRANCH", help="branch to push to, made where missing [default: main]")
@click.option("--overwrite", is_flag=True, help="replace what an earlier push has put there")
@click.option("--dry-run", is_flag=True, help="send nothing: list what would go, with sizes")
@click.option("--json", "as_json", is_flag=True, help="what was pushed, for a program")
def push(
    run: str,
    target: str,
    checkpoint: int | None,
    with_samples: bool,
    report: bool,
    private: bool,
    revision: str | None,
    overwrite: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Publish the policy of a finished run, with its card, figures and evaluations.

    TARGET is a repository on the Hugging Face hub (USER/NAME or hf://USER/NAME; log in first: hf auth login),
    a folder, or the URL of one, such as s3://bucket/dpo. Checkpoints, the optimiser's state and texts of the
    data stay behind.
    """
    from ..publishing.push import push_run

    pushed = push_run(
        run,
        target,
        checkpoint=checkpoint,
        with_samples=with_samples,
        report=report,
        private=private,
        revision=revision,
        overwrite=overwrite,
        dry_run=dry_run,
        quiet=as_json,
    )
    if as_json:
        click.echo(json.dumps(pushed.to_dict(), indent=2, ensure_ascii=False))
    elif dry_run:
        _show(pushed)
    else:
        commit = "" if pushed.commit is None else f", commit {pushed.commit}"
        click.echo(f"{pushed.target}: {len(pushed.files)} files, {pushed.bytes / 1e6:,.1f} MB{commit}")


def _show(pushed: "Push") -> None:
    click.echo(f"{pushed.target} would get {len(pushed.files)} files, {pushed.bytes / 1e6:,.1f} MB:")
    width = max(map(len, [*pushed.files, *pushed.left_out]))
    for name, size in pushed.files.items():
        click.echo(f"  {name:<{width}} {size:>15,}")
    if pushed.left_out:
        click.echo("left out:")
    for name, why in pushed.left_out.items():
        click.echo(f"  {name:<{width}} {why}")
