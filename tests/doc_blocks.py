"""The fenced blocks of a Markdown page, so that tests run what a page shows.

A comment on the line above a block says what a test must know of it::

    <!-- not run: it takes an account -->
    ```bash
    twine upload dist/*
    ```
"""

import re
from dataclasses import dataclass
from pathlib import Path

_FENCE = re.compile(r"(?P<indent> *)(?P<fence>`{3,}|~{3,})(?P<language>[^\s`]*)[^`]*")
_COMMENT = re.compile(r"\s*<!--\s*(?P<text>.*?)\s*-->\s*")
_NOT_RUN = "not run"


@dataclass(frozen=True)
class Block:
    """One fenced block."""

    language: str
    """The word after the fence; ``""`` where there is none."""
    text: str
    """What is between the fences, without their indentation."""
    heading: str
    """The heading it is under; ``""`` above the first."""
    line: int
    """Of the opening fence, from 1."""
    note: str
    """The HTML comment on the line above the fence; ``""`` where there is none."""

    @property
    def not_run(self) -> str | None:
        """Why no test runs it, from ``<!-- not run: reason -->``; None for one that is to run."""
        return self.note.partition(":")[2].strip() if self.note.startswith(_NOT_RUN) else None

    @property
    def file(self) -> str | None:
        """The file that it is, from a first line such as ``# src/my_package/plugin.py``."""
        named = re.match(r"# (\S+\.\w+)\n", self.text)
        return named[1] if named else None

    @property
    def commands(self) -> list[str]:
        """Its lines as a shell takes them: continued ones joined, without comments and empty ones."""
        lines = re.sub(r"\\\n\s*", "", self.text).splitlines()
        return [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]


def blocks_of(page: Path) -> list[Block]:
    """All fenced blocks of a page, from top to bottom.

    Raises:
        ValueError: a fence is never closed, or a block is marked ``not run`` without a reason.
    """
    found: list[Block] = []
    heading, note = "", ""
    lines = page.read_text(encoding="utf-8").splitlines()
    at = 0
    while at < len(lines):
        line = lines[at]
        at += 1
        if fence := _FENCE.fullmatch(line):
            start = at
            closing = re.compile(rf" *{re.escape(fence['fence'][0])}{{{len(fence['fence'])},}}\s*")
            while at < len(lines) and not closing.fullmatch(lines[at]):
                at += 1
            if at == len(lines):
                raise ValueError(f"{page}:{start}: the fence is never closed")
            text = _without_indent(lines[start:at], len(fence["indent"]))
            block = Block(fence["language"], text, heading, start, note)
            if block.not_run == "":
                raise ValueError(f"{page}:{start}: say why it is not run: <!-- {_NOT_RUN}: reason -->")
            found.append(block)
            note = ""
            at += 1
        elif comment := _COMMENT.fullmatch(line):
            note = comment["text"]
        else:
            note = ""
            if title := re.fullmatch(r"#{1,6} +(.*?)[ #]*", line):
                heading = title[1]
    return found


def _without_indent(lines: list[str], width: int) -> str:
    return "".join(line[min(width, len(line) - len(line.lstrip())) :] + "\n" for line in lines)
