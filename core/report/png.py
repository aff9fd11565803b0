"""The charts of a page as files of their own, for papers: no browser, the light theme, a legend in each."""

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from .page import Section, chart_library, make_folder
from .theme import PAGE_CONFIG, Spec, on_paper

WIDTH = 420
"""Of a chart, in pixels of the page: its lines and texts are of the size that fits a paper's column."""


def write_pictures(
    folder: Path, sections: Iterable[Section], *, kind: str = "png", scale: float = 3.0, option: str = "--png"
) -> list[Path]:
    """Write every chart that has data into ``folder``, under its name.

    Args:
        folder: made where there is none.
        sections: of the page.
        kind: ``png``, ``svg`` or ``pdf``.
        scale: pixels of a PNG for one of the chart.
        option: where the folder came from, for messages.

    Raises:
        ConfigError: the folder cannot be written, or vl-convert is not installed.
    """
    chart_library()
    written = []
    try:
        make_folder(folder)
        for name, spec in _specs(sections):
            path = folder / f"{re.sub(r'[^A-Za-z0-9_.-]+', '-', name)}.{kind}"
            path.write_bytes(picture(spec, kind, scale))
            written.append(path)
    except OSError as error:
        raise ConfigError(
            f"{option} {folder}: {error.strerror or error}; choose a folder that can be written"
        ) from error
    return written


def picture(spec: Spec, kind: str = "png", scale: float = 3.0) -> bytes:
    """A chart of a page as the content of a PNG, SVG or PDF file."""
    import vl_convert

    paper = {**on_paper(spec), "background": "white"}
    if paper.get("width") == "container":
        paper["width"] = WIDTH
    # Fonts that the machine has: vl-convert draws by itself.
    config = {**on_paper(PAGE_CONFIG), "font": "Liberation Sans, Arial, Helvetica, DejaVu Sans, sans-serif"}
    del config["autosize"]
    if kind == "svg":
        return str(vl_convert.vegalite_to_svg(paper, config=config)).encode()
    if kind == "pdf":
        return bytes(vl_convert.vegalite_to_pdf(paper, config=config))
    return bytes(vl_convert.vegalite_to_png(paper, config=config, scale=scale))


def _specs(sections: Iterable[Section]) -> Iterator[tuple[str, Spec]]:
    for section in sections:
        for name, spec in {**section.charts, **section.on_paper}.items():
            if _has_data(spec):
                yield name, spec


def _has_data(spec: Any) -> bool:
    """Whether there is anything to draw; some charts get their data from the page's script."""
    return '"values": [{' in json.dumps(spec)
