"""What an installation brings: the package ``tdpo``, its command, and no other top-level module."""

import importlib.metadata
import subprocess
import sys

import pytest


def test_the_wheel_has_one_top_level_module_and_one_command():
    distribution = importlib.metadata.distribution("tdpo")
    files = [file for file in distribution.files or [] if file.parts[0] != ".."]
    if any(file.name.endswith(".pth") for file in files):
        pytest.skip("an editable installation")
    top = {file.parts[0] for file in files}
    assert {name for name in top if not name.endswith(".dist-info")} == {"tdpo"}
    names = {"/".join(file.parts[1:]) for file in files if file.parts[0] == "tdpo"}
    assert {"py.typed", "core/cli/__init__.py", "cache/reader.py", "plugins/dpo.py"} <= names
    assert not any(name.startswith(("tests/", "docs/", "examples/")) for name in names)


def test_the_command_and_the_plugin_group_are_declared():
    entries = importlib.metadata.distribution("tdpo").entry_points
    assert {(e.group, e.name, e.value) for e in entries} == {
        ("console_scripts", "tdpo", "tdpo.__main__:main"),
        ("tdpo", "builtin", "tdpo.plugins"),
    }


def test_folders_of_the_repository_are_not_importable_by_their_bare_names():
    script = "import importlib.util as u; print([n for n in ('core', 'cache', 'plugins') if u.find_spec(n)])"
    result = subprocess.run([sys.executable, "-I", "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
