"""What the site shows beside docs/: the commands' own help, README, changelog and the examples' pages."""

import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
from mkdocs.structure.files import File, Files

from tdpo.core.cli import tdpo

_ROOT = Path(__file__).parent.parent
# File of the repository -> page of the site.
_PAGES = {"README.md": "index.md", "CHANGELOG.md": "CHANGELOG.md", "CONTRIBUTING.md": "CONTRIBUTING.md"}
_LINK = re.compile(r"(?<=\]\()(?![a-z]+:|#)([^)\s#]+)(#[^)\s]*)?(?=\))")


def _pages() -> dict[str, str]:
    examples = sorted(_ROOT.glob("examples/*/README.md"))
    return _PAGES | {
        path.relative_to(_ROOT).as_posix(): f"examples/{path.parent.name}.md" for path in examples
    }


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that lie outside docs/, and one that lists the examples."""
    for source, page in _pages().items():
        text = (_ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=_mended(text, source, page)))
    lines = ["# Examples\n"]
    for source, page in _pages().items():
        if page.startswith("examples/"):
            title = (_ROOT / source).read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ")
            lines.append(f"* [{title}]({page})")
    files.append(File.generated(config, "examples.md", content="\n".join(lines) + "\n"))
    files.append(File.generated(config, "commands.md", content="\n".join(_commands())))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Point the links of a page of docs/ that lead out of it to where the site has what they name."""
    return (
        markdown
        if page.file.generated_by
        else _mended(markdown, f"docs/{page.file.src_uri}", page.file.src_uri)
    )


def _commands() -> Iterator[str]:
    """Every command with what its ``--help`` says."""
    yield "# Commands\n\nWhat `--help` says of each.\n"
    waiting: list[tuple[click.Command, click.Context | None]] = [(tdpo, None)]
    while waiting:
        command, parent = waiting.pop(0)
        context = click.Context(
            command, parent, info_name=command.name, terminal_width=82, **command.context_settings
        )
        yield f"{'##' if parent is None or parent.parent is None else '###'} {context.command_path}\n"
        yield f"```text\n{command.get_help(context)}\n```\n"
        if isinstance(command, click.Group):
            # Depth first: a group's commands follow it.
            waiting[:0] = [(command.commands[name], context) for name in sorted(command.commands)]


def _mended(text: str, source: str, page: str) -> str:
    """``text`` of the repository's file ``source`` with its links as the site's ``page`` has them."""

    def mend(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), match[1]))
        return posixpath.relpath(_on_site(target), posixpath.dirname(page) or ".") + (match[2] or "")

    return _LINK.sub(mend, text)


def _on_site(target: str) -> str:
    pages = _pages()
    for name in (target, f"{target}/README.md"):
        if name in pages:
            return pages[name]
    return target.removeprefix("docs/")
