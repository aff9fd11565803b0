"""The documentation as a site: every page is there, links lead somewhere, no other server is asked."""

import logging
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tdpo.core.cli import tdpo as tdpo_command

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The built site; a warning, such as a link that leads nowhere, fails the build."""
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    folder = tmp_path_factory.mktemp("site")
    warnings = logging.getLogger("mkdocs")
    caught = _Caught(logging.WARNING)
    warnings.addHandler(caught)
    try:
        config = load_config(str(ROOT / "mkdocs.yml"), site_dir=str(folder))
        config.plugins.on_startup(command="build", dirty=False)
        build(config)
    finally:
        warnings.removeHandler(caught)
    assert caught.messages == []
    return folder


class _Caught(logging.Handler):
    def __init__(self, level):
        super().__init__(level)
        self.messages = []

    def emit(self, record):
        self.messages.append(record.getMessage())


class _Fetched(HTMLParser):
    """What a browser fetches for a page by itself."""

    def __init__(self):
        super().__init__()
        self.addresses = []

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        if tag in ("script", "img", "iframe"):
            self.addresses.append(found.get("src") or "")
        if tag == "link" and found.get("rel") in ("stylesheet", "preconnect", "icon"):
            self.addresses.append(found.get("href") or "")


def test_pages_ask_nothing_of_other_servers(site):
    pages = list(site.rglob("*.html"))
    assert len(pages) > 25
    for page in pages:
        fetched = _Fetched()
        fetched.feed(page.read_text(encoding="utf-8"))
        assert not [one for one in fetched.addresses if re.match(r"(https?:)?//", one)], page


def test_every_page_of_the_documentation_is_in_the_navigation(site):
    home = (site / "index.html").read_text(encoding="utf-8")
    for page in (ROOT / "docs").rglob("*.md"):
        place = page.relative_to(ROOT / "docs").with_suffix("").as_posix().removesuffix("index")
        assert f'href="{place.rstrip("/")}/"' in home, place


def test_the_command_reference_holds_every_command_with_its_options(site):
    text = (site / "commands" / "index.html").read_text(encoding="utf-8")
    waiting = [("tdpo", tdpo_command)]
    while waiting:
        path, command = waiting.pop()
        assert f">{path}<" in re.sub(r"\s*<a class=.*?</a>", "", text), path
        for parameter in command.params:
            for option in parameter.opts:
                assert not option.startswith("--") or option in text, (path, option)
        waiting += [(f"{path} {name}", one) for name, one in getattr(command, "commands", {}).items()]
