"""For the tests of plugins: whether an objective or a weighting keeps to its contract.

from tdpo.testing import check_objective

def test_it_keeps_to_the_contract():
    check_objective(MyObjective)
"""

from .core.conformance.common import ConformanceError
from .core.conformance.objectives import check_objective
from .core.conformance.weightings import check_weighting

__all__ = ["ConformanceError", "check_objective", "check_weighting"]
