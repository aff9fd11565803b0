"""A page that is one file: sections, charts and data, with everything that shows them inside.

It opens from disk, asks for nothing, follows the reader's light or dark theme, prints in the light one, and
goes without a mouse. The charts are Vega-Lite specs, drawn by the libraries that vl-convert brings.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from ..errors import ConfigError
from .embedding import as_script_json, as_script_text, packed
from .theme import PAGE_CONFIG, Spec

_TEMPLATE = Path(__file__).parent / "template"


@dataclass(frozen=True)
class Section:
    """A part of a page, under a heading of its own.

    Everything of it that came from data must be escaped before it is Markup: :func:`rendered`,
    :func:`figure`, :func:`~tdpo.core.report.tables.table` and ``Markup("<p>{}</p>").format(text)`` do that.
    """

    id: str
    """Of the ``<section>``, and what its data is asked for by: letters, digits and dashes."""
    title: str
    html: Markup
    """What stands under the heading."""
    charts: Mapping[str, Spec] = field(default_factory=dict)
    """Name, unique on the page -> spec; drawn where :func:`figure` of that name stands in ``html``. Its data
    may be ``{"values": rows}``; colours may be the page's CSS variables, such as ``var(--series-1)``."""
    on_paper: Mapping[str, Spec] = field(default_factory=dict)
    """Charts of ``charts`` as they are in files of their own, where that is different: with a legend."""
    data: Any | None = None
    """Anything that is JSON: ``tdpo.data(ID)`` of the page's scripts."""
    script: str = ""
    """JavaScript run once the page is there; the same text in several sections is run once."""
    style: str = ""
    """CSS; the same text in several sections is there once."""


def write_page(
    path: str | os.PathLike[str],
    title: str,
    sections: Sequence[Section],
    *,
    lead: Markup | str = "",
    notes: Iterable[str] = (),
    option: str = "--out",
) -> Path:
    """Write a page into one file, replacing what was there.

    Args:
        path: of the file; its folder is made where there is none.
        title: of the page; text.
        sections: in their order.
        lead: a sentence under the title.
        notes: what the reader must know before anything else, such as a metrics file cut short; text.
        option: what the path came from, for messages.

    Returns:
        The file.

    Raises:
        ConfigError: the file cannot be written, or vl-convert is not installed.
    """
    content = page(title, sections, lead=lead, notes=notes)
    target = Path(path)
    beside = target.with_name(target.name + ".tmp")
    try:
        if target.is_dir():
            raise IsADirectoryError(21, "is a folder")
        make_folder(target.parent)
        beside.write_text(content, encoding="utf-8")
        beside.replace(target)
    except OSError as error:
        raise ConfigError(
            f"{option} {target}: {error.strerror or error}; choose a file that can be written"
        ) from error
    return target


def check_place(path: Path, option: str, *, folder: bool = False) -> None:
    """Refuse a place that cannot be written, before what goes there takes its time. Nothing is made.

    Args:
        path: of a file, or of a folder.
        option: where it came from, for messages.
        folder: whether it is a folder.

    Raises:
        ConfigError: says what is in the way.
    """
    kind = "folder" if folder else "file"
    there = next(one for one in (path.absolute(), *path.absolute().parents) if one.exists())
    problem = None
    if there == path.absolute() and there.is_dir() != folder:
        problem = "is a folder" if there.is_dir() else "is a file"
    elif there != path.absolute() and not there.is_dir():
        problem = f"{there.name} is a file"
    elif not os.access(there, os.W_OK):
        problem = "Permission denied"
    if problem is not None:
        raise ConfigError(f"{option} {path}: {problem}; choose a {kind} that can be written")


def make_folder(folder: Path) -> None:
    """Make a folder where there is none.

    Raises:
        OSError: it cannot be made; says so of a file that has its name.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise NotADirectoryError(20, f"{folder} is a file") from error


def page(
    title: str, sections: Sequence[Section], *, lead: Markup | str = "", notes: Iterable[str] = ()
) -> str:
    """The text of a page; arguments as :func:`write_page`.

    Raises:
        ConfigError: vl-convert is not installed.
        ValueError: two sections or two charts of one name, or a chart that has no place.
    """
    charts = _charts(sections)
    data = {one.id: one.data for one in sections if one.data is not None}
    return (
        _environment()
        .get_template("page.html.j2")
        .render(
            title=title,
            lead=lead,
            notes=list(notes),
            sections=sections,
            charts=as_script_json({name: packed(spec) for name, spec in charts.items()}),
            config=as_script_json(PAGE_CONFIG),
            data={name: as_script_json(value) for name, value in data.items()},
            library=as_script_text(chart_library()) if charts else Markup(),
            page_style=Markup(template("page.css")),
            page_script=Markup(template("page.js")),
            styles=[Markup(one) for one in dict.fromkeys(s.style for s in sections if s.style)],
            scripts=[as_script_text(one) for one in dict.fromkeys(s.script for s in sections if s.script)],
        )
    )


def figure(
    name: str, caption: str | Markup = "", *, label: str = "", height: int = 0, css: str = ""
) -> Markup:
    """The place of the chart ``name``: a ``<figure>`` with its caption.

    Args:
        name: as in :attr:`Section.charts`.
        caption: under the chart.
        label: what the chart shows, for those who cannot see it; its title and caption where not given.
        height: pixels kept free for it until it is drawn.
        css: further classes, such as ``wide``: the whole row of a ``<div class="figures">``.
    """
    return rendered("figure.html.j2", chart=name, caption=caption, label=label, height=height, css=css)


def rendered(name: str, **values: Any) -> Markup:
    """A template of ``core/report/template``, with the values in it escaped."""
    return Markup(_environment().get_template(name).render(values))


def template(name: str) -> str:
    """The text of a file of ``core/report/template``, such as a section's script or style."""
    return (_TEMPLATE / name).read_text(encoding="utf-8")


def chart_library() -> str:
    """Vega, Vega-Lite and vegaEmbed in one script.

    Raises:
        ConfigError: vl-convert is not installed.
    """
    try:
        import vl_convert  # noqa: F401
    except ImportError as error:
        raise ConfigError("charts need the package vl-convert-python: pip install 'tdpo[report]'") from error
    return _bundle()


@cache
def _bundle() -> str:
    import vl_convert

    library: str = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    return library


def _charts(sections: Sequence[Section]) -> dict[str, Spec]:
    found: dict[str, Spec] = {}
    for number, section in enumerate(sections):
        if any(section.id == other.id for other in sections[:number]):
            raise ValueError(f"two sections have the id {section.id!r}")
        for name, spec in section.charts.items():
            if name in found:
                raise ValueError(f"two charts are named {name!r}")
            if f'data-chart="{Markup.escape(name)}"' not in section.html:
                raise ValueError(f"section {section.id!r} has no figure({name!r}) in its html")
            found[name] = spec
    return found


def _environment() -> Environment:
    return Environment(
        loader=FileSystemLoader(_TEMPLATE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
