"""The ``tdpo`` command: a thin face on the Python functions. Importing it imports no torch."""

import os
import sys
import time
from typing import Any

import click

from ..errors import LeaderEndedError, PluginError, StoppedBySignal, TdpoError
from ..options import nearest
from .cache import cache
from .data import data
from .demo import demo
from .eval import evaluate
from .fit import fit
from .plan import plan
from .plugins import plugins
from .push import push
from .report import report
from .runs import runs

_FIRST_SPEAKS = 5.0


class TdpoGroup(click.Group):
    """The built-in commands, and those that plugins provide."""

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        """A built-in command, or a plugin's, imported when it is called."""
        if (command := super().get_command(ctx, name)) is not None:
            return command
        from ..registry import commands

        found = commands()
        if name in found:
            resolved = found[name].resolve()
            if not isinstance(resolved, click.Command):
                raise click.UsageError(f"{name!r} of {found[name].distribution} is not a click command")
            return resolved
        raise click.UsageError(f"no command {name!r}{nearest(name, [*self.commands, *found])}")

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the built-in commands, then the plugins' with the distribution each came with."""
        super().format_commands(ctx, formatter)
        from ..registry import commands

        for name, entry in commands().items():
            if name in self.commands:
                raise PluginError(
                    f"{entry.distribution} gives a command {name!r}, which tdpo has itself; uninstall "
                    f"{entry.distribution.split()[0]}, or limit what is loaded with TDPO_PLUGINS"
                )
        if rows := [(name, f"from {entry.distribution}") for name, entry in commands().items()]:
            with formatter.section("Commands of plugins"):
                formatter.write_dl(rows)


@click.group(
    cls=TdpoGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110}
)
@click.version_option(package_name="tdpo", message="%(prog)s %(version)s")
def tdpo() -> None:
    """Align language models from preference pairs with only the policy in memory.

    \b
      tdpo cache build --ref MODEL --dataset pairs.jsonl    run the reference once
      tdpo fit --plugin tdpo2                               train from the cache
    """  # noqa: D301 (click wants the backspace itself)


for _command in (data, cache, plan, fit, evaluate, report, runs, push, plugins, demo):
    tdpo.add_command(_command)


def main(args: list[str] | None = None) -> None:
    """Run the command line; exit 0 when done, 2 with one line on stderr for bad input, 130 on Ctrl-C.

    A fit that SIGTERM ended after saving exits with 143.
    """
    # Tokenizers' threads are forked into data loaders otherwise, which they warn about at length.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        code: Any = tdpo.main(args, prog_name="tdpo", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.ctx.get_help() if error.ctx else "")
        sys.exit(0)
    except (KeyboardInterrupt, click.Abort) as error:
        if isinstance(stopped := error.__cause__, StoppedBySignal):
            first = os.environ.get("RANK", "0") == "0"
            _fail(str(stopped) if first else None, stopped.exit_code)
        _fail(
            "interrupted; what was finished is kept, and the same command (fit: with --resume) goes on", 130
        )
    except click.ClickException as error:
        _fail(error.format_message(), 2)
    except LeaderEndedError:
        _fail(None, 2)
    except TdpoError as error:
        _fail(str(error), 2)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    sys.exit(code if isinstance(code, int) else 0)


def _fail(message: str | None, code: int) -> None:
    if os.environ.get("RANK", "0") != "0":
        # A launcher ends all processes as soon as one ends, and the first one's message is to be read.
        time.sleep(_FIRST_SPEAKS)
    if message is not None:
        click.echo(f"tdpo: {' '.join(message.split())}", err=True)
    sys.exit(code)
