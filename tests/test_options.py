"""Options: read from text and YAML, checked, and refused with the nearest name."""

import datetime
from dataclasses import dataclass
from pathlib import Path

import pytest

from tdpo.core.config.build import BuildConfig
from tdpo.core.config.file import fit_config
from tdpo.core.config.fit import FitConfig
from tdpo.core.errors import ConfigError
from tdpo.core.options import Range, coerce, construct, option


@dataclass(frozen=True)
class Options:
    rate: float = option(0.5, "a rate", gt=0, le=1)
    count: int | None = option(None, "a count", ge=1)
    name: str = option("a", "a name", choices=("a", "bee"))
    on: bool = option(False, "a switch")


@pytest.mark.parametrize(
    ("bounds", "text", "inside", "outside"),
    [
        (Range(gt=0), "> 0", 0.1, 0.0),
        (Range(ge=0, lt=0.5), "[0, 0.5)", 0.0, 0.5),
        (Range(gt=0, le=1), "(0, 1]", 1.0, 0.0),
        (Range(le=3), "<= 3", 3, 4),
    ],
)
def test_a_range_says_and_holds_its_numbers(bounds, text, inside, outside):
    assert str(bounds) == text
    assert inside in bounds
    assert outside not in bounds
    assert float("nan") not in bounds


@pytest.mark.parametrize(
    ("value", "kind", "read"),
    [
        ("1e-5", float, 1e-5),
        (3, float, 3.0),
        ("12", int, 12),
        (2.0, int, 2),
        ("none", int | None, None),
        ("Yes", bool, True),
        ("off", bool, False),
        (Path("a/b"), str, "a/b"),
        (7, str, "7"),
        (datetime.date(2024, 7, 26), str, "2024-07-26"),
        ("a", list[str], ["a"]),
        (("a", Path("b")), list[str], ["a", "b"]),
    ],
)
def test_values_are_read_as_the_options_type(value, kind, read):
    assert coerce(value, kind, "x") == read
    assert type(coerce(value, kind, "x")) is type(read)


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        ("1.5", int),
        (1.5, int),
        (True, int),
        (True, float),
        ("maybe", bool),
        (None, int),
        (Path("a"), int),
        ([1], str),
        ([["a"]], list[str]),
        (None, list[str]),
    ],
)
def test_values_of_another_type_are_refused(value, kind):
    with pytest.raises(ConfigError, match="x: "):
        coerce(value, kind, "x")


def test_mistakes_name_the_option_and_the_nearest_one():
    for values, said in (
        ({"rat": 1}, "did you mean 'rate'"),
        ({"rate": 0}, r"rate=0.0 is out of range: it must be in \(0, 1\]"),
        ({"count": 0}, "count=0"),
        ({"name": "be"}, "did you mean 'bee'"),
    ):
        with pytest.raises(ConfigError, match=said):
            construct(Options, values)


def test_every_option_has_a_help_text():
    for cls in (BuildConfig, FitConfig):
        for field in cls.__dataclass_fields__.values():
            assert field.metadata["help"], field.name


def test_what_wins(tmp_path):
    """A flag over --set over the file over the default; set is merged name by name."""
    path = tmp_path / "tdpo.yaml"
    path.write_text("fit: {epochs: 2, seed: 7, set: {beta: 1, alpha: 2}}\ntraining: {weight_decay: 0.5}\n")
    config = fit_config(
        {"plugin": "tdpo2", "epochs": "3", "set": {"beta": "9", "training.weight_decay": "0.1"}}, path
    )
    assert (config.epochs, config.seed, config.batch_size) == (3.0, 7, 8)
    assert config.set == {"beta": "9", "alpha": 2}
    assert config.training == {"weight_decay": "0.1"}
