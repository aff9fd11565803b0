"""The generated parts of a page, between markers that stay in it."""

import re
from collections.abc import Mapping

from .store import UnusableError


def _literal(text: str) -> str:
    """As a replacement of ``re``, which reads backslashes."""
    return text.replace("\\", r"\\")


def fill(page: str, blocks: Mapping[str, str]) -> str:
    """``page`` with every block put between ``<!-- NAME -->`` and ``<!-- /NAME -->``; the rest stays.

    Raises:
        UnusableError: the page has no place for a block.
    """
    for name, text in blocks.items():
        place = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
        page, count = place.subn(rf"\g<1>\n{_literal(text)}\n\n\g<2>", page)
        if count != 1:
            raise UnusableError(
                f"the page has {count} places <!-- {name} --> ... <!-- /{name} --> and takes one; put it back"
            )
    return page
