"""Writing a plugin's distribution from the template."""

import keyword
import re
from importlib.metadata import version
from pathlib import Path

from ..errors import ConfigError, PluginError

_TEMPLATE = Path(__file__).parent / "template"


def write_plugin(name: str, folder: Path | None = None) -> Path:
    """Write a distribution with one objective, its tests and its README.

    Args:
        name: of the objective, such as ``my-loss``.
        folder: where; ``tdpo-NAME`` when not given.

    Returns:
        The folder.

    Raises:
        ConfigError: a name that can be no module's, or a folder that holds something.
        PluginError: there is an objective of that name.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    from ..registry import objectives

    module = name.lower().replace("-", "_")
    if not re.fullmatch(r"[a-z][a-z0-9_]*", module) or keyword.iskeyword(module):
        raise ConfigError(
            f"{name!r} cannot name an objective: letters, digits and dashes, a letter first, such as my-loss"
        )
    if module in (known := objectives()):
        raise PluginError(
            f"{known[module].distribution} has an objective {module!r} already; choose another name"
        )
    distribution = f"tdpo-{module.replace('_', '-')}"
    folder = Path(distribution) if folder is None else folder
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder}: there is something already; choose another folder")
    values = {
        "name": module,
        "distribution": distribution,
        "package": distribution.replace("-", "_"),
        "class_name": "".join(word.capitalize() for word in module.split("_")),
        "tdpo_version": version("tdpo"),
    }
    templates = Environment(
        loader=FileSystemLoader(_TEMPLATE), undefined=StrictUndefined, keep_trailing_newline=True
    )
    try:
        for source in sorted(_TEMPLATE.rglob("*.j2")):
            place = source.relative_to(_TEMPLATE)
            target = folder / _place(place, values["package"], module)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(templates.get_template(place.as_posix()).render(values), encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"{folder}: {error.strerror or error}; choose a folder that can be written"
        ) from error
    return folder


def _place(place: Path, package: str, module: str) -> Path:
    named = place.as_posix().removesuffix(".j2").replace("/package/", f"/{package}/")
    return Path(named.replace("test_objective", f"test_{module}"))
