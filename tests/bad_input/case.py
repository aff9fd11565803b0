"""One mistake: what the user types, how the situation comes about, and what must be said."""

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from support import make_model, make_tokenizer


@dataclass(frozen=True)
class Materials:
    """What every case starts from; read-only."""

    reference: Path
    pairs: Path
    cache: Path
    store: "Store"


class Store:
    """An S3 server, started by the first case that wants one and stopped at the end."""

    def __init__(self, folder: Path):
        self._folder, self._stack, self._variables = folder, ExitStack(), None

    def variables(self):
        """The environment that leads to it."""
        if self._variables is None:
            from remote import s3_server

            self._variables = self._stack.enter_context(s3_server(self._folder / "s3.log"))
        return self._variables

    def close(self):
        self._stack.close()


class World:
    """A working folder with everything in order: ``model``, ``pairs.jsonl``, ``tdpo-cache``.

    A case's ``prepare`` spoils one thing in it. It is also the current folder. What is entered in ``during``
    is left when the command has ended.
    """

    def __init__(self, folder: Path, materials: Materials, during: ExitStack):
        self.folder, self.during, self.materials = folder, during, materials
        (folder / "model").symlink_to(materials.reference)
        shutil.copy(materials.pairs, folder / "pairs.jsonl")
        shutil.copytree(materials.cache, folder / "tdpo-cache")

    def path(self, name):
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def write(self, name, content):
        """A file of text or bytes."""
        data = content.encode() if isinstance(content, str) else content
        self.path(name).write_bytes(data)

    def rows(self, name, rows: Iterable):
        """A JSON Lines file."""
        self.write(name, "".join(json.dumps(row) + "\n" for row in rows))

    def good_rows(self, count):
        """The first rows of ``pairs.jsonl``."""
        lines = (self.folder / "pairs.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines[:count]]

    def edit(self, name, change: Callable[[dict], object]):
        """Change a JSON document in place."""
        path = self.folder / name
        document = json.loads(path.read_text())
        change(document)
        path.write_text(json.dumps(document))

    @property
    def manifest(self):
        """The manifest of ``tdpo-cache``."""
        return json.loads((self.folder / "tdpo-cache" / "manifest.json").read_text())

    def unfinish(self, cache):
        """Take a cache back to before its last shard was written."""
        ledger = []

        def change(document):
            ledger.append(document["shards"].pop())
            document["complete"] = False

        self.edit(f"{cache}/manifest.json", change)
        (self.folder / cache / ledger[0]["file"]).unlink()

    def cut(self, name, keep=0.5):
        """Keep only the first part of a file."""
        path = self.folder / name
        data = path.read_bytes()
        path.write_bytes(data[: int(len(data) * keep)])

    def copy_model(self, name):
        """The reference as a folder of its own, to be spoilt."""
        shutil.copytree(self.materials.reference, self.folder / name)

    def new_model(self, name, tokenizer=None, vocab_size=None, seed=0, **options):
        """Another model, with its tokenizer."""
        tokenizer = tokenizer or make_tokenizer()
        make_model(vocab_size or len(tokenizer), seed, **options).save_pretrained(self.folder / name)
        tokenizer.save_pretrained(self.folder / name)

    def build(self, out, **options):
        """Another cache, of ``model`` and ``pairs.jsonl`` unless said otherwise."""
        import tdpo

        values = {"ref": "model", "dataset": "pairs.jsonl", **options}
        tdpo.build_cache(out=out, quiet=True, **values)

    def run(self, command):
        """A command that must succeed."""
        from .provoke import run_command

        outcome = run_command(command)
        assert outcome.code == 0, outcome.stderr

    def s3(self, **changes):
        """A store in which s3://bucket is, while the case runs."""
        import fsspec
        from remote import environment

        # Nothing of this machine's own settings or credentials.
        own = {"AWS_CONFIG_FILE": "none", "AWS_SHARED_CREDENTIALS_FILE": "none", "AWS_PROFILE": None}
        variables = {**own, **self.materials.store.variables()}
        with environment(variables):
            store = fsspec.filesystem("s3")
            if store.exists("bucket"):
                store.rm("bucket", recursive=True)
            store.mkdir("bucket")
        self.during.enter_context(environment({**variables, **changes}))

    def without(self, module):
        """A module that is not installed while the case runs."""
        before = sys.modules.get(module)
        sys.modules[module] = None
        self.during.callback(_set_module, module, before)

    def env(self, **values):
        """Environment variables while the case runs; None removes one."""
        before = {name: os.environ.get(name) for name in values}
        self.during.callback(_set_env, before)
        _set_env(values)


def _set_module(name, before):
    if before is None:
        sys.modules.pop(name, None)
    else:
        sys.modules[name] = before


def _set_env(values):
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def nothing(world):
    """Everything is in order but the command."""


@dataclass(frozen=True)
class Case:
    """A mistake.

    Attributes:
        title: what is wrong, for the table.
        command: as the user types it.
        says: regular expression that is found in the message.
        prepare: makes the situation in the World.
        hide: (regular expression, text) pairs that take what changes from run to run out of the table.
        keeps: whether the part of a build that was finished stays behind, as it should.
        needs: modules without which the case cannot be tried.

    """

    title: str
    command: str
    says: str
    prepare: Callable[[World], object] = nothing
    hide: tuple[tuple[str, str], ...] = ()
    keeps: bool = False
    needs: tuple[str, ...] = ()

    @property
    def possible(self):
        """Whether this environment has what it takes."""
        return all(find_spec(name) is not None for name in self.needs)
