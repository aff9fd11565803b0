"""The statistic by hand, and the objective by the conformance kit."""

import numpy as np
from tdpo_novelty.objective import NoveltyDPO
from tdpo_novelty.statistic import share

from tdpo.testing import check_objective


def test_novelty_is_the_share_of_tokens_that_the_prompt_lacks():
    assert share(np.array([1, 2, 3]), np.array([1, 9, 9, 3])).tolist() == [0.5]
    assert share(np.array([1, 2]), np.array([2, 2])).tolist() == [0.0]


def test_the_objective_keeps_to_the_contract():
    check_objective(NoveltyDPO, added={"novelty": 1})
