"""Writes the tables of docs/plugins/ that the code itself says: the built-in families, and what is public."""

import inspect
import re
from importlib import import_module
from pathlib import Path

import tdpo
from tdpo.plugins import tdpo_objectives, tdpo_statistics, tdpo_weightings

PAGES = Path(__file__).resolve().parent.parent / "docs" / "plugins"
START, END = "<!-- from here: python tests/plugin_pages.py -->\n", "<!-- to here -->\n"
KINDS = {"objective": tdpo_objectives, "weighting": tdpo_weightings, "statistic": tdpo_statistics}


def families() -> str:
    """A table of the built-in families: what is of each kind, and what they are."""
    found: dict[str, list[str]] = {}
    for kind, names in KINDS.items():
        for name, target in names().items():
            shown = f"`{name}`" if kind == "objective" else f"{kind} `{name}`"
            found.setdefault(target.partition(":")[0], []).append(shown)
    lines = ["| family | what it is | names |", "| --- | --- | --- |"]
    for module, names in found.items():
        about = _first_line(import_module(module)).rstrip(".").replace("|", "\\|")
        lines.append(f"| {module.rpartition('.')[2]} | {about} | {', '.join(names)} |")
    return "\n".join(lines) + "\n"


def public() -> str:
    """A table of what ``import tdpo`` exports."""
    lines = ["| from `tdpo` | |", "| --- | --- |"]
    for name in sorted(tdpo.__all__, key=str.lower):
        value = getattr(tdpo, name)
        about = "The version." if name == "__version__" else _first_line(value)
        lines.append(f"| `{name}` | {about} |")
    return "\n".join(lines) + "\n"


TABLES = {"directory.md": families, "index.md": public}


def page(name: str) -> str:
    """A page with its table made anew."""
    head, _, rest = (PAGES / name).read_text(encoding="utf-8").partition(START)
    return f"{head}{START}\n{TABLES[name]()}\n{END}{rest.partition(END)[2]}"


def _first_line(value: object) -> str:
    text = inspect.cleandoc(value.__doc__ or "").partition("\n\n")[0]
    # Sphinx's roles and double backticks as Markdown has them.
    text = re.sub(r":\w+:`~?([^`]+)`", r"`\1`", text).replace("``", "`").replace("` s", "`s")
    return " ".join(text.split())


if __name__ == "__main__":
    for name in TABLES:
        (PAGES / name).write_text(page(name), encoding="utf-8")
