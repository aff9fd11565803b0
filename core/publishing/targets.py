"""Where a run is pushed to: a repository on the hub, a folder of this machine, or a URL that fsspec knows."""

import os
import re
import shutil
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path
from typing import IO, Protocol

from ...cache.errors import CacheError
from ...cache.storage.files import Folder, is_url, write_all
from ..errors import ConfigError
from ..runs.folder import RunFolder
from ..training.card import CARD_FILE
from .content import MODEL_CONFIGS, Content, is_published

_HUB = "hf://"
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


class Target(Protocol):
    """A place that a run is pushed to."""

    place: str
    """As people write it."""
    name: str
    """What a card calls the policy that lies there; empty to leave it as it is."""

    def send(self, content: Content, message: str, *, overwrite: bool, quiet: bool) -> str | None:
        """Put the files there; the hub's commit, None elsewhere.

        Raises:
            TdpoError: something is there already, or it cannot be written to.
        """


def find_target(text: str, *, private: bool = False, revision: str | None = None) -> Target:
    """What a TARGET stands for.

    ``USER/NAME`` and ``hf://USER/NAME`` are the hub's; any other URL is fsspec's; all else is a folder.

    Raises:
        ConfigError: ``USER/NAME`` could be a folder here as well; or options that only the hub has a use for.
    """
    bare = text.removeprefix(_HUB).rstrip("/")
    if _REPOSITORY.fullmatch(bare) and (text.startswith(_HUB) or not Path(text).exists()):
        above = bare.partition("/")[0]
        if Path(above).is_dir() and not text.startswith(_HUB):
            raise ConfigError(
                f"TARGET {text}: a repository on the hub, or a folder in {above}? Write {_HUB}{text} for the "
                f"one, ./{text} for the other"
            )
        from .hub import HubTarget

        return HubTarget(bare, private, revision)
    if text.startswith(_HUB):
        raise ConfigError(f"TARGET {text}: a repository is named USER/NAME, such as {_HUB}me/dpo")
    for given, option in ((private, "--private"), (revision is not None, "--revision")):
        if given:
            raise ConfigError(f"{option}: TARGET {text} is no repository on the hub; leave it out")
    return UrlTarget(text) if is_url(text) else FolderTarget(text)


def check_place(names: Collection[str], place: str, *, overwrite: bool) -> None:
    """Refuse to write where something else lies, or another model that is not to be replaced.

    A push that was cut off left files but no model, and may be gone on with.

    Args:
        names: of the files that are there.
        place: where.
        overwrite: whether an earlier push may be replaced.

    Raises:
        ConfigError: says what is there.
    """
    if foreign := sorted(name for name in names if not is_published(name)):
        raise ConfigError(
            f"TARGET {place}: holds {foreign[0]}, which no push has written; choose another place"
        )
    if not overwrite and any(name in names for name in MODEL_CONFIGS):
        raise ConfigError(
            f"TARGET {place}: holds a model already; choose another place, or replace it by --overwrite"
        )


class FolderTarget:
    """A folder of this machine: it is filled beside its place, and takes its name last."""

    def __init__(self, place: str):
        self.place, self.name = place, ""
        self.path = Path(place.removeprefix("file://")).expanduser()

    def check(self, run: RunFolder) -> None:
        """Refuse the run's own folder, and what lies in it. Raises ConfigError."""
        mine, theirs = run.path.resolve(), self.path.resolve()
        if theirs == mine or mine in theirs.parents:
            raise ConfigError(f"TARGET {self.place}: is the run's own folder; choose another")

    def send(self, content: Content, message: str, *, overwrite: bool, quiet: bool) -> None:
        """Copy the files."""
        if self.path.exists() and not self.path.is_dir():
            raise ConfigError(f"TARGET {self.place}: is a file; choose a folder")
        check_place(self._names(), self.place, overwrite=overwrite)
        staging = self.path.with_name(f"{self.path.name}.push")
        try:
            shutil.rmtree(staging, ignore_errors=True)
            for name, source in content.files.items():
                (staging / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, staging / name)
            (staging / CARD_FILE).write_text(content.card, encoding="utf-8")
            if self.path.exists():
                # All that is there an earlier push has written.
                shutil.rmtree(self.path)
            os.replace(staging, self.path)
        except OSError as error:
            with suppress(OSError):
                shutil.rmtree(staging)
            raise ConfigError(
                f"TARGET {self.place}: {error.strerror or error}; choose a folder that can be written"
            ) from error

    def _names(self) -> list[str]:
        return [path.relative_to(self.path).as_posix() for path in self.path.rglob("*") if not path.is_dir()]


class UrlTarget:
    """A folder in a store, which renames nothing: what makes it a model goes first and comes last."""

    def __init__(self, place: str):
        self.place, self.name = place.rstrip("/"), ""
        self.folder = Folder.at(self.place)

    def send(self, content: Content, message: str, *, overwrite: bool, quiet: bool) -> None:
        """Upload the files."""
        there = self._names()
        check_place(there, self.place, overwrite=overwrite)
        for name in sorted(there, key=lambda name: name not in MODEL_CONFIGS):
            if name in MODEL_CONFIGS or name not in content.sizes:
                folder, plain = self._inside(name)
                folder.remove(plain)
        self.folder.create()
        self._inside(CARD_FILE)[0].replace(CARD_FILE, lambda file: write_all(file, content.card.encode()))
        for name in sorted(content.files, key=lambda name: name in MODEL_CONFIGS):
            folder, plain = self._inside(name)
            folder.create()
            folder.replace(plain, _copier_of(content.files[name]))

    def _names(self) -> list[str]:
        names = list(self.folder.sizes())
        for inside in ("eval", "additional_chat_templates"):
            names += [f"{inside}/{name}" for name in self.folder.child(inside).sizes()]
        return names

    def _inside(self, name: str) -> tuple[Folder, str]:
        inside, _, plain = name.rpartition("/")
        return (self.folder.child(inside) if inside else self.folder), plain


def _copier_of(path: Path) -> Callable[[IO[bytes]], None]:
    def copy(file: IO[bytes]) -> None:
        try:
            with path.open("rb") as source:
                shutil.copyfileobj(source, file)
        except OSError as error:
            raise CacheError(f"cannot read {path}: {error.strerror or error}") from error

    return copy
