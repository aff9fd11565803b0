"""Several processes that build one cache: a leader, and followers that score what it hands them."""
