"""What the command says without a cache."""

from click.testing import CliRunner
from tdpo_lengths.command import lengths

import tdpo


def test_a_missing_cache_is_an_error_of_tdpo():
    result = CliRunner().invoke(lengths, ["nowhere"])
    assert isinstance(result.exception, tdpo.TdpoError)
    assert "nowhere" in str(result.exception)
