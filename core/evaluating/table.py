"""Figures of single pairs, or of single prompts, as columns: what everything here is computed from."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase

import numpy as np

Derived = Callable[["Table", np.ndarray], np.ndarray]
"""A figure that is no mean over rows: of a table of N rows and weights [R, N], its values [R].

The weights say how often a row counts, as in R samples drawn with replacement.
"""


@dataclass(frozen=True)
class Table:
    """N rows that are evaluated together; every array is [N] and in their order."""

    ids: np.ndarray
    """str; what proves which row this is, and joins those of several runs: ``pair_id``, or a prompt's."""
    groups: np.ndarray
    """str; rows of one group are not independent of each other: the prompt's id."""
    figures: Mapping[str, np.ndarray]
    """Name -> float64; NaN where a row has none. What is reported of a figure is its mean over rows."""
    weights: Mapping[str, np.ndarray] = field(default_factory=dict)
    """Name of a figure -> float64 weights of that mean, where it is a weighted one, such as over tokens."""
    derived: Mapping[str, Derived] = field(default_factory=dict)
    """Name -> a figure of all rows together."""
    columns: Mapping[str, np.ndarray] = field(default_factory=dict)
    """Name -> what is known of a row besides: lengths, the reference's figures, columns of other files."""
    no_interval: Collection[str] = ()
    """Derived figures that resampling would move away from their value, and that therefore get none."""

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def names(self) -> list[str]:
        """Names of all that is reported."""
        return [*self.figures, *self.derived]

    @property
    def prompts(self) -> int:
        """How many groups there are."""
        return len(np.unique(self.groups))

    def column(self, name: str) -> np.ndarray | None:
        """The values of a column or a figure; None where there is none of that name."""
        found = self.columns.get(name)
        return self.figures.get(name) if found is None else found

    def take(self, rows: np.ndarray) -> "Table":
        """The rows at these places, or those that a mask of bool [N] says."""
        return replace(
            self,
            ids=self.ids[rows],
            groups=self.groups[rows],
            figures={name: values[rows] for name, values in self.figures.items()},
            weights={name: values[rows] for name, values in self.weights.items()},
            columns={name: values[rows] for name, values in self.columns.items()},
        )

    def with_columns(self, columns: Mapping[str, np.ndarray]) -> "Table":
        """The same with further columns."""
        return replace(self, columns={**self.columns, **columns})

    def keys(self) -> list[tuple[str, int]]:
        """Id of each row, and how many rows of that id came before it."""
        seen: dict[str, int] = {}
        found = []
        for one in self.ids.tolist():
            found.append((one, seen.get(one, 0)))
            seen[one] = found[-1][1] + 1
        return found


def column_name(name: str) -> str:
    """What a column or figure is called in a file: ``rewards_margins`` for ``rewards/margins``."""
    return name.replace("/", "_")


def chosen_names(patterns: list[str], known: list[str]) -> list[str]:
    """The names that are asked for, in the order of ``known``; all where nothing is asked for."""
    if not patterns:
        return known
    return [name for name in known if any(fnmatchcase(name, pattern) for pattern in patterns)]


def common_rows(a: Table, b: Table) -> tuple[np.ndarray, np.ndarray]:
    """Places in both tables of the rows that both have, joined by id, in the order of ``a``."""
    places = {key: place for place, key in enumerate(b.keys())}
    joined = [(place, places[key]) for place, key in enumerate(a.keys()) if key in places]
    rows = np.array(joined, dtype=np.int64).reshape(-1, 2)
    return rows[:, 0], rows[:, 1]
