"""Every mistake that tdpo knows how to answer: provoked for real by the tests, listed in docs/errors.md."""

from . import (
    adding,
    data,
    evaluation,
    fit,
    folders,
    memory,
    models,
    options,
    plans,
    plugins,
    processes,
    remote,
    runs,
)

GROUPS = (
    data,
    models,
    options,
    folders,
    adding,
    remote,
    plugins,
    fit,
    evaluation,
    memory,
    runs,
    processes,
    plans,
)
CASES = tuple(case for group in GROUPS for case in group.CASES)
