"""Every mistake that tdpo knows how to answer: provoked for real by the tests, listed in docs/errors.md."""

from . import adding, data, fit, folders, models, options, plugins, remote

GROUPS = (data, models, options, folders, adding, remote, plugins, fit)
CASES = tuple(case for group in GROUPS for case in group.CASES)
